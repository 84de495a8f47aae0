//! `evaluate score` and `evaluate run`: every image is scored once, whatever happens in between.
#![expect(clippy::unwrap_used, reason = "a test stops where something is missing")]

mod common;

use std::path::Path;
use std::process::Command;

use common::{Fixture, Generated as _, Run, evaluate, model};
use schemas::scores::{ScoreRow, ScoresFile};
use serde_json::{Value, json};

const SCORERS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../data/mini/scorers.toml");
/// A tiny DistilBERT with random weights.
const CLASSIFIER: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../crates/nn/tests/fixtures/distilbert");
const METRICS: [&str; 5] = ["clip", "hps", "pickscore", "aesthetic", "image_reward"];

/// A folder with six images, three each of two prompts.
fn generated() -> Fixture {
    let fixture = Fixture::new(&["a fox", "a mill"]);
    Run::of(&mut fixture.generate(&[&model("sd")], &["--seeds", "3"])).expect_generated(6, 6);
    fixture
}

fn score(fixture: &Fixture, scorers: impl AsRef<Path>, more: &[&str]) -> Command {
    let mut command = evaluate(["score", "--device", "cpu"]);
    command.arg("--out").arg(fixture.path("out")).arg("--scorers").arg(scorers.as_ref()).args(more);
    command.arg("--prompts").arg(fixture.path("prompts.txt"));
    command
}

fn rows(fixture: &Fixture) -> Vec<ScoreRow> {
    ScoresFile::open(fixture.path("out/scores.parquet")).unwrap().read().unwrap()
}

#[track_caller]
fn expect_scored(run: Run, images: usize, scored: usize, code: i32) {
    let expected = format!("{images} images, {scored} of them scored now\n");
    assert!(run.stdout.starts_with(&expected), "{run:#?}");
    run.expect_code(code);
}

/// The miniature scorers, the first `count` of them, with absolute paths.
fn some_scorers(fixture: &Fixture, count: usize) -> std::path::PathBuf {
    let folder = Path::new(SCORERS).parent().unwrap().canonicalize().unwrap();
    let text = std::fs::read_to_string(SCORERS).unwrap();
    let mut entries = text.split("[[scorer]]");
    let mut kept = entries.next().unwrap().to_owned();
    for entry in entries.take(count) {
        kept += "[[scorer]]";
        kept += &entry
            .replace("model = \"", &format!("model = \"{}/", folder.display()))
            .replace("head = \"", &format!("head = \"{}/", folder.display()));
    }
    fixture.put(&format!("scorers-{count}.toml"), kept.as_bytes())
}

#[test]
fn every_image_has_every_score_in_order() {
    let fixture = generated();
    expect_scored(Run::of(&mut score(&fixture, SCORERS, &[])), 6, 6, 0);
    let rows = rows(&fixture);
    assert_eq!(rows.len(), 6 * METRICS.len());
    for (place, row) in rows.iter().enumerate() {
        assert_eq!(row.metric, METRICS[place % 5]);
        assert_eq!(row.seed, (place / 5 % 3) as i64);
        assert_eq!(row.prompt, ["a fox", "a mill"][place / 15]);
        assert_eq!((row.model.as_str(), row.prompt_set.as_str()), ("sd", "prompts"));
        assert!(row.score.is_some_and(f32::is_finite) && row.error.is_none(), "{row:?}");
        assert!(fixture.path("out").join(&row.image).is_file(), "{row:?}");
    }
    // Cosines, a head whose scores are of another size, and scores around 0.
    let cosines = rows.iter().filter(|row| METRICS[..3].contains(&row.metric.as_str()));
    assert!(cosines.clone().count() == 18 && cosines.clone().all(|row| row.score.unwrap() < 1.0));
    assert!(
        rows.iter().filter(|row| row.metric == "aesthetic").all(|row| row.score.unwrap() > 1.0)
    );
}

