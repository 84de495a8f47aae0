//! Captions and vocabulary files as nobody should write them.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use media::text::{
    HuggingFaceTokenizer, OpenClipTokenizer, Tokenizer, TokenizerError, TokenizerKind, load,
};
use proptest::prelude::*;

const CONTEXT: usize = 77;
const KINDS: [TokenizerKind; 2] = [TokenizerKind::HuggingFace, TokenizerKind::OpenClip];

fn tiny(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tiny").join(name)
}

fn put(folder: &Path, name: &str, bytes: &[u8]) {
    let mut file = tempfile::NamedTempFile::new_in(folder).unwrap();
    file.write_all(bytes).unwrap();
    file.persist(folder.join(name)).unwrap();
}

fn load_error(kind: TokenizerKind, folder: &Path) -> String {
    match load(kind, Some(folder), CONTEXT) {
        Ok(_) => "no error".to_owned(),
        Err(error) => error.to_string(),
    }
}

fn tokenizers() -> [Box<dyn Tokenizer>; 2] {
    KINDS.map(|kind| load(kind, None, CONTEXT).unwrap())
}

/// What holds for every caption.
fn check(tokenizer: &dyn Tokenizer, caption: &str) {
    let tokens = tokenizer.encode(caption);
    let end = tokenizer.vocabulary_size() as i64 - 1;
    assert_eq!(tokens.ids.len(), CONTEXT);
    assert_eq!(tokens.ids[0], end - 1);
    assert_eq!(tokens.ids[tokens.end_index], end);
    assert!(tokens.ids[..tokens.end_index].iter().all(|&id| (0..end).contains(&id)));
    assert!(tokens.ids.iter().all(|&id| (0..=end).contains(&id)));
}

#[test]
fn an_empty_caption_is_start_and_end() {
    for (tokenizer, padding) in tokenizers().iter().zip([49407, 0]) {
        for caption in ["", " ", "\n\t\u{3000}"] {
            let tokens = tokenizer.encode(caption);
            assert_eq!(tokens.ids[..3], [49406, 49407, padding]);
            assert_eq!(tokens.end_index, 1);
        }
    }
}

#[test]
fn megabyte_captions_are_quick() {
    let pieces = [
        "a cat and a dog, ",
        "a",
        "ab",
        "猫",
        "😀",
        "é",
        "Ã©",
        "â€œ",
        "â€\u{fffd} ",
        "&",
        "&amp;",
        "&amp;amp; ",
        "&#x41",
        "\x1b[",
        "\x1b[31m",
        "\n",
        "<",
        " ",
        "\0",
        "\u{200b}",
        "\u{301}",
        "a\u{301}",
        "'s",
        "1",
        "!",
        "\u{202e}שלום ",
        "Ã ",
        "ð",
        "\u{fb01}",
        "\u{85}",
        "Σ",
        "\u{1a}Ã",
        "<|endoftext|>",
    ];
    let tokenizers = tokenizers();
    for piece in pieces {
        let caption = piece.repeat((1 << 20) / piece.len());
        for tokenizer in &tokenizers {
            let start = processor_time();
            check(&**tokenizer, &caption);
            let took = processor_time() - start;
            println!("{piece:?} {} {took:?}", tokenizer.fingerprint());
            // generous, for slow machines; what it catches is quadratic time
            assert!(took < Duration::from_secs(5), "{piece:?} took {took:?}");
        }
    }
    // each round of ftfy undoes one level of this; it may not go through all of them
    check(&*tokenizers[1], &format!("&{}", "amp;".repeat(1 << 18)));
    // one line of more than a million characters is split between characters
    check(&*tokenizers[1], &format!("x{}", "é".repeat(1_000_001)));
}

