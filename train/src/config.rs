//! Settings as typed, over recipes and defaults, to a run that makes sense.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nn::device::{self, DeviceChoice, Precision};
use nn::optimizer::OptimizerKind;
use runkit::program::UsageError;
use tch::Device;

use crate::cli::{RunArguments, RunSettings};
use crate::learning_rate::{LearningRate, Schedule};
use crate::loss_scale::LossScaling;
use crate::optimizer::OptimizerConfig;
use crate::preference::{Preference, Ties};
use crate::recipe;

/// Pairs computed at once where nothing else is said: more is hardly faster at the published sizes.
const LARGEST_DEFAULT_MICRO_BATCH: u64 = 4;
/// Threads that decode ahead of a GPU, at most: one decodes and resizes some 80 pairs a second.
const DATA_THREADS_CUDA: usize = 8;
/// More beside libtorch's own threads would slow both down.
const DATA_THREADS_CPU: usize = 1;

/// Pairs of the probe, at most: they stay on the device, with SDXL some 6 MB for each.
const MOST_PROBE_PAIRS: u64 = 1024;

/// A validated run.
#[derive(Debug, Clone)]
pub struct Config {
    /// The pipeline to train.
    pub model: PathBuf,
    /// Pairs, or what was made of them.
    pub source: Source,
    /// What is thought of them.
    pub labels: PathBuf,
    /// The folder to write.
    pub out: PathBuf,
    /// The checkpoint to begin with; none for the base model.
    pub from: Option<PathBuf>,
    /// The list of pairs without weight.
    pub skip_pairs: Option<PathBuf>,
    /// What decides which image is better.
    pub preference: Preference,
    /// What becomes of ties.
    pub ties: Ties,
    /// Whether pairs that people found equal are left out.
    pub drop_human_ties: bool,
    /// Steps between refreshes of the reference; 0 for none.
    pub reference_every: u64,
    /// β, with the factor of one half.
    pub beta: f64,
    /// Optimizer steps.
    pub steps: u64,
    /// Pairs of an optimizer step.
    pub batch_size: u64,
    /// Pairs computed at once.
    pub micro_batch: u64,
    /// The rate of every step, `scale_lr` applied.
    pub learning_rate: LearningRate,
    /// The optimizer.
    pub optimizer: OptimizerConfig,
    /// The largest norm of gradients; none for any.
    pub max_grad_norm: Option<f64>,
    /// What the loss is multiplied by.
    pub loss_scaling: LossScaling,
    /// Share of captions that are dropped.
    pub caption_dropout: f64,
    /// Height and width of images; none for the model's own.
    pub resolution: Option<i64>,
    /// Whether images are flipped at random.
    pub hflip: bool,
    /// Whether images are cropped at random.
    pub random_crop: bool,
    /// Whether activations are computed again.
    pub grad_checkpointing: bool,
    /// Seed of everything random.
    pub seed: u64,
    /// Steps between checkpoints.
    pub checkpoint_every: u64,
    /// The time after which there is a checkpoint whatever the step; none for no such.
    pub checkpoint_after: Option<Duration>,
    /// Checkpoints kept.
    pub keep: usize,
    /// Steps that are recorded.
    pub record_steps: u64,
    /// Pairs of the probe.
    pub probe_pairs: u64,
    /// Steps between probes; 0 for none.
    pub probe_every: u64,
    /// What sample images are drawn.
    pub samples: Samples,
    /// Device.
    pub device: Device,
    /// What networks compute in.
    pub precision: Precision,
    /// Threads that decode.
    pub data_threads: usize,
    /// Bytes read ahead.
    pub data_memory: u64,
    /// Whether what an earlier run left is removed.
    pub fresh: bool,
    /// What it was made from, saved beside the output.
    pub settings: RunSettings,
}

/// The file beside the output that holds the settings as resolved, a valid `--config`.
pub const FILE: &str = "config.toml";