#[test]
fn only_what_is_new_is_scored_and_the_bytes_are_the_same() {
    let fixture = generated();
    expect_scored(Run::of(&mut score(&fixture, some_scorers(&fixture, 4), &[])), 6, 6, 0);
    let whole = std::fs::read(fixture.path("out/scores.parquet")).unwrap();
    expect_scored(Run::of(&mut score(&fixture, some_scorers(&fixture, 4), &[])), 6, 0, 0);
    assert!(whole == std::fs::read(fixture.path("out/scores.parquet")).unwrap());

    // A metric more: the others are not computed again.
    std::fs::remove_dir_all(fixture.path("out/score-store")).unwrap();
    expect_scored(Run::of(&mut score(&fixture, some_scorers(&fixture, 3), &[])), 6, 6, 0);
    let before = store(&fixture);
    expect_scored(Run::of(&mut score(&fixture, some_scorers(&fixture, 4), &[])), 6, 6, 0);
    let after = store(&fixture);
    assert_eq!((before.len(), after.len()), (3, 4));
    assert!(before.iter().all(|file| after.contains(file)), "what was there stays as it was");
    assert!(whole == std::fs::read(fixture.path("out/scores.parquet")).unwrap());

    // A prompt more.
    fixture.put("prompts.txt", b"a fox\na mill\na hill\n");
    Run::of(&mut fixture.generate(&[&model("sd")], &["--seeds", "3"])).expect_generated(3, 9);
    let more = ["--score-batch-size", "3"];
    expect_scored(Run::of(&mut score(&fixture, some_scorers(&fixture, 4), &more)), 9, 3, 0);
}

/// The files of the store with their bytes.
fn store(fixture: &Fixture) -> Vec<(String, Vec<u8>)> {
    fixture.files("out/score-store").into_iter().collect()
}

#[test]
fn killed_at_any_batch_the_bytes_are_the_same() {
    let fixture = generated();
    let more = ["--score-batch-size", "2"];
    expect_scored(Run::of(&mut score(&fixture, SCORERS, &more)), 6, 6, 0);
    let whole = std::fs::read(fixture.path("out/scores.parquet")).unwrap();
    let stores = store(&fixture);
    for lines in 0..6 {
        // As a kill leaves it: some batches there, the last line cut.
        std::fs::remove_file(fixture.path("out/scores.parquet")).unwrap();
        for (name, bytes) in &stores {
            let ends: Vec<usize> = bytes
                .iter()
                .enumerate()
                .filter(|end| *end.1 == b'\n')
                .map(|end| end.0 + 1)
                .collect();
            let end = if lines == 0 { 0 } else { ends[lines - 1] };
            fixture.put(&format!("out/score-store/{name}"), &bytes[..(end + 9).min(bytes.len())]);
        }
        Run::of(&mut score(&fixture, SCORERS, &more)).expect_code(0);
        assert!(
            whole == std::fs::read(fixture.path("out/scores.parquet")).unwrap(),
            "{lines} lines"
        );
    }
}

#[test]
fn images_that_cannot_be_scored_are_rows_with_a_reason() {
    let fixture = generated();
    let images: Vec<String> = fixture.files("out/images").into_keys().collect();
    std::fs::remove_file(fixture.path("out/images").join(&images[0])).unwrap();
    fixture.put(&format!("out/images/{}", images[1]), b"not an image");
    expect_scored(Run::of(&mut score(&fixture, SCORERS, &[])), 6, 6, 3);
    let found = rows(&fixture);
    assert_eq!(found.len(), 6 * METRICS.len(), "no row is lost");
    let failed: Vec<&ScoreRow> = found.iter().filter(|row| row.score.is_none()).collect();
    assert_eq!(failed.len(), 2 * METRICS.len());
    assert_eq!(failed[0].error.as_deref(), Some("no image"));
    assert!(failed[5].error.as_ref().unwrap().contains("found text"), "{:?}", failed[5]);
    let tolerant = ["--max-failed", "2"];
    expect_scored(Run::of(&mut score(&fixture, SCORERS, &tolerant)), 6, 0, 0);
}

