//! `relabel score`: plan, score unit by unit into parts, merge.
//!
//! Until it is complete a run keeps everything in its work folder, `OUT.work/`: the manifest, which
//! says what the run is, the plan, the features of its captions, and one part per finished unit. A
//! part and the labels file appear under their names only when complete and synced; a labels file at
//! an address is uploaded from the work folder. After a kill at any instant the same command
//! finishes the run, with the same bytes. Several processes may share the work ([`Sharing`]).

mod batches;
mod captions;
mod elsewhere;
mod manifest;
mod merge;
mod output;
mod part;
mod pipeline;
pub mod plan;
mod rehearsal;
mod reuse;
mod room;
mod scores;
mod sharing;
mod todo;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Result, ensure};
use locations::Location;
use runkit::logging::{counted, tenths};
use runkit::progress::Progress;
use runkit::signals::StopFlag;
use schemas::layouts::Layout;
use schemas::pairs::{InputFile, discover_as};
use runkit::files::FileHashes;
use scorers::{Compute, DescribedScorers, MemoryLimits, ScorerSet, ScorersConfig, ScorersManifest};

use self::batches::{Choice, Source};
pub use self::captions::CaptionText;
use self::captions::{CaptionFeatures, SharedFeatures};
pub use self::manifest::{KEY_MEMORY, Manifest};
use self::merge::Merge;
use self::output::{Found, Output};
pub(crate) use self::output::{labels_output, manifest_of_labels};
use self::part::{Note, PartKey, ScorerKey};
use self::pipeline::{Scoring, Task};
use self::plan::{Plan, PlanOptions};
pub use self::rehearsal::{Need, Rehearsal, rehearse};
use self::reuse::Reuse;
pub use self::reuse::Reused;
pub use self::room::Room;
use self::scores::{Parts, Scores, Slots};
pub use self::sharing::Sharing;
use self::sharing::{Member, Says};
use self::todo::{Group, Todo, dealt};
use crate::vote::{Missing, TiePolicy};

/// A validated run.
#[derive(Debug, Clone)]
pub struct Config {
    /// Inputs as given.
    pub pairs: Vec<PathBuf>,
    /// The splits to take of them. If empty, all, which must then be one.
    pub splits: Vec<String>,
    /// Their layout, if the user named it.
    pub layout: Option<Layout>,
    /// The scorers' file.
    pub scorers: PathBuf,
    /// The labels file to write: a path, or an address as it is shown.
    pub out: PathBuf,
    /// The address, if it is one.
    pub address: Option<Location>,
    /// The work folder; beside the labels file if absent. An address needs it.
    pub work: Option<PathBuf>,
    /// The settings file that was read.
    pub settings_file: Option<PathBuf>,
    /// Images per forward pass.
    pub batch_size: usize,
    /// Device and dtype.
    pub compute: Compute,
    /// What this process does of the run.
    pub sharing: Sharing,
    /// What a tie becomes.
    pub ties: TiePolicy,
    /// What becomes of a pair for which a scorer failed.
    pub missing: Missing,
    /// Labels of an earlier run whose scores are taken over.
    pub reuse: Option<PathBuf>,
    /// At most this many pairs.
    pub limit: Option<u64>,
    /// Pairs of a unit, at least.
    pub unit_pairs: u64,
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
    /// The labels file is complete, and another process of the run has said so.
    DoneElsewhere,
    /// The labels file is complete.
    Done,
    /// What this process does is complete; the labels file is not.
    ShareDone {
        /// Units of other processes that are missing.
        missing: usize,
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
    let member = Member::join(&config.sharing, stop)?;
    member.work(|| {
        if member.wait_for_first()? == Says::Complete {
            return Ok(End::DoneElsewhere);
        }
        // The first shard makes the plan; the others wait here and then read it.
        let turn = output.planning_lock(stop)?;
        let opened = Run::open(config, &output, &inputs, &scorers, stop)?;
        let says = if opened.is_complete { Says::Complete } else { Says::Planned };
        member.tell_others(says)?;
        drop(turn);
        finish(opened, &member)
    })
}

/// Does what an opened run has to do.
fn finish(opened: Opened<'_>, member: &Member<'_>) -> Result<End> {
    let Opened { run, mut networks, todo, is_complete } = opened;
    let output = run.output;
    if is_complete {
        tracing::info!(labels = %run.config.out.display(), "already complete");
        if let Some(_lock) = output.merge_lock()? {
            output.tidy()?;
        }
        return Ok(if member.follows() { End::DoneElsewhere } else { End::Done });
    }
    let _lock = output.member_lock()?;
    for number in 0..run.groups.len() {
        run.score_group(number, &todo, member, &mut networks)?;
    }
    run.merge_if_ready(networks)
}

/// The files of pairs. Files that are not taken are logged.
fn inputs(config: &Config) -> Result<Vec<InputFile>> {
    let found = discover_as(&config.pairs, &config.splits, config.layout)?;
    if let Some(skipped) = found.skipped() {
        tracing::info!("{skipped}");
    }
    Ok(found.files)
}

fn refuse_nothing(plan: &Plan) -> Result<()> {
    ensure!(
        plan.pairs() > 0,
        "the inputs hold no pair; hint: look into what was read, {}",
        counted(plan.files.len() as u64, "files")
    );
    Ok(())
}

impl Config {
    /// Where scratch files go.
    fn scratch(&self) -> PathBuf {
        self.scratch.clone().unwrap_or_else(|| match &self.address {
            None => output::folder_of(&self.out),
            Some(_) => self.folder_of_work(),
        })
    }

