//! The configurations of a single file's networks, from the shapes of their tensors.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::names::{TEXT_LAYERS, number};
use super::{SingleFamily, UNET, VAE};
use crate::weights::Weights;

/// Channels of a head where heads have equal channels.
const HEAD: i64 = 64;
/// Heads of every attention of Stable Diffusion 1.
const HEADS_1: i64 = 8;
/// The version of the library whose options these are.
const VERSION: &str = "0.42.1";

/// A tensor whose shape is needed, and is missing or of another kind.
pub(super) type Missing = String;

fn shape<'all>(weights: &'all Weights, name: &str, rank: usize) -> Result<&'all [i64], Missing> {
    match weights.shape(name) {
        Some(shape) if shape.len() == rank => Ok(shape),
        Some(other) => {
            Err(format!("expected {name} to have {rank} dimensions, found the shape {other:?}"))
        }
        None => Err(format!("expected a tensor {name}, found none")),
    }
}

/// The different numbers that follow a prefix.
fn numbers<'all>(names: impl Iterator<Item = &'all str>, prefix: &str) -> BTreeSet<usize> {
    names.filter_map(|name| Some(number(name.strip_prefix(prefix)?)?.0)).collect()
}

/// What the blocks of a UNet are.
#[derive(Debug)]
pub(super) struct Blocks {
    /// Residual blocks of a level on the way down.
    pub(super) layers: usize,
    levels: usize,
}

impl Blocks {
    /// Counts the blocks of the UNet.
    pub(super) fn of(weights: &Weights) -> Result<Self, Missing> {
        let count = numbers(weights.names(), &format!("{UNET}input_blocks.")).len();
        let is_sampler = |name: &&str| name.starts_with(UNET) && name.ends_with(".0.op.weight");
        let levels = weights.names().filter(is_sampler).count() + 1;
        // The first block is the convolution; each level but the last has one for its sampler.
        if count == 0 || count % levels != 0 || count / levels < 2 {
            return Err(format!("found {count} input blocks on {levels} levels, which is no UNet"));
        }
        Ok(Self { layers: count / levels - 1, levels })
    }

    /// The first block of a level on the way down.
    fn down(&self, level: usize) -> String {
        format!("{UNET}input_blocks.{}", level * (self.layers + 1) + 1)
    }

    /// The first block of a level on the way up.
    fn up(&self, level: usize) -> String {
        format!("{UNET}output_blocks.{}", level * (self.layers + 1))
    }
}

/// `unet/config.json`. `is_velocity` says that the model predicts v.
pub(super) fn unet(
    weights: &Weights,
    family: SingleFamily,
    is_velocity: bool,
) -> Result<Value, Missing> {
    let blocks = Blocks::of(weights)?;
    let input = shape(weights, &format!("{UNET}input_blocks.0.0.weight"), 4)?[1];
    let output = shape(weights, &format!("{UNET}out.2.weight"), 4)?[0];
    if (input, output) != (4, 4) {
        return Err(format!(
            "the UNet reads {input} channels and outputs {output}, expected 4 and 4: a model for \
             inpainting or another task"
        ));
    }
    let mut channels = Vec::new();
    let mut depths = Vec::new();
    let (mut down, mut up) = (Vec::new(), Vec::new());
    let mut text = None;
    let mut is_linear = false;
    for level in 0..blocks.levels {
        let block = blocks.down(level);
        channels.push(shape(weights, &format!("{block}.0.out_layers.3.weight"), 4)?[0]);
        let depth = numbers(weights.names(), &format!("{block}.1.transformer_blocks.")).len();
        depths.push(depth.max(1));
        down.push(if depth > 0 { "CrossAttnDownBlock2D" } else { "DownBlock2D" });
        if depth > 0 {
            let keys = format!("{block}.1.transformer_blocks.0.attn2.to_k.weight");
            text = Some(shape(weights, &keys, 2)?[1]);
            is_linear =
                weights.shape(&format!("{block}.1.proj_in.weight")).map(<[i64]>::len) == Some(2);
        }
        let attends = weights.contains(&format!("{}.1.proj_in.weight", blocks.up(level)));
        up.push(if attends { "CrossAttnUpBlock2D" } else { "UpBlock2D" });
    }
    let text = text.ok_or("expected attention to a text in the UNet, found none")?;
    let heads = match family {
        SingleFamily::StableDiffusion1 => json!(HEADS_1),
        _ => channels.iter().map(|channels| (channels / HEAD).max(1)).collect(),
    };
    let depths = match depths.iter().all(|depth| *depth == 1) {
        true => json!(1),
        false => json!(depths),
    };
    let sample_size = match family {
        SingleFamily::StableDiffusion1 => 64,
        SingleFamily::StableDiffusion2 => {
            if is_velocity {
                96
            } else {
                64
            }
        }
        SingleFamily::StableDiffusionXl => 128,
    };
    let mut config = json!({
        "_class_name": "UNet2DConditionModel",
        "_diffusers_version": VERSION,
        "act_fn": "silu",
        "attention_head_dim": heads,
        "block_out_channels": channels,
        "center_input_sample": false,
        "cross_attention_dim": text,
        "down_block_types": down,
        "downsample_padding": 1,
        "flip_sin_to_cos": true,
        "freq_shift": 0,
        "in_channels": input,
        "layers_per_block": blocks.layers,
        "mid_block_scale_factor": 1,
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "norm_eps": 1e-5,
        "norm_num_groups": 32,
        "out_channels": output,
        "sample_size": sample_size,
        "transformer_layers_per_block": depths,
        "up_block_types": up,
        "use_linear_projection": is_linear,
    });
    if family == SingleFamily::StableDiffusionXl {
        let added = shape(weights, &format!("{UNET}label_emb.0.0.weight"), 2)?[1];
        let more = [
            ("addition_embed_type", json!("text_time")),
            ("addition_time_embed_dim", json!(256)),
            ("projection_class_embeddings_input_dim", json!(added)),
        ];
        if let Some(config) = config.as_object_mut() {
            config.extend(more.map(|(name, value)| (name.to_owned(), value)));
        }
    }
    Ok(config)
}

