//! Published configurations, and configurations of other kinds of networks.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::path::Path;

use nn::clip::{Activation, ClipConfig, ClipLayout, PUBLISHED_NAMES, Pooling};
use nn::config::ConfigError;

fn read(json: &str, layout: ClipLayout) -> Result<ClipConfig, ConfigError> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.json");
    fs_err::write(&file, json).unwrap();
    ClipConfig::read(&file, layout)
}

#[test]
fn published_names_are_complete() {
    for name in PUBLISHED_NAMES {
        let config = ClipConfig::published(name).unwrap();
        config.validate().unwrap();
        let activation =
            if name.ends_with("quickgelu") { Activation::QuickGelu } else { Activation::Gelu };
        assert_eq!((config.vision.activation, config.text.activation), (activation, activation));
    }
    let huge = ClipConfig::published("ViT-H-14").unwrap();
    assert_eq!(huge.vision.tokens(), 257);
    assert_eq!(huge.vision.width / huge.vision.heads, 80);
    let error = ClipConfig::published("ViT-H/14").unwrap_err().to_string();
    assert!(error.contains("ViT-H-14"), "{error}");
}

#[test]
fn open_clip_files_equal_the_published_data() {
    let huge = r#"{"embed_dim": 1024,
        "vision_cfg": {"image_size": 224, "layers": 32, "width": 1280, "head_width": 80, "patch_size": 14},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 1024, "heads": 16, "layers": 24}}"#;
    let published = ClipConfig::published("ViT-H-14").unwrap();
    assert_eq!(read(huge, ClipLayout::OpenClip).unwrap(), published);
    let wrapped = format!(r#"{{"model_cfg": {huge}, "preprocess_cfg": {{"mean": [0.5]}}}}"#);
    assert_eq!(read(&wrapped, ClipLayout::OpenClip).unwrap(), published);
    let giant = r#"{"embed_dim": 1280,
        "vision_cfg": {"layers": 48, "width": 1664, "head_width": 104, "mlp_ratio": 4.9231, "patch_size": 14},
        "text_cfg": {"width": 1280, "heads": 20, "layers": 32}}"#;
    let published = ClipConfig::published("ViT-bigG-14").unwrap();
    assert_eq!(read(giant, ClipLayout::OpenClip).unwrap(), published);
}

