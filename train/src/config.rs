//! From settings as typed, over recipes and defaults, to a validated run.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nn::device::{self, DeviceChoice, Precision};
use nn::lora::{LoraConfig, Targets};
use runkit::launch::Launch;
use runkit::program::UsageError;
use runkit::settings::Settings as _;
use serde_json::Value;
use tch::Device;

use crate::adapter::{AdapterKind, DEFAULT_RANK, LoraResult};
use crate::cli::RunArguments;
use crate::data::PairInputs;
use crate::learning_rate::LearningRate;
use crate::loss::LossKind;
use crate::loss_scale::LossScaling;
use crate::optimizer::OptimizerConfig;
use crate::recipe;
use crate::settings::{self, Exported, RunOptions, RunSettings};

/// The default micro-batch at most: more pairs at once are hardly faster at the published sizes.
const LARGEST_DEFAULT_MICRO_BATCH: u64 = 4;
/// The default number of threads that decode for a GPU, at most: one decodes and resizes some 80
/// pairs a second.
const DATA_THREADS_CUDA: usize = 8;
/// The default on a CPU: more beside libtorch's own threads would slow both down.
const DATA_THREADS_CPU: usize = 1;
/// The largest probe: its pairs stay on the device, with SDXL some 6 MB each.
const MOST_PROBE_PAIRS: u64 = 1024;

/// The file beside the output that holds the resolved settings, a valid `--config`.
pub use runkit::settings::FILE;

/// A validated run.
#[derive(Debug, Clone)]
pub struct Config {
    /// The pipeline to train.
    pub model: PathBuf,
    /// Pairs, or the cache made from them.
    pub source: Source,
    /// The labels of the pairs.
    pub labels: PathBuf,
    /// The folder to write.
    pub out: PathBuf,
    /// Where the run is copied to, if anywhere.
    pub mirror: Option<PathBuf>,
    /// The learning rate of every step, `scale_lr` applied.
    pub learning_rate: LearningRate,
    /// The optimizer and its settings.
    pub optimizer: OptimizerConfig,
    /// The adapters, if they are trained instead of all weights.
    pub lora: Option<LoraConfig>,
    /// What the run leaves of its adapters.
    pub lora_result: Option<LoraResult>,
    /// The gradient norm is clipped to this, if anything.
    pub max_grad_norm: Option<f64>,
    /// The factor of the loss before the backward pass.
    pub loss_scaling: LossScaling,
    /// The time after which a checkpoint is saved whatever the step, if any.
    pub checkpoint_after: Option<Duration>,
    /// The processes that share the run.
    pub launch: Launch,
    /// The device.
    pub device: Device,
    /// The dtype that networks compute in.
    pub precision: Precision,
    /// Whether to delete what an earlier run left; not if a launcher starts the ranks again.
    pub fresh: bool,
    /// All settings, complete.
    pub settings: RunSettings,
    /// The settings as [`FILE`] holds them.
    pub saved_settings: String,
}

/// Where images and captions come from.
#[derive(Debug, Clone)]
pub enum Source {
    /// Files of pairs.
    Pairs(PairInputs),
    /// A folder of `train cache`.
    Cache(PathBuf),
}

/// The settings from flags, environment, file, recipes and defaults, of a run that the processes of
/// `launch` share.
///
/// # Errors
/// If a file cannot be read or a name is unknown.
pub fn settings(arguments: &RunArguments, launch: &Launch) -> Result<RunOptions> {
    settings::refuse_non_finite(&arguments.settings).map_err(UsageError::of)?;
    let options = match &arguments.file.config {
        Some(file) => {
            let mut from_file = RunOptions::read(file)?;
            settings::refuse_non_finite(&from_file).with_context(|| file.display().to_string())?;
            // A source on the command line replaces that of the file, whichever kind it is.
            if arguments.settings.pairs.is_some() || arguments.settings.cache.is_some() {
                from_file.pairs = None;
                from_file.cache = None;
                from_file.split = None;
                from_file.layout = None;
            }
            runkit::config::merge(&arguments.settings, &from_file)?
        }
        None => arguments.settings.clone(),
    };
    let below = recipe::over_defaults(options.recipe.as_deref().unwrap_or_default())?;
    let mut settings = runkit::config::merge(&options, &below)?;
    // The recipes' updates every N steps are not meant for a run that has no use for them.
    if options.reference_every.is_none()
        && (settings.reference_ema.is_some() || settings.loss == Some(LossKind::Mapo))
    {
        settings.reference_every = Some(0);
    }
    let mut settings = settings.with_derived_defaults(launch)?;
    // Whoever types a micro-batch means it; that of a recipe or a file is for some other batch.
    if arguments.settings.micro_batch.is_none() {
        settings.lower_micro_batch(launch);
    }
    Ok(settings)
}