#[test]
fn images_made_elsewhere_have_the_scores_of_their_pixels() {
    let fixture = generated();
    Run::of(&mut score(&fixture, SCORERS, &[])).expect_code(0);
    let here = rows(&fixture);
    let mut list = String::new();
    for row in here.iter().filter(|row| row.metric == "clip") {
        let name = format!("{}-{}.png", row.prompt_id, row.seed);
        fixture.put(
            &format!("other/{name}"),
            &std::fs::read(fixture.path("out").join(&row.image)).unwrap(),
        );
        list += &format!(
            "{{\"file_name\":\"{name}\",\"text\":\"{}\",\"seed\":{}}}\n",
            row.prompt, row.seed
        );
    }
    fixture.put("other/metadata.jsonl", list.as_bytes());
    let source = format!("other={}", fixture.path("other").display());
    // The same bytes and captions: nothing is computed.
    expect_scored(Run::of(&mut score(&fixture, SCORERS, &["--images", &source])), 12, 0, 0);
    let both = rows(&fixture);
    assert_eq!(both[..here.len()], here[..]);
    for (one, two) in both[..here.len()].iter().zip(&both[here.len()..]) {
        assert_eq!((two.model.as_str(), one.score), ("other", two.score));
        assert!(Path::new(&two.image).is_absolute());
    }
    let empty = format!("x={}", fixture.put("empty/readme.md", b"").parent().unwrap().display());
    Run::of(&mut score(&fixture, SCORERS, &["--images", &empty]))
        .expect_error(&["expected metadata.jsonl or metadata.csv", "found none of these"]);
    Run::of(&mut score(&fixture, SCORERS, &["--models", "dpo"]))
        .expect_error(&["no images of a model \"dpo\"", "hint"]);
    Run::of(&mut score(&fixture, fixture.path("absent.toml"), &[])).expect_error(&["absent.toml"]);
}

fn run(fixture: &Fixture, more: &[&str]) -> Command {
    let mut command = evaluate(["run", "--device", "cpu", "--steps", "2"]);
    if !more.contains(&"--seeds") {
        command.args(["--seeds", "2"]);
    }
    command.args(["--model", &model("sd"), "--model", &model("sd").replacen("sd=", "again=", 1)]);
    command.arg("--prompts").arg(fixture.path("prompts.txt"));
    command.args(["--scorers", SCORERS]).arg("--out").arg(fixture.path("out")).args(more);
    command
}

