//! The names of tensors in a single file and in the layout of diffusers, both ways.
//!
//! As huggingface/diffusers `src/diffusers/loaders/single_file_utils.py` at v0.42.1 converts them,
//! and its `scripts/convert_diffusers_to_original_*.py` back. Names are those below the prefix of a
//! part.

/// A part of names in a single file and in diffusers.
type Table = [(&'static str, &'static str)];

const UNET: &Table = &[
    ("time_embed.0", "time_embedding.linear_1"),
    ("time_embed.2", "time_embedding.linear_2"),
    ("label_emb.0.0", "add_embedding.linear_1"),
    ("label_emb.0.2", "add_embedding.linear_2"),
    ("input_blocks.0.0", "conv_in"),
    ("out.0", "conv_norm_out"),
    ("out.2", "conv_out"),
];
const UNET_RESNET: &Table = &[
    ("in_layers.0", "norm1"),
    ("in_layers.2", "conv1"),
    ("emb_layers.1", "time_emb_proj"),
    ("out_layers.0", "norm2"),
    ("out_layers.3", "conv2"),
    ("skip_connection", "conv_shortcut"),
];
const VAE: &Table = &[
    ("quant_conv", "quant_conv"),
    ("post_quant_conv", "post_quant_conv"),
    ("encoder.conv_in", "encoder.conv_in"),
    ("encoder.norm_out", "encoder.conv_norm_out"),
    ("encoder.conv_out", "encoder.conv_out"),
    ("decoder.conv_in", "decoder.conv_in"),
    ("decoder.norm_out", "decoder.conv_norm_out"),
    ("decoder.conv_out", "decoder.conv_out"),
];
const VAE_RESNET: &Table = &[
    ("norm1", "norm1"),
    ("conv1", "conv1"),
    ("norm2", "norm2"),
    ("conv2", "conv2"),
    ("nin_shortcut", "conv_shortcut"),
];
/// The names of diffusers before 0.18 come last: they are read, not written.
const VAE_ATTENTION: &Table = &[
    ("norm", "group_norm"),
    ("q", "to_q"),
    ("k", "to_k"),
    ("v", "to_v"),
    ("proj_out", "to_out.0"),
    ("q", "query"),
    ("k", "key"),
    ("v", "value"),
    ("proj_out", "proj_attn"),
];
/// The text encoder of open_clip, apart from the joined queries, keys and values of a layer.
const OPEN_CLIP: &Table = &[
    ("token_embedding", "text_model.embeddings.token_embedding"),
    ("ln_final", "text_model.final_layer_norm"),
];
const OPEN_CLIP_LAYER: &Table = &[
    ("ln_1", "layer_norm1"),
    ("ln_2", "layer_norm2"),
    ("mlp.c_fc", "mlp.fc1"),
    ("mlp.c_proj", "mlp.fc2"),
    ("attn.out_proj", "self_attn.out_proj"),
];
/// The layers of a text encoder in each layout.
const OPEN_CLIP_LAYERS: &str = "transformer.resblocks.";
pub(super) const TEXT_LAYERS: &str = "text_model.encoder.layers.";

/// Replaces the beginning of a name, from the first column to the second or back.
fn replaced(table: &Table, name: &str, to_diffusers: bool) -> Option<String> {
    table.iter().find_map(|(single, diffusers)| {
        let (from, to) = if to_diffusers { (single, diffusers) } else { (diffusers, single) };
        let rest = name.strip_prefix(from)?;
        rest.starts_with('.').then(|| format!("{to}{rest}"))
    })
}

/// The number at the beginning of a name, and what follows its dot.
pub(super) fn number(name: &str) -> Option<(usize, &str)> {
    let (digits, rest) = name.split_once('.')?;
    Some((digits.parse().ok()?, rest))
}