#[test]
fn what_open_clip_builds_otherwise_is_refused_by_name() {
    let config = |top: &str, vision: &str, text: &str| {
        let json = format!(
            r#"{{"embed_dim": 8{top}, "vision_cfg": {{"width": 64{vision}}}, "text_cfg": {{"width": 64{text}}}}}"#
        );
        read(&json, ClipLayout::OpenClip)
    };
    config("", "", "").unwrap();
    config(r#", "init_logit_bias": -10"#, r#", "pool_type": "tok", "attentional_pool": false"#, "")
        .unwrap();
    let eos = config("", "", r#", "pool_type": "eos", "eos_id": 7, "norm_kwargs": {}"#).unwrap();
    assert_eq!(eos.pooling, Pooling::FirstOf(7));
    let eos =
        config("", "", r#", "pool_type": "eos", "hf_tokenizer_name": "", "pad_id": 3"#).unwrap();
    assert_eq!(eos.pooling, Pooling::FirstOf(2));
    config("", "", r#", "tokenizer_kwargs": {"clean": "lower"}, "tokenizer_mode": "clips""#)
        .unwrap();
    for (top, vision, text, name) in [
        ("", "", r#", "hf_model_name": "xlm-roberta""#, "text_cfg.hf_model_name"),
        ("", r#", "timm_model_name": "vit""#, "", "vision_cfg.timm_model_name"),
        ("", r#", "layers": [3, 4, 6, 3]"#, "", "vision_cfg.layers"),
        ("", r#", "norm_kwargs": {"eps": 1e-6}"#, "", "vision_cfg.norm_kwargs"),
        ("", r#", "no_ln_pre": true"#, "", "vision_cfg.no_ln_pre"),
        ("", r#", "pool_type": "avg""#, "", "vision_cfg.pool_type"),
        ("", "", r#", "no_causal_mask": true"#, "text_cfg.no_causal_mask"),
        ("", "", r#", "pool_type": "last""#, "text_cfg.pool_type"),
        ("", "", r#", "hf_tokenizer_name": "bert-base-uncased""#, "text_cfg.hf_tokenizer_name"),
        ("", "", r#", "tokenizer_kwargs": {"clean": "canonicalize"}"#, "text_cfg.tokenizer_kwargs"),
        ("", "", r#", "embed_cls": true"#, "text_cfg.embed_cls"),
        ("", "", r#", "proj_type": "none""#, "text_cfg.proj_type"),
        ("", "", r#", "ls_init_value": 0.1"#, "text_cfg.ls_init_value"),
        (r#", "multimodal_cfg": {"width": 3}"#, "", "", "multimodal_cfg"),
        ("", r#", "head_width": 7"#, "", "vision_cfg.head_width"),
        ("", r#", "head_width": 0"#, "", "vision_cfg.head_width"),
        ("", r#", "mlp_ratio": -1"#, "", "vision_cfg.mlp_ratio"),
        ("", r#", "image_size": [224, 112]"#, "", "vision_cfg.image_size"),
    ] {
        let error = config(top, vision, text).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("config.json: ") && text.contains("not supported"), "{error}");
        assert!(text.contains(name), "{error}");
    }
}

#[test]
fn what_transformers_leaves_out_has_its_default() {
    let config = read(r#"{"model_type": "clip"}"#, ClipLayout::Transformers).unwrap();
    let published = |name: &str| ClipConfig {
        pooling: Pooling::FirstOf(49407),
        ..ClipConfig::published(name).unwrap()
    };
    assert_eq!(config, published("ViT-B-32-quickgelu"));
    // The older key wins, with its defaults.
    let old = r#"{"projection_dim": 768,
        "text_config": {"hidden_size": 99, "hidden_act": "gelu"},
        "text_config_dict": {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12},
        "vision_config_dict": {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16,
            "num_hidden_layers": 24, "patch_size": [14, 14]}}"#;
    let config = read(old, ClipLayout::Transformers).unwrap();
    assert_eq!(config, published("ViT-L-14-quickgelu"));
}

#[test]
fn the_text_is_read_where_the_library_reads_it() {
    let pooling = |text: &str| {
        let json = format!(r#"{{"text_config": {{{text}}}}}"#);
        read(&json, ClipLayout::Transformers).map(|config| config.pooling)
    };
    assert_eq!(pooling(r#""eos_token_id": 2"#).unwrap(), Pooling::Argmax);
    assert_eq!(pooling(r#""eos_token_id": 9"#).unwrap(), Pooling::FirstOf(9));
    assert_eq!(pooling("").unwrap(), Pooling::FirstOf(49407));
    let error = pooling(r#""eos_token_id": [2, 3]"#).unwrap_err().to_string();
    assert!(error.contains("text_config.eos_token_id"), "{error}");
    let tokens = [5, 9, 7, 9, 2, 7];
    assert_eq!(Pooling::Argmax.place(&tokens), 1);
    assert_eq!(Pooling::FirstOf(7).place(&tokens), 2);
    // as torch's argmax of nothing but zeros
    assert_eq!(Pooling::FirstOf(1).place(&tokens), 0);
}

#[test]
fn impossible_sizes_are_refused() {
    for (json, reason) in [
        (r#"{"model_type": "siglip"}"#, "model_type"),
        (r#"{"quantization_config": {"bits": 4}}"#, "quantization_config"),
        (r#"{"text_config": {"hidden_act": "gelu_new"}}"#, "gelu or quick_gelu"),
        (r#"{"vision_config": {"num_channels": 4}}"#, "num_channels"),
        (r#"{"vision_config": {"hidden_size": 0}}"#, "vision width as 0"),
        (r#"{"vision_config": {"hidden_size": 9999999999}}"#, "vision width"),
        (r#"{"vision_config": {"hidden_size": 770}}"#, "multiple of the 12 heads"),
        (r#"{"vision_config": {"patch_size": 225}}"#, "patch size"),
        (r#"{"vision_config": {"image_size": -1}}"#, "image size"),
        (r#"{"vision_config": {"layer_norm_eps": 0.0}}"#, "layer_norm_eps"),
        (r#"{"text_config": {"num_hidden_layers": 100000}}"#, "text layers"),
        (r#"{"text_config": {"num_hidden_layers": "12"}}"#, "text_config.num_hidden_layers to"),
        (r#"{"text_config": {"layer_norm_eps": null}}"#, "text_config.layer_norm_eps to null"),
        (r#"{"text_config": [1]}"#, "text_config"),
        (r#"{"projection_dim": null}"#, "projection_dim to null"),
        (r#"{"text_config": {"per_layer_config": {"0": {}}}}"#, "text_config.per_layer_config"),
        (r#"{"quantization_config": {"load_in_8bit": true}}"#, "quantization_config"),
        (r#"{"text_config": {"num_hidden_layers": 1e400}}"#, "config.json: not a valid"),
        ("[]", "config.json: not a valid"),
        ("", "config.json: not a valid"),
        ("nonsense", "config.json: not a valid"),
    ] {
        let error = read(json, ClipLayout::Transformers).unwrap_err().to_string();
        assert!(error.contains(reason), "{json}: {error}");
    }
    let missing = ClipConfig::read(Path::new("/no/such/config.json"), ClipLayout::OpenClip);
    assert!(missing.unwrap_err().to_string().contains("/no/such/config.json"));
}
