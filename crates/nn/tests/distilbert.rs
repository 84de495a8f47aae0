//! DistilBERT classifiers, compared with transformers, and what they reject.
//! `scripts/goldens/distilbert.py` makes the fixtures.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::path::{Path, PathBuf};

use nn::device::Precision;
use nn::distilbert::{DistilBert, DistilBertConfig};
use serde::Deserialize;
use tch::{Device, Kind, Tensor};

#[derive(Deserialize)]
struct Expected {
    ids: Vec<Vec<i64>>,
    logits: Vec<Vec<f64>>,
}

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn expected(name: &str) -> (Vec<Vec<i64>>, Tensor) {
    let text = fs_err::read_to_string(folder(name).join("expected.json")).unwrap();
    let expected: Expected = serde_json::from_str(&text).unwrap();
    let rows = expected.logits.len() as i64;
    let logits = Tensor::from_slice(&expected.logits.concat()).view([rows, -1]);
    (expected.ids, logits.to_kind(Kind::Float))
}

fn open(folder: &Path, precision: Precision) -> Result<DistilBert, nn::ModelError> {
    DistilBert::open(folder, Device::Cpu, precision)
}

/// The largest difference, relative to the largest number expected.
#[track_caller]
fn assert_close(found: &Tensor, expected: &Tensor, bound: f64) {
    assert_eq!((found.size(), found.kind()), (expected.size(), Kind::Float));
    let largest = |tensor: &Tensor| tensor.abs().max().double_value(&[]);
    let error = largest(&(found - expected)) / largest(expected);
    assert!(error <= bound, "{error}");
}

#[test]
fn logits_equal_transformers() {
    for name in ["distilbert", "distilbert_bin"] {
        let (ids, logits) = expected(name);
        for (precision, bound) in [(Precision::F32, 1e-5), (Precision::Bf16, 1e-1)] {
            let network = open(&folder(name), precision).unwrap();
            let mut done = 0;
            let found = network.logits(&ids, |texts| done += texts).unwrap();
            assert_close(&found, &logits, bound);
            assert_eq!(done, ids.len());
        }
    }
}

#[test]
fn padding_changes_nothing() {
    let network = open(&folder("distilbert"), Precision::F32).unwrap();
    let (ids, together) = expected("distilbert");
    for (row, text) in (0..).zip(ids) {
        let alone = network.logits(&[text], |_| ()).unwrap();
        assert_close(&alone, &together.narrow(0, row, 1), 1e-5);
    }
}

#[test]
fn probabilities_are_the_softmax_in_the_order_of_the_texts() {
    let network = open(&folder("distilbert"), Precision::F32).unwrap();
    assert_eq!(network.config().labels, ["SFW", "NSFW"]);
    let (ids, logits) = expected("distilbert");
    let found = network.probabilities(&ids, |_| ()).unwrap();
    for (row, found) in (0..).zip(&found) {
        let [sfw, nsfw] = [0, 1].map(|class| logits.double_value(&[row, class]));
        assert!((f64::from(found[1]) - 1.0 / (1.0 + (sfw - nsfw).exp())).abs() < 1e-5);
        assert!((found[0] + found[1] - 1.0).abs() < 1e-6);
    }
    assert!(network.probabilities(&[], |_| ()).unwrap().is_empty());
    assert_eq!(open(&folder("distilbert_bin"), Precision::F32).unwrap().config().labels.len(), 3);
}

