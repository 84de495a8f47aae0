//! The settings of a run and of a cache, each defined once.
//!
//! `settings!` makes two structs from one list. In the first, every setting is an `Option`: what a
//! flag, an environment variable, a settings file or a recipe sets. The second has the complete
//! settings: a setting marked `with_default` has a value. The defaults are in
//! `recipes/defaults.toml` and `recipes/cache-defaults.toml`, the lowest layer below recipes, and
//! `--help` shows them from there. So a new setting is one entry here and one line there. It
//! belongs to the identity of a run unless [`crate::run::manifest`] says otherwise.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use clap::builder::{PossibleValuesParser, TypedValueParser as _};
use clap::{Args, ValueEnum};
use nn::lora::Targets;
use nn::optimizer::OptimizerKind;
use runkit::path::is_address;
use runkit::settings::Settings;
use schemas::layouts::Layout;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::adapter::{AdapterKind, LoraFormat};
use crate::learning_rate::Schedule;
use crate::loss::LossKind;
use crate::preference::{Preference, Ties, VoterWeights};

/// The value of `--export`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Exported {
    /// The moving average.
    Ema,
    /// The weights of the last step.
    Weights,
}

/// The type of a complete setting.
macro_rules! complete {
    (optional $type:ty) => { Option<$type> };
    (with_default $type:ty) => { $type };
}

