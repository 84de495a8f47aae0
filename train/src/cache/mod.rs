//! `train cache`: latents and prompt embeddings of pairs, written once for many runs.
//!
//! Each input file has two parts, `captions-*.parquet` and `latents-*.parquet`, with every pair in
//! its position ([`schemas::latents`]). The cache does not read labels, so it serves every
//! labelling of the pairs. A part appears under its name only when it is complete and synced, and
//! its bytes are a function of the input file, the model and the settings: after a kill at any
//! instant the same command finishes the cache with the same bytes. `manifest.json` and each part
//! say what the parts were made with; a run that differs in any of it is refused.

mod captions;
mod latents;
mod manifest;
mod networks;
mod plan;
mod settings;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use nn::device::Precision;
use nn::pipeline::Encoders;
use runkit::files::FileHashes;
use runkit::progress::Progress;
use runkit::run_folder::{FolderKind, MANIFEST, names_in, remove_file};
use runkit::signals::{StopFlag, Stoppable, stoppable};
use schemas::labels::Status;
use schemas::latents::{
    CaptionsFile, KEY_FINGERPRINT, LatentsFile, Manifest, captions_name, latents_name,
};
use serde_json::{Value, json};
use tch::Device;

use self::manifest::NUMERICS;
use self::plan::Plan;
pub use self::settings::settings;
use crate::model::BaseModel;

/// A validated run.
#[derive(Debug, Clone)]
pub struct Config {
    /// The pipeline whose encoders are used.
    pub model: PathBuf,
    /// Inputs as given.
    pub pairs: Vec<PathBuf>,
    /// The splits to read; empty for the only one.
    pub splits: Vec<String>,
    /// The folder to write.
    pub out: PathBuf,
    /// Height and width in pixels; `None` for the model's own.
    pub resolution: Option<i64>,
    /// Whether every image is also encoded horizontally flipped.
    pub hflip: bool,
    /// Device.
    pub device: Device,
    /// The dtype that the encoders compute in. f32 is stored as f32; bf16 and f16 as f16, which
    /// holds all bits of usual latents in either.
    pub precision: Precision,
    /// Images encoded at once; the last bits depend on it.
    pub batch_size: usize,
    /// Whether to delete what an earlier run left.
    pub fresh: bool,
}

/// The content of a complete cache.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Summary {
    /// Pairs.
    pub rows: u64,
    /// Pairs without latents.
    pub failed: u64,
    /// Distinct captions.
    pub captions: u64,
    /// Bytes of all parts.
    pub bytes: u64,
}

impl Summary {
    /// The summary as JSON, with the folder of the cache.
    pub fn json(&self, cache: &Path) -> Value {
        let Self { rows, failed, captions, bytes } = self;
        json!({"pairs": rows, "failed": failed, "captions": captions, "bytes": bytes, "cache": cache})
    }
}

/// The folder of a cache.
const CACHE: FolderKind = FolderKind {
    name: "the folder of a cache",
    flag: "--out",
    lock: ".cache.lock",
    is_ours: |manifest| {
        manifest.get("latent_shape").is_some() && manifest.get("encoders").is_some()
    },
    numerics: &NUMERICS,
    notes: &[],
    hint: None,
};

/// Writes the cache, unless a signal stops it.
///
/// # Errors
/// One sentence about what is wrong with an input, the model, the folder, or an earlier run that
/// this one would mix with.
pub fn write(config: &Config, stop: &StopFlag) -> Result<Stoppable<Summary>> {
    stoppable(make(config, stop))
}

fn make(config: &Config, stop: &StopFlag) -> Result<Stoppable<Summary>> {
    let folder = CACHE.at(&config.out);
    // A part names its run by itself, so that a folder that lost its manifest still counts as ours.
    let has_parts = |out: &Path| {
        let is_part = |path: &PathBuf| {
            LatentsFile::open(path).is_ok_and(|part| part.metadata().contains_key(KEY_FINGERPRINT))
        };
        parts(out).unwrap_or_default().iter().any(|name| is_part(&out.join(name)))
    };
    folder.refuse_foreign_unless(has_parts)?;
    // What is on this machine is checked before a model of the hub is downloaded.
    BaseModel::check_local(&config.model)?;
    schemas::pairs::discover(&config.pairs, &config.splits)?;
    let base = BaseModel::open(&config.model, config.resolution)?;
    let _lock = folder.lock()?;
    tracing::info!("planning");
    let plan = Plan::make(&config.pairs, &config.splits)?;
    ensure!(plan.rows() > 0, "the inputs hold no pair; hint: {} files were read", plan.files.len());
    let mut hashes = FileHashes::read(&config.out);
    let manifest = manifest::describe(config, &base, &plan, &mut hashes)?;
    let fingerprint = manifest::fingerprint(&manifest)?;
    let count = plan.files.len();
    if config.fresh {
        clear(&config.out)?;
    }
    refuse_another_run(config, &manifest)?;
    let mut missing = Vec::new();
    for index in 0..count {
        if !is_done(&config.out, index, count, &fingerprint)? {
            missing.push(index);
        }
    }
    if !missing.is_empty() {
        let progress = Progress::new("encoding", "pairs", plan.rows());
        let left: u64 =
            missing.iter().filter_map(|&index| plan.files.get(index)).map(|f| f.rows).sum();
        progress.already_done(plan.rows() - left);
        // The networks are loaded before anything is written: a wrong checkpoint leaves no trace.
        let encoders = Encoders::load(&base.files, config.device, config.precision)
            .with_context(|| format!("loading the encoders of {}", base.files.folder.display()))?;
        // An earlier start may have had other numerics; its manifest stays.
        if folder.manifest()?.is_none() {
            folder.begin(&manifest)?;
        }
        hashes.write(&config.out)?;
        for index in missing {
            let part = Part {
                config,
                base: &base,
                manifest: &manifest,
                fingerprint: &fingerprint,
                plan: &plan,
                index,
            };
            let path = plan.files[index].input.path.display();
            captions::write(&part, &encoders)
                .with_context(|| format!("encoding the captions of {path}"))?;
            let written = latents::write(&part, &encoders, &progress, stop);
            if let ControlFlow::Break(signal) =
                written.with_context(|| format!("encoding {path}"))?
            {
                return Ok(ControlFlow::Break(signal));
            }
        }
        progress.finish();
    }
    runkit::files::remove_stale_temporaries(&config.out)?;
    Ok(ControlFlow::Continue(summary(&config.out, count)?))
}

