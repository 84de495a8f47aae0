//! Which shard of the work this process takes if several work on one output.
//!
//! The first of these that is set decides:
//!
//! 1. `--shard I/N`; or `--shard slurm` and `--shard slurm/N` in a task of a SLURM array;
//! 2. `RANK` and `WORLD_SIZE`, which torchrun sets;
//! 3. `SLURM_PROCID` and the number of tasks, in a step that `srun` started with several;
//! 4. nothing: this process does all of the work.
//!
//! Without `--shard` a SLURM array decides nothing: its tasks may be separate runs, each with its
//! data and its output, and a shard of such a run would look complete. A warning says so.
//!
//! `slurm` takes place and count from a regular array (`--array=0-15`, `1-16`, `0-30:2`). `slurm/N`
//! takes the task's own number of N, so that `--array=3,7` with `slurm/8` finishes what two of eight
//! left.

use std::fmt;
use std::str::FromStr;

use crate::text::quoted;

/// Shard `index` of `count`, counted from zero: 0/4, 1/4, 2/4, 3/4.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shard {
    index: u64,
    count: u64,
}

/// A shard is not understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ShardError {
    /// Not of the form `i/n`.
    #[error(
        "shard {} is not understood: expected INDEX/COUNT, zero-based, such as 0/4, or slurm, or \
         slurm/COUNT", quoted(.0)
    )]
    Form(String),
    /// The index is not below the count.
    #[error(
        "shard {index}/{count} does not exist: shards are zero-based, so the {count} shards are \
         0/{count} to {last}/{count}",
        last = count.saturating_sub(1)
    )]
    Range {
        /// The index given.
        index: u64,
        /// The count given.
        count: u64,
    },
    /// There cannot be zero shards.
    #[error("shard {} is not understood: the count must be at least 1", quoted(.0))]
    NoShards(String),
    /// One of two variables that belong together is missing.
    #[error("{set} is set but {missing} is not\nhint: set both, or give --shard INDEX/COUNT")]
    Incomplete {
        /// The variable that is there.
        set: &'static str,
        /// The variable that is not.
        missing: &'static str,
    },
    /// `slurm` outside a SLURM array.
    #[error(
        "--shard {text} takes the shard from a SLURM array, and {missing} is not set\nhint: submit the \
         job with sbatch --array=0-15, or give --shard INDEX/COUNT"
    )]
    NoArray {
        /// The flag's value.
        text: String,
        /// The variable that is not there.
        missing: &'static str,
    },
    /// `slurm` in an array with gaps.
    #[error(
        "--shard slurm takes place and count from a SLURM array without gaps, and this one has {count} \
         tasks from {first} to {last}\nhint: --shard slurm/N, where N is the number of shards of \
         the whole work, takes shard {task}/N"
    )]
    SparseArray {
        /// How many tasks the array has.
        count: u64,
        /// The smallest number.
        first: u64,
        /// The largest number.
        last: u64,
        /// The number of this task.
        task: u64,
    },
    /// `slurm/N` in a task whose number is N or more.
    #[error(
        "--shard slurm/{count} takes shards 0 to {last}, and this is task {task} of the SLURM \
         array\nhint: sbatch --array=0-{last}",
        last = count.saturating_sub(1)
    )]
    ArrayTask {
        /// The number of this task.
        task: u64,
        /// N.
        count: u64,
    },
    /// SLURM says that there are several tasks, but not that this is one of them.
    #[error(
        "SLURM_PROCID={index} and {count} tasks, but no SLURM_STEP_ID: a batch script runs once, whatever \
         its --ntasks\nhint: start the program with srun to split the work between the tasks, or give \
         --shard 0/1 for all of the work, --shard {index}/{count} for this shard"
    )]
    NoStep {
        /// The task's number.
        index: u64,
        /// How many tasks there are.
        count: u64,
    },
    /// A variable does not hold what it should.
    #[error("{variable}={} is not understood: expected {expected}", quoted(value))]
    Variable {
        /// Its name.
        variable: &'static str,
        /// What it holds.
        value: String,
        /// What it should hold.
        expected: &'static str,
    },
}