macro_rules! settings {
    (
        $(#[doc = $given_doc:tt])* $given:ident
        $(#[doc = $complete_doc:tt])* $complete:ident
        $( $heading:tt { $(
            $(#[doc = $doc:tt])*
            #[arg($($arg:tt)*)]
            $(#[serde($($serde:tt)*)])?
            $kind:ident $name:ident: $type:ty,
        )* } )*
    ) => {
        $(#[doc = $given_doc])*
        #[derive(Debug, Clone, Default, PartialEq, Args, Serialize, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct $given { $( $(
            $(#[doc = $doc])*
            #[arg(long, $($arg)*, help_heading = $heading)]
            #[serde(default, skip_serializing_if = "Option::is_none" $(, $($serde)*)?)]
            pub $name: Option<$type>,
        )* )* }

        $(#[doc = $complete_doc])*
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct $complete { $( $(
            $(#[doc = $doc])*
            pub $name: complete!($kind $type),
        )* )* }
    };
}

settings! {
    /// Settings of `train run`: what flags, environment, a file or recipes set.
    RunOptions
    /// The complete settings of `train run`.
    RunSettings

    "Inputs and output" {
        /// Settings under a name, such as sd15 or sd15,paper/hps; later ones win. train recipes
        /// lists them.
        #[arg(value_name = "NAME", value_delimiter = ',')]
        optional recipe: Vec<String>,
        /// The pipeline to train: a folder in the layout of diffusers, a single .safetensors file of
        /// A1111 or ComfyUI, or hf://owner/name@revision.
        #[arg(value_name = "DIR")]
        optional model: PathBuf,
        /// Pairs: files, folders, glob patterns, or addresses such as s3://BUCKET/pairs, https://… and
        /// hf://datasets/OWNER/NAME.
        #[arg(value_name = "PATH", num_args = 1..)]
        optional pairs: Vec<PathBuf>,
        /// The split to read if files or folders are named by splits, such as
        /// train-00000-of-00645.parquet or train/; separate several by commas.
        #[arg(value_name = "NAME", value_delimiter = ',')]
        #[serde(deserialize_with = "runkit::config::one_or_more")]
        optional split: Vec<String>,
        /// The layout of the pairs, if their names and columns do not tell it.
        #[arg(value_name = "NAME",
            value_parser = PossibleValuesParser::new(Layout::ALL.map(Layout::name))
                .try_map(|name| name.parse::<Layout>()))]
        optional layout: Layout,
        /// A folder that train cache wrote, here or at an address, in place of --pairs.
        #[arg(value_name = "DIR", conflicts_with = "pairs")]
        optional cache: PathBuf,
        /// The labels that relabel wrote for the pairs: a file or its address.
        #[arg(value_name = "FILE.parquet")]
        optional labels: PathBuf,
        /// The folder to write.
        #[arg(value_name = "DIR")]
        optional out: PathBuf,
        /// Start from a checkpoint of another run, such as runs/A/checkpoints/step-000500: its
        /// weights, moments, reference and position. Steps continue from its step.
        #[arg(value_name = "CHECKPOINT")]
        optional from: PathBuf,
        /// Give no weight to the pairs in this file, one pair_id per line. It may change from one
        /// start of a run to the next.
        #[arg(value_name = "FILE.txt")]
        optional skip_pairs: PathBuf,
    }

    "Preference" {
        /// What decides which image is chosen: consensus, human, scorer:NAME, random-scorer,
        /// vanilla, score-sum, normalized-sum, unanimous (only pairs on which all voters agree) or
        /// margin (the majority, weighted by its fraction of the votes).
        #[arg(value_name = "WHAT")]
        with_default preference: Preference,
        /// What to do with a tie of votes or sums.
        #[arg(value_name = "POLICY", value_enum)]
        with_default ties: Ties,
        /// Drop pairs whose human label is a tie, whatever --preference is.
        #[arg(value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
        with_default drop_human_ties: bool,
        /// Weights of voters, such as clip=1,hps=2; voters without one count 1, and 0 leaves a
        /// voter out.
        #[arg(value_name = "NAME=X,...")]
        optional voter_weights: VoterWeights,
    }

    "Method" {
        /// Update the reference model every N steps; 0 keeps it frozen.
        #[arg(value_name = "N")]
        with_default reference_every: u64,
        /// Update the reference model by this fraction of the way to the model, above 0 to 1
        /// [default: 1, a copy].
        #[arg(value_name = "X")]
        optional reference_mix: f64,
        /// Update the reference model after every step instead: it keeps this fraction of itself,
        /// such as 0.999.
        #[arg(value_name = "X")]
        optional reference_ema: f64,
        /// Start the optimizer's moments anew at every update of the reference model.
        #[arg(value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
        optional reference_reset_optimizer: bool,
        /// β of the loss; the loss multiplies it by one half.
        #[arg(value_name = "X")]
        with_default beta: f64,
        /// Optimizer steps; may grow when a run is resumed.
        #[arg(value_name = "N")]
        with_default steps: u64,
        /// Pairs per optimizer step.
        #[arg(value_name = "N")]
        with_default batch_size: u64,
        /// Pairs per forward and backward pass; gradients accumulate over a batch. It divides the
        /// pairs of a batch that each rank computes [default: the largest divisor up to 4].
        #[arg(value_name = "N", env = "TRAIN_MICRO_BATCH")]
        with_default micro_batch: u64,
        /// Seed of everything random. It is hashed with the position in the run; noise uses the low
        /// 32 bits of the hash.
        #[arg(value_name = "N")]
        with_default seed: u64,
    }

    "Loss" {
        /// Which loss [default: dpo].
        #[arg(value_name = "NAME", value_enum)]
        optional loss: LossKind,
        /// Keep labels this far from 0 and 1, below 0.5 [default: 0].
        #[arg(value_name = "X")]
        optional label_smoothing: f64,
        /// Add this many times the model's error on the chosen image, against a rise of both errors
        /// [default: 0].
        #[arg(value_name = "X")]
        optional winner_anchor: f64,
        /// The scale of the logit of --loss mapo [default: 1000].
        #[arg(value_name = "X")]
        optional mapo_scale: f64,
        /// Adapt β so that the gradient keeps this factor, such as 0.2, at the mean margin; --beta
        /// is its start.
        #[arg(value_name = "TARGET")]
        optional auto_beta: f64,
    }

    "Adapters" {
        /// What to train: none for all weights of the UNet, or lora for low-rank adapters of some
        /// layers, whose own weights stay as they are, in --dtype [default: none].
        #[arg(value_name = "KIND", value_enum, hide_possible_values = true)]
        optional adapter: AdapterKind,
        /// Rank of the adapters [default: 8].
        #[arg(value_name = "N")]
        optional rank: i64,
        /// Scale of what adapters add, times the rank [default: the rank].
        #[arg(value_name = "X")]
        optional alpha: f64,
        /// Layers that get an adapter: attention, attention+ff, all-linear, or ends of names
        /// separated by commas, as to_q,to_v [default: attention].
        #[arg(value_name = "WHICH")]
        optional targets: Targets,
        /// Form of the file of adapters in lora/: diffusers, kohya (A1111, ComfyUI, sd-scripts), or
        /// both, separated by a comma [default: diffusers].
        #[arg(value_name = "FORM", value_enum, value_delimiter = ',', hide_possible_values = true)]
        optional lora_format: Vec<LoraFormat>,
        /// Name of the file for kohya's form, without its ending [default: the name of --out].
        #[arg(value_name = "NAME")]
        optional lora_name: String,
        /// Write no pipeline/, the model with the adapters merged into it.
        #[arg(value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
        optional no_merge: bool,
    }

    "Optimizer" {
        /// Learning rate, before --scale-lr.
        #[arg(value_name = "X")]
        with_default lr: f64,
        /// Multiply the learning rate by the batch size.
        #[arg(value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
        with_default scale_lr: bool,
        /// How the learning rate changes over the steps.
        #[arg(value_name = "NAME", value_enum)]
        with_default lr_schedule: Schedule,
        /// Steps over which the learning rate rises from 0.
        #[arg(value_name = "N")]
        with_default warmup_steps: u64,
        /// adamw, adamw8bit (moments of 8 bits, as bitsandbytes has them) or adafactor.
        #[arg(value_name = "NAME",
            value_parser = PossibleValuesParser::new(OptimizerKind::NAMES)
                .try_map(|name| name.parse::<OptimizerKind>()))]
        with_default optimizer: OptimizerKind,
        /// AdamW's decay rate of the first moment.
        #[arg(value_name = "X")]
        with_default adam_beta1: f64,
        /// AdamW's decay rate of the second moment.
        #[arg(value_name = "X")]
        with_default adam_beta2: f64,
        /// AdamW's epsilon.
        #[arg(value_name = "X")]
        with_default adam_epsilon: f64,
        /// Weight decay, times the learning rate.
        #[arg(value_name = "X")]
        with_default weight_decay: f64,
        /// Clip the gradient norm to this; 0 does not clip.
        #[arg(value_name = "X")]
        with_default max_grad_norm: f64,
        /// The factor of the loss before the backward pass, so that small gradients do not round to
        /// zero in f16: dynamic, none or a power of two. A dynamic scale starts at 2^16
        /// (dynamic:START for another) and halves when gradients overflow; that step changes no
        /// weight [default: dynamic with --dtype f16, else none].
        #[arg(value_name = "SCALE")]
        with_default loss_scale: String,
        /// Keep a moving average of the weights in f32: it keeps this fraction of itself in a step,
        /// such as 0.9999.
        #[arg(value_name = "X")]
        optional ema: f64,
        /// Where the moving average is: that of the model, or cpu, which spares the GPU 4 bytes per
        /// weight and costs time [default: that of the model].
        #[arg(value_name = "DEVICE", value_parser = ["auto", "cpu"])]
        optional ema_device: String,
        /// Which weights the result, the sample images and the probe have: ema or weights
        /// [default: ema with --ema, else weights].
        #[arg(value_name = "WHICH", value_enum)]
        optional export: Exported,
    }

    "Data" {
        /// Fraction of captions to replace by the empty caption.
        #[arg(value_name = "X")]
        with_default caption_dropout: f64,
        /// Height and width of training images in pixels [default: the model's own].
        #[arg(value_name = "N")]
        optional resolution: i64,
        /// Flip images horizontally at random, each image independently.
        #[arg(value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
        with_default hflip: bool,
        /// Crop at random instead of at the centre.
        #[arg(value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
        with_default random_crop: bool,
        /// Threads of each rank that decode images [default: 1 on a CPU; for a GPU its fraction
        /// of the CPU cores, up to 8].
        #[arg(value_name = "N", env = "TRAIN_DATA_THREADS")]
        with_default data_threads: usize,
        /// MiB of pairs to prefetch.
        #[arg(value_name = "MIB")]
        with_default data_memory: u64,
    }

    "Checkpoints" {
        /// Steps between checkpoints; there is always one at the end.
        #[arg(value_name = "N")]
        with_default checkpoint_every: u64,
        /// Also save a checkpoint after this many minutes; 0 for never.
        #[arg(value_name = "X")]
        with_default checkpoint_minutes: f64,
        /// How many checkpoints to keep; older ones are deleted.
        #[arg(value_name = "N")]
        with_default keep: usize,
        /// Copy each checkpoint, the metrics and the result to this place, in the background:
        /// s3://BUCKET/PREFIX or a folder. A start on a machine without the --out folder
        /// resumes from there.
        #[arg(value_name = "PLACE")]
        optional mirror: PathBuf,
        /// Record everything needed to compute the first N steps again in another framework.
        #[arg(value_name = "N")]
        with_default record_steps: u64,
    }

    "Probe and sample images" {
        /// Held-out pairs that are measured again and again, with the same noise.
        #[arg(value_name = "N")]
        with_default probe_pairs: u64,
        /// Steps between measurements of the probe; 0 for never.
        #[arg(value_name = "N")]
        with_default probe_every: u64,
        /// Steps between sets of sample images; 0 for never.
        #[arg(value_name = "N")]
        with_default sample_every: u64,
        /// A file with one prompt per line [default: captions of the probe pairs].
        #[arg(value_name = "FILE.txt")]
        optional sample_prompts: PathBuf,
        /// Denoising steps of a sample image.
        #[arg(value_name = "N")]
        with_default sample_steps: usize,
        /// Guidance scale of sample images [default: 7.5, SDXL 5.0].
        #[arg(value_name = "X")]
        optional sample_guidance: f64,
    }

    "Compute" {
        /// Where to compute: auto, cpu, cuda or cuda:N.
        #[arg(value_name = "DEVICE", env = "TRAIN_DEVICE")]
        with_default device: String,
        /// The dtype that the networks compute in: f32, bf16 or f16, or tf32 on a GPU since Ampere:
        /// f32 with products of 10-bit mantissas; trained weights are f32.
        #[arg(value_name = "DTYPE", env = "TRAIN_DTYPE")]
        with_default dtype: String,
        /// Gradient checkpointing: keep fewer activations and recompute them; less memory, a third
        /// more time.
        #[arg(value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
        with_default grad_checkpointing: bool,
    }

    "Several processes" {
        /// Split the optimizer's state among the ranks (ZeRO-1): 1/N of its memory on each of N
        /// GPUs, and the same weights, bit for bit.
        #[arg(value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
        with_default shard_optimizer: bool,
        /// Seconds after which a rank that does not answer is lost, and all others end.
        #[arg(value_name = "SECONDS")]
        with_default rank_timeout: u64,
    }
}

settings! {
    /// Settings of `train cache`: what flags, environment or a file set.
    CacheOptions
    /// The complete settings of `train cache`.
    CacheSettings

    "Inputs and output" {
        /// The pipeline whose encoders are used: a folder in the layout of diffusers, a single
        /// .safetensors file of A1111 or ComfyUI, or hf://owner/name@revision.
        #[arg(value_name = "DIR")]
        optional model: PathBuf,
        /// Pairs: files, folders, glob patterns, or addresses such as s3://BUCKET/pairs, https://… and
        /// hf://datasets/OWNER/NAME.
        #[arg(value_name = "PATH", num_args = 1..)]
        optional pairs: Vec<PathBuf>,
        /// The split to read if files or folders are named by splits, such as
        /// train-00000-of-00645.parquet or train/; separate several by commas.
        #[arg(value_name = "NAME", value_delimiter = ',')]
        #[serde(deserialize_with = "runkit::config::one_or_more")]
        optional split: Vec<String>,
        /// The layout of the pairs, if their names and columns do not tell it.
        #[arg(value_name = "NAME",
            value_parser = PossibleValuesParser::new(Layout::ALL.map(Layout::name))
                .try_map(|name| name.parse::<Layout>()))]
        optional layout: Layout,
        /// The folder to write.
        #[arg(value_name = "DIR")]
        optional out: PathBuf,
        /// Failed pairs that still count as success (exit code 0).
        #[arg(value_name = "N")]
        with_default max_failed: u64,
    }

    "Images" {
        /// Height and width of training images in pixels [default: the model's own].
        #[arg(value_name = "N")]
        optional resolution: i64,
        /// Cache no more than the first N pairs; what the cache holds already stays.
        #[arg(value_name = "N")]
        optional limit: u64,
        /// Also encode every image horizontally flipped.
        #[arg(value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
        with_default hflip: bool,
    }

    "Compute" {
        /// Where to compute: auto, cpu, cuda or cuda:N.
        #[arg(value_name = "DEVICE", env = "TRAIN_DEVICE")]
        with_default device: String,
        /// The dtype that the encoders compute in: f32, bf16 or f16, or tf32 on a GPU since Ampere:
        /// f32 with products of 10-bit mantissas.
        #[arg(value_name = "DTYPE", env = "TRAIN_DTYPE")]
        with_default dtype: String,
        /// Images per forward pass.
        #[arg(value_name = "N")]
        with_default batch_size: usize,
    }
}