/// How many levels the autoencoder has.
pub(super) fn vae_levels(weights: &Weights) -> usize {
    numbers(weights.names(), &format!("{VAE}encoder.down.")).len()
}

/// `vae/config.json`.
pub(super) fn vae(weights: &Weights, family: SingleFamily) -> Result<Value, Missing> {
    let levels = vae_levels(weights);
    let layers = numbers(weights.names(), &format!("{VAE}encoder.down.0.block.")).len();
    let channels = (0..levels)
        .map(|level| {
            let block = format!("{VAE}encoder.down.{level}.block.0.conv2.weight");
            Ok(shape(weights, &block, 4)?[0])
        })
        .collect::<Result<Vec<i64>, Missing>>()?;
    let latents = shape(weights, &format!("{VAE}post_quant_conv.weight"), 4)?[0];
    let (factor, size) = match family {
        SingleFamily::StableDiffusion1 => (0.18215, 512),
        SingleFamily::StableDiffusion2 => (0.18215, 768),
        SingleFamily::StableDiffusionXl => (0.13025, 1024),
    };
    Ok(json!({
        "_class_name": "AutoencoderKL",
        "_diffusers_version": VERSION,
        "act_fn": "silu",
        "block_out_channels": channels,
        "down_block_types": vec!["DownEncoderBlock2D"; levels],
        "force_upcast": true,
        "in_channels": 3,
        "latent_channels": latents,
        "layers_per_block": layers,
        "norm_num_groups": 32,
        "out_channels": 3,
        "sample_size": size,
        "scaling_factor": factor,
        "up_block_types": vec!["UpDecoderBlock2D"; levels],
    }))
}

/// `config.json` of a text encoder whose tensors are under diffusers' names in `shapes`.
pub(super) fn text(
    shapes: &Map<String, Value>,
    is_open_clip: bool,
    has_projection: bool,
) -> Result<Value, Missing> {
    let size = |name: &str, dimension: usize| {
        let size = shapes.get(name).and_then(|shape| shape.get(dimension)).and_then(Value::as_i64);
        size.ok_or_else(|| format!("expected a tensor {name} of the text encoder, found none"))
    };
    let width = size("text_model.embeddings.token_embedding.weight", 1)?;
    let vocabulary = size("text_model.embeddings.token_embedding.weight", 0)?;
    let layers = numbers(shapes.keys().map(String::as_str), TEXT_LAYERS).len();
    let class = if has_projection { "CLIPTextModelWithProjection" } else { "CLIPTextModel" };
    Ok(json!({
        "architectures": [class],
        "attention_dropout": 0.0,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "hidden_act": if is_open_clip { "gelu" } else { "quick_gelu" },
        "hidden_size": width,
        "intermediate_size": size(&format!("{TEXT_LAYERS}0.mlp.fc1.weight"), 0)?,
        "layer_norm_eps": 1e-5,
        "max_position_embeddings":
            size("text_model.embeddings.position_embedding.weight", 0)?,
        "model_type": "clip_text_model",
        "num_attention_heads": (width / HEAD).max(1),
        "num_hidden_layers": layers,
        "pad_token_id": 1,
        "projection_dim": match has_projection {
            true => size("text_projection.weight", 0)?,
            false => width,
        },
        "vocab_size": vocabulary,
    }))
}

/// `scheduler/scheduler_config.json`, of the published pipeline of the family.
pub(super) fn scheduler(family: SingleFamily, is_velocity: bool) -> (&'static str, Value) {
    let prediction = if is_velocity { "v_prediction" } else { "epsilon" };
    let mut config = json!({
        "_diffusers_version": VERSION,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "num_train_timesteps": 1000,
        "prediction_type": prediction,
        "steps_offset": 1,
    });
    let (class, more) = match family {
        SingleFamily::StableDiffusion1 => (
            "PNDMScheduler",
            json!({"set_alpha_to_one": false, "skip_prk_steps": true, "clip_sample": false}),
        ),
        SingleFamily::StableDiffusion2 => {
            ("DDIMScheduler", json!({"set_alpha_to_one": false, "clip_sample": false}))
        }
        SingleFamily::StableDiffusionXl => (
            "EulerDiscreteScheduler",
            json!({
                "interpolation_type": "linear",
                "timestep_spacing": "leading",
                "use_karras_sigmas": false,
            }),
        ),
    };
    if let (Some(config), Value::Object(more)) = (config.as_object_mut(), more) {
        config.insert("_class_name".to_owned(), class.into());
        config.extend(more);
    }
    (class, config)
}
