//! `scheduler_config.json`. Options that a file omits have the default of the class that is built
//! from it, which need not be the class that wrote it: as with
//! `Other.from_config(scheduler.config)` in diffusers.

use std::path::Path;

use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::kind::SamplerKind;
use crate::config::{ConfigError, Options, invalid, not_json, unsupported, without_unset};

/// A configuration is a page of text, or as many betas as there are timesteps.
const LARGEST_FILE_BYTES: u64 = 1 << 20;

/// The class of a scheduler configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScheduleClass {
    /// Denoising diffusion probabilistic models; for training only.
    Ddpm,
    /// Denoising diffusion implicit models.
    Ddim,
    /// Pseudo numerical methods for diffusion models.
    Pndm,
    /// Euler's method.
    EulerDiscrete,
    /// The multistep DPM-Solver and DPM-Solver++.
    DpmSolverMultistep,
    /// Another class. Its sampler is not implemented, but its noise schedule is.
    Other,
}

/// Other classes that diffusers can convert into each other; they have the same defaults.
const OF_THE_SAME_NOISE: &[&str] = &[
    "DDIMInverseScheduler",
    "DDIMParallelScheduler",
    "DDPMParallelScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepInverseScheduler",
    "DPMSolverSDEScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LCMScheduler",
    "LMSDiscreteScheduler",
    "SASolverScheduler",
    "TCDScheduler",
    "UniPCMultistepScheduler",
];

impl ScheduleClass {
    /// The class of this name in diffusers.
    fn named(name: &str, options: &Options<'_>) -> Result<Self, ConfigError> {
        Ok(match name {
            "DDPMScheduler" => Self::Ddpm,
            "DDIMScheduler" => Self::Ddim,
            "PNDMScheduler" => Self::Pndm,
            "EulerDiscreteScheduler" => Self::EulerDiscrete,
            "DPMSolverMultistepScheduler" => Self::DpmSolverMultistep,
            other if OF_THE_SAME_NOISE.contains(&other) => Self::Other,
            other => {
                let names = |name: &str| options.value(name).is_some_and(|value| !value.is_null());
                let ends = names("beta_start") && names("beta_end") && names("beta_schedule");
                if !ends && !names("trained_betas") {
                    let hint = "it is not known, and the file names no noise (beta_start, beta_end \
                        and beta_schedule); expected a scheduler of Stable Diffusion";
                    return Err(unsupported("_class_name", &other.into(), hint));
                }
                Self::Other
            }
        })
    }
}

/// How betas grow over the timesteps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BetaSchedule {
    /// Evenly from `beta_start` to `beta_end`.
    Linear,
    /// Their square roots grow evenly; Stable Diffusion's.
    ScaledLinear,
    /// The cosine schedule; `beta_start` and `beta_end` do not matter.
    #[serde(rename = "squaredcos_cap_v2")]
    SquaredCosine,
}

/// What the network was trained to predict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PredictionType {
    /// The noise.
    Epsilon,
    /// The velocity √ᾱ·noise − √(1−ᾱ)·latents.
    VPrediction,
}

/// The trained timesteps that a sampler visits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimestepSpacing {
    /// Evenly spaced from the last to the first.
    Linspace,
    /// Multiples of a whole number, from the first, plus `steps_offset`.
    Leading,
    /// Evenly spaced, downwards from the last.
    Trailing,
}

/// The noise that is left after the last step of Euler and DPM-Solver++.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinalSigmas {
    /// None.
    Zero,
    /// The noise level of the first trained timestep.
    SigmaMin,
}