/// A launcher started several processes and does not say how they find each other.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{variable}={value} says that {program} was started as one of {value} processes, but not how they find \
     each other\nhint: start them with torchrun or srun; if this one is alone, unset {variable} for it: \
     env -u {variable} {program} ..."
)]
pub struct SeveralProcesses {
    /// What was started.
    pub program: String,
    /// The variable of the launcher.
    pub variable: &'static str,
    /// How many processes it started.
    pub value: u64,
}

/// Variables by which launchers say how many processes they started: torchrun and accelerate, srun,
/// Open MPI and MPICH. Those of a whole allocation (`SLURM_NTASKS`) are not among them: a batch
/// script may start one process in a large one.
const PROCESSES: [&str; 4] =
    ["WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE"];

/// Refuses to run as one of several processes: all but one would fail on the lock of the output, or
/// all do the same work.
///
/// # Errors
/// [`SeveralProcesses`].
pub fn refuse_several_processes(program: &str) -> Result<(), SeveralProcesses> {
    refuse_several(program, |name| std::env::var(name).ok())
}

fn refuse_several(
    program: &str,
    lookup: impl Fn(&str) -> Option<String>,
) -> Result<(), SeveralProcesses> {
    for variable in PROCESSES {
        let value = lookup(variable).and_then(|value| value.trim().parse::<u64>().ok());
        if let Some(value) = value.filter(|value| *value > 1) {
            return Err(SeveralProcesses { program: program.to_owned(), variable, value });
        }
    }
    Ok(())
}

impl Shard {
    /// All of the work: 0/1.
    pub const WHOLE: Self = Self { index: 0, count: 1 };

    /// Shard `index` of `count`.
    ///
    /// # Errors
    /// When `index` is not below `count`.
    pub fn new(index: u64, count: u64) -> Result<Self, ShardError> {
        if index < count {
            Ok(Self { index, count })
        } else {
            Err(ShardError::Range { index, count })
        }
    }

    /// Zero-based number of this shard.
    pub fn index(self) -> u64 {
        self.index
    }

    /// Number of shards.
    pub fn count(self) -> u64 {
        self.count
    }

    /// Whether this is all of the work.
    pub fn is_whole(self) -> bool {
        self.count == 1
    }

    /// Whether item `item` of a list belongs to this shard. Each item belongs to exactly one shard,
    /// and the shards differ by at most one item.
    pub fn owns(self, item: u64) -> bool {
        item % self.count == self.index
    }

    /// The shard of this process: `explicit` (a flag) if given, else that of torchrun or srun, else
    /// the whole, by the rule at the head of this module. A task of a SLURM array that takes the
    /// whole logs a warning.
    ///
    /// # Errors
    /// When the variables are incomplete, contradict each other or hold something else than a
    /// shard.
    pub fn from_environment(explicit: Option<Self>) -> Result<Self, ShardError> {
        let lookup = environment;
        let shard = Self::from_lookup(explicit, lookup)?;
        if explicit.is_none()
            && shard.is_whole()
            && let Some(task) = lookup("SLURM_ARRAY_TASK_ID").filter(|task| !task.is_empty())
        {
            tracing::warn!(
                "this is task {task} of a SLURM array, and without --shard it does all of the work; \
                 hint: --shard slurm splits the work between the tasks of an array such as 0-15"
            );
        }
        Ok(shard)
    }

