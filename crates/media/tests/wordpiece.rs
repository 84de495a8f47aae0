//! WordPiece token ids against transformers 5.23.0, and tokenizer files as nobody should write
//! them.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;

use media::text::WordPieceTokenizer;
use serde::Deserialize;

/// Written by `scripts/goldens/distilbert.py`.
#[derive(Deserialize)]
struct Goldens {
    texts: Vec<String>,
    folders: BTreeMap<String, Folder>,
}

#[derive(Deserialize)]
struct Folder {
    files: BTreeMap<String, String>,
    context: usize,
    ids: Vec<Vec<i64>>,
}

fn goldens() -> Goldens {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/wordpiece.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn folder<'a>(files: impl IntoIterator<Item = (&'a str, &'a str)>) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let mut file = tempfile::NamedTempFile::new_in(folder.path()).unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file.persist(folder.path().join(name)).unwrap();
    }
    folder
}

fn open(golden: &Folder) -> WordPieceTokenizer {
    let files = golden.files.iter().map(|(name, text)| (name.as_str(), text.as_str()));
    WordPieceTokenizer::open(folder(files).path(), golden.context).unwrap()
}

#[test]
fn ids_are_those_of_transformers() {
    let goldens = goldens();
    assert_eq!(goldens.folders.len(), 8);
    for (name, golden) in &goldens.folders {
        let tokenizer = open(golden);
        assert_eq!(tokenizer.context_length(), golden.context);
        for (text, ids) in goldens.texts.iter().zip(&golden.ids) {
            assert_eq!(tokenizer.encode(text), *ids, "{name}: {text:?}");
        }
    }
}

#[test]
fn fingerprints_name_what_is_computed() {
    let goldens = goldens();
    let of = |name: &str| open(&goldens.folders[name]).fingerprint().to_owned();
    assert!(of("list").starts_with("wordpiece:64:"), "{}", of("list"));
    assert_eq!(of("list"), of("list"));
    assert_eq!(of("list"), of("windows"), "the same tokens, however the lines end");
    for other in ["short", "cased", "accents", "stripped", "renamed"] {
        assert_ne!(of("list"), of(other));
    }
    assert_ne!(of("cased"), of("accents"));
}

#[test]
fn long_and_odd_texts_are_cut_to_the_context() {
    let tokenizer = open(&goldens().folders["list"]);
    for piece in ["a", "cat ", "\u{732b}", "\u{301}", " ", "[SEP]", "\0", "é.", "##"] {
        let ids = tokenizer.encode(&piece.repeat((1 << 20) / piece.len()));
        assert!((2..=64).contains(&ids.len()), "{piece:?}: {}", ids.len());
        assert_eq!((ids[0], ids[ids.len() - 1]), (2, 3), "{piece:?}");
        assert!(ids.iter().all(|&id| (id as usize) < tokenizer.vocabulary_size()));
    }
}

#[test]
fn files_that_are_no_tokenizer_are_refused() {
    let list = "[PAD]\n[UNK]\n[CLS]\n[SEP]\na\n";
    let bpe = r#"{"version":"1.0","truncation":null,"padding":null,"added_tokens":[],
        "normalizer":null,"pre_tokenizer":null,"post_processor":null,"decoder":null,
        "model":{"type":"BPE","vocab":{"a":0},"merges":[]}}"#;
    let no_frame = bpe.replace(
        r#"{"type":"BPE","vocab":{"a":0},"merges":[]}"#,
        r###"{"type":"WordPiece","unk_token":"[UNK]","continuing_subword_prefix":"##",
            "max_input_chars_per_word":100,"vocab":{"[UNK]":0,"a":1}}"###,
    );
    let no_unknown = no_frame.replace(r#"{"[UNK]":0,"a":1}"#, r#"{"a":1}"#);
    for (files, says) in [
        (vec![], "cannot read"),
        (vec![("vocab.txt", "")], "expected the token [SEP], found none"),
        (vec![("vocab.txt", "[UNK]\n[CL")], "is the file truncated?"),
        (vec![("tokenizer.json", "{\"model\":")], "tokenizer.json: expected a WordPiece tokenizer"),
        (vec![("tokenizer.json", "[]")], "expected a WordPiece tokenizer"),
        (vec![("tokenizer.json", bpe)], "found another kind of tokenizer"),
        (vec![("tokenizer.json", &no_frame)], "found a tokenizer that adds none"),
        (vec![("tokenizer.json", &no_unknown)], "expected the token [UNK]"),
        (
            vec![("vocab.txt", list), ("tokenizer_config.json", "{\"do_lower_case\": 7}")],
            "tokenizer_config.json: expected the options",
        ),
        (
            vec![("vocab.txt", list), ("tokenizer_config.json", "{\"cls_token\": \"<s>\"}")],
            "expected the token <s>",
        ),
    ] {
        let folder = folder(files.iter().copied());
        let error = WordPieceTokenizer::open(folder.path(), 8).map(|_| ()).unwrap_err();
        assert!(error.to_string().contains(says), "{says:?} is not in {error}");
    }
    let folder = folder([("vocab.txt", list)]);
    assert!(WordPieceTokenizer::open(folder.path(), 1).is_err());
    assert_eq!(WordPieceTokenizer::open(folder.path(), 2).unwrap().encode("a"), [2, 3]);
}
