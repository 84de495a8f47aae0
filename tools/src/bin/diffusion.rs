//! Runs a diffusion network, or a whole pipeline, on tensors from a file: the side of this crate in
//! `scripts/parity/diffusion_parity.py` and `scripts/bench/diffusion.py`. The side of diffusers,
//! `scripts/parity/diffusion_reference.py`, takes the same arguments.
//!
//! ```text
//! cargo run --release -p balanceddpo-tools --bin diffusion -- COMMAND key=value...
//! ```
//!
//! | command | `model=` | reads from `input=` | writes to `output=` |
//! |---|---|---|---|
//! | `forward` | UNet | `latents timesteps text [pooled time_ids]` | `output` |
//! | `backward` | UNet | the same and `target` | `loss`, and `gradient.NAME` for `parameters=NAME,...` |
//! | `vae-encode` | VAE | `pixels` | `mean log_variance` |
//! | `vae-decode` | VAE | `latents` | `pixels` |
//! | `text` | text encoder | `tokens` | `last penultimate [pooled]` |
//! | `image` | pipeline | `prompt_0 [prompt_1] negative_0 [negative_1]`, tokens | `images`, u8 `[B, H, W, 3]` |
//! | `save` | UNet | | the folder of a UNet |
//! | `gemm` | | | |
//!
//! All: `precision=f32|bf16|f16 device=cpu threads=N repeats=N` (timed runs after the first one).
//! `backward`: `checkpointing=true`. `image`: `seeds=1,2 steps=20 guidance=7.5 sampler=ddim
//! height=64 width=64 unet=FOLDER empty_negative=true`. Without `output=` nothing is written. One
//! line of JSON goes to standard output: the seconds of loading, of the first run and of the
//! others, the peaks of resident memory and of GPU memory, and for `gemm` the operations per second
//! of a product of two square matrices with 2048 rows, on a GPU 8192.
#![allow(non_snake_case, reason = "names of tensors carry their shape")]
#![expect(clippy::print_stdout, reason = "a program")]

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use nn::device::{self, Precision, inference};
use nn::optimizer::zero_grad;
use nn::pipeline::{Image, Pipeline, PipelineFiles, SampleRequest};
use nn::schedule::SamplerKind;
use nn::text::{self, TextEncoder, TextEncoderConfig};
use nn::unet::{self, AddedConditions, UNet, UNetConfig};
use nn::vae::{Vae, VaeConfig};
use nn::weights::{Weights, write_safetensors};
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};
use tools::{Options, peak_resident_bytes, wait};

fn main() -> Result<()> {
    device::reuse_memory();
    let mut arguments = std::env::args().skip(1);
    let command = arguments.next().context("expected a command")?;
    let mut options = Options::read(arguments)?;
    let threads = options.parse("threads", device::threads())?;
    device::set_threads(threads);
    let device = device::parse(&options.parse("device", "cpu".to_owned())?)?;
    let precision = options.parse("precision", Precision::F32)?;
    let repeats = options.parse("repeats", 0)?;
    let mut run = Run { options, device, precision, repeats, report: BTreeMap::new() };
    run.note("command", json!(command));
    run.note("precision", json!(precision));
    run.note("threads", json!(device::threads()));
    let outputs = match command.as_str() {
        "forward" => run.forward()?,
        "backward" => run.backward()?,
        "vae-encode" => run.vae_encode()?,
        "vae-decode" => run.vae_decode()?,
        "text" => run.text()?,
        "image" => run.image()?,
        "save" => run.save()?,
        "gemm" => run.gemm()?,
        other => bail!("unknown command {other:?}"),
    };
    if let Some(file) = run.options.take("output") {
        write_safetensors(Path::new(&file), &outputs)?;
    }
    run.options.finish()?;
    run.note("peak_rss_bytes", json!(peak_resident_bytes()?));
    run.note("peak_device", json!(device::peak_memory(run.device)?));
    println!("{}", json!(run.report));
    Ok(())
}

/// Tensors by name.
type Named = Vec<(String, Tensor)>;

struct Run {
    options: Options,
    device: Device,
    precision: Precision,
    repeats: usize,
    report: BTreeMap<&'static str, Value>,
}

impl Run {
    fn note(&mut self, name: &'static str, value: Value) {
        self.report.insert(name, value);
    }

    /// Times `body`: the seconds of loading.
    fn load<T>(&mut self, body: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        let start = Instant::now();
        let loaded = body(self)?;
        wait(self.device);
        self.note("load_seconds", json!(start.elapsed().as_secs_f64()));
        Ok(loaded)
    }

