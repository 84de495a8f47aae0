//! Operations by kernels of this crate: on a GPU with gradients (`csrc/kernels.cu`), on a CPU group
//! normalisation without (`csrc/normalize.cpp`).

use tch::{TchError, Tensor};
use torch_sys::C_tensor;

use super::{ErrorText, pointer, take_error, tensor};

#[expect(unsafe_code, reason = "declarations of csrc/shim.h")]
unsafe extern "C" {
    fn nn_can_gate(value: *const C_tensor, error: ErrorText) -> bool;
    fn nn_can_normalize(
        like: *const C_tensor,
        channels: i64,
        groups: i64,
        error: ErrorText,
    ) -> bool;
    fn nn_normalize(
        image: *const C_tensor,
        shift: *const C_tensor,
        bias: *const C_tensor,
        weight: *const C_tensor,
        beta: *const C_tensor,
        groups: i64,
        epsilon: f64,
        silu: bool,
        error: ErrorText,
    ) -> *mut C_tensor;
    fn nn_gated_gelu(
        value: *const C_tensor,
        gate: *const C_tensor,
        error: ErrorText,
    ) -> *mut C_tensor;
    fn nn_add_biased(
        stream: *const C_tensor,
        update: *const C_tensor,
        bias: *const C_tensor,
        error: ErrorText,
    ) -> *mut C_tensor;
}

/// Whether the answer is yes; an error if the shim cannot tell.
#[expect(unsafe_code, reason = "takes a text of the shim")]
fn answer(ask: impl FnOnce(ErrorText) -> bool) -> Result<bool, TchError> {
    let mut error = std::ptr::null_mut();
    let answer = ask(&mut error);
    // SAFETY: null, or a message of the shim.
    if error.is_null() { Ok(answer) } else { Err(unsafe { take_error(error) }) }
}

/// True if [`gated_gelu`] accepts tensors like this one: f32, bf16 or f16 on an NVIDIA GPU. The
/// first call for a dtype compiles the kernels, in about a second.
#[expect(unsafe_code, reason = "calls the shim")]
pub(crate) fn can_gate(value: &Tensor) -> Result<bool, TchError> {
    // SAFETY: the tensor is borrowed for the call.
    answer(|error| unsafe { nn_can_gate(value.as_ptr(), error) })
}

/// True if [`normalize`] accepts images of so many channels, with the dtype and device of this
/// tensor: on a CPU those in f32 and bf16, on a GPU the same as [`can_gate`], and [`add_biased`]
/// accepts them as well.
#[expect(unsafe_code, reason = "calls the shim")]
pub(crate) fn can_normalize(like: &Tensor, channels: i64, groups: i64) -> Result<bool, TchError> {
    // SAFETY: the tensor is borrowed for the call.
    answer(|error| unsafe { nn_can_normalize(like.as_ptr(), channels, groups, error) })
}

/// A group normalisation.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Norm<'tensors> {
    pub(crate) weight_C: &'tensors Tensor,
    pub(crate) bias_C: &'tensors Tensor,
    pub(crate) groups: i64,
    /// Added to the variance.
    pub(crate) epsilon: f64,
}

/// What [`normalize`] computes in the same passes over memory.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Around<'tensors> {
    /// Added to each channel of each image before the normalisation, `[B, C]`.
    pub(crate) shift_BC: Option<&'tensors Tensor>,
    /// Added to each channel before the normalisation, `[C]`; on a GPU only.
    pub(crate) bias_C: Option<&'tensors Tensor>,
    /// Whether `x · σ(x)` follows.
    pub(crate) silu: bool,
}

/// The group normalisation of `[B, C, H, W]`, which is channels last.
#[expect(unsafe_code, reason = "calls the shim")]
pub(crate) fn normalize(
    image_BCHW: &Tensor,
    norm: Norm<'_>,
    around: Around<'_>,
) -> Result<Tensor, TchError> {
    let Norm { weight_C, bias_C, groups, epsilon } = norm;
    let image = image_BCHW.as_ptr();
    let (shift, before) = (pointer(around.shift_BC), pointer(around.bias_C));
    let (weight, bias, silu) = (weight_C.as_ptr(), bias_C.as_ptr(), around.silu);
    // SAFETY: the tensors are borrowed for the call, two may be null.
    unsafe {
        tensor(|error| {
            nn_normalize(image, shift, before, weight, bias, groups, epsilon, silu, error)
        })
    }
}

/// `value · gelu(gate)` of two contiguous tensors.
#[expect(unsafe_code, reason = "calls the shim")]
pub(crate) fn gated_gelu(value: &Tensor, gate: &Tensor) -> Result<Tensor, TchError> {
    // SAFETY: the tensors are borrowed for the call.
    unsafe { tensor(|error| nn_gated_gelu(value.as_ptr(), gate.as_ptr(), error)) }
}

