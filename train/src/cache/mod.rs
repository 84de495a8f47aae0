//! `train cache`: what the autoencoder and the text encoders make of pairs, written once for many runs.
//!
//! For each input file there are two parts, `captions-*.parquet` and `latents-*.parquet`, with every
//! pair in its place ([`schemas::latents`]). Labels are not read, so the cache of a set serves every
//! labelling of it. A part appears under its name only when complete and synced, and its bytes are a
//! function of the input file, the model and the settings: a run that is killed at any instant is
//! finished by the same command, with the same bytes. What the parts are made with stands in
//! `manifest.json` and in each part; a run that differs in any of it is refused.

mod captions;
mod latents;
mod manifest;
mod networks;
mod plan;
mod settings;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use nn::device::Precision;
use nn::pipeline::Encoders;
use runkit::lock::OutputLock;
use runkit::progress::Progress;
use runkit::signals::{Signal, StopFlag, Stopped};
use schemas::labels::Status;
use schemas::latents::{
    CaptionsFile, KEY_FINGERPRINT, LatentsFile, Manifest, captions_name, latents_name,
};
use serde_json::Value;
use tch::Device;

use self::plan::Plan;
pub use self::settings::settings;
use crate::model::{BaseModel, FileHashes};

/// What the folder holds.
pub(crate) const MANIFEST: &str = "manifest.json";

/// A validated run.
#[derive(Debug, Clone)]
pub struct Config {
    /// The pipeline whose encoders are used.
    pub model: PathBuf,
    /// Inputs as given.
    pub pairs: Vec<PathBuf>,
    /// The splits to take of them; none for all, which must be one.
    pub splits: Vec<String>,
    /// The folder to write.
    pub out: PathBuf,
    /// Height and width in pixels; none for the size that the model was made for.
    pub resolution: Option<i64>,
    /// Whether every image is encoded flipped as well.
    pub hflip: bool,
    /// Device.
    pub device: Device,
    /// What the encoders compute in. In f32 single precision is stored; in bf16 and f16 half
    /// precision, which holds all bits of what is usual in either.
    pub precision: Precision,
    /// Images encoded at once; the last bits depend on it.
    pub batch_size: usize,
    /// Forget what an earlier run left.
    pub fresh: bool,
}

/// How a run ended.
#[derive(Debug)]
pub enum End {
    /// The cache is complete.
    Done(Summary),
    /// A signal came; finished parts are kept.
    Stopped(Signal),
}

/// What a complete cache holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Summary {
    /// Pairs.
    pub rows: u64,
    /// Of these, pairs without latents.
    pub failed: u64,
    /// Distinct captions.
    pub captions: u64,
    /// Bytes of all parts.
    pub bytes: u64,
}

/// Runs `config` until it is done or stopped.
///
/// # Errors
/// One sentence about what is wrong with an input, the model, the folder, or an earlier run that this
/// one would mix with.
pub fn write(config: &Config, stop: &StopFlag) -> Result<End> {
    match make(config, stop) {
        Err(error) => match Stopped::behind(error.as_ref()) {
            Some(Stopped(signal)) => Ok(End::Stopped(signal)),
            None => Err(error),
        },
        end => end,
    }
}

fn make(config: &Config, stop: &StopFlag) -> Result<End> {
    refuse_foreign(&config.out)?;
    // What is on this machine is looked for before a model of the hub is downloaded.
    BaseModel::check_local(&config.model)?;
    schemas::pairs::discover(&config.pairs, &config.splits)?;
    let base = BaseModel::open(&config.model, config.resolution)?;
    runkit::files::create_folder(&config.out)?;
    let _lock = OutputLock::exclusive(config.out.join(".cache.lock"))?;
    tracing::info!("planning");
    let plan = Plan::make(&config.pairs, &config.splits)?;
    ensure!(plan.rows() > 0, "the inputs hold no pair; hint: {} files were read", plan.files.len());
    let mut hashes = FileHashes::read(&config.out);
    let manifest = manifest::describe(config, &base, &plan, &mut hashes)?;
    let fingerprint = manifest::fingerprint(&manifest)?;
    let count = plan.files.len();
    if config.fresh {
        forget(&config.out)?;
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
        prepare(config, &manifest)?;
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
            if !written.with_context(|| format!("encoding {path}"))? {
                return Ok(stop.requested().map_or(End::Done(Summary::default()), End::Stopped));
            }
        }
        progress.finish();
    }
    runkit::files::remove_stale_temporaries(&config.out)?;
    Ok(End::Done(summary(&config.out, count)?))
}

