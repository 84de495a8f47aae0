//! The one loss of every preference (Equations 3, 8 and 10), on images in dataset order, and the
//! losses that stand beside it ([`others`]); [`Objective`] is the one that a run minimises.
//!
//! With e the mean squared error of a prediction over channels, height and width,
//!
//! > z = −β/2 · [(e_θ⁰ − e_ref⁰) − (e_θ¹ − e_ref¹)],  L = softplus(z) − p·z
//!
//! where p is the probability that image 0 is the chosen one. L is the binary cross-entropy of p
//! and σ(z): for p = 1 it is −log σ(z), the loss of Diffusion-DPO with image 0 as the winner, and
//! for p = 0 that with image 1. Everything is f32, whatever dtype the networks compute in.
//!
//! In the words of DPO: −β/2 times the gain of a network over the reference model in e is the
//! *implicit reward* of an image, and z, the *logit*, is the reward margin of image 0 over image 1.
//! By the Bradley-Terry model (Equation 1), σ(z) is the probability that image 0 is preferred.
//!
//! ```no_run
//! use tch::Tensor;
//! use train::loss::{PairErrors, losses};
//!
//! # fn main() -> Result<(), nn::NetworkError> {
//! // One pair: the model has gained on image 0 and lost on image 1.
//! let model = Tensor::from_slice(&[0.10f32, 0.21]);
//! let reference = Tensor::from_slice(&[0.11f32, 0.20]);
//! let z = PairErrors::of(&model, &reference)?.logits(100.0)?;
//! let chosen_is_image_0 = Tensor::from_slice(&[1.0f32]);
//! let loss = losses(&z, &chosen_is_image_0)?.double_value(&[0]);
//! assert!((loss - 0.3133).abs() < 1e-4, "−log σ(1) = 0.3133");
//! # Ok(())
//! # }
//! ```

mod auto_beta;
mod objective;
pub mod others;
#[cfg(test)]
mod tests;

use nn::NetworkError;
use tch::{Kind, Reduction, Tensor};

pub use self::auto_beta::{RunningMargin, mean_margin};
pub use self::objective::{LossKind, Losses, Objective};

/// Mean squared errors of predictions against their target, `[B]` f32 for `[B, C, H, W]`.
///
/// # Errors
/// If the shapes differ.
pub fn errors(predicted_BCHW: &Tensor, target_BCHW: &Tensor) -> Result<Tensor, NetworkError> {
    let difference_BCHW =
        predicted_BCHW.f_to_kind(Kind::Float)?.f_sub(&target_BCHW.f_to_kind(Kind::Float)?)?;
    Ok(difference_BCHW.f_square()?.f_mean_dim([1i64, 2, 3].as_slice(), false, Kind::Float)?)
}

/// Errors of the model and of the reference model on both images of `P` pairs, `[P]` f32 each.
#[derive(Debug)]
pub struct PairErrors {
    /// The model's on image 0 and on image 1.
    pub model_P: [Tensor; 2],
    /// The reference's on image 0 and on image 1. For a loss without a reference model these are the
    /// model's.
    pub reference_P: [Tensor; 2],
}

impl PairErrors {
    /// Splits errors `[2·P]`, those of images 0 before those of images 1.
    ///
    /// # Errors
    /// If the numbers of rows differ or are odd.
    pub fn of(model_2P: &Tensor, reference_2P: &Tensor) -> Result<Self, NetworkError> {
        let halves = |errors_2P: &Tensor| -> Result<[Tensor; 2], NetworkError> {
            let pairs = errors_2P.size1()? / 2;
            Ok([errors_2P.f_narrow(0, 0, pairs)?, errors_2P.f_narrow(0, pairs, pairs)?])
        };
        Ok(Self { model_P: halves(model_2P)?, reference_P: halves(reference_2P)? })
    }

    /// z, the implicit reward margin, `[P]`: positive if the model prefers image 0 more than the
    /// reference model does.
    ///
    /// # Errors
    /// If libtorch is out of memory.
    #[doc(alias = "implicit reward")]
    #[doc(alias = "rewards/margins")]
    #[doc(alias = "Bradley-Terry")]
    pub fn logits(&self, beta: f64) -> Result<Tensor, NetworkError> {
        Ok(self.gains(0)?.f_sub(&self.gains(1)?)?.f_mul_scalar(-0.5 * beta)?)
    }

    /// m = 2z/β, the margin in units of the errors, `[P]`.
    ///
    /// # Errors
    /// If libtorch is out of memory.
    pub fn margins(&self) -> Result<Tensor, NetworkError> {
        Ok(self.gains(1)?.f_sub(&self.gains(0)?)?)
    }

    /// The model's errors on an image less those of the reference model, `[P]`.
    fn gains(&self, image: usize) -> Result<Tensor, NetworkError> {
        Ok(self.model_P[image].f_sub(&self.reference_P[image])?)
    }
}

/// The DPO loss of each pair, softplus(z) − p·z, `[P]`, for logits z and probabilities p.
///
/// # Errors
/// If the shapes differ.
#[doc(alias = "dpo_loss")]
pub fn losses(logits_P: &Tensor, probability_P: &Tensor) -> Result<Tensor, NetworkError> {
    Ok(logits_P.f_binary_cross_entropy_with_logits(
        probability_P,
        None::<&Tensor>,
        None::<&Tensor>,
        Reduction::None,
    )?)
}

/// Implicit accuracy of each pair, `[P]`: the probability that the label agrees with the sign of z;
/// one half if z is zero.
///
/// # Errors
/// If the shapes differ.
#[doc(alias = "implicit accuracy")]
#[doc(alias = "rewards/accuracies")]
pub fn agreement(logits_P: &Tensor, probability_P: &Tensor) -> Result<Tensor, NetworkError> {
    // 1, ½ or 0 for image 0 preferred, neither, image 1.
    let first_P = logits_P.f_sign()?.f_add_scalar(1.0)?.f_mul_scalar(0.5)?;
    let second_P = first_P.f_rsub_scalar(1.0)?;
    let against_P = probability_P.f_rsub_scalar(1.0)?;
    Ok(first_P.f_mul(probability_P)?.f_add(&second_P.f_mul(&against_P)?)?)
}
