//! `evaluate generate`: an image for every model, prompt and seed.
//!
//! The output folder holds `manifest.json`, which is written first, and
//! `images/MODEL/PROMPT_ID/SEED.png`. An image appears under its name only when complete and
//! synced. What is generated together follows from the whole list of jobs, whatever of it is there
//! already: so a run that is killed at any instant is finished by the same command, with the same
//! bytes.

mod generator;
mod image;
mod manifest;
mod model;
mod work;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt::Write as _;
use std::io::ErrorKind;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use nn::device::Precision;
use nn::schedule::SamplerKind;
use runkit::lock::OutputLock;
use runkit::logging::tenths;
use runkit::output::foreign;
use runkit::signals::{Signal, StopFlag};
use tch::Device;

use self::generator::Generator;
pub use self::image::{PARAMETERS_KEY, RECIPE_KEY};
pub use self::manifest::Manifest;
use self::model::Model;
pub use self::model::ModelRecord;
use self::work::{Steps, Work, warn_truncated};
use crate::prompts::{self, Limits, Prompt, PromptSource};
use crate::sources::{ModelSource, Size, is_name};

const PROGRAM: &str = "evaluate";
const VERSION: &str = env!("CARGO_PKG_VERSION");
const MANIFEST: &str = "manifest.json";
const SETTINGS: &str = "config.toml";

/// Pixels generated together where nothing else is said: one image of Stable Diffusion 1.5 on a CPU.
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
    pub steps: usize,
    /// Guidance scale, if not the family's own.
    pub guidance: Option<f64>,
    /// How noise is taken away, if not the model's own way.
    pub scheduler: Option<SamplerKind>,
    /// Height and width, if not the model's own.
    pub size: Option<Size>,
    /// What to keep away from. None and the empty text are not the same to SDXL.
    pub negative_prompt: Option<String>,
    /// Images generated together, if not the default.
    pub batch_size: Option<usize>,
    /// Where the networks compute.
    pub device: Device,
    /// In which type.
    pub precision: Precision,
    /// How many prompts of each set.
    pub limits: Limits,
    /// Remove what an earlier run left.
    pub fresh: bool,
    /// The settings it was made from as TOML with absolute paths, saved beside the output.
    pub saved_settings: String,
}

/// How a run ended.
#[derive(Debug)]
pub enum End {
    /// All images are there.
    Done {
        /// Images of this command.
        images: usize,
        /// Those of them that were generated now.
        generated: usize,
    },
    /// A signal came.
    Stopped(Signal),
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
pub fn run(config: &Config, stop: &StopFlag) -> Result<End> {
    let prompts = prompts::read_limited(&config.prompts, config.limits)?;
    let generation = Generation::open(config, &prompts)?;
    if let Some(signal) = generation.try_others(stop)? {
        return Ok(End::Stopped(signal));
    }
    generation.run(stop)
}

/// What is to be generated, with everything opened that it needs. Nothing is written before
/// [`Generation::run`].
pub struct Generation<'run> {
    config: &'run Config,
    prompts: &'run [Prompt],
    models: Vec<Model>,
    jobs: Vec<Job<'run>>,
    manifest: Manifest,
}

/// How long a model takes, measured on its first batch.
#[derive(Debug, Clone, Copy)]
struct Speed {
    /// Seconds of a call of the UNet for a whole batch.
    call: f64,
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
    /// What is wrong with a model, before its weights are loaded, or with the folder.
    pub fn open(config: &'run Config, prompts: &'run [Prompt]) -> Result<Self> {
        super::output::check_writable(&config.out)?;
        let models = Model::open_all(config)?;
        let jobs = jobs(prompts, config.seeds.clone());
        let manifest = Manifest::new(config, &models, prompts);
        let mut generation = Self { config, prompts, models, jobs, manifest };
        generation.manifest = generation.joined()?;
        super::output::check_space(&config.out, generation.bytes())?;
        Ok(generation)
    }

