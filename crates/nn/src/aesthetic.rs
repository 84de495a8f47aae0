//! Aesthetic heads: five linear layers, one after the other, on normalised image features. There is
//! no activation between them, and dropout does nothing when scoring.
//!
//! LAION's reads features of CLIP: christophschuhmann/improved-aesthetic-predictor
//! `simple_inference.py` at 6934dd81. That of discus0434/aesthetic-predictor-v2-5 reads those of
//! SigLIP; it is under the AGPL, so its layers were written from the names in its file, and neither
//! its code nor its weights are here.
//!
//! `B` batch, `D` length of the features.

use tch::{Device, Tensor};

use crate::device::{Precision, inference};
use crate::error::NetworkError;
use crate::layers::LinearChain;
use crate::weights::{Loader, Weights, WeightsError};

/// How a published head calls its `nn.Sequential`, and the indices of its layers there; the others
/// are dropout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadNames {
    sequential: &'static str,
    layers: [usize; 5],
    anchor: &'static str,
}

impl HeadNames {
    /// LAION's, on features of CLIP: `layers.{0,2,4,6,7}`.
    pub const LAION: Self =
        Self { sequential: "layers", layers: [0, 2, 4, 6, 7], anchor: "layers.0.weight" };
    /// Aesthetic Predictor V2.5's, on features of SigLIP: `scoring_head.{0,2,4,6,8}`.
    pub const V2_5: Self = Self {
        sequential: "scoring_head",
        layers: [0, 2, 4, 6, 8],
        anchor: "scoring_head.0.weight",
    };
}

/// The head. It always computes in f32, which costs next to nothing.
#[derive(Debug)]
pub struct AestheticHead {
    layers: LinearChain,
    device: Device,
    input_width: i64,
}

impl AestheticHead {
    /// Loads LAION's head ([`HeadNames::LAION`]).
    pub fn load(weights: &Weights, device: Device) -> Result<Self, WeightsError> {
        Self::load_named(weights, HeadNames::LAION, device)
    }

    /// Loads weights and biases of any widths, if each layer fits the next and the last has one
    /// output. Strict, like [`Loader::finish`].
    pub fn load_named(
        weights: &Weights,
        names: HeadNames,
        device: Device,
    ) -> Result<Self, WeightsError> {
        let HeadNames { sequential, layers, anchor } = names;
        let weights = &*weights.rooted(&[anchor]);
        if let (Some([1, width]), Some([1])) = (weights.shape("weight"), weights.shape("bias")) {
            return Err(WeightsError::Invalid {
                file: weights.describe(),
                reason: format!(
                    "LAION's first aesthetic head, one linear layer of {width} numbers, whose scores \
                     are others; expected a head of five layers\n\
                     hint: use sac+logos+ava1-l14-linearMSE.pth"
                ),
            });
        }
        let mut loader = Loader::new(weights, "aesthetic head", device, Precision::F32);
        let input_width = match weights.shape(anchor) {
            Some([_, input]) if *input > 0 => *input,
            _ => 768,
        };
        let layers = LinearChain::load(&mut loader, sequential, &layers, input_width);
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
