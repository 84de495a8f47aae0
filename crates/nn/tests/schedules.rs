//! Noise schedules and samplers, compared with diffusers 0.42.1 (`scripts/goldens/schedules.py`).

#![expect(clippy::unwrap_used, reason = "tests")]

use std::path::Path;

use nn::schedule::{
    PredictionType, Sampler, SamplerKind, ScheduleClass, ScheduleConfig, ScheduleError,
    TrainingSchedule,
};
use nn::weights::Weights;
use serde_json::Value;
use tch::{Device, Kind, Tensor};

const SHAPE: [i64; 4] = [2, 4, 3, 3];
const ELEMENTS: usize = 72;
/// The golden file holds every tenth element of each step, and all of the last.
const KEPT: usize = 10;

struct Goldens {
    cases: Value,
    weights: Weights,
}

impl Goldens {
    fn read() -> Self {
        let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/schedules"));
        let text = fs_err::read_to_string(folder.join("cases.json")).unwrap();
        let weights = Weights::open(folder.join("golden.safetensors")).unwrap();
        Self { cases: serde_json::from_str(&text).unwrap(), weights }
    }

    fn config(&self, name: &str) -> ScheduleConfig {
        parse(&self.cases["configs"][name].to_string()).unwrap()
    }

    fn numbers(&self, name: &str) -> Vec<f32> {
        numbers(&self.weights.tensor(name).unwrap())
    }
}

fn parse(text: &str) -> Result<ScheduleConfig, String> {
    ScheduleConfig::parse(text, Path::new("scheduler_config.json"))
        .map_err(|error| error.to_string())
}

fn numbers(tensor: &Tensor) -> Vec<f32> {
    Vec::try_from(&tensor.flatten(0, -1)).unwrap()
}

/// The largest difference, relative to the largest value or to 1.
fn difference(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let scale = expected.iter().fold(1.0, |scale: f32, value| scale.max(value.abs()));
    let pairs = found.iter().zip(expected);
    pairs.fold(0.0, |apart: f32, (a, b)| {
        assert!(a.is_finite() && b.is_finite());
        apart.max((a - b).abs())
    }) / scale
}

/// As in the script: numbers in [−2, 2) from a hash of their index.
fn whole(place: u64) -> Tensor {
    let values: Vec<f32> = (place..place + ELEMENTS as u64)
        .map(|place| {
            let bits = (place * 2_654_435_761 % (1 << 32)) / 256;
            (bits as f64 / f64::from(1 << 22) - 2.0) as f32
        })
        .collect();
    Tensor::from_slice(&values).reshape(SHAPE)
}

/// As in the script: a stand-in for a network.
fn network(sample: &Tensor, timestep: f64) -> Tensor {
    sample / (sample.abs() + 1.0) * 0.75 + sample * 0.25 + (timestep * 0.0002 - 0.1)
}

/// The samples after every step.
fn run(sampler: &mut Sampler) -> Vec<Tensor> {
    let mut sample = whole(0) * sampler.initial_noise_sigma();
    let mut samples = Vec::new();
    for (index, timestep) in sampler.timesteps().to_vec().into_iter().enumerate() {
        let output = network(&sampler.scale_model_input(&sample, index).unwrap(), timestep);
        sample = sampler.step(&output, index, &sample).unwrap();
        samples.push(sample.shallow_clone());
    }
    samples
}

#[test]
fn runs_are_those_of_diffusers() {
    let goldens = Goldens::read();
    let runs = goldens.cases["runs"].as_array().unwrap();
    assert!(runs.len() >= 150);
    let mut exact = 0;
    for case in runs {
        let name = case["config"].as_str().unwrap();
        let kind: SamplerKind = case["kind"].as_str().unwrap().parse().unwrap();
        let steps = usize::try_from(case["steps"].as_u64().unwrap()).unwrap();
        let label = format!("{name}.{kind}.{steps}");
        let mut sampler = Sampler::new(&goldens.config(name), kind, steps).unwrap();
        let golden = goldens.numbers(&label);

        let calls = sampler.timesteps().len();
        let (timesteps, golden) = golden.split_at(calls);
        let found: Vec<f32> = sampler.timesteps().iter().map(|time| *time as f32).collect();
        assert_eq!(found, timesteps, "{label}");
        let ends =
            usize::from(matches!(kind, SamplerKind::Euler | SamplerKind::DpmSolverPlusPlus2M));
        let (sigmas, golden) = golden.split_at(calls + ends);
        assert_eq!(sampler.sigmas().len(), calls + 1);
        let infinite = sigmas.iter().filter(|sigma| sigma.is_infinite()).count();
        assert_eq!(&sampler.sigmas()[..infinite], &sigmas[..infinite]);
        let apart = difference(&sampler.sigmas()[infinite..calls + ends], &sigmas[infinite..]);
        assert!(apart < 1e-6, "{label}: sigmas {apart:e}");
        let expected = case["initial_noise_sigma"].as_f64().unwrap();
        assert!((sampler.initial_noise_sigma() / expected - 1.0).abs() < 1e-6, "{label}");

        let samples = run(&mut sampler);
        // If a sample starts thousands of times larger than it ends, so are its rounding errors.
        let most = if expected > 1000.0 { 1e-3 } else { 1e-5 };
        let (kept, last) = golden.split_at(golden.len() - ELEMENTS);
        let found: Vec<f32> =
            samples.iter().flat_map(|sample| numbers(sample).into_iter().step_by(KEPT)).collect();
        let apart = difference(&found, kept);
        assert!(apart < most, "{label}: steps {apart:e}");
        let found = numbers(samples.last().unwrap());
        let apart = difference(&found, last);
        assert!(apart < most, "{label}: last {apart:e}");
        exact += usize::from(found == last);
    }
    println!("{exact} of {} runs end with the very bits of diffusers", runs.len());
}

