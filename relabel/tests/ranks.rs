//! Ranks of a launcher on one output: units are dealt one by one, and whoever dies, the bytes are
//! those of one process.
#![expect(clippy::unwrap_used, reason = "a test stops where something is missing")]

mod common;

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use common::{Fixture, Run, captions_encoded, pairs_with_own_captions, units_scored, wait_until};
use testkit::Ranks;

const OUT: &str = "out/labels.parquet";
const PARTS: &str = "out/labels.parquet.work/parts";
const FINISHED: [&str; 2] = ["labels.config.toml", "labels.parquet"];
/// Much longer than any of them takes.
const LIMIT: Duration = Duration::from_secs(120);
const UNITS: usize = 20;
const CAPTIONS: usize = 400;

/// One file of 400 pairs, each with a caption of its own, in units of twenty.
struct OneFile {
    fixture: Fixture,
    scorers: PathBuf,
    /// What one process makes of it.
    alone: Vec<u8>,
}

impl OneFile {
    fn new() -> Self {
        let fixture = Fixture::with_pairs(&pairs_with_own_captions(CAPTIONS));
        let scorers = fixture.two_scorers();
        let mut file = Self { fixture, scorers, alone: Vec::new() };
        let run = Run::of(&mut file.command(&[])).expect_code(0);
        assert_eq!(units_scored(&run).len(), UNITS);
        file.alone = file.fixture.bytes(OUT);
        file.clear();
        file
    }

    fn command(&self, more: &[&str]) -> Command {
        let mut command = self.fixture.score(&self.scorers, OUT, &["-v", "--unit-pairs", "20"]);
        command.args(more);
        command
    }

    fn clear(&self) {
        std::fs::remove_dir_all(self.fixture.path("out")).unwrap();
    }

    /// How many units have a part.
    fn parts(&self) -> usize {
        if !self.fixture.path(PARTS).exists() {
            return 0;
        }
        let is_part = |name: &String| name.starts_with("part-");
        self.fixture.names(PARTS).iter().filter(|name| is_part(name)).count()
    }

    #[track_caller]
    fn assert_finished(&self) {
        assert!(self.fixture.bytes(OUT) == self.alone, "other bytes than one process");
        assert_eq!(self.fixture.names("out"), FINISHED);
    }
}

#[test]
fn ranks_of_any_number_make_the_bytes_of_one_process() {
    let file = OneFile::new();
    for world in [2, 3] {
        let runs = Ranks::start(world, |_| file.command(&[])).finish_within(LIMIT);
        let runs: Vec<Run> = runs.into_iter().map(|run| run.expect_code(0)).collect();
        let mut units: Vec<usize> = runs.iter().flat_map(units_scored).collect();
        units.sort_unstable();
        assert_eq!(units, (0..UNITS).collect::<Vec<_>>(), "each unit once");
        assert!(runs.iter().all(|run| !units_scored(run).is_empty()), "{runs:#?}");
        let captions: usize = runs.iter().map(captions_encoded).sum();
        assert_eq!(captions, CAPTIONS, "each caption once");
        let planned = runs.iter().filter(|run| run.stderr.contains(" planning")).count();
        let summaries = runs.iter().filter(|run| run.stdout.starts_with("400 pairs")).count();
        assert_eq!((planned, summaries), (1, 1), "{runs:#?}");
        file.assert_finished();

        // Again: rank 0 says that it is done, and the others believe it.
        let runs = Ranks::start(world, |_| file.command(&[])).finish_within(LIMIT);
        for (rank, run) in runs.into_iter().enumerate() {
            let run = run.expect_code(0);
            assert_eq!(run.stderr.contains("already complete"), rank == 0, "{run:#?}");
        }
        file.assert_finished();
        file.clear();
    }
}

#[test]
fn a_killed_rank_costs_its_open_unit_and_any_start_does_the_rest() {
    let file = OneFile::new();
    let runs = Ranks::start(2, |rank| {
        let mut command = file.command(&[]);
        if rank == 1 {
            // After four files of features at most, and some parts: dead in the next.
            command.env("RUNKIT_FAULT", "sync:8");
        }
        command
    })
    .finish_within(LIMIT);
    let [first, second] = runs.try_into().unwrap();
    assert!(second.was_killed(), "{second:#?}");
    let first = first.expect_code(0);
    assert!(first.stdout.contains("rank 0 of 2 done; others have 1 unit left"), "{first:#?}");
    assert_eq!(file.parts(), UNITS - 1);
    let rest = Run::of(&mut file.command(&["--shard", "0/1"])).expect_code(0);
    assert_eq!(units_scored(&rest).len(), 1, "{rest:#?}");
    file.assert_finished();
}

