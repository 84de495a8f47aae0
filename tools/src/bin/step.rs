//! Takes training steps on tensors from a file: the side of this project in
//! `scripts/bench/train_step.py`. One step is what `train run` does with a micro-batch that is a
//! whole batch: the reference's prediction, the model's, the loss, gradients, clipping, the update.
//!
//! ```text
//! cargo run --release -p balanceddpo-tools --bin step -- key=value...
//! ```
//!
//! `model=` the folder of a UNet, `schedule=` a scheduler_config.json, `input=` a safetensors file
//! with the tensors of a record (latents_0 latents_1 noise timesteps prompt_embeds label_p
//! weight_w, for SDXL pooled_embeds and time_ids); `precision=f32|bf16|f16 device=cpu threads=N
//! repeats=N` (steps after the first one), `checkpointing=true`, `optimizer=adamw|adafactor`,
//! `beta=5000 lr=1e-6`; `rank=8` trains adapters of the attention, those of `adapters=` if it names a
//! file, against the base model. `output=` takes z, losses and the gradient norm of the last step.
//! `zero=true` reports z and the loss where model and reference are equal: before the steps, and
//! after them when the reference is updated, each with and without gradient checkpointing. One line
//! of JSON goes to standard output: the seconds of loading, of the first step, and of the others
//! and their parts, and the peaks of resident memory and of GPU memory.
#![allow(non_snake_case, reason = "names of tensors carry their shape")]
#![expect(clippy::print_stdout, reason = "a program")]

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use anyhow::Result;
use nn::device::{self, Precision};
use nn::lora::{LoraConfig, Targets};
use nn::optimizer::{
    Adafactor, AdafactorConfig, AdamW, AdamW8bit, AdamWConfig, Optimizer, OptimizerKind,
};
use nn::schedule::{ScheduleConfig, TrainingSchedule};
use nn::unet::{UNet, UNetConfig, WEIGHT_FILES};
use nn::weights::{Weights, write_safetensors};
use serde_json::json;
use tch::{Device, Kind};
use tools::{Options, peak_resident_bytes, wait};
use train::loss::Objective;
use train::step::{Accumulation, MicroBatch, predict};