#[test]
fn training_noise_is_that_of_diffusers() {
    let goldens = Goldens::read();
    for name in goldens.cases["tables"].as_array().unwrap() {
        let name = name.as_str().unwrap();
        let config = goldens.config(name);
        let training = TrainingSchedule::new(&config, Device::Cpu).unwrap();
        assert_eq!(training.prediction_type(), config.prediction_type);
        let alphas = numbers(training.alphas_cumprod());
        assert_eq!(alphas.len(), config.num_train_timesteps);
        let apart = difference(&alphas, &goldens.numbers(&format!("{name}.alphas_cumprod")));
        assert!(apart < 1e-6, "{name}: {apart:e}");
        let times = Tensor::from_slice(&[0, config.num_train_timesteps as i64 - 1]);
        let (latents, noise) = (whole(100), whole(200));
        for (made, found) in [
            ("noisy", training.add_noise(&latents, &noise, &times).unwrap()),
            ("velocity", training.velocity(&latents, &noise, &times).unwrap()),
        ] {
            let apart = difference(&numbers(&found), &goldens.numbers(&format!("{name}.{made}")));
            assert!(apart < 1e-6, "{name} {made}: {apart:e}");
        }
    }
}

#[test]
fn latents_and_noise_come_back_from_noisy_latents_and_velocity() {
    let training = TrainingSchedule::new(&Goldens::read().config("sd21-768"), Device::Cpu).unwrap();
    assert_eq!(training.prediction_type(), PredictionType::VPrediction);
    let (latents, noise) = (whole(1000), whole(2000));
    for timestep in (0..1000).step_by(37) {
        let times = Tensor::from_slice(&[timestep, 999 - timestep]);
        let alphas = training.alphas_cumprod().index_select(0, &times).reshape([2, 1, 1, 1]);
        let (signal, share) = (alphas.sqrt(), alphas.rsub_scalar(1.0).sqrt());
        let noisy = training.add_noise(&latents, &noise, &times).unwrap();
        let velocity = training.velocity(&latents, &noise, &times).unwrap();
        let back = &signal * &noisy - &share * &velocity;
        assert!(difference(&numbers(&back), &numbers(&latents)) < 1e-6);
        let back = &share * &noisy + &signal * &velocity;
        assert!(difference(&numbers(&back), &numbers(&noise)) < 1e-6);
    }
    // Half precision in, half precision out, but the sums are those of f32.
    let times = Tensor::from_slice(&[3_i64, 700]);
    let (latents, noise) = (latents.to_kind(Kind::BFloat16), noise.to_kind(Kind::BFloat16));
    let found = training.add_noise(&latents, &noise, &times).unwrap();
    let (latents, noise) = (latents.to_kind(Kind::Float), noise.to_kind(Kind::Float));
    let expected = training.add_noise(&latents, &noise, &times).unwrap();
    assert_eq!(found, expected.to_kind(Kind::BFloat16));
}