#[test]
fn the_beginning_of_a_long_caption_decides() {
    for tokenizer in tokenizers() {
        for word in ["lighthouse ", "don't ", "猫 ", "\u{301}x ", "4k\n"] {
            let long = word.repeat(20_000);
            let short = word.repeat(120);
            assert_eq!(tokenizer.encode(&long), tokenizer.encode(&short), "{word:?}");
        }
        let sparse = format!("{}cat{}dog", " ".repeat(100_000), " ".repeat(100_000));
        assert_eq!(tokenizer.encode(&sparse), tokenizer.encode(" cat dog"));
    }
}

#[test]
fn threads_agree() {
    for tokenizer in tokenizers() {
        let captions: Vec<String> =
            (0..200).map(|i| format!("tower {} of {}", i, i * 7919)).collect();
        let alone: Vec<_> = captions.iter().map(|caption| tokenizer.encode(caption)).collect();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for (caption, tokens) in captions.iter().zip(&alone) {
                        assert_eq!(tokenizer.encode(caption), *tokens);
                    }
                });
            }
        });
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]

    #[test]
    fn any_text_is_a_caption(captions in proptest::collection::vec("\\PC{0,40}|[\\x00-\\xff]{0,30}|[&#;xa-f0-9<]{0,20}", 40)) {
        static TOKENIZERS: std::sync::LazyLock<[Box<dyn Tokenizer>; 2]> = std::sync::LazyLock::new(tokenizers);
        for tokenizer in &*TOKENIZERS {
            for caption in &captions {
                // words that spell out the special tokens are the one exception to what `check`
                // holds
                prop_assume!(!caption.contains("text"));
                check(&**tokenizer, caption);
            }
        }
    }
}

/// Each 1/64 of a file, and all of it but the last byte that counts.
fn cuts(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    (0..64).map(move |part| &bytes[..bytes.len() * part / 64])
}

#[test]
fn a_cut_file_is_refused_by_name() {
    let whole = |name: &str| std::fs::read(tiny(name)).unwrap();
    for kind in KINDS {
        for cut in cuts(&whole("tokenizer.json")) {
            let folder = tempfile::tempdir().unwrap();
            put(folder.path(), "tokenizer.json", cut);
            let error = load_error(kind, folder.path());
            assert!(error.contains("tokenizer.json: expected"), "{} bytes: {error}", cut.len());
        }
        for name in ["vocab.json", "merges.txt"] {
            for cut in cuts(&whole(name)) {
                let folder = tempfile::tempdir().unwrap();
                for other in ["vocab.json", "merges.txt"] {
                    put(folder.path(), other, &whole(other));
                }
                put(folder.path(), name, cut);
                let error = load_error(kind, folder.path());
                assert!(
                    error.contains(&format!("{name}: expected")),
                    "{} bytes: {error}",
                    cut.len()
                );
            }
        }
        let packed = include_bytes!("../assets/bpe_simple_vocab_16e6.txt.gz");
        for cut in cuts(packed).step_by(7) {
            let folder = tempfile::tempdir().unwrap();
            put(folder.path(), "bpe_simple_vocab_16e6.txt.gz", cut);
            let error = load_error(kind, folder.path());
            assert!(
                error.contains("bpe_simple_vocab_16e6.txt.gz: expected"),
                "{} bytes: {error}",
                cut.len()
            );
        }
    }
}

