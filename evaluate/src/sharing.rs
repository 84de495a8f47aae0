//! Several processes that work on one evaluation.
//!
//! | started | units of work | who counts and reports |
//! |---|---|---|
//! | alone | all | this process |
//! | by a launcher with a store | dealt one by one through the store | rank 0, after all ranks |
//! | as a shard | every N-th | the process that finds nothing missing |
//!
//! What is finished is known by the files alone: an image that is there, a score that is in the
//! store of scores. So a process that is killed costs the units it had open, and any start of the
//! same command does what is missing.
//!
//! One command has the folder. Its processes hold the lock together; each has a lock for its place
//! (shard I of N), and the first of them writes down which command it is: another command is
//! refused, with the fields that differ.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use nn::distributed::{Deal, Store, Units, World};
use runkit::launch::Launch;
use runkit::lock::{LockError, OutputLock};
use runkit::program::UsageError;
use runkit::shard::Shard;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tch::Device;

use crate::generate::FOLDER;

/// How long ranks wait for each other at the start.
const MEETING: Duration = Duration::from_secs(600);
/// How long a process waits for another that begins or writes down its command.
const MOMENT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(10);
/// Which command has the folder, while several processes are at it.
const COMMAND: &str = ".command.json";

/// The processes that share the work of a command.
#[derive(Debug)]
pub enum Sharing {
    /// This process does all of it.
    Alone,
    /// The ranks of a launcher, which meet in its store.
    World(World),
    /// One of several processes that share nothing but the folder.
    Shard(Shard),
}

impl Sharing {
    /// How this process was started: `explicit` is the shard of its flag, which always wins. Ranks
    /// meet here; a launcher without a store makes shards.
    ///
    /// # Errors
    /// If the launcher's variables are not understood, or the ranks do not find each other.
    pub fn of_process(explicit: Option<Shard>) -> Result<Self> {
        if let Some(shard) = explicit {
            return Ok(Self::of_shard(shard));
        }
        let launch = Launch::from_environment().map_err(UsageError::of)?;
        if launch.is_alone() {
            runkit::shard::refuse_several_processes("evaluate")?;
        }
        if launch.is_alone() || launch.store.is_none() {
            let shard = Shard::from_environment(None).map_err(UsageError::of)?;
            return Ok(Self::of_shard(shard));
        }
        // Until units are dealt, all ranks do the same.
        runkit::logging::of_rank(launch.rank, true);
        Ok(Self::World(World::join(&launch, Device::Cpu, MEETING)?))
    }

    fn of_shard(shard: Shard) -> Self {
        if shard.is_whole() { Self::Alone } else { Self::Shard(shard) }
    }

    /// Whether no other process shares the work.
    pub fn is_alone(&self) -> bool {
        matches!(self, Self::Alone)
    }

    /// Whether this process says what all ranks know.
    pub fn is_first(&self) -> bool {
        match self {
            Self::Alone | Self::Shard(_) => true,
            Self::World(world) => world.is_first(),
        }
    }

    /// The store of the launcher, if ranks meet there.
    pub(crate) fn store(&self) -> Option<&Store> {
        match self {
            Self::World(world) => world.store().map(AsRef::as_ref),
            Self::Alone | Self::Shard(_) => None,
        }
    }

    /// Tells the other ranks why this one ends.
    pub(crate) fn leave_words(&self, error: &anyhow::Error) {
        if let Self::World(world) = self {
            world.leave_words(&error.to_string());
        }
    }

    /// The shard whose every N-th unit this process does; `None` if units are not divided so.
    pub(crate) fn shard(&self) -> Option<Shard> {
        match self {
            Self::Shard(shard) => Some(*shard),
            Self::Alone | Self::World(_) => None,
        }
    }

    /// The place among the processes, as part of a file's name: "0-of-2". `None` alone.
    pub(crate) fn place(&self) -> Option<String> {
        match self {
            Self::Alone => None,
            Self::World(world) => Some(format!("{}-of-{}", world.rank(), world.size())),
            Self::Shard(shard) => Some(format!("{}-of-{}", shard.index(), shard.count())),
        }
    }

    /// The units of 0..`count` that this process does, in order. `phase` is a name that no other
    /// deal of the command has.
    pub(crate) fn units(&self, phase: &str, count: usize) -> Units {
        let deal = match self {
            Self::Alone => Deal::All,
            Self::Shard(shard) => Deal::Shard(*shard),
            Self::World(world) => {
                runkit::logging::of_rank(world.rank(), false);
                world.store().cloned().map_or(Deal::All, Deal::Store)
            }
        };
        deal.units(phase, count as u64)
    }

    /// The sum over all ranks, once all are here; the number itself alone and of a shard.
    pub(crate) fn sum(&self, number: usize) -> Result<usize> {
        match self {
            Self::World(world) => {
                // Other ranks may be at their last batch for long.
                world.barrier()?;
                Ok(world.gather(number)?.into_iter().sum())
            }
            Self::Alone | Self::Shard(_) => Ok(number),
        }
    }

    /// What rank 0 makes of `work`, at every rank; alone and as a shard, this process does it.
    pub(crate) fn by_first<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T>
    where
        T: Serialize + DeserializeOwned,
    {
        match self {
            Self::World(world) => world.by_first(work),
            Self::Alone | Self::Shard(_) => work(),
        }
    }

    /// Whether ranks are on several machines, which may see each other's files late.
    pub(crate) fn spans_machines(&self) -> bool {
        match self {
            Self::World(world) => world.launch().local_world < world.size(),
            Self::Alone | Self::Shard(_) => false,
        }
    }

