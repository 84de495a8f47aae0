//! Pairs per second that a cache of latents can deliver: if it is more than a device trains on, no
//! step waits for data.
//!
//! ```text
//! cargo bench -p balanceddpo-train --bench reading -- CACHE LABELS
//! ```
//!
//! The cache is read over and over, so that it may be small. Then it is in the page cache, and a
//! slow disk does not show.
#![expect(clippy::print_stdout, reason = "a benchmark reports")]

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use schemas::labels::LabelRow;
use train::data::{Content, Dataset, Positions, Stream, StreamOptions};

/// How long to measure.
const SPAN: Duration = Duration::from_secs(5);
/// The prefetch buffer, as by default in `train run`.
const MEMORY: u64 = 1 << 30;

fn main() -> Result<()> {
    // Cargo itself passes `--bench`.
    let arguments: Vec<String> =
        std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    let [cache, labels] = arguments.as_slice() else {
        // `cargo bench` of the workspace has no cache at hand.
        println!("reading: skipped; expected arguments CACHE LABELS");
        return Ok(());
    };
    let mut all = |_: &LabelRow| Some(());
    let dataset = Arc::new(Dataset::open_cache(Path::new(cache), Path::new(labels), &mut all)?);
    let [height, width] = dataset.cache().context("the dataset is no cache")?.resolution;
    let options = StreamOptions {
        seed: 0,
        resolution: (height.into(), width.into()),
        random_crop: false,
        hflip: false,
        position: 0,
        positions: Positions::ALL,
        threads: 1,
        memory: MEMORY,
    };
    let mut stream = Stream::start(Arc::clone(&dataset), options)?;
    let first = stream.next()?;
    let Content::Latents { mean: [mean, _], text, .. } = &first.content else {
        anyhow::bail!("expected latents, found pixels");
    };
    println!(
        "{} pairs; latents of an image {:?}, text {:?}",
        dataset.counts().selected,
        mean.size(),
        text.embeds_BLD.size()
    );
    let start = Instant::now();
    let mut pairs = 0_u32;
    while start.elapsed() < SPAN {
        stream.next()?;
        pairs += 1;
    }
    let seconds = start.elapsed().as_secs_f64();
    println!("{:.0} pairs/s", f64::from(pairs) / seconds);
    Ok(())
}