/// One input file and what its parts are made with.
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

/// Whether both parts of an input file are there.
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

/// Refuses a folder that holds something and no cache.
fn refuse_foreign(out: &Path) -> Result<()> {
    let is_ours = |out: &Path| {
        let text = std::fs::read(out.join(MANIFEST)).unwrap_or_default();
        let manifest: Value = serde_json::from_slice(&text).unwrap_or_default();
        let is_manifest =
            manifest.get("latent_shape").is_some() && manifest.get("encoders").is_some();
        // Parts say by themselves what they are of.
        let is_part = |path: &PathBuf| {
            LatentsFile::open(path).is_ok_and(|part| part.metadata().contains_key(KEY_FINGERPRINT))
        };
        is_manifest || parts(out).unwrap_or_default().iter().any(is_part)
    };
    let expected = "the folder of a cache";
    Ok(runkit::output::refuse_foreign_folder("--out", out, expected, is_ours)?)
}

/// Refuses to go on with what another run left in the folder.
fn refuse_another_run(config: &Config, manifest: &Manifest) -> Result<()> {
    const SHOWN: usize = 8;
    let file = config.out.join(MANIFEST);
    let hint = "hint: choose another --out, or start over with --fresh";
    if !file.exists() {
        if let Some(part) = parts(&config.out)?.first() {
            bail!(
                "{} exists, but {MANIFEST}, which would say what it was made with, does not; {hint}",
                part.display()
            );
        }
        return Ok(());
    }
    let text = std::fs::read_to_string(&file)
        .with_context(|| format!("{}: cannot be read", file.display()))?;
    let found: Value = serde_json::from_str(&text)
        .with_context(|| format!("{}: expected the manifest of a cache; {hint}", file.display()))?;
    let [differences, numerics] = manifest::differences(manifest, found)?;
    if differences.is_empty() {
        for difference in numerics {
            tracing::warn!(
                "going on otherwise than before: {difference}; latents differ by rounding"
            );
        }
        return Ok(());
    }
    let mut lines: Vec<String> =
        differences.iter().take(SHOWN).map(|difference| format!("  {difference}")).collect();
    if differences.len() > SHOWN {
        lines.push(format!("  and {} more", differences.len() - SHOWN));
    }
    bail!(
        "{} holds the cache of another run, which differs from this one:\n{}\n{hint}",
        config.out.display(),
        lines.join("\n")
    )
}

fn prepare(config: &Config, manifest: &Manifest) -> Result<()> {
    runkit::files::remove_stale_temporaries(&config.out)?;
    let file = config.out.join(MANIFEST);
    if !file.exists() {
        runkit::files::write_json_atomic(&file, manifest)?;
    }
    Ok(())
}

/// Removes the parts of a cache, and then its manifest: what is left of a stop is still a cache.
fn forget(out: &Path) -> Result<()> {
    let hashes = out.join(crate::model::HASHES);
    for path in parts(out)?.into_iter().chain([hashes, out.join(MANIFEST)]) {
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error)
                    .with_context(|| format!("{}: cannot be removed", path.display()));
            }
            _ => {}
        }
    }
    Ok(())
}

/// The parts in a folder, by name.
fn parts(out: &Path) -> Result<Vec<PathBuf>> {
    let list = || format!("{}: cannot be listed", out.display());
    let mut found = Vec::new();
    for entry in std::fs::read_dir(out).with_context(list)? {
        let path = entry.with_context(list)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let ours = ["latents-", "captions-"].iter().any(|start| name.starts_with(start));
        if ours && name.contains("-of-") && name.ends_with(".parquet") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Counts what the complete cache holds.
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
    // The empty caption is nobody's.
    summary.captions = summary.captions.saturating_sub(1);
    Ok(summary)
}
