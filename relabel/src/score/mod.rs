//! `relabel score`: plan, score file by file into parts, merge.
//!
//! Until it is complete a run keeps everything in `OUT.work/`: the manifest, which says what the
//! run is, and one part per finished input file. A part and the labels file appear under their
//! names only when complete and synced. After a kill at any instant the same command finishes the
//! run, with the same bytes.

mod batches;
mod captions;
mod manifest;
mod merge;
mod output;
mod part;
mod pipeline;
pub mod plan;
mod rehearsal;
mod room;
mod scores;

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use runkit::logging::{counted, tenths};
use runkit::progress::Progress;
use runkit::shard::Shard;
use runkit::signals::StopFlag;
use schemas::pairs::{InputFile, discover};
use scorers::{Compute, DescribedScorers, MemoryLimits, ScorerSet, ScorersConfig, ScorersManifest};

use self::batches::{Choice, Source};
use self::captions::CaptionFeatures;
pub use self::captions::CaptionText;
pub use self::manifest::{KEY_MEMORY, Manifest};
use self::merge::Merge;
use self::output::Output;
pub use self::output::work_folder;
pub(crate) use self::output::{labels_output, manifest_of_labels};
use self::part::Note;
use self::pipeline::Scoring;
use self::plan::Plan;
pub use self::rehearsal::{Rehearsal, rehearse};
pub use self::room::Room;
use self::scores::Scores;
use crate::vote::TiePolicy;

/// A validated run.
#[derive(Debug, Clone)]
pub struct Config {
    /// Inputs as given.
    pub pairs: Vec<PathBuf>,
    /// The splits to take of them. If empty, all, which must then be one.
    pub splits: Vec<String>,
    /// The scorers' file.
    pub scorers: PathBuf,
    /// The labels file to write.
    pub out: PathBuf,
    /// The settings file that was read.
    pub settings_file: Option<PathBuf>,
    /// Images per forward pass.
    pub batch_size: usize,
    /// Device and dtype.
    pub compute: Compute,
    /// The shard of the files that this process scores.
    pub shard: Shard,
    /// What a tie becomes.
    pub ties: TiePolicy,
    /// At most this many pairs.
    pub limit: Option<u64>,
    /// The folder for scratch files; the folder of the output if absent.
    pub scratch: Option<PathBuf>,
    /// Replace what an earlier run left.
    pub fresh: bool,
    /// Failed rows that still count as success.
    pub max_failed: u64,
    /// The settings it was made from as TOML, saved beside the output.
    pub saved_settings: String,
}

/// How a run ended.
#[derive(Debug)]
pub enum End {
    /// The labels file is complete.
    Done,
    /// This shard is complete; the labels file is not.
    ShardDone {
        /// Parts of other shards that are missing.
        waiting_for: usize,
    },
}

/// Runs `config` until it is done.
///
/// # Errors
/// One sentence about what is wrong with an input, a checkpoint, the output, or an earlier run that
/// this one would mix with; [`runkit::signals::Stopped`] if `stop` asked for a stop. The same
/// command then resumes.
pub fn run(config: &Config, stop: &StopFlag) -> Result<End> {
    let inputs = inputs(config)?;
    let scorers = ScorersConfig::read(&config.scorers)?;
    let output = Output::new(config);
    output.refuse_foreign(&inputs)?;
    let _lock = output.lock()?;

    tracing::info!(files = inputs.len(), "planning");
    let plan = Plan::make(&inputs, config.limit, &config.scratch(), stop)?;
    refuse_nothing(&plan)?;
    let described = DescribedScorers::of(&scorers, config.compute)?;
    stop.check()?;
    let run = Run::new(config, &output, &plan, described.manifest(), stop)?;
    if output.is_complete(&run.manifest)? {
        tracing::info!(labels = %config.out.display(), "already complete");
        if let Some(_lock) = output.merge_lock()? {
            output.tidy()?;
        }
        return Ok(End::Done);
    }
    output.refuse_another_run(&run.manifest)?;
    let todo = Todo::find(&run)?;
    let files = todo.files.iter().map(|(file, _)| *file);
    Room::of(&plan, files, &described.text_widths(), scorers.scorer.len())
        .refuse_full_scratch(&config.scratch())?;
    // The networks are loaded before anything is written: a wrong checkpoint leaves no trace.
    let mut networks = Networks::Described(Box::new(described));
    if !todo.files.is_empty() {
        networks = networks.load(&run)?;
    }
    output.begin(&run.manifest)?;
    let _shard_lock = output.shard_lock()?;
    if let Networks::Loaded(set) = &networks {
        run.score(set, todo)?;
    }
    run.merge_if_ready(networks)
}