#[test]
fn a_run_generates_scores_and_reports_and_a_second_one_changes_nothing() {
    let fixture = Fixture::new(&["a fox", "a mill", "a hill"]);
    let plan = Run::of(&mut run(&fixture, &["--dry-run"])).expect_code(0);
    assert!(plan.stdout.contains("3 prompts of prompts, 2 images each"), "{plan:#?}");
    for line in [
        "again: 6 of 6 images to generate at 16x16",
        "scorer aesthetic: aesthetic ",
        "12 of 12 images to score, ",
        "disk: about ",
        "to generate",
    ] {
        assert!(plan.stdout.contains(line), "{line} is not in {plan:#?}");
    }
    assert!(!fixture.path("out").exists(), "a dry run writes nothing");

    let first = Run::of(&mut run(&fixture, &[])).expect_code(0);
    assert!(first.stdout.contains("again vs sd"), "{first:#?}");
    let files = fixture.files("out");
    for name in [
        "manifest.json",
        "scores.parquet",
        "winrates.parquet",
        "tables.md",
        "tables.tex",
        "report.html",
    ] {
        assert!(files.contains_key(name), "{name}");
    }
    // One checkpoint under two names: every prompt is a tie.
    let tables = String::from_utf8(files["tables.md"].clone()).unwrap();
    assert!(tables.contains("0/3/0"), "{tables}");
    let second = Run::of(&mut run(&fixture, &["--json"])).expect_code(0);
    assert!(files == fixture.files("out"));
    let summary: Value = serde_json::from_str(&second.stdout).unwrap();
    assert_eq!((&summary["images"], &summary["scored"]), (&json!(12), &json!(0)), "{summary}");
    assert_eq!(summary["models"], json!(["sd", "again"]));
    assert!(Path::new(summary["summary"].as_str().unwrap()).is_file(), "{summary}");
    assert_eq!(second.stderr.matches("already complete").count(), 2, "{second:#?}");
    assert!(!second.stderr.contains(" 0.0 "), "{second:#?}");
    let plan = Run::of(&mut run(&fixture, &["--dry-run"])).expect_code(0);
    assert!(plan.stdout.contains("0 of 12 images to score\n"), "{plan:#?}");
    let plan = Run::of(&mut run(&fixture, &["--dry-run", "--fresh", "--json"])).expect_code(0);
    let plan: Value = serde_json::from_str(&plan.stdout).unwrap();
    assert_eq!((&plan["score"]["missing"], &plan["score"]["images"]), (&json!(12), &json!(12)));
    assert_eq!(plan["generate"]["prompts"], json!({ "prompts": 3 }));
    let model = &plan["generate"]["models"][1];
    assert_eq!((&model["model"], &model["missing"]), (&json!("again"), &json!(6)), "{plan}");
    assert!(plan["score"]["images_per_second"].as_f64().unwrap() > 0.0, "{plan}");
    assert!(files == fixture.files("out"), "a dry run writes nothing");
}

/// A file of scores without its order of metadata.
fn scored(fixture: &Fixture) -> (Vec<ScoreRow>, std::collections::BTreeMap<String, Vec<u8>>) {
    let mut files = fixture.files("out");
    // The settings are those of the last command.
    files.remove("config.toml");
    (rows(fixture), files)
}