/// A `scheduler_config.json`, whose names the fields have. The defaults in parentheses hold for all
/// classes unless one is named.
#[derive(Debug, Clone, PartialEq)]
pub struct ScheduleConfig {
    /// `_class_name`, or the class in `model_index.json`.
    pub class: ScheduleClass,
    /// The name of the class.
    pub class_name: String,
    /// How many timesteps the network was trained on (1000).
    pub num_train_timesteps: usize,
    /// The first beta (0.0001).
    pub beta_start: f64,
    /// The last beta (0.02).
    pub beta_end: f64,
    /// The curve between them (linear).
    pub beta_schedule: BetaSchedule,
    /// All betas, in place of the three options above.
    pub trained_betas: Option<Vec<f64>>,
    /// Whether betas are rescaled so that the last timestep is pure noise (no). PNDM ignores it.
    pub rescale_betas_zero_snr: bool,
    /// What the network predicts (epsilon).
    pub prediction_type: PredictionType,
    /// The timesteps visited: leading in DDIM and PNDM, linspace in Euler and DPM-Solver++.
    pub timestep_spacing: Option<TimestepSpacing>,
    /// Added to the timesteps of leading spacing (0).
    pub steps_offset: i64,
    /// Whether the last step of DDIM (yes) and PNDM (no) ends without noise, instead of at the
    /// noise level of the first timestep.
    pub set_alpha_to_one: Option<bool>,
    /// Whether DDIM clips the latents that it predicts (yes).
    pub clip_sample: bool,
    /// The limit to which they are clipped (1.0).
    pub clip_sample_range: f64,
    /// Clipping by quantile (no); DDIM and DPM-Solver++ reject it.
    pub thresholding: bool,
    /// Whether PNDM starts without Runge-Kutta steps (no).
    pub skip_prk_steps: bool,
    /// The noise that remains after Euler and DPM-Solver++ (zero).
    pub final_sigmas_type: FinalSigmas,
    /// Euler rejects all but `linear` (the default).
    pub interpolation_type: String,
    /// Euler rejects all but `discrete` (the default).
    pub timestep_type: String,
    /// Karras' noise levels (no); Euler and DPM-Solver++ reject them.
    pub use_karras_sigmas: bool,
    /// Exponential noise levels (no); Euler and DPM-Solver++ reject them.
    pub use_exponential_sigmas: bool,
    /// Noise levels of a beta distribution (no); Euler and DPM-Solver++ reject them.
    pub use_beta_sigmas: bool,
    /// Lu's noise levels (no); DPM-Solver++ rejects them.
    pub use_lu_lambdas: bool,
    /// Noise levels of flow matching (no); DPM-Solver++ rejects them.
    pub use_flow_sigmas: bool,
    /// DPM-Solver++ rejects all but 2 (the default).
    pub solver_order: i64,
    /// DPM-Solver++ rejects all but `dpmsolver++` (the default).
    pub algorithm_type: String,
    /// DPM-Solver++ rejects all but `midpoint` (the default).
    pub solver_type: String,
    /// Whether DPM-Solver++ ends with a first-order step if it has fewer than 15 steps (yes).
    pub lower_order_final: bool,
    /// Whether DPM-Solver++ always ends with a first-order step (no).
    pub euler_at_final: bool,
    /// DPM-Solver++ skips timesteps whose half log signal-to-noise ratio is lower (−∞).
    pub lambda_min_clipped: f64,
    /// DPM-Solver++ rejects `learned` and `learned_range` (default none).
    pub variance_type: Option<String>,
}

impl ScheduleConfig {
    /// Reads a `scheduler_config.json`.
    ///
    /// # Errors If the file cannot be read or is not JSON, an option has an unknown value, or the
    /// class is unknown and the file describes no noise schedule. Options that only some samplers
    /// reject are checked by [`super::Sampler::new`].
    pub fn read(file: &Path) -> Result<Self, ConfigError> {
        Self::read_as(file, None)
    }

    /// [`Self::read`] with a class that is named elsewhere: for a pipeline, diffusers builds the
    /// class in `model_index.json`, with the values of the file.
    pub fn read_as(file: &Path, class: Option<&str>) -> Result<Self, ConfigError> {
        let bytes = fs_err::metadata(file)?.len();
        if bytes > LARGEST_FILE_BYTES {
            return Err(invalid(file, format!("{bytes} bytes, expected a page of JSON")));
        }
        Self::parse_as(&fs_err::read_to_string(file)?, file, class)
            .map_err(|error| error.in_file(file))
    }