    /// Takes the folder of an evaluation for `command`, which says everything that its results
    /// depend on.
    ///
    /// # Errors
    /// If another command has the folder, or another process this one's place.
    pub(crate) fn enter(&self, out: &Path, command: &Value) -> Result<Held<'_>> {
        let folder = FOLDER.at(out);
        let Some(place) = self.place() else {
            let locks = vec![folder.lock()?];
            return Ok(Held { sharing: self, out: out.to_owned(), locks });
        };
        runkit::files::create_folder(out)?;
        let mut held = Held { sharing: self, out: out.to_owned(), locks: Vec::new() };
        let _moment = held.moment()?;
        let alone = folder.lock();
        let file = out.join(COMMAND);
        let found = match &alone {
            // A command that is over may have left it.
            Ok(_) => None,
            Err(_) => read(&file),
        };
        drop(alone);
        held.locks.push(folder.lock_shared()?);
        match found {
            Some(found) => refuse_another(out, &found, command)?,
            None => {
                let text = serde_json::to_vec(command)?;
                runkit::files::write_atomic(&file, |file| std::io::Write::write_all(file, &text))?;
            }
        }
        held.locks.push(OutputLock::exclusive(out.join(format!(".shard-{place}.lock")))?);
        Ok(held)
    }
}

/// The folder of an evaluation in the hands of a command.
#[derive(Debug)]
pub(crate) struct Held<'run> {
    pub(crate) sharing: &'run Sharing,
    out: PathBuf,
    /// The folder and the place; held until the end.
    locks: Vec<OutputLock>,
}

impl Held<'_> {
    /// Keeps the other processes of the command from doing the same until it is dropped. `None`
    /// alone.
    pub(crate) fn moment(&self) -> Result<Option<OutputLock>> {
        if self.sharing.is_alone() {
            return Ok(None);
        }
        let started = Instant::now();
        loop {
            match OutputLock::exclusive(self.out.join(".start.lock")) {
                Ok(lock) => return Ok(Some(lock)),
                Err(LockError::Held { .. }) if started.elapsed() < MOMENT => {}
                Err(error) => return Err(error.into()),
            }
            runkit::signals::check()?;
            std::thread::sleep(POLL);
        }
    }

    /// The right to count and report; `None` if another process of the command has it.
    pub(crate) fn last(&self) -> Result<Option<Last>> {
        if self.sharing.shard().is_none() {
            return Ok(Some(Last { _lock: None }));
        }
        match OutputLock::exclusive(self.out.join(".last.lock")) {
            Ok(lock) => Ok(Some(Last { _lock: Some(lock) })),
            Err(LockError::Held { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Removes what only processes at work need. The last one calls it; one that is alone removes
    /// what others left.
    pub(crate) fn tidy(&self) -> Result<()> {
        Ok(runkit::run_folder::remove_file(&self.out.join(COMMAND))?)
    }
}

/// The right of [`Held::last`].
#[derive(Debug)]
pub(crate) struct Last {
    _lock: Option<OutputLock>,
}

fn read(file: &Path) -> Option<Value> {
    serde_json::from_slice(&std::fs::read(file).ok()?).ok()
}

fn refuse_another(out: &Path, found: &Value, command: &Value) -> Result<()> {
    const SHOWN: usize = 8;
    let differences = runkit::manifest::differences(found, command);
    if differences.is_empty() {
        return Ok(());
    }
    let mut lines: Vec<String> =
        differences.iter().take(SHOWN).map(|difference| format!("  {difference}")).collect();
    if differences.len() > SHOWN {
        lines.push(format!("  and {} more", differences.len() - SHOWN));
    }
    bail!(
        "{} is in the hands of processes of another command, which differs from this one:\n{}\n\
         hint: give all processes the same settings, or wait until the others have ended",
        out.display(),
        lines.join("\n")
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn units(sharing: &Sharing, count: usize) -> Vec<usize> {
        sharing.units("test", count).map(|unit| unit.unwrap() as usize).collect()
    }

    #[test]
    fn every_unit_goes_to_one_shard() {
        assert_eq!(units(&Sharing::Alone, 3), [0, 1, 2]);
        let shard = |index| Sharing::Shard(Shard::new(index, 3).unwrap());
        assert_eq!(units(&shard(0), 7), [0, 3, 6]);
        assert_eq!(units(&shard(1), 7), [1, 4]);
        assert_eq!(units(&shard(2), 2), [0; 0]);
    }

    #[test]
    fn shards_of_one_command_share_a_folder_and_others_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let shard = |index| Sharing::Shard(Shard::new(index, 2).unwrap());
        let (zero, one, command) = (shard(0), shard(1), json!({"command": "run", "steps": 2}));
        let first = zero.enter(folder.path(), &command).unwrap();
        let refused = |sharing: &Sharing, command: &Value| {
            sharing.enter(folder.path(), command).unwrap_err().to_string()
        };
        let message = refused(&one, &json!({"command": "run", "steps": 3}));
        assert!(message.contains("steps: was 2, now 3"), "{message}");
        assert!(refused(&Sharing::Alone, &command).contains("is held by"));
        assert!(refused(&zero, &command).contains(".shard-0-of-2.lock"));
        let second = one.enter(folder.path(), &command).unwrap();
        assert!(second.last().unwrap().is_some());
        drop((first, second));
        // Who ends leaves the folder to any command.
        drop(one.enter(folder.path(), &json!({"command": "score"})).unwrap());
        let alone = Sharing::Alone.enter(folder.path(), &command).unwrap();
        assert!(refused(&one, &command).contains("is held by"));
        drop(alone);
    }
}