#[test]
fn what_a_command_does_not_name_stays_in_the_folder() {
    let fixture = Fixture::new(&["a fox", "a mill"]);
    fixture.put("more.txt", b"a hill\n");
    let both = [model("sd"), model("sd").replacen("sd=", "again=", 1)];
    let scorers = [some_scorers(&fixture, 2), some_scorers(&fixture, 1)];
    let run = |models: &[&String], scorers: &Path, prompts: &[&str], more: &[&str]| {
        let mut command = evaluate(["run", "--device", "cpu", "--steps", "2"]);
        for model in models {
            command.args(["--model", model]);
        }
        command.arg("--prompts").args(prompts.iter().map(|name| fixture.path(name)));
        command.arg("--scorers").arg(scorers).arg("--out").arg(fixture.path("out")).args(more);
        Run::of(&mut command)
    };
    let (prompts, seeds) = (["prompts.txt", "more.txt"], ["--seeds", "2"]);
    run(&[&both[0], &both[1]], &scorers[0], &prompts, &seeds).expect_code(0);
    let (all, files) = scored(&fixture);
    assert_eq!(all.len(), 2 * 3 * 2 * 2);
    // One model, the other first; one set; one seed; one metric: nothing is lost, not even the
    // order.
    for model in &both {
        let again = run(&[model], &scorers[0], &prompts, &seeds).expect_code(0);
        assert!(again.stdout.contains("again vs sd"), "{again:#?}");
        assert!(again.stderr.contains("already complete"), "{again:#?}");
        assert!(scored(&fixture) == (all.clone(), files.clone()));
    }
    run(&[&both[0]], &scorers[1], &["more.txt"], &["--seeds", "1"]).expect_code(0);
    assert!(scored(&fixture) == (all.clone(), files.clone()));
    let one = format!("{},limit=1", fixture.path("prompts.txt").display());
    run(&[&both[1]], &scorers[1], &[&one], &["--seeds", "1"]).expect_code(0);
    assert!(scored(&fixture).0 == all);
    // A model more stands behind the others.
    let third = model("sd").replacen("sd=", "a-third=", 1);
    let grown = run(&[&third], &scorers[0], &prompts, &seeds).expect_code(0);
    assert!(grown.stdout.contains("a-third vs again"), "{grown:#?}");
    let (grown, _) = scored(&fixture);
    assert_eq!((grown.len(), &grown[..all.len()]), (36, &all[..]));
    // Scores by another program, without what they were computed from.
    let bare = schemas::scores::ScoresWriter::create(
        fixture.path("out/scores.parquet"),
        &std::collections::BTreeMap::new(),
    );
    let mut bare = bare.unwrap();
    grown.iter().for_each(|row| bare.write(row.clone()).unwrap());
    bare.finish().unwrap();
    run(&[&both[0]], &scorers[1], &["more.txt"], &["--seeds", "1"]).expect_code(0);
    assert!(scored(&fixture).0 == grown);
    // Another image in the place of a held one: what was said of the old bytes is not said of it.
    let held = all.iter().find(|row| row.model == "again" && row.metric == "hps").unwrap();
    let other = all.iter().find(|row| row.prompt == "a hill").unwrap();
    std::fs::copy(fixture.path("out").join(&other.image), fixture.path("out").join(&held.image))
        .unwrap();
    let changed = run(&[&both[0]], &scorers[0], &prompts, &seeds).expect_code(0);
    assert!(changed.stderr.contains("scoring: "), "{changed:#?}");
    let row = |row: &&ScoreRow| (&row.image, &row.metric) == (&held.image, &held.metric);
    assert_ne!(rows(&fixture).iter().find(row).unwrap().score, held.score);
    // --only-named drops the rest.
    let only = ["--seeds", "1", "--only-named"];
    run(&[&both[0]], &scorers[1], &["more.txt"], &only).expect_code(0);
    let left = rows(&fixture);
    let one = (left[0].model.as_str(), left[0].metric.as_str(), left[0].prompt.as_str());
    assert_eq!((left.len(), one), (1, ("sd", "clip", "a hill")));
}

#[test]
fn images_made_elsewhere_stay_in_the_scores_also_when_they_are_gone() {
    let fixture = generated();
    let images: Vec<(String, Vec<u8>)> = fixture.files("out/images/sd").into_iter().collect();
    for (name, bytes) in &images {
        fixture.put(&format!("other/{name}"), bytes);
    }
    let source = format!("other={}", fixture.path("other").display());
    let scorers = some_scorers(&fixture, 1);
    // Equal images under equal captions go through the networks once.
    expect_scored(Run::of(&mut score(&fixture, &scorers, &["--images", &source])), 12, 6, 0);
    let both = rows(&fixture);
    expect_scored(Run::of(&mut score(&fixture, &scorers, &[])), 12, 0, 0);
    assert!(rows(&fixture) == both);
    std::fs::remove_dir_all(fixture.path("other")).unwrap();
    expect_scored(Run::of(&mut score(&fixture, &scorers, &[])), 12, 0, 0);
    assert!(rows(&fixture) == both);
    // Of the folder's own, one that is gone is a row that says so where it is named, and none where
    // it is not.
    std::fs::remove_file(fixture.path("out/images/sd").join(&images[5].0)).unwrap();
    let named = ["--seeds", "2"];
    let run = Run::of(&mut score(&fixture, &scorers, &named)).expect_code(0);
    assert!(run.stderr.contains("scores.parquet loses the scores of 1 images"), "{run:#?}");
    assert_eq!(rows(&fixture).len(), 11);
    expect_scored(Run::of(&mut score(&fixture, &scorers, &["--models", "sd"])), 6, 0, 3);
    assert_eq!(rows(&fixture).len(), 6, "--models leaves out the others");
}

