//! The residual block of the UNet and of the autoencoder.
//!
//! huggingface/diffusers `src/diffusers/models/resnet.py` (`ResnetBlock2D`) at v0.42.1.

use tch::{TchError, Tensor};

use super::{Conv2d, GroupNorm, Linear};
use crate::shim::kernels::{self, Around};
use crate::weights::Loader;

/// The sizes of a residual block.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ResnetSizes {
    /// Channels in.
    pub(crate) input: i64,
    /// Channels out.
    pub(crate) output: i64,
    /// Width of the time embedding, if there is one.
    pub(crate) embedding: Option<i64>,
    /// Groups of the normalisations.
    pub(crate) groups: i64,
    /// Added to the variance in the normalisations.
    pub(crate) epsilon: f64,
}

/// Two normalised convolutions and a skip connection around them; the time embedding is added
/// between the two.
#[doc(alias = "ResnetBlock2D")]
#[derive(Debug)]
pub(crate) struct ResnetBlock {
    norm_1: GroupNorm,
    conv_1: Conv2d,
    time: Option<Linear>,
    norm_2: GroupNorm,
    conv_2: Conv2d,
    /// A 1×1 convolution on the skip connection, if the number of channels changes.
    shortcut: Option<Linear>,
}

impl ResnetBlock {
    pub(crate) fn load(loader: &mut Loader<'_>, name: &str, sizes: ResnetSizes) -> Self {
        let ResnetSizes { input, output, embedding, groups, epsilon } = sizes;
        let part = |part: &str| format!("{name}.{part}");
        Self {
            norm_1: GroupNorm::load(loader, &part("norm1"), groups, input, epsilon),
            conv_1: Conv2d::load_3x3(loader, &part("conv1"), input, output),
            time: embedding
                .map(|width| Linear::load(loader, &part("time_emb_proj"), width, output)),
            norm_2: GroupNorm::load(loader, &part("norm2"), groups, output, epsilon),
            conv_2: Conv2d::load_3x3(loader, &part("conv2"), output, output),
            shortcut: (input != output)
                .then(|| Linear::load_convolution(loader, &part("conv_shortcut"), input, output)),
        }
    }

    /// Whether one of its layers has an adapter.
    pub(crate) fn has_adapter(&self) -> bool {
        self.conv_1.has_adapter()
            || self.conv_2.has_adapter()
            || self.time.as_ref().is_some_and(Linear::has_adapter)
            || self.shortcut.as_ref().is_some_and(Linear::has_adapter)
    }

    /// `x_BCHW` with `embedding_BD`, the time embedding after its activation, to `[B, C', H, W]`.
    pub(crate) fn forward(
        &self,
        x_BCHW: &Tensor,
        embedding_BD: Option<&Tensor>,
    ) -> Result<Tensor, TchError> {
        if self.norm_1.fuses(x_BCHW)? && self.norm_2.fuses(x_BCHW)? {
            return self.fused(x_BCHW, embedding_BD);
        }
        let mut hidden_BCHW = self.conv_1.forward(&self.norm_1.forward_silu(x_BCHW)?)?;
        if let (Some(time), Some(embedding_BD)) = (&self.time, embedding_BD) {
            let shift_BC11 = time.forward(embedding_BD)?.f_unsqueeze(-1)?.f_unsqueeze(-1)?;
            hidden_BCHW = if shift_BC11.requires_grad() || hidden_BCHW.requires_grad() {
                hidden_BCHW.f_add(&shift_BC11)?
            } else {
                hidden_BCHW.f_add_(&shift_BC11)?
            };
        }
        hidden_BCHW = self.norm_2.forward_silu(&hidden_BCHW)?;
        match &self.shortcut {
            None => self.conv_2.add_to(x_BCHW, &hidden_BCHW),
            Some(shortcut) => {
                super::add(&self.conv_2.forward(&hidden_BCHW)?, convolve_1x1(shortcut, x_BCHW)?)
            }
        }
    }

    /// The same with fewer passes over memory: the next layer adds the time embedding, and on a GPU
    /// the biases of the convolutions, when it reads its input.
    fn fused(&self, x_BCHW: &Tensor, embedding_BD: Option<&Tensor>) -> Result<Tensor, TchError> {
        let normed_BCHW = self.norm_1.forward_silu(x_BCHW)?;
        let (hidden_BCHW, bias_C) = self.conv_1.forward_leaving_bias(&normed_BCHW)?;
        // Each tensor goes as soon as the next one exists: those of an autoencoder are large.
        drop(normed_BCHW);
        let shift_BC = match (&self.time, embedding_BD) {
            (Some(time), Some(embedding_BD)) => Some(time.forward(embedding_BD)?),
            _ => None,
        };
        let around = Around { shift_BC: shift_BC.as_ref(), bias_C, silu: true };
        let normed_BCHW = self.norm_2.fused(&hidden_BCHW, around)?;
        drop(hidden_BCHW);
        let (update_BCHW, bias_C) = self.conv_2.forward_leaving_bias(&normed_BCHW)?;
        drop(normed_BCHW);
        let stream_BCHW = match &self.shortcut {
            None => x_BCHW.shallow_clone(),
            Some(shortcut) => convolve_1x1(shortcut, x_BCHW)?,
        };
        match bias_C {
            Some(bias_C) => kernels::add_biased(&stream_BCHW, &update_BCHW, bias_C),
            None => super::add(&stream_BCHW, update_BCHW),
        }
    }
}

/// The 1×1 convolution of `[B, C, H, W]`.
fn convolve_1x1(shortcut: &Linear, x_BCHW: &Tensor) -> Result<Tensor, TchError> {
    // Linear needs a contiguous input.
    let x_BHWC = x_BCHW.f_permute([0, 2, 3, 1])?.f_contiguous()?;
    shortcut.forward(&x_BHWC)?.f_permute([0, 3, 1, 2])
}