    /// Runs `body` once, and then `repeats` times; returns the result of the last run.
    fn time<T>(&mut self, mut body: impl FnMut() -> Result<T>) -> Result<T> {
        let mut seconds = Vec::new();
        let mut last = None;
        for _ in 0..=self.repeats {
            // The next run needs the memory of the last result.
            drop(last.take());
            let start = Instant::now();
            last = Some(body()?);
            wait(self.device);
            seconds.push(start.elapsed().as_secs_f64());
        }
        self.note("first_seconds", json!(seconds.remove(0)));
        self.note("seconds", json!(seconds));
        last.context("nothing was run")
    }

    /// The tensors of the input file, on the device.
    fn inputs(&mut self) -> Result<BTreeMap<String, Tensor>> {
        let weights = Weights::open(self.options.path("input")?)?;
        weights
            .names()
            .map(|name| Ok((name.to_owned(), weights.tensor(name)?.f_to_device(self.device)?)))
            .collect()
    }

    fn unet(&mut self, training: bool) -> Result<UNet> {
        let folder = self.options.path("model")?;
        let (device, precision) = (self.device, self.precision);
        self.load(|_| {
            let config = UNetConfig::read(&folder.join("config.json"))?;
            let weights = Weights::open_folder(&folder, unet::WEIGHT_FILES)?;
            Ok(if training {
                UNet::load_for_training(&config, &weights, device, precision)?
            } else {
                UNet::load(&config, &weights, device, precision)?
            })
        })
    }

    fn vae(&mut self) -> Result<Vae> {
        let folder = self.options.path("model")?;
        let (device, precision) = (self.device, self.precision);
        self.load(|_| {
            let config = VaeConfig::read(&folder.join("config.json"))?;
            let weights = Weights::open_folder(&folder, unet::WEIGHT_FILES)?;
            Ok(Vae::load(&config, &weights, device, precision)?)
        })
    }

    fn forward(&mut self) -> Result<Named> {
        let inputs = UNetInputs::read(self.inputs()?)?;
        let unet = self.unet(false)?;
        let output_BCHW = self.time(|| inputs.run(&unet))?;
        Ok(vec![("output".to_owned(), output_BCHW)])
    }

    fn backward(&mut self) -> Result<Named> {
        let mut inputs = self.inputs()?;
        let target_BCHW = take(&mut inputs, "target")?;
        let inputs = UNetInputs::read(inputs)?;
        let wanted = self.options.list("parameters");
        let checkpointing = self.options.parse("checkpointing", false)?;
        let mut unet = self.unet(true)?;
        unet.set_gradient_checkpointing(checkpointing);
        let (loss, gradients) = self.time(|| {
            let loss = (inputs.run(&unet)? - &target_BCHW).square().mean(Kind::Float);
            // The pass adds to the gradients of the parameters, so they are dropped first.
            zero_grad(unet.parameters())?;
            loss.backward();
            let gradients: Vec<Tensor> =
                unet.parameters().iter().map(|(_, parameter)| parameter.grad()).collect();
            Ok((loss.detach(), gradients))
        })?;
        let mut outputs = vec![("loss".to_owned(), loss)];
        for name in wanted {
            let index = unet.parameters().iter().position(|(found, _)| *found == name);
            let index = index.with_context(|| format!("the UNet has no parameter {name:?}"))?;
            outputs.push((format!("gradient.{name}"), gradients[index].shallow_clone()));
        }
        Ok(outputs)
    }

    fn vae_encode(&mut self) -> Result<Named> {
        let pixels_BCHW = take(&mut self.inputs()?, "pixels")?;
        let vae = self.vae()?;
        let posterior = self.time(|| Ok(vae.encode(&pixels_BCHW)?))?;
        Ok(vec![
            ("mean".to_owned(), posterior.mean_BCHW),
            ("log_variance".to_owned(), posterior.log_variance_BCHW),
        ])
    }

    fn vae_decode(&mut self) -> Result<Named> {
        let latents_BCHW = take(&mut self.inputs()?, "latents")?;
        let vae = self.vae()?;
        let pixels_BCHW = self.time(|| Ok(vae.decode(&latents_BCHW)?))?;
        Ok(vec![("pixels".to_owned(), pixels_BCHW)])
    }

    fn text(&mut self) -> Result<Named> {
        let tokens_BL = take(&mut self.inputs()?, "tokens")?;
        let folder = self.options.path("model")?;
        let (device, precision) = (self.device, self.precision);
        let encoder = self.load(|_| {
            let config = TextEncoderConfig::read(&folder.join("config.json"))?;
            let weights = Weights::open_folder(&folder, text::WEIGHT_FILES)?;
            Ok(TextEncoder::load(&config, &weights, device, precision)?)
        })?;
        let encoding = self.time(|| Ok(encoder.encode(&tokens_BL)?))?;
        let mut outputs = vec![
            ("last".to_owned(), encoding.hidden_states),
            ("penultimate".to_owned(), encoding.penultimate),
        ];
        outputs.extend(encoding.pooled.map(|pooled_BD| ("pooled".to_owned(), pooled_BD)));
        Ok(outputs)
    }

