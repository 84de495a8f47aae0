//! Inputs that cannot be what they should be: one clear error that names the file, nothing written.
#![expect(clippy::unwrap_used, reason = "a test stops where something is missing")]

mod common;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, Int64Array, StringArray};
use common::{Fixture, MINI, Run, pairs_parquet, parquet_of, relabel, sample_pairs, scorer_entry};

/// `relabel score` refuses with one error that says all of this, and leaves nothing.
#[track_caller]
fn assert_refused(fixture: &Fixture, scorers: &Path, says: &[&str]) {
    let run = Run::of(&mut fixture.score(scorers, "out/labels.parquet", &[]));
    run.expect_error(says);
    if fixture.path("out").exists() {
        assert_eq!(fixture.names("out"), [""; 0], "something was written");
    }
}

/// Pairs that are not read: `bytes` in the place of a file.
#[track_caller]
fn assert_pairs_refused(bytes: &[u8], says: &[&str]) {
    let fixture = Fixture::empty();
    let scorers = fixture.two_scorers();
    fixture.put("pairs/good.parquet", &pairs_parquet(&sample_pairs(2)));
    fixture.put("pairs/worse.parquet", bytes);
    assert_refused(&fixture, &scorers, &[&["worse.parquet"], says].concat());
}

/// Scorers that cannot be used.
#[track_caller]
fn assert_scorers_refused(fixture: &Fixture, entry: &str, says: &[&str]) {
    fixture.put("pairs/good.parquet", &pairs_parquet(&sample_pairs(2)));
    let scorers = fixture.scorers("scorers.toml", &[entry.to_owned()]);
    assert_refused(fixture, &scorers, says);
}

#[test]
fn files_without_the_columns_are_refused_with_all_of_them() {
    let text: ArrayRef = Arc::new(StringArray::from(vec!["some"]));
    assert_pairs_refused(
        &parquet_of(vec![("caption", Arc::clone(&text)), ("Image_0_uid", Arc::clone(&text))]),
        &["\"image_0_uid\"", "is it \"Image_0_uid\"?", "\"image_1_uid\"", "\"jpg_0\"", "\"jpg_1\""],
    );
    assert_pairs_refused(
        &parquet_of(vec![
            ("caption", Arc::new(Int64Array::from(vec![1]))),
            ("image_0_uid", Arc::clone(&text)),
            ("image_1_uid", Arc::clone(&text)),
            ("jpg_0", Arc::clone(&text)),
            ("jpg_1", Arc::new(BooleanArray::from(vec![true]))),
            ("label_0", text),
        ]),
        &[
            "\"caption\": expected string, found Int64",
            "\"jpg_0\": expected binary or struct{bytes, path}, found text",
            "\"jpg_1\"",
            "\"label_0\"",
        ],
    );
}

#[test]
fn files_that_are_no_parquet_are_refused() {
    let whole = pairs_parquet(&sample_pairs(3));
    assert_pairs_refused(b"", &["expected a Parquet file"]);
    assert_pairs_refused(b"caption,jpg_0,jpg_1\na,b,c\n", &["expected a Parquet file"]);
    assert_pairs_refused(&whole[..whole.len() / 2], &["expected a Parquet file"]);
    let mut garbage = whole.clone();
    let footer = garbage.len() - 200..garbage.len() - 8;
    garbage[footer].fill(0xa5);
    assert_pairs_refused(&garbage, &["Parquet"]);
}

#[test]
fn damaged_data_below_a_sound_footer_stops_the_run_or_is_a_failed_row_but_never_a_panic() {
    let whole = pairs_parquet(&sample_pairs(3));
    let fixture = Fixture::empty();
    let scorers = fixture.scorers("scorers.toml", &[scorer_entry("aesthetic")]);
    for place in 1..8 {
        let mut damaged = whole.clone();
        let start = place * whole.len() / 9;
        damaged[start..start + 40].fill(0xff);
        fixture.put("pairs/0.parquet", &damaged);
        let run = Run::of(&mut fixture.score(&scorers, "out/labels.parquet", &["--fresh"]));
        match run.code() {
            Some(1) => {
                run.expect_error(&["0.parquet"]);
                assert!(!fixture.path("out/labels.parquet").exists());
            }
            code => {
                assert!(matches!(code, Some(0 | 3)), "{run:#?}");
                assert_eq!(fixture.labels("out/labels.parquet").len(), 3);
                std::fs::remove_dir_all(fixture.path("out")).unwrap();
            }
        }
    }
}

