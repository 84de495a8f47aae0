//! Text encoders of diffusion pipelines, compared with transformers, and what they reject.
//! `scripts/goldens/diffusion_networks.py` makes the fixtures.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::path::{Path, PathBuf};

use nn::device::Precision;
use nn::text::{TextEncoder, TextEncoderConfig, WEIGHT_FILES};
use nn::weights::Weights;
use tch::{Device, Kind, Tensor};

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/diffusion").join(name)
}

fn load(folder: &Path, precision: Precision) -> Result<TextEncoder, nn::ModelError> {
    let config = TextEncoderConfig::read(&folder.join("config.json"))?;
    let weights = Weights::open_folder(folder, WEIGHT_FILES)?;
    TextEncoder::load(&config, &weights, Device::Cpu, precision)
}

/// The largest difference, relative to the largest number expected.
#[track_caller]
fn assert_close(found: &Tensor, expected: &Tensor, bound: f64, what: &str) {
    assert_eq!(found.size(), expected.size(), "{what}");
    assert_eq!(found.kind(), Kind::Float, "{what}");
    let largest = |tensor: &Tensor| tensor.abs().max().double_value(&[]);
    let error = largest(&(found - expected)) / largest(expected);
    assert!(error <= bound, "{what}: {error}");
}

#[test]
fn encoders_equal_transformers() {
    for (name, pooled) in [("text", false), ("text_projection", true)] {
        let folder = folder(name);
        let expected = Weights::open(folder.join("expected.safetensors")).unwrap();
        let expected = |name: &str| expected.tensor(name).unwrap();
        for (precision, bound) in [(Precision::F32, 1e-5), (Precision::Bf16, 3e-2)] {
            let encoder = load(&folder, precision).unwrap();
            let encoding = encoder.encode(&expected("tokens")).unwrap();
            assert_close(&encoding.hidden_states, &expected("last"), bound, name);
            assert_eq!(encoding.pooled.is_some(), pooled);
            for skip in 0..2 {
                let encoding = encoder.encode_skipping(&expected("tokens"), skip).unwrap();
                let what = |part: &str| format!("{name} {precision} {part} {skip}");
                let (normed, bare) = (format!("normed_{skip}"), format!("bare_{skip}"));
                assert_close(&encoding.hidden_states, &expected(&normed), bound, &what("normed"));
                assert_close(&encoding.penultimate, &expected(&bare), bound, &what("bare"));
                if let Some(pooled) = encoding.pooled {
                    assert_close(&pooled, &expected("pooled"), bound, &what("pooled"));
                }
            }
        }
    }
}

#[test]
fn encodings_may_be_trained_on() {
    let encoder = load(&folder("text"), Precision::F32).unwrap();
    let encoding = encoder.encode(&Tensor::zeros([1, 5], (Kind::Int64, Device::Cpu))).unwrap();
    let weight = Tensor::ones([8, 8], (Kind::Float, Device::Cpu)).set_requires_grad(true);
    for hidden in [encoding.hidden_states, encoding.penultimate] {
        hidden.matmul(&weight).sum(Kind::Float).backward();
    }
    assert!(weight.grad().isfinite().all().int64_value(&[]) == 1);
}

#[test]
fn variants_and_shards_are_found() {
    let source = folder("text_projection");
    let tokens = Tensor::zeros([1, 3], (Kind::Int64, Device::Cpu));
    let expected = load(&source, Precision::F32).unwrap().encode(&tokens).unwrap();
    let all = Weights::open(source.join("model.safetensors")).unwrap();
    let map: std::collections::BTreeMap<&str, &str> =
        all.names().map(|name| (name, "model.fp16-00001-of-00001.safetensors")).collect();
    let index = serde_json::json!({"metadata": {}, "weight_map": map}).to_string();
    for (file, index_file) in [
        ("model.fp16.safetensors", None),
        ("model.fp16-00001-of-00001.safetensors", Some("model.safetensors.index.fp16.json")),
    ] {
        let folder = tempfile::tempdir().unwrap();
        fs_err::copy(source.join("config.json"), folder.path().join("config.json")).unwrap();
        fs_err::copy(source.join("model.safetensors"), folder.path().join(file)).unwrap();
        if let Some(index_file) = index_file {
            fs_err::write(folder.path().join(index_file), &index).unwrap();
        }
        let found = load(folder.path(), Precision::F32).unwrap().encode(&tokens).unwrap();
        assert_eq!(found.hidden_states, expected.hidden_states);
    }
}

