//! Token ids against open_clip_torch 3.3.0 and transformers 5.23.0.
#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "tests")]

use std::io::Read;
use std::path::{Path, PathBuf};

use flate2::read::GzDecoder;
use media::text::{
    HuggingFaceTokenizer, OpenClipTokenizer, Tokenizer, TokenizerKind, Tokens, clean, load,
};
use serde::Deserialize;

const CONTEXT: usize = 77;

#[derive(Deserialize)]
struct Goldens {
    captions: Vec<String>,
    cleaned: Vec<String>,
    standard: Ids,
    small: Ids,
    tiny: Tiny,
}

#[derive(Deserialize)]
struct Tiny {
    hf: Vec<Vec<i64>>,
}

#[derive(Deserialize)]
struct Ids {
    open_clip: Vec<Vec<i64>>,
    hf: Vec<Vec<i64>>,
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// Written by `scripts/goldens/caption_tokenizers.py`.
fn goldens() -> Goldens {
    let packed = std::fs::read(fixture("tokenizers.json.gz")).unwrap();
    let mut text = String::new();
    GzDecoder::new(&packed[..]).read_to_string(&mut text).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// The first 2000 merges of CLIP, packed as open_clip's `bpe_path` expects them.
fn small_folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let standard = include_bytes!("../assets/bpe_simple_vocab_16e6.txt.gz");
    let mut text = String::new();
    GzDecoder::new(&standard[..]).read_to_string(&mut text).unwrap();
    let lines: Vec<&str> = text.split('\n').take(2001).collect();
    let mut packer = flate2::read::GzEncoder::new(
        std::io::Cursor::new(lines.join("\n")),
        flate2::Compression::fast(),
    );
    let mut packed = Vec::new();
    packer.read_to_end(&mut packed).unwrap();
    let mut file = tempfile::NamedTempFile::new_in(folder.path()).unwrap();
    std::io::Write::write_all(&mut file, &packed).unwrap();
    file.persist(folder.path().join("bpe_simple_vocab_small.txt.gz")).unwrap();
    folder
}

fn pad(ids: &[i64], with: i64) -> Vec<i64> {
    let mut ids = ids.to_vec();
    ids.resize(CONTEXT, with);
    ids
}

/// Counts and shows the captions whose tokens differ.
fn assert_equal(
    tokenizer: &dyn Tokenizer,
    captions: &[String],
    expected: &[Vec<i64>],
    end: i64,
    padding: i64,
) {
    let mut wrong = 0;
    for (caption, ids) in captions.iter().zip(expected) {
        let expected = Tokens {
            ids: pad(ids, padding),
            end_index: ids.iter().position(|&id| id == end).unwrap(),
        };
        let found = tokenizer.encode(caption);
        if found != expected {
            wrong += 1;
            eprintln!("{caption:?}\n  expected {ids:?}\n  found    {:?}", &found.ids[..ids.len()]);
        }
        // the end token is the largest id, so reading at the largest id is the same
        let largest = found.ids.iter().max().unwrap();
        assert_eq!(found.ids.iter().position(|id| id == largest), Some(found.end_index));
    }
    assert_eq!(wrong, 0, "of {} captions", captions.len());
}

#[test]
fn the_cleaned_captions_are_those_of_open_clip() {
    let goldens = goldens();
    assert!(goldens.captions.len() >= 500);
    let wrong: Vec<_> = goldens
        .captions
        .iter()
        .zip(&goldens.cleaned)
        .filter(|(caption, cleaned)| clean(caption) != **cleaned)
        .map(|(caption, cleaned)| (caption, cleaned, clean(caption)))
        .collect();
    assert!(wrong.is_empty(), "{} differ: {wrong:#?}", wrong.len());
}

#[test]
fn the_standard_vocabulary_gives_the_ids_of_both_libraries() {
    let goldens = goldens();
    let open_clip = OpenClipTokenizer::load(None, CONTEXT).unwrap();
    assert_equal(&open_clip, &goldens.captions, &goldens.standard.open_clip, 49407, 0);
    let hugging_face = HuggingFaceTokenizer::load(None, CONTEXT).unwrap();
    assert_equal(&hugging_face, &goldens.captions, &goldens.standard.hf, 49407, 49407);
    for tokenizer in [&open_clip as &dyn Tokenizer, &hugging_face] {
        assert_eq!(tokenizer.vocabulary_size(), 49408);
        assert_eq!(tokenizer.context_length(), CONTEXT);
    }
}

#[test]
fn a_small_vocabulary_gives_the_ids_of_both_libraries() {
    let goldens = goldens();
    let folder = small_folder();
    let captions: Vec<String> = goldens.captions.iter().step_by(2).cloned().collect();
    let open_clip = OpenClipTokenizer::load(Some(folder.path()), CONTEXT).unwrap();
    assert_equal(&open_clip, &captions, &goldens.small.open_clip, 2513, 0);
    let hugging_face = HuggingFaceTokenizer::load(Some(folder.path()), CONTEXT).unwrap();
    assert_equal(&hugging_face, &captions, &goldens.small.hf, 2513, 2513);
    assert_eq!(open_clip.vocabulary_size(), 2514);
    assert_eq!(hugging_face.vocabulary_size(), 2514);
}

/// transformers' own files, of 100 merges and with "!" as the padding token, which makes "!"
/// special.
#[test]
fn the_files_of_a_folder_give_the_ids_of_transformers() {
    let goldens = goldens();
    let whole = fixture("tiny");
    let parts = tempfile::tempdir().unwrap();
    for name in ["vocab.json", "merges.txt", "tokenizer_config.json"] {
        std::fs::copy(whole.join(name), parts.path().join(name)).unwrap();
    }
    for folder in [whole.as_path(), parts.path()] {
        let tokenizer = HuggingFaceTokenizer::load(Some(folder), CONTEXT).unwrap();
        assert_equal(&tokenizer, &goldens.captions, &goldens.tiny.hf, 613, 0);
    }
    // open_clip reads the same files, and finds the tokens of its own cleaning in them
    let from_json = OpenClipTokenizer::load(Some(&whole), CONTEXT).unwrap();
    let from_parts = OpenClipTokenizer::load(Some(parts.path()), CONTEXT).unwrap();
    assert_eq!(from_json.vocabulary_size(), 614);
    for caption in &goldens.captions {
        let tokens = from_json.encode(caption);
        assert_eq!(tokens, from_parts.encode(caption));
        assert_eq!(tokens.ids[tokens.end_index], 613);
    }
    assert_eq!(from_json.fingerprint(), from_parts.fingerprint());
}

#[test]
fn forty_four_recorded_captions_have_their_ids() {
    #[derive(Deserialize)]
    struct Recorded {
        cases: Vec<Case>,
    }
    #[derive(Deserialize)]
    struct Case {
        prompt: String,
        open_clip_ids: Vec<i64>,
        hf_ids: Vec<i64>,
        open_clip_cleaned: String,
        open_clip_pool_index: usize,
        hf_pool_index: usize,
    }
    let text = std::fs::read_to_string(fixture("tokenizer_cases.json")).unwrap();
    let cases = serde_json::from_str::<Recorded>(&text).unwrap().cases;
    assert_eq!(cases.len(), 44);
    let open_clip = load(TokenizerKind::OpenClip, None, CONTEXT).unwrap();
    let hugging_face = load(TokenizerKind::HuggingFace, None, CONTEXT).unwrap();
    for case in &cases {
        let expected =
            Tokens { ids: pad(&case.open_clip_ids, 0), end_index: case.open_clip_pool_index };
        assert_eq!(open_clip.encode(&case.prompt), expected, "{:?}", case.prompt);
        let expected = Tokens { ids: pad(&case.hf_ids, 49407), end_index: case.hf_pool_index };
        assert_eq!(hugging_face.encode(&case.prompt), expected, "{:?}", case.prompt);
        assert_eq!(clean(&case.prompt), case.open_clip_cleaned);
    }
}
