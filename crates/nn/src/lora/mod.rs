//! LoRA: adapters of a network whose own weights are frozen, from training to files and back.
//!
//! An adapter adds `scale · B · A · x` to what a layer makes of `x`, with `A` of `r` rows and `B` of
//! `r` columns; `r` is the rank and `scale` is alpha divided by it
//! ([arXiv:2106.09685](https://arxiv.org/abs/2106.09685)). [`UNet::load_with_adapters`] trains them;
//! outputs and gradients agree with PEFT 0.21.2 to 1e-5 (`tests/lora_goldens.rs`).
//!
//! Adapters are exchanged as files of several forms. [`LoraFile`] reads all of them, for any UNet
//! and its text encoders: what diffusers and PEFT write now and wrote before, and what sd-scripts
//! and its relatives write. [`write_diffusers`] and [`write_kohya`] write two of them. For
//! generating images adapters are merged into the weights while these are loaded
//! ([`Pipeline::load_with`]), which costs no time afterwards.
//!
//! [`UNet::load_with_adapters`]: crate::unet::UNet::load_with_adapters
//! [`Pipeline::load_with`]: crate::pipeline::Pipeline::load_with

mod adapter;
mod blocks;
pub(crate) mod file;
mod keys;
mod merge;
mod read;
mod source;
mod targets;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub(crate) use adapter::Adapter;
#[cfg(test)]
pub(crate) use adapter::CALLS;
pub use file::{DIFFUSERS_FILE, SAVED_ADAPTERS, write_diffusers, write_kohya};
pub use merge::{MergedPipeline, Part};
pub use read::LoraFile;
pub use source::ScaledLora;
pub use targets::{Module, Targets};

use crate::weights::{Weights, WeightsError};

/// How many differences an error lists.
const LISTED: usize = 10;

/// The adapters of a network.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LoraConfig {
    /// The rank `r`.
    pub rank: i64,
    /// The scale of adapters, times the rank.
    pub alpha: f64,
    /// The layers that have one.
    pub targets: Targets,
}

impl LoraConfig {
    /// The factor of what an adapter adds.
    pub fn scale(&self) -> f64 {
        self.alpha / self.rank as f64
    }

    /// Checks that a file of [`SAVED_ADAPTERS`] holds the adapters of these layers at this rank.
    pub(crate) fn check_stored(
        &self,
        stored: &Weights,
        modules: &[Module],
    ) -> Result<(), LoraError> {
        let mut differences = Vec::new();
        let mut known = std::collections::HashSet::new();
        for module in modules {
            let [down, up] = [module.down_shape(self.rank), module.up_shape(self.rank)];
            for (part, shape) in [("lora_A", down), ("lora_B", up)] {
                let name = format!("{}.{part}.weight", module.name);
                match stored.shape(&name) {
                    Some(found) if found == shape => {}
                    Some(found) => {
                        differences.push(format!("{name}: expected {shape:?}, found {found:?}"));
                    }
                    None => differences.push(format!("{name}: missing")),
                }
                known.insert(name);
            }
        }
        let others = stored.names().filter(|name| !known.contains(*name));
        differences.extend(others.map(|name| format!("{name}: of no target")));
        if differences.is_empty() {
            return Ok(());
        }
        Err(LoraError::Stored { file: stored.describe(), listing: listing(&differences) })
    }
}

/// Adapters cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LoraError {
    /// The file could not be read.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// A target fits no layer.
    #[error("the adapter target {name:?} fits no layer of the UNet; hint: layers end in {known}")]
    NoTarget {
        /// The target.
        name: String,
        /// The ends of the names of layers.
        known: String,
    },
    /// The adapters of a checkpoint are of other layers or of another rank.
    #[error("{}: the adapters do not fit the targets and the rank:{listing}", file.display())]
    Stored {
        /// The file.
        file: PathBuf,
        /// The first differences, one per line.
        listing: String,
    },
    /// A file is not one of adapters, or some of it fits nothing.
    #[error("{}: {reason}{listing}", file.display())]
    Unfit {
        /// The file or folder.
        file: PathBuf,
        /// What was expected and what was found.
        reason: String,
        /// The first names that fit nothing, one per line.
        listing: String,
    },
}

/// The first lines of a list, each on a line of its own.
fn listing(lines: &[String]) -> String {
    let mut text = String::new();
    for line in lines.iter().take(LISTED) {
        // Names come from a file: escape what a terminal obeys.
        text += &format!("\n  {}", line.escape_debug());
    }
    if lines.len() > LISTED {
        text += &format!("\n  … and {} more", lines.len() - LISTED);
    }
    text
}
