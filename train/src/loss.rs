//! The one loss of every preference (Equations 3, 8 and 10), on images in dataset order.
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

use nn::NetworkError;
use tch::{Kind, Reduction, Tensor};

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
    /// The reference's on image 0 and on image 1.
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
        let gain = |image: usize| self.model_P[image].f_sub(&self.reference_P[image]);
        Ok(gain(0)?.f_sub(&gain(1)?)?.f_mul_scalar(-0.5 * beta)?)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(tensor: &Tensor) -> Vec<f32> {
        Vec::try_from(tensor).unwrap()
    }

    #[test]
    fn if_the_networks_agree_the_loss_is_exactly_ln_2() {
        for count in [1, 3, 8, 17, 64] {
            let errors_2P = Tensor::rand([2 * count], (Kind::Float, tch::Device::Cpu));
            let errors = PairErrors::of(&errors_2P, &errors_2P.copy()).unwrap();
            let logits = errors.logits(5000.0).unwrap();
            assert!(numbers(&logits).iter().all(|logit| *logit == 0.0));
            for probability in [0.0, 0.25, 0.5, 0.75, 1.0, 1.0 / 3.0] {
                let probability = logits.full_like(probability);
                let losses = losses(&logits, &probability).unwrap();
                assert!(numbers(&losses).iter().all(|loss| *loss == std::f32::consts::LN_2));
                let agreement = agreement(&logits, &probability).unwrap();
                assert!(numbers(&agreement).iter().all(|number| (number - 0.5).abs() < 1e-6));
            }
        }
    }

    #[test]
    fn the_loss_is_that_of_the_formula() {
        let logits = [-90.0f32, -20.0, -3.0, -0.1, 0.2, 4.0, 17.0, 95.0];
        let z = Tensor::from_slice(&logits);
        for p in [0.0f32, 0.25, 0.5, 1.0] {
            let losses = numbers(&losses(&z, &z.full_like(f64::from(p))).unwrap());
            for (z, loss) in logits.iter().zip(losses) {
                let z = f64::from(*z);
                let expected = z.max(0.0) + (-z.abs()).exp().ln_1p() - f64::from(p) * z;
                assert!((f64::from(loss) - expected).abs() <= 2e-7 * z.abs().max(1.0), "{z} {p}");
            }
        }
    }

    #[test]
    fn the_gradient_is_sigma_of_z_minus_p() {
        let z = Tensor::from_slice(&[-3.0f32, 0.0, 0.5, 8.0]).set_requires_grad(true);
        let p = Tensor::from_slice(&[1.0f32, 0.75, 0.0, 1.0]);
        losses(&z, &p).unwrap().sum(Kind::Float).backward();
        let expected = numbers(&(z.sigmoid() - p));
        for (found, expected) in numbers(&z.grad()).iter().zip(expected) {
            assert!((found - expected).abs() < 1e-6);
        }
    }

    #[test]
    fn a_lower_error_on_the_chosen_image_is_a_positive_logit() {
        let model = Tensor::from_slice(&[0.1f32, 0.3]);
        let reference = Tensor::from_slice(&[0.2f32, 0.2]);
        let errors = PairErrors::of(&model, &reference).unwrap();
        let z = numbers(&errors.logits(10.0).unwrap());
        assert!((z[0] - 1.0).abs() < 1e-6, "{z:?}");
        let one = agreement(&Tensor::from_slice(&z), &Tensor::from_slice(&[1.0f32])).unwrap();
        assert_eq!(numbers(&one), [1.0]);
    }

    #[test]
    fn errors_are_means_over_all_but_the_batch() {
        let predicted = Tensor::from_slice(&[1.0f32, 2.0, 3.0, 4.0]).view([2, 1, 1, 2]);
        let target = Tensor::zeros([2, 1, 1, 2], (Kind::Float, tch::Device::Cpu));
        assert_eq!(numbers(&errors(&predicted, &target).unwrap()), [2.5, 12.5]);
    }

    proptest::proptest! {
        #[test]
        fn swapping_the_images_and_the_label_changes_nothing(
            errors in proptest::array::uniform4(0.0f32..1.0),
            probability in 0.0f32..=1.0
        ) {
            let [m0, m1, r0, r1] = errors;
            let loss = |model: [f32; 2], reference: [f32; 2], probability: f32| {
                let errors = PairErrors::of(
                    &Tensor::from_slice(&model),
                    &Tensor::from_slice(&reference),
                ).unwrap();
                let logits = errors.logits(50.0).unwrap();
                numbers(&losses(&logits, &Tensor::from_slice(&[probability])).unwrap())[0]
            };
            let here = loss([m0, m1], [r0, r1], probability);
            let there = loss([m1, m0], [r1, r0], 1.0 - probability);
            proptest::prop_assert!((here - there).abs() <= 1e-5 * here.abs().max(1.0));
        }
    }
}
