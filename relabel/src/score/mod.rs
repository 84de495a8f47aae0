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
mod external;
mod finish;
mod manifest;
mod merge;
mod networks;
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

use std::path::PathBuf;

use anyhow::{Result, ensure};
use locations::Location;
use runkit::files::FileHashes;
use runkit::logging::counted;
use runkit::signals::StopFlag;
use schemas::layouts::Layout;
use schemas::pairs::{InputFile, discover_as};
use scorers::{Compute, DescribedScorers, ScorerError, ScorersConfig, ScorersManifest};

pub use self::captions::CaptionText;
pub use self::manifest::{KEY_MEMORY, Manifest};
use self::networks::Networks;
use self::output::{Found, Output};
pub(crate) use self::output::{labels_output, manifest_of_labels};
use self::part::ScorerKey;
use self::plan::{Plan, PlanOptions};
pub use self::rehearsal::{Need, Rehearsal, Requests, rehearse};
use self::reuse::Reuse;
pub use self::reuse::Reused;
pub use self::room::Room;
pub use self::sharing::Sharing;
use self::sharing::{Member, Says};
use self::todo::{Group, Todo};
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
    /// The budget of a scorer outside of the process is spent; what there is stays in the work
    /// folder.
    OutOfRequests(ScorerError),
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
    let end = member.work(|| {
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
    });
    end.or_else(|error| match error.downcast::<ScorerError>() {
        Ok(spent @ ScorerError::OutOfRequests { .. }) => Ok(End::OutOfRequests(spent)),
        Ok(error) => Err(error.into()),
        Err(error) => Err(error),
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
            external::rehearse(&run)?;
            networks.load(&run, &group.scorers.clone())?;
        }
        let new_plan = is_new.then_some((&run.plan, options));
        output.begin(&run.manifest, inputs, &run.hashes, new_plan)?;
        Ok(Opened { run, networks, todo, is_complete: false })
    }
}
