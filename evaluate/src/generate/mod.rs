//! `evaluate generate`: an image for every model, prompt and seed.
//!
//! The output folder holds `manifest.json`, which is written first, and
//! `images/MODEL/PROMPT_ID/SEED.png`. An image appears under its name only when complete and
//! synced.
//! Batches are formed from the full list of jobs, regardless of which images already exist: so a
//! run that is killed at any instant is finished by the same command, with the same bytes; and
//! several processes that divide the batches ([`crate::sharing`]) make the bytes of one.

mod generator;
mod image;
mod manifest;
mod model;
mod plan;
mod run;
mod work;

use std::collections::HashSet;
use std::ops::ControlFlow::{Break, Continue};
use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use nn::device::Precision;
use nn::schedule::SamplerKind;
use runkit::output::foreign;
use runkit::run_folder::{FolderKind, MANIFEST};
use runkit::settings::FILE as SETTINGS;
use runkit::signals::{StopFlag, Stoppable};
use serde::Serialize;
use serde_json::{Value, json};
use tch::Device;

use self::generator::Generator;
pub use self::image::{PARAMETERS_KEY, RECIPE_KEY};
pub use self::manifest::Manifest;
use self::model::Model;
pub use self::model::ModelRecord;
pub use self::plan::{GenerationPlan, ModelPlan};
use self::work::{Work, common_multiple};
use crate::prompts::{self, Limits, Prompt, PromptSource};
use crate::sharing::Sharing;
use crate::sources::{ModelSource, Size};

const PROGRAM: &str = "evaluate";
const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The folder of an evaluation. Other commands write into it as well.
pub(crate) const FOLDER: FolderKind = FolderKind {
    name: "generated images",
    flag: "--out",
    lock: ".lock",
    is_ours: |manifest| manifest["program"] == PROGRAM,
    numerics: &[],
    notes: &[],
    hint: None,
};

/// Pixels of a default batch: one image of Stable Diffusion 1.5 on a CPU.
const BATCH_PIXELS_CPU: i64 = 512 * 512;
const BATCH_PIXELS_CUDA: i64 = 16 * BATCH_PIXELS_CPU;
const LARGEST_DEFAULT_BATCH: i64 = 64;

/// A validated run.
#[derive(Debug, Clone)]
pub struct Config {
    /// The models.
    pub models: Vec<ModelSource>,
    /// Files of prompts.
    pub prompts: Vec<PromptSource>,
    /// The folder to write.
    pub out: PathBuf,
    /// The seeds of each prompt.
    pub seeds: Range<u64>,
    /// Denoising steps.
    #[doc(alias = "num_inference_steps")]
    pub steps: usize,
    /// Classifier-free guidance scale, if not the family's own.
    #[doc(alias = "guidance_scale")]
    pub guidance: Option<f64>,
    /// The scheduler, if not the model's own.
    pub scheduler: Option<SamplerKind>,
    /// Height and width, if not the model's own.
    pub size: Option<Size>,
    /// The negative prompt. None and the empty text are not the same to SDXL.
    pub negative_prompt: Option<String>,
    /// Images generated together, if not the default.
    pub batch_size: Option<usize>,
    /// Where the networks compute.
    pub device: Device,
    /// Their dtype.
    pub precision: Precision,
    /// How many prompts of each set.
    pub limits: Limits,
    /// Delete what an earlier run left.
    pub fresh: bool,
    /// The settings it was made from as TOML with absolute paths, saved beside the output.
    pub saved_settings: String,
}

/// What a run made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// Images of this command.
    pub images: usize,
    /// How many of them this run generated: all ranks together, or this shard.
    pub generated: usize,
    /// How many of them other shards have still to generate.
    pub missing: usize,
}

/// One image to generate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Job<'run> {
    prompt: &'run Prompt,
    seed: u64,
}

impl Config {
    /// `cpu` or `cuda`.
    fn device_kind(&self) -> &'static str {
        if self.device.is_cuda() { "cuda" } else { "cpu" }
    }

    fn batch_size(&self, size: Size) -> usize {
        let pixels = if self.device.is_cuda() { BATCH_PIXELS_CUDA } else { BATCH_PIXELS_CPU };
        let default = (pixels / (size.height * size.width)).clamp(1, LARGEST_DEFAULT_BATCH);
        self.batch_size.unwrap_or(usize::try_from(default).unwrap_or(1))
    }

    fn image_path(&self, model: &Model, job: &Job<'_>) -> PathBuf {
        self.prompt_folder(model, job.prompt).join(format!("{}.png", job.seed))
    }

    fn prompt_folder(&self, model: &Model, prompt: &Prompt) -> PathBuf {
        images_folder(&self.out).join(&model.name).join(&prompt.id)
    }
}

