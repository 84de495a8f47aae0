//! `relabel score`: plan, score file by file into parts, merge.
//!
//! Everything a run leaves before its end stands in `OUT.work/`: the manifest, which says what the run
//! is, and one part per finished input file. A part and the labels file appear under their names only
//! when complete and synced, so a run that is killed at any instant is finished by the same command,
//! with the same bytes.

mod captions;
mod manifest;
mod merge;
mod part;
mod pipeline;
pub mod plan;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use runkit::lock::OutputLock;
use runkit::progress::Progress;
use runkit::shard::Shard;
use runkit::signals::{Signal, StopFlag};
use schemas::labels::{KEY_MANIFEST, LabelsFile};
use schemas::pairs::discover;
use scorers::{Compute, ScorerSet, ScorersConfig};
use serde_json::Value;

use self::captions::CaptionFeatures;
pub use self::captions::CaptionText;
pub use self::manifest::{FileRecord, InputRecord, Manifest};
use self::pipeline::{Outcome, Scoring};
use self::plan::Plan;
use crate::cli::ScoreSettings;
use crate::vote::TiePolicy;

/// A validated run.
#[derive(Debug, Clone)]
pub struct Config {
    /// Inputs as given.
    pub pairs: Vec<PathBuf>,
    /// The scorers' file.
    pub scorers: PathBuf,
    /// The labels file to write.
    pub out: PathBuf,
    /// Images per forward.
    pub batch_size: usize,
    /// Device and type.
    pub compute: Compute,
    /// Which share of the files is this process's.
    pub shard: Shard,
    /// What a tie becomes.
    pub ties: TiePolicy,
    /// At most this many pairs.
    pub limit: Option<u64>,
    /// Forget what an earlier run left.
    pub fresh: bool,
    /// The settings it was made from, saved beside the output.
    pub settings: ScoreSettings,
}

/// How a run ended.
#[derive(Debug)]
pub enum End {
    /// The labels file is complete.
    Done,
    /// This share is complete; parts of others are missing.
    ShardDone {
        /// How many.
        waiting_for: usize,
    },
    /// A signal came.
    Stopped(Signal),
}

/// Where a run keeps what it has until the output is complete.
#[must_use]
pub fn work_folder(out: &Path) -> PathBuf {
    with_suffix(out, ".work")
}

