//! Peak memory does not grow with the number of rows.
#![expect(clippy::unwrap_used, reason = "a test stops where something is missing")]

mod common;

use std::time::Duration;

use common::{Pair, Running, World, sample_pairs, scorer_entry};

/// The pairs again and again, every time under uids of their own, so that each is scored.
fn recurring(pairs: &[Pair], rows: usize) -> Vec<Pair> {
    let fresh = |(number, pair): (usize, &Pair)| Pair {
        ranking_id: Some(number as i64),
        uid: [Some(format!("left {number}")), Some(format!("right {number}"))],
        ..pair.clone()
    };
    pairs.iter().cycle().take(rows).enumerate().map(fresh).collect()
}

/// The most memory a run over so many rows had at a time, in MB; the kernel keeps the count.
fn peak_megabytes(rows: usize) -> f64 {
    let world = World::with_pairs(&recurring(&sample_pairs(60), rows));
    let scorers = world.scorers("scorers.toml", &[scorer_entry("aesthetic")]);
    let mut run = Running::start(&mut world.score(&scorers, "labels.parquet", &["--quiet"]));
    let status = format!("/proc/{}/status", run.id());
    let mut kilobytes = 0.0;
    while !run.has_ended() {
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        if let Some(line) = line {
            kilobytes = line.trim().trim_end_matches(" kB").parse().unwrap();
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    run.finish().expect_code(0);
    assert_eq!(world.labels("labels.parquet").len(), rows);
    kilobytes / 1024.0
}

#[test]
fn ten_times_the_rows_take_no_more_memory() {
    let (few, many) = (peak_megabytes(120), peak_megabytes(1200));
    println!("peak memory: {few:.1} MB for 120 rows, {many:.1} MB for 1200 rows");
    assert!(few > 20.0, "measured {few} MB, which no libtorch program has");
    assert!(many < few * 1.15 + 20.0, "{few:.1} MB for 120 rows, {many:.1} MB for 1200 rows");
}
