//! The weights of voters, and votes that are counted with them.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The value of `--voter-weights`: the weight of each voter by name, as `clip=1,hps=2`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VoterWeights(BTreeMap<String, f64>);

impl VoterWeights {
    /// The weight of a voter: 1 if none is given.
    pub fn of(&self, voter: &str) -> f64 {
        self.0.get(voter).copied().unwrap_or(1.0)
    }

    /// Whether all weights are 1, which changes nothing.
    pub fn are_equal(&self) -> bool {
        self.0.values().all(|weight| *weight == 1.0)
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }
}

impl FromStr for VoterWeights {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut weights = BTreeMap::new();
        for part in text.split(',') {
            let weight = part.split_once('=').and_then(|(name, number)| {
                let number: f64 = number.trim().parse().ok()?;
                let name = name.trim();
                (!name.is_empty() && (0.0..f64::INFINITY).contains(&number))
                    .then(|| (name.to_owned(), number))
            });
            let (name, weight) = weight.ok_or_else(|| {
                format!("expected NAME=WEIGHT with a weight of 0 or more, found {part:?}")
            })?;
            if weights.insert(name.clone(), weight).is_some() {
                return Err(format!("expected one weight for each voter, found two for {name:?}"));
            }
        }
        Ok(Self(weights))
    }
}

impl fmt::Display for VoterWeights {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts: Vec<String> =
            self.0.iter().map(|(name, weight)| format!("{name}={weight}")).collect();
        formatter.write_str(&parts.join(","))
    }
}

impl TryFrom<String> for VoterWeights {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<VoterWeights> for String {
    fn from(weights: VoterWeights) -> Self {
        weights.to_string()
    }
}

/// The votes for image 0 and for image 1, each with its voter's weight.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Tally {
    pub(super) votes: [f64; 2],
}

impl Tally {
    /// The difference below which votes are even, beside their sum: 0.1 + 0.2 is not 0.3.
    const EVEN: f64 = 1e-9;

    pub(super) fn all(self) -> f64 {
        self.votes[0] + self.votes[1]
    }

    /// 1 for image 0, −1 for image 1, 0 if the votes are even.
    pub(super) fn sign(self) -> f64 {
        let difference = self.votes[0] - self.votes[1];
        if difference.abs() <= Self::EVEN * self.all() { 0.0 } else { difference.signum() }
    }

    /// The majority's fraction of the votes, one half to one.
    pub(super) fn majority(self) -> f64 {
        self.votes[0].max(self.votes[1]) / self.all()
    }
}
