//! The parts of encoder and decoder.
//!
//! huggingface/diffusers `src/diffusers/models/unets/unet_2d_blocks.py` (`DownEncoderBlock2D`,
//! `UNetMidBlock2D`, `UpDecoderBlock2D`) and `models/attention_processor.py` at v0.42.1.

use tch::{TchError, Tensor};

use super::VaeConfig;
use crate::layers::{
    Downsample, GroupNorm, Linear, ResnetBlock, ResnetSizes, Upsample, add, attention,
};
use crate::weights::Loader;

/// Added to the variance in the normalisations.
pub(super) const EPSILON: f64 = 1e-6;

fn resnet(
    loader: &mut Loader<'_>,
    config: &VaeConfig,
    name: &str,
    input: i64,
    output: i64,
) -> ResnetBlock {
    let groups = config.norm_num_groups;
    let sizes = ResnetSizes { input, output, embedding: None, groups, epsilon: EPSILON };
    ResnetBlock::load(loader, name, sizes)
}

/// `count` residual blocks, `name.resnets.0` and so on.
fn resnets(
    loader: &mut Loader<'_>,
    config: &VaeConfig,
    name: &str,
    count: i64,
    [input, output]: [i64; 2],
) -> Vec<ResnetBlock> {
    (0..count)
        .map(|index| {
            let input = if index == 0 { input } else { output };
            resnet(loader, config, &format!("{name}.resnets.{index}"), input, output)
        })
        .collect()
}

fn through(resnets: &[ResnetBlock], mut x_BCHW: Tensor) -> Result<Tensor, TchError> {
    for resnet in resnets {
        x_BCHW = resnet.forward(&x_BCHW, None)?;
    }
    Ok(x_BCHW)
}

/// A level of the encoder.
#[derive(Debug)]
pub(super) struct DownBlock {
    resnets: Vec<ResnetBlock>,
    downsample: Option<Downsample>,
}

impl DownBlock {
    /// From `channels[0]` to `channels[1]`.
    pub(super) fn load(
        loader: &mut Loader<'_>,
        config: &VaeConfig,
        name: &str,
        channels: [i64; 2],
        downsamples: bool,
    ) -> Self {
        let sampler = format!("{name}.downsamplers.0");
        Self {
            resnets: resnets(loader, config, name, config.layers_per_block, channels),
            downsample: downsamples.then(|| Downsample::load(loader, &sampler, channels[1], true)),
        }
    }

    pub(super) fn forward(&self, x_BCHW: Tensor) -> Result<Tensor, TchError> {
        let x_BCHW = through(&self.resnets, x_BCHW)?;
        match &self.downsample {
            None => Ok(x_BCHW),
            Some(downsample) => downsample.forward(&x_BCHW),
        }
    }
}

/// A level of the decoder.
#[derive(Debug)]
pub(super) struct UpBlock {
    resnets: Vec<ResnetBlock>,
    upsample: Option<Upsample>,
}

impl UpBlock {
    /// From `channels[0]` to `channels[1]`.
    pub(super) fn load(
        loader: &mut Loader<'_>,
        config: &VaeConfig,
        name: &str,
        channels: [i64; 2],
        upsamples: bool,
    ) -> Self {
        let sampler = format!("{name}.upsamplers.0");
        Self {
            resnets: resnets(loader, config, name, config.layers_per_block + 1, channels),
            upsample: upsamples.then(|| Upsample::load(loader, &sampler, channels[1])),
        }
    }

    pub(super) fn forward(&self, x_BCHW: Tensor) -> Result<Tensor, TchError> {
        let x_BCHW = through(&self.resnets, x_BCHW)?;
        match &self.upsample {
            None => Ok(x_BCHW),
            Some(upsample) => upsample.forward(&x_BCHW, None),
        }
    }
}

/// The lowest level, of encoder and decoder.
#[derive(Debug)]
pub(super) struct MidBlock {
    resnet_1: ResnetBlock,
    attention: Option<Attention>,
    resnet_2: ResnetBlock,
}

impl MidBlock {
    pub(super) fn load(loader: &mut Loader<'_>, config: &VaeConfig, name: &str) -> Self {
        let channels = config.deepest();
        let part = |part: &str| format!("{name}.{part}");
        Self {
            resnet_1: resnet(loader, config, &part("resnets.0"), channels, channels),
            attention: config
                .mid_block_add_attention
                .then(|| Attention::load(loader, config, &part("attentions.0"))),
            resnet_2: resnet(loader, config, &part("resnets.1"), channels, channels),
        }
    }

    pub(super) fn forward(&self, x_BCHW: &Tensor) -> Result<Tensor, TchError> {
        let mut x_BCHW = self.resnet_1.forward(x_BCHW, None)?;
        if let Some(attention) = &self.attention {
            x_BCHW = attention.forward(&x_BCHW)?;
        }
        self.resnet_2.forward(&x_BCHW, None)
    }
}

/// Attention of every pixel to all pixels, with one head.
#[derive(Debug)]
struct Attention {
    norm: GroupNorm,
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Linear,
}

impl Attention {
    fn load(loader: &mut Loader<'_>, config: &VaeConfig, name: &str) -> Self {
        let channels = config.deepest();
        let norm = format!("{name}.group_norm");
        let mut project = |names: [&str; 2]| project(loader, name, names, channels);
        let [to_q, to_k, to_v, to_out] =
            [["to_q", "query"], ["to_k", "key"], ["to_v", "value"], ["to_out.0", "proj_attn"]]
                .map(&mut project);
        let norm = GroupNorm::load(loader, &norm, config.norm_num_groups, channels, EPSILON);
        Self { norm, to_q, to_k, to_v, to_out }
    }

    /// `[B, C, H, W]` to the same shape. Pixels are tokens: in channels-last memory that is a view.
    fn forward(&self, x_BCHW: &Tensor) -> Result<Tensor, TchError> {
        let (batch, channels, height, width) = x_BCHW.size4()?;
        let tokens = [batch, 1, height * width, channels];
        let normed_B1LC = self.norm.forward(x_BCHW)?.f_permute([0, 2, 3, 1])?.f_reshape(tokens)?;
        let mixed_B1LC = attention(
            &self.to_q.forward(&normed_B1LC)?,
            &self.to_k.forward(&normed_B1LC)?,
            &self.to_v.forward(&normed_B1LC)?,
            None,
            false,
        )?;
        let update_BCHW = self
            .to_out
            .forward(&mixed_B1LC)?
            .f_reshape([batch, height, width, channels])?
            .f_permute([0, 3, 1, 2])?;
        add(x_BCHW, update_BCHW)
    }
}

/// A projection under its current name, or the one in files from before diffusers 0.15, some of
/// which store it as a 1×1 convolution.
fn project(
    loader: &mut Loader<'_>,
    attention: &str,
    [name, former]: [&str; 2],
    channels: i64,
) -> Linear {
    let weight = |part: &str| format!("{attention}.{part}.weight");
    let part = if loader.weights().contains(&weight(former)) { former } else { name };
    let square = [channels, channels];
    let shape = match loader.weights().shape(&weight(part)) {
        Some([_, _, _, _]) => vec![channels, channels, 1, 1],
        _ => square.to_vec(),
    };
    // The element counts are equal, so the view exists.
    let weight = loader.tensor(&weight(part), &shape).reshape(square);
    let bias = loader.tensor(&format!("{attention}.{part}.bias"), &[channels]);
    Linear::new(loader, weight, Some(bias))
}