/// The files of pairs. Files that are not taken are logged.
fn inputs(config: &Config) -> Result<Vec<InputFile>> {
    let found = discover(&config.pairs, &config.splits)?;
    if let Some(skipped) = found.skipped() {
        tracing::info!("{skipped}");
    }
    Ok(found.files)
}

fn refuse_nothing(plan: &Plan) -> Result<()> {
    ensure!(
        plan.pairs() > 0,
        "the inputs hold no pair; hint: {} files were read",
        plan.files.len()
    );
    Ok(())
}

impl Config {
    /// Where scratch files go.
    fn scratch(&self) -> PathBuf {
        self.scratch.clone().unwrap_or_else(|| output::folder_of(&self.out))
    }
}

/// A run that is planned.
struct Run<'run> {
    config: &'run Config,
    output: &'run Output<'run>,
    plan: &'run Plan,
    manifest: Manifest,
    fingerprint: String,
    /// The folder of the parts.
    parts: PathBuf,
    stop: &'run StopFlag,
}

impl<'run> Run<'run> {
    fn new(
        config: &'run Config,
        output: &'run Output<'run>,
        plan: &'run Plan,
        scorers: &ScorersManifest,
        stop: &'run StopFlag,
    ) -> Result<Self> {
        let manifest = Manifest::new(config, scorers, plan);
        let fingerprint = manifest.fingerprint()?;
        Ok(Self { config, output, plan, fingerprint, manifest, parts: output.parts(), stop })
    }
}

/// The scorers, loaded when they are needed.
enum Networks {
    Described(Box<DescribedScorers>),
    Loaded(Box<ScorerSet>),
}

impl Networks {
    fn load(self, run: &Run<'_>) -> Result<Self> {
        let described = match self {
            Self::Described(described) => *described,
            Self::Loaded(set) => return Ok(Self::Loaded(set)),
        };
        let loading = Instant::now();
        let set = described.load()?;
        run.stop.check()?;
        tracing::info!(
            pairs = run.plan.pairs(),
            images = run.plan.images(),
            captions = run.plan.captions.len(),
            scorers = set.names().join(","),
            dtype = %set.compute().precision,
            loading_seconds = tenths(loading.elapsed()),
            "Loaded {} in {:.1} s",
            counted(set.names().len() as u64, "scorers"),
            loading.elapsed().as_secs_f64()
        );
        Ok(Self::Loaded(Box::new(set)))
    }
}

