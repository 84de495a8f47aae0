//! `train plan`: what a run would do, without starting it. Loads no network and writes nothing.

use std::fmt::{self, Write as _};
use std::time::{Duration, Instant};

use anyhow::Result;
use indicatif::{HumanBytes, HumanCount, HumanDuration};
use media::text::Tokenizer;
use nn::device::Precision;
use nn::optimizer::OptimizerKind;
use nn::pipeline::NetworkFiles;
use nn::unet::UNetCost;
use nn::vae::VaeConfig;
use nn::weights::Weights;
use runkit::path::is_address;
use serde_json::{Map, Value, json};
use tch::{Device, Kind, Tensor};

use super::communication::Communication;
use super::export;
use super::opened::OpenedRun;
use crate::config::{Config, Source};
use crate::data::Counts;
use crate::model::BaseModel;

/// Memory of a process with libtorch before it does anything: code, threads, allocators.
const RUNTIME_BYTES_CPU: f64 = 0.53e9;
/// GPU memory of the CUDA context and the workspaces of its libraries.
const RUNTIME_BYTES_CUDA: f64 = 0.9e9;
/// Tensors of the largest size that a layer's backward pass has beside the kept activations.
const BOUNDARY_TENSORS: f64 = 6.0;
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
    /// Bytes of each rank at the peak, by purpose.
    pub memory: Vec<(&'static str, f64)>,
    /// Bytes of the optimizer's states at a rank: whole, and with `--shard-optimizer`.
    pub states: [f64; 2],
    /// What the ranks send each other.
    pub communication: Communication,
    /// What is written, and the free space.
    pub disk: Disk,
    /// Floating point operations of the run.
    pub operations: f64,
    /// The operations per second of a plain matrix product on the device, measured.
    pub operations_per_second: f64,
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
        let numbers = 4.0 * weights + 4.0 * state(config.optimizer.kind, &files.unet)?;
        let checkpoint = (numbers + bytes_of(config.precision) * weights) as u64;
        let result = 4 * weights as u64 + export::copied_bytes(base)?;
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
        self.memory.iter().map(|(_, bytes)| bytes).sum()
    }

    /// Bytes at the peak with whole or with sharded optimizer states.
    fn peak_bytes_with(&self, config: &Config, is_sharded: bool) -> f64 {
        let [present, other] = [config.settings.shard_optimizer, is_sharded]
            .map(|sharded| self.states[usize::from(sharded)]);
        self.peak_bytes() - present + other
    }

    /// Plans a run.
    ///
    /// # Errors
    /// If a weights file cannot be read.
    pub fn new(config: &Config, opened: &OpenedRun) -> Result<Self> {
        let base = &opened.base;
        let [_, height, width] = base.latent_size;
        let tokens = base.tokenizers.first().map_or(77, Tokenizer::context_length);
        let cost = base.unet.cost(height, width, i64::try_from(tokens)?);
        let parameters = parameters(&base.files.unet)?;
        let ranks = config.launch.world;
        let whole = 4.0 * state(config.optimizer.kind, &base.files.unet)?;
        let states = [whole, whole / ranks.max(1) as f64];
        let is_sharded = config.settings.shard_optimizer;
        let memory = memory(config, opened, &cost, &parameters, states[usize::from(is_sharded)])?;
        let pairs = config.settings.steps as f64 * config.settings.batch_size as f64;
        let operations = pairs * operations_of_pair(config, opened, &cost)?;
        Ok(Self {
            epochs: pairs / opened.counts().selected.max(1) as f64,
            parameters: parameters.iter().sum(),
            memory,
            states,
            communication: Communication::new(parameters.iter().sum(), ranks, is_sharded),
            disk: Disk::of(config, base)?,
            operations,
            operations_per_second: product_operations_per_second(config.device, config.precision)?,
        })
    }

    /// The least and the most seconds that the run should take, without communication.
    fn seconds(&self, config: &Config) -> [f64; 2] {
        let ranks = config.launch.world.max(1) as f64;
        let at_peak = self.operations / self.operations_per_second / ranks;
        [at_peak / MOST_OF_PEAK, at_peak / LEAST_OF_PEAK]
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
            "peak_memory_bytes": self.peak_bytes() as u64,
            "memory_bytes": memory,
            "peak_memory_bytes_by_optimizer": {
                "whole": self.peak_bytes_with(config, false) as u64,
                "sharded": self.peak_bytes_with(config, true) as u64,
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
        line(
            "reference",
            match settings.reference_every {
                0 => "frozen at the base model".to_owned(),
                every => {
                    let times = settings.steps.saturating_sub(1) / every;
                    format!("updated every {every} steps, {times} times")
                }
            },
        );
        line("resolution", format!("{0} x {0}", opened.base.resolution));
        line("parameters", HumanCount(self.parameters as u64).to_string());
        let is_alone = config.launch.is_alone();
        let of = if is_alone { "estimate" } else { "estimate, of each rank" };
        line("peak memory", format!("{} ({of})", bytes(self.peak_bytes())));
        for (name, amount) in self.memory.iter().filter(|(_, amount)| *amount > 0.0) {
            line(&format!("  {name}"), bytes(*amount).to_string());
        }
        if !is_alone && !settings.shard_optimizer {
            let peak = bytes(self.peak_bytes_with(config, true));
            line("", format!("with --shard-optimizer {peak}"));
        }
        line("disk", self.disk.to_string());
        line(
            "work",
            format!(
                "{} per pair; a matrix product here does {}/s",
                operations(self.operations_per_pair(config)),
                operations(self.operations_per_second)
            ),
        );
        if !is_alone {
            line("communication", self.communication.to_string());
        }
        // A thousand years are longer than any run, and do not overflow.
        let duration = |seconds: f64| Duration::try_from_secs_f64(seconds.min(3e10));
        let [least, most] = self
            .seconds(config)
            .map(|seconds| HumanDuration(duration(seconds).unwrap_or_default()));
        let without = if is_alone { "sample images" } else { "sample images and communication" };
        line("time", format!("{least} to {most} (estimate, without {without})"));
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

/// The number of elements of every weight of a network.
fn parameters(files: &NetworkFiles) -> Result<Vec<f64>> {
    let weights = Weights::open(&files.weights)?;
    let count = |name: &str| {
        weights.shape(name).map_or(0.0, |shape| shape.iter().map(|size| *size as f64).product())
    };
    Ok(weights.names().map(count).collect())
}

/// The number of elements of the optimizer's state.
fn state(kind: OptimizerKind, files: &NetworkFiles) -> Result<f64> {
    let weights = Weights::open(&files.weights)?;
    let numbers = |name: &str| {
        let shape: Vec<f64> =
            weights.shape(name).unwrap_or_default().iter().map(|size| *size as f64).collect();
        let all: f64 = shape.iter().product();
        match (kind, &shape[..]) {
            (OptimizerKind::Adamw, _) => 2.0 * all,
            // One row and one column replace the last two dimensions.
            (OptimizerKind::Adafactor, [.., rows, columns]) => all / columns + all / rows,
            (OptimizerKind::Adafactor, _) => all,
        }
    };
    Ok(weights.names().map(numbers).sum())
}

fn bytes_of(precision: Precision) -> f64 {
    match precision {
        Precision::F32 => 4.0,
        Precision::Bf16 | Precision::F16 => 2.0,
    }
}

/// Bytes at the peak, which is at the end of the last micro-batch's forward pass.
fn memory(
    config: &Config,
    opened: &OpenedRun,
    cost: &UNetCost,
    parameters: &[f64],
    states: f64,
) -> Result<Vec<(&'static str, f64)>> {
    let files = &opened.base.files;
    let count: f64 = parameters.iter().sum();
    let size = bytes_of(config.precision);
    let mut encoders = 0.0;
    for network in std::iter::once(&files.vae).chain(&files.text_encoders) {
        encoders += self::parameters(network)?.iter().sum::<f64>() * size;
    }
    let rows = 2.0 * config.settings.micro_batch as f64;
    let kept = match config.settings.grad_checkpointing {
        false => cost.kept,
        true => cost.kept_with_checkpointing + cost.largest_part,
    };
    let boundary = BOUNDARY_TENSORS * cost.largest_tensor;
    // Each weight is cast once a step, to a copy that all passes read.
    let copies = match config.precision {
        Precision::F32 => 0.0,
        upcast if upcast.upcasts_bf16(config.device) => 0.0,
        Precision::Bf16 | Precision::F16 => count * size,
    };
    let runtime = if config.device.is_cuda() { RUNTIME_BYTES_CUDA } else { RUNTIME_BYTES_CPU };
    let prefetch = if config.device.is_cuda() { 0.0 } else { data_bytes(config) };
    Ok(vec![
        ("weights", 4.0 * count),
        ("cast weights", copies),
        ("optimizer", states),
        // With a single micro-batch per step, gradients appear as activations are freed; but the
        // allocator keeps about as much for the next pass.
        ("gradients", 4.0 * count),
        ("reference", size * count),
        ("encoders", encoders),
        ("activations", rows * kept * size),
        ("boundary tensors", rows * boundary * size),
        ("prefetch buffer", prefetch),
        ("libtorch runtime", runtime),
    ])
}

/// Bytes of pairs that are prefetched, at most.
fn data_bytes(config: &Config) -> f64 {
    let length = |path: &std::path::Path| path.metadata().map_or(0, |found| found.len());
    let all: u64 = match &config.source {
        // What lies elsewhere is taken for large.
        Source::Pairs(inputs) if inputs.pairs.iter().any(|pairs| is_address(pairs)) => u64::MAX,
        Source::Cache(folder) if is_address(folder) => u64::MAX,
        Source::Pairs(inputs) => {
            let files = inputs.find();
            files.unwrap_or_default().iter().map(|file| length(&file.path)).sum()
        }
        Source::Cache(folder) => {
            let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
            entries.map(|entry| length(&entry.path())).sum()
        }
    };
    all.min(config.settings.data_bytes()) as f64
}

/// Operations of one pair: two images through both UNets, the model's gradients, the encoder.
fn operations_of_pair(config: &Config, opened: &OpenedRun, cost: &UNetCost) -> Result<f64> {
    // One forward pass, a backward pass of twice that, and the reference; gradient checkpointing
    // repeats the forward pass.
    let passes = if config.settings.grad_checkpointing { 5.0 } else { 4.0 };
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
