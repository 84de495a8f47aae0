//! How the ranks of a run stay together: what one of them meets, an error or a stop signal, ends
//! all of them at the same place.
//!
//! Every function is collective: all ranks call it at the same place. Alone it costs nothing.

use anyhow::{Result, anyhow};
use nn::distributed::{DistributedError, World};
use runkit::manifest::differences;
use runkit::program::{message_of, stopped};
use runkit::signals::{Signal, Stopped};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// How the part of a rank ended.
#[derive(Debug, Serialize, Deserialize)]
enum Outcome<T> {
    Done(T),
    Interrupted,
    Terminated,
    Failed(String),
}

impl<T> Outcome<T> {
    /// The outcome, and the error of a part that failed.
    fn of(part: Result<T>) -> (Self, Option<anyhow::Error>) {
        match part {
            Ok(value) => (Self::Done(value), None),
            Err(error) => {
                let outcome = match stopped(&error) {
                    Some(Stopped(Signal::Interrupt)) => Self::Interrupted,
                    Some(Stopped(Signal::Terminate)) => Self::Terminated,
                    None => Self::Failed(message_of(&error)),
                };
                (outcome, Some(error))
            }
        }
    }

    /// The error that all ranks end with if the part of `rank` ended so.
    fn error(&self, rank: usize) -> Option<anyhow::Error> {
        match self {
            Self::Done(_) => None,
            Self::Interrupted => Some(Stopped(Signal::Interrupt).into()),
            Self::Terminated => Some(Stopped(Signal::Terminate).into()),
            Self::Failed(message) => {
                Some(DistributedError::OtherRank { rank, message: message.clone() }.into())
            }
        }
    }
}

/// The values of all ranks, by rank.
///
/// # Errors
/// If the part of any rank failed: there its own error, at the others
/// [`DistributedError::OtherRank`] of the first such rank. If none failed and some were stopped,
/// [`Stopped`] at all ranks. If a rank is lost.
pub(crate) fn gather<T>(world: &World, part: Result<T>) -> Result<Vec<T>>
where
    T: Serialize + DeserializeOwned,
{
    if world.size() == 1 {
        return Ok(vec![part?]);
    }
    if let Some(lost) = part.as_ref().err().and_then(lost_rank) {
        return Err(lost.into());
    }
    let (outcome, own) = Outcome::of(part);
    let has_failed = matches!(outcome, Outcome::Failed(_));
    let outcomes = world.gather(outcome)?;
    if let (true, Some(own)) = (has_failed, own) {
        return Err(own);
    }
    let errors = || outcomes.iter().enumerate().filter_map(|(rank, outcome)| outcome.error(rank));
    // A failure says more than a stop.
    let failure = errors().find(|error| Stopped::behind(error.as_ref()).is_none());
    if let Some(error) = failure.or_else(|| errors().next()) {
        return Err(error);
    }
    let done = |outcome| match outcome {
        Outcome::Done(value) => Some(value),
        _ => None,
    };
    Ok(outcomes.into_iter().filter_map(done).collect())
}

/// As [`gather`], after work that may take some ranks much longer than others: while all of them
/// live, they wait for each other without a limit.
///
/// # Errors
/// As [`gather`].
pub(crate) fn gather_late<T>(world: &World, part: Result<T>) -> Result<Vec<T>>
where
    T: Serialize + DeserializeOwned,
{
    if part.as_ref().err().and_then(lost_rank).is_none() {
        world.barrier()?;
    }
    gather(world, part)
}

/// This rank's value, once the parts of all ranks are done, however long that takes.
///
/// # Errors
/// As [`gather`].
pub(crate) fn agree<T>(world: &World, part: Result<T>) -> Result<T> {
    let (value, part) = match part {
        Ok(value) => (Some(value), Ok(())),
        Err(error) => (None, Err(error)),
    };
    gather_late(world, part)?;
    value.ok_or_else(|| anyhow!("a part without a value was done"))
}

/// What rank 0's work returns, at every rank. The others wait for it.
///
/// # Errors
/// If the work failed: rank 0 ends with its error, the others with
/// [`DistributedError::OtherRank`]; if it was stopped, all with [`Stopped`]. If a rank is lost.
pub(crate) fn first<T>(world: &World, work: impl FnOnce() -> Result<T>) -> Result<T>
where
    T: Serialize + DeserializeOwned,
{
    if world.size() == 1 {
        return work();
    }
    let mut own = None;
    let outcome = world.by_first(|| -> Result<Outcome<T>> {
        let (outcome, error) = Outcome::of(work());
        own = error;
        Ok(outcome)
    })?;
    match (own, outcome.error(0), outcome) {
        (Some(own), _, _) => Err(own),
        (_, Some(error), _) => Err(error),
        (_, _, Outcome::Done(value)) => Ok(value),
        _ => Err(anyhow!("rank 0's work ended without a value")),
    }
}

/// Refuses ranks that were started in another way than rank 0: `what` they have must be equal.
///
/// # Errors
/// [`DistributedError::Differ`] at all ranks, naming the first rank and its differences.
pub(crate) fn refuse_differences(world: &World, what: &str, own: &Value) -> Result<()> {
    if world.size() == 1 {
        return Ok(());
    }
    let all = world.gather(own.clone())?;
    let Some(theirs) = all.first() else { return Ok(()) };
    for (rank, value) in all.iter().enumerate() {
        let found = differences(theirs, value);
        if !found.is_empty() {
            let shown = |value: &Option<Value>| match value {
                Some(value) => runkit::text::shorten_message(&value.to_string()),
                None => "absent".to_owned(),
            };
            let of = |one: &runkit::manifest::Difference| {
                format!(
                    "{} is {} at rank 0 and {} at rank {rank}",
                    one.field,
                    shown(&one.old),
                    shown(&one.new)
                )
            };
            let list: Vec<String> = found.iter().map(of).collect();
            return Err(DistributedError::Differ(format!(
                "{what} of the ranks differ: {}; hint: start all ranks with the same program and command line",
                list.join("; ")
            ))
            .into());
        }
    }
    Ok(())
}

/// The error that says that ranks can no longer work together, if it is behind `error`.
pub(crate) fn lost_rank(error: &anyhow::Error) -> Option<DistributedError> {
    let mut causes = error.chain().filter_map(|cause| cause.downcast_ref::<DistributedError>());
    let is_lost = |error: &&DistributedError| {
        matches!(
            error,
            DistributedError::LostRank { .. }
                | DistributedError::TimedOut { .. }
                | DistributedError::Failed { .. }
        )
    };
    causes.find(is_lost).cloned()
}

/// An error without what this rank was doing when another was lost: all survivors then say the
/// same.
pub(crate) fn plain(error: anyhow::Error) -> anyhow::Error {
    lost_rank(&error).map_or(error, anyhow::Error::from)
}