    fn image(&mut self) -> Result<Named> {
        let mut inputs = self.inputs()?;
        let options = &mut self.options;
        let folder = options.path("model")?;
        let unet = options.take("unet").map(PathBuf::from);
        let seeds = options
            .list("seeds")
            .iter()
            .map(|seed| seed.parse())
            .collect::<Result<Vec<u64>, _>>()?;
        let steps = options.parse("steps", 20)?;
        let guidance = options.parse("guidance", 7.5)?;
        let sampler = options.parse("sampler", SamplerKind::Ddim)?;
        let (height, width) = (options.parse("height", 64)?, options.parse("width", 64)?);
        let empty = options.parse("empty_negative", false)?;
        let (device, precision) = (self.device, self.precision);
        let pipeline = self.load(|_| {
            let files = PipelineFiles::open(&folder, unet.as_deref())?;
            Ok(Pipeline::load(&files, device, precision)?)
        })?;
        let mut tokens = |kind: &str| -> Result<Vec<Tensor>> {
            let encoders = 0..pipeline.encoders.text_encoders.len();
            encoders.map(|index| take(&mut inputs, &format!("{kind}_{index}"))).collect()
        };
        let (prompt, negative) = (tokens("prompt")?, tokens("negative")?);
        let images = self.time(|| {
            let request = SampleRequest {
                prompt: &pipeline.encode_prompt(&prompt)?,
                negative: &pipeline.encode_negative_prompt(&negative, empty)?,
                seeds: &seeds,
                steps,
                guidance,
                sampler,
                height,
                width,
            };
            let images = pipeline.sample(&request, &mut |_, _| ControlFlow::Continue(()))?;
            images.context("sampling was stopped")
        })?;
        Ok(vec![("images".to_owned(), stack(&images)?)])
    }

    fn save(&mut self) -> Result<Named> {
        let folder = self.options.path("output")?;
        let unet = self.unet(true)?;
        fs_err::create_dir_all(&folder)?;
        unet.save(&folder)?;
        Ok(Named::new())
    }

    /// The machine's own rate: one large matrix product in the precision.
    fn gemm(&mut self) -> Result<Named> {
        let side: i64 = if self.device.is_cuda() { 8192 } else { 2048 };
        let options = (self.precision.kind(), self.device);
        let left = Tensor::f_randn([side, side], options)?;
        let right = Tensor::f_randn([side, side], options)?;
        drop(self.time(|| Ok(inference(|| left.f_linear(&right, None::<&Tensor>))?))?);
        let seconds = self.report.get("seconds").and_then(Value::as_array);
        let seconds = seconds.into_iter().flatten().filter_map(Value::as_f64);
        let best = seconds.fold(f64::INFINITY, f64::min);
        self.note("operations_per_second", json!(2.0 * (side * side * side) as f64 / best));
        Ok(Named::new())
    }
}

struct UNetInputs {
    latents_BCHW: Tensor,
    timesteps_B: Tensor,
    text_BLD: Tensor,
    added: Option<AddedConditions>,
}

impl UNetInputs {
    fn read(mut inputs: BTreeMap<String, Tensor>) -> Result<Self> {
        let added = match inputs.remove("pooled") {
            None => None,
            Some(pooled_BD) => {
                Some(AddedConditions { pooled_BD, time_ids_B6: take(&mut inputs, "time_ids")? })
            }
        };
        Ok(Self {
            latents_BCHW: take(&mut inputs, "latents")?,
            timesteps_B: take(&mut inputs, "timesteps")?,
            text_BLD: take(&mut inputs, "text")?,
            added,
        })
    }

    fn run(&self, unet: &UNet) -> Result<Tensor> {
        let Self { latents_BCHW, timesteps_B, text_BLD, added } = self;
        Ok(unet.forward(latents_BCHW, timesteps_B, text_BLD, added.as_ref())?)
    }
}

fn take(inputs: &mut BTreeMap<String, Tensor>, name: &str) -> Result<Tensor> {
    inputs.remove(name).with_context(|| format!("the input has no tensor {name:?}"))
}

/// Images of equal size as one tensor, u8 `[B, H, W, 3]`.
fn stack(images: &[Image]) -> Result<Tensor> {
    let parts = images
        .iter()
        .map(|image| {
            let shape = [1, i64::try_from(image.height)?, i64::try_from(image.width)?, 3];
            Ok(Tensor::f_from_slice(&image.pixels)?.f_view(shape)?)
        })
        .collect::<Result<Vec<_>>>()?;
    Ok(Tensor::f_cat(&parts, 0)?)
}