/// `stream + update + bias` of images `[B, C, H, W]`, which are channels last.
#[expect(unsafe_code, reason = "calls the shim")]
pub(crate) fn add_biased(
    stream_BCHW: &Tensor,
    update_BCHW: &Tensor,
    bias_C: &Tensor,
) -> Result<Tensor, TchError> {
    let (stream, update) = (stream_BCHW.as_ptr(), update_BCHW.as_ptr());
    // SAFETY: the tensors are borrowed for the call.
    unsafe { tensor(|error| nn_add_biased(stream, update, bias_C.as_ptr(), error)) }
}

#[cfg(test)]
mod tests {
    use tch::{Cuda, Device, Kind};

    use super::super::normal;
    use super::*;

    const GPU: Device = Device::Cuda(0);

    fn norm<'tensors>(
        weight_C: &'tensors Tensor,
        bias_C: &'tensors Tensor,
        groups: i64,
    ) -> Norm<'tensors> {
        Norm { weight_C, bias_C, groups, epsilon: 1e-5 }
    }

    /// Numbers that the dtype holds exactly, f32.
    fn random(shape: &[i64], kind: Kind, mean: f64) -> Tensor {
        let tensor = Tensor::randn(shape, (Kind::Float, GPU)) + mean;
        tensor.to_kind(kind).to_kind(Kind::Float)
    }

    /// The largest difference in units of the largest number.
    fn apart(found: &Tensor, expected: &Tensor) -> f64 {
        let expected = expected.to_kind(Kind::Float);
        let difference = (found.to_kind(Kind::Float) - &expected).abs().max();
        (difference / expected.abs().max()).double_value(&[])
    }

    /// Both functions on the same inputs, and their gradients for the same gradient of the result.
    fn compare(
        inputs: &[Tensor],
        kinds: &[Kind],
        ours: impl Fn(&[Tensor]) -> Tensor,
        theirs: impl Fn(&[Tensor]) -> Tensor,
        bound: f64,
    ) {
        let leaves = |kinds: &[Kind]| -> Vec<Tensor> {
            let leaf = |(input, kind): (&Tensor, &Kind)| {
                input.to_kind(*kind).copy().set_requires_grad(true)
            };
            inputs.iter().zip(kinds).map(leaf).collect()
        };
        let own = leaves(kinds);
        let other = leaves(&vec![Kind::Float; inputs.len()]);
        let (found, expected) = (ours(&own), theirs(&other));
        let without = tch::no_grad(|| ours(&own));
        assert!(without.equal(&found), "with and without gradients");
        assert!(apart(&found, &expected) < bound, "result: {}", apart(&found, &expected));
        let gradient = random(&found.size(), found.kind(), 0.0);
        let gradients = |result: &Tensor, leaves: &[Tensor]| {
            let product = result.to_kind(Kind::Float) * &gradient;
            let leaves: Vec<&Tensor> = leaves.iter().collect();
            Tensor::run_backward(&[product.sum(Kind::Float)], &leaves, false, false)
        };
        for (index, (found, expected)) in
            gradients(&found, &own).iter().zip(gradients(&expected, &other)).enumerate()
        {
            assert_eq!(found.kind(), kinds[index]);
            let apart = apart(found, &expected);
            assert!(apart < bound, "gradient {index}: {apart}");
        }
    }

    /// The dtypes of the tensors and of the parameters, with what their rounding may do.
    const DTYPES: [(Kind, Kind, f64); 5] = [
        (Kind::Float, Kind::Float, 2e-5),
        (Kind::BFloat16, Kind::BFloat16, 1e-2),
        (Kind::BFloat16, Kind::Float, 1e-2),
        (Kind::Half, Kind::Half, 2e-3),
        (Kind::Half, Kind::Float, 2e-3),
    ];

    #[test]
    #[ignore = "needs an NVIDIA GPU: scripts/gpu/check.sh runs it"]
    fn on_a_gpu_normalisation_is_that_of_libtorch() {
        assert!(Cuda::is_available(), "libtorch sees no GPU");
        let shapes =
            [[2, 320, 64, 64], [3, 64, 2, 3], [1, 640, 7, 5], [16, 1280, 8, 8], [1, 2560, 16, 16]];
        for (kind, parameters, bound) in DTYPES {
            for shape in shapes {
                let (batch, channels) = (shape[0], shape[1]);
                let mut inputs = vec![
                    random(&shape, kind, 3.0).contiguous(),
                    random(&[channels], kind, 1.0),
                    random(&[channels], kind, 0.0),
                ];
                assert!(can_normalize(&inputs[0].to_kind(kind), channels, 32).unwrap());
                let mut kinds = vec![kind, parameters, parameters];
                for silu in [false, true] {
                    compare(
                        &inputs,
                        &kinds,
                        |x| {
                            let around = Around { silu, ..Around::default() };
                            normalize(&x[0], norm(&x[1], &x[2], 32), around).unwrap()
                        },
                        |x| {
                            let y = x[0].group_norm(32, Some(&x[1]), Some(&x[2]), 1e-5, true);
                            if silu { y.silu() } else { y }
                        },
                        bound,
                    );
                }
                inputs.extend([
                    random(&[batch, channels], kind, 0.0),
                    random(&[channels], kind, 0.0),
                ]);
                kinds.extend([kind, parameters]);
                compare(
                    &inputs,
                    &kinds,
                    |x| {
                        let around =
                            Around { shift_BC: Some(&x[3]), bias_C: Some(&x[4]), silu: true };
                        normalize(&x[0], norm(&x[1], &x[2], 32), around).unwrap()
                    },
                    |x| {
                        let shift = &x[3].view([batch, channels, 1, 1]);
                        let moved = &x[0] + shift + x[4].view([1, channels, 1, 1]);
                        moved.group_norm(32, Some(&x[1]), Some(&x[2]), 1e-5, true).silu()
                    },
                    bound,
                );
            }
        }
    }

    #[test]
    #[ignore = "needs an NVIDIA GPU: scripts/gpu/check.sh runs it"]
    fn on_a_gpu_gating_and_adding_are_those_of_libtorch() {
        assert!(Cuda::is_available(), "libtorch sees no GPU");
        for (kind, parameters, bound) in DTYPES {
            let shape = [3, 77, 1280];
            let inputs = [random(&shape, kind, 0.0), random(&shape, kind, 0.0)];
            assert!(can_gate(&inputs[0].to_kind(kind)).unwrap());
            compare(
                &inputs,
                &[kind; 2],
                |x| gated_gelu(&x[0], &x[1]).unwrap(),
                |x| &x[0] * x[1].gelu("none"),
                bound,
            );
            let shape = [2, 48, 5, 7];
            let inputs =
                [random(&shape, kind, 0.0), random(&shape, kind, 0.0), random(&[48], kind, 0.0)];
            compare(
                &inputs,
                &[kind, kind, parameters],
                |x| add_biased(&x[0], &x[1], &x[2]).unwrap(),
                |x| &x[0] + &x[1] + x[2].view([1, 48, 1, 1]),
                bound,
            );
        }
    }

    #[test]
    fn on_a_cpu_normalisation_is_that_of_libtorch() {
        assert!(!can_gate(&Tensor::ones([64], (Kind::Float, Device::Cpu))).unwrap());
        // Several small images for each thread, and several threads for a large one.
        for shape in [[16, 96, 8, 8], [1, 64, 1, 2], [3, 30, 7, 5], [1, 320, 64, 64]] {
            let (batch, channels) = (shape[0], shape[1]);
            let groups = if channels % 32 == 0 { 32 } else { 5 };
            for (kind, bound) in [(Kind::Float, 2e-6), (Kind::BFloat16, 5e-3)] {
                // Each tensor has a seed: other tests use libtorch's own generator at the same
                // time.
                let seed = std::cell::Cell::new(0);
                let random = |shape: &[i64], mean: f64| {
                    seed.set(seed.get() + 1);
                    (normal(seed.get(), shape).unwrap() + mean).to_kind(kind)
                };
                let (x, shift) = (random(&shape, 5.0), random(&[batch, channels], 0.0));
                let (weight, bias) = (random(&[channels], 1.0), random(&[channels], 0.0));
                assert!(can_normalize(&x, channels, groups).unwrap());
                for silu in [false, true] {
                    for shift_BC in [None, Some(&shift)] {
                        let around = Around { shift_BC, bias_C: None, silu };
                        let found = normalize(&x, norm(&weight, &bias, groups), around).unwrap();
                        let double = |tensor: &Tensor| tensor.to_kind(Kind::Double);
                        let mut moved = double(&x);
                        if let Some(shift) = shift_BC {
                            moved += double(shift).view([batch, channels, 1, 1]);
                        }
                        let (weight, bias) = (double(&weight), double(&bias));
                        let y = moved.group_norm(groups, Some(weight), Some(bias), 1e-5, true);
                        let expected = if silu { y.silu() } else { y };
                        let apart = apart(&found, &expected);
                        assert!(apart < bound, "{shape:?} {kind:?} {silu}: {apart}");
                    }
                }
            }
        }
    }
}