/// Where images and captions come from.
#[derive(Debug, Clone)]
pub enum Source {
    /// Parquet files of pairs.
    Pairs {
        /// Files, folders and patterns.
        pairs: Vec<PathBuf>,
        /// The splits to take of them; none for all, which must be one.
        splits: Vec<String>,
    },
    /// A folder of `train cache`.
    Cache(PathBuf),
}

/// Which sample images are drawn.
#[derive(Debug, Clone)]
pub struct Samples {
    /// Steps from one set to the next; 0 for none.
    pub every: u64,
    /// The prompts, a line each; none for captions of the probe.
    pub prompts: Option<PathBuf>,
    /// Denoising steps.
    pub steps: usize,
    /// Guidance; none for the pipeline's usual one.
    pub guidance: Option<f64>,
}

/// The settings from flags, environment, file and recipes, with defaults.
///
/// # Errors
/// Where a file cannot be read, or a name is unknown.
pub fn settings(arguments: &RunArguments) -> Result<RunSettings> {
    arguments.settings.refuse_non_finite().map_err(UsageError::of)?;
    let settings = match &arguments.config {
        Some(file) => {
            let mut from_file: RunSettings = runkit::config::read_toml(file)?;
            from_file.refuse_non_finite().with_context(|| file.display().to_string())?;
            from_file.resolve_paths(file.parent().unwrap_or(Path::new("")));
            // A source on the command line stands in for that of the file, whichever it is.
            if arguments.settings.pairs.is_some() || arguments.settings.cache.is_some() {
                from_file.pairs = None;
                from_file.cache = None;
                from_file.split = None;
            }
            runkit::config::merge(&arguments.settings, &from_file)?
        }
        None => arguments.settings.clone(),
    };
    let below = recipe::settings(settings.recipe.as_deref().unwrap_or_default())?;
    runkit::config::merge(&settings, &below)?.with_defaults()
}

impl Config {
    /// Whether the probe is looked at, and the distance from the reference measured, after a step: every
    /// so many steps and at the end.
    pub fn measures_after(&self, step: u64) -> bool {
        let every = self.probe_every;
        every > 0 && (step.is_multiple_of(every) || step == self.steps)
    }

    /// What is to be said of a run that ends before its learning rate has come to its height.
    pub fn short_of_warm_up(&self) -> Option<String> {
        let highest = self.learning_rate.at(self.steps.saturating_sub(1));
        let peak = self.learning_rate.peak();
        (self.learning_rate.warmup_steps() >= self.steps && highest < peak).then(|| {
            format!(
                "warm-up takes {} steps of {}: the learning rate comes to {highest:e} of {peak:e}; \
                 hint: a smaller --warmup-steps",
                self.learning_rate.warmup_steps(),
                self.steps
            )
        })
    }

