//! The names that adapters have in files of the various forms.
//!
//! | form | example |
//! |---|---|
//! | diffusers | `unet.X.to_q.lora_A.weight`, `text_encoder.X.q_proj.lora_B.weight` |
//! | its trainers | `unet.X.to_q.lora.down.weight` |
//! | diffusers before PEFT | `unet.X.attn1.processor.to_q_lora.down.weight`, `text_encoder.X.q_proj.lora_linear_layer.up.weight` |
//! | PEFT | `base_model.model.X.to_q.lora_A.weight`, also `.lora_A.NAME.weight` |
//! | sd-scripts (kohya) | `lora_unet_X_to_q.lora_down.weight`, `.alpha`; `lora_te_…`, SDXL `lora_te1_…`, `lora_te2_…` |
//!
//! Sources: huggingface/diffusers `src/diffusers/loaders/lora_base.py`, `peft.py` and
//! `lora_conversion_utils.py` at v0.42.1; kohya-ss/sd-scripts `networks/lora.py`.

use super::merge::Part;

/// What a tensor is to its adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// `A`, from the input to the rank.
    Down,
    /// `B`, from the rank to the output.
    Up,
    /// The scale times the rank.
    Alpha,
}

const ENDS: [(&str, Role); 9] = [
    (".lora_down.weight", Role::Down),
    (".lora_up.weight", Role::Up),
    (".lora_linear_layer.down.weight", Role::Down),
    (".lora_linear_layer.up.weight", Role::Up),
    (".lora.down.weight", Role::Down),
    (".lora.up.weight", Role::Up),
    // diffusers before PEFT: `processor.to_q_lora.down.weight`.
    ("_lora.down.weight", Role::Down),
    ("_lora.up.weight", Role::Up),
    (".alpha", Role::Alpha),
];

/// What names of each part begin with. Longer ones come first where one begins another.
const BEGINNINGS: [(&str, Part); 8] = [
    ("unet.", Part::Unet),
    ("text_encoder_2.", Part::TextEncoder2),
    ("text_encoder.", Part::TextEncoder),
    ("lora_unet_", Part::Unet),
    ("lora_te1_", Part::TextEncoder),
    ("lora_te2_", Part::TextEncoder2),
    ("lora_te_", Part::TextEncoder),
    ("diffusion_model.", Part::Unet),
];

/// The layer that a tensor belongs to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    /// The part of the pipeline, if the name says so.
    pub(super) part: Option<Part>,
    /// The name of the layer with underscores for dots.
    pub(super) layer: String,
}

/// What the name of a tensor says; `None` if it is not one of an adapter.
pub(super) fn parse(name: &str) -> Option<(Key, Role)> {
    let (base, role) = split(name)?;
    let base = base.strip_prefix("base_model.model.").unwrap_or(base);
    let found = BEGINNINGS
        .iter()
        .find_map(|(beginning, part)| Some((base.strip_prefix(beginning)?, Some(*part))));
    let (base, part) = found.unwrap_or((base, None));
    let layer = base.replace(".processor.", ".").replace('.', "_");
    Some((Key { part, layer }, role))
}

/// The name of a tensor without what follows that of its layer.
fn split(name: &str) -> Option<(&str, Role)> {
    for (part, role) in [(".lora_A.", Role::Down), (".lora_B.", Role::Up)] {
        // `.lora_A.weight`, or with the name of an adapter `.lora_A.default.weight`.
        if let Some((base, end)) = name.rsplit_once(part) {
            let is_weight = end == "weight" || end.ends_with(".weight");
            return is_weight.then_some((base, role));
        }
    }
    ENDS.iter().find_map(|(end, role)| Some((name.strip_suffix(end)?, *role)))
}

/// The forms of a layer's name that [`Key::layer`] may have.
pub(super) fn forms(module: &str) -> Vec<String> {
    let plain = module.replace('.', "_");
    // diffusers before PEFT: `to_out_lora`.
    match plain.strip_suffix("_to_out_0") {
        Some(before) => vec![format!("{before}_to_out"), plain],
        None => vec![plain],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_all_forms_are_understood() {
        let unet = Some(Part::Unet);
        let layer = "down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q";
        let dotted = "down_blocks.0.attentions.0.transformer_blocks.0.attn1";
        for (name, part, role) in [
            (format!("unet.{dotted}.to_q.lora_A.weight"), unet, Role::Down),
            (format!("unet.{dotted}.to_q.lora_B.default.weight"), unet, Role::Up),
            (format!("unet.{dotted}.to_q.lora.up.weight"), unet, Role::Up),
            (format!("unet.{dotted}.processor.to_q_lora.down.weight"), unet, Role::Down),
            (format!("base_model.model.{dotted}.to_q.lora_B.weight"), None, Role::Up),
            (format!("{dotted}.to_q.lora_A.weight"), None, Role::Down),
            (format!("lora_unet_{layer}.lora_down.weight"), unet, Role::Down),
            (format!("lora_unet_{layer}.alpha"), unet, Role::Alpha),
        ] {
            let key = Key { part, layer: layer.to_owned() };
            assert_eq!(parse(&name), Some((key, role)), "{name}");
        }
        let text = "text_model_encoder_layers_0_self_attn_q_proj";
        let dotted = "text_model.encoder.layers.0.self_attn.q_proj";
        for (name, part) in [
            (format!("text_encoder.{dotted}.lora_linear_layer.up.weight"), Part::TextEncoder),
            (format!("text_encoder_2.{dotted}.lora_B.weight"), Part::TextEncoder2),
            (format!("lora_te_{text}.lora_up.weight"), Part::TextEncoder),
            (format!("lora_te1_{text}.lora_up.weight"), Part::TextEncoder),
            (format!("lora_te2_{text}.lora_up.weight"), Part::TextEncoder2),
        ] {
            let key = Key { part: Some(part), layer: text.to_owned() };
            assert_eq!(parse(&name), Some((key, Role::Up)), "{name}");
        }
    }

    #[test]
    fn other_kinds_of_adapters_are_not_taken_for_lora() {
        for name in [
            "lora_unet_x.hada_w1_a",
            "lora_unet_x.lokr_w1",
            "lora_unet_x.dora_scale",
            "unet.x.lora_magnitude_vector",
            "unet.x.weight",
            "lora_unet_x.lora_mid.weight",
            "unet.x.lora_A.bias",
        ] {
            assert_eq!(parse(name), None, "{name}");
        }
    }

    #[test]
    fn the_output_of_attention_has_two_names() {
        assert_eq!(forms("a.attn1.to_out.0"), ["a_attn1_to_out", "a_attn1_to_out_0"]);
        assert_eq!(forms("a.attn1.to_q"), ["a_attn1_to_q"]);
    }
}