    /// The same from the text of a file; `file` is used in messages only.
    pub fn parse(text: &str, file: &Path) -> Result<Self, ConfigError> {
        Self::parse_as(text, file, None)
    }

    fn parse_as(text: &str, file: &Path, class: Option<&str>) -> Result<Self, ConfigError> {
        let json: Value = serde_json::from_str(text)
            .or_else(|error| serde_json::from_str(&quote_constants(text)).map_err(|_| error))
            .map_err(|error| not_json(file, text.as_bytes(), &error))?;
        if !json.is_object() {
            return Err(invalid(file, "expected a JSON object".to_owned()));
        }
        let json = without_unset(json);
        let options = Options::new(&json, "");
        let own = options.get("_class_name", "a name", None::<String>)?;
        let Some(class_name) = class.map(str::to_owned).or(own) else {
            return Err(invalid(file, "it has no _class_name".to_owned()));
        };
        let number = |name: &str, default: f64| {
            options.get(name, "a number", Number(default)).map(|Number(number)| number)
        };
        let text = |name: &str, default: &str| options.get(name, "a name", default.to_owned());
        let schedules = "linear, scaled_linear or squaredcos_cap_v2";
        let betas =
            options.get("trained_betas", "a list of numbers or null", None::<Vec<Number>>)?;
        let config = Self {
            class: ScheduleClass::named(&class_name, &options)?,
            class_name,
            num_train_timesteps: options.get("num_train_timesteps", "a whole number", 1000)?,
            beta_start: number("beta_start", 0.0001)?,
            beta_end: number("beta_end", 0.02)?,
            beta_schedule: options.get("beta_schedule", schedules, BetaSchedule::Linear)?,
            trained_betas: betas.map(|betas| betas.into_iter().map(|Number(beta)| beta).collect()),
            rescale_betas_zero_snr: options.flag("rescale_betas_zero_snr", false)?,
            prediction_type: options.get(
                "prediction_type",
                "epsilon or v_prediction",
                PredictionType::Epsilon,
            )?,
            timestep_spacing: match options.value("timestep_spacing") {
                None => None,
                Some(_) => Some(options.get(
                    "timestep_spacing",
                    "linspace, leading or trailing",
                    TimestepSpacing::Leading,
                )?),
            },
            steps_offset: options.integer("steps_offset", 0)?,
            set_alpha_to_one: match options.value("set_alpha_to_one") {
                None => None,
                Some(_) => Some(options.flag("set_alpha_to_one", false)?),
            },
            clip_sample: options.flag("clip_sample", true)?,
            clip_sample_range: number("clip_sample_range", 1.0)?,
            thresholding: options.flag("thresholding", false)?,
            skip_prk_steps: options.flag("skip_prk_steps", false)?,
            final_sigmas_type: options.get(
                "final_sigmas_type",
                "zero or sigma_min",
                FinalSigmas::Zero,
            )?,
            interpolation_type: text("interpolation_type", "linear")?,
            timestep_type: text("timestep_type", "discrete")?,
            use_karras_sigmas: options.flag("use_karras_sigmas", false)?,
            use_exponential_sigmas: options.flag("use_exponential_sigmas", false)?,
            use_beta_sigmas: options.flag("use_beta_sigmas", false)?,
            use_lu_lambdas: options.flag("use_lu_lambdas", false)?,
            use_flow_sigmas: options.flag("use_flow_sigmas", false)?,
            solver_order: options.integer("solver_order", 2)?,
            algorithm_type: text("algorithm_type", "dpmsolver++")?,
            solver_type: text("solver_type", "midpoint")?,
            lower_order_final: options.flag("lower_order_final", true)?,
            euler_at_final: options.flag("euler_at_final", false)?,
            lambda_min_clipped: number("lambda_min_clipped", f64::NEG_INFINITY)?,
            variance_type: options.get("variance_type", "a name or null", None)?,
        };
        options.of_no_effect(OF_NO_EFFECT);
        options.fixed("snr_shift_scale", &["null"], "it changes the noise")?;
        options.warn_of_unknown(file, "diffusers");
        Ok(config)
    }