    /// Checks settings that [`settings`] completed.
    ///
    /// # Errors
    /// Where one is missing, impossible, or does not go with another.
    pub fn new(settings: &RunSettings, fresh: bool) -> Result<Self> {
        let pairs = settings.pairs.clone().filter(|pairs| !pairs.is_empty());
        runkit::program::require(&[
            ("--model <DIR>", settings.model.is_some()),
            ("--pairs <PATH>... (or --cache <DIR>)", pairs.is_some() || settings.cache.is_some()),
            ("--labels <FILE.parquet>", settings.labels.is_some()),
            ("--out <DIR>", settings.out.is_some()),
        ])?;
        let model = settings.model.clone().unwrap_or_default();
        let labels = settings.labels.clone().unwrap_or_default();
        let out = settings.out.clone().unwrap_or_default();
        let source = match (pairs, settings.cache.clone()) {
            (Some(_), Some(_)) => {
                anyhow::bail!("both pairs and a cache are given; hint: name one of them")
            }
            (None, Some(cache)) => {
                ensure!(
                    settings.split.is_none(),
                    "--split goes with --pairs; hint: a cache holds the split it was made of"
                );
                Source::Cache(cache)
            }
            (pairs, None) => Source::Pairs {
                pairs: pairs.unwrap_or_default(),
                splits: settings.split.clone().unwrap_or_default(),
            },
        };

        let steps = positive("--steps", settings.steps)?;
        let batch_size = positive("--batch-size", settings.batch_size)?;
        let micro_batch = positive("--micro-batch", settings.micro_batch)?;
        ensure!(
            batch_size % micro_batch == 0,
            "--batch-size {batch_size} is not a multiple of --micro-batch {micro_batch}; hint: --micro-batch {}",
            largest_divisor(batch_size, micro_batch)
        );
        steps
            .checked_mul(batch_size)
            .filter(|pairs| i64::try_from(*pairs).is_ok())
            .with_context(|| {
                format!("--steps {steps} of --batch-size {batch_size} are more pairs than can be counted")
            })?;
        let rate = number("--lr", settings.lr, 0.0..f64::INFINITY)?;
        let scale = if settings.scale_lr.unwrap_or(true) { batch_size as f64 } else { 1.0 };
        let learning_rate = LearningRate::new(
            settings.lr_schedule.unwrap_or_default(),
            rate * scale,
            settings.warmup_steps.unwrap_or(0),
            steps,
        )?;
        let beta = number("--beta", settings.beta, f64::MIN_POSITIVE..f64::INFINITY)?;
        let below_one = 0.0..1.0;
        let betas = [
            number("--adam-beta1", settings.adam_beta1, below_one.clone())?,
            number("--adam-beta2", settings.adam_beta2, below_one)?,
        ];
        let positive_number = f64::MIN_POSITIVE..f64::INFINITY;
        let epsilon = number("--adam-epsilon", settings.adam_epsilon, positive_number)?;
        let weight_decay = number("--weight-decay", settings.weight_decay, 0.0..f64::INFINITY)?;
        let kind = settings.optimizer.unwrap_or(OptimizerKind::Adamw);
        let optimizer = OptimizerConfig { kind, betas, epsilon, weight_decay };
        let norm = number("--max-grad-norm", settings.max_grad_norm, 0.0..f64::INFINITY)?;
        let caption_dropout =
            number("--caption-dropout", settings.caption_dropout, 0.0..1.0 + 1e-9)?;
        let guidance = settings.sample_guidance;
        if guidance.is_some() {
            number("--sample-guidance", guidance, 0.0..f64::INFINITY)?;
        }
        if let Some(resolution) = settings.resolution {
            ensure!(resolution > 0, "--resolution {resolution} is not a size in pixels");
        }
        let device = device::parse(settings.device.as_deref().unwrap_or("auto"))?;
        let precision: Precision = settings.dtype.as_deref().unwrap_or("f32").parse()?;
        precision.check(device)?;
        let loss_scaling = settings.loss_scale.as_deref().unwrap_or("none").parse()?;
        let keep = settings.keep.unwrap_or(2);
        ensure!(keep > 0, "--keep 0 would leave nothing to go on from; hint: --keep 1");
        let minutes = number(
            "--checkpoint-minutes",
            settings.checkpoint_minutes.or(Some(0.0)),
            0.0..f64::INFINITY,
        )?;
        let probe_pairs = settings.probe_pairs.unwrap_or(0);
        ensure!(
            probe_pairs <= MOST_PROBE_PAIRS,
            "--probe-pairs {probe_pairs} would fill the device's memory; hint: at most {MOST_PROBE_PAIRS}"
        );
        let data_threads = settings.data_threads.unwrap_or(DATA_THREADS_CPU);
        ensure!(data_threads > 0, "--data-threads 0 decodes nothing; hint: leave it out");
        let data_memory = positive("--data-memory", settings.data_memory)?;
        Ok(Self {
            model,
            source,
            labels,
            out,
            from: settings.from.clone(),
            skip_pairs: settings.skip_pairs.clone(),
            preference: settings.preference.clone().unwrap_or_default(),
            ties: settings.ties.unwrap_or_default(),
            drop_human_ties: settings.drop_human_ties.unwrap_or(false),
            reference_every: settings.reference_every.unwrap_or(0),
            beta,
            steps,
            batch_size,
            micro_batch,
            learning_rate,
            optimizer,
            max_grad_norm: (norm > 0.0).then_some(norm),
            loss_scaling,
            caption_dropout,
            resolution: settings.resolution,
            hflip: settings.hflip.unwrap_or(false),
            random_crop: settings.random_crop.unwrap_or(false),
            grad_checkpointing: settings.grad_checkpointing.unwrap_or(false),
            seed: settings.seed.unwrap_or(0),
            checkpoint_every: positive("--checkpoint-every", settings.checkpoint_every)?,
            checkpoint_after: (minutes > 0.0)
                .then(|| Duration::try_from_secs_f64(60.0 * minutes).unwrap_or(Duration::MAX)),
            keep,
            record_steps: settings.record_steps.unwrap_or(0),
            probe_pairs,
            probe_every: settings.probe_every.unwrap_or(0),
            samples: Samples {
                every: settings.sample_every.unwrap_or(0),
                prompts: settings.sample_prompts.clone(),
                steps: settings.sample_steps.filter(|steps| *steps > 0).context(
                    "--sample-steps 0 takes no noise away; hint: --sample-every 0 draws no images",
                )?,
                guidance,
            },
            device,
            precision,
            data_threads,
            data_memory: data_memory.saturating_mul(1 << 20),
            fresh,
            settings: settings.clone(),
        })
    }
}

