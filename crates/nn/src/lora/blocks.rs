//! The names of a UNet's layers in the code of Stability AI (`sgm`), which files for A1111, ComfyUI
//! and sd-scripts have for SDXL.
//!
//! Blocks are numbered through: `input_blocks.4.1` is the transformer after the fifth part on the
//! way down. The map is that of huggingface/diffusers
//! `src/diffusers/loaders/lora_conversion_utils.py` (`_maybe_map_sgm_blocks_to_diffusers`) and
//! `src/diffusers/loaders/single_file_utils.py` at v0.42.1, in the other direction.

/// The layers of a residual block: in diffusers, and in `sgm`.
const RESNET: [(&str, &str); 6] = [
    ("norm1", "in_layers.0"),
    ("conv1", "in_layers.2"),
    ("time_emb_proj", "emb_layers.1"),
    ("norm2", "out_layers.0"),
    ("conv2", "out_layers.3"),
    ("conv_shortcut", "skip_connection"),
];
/// The layers outside of blocks.
const OUTSIDE: [(&str, &str); 7] = [
    ("conv_in", "input_blocks.0.0"),
    ("time_embedding.linear_1", "time_embed.0"),
    ("time_embedding.linear_2", "time_embed.2"),
    ("add_embedding.linear_1", "label_emb.0.0"),
    ("add_embedding.linear_2", "label_emb.0.2"),
    ("conv_norm_out", "out.0"),
    ("conv_out", "out.2"),
];

/// The blocks of a UNet, as far as their numbers depend on them.
#[derive(Debug, Default)]
pub(crate) struct Blocks {
    /// Residual blocks of each block on the way down.
    down: Vec<usize>,
    /// Residual blocks of each block on the way up, and whether it has transformers.
    up: Vec<(usize, bool)>,
}

impl Blocks {
    /// The blocks of the network whose tensors have these names.
    pub(crate) fn of<'names>(names: impl Iterator<Item = &'names str>) -> Self {
        let mut blocks = Self::default();
        for name in names {
            let parts: Vec<&str> = name.split('.').collect();
            let [side, block, kind, index, ..] = parts[..] else { continue };
            let (Ok(block), Ok(index)) = (block.parse::<usize>(), index.parse::<usize>()) else {
                continue;
            };
            // No network has so many; a file is untrusted.
            if block > 64 || index > 64 {
                continue;
            }
            match (side, kind) {
                ("down_blocks", "resnets") => {
                    let length = blocks.down.len().max(block + 1);
                    blocks.down.resize(length, 0);
                    blocks.down[block] = blocks.down[block].max(index + 1);
                }
                ("up_blocks", "resnets" | "attentions") => {
                    let length = blocks.up.len().max(block + 1);
                    blocks.up.resize(length, (0, false));
                    match kind {
                        "resnets" => blocks.up[block].0 = blocks.up[block].0.max(index + 1),
                        _ => blocks.up[block].1 = true,
                    }
                }
                _ => {}
            }
        }
        blocks
    }

    /// The name of a layer in `sgm`; `None` if it has none.
    pub(crate) fn sgm(&self, module: &str) -> Option<String> {
        if let Some((_, sgm)) = OUTSIDE.iter().find(|(name, _)| *name == module) {
            return Some((*sgm).to_owned());
        }
        let (side, rest) = module.split_once('.')?;
        let (block, rest) = match side {
            "mid_block" => (0, rest),
            _ => {
                let (block, rest) = rest.split_once('.')?;
                (block.parse::<usize>().ok()?, rest)
            }
        };
        let (kind, rest) = rest.split_once('.')?;
        let (index, rest) = rest.split_once('.')?;
        let index = index.parse::<usize>().ok()?;
        // `resnets` come first in a numbered part, then `attentions`.
        let (inner, rest) = match kind {
            "resnets" => (0, RESNET.iter().find(|(name, _)| *name == rest)?.1),
            "attentions" => (1, rest),
            "downsamplers" => (0, "op"),
            "upsamplers" => (usize::from(self.up.get(block)?.1) + 1, "conv"),
            _ => return None,
        };
        match side {
            "down_blocks" => {
                let before = self.down.get(..block)?.iter().map(|layers| layers + 1).sum::<usize>();
                let index = if kind == "downsamplers" { *self.down.get(block)? } else { index };
                Some(format!("input_blocks.{}.{inner}.{rest}", 1 + before + index))
            }
            "up_blocks" => {
                let before = self.up.get(..block)?.iter().map(|(layers, _)| layers).sum::<usize>();
                let index = match kind {
                    "upsamplers" => self.up.get(block)?.0.checked_sub(1)?,
                    _ => index,
                };
                Some(format!("output_blocks.{}.{inner}.{rest}", before + index))
            }
            "mid_block" => {
                let place = if inner == 1 { 1 } else { 2 * index };
                Some(format!("middle_block.{place}.{rest}"))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The blocks of SDXL, and some layers with the names that its published file has.
    #[test]
    fn names_are_those_of_the_published_file() {
        let mut names = Vec::new();
        for block in 0..3 {
            names.extend((0..2).map(|layer| format!("down_blocks.{block}.resnets.{layer}.conv1")));
            names.extend((0..3).map(|layer| format!("up_blocks.{block}.resnets.{layer}.conv1")));
        }
        for block in 0..2 {
            names.push(format!("up_blocks.{block}.attentions.0.proj_in.weight"));
        }
        let blocks = Blocks::of(names.iter().map(String::as_str));
        for (module, expected) in [
            ("conv_in", "input_blocks.0.0"),
            ("down_blocks.0.resnets.0.conv1", "input_blocks.1.0.in_layers.2"),
            ("down_blocks.0.downsamplers.0.conv", "input_blocks.3.0.op"),
            ("down_blocks.1.attentions.0.proj_in", "input_blocks.4.1.proj_in"),
            (
                "down_blocks.2.attentions.1.transformer_blocks.9.attn2.to_out.0",
                "input_blocks.8.1.transformer_blocks.9.attn2.to_out.0",
            ),
            ("mid_block.resnets.0.conv1", "middle_block.0.in_layers.2"),
            ("mid_block.attentions.0.proj_out", "middle_block.1.proj_out"),
            ("mid_block.resnets.1.time_emb_proj", "middle_block.2.emb_layers.1"),
            ("up_blocks.0.attentions.2.proj_in", "output_blocks.2.1.proj_in"),
            ("up_blocks.0.upsamplers.0.conv", "output_blocks.2.2.conv"),
            ("up_blocks.1.resnets.0.conv_shortcut", "output_blocks.3.0.skip_connection"),
            ("up_blocks.2.resnets.2.conv2", "output_blocks.8.0.out_layers.3"),
            ("time_embedding.linear_2", "time_embed.2"),
            ("add_embedding.linear_1", "label_emb.0.0"),
            ("conv_out", "out.2"),
        ] {
            assert_eq!(blocks.sgm(module).as_deref(), Some(expected), "{module}");
        }
        for other in ["", "encoder.layers.0", "down_blocks.9.attentions.0.x", "down_blocks.x.y.0.z"]
        {
            assert_eq!(blocks.sgm(other), None, "{other}");
        }
    }

    #[test]
    fn a_block_without_transformers_upsamples_in_its_second_place() {
        let names = ["up_blocks.0.resnets.0.conv1", "up_blocks.0.resnets.2.conv1"];
        let blocks = Blocks::of(names.into_iter());
        let name = blocks.sgm("up_blocks.0.upsamplers.0.conv");
        assert_eq!(name.as_deref(), Some("output_blocks.2.1.conv"));
    }
}