    /// As [`Shard::from_environment`] with any other source of variables.
    pub fn from_lookup(
        explicit: Option<Self>,
        lookup: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, ShardError> {
        if let Some(shard) = explicit {
            return Ok(shard);
        }
        let number = |variable| number(variable, &lookup);
        let pair = |index: &'static str, count: &'static str| match (number(index)?, number(count)?)
        {
            (Some(index), Some(count)) => Ok(Some((index, count))),
            (None, None) => Ok(None),
            (Some(_), None) => Err(ShardError::Incomplete { set: index, missing: count }),
            (None, Some(_)) => Err(ShardError::Incomplete { set: count, missing: index }),
        };
        if let Some((index, count)) = pair("RANK", "WORLD_SIZE")? {
            return Self::new(index, count);
        }
        let tasks = match number("SLURM_STEP_NUM_TASKS")? {
            Some(tasks) => Some(tasks),
            None => number("SLURM_NTASKS")?,
        };
        match (number("SLURM_PROCID")?, tasks) {
            (Some(index), Some(count)) if count > 1 => match number("SLURM_STEP_ID")? {
                Some(_) => return Self::new(index, count),
                None => return Err(ShardError::NoStep { index, count }),
            },
            (Some(1..), None) => {
                let (set, missing) = ("SLURM_PROCID", "SLURM_NTASKS");
                return Err(ShardError::Incomplete { set, missing });
            }
            _ => {}
        }
        Ok(Self::WHOLE)
    }
}

/// A variable of this process.
pub(crate) fn environment(name: &str) -> Option<String> {
    std::env::var_os(name).map(|value| value.to_string_lossy().into_owned())
}

/// The number that a variable holds, if it is set.
pub(crate) fn number(
    variable: &'static str,
    lookup: impl Fn(&str) -> Option<String>,
) -> Result<Option<u64>, ShardError> {
    let Some(value) = lookup(variable).filter(|value| !value.is_empty()) else { return Ok(None) };
    let expected = "a whole number, zero or more";
    let parsed = value.trim().parse::<u64>().map(Some);
    parsed.map_err(|_| ShardError::Variable { variable, value, expected })
}

/// `slurm` (no `count`) or `slurm/count`.
fn of_array(
    text: &str,
    count: Option<u64>,
    lookup: impl Fn(&str) -> Option<String>,
) -> Result<Shard, ShardError> {
    let needed = |variable: &'static str| {
        let missing = ShardError::NoArray { text: text.to_owned(), missing: variable };
        number(variable, &lookup)?.ok_or(missing)
    };
    let task = needed("SLURM_ARRAY_TASK_ID")?;
    if let Some(count) = count {
        return Shard::new(task, count).map_err(|_| ShardError::ArrayTask { task, count });
    }
    let (first, last) = (needed("SLURM_ARRAY_TASK_MIN")?, needed("SLURM_ARRAY_TASK_MAX")?);
    let count = needed("SLURM_ARRAY_TASK_COUNT")?;
    let step = number("SLURM_ARRAY_TASK_STEP", &lookup)?.unwrap_or(1).max(1);
    let sparse = ShardError::SparseArray { count, first, last, task };
    let (Some(width), Some(place)) = (last.checked_sub(first), task.checked_sub(first)) else {
        return Err(sparse);
    };
    if width % step != 0 || place % step != 0 || (width / step).checked_add(1) != Some(count) {
        return Err(sparse);
    }
    Shard::new(place / step, count).map_err(|_| sparse)
}

impl fmt::Display for Shard {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.index, self.count)
    }
}

/// Reads `i/n`; `slurm` and `slurm/n` of the SLURM array that this process is a task of.
impl FromStr for Shard {
    type Err = ShardError;

    fn from_str(text: &str) -> Result<Self, ShardError> {
        Self::from_text(text, environment)
    }
}

