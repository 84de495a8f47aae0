//! Betas, their cumulative products, and the timesteps that a sampler visits.

use tch::{Device, Kind, TchError, Tensor};

use super::config::{BetaSchedule, ScheduleConfig, TimestepSpacing};
use super::kind::{SamplerKind, ScheduleError};

/// More timesteps than any network is trained on.
const MOST_TIMESTEPS: usize = 1_000_000;

/// The largest beta of the cosine schedule.
const LARGEST_COSINE_BETA: f64 = 0.999;

/// ᾱ, the fraction of the signal's power that remains at each timestep: f32 on the CPU,
/// `num_train_timesteps` long. `zero_snr` says whether the class knows `rescale_betas_zero_snr`.
pub(super) fn alphas_cumprod(
    config: &ScheduleConfig,
    zero_snr: bool,
) -> Result<Tensor, ScheduleError> {
    let betas = betas(config)?;
    let betas = if zero_snr && config.rescale_betas_zero_snr { rescaled(&betas)? } else { betas };
    Ok(betas.f_rsub_scalar(1.0)?.f_cumprod(0, None::<Kind>)?)
}

/// The same as numbers. If betas are rescaled, `least_last` replaces the zero at the end.
pub(super) fn alphas_cumprod_numbers(
    config: &ScheduleConfig,
    zero_snr: bool,
    least_last: Option<f32>,
) -> Result<Vec<f32>, ScheduleError> {
    let mut alphas = Vec::<f32>::try_from(&alphas_cumprod(config, zero_snr)?)?;
    if let (true, Some(least), Some(last)) =
        (zero_snr && config.rescale_betas_zero_snr, least_last, alphas.last_mut())
    {
        *last = least;
    }
    Ok(alphas)
}

fn betas(config: &ScheduleConfig) -> Result<Tensor, ScheduleError> {
    let count = config.num_train_timesteps;
    if !(1..=MOST_TIMESTEPS).contains(&count) {
        let reason = format!("{count} timesteps, expected 1 to {MOST_TIMESTEPS}");
        return Err(ScheduleError::Betas { option: "num_train_timesteps", reason });
    }
    let bounded = |option: &'static str, beta: f64| {
        if (0.0..1.0).contains(&beta) {
            Ok(beta)
        } else {
            let reason = format!("found a beta of {beta}, expected 0 to 1 (exclusive)");
            Err(ScheduleError::Betas { option, reason })
        }
    };
    if let Some(betas) = &config.trained_betas {
        if betas.len() != count {
            let reason = format!("{} betas for {count} timesteps", betas.len());
            return Err(ScheduleError::Betas { option: "trained_betas", reason });
        }
        for beta in betas {
            bounded("trained_betas", *beta)?;
        }
        return Ok(Tensor::f_from_slice(betas)?.f_to_kind(Kind::Float)?);
    }
    let linspace = |start: f64, end: f64| {
        let steps = i64::try_from(count).unwrap_or(i64::MAX);
        Tensor::f_linspace(start, end, steps, (Kind::Float, Device::Cpu))
    };
    let ends = || {
        Ok::<_, ScheduleError>((
            bounded("beta_start", config.beta_start)?,
            bounded("beta_end", config.beta_end)?,
        ))
    };
    match config.beta_schedule {
        BetaSchedule::Linear => {
            let (start, end) = ends()?;
            Ok(linspace(start, end)?)
        }
        BetaSchedule::ScaledLinear => {
            let (start, end) = ends()?;
            Ok(linspace(start.sqrt(), end.sqrt())?.f_pow_tensor_scalar(2)?)
        }
        BetaSchedule::SquaredCosine => {
            let signal =
                |time: f64| ((time + 0.008) / 1.008 * std::f64::consts::PI / 2.0).cos().powi(2);
            let betas: Vec<f64> = (0..count)
                .map(|index| {
                    let (here, next) =
                        (index as f64 / count as f64, (index + 1) as f64 / count as f64);
                    (1.0 - signal(next) / signal(here)).min(LARGEST_COSINE_BETA)
                })
                .collect();
            Ok(Tensor::f_from_slice(&betas)?.f_to_kind(Kind::Float)?)
        }
    }
}