impl RunOptions {
    /// Sets the defaults that follow from other settings, from the launch or from this machine.
    fn with_derived_defaults(mut self, launch: &Launch) -> Result<Self> {
        let choice: DeviceChoice =
            self.device.as_deref().unwrap_or_default().parse().map_err(UsageError::of)?;
        let on_gpu = choice.resolve_for(launch.local_rank)?.is_cuda();
        self.device = Some(choice.to_string());
        self.micro_batch.get_or_insert(LARGEST_DEFAULT_MICRO_BATCH);
        let usual = if self.dtype.as_deref() == Some("f16") { "dynamic" } else { "none" };
        let scaling: LossScaling =
            self.loss_scale.as_deref().unwrap_or(usual).parse().map_err(UsageError::of)?;
        // As the program writes it, so that equal scales are equal in the manifest.
        self.loss_scale = Some(scaling.to_string());
        match self.adapter {
            // As if it were not given, so that equal runs have equal manifests.
            Some(AdapterKind::None) => self.adapter = None,
            Some(AdapterKind::Lora) => {
                let rank = *self.rank.get_or_insert(DEFAULT_RANK);
                self.alpha.get_or_insert(rank as f64);
                self.targets.get_or_insert(Targets::Attention);
            }
            None => {}
        }
        self.data_threads.get_or_insert_with(|| data_threads(on_gpu, launch.local_world));
        // A default that is typed is the default: the run is the same, and so is its manifest.
        self.loss = self.loss.filter(|loss| *loss != LossKind::default());
        self.label_smoothing = self.label_smoothing.filter(|least| *least != 0.0);
        self.winner_anchor = self.winner_anchor.filter(|factor| *factor != 0.0);
        self.reference_mix = self.reference_mix.filter(|amount| *amount != 1.0);
        self.reference_reset_optimizer = self.reference_reset_optimizer.filter(|resets| *resets);
        self.voter_weights = self.voter_weights.filter(|weights| !weights.are_equal());
        self.ema_device = self.ema_device.filter(|device| device != "auto");
        let usual = if self.ema.is_some() { Exported::Ema } else { Exported::Weights };
        self.export = self.export.filter(|export| *export != usual);
        Ok(self)
    }

    /// Lowers the micro-batch until it divides the pairs of a batch that each rank computes.
    fn lower_micro_batch(&mut self, launch: &Launch) {
        let ranks = launch.world as u64;
        let (Some(batch_size), Some(micro_batch)) = (self.batch_size, self.micro_batch) else {
            return;
        };
        if ranks == 0 || !batch_size.is_multiple_of(ranks) {
            return;
        }
        let lowered = largest_divisor(batch_size / ranks, micro_batch);
        if lowered < micro_batch && ranks > 1 && launch.is_first() {
            tracing::info!(
                "micro-batches of {lowered} pairs instead of {micro_batch}: each of {ranks} ranks computes {} \
                 of the {batch_size} pairs of a batch",
                batch_size / ranks
            );
        }
        self.micro_batch = Some(lowered);
    }
}

/// Settings that may differ from rank to rank: places on this machine, and how it computes.
const OF_ONE_RANK: [&str; 13] = [
    "recipe",
    "model",
    "pairs",
    "split",
    "layout",
    "cache",
    "labels",
    "out",
    "from",
    "skip_pairs",
    "sample_prompts",
    "data_threads",
    "data_memory",
];

impl Config {
    /// The settings that must be equal at all ranks. Of the device only its kind counts.
    ///
    /// # Errors
    /// Never: every setting is plain data.
    pub(crate) fn settings_of_all_ranks(&self) -> Result<Value> {
        let mut settings = serde_json::to_value(&self.settings)?;
        if let Some(settings) = settings.as_object_mut() {
            settings.retain(|name, _| !OF_ONE_RANK.contains(&name.as_str()));
            let device = if self.device.is_cuda() { "cuda" } else { "cpu" };
            settings.insert("device".to_owned(), device.into());
            settings.insert("fresh".to_owned(), self.fresh.into());
        }
        Ok(settings)
    }

