//! `train plan`: what a run would do, without starting it. Loads no network and writes nothing.

mod cards;
mod memory;

use std::fmt::{self, Write as _};
use std::time::{Duration, Instant};

use anyhow::Result;
use indicatif::{HumanBytes, HumanCount, HumanDuration};
use nn::device::Precision;
use nn::unet::UNetCost;
use nn::vae::VaeConfig;
use serde_json::{Map, Value, json};
use tch::{Device, Kind, Tensor};

pub use self::cards::{Bytes, Cards, Limit};
use self::memory::{Memory, Trained, bytes_of, needs_f32_reference, parameters};
use super::communication::Communication;
use super::export;
use super::opened::OpenedRun;
use crate::config::{Config, Source};
use crate::data::Counts;
use crate::loss::Objective;
use crate::model::BaseModel;
use crate::reference::ReferenceUpdates;

/// The fraction of a plain matrix product's speed that networks reach at most: large ones on a CPU.
const MOST_OF_PEAK: f64 = 0.8;
/// And at least: the toy pipeline, whose tensors are small, and machines that also do other work.
const LEAST_OF_PEAK: f64 = 0.3;
/// How long the matrix product is measured.
const TRIAL: Duration = Duration::from_millis(500);

/// What a run would do.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// Passes over the selected pairs.
    pub epochs: f64,
    /// Parameters of the UNet.
    pub parameters: f64,
    /// Those that are trained: all of them, or the adapters'.
    pub trained: f64,
    /// Bytes of each rank at the peak, by purpose.
    pub memory: Vec<(&'static str, f64)>,
    /// Which GPUs the run fits, and what would make it fit others.
    pub cards: Cards,
    /// Bytes of each rank at the peak: with whole optimizer states, and with `--shard-optimizer`.
    pub peaks: [f64; 2],
    /// What the ranks send each other.
    pub communication: Communication,
    /// What is written, and the free space.
    pub disk: Disk,
    /// Floating point operations of the run.
    pub operations: f64,
    /// The operations per second of a plain matrix product on the device, measured; `None` for a GPU
    /// that is not here.
    pub operations_per_second: Option<f64>,
}

/// Bytes on the disk of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Disk {
    /// Bytes of one checkpoint.
    pub checkpoint: u64,
    /// Bytes of all checkpoints that exist at once, one more than are kept, and of the result.
    pub all: u64,
    /// Free bytes.
    pub free: u64,
}

impl Disk {
    /// What a run needs, and what is free.
    ///
    /// # Errors
    /// If a weights file cannot be read.
    pub fn of(config: &Config, base: &BaseModel) -> Result<Self> {
        let files = &base.files;
        let weights = parameters(&files.unet)?.iter().sum::<f64>();
        let trained = Trained::of(config, base)?;
        let numbers = 4.0 * trained.numbers() + trained.state(config.optimizer.kind);
        // The adapters of a reference are f32.
        let reference = match config.lora.is_some() || needs_f32_reference(config) {
            _ if !Objective::of(&config.settings).uses_reference() => 0.0,
            true => 4.0,
            false => bytes_of(config.precision),
        };
        let average = if config.settings.ema.is_some() { 4.0 } else { 0.0 };
        let checkpoint = (numbers + (reference + average) * trained.numbers()) as u64;
        let pipeline = 4 * weights as u64 + export::copied_bytes(base)?;
        let result = match &config.lora_result {
            None => pipeline,
            Some(result) => {
                let files = 4 * trained.numbers() as u64 * result.files.len() as u64;
                if result.is_merged { files + pipeline } else { files }
            }
        };
        let all = (config.settings.keep as u64 + 1) * checkpoint + result;
        Ok(Self { checkpoint, all, free: runkit::files::free_space(&config.out)? })
    }
}

impl fmt::Display for Disk {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [checkpoint, all, free] = [self.checkpoint, self.all, self.free].map(HumanBytes);
        write!(formatter, "{all}, with {checkpoint} per checkpoint; {free} free")
    }
}

