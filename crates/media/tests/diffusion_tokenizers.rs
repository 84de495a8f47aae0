//! Token ids for the text encoders of diffusion pipelines, against transformers 5.23.0.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use media::text::{HuggingFaceTokenizer, Tokenizer};
use serde::Deserialize;
use serde_json::{Value, json};

/// Written by `scripts/goldens/diffusion_tokenizers.py`.
#[derive(Deserialize)]
struct Goldens {
    prompts: Vec<String>,
    folders: BTreeMap<String, Folder>,
}

#[derive(Deserialize)]
struct Folder {
    vocabulary: Vec<String>,
    files: BTreeMap<String, Value>,
    ids: Vec<Vec<i64>>,
    removed: Vec<Option<String>>,
}

fn below(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn goldens() -> Goldens {
    let text = std::fs::read_to_string(below("tests/fixtures/diffusion_tokenizers.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// A tokenizer folder with the vocabulary of `data/mini/clip` and these files.
fn folder(vocabulary: &[String], files: &BTreeMap<String, Value>) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for name in vocabulary {
        std::fs::copy(below("../../data/mini/clip").join(name), folder.path().join(name)).unwrap();
    }
    for (name, content) in files {
        let mut file = tempfile::NamedTempFile::new_in(folder.path()).unwrap();
        serde_json::to_writer(&mut file, content).unwrap();
        file.persist(folder.path().join(name)).unwrap();
    }
    folder
}

#[test]
fn ids_and_padding_are_those_of_transformers() {
    let goldens = goldens();
    assert_eq!(goldens.folders.len(), 6);
    for (name, golden) in &goldens.folders {
        let folder = folder(&golden.vocabulary, &golden.files);
        let tokenizer = HuggingFaceTokenizer::open(folder.path()).unwrap();
        assert_eq!(tokenizer.context_length(), golden.ids[0].len(), "{name}");
        assert_eq!(tokenizer.vocabulary_size(), 2514);
        for (prompt, ids) in goldens.prompts.iter().zip(&golden.ids) {
            assert_eq!(tokenizer.encode(prompt).ids, *ids, "{name}: {prompt:?}");
        }
    }
}

#[test]
fn what_is_cut_off_is_what_diffusers_says() {
    // diffusers shows the tokens' text, we the prompt's own
    let letters = |text: &str| {
        text.to_lowercase().chars().filter(|letter| !letter.is_whitespace()).collect::<String>()
    };
    let goldens = goldens();
    for (name, golden) in &goldens.folders {
        let folder = folder(&golden.vocabulary, &golden.files);
        let tokenizer = HuggingFaceTokenizer::open(folder.path()).unwrap();
        for (prompt, removed) in goldens.prompts.iter().zip(&golden.removed) {
            let found = tokenizer.removed(prompt);
            assert_eq!(found.is_some(), removed.is_some(), "{name}: {prompt:?}");
            // if tokens split the bytes of a letter, this crate shows the letter, diffusers �
            if let (Some(found), Some(removed), true) = (found, removed, prompt.is_ascii()) {
                assert!(prompt.ends_with(found));
                assert_eq!(letters(found), letters(removed), "{name}: {prompt:?}");
            }
        }
    }
}

#[test]
fn padding_and_context_are_part_of_the_fingerprint() {
    let fingerprint = |config: Value| {
        let files = BTreeMap::from([("tokenizer_config.json".to_owned(), config)]);
        let folder = folder(&["vocab.json".to_owned(), "merges.txt".to_owned()], &files);
        HuggingFaceTokenizer::open(folder.path()).map(|tokenizer| tokenizer.fingerprint())
    };
    let plain = fingerprint(json!({})).unwrap();
    assert!(plain.starts_with("hf:77:") && plain.ends_with(":pad-2513"), "{plain}");
    // what transformers writes for "no limit"
    assert_eq!(fingerprint(json!({"model_max_length": 1e30})).unwrap(), plain);
    let exclamation = fingerprint(json!({"pad_token": "!"})).unwrap();
    assert!(exclamation.ends_with(":pad-0"), "{exclamation}");
    assert!(fingerprint(json!({"model_max_length": 40})).unwrap().starts_with("hf:40:"));
    for length in [1.0, -3.0, 2.5] {
        let error = fingerprint(json!({"model_max_length": length})).unwrap_err().to_string();
        assert!(error.contains("model_max_length of 2 or more"), "{error}");
    }
    let error = fingerprint(json!({"pad_token": 3})).unwrap_err().to_string();
    assert!(error.contains("tokenizer_config.json: expected a token as `pad_token`"), "{error}");
}

/// Test pipelines have vocabularies of a few letters; the others are the unknown token.
#[test]
fn letters_that_a_vocabulary_lacks_are_unknown_as_in_transformers() {
    let folder = tempfile::tempdir().unwrap();
    let files = [
        ("vocab.json", r#"{"c":0,"a":1,"t</w>":2,"ca":3,"<|startoftext|>":4,"<|endoftext|>":5}"#),
        ("merges.txt", "#version: 0.2\nc a\n"),
    ];
    for (name, content) in files {
        let mut file = tempfile::NamedTempFile::new_in(folder.path()).unwrap();
        std::io::Write::write_all(&mut file, content.as_bytes()).unwrap();
        file.persist(folder.path().join(name)).unwrap();
    }
    let tokens = HuggingFaceTokenizer::open(folder.path()).unwrap().encode("cat dog");
    assert_eq!(tokens.ids[..7], [4, 3, 2, 5, 5, 5, 5]);
    assert_eq!(tokens.end_index, 3);
}