/// With a network that knows the latents, every sampler ends at them, in any number of steps.
#[test]
fn a_network_that_knows_the_latents_leads_there() {
    let goldens = Goldens::read();
    let latents = whole(300);
    for prediction in [PredictionType::Epsilon, PredictionType::VPrediction] {
        let mut config = goldens.config("sd15");
        config.prediction_type = prediction;
        config.set_alpha_to_one = Some(true);
        for kind in SamplerKind::ALL {
            // PNDM sums predictions, and only those of the noise stay the same at every step.
            if (kind, prediction) == (SamplerKind::Pndm, PredictionType::VPrediction) {
                continue;
            }
            for steps in [1, 2, 3, 7, 14, 15, 31, 100] {
                let mut sampler = Sampler::new(&config, kind, steps).unwrap();
                let sigmas = sampler.sigmas().to_vec();
                let mut sample = whole(0) * sampler.initial_noise_sigma();
                let calls = sampler.timesteps().len();
                for (index, sigma) in sigmas.into_iter().take(calls).enumerate() {
                    let input = sampler.scale_model_input(&sample, index).unwrap();
                    let alpha = 1.0 / (f64::from(sigma).powi(2) + 1.0);
                    let (signal, share) = (alpha.sqrt(), (1.0 - alpha).sqrt());
                    let noise = (&input - &latents * signal) / share;
                    let output = match prediction {
                        PredictionType::Epsilon => noise,
                        PredictionType::VPrediction => noise * signal - &latents * share,
                    };
                    sample = sampler.step(&output, index, &sample).unwrap();
                }
                let apart = difference(&numbers(&sample), &numbers(&latents));
                assert!(apart < 1e-4, "{kind} {steps} {prediction:?}: {apart:e}");
            }
        }
    }
}

#[test]
fn pndm_takes_one_call_more_and_others_as_many_as_steps() {
    let config = Goldens::read().config("sd15");
    for steps in 1..=100 {
        for kind in SamplerKind::ALL {
            let sampler = Sampler::new(&config, kind, steps).unwrap();
            let more = usize::from(kind == SamplerKind::Pndm && steps > 1);
            assert_eq!(sampler.timesteps().len(), steps + more, "{kind}");
            assert_eq!(sampler.sigmas().len(), steps + more + 1);
        }
    }
    let sampler = Sampler::new(&config, SamplerKind::Pndm, 50).unwrap();
    assert_eq!(sampler.timesteps()[..4], [981.0, 961.0, 961.0, 941.0]);
    assert_eq!(sampler.timesteps()[50], 1.0);
}

#[test]
fn the_class_of_a_file_names_its_sampler() {
    let goldens = Goldens::read();
    for (name, class, kind) in [
        ("sd15", ScheduleClass::Pndm, Some(SamplerKind::Pndm)),
        ("sd21-768", ScheduleClass::Ddim, Some(SamplerKind::Ddim)),
        ("sdxl", ScheduleClass::EulerDiscrete, Some(SamplerKind::Euler)),
        ("cosine", ScheduleClass::DpmSolverMultistep, Some(SamplerKind::DpmSolverPlusPlus2M)),
        ("training", ScheduleClass::Ddpm, None),
    ] {
        let config = goldens.config(name);
        assert_eq!((config.class, config.sampler_kind()), (class, kind), "{name}");
    }
    for kind in SamplerKind::ALL {
        let name = kind.to_string();
        assert_eq!(name.parse::<SamplerKind>().unwrap(), kind);
        assert_eq!(serde_json::to_string(&kind).unwrap(), format!("{name:?}"));
    }
    assert!(matches!("lms".parse::<SamplerKind>(), Err(ScheduleError::UnknownSampler(_))));
}