/// The folder a file stands in; the current one for a bare name.
fn folder_of(file: &Path) -> PathBuf {
    match file.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder.to_path_buf(),
        _ => PathBuf::from("."),
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// A file beside the output whose name begins with a dot.
fn hidden(out: &Path, suffix: &str) -> PathBuf {
    let name = out.file_name().unwrap_or_default().to_string_lossy();
    out.with_file_name(format!(".{name}.{suffix}"))
}

/// Runs `config` until it is done or stopped.
///
/// # Errors
/// One sentence about what is wrong with an input, a checkpoint, the output, or an earlier run that
/// this one would mix with.
pub fn run(config: &Config, stop: &StopFlag) -> Result<End> {
    let inputs = discover(&config.pairs)?;
    let scorers = ScorersConfig::read(&config.scorers)?;
    let work = work_folder(&config.out);
    let parts = work.join("parts");
    runkit::files::create_folder(folder_of(&config.out))?;
    let _lock = if config.shard.is_whole() {
        OutputLock::exclusive(hidden(&config.out, "lock"))?
    } else {
        OutputLock::shared(hidden(&config.out, "lock"))?
    };

    tracing::info!(files = inputs.len(), "planning");
    let scratch = folder_of(&config.out);
    let plan = Plan::make(&inputs, config.limit, &scratch)?;
    ensure!(
        plan.pairs() > 0,
        "the inputs hold no pair; hint: {} files were read",
        plan.files.len()
    );
    let described = ScorerSet::describe(&scorers, config.compute)?;
    let manifest = Manifest::new(&described, &plan, config.batch_size, config.ties, config.limit);
    let fingerprint = manifest.fingerprint()?;
    if already_complete(config, &manifest)? {
        tracing::info!(labels = %config.out.display(), "already complete");
        return Ok(End::Done);
    }
    prepare_work_folder(config, &manifest, &work, &parts)?;
    let _share_lock = (!config.shard.is_whole())
        .then(|| {
            let name = format!("share-{}-of-{}.lock", config.shard.index(), config.shard.count());
            OutputLock::exclusive(work.join(name))
        })
        .transpose()?;

    if let Some(signal) = score_files(config, &scorers, &plan, &fingerprint, &parts, stop)? {
        return Ok(End::Stopped(signal));
    }
    let count = plan.files.len();
    let mut waiting_for = 0;
    for index in 0..count {
        waiting_for +=
            usize::from(!part::is_done(&part::path(&parts, index, count), &fingerprint)?);
    }
    if waiting_for > 0 {
        return Ok(End::ShardDone { waiting_for });
    }
    // Of several shares that finish together one merges; the others find the work done.
    let merge_lock = OutputLock::exclusive(hidden(&config.out, "merge.lock"));
    let _merge_lock = match merge_lock {
        Ok(lock) => lock,
        Err(_) if !config.shard.is_whole() => return Ok(End::ShardDone { waiting_for: 0 }),
        Err(error) => return Err(error.into()),
    };
    let names: Vec<String> = scorers.scorer.iter().map(|scorer| scorer.name.clone()).collect();
    let summary =
        merge::merge(&plan, &names, config.ties, &manifest.metadata()?, &parts, &config.out)?;
    tracing::info!(
        rows = summary.rows,
        failed = summary.failed_rows,
        ties = summary.ties,
        "labels written"
    );
    save_settings(config)?;
    remove_folder(&work)?;
    Ok(End::Done)
}

/// Whether the output stands there already, complete and of this very run.
fn already_complete(config: &Config, manifest: &Manifest) -> Result<bool> {
    if config.fresh || !config.out.exists() {
        return Ok(false);
    }
    let hint = "hint: choose another --out, or start over with --fresh";
    let labels = LabelsFile::open(&config.out).with_context(|| {
        format!("{} exists and is not a labels file of this program; {hint}", config.out.display())
    })?;
    let Some(found) = labels.metadata().get(KEY_MANIFEST) else {
        bail!("{} exists and does not say what it was made from; {hint}", config.out.display());
    };
    let found: Value = serde_json::from_str(found)
        .with_context(|| format!("{}: its manifest is not JSON; {hint}", config.out.display()))?;
    refuse_differences(
        &found,
        manifest,
        &format!("{} was made by another run", config.out.display()),
        hint,
    )?;
    Ok(true)
}

/// Makes the work folder for this run, or finds that an earlier one of the same kind left it.
fn prepare_work_folder(
    config: &Config,
    manifest: &Manifest,
    work: &Path,
    parts: &Path,
) -> Result<()> {
    if config.fresh {
        remove_folder(work)?;
    }
    runkit::files::create_folder(work)?;
    runkit::files::create_folder(parts)?;
    let file = work.join("manifest.json");
    if file.exists() {
        let text = std::fs::read_to_string(&file)
            .with_context(|| format!("{}: cannot be read", file.display()))?;
        let hint = "hint: repeat the command that began it, choose another --out, or start over with --fresh";
        let found: Value = serde_json::from_str(&text).with_context(|| {
            format!("{}: expected the manifest of a run; {hint}", file.display())
        })?;
        refuse_differences(
            &found,
            manifest,
            &format!("{} holds another run", work.display()),
            hint,
        )?;
        if config.shard.is_whole() {
            runkit::files::remove_stale_temporaries(parts)?;
        }
    } else {
        runkit::files::write_json_atomic(&file, manifest)?;
    }
    Ok(())
}

fn refuse_differences(found: &Value, manifest: &Manifest, what: &str, hint: &str) -> Result<()> {
    const SHOWN: usize = 8;
    let differences = runkit::manifest::differences(found, &serde_json::to_value(manifest)?);
    if differences.is_empty() {
        return Ok(());
    }
    let mut lines: Vec<String> =
        differences.iter().take(SHOWN).map(|difference| format!("  {difference}")).collect();
    if differences.len() > SHOWN {
        lines.push(format!("  and {} more", differences.len() - SHOWN));
    }
    bail!("{what}, which differs from this one:\n{}\n{hint}", lines.join("\n"));
}

/// What [`rehearse`] found.
#[derive(Debug)]
pub struct Rehearsal {
    /// What the run would be.
    pub manifest: Manifest,
    /// Bytes of all input files.
    pub input_bytes: u64,
    /// Distinct images.
    pub images: u64,
    /// Distinct captions.
    pub captions: usize,
    /// How long the networks took to load.
    pub loading: std::time::Duration,
    /// Measured on the first images; `None` when none of them could be decoded.
    pub images_per_second: Option<f64>,
    /// Free bytes where the output goes.
    pub free_bytes: u64,
    /// Whether the run is new, goes on, or is complete.
    pub output: String,
}

/// Everything a run does before its first part, and a timed batch; writes nothing.
///
/// # Errors
/// Whatever would stop the run itself.
pub fn rehearse(config: &Config) -> Result<Rehearsal> {
    let inputs = discover(&config.pairs)?;
    let scorers = ScorersConfig::read(&config.scorers)?;
    let plan = Plan::make(&inputs, config.limit, &std::env::temp_dir())?;
    ensure!(
        plan.pairs() > 0,
        "the inputs hold no pair; hint: {} files were read",
        plan.files.len()
    );
    let loading = Instant::now();
    let set = ScorerSet::load(&scorers, config.compute)?;
    let loading = loading.elapsed();
    let manifest =
        Manifest::new(set.manifest(), &plan, config.batch_size, config.ties, config.limit);
    let output = if already_complete(config, &manifest)? {
        "complete; nothing to do".to_owned()
    } else {
        let parts = work_folder(&config.out).join("parts");
        let count = plan.files.len();
        let mut done = 0;
        for index in 0..count {
            done += usize::from(part::is_done(
                &part::path(&parts, index, count),
                &manifest.fingerprint()?,
            )?);
        }
        if done > 0 {
            format!("goes on, {done} of {count} files are done")
        } else {
            "new".to_owned()
        }
    };
    let mut captions = CaptionFeatures::new(&plan.captions, &set, &std::env::temp_dir())?;
    let images_per_second = pipeline::rate(&plan, &set, config.batch_size, &mut captions)?;
    let mut folder = folder_of(&config.out);
    while !folder.exists() && folder.pop() {}
    Ok(Rehearsal {
        manifest,
        input_bytes: inputs
            .iter()
            .filter_map(|input| std::fs::metadata(&input.path).ok())
            .map(|file| file.len())
            .sum(),
        images: plan.images(),
        captions: plan.captions.len(),
        loading,
        images_per_second,
        free_bytes: runkit::files::free_space(&folder)?,
        output,
    })
}

/// Scores this share's files that have no part yet.
fn score_files(
    config: &Config,
    scorers: &ScorersConfig,
    plan: &Plan,
    fingerprint: &str,
    parts: &Path,
    stop: &StopFlag,
) -> Result<Option<Signal>> {
    let count = plan.files.len();
    let (mut pending, mut images, mut images_done) = (Vec::new(), 0, 0);
    for index in (0..count).filter(|&index| config.shard.owns(index as u64)) {
        let path = part::path(parts, index, count);
        let owned = plan.images_owned_by(index);
        images += owned;
        if part::is_done(&path, fingerprint)? {
            images_done += owned;
        } else {
            pending.push((index, path));
        }
    }
    if pending.is_empty() {
        return Ok(None);
    }
    let loading = Instant::now();
    let set = ScorerSet::load(scorers, config.compute)?;
    tracing::info!(
        pairs = plan.pairs(),
        images = plan.images(),
        captions = plan.captions.len(),
        scorers = set.names().join(","),
        dtype = %config.compute.precision,
        loading_seconds = format!("{:.1}", loading.elapsed().as_secs_f64()),
        "scoring"
    );
    let started = Instant::now();
    let progress = Progress::new("scoring", "images", images);
    progress.already_done(images_done);
    let mut captions = CaptionFeatures::new(&plan.captions, &set, &folder_of(&config.out))?;
    let mut scoring = Scoring {
        plan,
        set: &set,
        batch_size: config.batch_size,
        fingerprint,
        stop: stop.clone(),
        progress: &progress,
        failed_images: 0,
    };
    for (index, path) in pending {
        let outcome = pipeline::score_file(&mut scoring, &mut captions, index, &path)
            .with_context(|| format!("scoring {}", plan.files[index].input.path.display()))?;
        if outcome == Outcome::Stopped {
            return Ok(stop.requested());
        }
    }
    progress.finish();
    let (networks, wall) = (set.network_time().as_secs_f64(), started.elapsed().as_secs_f64());
    tracing::info!("networks: {networks:.2} s of {wall:.2} s ({:.0} %)", 100.0 * networks / wall);
    Ok(None)
}

/// The resolved settings, beside the output and a valid `--config` themselves.
fn save_settings(config: &Config) -> Result<()> {
    let mut settings = config.settings.clone();
    let absolute = |path: &PathBuf| std::path::absolute(path).unwrap_or_else(|_| path.clone());
    settings.pairs = settings.pairs.map(|pairs| pairs.iter().map(absolute).collect());
    settings.scorers = settings.scorers.as_ref().map(absolute);
    settings.out = settings.out.as_ref().map(absolute);
    let text = runkit::config::to_toml_string(&settings)?;
    runkit::files::write_atomic(config.out.with_extension("config.toml"), |file| {
        std::io::Write::write_all(file, text.as_bytes())
    })?;
    Ok(())
}

fn remove_folder(folder: &Path) -> Result<()> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("{}: cannot be removed", folder.display()))
        }
        _ => Ok(()),
    }
}
