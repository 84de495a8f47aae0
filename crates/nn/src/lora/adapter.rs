//! An adapter at work: what a layer adds to its output.

use tch::{Kind, TchError, Tensor};

use crate::layers::{cast, convolve, upcasts};
use crate::shim::{self, Stride};

/// The adapter of one layer: `scale · up(down(x))` is added to the output of the layer.
///
/// Weights are f32 and cast to the dtype of the input at every use, as autocast does. They have the
/// same products whether gradients are recorded or not, so the reference and the network in
/// training agree to the last bit.
#[derive(Debug)]
pub(crate) struct Adapter {
    /// `lora_A`: `[r, in]`, or `[r, in, K, K]`.
    down: Tensor,
    /// `lora_B`: `[out, r]`, or `[out, r, 1, 1]`.
    up: Tensor,
    scale: f64,
    /// The first row and the number of rows of `up` that this layer uses, if not all.
    rows: Option<(i64, i64)>,
}

impl Adapter {
    pub(crate) fn new(down: Tensor, up: Tensor, scale: f64) -> Self {
        Self { down, up, scale, rows: None }
    }

    /// The same adapter for a layer of `length` outputs from `start` on.
    pub(crate) fn of_rows(&self, start: i64, length: i64) -> Self {
        Self {
            down: self.down.shallow_clone(),
            up: self.up.shallow_clone(),
            scale: self.scale,
            rows: Some((start, length)),
        }
    }

    /// `up`, times the scale.
    fn scaled_up(&self) -> Result<Tensor, TchError> {
        let up = match self.rows {
            Some((start, length)) => self.up.f_narrow(0, start, length)?,
            None => self.up.shallow_clone(),
        };
        if self.scale == 1.0 { Ok(up) } else { up.f_mul_scalar(self.scale) }
    }

    /// `output + scale · up(down(input))` for a linear layer: `input` `[.., I]`, contiguous, and
    /// the fresh `output` `[.., O]`.
    pub(crate) fn add_to(&self, output: &Tensor, input: &Tensor) -> Result<Tensor, TchError> {
        #[cfg(test)]
        CALLS.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let size = output.size();
        let matrix = |tensor: &Tensor| match tensor.dim() {
            2 => Ok(tensor.shallow_clone()),
            _ => tensor.f_flatten(1, -1),
        };
        let (down, up) = (matrix(&self.down)?, matrix(&self.scaled_up()?)?);
        if upcasts(input) {
            let hidden = shim::linear_upcast(input, &down, None)?;
            return output.f_add(&shim::linear_upcast(&hidden, &up, None)?);
        }
        let kind = input.kind();
        let (down, up) = (cast(&down, kind)?, cast(&up, kind)?);
        // Two dimensions: for others PyTorch chooses between products by whether it records.
        let rows = input.f_reshape([-1, down.size2()?.1])?;
        let hidden = rows.f_mm(&down.f_transpose(0, 1)?)?;
        let sum =
            output.f_reshape([-1, up.size2()?.0])?.f_addmm(&hidden, &up.f_transpose(0, 1)?)?;
        sum.f_view(&size[..])
    }

    /// `output + scale · up(down(input))` for a convolution: `input` `[B, I, H, W]` and `output`
    /// `[B, O, H', W']`.
    pub(crate) fn add_convolved(
        &self,
        output: &Tensor,
        input: &Tensor,
        stride: Stride,
    ) -> Result<Tensor, TchError> {
        let up = self.scaled_up()?;
        if upcasts(input) {
            // The products in f32 of numbers in bf16, as `shim::conv2d_upcast`.
            let rounded = |tensor: &Tensor| cast(&cast(tensor, Kind::BFloat16)?, Kind::Float);
            let hidden = convolve(&rounded(input)?, &rounded(&self.down)?, None, stride)?;
            let update = convolve(&rounded(&hidden)?, &rounded(&up)?, None, POINTWISE)?;
            return output.f_add(&cast(&update, Kind::BFloat16)?);
        }
        let kind = input.kind();
        let hidden = convolve(input, &cast(&self.down, kind)?, None, stride)?;
        output.f_add(&convolve(&hidden, &cast(&up, kind)?, None, POINTWISE)?)
    }
}

/// How often a linear layer's adapter has run, for the test of gradient checkpointing.
#[cfg(test)]
pub(crate) static CALLS: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);

/// How a 1×1 convolution moves over an image.
const POINTWISE: Stride = Stride { stride: 1, padding: 0 };