    fn plan_options(&self) -> PlanOptions {
        PlanOptions { limit: self.limit, unit_pairs: self.unit_pairs, marks: [0; 2] }
    }
}

/// A run that is planned.
struct Run<'run> {
    config: &'run Config,
    output: &'run Output<'run>,
    scorers: &'run ScorersConfig,
    plan: Plan,
    manifest: Manifest,
    fingerprint: String,
    /// What the scores of each unit depend on, and of each scorer.
    unit_keys: Vec<String>,
    scorer_keys: Vec<ScorerKey>,
    /// The earlier run whose scores are taken over.
    reuse: Option<Reuse>,
    groups: Vec<Group>,
    /// The checksums of the weights.
    hashes: FileHashes,
    /// The folder of the parts.
    parts: PathBuf,
    stop: &'run StopFlag,
}

/// A run whose work folder is there, with what this process needs for it.
struct Opened<'run> {
    run: Run<'run>,
    networks: Networks,
    todo: Todo,
    /// Whether the labels file is there.
    is_complete: bool,
}

impl<'run> Run<'run> {
    fn new(
        config: &'run Config,
        output: &'run Output<'run>,
        scorers: &'run ScorersConfig,
        (plan, hashes): (Plan, FileHashes),
        described: &ScorersManifest,
        stop: &'run StopFlag,
    ) -> Result<Self> {
        let manifest = Manifest::new(config, described, &plan);
        let fingerprint = manifest.fingerprint()?;
        let unit_keys = plan.unit_keys(config.batch_size)?;
        let scorer_keys = manifest.scorer_keys()?;
        let groups = todo::groups(plan.units.len(), scorer_keys.len(), None);
        let parts = output.parts();
        Ok(Self {
            config,
            output,
            scorers,
            plan,
            manifest,
            fingerprint,
            unit_keys,
            scorer_keys,
            reuse: None,
            groups,
            hashes,
            parts,
            stop,
        })
    }

    /// Looks what is there: under the output's name, and at `--reuse`. Returns whether this very run
    /// is complete.
    fn look(&mut self) -> Result<bool> {
        let found = self.output.examine(&self.manifest, &self.plan)?;
        let earlier = match found {
            Found::Complete => return Ok(true),
            Found::Grown => Some(&self.config.out),
            Found::New => self.config.reuse.as_ref(),
        };
        if let Some(earlier) = earlier {
            let unit_pairs = self.config.unit_pairs;
            let reuse = Reuse::of(earlier, &self.manifest, &self.plan, unit_pairs)?;
            let (units, scorers) = (self.plan.units.len(), self.scorer_keys.len());
            self.groups = todo::groups(units, scorers, Some(&reuse));
            self.reuse = Some(reuse);
        }
        Ok(false)
    }

