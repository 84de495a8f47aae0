//! `relabel check`: everything a long run needs, tried before it.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Result, ensure};
use indicatif::HumanBytes;
use runkit::exit::ExitStatus;
use runkit::logging::counted;
use scorers::ScorersConfig;

use crate::score::{self, Config, Rehearsal};

/// Bytes of a labels row on disk, generously: measured files have 100 to 200.
const LABEL_BYTES: u64 = 400;

/// Runs the command.
pub(super) fn run(config: &Config) -> Result<ExitStatus> {
    let rehearsal = score::rehearse(config)?;
    super::say(&describe(config, &rehearsal)?)?;
    Ok(ExitStatus::Done)
}

fn describe(config: &Config, rehearsal: &Rehearsal) -> Result<String> {
    let mut text = String::new();
    let manifest = &rehearsal.manifest;
    // Writing to a String cannot fail.
    let _ = writeln!(
        text,
        "pairs      {} in {} ({})",
        manifest.input.rows,
        counted(manifest.input.files.len() as u64, "files"),
        HumanBytes(rehearsal.input_bytes)
    );
    let slots = 2.0 * manifest.input.rows as f64;
    let _ = writeln!(
        text,
        "images     {} distinct, each stands in {:.2} places",
        rehearsal.images,
        slots / rehearsal.images.max(1) as f64
    );
    let _ = writeln!(text, "captions   {} distinct", rehearsal.captions);
    for (entry, record) in
        ScorersConfig::read(&config.scorers)?.scorer.iter().zip(&manifest.scorers.scorers)
    {
        let weights: Vec<String> = record
            .image
            .weights
            .iter()
            .chain(&record.head)
            .map(|weights| {
                format!("{} {}", weights.file, weights.sha256.get(..12).unwrap_or_default())
            })
            .collect();
        let _ = writeln!(
            text,
            "scorer     {}: {} {}, {}, {}",
            entry.name,
            record.kind,
            record.image.layout,
            record.image.preprocess,
            weights.join(", ")
        );
    }
    let _ = writeln!(
        text,
        "networks   loaded in {:.1} s, {} on {}, {} images a batch",
        rehearsal.loading.as_secs_f64(),
        manifest.scorers.dtype,
        manifest.scorers.device,
        config.batch_size
    );
    if let Some(rate) = rehearsal.images_per_second {
        let seconds = rehearsal.images as f64 / rate / config.shard.count() as f64;
        let _ = writeln!(
            text,
            "time       {rate:.2} images/s, about {} for {}",
            duration(Duration::from_secs_f64(seconds)),
            if config.shard.is_whole() {
                "all".to_owned()
            } else {
                format!("share {}", config.shard)
            }
        );
    }
    let needed = manifest.input.rows * LABEL_BYTES;
    let _ = writeln!(
        text,
        "disk       about {} needed, {} free",
        HumanBytes(needed),
        HumanBytes(rehearsal.free_bytes)
    );
    ensure!(
        needed <= rehearsal.free_bytes,
        "{}: about {} are needed but only {} are free; hint: choose another --out",
        config.out.display(),
        HumanBytes(needed),
        HumanBytes(rehearsal.free_bytes)
    );
    let _ = writeln!(text, "output     {}: {}", config.out.display(), rehearsal.output);
    Ok(text)
}

fn duration(duration: Duration) -> String {
    indicatif::HumanDuration(duration).to_string()
}