/// The name of a tensor of the UNet in diffusers. `layers` is the number of residual blocks of a
/// level on the way down.
pub(super) fn unet_to_diffusers(name: &str, layers: usize) -> Option<String> {
    if let Some(found) = replaced(UNET, name, true) {
        return Some(found);
    }
    let (kind, rest) = name.split_once('.')?;
    let (index, rest) = number(rest)?;
    let resnet = |rest: &str| replaced(UNET_RESNET, rest, true);
    match kind {
        "middle_block" => match index {
            0 => Some(format!("mid_block.resnets.0.{}", resnet(rest)?)),
            1 => Some(format!("mid_block.attentions.0.{rest}")),
            2 => Some(format!("mid_block.resnets.1.{}", resnet(rest)?)),
            _ => None,
        },
        "input_blocks" => {
            let (place, rest) = number(rest)?;
            let index = index.checked_sub(1)?;
            let (level, layer) = (index / (layers + 1), index % (layers + 1));
            let block = format!("down_blocks.{level}");
            match (place, rest.strip_prefix("op.")) {
                (0, Some(rest)) => Some(format!("{block}.downsamplers.0.conv.{rest}")),
                (0, None) => Some(format!("{block}.resnets.{layer}.{}", resnet(rest)?)),
                (1, _) => Some(format!("{block}.attentions.{layer}.{rest}")),
                _ => None,
            }
        }
        "output_blocks" => {
            let (place, rest) = number(rest)?;
            let (level, layer) = (index / (layers + 1), index % (layers + 1));
            let block = format!("up_blocks.{level}");
            match (place, rest.strip_prefix("conv.")) {
                (1 | 2, Some(rest)) => Some(format!("{block}.upsamplers.0.conv.{rest}")),
                (0, _) => Some(format!("{block}.resnets.{layer}.{}", resnet(rest)?)),
                (1, None) => Some(format!("{block}.attentions.{layer}.{rest}")),
                _ => None,
            }
        }
        _ => None,
    }
}

/// The name of a tensor of the UNet in a single file. `attends` says whether a level on the way up
/// has attention: its upsampler then comes third.
pub(super) fn unet_to_single(
    name: &str,
    layers: usize,
    attends: impl Fn(usize) -> bool,
) -> Option<String> {
    if let Some(found) = replaced(UNET, name, false) {
        return Some(found);
    }
    let resnet = |rest: &str| replaced(UNET_RESNET, rest, false);
    if let Some(rest) = name.strip_prefix("mid_block.") {
        let (kind, rest) = rest.split_once('.')?;
        let (index, rest) = number(rest)?;
        return match (kind, index) {
            ("resnets", 0 | 1) => Some(format!("middle_block.{}.{}", 2 * index, resnet(rest)?)),
            ("attentions", 0) => Some(format!("middle_block.1.{rest}")),
            _ => None,
        };
    }
    let is_down = name.starts_with("down_blocks.");
    let rest = name.strip_prefix("down_blocks.").or_else(|| name.strip_prefix("up_blocks."))?;
    let (level, rest) = number(rest)?;
    let (kind, rest) = rest.split_once('.')?;
    let (layer, rest) = number(rest)?;
    let first = level * (layers + 1);
    if is_down {
        let index = first + layer + 1;
        return match kind {
            "resnets" => Some(format!("input_blocks.{index}.0.{}", resnet(rest)?)),
            "attentions" => Some(format!("input_blocks.{index}.1.{rest}")),
            "downsamplers" => {
                let rest = rest.strip_prefix("conv.")?;
                Some(format!("input_blocks.{}.0.op.{rest}", first + layers + 1))
            }
            _ => None,
        };
    }
    match kind {
        "resnets" => Some(format!("output_blocks.{}.0.{}", first + layer, resnet(rest)?)),
        "attentions" => Some(format!("output_blocks.{}.1.{rest}", first + layer)),
        "upsamplers" => {
            let rest = rest.strip_prefix("conv.")?;
            let place = if attends(level) { 2 } else { 1 };
            Some(format!("output_blocks.{}.{place}.conv.{rest}", first + layers))
        }
        _ => None,
    }
}