    /// The manifest of the folder after this run.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
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
        match Manifest::read(&out.join(MANIFEST))? {
            Some(_) if self.config.fresh => Ok(self.manifest.clone()),
            Some(earlier) => join(self.manifest.clone(), earlier, out),
            None => {
                refuse_foreign_images(out, &self.models)?;
                // The manifest is written first: without it, settings are somebody else's.
                let settings = out.join(SETTINGS);
                if settings.symlink_metadata().is_ok() {
                    return Err(foreign("--out", &settings, "settings of evaluate").into());
                }
                Ok(self.manifest.clone())
            }
        }
    }

    fn work(&self) -> Vec<Work<'_>> {
        self.models.iter().map(|model| Work::find(self.config, model, &self.jobs)).collect()
    }

    /// Loads the networks of every model but the one that [`Generation::run`] begins with, and drops
    /// them: a checkpoint that does not fit is found before hours of work with another one.
    ///
    /// # Errors
    /// What is wrong with a checkpoint.
    pub fn try_others(&self, stop: &StopFlag) -> Result<Option<Signal>> {
        for work in self.work().iter().filter(|work| work.missing > 0).skip(1) {
            Generator::load(work.model, self.config)?;
            if let Some(signal) = stop.requested() {
                return Ok(Some(signal));
            }
        }
        Ok(None)
    }

    /// What [`Generation::run`] would do, in sentences. The networks of every model are loaded and
    /// timed; nothing is written.
    ///
    /// # Errors
    /// What is wrong with a checkpoint.
    pub fn dry_run(&self) -> Result<String> {
        let mut sets = BTreeMap::<&str, usize>::new();
        for prompt in self.prompts {
            *sets.entry(&prompt.set).or_default() += 1;
        }
        let sets: Vec<String> =
            sets.iter().map(|(set, prompts)| format!("{prompts} prompts of {set}")).collect();
        let seeds = self.config.seeds.clone().count();
        let mut text = format!("{}, {seeds} images each\n", sets.join(", "));
        let mut seconds = 0.0;
        for work in self.work() {
            let record = &work.model.record;
            let _infallible = writeln!(
                text,
                "{}: {} of {} images to generate at {}, {} steps of {}, guidance {}, {} together",
                work.model.name,
                work.missing,
                self.jobs.len(),
                record.size,
                self.config.steps,
                record.scheduler,
                record.guidance,
                work.batch_size
            );
            let speed = match work.batches.first() {
                None => None,
                Some((batch, _)) => Generator::load(work.model, self.config)?.time(batch)?,
            };
            if let Some(Speed { call }) = speed {
                let calls = (work.batches.len() * work.model.calls) as f64;
                seconds += call * calls;
            }
        }
        let megabytes = self.bytes() as f64 / 1e6;
        let free = runkit::files::free_space(&self.config.out)? as f64 / 1e9;
        let _infallible = writeln!(
            text,
            "disk: about {megabytes:.1} MB needed for images, {free:.1} GB free\ntime: about {} to \
             generate",
            super::output::duration(seconds)
        );
        Ok(text)
    }

    /// Generates what is missing, until it is done or stopped.
    ///
    /// # Errors
    /// What is wrong with a checkpoint or the output.
    pub fn run(mut self, stop: &StopFlag) -> Result<End> {
        let config = self.config;
        runkit::files::create_folder(&config.out)?;
        let _lock = OutputLock::exclusive(config.out.join(".lock"))?;
        // Another run may have been at work since it was opened.
        self.manifest = self.joined()?;
        let images = self.jobs.len() * self.models.len();
        let missing = self.missing();
        if missing == 0 {
            tracing::info!(images = images, "already complete");
            write_manifest(config, &self.manifest)?;
            return Ok(End::Done { images, generated: 0 });
        }
        // The networks of the first model are loaded before anything is removed or written: a model
        // that cannot be loaded leaves no trace.
        let load = |model| {
            let loading = Instant::now();
            Ok::<_, anyhow::Error>((Generator::load(model, config)?, loading.elapsed()))
        };
        let mut first = match self.work().iter().find(|work| work.missing > 0) {
            Some(work) => Some(load(work.model)?),
            None => None,
        };
        if config.fresh
            && let Some(earlier) = Manifest::read(&config.out.join(MANIFEST))?
        {
            delete_images(&config.out, &earlier)?;
        }
        write_manifest(config, &self.manifest)?;
        let work = self.work();
        warn_truncated(config, &work);
        let started = Instant::now();
        let progress = Steps::new(images, &work);
        for work in work.iter().filter(|work| work.missing > 0) {
            let (mut generator, loading) = match first.take() {
                Some(loaded) => loaded,
                None => load(work.model)?,
            };
            tracing::info!(
                model = work.model.name,
                images = work.missing,
                size = %work.model.record.size,
                steps = config.steps,
                scheduler = %work.model.record.scheduler,
                batch_size = work.batch_size,
                loading_seconds = tenths(loading),
                "Loaded {} in {:.1} s",
                work.model.name,
                loading.as_secs_f64()
            );
            if let Some(signal) = work.generate(&mut generator, config, &progress, stop)? {
                return Ok(End::Stopped(signal));
            }
        }
        let rate = missing as f64 / started.elapsed().as_secs_f64();
        tracing::info!("{rate:.3} images/s, loading included");
        progress.bar.finish();
        Ok(End::Done { images, generated: missing })
    }
}

