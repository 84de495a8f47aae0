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
mod work;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use runkit::lock::OutputLock;
use runkit::logging::{counted, tenths};
use runkit::progress::Progress;
use runkit::shard::Shard;
use runkit::signals::{Signal, StopFlag};
use schemas::pairs::discover;
use scorers::{Compute, DescribedScorers, ScorerSet, ScorersConfig};

use self::captions::CaptionFeatures;
pub use self::captions::CaptionText;
pub use self::manifest::{FileRecord, InputRecord, Manifest};
use self::pipeline::{Outcome, Scoring};
use self::plan::Plan;
pub use self::work::work_folder;
pub(crate) use self::work::{labels_output, manifest_of_labels};
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
    /// The settings file that was read.
    pub config: Option<PathBuf>,
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

/// Runs `config` until it is done or stopped.
///
/// # Errors
/// One sentence about what is wrong with an input, a checkpoint, the output, or an earlier run that
/// this one would mix with.
pub fn run(config: &Config, stop: &StopFlag) -> Result<End> {
    let inputs = discover(&config.pairs)?;
    let scorers = ScorersConfig::read(&config.scorers)?;
    let parts = work_folder(&config.out).join("parts");
    work::refuse_foreign(config, &inputs)?;
    runkit::files::create_folder(work::folder_of(&config.out))?;
    let _lock = work::output_lock(config)?;

    tracing::info!(files = inputs.len(), "planning");
    let scratch = work::folder_of(&config.out);
    let plan = Plan::make(&inputs, config.limit, &scratch)?;
    ensure!(
        plan.pairs() > 0,
        "the inputs hold no pair; hint: {} files were read",
        plan.files.len()
    );
    let described = ScorerSet::describe(&scorers, config.compute)?;
    let manifest =
        Manifest::new(described.manifest(), &plan, config.batch_size, config.ties, config.limit);
    let fingerprint = manifest.fingerprint()?;
    if work::already_complete(config, &manifest)? {
        tracing::info!(labels = %config.out.display(), "already complete");
        if let Some(_lock) = work::merge_lock(config)? {
            work::tidy(config)?;
        }
        return Ok(End::Done);
    }
    work::refuse_another_run(config, &manifest)?;
    let todo = Todo::find(config, &plan, &fingerprint, &parts)?;
    // The networks are loaded before anything is written: a wrong checkpoint leaves no trace.
    let set = match todo.files.is_empty() {
        true => None,
        false => Some(load(described, &plan)?),
    };
    work::prepare(config, &manifest, &parts)?;
    let _share_lock = (!config.shard.is_whole())
        .then(|| {
            let name = format!("share-{}-of-{}.lock", config.shard.index(), config.shard.count());
            OutputLock::exclusive(work_folder(&config.out).join(name))
        })
        .transpose()?;
    if let Some(set) = &set
        && let Some(signal) = score_files(config, set, &plan, &fingerprint, todo, stop)?
    {
        return Ok(End::Stopped(signal));
    }
    merge_if_ready(config, &plan, &manifest, &fingerprint, &parts)
}

/// Puts the output in its place when all parts are there.
fn merge_if_ready(
    config: &Config,
    plan: &Plan,
    manifest: &Manifest,
    fingerprint: &str,
    parts: &Path,
) -> Result<End> {
    let count = plan.files.len();
    let mut waiting_for = 0;
    for index in 0..count {
        waiting_for += usize::from(!part::is_done(&part::path(parts, index, count), fingerprint)?);
    }
    let merged_by_another = || {
        Ok::<_, anyhow::Error>(
            !config.shard.is_whole() && work::already_complete(config, manifest)?,
        )
    };
    // Of several shares that finish together one merges, and then removes the parts.
    if waiting_for > 0 {
        return Ok(if merged_by_another()? { End::Done } else { End::ShardDone { waiting_for } });
    }
    let Some(_lock) = work::merge_lock(config)? else {
        return Ok(End::ShardDone { waiting_for });
    };
    if merged_by_another()? {
        return Ok(End::Done);
    }
    let (names, metadata) = (&manifest.voters, manifest.metadata()?);
    let summary = merge::merge(plan, names, config.ties, &metadata, parts, &config.out)?;
    tracing::info!(
        rows = summary.rows,
        failed = summary.failed_rows,
        ties = summary.ties,
        "labels written"
    );
    work::tidy(config)?;
    Ok(End::Done)
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
    work::refuse_foreign(config, &inputs)?;
    let plan = Plan::make(&inputs, config.limit, &std::env::temp_dir())?;
    ensure!(
        plan.pairs() > 0,
        "the inputs hold no pair; hint: {} files were read",
        plan.files.len()
    );
    let loading = Instant::now();
    let set = ScorerSet::describe(&scorers, config.compute)?.load()?;
    let loading = loading.elapsed();
    let manifest =
        Manifest::new(set.manifest(), &plan, config.batch_size, config.ties, config.limit);
    let output = if work::already_complete(config, &manifest)? {
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
    let mut folder = work::folder_of(&config.out);
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

/// What this process has to score.
struct Todo {
    /// Input files of this share without a part, and where their parts go.
    files: Vec<(usize, PathBuf)>,
    /// Distinct images of the share.
    images: u64,
    /// Those of them that an earlier run has scored.
    images_done: u64,
}

impl Todo {
    fn find(config: &Config, plan: &Plan, fingerprint: &str, parts: &Path) -> Result<Self> {
        let count = plan.files.len();
        let mut todo = Self { files: Vec::new(), images: 0, images_done: 0 };
        for index in (0..count).filter(|&index| config.shard.owns(index as u64)) {
            let path = part::path(parts, index, count);
            let owned = plan.images_owned_by(index);
            todo.images += owned;
            if !config.fresh && part::is_done(&path, fingerprint)? {
                todo.images_done += owned;
            } else {
                todo.files.push((index, path));
            }
        }
        Ok(todo)
    }
}

fn load(described: DescribedScorers, plan: &Plan) -> Result<ScorerSet> {
    let loading = Instant::now();
    let set = described.load()?;
    tracing::info!(
        pairs = plan.pairs(),
        images = plan.images(),
        captions = plan.captions.len(),
        scorers = set.names().join(","),
        dtype = %set.compute().precision,
        loading_seconds = tenths(loading.elapsed()),
        "loaded {} in {:.1} s",
        counted(set.names().len() as u64, "scorers"),
        loading.elapsed().as_secs_f64()
    );
    Ok(set)
}

/// Scores the files that have no part yet.
fn score_files(
    config: &Config,
    set: &ScorerSet,
    plan: &Plan,
    fingerprint: &str,
    todo: Todo,
    stop: &StopFlag,
) -> Result<Option<Signal>> {
    let started = Instant::now();
    let progress = Progress::new("scoring", "images", todo.images);
    progress.already_done(todo.images_done);
    let mut captions = CaptionFeatures::new(&plan.captions, set, &work::folder_of(&config.out))?;
    let mut scoring = Scoring {
        plan,
        set,
        batch_size: config.batch_size,
        fingerprint,
        stop: stop.clone(),
        progress: &progress,
        failed_images: 0,
    };
    for (index, path) in todo.files {
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