#[test]
fn inputs_that_are_not_there_are_refused() {
    let fixture = Fixture::empty();
    let scorers = fixture.two_scorers();
    assert_refused(&fixture, &scorers, &["pairs", "found nothing of that name"]);
    std::fs::create_dir(fixture.path("pairs")).unwrap();
    assert_refused(&fixture, &scorers, &["pairs", "found none", "*.parquet"]);
    fixture.put("pairs/empty.parquet", &pairs_parquet(&[]));
    assert_refused(&fixture, &scorers, &["no pair"]);
    fixture.put("pairs/one.parquet", &pairs_parquet(&sample_pairs(1)));
    let twice = [fixture.path("pairs/one.parquet"), fixture.path("pairs/../pairs/one.parquet")];
    let mut command = relabel(["score", "--pairs"]);
    command.args(&twice).arg("--scorers").arg(&scorers).arg("--out").arg(fixture.path("l.parquet"));
    Run::of(&mut command).expect_error(&["same file"]);

    let usage = |arguments: &[&str]| Run::of(&mut relabel(arguments)).expect_code(2).stderr;
    let all = usage(&["score"]);
    for flag in ["--pairs <", "--scorers <", "--out <", "hint: "] {
        assert!(all.contains(flag), "{flag} is not in {all}");
    }
    let last = usage(&["score", "--pairs", "p", "--scorers", "s"]);
    assert!(last.contains("--out <") && !last.contains("--pairs"), "{last}");
    assert!(!usage(&["check", "--pairs", "p"]).contains("--out"), "check needs no output");
    for (option, value, says) in [
        ("--batch-size", "0", "scores nothing"),
        ("--limit", "0", "takes no pair"),
        ("--device", "gpu", "did you mean cuda?"),
        ("--dtype", "f64", "\"f64\""),
        ("--dtype", "fp16", "did you mean f16?"),
        ("--dtype", "bfloat16", "did you mean bf16?"),
    ] {
        let run = Run::of(&mut fixture.score(&scorers, "l.parquet", &[option, value]));
        run.expect_usage_error(&[says]);
    }
    for (option, value) in [("--batch-size", "-1"), ("--limit", "many"), ("--ties", "coin")] {
        Run::of(&mut fixture.score(&scorers, "l.parquet", &[option, value])).expect_code(2);
    }
    assert_eq!(fixture.names(""), ["out", "pairs", "two.toml"]);
}

#[test]
fn check_refuses_what_score_refuses() {
    let fixture = Fixture::empty();
    let scorers = fixture.two_scorers();
    let check = |scorers: &Path| {
        let mut command = relabel(["check", "--pairs"]);
        Run::of(command.arg(fixture.path("pairs")).arg("--scorers").arg(scorers))
    };
    fixture.put("pairs/bad.parquet", b"PAR1 but nothing else that Parquet would have PAR1");
    check(&scorers).expect_error(&["bad.parquet"]);
    fixture.put("pairs/bad.parquet", &pairs_parquet(&sample_pairs(2)));
    let entry = entry_with_model("clip", &fixture.path("absent"));
    check(&fixture.scorers("scorers.toml", &[entry])).expect_error(&["`clip`", "absent"]);
}

#[test]
fn mistakes_in_scorers_toml_are_named_with_the_nearest_word() {
    let fixture = Fixture::empty();
    let clip = scorer_entry("clip");
    let name = "scorers.toml";
    for (entry, says) in [
        (clip.replace("preprocess", "preproces"), &["preproces", "did you mean", "preprocess"][..]),
        (clip.replace("\"hf\"", "\"hff\""), &["hff"]),
        (clip.replace("name = \"clip\"", "name = \"Clip 1\""), &["Clip 1", "lower-case"]),
        (clip.replace("name = \"clip\"\n", ""), &["name"]),
        (format!("{clip}head = \"x.pth\"\n"), &["head", "aesthetic"]),
        (format!("{clip}{clip}"), &["same name"]),
        (scorer_entry("aesthetic").replace("head = ", "#"), &["needs `head`"]),
        (scorer_entry("aesthetic").replace("linear-mse.pth", "no.pth"), &["no.pth", "not a file"]),
        ("# nothing".to_owned(), &["no `[[scorer]]` entry"]),
        (clip[..clip.len() - 4].to_owned(), &[]),
        ("\u{0}\u{1}".to_owned(), &[]),
    ] {
        assert_scorers_refused(&fixture, &entry, &[&[name], says].concat());
    }
    fixture.put("scorers.toml", b"\xff\xfe");
    assert_refused(&fixture, &fixture.path("scorers.toml"), &[name, "UTF-8"]);
    assert_refused(&fixture, &fixture.path("absent.toml"), &["absent.toml"]);
}