/// The name of a tensor of an autoencoder of `levels` in diffusers.
pub(super) fn vae_to_diffusers(name: &str, levels: usize) -> Option<String> {
    if let Some(found) = replaced(VAE, name, true) {
        return Some(found);
    }
    let (half, rest) = name.split_once('.')?;
    if let Some(rest) = rest.strip_prefix("mid.") {
        let (part, rest) = rest.split_once('.')?;
        return match part {
            "block_1" => {
                Some(format!("{half}.mid_block.resnets.0.{}", replaced(VAE_RESNET, rest, true)?))
            }
            "block_2" => {
                Some(format!("{half}.mid_block.resnets.1.{}", replaced(VAE_RESNET, rest, true)?))
            }
            "attn_1" => {
                let rest = replaced(VAE_ATTENTION, rest, true)?;
                Some(format!("{half}.mid_block.attentions.0.{rest}"))
            }
            _ => None,
        };
    }
    let (way, rest) = rest.split_once('.')?;
    let (level, rest) = number(rest)?;
    let (way, level, sampler) = match (half, way) {
        ("encoder", "down") => ("down", level, "downsample"),
        ("decoder", "up") => ("up", levels.checked_sub(1 + level)?, "upsample"),
        _ => return None,
    };
    if let Some(rest) = rest.strip_prefix(&format!("{sampler}.")) {
        return Some(format!("{half}.{way}_blocks.{level}.{sampler}rs.0.{rest}"));
    }
    let (layer, rest) = number(rest.strip_prefix("block.")?)?;
    let rest = replaced(VAE_RESNET, rest, true)?;
    Some(format!("{half}.{way}_blocks.{level}.resnets.{layer}.{rest}"))
}

/// The name of a tensor of an autoencoder of `levels` in a single file.
pub(super) fn vae_to_single(name: &str, levels: usize) -> Option<String> {
    if let Some(found) = replaced(VAE, name, false) {
        return Some(found);
    }
    let (half, rest) = name.split_once('.')?;
    if let Some(rest) = rest.strip_prefix("mid_block.") {
        if let Some(rest) = rest.strip_prefix("attentions.0.") {
            return Some(format!("{half}.mid.attn_1.{}", replaced(VAE_ATTENTION, rest, false)?));
        }
        let (index, rest) = number(rest.strip_prefix("resnets.")?)?;
        let rest = replaced(VAE_RESNET, rest, false)?;
        return Some(format!("{half}.mid.block_{}.{rest}", index + 1));
    }
    let (way, sampler) = match half {
        "encoder" => ("down", "downsample"),
        "decoder" => ("up", "upsample"),
        _ => return None,
    };
    let (level, rest) = number(rest.strip_prefix(&format!("{way}_blocks."))?)?;
    let level = if half == "decoder" { levels.checked_sub(1 + level)? } else { level };
    if let Some(rest) = rest.strip_prefix(&format!("{sampler}rs.0.")) {
        return Some(format!("{half}.{way}.{level}.{sampler}.{rest}"));
    }
    let (layer, rest) = number(rest.strip_prefix("resnets.")?)?;
    let rest = replaced(VAE_RESNET, rest, false)?;
    Some(format!("{half}.{way}.{level}.block.{layer}.{rest}"))
}

/// What a tensor of open_clip's text encoder is in diffusers.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum OpenClipTensor {
    /// The same tensor under this name.
    Same(String),
    /// Its transposed.
    Transposed(String),
    /// Three tensors, one below the other: queries, keys and values.
    Joined([String; 3]),
}

/// The name of a tensor of open_clip's text encoder in diffusers.
pub(super) fn open_clip_to_diffusers(name: &str) -> Option<OpenClipTensor> {
    match name {
        "positional_embedding" => {
            let to = "text_model.embeddings.position_embedding.weight";
            return Some(OpenClipTensor::Same(to.to_owned()));
        }
        "text_projection" => {
            return Some(OpenClipTensor::Transposed("text_projection.weight".to_owned()));
        }
        _ => {}
    }
    if let Some(found) = replaced(OPEN_CLIP, name, true) {
        return Some(OpenClipTensor::Same(found));
    }
    let (layer, rest) = number(name.strip_prefix(OPEN_CLIP_LAYERS)?)?;
    if let Some(kind) = rest.strip_prefix("attn.in_proj_") {
        let of = |part: &str| format!("{TEXT_LAYERS}{layer}.self_attn.{part}_proj.{kind}");
        return Some(OpenClipTensor::Joined([of("q"), of("k"), of("v")]));
    }
    Some(OpenClipTensor::Same(format!(
        "{TEXT_LAYERS}{layer}.{}",
        replaced(OPEN_CLIP_LAYER, rest, true)?
    )))
}

