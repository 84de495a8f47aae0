//! Which layers of a network get an adapter.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::LoraError;
use crate::weights::Weights;

/// The layers of every attention that the trainers of diffusers adapt.
const ATTENTION: [&str; 4] = ["to_q", "to_k", "to_v", "to_out.0"];
/// The layers of the feed-forward network of a transformer.
const FEED_FORWARD: [&str; 2] = ["ff.net.0.proj", "ff.net.2"];
/// How many ends of names an error lists.
const LISTED: usize = 24;

/// The layers that get an adapter; as text `attention`, `attention+ff`, `all-linear`, or ends of
/// names separated by commas.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
#[doc(alias = "target_modules")]
pub enum Targets {
    /// Queries, keys, values and outputs of every attention, as the trainers of diffusers.
    Attention,
    /// These and the feed-forward networks.
    AttentionAndFeedForward,
    /// Every linear layer, as PEFT's `all-linear`.
    AllLinear,
    /// Every layer whose name is one of these, or ends with a dot and one of these, as PEFT's
    /// `target_modules`. It may be a convolution.
    Named(Vec<String>),
}

impl Targets {
    /// The ends of names, if ends of names choose the layers.
    pub(super) fn ends(&self) -> Option<Vec<&str>> {
        match self {
            Self::Attention => Some(ATTENTION.to_vec()),
            Self::AttentionAndFeedForward => Some([&ATTENTION[..], &FEED_FORWARD].concat()),
            Self::AllLinear => None,
            Self::Named(names) => Some(names.iter().map(String::as_str).collect()),
        }
    }

    /// The layers of the network with these weights that get an adapter, sorted by name.
    ///
    /// # Errors
    /// If an end of a name fits no layer.
    pub fn modules(&self, weights: &Weights) -> Result<Vec<Module>, LoraError> {
        let all: Vec<Module> =
            weights.names().filter_map(|name| Module::of(weights, name)).collect();
        let Some(ends) = self.ends() else {
            return Ok(all.into_iter().filter(Module::is_linear).collect());
        };
        if let Some(end) = ends.iter().find(|end| !all.iter().any(|module| module.ends_in(end))) {
            let mut known: Vec<&str> = all.iter().map(Module::end).collect();
            known.sort_unstable();
            known.dedup();
            known.truncate(LISTED);
            return Err(LoraError::NoTarget { name: (*end).to_owned(), known: known.join(", ") });
        }
        let is_target = |module: &Module| ends.iter().any(|end| module.ends_in(end));
        Ok(all.into_iter().filter(is_target).collect())
    }
}

impl FromStr for Targets {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(match text.trim() {
            "attention" => Self::Attention,
            "attention+ff" => Self::AttentionAndFeedForward,
            "all-linear" => Self::AllLinear,
            names => {
                let mut names: Vec<String> =
                    names.split(',').map(|name| name.trim().trim_matches('.').to_owned()).collect();
                if names.iter().any(String::is_empty) {
                    return Err(format!(
                        "expected attention, attention+ff, all-linear, or names of layers separated by \
                         commas, as to_q,to_v; found {text:?}"
                    ));
                }
                names.sort_unstable();
                names.dedup();
                Self::Named(names)
            }
        })
    }
}

impl fmt::Display for Targets {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Attention => formatter.write_str("attention"),
            Self::AttentionAndFeedForward => formatter.write_str("attention+ff"),
            Self::AllLinear => formatter.write_str("all-linear"),
            Self::Named(names) => formatter.write_str(&names.join(",")),
        }
    }
}

impl TryFrom<String> for Targets {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Targets> for String {
    fn from(targets: Targets) -> Self {
        targets.to_string()
    }
}

/// A layer that can get an adapter: a linear layer or a convolution.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Module {
    /// Its name: that of its weight without `.weight`.
    pub name: String,
    /// The shape of its weight: `[out, in]`, or `[out, in, height, width]`.
    pub shape: Vec<i64>,
}