impl RunSettings {
    /// Refuses NaN and infinities by name: settings are laid over each other as JSON, which has none,
    /// and would take the default in silence.
    fn refuse_non_finite(&self) -> Result<()> {
        for (name, value) in [
            ("beta", self.beta),
            ("lr", self.lr),
            ("adam-beta1", self.adam_beta1),
            ("adam-beta2", self.adam_beta2),
            ("adam-epsilon", self.adam_epsilon),
            ("weight-decay", self.weight_decay),
            ("max-grad-norm", self.max_grad_norm),
            ("caption-dropout", self.caption_dropout),
            ("sample-guidance", self.sample_guidance),
            ("checkpoint-minutes", self.checkpoint_minutes),
        ] {
            let finite = value.is_none_or(f64::is_finite);
            ensure!(
                finite,
                "--{name} {} is not possible; expected a finite number",
                value.unwrap_or_default()
            );
        }
        Ok(())
    }

    /// Paths of a settings file are relative to it.
    fn resolve_paths(&mut self, folder: &Path) {
        self.change_paths(|path| runkit::path::resolve_in_place(path, folder));
    }

    /// The settings as they are saved: a valid `--config` wherever the file lies.
    #[must_use]
    pub fn with_absolute_paths(&self) -> Self {
        let mut settings = self.clone();
        settings.change_paths(|path| {
            if !runkit::path::is_address(path)
                && let Ok(absolute) = std::path::absolute(&*path)
            {
                *path = absolute;
            }
        });
        settings
    }

    fn change_paths(&mut self, change: impl Fn(&mut PathBuf)) {
        let single = [
            &mut self.model,
            &mut self.cache,
            &mut self.labels,
            &mut self.out,
            &mut self.from,
            &mut self.skip_pairs,
            &mut self.sample_prompts,
        ];
        single.into_iter().flatten().chain(self.pairs.iter_mut().flatten()).for_each(change);
    }

