//! What a rank needs in memory at the peak, by arithmetic.

use anyhow::Result;
use media::text::Tokenizer;
use nn::device::Precision;
use nn::lora::Module;
use nn::optimizer::{BLOCK, LEAST_NUMBERS, OptimizerKind};
use nn::pipeline::NetworkFiles;
use nn::unet::UNetCost;
use nn::weights::Weights;
use runkit::path::is_address;

use crate::config::{Config, Source};
use crate::loss::Objective;
use crate::model::BaseModel;
use crate::reference::ReferenceUpdates;

/// Memory of a process with libtorch before it does anything: code, threads, allocators.
const RUNTIME_BYTES_CPU: f64 = 0.53e9;
/// GPU memory of the CUDA context and the workspaces of its libraries.
const RUNTIME_BYTES_CUDA: f64 = 0.9e9;
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

/// The optimizer's states at a rank.
pub(super) fn states(config: &Config, trained: &Trained) -> [f64; 2] {
    let whole = trained.state(config.optimizer.kind);
    [whole, whole / config.launch.world.max(1) as f64]
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
}

impl Trained {
    pub(super) fn of(config: &Config, base: &BaseModel) -> Result<Self> {
        let weights = Weights::open(&base.files.unet.weights)?;
        let (shapes, feed_forward) = match &config.lora {
            None => {
                let shape = |name: &str| weights.shape(name).unwrap_or_default().to_vec();
                (weights.names().map(shape).collect(), true)
            }
            Some(lora) => {
                let modules = lora.targets.modules(&weights)?;
                let shapes =
                    |module: &Module| [module.down_shape(lora.rank), module.up_shape(lora.rank)];
                let feed_forward = modules.iter().any(|module| module.name.contains(".ff."));
                (modules.iter().flat_map(shapes).collect(), feed_forward)
            }
        };
        Ok(Self { shapes, feed_forward })
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

/// Bytes at the peak, which is at the end of the last micro-batch's forward pass.
pub(super) fn memory(config: &Config, base: &BaseModel) -> Result<Memory> {
    let cost = cost(base)?;
    let trained = Trained::of(config, base)?;
    let states = states(config, &trained)[usize::from(config.settings.shard_optimizer)];
    let parameters = parameters(&base.files.unet)?;
    let files = &base.files;
    let count: f64 = parameters.iter().sum();
    let size = bytes_of(config.precision);
    let mut encoders = 0.0;
    for network in std::iter::once(&files.vae).chain(&files.text_encoders) {
        encoders += self::parameters(network)?.iter().sum::<f64>() * size;
    }
    let rows = 2.0 * config.settings.micro_batch as f64;
    let kept = match config.settings.grad_checkpointing {
        false if trained.feed_forward => cost.kept,
        // A frozen weight does not keep its input.
        false => cost.kept - cost.kept_for_feed_forward,
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
    let trained = 4.0 * trained.numbers();
    // Frozen weights are there once, for the model and its reference.
    let (weights, copies, reference) = match config.lora {
        None if needs_f32_reference(config) => (trained, copies, size * count + trained),
        None => (trained, copies, size * count),
        Some(_) => (size * count, 0.0, trained),
    };
    let reference = if Objective::of(&config.settings).uses_reference() { reference } else { 0.0 };
    let average = match config.settings.ema {
        Some(_) if config.ema_device() == config.device => trained,
        _ => 0.0,
    };
    let [activations, boundary] = [kept, boundary].map(|numbers| rows * numbers * size);
    // With a cache the encoders come for sample images only, while there are no gradients and no
    // activations.
    let encoders = match (&config.source, config.settings.sample_every) {
        (Source::Pairs(_), _) => encoders,
        (Source::Cache(_), 0) => 0.0,
        (Source::Cache(_), _) => f64::max(encoders - trained - activations - boundary, 0.0),
    };
    let adapters = if config.lora.is_some() { trained } else { 0.0 };
    Ok(vec![
        ("weights", weights),
        ("adapters", adapters),
        ("cast weights", copies),
        ("optimizer", states),
        // With a single micro-batch per step, gradients appear as activations are freed; but the
        // allocator keeps about as much for the next pass.
        ("gradients", trained),
        ("reference", reference),
        ("moving average", average),
        ("encoders", encoders),
        ("activations", activations),
        ("boundary tensors", boundary),
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