#[test]
fn what_is_wrong_is_said_before_the_first_image_and_by_a_dry_run() {
    let fixture = Fixture::new(&["a fox", "a mill"]);
    fixture.put("all.txt", b"a fox\n");
    let sd = common::pipeline("sd");
    let cut = fixture.copy_pipeline("sd");
    let weights = cut.join("vae/diffusion_pytorch_model.safetensors");
    let bytes = std::fs::read(&weights).unwrap();
    // Its header is whole, so only loading finds the NaN.
    let spoilt = {
        let mut bytes = bytes.clone();
        let end = bytes.len();
        bytes[end - 4..].fill(0xff);
        bytes
    };
    fixture.put("sd/vae/diffusion_pytorch_model.safetensors", &spoilt);
    let cut = format!("cut={}", cut.display());
    let text = std::fs::read_to_string(some_scorers(&fixture, 4)).unwrap();
    let bad_head = text.replace("head = \"", "head = \"/absent");
    let bad_head = fixture.put("bad-head.toml", bad_head.as_bytes()).display().to_string();
    let hub = text.replacen("model = \"", "model = \"hf://owner/absent\" #", 1);
    let hub = fixture.put("hub.toml", hub.as_bytes()).display().to_string();
    let all = fixture.path("all.txt").display().to_string();
    let prompts = fixture.path("prompts.txt").display().to_string();
    let labels = fixture.put("labels.parquet", b"PAR1PAR1").display().to_string();
    let cases: [(&[&str], &str); 11] = [
        (&["--scorers", "nope.toml"], "nope.toml"),
        (&["--scorers", &bad_head], "/absent"),
        (&["--scorers", &hub], "absent"),
        (&["--labels", "nope.parquet"], "nope.parquet"),
        (&["--labels", &labels], "labels.parquet"),
        (
            &["--baselines", "foo"],
            "no scores of the model \"foo\"; hint: there are scores of sd, again",
        ),
        (&["--baselines", "sd,sd"], "\"sd\" is named twice"),
        (&["--prompts", &prompts, &all], "a set of prompts is called \"all\""),
        (&["--model", &cut], "model cut"),
        (&["--out", "/proc/evaluation"], "/proc/evaluation"),
        (&["--model", "x=absent"], "model x"),
    ];
    for (more, says) in cases {
        let command = |dry: bool| {
            let mut command = evaluate(["run", "--device", "cpu", "--steps", "2", "--seeds", "2"]);
            command
                .args(["--model", &model("sd")])
                .arg("--model")
                .arg(format!("again={}", sd.display()));
            command.env("HF_HUB_OFFLINE", "1").env("HF_HOME", fixture.path("hub"));
            for (flag, value) in [("--prompts", &prompts), ("--scorers", &SCORERS.to_owned())] {
                if !more.contains(&flag) {
                    command.args([flag, value]);
                }
            }
            if !more.contains(&"--out") {
                command.arg("--out").arg(fixture.path("out"));
            }
            command.args(more).args(dry.then_some("--dry-run"));
            Run::of(&mut command)
        };
        let run = command(false).expect_error(&[says]);
        let dry = command(true).expect_error(&[says]);
        let error = |run: &Run| run.stderr[run.stderr.find("error: ").unwrap()..].to_owned();
        assert_eq!(error(&run), error(&dry), "{more:?}");
        assert!(
            !fixture.path("out/images").exists() && !fixture.path("out/manifest.json").exists()
        );
    }
    for more in [&["--safe-threshold", "2"][..], &["--safe-threshold", "2", "--dry-run"]] {
        Run::of(&mut run(&fixture, more))
            .expect_usage_error(&["--safe-threshold must be in (0, 1]"]);
    }
}