    /// The sampler of the file's class; `None` for the class of training and for others.
    pub fn sampler_kind(&self) -> Option<SamplerKind> {
        match self.class {
            ScheduleClass::Ddpm | ScheduleClass::Other => None,
            ScheduleClass::Ddim => Some(SamplerKind::Ddim),
            ScheduleClass::Pndm => Some(SamplerKind::Pndm),
            ScheduleClass::EulerDiscrete => Some(SamplerKind::Euler),
            ScheduleClass::DpmSolverMultistep => Some(SamplerKind::DpmSolverPlusPlus2M),
        }
    }
}

/// Options that none of the implemented samplers reads: those of other classes, and those that
/// belong to another option which is rejected (thresholds of `thresholding`, the ends of Karras'
/// and similar noise levels, shifts of flow matching).
const OF_NO_EFFECT: &[&str] = &[
    "corrector_order",
    "disable_corrector",
    "dynamic_thresholding_ratio",
    "flow_shift",
    "noise_sampler_seed",
    "original_inference_steps",
    "predict_x0",
    "predictor_order",
    "sample_max_value",
    "shift_terminal",
    "sigma_max",
    "sigma_min",
    "solver_p",
    "tau_func",
    "time_shift_type",
    "timestep_scaling",
    "use_dynamic_shifting",
];

/// A number, or one of [`quote_constants`].
struct Number(f64);

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "expected a number")]
        enum Written {
            Digits(f64),
            Constant(String),
        }
        match Written::deserialize(deserializer)? {
            Written::Digits(number) => Ok(Self(number)),
            Written::Constant(text) => match text.as_str() {
                "inf" => Ok(Self(f64::INFINITY)),
                "-inf" => Ok(Self(f64::NEG_INFINITY)),
                "nan" => Ok(Self(f64::NAN)),
                _ => Err(serde::de::Error::custom("expected a number")),
            },
        }
    }
}

