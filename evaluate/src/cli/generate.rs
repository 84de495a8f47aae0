//! `evaluate generate` as typed.

use std::path::PathBuf;

use clap::Args;
use nn::schedule::SamplerKind;
use runkit::program::{JsonFlag, ResumeFlag};
use runkit::settings::{Settings, SettingsFlags};
use runkit::shard::Shard;
use serde::{Deserialize, Serialize};

use super::defaults::{DEFAULTS, in_help};
use crate::prompts::{Preset, PromptSource};
use crate::sources::{ModelSource, Size};

/// `evaluate generate`.
#[derive(Debug, Clone, Args)]
#[command(mut_args(in_help(&DEFAULTS.generate)))]
#[command(override_usage = "evaluate generate --model <NAME=DIR> --prompts <FILE>...\n           \
    --out <DIR> [OPTIONS]")]
#[command(after_help = "Examples:\n  \
    evaluate generate --model base=sd15/ --prompts prompts.txt --out out/images\n  \
    evaluate generate --model sdxl=hf://stabilityai/stable-diffusion-xl-base-1.0 \\\n      \
    --prompts PartiPrompts.tsv,limit=100 --seeds 2 --scheduler dpmpp-2m --steps 25 --out out/xl")]
pub struct GenerateArguments {
    /// The settings that a file can hold as well.
    #[command(flatten)]
    pub settings: GenerateSettings,
    /// The settings file.
    #[command(flatten)]
    pub file: SettingsFlags,
    /// How the command runs.
    #[command(flatten)]
    pub start: StartFlags,
}

/// How `generate` and `run` start.
#[derive(Debug, Clone, Copy, Args)]
#[command(next_help_heading = "Run")]
pub struct StartFlags {
    /// Open everything, load the networks, print what would be done, the disk that it needs and how
    /// long it takes, and stop.
    #[arg(long)]
    pub dry_run: bool,
    /// Start over: delete the images of an earlier run of this output.
    #[arg(long)]
    pub fresh: bool,
    /// A flag of other programs.
    #[command(flatten)]
    pub resume: ResumeFlag,
    /// Which shard of the work is done.
    #[command(flatten)]
    pub share: ShardFlag,
    /// The form of the summary.
    #[command(flatten)]
    pub json: JsonFlag,
}

/// Which shard of the work a process of `generate`, `score` and `run` does.
#[derive(Debug, Clone, Copy, Args)]
pub struct ShardFlag {
    /// Do shard I of N of the batches, counted from 0, or that of a SLURM array's task: slurm, or
    /// slurm/N if the array is not regular. The process that completes the last batch writes the
    /// results [default: all, or what torchrun or srun deals to this process].
    #[arg(long, value_name = "I/N", help_heading = "Run")]
    pub shard: Option<Shard>,
}