/// Betas with no signal at the last timestep: Lin et al., "Common Diffusion Noise Schedules and
/// Sample Steps are Flawed", algorithm 1.
fn rescaled(betas: &Tensor) -> Result<Tensor, ScheduleError> {
    let root = betas.f_rsub_scalar(1.0)?.f_cumprod(0, None::<Kind>)?.f_sqrt()?;
    let (first, last) = (root.f_narrow(0, 0, 1)?, root.f_narrow(0, -1, 1)?);
    let scale = first.f_div(&first.f_sub(&last)?)?;
    let alphas_cumprod = root.f_sub(&last)?.f_mul(&scale)?.f_pow_tensor_scalar(2)?;
    let after = alphas_cumprod.f_slice(0, 1, None::<i64>, 1)?;
    let ratios = after.f_div(&alphas_cumprod.f_slice(0, 0, -1, 1)?)?;
    let alphas = Tensor::f_cat(&[alphas_cumprod.f_narrow(0, 0, 1)?, ratios], 0)?;
    let betas = alphas.f_rsub_scalar(1.0)?;
    if betas.f_isfinite()?.f_all()?.f_int64_value(&[])? == 0 {
        let reason = "betas of zero cannot be rescaled".to_owned();
        return Err(ScheduleError::Betas { option: "rescale_betas_zero_snr", reason });
    }
    Ok(betas)
}

/// Square roots of libtorch, which need not be the nearest f32.
pub(super) fn sqrt<const N: usize>(numbers: [f32; N]) -> Result<[f32; N], TchError> {
    let mut roots = numbers;
    Tensor::f_from_slice(&numbers)?.f_sqrt()?.f_copy_data(&mut roots, N)?;
    Ok(roots)
}

/// The noise of samples in units of their signal, √((1−ᾱ)/ᾱ), in f32.
pub(super) fn sigmas(alphas_cumprod: &[f32]) -> Result<Vec<f32>, TchError> {
    let powers: Vec<f32> = alphas_cumprod.iter().map(|alpha| (1.0 - alpha) / alpha).collect();
    Vec::try_from(&Tensor::f_from_slice(&powers)?.f_sqrt()?)
}