fn main() -> Result<()> {
    device::reuse_memory();
    let mut options = Options::read(std::env::args().skip(1))?;
    let threads = options.parse("threads", device::threads())?;
    device::set_threads(threads);
    let device = device::parse(&options.parse("device", "cpu".to_owned())?)?;
    let precision = options.parse("precision", Precision::F32)?;
    let (beta, learning_rate) = (options.parse("beta", 5000.0)?, options.parse("lr", 1e-6)?);
    let objective = Objective::dpo(beta);
    let repeats = options.parse("repeats", 0_usize)?;
    let checkpointing = options.parse("checkpointing", false)?;
    let optimizer = options.parse("optimizer", OptimizerKind::Adamw)?;
    let (model, input) = (options.path("model")?, options.path("input")?);
    let schedule = ScheduleConfig::read(&options.path("schedule")?)?;
    let zero = options.parse("zero", false)?;
    let rank = options.parse("rank", 0_i64)?;
    let adapters = options.take("adapters");
    let output = options.take("output");
    options.finish()?;

    let start = Instant::now();
    let batch = read_batch(&input, device)?;
    let schedule = TrainingSchedule::new(&schedule, device)?;
    let config = UNetConfig::read(&model.join("config.json"))?;
    let open = || Weights::open_folder(&model, WEIGHT_FILES);
    let (mut unet, mut reference) = match rank {
        0 => (
            match checkpointing {
                true => UNet::load_for_checkpointing(&config, &open()?, device, precision)?,
                false => UNet::load_for_training(&config, &open()?, device, precision)?,
            },
            UNet::load_reference(&config, &open()?, device, precision)?,
        ),
        rank => {
            let lora = LoraConfig { rank, alpha: rank as f64, targets: Targets::Attention };
            let stored = adapters.map(Weights::open).transpose()?;
            let (stored, seed) = (stored.as_ref(), |place: u64| place);
            let weights = open()?;
            let unet = UNet::load_with_adapters(
                &config, &weights, &lora, stored, &seed, device, precision,
            )?;
            let reference = unet.adapter_reference(None)?;
            (unet, reference)
        }
    };
    unet.set_gradient_checkpointing(checkpointing);
    let mut equal = Vec::new();
    // The largest |z| and the mean loss of the batch, with and without gradient checkpointing.
    let mut look = |unet: &mut UNet, reference: &UNet, when: &str| -> Result<()> {
        for checkpointing in [false, true] {
            unet.set_gradient_checkpointing(checkpointing);
            let predictions = predict(unet, reference, &schedule, &objective, &batch)?;
            let z = predictions.logits_P.f_abs()?.f_max()?.f_double_value(&[])?;
            let loss = predictions.losses_P.f_mean(Kind::Double)?.f_double_value(&[])?;
            let row = json!({"when": when, "checkpointing": checkpointing, "z": z, "loss": loss});
            equal.push(row);
        }
        Ok(())
    };
    if zero {
        look(&mut unet, &reference, "start")?;
        unet.set_gradient_checkpointing(checkpointing);
    }
    let parameters: Vec<_> = unet
        .parameters()
        .iter()
        .map(|(name, value)| (name.clone(), value.shallow_clone()))
        .collect();
    let parameters = parameters.as_slice();
    let mut optimizer: Box<dyn Optimizer> = match optimizer {
        OptimizerKind::Adamw => Box::new(AdamW::new(parameters, AdamWConfig::default())?),
        OptimizerKind::Adamw8bit => Box::new(AdamW8bit::new(parameters, AdamWConfig::default())?),
        OptimizerKind::Adafactor => {
            Box::new(Adafactor::new(parameters, AdafactorConfig::default())?)
        }
    };
    wait(device);
    let load_seconds = start.elapsed().as_secs_f64();

    let mut parts: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    let mut outputs = Vec::new();
    for _ in 0..=repeats {
        let start = Instant::now();
        let predictions = predict(&unet, &reference, &schedule, &objective, &batch)?;
        wait(device);
        let forward = start.elapsed().as_secs_f64();
        let mut accumulation = Accumulation::new(u64::try_from(batch.len())?);
        accumulation.add(&batch, &predictions)?;
        wait(device);
        let backward = start.elapsed().as_secs_f64();
        outputs = vec![
            ("z".to_owned(), predictions.logits_P.f_detach()?),
            ("loss".to_owned(), predictions.losses_P.f_detach()?),
        ];
        drop(predictions);
        let norm = accumulation.finish(parameters, Some(1.0))?;
        wait(device);
        let clipped = start.elapsed().as_secs_f64();
        optimizer.step(learning_rate)?;
        unet.cast_weights()?;
        wait(device);
        let updated = start.elapsed().as_secs_f64();
        optimizer.zero_grad()?;
        let seconds = start.elapsed().as_secs_f64();
        for (name, seconds) in [
            ("forward_seconds", forward),
            ("backward_seconds", backward - forward),
            ("clip_seconds", clipped - backward),
            ("optimizer_seconds", updated - clipped),
            ("seconds", seconds),
        ] {
            parts.entry(name).or_default().push(seconds);
        }
        outputs.push(("grad_norm".to_owned(), norm));
    }
    if zero {
        reference.copy_weights_from(&unet)?;
        look(&mut unet, &reference, "updated")?;
    }
    if let Some(output) = output {
        write_safetensors(Path::new(&output), &outputs)?;
    }
    let first_seconds = parts.get("seconds").and_then(|all| all.first()).copied();
    let mut report = json!({
        "precision": precision,
        "threads": device::threads(),
        "load_seconds": load_seconds,
        "first_seconds": first_seconds,
        "peak_rss_bytes": peak_resident_bytes()?,
        "peak_device": device::peak_memory(device)?,
    });
    if zero {
        report["zero"] = json!(equal);
    }
    for (name, seconds) in parts {
        report[name] = json!(seconds[1..]);
    }
    println!("{report}");
    Ok(())
}

fn read_batch(file: &Path, device: Device) -> Result<MicroBatch> {
    let weights = Weights::open(file)?;
    MicroBatch::from_tensors(Vec::new(), |name| {
        let tensor = weights.contains(name).then(|| weights.tensor(name)).transpose()?;
        Ok(tensor.map(|tensor| tensor.f_to_device(device)).transpose()?)
    })
}