    /// The device of the model's moving average.
    pub fn ema_device(&self) -> Device {
        match self.settings.ema_device.as_deref() {
            Some("cpu") => Device::Cpu,
            _ => self.device,
        }
    }

    /// Whether the result, the sample images and the probe have the moving average.
    pub fn exports_ema(&self) -> bool {
        self.settings.ema.is_some() && self.settings.export != Some(Exported::Weights)
    }

    /// Whether the probe is measured after a step, and the distance from the reference model with
    /// it: every so many steps and at the end.
    pub fn measures_after(&self, step: u64) -> bool {
        let every = self.settings.probe_every;
        every > 0 && (step.is_multiple_of(every) || step == self.settings.steps)
    }

    /// A warning, if the run ends before the learning rate has reached its peak.
    pub fn short_of_warm_up(&self) -> Option<String> {
        let steps = self.settings.steps;
        let highest = self.learning_rate.at(steps.saturating_sub(1));
        let peak = self.learning_rate.peak();
        (self.learning_rate.warmup_steps() >= steps && highest < peak).then(|| {
            format!(
                "warm-up takes {} of {steps} steps: the learning rate reaches {highest:e} of \
                 {peak:e}; hint: a smaller --warmup-steps",
                self.learning_rate.warmup_steps(),
            )
        })
    }

    /// Validates what [`settings()`] returns.
    ///
    /// # Errors
    /// If a setting is missing, impossible, or contradicts another.
    pub fn new(options: &RunOptions, fresh: bool, launch: &Launch) -> Result<Self> {
        let pairs = options.pairs.clone().filter(|pairs| !pairs.is_empty());
        runkit::program::require(&[
            ("--model <DIR>", options.model.is_some()),
            ("--pairs <PATH>... (or --cache <DIR>)", pairs.is_some() || options.cache.is_some()),
            ("--labels <FILE.parquet>", options.labels.is_some()),
            ("--out <DIR>", options.out.is_some()),
        ])?;
        let source = match (pairs, options.cache.clone()) {
            (Some(_), Some(_)) => {
                anyhow::bail!("both pairs and a cache are given; hint: name one of them")
            }
            (None, Some(cache)) => {
                ensure!(
                    options.split.is_none(),
                    "--split goes with --pairs; hint: a cache has one split, that of its pairs"
                );
                ensure!(
                    options.layout.is_none(),
                    "--layout goes with --pairs; hint: a cache has a layout of its own"
                );
                Source::Cache(cache)
            }
            (pairs, None) => Source::Pairs(PairInputs {
                pairs: pairs.unwrap_or_default(),
                splits: options.split.clone().unwrap_or_default(),
                layout: options.layout,
            }),
        };
        for (flag, path, hint) in [
            ("--out", &options.out, "name a folder; --mirror copies the run to an address"),
            ("--from", &options.from, "copy the checkpoint to this machine first"),
            ("--skip-pairs", &options.skip_pairs, "copy the file to this machine first"),
            ("--sample-prompts", &options.sample_prompts, "copy the file to this machine first"),
        ] {
            settings::refuse_address(flag, path.as_deref(), hint)?;
        }
        let settings: RunSettings = settings::complete(options)?;
        settings.check_counts()?;
        settings.check_batch(launch.world as u64)?;
        settings.check_numbers()?;
        settings.check_loss()?;
        settings.check_reference()?;
        settings.check_voters()?;
        settings.check_average()?;
        let scale = if settings.scale_lr { settings.batch_size as f64 } else { 1.0 };
        let learning_rate = LearningRate::new(
            settings.lr_schedule,
            settings.lr * scale,
            settings.warmup_steps,
            settings.steps,
        )?;
        let device = settings.device.parse::<DeviceChoice>()?.resolve_for(launch.local_rank)?;
        let precision = device::choose_dtype(&settings.dtype, device)?;
        let norm = settings.max_grad_norm;
        let minutes = settings.checkpoint_minutes;
        Ok(Self {
            model: options.model.clone().unwrap_or_default(),
            source,
            labels: options.labels.clone().unwrap_or_default(),
            out: options.out.clone().unwrap_or_default(),
            mirror: options.mirror.clone(),
            learning_rate,
            optimizer: OptimizerConfig {
                kind: settings.optimizer,
                betas: [settings.adam_beta1, settings.adam_beta2],
                epsilon: settings.adam_epsilon,
                weight_decay: settings.weight_decay,
            },
            lora: settings.lora()?,
            lora_result: settings.lora_result(options.out.as_deref().unwrap_or(Path::new("")))?,
            max_grad_norm: (norm > 0.0).then_some(norm),
            loss_scaling: settings.loss_scale.parse()?,
            checkpoint_after: (minutes > 0.0)
                .then(|| Duration::try_from_secs_f64(60.0 * minutes).unwrap_or(Duration::MAX)),
            launch: launch.clone(),
            device,
            precision,
            // A launcher that starts the ranks again after a death means them to resume.
            fresh: fresh && launch.store.as_ref().is_none_or(|store| store.attempt == 0),
            settings,
            saved_settings: settings::saved(options)?,
        })
    }
}

