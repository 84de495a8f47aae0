//! Token ids of SigLIP and SigLIP 2 against transformers (`scripts/goldens/siglip.py`).
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use flate2::read::GzDecoder;
use media::text::{LOWER_CASED, SiglipTokenizer, Tokenizer};
use serde::Deserialize;
use serde_json::{Value, json};

#[derive(Deserialize)]
struct Goldens {
    captions: Vec<String>,
    tokenizers: BTreeMap<String, Case>,
}

#[derive(Deserialize)]
struct Case {
    config: Value,
    file: String,
    padding: i64,
    masked: bool,
    ids: Vec<Vec<i64>>,
}

fn unpacked(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/siglip").join(name);
    let mut bytes = Vec::new();
    GzDecoder::new(fs_err::File::open(path).unwrap()).read_to_end(&mut bytes).unwrap();
    bytes
}

fn goldens() -> Goldens {
    serde_json::from_slice(&unpacked("tokens.json.gz")).unwrap()
}

fn folder(config: &Value, file: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs_err::write(folder.path().join(file), unpacked(&format!("{file}.gz"))).unwrap();
    fs_err::write(folder.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    folder
}

fn differences(goldens: &Goldens, case: &Case, tokenizer: &SiglipTokenizer) -> Vec<String> {
    let mut different = Vec::new();
    for (caption, expected) in goldens.captions.iter().zip(&case.ids) {
        let found = tokenizer.encode(caption);
        assert_eq!(found.ids.len(), 64);
        let (ids, padding) = found.ids.split_at(expected.len());
        let end = if case.masked { expected.len() - 1 } else { 63 };
        if ids != expected || padding.iter().any(|id| *id != case.padding) || found.end_index != end
        {
            different.push(format!("{caption:?}: {:?}, expected {expected:?}", found.ids));
        }
    }
    different
}

#[test]
fn ids_equal_those_of_transformers() {
    let goldens = goldens();
    let mut fingerprints = Vec::new();
    for (name, case) in &goldens.tokenizers {
        let folder = folder(&case.config, &case.file);
        let tokenizer = SiglipTokenizer::load(folder.path(), None, 64).unwrap();
        let different = differences(&goldens, case, &tokenizer);
        let few = different.iter().take(10).cloned().collect::<Vec<_>>().join("\n");
        assert!(different.is_empty(), "{name}: {} differ:\n{few}", different.len());
        // The others have the pipeline of Gemma's class.
        if ["siglip", "siglip_cased", "gemma", "siglip2"].contains(&name.as_str()) {
            fingerprints.push(tokenizer.fingerprint());
        }
    }
    assert_eq!(goldens.tokenizers.len(), 6);
    fingerprints.sort();
    fingerprints.dedup();
    assert_eq!(fingerprints.len(), 4, "{fingerprints:?}");
}

#[test]
fn a_class_given_wins_over_that_of_the_folder() {
    let goldens = goldens();
    let (gemma, lower) = (&goldens.tokenizers["gemma"], &goldens.tokenizers["siglip2"]);
    let folder = folder(&gemma.config, &gemma.file);
    let tokenizer = SiglipTokenizer::load(folder.path(), Some(LOWER_CASED), 64).unwrap();
    assert!(differences(&goldens, lower, &tokenizer).is_empty());
    assert!(!differences(&goldens, gemma, &tokenizer).is_empty());
}

#[test]
fn a_context_of_its_own_truncates_before_the_end_token() {
    let goldens = goldens();
    for name in ["siglip", "siglip2"] {
        let case = &goldens.tokenizers[name];
        let folder = folder(&case.config, &case.file);
        let long = SiglipTokenizer::load(folder.path(), None, 64).unwrap();
        let short = SiglipTokenizer::load(folder.path(), None, 5).unwrap();
        let caption = "a snow leopard under the full moon";
        let (long, short) = (long.encode(caption), short.encode(caption));
        assert_eq!(short.ids[..4], long.ids[..4]);
        let end = long.ids.iter().position(|id| *id == short.ids[4]).unwrap();
        assert!(long.ids[end + 1..].iter().all(|id| *id == case.padding));
        assert_eq!((short.ids[4] == 1, short.end_index), (true, 4));
        assert!(SiglipTokenizer::load(folder.path(), None, 1).is_err());
    }
}

/// Without its own file, the class takes the pipeline of the other.
#[test]
fn a_folder_without_spiece_model_uses_tokenizer_json_as_it_is() {
    let goldens = goldens();
    let case = &goldens.tokenizers["as_it_is"];
    let mut config = case.config.clone();
    config["tokenizer_class"] = "SiglipTokenizer".into();
    let folder = folder(&config, &case.file);
    let tokenizer = SiglipTokenizer::load(folder.path(), None, 64).unwrap();
    assert!(differences(&goldens, case, &tokenizer).is_empty());
}

#[test]
fn what_would_give_other_tokens_is_refused_by_name() {
    let goldens = goldens();
    let error = |name: &str, key: &str, value: Value| {
        let case = &goldens.tokenizers[name];
        let mut config = case.config.clone();
        config[key] = value;
        let folder = folder(&config, &case.file);
        let error =
            SiglipTokenizer::load(folder.path(), None, 64).err().map(|error| error.to_string());
        error.unwrap_or_else(|| panic!("{name}: {key} is taken"))
    };
    for (name, key, value) in [
        ("siglip", "tokenizer_class", json!("T5Tokenizer")),
        ("siglip", "padding_side", json!("left")),
        ("siglip", "legacy", json!(false)),
        ("siglip", "sp_model_kwargs", json!({"enable_sampling": true})),
        ("siglip", "do_lower_case", json!("yes")),
        ("siglip", "model_input_names", json!(["input_ids", "token_type_ids"])),
        ("siglip", "split_special_tokens", json!(true)),
        ("gemma", "padding_side", json!("left")),
    ] {
        let message = error(name, key, value);
        assert!(message.contains(&format!("`{key}`")), "{message}");
    }
    assert!(error("siglip", "pad_token", json!("<none>")).contains("<none>"));
    // Gemma's class pads on the left if nobody says otherwise.
    let mut config = goldens.tokenizers["gemma"].config.clone();
    config.as_object_mut().unwrap().remove("padding_side");
    let folder = folder(&config, "tokenizer.json");
    let message = SiglipTokenizer::load(folder.path(), None, 64).err().unwrap().to_string();
    assert!(message.contains("padding_side"), "{message}");
}

#[test]
fn damaged_files_are_named() {
    let goldens = goldens();
    for name in ["siglip", "gemma"] {
        let case = &goldens.tokenizers[name];
        let folder = folder(&case.config, &case.file);
        let file = folder.path().join(&case.file);
        let whole = fs_err::read(&file).unwrap();
        for content in
            [&whole[..whole.len() / 2], b"", b"version https://git-lfs.github.com/spec/v1\n"]
        {
            fs_err::write(&file, content).unwrap();
            let message = SiglipTokenizer::load(folder.path(), None, 64).err().unwrap().to_string();
            assert!(message.contains(&case.file), "{message}");
        }
        fs_err::remove_file(&file).unwrap();
        let message = SiglipTokenizer::load(folder.path(), None, 64).err().unwrap().to_string();
        assert!(message.contains(&case.file), "{message}");
    }
}
