//! What a rank needs in memory at the peak, by arithmetic.

use anyhow::Result;
use media::text::Tokenizer;
use nn::device::Precision;
use nn::lora::Module;
use nn::optimizer::{BLOCK, LEAST_NUMBERS, OptimizerKind};
use nn::pipeline::NetworkFiles;
use nn::unet::UNetCost;
use nn::vae::VaeConfig;
use nn::weights::Weights;
use runkit::path::is_address;

use crate::config::{Config, Source};
use crate::data::decoded_ahead;
use crate::loss::Objective;
use crate::model::BaseModel;
use crate::reference::ReferenceUpdates;

/// Memory of a process with libtorch before it does anything: code, threads, allocators.
const RUNTIME_BYTES_CPU: f64 = 0.53e9;
/// GPU memory of the CUDA context and the workspaces of its libraries.
const RUNTIME_BYTES_CUDA: f64 = 0.9e9;
/// The part of the memory of tensors that the allocator keeps for the next ones on top, on a CPU: see
/// `nn::device::reuse_memory`.
const KEPT_FOR_REUSE: f64 = 1.0 / 16.0;
/// Tensors of the largest size that a layer's backward pass has beside the kept activations.
const BOUNDARY_TENSORS: f64 = 6.0;

/// Bytes by purpose.
pub(super) type Memory = Vec<(&'static str, f64)>;

/// The sum.
pub(super) fn sum(memory: &Memory) -> f64 {
    memory.iter().map(|(_, bytes)| bytes).sum()
}

/// The cost of a row of a batch.
pub(super) fn cost(base: &BaseModel) -> Result<UNetCost> {
    let [_, height, width] = base.latent_size;
    let tokens = base.tokenizers.first().map_or(77, Tokenizer::context_length);
    Ok(base.unet.cost(height, width, i64::try_from(tokens)?))
}

/// The bytes at the peak, with whole or with sharded optimizer states.
pub(super) fn peak(config: &Config, base: &BaseModel, is_sharded: bool) -> Result<f64> {
    let mut config = config.clone();
    config.settings.shard_optimizer = is_sharded;
    Ok(sum(&memory(&config, base)?))
}

/// The optimizer's states at a rank.
fn states(config: &Config, trained: &Trained) -> f64 {
    let whole = trained.state(config.optimizer.kind);
    match config.settings.shard_optimizer {
        true => whole / config.launch.world.max(1) as f64,
        false => whole,
    }
}

/// The number of elements of every weight of a network.
pub(super) fn parameters(files: &NetworkFiles) -> Result<Vec<f64>> {
    let weights = Weights::open(&files.weights)?;
    let count = |name: &str| {
        weights.shape(name).map_or(0.0, |shape| shape.iter().map(|size| *size as f64).product())
    };
    Ok(weights.names().map(count).collect())
}

/// The shapes of the tensors that are trained: the UNet's weights, or its adapters.
pub(super) struct Trained {
    shapes: Vec<Vec<i64>>,
    /// Whether feed-forward networks are among them.
    feed_forward: bool,
    /// Whether the projections around the blocks of transformers are.
    projections: bool,
}

impl Trained {
    pub(super) fn of(config: &Config, base: &BaseModel) -> Result<Self> {
        let weights = Weights::open(&base.files.unet.weights)?;
        let (shapes, [feed_forward, projections]) = match &config.lora {
            None => {
                let shape = |name: &str| weights.shape(name).unwrap_or_default().to_vec();
                (weights.names().map(shape).collect(), [true, true])
            }
            Some(lora) => {
                let modules = lora.targets.modules(&weights)?;
                let shapes =
                    |module: &Module| [module.down_shape(lora.rank), module.up_shape(lora.rank)];
                let adapted = [".ff.", ".proj_"]
                    .map(|part| modules.iter().any(|module| module.name.contains(part)));
                (modules.iter().flat_map(shapes).collect(), adapted)
            }
        };
        Ok(Self { shapes, feed_forward, projections })
    }

    /// How many numbers they have.
    pub(super) fn numbers(&self) -> f64 {
        let count = |shape: &Vec<i64>| shape.iter().map(|size| *size as f64).product::<f64>();
        self.shapes.iter().map(count).sum()
    }

    /// The bytes of the optimizer's state.
    pub(super) fn state(&self, kind: OptimizerKind) -> f64 {
        self.shapes.iter().map(|shape| state_bytes(kind, shape)).sum()
    }
}

/// The bytes of the optimizer's state of a tensor.
fn state_bytes(kind: OptimizerKind, shape: &[i64]) -> f64 {
    let shape: Vec<f64> = shape.iter().map(|size| *size as f64).collect();
    let all: f64 = shape.iter().product();
    match (kind, &shape[..]) {
        // Two moments of a byte, and their largest magnitudes in each block.
        (OptimizerKind::Adamw8bit, _) if all >= LEAST_NUMBERS as f64 => {
            2.0 * (all + 4.0 * (all / BLOCK as f64).ceil())
        }
        (OptimizerKind::Adamw | OptimizerKind::Adamw8bit, _) => 8.0 * all,
        // One row and one column replace the last two dimensions.
        (OptimizerKind::Adafactor, [.., rows, columns]) => 4.0 * (all / columns + all / rows),
        (OptimizerKind::Adafactor, _) => 4.0 * all,
    }
}

pub(super) fn bytes_of(precision: Precision) -> f64 {
    match precision {
        Precision::F32 => 4.0,
        Precision::Bf16 | Precision::F16 => 2.0,
    }
}

/// Whether the reference model is kept in f32 as well.
pub(super) fn needs_f32_reference(config: &Config) -> bool {
    ReferenceUpdates::of(&config.settings).need_f32(config.precision)
}

/// Bytes at the peak: what stays, and the most that a step, the encoders or the sample images take
/// beside it.
pub(super) fn memory(config: &Config, base: &BaseModel) -> Result<Memory> {
    let settings = &config.settings;
    let cost = cost(base)?;
    let trained = Trained::of(config, base)?;
    let states = states(config, &trained);
    let count: f64 = parameters(&base.files.unet)?.iter().sum();
    let size = bytes_of(config.precision);
    let on_gpu = config.device.is_cuda();
    let rows = 2.0 * settings.micro_batch as f64;
    let checkpointing = settings.grad_checkpointing;
    let kept = match checkpointing {
        true => cost.kept_with_checkpointing + cost.largest_part,
        // A frozen weight does not keep its input.
        false => {
            let frozen = |is_trained: bool, kept: f64| if is_trained { 0.0 } else { kept };
            cost.kept
                - frozen(trained.feed_forward, cost.kept_for_feed_forward)
                - frozen(trained.projections, cost.kept_for_projections)
        }
    };
    let [activations, boundary] =
        [kept, BOUNDARY_TENSORS * cost.largest_tensor].map(|numbers| rows * numbers * size);
    // Each weight is cast once a step, to a copy that all passes read; with gradient checkpointing
    // whenever its part computes.
    let copies = match config.precision {
        Precision::F32 => 0.0,
        upcast if upcast.upcasts_bf16(config.device) => 0.0,
        _ if checkpointing => cost.largest_part_weights * size,
        Precision::Bf16 | Precision::F16 => count * size,
    };
    let trained = 4.0 * trained.numbers();
    // Frozen weights are there once, for the model and its reference.
    let (weights, adapters, copies, reference) = match config.lora {
        None if needs_f32_reference(config) => (trained, 0.0, copies, size * count + trained),
        None => (trained, 0.0, copies, size * count),
        Some(_) => (size * count, trained, 0.0, trained),
    };
    let reference = if Objective::of(settings).uses_reference() { reference } else { 0.0 };
    let average = match settings.ema {
        Some(_) if config.ema_device() == config.device => trained,
        _ => 0.0,
    };
    // With a single micro-batch a step, gradients appear as activations are freed. Several ranks keep
    // them in one tensor.
    let is_single = config.launch.is_alone() && settings.batch_size == settings.micro_batch;
    let gradients = match is_single {
        true => f64::max(trained - activations - boundary, 0.0),
        false => trained,
    };
    let mut memory = vec![
        ("weights", weights),
        ("adapters", adapters),
        ("cast weights", copies),
        ("optimizer", states),
        ("gradients", gradients),
        ("reference", reference),
        ("moving average", average),
        ("activations", activations),
        ("boundary tensors", boundary),
    ];
    let (resident, passing) = of_encoders(config, base)?;
    memory.push(("encoders", resident));
    // Images are encoded while there are no activations, and sampled while there are no gradients either.
    let (encoding, sampling) = passing;
    let step = gradients + activations + boundary;
    let accumulated = if is_single { 0.0 } else { gradients };
    let beyond = f64::max(accumulated + encoding, sampling) - step;
    memory.push(("encoding and sampling", beyond.max(0.0)));
    if !on_gpu {
        memory.push(("prefetch buffer", data_bytes(config, base)));
        // Frozen f32 weights are pages of their file.
        let is_mapped = config.lora.is_some() && config.precision == Precision::F32;
        let mapped = if is_mapped { weights } else { 0.0 };
        memory.push(("kept for reuse", (sum(&memory) - mapped) * KEPT_FOR_REUSE));
    }
    let runtime = if on_gpu { RUNTIME_BYTES_CUDA } else { RUNTIME_BYTES_CPU };
    memory.push(("libtorch runtime", runtime));
    Ok(memory)
}

/// Bytes of the encoders that stay, and those that pass: while images are encoded, and while sample
/// images are sampled, for which a run with a cache loads the encoders again.
fn of_encoders(config: &Config, base: &BaseModel) -> Result<(f64, (f64, f64))> {
    let files = &base.files;
    let size = bytes_of(config.precision);
    let mut weights = 0.0;
    for network in std::iter::once(&files.vae).chain(&files.text_encoders) {
        weights += parameters(network)?.iter().sum::<f64>() * size;
    }
    let vae = VaeConfig::read(&files.vae.config)?;
    let images = 2 * i64::try_from(config.settings.micro_batch)?;
    let side = base.resolution;
    let encoding = vae.encoding_numbers(images, side, side) * size;
    let sampling = match config.settings.sample_every {
        0 => 0.0,
        _ => vae.decoding_numbers(1, side, side) * size,
    };
    Ok(match config.source {
        Source::Pairs(_) => (weights, (encoding, sampling)),
        Source::Cache(_) if sampling > 0.0 => (0.0, (weights, weights + sampling)),
        // For the empty caption, at the start.
        Source::Cache(_) => (0.0, (weights, 0.0)),
    })
}

/// Bytes of pairs that are prefetched, at most: as they are read, and decoded.
fn data_bytes(config: &Config, base: &BaseModel) -> f64 {
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
    let limit = config.settings.data_bytes();
    let decoded = match &config.source {
        Source::Cache(_) => 0,
        Source::Pairs(_) => {
            // Two images of three channels, f32.
            let pair = 24 * base.resolution.unsigned_abs().pow(2);
            pair * decoded_ahead(limit, config.settings.data_threads, pair)
        }
    };
    all.min(limit.saturating_sub(decoded)).saturating_add(decoded) as f64
}