/// All jobs of one model: the seeds of each prompt follow each other. Prompts of two sets that are
/// one image are one job.
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

/// The manifest is written before any image: images without one are somebody else's.
fn refuse_foreign_images(out: &Path, models: &[Model]) -> Result<()> {
    let mut folders = models.iter().map(|model| images_folder(out).join(&model.name));
    if let Some(folder) = folders.find(|folder| folder.exists()) {
        bail!(
            "{} exists, but {MANIFEST}, which would say what it holds, does not; hint: choose \
             another --out",
            folder.display()
        );
    }
    Ok(())
}

/// Removes the images that a manifest speaks of, and no other file. The manifest stays until it is
/// replaced.
fn delete_images(out: &Path, manifest: &Manifest) -> Result<()> {
    let failed = |path: &Path| format!("{}: cannot be removed", path.display());
    let remove = |path: &Path| match std::fs::remove_file(path) {
        Err(error) if !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            Err(error).with_context(|| failed(path))
        }
        _ => Ok(()),
    };
    // A folder that holds something else stays.
    let remove_folder = |path: &Path| match std::fs::remove_dir(path) {
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            Err(error).with_context(|| failed(path))
        }
        _ => Ok(()),
    };
    let ids: BTreeSet<&String> = manifest.prompts.values().flat_map(BTreeMap::keys).collect();
    for name in manifest.models.keys() {
        // Names become paths: they must be such as this program gives.
        let plain = |id: &str| !id.is_empty() && !id.starts_with('.') && !id.contains('/');
        ensure!(
            is_name(name) && ids.iter().all(|id| plain(id)),
            "{}: the manifest is not one of this program",
            out.display()
        );
        let model = images_folder(out).join(name);
        for id in &ids {
            let folder = model.join(id);
            runkit::files::remove_stale_temporaries(&folder)?;
            for seed in &manifest.seeds {
                remove(&folder.join(format!("{seed}.png")))?;
            }
            remove_folder(&folder)?;
        }
        remove_folder(&model)?;
    }
    Ok(())
}

/// The manifest, and the resolved settings as a valid `--config` themselves.
fn write_manifest(config: &Config, manifest: &Manifest) -> Result<()> {
    runkit::files::remove_stale_temporaries(&config.out)?;
    let mut text = serde_json::to_string_pretty(manifest)?;
    text.push('\n');
    write_if_other(&config.out.join(MANIFEST), &text)?;
    write_if_other(&config.out.join(SETTINGS), &config.saved_settings)
}

fn write_if_other(path: &Path, text: &str) -> Result<()> {
    if std::fs::read(path).is_ok_and(|found| found == text.as_bytes()) {
        return Ok(());
    }
    image::write(path, text.as_bytes())
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
