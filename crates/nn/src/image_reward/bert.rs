//! BERT with cross-attention, and the head: the tokens of a caption and of an image to a score.

use tch::{Device, Kind, TchError, Tensor};

use super::config::ImageRewardConfig;
use crate::clip::Activation;
use crate::device::{Precision, inference, upload};
use crate::error::NetworkError;
use crate::layers::{LayerNorm, Linear, LinearChain, Mlp, attention};
use crate::weights::Loader;

/// The name in error messages.
const NETWORK: &str = "ImageReward";

/// Indices of the head's layers in the published `nn.Sequential`; the others are dropout.
const HEAD_LAYERS: [usize; 5] = [0, 2, 4, 6, 7];

/// Mean and standard deviation of the head's outputs on the training set: `ImageReward.mean` and
/// `ImageReward.std`.
const MEAN: f64 = 0.167_173_628_300_524_26;
const STD: f64 = 1.033_339_496_605_407_2;

/// BERT and the head.
#[derive(Debug)]
pub struct CaptionReader {
    token_embedding_VW: Tensor,
    position_embedding_LW: Tensor,
    embedding_norm: LayerNorm,
    layers: Vec<Layer>,
    head: LinearChain,
    vocabulary_size: i64,
    context_length: i64,
    image_width: i64,
    device: Device,
    precision: Precision,
}

/// One layer: self-attention, cross-attention and an MLP, each added to the stream, which is
/// normalised afterwards.
#[derive(Debug)]
struct Layer {
    own: Attention,
    image: Attention,
    mlp: Mlp,
    norm: LayerNorm,
}

/// Attention with the normalisation after it.
#[derive(Debug)]
struct Attention {
    query: Linear,
    key: Linear,
    value: Linear,
    out: Linear,
    norm: LayerNorm,
    heads: i64,
}

impl CaptionReader {
    pub(super) fn load(config: &ImageRewardConfig, loader: &mut Loader<'_>) -> Self {
        let (text, image_width) = (&config.text, config.vision.width);
        let embeddings = "blip.text_encoder.embeddings";
        let (tokens, positions) = (
            format!("{embeddings}.word_embeddings.weight"),
            format!("{embeddings}.position_embeddings.weight"),
        );
        let norm = format!("{embeddings}.LayerNorm");
        Self {
            token_embedding_VW: loader.tensor(&tokens, &[text.vocabulary_size, text.width]),
            position_embedding_LW: loader.tensor(&positions, &[text.context_length, text.width]),
            embedding_norm: LayerNorm::load(loader, &norm, text.width, text.layer_norm_epsilon),
            layers: (0..text.layers)
                .map(|layer| format!("blip.text_encoder.encoder.layer.{layer}"))
                .map(|name| Layer::load(loader, &name, config))
                .collect(),
            head: LinearChain::load(loader, "mlp.layers", &HEAD_LAYERS, text.width),
            vocabulary_size: text.vocabulary_size,
            context_length: text.context_length,
            image_width,
            device: loader.device(),
            precision: loader.precision(),
        }
    }

    /// Numbers of an image's token.
    pub fn image_width(&self) -> i64 {
        self.image_width
    }

    /// Scores of images with captions: the images' tokens `image_BTV` on any device, and of each
    /// caption the token ids with start and end, without padding, to `[B]` f32 on the network's
    /// device.
    ///
    /// # Errors
    /// If a shape or a token is impossible, or memory runs out.
    pub fn try_forward(
        &self,
        image_BTV: &Tensor,
        captions: &[&[i64]],
    ) -> Result<Tensor, NetworkError> {
        let size = image_BTV.size();
        let batch = captions.len() as i64;
        if !matches!(size[..], [images, _, width] if (images, width) == (batch, self.image_width)) {
            return Err(unfit(format!(
                "expected image tokens [{batch}, T, {}], found {size:?}",
                self.image_width
            )));
        }
        if batch == 0 {
            return Ok(Tensor::f_zeros([0], (Kind::Float, self.device))?);
        }
        captions.iter().try_for_each(|caption| self.check(caption))?;
        Ok(inference(|| self.compute(image_BTV, captions))?)
    }

    /// Checks the values too, because a wrong index on a GPU ends the whole process.
    fn check(&self, caption: &[i64]) -> Result<(), NetworkError> {
        let most = usize::try_from(self.context_length).unwrap_or(usize::MAX);
        if caption.is_empty() || caption.len() > most {
            return Err(unfit(format!("expected 1 to {most} tokens, found {}", caption.len())));
        }
        let vocabulary = 0..self.vocabulary_size;
        match caption.iter().find(|token| !vocabulary.contains(token)) {
            Some(token) => Err(unfit(format!(
                "expected tokens from 0 to {}, found {token}",
                vocabulary.end - 1
            ))),
            None => Ok(()),
        }
    }