/// One input file and what its parts are made from.
struct Part<'run> {
    config: &'run Config,
    base: &'run BaseModel,
    manifest: &'run Manifest,
    fingerprint: &'run str,
    plan: &'run Plan,
    index: usize,
}

impl Part<'_> {
    fn latents_path(&self) -> PathBuf {
        self.config.out.join(latents_name(self.index, self.plan.files.len()))
    }

    fn captions_path(&self) -> PathBuf {
        self.config.out.join(captions_name(self.index, self.plan.files.len()))
    }
}

/// Whether both parts of an input file exist.
fn is_done(out: &Path, index: usize, count: usize, fingerprint: &str) -> Result<bool> {
    let [latents, captions] =
        [latents_name(index, count), captions_name(index, count)].map(|name| out.join(name));
    let of_this_run = |path: &Path, found: Option<&String>| {
        ensure!(
            found.is_some_and(|found| found == fingerprint),
            "{}: this part belongs to another run; hint: choose another --out, or start over with \
             --fresh",
            path.display()
        );
        Ok(())
    };
    let damaged = |path: &Path| {
        format!("{}: remove this part and run the same command again", path.display())
    };
    let mut done = true;
    if latents.exists() {
        let file = LatentsFile::open(&latents).with_context(|| damaged(&latents))?;
        of_this_run(&latents, file.metadata().get(KEY_FINGERPRINT))?;
    } else {
        done = false;
    }
    if captions.exists() {
        let file = CaptionsFile::open(&captions).with_context(|| damaged(&captions))?;
        of_this_run(&captions, file.metadata().get(KEY_FINGERPRINT))?;
    } else {
        done = false;
    }
    Ok(done)
}

/// Refuses a folder that holds the cache of another run.
fn refuse_another_run(config: &Config, manifest: &Manifest) -> Result<()> {
    let folder = CACHE.at(&config.out);
    if folder.manifest()?.is_none()
        && let Some(part) = parts(&config.out)?.first()
    {
        bail!(
            "{} exists without {MANIFEST}, which says what it was made with; hint: choose another \
             --out, or start over with --fresh",
            config.out.join(part).display()
        );
    }
    for difference in folder.refuse_another(manifest)? {
        tracing::warn!("resuming with other numerics: {difference}; latents differ by rounding");
    }
    Ok(())
}

/// Deletes the parts of a cache, and then its manifest: after a kill the rest is still a cache.
fn clear(out: &Path) -> Result<()> {
    for name in parts(out)?.iter().map(String::as_str).chain([FileHashes::FILE, MANIFEST]) {
        remove_file(&out.join(name))?;
    }
    Ok(())
}

/// The names of the parts in a folder.
fn parts(out: &Path) -> Result<Vec<String>> {
    let is_part = |name: &str| {
        ["latents-", "captions-"].iter().any(|start| name.starts_with(start))
            && name.contains("-of-")
            && name.ends_with(".parquet")
    };
    Ok(names_in(out, is_part)?)
}

/// Counts the content of a complete cache.
fn summary(out: &Path, count: usize) -> Result<Summary> {
    let mut summary = Summary::default();
    for index in 0..count {
        let latents = out.join(latents_name(index, count));
        let captions = out.join(captions_name(index, count));
        for rows in LatentsFile::open(&latents)?.rows()? {
            runkit::signals::check()?;
            let rows = rows?;
            summary.rows += rows.len() as u64;
            let failed = rows.iter().filter(|row| row.status != Status::Ok).count();
            summary.failed += failed as u64;
        }
        let texts = CaptionsFile::open(&captions)?.num_rows();
        summary.captions += u64::try_from(texts).unwrap_or(0);
        for path in [latents, captions] {
            summary.bytes += std::fs::metadata(&path).map_or(0, |file| file.len());
        }
    }
    // The empty caption belongs to no pair.
    summary.captions = summary.captions.saturating_sub(1);
    Ok(summary)
}
