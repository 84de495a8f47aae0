//! What a run holds in memory: nothing of images that were used. `plan_memory.rs` has the bytes of
//! a row.
#![expect(clippy::unwrap_used, reason = "a test stops where something is missing")]

mod common;

use std::time::Duration;

use common::{
    Fixture, Pair, Running, pairs_in_small_pages, png_of_size, sample_pairs, scorer_entry,
};

const MEGABYTE: usize = 1 << 20;

/// The most memory that a run over `pairs/` had at a time, in MB; the kernel keeps the count.
fn peak_megabytes(fixture: &Fixture, scorers: &std::path::Path, code: i32) -> f64 {
    let mut run = Running::start(&mut fixture.score(scorers, "labels.parquet", &["--quiet"]));
    let status = format!("/proc/{}/status", run.id());
    let mut kilobytes = 0.0;
    while !run.has_ended() {
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        if let Some(line) = line {
            kilobytes = line.trim().trim_end_matches(" kB").parse().unwrap();
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    run.finish().expect_code(code);
    assert!(kilobytes > 20.0 * 1024.0, "measured {kilobytes} kB, which no libtorch program has");
    kilobytes / 1024.0
}

/// So many pairs with two images of a megabyte; `distinct` of them have images of their own.
fn large_pairs(rows: usize, distinct: usize) -> Vec<Pair> {
    let images: Vec<[Vec<u8>; 2]> = (0..distinct)
        .map(|number| [0, 1].map(|side| png_of_size(MEGABYTE, (2 * number + side) as u8)))
        .collect();
    let pair = sample_pairs(1).pop().unwrap();
    (0..rows)
        .map(|row| Pair {
            ranking_id: Some(row as i64),
            uid: ["left", "right"].map(|side| Some(format!("{side} {}", row % distinct))),
            image: images[row % distinct].clone().map(Some),
            ..pair.clone()
        })
        .collect()
}

#[test]
fn images_that_stand_earlier_are_not_held() {
    let few = Fixture::empty();
    let scorers = few.scorers("scorers.toml", &[scorer_entry("aesthetic")]);
    few.put("pairs/0.parquet", &pairs_in_small_pages(&large_pairs(4, 1)));
    few.put("pairs/1.parquet", &pairs_in_small_pages(&large_pairs(4, 1)));
    // In the file of their owner, and in one that owns nothing: 300 MB each.
    let many = Fixture::empty();
    many.put("pairs/0.parquet", &pairs_in_small_pages(&large_pairs(150, 1)));
    many.put("pairs/1.parquet", &pairs_in_small_pages(&large_pairs(150, 1)));
    let (few, many) = (peak_megabytes(&few, &scorers, 0), peak_megabytes(&many, &scorers, 0));
    println!("peak memory: {few:.0} MB for 8 rows, {many:.0} MB for 300 rows of the same images");
    // A read has 64 images.
    assert!(many < few + 64.0 * 1.1 + 40.0, "{few:.0} MB for 8 rows, {many:.0} MB for 300 rows");
}

#[test]
fn images_that_were_scored_are_not_held() {
    let few = Fixture::empty();
    let scorers = few.scorers("scorers.toml", &[scorer_entry("aesthetic")]);
    few.put("pairs/0.parquet", &pairs_in_small_pages(&large_pairs(4, 4)));
    let many = Fixture::empty();
    many.put("pairs/0.parquet", &pairs_in_small_pages(&large_pairs(120, 120)));
    let (few, many) = (peak_megabytes(&few, &scorers, 0), peak_megabytes(&many, &scorers, 0));
    println!(
        "peak memory: {few:.0} MB for 4 rows, {many:.0} MB for 120 rows of images of their own"
    );
    assert!(many < few + 64.0 * 1.1 + 40.0, "{few:.0} MB for 4 rows, {many:.0} MB for 120 rows");
}
