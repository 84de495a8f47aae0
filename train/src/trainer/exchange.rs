//! What ranks tell each other before they sum their gradients, so that all of them go on or none.

use std::ops::ControlFlow;

use anyhow::Result;
use nn::distributed::{DistributedError, World};
use runkit::signals::{Signal, Stoppable};
use serde::{Deserialize, Serialize};

/// How a rank has come through its micro-batches of a step.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Status {
    outcome: Outcome,
    /// The sum of its pairs' weights, as bits.
    weight: u64,
    /// How many pairs it computed.
    pairs: u64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
enum Outcome {
    Done,
    Interrupt,
    Terminate,
    Error(String),
}

/// What all ranks have computed of a step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Computed {
    /// The sum of the pairs' weights.
    pub(super) weight: f64,
    /// How many pairs there are, without the skipped ones.
    pub(super) pairs: u64,
}

/// Tells the other ranks the outcome of this one, and returns what all have computed: `Break` at
/// all ranks if one was asked to stop.
///
/// # Errors
/// This rank's own error. If another rank has one, [`DistributedError::OtherRank`] with its message
/// at all others. Or a rank is lost.
pub(super) fn exchange(
    world: &World,
    outcome: Result<Stoppable<Computed>>,
) -> Result<Stoppable<Computed>> {
    // A signal may end a read as an error.
    let outcome = runkit::signals::stoppable(outcome);
    let (told, computed) = match &outcome {
        Ok(ControlFlow::Continue(computed)) => (Outcome::Done, *computed),
        Ok(ControlFlow::Break(Signal::Interrupt)) => (Outcome::Interrupt, Computed::NONE),
        Ok(ControlFlow::Break(Signal::Terminate)) => (Outcome::Terminate, Computed::NONE),
        Err(error) => (Outcome::Error(format!("{error:#}")), Computed::NONE),
    };
    let status = Status { outcome: told, weight: computed.weight.to_bits(), pairs: computed.pairs };
    let all = world.gather(status);
    outcome.and_then(|_| agreed(all?))
}

/// What follows from the outcomes of all ranks.
fn agreed(all: Vec<Status>) -> Result<Stoppable<Computed>> {
    let mut computed = Computed::NONE;
    let mut signal = None;
    for (rank, Status { outcome, weight, pairs }) in all.into_iter().enumerate() {
        match outcome {
            Outcome::Error(message) => {
                return Err(DistributedError::OtherRank { rank, message }.into());
            }
            Outcome::Done => {}
            Outcome::Interrupt => signal = signal.or(Some(Signal::Interrupt)),
            Outcome::Terminate => signal = signal.or(Some(Signal::Terminate)),
        }
        computed.weight += f64::from_bits(weight);
        computed.pairs += pairs;
    }
    Ok(signal.map_or(ControlFlow::Continue(computed), ControlFlow::Break))
}

impl Computed {
    /// Nothing.
    pub(super) const NONE: Self = Self { weight: 0.0, pairs: 0 };
}