    /// Plans a run, or reads the plan that another process or an earlier start has made, checks
    /// everything, and makes the work folder.
    fn open(
        config: &'run Config,
        output: &'run Output<'run>,
        inputs: &[InputFile],
        scorers: &'run ScorersConfig,
        stop: &'run StopFlag,
    ) -> Result<Opened<'run>> {
        let options = PlanOptions { marks: output.marks()?, ..config.plan_options() };
        output.refuse_replaced(inputs)?;
        let known = output.read_plan(inputs, options, stop)?;
        let is_new = known.is_none();
        let plan = match known {
            Some(plan) => {
                tracing::info!(files = inputs.len(), "the plan of an earlier start is used");
                plan
            }
            None => {
                tracing::info!(files = inputs.len(), "planning");
                Plan::make(inputs, options, &config.scratch(), stop)?
            }
        };
        refuse_nothing(&plan)?;
        plan.say_layouts(config.layout);
        let mut hashes = output.read_hashes();
        let described = DescribedScorers::of_hashed(scorers, config.compute, &mut hashes)?;
        stop.check()?;
        let text_widths = described.text_widths();
        let planned = (plan, hashes);
        let mut run = Self::new(config, output, scorers, planned, described.manifest(), stop)?;
        let mut networks = Networks::default();
        if run.look()? {
            return Ok(Opened { run, networks, todo: Todo::default(), is_complete: true });
        }
        if let Some(reuse) = &run.reuse {
            reuse.summary(&run.manifest.voters).log(run.plan.units.len());
        }
        output.refuse_another_run(&run.manifest, &run.plan)?;
        output.try_writing()?;
        let todo = Todo::find(&run)?;
        Room::of(&run.plan, todo.units.iter().copied(), &text_widths, scorers.scorer.len())
            .refuse_full_scratch(&config.scratch())?;
        // The first networks are loaded before anything is written: a wrong checkpoint leaves no
        // trace.
        let mut to_score = todo.units.iter().map(|&unit| run.group_of(unit));
        if let Some(group) = to_score.find(|group| !group.is_read_alone()) {
            networks.load(&run, &group.scorers.clone())?;
        }
        let new_plan = is_new.then_some((&run.plan, options));
        output.begin(&run.manifest, inputs, &run.hashes, new_plan)?;
        Ok(Opened { run, networks, todo, is_complete: false })
    }
}

/// The scorers that are loaded, if some are.
#[derive(Default)]
struct Networks(Option<Loaded>);

/// Some scorers of a run.
struct Loaded {
    set: ScorerSet,
    /// Of each scorer of the run whether it is one of them.
    scorers: Vec<bool>,
    /// Numbers per caption of each text tower.
    text_widths: Vec<usize>,
}

impl Networks {
    /// These scorers, in the place of others.
    fn load(&mut self, run: &Run<'_>, scorers: &[bool]) -> Result<&Loaded> {
        let loaded = match self.0.take().filter(|loaded| loaded.scorers == scorers) {
            Some(loaded) => loaded,
            None => run.load(scorers)?,
        };
        Ok(self.0.insert(loaded))
    }
}