/// The name in a single file of a tensor of diffusers' text encoder, and its place among joined
/// queries, keys and values.
pub(super) fn open_clip_to_single(name: &str) -> Option<(String, Option<usize>)> {
    match name {
        "text_model.embeddings.position_embedding.weight" => {
            return Some(("positional_embedding".to_owned(), None));
        }
        "text_projection.weight" => return Some(("text_projection".to_owned(), None)),
        _ => {}
    }
    if let Some(found) = replaced(OPEN_CLIP, name, false) {
        return Some((found, None));
    }
    let (layer, rest) = number(name.strip_prefix(TEXT_LAYERS)?)?;
    for (place, part) in ["q", "k", "v"].into_iter().enumerate() {
        if let Some(kind) = rest.strip_prefix(&format!("self_attn.{part}_proj.")) {
            let joined = format!("{OPEN_CLIP_LAYERS}{layer}.attn.in_proj_{kind}");
            return Some((joined, Some(place)));
        }
    }
    let rest = replaced(OPEN_CLIP_LAYER, rest, false)?;
    Some((format!("{OPEN_CLIP_LAYERS}{layer}.{rest}"), None))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Part, name in a single file and name in diffusers, of every module
    /// (`scripts/goldens/single_file.py`).
    const TABLES: [(&str, usize); 2] = [
        (include_str!("../../tests/fixtures/single_file/names-sd1.tsv"), 4),
        (include_str!("../../tests/fixtures/single_file/names-sdxl.tsv"), 3),
    ];

    #[test]
    fn every_name_is_that_of_diffusers_converters_both_ways() {
        for (table, levels) in TABLES {
            let rows: Vec<[&str; 3]> = table
                .lines()
                .map(|line| line.split('\t').collect::<Vec<_>>().try_into().unwrap())
                .collect();
            assert!(rows.len() > 300, "{}", rows.len());
            let attends = |level: usize| {
                let module = format!("up_blocks.{level}.attentions.0.norm");
                rows.iter().any(|[_, _, diffusers]| *diffusers == module)
            };
            for [part, single, diffusers] in &rows {
                for kind in ["weight", "bias"] {
                    let (single, diffusers) =
                        (format!("{single}.{kind}"), format!("{diffusers}.{kind}"));
                    let found = match *part {
                        "unet" => {
                            [unet_to_diffusers(&single, 2), unet_to_single(&diffusers, 2, attends)]
                        }
                        // The autoencoder has four levels in every family.
                        _ => [vae_to_diffusers(&single, 4), vae_to_single(&diffusers, 4)],
                    };
                    assert_eq!(found, [Some(diffusers), Some(single)], "{levels} levels");
                }
            }
        }
    }

    #[test]
    fn names_of_other_networks_are_not_known() {
        for name in [
            "input_blocks.0.1.weight",
            "input_blocks.x.0.in_layers.0.weight",
            "input_blocks.1.3.norm.weight",
            "middle_block.3.in_layers.0.weight",
            "double_blocks.0.img_attn.qkv.weight",
            "conv_in",
            "",
        ] {
            assert_eq!(unet_to_diffusers(name, 2), None, "{name}");
            assert_eq!(vae_to_diffusers(name, 4), None, "{name}");
        }
        assert_eq!(vae_to_diffusers("decoder.up.4.block.0.norm1.weight", 4), None);
        assert_eq!(unet_to_single("down_blocks.0.motion_modules.0.x", 2, |_| true), None);
        // What diffusers called them before 0.18.
        let former = vae_to_single("encoder.mid_block.attentions.0.proj_attn.weight", 4);
        assert_eq!(former.as_deref(), Some("encoder.mid.attn_1.proj_out.weight"));
    }
}
