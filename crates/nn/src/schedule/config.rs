//! `scheduler_config.json`. What a file leaves out has the default of the class that is made of it,
//! which need not be the class that wrote it: as `Other.from_config(scheduler.config)` in
//! diffusers.

use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

use super::sampler::SamplerKind;
use crate::config::{ConfigError, invalid, unsupported};

/// A configuration is a page of text, or as many betas as there are timesteps.
const LARGEST_FILE_BYTES: u64 = 1 << 20;

/// The scheduler that wrote a configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum ScheduleClass {
    /// Denoising diffusion probabilistic models; here for training only.
    #[serde(rename = "DDPMScheduler")]
    Ddpm,
    /// Denoising diffusion implicit models.
    #[serde(rename = "DDIMScheduler")]
    Ddim,
    /// Pseudo numerical methods for diffusion models.
    #[serde(rename = "PNDMScheduler")]
    Pndm,
    /// Euler's method.
    #[serde(rename = "EulerDiscreteScheduler")]
    EulerDiscrete,
    /// The multistep DPM-Solver and DPM-Solver++.
    #[serde(rename = "DPMSolverMultistepScheduler")]
    DpmSolverMultistep,
    /// Another that shares the noise of training with these; its own way of drawing is not built here.
    #[serde(
        rename = "EulerAncestralDiscreteScheduler",
        alias = "DEISMultistepScheduler",
        alias = "DPMSolverSinglestepScheduler",
        alias = "HeunDiscreteScheduler",
        alias = "KDPM2AncestralDiscreteScheduler",
        alias = "KDPM2DiscreteScheduler",
        alias = "LMSDiscreteScheduler",
        alias = "UniPCMultistepScheduler"
    )]
    Other,
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

/// Which of the trained timesteps a sampler visits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimestepSpacing {
    /// Evenly from the last to the first.
    Linspace,
    /// Multiples of a whole number, from the first, plus `steps_offset`.
    Leading,
    /// Evenly down from the last.
    Trailing,
}

/// The noise that is left after the last step of Euler and DPM-Solver++.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinalSigmas {
    /// None.
    Zero,
    /// That of the first trained timestep.
    SigmaMin,
}

/// A `scheduler_config.json`. The fields have its names, and where no class is named the default is
/// the same in all.
#[derive(Debug, Clone, PartialEq)]
pub struct ScheduleConfig {
    /// `_class_name`.
    pub class: ScheduleClass,
    /// How many timesteps the network was trained on (1000).
    pub num_train_timesteps: usize,
    /// The first beta (0.0001).
    pub beta_start: f64,
    /// The last beta (0.02).
    pub beta_end: f64,
    /// What lies between them (linear).
    pub beta_schedule: BetaSchedule,
    /// All betas, in place of the three options above.
    pub trained_betas: Option<Vec<f64>>,
    /// Betas are changed so that the last timestep is noise alone (no). PNDM ignores it.
    pub rescale_betas_zero_snr: bool,
    /// What the network predicts (epsilon).
    pub prediction_type: PredictionType,
    /// The timesteps visited: leading in DDIM and PNDM, linspace in Euler and DPM-Solver++.
    pub timestep_spacing: Option<TimestepSpacing>,
    /// Added to the timesteps of leading spacing (0).
    pub steps_offset: i64,
    /// The last step of DDIM (yes) and PNDM (no) ends without noise, not at the first timestep's.
    pub set_alpha_to_one: Option<bool>,
    /// DDIM clips the latents it predicts (yes).
    pub clip_sample: bool,
    /// To what they are clipped (1.0).
    pub clip_sample_range: f64,
    /// Clipping by quantile (no); refused by DDIM and DPM-Solver++.
    pub thresholding: bool,
    /// PNDM starts without Runge-Kutta steps (no).
    pub skip_prk_steps: bool,
    /// The noise left after Euler and DPM-Solver++ (zero).
    pub final_sigmas_type: FinalSigmas,
    /// `linear` (the default), or refused by Euler.
    pub interpolation_type: String,
    /// `discrete` (the default), or refused by Euler.
    pub timestep_type: String,
    /// Karras' noise levels (no); refused by Euler and DPM-Solver++.
    pub use_karras_sigmas: bool,
    /// Exponential noise levels (no); refused by Euler and DPM-Solver++.
    pub use_exponential_sigmas: bool,
    /// Noise levels of a beta distribution (no); refused by Euler and DPM-Solver++.
    pub use_beta_sigmas: bool,
    /// Lu's noise levels (no); refused by DPM-Solver++.
    pub use_lu_lambdas: bool,
    /// Noise levels of flow matching (no); refused by DPM-Solver++.
    pub use_flow_sigmas: bool,
    /// 2 (the default), or refused by DPM-Solver++.
    pub solver_order: i64,
    /// `dpmsolver++` (the default), or refused by DPM-Solver++.
    pub algorithm_type: String,
    /// `midpoint` (the default), or refused by DPM-Solver++.
    pub solver_type: String,
    /// DPM-Solver++ ends with a first-order step below 15 steps (yes).
    pub lower_order_final: bool,
    /// DPM-Solver++ always ends with a first-order step (no).
    pub euler_at_final: bool,
    /// DPM-Solver++ leaves out timesteps whose half log signal-to-noise ratio is lower (−∞).
    pub lambda_min_clipped: f64,
    /// `learned` and `learned_range` (default none) are refused by DPM-Solver++.
    pub variance_type: Option<String>,
}

