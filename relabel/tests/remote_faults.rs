//! Trouble between the program and pairs in object storage: what passes changes no byte, what does
//! not pass ends the run with one sentence. And what a run holds of large files there.
#![expect(clippy::unwrap_used, reason = "a test stops where something is missing")]

mod common;

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use arrow::array::{ArrayRef, BinaryArray, StringArray};
use common::{Fixture, Run, Running, parquet_of, png_of_size, relabel, scorer_entry, wait_until};
use testkit::objects::{ObjectStore, SECRET};
use testkit::server::{Reply, Sending};

/// The pairs of the fixture as `s3://bucket/pairs`.
fn store_of(fixture: &Fixture) -> ObjectStore {
    let store = ObjectStore::start();
    store.put_folder("bucket/pairs", &fixture.path("pairs"));
    store
}

/// `relabel score` on `s3://bucket/pairs` into `out`.
fn score(fixture: &Fixture, store: &ObjectStore, scorers: &Path, out: &str) -> Command {
    let mut command = relabel(["score", "--pairs", "s3://bucket/pairs", "--scorers"]);
    command.arg(scorers).arg("--out").arg(fixture.path(out)).envs(store.variables());
    command
}

#[test]
fn trouble_that_passes_changes_no_byte() {
    let fixture = Fixture::with_sample(15);
    let scorers = fixture.two_scorers();
    Run::of(&mut fixture.score(&scorers, "here.parquet", &[])).expect_code(0);
    let store = store_of(&fixture);
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    store.set_fault(move |request, before, mut reply| {
        // A HEAD has no body that could break.
        let half = if request.method == "HEAD" { 0 } else { reply.body.len() / 2 };
        let kind = before % 12;
        counted.fetch_add(usize::from(matches!(kind, 3 | 4 | 6 | 8 | 10)), Ordering::Relaxed);
        match kind {
            3 | 4 => Reply::new(503, b""),
            6 => reply.sent(Sending::Breaks(half)),
            8 => Reply::new(429, b"").with("Retry-After", "1"),
            // A proxy that shortens, and says so in the length.
            10 if reply.status == 206 => {
                reply.body.truncate(half);
                reply
            }
            _ => reply,
        }
    });
    let run = Run::of(score(&fixture, &store, &scorers, "there.parquet").arg("-v")).expect_code(0);
    assert!(count.load(Ordering::Relaxed) >= 5, "{count:?}");
    assert!(run.stderr.contains("read from elsewhere"), "{run:#?}");
    let [here, there] =
        ["here.parquet", "there.parquet"].map(|name| std::fs::read(fixture.path(name)).unwrap());
    assert!(here == there);
}

#[test]
fn an_object_that_is_replaced_ends_the_run_by_its_name() {
    let fixture = Fixture::with_sample(60);
    let scorers = fixture.two_scorers();
    let store = store_of(&fixture);
    // The first answer of the last file waits until another file has come there.
    let (asked, replaced) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let flags = (Arc::clone(&asked), Arc::clone(&replaced));
    store.set_fault(move |request, _, reply| {
        if request.path().ends_with("/2.parquet") {
            flags.0.store(true, Ordering::Release);
            while !flags.1.load(Ordering::Acquire) {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        reply
    });
    let running = Running::start(&mut score(&fixture, &store, &scorers, "out.parquet"));
    wait_until("the last file is read", || asked.load(Ordering::Acquire));
    let mut other = std::fs::read(fixture.path("pairs/2.parquet")).unwrap();
    // Of the same length and with the same footer.
    other[10] ^= 1;
    store.put("bucket/pairs/2.parquet", &other);
    replaced.store(true, Ordering::Release);
    let message = "s3://bucket/pairs/2.parquet: changed while it was read";
    running.finish().expect_error(&[message, "nobody writes there"]);
    assert!(!fixture.path("out.parquet").exists());
}

#[test]
fn no_credentials_and_refused_ones_are_one_sentence_without_the_secret() {
    let fixture = Fixture::with_sample(6);
    let scorers = fixture.two_scorers();
    let store = store_of(&fixture);
    for (access_key, part) in [(None, "no credentials"), (Some("another-key"), "access refused")] {
        let mut command = score(&fixture, &store, &scorers, "out.parquet");
        match access_key {
            Some(key) => command.env("AWS_ACCESS_KEY_ID", key),
            None => command.env_remove("AWS_ACCESS_KEY_ID").env_remove("AWS_SECRET_ACCESS_KEY"),
        };
        let begun = Instant::now();
        let run = Run::of(&mut command).expect_error(&[
            "s3://bucket/pairs",
            part,
            "AWS_ACCESS_KEY_ID",
            "hint: ",
        ]);
        assert!(begun.elapsed() < Duration::from_secs(60));
        assert!(!run.stderr.contains(SECRET), "{run:#?}");
    }
    // An object that is not there is no network trouble.
    let mut command = relabel(["score", "--pairs", "s3://bucket/none", "--scorers"]);
    command.arg(&scorers).arg("--out").arg(fixture.path("out.parquet")).envs(store.variables());
    Run::of(&mut command).expect_error(&["s3://bucket/none: not found"]);
}

/// The most memory of its own that a run held, in MB.
fn held_megabytes(fixture: &Fixture, store: &ObjectStore, scorers: &Path) -> f64 {
    let mut run = Running::start(score(fixture, store, scorers, "out.parquet").arg("--quiet"));
    let status = format!("/proc/{}/status", run.id());
    let mut kilobytes: f64 = 0.0;
    while !run.has_ended() {
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:"));
        if let Some(line) = line {
            let now: f64 = line.trim().trim_end_matches(" kB").parse().unwrap();
            kilobytes = kilobytes.max(now);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    run.finish().expect_code(0);
    assert!(kilobytes > 5.0 * 1024.0, "measured {kilobytes} kB, which no libtorch program has");
    kilobytes / 1024.0
}

/// So many files of 20 pairs with two images of a megabyte, in row groups of five.
fn large(fixture: &Fixture, files: usize) {
    for file in 0..files {
        let text = |of: &dyn Fn(usize) -> String| -> ArrayRef {
            Arc::new(StringArray::from_iter_values((0..20).map(of)))
        };
        let images = |side: usize| -> ArrayRef {
            let image = |row: usize| png_of_size(1 << 20, (2 * row + side) as u8);
            Arc::new(BinaryArray::from_iter_values((0..20).map(image)))
        };
        let pairs = parquet_of(vec![
            ("caption", text(&|_| "a red fox".to_owned())),
            ("image_0_uid", text(&|row| format!("left {file} {row}"))),
            ("image_1_uid", text(&|row| format!("right {file} {row}"))),
            ("jpg_0", images(0)),
            ("jpg_1", images(1)),
        ]);
        assert!(pairs.len() > 40 << 20, "images are not compressed");
        fixture.put(&format!("pairs/{file}.parquet"), &pairs);
    }
}

#[test]
fn memory_is_flat_in_the_size_of_the_set() {
    let measured = |files: usize| {
        let fixture = Fixture::empty();
        let scorers = fixture.scorers("scorers.toml", &[scorer_entry("aesthetic")]);
        large(&fixture, files);
        let store = store_of(&fixture);
        held_megabytes(&fixture, &store, &scorers)
    };
    let (small, large) = (measured(3), measured(9));
    println!("{small:.0} MB for 120 MB of pairs, {large:.0} MB for 360 MB");
    assert!(large < small + 64.0, "{small:.0} MB for 120 MB of pairs, {large:.0} MB for 360 MB");
}