impl Settings for RunOptions {
    fn paths(&mut self) -> Vec<&mut PathBuf> {
        let single = [
            &mut self.model,
            &mut self.cache,
            &mut self.labels,
            &mut self.out,
            &mut self.from,
            &mut self.skip_pairs,
            &mut self.sample_prompts,
            &mut self.mirror,
        ];
        single.into_iter().flatten().chain(self.pairs.iter_mut().flatten()).collect()
    }
}

impl Settings for CacheOptions {
    fn paths(&mut self) -> Vec<&mut PathBuf> {
        let single = [&mut self.model, &mut self.out];
        single.into_iter().flatten().chain(self.pairs.iter_mut().flatten()).collect()
    }
}

/// Complete settings from options that have a value for every setting with a default.
///
/// # Errors
/// If one has none.
pub(crate) fn complete<T: DeserializeOwned>(options: &impl Serialize) -> Result<T> {
    Ok(serde_json::from_value(serde_json::to_value(options)?)?)
}

/// The settings as they are saved beside an output: paths are absolute, and addresses have no query,
/// which may be a signature.
///
/// # Errors
/// Never: every setting is plain data.
pub(crate) fn saved<S: Settings>(options: &S) -> Result<String> {
    let mut options = options.with_absolute_paths();
    options.paths().into_iter().for_each(|path| *path = locations::shown(path));
    Ok(options.to_toml()?)
}

