//! Long runs on several ranks that something ends again and again. They take minutes, so they run
//! only when they are asked for:
//!
//! `cargo test --release -p balanceddpo-train --test soak -- --ignored --nocapture`
#![expect(clippy::unwrap_used, reason = "a test stops where something is missing")]

mod common;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use common::Fixture;
use common::ranks::{LIMIT, assert_done, assert_same, wait_until};

const LONGEST: Duration = Duration::from_secs(900);

/// Numbers that are the same on every run of the test (splitmix64).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut number = self.0;
        number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        number ^ (number >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    /// A fraction of `whole`.
    fn part_of(&mut self, whole: Duration) -> Duration {
        whole.mul_f64((self.next() >> 11) as f64 / (1u64 << 53) as f64)
    }
}

/// What a run ends with, whatever stopped it on the way and however its states were kept.
fn result(fixture: &Fixture, out: &str, steps: u64) -> BTreeMap<String, Vec<u8>> {
    let newest = format!("checkpoints/step-{steps:06}/");
    let mut files = fixture.files(out);
    files.retain(|name, _| {
        let is_checkpoint =
            name.starts_with(&newest) && !name.contains("optimizer") && !name.ends_with("DONE");
        name.starts_with("pipeline/") || name.starts_with("probe") || is_checkpoint
    });
    assert!(files.len() > 10, "{:?}", files.keys());
    files
}

#[test]
#[ignore = "takes minutes"]
fn five_hundred_steps_with_stops_of_every_kind_end_with_the_bytes_of_an_undisturbed_run() {
    let fixture = Fixture::new(24);
    let flags = ["--steps", "500", "--batch-size", "6", "--checkpoint-every", "50"];
    let begin = Instant::now();
    let whole = fixture.start_ranks(3, "whole", &flags, |_, _| {}).finish_within(LONGEST);
    assert_done(&whole);
    let duration = begin.elapsed();
    println!("undisturbed: {duration:?}");
    let mut numbers = Numbers(18);
    let mut starts = 0;
    loop {
        starts += 1;
        assert!(starts < 80, "no end after {starts} starts");
        let sharded = if numbers.below(2) == 0 { "true" } else { "false" };
        let sharded = format!("--shard-optimizer={sharded}");
        let flags = [&flags[..], &[&sharded, "--rank-timeout", "5"]].concat();
        let mut ranks = fixture.start_ranks(3, "out", &flags, |_, _| {});
        let wait = Duration::from_secs(2) + numbers.part_of(duration / 4);
        let until = Instant::now() + wait;
        while Instant::now() < until && (0..3).any(|rank| !ranks.rank(rank).has_ended()) {
            std::thread::sleep(Duration::from_millis(20));
        }
        let guilty = numbers.below(3);
        let kind = ["TERM", "INT", "KILL", "STOP"][numbers.below(4)];
        let was_running = !ranks.rank(guilty).has_ended();
        if was_running {
            ranks.rank(guilty).signal(kind);
            if kind == "STOP" {
                let others = [(guilty + 1) % 3, (guilty + 2) % 3];
                wait_until("the others have ended", || {
                    others.iter().all(|rank| ranks.rank(*rank).has_ended())
                });
                ranks.rank(guilty).signal("KILL");
            }
        }
        let runs = ranks.finish_within(LIMIT);
        println!(
            "start {starts}: {kind} to rank {guilty}: {:?}",
            runs.iter().map(common::Run::code).collect::<Vec<_>>()
        );
        if runs.iter().all(|run| run.code() == Some(0)) {
            break;
        }
        assert!(was_running, "{runs:#?}");
        for (rank, run) in runs.iter().enumerate() {
            let expected = match kind {
                "TERM" => Some(143),
                "INT" => Some(130),
                _ if rank == guilty => None,
                _ => Some(1),
            };
            assert_eq!(run.code(), expected, "{kind} to rank {guilty}: {runs:#?}");
            if expected == Some(1) {
                assert!(run.stderr.contains(&format!("rank {guilty} of 3")), "{runs:#?}");
            }
        }
    }
    assert!(starts > 4, "only {starts} starts");
    let (expected, found) = (result(&fixture, "whole", 500), result(&fixture, "out", 500));
    assert!(expected.keys().eq(found.keys()), "{:?}\n{:?}", expected.keys(), found.keys());
    for (name, bytes) in &expected {
        assert!(found.get(name) == Some(bytes), "{name} differs");
    }
    assert_eq!(fixture.metrics("out"), fixture.metrics("whole"));
}

#[test]
#[ignore = "takes minutes"]
fn ranks_killed_at_any_time_in_twenty_rounds_leave_the_same_bytes() {
    let fixture = Fixture::new(24);
    // A rank that dies before the others have met it is awaited until the time limit.
    let limit = ["--rank-timeout", "20"];
    let flags = ["--batch-size", "12", "--sample-every", "5", "--record-steps", "2"];
    let flags = [&flags[..], &limit].concat();
    let mut durations = [Duration::ZERO; 4];
    for world in [2, 3] {
        let begin = Instant::now();
        let out = format!("whole-{world}");
        let ranks = fixture.start_ranks(world, &out, &flags, |_, _| {});
        assert_done(&ranks.finish_within(LIMIT));
        durations[world] = begin.elapsed();
    }
    let mut numbers = Numbers(20);
    let mut killed = 0;
    for round in 0..20 {
        let world = 2 + round % 2;
        for _attempt in 0..2 {
            let mut ranks = fixture.start_ranks(world, "out", &flags, |_, _| {});
            std::thread::sleep(numbers.part_of(durations[world]));
            let guilty = numbers.below(world);
            if !ranks.rank(guilty).has_ended() {
                ranks.rank(guilty).signal("KILL");
            }
            killed += usize::from(ranks.finish_within(LIMIT)[guilty].was_killed());
        }
        let ranks = fixture.start_ranks(world, "out", &flags, |_, _| {});
        assert_done(&ranks.finish_within(LIMIT));
        // Checkpoints of steps that a death ended are pruned by the end.
        assert_same(&fixture, &format!("whole-{world}"), "out");
        std::fs::remove_dir_all(fixture.path("out")).unwrap();
        println!("round {round}: {killed} ranks killed so far");
    }
    assert!(killed >= 10, "only {killed} of 40 ranks were killed before their end");
}