/// Where the images of an output folder are.
#[must_use]
pub fn images_folder(out: &Path) -> PathBuf {
    out.join("images")
}

/// Runs `config` until it is done or stopped.
///
/// # Errors
/// One sentence about what is wrong with a model, the prompts, the output, or an earlier run of
/// another recipe.
pub fn run(config: &Config, sharing: &Sharing, stop: &StopFlag) -> Result<Stoppable<Summary>> {
    let prompts = prompts::read_limited(&config.prompts, config.limits)?;
    let generation = Generation::open(config, &prompts)?;
    let command = json!({ "command": "generate", "images": generation.command()? });
    if let Break(signal) = generation.try_others(stop)? {
        return Ok(Break(signal));
    }
    let held = sharing.enter(&config.out, &command)?;
    let end = generation.run(&held, stop)?;
    if let Continue(Summary { missing: 0, .. }) = end
        && sharing.is_first()
    {
        held.tidy()?;
    }
    Ok(end)
}

/// What is to be generated, with everything opened that it needs. Nothing is written before
/// `Generation::run`.
pub struct Generation<'run> {
    config: &'run Config,
    prompts: &'run [Prompt],
    models: Vec<Model>,
    jobs: Vec<Job<'run>>,
    manifest: Manifest,
    /// What this run alone asks for.
    asked: Manifest,
    /// Images of a batch of scoring, if the images are scored next.
    scored_together: Option<usize>,
}

impl std::fmt::Debug for Generation<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut shown = formatter.debug_struct("Generation");
        shown.field("config", self.config).field("manifest", &self.manifest).finish_non_exhaustive()
    }
}

impl<'run> Generation<'run> {
    /// Opens every model and compares the run with what the folder holds.
    ///
    /// # Errors
    /// If a model or the folder is unusable, before any weights are loaded.
    pub fn open(config: &'run Config, prompts: &'run [Prompt]) -> Result<Self> {
        super::output::check_writable(&config.out)?;
        let models = Model::open_all(config)?;
        let jobs = jobs(prompts, config.seeds.clone());
        let manifest = Manifest::new(config, &models, prompts);
        let (asked, scored_together) = (manifest.clone(), None);
        let mut generation =
            Self { config, prompts, models, jobs, manifest, asked, scored_together };
        generation.manifest = generation.joined()?;
        super::output::check_space(&config.out, generation.bytes())?;
        Ok(generation)
    }

    /// The manifest of the folder after this run.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Says that the images are scored next, this many together: then a shard generates whole
    /// batches of scoring, and need not wait for others before it scores them.
    pub(crate) fn score_together(&mut self, images: usize) {
        self.scored_together = Some(images);
    }

    /// For each model, how many of its images follow each other in one unit of a shard.
    pub(crate) fn images_of_unit(&self) -> Vec<(String, usize)> {
        let of_model = |model: &Model| {
            let batch = self.config.batch_size(model.record.size);
            let images =
                self.scored_together.map_or(batch, |images| common_multiple(batch, images));
            (model.name.clone(), images)
        };
        self.models.iter().map(of_model).collect()
    }

    /// Everything that the images depend on, for [`Sharing::enter`].
    pub(crate) fn command(&self) -> Result<Value> {
        let mut command = serde_json::to_value(&self.asked)?;
        let of_model =
            |model: &Model| (model.name.clone(), self.config.batch_size(model.record.size).into());
        command["batch_size"] = Value::Object(self.models.iter().map(of_model).collect());
        for prompts in command["prompts"].as_object_mut().into_iter().flatten() {
            *prompts.1 = runkit::manifest::fingerprint(&prompts.1)?.into();
        }
        Ok(command)
    }

    /// How many images are to be generated.
    #[must_use]
    pub fn missing(&self) -> usize {
        self.work().iter().map(|work| work.missing).sum()
    }