#[test]
fn published_configurations_are_read() {
    // michellejieli/inappropriate_text_classifier.
    let config = read(
        r#"{"_name_or_path": "distilbert-base-uncased", "activation": "gelu", "architectures":
            ["DistilBertForSequenceClassification"], "attention_dropout": 0.1, "dim": 768,
            "dropout": 0.1, "hidden_dim": 3072, "id2label": {"0": "SFW", "1": "NSFW"},
            "initializer_range": 0.02, "label2id": {"NSFW": 1, "SFW": 0},
            "max_position_embeddings": 512, "model_type": "distilbert", "n_heads": 12,
            "n_layers": 6, "pad_token_id": 0, "problem_type": "single_label_classification",
            "qa_dropout": 0.1, "seq_classif_dropout": 0.2, "sinusoidal_pos_embds": false,
            "tie_weights_": true, "torch_dtype": "float32", "vocab_size": 30522}"#,
    )
    .unwrap();
    assert_eq!((config.layers, config.width, config.vocabulary_size), (6, 768, 30522));
    assert_eq!(config.labels, ["SFW", "NSFW"]);
    assert_eq!(read("{}").unwrap().labels, ["LABEL_0", "LABEL_1"]);
    let eleven: Vec<String> = (0..11).map(|id| format!("\"{id}\": \"class {id}\"")).collect();
    let config = read(&format!("{{\"id2label\": {{{}}}}}", eleven.join(", "))).unwrap();
    assert_eq!((&*config.labels[2], &*config.labels[10]), ("class 2", "class 10"));
    for (json, word) in [
        (r#"{"model_type": "roberta"}"#, "model_type"),
        (r#"{"architectures": ["DistilBertForMaskedLM"]}"#, "architectures"),
        (r#"{"activation": "relu"}"#, "activation"),
        (r#"{"problem_type": "multi_label_classification"}"#, "problem_type"),
        (r#"{"dim": 10, "n_heads": 3}"#, "multiple of the 3 heads"),
        (r#"{"n_layers": 0}"#, "n_layers"),
        (r#"{"num_labels": 1}"#, "the number of labels"),
        (r#"{"pad_token_id": 30522}"#, "pad_token_id"),
        (r#"{"id2label": {"0": "a", "2": "b"}}"#, "id2label"),
        (r#"{"vocab_size": "many"}"#, "vocab_size to"),
        (r#"{"n_heads": null}"#, "n_heads to null"),
        (r#"{"num_labels": 3, "id2label": {"0": "a", "1": "b"}}"#, "num_labels"),
        (r#"{"hidden_size": 770}"#, "multiple of the 12 heads"),
        ("[]", "config.json"),
    ] {
        let error = read(json).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
}

fn read(json: &str) -> Result<DistilBertConfig, nn::config::ConfigError> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.json");
    fs_err::write(&file, json).unwrap();
    DistilBertConfig::read(&file)
}

#[test]
fn impossible_texts_are_refused() {
    let network = open(&folder("distilbert"), Precision::F32).unwrap();
    let vocabulary = network.config().vocabulary_size;
    for (text, word) in [
        (vec![2, vocabulary, 3], "found "),
        (vec![-1], "found -1"),
        (vec![], "expected 1 to 64 tokens, found 0"),
        (vec![4; 65], "expected 1 to 64 tokens, found 65"),
    ] {
        let error = network.logits(&[vec![2, 3], text], |_| ()).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
    assert!(open(&folder("distilbert"), Precision::F16).is_err());
}

#[test]
fn other_checkpoints_are_refused() {
    let source = folder("distilbert");
    let changed = |from: &str, to: &str, weights: &[u8]| {
        let folder = tempfile::tempdir().unwrap();
        let config = fs_err::read_to_string(source.join("config.json")).unwrap();
        assert!(config.contains(from), "{config}");
        fs_err::write(folder.path().join("config.json"), config.replace(from, to)).unwrap();
        fs_err::write(folder.path().join("model.safetensors"), weights).unwrap();
        open(folder.path(), Precision::F32).map(|_| ()).unwrap_err().to_string()
    };
    let weights = fs_err::read(source.join("model.safetensors")).unwrap();
    let error = changed("\"n_layers\": 2", "\"n_layers\": 3", &weights);
    assert!(
        error.contains("missing: distilbert.transformer.layer.2.attention.k_lin.bias"),
        "{error}"
    );
    let error = changed("\"n_layers\": 2", "\"n_layers\": 1", &weights);
    assert!(error.contains("unexpected: distilbert.transformer.layer.1"), "{error}");
    let error = changed("\"dim\": 24", "\"dim\": 28", &weights);
    assert!(error.contains("misshapen"), "{error}");
    let error = changed("\"dim\": 24", "\"dim\": 24", &weights[..weights.len() / 2]);
    assert!(error.contains("model.safetensors"), "{error}");
    let mut spoilt = weights.clone();
    let end = spoilt.len();
    spoilt[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    let error = changed("\"dim\": 24", "\"dim\": 24", &spoilt);
    assert!(error.contains("holds NaN"), "{error}");
}