impl Plan {
    /// Bytes at the peak.
    pub fn peak_bytes(&self) -> f64 {
        memory::sum(&self.memory)
    }

    /// Plans a run; `limit` is the memory of the GPU that it should fit.
    ///
    /// # Errors
    /// If a weights file cannot be read.
    pub fn new(config: &Config, opened: &OpenedRun, limit: Limit) -> Result<Self> {
        let base = &opened.base;
        let cost = memory::cost(base)?;
        let ranks = config.launch.world;
        let trained = Trained::of(config, base)?;
        let memory: Memory = memory::memory(config, base)?;
        let is_sharded = config.settings.shard_optimizer;
        let pairs = config.settings.steps as f64 * config.settings.batch_size as f64;
        let operations = pairs * operations_of_pair(config, opened, &cost)?;
        Ok(Self {
            epochs: pairs / opened.counts().selected.max(1) as f64,
            parameters: parameters(&base.files.unet)?.iter().sum(),
            cards: Cards::of(config, base, limit)?,
            memory,
            peaks: [memory::peak(config, base, false)?, memory::peak(config, base, true)?],
            trained: trained.numbers(),
            communication: Communication::new(trained.numbers(), ranks, is_sharded),
            disk: Disk::of(config, base)?,
            operations,
            operations_per_second: match limit {
                Limit::Elsewhere(_) => None,
                _ => Some(product_operations_per_second(config.device, config.precision)?),
            },
        })
    }

    /// The least and the most seconds that the run should take, without communication.
    fn seconds(&self, config: &Config) -> Option<[f64; 2]> {
        let ranks = config.launch.world.max(1) as f64;
        let at_peak = self.operations / self.operations_per_second? / ranks;
        Some([at_peak / MOST_OF_PEAK, at_peak / LEAST_OF_PEAK])
    }

    fn operations_per_pair(&self, config: &Config) -> f64 {
        self.operations / (config.settings.steps * config.settings.batch_size) as f64
    }

    /// The plan as JSON. Bytes, seconds and operations are estimates.
    pub fn json(&self, config: &Config, opened: &OpenedRun) -> Value {
        let Counts {
            rows, selected, failed, dropped, held_out, skipped, uncached, elsewhere, ..
        } = *opened.counts();
        let settings = &config.settings;
        let memory: Map<String, Value> = self
            .memory
            .iter()
            .map(|(name, bytes)| ((*name).to_owned(), json!(*bytes as u64)))
            .collect();
        json!({
            "pairs": {
                "rows": rows,
                "selected": selected,
                "failed": failed,
                "dropped": dropped,
                "held_out": held_out,
                "skipped": skipped,
                "uncached": uncached,
                "elsewhere": elsewhere,
            },
            "preference": settings.preference,
            "ties": {"count": opened.ties.ties, "policy": settings.ties},
            "steps": settings.steps,
            "batch_size": settings.batch_size,
            "micro_batch": settings.micro_batch,
            "ranks": config.launch.world,
            "micro_batches_per_rank": micro_batches_of_each(config),
            "epochs": self.epochs,
            "learning_rate": config.learning_rate.peak(),
            "reference_every": settings.reference_every,
            "resolution": opened.base.resolution,
            "parameters": self.parameters as u64,
            "trained_parameters": self.trained as u64,
            "peak_memory_bytes": self.peak_bytes() as u64,
            "memory_bytes": memory,
            "gpu": self.cards.json(),
            "peak_memory_bytes_by_optimizer": {
                "whole": self.peaks[0] as u64,
                "sharded": self.peaks[1] as u64,
            },
            "communication": self.communication.json(),
            "disk_bytes": {
                "all": self.disk.all,
                "checkpoint": self.disk.checkpoint,
                "free": self.disk.free,
            },
            "operations_per_pair": self.operations_per_pair(config),
            "operations_per_second": self.operations_per_second,
            "seconds": self.seconds(config),
        })
    }