impl Run<'_> {
    fn load(&self, scorers: &[bool]) -> Result<Loaded> {
        let loading = Instant::now();
        let mut wanted = self.scorers.clone();
        let mut kept = scorers.iter();
        wanted.scorer.retain(|_| kept.next().copied().unwrap_or(true));
        let mut hashes = self.hashes.clone();
        let described = DescribedScorers::of_hashed(&wanted, self.config.compute, &mut hashes)?;
        let text_widths = described.text_widths();
        let set = described.load()?;
        self.stop.check()?;
        tracing::info!(
            pairs = self.plan.pairs(),
            images = self.plan.images(),
            captions = self.plan.captions.len(),
            scorers = set.names().join(","),
            dtype = %set.manifest().dtype,
            loading_seconds = tenths(loading.elapsed()),
            "Loaded {} in {:.1} s",
            counted(set.names().len() as u64, "scorers"),
            loading.elapsed().as_secs_f64()
        );
        Ok(Loaded { set, scorers: scorers.to_vec(), text_widths })
    }

    /// Does the units of a group that this process gets and that have no part yet.
    fn score_group(
        &self,
        number: usize,
        todo: &Todo,
        member: &Member<'_>,
        networks: &mut Networks,
    ) -> Result<()> {
        let group = &self.groups[number];
        if !todo.units.iter().any(|&unit| self.group_of(unit) == group) {
            return Ok(());
        }
        if group.is_read_alone() {
            let progress = Progress::new("reading", "units", todo.units.len() as u64);
            pipeline::read_alone(self.source(), self.tasks(number, todo, member, &progress))?;
            return Ok(());
        }
        let loaded = networks.load(self, &group.scorers)?;
        let progress = Progress::new("scoring", "images", todo.images);
        progress.already_done(todo.images_done);
        let mut captions = self.captions(loaded)?;
        if !self.config.sharing.is_alone() {
            let chunks = captions::Groups::of(&self.plan).chunks();
            let dealt = member.deal(&dealt("captions", number), chunks);
            captions.encode_dealt(dealt, member.has_store())?;
        }
        let tasks = self.tasks(number, todo, member, &progress);
        self.score_tasks(&loaded.set, captions, tasks, &progress)?;
        progress.finish();
        Ok(())
    }

    fn source(&self) -> Source<'_> {
        Source { plan: &self.plan, batch_size: self.config.batch_size, stop: self.stop }
    }

    fn captions<'set>(&'set self, loaded: &'set Loaded) -> Result<CaptionFeatures<'set>> {
        // The features of other towers are others.
        let of_all = !loaded.scorers.contains(&false);
        let of = if of_all { String::new() } else { format!(" {:?}", loaded.set.names()) };
        let shared = SharedFeatures::new(
            self.output.captions(),
            &format!("{}{of}", self.fingerprint),
            captions::Groups::of(&self.plan),
            loaded.text_widths.clone(),
        );
        let scratch = self.config.scratch();
        CaptionFeatures::new(&self.plan, &loaded.set, &scratch, Some(shared), self.stop)
    }

    fn score_tasks(
        &self,
        set: &ScorerSet,
        mut captions: CaptionFeatures<'_>,
        tasks: impl Iterator<Item = Result<Task>> + Send,
        progress: &Progress,
    ) -> Result<()> {
        let started = Instant::now();
        let mut scoring = Scoring { source: self.source(), set, progress, failed_images: 0 };
        pipeline::score(&mut scoring, &mut captions, tasks)?;
        tracing::debug!(captions = captions.encoded(), "captions were encoded here");
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
        let (config, output, count) = (self.config, self.output, self.plan.units.len());
        let mut missing = 0;
        for unit in 0..count {
            let path = part::path(&self.parts, unit, count);
            missing += usize::from(!part::is_done(&path, &self.part_key(unit))?);
        }
        let merged_by_another = || {
            Ok::<_, anyhow::Error>(
                !config.sharing.is_alone()
                    && output.examine(&self.manifest, &self.plan)? == Found::Complete,
            )
        };
        // If several processes finish together, one of them merges and then removes the parts.
        if missing > 0 {
            if !merged_by_another()? {
                return Ok(End::ShareDone { missing });
            }
            // This one may have made the work folder again in that moment.
            if let Some(_lock) = output.merge_lock()? {
                output.tidy()?;
            }
            return Ok(End::DoneElsewhere);
        }
        let Some(_lock) = output.merge_lock()? else {
            return Ok(End::ShareDone { missing });
        };
        if merged_by_another()? {
            return Ok(End::DoneElsewhere);
        }
        tracing::info!(parts = count, "merging");
        let scores = self.scores(networks)?;
        let note = self.note()?;
        let mut metadata = self.manifest.metadata()?;
        if note.memory != MemoryLimits::default() {
            metadata.insert(KEY_MEMORY.to_owned(), runkit::manifest::canonical_json(&note.memory)?);
        }
        let merge = Merge::new(&self.plan, &scores, &self.manifest);
        let summary = merge.write(&output.labels_here(), &metadata, self.stop)?;
        output.upload(&self.manifest)?;
        tracing::info!(
            rows = summary.rows,
            failed = summary.failed_rows,
            partial = summary.partial_rows,
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
        let count = self.plan.units.len();
        let memory = self.reuse.as_ref().map(|reuse| reuse.memory).unwrap_or_default();
        let mut note = Note { memory, ..Note::default() };
        for index in 0..count {
            for path in [part::path, part::rest_path, part::more_path] {
                let path = path(&self.parts, index, count);
                if path.exists() {
                    note = note.with(Note::read(&path)?);
                }
            }
        }
        Ok(note)
    }

    /// The scores of all parts, and those that are taken over. Only all of them together show which
    /// images were scored nowhere, and which scores the earlier run lacks; those are scored first.
    fn scores(&self, mut networks: Networks) -> Result<Scores> {
        let scorers = &self.manifest.scorers.scorers;
        let reads_captions: Vec<bool> =
            scorers.iter().map(|scorer| scorer.text.is_some()).collect();
        let parts = Parts {
            plan: &self.plan,
            units: &self.unit_keys,
            scorers: &self.scorer_keys,
            reads_captions: &reads_captions,
            folder: &self.parts,
            reuse: self.reuse.as_ref(),
        };
        let mut scores = Scores::read(&parts, self.stop)?;
        let several = scores.uids_with_other_bytes(&self.plan);
        if several > 0 {
            tracing::warn!(
                uids = several,
                "some uids name images with different bytes; each is scored as an image of its own"
            );
        }
        let gaps = scores.gaps(&self.plan);
        if !gaps.is_empty() {
            drop(scores);
            tracing::info!(images = images_in(&gaps), "scoring images whose uid names other bytes elsewhere");
            let all = vec![true; self.scorer_keys.len()];
            self.score_rest(gaps, &all, part::rest_path, &mut networks)?;
            scores = Scores::read(&parts, self.stop)?;
        }
        let (lacking, missing) = scores.missing(&self.plan);
        if !missing.is_empty() {
            drop(scores);
            tracing::info!(images = images_in(&missing), "scoring what the earlier labels lack");
            self.score_rest(missing, &lacking, part::more_path, &mut networks)?;
            scores = Scores::read(&parts, self.stop)?;
        }
        ensure!(
            scores.gaps(&self.plan).is_empty() && scores.missing(&self.plan).1.is_empty(),
            "the images have changed during the run; hint: start over with --fresh"
        );
        Ok(scores)
    }

    /// Scores these slots with these scorers, into parts of their own.
    fn score_rest(
        &self,
        slots: Slots,
        scorers: &[bool],
        path: fn(&Path, usize, usize) -> PathBuf,
        networks: &mut Networks,
    ) -> Result<()> {
        let progress = Progress::new("scoring the rest", "images", images_in(&slots));
        let loaded = networks.load(self, scorers)?;
        let wanted: Vec<ScorerKey> =
            self.scorer_keys.iter().zip(scorers).filter(|(_, it)| **it).map(|(it, _)| it.clone()).collect();
        let count = self.plan.units.len();
        let tasks = slots.into_iter().map(|(unit, slots)| {
            let key = PartKey { unit: self.unit_keys[unit].clone(), scorers: wanted.clone() };
            Ok(Task { unit, choice: Choice::Rest(slots), path: path(&self.parts, unit, count), key })
        });
        self.score_tasks(&loaded.set, self.captions(loaded)?, tasks, &progress)?;
        progress.finish();
        Ok(())
    }
}

/// How many images such slots have.
fn images_in(slots: &Slots) -> u64 {
    slots.values().map(|slots| slots.len() as u64).sum()
}
