//! Tokens beside the vocabulary of a CLIP tokenizer, against transformers 5.23.0
//! (scripts/goldens/added_tokens.py), and keys that are refused.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use media::text::{HuggingFaceTokenizer, Tokenizer, TokenizerKind, load};
use serde::Deserialize;
use serde_json::{Map, Value, json};

#[derive(Deserialize)]
struct Goldens {
    texts: Vec<String>,
    folders: BTreeMap<String, Folder>,
}

#[derive(Deserialize)]
struct Folder {
    vocabulary: Vec<String>,
    files: BTreeMap<String, Value>,
    patches: BTreeMap<String, Map<String, Value>>,
    ids: Vec<Vec<i64>>,
    size: usize,
}

fn below(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn put(folder: &Path, name: &str, content: &Value) {
    let mut file = tempfile::NamedTempFile::new_in(folder).unwrap();
    serde_json::to_writer(&mut file, content).unwrap();
    file.persist(folder.join(name)).unwrap();
}

/// A folder with files of `data/mini/clip`, patched, and other files.
fn folder(
    vocabulary: &[String],
    patches: &BTreeMap<String, Map<String, Value>>,
    files: &BTreeMap<String, Value>,
) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for name in vocabulary {
        let file = below("../../data/mini/clip").join(name);
        match patches.get(name) {
            Some(patch) => {
                let mut content: Map<String, Value> =
                    serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
                content.extend(patch.clone());
                put(folder.path(), name, &content.into());
            }
            None => drop(std::fs::copy(file, folder.path().join(name)).unwrap()),
        }
    }
    for (name, content) in files {
        put(folder.path(), name, content);
    }
    folder
}

#[test]
fn added_tokens_have_the_ids_of_transformers() {
    let text = std::fs::read_to_string(below("tests/fixtures/added_tokens.json")).unwrap();
    let goldens: Goldens = serde_json::from_str(&text).unwrap();
    assert_eq!(goldens.folders.len(), 17);
    let mut wrong = Vec::new();
    for (name, golden) in &goldens.folders {
        let folder = folder(&golden.vocabulary, &golden.patches, &golden.files);
        let tokenizer = HuggingFaceTokenizer::open(folder.path()).unwrap();
        assert_eq!(tokenizer.vocabulary_size(), golden.size, "{name}");
        // The same loader makes the tokenizers of reward models.
        let length = golden.ids[0].len();
        let scorers = load(TokenizerKind::HuggingFace, Some(folder.path()), length).unwrap();
        for (text, ids) in goldens.texts.iter().zip(&golden.ids) {
            let found = tokenizer.encode(text).ids;
            if found != *ids || scorers.encode(text).ids != *ids {
                wrong.push(format!("{name}: {text:?}\n  expected {ids:?}\n  found    {found:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
}

fn parts() -> Vec<String> {
    ["vocab.json", "merges.txt"].map(str::to_owned).to_vec()
}

#[test]
fn keys_that_would_give_other_tokens_are_refused_by_name() {
    for (file, content, expected) in [
        ("tokenizer_config.json", json!({"padding_side": "left"}), "`padding_side`"),
        ("tokenizer_config.json", json!({"truncation_side": "left"}), "`truncation_side`"),
        ("tokenizer_config.json", json!({"split_special_tokens": true}), "`split_special_tokens`"),
        ("tokenizer_config.json", json!({"tokenizer_class": "T5Tokenizer"}), "`tokenizer_class`"),
        (
            "tokenizer_config.json",
            json!({"tokenizer_class": "PreTrainedTokenizerFast"}),
            "without a tokenizer.json",
        ),
        ("tokenizer_config.json", json!({"auto_map": {"AutoTokenizer": ["a", "b"]}}), "`auto_map`"),
        ("tokenizer_config.json", json!({"pad_token": null}), "`pad_token`"),
        ("tokenizer_config.json", json!({"bos_token": 3}), "`bos_token`"),
        (
            "tokenizer_config.json",
            json!({"added_tokens_decoder": {"x": {}}}),
            "added_tokens_decoder",
        ),
        ("tokenizer_config.json", json!({"fast_tokenizer_files": ["a.json"]}), "fast_tokenizer"),
        ("special_tokens_map.json", json!({"eos_token": null}), "`eos_token`"),
        ("special_tokens_map.json", json!({"extra_special_tokens": 3}), "`extra_special_tokens`"),
        ("added_tokens.json", json!({"<a>": "b"}), "`<a>`"),
        ("added_tokens.json", json!([1]), "an object of tokens and ids"),
    ] {
        let files = BTreeMap::from([(file.to_owned(), content.clone())]);
        let folder = folder(&parts(), &BTreeMap::new(), &files);
        let error = load(TokenizerKind::HuggingFace, Some(folder.path()), 77).err();
        let error = error.map_or_else(String::new, |error| error.to_string());
        assert!(error.contains(file) && error.contains(expected), "{content}: {error}");
    }
}

/// A file that transformers takes as it is has to be CLIP's pipeline.
#[test]
fn a_tokenizer_file_that_is_taken_as_it_is_is_clips_or_refused() {
    let class = json!({"tokenizer_class": "PreTrainedTokenizerFast"});
    let files = BTreeMap::from([("tokenizer_config.json".to_owned(), class)]);
    let open = |patch: Value| {
        let patch = patch.as_object().unwrap().clone();
        let patches = BTreeMap::from([("tokenizer.json".to_owned(), patch)]);
        let folder = folder(&["tokenizer.json".to_owned()], &patches, &files);
        load(TokenizerKind::HuggingFace, Some(folder.path()), 77)
            .map(|tokenizer| tokenizer.encode("A Fox").ids[..4].to_vec())
            .map_err(|error| error.to_string())
    };
    assert_eq!(open(json!({})).unwrap(), [2512, 320, 898, 343]);
    for patch in [json!({"normalizer": null}), json!({"post_processor": null})] {
        let error = open(patch).unwrap_err();
        assert!(error.contains("tokenizer_config.json") && error.contains("not CLIP's"), "{error}");
    }
    let left = json!({"padding": {"strategy": "BatchLongest", "direction": "Left",
        "pad_to_multiple_of": null, "pad_id": 0, "pad_type_id": 0, "pad_token": "!"}});
    let error = open(left).unwrap_err();
    assert!(error.contains("tokenizer.json") && error.contains("padding.direction"), "{error}");
}

/// Tokenizers of one vocabulary that give other ids have other fingerprints, and those that give
/// the same ids have one.
#[test]
fn the_fingerprint_tells_all_that_decides_the_ids() {
    let print = |files: Value| {
        let files = serde_json::from_value(files).unwrap();
        let folder = folder(&parts(), &BTreeMap::new(), &files);
        load(TokenizerKind::HuggingFace, Some(folder.path()), 77).unwrap().fingerprint()
    };
    let plain = print(json!({}));
    assert_eq!(plain, print(json!({"tokenizer_config.json": {"pad_token": "<|endoftext|>"}})));
    let others = [
        print(json!({"tokenizer_config.json": {"pad_token": "!"}})),
        print(json!({"tokenizer_config.json": {"bos_token": "!"}})),
        print(json!({"tokenizer_config.json": {"unk_token": "!"}})),
        print(json!({"added_tokens.json": {"<a>": 2514}})),
        print(json!({"added_tokens.json": {"<b>": 2514}})),
        print(json!({"tokenizer_config.json": {"extra_special_tokens": ["fox"]}})),
    ];
    for (index, other) in others.iter().enumerate() {
        assert_ne!(*other, plain);
        assert!(!others[..index].contains(other), "{other}");
    }
}