    /// The plan as text.
    pub fn text(&self, config: &Config, opened: &OpenedRun) -> String {
        let counts = opened.counts();
        let settings = &config.settings;
        let bytes = |bytes: f64| HumanBytes(bytes.max(0.0) as u64);
        let mut text = String::new();
        // Writing to a String cannot fail.
        let mut line = |name: &str, value: String| {
            let _ = writeln!(text, "{name:<22}{value}");
        };
        line(
            "pairs",
            format!(
                "{} of {} ({} failed, {} dropped as ties or without a preference, {} held out for the \
                 probe{}{})",
                HumanCount(counts.selected),
                HumanCount(counts.rows),
                HumanCount(counts.failed),
                HumanCount(counts.dropped),
                HumanCount(counts.held_out),
                match (counts.uncached, &config.source) {
                    (0, Source::Pairs(_)) => String::new(),
                    (uncached, _) => format!(", {} not in the cache", HumanCount(uncached)),
                },
                match counts.skipped {
                    0 => String::new(),
                    skipped => format!("; {} skipped", HumanCount(skipped)),
                }
            ),
        );
        if let Some(shortage) = opened.probe_shortage(config) {
            line("", shortage);
        }
        line("preference", settings.preference.to_string());
        line("ties", opened.ties_in_words(config));
        line(
            "steps",
            format!(
                "{} of {} pairs in micro-batches of {}{}: {:.2} epochs",
                HumanCount(settings.steps),
                settings.batch_size,
                settings.micro_batch,
                match config.launch.world {
                    1 => String::new(),
                    ranks =>
                        format!(", {} on each of {ranks} ranks", micro_batches_of_each(config)),
                },
                self.epochs
            ),
        );
        let scaled = match settings.scale_lr {
            false => "not scaled by the batch size".to_owned(),
            true => format!("{:e} · {} pairs per batch", settings.lr, settings.batch_size),
        };
        line("effective lr", format!("{:e} ({scaled})", config.learning_rate.peak()));
        if let Some(warning) = config.short_of_warm_up() {
            line("", warning);
        }
        line("loss", Objective::in_words(settings));
        line("reference", ReferenceUpdates::in_words(settings));
        line("resolution", format!("{0} x {0}", opened.base.resolution));
        let trained = match &config.lora {
            None => String::new(),
            Some(lora) => format!(
                ", and {} of adapters of rank {}, which are trained",
                HumanCount(self.trained as u64),
                lora.rank
            ),
        };
        line("parameters", format!("{}{trained}", HumanCount(self.parameters as u64)));
        let is_alone = config.launch.is_alone();
        let of = if is_alone { "estimate" } else { "estimate, of each rank" };
        line("peak memory", format!("{} ({of})", bytes(self.peak_bytes())));
        for (name, amount) in self.memory.iter().filter(|(_, amount)| *amount > 0.0) {
            line(&format!("  {name}"), bytes(*amount).to_string());
        }
        if !is_alone && !settings.shard_optimizer {
            let peak = bytes(self.peaks[1]);
            line("", format!("with --shard-optimizer {peak}"));
        }
        for (name, value) in self.cards.lines() {
            line(name, value);
        }
        line("disk", self.disk.to_string());
        let per_pair = operations(self.operations_per_pair(config));
        line(
            "work",
            match self.operations_per_second {
                None => format!("{per_pair} per pair"),
                Some(here) => {
                    format!(
                        "{per_pair} per pair; a matrix product here does {}/s",
                        operations(here)
                    )
                }
            },
        );
        if !is_alone {
            line("communication", self.communication.to_string());
        }
        // A thousand years are longer than any run, and do not overflow.
        let duration = |seconds: f64| Duration::try_from_secs_f64(seconds.min(3e10));
        let time = |seconds: f64| HumanDuration(duration(seconds).unwrap_or_default());
        let without = if is_alone { "sample images" } else { "sample images and communication" };
        line(
            "time",
            match self.seconds(config) {
                None => "unknown: the GPU is not here".to_owned(),
                Some([least, most]) => {
                    let (least, most) = (time(least), time(most));
                    format!("{least} to {most} (estimate, without {without})")
                }
            },
        );
        text
    }
}

