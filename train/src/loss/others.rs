//! Losses beside that of DPO: small pure functions of the errors e of a pair (see the module above),
//! f32 as everything there.
//!
//! m is the difference of errors, model against reference, that z is β/2 of:
//!
//! > m = (e_θ¹ − e_ref¹) − (e_θ⁰ − e_ref⁰),  z = β/2 · m
//!
//! and p is the probability that image 0 is the chosen one. A loss of the chosen image is weighted
//! by p as if image 0 were chosen, and by 1 − p as if image 1 were.

use nn::NetworkError;
use tch::Tensor;

use super::losses;

/// The factor of MaPO's logistic part, `--beta_mapo` of the released code.
pub const MAPO_BETA: f64 = 0.1;
/// The s of MaPO's g, `--snr_value` of the released code.
pub const MAPO_SNR: f64 = 0.5;

/// p·chosen + (1 − p)·rejected: `first_P` is the value if image 0 is chosen, `second_P` if image 1 is.
fn by_label(
    probability_P: &Tensor,
    first_P: &Tensor,
    second_P: &Tensor,
) -> Result<Tensor, NetworkError> {
    let against_P = probability_P.f_rsub_scalar(1.0)?;
    Ok(probability_P.f_mul(first_P)?.f_add(&against_P.f_mul(second_P)?)?)
}

/// The loss of IPO, (m − 1/(2β))² for the chosen image, `[P]` (Azar et al., arXiv:2310.12036,
/// Equation 17).
///
/// The margin is m and β is `--beta` as given, without the half of z, as in
/// huggingface/diffusers `examples/research_projects/diffusion_dpo/train_diffusion_dpo.py`, whose
/// branch for this loss reads a name that does not exist. Where the networks agree it is 1/(4β²).
///
/// # Errors
/// If the shapes differ.
pub fn ipo(margins_P: &Tensor, probability_P: &Tensor, beta: f64) -> Result<Tensor, NetworkError> {
    let target = 1.0 / (2.0 * beta);
    let first_P = margins_P.f_sub_scalar(target)?.f_square()?;
    let second_P = margins_P.f_add_scalar(target)?.f_square()?;
    by_label(probability_P, &first_P, &second_P)
}

/// The hinge loss, max(0, 1 − β·m) for the chosen image, `[P]` (SLiC, Zhao et al.,
/// arXiv:2305.10425).
///
/// The margin is m and β is `--beta` as given, without the half of z, as in
/// huggingface/diffusers `examples/research_projects/diffusion_dpo/train_diffusion_dpo.py`. Where
/// the networks agree it is exactly 1.
///
/// # Errors
/// If the shapes differ.
#[doc(alias = "slic")]
pub fn hinge(
    margins_P: &Tensor,
    probability_P: &Tensor,
    beta: f64,
) -> Result<Tensor, NetworkError> {
    let scaled_P = margins_P.f_mul_scalar(beta)?;
    let first_P = scaled_P.f_rsub_scalar(1.0)?.f_relu()?;
    let second_P = scaled_P.f_add_scalar(1.0)?.f_relu()?;
    by_label(probability_P, &first_P, &second_P)
}

/// The model's error on the chosen image, `[P]`: what a winner anchor adds, the loss of supervised
/// training on the chosen images (`sft_loss_weight` in bghira/SimpleTuner).
///
/// # Errors
/// If the shapes differ.
#[doc(alias = "sft_loss_weight")]
pub fn chosen_errors(
    model_P: &[Tensor; 2],
    probability_P: &Tensor,
) -> Result<Tensor, NetworkError> {
    by_label(probability_P, &model_P[0], &model_P[1])
}

/// MaPO's logit, `scale`·(g(e⁰) − g(e¹)) with g(e) = s·e / (exp(s·e) − 1), `[P]`: positive if the
/// model's error on image 0 is the lower one, since g falls. No reference model takes part.
///
/// # Errors
/// If the shapes differ.
pub fn mapo_logits(model_P: &[Tensor; 2], scale: f64) -> Result<Tensor, NetworkError> {
    let odds = |errors_P: &Tensor| -> Result<Tensor, NetworkError> {
        let scaled_P = errors_P.f_mul_scalar(MAPO_SNR)?;
        // expm1 keeps the digits that exp(x) − 1 loses near 0.
        Ok(scaled_P.f_div(&scaled_P.f_expm1()?)?)
    };
    Ok(odds(&model_P[0])?.f_sub(&odds(&model_P[1])?)?.f_mul_scalar(scale)?)
}

/// The loss of MaPO, e_θ of the chosen image − 0.1·log σ(±logit), `[P]` (Hong et al.,
/// arXiv:2406.06424), as `compute_loss` in mapo-t2i/mapo `train.py` has it; there the scale of the
/// logit is the number of timesteps, 1000.
///
/// # Errors
/// If the shapes differ.
pub fn mapo(
    model_P: &[Tensor; 2],
    logits_P: &Tensor,
    probability_P: &Tensor,
) -> Result<Tensor, NetworkError> {
    let ratio_P = losses(logits_P, probability_P)?.f_mul_scalar(MAPO_BETA)?;
    Ok(chosen_errors(model_P, probability_P)?.f_add(&ratio_P)?)
}

/// The loss of Diffusion-KTO of each image, 1 − σ(±β/2·(g − `reference_point`)) with
/// g = e_ref − e_θ: plus for a chosen image, minus for a rejected one, `[P]` for images 0 and for
/// images 1 (Li et al., arXiv:2404.04465).
///
/// As jacklishufan/diffusion-kto `train_kto_sd_v1.5.py` computes it with `--halo sigmoid` and equal
/// weights of both kinds, but with the half that z has: its β of 2500 is a `--beta` of 5000. A label
/// of p is a chosen image 0 with weight p and a rejected one with weight 1 − p. Where the networks
/// agree and the reference point is 0, it is exactly one half.
///
/// # Errors
/// If the shapes differ.
pub fn kto(
    model_P: &[Tensor; 2],
    reference_P: &[Tensor; 2],
    probability_P: &Tensor,
    beta: f64,
    reference_point: f64,
) -> Result<[Tensor; 2], NetworkError> {
    let image = |image: usize, desired_P: &Tensor| -> Result<Tensor, NetworkError> {
        let gains_P = reference_P[image].f_sub(&model_P[image])?;
        let reward_P = gains_P.f_sub_scalar(reference_point)?.f_mul_scalar(0.5 * beta)?;
        by_label(desired_P, &reward_P.f_neg()?.f_sigmoid()?, &reward_P.f_sigmoid()?)
    };
    Ok([image(0, probability_P)?, image(1, &probability_P.f_rsub_scalar(1.0)?)?])
}

/// KTO's reference point: the mean of g = e_ref − e_θ over all images of a batch, at all ranks, and
/// at least 0, as in `train_kto_sd_v1.5.py`.
pub fn reference_point(gains: impl IntoIterator<Item = f64>) -> f64 {
    let (sum, count) =
        gains.into_iter().fold((0.0, 0.0), |(sum, count), gain| (sum + gain, count + 1.0));
    if count > 0.0 { f64::max(sum / count, 0.0) } else { 0.0 }
}