/// A copy of a miniature model's folder, to be spoiled.
fn copy_of(fixture: &Fixture, model: &str) -> PathBuf {
    for entry in std::fs::read_dir(Path::new(MINI).join(model)).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        fixture.put(&format!("model/{name}"), &std::fs::read(&path).unwrap());
    }
    fixture.path("model")
}

fn entry_with_model(name: &str, model: &Path) -> String {
    let model = model.to_str().unwrap();
    scorer_entry(name)
        .replace(&format!("model = \"{MINI}/{name}\""), &format!("model = \"{model}\""))
}

#[test]
fn models_that_are_not_what_the_entry_says_are_refused() {
    let fixture = Fixture::empty();
    let absent = entry_with_model("clip", &fixture.path("no/such/model"));
    assert_scorers_refused(&fixture, &absent, &["`clip`", "no/such/model"]);

    // Another network's weights under this network's name: all keys in one error.
    let model = copy_of(&fixture, "clip");
    std::fs::remove_file(model.join("model.safetensors")).unwrap();
    let entry = entry_with_model("clip", &model);
    assert_scorers_refused(&fixture, &entry, &["`clip`", "holds none of", "model.safetensors"]);
    let published = std::fs::read(Path::new(MINI).join("hps/open_clip_pytorch_model.pt")).unwrap();
    fixture.put("model/pytorch_model.bin", &published);
    assert_scorers_refused(
        &fixture,
        &entry,
        &["`clip`", "pytorch_model.bin", "missing: vision_model.", "unexpected: transformer."],
    );

    // A checkpoint cut short, one of another size, one that is something else.
    std::fs::remove_file(fixture.path("model/pytorch_model.bin")).unwrap();
    let weights = std::fs::read(Path::new(MINI).join("clip/model.safetensors")).unwrap();
    let weights_file = "model/model.safetensors";
    fixture.put(weights_file, &weights[..weights.len() - 1000]);
    assert_scorers_refused(&fixture, &entry, &["`clip`", "model.safetensors"]);
    fixture.put(weights_file, b"\x89PNG and so on, more than eight bytes of it");
    assert_scorers_refused(&fixture, &entry, &["`clip`", "model.safetensors"]);
    fixture.put(weights_file, &weights);
    let config = std::fs::read_to_string(model.join("config.json")).unwrap();
    fixture.put(
        "model/config.json",
        config.replace("\"patch_size\": 8", "\"patch_size\": 16").as_bytes(),
    );
    assert_scorers_refused(&fixture, &entry, &["`clip`", "patch_embedding"]);
    fixture.put("model/config.json", b"{");
    assert_scorers_refused(&fixture, &entry, &["config.json"]);
}

#[test]
fn a_head_of_another_width_is_refused() {
    let fixture = Fixture::empty();
    // The published head's layers, made for features of another length.
    let mut header = serde_json::Map::new();
    let mut end = 0;
    let widths = [24, 8, 6, 4, 2, 1];
    for (place, shape) in [0, 2, 4, 6, 7].into_iter().zip(widths.windows(2)) {
        for (part, shape) in [("weight", vec![shape[1], shape[0]]), ("bias", vec![shape[1]])] {
            let start = end;
            end += 4 * shape.iter().product::<usize>();
            header.insert(
                format!("layers.{place}.{part}"),
                serde_json::json!({"dtype": "F32", "shape": shape, "data_offsets": [start, end]}),
            );
        }
    }
    let mut header = serde_json::to_vec(&header).unwrap();
    header.resize(header.len().next_multiple_of(8), b' ');
    let bytes = [&(header.len() as u64).to_le_bytes()[..], &header, &vec![0; end]].concat();
    let head = fixture.put("head.safetensors", &bytes);
    let entry = scorer_entry("aesthetic");
    let entry = entry.replace(&format!("{MINI}/aesthetic/linear-mse.pth"), head.to_str().unwrap());
    assert_scorers_refused(&fixture, &entry, &["`aesthetic`", "head.safetensors", "24"]);
}