/// The micro-batches of a step that each rank computes.
fn micro_batches_of_each(config: &Config) -> u64 {
    let of_all_ranks = config.settings.micro_batch * config.launch.world.max(1) as u64;
    config.settings.batch_size / of_all_ranks.max(1)
}

/// Floating point operations, in a unit that leaves few digits.
fn operations(count: f64) -> String {
    let (unit, name) = match count {
        1e12.. => (1e12, "TFLOP"),
        1e9.. => (1e9, "GFLOP"),
        _ => (1e6, "MFLOP"),
    };
    format!("{:.2} {name}", count / unit)
}

/// Operations of one pair: two images through both UNets, the model's gradients, the encoder.
fn operations_of_pair(config: &Config, opened: &OpenedRun, cost: &UNetCost) -> Result<f64> {
    // One forward pass, a backward pass of twice that, and the reference; gradient checkpointing
    // repeats the forward pass. Frozen weights have no gradients: half of a backward pass.
    let backward = if config.lora.is_some() { 1.0 } else { 2.0 };
    let repeated = if config.settings.grad_checkpointing { 1.0 } else { 0.0 };
    let objective = Objective::of(&config.settings);
    let reference = if objective.uses_reference() { 1.0 } else { 0.0 };
    // KTO predicts the whole batch before the first backward pass.
    let surveyed = if objective.needs_reference_point() { 1.0 } else { 0.0 };
    let passes = 1.0 + backward + repeated + reference + surveyed;
    let encoder = match config.source {
        Source::Cache(_) => 0.0,
        Source::Pairs(_) => {
            encoder_operations(&VaeConfig::read(&opened.base.files.vae.config)?, opened)
        }
    };
    Ok(2.0 * (passes * cost.forward_operations + encoder))
}

/// Operations of the autoencoder's encoder.
fn encoder_operations(vae: &VaeConfig, opened: &OpenedRun) -> f64 {
    const KERNEL: f64 = 9.0;
    let mut side = opened.base.resolution as f64;
    let mut products = 0.0;
    let mut input = vae.block_out_channels.first().map_or(0.0, |channels| *channels as f64);
    let levels = vae.block_out_channels.len();
    products += KERNEL * vae.in_channels as f64 * input * side * side;
    for (level, channels) in vae.block_out_channels.iter().enumerate() {
        let output = *channels as f64;
        for layer in 0..vae.layers_per_block {
            let from = if layer == 0 { input } else { output };
            products += KERNEL * (from + output) * output * side * side;
        }
        input = output;
        if level + 1 < levels {
            side /= 2.0;
            products += KERNEL * output * output * side * side;
        }
    }
    // The mid block: two residual blocks, and attention between all positions.
    products += 4.0 * KERNEL * input * input * side * side;
    products += 4.0 * input * input * side * side + 2.0 * input * side.powi(4);
    2.0 * products
}

/// The operations per second of a plain matrix product, measured.
fn product_operations_per_second(device: Device, precision: Precision) -> Result<f64> {
    let side = if device.is_cuda() { 8192 } else { 1024 };
    let kind = if precision.upcasts_bf16(device) { Kind::Float } else { precision.kind() };
    let matrix = Tensor::f_ones([side, side], (Kind::Float, device))?.f_to_kind(kind)?;
    let product = || -> Result<()> {
        // Reading a number waits for the device.
        let _ = matrix.f_matmul(&matrix)?.f_get(0)?.f_get(0)?.f_double_value(&[])?;
        Ok(())
    };
    product()?;
    let start = Instant::now();
    let mut count = 0.0;
    while start.elapsed() < TRIAL {
        product()?;
        count += 1.0;
    }
    let operations = 2.0 * (side as f64).powi(3) * count;
    Ok(operations / start.elapsed().as_secs_f64())
}
