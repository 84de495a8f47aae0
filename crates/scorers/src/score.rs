//! From features to a score: the part of a reward model that is not shared.

use nn::NetworkError;
use nn::aesthetic::AestheticHead;
use nn::siglip::SiglipLogits;
use tch::{Kind, Tensor};

/// A reward model on top of shared towers.
#[doc(alias = "reward_model")]
pub trait Scorer {
    /// The column prefix.
    fn name(&self) -> &str;
    /// Which image tower's features it reads, as an index into the set's image towers.
    fn image_tower(&self) -> usize;
    /// Which text tower's features it reads; `None` if it ignores the caption.
    fn text_tower(&self) -> Option<usize>;
    /// How many image-caption pairs to score at once, if more would take much memory; `None` for
    /// any number.
    fn pairs_per_forward(&self) -> Option<usize> {
        None
    }
    /// Scores N images with their captions.
    ///
    /// `image_features_ND` and, if [`Scorer::text_tower`] names a tower, `text_features_ND` are f32,
    /// and of unit length if the towers are those of CLIP or SigLIP; the result is f32 of shape `[N]`
    /// on the same device. Larger is better.
    #[expect(non_snake_case, reason = "shape suffixes: N images, D embedding")]
    fn score(
        &self,
        image_features_ND: &Tensor,
        text_features_ND: Option<&Tensor>,
    ) -> Result<Tensor, NetworkError>;
}

/// Cosine of image and caption, raw: no logit scale, no ×100.
///
/// SalesforceAIResearch/DiffusionDPO `utils/{clip,hps,pickscore}_utils.py` at 5233e759.
#[derive(Debug)]
pub struct CosineScorer {
    pub(crate) name: String,
    pub(crate) image_tower: usize,
    pub(crate) text_tower: usize,
}

impl Scorer for CosineScorer {
    fn name(&self) -> &str {
        &self.name
    }

    fn image_tower(&self) -> usize {
        self.image_tower
    }

    fn text_tower(&self) -> Option<usize> {
        Some(self.text_tower)
    }

    #[expect(non_snake_case, reason = "shape suffixes: N images, D embedding")]
    fn score(
        &self,
        image_features_ND: &Tensor,
        text_features_ND: Option<&Tensor>,
    ) -> Result<Tensor, NetworkError> {
        Ok(match text_features_ND {
            Some(text) => {
                image_features_ND.f_mul(text)?.f_sum_dim_intlist(-1, false, Kind::Float)?
            }
            // A cosine without a caption is undefined; NaN is a failed score.
            None => Tensor::f_full(
                [image_features_ND.size()[0]],
                f64::NAN,
                (Kind::Float, image_features_ND.device()),
            )?,
        })
    }
}

/// SigLIP's probability that image and caption belong together: the sigmoid of the scaled and shifted
/// cosine, `torch.sigmoid(logits_per_image)` of transformers.
#[derive(Debug)]
pub struct SiglipScorer {
    pub(crate) cosine: CosineScorer,
    pub(crate) logits: SiglipLogits,
}

impl Scorer for SiglipScorer {
    fn name(&self) -> &str {
        self.cosine.name()
    }

    fn image_tower(&self) -> usize {
        self.cosine.image_tower()
    }

    fn text_tower(&self) -> Option<usize> {
        self.cosine.text_tower()
    }

    #[expect(non_snake_case, reason = "shape suffixes: N images, D embedding")]
    fn score(
        &self,
        image_features_ND: &Tensor,
        text_features_ND: Option<&Tensor>,
    ) -> Result<Tensor, NetworkError> {
        self.logits.scores(&self.cosine.score(image_features_ND, text_features_ND)?)
    }
}

/// An aesthetic predictor: five linear layers on the unit image feature.
///
/// LAION's: christophschuhmann/improved-aesthetic-predictor at 6934dd81, and DiffusionDPO
/// `utils/aes_utils.py` at 5233e759. On SigLIP: discus0434/aesthetic-predictor-v2-5.
#[derive(Debug)]
pub struct AestheticScorer {
    pub(crate) name: String,
    pub(crate) image_tower: usize,
    pub(crate) head: AestheticHead,
}

impl Scorer for AestheticScorer {
    fn name(&self) -> &str {
        &self.name
    }

    fn image_tower(&self) -> usize {
        self.image_tower
    }

    fn text_tower(&self) -> Option<usize> {
        None
    }

    #[expect(non_snake_case, reason = "shape suffixes: N images, D embedding")]
    fn score(
        &self,
        image_features_ND: &Tensor,
        _text_features_ND: Option<&Tensor>,
    ) -> Result<Tensor, NetworkError> {
        self.head.try_forward(image_features_ND)
    }
}