    /// Padding goes to the longest caption of the batch, not to the context: no token attends to
    /// padding, and only the first token is read.
    fn compute(&self, image_BTV: &Tensor, captions: &[&[i64]]) -> Result<Tensor, TchError> {
        let longest = captions.iter().map(|caption| caption.len()).max().unwrap_or(0);
        let mut ids = Vec::with_capacity(captions.len() * longest);
        for caption in captions {
            ids.extend_from_slice(caption);
            ids.resize(ids.len() + longest - caption.len(), 0);
        }
        let lengths: Vec<i64> = captions.iter().map(|caption| caption.len() as i64).collect();
        let (batch, longest) = (captions.len() as i64, longest as i64);
        let ids_BL = upload(&Tensor::f_from_slice(&ids)?.f_view([batch, longest])?, self.device)?;
        // Without padding there is no mask, which the fused kernels prefer.
        let mask_B11L = match lengths.iter().all(|&length| length == longest) {
            true => None,
            false => {
                let lengths = Tensor::f_from_slice(&lengths)?.f_view([batch, 1, 1, 1])?;
                let places_L = Tensor::f_arange(longest, (Kind::Int64, self.device))?;
                Some(places_L.f_lt_tensor(&upload(&lengths, self.device)?)?)
            }
        };
        let image_BTV =
            upload(image_BTV, self.device)?.f_to_kind(self.precision.kind())?.f_contiguous()?;
        let embedded_BLW =
            Tensor::f_embedding(&self.token_embedding_VW, &ids_BL, -1, false, false)?;
        let positions_LW = self.position_embedding_LW.f_narrow(0, 0, longest)?;
        let mut x_BLW = self.embedding_norm.forward(&embedded_BLW.f_add(&positions_LW)?)?;
        for (index, layer) in self.layers.iter().enumerate() {
            // Of the last layer only the first token is read.
            let is_last = index + 1 == self.layers.len();
            x_BLW = layer.forward(&x_BLW, mask_B11L.as_ref(), &image_BTV, is_last)?;
        }
        let first_BW = x_BLW.f_select(1, 0)?.f_contiguous()?;
        self.head.forward(&first_BW)?.f_squeeze_dim(1)?.f_sub_scalar(MEAN)?.f_div_scalar(STD)
    }
}

impl Layer {
    fn load(loader: &mut Loader<'_>, name: &str, config: &ImageRewardConfig) -> Self {
        let text = &config.text;
        let (width, epsilon) = (text.width, text.layer_norm_epsilon);
        let mut attention = |part: &str, from: i64| {
            Attention::load(loader, &format!("{name}.{part}"), [width, from], text.heads, epsilon)
        };
        let (own, image) =
            (attention("attention", width), attention("crossattention", config.vision.width));
        let [up, down] =
            ["intermediate.dense", "output.dense"].map(|part| format!("{name}.{part}"));
        Self {
            own,
            image,
            mlp: Mlp::load(loader, [&up, &down], width, text.mlp_width, Activation::Gelu),
            norm: LayerNorm::load(loader, &format!("{name}.output.LayerNorm"), width, epsilon),
        }
    }

    /// The stream `[B, L, W]`, or only its first token `[B, 1, W]`.
    fn forward(
        &self,
        x_BLW: &Tensor,
        mask_B11L: Option<&Tensor>,
        image_BTV: &Tensor,
        first_only: bool,
    ) -> Result<Tensor, TchError> {
        // Contiguous, because layers add to the stream in place.
        let read_BLW = match first_only {
            true => x_BLW.f_narrow(1, 0, 1)?.f_contiguous()?,
            false => x_BLW.shallow_clone(),
        };
        let x_BLW = self.own.forward(&read_BLW, x_BLW, mask_B11L)?;
        let x_BLW = self.image.forward(&x_BLW, image_BTV, None)?;
        self.norm.forward(&self.mlp.add_to(x_BLW.shallow_clone(), &x_BLW)?)
    }
}

impl Attention {
    /// `[width, from]` are the widths of the stream and of what it attends to.
    fn load(
        loader: &mut Loader<'_>,
        name: &str,
        [width, from]: [i64; 2],
        heads: i64,
        epsilon: f64,
    ) -> Self {
        let mut linear =
            |part: &str, input: i64| Linear::load(loader, &format!("{name}.{part}"), input, width);
        Self {
            query: linear("self.query", width),
            key: linear("self.key", from),
            value: linear("self.value", from),
            out: linear("output.dense", width),
            norm: LayerNorm::load(loader, &format!("{name}.output.LayerNorm"), width, epsilon),
            heads,
        }
    }

    /// `norm(x_BLW + attention of x_BLW to to_BMV)`.
    fn forward(
        &self,
        x_BLW: &Tensor,
        to_BMV: &Tensor,
        mask_B11M: Option<&Tensor>,
    ) -> Result<Tensor, TchError> {
        let (batch, length, width) = x_BLW.size3()?;
        let by_head = |layer: &Linear, input: &Tensor| {
            let size = [batch, -1, self.heads, width / self.heads];
            layer.forward(input)?.f_view(size)?.f_transpose(1, 2)
        };
        let mixed_BHLE = attention(
            &by_head(&self.query, x_BLW)?,
            &by_head(&self.key, to_BMV)?,
            &by_head(&self.value, to_BMV)?,
            mask_B11M,
            false,
        )?;
        let mixed_BLW = mixed_BHLE.f_transpose(1, 2)?.f_reshape([batch, length, width])?;
        // Not in place: the caller's stream may still be read.
        self.norm.forward(&self.out.forward(&mixed_BLW)?.f_add(x_BLW)?)
    }
}

fn unfit(reason: String) -> NetworkError {
    NetworkError::Input { network: NETWORK, reason }
}
