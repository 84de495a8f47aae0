//! `config.json` of `transformers`' `CLIPModel`. Options that a file omits have the library's
//! default: huggingface/transformers `src/transformers/models/clip/configuration_clip.py` at
//! v5.23.0.

use std::path::Path;

use serde_json::Value;

use super::config::{Activation, ClipConfig, Pooling, Problem, TextConfig, VisionConfig, square};
use crate::config::{ConfigError, Options};

/// Options that `transformers` stores and that have no effect in a network without dropout and text
/// generation: `src/transformers/configuration_utils.py` at v5.23.0 and before.
pub(crate) const OF_NO_EFFECT: &[&str] = &[
    "add_cross_attention",
    "architectures",
    "attention_dropout",
    "attn_implementation",
    "auto_map",
    "bad_words_ids",
    "begin_suppress_tokens",
    "bos_token_id",
    "chunk_size_feed_forward",
    "cross_attention_hidden_size",
    "decoder_start_token_id",
    "diversity_penalty",
    "do_sample",
    "dropout",
    "dtype",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "exponential_decay_length_penalty",
    "finetuning_task",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "gradient_checkpointing",
    "id2label",
    "initializer_factor",
    "initializer_range",
    "is_decoder",
    "is_encoder_decoder",
    "label2id",
    "length_penalty",
    "logit_scale_init_value",
    "max_length",
    "min_length",
    "model_type",
    "name_or_path",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_labels",
    "num_return_sequences",
    "output_attentions",
    "output_hidden_states",
    "output_scores",
    "pad_token_id",
    "prefix",
    "problem_type",
    "projection_dim",
    "remove_invalid_values",
    "repetition_penalty",
    "return_dict",
    "return_dict_in_generate",
    "sep_token_id",
    "suppress_tokens",
    "task_specific_params",
    "temperature",
    "tf_legacy_loss",
    "tie_encoder_decoder",
    "tie_last_hidden_states",
    "tie_word_embeddings",
    "tokenizer_class",
    "top_k",
    "top_p",
    "torch_dtype",
    "torchscript",
    "transformers_version",
    "typical_p",
    "use_bfloat16",
    "use_cache",
];

/// Options of every configuration of `transformers`, apart from the sizes: rejected if they change
/// the network, taken if they do not.
pub(crate) fn common(options: &Options<'_>) -> Result<(), ConfigError> {
    options.of_no_effect(OF_NO_EFFECT);
    options.fixed("pruned_heads", &["null", "{}"], "all heads are read")?;
    options.fixed("per_layer_config", &["null", "{}"], "all layers are alike here")?;
    options.fixed("quantization_config", &["null"], "quantised weights are not read")
}

/// The sizes in the text section, or in the `config.json` of a `CLIPTextModel`; unchecked.
pub(crate) fn text(options: &Options<'_>) -> Result<TextConfig, ConfigError> {
    common(options)?;
    Ok(TextConfig {
        context_length: options.integer("max_position_embeddings", 77)?,
        vocabulary_size: options.integer("vocab_size", 49408)?,
        width: options.integer("hidden_size", 512)?,
        layers: options.integer("num_hidden_layers", 12)?,
        heads: options.integer("num_attention_heads", 8)?,
        mlp_width: options.integer("intermediate_size", 2048)?,
        activation: activation(options)?,
        layer_norm_epsilon: options.number("layer_norm_eps", 1e-5)?,
    })
}

fn vision(options: &Options<'_>, section: &str) -> Result<VisionConfig, ConfigError> {
    common(options)?;
    options.fixed("num_channels", &["3"], "")?;
    let side = |name: &str, default: i64| match options.value(name) {
        None => Ok(default),
        Some(value) => square(&format!("{section}{name}"), value),
    };
    Ok(VisionConfig {
        image_size: side("image_size", 224)?,
        patch_size: side("patch_size", 32)?,
        width: options.integer("hidden_size", 768)?,
        layers: options.integer("num_hidden_layers", 12)?,
        heads: options.integer("num_attention_heads", 12)?,
        mlp_width: options.integer("intermediate_size", 3072)?,
        activation: activation(options)?,
        layer_norm_epsilon: options.number("layer_norm_eps", 1e-5)?,
    })
}

pub(super) fn read(json: &Value, file: &Path) -> Result<ClipConfig, Problem> {
    let top = Options::new(json, "");
    top.fixed("model_type", &["\"clip\"", "null"], "the config.json of a CLIPModel")?;
    common(&top)?;
    // Files from before 2023 repeat the section in `_dict`, which wins if it exists, defaults
    // included.
    let section = |name: &str, former: &str| {
        let found = [former, name].into_iter().filter_map(|name| top.value(name));
        let found: Vec<&Value> = found.filter(|value| !value.is_null()).collect();
        match found.first() {
            Some(section) if !section.is_object() => {
                Err(top.refuse(name, "expected a section with options of its own"))
            }
            section => Ok(section.copied()),
        }
    };
    let text_section = section("text_config", "text_config_dict")?;
    let vision_section = section("vision_config", "vision_config_dict")?;
    let text_options = Options::new(text_section.unwrap_or(&Value::Null), "text_config.");
    let vision_options = Options::new(vision_section.unwrap_or(&Value::Null), "vision_config.");
    // `CLIPTextModel.forward`: files from before transformers 4.31 have 2 here, which means the
    // largest token.
    let pooling = match text_options.value("eos_token_id").map(Value::as_i64) {
        None => Pooling::FirstOf(49407),
        Some(Some(2)) => Pooling::Argmax,
        Some(Some(token)) => Pooling::FirstOf(token),
        Some(None) => return Err(text_options.refuse("eos_token_id", "expected one token").into()),
    };
    vision_options.of_no_effect(&["eos_token_id"]);
    top.of_no_effect(&["eos_token_id"]);
    let config = ClipConfig {
        embed_dim: top.integer("projection_dim", 512)?,
        vision: vision(&vision_options, "vision_config.")?,
        text: text(&text_options)?,
        pooling,
    };
    for options in [&top, &text_options, &vision_options] {
        options.warn_of_unknown(file, "transformers");
    }
    config.validate()?;
    Ok(config)
}

fn activation(options: &Options<'_>) -> Result<Activation, ConfigError> {
    match options.get("hidden_act", "a name", "quick_gelu".to_owned())?.as_str() {
        "gelu" => Ok(Activation::Gelu),
        "quick_gelu" => Ok(Activation::QuickGelu),
        _ => Err(options.refuse("hidden_act", "expected gelu or quick_gelu")),
    }
}
