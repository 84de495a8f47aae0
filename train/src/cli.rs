//! The command line as typed. What the words mean is decided in [`crate::commands`] and
//! [`crate::config`].

use std::path::PathBuf;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand};
use nn::optimizer::OptimizerKind;
use runkit::logging::LogArguments;
use runkit::program::ResumeFlag;
use serde::{Deserialize, Serialize};

use crate::learning_rate::Schedule;
use crate::preference::{Preference, Ties};

/// Train a diffusion model on preferences: Diffusion-DPO on consensus labels with
/// a moving reference.
#[derive(Debug, Parser)]
#[command(name = "train", version, max_term_width = 80, propagate_version = true)]
#[command(after_help = "Exit codes: 0 done, 1 failed, 2 usage, 3 cached with more failed pairs \
    than --max-failed, 130/143 stopped by a signal after a clean save.")]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// What is logged.
    #[command(flatten)]
    pub log: LogArguments,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Train; the same command goes on where an earlier run was stopped.
    Run(RunArguments),
    /// Say what a run would be: pairs, ties, steps, learning rate, memory, time.
    Plan(RunArguments),
    /// Encode images and captions once, for many runs (see run --cache).
    Cache(CacheArguments),
}

/// `train run` and `train plan`.
#[derive(Debug, Clone, Args)]
#[command(
    override_usage = "train run|plan --model <DIR> --pairs <PATH>... --labels <FILE>\n           \
    --out <DIR> [OPTIONS]"
)]
pub struct RunArguments {
    /// The settings that a file can hold as well.
    #[command(flatten)]
    pub settings: RunSettings,
    /// Read settings from this TOML file; flags and environment win.
    #[arg(long, value_name = "FILE.toml")]
    pub config: Option<PathBuf>,
    /// Print the resolved settings as TOML and stop.
    #[arg(long)]
    pub print_config: bool,
    /// Start over: remove what an earlier run left in the output folder.
    #[arg(long)]
    pub fresh: bool,
    /// What users of other programs type.
    #[command(flatten)]
    pub resume: ResumeFlag,
}

