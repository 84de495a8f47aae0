//! Which loss a run minimises, and its terms together.

use clap::ValueEnum;
use nn::NetworkError;
use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::others::{chosen_errors, hinge, ipo, kto, mapo, mapo_logits};
use super::{PairErrors, losses};
use crate::settings::RunSettings;

/// MaPO's scale of the logit: the timesteps of the published schedules.
const MAPO_SCALE: f64 = 1000.0;

/// The value of `--loss`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LossKind {
    /// Diffusion-DPO: softplus(z) − p·z.
    #[default]
    Dpo,
    /// IPO: the margin's squared distance from 1/(2β).
    Ipo,
    /// Hinge: what the margin lacks to 1/β.
    Hinge,
    /// MaPO: no reference model.
    Mapo,
    /// Diffusion-KTO: single images, against the batch's mean.
    Kto,
}

impl LossKind {
    /// The name as `--loss` takes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Dpo => "dpo",
            Self::Ipo => "ipo",
            Self::Hinge => "hinge",
            Self::Mapo => "mapo",
            Self::Kto => "kto",
        }
    }
}

/// The loss of a run with its numbers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Objective {
    /// Which loss.
    pub kind: LossKind,
    /// β.
    pub beta: f64,
    /// Labels are kept this far from 0 and 1.
    pub label_smoothing: f64,
    /// The factor of the model's error on the chosen image.
    pub winner_anchor: f64,
    /// The scale of MaPO's logit.
    pub mapo_scale: f64,
    /// KTO's reference point.
    pub reference_point: f64,
}

/// What an objective makes of a micro-batch.
#[derive(Debug)]
pub struct Losses {
    /// z, or MaPO's logit, `[P]`.
    pub logits_P: Tensor,
    /// The loss of each pair, not weighted, `[P]`. For KTO the mean of its two images' losses.
    pub losses_P: Tensor,
    /// The losses of images 0 and of images 1, `[P]` each, if the loss is one of single images.
    pub images_P: Option<[Tensor; 2]>,
}

impl Objective {
    /// The loss of DPO alone.
    pub fn dpo(beta: f64) -> Self {
        Self {
            kind: LossKind::Dpo,
            beta,
            label_smoothing: 0.0,
            winner_anchor: 0.0,
            mapo_scale: MAPO_SCALE,
            reference_point: 0.0,
        }
    }

    /// The loss that settings ask for, with `--beta` as β.
    pub fn of(settings: &RunSettings) -> Self {
        let dpo = Self::dpo(settings.beta);
        Self {
            kind: settings.loss.unwrap_or_default(),
            label_smoothing: settings.label_smoothing.unwrap_or(dpo.label_smoothing),
            winner_anchor: settings.winner_anchor.unwrap_or(dpo.winner_anchor),
            mapo_scale: settings.mapo_scale.unwrap_or(dpo.mapo_scale),
            ..dpo
        }
    }

    /// The same loss with another β.
    #[must_use]
    pub fn with_beta(self, beta: f64) -> Self {
        Self { beta, ..self }
    }

    /// The same loss with this reference point of KTO.
    #[must_use]
    pub fn with_reference_point(self, reference_point: f64) -> Self {
        Self { reference_point, ..self }
    }

    /// The loss in words, with what β means elsewhere.
    pub fn in_words(settings: &RunSettings) -> String {
        let objective = Self::of(settings);
        let Self { beta, .. } = objective;
        // Of the half: https://github.com/huggingface/diffusers, examples/research_projects/
        // diffusion_dpo, whose script for SDXL has it and whose script for Stable Diffusion lacks it.
        let without_half =
            || format!("β {beta} with the half of z: {} in diffusers' script for SD", 0.5 * beta);
        let mut words = match objective.kind {
            LossKind::Dpo => match settings.auto_beta {
                None => format!("dpo, {}", without_half()),
                Some(target) => {
                    format!("dpo, β from {beta} on such that the gradient's factor is {target}")
                }
            },
            LossKind::Ipo => format!("ipo, β {beta}: a margin of {:e}", 0.5 / beta),
            LossKind::Hinge => format!("hinge, β {beta}: a margin of {:e}", 1.0 / beta),
            LossKind::Mapo => {
                format!("mapo, without a reference model, scale {}", objective.mapo_scale)
            }
            LossKind::Kto => {
                format!(
                    "kto, β {beta} with the half of z: {} in Diffusion-KTO's script",
                    0.5 * beta
                )
            }
        };
        if objective.label_smoothing > 0.0 {
            words += &format!(", labels {} from 0 and 1", objective.label_smoothing);
        }
        if objective.winner_anchor > 0.0 {
            words +=
                &format!(", and {} times the error on the chosen image", objective.winner_anchor);
        }
        words
    }

    /// Whether the reference model takes part.
    pub fn uses_reference(&self) -> bool {
        self.kind != LossKind::Mapo
    }

    /// Whether the loss of a pair depends on all pairs of the batch.
    pub fn needs_reference_point(&self) -> bool {
        self.kind == LossKind::Kto
    }

    /// The losses of pairs with these errors, for probabilities p that image 0 is chosen.
    ///
    /// # Errors
    /// If the shapes differ.
    pub fn losses(
        &self,
        errors: &PairErrors,
        probability_P: &Tensor,
    ) -> Result<Losses, NetworkError> {
        let logits_P = match self.kind {
            LossKind::Mapo => mapo_logits(&errors.model_P, self.mapo_scale)?,
            _ => errors.logits(self.beta)?,
        };
        let least = self.label_smoothing;
        let smoothed_P = match least > 0.0 {
            true => Some(probability_P.f_clamp(least, 1.0 - least)?),
            false => None,
        };
        let p_P = smoothed_P.as_ref().unwrap_or(probability_P);
        let mut images_P = None;
        let mut losses_P = match self.kind {
            LossKind::Dpo => losses(&logits_P, p_P)?,
            LossKind::Ipo => ipo(&errors.margins()?, p_P, self.beta)?,
            LossKind::Hinge => hinge(&errors.margins()?, p_P, self.beta)?,
            LossKind::Mapo => mapo(&errors.model_P, &logits_P, p_P)?,
            LossKind::Kto => {
                let PairErrors { model_P, reference_P } = errors;
                let both = kto(model_P, reference_P, p_P, self.beta, self.reference_point)?;
                let mean_P = both[0].f_add(&both[1])?.f_mul_scalar(0.5)?;
                images_P = Some(both);
                mean_P
            }
        };
        if self.winner_anchor > 0.0 {
            let anchor_P = chosen_errors(&errors.model_P, p_P)?;
            losses_P = losses_P.f_add(&anchor_P.f_mul_scalar(self.winner_anchor)?)?;
        }
        Ok(Losses { logits_P, losses_P, images_P })
    }
}