impl RunSettings {
    /// Bytes of pairs that may be prefetched.
    pub fn data_bytes(&self) -> u64 {
        self.data_memory.saturating_mul(1 << 20)
    }

    /// Refuses whole numbers that make no sense.
    fn check_counts(&self) -> Result<()> {
        let Self { steps, batch_size, micro_batch, probe_pairs, rank_timeout, .. } = *self;
        for (flag, value) in [
            ("--steps", steps),
            ("--batch-size", batch_size),
            ("--micro-batch", micro_batch),
            ("--checkpoint-every", self.checkpoint_every),
            ("--data-memory", self.data_memory),
            ("--rank-timeout", rank_timeout),
        ] {
            ensure!(value > 0, "{flag} 0 does nothing; hint: leave it out for the default");
        }
        // libtorch counts in i64.
        let pairs = steps.checked_mul(batch_size).and_then(|pairs| i64::try_from(pairs).ok());
        ensure!(
            pairs.is_some(),
            "--steps {steps} of --batch-size {batch_size} are more pairs than can be counted"
        );
        if let Some(resolution) = self.resolution {
            ensure!(resolution > 0, "--resolution {resolution} is not a size in pixels");
        }
        ensure!(self.keep > 0, "--keep 0 would leave nothing to resume from; hint: --keep 1");
        ensure!(
            probe_pairs <= MOST_PROBE_PAIRS,
            "--probe-pairs {probe_pairs} would fill the device's memory; hint: at most {MOST_PROBE_PAIRS}"
        );
        ensure!(self.data_threads > 0, "--data-threads 0 decodes nothing; hint: leave it out");
        ensure!(
            self.sample_steps > 0,
            "--sample-steps must be at least 1; hint: --sample-every 0 generates no images"
        );
        Ok(())
    }

    /// Refuses a batch that the ranks cannot share in whole micro-batches.
    fn check_batch(&self, ranks: u64) -> Result<()> {
        let Self { batch_size, micro_batch, .. } = *self;
        let multiples = |unit: u64| match batch_size / unit * unit {
            0 => format!("--batch-size {unit}"),
            below => format!("--batch-size {below} or {}", below + unit),
        };
        ensure!(
            batch_size % ranks == 0,
            "--batch-size {batch_size} is not a multiple of {ranks} ranks; hint: {}, or {} ranks",
            multiples(ranks),
            largest_divisor(batch_size, ranks)
        );
        let among = match ranks {
            1 => String::new(),
            _ => format!(" on {ranks} ranks"),
        };
        let unit = micro_batch.saturating_mul(ranks);
        ensure!(
            batch_size % unit == 0,
            "--batch-size {batch_size} is not a multiple of --micro-batch {micro_batch}{among}; hint: \
             --micro-batch {}, or {}",
            largest_divisor(batch_size / ranks, micro_batch),
            multiples(unit)
        );
        Ok(())
    }

    /// Refuses parts of a loss that do not go together.
    fn check_loss(&self) -> Result<()> {
        let kind = self.loss.unwrap_or_default();
        ensure!(
            self.mapo_scale.is_none() || kind == LossKind::Mapo,
            "--mapo-scale goes with --loss mapo, and the loss is {}",
            kind.name()
        );
        if let Some(target) = self.auto_beta {
            ensure!(
                kind == LossKind::Dpo,
                "--auto-beta goes with --loss dpo, and the loss is {}; hint: a --beta",
                kind.name()
            );
            ensure!(
                target > 0.0 && target < 0.5,
                "--auto-beta {target} is not possible; expected a number above 0 and below 0.5, such as 0.2"
            );
        }
        Ok(())
    }