impl Module {
    /// The module of the tensor `name`, if it is the weight of such a layer.
    pub(super) fn of(weights: &Weights, name: &str) -> Option<Self> {
        let module = name.strip_suffix(".weight")?;
        let shape = weights.shape(name).filter(|shape| matches!(shape.len(), 2 | 4))?;
        Some(Self { name: module.to_owned(), shape: shape.to_vec() })
    }

    fn is_linear(&self) -> bool {
        self.shape.len() == 2
    }

    fn ends_in(&self, end: &str) -> bool {
        let before = self.name.strip_suffix(end);
        before.is_some_and(|before| before.is_empty() || before.ends_with('.'))
    }

    /// The end of the name that means something to a user: `to_q`, `to_out.0`, `ff.net.2`.
    fn end(&self) -> &str {
        let mut parts = self.name.rmatch_indices('.').map(|(place, _)| place + 1);
        let is_word = |start: usize| {
            self.name.get(start..).is_some_and(|end| !end.starts_with(|c: char| c.is_ascii_digit()))
        };
        let start = parts.find(|start| is_word(*start)).unwrap_or(0);
        self.name.get(start..).unwrap_or_default()
    }

    /// The shape of `lora_A` at a rank: `[r, in]`, or that of a convolution to `r` channels.
    pub fn down_shape(&self, rank: i64) -> Vec<i64> {
        let mut shape = self.shape.clone();
        if let Some(output) = shape.first_mut() {
            *output = rank;
        }
        shape
    }

    /// The shape of `lora_B` at a rank: `[out, r]`, or that of a 1×1 convolution from `r` channels.
    pub fn up_shape(&self, rank: i64) -> Vec<i64> {
        let output = self.shape.first().copied().unwrap_or(0);
        if self.is_linear() { vec![output, rank] } else { vec![output, rank, 1, 1] }
    }

    /// How many numbers its adapter has at a rank.
    pub fn numbers(&self, rank: i64) -> f64 {
        let count = |shape: Vec<i64>| shape.into_iter().map(|size| size as f64).product::<f64>();
        count(self.down_shape(rank)) + count(self.up_shape(rank))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn module(name: &str) -> Module {
        Module { name: name.to_owned(), shape: vec![4, 6] }
    }

    #[test]
    fn targets_are_read_and_written() {
        for (text, expected) in [
            ("attention", Targets::Attention),
            ("attention+ff", Targets::AttentionAndFeedForward),
            ("all-linear", Targets::AllLinear),
            ("to_q,ff.net.2", Targets::Named(vec!["ff.net.2".to_owned(), "to_q".to_owned()])),
        ] {
            let found: Targets = text.parse().unwrap();
            assert_eq!(found, expected);
            assert_eq!(found.to_string().parse::<Targets>().unwrap(), expected);
        }
        for wrong in ["", "to_q,,to_v", ","] {
            assert!(wrong.parse::<Targets>().unwrap_err().contains("all-linear"), "{wrong:?}");
        }
    }

    #[test]
    fn names_match_at_a_dot_only() {
        let layer = module("down_blocks.0.attn1.to_out.0");
        assert!(layer.ends_in("to_out.0") && layer.ends_in("attn1.to_out.0"));
        assert!(!layer.ends_in("out.0") && !layer.ends_in("to_q"));
        assert!(module("to_q").ends_in("to_q"));
        assert_eq!(layer.end(), "to_out.0");
        assert_eq!(module("a.ff.net.0.proj").end(), "proj");
        assert_eq!(module("conv_in").end(), "conv_in");
    }

    #[test]
    fn adapters_have_the_shapes_of_peft() {
        let linear = module("a");
        assert_eq!((linear.down_shape(2), linear.up_shape(2)), (vec![2, 6], vec![4, 2]));
        assert_eq!(linear.numbers(2), 20.0);
        let convolution = Module { name: "a".to_owned(), shape: vec![4, 6, 3, 3] };
        assert_eq!(convolution.down_shape(2), [2, 6, 3, 3]);
        assert_eq!(convolution.up_shape(2), [4, 2, 1, 1]);
    }
}
