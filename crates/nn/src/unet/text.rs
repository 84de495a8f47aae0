//! What the transformers need of the prompt embeddings, whatever the image.
//!
//! Keys and values of cross-attention depend on the text alone. A network for inference computes
//! them once for all steps of an image. In training the text differs at every step, and gradients
//! flow through each layer.

use tch::{TchError, Tensor};

use crate::layers::Linear;

/// Prompt embeddings, prepared for the cross-attention of one UNet
/// ([`UNet::project_text`](super::UNet::project_text)).
#[derive(Debug)]
pub struct ProjectedText {
    /// The text `[B, L, D]`; for inference the keys and values of all layers, `[W, B, L]`.
    pub(super) tensor: Tensor,
    /// B.
    pub(super) batch: i64,
}

/// The layers that project the text to keys and values, in the order of loading.
#[derive(Debug, Default)]
pub(super) struct TextProjections {
    layers: Vec<Linear>,
    width: i64,
}

impl TextProjections {
    /// Adds a layer, whose result is `width` wide.
    pub(super) fn add(&mut self, layer: Linear, width: i64) -> ProjectionSlice {
        let start = self.width;
        self.layers.push(layer);
        self.width += width;
        ProjectionSlice { start, width }
    }

    /// The results for `text_BLD`, one after the other in memory: `[W, B, L]`, where W is the sum
    /// of all widths.
    pub(super) fn forward(&self, text_BLD: &Tensor) -> Result<Tensor, TchError> {
        let (batch, length, _) = text_BLD.size3()?;
        let results = self.layers.iter().map(|layer| layer.forward(text_BLD)?.f_flatten(0, -1));
        let results = results.collect::<Result<Vec<_>, _>>()?;
        Tensor::f_cat(&results, 0)?.f_view([self.width, batch, length])
    }
}

/// The position of one layer's result among those of all.
#[derive(Debug)]
pub(super) struct ProjectionSlice {
    start: i64,
    width: i64,
}

impl ProjectionSlice {
    /// The result of the layer, `[B, L, W]`: a view of the results of all, `[W, B, L]`.
    pub(super) fn of(&self, all_WBL: &Tensor) -> Result<Tensor, TchError> {
        let (_, batch, length) = all_WBL.size3()?;
        all_WBL.f_narrow(0, self.start, self.width)?.f_view([batch, length, self.width])
    }
}
