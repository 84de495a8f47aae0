//! Runs on several ranks.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::{Duration, Instant};

use testkit::{Ranks, Run};

use super::Fixture;

/// Ranks that wait for each other for longer hang.
pub(crate) const LIMIT: Duration = Duration::from_secs(90);

/// Waits until `ready` returns true; torchrun alone takes half a minute to start on a busy machine.
#[track_caller]
pub(crate) fn wait_until(what: &str, mut ready: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !ready() {
        assert!(begin.elapsed() < LIMIT, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

impl Fixture {
    /// `train run` on several ranks; `special` may give a rank what the others do not have.
    pub(crate) fn start_ranks(
        &self,
        world: usize,
        out: &str,
        flags: &[&str],
        mut special: impl FnMut(usize, &mut Command),
    ) -> Ranks {
        Ranks::start(world, |rank| {
            let mut command = self.run(out, flags);
            special(rank, &mut command);
            command
        })
    }
}

/// All ranks are done, and rank 0 alone reports it.
#[track_caller]
pub(crate) fn assert_done(runs: &[Run]) {
    for run in runs {
        assert_eq!(run.code(), Some(0), "{runs:#?}");
    }
    let first = runs[0].stdout.contains("pipeline: ");
    assert!(first && runs[1..].iter().all(|run| run.stdout.is_empty()), "{runs:#?}");
    for run in &runs[1..] {
        assert_eq!(run.stderr, "", "{runs:#?}");
    }
}

/// Files without those that a clock or the number of starts is in.
pub(crate) fn comparable(fixture: &Fixture, out: &str) -> BTreeMap<String, Vec<u8>> {
    let mut files = fixture.files(out);
    files.retain(|name, _| {
        !name.starts_with("tensorboard/") && name != "metrics.jsonl" && name != "config.toml"
    });
    files
}

/// Two runs have the same files with the same bytes, and the same metrics.
#[track_caller]
pub(crate) fn assert_same(fixture: &Fixture, expected: &str, out: &str) {
    let (expected_files, found) = (comparable(fixture, expected), comparable(fixture, out));
    let names = |files: &BTreeMap<String, Vec<u8>>| files.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&expected_files), names(&found));
    for (name, bytes) in &expected_files {
        assert!(found.get(name) == Some(bytes), "{name} differs");
    }
    assert_eq!(fixture.metrics(expected), fixture.metrics(out));
}