#[test]
fn what_cannot_be_sampled_is_refused_by_name() {
    let (ddim, pndm) = (SamplerKind::Ddim, SamplerKind::Pndm);
    let (euler, dpm) = (SamplerKind::Euler, SamplerKind::DpmSolverPlusPlus2M);
    for (options, kinds, steps, says) in [
        ("", &SamplerKind::ALL[..], 0, "0 steps"),
        ("", &SamplerKind::ALL, 1001, "trained on 1000 timesteps"),
        (
            r#", "steps_offset": 1, "timestep_spacing": "leading", "skip_prk_steps": true"#,
            &SamplerKind::ALL,
            1000,
            "cannot take 1000 steps",
        ),
        (
            r#", "steps_offset": -1, "timestep_spacing": "leading""#,
            &[ddim, pndm, euler],
            20,
            "steps_offset is -1",
        ),
        (r#", "timestep_spacing": "linspace""#, &[dpm], 1000, "would repeat"),
        (r#", "beta_start": NaN"#, &SamplerKind::ALL, 20, "beta_start"),
        (r#", "trained_betas": [0.1]"#, &SamplerKind::ALL, 1, "trained_betas"),
        (r#", "thresholding": true"#, &[ddim, dpm], 20, "thresholding"),
        (r#", "use_karras_sigmas": true"#, &[euler, dpm], 20, "use_karras_sigmas"),
        (r#", "use_exponential_sigmas": true"#, &[euler, dpm], 20, "use_exponential_sigmas"),
        (r#", "use_beta_sigmas": true"#, &[euler, dpm], 20, "use_beta_sigmas"),
        (r#", "interpolation_type": "log_linear""#, &[euler], 20, "interpolation_type"),
        (
            r#", "timestep_type": "continuous", "prediction_type": "v_prediction""#,
            &[euler],
            20,
            "timestep_type",
        ),
        // Read with v_prediction only; and names that diffusers reads as another one.
        (r#", "timestep_type": "continuous""#, &[], 20, ""),
        (r#", "solver_type": "logrho""#, &[], 20, ""),
        (r#", "solver_type": "bh2""#, &[], 20, ""),
        (r#", "use_lu_lambdas": true"#, &[dpm], 20, "use_lu_lambdas"),
        (r#", "use_flow_sigmas": true"#, &[dpm], 20, "use_flow_sigmas"),
        (r#", "solver_order": 3"#, &[dpm], 20, "solver_order"),
        (r#", "algorithm_type": "deis""#, &[dpm], 20, "algorithm_type"),
        (r#", "algorithm_type": "sde-dpmsolver++""#, &[dpm], 20, "algorithm_type"),
        (r#", "solver_type": "heun""#, &[dpm], 20, "solver_type"),
        (r#", "variance_type": "learned_range""#, &[dpm], 20, "variance_type"),
        (r#", "lambda_min_clipped": 100"#, &[dpm], 20, "lambda_min_clipped"),
        (r#", "skip_prk_steps": false"#, &[pndm], 3, "skip_prk_steps"),
        (
            r#", "rescale_betas_zero_snr": true, "timestep_spacing": "trailing""#,
            &[ddim],
            4,
            "rescale_betas_zero_snr",
        ),
    ] {
        let config = parse(&format!(r#"{{"_class_name": "DDIMScheduler"{options}}}"#)).unwrap();
        for kind in SamplerKind::ALL {
            let made = Sampler::new(&config, kind, steps);
            if kinds.contains(&kind) {
                let error = made.unwrap_err().to_string();
                assert!(error.contains(says), "{kind}: {says:?} is not in {error:?}");
            } else {
                assert!(made.is_ok(), "{kind} {options}: {:?}", made.err());
            }
        }
    }
    let config = parse(r#"{"_class_name": "DDPMScheduler", "beta_end": Infinity}"#).unwrap();
    let error = TrainingSchedule::new(&config, Device::Cpu).unwrap_err().to_string();
    assert!(error.contains("beta_end"), "{error}");
}

#[test]
fn wrong_calls_are_errors() {
    let config = Goldens::read().config("sd15");
    let (sample, small) = (whole(0), Tensor::zeros([2, 4, 3, 1], (Kind::Float, Device::Cpu)));
    for kind in SamplerKind::ALL {
        let mut sampler = Sampler::new(&config, kind, 1).unwrap();
        assert!(sampler.step(&sample, 1, &sample).is_err());
        assert!(sampler.step(&small, 0, &sample).is_err());
        assert!(sampler.scale_model_input(&sample, 1).is_err());
        assert!(sampler.step(&sample, 0, &sample).is_ok());
        assert!(sampler.step(&sample, 0, &sample).is_err());
        assert!(sampler.step(&sample, 1, &sample).is_err());
    }
    let training = TrainingSchedule::new(&config, Device::Cpu).unwrap();
    let times = |times: &[i64]| Tensor::from_slice(times);
    assert!(training.add_noise(&sample, &sample, &times(&[1, 1000])).is_err());
    assert!(training.add_noise(&sample, &sample, &times(&[1, -1])).is_err());
    assert!(training.add_noise(&sample, &sample, &times(&[1])).is_err());
    assert!(training.velocity(&sample, &small, &times(&[1, 2])).is_err());
}

#[test]
fn files_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("scheduler_config.json");
    let error = ScheduleConfig::read(&file).unwrap_err().to_string();
    assert!(error.contains("scheduler_config.json"), "{error}");
    let goldens = Goldens::read();
    fs_err::write(&file, goldens.cases["configs"]["sdxl"].to_string()).unwrap();
    assert_eq!(ScheduleConfig::read(&file).unwrap(), goldens.config("sdxl"));
    fs_err::write(&file, [0xff, 0xfe, 0]).unwrap();
    assert!(ScheduleConfig::read(&file).is_err());
    fs_err::write(&file, vec![b' '; (1 << 20) + 1]).unwrap();
    let error = ScheduleConfig::read(&file).unwrap_err().to_string();
    assert!(error.contains("expected a page of JSON"), "{error}");
}