/// Python writes numbers that JSON does not have, `-Infinity` above all. Outside quotation marks
/// they become text that [`Number`] reads.
fn quote_constants(text: &str) -> String {
    let outside = |piece: &str| {
        piece
            .replace("-Infinity", "\"-inf\"")
            .replace("Infinity", "\"inf\"")
            .replace("NaN", "\"nan\"")
    };
    let pieces = text.split('"').enumerate();
    let pieces =
        pieces.map(|(place, piece)| if place % 2 == 0 { outside(piece) } else { piece.to_owned() });
    pieces.collect::<Vec<_>>().join("\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<ScheduleConfig, String> {
        ScheduleConfig::parse(text, Path::new("scheduler_config.json"))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn numbers_of_python_are_read() {
        let config = parse(
            r#"{"_class_name": "DPMSolverMultistepScheduler", "lambda_min_clipped": -Infinity,
                "beta_start": NaN, "beta_end": Infinity, "note": "NaN, Infinity"}"#,
        )
        .unwrap();
        assert_eq!(config.lambda_min_clipped, f64::NEG_INFINITY);
        assert!(config.beta_start.is_nan());
        assert_eq!(config.beta_end, f64::INFINITY);
        assert_eq!(config.sampler_kind(), Some(SamplerKind::DpmSolverPlusPlus2M));
    }

    #[test]
    fn schedulers_that_are_not_built_here_still_say_how_noise_was_added() {
        for class in ["EulerAncestralDiscreteScheduler", "UniPCMultistepScheduler"] {
            let text = format!(r#"{{"_class_name": "{class}", "beta_schedule": "scaled_linear"}}"#);
            let config = parse(&text).unwrap();
            assert_eq!((config.class, config.sampler_kind()), (ScheduleClass::Other, None));
            assert_eq!(config.beta_schedule, BetaSchedule::ScaledLinear);
        }
        // An unknown class whose file describes a noise schedule.
        let config = parse(
            r#"{"_class_name": "MyScheduler", "beta_start": 0.00085, "beta_end": 0.012,
                "beta_schedule": "scaled_linear"}"#,
        )
        .unwrap();
        assert_eq!((config.class, &*config.class_name), (ScheduleClass::Other, "MyScheduler"));
    }

    #[test]
    fn the_class_that_a_pipeline_names_comes_first() {
        let file = Path::new("scheduler_config.json");
        for text in ["{}", r#"{"_class_name": "FlowMatchEulerDiscreteScheduler"}"#] {
            let config = ScheduleConfig::parse_as(text, file, Some("PNDMScheduler")).unwrap();
            assert_eq!(config.sampler_kind(), Some(SamplerKind::Pndm));
        }
    }

    #[test]
    fn null_is_what_python_makes_of_it() {
        let config = parse(
            r#"{"_class_name": "DDIMScheduler", "set_alpha_to_one": null, "clip_sample": null,
                "lower_order_final": null, "trained_betas": null, "variance_type": null}"#,
        )
        .unwrap();
        assert_eq!((config.set_alpha_to_one, config.clip_sample), (Some(false), false));
        assert!(!config.lower_order_final);
    }

    #[test]
    fn options_that_were_never_set_have_the_default() {
        let config = parse(
            r#"{"_class_name": "DDIMScheduler", "steps_offset": 7, "beta_end": 0.012,
                "_use_default_values": ["steps_offset"]}"#,
        )
        .unwrap();
        assert_eq!((config.steps_offset, config.beta_end), (0, 0.012));
    }

    #[test]
    fn what_is_not_known_is_refused_by_name() {
        for (text, says) in [
            ("", "not a valid model configuration"),
            ("[]", "not a valid model configuration"),
            ("{\"_class_name\": NaN", "not a valid model configuration"),
            ("{}", "_class_name"),
            (r#"{"_class_name": "FlowMatchEulerDiscreteScheduler"}"#, "FlowMatchEuler"),
            (r#"{"_class_name": ["DDIMScheduler"]}"#, "_class_name"),
            (r#"{"_class_name": "DDIMScheduler", "prediction_type": "sample"}"#, "prediction_type"),
            (r#"{"_class_name": "DDPMScheduler", "beta_schedule": "sigmoid"}"#, "beta_schedule"),
            (r#"{"_class_name": "DDIMScheduler", "timestep_spacing": "log"}"#, "timestep_spacing"),
            (r#"{"_class_name": "DDIMScheduler", "num_train_timesteps": -1}"#, "num_train"),
            (r#"{"_class_name": "DDIMScheduler", "beta_start": "little"}"#, "beta_start"),
            (r#"{"_class_name": "DDIMScheduler", "trained_betas": [[]]}"#, "trained_betas"),
            (r#"{"_class_name": "DDIMScheduler", "final_sigmas_type": "one"}"#, "final_sigmas"),
            (r#"{"_class_name": "DDIMScheduler", "steps_offset": null}"#, "steps_offset to null"),
            (r#"{"_class_name": "DDIMScheduler", "timestep_spacing": null}"#, "timestep_spacing"),
            (r#"{"_class_name": "DDIMScheduler", "prediction_type": null}"#, "prediction_type"),
            (r#"{"_class_name": "DDIMScheduler", "clip_sample": "no"}"#, "clip_sample to"),
            (
                r#"{"_class_name": "CogVideoXDDIMScheduler", "snr_shift_scale": 3.0,
                    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}"#,
                "snr_shift_scale",
            ),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(says), "{says:?} is not in {error:?}");
        }
    }
}