    /// Refuses updates of the reference model that contradict each other or never happen.
    fn check_reference(&self) -> Result<()> {
        let updates = [
            ("--reference-every", self.reference_every > 0),
            ("--reference-mix", self.reference_mix.is_some()),
            ("--reference-ema", self.reference_ema.is_some()),
            ("--reference-reset-optimizer", self.reference_reset_optimizer.is_some()),
        ];
        if self.loss == Some(LossKind::Mapo)
            && let Some((flag, _)) = updates.iter().find(|(_, is_given)| *is_given)
        {
            anyhow::bail!(
                "--loss mapo has no reference model, so there is no {flag}; hint: leave it out"
            );
        }
        if self.reference_ema.is_some() {
            for (flag, is_given) in updates {
                ensure!(
                    !is_given || flag == "--reference-ema",
                    "--reference-ema updates the reference model after every step, so there is no {flag}; \
                     hint: leave one of them out"
                );
            }
        }
        for (flag, is_given) in updates.into_iter().skip(1) {
            ensure!(
                !is_given || self.reference_every > 0 || self.reference_ema.is_some(),
                "{flag} needs updates of the reference model; hint: --reference-every N"
            );
        }
        Ok(())
    }

    /// Refuses settings of a moving average that is not kept.
    fn check_average(&self) -> Result<()> {
        if let Some(device) = self.ema_device.as_deref().filter(|device| *device != "cpu") {
            anyhow::bail!("--ema-device {device:?} is not possible; expected auto or cpu");
        }
        for (flag, is_given) in [
            ("--ema-device cpu", self.ema_device.is_some()),
            ("--export ema", self.export == Some(Exported::Ema)),
        ] {
            ensure!(
                !is_given || self.ema.is_some(),
                "{flag} needs a moving average; hint: --ema 0.9999"
            );
        }
        Ok(())
    }

    /// Refuses weights of voters for a preference without votes of several.
    fn check_voters(&self) -> Result<()> {
        let is_weighted = self.voter_weights.is_some();
        ensure!(
            !is_weighted || self.preference.has_weights(),
            "--voter-weights goes with the votes or scores of all voters, and --preference is {}; hint: \
             --preference consensus",
            self.preference
        );
        Ok(())
    }

    /// Refuses numbers outside of their range.
    fn check_numbers(&self) -> Result<()> {
        let zero_or_more = |number: f64| (0.0..f64::INFINITY).contains(&number);
        let positive = |number: f64| (f64::MIN_POSITIVE..f64::INFINITY).contains(&number);
        let below_one = |number: f64| (0.0..1.0).contains(&number);
        let fraction = |number: f64| (0.0..=1.0).contains(&number);
        for (flag, number, is_possible, expected) in [
            ("--lr", self.lr, zero_or_more(self.lr), "0 or a positive number"),
            ("--beta", self.beta, positive(self.beta), "a positive number"),
            ("--adam-beta1", self.adam_beta1, below_one(self.adam_beta1), "from 0 to below 1"),
            ("--adam-beta2", self.adam_beta2, below_one(self.adam_beta2), "from 0 to below 1"),
            ("--adam-epsilon", self.adam_epsilon, positive(self.adam_epsilon), "a positive number"),
            (
                "--weight-decay",
                self.weight_decay,
                zero_or_more(self.weight_decay),
                "0 or a positive number",
            ),
            (
                "--max-grad-norm",
                self.max_grad_norm,
                zero_or_more(self.max_grad_norm),
                "0 or a positive number",
            ),
            (
                "--caption-dropout",
                self.caption_dropout,
                fraction(self.caption_dropout),
                "a number from 0 to 1",
            ),
            (
                "--sample-guidance",
                self.sample_guidance.unwrap_or(0.0),
                self.sample_guidance.is_none_or(zero_or_more),
                "0 or a positive number",
            ),
            (
                "--checkpoint-minutes",
                self.checkpoint_minutes,
                zero_or_more(self.checkpoint_minutes),
                "0 or a positive number",
            ),
            (
                "--label-smoothing",
                self.label_smoothing.unwrap_or(0.0),
                self.label_smoothing.is_none_or(|least| (0.0..0.5).contains(&least)),
                "from 0 to below 0.5",
            ),
            (
                "--winner-anchor",
                self.winner_anchor.unwrap_or(0.0),
                self.winner_anchor.is_none_or(zero_or_more),
                "0 or a positive number",
            ),
            (
                "--mapo-scale",
                self.mapo_scale.unwrap_or(1.0),
                self.mapo_scale.is_none_or(positive),
                "a positive number",
            ),
            (
                "--reference-mix",
                self.reference_mix.unwrap_or(1.0),
                self.reference_mix.is_none_or(|amount| amount > 0.0 && amount <= 1.0),
                "a number above 0 and up to 1",
            ),
            (
                "--reference-ema",
                self.reference_ema.unwrap_or(0.0),
                self.reference_ema.is_none_or(below_one),
                "from 0 to below 1",
            ),
            ("--ema", self.ema.unwrap_or(0.0), self.ema.is_none_or(below_one), "from 0 to below 1"),
        ] {
            ensure!(is_possible, "{flag} {number} is not possible; expected {expected}");
        }
        Ok(())
    }
}