/// Settings of `evaluate generate`, each unset until flag, environment or file sets it.
#[derive(Debug, Clone, Default, Args, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GenerateSettings {
    /// A model: a name, and a pipeline's folder in the layout of diffusers or
    /// hf://owner/name@revision. unet= names another folder, or a name on the hub, whose UNet
    /// replaces the pipeline's. lora= names a file of adapters, whose form does not matter, and
    /// how much of them is added, as lora=style.safetensors:0.8; several are added together.
    /// Repeat for more models.
    #[arg(
        long,
        value_name = "NAME=DIR[,unet=DIR][,lora=FILE[:SCALE]]",
        help_heading = "Input and output"
    )]
    pub model: Option<Vec<ModelSource>>,
    /// Files of prompts: .tsv, .csv, .json, .jsonl, .parquet (or a folder, a pattern or an address
    /// of them, such as s3://BUCKET/DIR), or text with a prompt in each line. Each file is a set, named as the file or with name=. The
    /// prompts are in the column prompt, caption or text, or in that of column=; their categories
    /// in category or style, or in that of category=. limit= takes the first N.
    #[arg(long, value_name = "FILE[,OPTION=VALUE]", num_args = 1.., help_heading = "Input and output")]
    pub prompts: Option<Vec<PromptSource>>,
    /// The split to take of Parquet files whose names or folders name splits, such as
    /// test_unique-00000-of-00001.parquet.
    #[arg(long, value_name = "NAME", help_heading = "Input and output")]
    pub split: Option<String>,
    /// Take only the first N prompts of each set.
    #[arg(
        long,
        value_name = "N",
        allow_negative_numbers = true,
        help_heading = "Input and output"
    )]
    pub limit: Option<usize>,
    /// Take the first prompts of each set, as many as in the paper's tables: paper-sd15 (297 of
    /// Pick-a-Pic, 1129 of PartiPrompts, 150 of HPD), paper-sdxl (100 of each) or paper-sd21 (300
    /// of Pick-a-Pic). The beginning of its name tells which set it is: pickapic, parti, hpd. The
    /// numbers count safe prompts: use the output of filter-prompts. hps-v2 takes 800 of each style
    /// of HPS v2's benchmark (sets anime, concept-art, paintings, photo), one image each unless
    /// --seeds says otherwise, and run adds its table.
    /// geneval-prompts takes GenEval's 553 (geneval, evaluation_metadata), four images each.
    #[arg(long, value_name = "NAME", conflicts_with = "limit", help_heading = "Input and output")]
    pub preset: Option<Preset>,
    /// The folder to write.
    #[arg(long, value_name = "DIR", help_heading = "Input and output")]
    pub out: Option<PathBuf>,
    /// Images of each prompt.
    #[arg(long, value_name = "N", allow_negative_numbers = true, help_heading = "Sampling")]
    #[arg(visible_alias = "num-images-per-prompt")]
    pub seeds: Option<u64>,
    /// The first seed; the others follow. Noise uses the low 32 bits of a seed.
    #[arg(long, value_name = "N", allow_negative_numbers = true, help_heading = "Sampling")]
    pub base_seed: Option<u64>,
    /// Denoising steps.
    #[arg(long, value_name = "N", allow_negative_numbers = true, help_heading = "Sampling")]
    #[arg(visible_alias = "num-inference-steps")]
    pub steps: Option<usize>,
    /// Classifier-free guidance scale; 1 or less turns it off [default: 7.5, SDXL 5.0].
    #[arg(long, value_name = "X", allow_negative_numbers = true, help_heading = "Sampling")]
    #[arg(visible_alias = "guidance-scale", value_parser = super::finite::<f64>)]
    pub guidance: Option<f64>,
    /// ddim, pndm, euler or dpmpp-2m [default: the model's own].
    #[arg(long, value_name = "NAME", help_heading = "Sampling")]
    pub scheduler: Option<SamplerKind>,
    /// Height, or height and width, in pixels [default: the model's own].
    #[arg(long, value_name = "H|HxW", help_heading = "Sampling")]
    pub size: Option<Size>,
    /// Negative prompt [default: none].
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true, help_heading = "Sampling")]
    #[arg(alias = "negative")]
    #[serde(alias = "negative")]
    pub negative_prompt: Option<String>,
    /// Images generated together [default: as many as make 512x512 pixels on a CPU, 16 times as
    /// many on a GPU; at most 64].
    #[arg(long, value_name = "N", allow_negative_numbers = true, help_heading = "Compute")]
    #[arg(env = "EVALUATE_BATCH_SIZE")]
    pub batch_size: Option<usize>,
    /// Where to compute: auto, cpu, cuda or cuda:N.
    #[arg(long, value_name = "DEVICE", env = "EVALUATE_DEVICE", help_heading = "Compute")]
    pub device: Option<String>,
    /// The dtype of the networks: f32 (exact), tf32 (f32 with products of 10-bit
    /// mantissas), bf16, f16, or auto: tf32 on a GPU since Ampere, else f32.
    #[arg(long, value_name = "DTYPE", env = "EVALUATE_DTYPE", help_heading = "Compute")]
    pub dtype: Option<String>,
}

impl Settings for GenerateSettings {
    fn paths(&mut self) -> Vec<&mut PathBuf> {
        let models = self.model.iter_mut().flatten();
        let of_models = models.flat_map(|model| {
            let loras = model.loras.iter_mut().map(|lora| &mut lora.path);
            [&mut model.folder].into_iter().chain(&mut model.unet).chain(loras)
        });
        let sources = self.prompts.iter_mut().flatten();
        let others = sources.map(|source| &mut source.file).chain(&mut self.out);
        of_models.chain(others).collect()
    }
}