impl Shard {
    fn from_text(text: &str, lookup: impl Fn(&str) -> Option<String>) -> Result<Self, ShardError> {
        let form = || ShardError::Form(text.to_owned());
        let digits = |part: &str| {
            let plain = !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
            if plain { part.parse::<u64>().ok() } else { None }
        };
        if text == "slurm" {
            return of_array(text, None, lookup);
        }
        let (index, count) = text.split_once('/').ok_or_else(form)?;
        if index == "slurm" {
            return match digits(count).ok_or_else(form)? {
                0 => Err(ShardError::NoShards(text.to_owned())),
                count => of_array(text, Some(count), lookup),
            };
        }
        let (index, count) = (digits(index).ok_or_else(form)?, digits(count).ok_or_else(form)?);
        if count == 0 {
            Err(ShardError::NoShards(text.to_owned()))
        } else {
            Self::new(index, count)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Shard, ShardError};

    fn environment(variables: &[(&str, &str)]) -> Result<Shard, ShardError> {
        Shard::from_lookup(None, |name| {
            let found = variables.iter().find(|(variable, _)| *variable == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn one_process_of_several_is_refused() {
        let refused = |set: &'static str, value: &'static str| {
            super::refuse_several("train run", |name| (name == set).then(|| value.to_owned()))
        };
        for variable in super::PROCESSES {
            let message = refused(variable, "8").unwrap_err().to_string();
            assert!(message.contains(&format!("{variable}=8")), "{message}");
            assert!(message.contains(&format!("env -u {variable} train run")), "{message}");
            assert_eq!(refused(variable, "1"), Ok(()));
        }
        assert_eq!(refused("SLURM_NTASKS", "8"), Ok(()));
        assert_eq!(refused("WORLD_SIZE", ""), Ok(()));
    }

    #[test]
    fn shards_are_read_and_shown() {
        for text in ["0/1", "0/4", "3/4", "17/1000"] {
            assert_eq!(text.parse::<Shard>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn wrong_shards_are_refused_with_the_meaning() {
        for text in ["", "/", "1", "1/", "/2", "a/2", "-1/2", "+1/2", "1/2/3", " 1/2", "1.0/2"] {
            assert!(matches!(text.parse::<Shard>(), Err(ShardError::Form(_))), "{text:?}");
        }
        assert!(matches!("0/0".parse::<Shard>(), Err(ShardError::NoShards(_))));
        let message = "4/4".parse::<Shard>().unwrap_err().to_string();
        assert!(message.contains("zero-based") && message.contains("0/4 to 3/4"), "{message}");
    }

    #[test]
    fn every_item_has_exactly_one_owner() {
        for count in 1..8 {
            let shards: Vec<Shard> =
                (0..count).map(|index| Shard::new(index, count).unwrap()).collect();
            for item in 0..50 {
                assert_eq!(shards.iter().filter(|shard| shard.owns(item)).count(), 1);
            }
        }
    }

    #[test]
    fn the_environment_decides_in_order() {
        assert_eq!(environment(&[]).unwrap(), Shard::WHOLE);
        let torchrun = [("RANK", "2"), ("WORLD_SIZE", "3"), ("SLURM_ARRAY_TASK_ID", "0")];
        assert_eq!(environment(&torchrun).unwrap(), Shard::new(2, 3).unwrap());
        let srun = [("SLURM_PROCID", "5"), ("SLURM_NTASKS", "8"), ("SLURM_STEP_ID", "0")];
        assert_eq!(environment(&srun).unwrap(), Shard::new(5, 8).unwrap());
        let both = [("RANK", "1"), ("WORLD_SIZE", "2"), srun[0], srun[1], srun[2]];
        assert_eq!(environment(&both).unwrap(), Shard::new(1, 2).unwrap());
        // A step may have fewer tasks than the job.
        let step = [srun[0], ("SLURM_NTASKS", "64"), srun[2], ("SLURM_STEP_NUM_TASKS", "6")];
        assert_eq!(environment(&step).unwrap(), Shard::new(5, 6).unwrap());
        let explicit = Shard::new(1, 2).unwrap();
        assert_eq!(Shard::from_lookup(Some(explicit), |_| Some("x".to_owned())).unwrap(), explicit);
    }

    #[test]
    fn incomplete_or_odd_environments_are_refused() {
        let incomplete = ShardError::Incomplete { set: "RANK", missing: "WORLD_SIZE" };
        assert_eq!(environment(&[("RANK", "0")]).unwrap_err(), incomplete);
        assert!(matches!(
            environment(&[("RANK", "-1"), ("WORLD_SIZE", "2")]),
            Err(ShardError::Variable { variable: "RANK", .. })
        ));
        assert!(matches!(
            environment(&[("RANK", "2"), ("WORLD_SIZE", "2")]),
            Err(ShardError::Range { .. })
        ));
    }

    fn of_array(
        text: &str,
        [task, first, last, step, count]: [u64; 5],
    ) -> Result<Shard, ShardError> {
        Shard::from_text(text, |name| {
            let value = match name {
                "SLURM_ARRAY_TASK_ID" => task,
                "SLURM_ARRAY_TASK_MIN" => first,
                "SLURM_ARRAY_TASK_MAX" => last,
                "SLURM_ARRAY_TASK_STEP" => step,
                "SLURM_ARRAY_TASK_COUNT" => count,
                _ => return None,
            };
            Some(value.to_string())
        })
    }

    #[test]
    fn a_regular_array_gives_place_and_count() {
        for (array, shard) in [
            ([0, 0, 15, 1, 16], "0/16"),
            ([15, 0, 15, 1, 16], "15/16"),
            ([16, 1, 16, 1, 16], "15/16"),
            ([4, 0, 6, 2, 4], "2/4"),
            ([7, 7, 7, 1, 1], "0/1"),
        ] {
            assert_eq!(of_array("slurm", array).unwrap().to_string(), shard);
        }
        assert_eq!("slurm".parse::<Shard>().ok(), None, "no test runs in an array");
    }

    #[test]
    fn an_array_with_gaps_needs_the_number_of_shards() {
        for array in [[3, 3, 7, 1, 2], [7, 3, 7, 1, 2], [3, 0, 7, 2, 4], [0, 2, 1, 1, 1]] {
            let message = of_array("slurm", array).unwrap_err().to_string();
            assert!(message.contains("without gaps") && message.contains("slurm/N"), "{message}");
        }
        assert_eq!(of_array("slurm/8", [7, 3, 7, 1, 2]).unwrap(), Shard::new(7, 8).unwrap());
        let message = of_array("slurm/7", [7, 3, 7, 1, 2]).unwrap_err().to_string();
        assert!(message.contains("task 7") && message.contains("--array=0-6"), "{message}");
        for text in ["slurm/0", "slurm/", "slurm/x", "slurm/1/2"] {
            assert!(of_array(text, [0, 0, 0, 1, 1]).is_err(), "{text}");
        }
        let outside = Shard::from_text("slurm", |_| None).unwrap_err().to_string();
        assert!(outside.contains("SLURM_ARRAY_TASK_ID is not set"), "{outside}");
    }

    #[test]
    fn an_array_is_not_split_by_itself() {
        let names = ["SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT", "SLURM_ARRAY_TASK_MIN"];
        for values in [["3", "2", "3"], ["0", "16", "0"], ["5", "3", "1"]] {
            let array: Vec<(&str, &str)> = names.into_iter().zip(values).collect();
            assert_eq!(environment(&array).unwrap(), Shard::WHOLE, "{array:?}");
            // A step of one task inside the array changes nothing.
            let step = [("SLURM_PROCID", "0"), ("SLURM_NTASKS", "1"), ("SLURM_STEP_ID", "0")];
            assert_eq!(environment(&[&array[..], &step].concat()).unwrap(), Shard::WHOLE);
        }
    }

    #[test]
    fn tasks_that_srun_did_not_start_are_refused_with_a_way_out() {
        let batch = |index| [("SLURM_PROCID", index), ("SLURM_NTASKS", "8")];
        for index in ["0", "1"] {
            let message = environment(&batch(index)).unwrap_err().to_string();
            assert!(message.contains("srun") && message.contains("--shard 0/1"), "{message}");
        }
        // A batch script without --ntasks, and a shell of salloc.
        assert_eq!(environment(&[("SLURM_PROCID", "0")]).unwrap(), Shard::WHOLE);
        assert_eq!(environment(&[("SLURM_NTASKS", "8")]).unwrap(), Shard::WHOLE);
        let incomplete = ShardError::Incomplete { set: "SLURM_PROCID", missing: "SLURM_NTASKS" };
        assert_eq!(environment(&[("SLURM_PROCID", "2")]).unwrap_err(), incomplete);
        let srun = [("SLURM_PROCID", "8"), ("SLURM_NTASKS", "8"), ("SLURM_STEP_ID", "0")];
        assert!(matches!(environment(&srun), Err(ShardError::Range { .. })));
    }
}
