//! The LAION aesthetic head: five linear layers, one after the other, on normalised CLIP image
//! features. There is no activation between them, and dropout does nothing when scoring:
//! christophschuhmann/improved-aesthetic-predictor `simple_inference.py` at 6934dd81.
//!
//! `B` batch, `D` length of the features.

use tch::{Device, Kind, Tensor};

use crate::device::{Precision, inference};
use crate::error::NetworkError;
use crate::weights::{Loader, Weights, WeightsError};

/// Indices of the layers in the published `nn.Sequential`; the others are dropout.
const LAYERS: [usize; 5] = [0, 2, 4, 6, 7];

/// The head. It always computes in f32, which costs next to nothing.
#[derive(Debug)]
pub struct AestheticHead {
    layers: Vec<(Tensor, Tensor)>,
    device: Device,
    input_width: i64,
}

impl AestheticHead {
    /// Loads `layers.{0,2,4,6,7}.{weight,bias}`, of any widths, if each layer fits the next and the
    /// last has one output. Strict, like [`Loader::finish`].
    pub fn load(weights: &Weights, device: Device) -> Result<Self, WeightsError> {
        let weights = &*weights.rooted(&["layers.0.weight"]);
        if let (Some([1, width]), Some([1])) = (weights.shape("weight"), weights.shape("bias")) {
            return Err(WeightsError::Invalid {
                file: weights.describe(),
                reason: format!(
                    "LAION's first aesthetic head, one linear layer of {width} numbers, whose scores \
                     are others; expected the head of five layers\n\
                     hint: use sac+logos+ava1-l14-linearMSE.pth"
                ),
            });
        }
        let name = |layer: usize, part: &str| format!("layers.{layer}.{part}");
        let mut loader = Loader::new(weights, "aesthetic head", device, Precision::F32);
        // The file decides the widths: the bias of each layer has the length of its output, which
        // is the input of the next.
        let first = weights.shape(&name(LAYERS[0], "weight"));
        let input_width = match first {
            Some([_, input]) if *input > 0 => *input,
            _ => 768,
        };
        let mut width = input_width;
        let mut layers = Vec::with_capacity(LAYERS.len());
        for (index, layer) in LAYERS.into_iter().enumerate() {
            let output = match weights.shape(&name(layer, "bias")) {
                _ if index + 1 == LAYERS.len() => 1,
                Some([output]) if *output > 0 => *output,
                _ => 1,
            };
            let weight = loader.tensor(&name(layer, "weight"), &[output, width]);
            let bias = loader.tensor(&name(layer, "bias"), &[output]);
            layers.push((weight, bias));
            width = output;
        }
        loader.finish(|_| false)?;
        Ok(Self { layers, device, input_width })
    }

    /// Length of the image features it reads.
    pub fn input_width(&self) -> i64 {
        self.input_width
    }

    /// Scores of image features: `features_BD` f32, each of length one (divide by the norm first),
    /// to `[B]` f32.
    ///
    /// # Panics
    ///
    /// If [`AestheticHead::try_forward`] returns an error.
    pub fn forward(&self, features_BD: &Tensor) -> Tensor {
        self.try_forward(features_BD).unwrap_or_else(|error| panic!("{error}"))
    }

    /// [`AestheticHead::forward`], with an error if the width is wrong.
    pub fn try_forward(&self, features_BD: &Tensor) -> Result<Tensor, NetworkError> {
        let size = features_BD.size();
        if !matches!(size[..], [_, width] if width == self.input_width) {
            return Err(NetworkError::Input {
                network: "aesthetic head",
                reason: format!("expected features [B, {}], found {size:?}", self.input_width),
            });
        }
        inference(|| {
            let mut hidden = features_BD.f_to_device(self.device)?.f_to_kind(Kind::Float)?;
            for (weight, bias) in &self.layers {
                hidden = hidden.f_linear(weight, Some(bias))?;
            }
            Ok(hidden.f_squeeze_dim(1)?)
        })
    }
}