#[test]
fn files_of_others_are_found_before_the_first_image() {
    let fixture = Fixture::new(&["a fox", "a mill"]);
    for name in ["config.toml", "tables.md", "report.html", "figures/scores.png", "scores.parquet"]
    {
        let mine = fixture.put(&format!("out/{name}"), b"mine");
        for more in [&[][..], &["--fresh"], &["--dry-run"]] {
            Run::of(&mut run(&fixture, more)).expect_error(&[name, "hint: choose another --out"]);
        }
        let left = fixture.files("out");
        assert_eq!(left.keys().filter(|name| !name.starts_with('.')).count(), 1, "{left:?}");
        std::fs::remove_file(mine).unwrap();
    }
    // --fresh removes the images that the manifest speaks of, and nothing else.
    Run::of(&mut run(&fixture, &[])).expect_code(0);
    let notes = fixture.put("out/images/sd/notes.txt", b"mine");
    Run::of(&mut run(&fixture, &["--fresh", "--seeds", "1"])).expect_code(0);
    assert_eq!(std::fs::read(notes).unwrap(), b"mine");
    assert_eq!(fixture.files("out/images").len(), 1 + 4);
    assert_eq!(rows(&fixture).len(), 4 * METRICS.len(), "nothing of the earlier scores stays");
}

#[test]
fn damaged_scores_are_found_before_the_first_image() {
    let fixture = generated();
    Run::of(&mut score(&fixture, SCORERS, &[])).expect_code(0);
    let images = fixture.files("out/images");
    let more = ["--seeds", "4"];
    let stored = fixture.files("out/score-store").into_keys().next().unwrap();
    for (name, says) in [
        (format!("out/score-store/{stored}"), "not a score; hint: remove the file"),
        ("out/scores.parquet".to_owned(), "hint: choose another --out"),
    ] {
        let path = fixture.path(&name);
        let whole = std::fs::read(&path).unwrap();
        fixture.put(&name, b"somebody's\n");
        for dry in [None, Some("--dry-run")] {
            let mut command = run(&fixture, &more);
            Run::of(command.args(dry)).expect_error(&[&name, says]);
        }
        assert!(fixture.files("out/images") == images, "nothing is generated");
        fixture.put(&name, &whole);
    }
}

#[test]
fn the_settings_that_are_printed_are_complete() {
    let fixture = Fixture::new(&["a fox"]);
    let expect = |command: &mut Command, lines: &[&str]| {
        let run = Run::of(command.arg("--print-config")).expect_code(0);
        for line in lines {
            assert!(run.stdout.lines().any(|found| found == *line), "{line} is not in {run:#?}");
        }
        fixture.put("printed.toml", run.stdout.as_bytes())
    };
    let scoring = ["score_batch_size = 8", "max_failed = 0", "only_named = false"];
    let report = ["[report]", "safe_filter = \"none\"", "safe_threshold = 0.5", "steps = 2"];
    let printed = expect(&mut run(&fixture, &[]), &[&scoring[..], &report].concat());
    let again = Run::of(evaluate(["run", "--print-config", "--config"]).arg(&printed));
    assert_eq!(again.stdout.as_bytes(), std::fs::read(&printed).unwrap());
    let score_lines = ["device = \"cpu\"", "dtype = \"auto\""];
    expect(&mut score(&fixture, SCORERS, &[]), &[&scoring[..], &score_lines].concat());
}

#[test]
fn unsafe_prompts_are_left_out_and_named() {
    let fixture = Fixture::new(&["a fox", "a mill", "a hill"]);
    // Below every probability: nothing is safe.
    let none = ["--safe-filter", CLASSIFIER, "--safe-threshold", "1e-30"];
    let error = Run::of(&mut run(&fixture, &none));
    assert_eq!(error.status.code(), Some(1), "{error:#?}");
    assert!(error.stderr.contains("unsafe") && error.stderr.contains("hint"), "{error:#?}");
    let all = ["--safe-filter", CLASSIFIER, "--safe-threshold", "1", "--dry-run"];
    let kept = Run::of(&mut run(&fixture, &all)).expect_code(0);
    assert!(kept.stdout.contains("3 prompts of prompts"), "{kept:#?}");
}