/// The default number of decoding threads. Processes on one machine, one for each GPU, get equal
/// fractions of its cores, whether a launcher started all of them or not.
fn data_threads(on_gpu: bool, local_world: usize) -> usize {
    if !on_gpu {
        return DATA_THREADS_CPU;
    }
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let gpus = usize::try_from(tch::Cuda::device_count()).unwrap_or(1).max(1);
    cores_of_each(cores, gpus.max(local_world))
}

fn cores_of_each(cores: usize, processes: usize) -> usize {
    (cores / processes).clamp(1, DATA_THREADS_CUDA)
}

/// The largest divisor of `number` that is at most `limit`.
pub(crate) fn largest_divisor(number: u64, limit: u64) -> u64 {
    (1..=limit.clamp(1, 4096)).rev().find(|divisor| number.is_multiple_of(*divisor)).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::{Cli, Command};
    use crate::preference::Preference;

    fn config(flags: &[&str]) -> Result<Config> {
        config_of(1, flags)
    }

    fn config_of(ranks: usize, flags: &[&str]) -> Result<Config> {
        let launch = Launch { world: ranks, ..Launch::ALONE };
        let fixed = ["train", "run", "--model", "m", "--pairs", "p", "--labels", "l", "--out", "o"];
        let cli = Cli::try_parse_from(fixed.iter().chain(flags))?;
        let Command::Run(arguments) = cli.command else { unreachable!() };
        Config::new(&settings(&arguments, &launch)?, arguments.fresh, &launch)
    }

    #[test]
    fn defaults_are_those_of_the_paper() {
        let config = config(&["--device", "cpu"]).unwrap();
        assert_eq!(
            (config.settings.steps, config.settings.batch_size, config.settings.micro_batch),
            (2000, 128, 4)
        );
        assert_eq!((config.settings.reference_every, config.settings.beta), (100, 5000.0));
        assert!((config.learning_rate.peak() - 1.28e-6).abs() < 1e-18);
        assert_eq!(config.max_grad_norm, Some(1.0));
        assert_eq!(config.settings.caption_dropout, 0.2);
    }

    #[test]
    fn flags_win_over_recipes_and_later_recipes_over_earlier_ones() {
        let given = ["--recipe", "sdxl,paper/hps-frozen", "--batch-size", "6", "--dtype", "f32"];
        let config = config(&given).unwrap();
        assert_eq!(config.settings.preference, Preference::Scorer("hps".to_owned()));
        assert_eq!((config.settings.reference_every, config.settings.batch_size), (0, 6));
        assert_eq!((config.settings.micro_batch, config.settings.resolution), (1, Some(1024)));
        assert_eq!(config.max_grad_norm, None);
        assert!(config.settings.grad_checkpointing && config.settings.hflip);
    }

    #[test]
    fn what_makes_no_sense_is_one_sentence_with_the_flag() {
        for (flags, words) in [
            (vec!["--batch-size", "10", "--micro-batch", "4"], "--micro-batch 2"),
            (vec!["--batch-size", "0"], "--batch-size 0"),
            (vec!["--steps", "0"], "--steps 0"),
            (vec!["--rank", "4"], "--adapter lora"),
            (vec!["--adapter", "none", "--targets", "to_q"], "--targets goes with adapters"),
            (vec!["--adapter", "lora", "--rank", "0"], "--rank 0"),
            (vec!["--adapter", "lora", "--alpha", "0"], "--alpha 0"),
            (vec!["--adapter", "lora", "--lora-name", "x"], "--lora-format kohya"),
            (
                vec!["--adapter", "lora", "--lora-format", "kohya", "--lora-name", "a/b"],
                "not the name of a file",
            ),
            (vec!["--beta", "nan"], "--beta: expected a finite number, found NaN"),
            (vec!["--lr=-1"], "--lr -1"),
            (vec!["--caption-dropout", "1.5"], "from 0 to 1"),
            (vec!["--adam-beta2", "1"], "--adam-beta2 1"),
            (vec!["--keep", "0"], "--keep 1"),
            (vec!["--probe-pairs", "100000"], "at most 1024"),
            (vec!["--checkpoint-minutes=-1"], "--checkpoint-minutes -1"),
            (vec!["--recipe", "sd-15"], "did you mean sd15?"),
            (vec!["--dtype", "fp16"], "expected f32, tf32, bf16 or f16"),
            (vec!["--steps", "9999999999999999999"], "more pairs than can be counted"),
            (vec!["--ema", "1"], "from 0 to below 1"),
            (vec!["--ema-device", "cpu"], "--ema-device cpu needs a moving average"),
            (vec!["--export", "ema"], "hint: --ema 0.9999"),
            (vec!["--label-smoothing", "0.5"], "from 0 to below 0.5"),
            (vec!["--winner-anchor=-1"], "--winner-anchor -1"),
            (vec!["--mapo-scale", "10"], "--mapo-scale goes with --loss mapo, and the loss is dpo"),
            (vec!["--loss", "ipo", "--auto-beta", "0.2"], "--auto-beta goes with --loss dpo"),
            (vec!["--auto-beta", "0.7"], "below 0.5"),
            (vec!["--loss", "mapo", "--reference-every", "5"], "there is no --reference-every"),
            (vec!["--loss", "mapo", "--reference-mix", "0.6"], "there is no --reference-mix"),
            (
                vec!["--reference-ema", "0.9", "--reference-every", "5"],
                "there is no --reference-every",
            ),
            (vec!["--reference-ema", "1"], "from 0 to below 1"),
            (vec!["--reference-mix", "0"], "above 0 and up to 1"),
            (vec!["--reference-every", "0", "--reference-mix", "0.6"], "hint: --reference-every N"),
            (
                vec!["--reference-every", "0", "--reference-reset-optimizer"],
                "--reference-reset-optimizer needs updates",
            ),
            (vec!["--voter-weights", "clip=2", "--preference", "human"], "--preference is human"),
        ] {
            let message = format!("{:#}", config(&flags).unwrap_err());
            assert!(message.contains(words), "{flags:?}: {message}");
        }
    }

    #[test]
    fn a_default_that_is_typed_is_not_set_and_other_updates_end_the_recipes() {
        let typed = [
            "--loss",
            "dpo",
            "--label-smoothing",
            "0",
            "--winner-anchor",
            "0",
            "--reference-mix",
            "1",
            "--reference-reset-optimizer=false",
            "--voter-weights",
            "clip=1,hps=1.0",
            "--export",
            "weights",
            "--ema-device",
            "auto",
        ];
        let plain = config(&[]).unwrap();
        assert_eq!(config(&typed).unwrap().settings, plain.settings);
        assert_eq!(config(&typed).unwrap().saved_settings, plain.saved_settings);
        let recipe = ["--recipe", "sd15,paper/balanced"];
        let every = |flags: &[&str]| {
            config(&[&recipe[..], flags].concat()).unwrap().settings.reference_every
        };
        assert_eq!(every(&[]), 100);
        assert_eq!(every(&["--reference-mix", "0.6"]), 100);
        assert_eq!(every(&["--reference-ema", "0.999"]), 0);
        assert_eq!(every(&["--loss", "mapo"]), 0);
    }

    #[test]
    fn a_micro_batch_divides_the_pairs_of_each_rank() {
        let micro_batch = |ranks, flags: &[&str]| {
            config_of(ranks, flags)
                .map(|config| config.settings.micro_batch)
                .map_err(|e| e.to_string())
        };
        let mini = ["--recipe", "mini"];
        assert_eq!([1, 2, 4, 16].map(|ranks| micro_batch(ranks, &mini).unwrap()), [16, 8, 4, 1]);
        assert_eq!([1, 32, 64, 128].map(|ranks| micro_batch(ranks, &[]).unwrap()), [4, 4, 2, 1]);
        // The recipe's 4 does not divide 6 pairs of a batch.
        assert_eq!(micro_batch(1, &["--recipe", "sd15", "--batch-size", "6"]), Ok(3));
        for (ranks, flags, words) in [
            (
                3,
                &["--batch-size", "128"][..],
                "--batch-size 128 is not a multiple of 3 ranks; hint: \
             --batch-size 126 or 129, or 2 ranks",
            ),
            (8, &["--batch-size", "4"], "hint: --batch-size 8, or 4 ranks"),
            (
                2,
                &["--batch-size", "12", "--micro-batch", "4"],
                "--micro-batch 4 on 2 ranks; hint: \
             --micro-batch 3, or --batch-size 8 or 16",
            ),
        ] {
            let message = micro_batch(ranks, flags).unwrap_err();
            assert!(message.contains(words), "{message}");
        }
    }

    #[test]
    fn processes_of_one_machine_share_its_cores() {
        assert_eq!(
            [(2, 1), (64, 1), (64, 8), (16, 8), (4, 8)].map(|(c, g)| cores_of_each(c, g)),
            [2, 8, 8, 2, 1]
        );
    }

    #[test]
    fn a_run_that_ends_in_its_warm_up_gets_a_warning() {
        let warning = |flags: &[&str]| config(flags).unwrap().short_of_warm_up();
        let short = warning(&["--steps", "200"]).unwrap();
        assert!(short.contains("500 of 200 steps") && short.contains("of 1.28e-6"), "{short}");
        assert_eq!(warning(&["--steps", "501"]), None);
        assert_eq!(warning(&["--steps", "200", "--lr-schedule", "constant"]), None);
    }

    #[test]
    fn every_setting_with_a_default_has_one() {
        assert!(config(&["--device", "cpu"]).is_ok());
        let cache = ["train", "cache", "--model", "m", "--pairs", "p", "--out", "o"];
        let Command::Cache(arguments) = Cli::try_parse_from(cache).unwrap().command else {
            unreachable!()
        };
        let options = crate::cache::settings(&arguments, &Launch::ALONE).unwrap();
        assert!(crate::cache::Config::new(&options, false, None, &Launch::ALONE).is_ok());
    }

    #[test]
    fn help_shows_the_defaults() {
        use clap::CommandFactory as _;
        let help = |command: &str| {
            let mut all = Cli::command();
            all.find_subcommand_mut(command).unwrap().render_long_help().to_string()
        };
        let run = help("run");
        for default in ["5000", "1e-8", "0.999", "constant-with-warmup", "false", "1024"] {
            assert!(run.contains(&format!("[default: {default}]")), "{default}: {run}");
        }
        assert!(help("cache").contains("Images per forward pass [default: 8]"));
    }

    #[test]
    fn adapters_have_the_rank_as_alpha_and_a_file_for_each_form() {
        let full = config(&["--adapter", "none"]).unwrap();
        assert_eq!((full.lora, full.lora_result, full.settings.adapter), (None, None, None));
        let lora = config(&["--adapter", "lora"]).unwrap();
        let expected = LoraConfig { rank: 8, alpha: 8.0, targets: Targets::Attention };
        assert_eq!(lora.lora, Some(expected));
        let found = lora.lora_result.unwrap();
        assert!(found.is_merged);
        let names: Vec<&str> = found.files.iter().map(|(_, name)| name.as_str()).collect();
        assert_eq!(names, ["pytorch_lora_weights.safetensors"]);
        let flags = ["--adapter", "lora", "--rank", "16", "--targets", "to_v,to_q"];
        let forms = ["--lora-format", "kohya,diffusers", "--lora-name", "x", "--no-merge"];
        let lora = config(&[&flags[..], &forms].concat()).unwrap();
        assert_eq!(lora.lora.unwrap().alpha, 16.0);
        let found = lora.lora_result.unwrap();
        assert!(!found.is_merged);
        let names: Vec<&str> = found.files.iter().map(|(_, name)| name.as_str()).collect();
        assert_eq!(names, ["pytorch_lora_weights.safetensors", "x.safetensors"]);
    }

    #[test]
    fn divisors() {
        assert_eq!(largest_divisor(128, 4), 4);
        assert_eq!(largest_divisor(6, 4), 3);
        assert_eq!(largest_divisor(7, 4), 1);
        assert_eq!(largest_divisor(10, 4), 2);
    }
}