    /// Bytes that the images will take, generously: a PNG of noise has three a pixel.
    fn bytes(&self) -> u64 {
        const BYTES_OF_PIXEL: u64 = 2;
        let pixels = |size: Size| size.height.unsigned_abs() * size.width.unsigned_abs();
        let of_work =
            |work: &Work<'_>| work.missing as u64 * BYTES_OF_PIXEL * pixels(work.model.record.size);
        self.work().iter().map(of_work).sum()
    }

    /// The run's manifest together with what the folder holds.
    fn joined(&self) -> Result<Manifest> {
        let out = &self.config.out;
        let Some(earlier) = Manifest::of_folder(out)? else {
            let foreign = refuse_foreign(out, &self.models);
            // Another process of this command may have begun meanwhile: with the manifest.
            return match foreign {
                Err(_) if Manifest::of_folder(out)?.is_some() => self.joined(),
                _ => foreign.map(|()| self.manifest.clone()),
            };
        };
        match self.config.fresh {
            true => Ok(self.manifest.clone()),
            false => join(self.manifest.clone(), earlier, out),
        }
    }

    fn work(&self) -> Vec<Work<'_>> {
        self.models.iter().map(|model| Work::find(self.config, model, &self.jobs)).collect()
    }

    /// Loads the networks of every model but the one that `Generation::run` begins with, and
    /// drops them: a checkpoint that does not fit is found before hours of work with another one.
    ///
    /// # Errors
    /// If a checkpoint cannot be loaded.
    pub fn try_others(&self, stop: &StopFlag) -> Result<Stoppable> {
        for work in self.work().iter().filter(|work| work.missing > 0).skip(1) {
            Generator::load(work.model, self.config)?;
            if let Break(signal) = stop.flow() {
                return Ok(Break(signal));
            }
        }
        Ok(Continue(()))
    }
}

/// All jobs of one model: the seeds of each prompt follow each other. If two sets share a prompt,
/// its images are one job.
fn jobs(prompts: &[Prompt], seeds: Range<u64>) -> Vec<Job<'_>> {
    let mut seen = HashSet::new();
    let distinct = prompts.iter().filter(|prompt| seen.insert(prompt.id.as_str()));
    distinct.flat_map(|prompt| seeds.clone().map(move |seed| Job { prompt, seed })).collect()
}

/// The manifest of the folder after this run.
fn join(manifest: Manifest, earlier: Manifest, out: &Path) -> Result<Manifest> {
    const SHOWN: usize = 8;
    manifest.joined(earlier).or_else(|differences| {
        let mut lines: Vec<String> =
            differences.iter().take(SHOWN).map(|difference| format!("  {difference}")).collect();
        if differences.len() > SHOWN {
            lines.push(format!("  and {} more", differences.len() - SHOWN));
        }
        bail!(
            "{} holds images of another recipe, which differs from this one:\n{}\n\
             hint: choose another --out, or start over with --fresh",
            out.display(),
            lines.join("\n")
        )
    })
}

/// The manifest is written first: images and settings without one are somebody else's.
fn refuse_foreign(out: &Path, models: &[Model]) -> Result<()> {
    let mut folders = models.iter().map(|model| images_folder(out).join(&model.name));
    if let Some(folder) = folders.find(|folder| folder.exists()) {
        bail!(
            "{} exists, but {MANIFEST}, which would say what it holds, does not; hint: choose \
             another --out",
            folder.display()
        );
    }
    let settings = out.join(SETTINGS);
    match settings.symlink_metadata().is_ok() {
        true => Err(foreign("--out", &settings, "settings of evaluate").into()),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prompt(id: &str, set: &str) -> Prompt {
        Prompt { id: id.to_owned(), text: "a fox".to_owned(), category: None, set: set.to_owned() }
    }

    #[test]
    fn seeds_of_a_prompt_follow_each_other_and_shared_prompts_are_generated_once() {
        let prompts =
            [prompt("00001-a", "one"), prompt("00002-b", "one"), prompt("00001-a", "two")];
        let jobs = jobs(&prompts, 3..5);
        let listed: Vec<(&str, u64)> =
            jobs.iter().map(|job| (job.prompt.id.as_str(), job.seed)).collect();
        assert_eq!(listed, [("00001-a", 3), ("00001-a", 4), ("00002-b", 3), ("00002-b", 4)]);
    }
}