/// The timesteps that the sampler visits, in falling order. DPM-Solver++ spaces one more and drops
/// the lowest; those of Euler may be fractions. `last` is the number of timesteps that may be
/// visited.
///
/// With trailing spacing and some numbers of steps, such as 61 of 1000, rounding gives diffusers
/// one more timestep, −1. It is dropped here.
pub(super) fn timesteps(
    config: &ScheduleConfig,
    kind: SamplerKind,
    steps: usize,
    last: usize,
) -> Result<Vec<f64>, ScheduleError> {
    let trained = config.num_train_timesteps;
    let refuse = |reason: String| Err(ScheduleError::Steps { sampler: kind, steps, reason });
    if steps == 0 || steps > trained {
        return refuse(format!("the network was trained on {trained} timesteps"));
    }
    let (default, skipped) = match kind {
        SamplerKind::Ddim | SamplerKind::Pndm => (TimestepSpacing::Leading, 0),
        SamplerKind::Euler => (TimestepSpacing::Linspace, 0),
        SamplerKind::DpmSolverPlusPlus2M => (TimestepSpacing::Linspace, 1),
    };
    let spacing = config.timestep_spacing.unwrap_or(default);
    let count = steps + skipped;
    let times: Vec<f64> = match spacing {
        TimestepSpacing::Linspace => {
            let end = last as f64 - 1.0;
            let step = if count > 1 { end / (count - 1) as f64 } else { 0.0 };
            let place = |index: usize| {
                let time = if index > 0 && index + 1 == count { end } else { index as f64 * step };
                match kind {
                    SamplerKind::Euler => f64::from(time as f32),
                    _ => time.round_ties_even(),
                }
            };
            (skipped..count).rev().map(place).collect()
        }
        TimestepSpacing::Leading => {
            let step = last / count;
            let offset = config.steps_offset as f64;
            (skipped..count).rev().map(|index| (index * step) as f64 + offset).collect()
        }
        TimestepSpacing::Trailing => {
            // The step of numpy's arange, which rounds twice.
            let (start, step) = (last as f64, trained as f64 / steps as f64);
            let step = (start - step) - start;
            let places = (0..steps).map(|index| start + index as f64 * step);
            places.map(|time| time.round_ties_even() - 1.0).filter(|time| *time >= 0.0).collect()
        }
    };
    if !times.is_sorted_by(|time, next| time > next) {
        return refuse(format!("the timesteps would repeat with {spacing:?} spacing"));
    }
    match times.iter().find(|time| !(0.0..trained as f64).contains(*time)) {
        Some(time) => refuse(format!(
            "timestep {time} would be beyond the {trained} that the network was trained on\n\
             hint: steps_offset is {}",
            config.steps_offset
        )),
        None => Ok(times),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn config(options: &str) -> ScheduleConfig {
        let text = format!(r#"{{"_class_name": "DDIMScheduler", {options}}}"#);
        ScheduleConfig::parse(&text, Path::new("test")).unwrap()
    }

    #[test]
    fn every_number_of_steps_gives_as_many_falling_timesteps() {
        for spacing in ["leading", "linspace", "trailing"] {
            let config = config(&format!(r#""timestep_spacing": "{spacing}""#));
            for kind in SamplerKind::ALL {
                for steps in 1..=1000 {
                    let times = timesteps(&config, kind, steps, 1000);
                    // One more timestep is spaced than visited.
                    let spaced = kind == SamplerKind::DpmSolverPlusPlus2M && spacing != "trailing";
                    if steps == 1000 && spaced {
                        assert!(times.is_err());
                        continue;
                    }
                    let times = times.unwrap();
                    assert_eq!(times.len(), steps, "{kind} {spacing}");
                    assert!(times.is_sorted_by(|a, b| a > b), "{kind} {spacing} {steps}");
                    assert!(times[0] <= 999.0 && times[steps - 1] >= 0.0);
                }
            }
        }
    }

    #[test]
    fn the_signal_falls_and_ends_at_zero_where_that_is_asked_for() {
        for schedule in ["linear", "scaled_linear", "squaredcos_cap_v2"] {
            for count in [2, 10, 1000] {
                let options =
                    format!(r#""beta_schedule": "{schedule}", "num_train_timesteps": {count}"#);
                let plain = config(&options);
                let zero = config(&format!(r#"{options}, "rescale_betas_zero_snr": true"#));
                let numbers = |config| alphas_cumprod_numbers(config, true, None).unwrap();
                for alphas in [numbers(&plain), numbers(&zero)] {
                    assert_eq!(alphas.len(), count);
                    assert!(alphas.is_sorted_by(|a, b| a > b), "{options}");
                    assert!(alphas[0] < 1.0);
                }
                assert!(numbers(&plain)[count - 1] > 0.0);
                assert_eq!(numbers(&zero)[count - 1], 0.0);
                assert!((numbers(&zero)[0] - numbers(&plain)[0]).abs() < 1e-6);
                assert_eq!(alphas_cumprod_numbers(&zero, false, None).unwrap(), numbers(&plain));
            }
        }
    }

    #[test]
    fn betas_out_of_range_are_rejected() {
        for (options, says) in [
            (r#""beta_start": "nan""#, "beta_start"),
            (r#""beta_end": 1.0"#, "beta_end"),
            (r#""beta_start": -0.1"#, "beta_start"),
            (r#""num_train_timesteps": 0"#, "num_train_timesteps"),
            (r#""num_train_timesteps": 100000000000"#, "num_train_timesteps"),
            (r#""trained_betas": [0.1], "num_train_timesteps": 2"#, "trained_betas"),
            (r#""trained_betas": [0.1, "nan"], "num_train_timesteps": 2"#, "trained_betas"),
            (
                r#""beta_start": 0, "beta_end": 0, "rescale_betas_zero_snr": true"#,
                "rescale_betas_zero_snr",
            ),
        ] {
            let error = alphas_cumprod(&config(options), true).unwrap_err().to_string();
            assert!(error.contains(says), "{says:?} is not in {error:?}");
        }
    }
}