#[test]
fn published_configurations_are_read() {
    // openai/clip-vit-large-patch14 as the text encoder of Stable Diffusion 1.5.
    let config = read(
        r#"{"architectures": ["CLIPTextModel"], "model_type": "clip_text_model", "bos_token_id": 0,
            "eos_token_id": 2, "hidden_act": "quick_gelu", "hidden_size": 768,
            "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 12,
            "projection_dim": 768, "vocab_size": 49408}"#,
    )
    .unwrap();
    assert_eq!((config.sizes.width, config.projection, config.end_token), (768, None, 2));
    let config = read(
        r#"{"architectures": ["CLIPTextModelWithProjection"], "hidden_act": "gelu",
            "hidden_size": 1280, "intermediate_size": 5120, "num_attention_heads": 20,
            "num_hidden_layers": 32, "projection_dim": 1280}"#,
    )
    .unwrap();
    assert_eq!((config.sizes.layers, config.projection, config.end_token), (32, Some(1280), 49407));
    for (json, word) in [
        (r#"{"model_type": "t5"}"#, "model_type"),
        (r#"{"hidden_act": "relu"}"#, "hidden_act"),
        (r#"{"hidden_size": 10, "num_attention_heads": 3}"#, "multiple of the 3 heads"),
        (r#"{"num_hidden_layers": 0}"#, "layers"),
        (r#"{"eos_token_id": [1, 2]}"#, "eos_token_id"),
        (r#"{"use_attention_mask": true}"#, "use_attention_mask"),
        (r#"{"layer_norm_eps": 2}"#, "layer_norm_eps"),
        (r#"{"eos_token_id": null}"#, "eos_token_id to null"),
        (r#"{"vocab_size": "many"}"#, "config.json"),
        (r#"{"vocab_size": "many"}"#, "vocab_size to"),
        (r#"{"hidden_act": null}"#, "hidden_act to null"),
        (r#"{"pruned_heads": {"0": [1]}}"#, "pruned_heads"),
        (
            r#"{"architectures": ["CLIPTextModelWithProjection"], "projection_dim": null}"#,
            "projection_dim to null",
        ),
        ("[]", "config.json"),
    ] {
        let error = read(json).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
}

fn read(json: &str) -> Result<TextEncoderConfig, nn::config::ConfigError> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.json");
    fs_err::write(&file, json).unwrap();
    TextEncoderConfig::read(&file)
}

#[test]
fn impossible_tokens_are_refused() {
    let encoder = load(&folder("text"), Precision::F32).unwrap();
    let int = |values: &[i64]| Tensor::from_slice(values).view([1, -1]);
    for (tokens, word) in [
        (int(&[60]), "found 60 to 60"),
        (int(&[-1, 3]), "found -1 to 3"),
        (int(&[0; 25]), "L at most 24"),
        (int(&[]), "L at most 24"),
        (Tensor::from_slice(&[1_i64]), "found Int64 [1]"),
        (int(&[1]).to_kind(Kind::Float), "found Float"),
    ] {
        let error = encoder.encode(&tokens).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
    assert!(encoder.encode_skipping(&int(&[1]), 3).unwrap_err().to_string().contains("skip"));
    assert!(load(&folder("text"), Precision::F16).is_err());
}

#[test]
fn another_checkpoint_is_refused() {
    let weights = Weights::open(folder("text").join("model.safetensors")).unwrap();
    let config = TextEncoderConfig::read(&folder("text_projection").join("config.json")).unwrap();
    let error = TextEncoder::load(&config, &weights, Device::Cpu, Precision::F32).unwrap_err();
    let error = error.to_string();
    assert!(error.contains("missing: text_projection.weight"), "{error}");
}