    /// Everything said that does not depend on the model or the data.
    fn with_defaults(mut self) -> Result<Self> {
        let device = self.device.as_deref().unwrap_or("auto");
        let choice: DeviceChoice = device.parse().map_err(UsageError::of)?;
        let on_gpu = choice.resolve()?.is_cuda();
        self.preference.get_or_insert_default();
        self.ties.get_or_insert_default();
        self.drop_human_ties.get_or_insert(false);
        self.reference_every.get_or_insert(100);
        self.beta.get_or_insert(5000.0);
        self.steps.get_or_insert(2000);
        let batch_size = *self.batch_size.get_or_insert(128);
        self.micro_batch.get_or_insert(largest_divisor(batch_size, LARGEST_DEFAULT_MICRO_BATCH));
        self.lr.get_or_insert(1e-8);
        self.scale_lr.get_or_insert(true);
        self.lr_schedule.get_or_insert(Schedule::ConstantWithWarmup);
        self.warmup_steps.get_or_insert(500);
        self.optimizer.get_or_insert(OptimizerKind::Adamw);
        self.adam_beta1.get_or_insert(0.9);
        self.adam_beta2.get_or_insert(0.999);
        self.adam_epsilon.get_or_insert(1e-8);
        self.weight_decay.get_or_insert(0.01);
        self.max_grad_norm.get_or_insert(1.0);
        self.caption_dropout.get_or_insert(0.2);
        self.hflip.get_or_insert(false);
        self.random_crop.get_or_insert(false);
        self.grad_checkpointing.get_or_insert(false);
        self.seed.get_or_insert(0);
        self.checkpoint_every.get_or_insert(500);
        self.checkpoint_minutes.get_or_insert(0.0);
        self.keep.get_or_insert(2);
        self.record_steps.get_or_insert(0);
        self.probe_pairs.get_or_insert(16);
        self.probe_every.get_or_insert(50);
        self.sample_every.get_or_insert(500);
        self.sample_steps.get_or_insert(25);
        self.device = Some(choice.to_string());
        let dtype = self.dtype.get_or_insert_with(|| "f32".to_owned());
        let usual = if dtype == "f16" { "dynamic" } else { "none" };
        let scaling: LossScaling =
            self.loss_scale.as_deref().unwrap_or(usual).parse().map_err(UsageError::of)?;
        self.loss_scale = Some(scaling.to_string());
        self.data_threads.get_or_insert_with(|| data_threads(on_gpu));
        self.data_memory.get_or_insert(1024);
        Ok(self)
    }
}

/// Threads that decode: of a machine with several GPUs, each with a process of its own, its share of the
/// cores.
fn data_threads(on_gpu: bool) -> usize {
    if !on_gpu {
        return DATA_THREADS_CPU;
    }
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let gpus = usize::try_from(tch::Cuda::device_count()).unwrap_or(1).max(1);
    cores_per_gpu(cores, gpus)
}

fn cores_per_gpu(cores: usize, gpus: usize) -> usize {
    (cores / gpus).clamp(1, DATA_THREADS_CUDA)
}

/// The largest divisor of `number` that is at most `limit`.
pub(crate) fn largest_divisor(number: u64, limit: u64) -> u64 {
    (1..=limit.clamp(1, 4096)).rev().find(|divisor| number.is_multiple_of(*divisor)).unwrap_or(1)
}

fn positive(flag: &str, value: Option<u64>) -> Result<u64> {
    let value = value.unwrap_or(0);
    ensure!(value > 0, "{flag} 0 does nothing; hint: leave it out for the default");
    Ok(value)
}

