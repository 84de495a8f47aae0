//! `relabel check`: everything a long run needs, tried before it.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use indicatif::HumanBytes;
use runkit::exit::ExitStatus;
use runkit::logging::counted;
use runkit::signals::StopFlag;
use scorers::ScorersConfig;

use crate::score::{self, Config, Rehearsal};

/// Runs the command.
pub(super) fn run(config: &Config, stop: &StopFlag) -> Result<ExitStatus> {
    let rehearsal = score::rehearse(config, stop)?;
    super::say(&describe(config, &rehearsal)?)?;
    refuse_too_little_room(config, &rehearsal)?;
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
        "images     {} distinct uids, each stands in {:.2} places",
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
        let left = rehearsal.images_left;
        let _ = writeln!(
            text,
            "time       {rate:.2} images/s, about {} for {}",
            duration(Duration::from_secs_f64(left as f64 / rate)),
            match config.shard.is_whole() {
                true => counted(left, "images"),
                false => format!("the {} of share {}", counted(left, "images"), config.shard),
            }
        );
    }
    let room = &rehearsal.room;
    let _ = writeln!(
        text,
        "disk       about {} for labels and parts in {}, {} free",
        HumanBytes(room.output()),
        folder_of(&config.out),
        HumanBytes(rehearsal.free_bytes)
    );
    let _ = writeln!(
        text,
        "scratch    {} for captions and their features in {}, {} free",
        HumanBytes(room.scratch()),
        rehearsal.scratch.display(),
        HumanBytes(rehearsal.free_scratch_bytes)
    );
    let _ = writeln!(text, "output     {}: {}", config.out.display(), rehearsal.output);
    Ok(text)
}

/// The folder of a file, for people.
fn folder_of(file: &Path) -> String {
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
    folder.unwrap_or(Path::new(".")).display().to_string()
}

/// Output and scratch may share a disk, which then needs room for both.
fn refuse_too_little_room(config: &Config, rehearsal: &Rehearsal) -> Result<()> {
    let room = &rehearsal.room;
    let is_one_disk = same_disk(&config.out, &rehearsal.scratch);
    let output = room.output() + if is_one_disk { room.scratch() } else { 0 };
    ensure!(
        output <= rehearsal.free_bytes,
        "{}: the run takes about {} there, only {} are free; hint: choose another --out{}",
        config.out.display(),
        HumanBytes(output),
        HumanBytes(rehearsal.free_bytes),
        if is_one_disk { ", or --scratch FOLDER on another disk" } else { "" }
    );
    ensure!(
        room.scratch() <= rehearsal.free_scratch_bytes,
        "{}: captions and their features take {}, only {} are free; hint: --scratch FOLDER on another disk",
        rehearsal.scratch.display(),
        HumanBytes(room.scratch()),
        HumanBytes(rehearsal.free_scratch_bytes)
    );
    Ok(())
}

/// Whether two paths, which need not exist yet, are on one disk.
fn same_disk(one: &Path, other: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    let disk = |path: &Path| {
        let path = std::path::absolute(path).ok()?;
        path.ancestors().find_map(|folder| folder.metadata().ok()).map(|found| found.dev())
    };
    disk(one).is_some_and(|found| Some(found) == disk(other))
}

fn duration(duration: Duration) -> String {
    indicatif::HumanDuration(duration).to_string()
}
