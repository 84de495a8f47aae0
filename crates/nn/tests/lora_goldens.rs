//! Adapters against PEFT and diffusers: outputs, gradients, ten steps, and files of all forms.
//! `scripts/goldens/lora.py` makes the fixtures.
#![expect(clippy::unwrap_used, reason = "a test stops where something fails")]

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use nn::device::Precision;
use nn::lora::{LoraConfig, LoraFile, ScaledLora};
use nn::optimizer::{AdamW, AdamWConfig, Optimizer, zero_grad};
use nn::pipeline::{Pipeline, PipelineFiles, SampleRequest};
use nn::schedule::SamplerKind;
use nn::unet::{AddedConditions, UNet, UNetConfig, WEIGHT_FILES};
use nn::weights::Weights;
use serde::Deserialize;
use tch::{Device, Kind, Tensor};

/// Differences from PEFT, as a fraction of the largest number: of the output,
const TOLERANCE: f64 = 1e-5;
/// of all gradients, which pass through more sums, in orders that differ between processors,
const TOLERANCE_OF_GRADIENTS: f64 = 5e-5;
/// and of one gradient, whose largest number may be far smaller than the others.
const TOLERANCE_ALONE: f64 = 1e-3;

fn fixtures(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

#[derive(Deserialize)]
struct Case {
    network: String,
    targets: String,
    rank: i64,
    alpha: f64,
}

impl Case {
    fn all() -> Vec<Self> {
        let text = fs_err::read_to_string(fixtures("lora/cases.json")).unwrap();
        serde_json::from_str(&text).unwrap()
    }

    fn config(&self) -> LoraConfig {
        let targets = self.targets.parse().unwrap();
        LoraConfig { rank: self.rank, alpha: self.alpha, targets }
    }

    /// The network with the adapters of a file, or with new ones.
    fn load(&self, stored: Option<&Weights>, precision: Precision) -> UNet {
        let folder = fixtures("unet").join(&self.network);
        let weights = Weights::open_folder(&folder, WEIGHT_FILES).unwrap();
        let config = UNetConfig::read(&folder.join("config.json")).unwrap();
        let seed = |place: u64| 100 + place;
        UNet::load_with_adapters(
            &config,
            &weights,
            &self.config(),
            stored,
            &seed,
            Device::Cpu,
            precision,
        )
        .unwrap()
    }

    fn golden(&self) -> Golden {
        Golden::read(&fixtures("unet").join(&self.network).join("golden.safetensors"))
    }
}

struct Golden(BTreeMap<String, Tensor>);

impl Golden {
    fn read(file: &Path) -> Self {
        let weights = Weights::open(file).unwrap();
        let names: Vec<String> = weights.names().map(str::to_owned).collect();
        Self(names.into_iter().map(|name| (name.clone(), weights.tensor(&name).unwrap())).collect())
    }

    fn get(&self, name: &str) -> &Tensor {
        &self.0[name]
    }

    /// The output for the golden's inputs, with its latents times a factor.
    fn run(&self, unet: &UNet, factor: f64) -> Tensor {
        let added = self.0.get("pooled").map(|pooled| AddedConditions {
            pooled_BD: pooled.shallow_clone(),
            time_ids_B6: self.get("time_ids").shallow_clone(),
        });
        let latents = self.get("latents") * factor;
        unet.forward(&latents, self.get("timesteps"), self.get("text"), added.as_ref()).unwrap()
    }

    fn gradients(&self, unet: &UNet) -> BTreeMap<String, Tensor> {
        zero_grad(unet.parameters()).unwrap();
        let loss = (self.run(unet, 1.0) - self.get("target")).square().mean(Kind::Float);
        loss.backward();
        unet.parameters().iter().map(|(name, value)| (name.clone(), value.grad().copy())).collect()
    }
}

fn assert_close(found: &Tensor, expected: &Tensor, tolerance: f64, what: &str) {
    assert_eq!(found.size(), expected.size(), "{what}");
    let largest = expected.abs().max().double_value(&[]).max(1e-6);
    let distance = (found - expected).abs().max().double_value(&[]);
    assert!(distance <= tolerance * largest, "{what}: {distance} of {largest}");
}

fn stored(index: usize) -> Weights {
    Weights::open(fixtures("lora").join(format!("{index}.adapters.safetensors"))).unwrap()
}

#[test]
fn outputs_and_gradients_are_those_of_peft_with_and_without_checkpointing() {
    for (index, case) in Case::all().iter().enumerate() {
        let expected = Golden::read(&fixtures("lora").join(format!("{index}.golden.safetensors")));
        let inputs = case.golden();
        let mut unet = case.load(Some(&stored(index)), Precision::F32);
        let what = format!("case {index}, {} of {}", case.targets, case.network);
        let gradients = expected.0.keys().filter(|name| name.starts_with("gradient.")).count();
        assert_eq!(gradients, unet.parameters().len(), "{what}");
        assert!(gradients >= 8, "{what}");
        let of_all = expected.0.iter().filter(|(name, _)| name.starts_with("gradient."));
        let largest =
            of_all.map(|(_, value)| value.abs().max().double_value(&[])).fold(0.0, f64::max);
        let mut first = None;
        for checkpointing in [false, true] {
            unet.set_gradient_checkpointing(checkpointing);
            assert_close(&inputs.run(&unet, 1.0), expected.get("output"), TOLERANCE, &what);
            let found = inputs.gradients(&unet);
            for (name, gradient) in &found {
                let expected = expected.get(&format!("gradient.{name}"));
                assert!(expected.abs().max().double_value(&[]) > 0.0, "{name}");
                assert_close(gradient, expected, TOLERANCE_ALONE, &format!("{what}: {name}"));
                let distance = (gradient - expected).abs().max().double_value(&[]);
                assert!(
                    distance <= TOLERANCE_OF_GRADIENTS * largest,
                    "{what}: {name}: {distance} of {largest}"
                );
            }
            // Recomputing adds gradients of branches in another order, which is rounding alone.
            let first = first.get_or_insert_with(|| found.clone_all());
            for (name, gradient) in &found {
                let distance = (gradient - &first[name]).abs().max().double_value(&[]);
                assert!(distance <= 1e-6 * largest, "{what}: {name}: {distance} of {largest}");
            }
        }
    }
}

/// Tensors are copied by hand.
trait CloneAll {
    fn clone_all(&self) -> Self;
}

impl CloneAll for BTreeMap<String, Tensor> {
    fn clone_all(&self) -> Self {
        self.iter().map(|(name, tensor)| (name.clone(), tensor.copy())).collect()
    }
}

#[test]
fn ten_steps_end_where_they_do_with_peft() {
    let case = &Case::all()[0];
    let steps = Golden::read(&fixtures("lora/steps.safetensors"));
    let part = |beginning: &str| -> Vec<(String, Tensor)> {
        let named = steps.0.iter().filter_map(|(name, tensor)| {
            Some((name.strip_prefix(beginning)?.to_owned(), tensor.shallow_clone()))
        });
        named.collect()
    };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("adapters.safetensors");
    nn::weights::write_safetensors(&file, &part("start.")).unwrap();
    let start = Weights::open(&file).unwrap();
    let unet = case.load(Some(&start), Precision::F32);
    let inputs = case.golden();
    let mut optimizer = AdamW::new(unet.parameters(), AdamWConfig::default()).unwrap();
    let losses = Vec::<f32>::try_from(steps.get("losses")).unwrap();
    assert_eq!(losses.len(), 10);
    for (step, expected) in losses.into_iter().enumerate() {
        let output = inputs.run(&unet, 1.0 + 0.1 * step as f64);
        let loss = (output - inputs.get("target") * 0.5).square().mean(Kind::Float);
        let found = loss.double_value(&[]);
        assert!((found / f64::from(expected) - 1.0).abs() < 1e-4, "{step}: {found} {expected}");
        loss.backward();
        optimizer.step(1e-2).unwrap();
        zero_grad(unet.parameters()).unwrap();
    }
    let end = part("end.");
    assert_eq!(end.len(), unet.parameters().len());
    let (mut way, mut distance) = (0.0, 0.0);
    for (name, expected) in &end {
        let (_, found) = unet.parameters().iter().find(|(own, _)| own == name).unwrap();
        let start = steps.get(&format!("start.{name}"));
        let square = |tensor: Tensor| tensor.square().sum(Kind::Double).double_value(&[]);
        let moved = square(expected - start);
        assert!(moved > 1e-6, "{name} has not moved");
        way += moved;
        distance += square(found.detach() - expected);
    }
    // AdamW divides small gradients by their size, so the last digits of some count.
    assert!(distance.sqrt() <= 1e-2 * way.sqrt(), "{} of {}", distance.sqrt(), way.sqrt());
}

/// The images that a pipeline with these adapters samples, pixel by pixel.
fn sampled(name: &str, loras: &[ScaledLora]) -> Vec<u8> {
    let folder = fixtures("diffusion").join(name);
    let files = PipelineFiles::open(&folder, None).unwrap();
    let pipeline = Pipeline::load_with(&files, loras, Device::Cpu, Precision::F32).unwrap();
    let expected = Weights::open(folder.join("expected.safetensors")).unwrap();
    let tokens = |kind: &str| -> Vec<Tensor> {
        let encoders = 0..pipeline.encoders.text_encoders.len();
        encoders.map(|index| expected.tensor(&format!("{kind}_{index}")).unwrap()).collect()
    };
    let request = SampleRequest {
        prompt: &pipeline.encode_prompt(&tokens("prompt")).unwrap(),
        negative: &pipeline.encode_negative_prompt(&tokens("empty"), true).unwrap(),
        seeds: &[11, (1 << 40) + 3],
        steps: 5,
        guidance: 7.5,
        sampler: SamplerKind::Ddim,
        height: 16,
        width: 24,
    };
    let images = pipeline.sample(&request, &mut |_, _| ControlFlow::Continue(())).unwrap().unwrap();
    images.into_iter().flat_map(|image| image.pixels).collect()
}

fn lora(path: PathBuf, scale: f64) -> ScaledLora {
    ScaledLora { path, scale }
}

fn assert_sampled(found: &[u8], name: &str, image: &str, what: &str) {
    let expected = Weights::open(fixtures("lora").join(name).join("expected.safetensors")).unwrap();
    let expected = expected.tensor(image).unwrap();
    let expected = Vec::<u8>::try_from(expected.flatten(0, -1)).unwrap();
    assert_eq!(found.len(), expected.len());
    let pairs = found.iter().zip(&expected);
    let distance = pairs.map(|(one, two)| one.abs_diff(*two)).max().unwrap();
    assert!(distance <= 1, "{name}, {what}: {distance} of 255");
}

#[test]
fn files_of_every_form_give_the_images_of_diffusers() {
    for name in ["sd", "sdxl"] {
        let folder = fixtures("lora").join(name);
        for form in ["diffusers.safetensors", "trainer.safetensors", "kohya.safetensors", "peft"] {
            let found = sampled(name, &[lora(folder.join(form), 1.0)]);
            assert_sampled(&found, name, "1", form);
        }
        let found = sampled(name, &[lora(folder.join("kohya.safetensors"), 0.5)]);
        assert_sampled(&found, name, "0.5", "half of it");
        // Adapters are added to each other.
        let part = |form: &str, scale: f64| lora(folder.join(form), scale);
        let found = sampled(name, &[part("diffusers.safetensors", 0.75), part("peft", 0.25)]);
        assert_sampled(&found, name, "1", "two parts");
        assert_ne!(sampled(name, &[]), found);
    }
    let former = fixtures("lora/sd/former.safetensors");
    assert_sampled(&sampled("sd", &[lora(former, 1.0)]), "sd", "former", "before PEFT");
}

#[test]
fn what_fits_nothing_is_listed_in_one_error() {
    let files = PipelineFiles::open(&fixtures("diffusion/sd"), None).unwrap();
    let load = |path: &Path| {
        let loras = [lora(path.to_owned(), 1.0)];
        Pipeline::load_with(&files, &loras, Device::Cpu, Precision::F32).unwrap_err().to_string()
    };
    let message = load(&fixtures("lora/sdxl/kohya.safetensors"));
    assert!(message.contains("do not fit the pipeline"), "{message}");
    assert!(message.contains("lora_te2_") || message.contains("and"), "{message}");
    let place = tempfile::tempdir().unwrap();
    let message = load(place.path());
    assert!(message.contains("expected a file of adapters"), "{message}");
    let ones = |shape: &[i64]| Tensor::ones(shape, (Kind::Float, Device::Cpu));
    let write = |tensors: &[(&str, Tensor)]| {
        let file = place.path().join("x.safetensors");
        let tensors: Vec<(String, Tensor)> =
            tensors.iter().map(|(name, tensor)| ((*name).to_owned(), tensor.copy())).collect();
        nn::weights::write_safetensors(&file, &tensors).unwrap();
        file
    };
    write(&[("x", ones(&[1]))]);
    let message = load(place.path());
    assert!(message.contains("it holds x.safetensors, name the file itself"), "{message}");
    let layer = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q";
    let [down, up] = ["lora_A", "lora_B"].map(|part| format!("{layer}.{part}.weight"));
    let message = load(&write(&[
        (&down, ones(&[2, 8])),
        ("unet.mid_block.x.dora_scale", ones(&[2])),
        ("unet.mid_block.y.lokr_w1", ones(&[2])),
    ]));
    for words in ["dora_scale", "lokr_w1", "has no up or lora_B", "3 other tensors", "DoRA"] {
        assert!(message.contains(words), "{words}: {message}");
    }
    let message = load(&write(&[(&down, ones(&[2, 8])), (&up, ones(&[8, 3]))]));
    assert!(message.contains("have no common rank"), "{message}");
    let message = load(&write(&[(&down, ones(&[2, 7])), (&up, ones(&[8, 2]))]));
    assert!(message.contains("[2, 7] and [8, 2] do not fit a weight [8, 8]"), "{message}");
    let nowhere = [
        ("unet.nowhere.lora_A.weight", ones(&[2, 8])),
        ("unet.nowhere.lora_B.weight", ones(&[8, 2])),
    ];
    let message = load(&write(&nowhere));
    assert!(message.contains("unet.nowhere") && message.contains("fits no layer"), "{message}");
    let message = load(&fixtures("diffusion/sd/unet/diffusion_pytorch_model.safetensors"));
    assert!(message.contains("expected adapters of plain LoRA"), "{message}");
}

#[test]
fn adapters_of_a_checkpoint_must_be_those_of_the_targets() {
    let cases = Case::all();
    let folder = fixtures("unet").join(&cases[0].network);
    let weights = Weights::open_folder(&folder, WEIGHT_FILES).unwrap();
    let config = UNetConfig::read(&folder.join("config.json")).unwrap();
    let load = |lora: &LoraConfig, stored: Option<&Weights>| {
        UNet::load_with_adapters(
            &config,
            &weights,
            lora,
            stored,
            &|place| place,
            Device::Cpu,
            Precision::F32,
        )
    };
    let message = load(&cases[0].config(), Some(&stored(1))).unwrap_err().to_string();
    assert!(message.contains("do not fit the targets and the rank"), "{message}");
    assert!(message.contains("found [3, 8]") && message.contains("and"), "{message}");
    let wrong = LoraConfig { targets: "to_q,to_x".parse().unwrap(), ..cases[0].config() };
    let message = load(&wrong, None).unwrap_err().to_string();
    assert!(message.contains("\"to_x\" fits no layer") && message.contains("to_q"), "{message}");
}

#[test]
fn a_reference_with_equal_adapters_agrees_to_the_last_bit_and_shares_the_weights() {
    for precision in [Precision::F32, Precision::Bf16] {
        for (index, case) in Case::all().iter().enumerate() {
            let inputs = case.golden();
            // New adapters add nothing: that is the base model.
            let new = case.load(None, precision);
            let base = new.adapter_reference(None).unwrap();
            assert_eq!(inputs.run(&new, 1.0).detach(), inputs.run(&base, 1.0), "case {index}");
            let folder = fixtures("unet").join(&case.network);
            let weights = Weights::open_folder(&folder, WEIGHT_FILES).unwrap();
            let config = UNetConfig::read(&folder.join("config.json")).unwrap();
            let plain = UNet::load_reference(&config, &weights, Device::Cpu, precision).unwrap();
            assert_close(
                &inputs.run(&base, 1.0),
                &inputs.run(&plain, 1.0),
                if precision == Precision::F32 { 1e-6 } else { 1e-2 },
                "the base model",
            );
            let trained = case.load(Some(&stored(index)), precision);
            let mut reference = trained.adapter_reference(Some(&stored(index))).unwrap();
            let records = inputs.run(&trained, 1.0);
            assert!(records.requires_grad());
            let output = inputs.run(&reference, 1.0);
            assert!(!output.requires_grad());
            assert_eq!(records.detach(), output, "case {index}");
            // It follows an update of the adapters, and nothing else.
            tch::no_grad(|| {
                for (_, parameter) in trained.parameters() {
                    let _ = parameter.shallow_clone().f_mul_scalar_(1.5).unwrap();
                }
            });
            assert_ne!(inputs.run(&trained, 1.0).detach(), inputs.run(&reference, 1.0));
            reference.copy_weights_from(&trained).unwrap();
            assert_eq!(inputs.run(&trained, 1.0).detach(), inputs.run(&reference, 1.0));
            let names = |unet: &UNet| -> Vec<String> {
                unet.parameters().iter().map(|(name, _)| name.clone()).collect()
            };
            assert_eq!(names(&trained), names(&reference));
            assert!(reference.parameters().iter().all(|(_, value)| value.kind() == Kind::Float));
        }
    }
}

#[test]
fn new_adapters_are_normal_and_zero_by_their_seeds() {
    let case = Case { rank: 8, alpha: 8.0, ..Case::all().remove(0) };
    let unet = case.load(None, Precision::F32);
    let mut numbers = Vec::new();
    for (name, value) in unet.parameters() {
        assert!(value.requires_grad() && value.kind() == Kind::Float, "{name}");
        match name.ends_with(".lora_A.weight") {
            true => numbers.push(value.detach().flatten(0, -1)),
            false => assert_eq!(value.detach().abs().max().double_value(&[]), 0.0, "{name}"),
        }
    }
    let all = Tensor::cat(&numbers, 0);
    assert!(all.numel() > 1000);
    let std = all.std(true).double_value(&[]);
    assert!((std * 8.0 - 1.0).abs() < 0.1, "one over the rank, found {std}");
    let again = case.load(None, Precision::F32);
    for ((_, one), (_, two)) in unet.parameters().iter().zip(again.parameters()) {
        assert_eq!(one, two);
    }
    assert_ne!(numbers[0].size(), [0]);
    assert_ne!(numbers[0], numbers[1]);
}

#[test]
fn saved_adapters_are_read_back_with_their_scale() {
    // In a checkpoint the scale stands beside the adapters, here 2.
    let case = &Case::all()[1];
    let unet = case.load(Some(&stored(1)), Precision::F32);
    let folder = tempfile::tempdir().unwrap();
    unet.save(folder.path()).unwrap();
    let file = folder.path().join(nn::lora::SAVED_ADAPTERS);
    assert_eq!(unet.saved_file(), nn::lora::SAVED_ADAPTERS);
    assert!(!folder.path().join("config.json").exists());
    let again = case.load(Some(&Weights::open(&file).unwrap()), Precision::F32);
    for ((name, one), (_, two)) in unet.parameters().iter().zip(again.parameters()) {
        assert_eq!(one, two, "{name}");
    }
    assert_eq!(LoraFile::open(folder.path()).unwrap().files, [file]);
}

#[test]
fn every_file_that_is_written_adds_what_the_adapters_add() {
    for (name, targets) in [("sd", "attention+ff"), ("sdxl", "all-linear"), ("sd", "to_q,conv1")] {
        let files = PipelineFiles::open(&fixtures("diffusion").join(name), None).unwrap();
        let weights = Weights::open(&files.unet.weights).unwrap();
        let config = files.unet_config().unwrap();
        let lora = LoraConfig { rank: 3, alpha: 1.5, targets: targets.parse().unwrap() };
        let device = Device::Cpu;
        let load = UNet::load_with_adapters;
        let unet =
            load(&config, &weights, &lora, None, &|place| place, device, Precision::F32).unwrap();
        tch::no_grad(|| {
            for (seed, (_, value)) in (0..).zip(unet.parameters()) {
                let numbers = nn::rng::normal(seed, &value.size()).unwrap() * 0.3;
                value.shallow_clone().copy_(&numbers);
            }
        });
        let width = config.cross_attention_dim;
        let latents = nn::rng::normal(1, &[2, 4, 8, 8]).unwrap();
        let times = Tensor::from_slice(&[10_i64, 700]);
        let text = nn::rng::normal(2, &[2, 5, width]).unwrap();
        let added = config.pooled_width().map(|pooled| AddedConditions {
            pooled_BD: nn::rng::normal(3, &[2, pooled]).unwrap(),
            time_ids_B6: Tensor::from_slice(&[8.0_f32, 8.0, 0.0, 0.0, 8.0, 8.0]).repeat([2, 1]),
        });
        let run = |unet: &UNet| unet.forward(&latents, &times, &text, added.as_ref()).unwrap();
        let expected = run(&unet).detach();
        let folder = tempfile::tempdir().unwrap();
        let path = |file: &str| folder.path().join(file);
        let adapters = unet.parameters();
        nn::lora::write_diffusers(&path("diffusers.safetensors"), adapters, &lora).unwrap();
        let names = || weights.names().map(str::to_owned);
        let kohya = path("kohya.safetensors");
        nn::lora::write_kohya(&kohya, adapters, names(), &lora, &config).unwrap();
        unet.save(folder.path()).unwrap();
        for file in ["diffusers.safetensors", "kohya.safetensors", nn::lora::SAVED_ADAPTERS] {
            let pipeline = nn::lora::MergedPipeline::open(&files, &[lora_at(path(file))]).unwrap();
            let merged = UNet::load(&config, &pipeline.unet, device, Precision::F32).unwrap();
            assert_close(&run(&merged), &expected, 1e-4, &format!("{name}, {targets}, {file}"));
            // Written and read again.
            let saved = path("merged.safetensors");
            pipeline.save(nn::lora::Part::Unet, &saved, &|| Ok(())).unwrap();
            let saved = Weights::open(&saved).unwrap();
            assert!(saved.names().eq(weights.names()));
            let saved = UNet::load(&config, &saved, device, Precision::F32).unwrap();
            assert_eq!(run(&saved), run(&merged), "{name}, {targets}, {file}");
        }
        let names: Vec<String> =
            Weights::open(&kohya).unwrap().names().map(str::to_owned).collect();
        assert_eq!(names.len(), adapters.len() / 2 * 3);
        let is_sgm = |name: &String| name.contains("input_blocks");
        assert_eq!(names.iter().any(is_sgm), name == "sdxl", "{names:?}");
        assert_ne!(run(&UNet::load(&config, &weights, device, Precision::F32).unwrap()), expected);
    }
}

fn lora_at(path: PathBuf) -> ScaledLora {
    lora(path, 1.0)
}