#[test]
fn rank_0_that_fails_or_dies_ends_the_others() {
    let file = OneFile::new();
    for (fault, says) in [("rename:3:EIO", "rank 0: "), ("rename:2", "rank 0")] {
        let runs = Ranks::start(2, |rank| {
            let mut command = file.command(&[]);
            if rank == 0 {
                command.env("RUNKIT_FAULT", fault);
            }
            command
        })
        .finish_within(LIMIT);
        let [first, second] = runs.try_into().unwrap();
        assert!(first.was_killed() || first.code() == Some(1), "{first:#?}");
        second.expect_error(&[says]);
        let runs = Ranks::start(2, |_| file.command(&[])).finish_within(LIMIT);
        runs.into_iter().for_each(|run| {
            run.expect_code(0);
        });
        file.assert_finished();
        file.clear();
    }
}

#[test]
fn a_stop_signal_at_one_rank_ends_all_and_loses_no_part() {
    let file = OneFile::new();
    let mut ranks = Ranks::start(2, |_| file.command(&["--batch-size", "1"]));
    wait_until("both have begun", || file.parts() > 2);
    ranks.rank(1).signal("TERM");
    for run in ranks.finish_within(LIMIT) {
        run.expect_code(143);
    }
    let parts = file.parts();
    assert!((3..UNITS).contains(&parts), "{parts}");
    // Another size of batches is another run.
    let rest = Run::of(&mut file.command(&["--batch-size", "1"])).expect_code(0);
    assert_eq!(units_scored(&rest).len(), UNITS - parts);
    assert_eq!(file.fixture.names("out"), FINISHED);
}

#[test]
fn torchrun_restarts_a_killed_rank_and_the_bytes_are_the_same() {
    let file = OneFile::new();
    let score = file.command(&[]);
    // Rank 1 of the first world dies with a unit open.
    let script = "if [ $RANK = 1 ] && [ $TORCHELASTIC_RESTART_COUNT = 0 ]; then \
                  export RUNKIT_FAULT=sync:8; fi; exec \"$0\" \"$@\"";
    let mut shell = Command::new("bash");
    shell.arg("-c").arg(script).arg(score.get_program()).args(score.get_args());
    for (name, value) in score.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    let mut torchrun = testkit::torchrun(&["--nproc-per-node", "2", "--max-restarts", "3"], &shell);
    let run = Run::of(&mut torchrun).expect_code(0);
    let units = units_scored(&run);
    assert!(units.len() <= UNITS + 3, "only what was open is scored again: {units:?}");
    assert!(run.stdout.contains("400 pairs"), "{run:#?}");
    file.assert_finished();
}

#[test]
fn arrays_of_slurm_are_shards_where_asked_for() {
    let file = OneFile::new();
    let task = |task: &str, tasks: [&str; 3], shard: &str| {
        let mut command = file.command(&["--shard", shard]);
        command.env("SLURM_ARRAY_TASK_ID", task);
        let names = ["SLURM_ARRAY_TASK_COUNT", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_MAX"];
        command.envs(names.into_iter().zip(tasks));
        Run::of(&mut command)
    };
    // --array=3,7: two of eight, which only a number written out makes clear.
    let refused = task("7", ["2", "3", "7"], "slurm").expect_code(2);
    assert!(refused.stderr.contains("slurm/N"), "{refused:#?}");
    for number in ["3", "7"] {
        let run = task(number, ["2", "3", "7"], "slurm/8").expect_code(0);
        assert!(run.stdout.contains(&format!("shard {number}/8 done; ")), "{run:#?}");
    }
    assert_eq!(file.parts(), 5, "3, 11, 19 and 7, 15");
    for number in ["0", "1", "2", "4", "5", "6"] {
        task(number, ["8", "0", "7"], "slurm").expect_code(0);
    }
    file.assert_finished();
}