fn number(flag: &str, value: Option<f64>, range: std::ops::Range<f64>) -> Result<f64> {
    let value = value.unwrap_or(f64::NAN);
    ensure!(
        range.contains(&value),
        "{flag} {value} is not possible; expected {}",
        match (range.start == 0.0, range.end.is_finite()) {
            (true, true) => "a number from 0 to 1",
            (true, false) => "0 or a positive number",
            _ => "a positive number",
        }
    );
    Ok(value)
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::{Cli, Command};

    fn config(flags: &[&str]) -> Result<Config> {
        let fixed = ["train", "run", "--model", "m", "--pairs", "p", "--labels", "l", "--out", "o"];
        let cli = Cli::try_parse_from(fixed.iter().chain(flags))?;
        let Command::Run(arguments) = cli.command else { unreachable!() };
        Config::new(&settings(&arguments)?, arguments.fresh)
    }

    #[test]
    fn defaults_are_those_of_the_paper() {
        let config = config(&["--device", "cpu"]).unwrap();
        assert_eq!((config.steps, config.batch_size, config.micro_batch), (2000, 128, 4));
        assert_eq!((config.reference_every, config.beta), (100, 5000.0));
        assert!((config.learning_rate.peak() - 1.28e-6).abs() < 1e-18);
        assert_eq!(config.max_grad_norm, Some(1.0));
        assert_eq!(config.caption_dropout, 0.2);
    }

    #[test]
    fn flags_win_over_recipes_and_later_recipes_over_earlier_ones() {
        let given = ["--recipe", "sdxl,paper/hps-frozen", "--batch-size", "6", "--dtype", "f32"];
        let config = config(&given).unwrap();
        assert_eq!(config.preference, Preference::Scorer("hps".to_owned()));
        assert_eq!((config.reference_every, config.batch_size), (0, 6));
        assert_eq!((config.micro_batch, config.resolution), (1, Some(1024)));
        assert_eq!(config.max_grad_norm, None);
        assert!(config.grad_checkpointing && config.hflip);
    }

    #[test]
    fn what_makes_no_sense_is_one_sentence_with_the_flag() {
        for (flags, words) in [
            (vec!["--batch-size", "10", "--micro-batch", "4"], "--micro-batch 2"),
            (vec!["--batch-size", "0"], "--batch-size 0"),
            (vec!["--steps", "0"], "--steps 0"),
            (vec!["--beta", "nan"], "--beta NaN"),
            (vec!["--lr=-1"], "--lr -1"),
            (vec!["--caption-dropout", "1.5"], "from 0 to 1"),
            (vec!["--adam-beta2", "1"], "--adam-beta2 1"),
            (vec!["--keep", "0"], "--keep 1"),
            (vec!["--probe-pairs", "100000"], "at most 1024"),
            (vec!["--checkpoint-minutes=-1"], "--checkpoint-minutes -1"),
            (vec!["--recipe", "sd-15"], "did you mean sd15?"),
            (vec!["--dtype", "fp16"], "expected f32, bf16 or f16"),
            (vec!["--steps", "9999999999999999999"], "more pairs than can be counted"),
        ] {
            let message = format!("{:#}", config(&flags).unwrap_err());
            assert!(message.contains(words), "{flags:?}: {message}");
        }
    }

    #[test]
    fn processes_of_one_machine_share_its_cores() {
        assert_eq!(
            [(2, 1), (64, 1), (64, 8), (16, 8), (4, 8)].map(|(c, g)| cores_per_gpu(c, g)),
            [2, 8, 8, 2, 1]
        );
    }

    #[test]
    fn a_run_that_ends_in_its_warm_up_is_told() {
        let warning = |flags: &[&str]| config(flags).unwrap().short_of_warm_up();
        let short = warning(&["--steps", "200"]).unwrap();
        assert!(short.contains("500 steps of 200") && short.contains("of 1.28e-6"), "{short}");
        assert_eq!(warning(&["--steps", "501"]), None);
        assert_eq!(warning(&["--steps", "200", "--lr-schedule", "constant"]), None);
    }

    #[test]
    fn divisors() {
        assert_eq!(largest_divisor(128, 4), 4);
        assert_eq!(largest_divisor(6, 4), 3);
        assert_eq!(largest_divisor(7, 4), 1);
        assert_eq!(largest_divisor(10, 4), 2);
    }
}
