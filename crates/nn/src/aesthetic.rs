//! The LAION aesthetic head: five linear layers, one after the other, on normalised CLIP image
//! features. There is no activation between them, and dropout does nothing when scoring:
//! christophschuhmann/improved-aesthetic-predictor `simple_inference.py` at 6934dd81.
//!
//! `B` batch, `D` length of the features.

use tch::{Device, Tensor};

use crate::device::{Precision, inference};
use crate::error::NetworkError;
use crate::layers::LinearChain;
use crate::weights::{Loader, Weights, WeightsError};

/// Indices of the layers in the published `nn.Sequential`; the others are dropout.
const LAYERS: [usize; 5] = [0, 2, 4, 6, 7];

/// The head. It always computes in f32, which costs next to nothing.
#[derive(Debug)]
pub struct AestheticHead {
    layers: LinearChain,
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
        let mut loader = Loader::new(weights, "aesthetic head", device, Precision::F32);
        let first = weights.shape(&format!("layers.{}.weight", LAYERS[0]));
        let input_width = match first {
            Some([_, input]) if *input > 0 => *input,
            _ => 768,
        };
        let layers = LinearChain::load(&mut loader, "layers", &LAYERS, input_width);
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
            let features_BD = features_BD.f_to_device(self.device)?;
            Ok(self.layers.forward(&features_BD)?.f_squeeze_dim(1)?)
        })
    }
}