impl Run<'_> {
    /// Scores the files that have no part yet.
    fn score(&self, set: &ScorerSet, todo: Todo) -> Result<()> {
        let progress = Progress::new("scoring", "images", todo.images);
        progress.already_done(todo.images_done);
        let files = todo.files.into_iter().map(|(file, path)| (file, Choice::First, path));
        self.score_files(set, files, progress)
    }

    fn score_files(
        &self,
        set: &ScorerSet,
        files: impl Iterator<Item = (usize, Choice, PathBuf)>,
        progress: Progress,
    ) -> Result<()> {
        let started = Instant::now();
        let mut captions = CaptionFeatures::new(&self.plan.captions, set, &self.config.scratch())?;
        let batch_size = self.config.batch_size;
        let source = Source { plan: self.plan, set, batch_size, stop: self.stop };
        let fingerprint = &self.fingerprint;
        let mut scoring = Scoring { source, fingerprint, progress: &progress, failed_images: 0 };
        for (file, choice, path) in files {
            pipeline::score_file(&mut scoring, &mut captions, file, choice, &path).with_context(
                || format!("scoring {}", self.plan.files[file].input.path.display()),
            )?;
        }
        progress.finish();
        // On a GPU the networks run beside the host, whose time says nothing about them.
        if !set.compute().device.is_cuda() {
            let (networks, wall) =
                (set.network_time().as_secs_f64(), started.elapsed().as_secs_f64());
            let percent = 100.0 * networks / wall;
            tracing::info!("networks: {networks:.2} s of {wall:.2} s ({percent:.0} %)");
        }
        Ok(())
    }

    /// Puts the output in its place when all parts are there.
    fn merge_if_ready(&self, networks: Networks) -> Result<End> {
        let (config, output, count) = (self.config, self.output, self.plan.files.len());
        let mut waiting_for = 0;
        for index in 0..count {
            let path = part::path(&self.parts, index, count);
            waiting_for += usize::from(!part::is_done(&path, &self.fingerprint)?);
        }
        let merged_by_another = || {
            Ok::<_, anyhow::Error>(!config.shard.is_whole() && output.is_complete(&self.manifest)?)
        };
        // If several shards finish together, one of them merges and then removes the parts.
        if waiting_for > 0 {
            return Ok(match merged_by_another()? {
                true => End::Done,
                false => End::ShardDone { waiting_for },
            });
        }
        let Some(_lock) = output.merge_lock()? else {
            return Ok(End::ShardDone { waiting_for });
        };
        if merged_by_another()? {
            return Ok(End::Done);
        }
        tracing::info!(parts = count, "merging");
        let scores = self.scores(networks)?;
        let note = self.note()?;
        let mut metadata = self.manifest.metadata()?;
        if note.memory != MemoryLimits::default() {
            metadata.insert(KEY_MEMORY.to_owned(), runkit::manifest::canonical_json(&note.memory)?);
        }
        let merge = Merge::new(self.plan, &scores, &self.manifest.voters, config.ties);
        let summary = merge.write(&config.out, &metadata, self.stop)?;
        tracing::info!(
            rows = summary.rows,
            failed = summary.failed_rows,
            ties = summary.ties,
            "labels written"
        );
        if note.on_white > 0 {
            tracing::info!(
                images = note.on_white,
                "images with transparency were laid on white, as transformers does; with alpha = \"drop\" \
                 in scorers.toml transparency is ignored"
            );
        }
        if note.memory != MemoryLimits::default() {
            tracing::warn!(
                images_per_forward = note.memory.images,
                captions_per_forward = note.memory.captions,
                "the device ran out of memory at the batch size asked for; last bits may differ from a \
                 run that had enough"
            );
        }
        output.tidy()?;
        Ok(End::Done)
    }

    /// The notes of all parts together.
    fn note(&self) -> Result<Note> {
        let count = self.plan.files.len();
        let mut note = Note::default();
        for index in 0..count {
            note = note.with(Note::read(&part::path(&self.parts, index, count))?);
            let rest = part::rest_path(&self.parts, index, count);
            if rest.exists() {
                note = note.with(Note::read(&rest)?);
            }
        }
        Ok(note)
    }

    /// The scores of all parts. Only all parts together show which images were scored nowhere;
    /// those are scored first.
    fn scores(&self, networks: Networks) -> Result<Scores> {
        let scorers = &self.manifest.scorers.scorers;
        let reads_captions: Vec<bool> =
            scorers.iter().map(|scorer| scorer.text.is_some()).collect();
        let read = || {
            let names = &self.manifest.voters;
            Scores::read(self.plan, &reads_captions, names, &self.parts, self.stop)
        };
        let scores = read()?;
        let several = scores.uids_with_other_bytes(self.plan);
        if several > 0 {
            tracing::warn!(
                uids = several,
                "some uids name images with different bytes; each is scored as an image of its own"
            );
        }
        let gaps = scores.gaps(self.plan);
        if gaps.is_empty() {
            return Ok(scores);
        }
        drop(scores);
        let images: usize = gaps.values().map(std::collections::BTreeMap::len).sum();
        tracing::info!(images, "scoring images whose uid names other bytes elsewhere");
        let networks = networks.load(self)?;
        if let Networks::Loaded(set) = &networks {
            let count = self.plan.files.len();
            let files = gaps.into_iter().map(|(file, slots)| {
                (file, Choice::Rest(slots), part::rest_path(&self.parts, file, count))
            });
            self.score_files(
                set,
                files,
                Progress::new("scoring the rest", "images", images as u64),
            )?;
        }
        let scores = read()?;
        ensure!(
            scores.gaps(self.plan).is_empty(),
            "the images have changed during the run; hint: start over with --fresh"
        );
        Ok(scores)
    }
}

/// What this process has to score.
struct Todo {
    /// Input files of this shard without a part, and where their parts go.
    files: Vec<(usize, PathBuf)>,
    /// Distinct images of the shard.
    images: u64,
    /// Those of them that an earlier run has scored.
    images_done: u64,
}

impl Todo {
    fn find(run: &Run<'_>) -> Result<Self> {
        let (config, count) = (run.config, run.plan.files.len());
        let mut todo = Self { files: Vec::new(), images: 0, images_done: 0 };
        for index in (0..count).filter(|&index| config.shard.owns(index as u64)) {
            let path = part::path(&run.parts, index, count);
            let owned = run.plan.images_owned_by(index);
            todo.images += owned;
            if !config.fresh && part::is_done(&path, &run.fingerprint)? {
                todo.images_done += owned;
            } else {
                todo.files.push((index, path));
            }
        }
        Ok(todo)
    }
}