impl ScheduleConfig {
    /// Reads a `scheduler_config.json`; keys that are not known are ignored.
    ///
    /// # Errors
    /// Where the file cannot be read or is no JSON, the class is none of [`ScheduleClass`], or an
    /// option has a value that is not known. What only some samplers refuse, they refuse.
    pub fn read(file: &Path) -> Result<Self, ConfigError> {
        let bytes = fs_err::metadata(file)?.len();
        if bytes > LARGEST_FILE_BYTES {
            return Err(invalid(file, format!("{bytes} bytes, expected a page of JSON")));
        }
        Self::parse(&fs_err::read_to_string(file)?, file).map_err(|error| error.in_file(file))
    }

    /// The same from the text of a file; `file` stands in messages only.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn parse(text: &str, file: &Path) -> Result<Self, ConfigError> {
        let options: Map<String, Value> = serde_json::from_str(text)
            .or_else(|error| serde_json::from_str(&quote_constants(text)).map_err(|_| error))
            .map_err(|error| invalid(file, error.to_string()))?;
        let Some(class) = options.get("_class_name") else {
            return Err(invalid(file, "it has no _class_name".to_owned()));
        };
        let class = ScheduleClass::deserialize(class)
            .map_err(|error| unsupported("_class_name", class, &error.to_string()))?;
        let options = Options(options);
        Ok(Self {
            class,
            num_train_timesteps: options.get("num_train_timesteps", 1000)?,
            beta_start: options.get("beta_start", Number(0.0001))?.0,
            beta_end: options.get("beta_end", Number(0.02))?.0,
            beta_schedule: options.get("beta_schedule", BetaSchedule::Linear)?,
            trained_betas: options
                .get("trained_betas", None::<Vec<Number>>)?
                .map(|betas| betas.into_iter().map(|Number(beta)| beta).collect()),
            rescale_betas_zero_snr: options.get("rescale_betas_zero_snr", false)?,
            prediction_type: options.get("prediction_type", PredictionType::Epsilon)?,
            timestep_spacing: options.get("timestep_spacing", None)?,
            steps_offset: options.get("steps_offset", 0)?,
            set_alpha_to_one: options.get("set_alpha_to_one", None)?,
            clip_sample: options.get("clip_sample", true)?,
            clip_sample_range: options.get("clip_sample_range", Number(1.0))?.0,
            thresholding: options.get("thresholding", false)?,
            skip_prk_steps: options.get("skip_prk_steps", false)?,
            final_sigmas_type: options.get("final_sigmas_type", FinalSigmas::Zero)?,
            interpolation_type: options.get("interpolation_type", "linear".to_owned())?,
            timestep_type: options.get("timestep_type", "discrete".to_owned())?,
            use_karras_sigmas: options.get("use_karras_sigmas", false)?,
            use_exponential_sigmas: options.get("use_exponential_sigmas", false)?,
            use_beta_sigmas: options.get("use_beta_sigmas", false)?,
            use_lu_lambdas: options.get("use_lu_lambdas", false)?,
            use_flow_sigmas: options.get("use_flow_sigmas", false)?,
            solver_order: options.get("solver_order", 2)?,
            algorithm_type: options.get("algorithm_type", "dpmsolver++".to_owned())?,
            solver_type: options.get("solver_type", "midpoint".to_owned())?,
            lower_order_final: options.get("lower_order_final", true)?,
            euler_at_final: options.get("euler_at_final", false)?,
            lambda_min_clipped: options.get("lambda_min_clipped", Number(f64::NEG_INFINITY))?.0,
            variance_type: options.get("variance_type", None)?,
        })
    }

    /// The sampler that is the file's class; none for the class of training and for others.
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

struct Options(Map<String, Value>);

impl Options {
    /// An option, or what it is where the file has none or null.
    fn get<T: DeserializeOwned>(&self, name: &str, default: T) -> Result<T, ConfigError> {
        match self.0.get(name) {
            None | Some(Value::Null) => Ok(default),
            Some(value) => {
                T::deserialize(value).map_err(|error| unsupported(name, value, &error.to_string()))
            }
        }
    }
}

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

/// Python writes numbers that are no JSON, `-Infinity` above all; outside quotation marks they
/// become text that [`Number`] reads.
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
                "beta_start": NaN, "beta_end": Infinity, "note": "NaN, Infinity", "shift": 3}"#,
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
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(says), "{says:?} is not in {error:?}");
        }
    }
}