#[test]
fn wrong_files_are_refused_by_name() {
    let cases: [(&str, &[u8], &str); 9] = [
        ("tokenizer.json", b"{}", "model"),
        ("tokenizer.json", b"[1, 2]", "a byte-pair tokenizer"),
        ("tokenizer.json", br#"{"model":{"type":"WordPiece","vocab":{}}}"#, "merges"),
        ("tokenizer.json", br#"{"model":{"vocab":{},"merges":[]}}"#, "the token"),
        ("tokenizer.json", b"\xff\xfe", "UTF-8"),
        ("merges.txt", b"#version\na b", "a newline at its end"),
        ("merges.txt", b"#version\na b c\n", "\"a b c\" as merge or line 2"),
        ("merges.txt", b"#version\na\n", "two tokens"),
        ("vocab.json", b"{\"a\": -1}", "a JSON object of tokens and ids"),
    ];
    for (name, bytes, text) in cases {
        for kind in KINDS {
            let folder = tempfile::tempdir().unwrap();
            put(folder.path(), name, bytes);
            let error = load_error(kind, folder.path());
            assert!(error.contains(name) && error.contains(text), "{name} {text}: {error}");
        }
    }
}

#[test]
fn a_vocabulary_without_merges_names_the_missing_file() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(tiny("vocab.json"), folder.path().join("vocab.json")).unwrap();
    for kind in KINDS {
        let error = load(kind, Some(folder.path()), CONTEXT).err().unwrap();
        assert!(matches!(error, TokenizerError::Read { path, .. } if path.ends_with("merges.txt")));
    }
}

/// As in transformers, which gives it the next id; the network has to have a row for it.
#[test]
fn a_padding_token_of_its_own_is_added_to_the_vocabulary() {
    let folder = tempfile::tempdir().unwrap();
    put(folder.path(), "tokenizer_config.json", br#"{"pad_token": {"content": "<pad>"}}"#);
    let tokenizer = load(TokenizerKind::HuggingFace, Some(folder.path()), CONTEXT).unwrap();
    assert_eq!(tokenizer.vocabulary_size(), 49409);
    assert_eq!(tokenizer.encode("x <pad>").ids[2..4], [49408, 49407]);
}

#[test]
fn a_folder_that_is_not_there_is_refused() {
    for kind in KINDS {
        let error = load_error(kind, Path::new("/nonexistent/model"));
        assert!(error.contains("/nonexistent/model"), "{error}");
    }
}

#[test]
fn merges_alone_are_enough() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(tiny("merges.txt"), folder.path().join("merges.txt")).unwrap();
    let alone = OpenClipTokenizer::load(Some(folder.path()), CONTEXT).unwrap();
    let whole = OpenClipTokenizer::load(Some(&tiny("")), CONTEXT).unwrap();
    assert_eq!(alone.vocabulary_size(), 614);
    assert_eq!(
        alone.encode("the lighthouse in the rain"),
        whole.encode("the lighthouse in the rain")
    );
    let hugging_face = HuggingFaceTokenizer::load(Some(folder.path()), CONTEXT).unwrap();
    assert_eq!(hugging_face.vocabulary_size(), 614);
}

#[test]
fn the_context_is_the_callers() {
    for kind in KINDS {
        assert!(matches!(load(kind, None, 1), Err(TokenizerError::ContextLength { found: 1 })));
        let tokens = load(kind, None, 4).unwrap().encode("a photo of a cat");
        assert_eq!((tokens.ids, tokens.end_index), (vec![49406, 320, 1125, 49407], 3));
    }
}

#[test]
fn fingerprints_tell_kind_context_and_vocabulary_apart() {
    let print =
        |kind, folder: Option<&Path>, context| load(kind, folder, context).unwrap().fingerprint();
    let [hf, open_clip] = KINDS;
    let standard = print(open_clip, None, 77);
    assert!(standard.starts_with("open_clip:77:"), "{standard}");
    assert_eq!(standard, print(open_clip, None, 77));
    assert!(print(hf, None, 77).starts_with("hf:77:"));
    assert_ne!(standard, print(open_clip, None, 64));
    assert_ne!(standard, print(open_clip, Some(&tiny("")), 77));
}

#[test]
fn kinds_have_the_names_of_the_configuration() {
    assert_eq!(serde_json::to_string(&KINDS).unwrap(), r#"["hf","open_clip"]"#);
    assert!(serde_json::from_str::<TokenizerKind>("\"clip\"").is_err());
}

/// How long this thread has been on a processor, whatever else the machine does (Linux).
fn processor_time() -> Duration {
    let statistics = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    let nanoseconds = statistics.split_whitespace().next().unwrap().parse().unwrap();
    Duration::from_nanos(nanoseconds)
}
