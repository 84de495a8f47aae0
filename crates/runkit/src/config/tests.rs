use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{ConfigError, merge, nearest_name, parse_toml, read_toml, to_toml_string};

#[derive(Debug, Default, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    batch_size: Option<u32>,
    seed: Option<u64>,
    preprocess: Option<Preprocess>,
    #[serde(default)]
    nested: Nested,
    voters: Option<Vec<String>>,
}

#[derive(Debug, Default, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Nested {
    beta: Option<f64>,
    ties: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Preprocess {
    Hf,
    OpenClip,
}

fn refusal(text: &str) -> String {
    parse_toml::<Settings>(Path::new("run.toml"), text).unwrap_err().to_string()
}

#[test]
fn an_unknown_field_is_placed_and_the_nearest_name_suggested() {
    let message = refusal("seed = 1\n\n  batchsize = 8\n");
    assert!(message.starts_with("run.toml:3:3: unknown field `batchsize`"), "{message}");
    assert!(message.ends_with("hint: did you mean `batch_size`?"), "{message}");
    let message = refusal("[nested]\nbeat = 1.0\n");
    assert!(message.contains("did you mean `beta`?"), "{message}");
    let message = refusal("preprocess = \"openclip\"");
    assert!(message.contains("did you mean `open_clip`?"), "{message}");
}

#[test]
fn names_that_resemble_nothing_get_no_suggestion() {
    assert!(!refusal("zzzzzzzzzzzz = 8\n").contains("did you mean"));
    assert_eq!(nearest_name("modle", ["model", "weights"]), Some("model"));
    assert_eq!(nearest_name("x", []), None);
    assert_eq!(nearest_name("", ["model"]), None);
}

#[test]
fn wrong_types_ranges_and_broken_text_are_placed() {
    for (text, place) in [
        ("batch_size = -1", "run.toml:1:14: "),
        ("batch_size = 99999999999", "run.toml:1:14: "),
        ("batch_size = nan", "run.toml:1:14: "),
        ("seed = \"three\"", "run.toml:1:8: "),
        ("seed = 1\nseed = 2", "run.toml:2:1: "),
        ("ä = \"é", "run.toml:1:"),
        ("voters = [\"a\",\n", "run.toml:"),
    ] {
        let message = refusal(text);
        assert!(message.starts_with(place), "{text:?}: {message}");
    }
}

#[test]
fn a_truncated_file_never_panics() {
    let whole =
        "seed = 1\nvoters = [\"clip\", \"hps\"]\n[nested]\nbeta = 5000.0\nties = \"drop\"\n";
    for length in 0..whole.len() {
        let _ = parse_toml::<Settings>(Path::new("run.toml"), &whole[..length]);
    }
}

#[test]
fn files_that_are_not_text_or_absent_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a file.toml");
    std::fs::write(&path, b"seed = 1\nx = \"\xff\"\n").unwrap();
    match read_toml::<Settings>(&path) {
        Err(ConfigError::NotText { line: 2, byte: 14, .. }) => {}
        other => panic!("expected a refusal, got {other:?}"),
    }
    let absent = read_toml::<Settings>(folder.path().join("absent.toml")).unwrap_err().to_string();
    assert!(absent.contains("absent.toml"), "{absent}");
    let huge = std::fs::File::create(folder.path().join("model.toml")).unwrap();
    huge.set_len(1 << 30).unwrap();
    let message = read_toml::<Settings>(folder.path().join("model.toml")).unwrap_err().to_string();
    assert!(message.contains("not a configuration"), "{message}");
}

#[test]
fn layers_are_merged_field_by_field() {
    let flags = Settings {
        seed: Some(u64::MAX),
        nested: Nested { beta: Some(2.5), ties: None },
        ..Settings::default()
    };
    let file = Settings {
        batch_size: Some(64),
        seed: Some(1),
        preprocess: Some(Preprocess::OpenClip),
        nested: Nested { beta: Some(0.1), ties: Some("drop".to_owned()) },
        voters: Some(vec!["clip".to_owned()]),
    };
    let merged = merge(&flags, &file).unwrap();
    assert_eq!(merged.seed, Some(u64::MAX));
    assert_eq!(merged.nested, Nested { beta: Some(2.5), ties: Some("drop".to_owned()) });
    assert_eq!(merged.batch_size, Some(64));
    assert_eq!(merge(&Settings::default(), &file).unwrap(), file);
    assert_eq!(merge(&file, &Settings::default()).unwrap(), file);
}

#[test]
fn written_settings_read_back() {
    let settings = Settings {
        seed: Some(7),
        nested: Nested { beta: Some(0.1), ties: Some("a \"b\"\n\\".to_owned()) },
        voters: Some(vec![]),
        ..Settings::default()
    };
    let text = to_toml_string(&settings).unwrap();
    assert_eq!(parse_toml::<Settings>(Path::new("x"), &text).unwrap(), settings);
}