/// Settings of `train run`, each unset until flag, environment, file or recipe sets it.
#[derive(Debug, Clone, Default, PartialEq, Args, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunSettings {
    /// Settings under a name: sd15, sd21, sdxl or mini, and paper/ROW for a row of
    /// the paper's tables, as in sd15,paper/hps. Later ones win.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recipe: Option<Vec<String>>,
    /// The pipeline to train: a folder in the layout of diffusers, or
    /// hf://owner/name@revision.
    #[arg(long, value_name = "DIR")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<PathBuf>,
    /// Pairs in Pick-a-Pic's layout: Parquet files, folders or glob patterns.
    #[arg(long, value_name = "PATH", num_args = 1..)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pairs: Option<Vec<PathBuf>>,
    /// The split to take where files or folders are named by splits, such as
    /// train-00000-of-00645.parquet or train/; several with commas between.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "runkit::config::one_or_more"
    )]
    pub split: Option<Vec<String>>,
    /// A folder that train cache wrote, in place of --pairs.
    #[arg(long, value_name = "DIR", conflicts_with = "pairs")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<PathBuf>,
    /// What relabel wrote about the pairs.
    #[arg(long, value_name = "FILE.parquet")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<PathBuf>,
    /// The folder to write.
    #[arg(long, value_name = "DIR")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub out: Option<PathBuf>,
    /// Begin with a checkpoint of another run, as runs/A/checkpoints/step-000500:
    /// its weights, moments, reference and position. Steps count on from its own.
    #[arg(long, value_name = "CHECKPOINT")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<PathBuf>,
    /// Give the pairs named in this file, a pair_id in each line, no weight. May be
    /// given, changed and left out from one start of a run to the next.
    #[arg(long, value_name = "FILE.txt")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skip_pairs: Option<PathBuf>,

    /// What decides which image is better: consensus, human, scorer:NAME,
    /// random-scorer, vanilla, score-sum or normalized-sum [default: consensus].
    #[arg(long, value_name = "WHAT")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preference: Option<Preference>,
    /// What becomes of a tie of votes or sums [default: drop].
    #[arg(long, value_name = "POLICY", value_enum)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ties: Option<Ties>,
    /// Leave out pairs that people found equal, whoever decides [default: false].
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drop_human_ties: Option<bool>,

    /// The reference becomes the current weights after every N steps; 0 keeps it
    /// [default: 100].
    #[arg(long, value_name = "N")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference_every: Option<u64>,
    /// Beta of the loss, with its factor of one half [default: 5000].
    #[arg(long, value_name = "X")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub beta: Option<f64>,
    /// Optimizer steps; may grow when a run goes on [default: 2000].
    #[arg(long, value_name = "N")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps: Option<u64>,
    /// Pairs of an optimizer step [default: 128].
    #[arg(long, value_name = "N")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch_size: Option<u64>,
    /// Pairs computed at once; divides the batch size
    /// [default: the largest divisor up to 4].
    #[arg(long, value_name = "N", env = "TRAIN_MICRO_BATCH")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub micro_batch: Option<u64>,

    /// Learning rate, before --scale-lr [default: 1e-8].
    #[arg(long, value_name = "X")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lr: Option<f64>,
    /// Multiply the learning rate by the batch size [default: true].
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale_lr: Option<bool>,
    /// How the learning rate moves [default: constant-with-warmup].
    #[arg(long, value_name = "NAME", value_enum)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lr_schedule: Option<Schedule>,
    /// Steps over which the learning rate rises from 0 [default: 500].
    #[arg(long, value_name = "N")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warmup_steps: Option<u64>,
    /// adamw or adafactor [default: adamw].
    #[arg(long, value_name = "NAME",
        value_parser = PossibleValuesParser::new(OptimizerKind::NAMES)
            .try_map(|name| name.parse::<OptimizerKind>()))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub optimizer: Option<OptimizerKind>,
    /// AdamW's decay of the mean of gradients [default: 0.9].
    #[arg(long, value_name = "X")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adam_beta1: Option<f64>,
    /// AdamW's decay of the mean of their squares [default: 0.999].
    #[arg(long, value_name = "X")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adam_beta2: Option<f64>,
    /// What AdamW adds to the root of that mean [default: 1e-8].
    #[arg(long, value_name = "X")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adam_epsilon: Option<f64>,
    /// Decay of the weights, times the learning rate [default: 0.01].
    #[arg(long, value_name = "X")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight_decay: Option<f64>,
    /// Gradients are scaled down to this norm; 0 leaves them [default: 1].
    #[arg(long, value_name = "X")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_grad_norm: Option<f64>,
    /// What the loss is multiplied by before the backward pass, so that small gradients
    /// do not round to zero in f16: dynamic, none or a power of two. A dynamic scale
    /// starts at 2^16 (dynamic:START for another), halves when gradients overflow, and
    /// that step changes no weight [default: dynamic with --dtype f16, else none].
    #[arg(long, value_name = "SCALE")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_scale: Option<String>,

    /// Share of captions replaced by the empty one [default: 0.2].
    #[arg(long, value_name = "X")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub caption_dropout: Option<f64>,
    /// Height and width of training images in pixels
    /// [default: the model's own].
    #[arg(long, value_name = "N")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resolution: Option<i64>,
    /// Flip images horizontally at random, each by itself [default: false].
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hflip: Option<bool>,
    /// Crop at random in place of the centre [default: false].
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub random_crop: Option<bool>,
    /// Keep less for the gradients and compute it again: less memory, a third more
    /// time [default: false].
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grad_checkpointing: Option<bool>,
    /// Seed of everything random [default: 0]. It is hashed with the position in
    /// the run; noise uses the low 32 bits of the hash.
    #[arg(long, value_name = "N")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,

    /// Steps between checkpoints; there is always one at the end [default: 500].
    #[arg(long, value_name = "N")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint_every: Option<u64>,
    /// Minutes after which there is a checkpoint as well; 0 for no such [default: 0].
    #[arg(long, value_name = "X")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint_minutes: Option<f64>,
    /// Checkpoints kept, the newest [default: 2].
    #[arg(long, value_name = "N")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep: Option<usize>,
    /// Write everything needed to compute the first N steps again elsewhere
    /// [default: 0].
    #[arg(long, value_name = "N")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub record_steps: Option<u64>,
    /// Pairs that are held out of training and looked at again and again, with the
    /// same noise [default: 16].
    #[arg(long, value_name = "N")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe_pairs: Option<u64>,
    /// Steps from one look to the next; 0 for never [default: 50].
    #[arg(long, value_name = "N")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe_every: Option<u64>,
    /// Steps from one set of sample images to the next; 0 for never [default: 500].
    #[arg(long, value_name = "N")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sample_every: Option<u64>,
    /// A file with a prompt in each line [default: captions of the probe pairs].
    #[arg(long, value_name = "FILE.txt")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sample_prompts: Option<PathBuf>,
    /// Denoising steps of a sample image [default: 25].
    #[arg(long, value_name = "N")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sample_steps: Option<usize>,
    /// Guidance scale of sample images [default: 7.5, SDXL 5.0].
    #[arg(long, value_name = "X")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sample_guidance: Option<f64>,

    /// Where to compute: auto, cpu, cuda or cuda:N [default: auto].
    #[arg(long, value_name = "DEVICE", env = "TRAIN_DEVICE")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// Type the networks compute in: f32, bf16 or f16; trained weights are f32
    /// [default: f32].
    #[arg(long, value_name = "TYPE", env = "TRAIN_DTYPE")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dtype: Option<String>,
    /// Threads that decode images [default: 1 on a CPU, for a GPU its share of the
    /// processor's cores, up to 8].
    #[arg(long, value_name = "N", env = "TRAIN_DATA_THREADS")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_threads: Option<usize>,
    /// MiB of pairs read ahead, out of which pairs are mixed [default: 1024].
    #[arg(long, value_name = "MIB")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_memory: Option<u64>,
}

