//! Everything a run does before its first part, for `relabel check`.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Result;
use runkit::signals::StopFlag;
use schemas::pairs::InputFile;
use scorers::{DescribedScorers, ScorersConfig, Sending};

use super::batches::Source;
use super::captions::CaptionFeatures;
use super::external::{self, Wants};
use super::networks::Loaded;
use super::output::{Output, folder_of};
use super::plan::{Plan, PlanOptions};
use super::{Config, Manifest, Reused, Room, Run, Todo, inputs, part, pipeline, refuse_nothing};

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
    /// Distinct images that this process has still to score.
    pub images_left: u64,
    /// What it would send to scorers outside of this process.
    pub requests: Vec<Requests>,
    /// What it takes on the disk.
    pub room: Room,
    /// The folder where the output goes; `None` if that is at an address.
    pub out: Option<PathBuf>,
    /// Free bytes there.
    pub free_bytes: Option<u64>,
    /// The folder that holds the work folder.
    pub work: PathBuf,
    /// Free bytes there.
    pub free_work_bytes: u64,
    /// Where scratch files go.
    pub scratch: PathBuf,
    /// Free bytes there.
    pub free_scratch_bytes: u64,
    /// Whether the run is new, resumes, grows, or is complete.
    pub output: String,
    /// The scores that are taken over from an earlier run.
    pub reused: Option<Reused>,
    /// The units of the run.
    pub units: usize,
}

/// What a run would send to an external scorer.
#[derive(Debug)]
pub struct Requests {
    /// The scorer.
    pub scorer: String,
    /// Requests or lines at most, without further attempts and without those that have answers.
    pub most: u64,
    /// Where they go, and what is there already.
    pub sending: Sending,
}

/// What a run takes in a folder.
#[derive(Debug, Clone, Copy)]
pub struct Need<'run> {
    /// The word for it.
    pub what: &'static str,
    /// What it is.
    pub of: &'static str,
    /// The folder.
    pub folder: &'run Path,
    /// Bytes.
    pub bytes: u64,
    /// Free bytes there.
    pub free: u64,
    /// What to do if they are too few.
    pub hint: &'static str,
}

impl Rehearsal {
    /// What the run takes, by folders: labels and unfinished work, or each of them, then scratch.
    #[must_use]
    pub fn needs(&self) -> Vec<Need<'_>> {
        let (room, work) = (&self.room, self.work.as_path());
        let elsewhere = "--work FOLDER on another disk";
        let mut needs = match (self.out.as_deref(), self.free_bytes) {
            (Some(folder), Some(free)) if folder != work => vec![
                Need {
                    what: "disk",
                    of: "about {} for labels",
                    folder,
                    bytes: room.labels,
                    free,
                    hint: "choose another --out",
                },
                Need {
                    what: "work",
                    of: "about {} for unfinished work",
                    folder: work,
                    bytes: room.work(),
                    free: self.free_work_bytes,
                    hint: elsewhere,
                },
            ],
            (out, _) => vec![Need {
                what: "disk",
                of: "about {} for labels and unfinished work",
                folder: work,
                bytes: room.labels + room.work(),
                free: self.free_work_bytes,
                hint: if out.is_some() { "choose another --out" } else { elsewhere },
            }],
        };
        needs.push(Need {
            what: "scratch",
            of: "{} for captions and their features",
            folder: &self.scratch,
            bytes: room.scratch(),
            free: self.free_scratch_bytes,
            hint: "--scratch FOLDER on another disk",
        });
        needs
    }

    /// How long the images that are left take.
    #[must_use]
    pub fn seconds_left(&self) -> Option<f64> {
        self.images_per_second.map(|rate| self.images_left as f64 / rate)
    }
}

/// Everything a run does before its first part, and a timed batch; writes nothing of the run.
///
/// # Errors
/// Whatever would stop the run itself.
pub fn rehearse(config: &Config, stop: &StopFlag) -> Result<Rehearsal> {
    let inputs = inputs(config)?;
    let scorers = ScorersConfig::read(&config.scorers)?;
    let output = Output::new(config);
    output.refuse_foreign(&inputs)?;
    output.refuse_replaced(&inputs)?;
    // The folder of the output need not exist yet.
    let scratch = config.scratch.clone().unwrap_or_else(std::env::temp_dir);
    let options = PlanOptions { marks: output.marks()?, ..config.plan_options() };
    let plan = match output.read_plan(&inputs, options, stop)? {
        Some(plan) => plan,
        None => {
            tracing::info!(files = inputs.len(), "planning");
            Plan::make(&inputs, options, &scratch, stop)?
        }
    };
    refuse_nothing(&plan)?;
    plan.say_layouts(config.layout);
    let mut hashes = output.read_hashes();
    let described = DescribedScorers::of_hashed(&scorers, config.compute, &mut hashes)?;
    let widths = described.text_widths();
    let planned = (plan, hashes);
    let mut run = Run::new(config, &output, &scorers, planned, described.manifest(), stop)?;
    let complete = run.look()?;
    if !complete {
        output.refuse_another_run(&run.manifest, &run.plan)?;
        output.try_writing()?;
    }
    let todo = Todo::find(&run)?;
    let loading = Instant::now();
    // Of a run that scores nothing all scorers are tried.
    let loads = run.groups.iter().find(|group| !group.is_read_alone());
    let all = vec![true; run.manifest.voters.len()];
    let Loaded { set, .. } = run.load(loads.map_or(&all, |group| &group.scorers))?;
    let loading = loading.elapsed();
    let plan = &run.plan;
    let count = plan.units.len();
    let mut done = 0;
    for index in 0..count {
        let path = part::path(&run.parts, index, count);
        done += usize::from(!config.fresh && part::is_done(&path, &run.part_key(index))?);
    }
    let state = match done {
        _ if complete => "complete; nothing to do".to_owned(),
        0 if run.reuse.is_some() && config.reuse.is_none() => "grows".to_owned(),
        0 => "new".to_owned(),
        done => format!("resumes, {done} of {count} units are done"),
    };
    let room = Room::of(plan, todo.units.iter().copied(), &widths, scorers.scorer.len());
    let mut captions = CaptionFeatures::new(plan, &set, &scratch, None, stop)?;
    let (batch_size, wants) = (config.batch_size, Wants::default());
    let source = Source { plan, batch_size, wants, stop };
    let images_per_second = pipeline::rate(source, &set, &mut captions)?;
    drop(captions);
    let requests = if complete { Vec::new() } else { external::rehearse(&run)? };
    let bytes = inputs.iter().map(InputFile::bytes);
    let input_bytes = bytes.sum::<std::result::Result<u64, _>>()?;
    let work = config.folder_of_work();
    let out = match &config.address {
        None => Some(folder_of(&config.out)),
        Some(_) => None,
    };
    let free_bytes = out.as_ref().map(runkit::files::free_space).transpose()?;
    Ok(Rehearsal {
        input_bytes,
        images: plan.images(),
        images_left: if complete { 0 } else { todo.images - todo.images_done },
        captions: plan.captions.len(),
        loading,
        images_per_second,
        requests,
        free_bytes,
        free_work_bytes: runkit::files::free_space(&work)?,
        out,
        work,
        free_scratch_bytes: runkit::files::free_space(config.scratch())?,
        scratch: config.scratch(),
        room,
        output: state,
        reused: run.reuse.as_ref().map(|reuse| reuse.summary(&run.manifest.voters)),
        units: count,
        manifest: run.manifest,
    })
}