/// What to do where `train cache` would write to an address.
pub(crate) const CACHE_HERE: &str =
    "write the cache to a folder and copy it: --cache of train run reads it from an address";

/// Refuses an address where a path of this machine is needed.
///
/// # Errors
/// Naming the flag; `hint` says what to do instead.
pub(crate) fn refuse_address(flag: &str, path: Option<&Path>, hint: &str) -> Result<()> {
    match path {
        Some(path) if is_address(path) => {
            let shown = locations::shown(path);
            bail!("{flag} {}: expected a path of this machine; hint: {hint}", shown.display())
        }
        _ => Ok(()),
    }
}

/// Refuses NaN and infinities by name. Layers are merged as JSON, which has neither and would take
/// the default without a word.
///
/// # Errors
/// Naming the setting.
pub(crate) fn refuse_non_finite(options: &impl Serialize) -> Result<()> {
    // Options that are not set are skipped, so a null is a number that JSON cannot hold.
    let values = serde_json::to_value(options)?;
    let unusable = values.as_object().into_iter().flatten().find(|(_, value)| value.is_null());
    if let Some((name, _)) = unusable {
        let flag = name.replace('_', "-");
        bail!("--{flag}: expected a finite number, found NaN or infinity");
    }
    Ok(())
}

/// Adds the default of an argument to its help text.
pub(crate) fn with_default_in_help(defaults: &toml::Table, argument: clap::Arg) -> clap::Arg {
    let default = match defaults.get(argument.get_id().as_str()) {
        None => return argument,
        Some(toml::Value::String(text)) => text.clone(),
        Some(toml::Value::Float(number)) if (0.0..1e-3).contains(number) && *number > 0.0 => {
            format!("{number:e}")
        }
        Some(toml::Value::Float(number)) => number.to_string(),
        Some(value) => value.to_string(),
    };
    let help = argument.get_help().map(ToString::to_string).unwrap_or_default();
    argument.help(format!("{help} [default: {default}]"))
}