/// `train cache`.
#[derive(Debug, Clone, Args)]
#[command(override_usage = "train cache --model <DIR> --pairs <PATH>... --out <DIR> [OPTIONS]")]
pub struct CacheArguments {
    /// The settings that a file can hold as well.
    #[command(flatten)]
    pub settings: CacheSettings,
    /// Read settings from this TOML file; flags and environment win.
    #[arg(long, value_name = "FILE.toml")]
    pub config: Option<PathBuf>,
    /// Print the resolved settings as TOML and stop.
    #[arg(long)]
    pub print_config: bool,
    /// Start over: remove what an earlier run left in the output folder.
    #[arg(long)]
    pub fresh: bool,
    /// What users of other programs type.
    #[command(flatten)]
    pub resume: ResumeFlag,
}

/// Settings of `train cache`, each unset until flag, environment or file sets it.
#[derive(Debug, Clone, Default, PartialEq, Args, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CacheSettings {
    /// The pipeline whose encoders are used: a folder in the layout of
    /// diffusers, or hf://owner/name@revision.
    #[arg(long, value_name = "DIR")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<PathBuf>,
    /// Pairs in Pick-a-Pic's layout: Parquet files, folders or glob patterns.
    #[arg(long, value_name = "PATH", num_args = 1..)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pairs: Option<Vec<PathBuf>>,
    /// The split to take where files or folders are named by splits, such as
    /// train-00000-of-00645.parquet or train/; several with commas between.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "runkit::config::one_or_more"
    )]
    pub split: Option<Vec<String>>,
    /// The folder to write.
    #[arg(long, value_name = "DIR")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub out: Option<PathBuf>,
    /// Height and width of training images in pixels
    /// [default: the model's own].
    #[arg(long, value_name = "N")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resolution: Option<i64>,
    /// Encode every image flipped as well [default: false].
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hflip: Option<bool>,
    /// Where to compute: auto, cpu, cuda or cuda:N [default: auto].
    #[arg(long, value_name = "DEVICE", env = "TRAIN_DEVICE")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// Type the encoders compute in: f32, bf16 or f16 [default: f32].
    #[arg(long, value_name = "TYPE", env = "TRAIN_DTYPE")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dtype: Option<String>,
    /// Images encoded at once [default: 8].
    #[arg(long, value_name = "N")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch_size: Option<usize>,
    /// Failed pairs that still count as success (exit code 0) [default: 0].
    #[arg(long, value_name = "N")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_failed: Option<u64>,
}
