//! `evaluate score` and `evaluate run`: every picture judged once, whatever happens in between.
#![expect(clippy::unwrap_used, reason = "a test stops where something is missing")]

mod common;

use std::path::Path;
use std::process::Command;

use common::{Drawn as _, Run, World, evaluate, model};
use schemas::scores::{ScoreRow, ScoresFile};

const SCORERS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../data/mini/scorers.toml");
/// A tiny DistilBERT with random weights.
const CLASSIFIER: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../crates/nn/tests/fixtures/distilbert");
const METRICS: [&str; 4] = ["clip", "hps", "pickscore", "aesthetic"];

/// A folder with six pictures, three each of two prompts.
fn drawn() -> World {
    let world = World::new(&["a fox", "a mill"]);
    Run::of(&mut world.generate(&[&model("sd")], &["--seeds", "3"])).expect_drawn(6, 6);
    world
}

fn score(world: &World, scorers: impl AsRef<Path>, more: &[&str]) -> Command {
    let mut command = evaluate(["score", "--device", "cpu"]);
    command.arg("--out").arg(world.path("out")).arg("--scorers").arg(scorers.as_ref()).args(more);
    command.arg("--prompts").arg(world.path("prompts.txt"));
    command
}

fn rows(world: &World) -> Vec<ScoreRow> {
    ScoresFile::open(world.path("out/scores.parquet")).unwrap().read().unwrap()
}

#[track_caller]
fn expect_scored(run: Run, pictures: usize, scored: usize, code: i32) {
    let expected = format!("{pictures} images, {scored} of them scored now\n");
    assert!(run.stdout.starts_with(&expected), "{run:#?}");
    run.expect_code(code);
}

/// The scorers of the miniature world, the first `count` of them, with absolute paths.
fn some_scorers(world: &World, count: usize) -> std::path::PathBuf {
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
    world.put(&format!("scorers-{count}.toml"), kept.as_bytes())
}

#[test]
fn every_picture_has_every_score_in_order() {
    let world = drawn();
    expect_scored(Run::of(&mut score(&world, SCORERS, &[])), 6, 6, 0);
    let rows = rows(&world);
    assert_eq!(rows.len(), 6 * METRICS.len());
    for (place, row) in rows.iter().enumerate() {
        assert_eq!(row.metric, METRICS[place % 4]);
        assert_eq!(row.seed, (place / 4 % 3) as i64);
        assert_eq!(row.prompt, ["a fox", "a mill"][place / 12]);
        assert_eq!((row.model.as_str(), row.prompt_set.as_str()), ("sd", "prompts"));
        assert!(row.score.is_some_and(f32::is_finite) && row.error.is_none(), "{row:?}");
        assert!(world.path("out").join(&row.image).is_file(), "{row:?}");
    }
    // Cosines, and a head whose scores are of another size.
    assert!(rows.iter().all(|row| (row.metric == "aesthetic") == (row.score.unwrap() > 1.0)));
}

#[test]
fn only_what_is_new_is_scored_and_the_bytes_are_the_same() {
    let world = drawn();
    expect_scored(Run::of(&mut score(&world, some_scorers(&world, 4), &[])), 6, 6, 0);
    let whole = std::fs::read(world.path("out/scores.parquet")).unwrap();
    expect_scored(Run::of(&mut score(&world, some_scorers(&world, 4), &[])), 6, 0, 0);
    assert!(whole == std::fs::read(world.path("out/scores.parquet")).unwrap());

    // A metric more: the others are not computed again.
    std::fs::remove_dir_all(world.path("out/score-store")).unwrap();
    expect_scored(Run::of(&mut score(&world, some_scorers(&world, 3), &[])), 6, 6, 0);
    let before = store(&world);
    expect_scored(Run::of(&mut score(&world, some_scorers(&world, 4), &[])), 6, 6, 0);
    let after = store(&world);
    assert_eq!((before.len(), after.len()), (3, 4));
    assert!(before.iter().all(|file| after.contains(file)), "what was there stays as it was");
    assert!(whole == std::fs::read(world.path("out/scores.parquet")).unwrap());

    // A prompt more.
    world.put("prompts.txt", b"a fox\na mill\na hill\n");
    Run::of(&mut world.generate(&[&model("sd")], &["--seeds", "3"])).expect_drawn(3, 9);
    let more = ["--score-batch-size", "3"];
    expect_scored(Run::of(&mut score(&world, some_scorers(&world, 4), &more)), 9, 3, 0);
}

/// The files of the store with their bytes.
fn store(world: &World) -> Vec<(String, Vec<u8>)> {
    world.files("out/score-store").into_iter().collect()
}

#[test]
fn killed_at_any_batch_the_bytes_are_the_same() {
    let world = drawn();
    let more = ["--score-batch-size", "2"];
    expect_scored(Run::of(&mut score(&world, SCORERS, &more)), 6, 6, 0);
    let whole = std::fs::read(world.path("out/scores.parquet")).unwrap();
    let stores = store(&world);
    for lines in 0..6 {
        // As a kill leaves it: some batches there, the last line cut.
        std::fs::remove_file(world.path("out/scores.parquet")).unwrap();
        for (name, bytes) in &stores {
            let ends: Vec<usize> = bytes
                .iter()
                .enumerate()
                .filter(|end| *end.1 == b'\n')
                .map(|end| end.0 + 1)
                .collect();
            let end = if lines == 0 { 0 } else { ends[lines - 1] };
            world.put(&format!("out/score-store/{name}"), &bytes[..(end + 9).min(bytes.len())]);
        }
        Run::of(&mut score(&world, SCORERS, &more)).expect_code(0);
        assert!(whole == std::fs::read(world.path("out/scores.parquet")).unwrap(), "{lines} lines");
    }
}

#[test]
fn pictures_that_cannot_be_scored_are_rows_with_a_reason() {
    let world = drawn();
    let pictures: Vec<String> = world.files("out/images").into_keys().collect();
    std::fs::remove_file(world.path("out/images").join(&pictures[0])).unwrap();
    world.put(&format!("out/images/{}", pictures[1]), b"not a picture");
    expect_scored(Run::of(&mut score(&world, SCORERS, &[])), 6, 6, 3);
    let found = rows(&world);
    assert_eq!(found.len(), 24, "no row is lost");
    let failed: Vec<&ScoreRow> = found.iter().filter(|row| row.score.is_none()).collect();
    assert_eq!(failed.len(), 8);
    assert_eq!(failed[0].error.as_deref(), Some("no picture"));
    assert!(failed[4].error.as_ref().unwrap().contains("not recognised"), "{:?}", failed[4]);
    let tolerant = ["--max-failed", "2"];
    expect_scored(Run::of(&mut score(&world, SCORERS, &tolerant)), 6, 0, 0);
}

#[test]
fn pictures_made_elsewhere_have_the_scores_of_their_pixels() {
    let world = drawn();
    Run::of(&mut score(&world, SCORERS, &[])).expect_code(0);
    let here = rows(&world);
    let mut list = String::new();
    for row in here.iter().filter(|row| row.metric == "clip") {
        let name = format!("{}-{}.png", row.prompt_id, row.seed);
        world.put(
            &format!("other/{name}"),
            &std::fs::read(world.path("out").join(&row.image)).unwrap(),
        );
        list += &format!(
            "{{\"file_name\":\"{name}\",\"text\":\"{}\",\"seed\":{}}}\n",
            row.prompt, row.seed
        );
    }
    world.put("other/metadata.jsonl", list.as_bytes());
    let source = format!("other={}", world.path("other").display());
    // The same bytes and captions: nothing is computed.
    expect_scored(Run::of(&mut score(&world, SCORERS, &["--images", &source])), 12, 0, 0);
    let both = rows(&world);
    assert_eq!(both[..24], here[..]);
    for (one, two) in both[..24].iter().zip(&both[24..]) {
        assert_eq!((two.model.as_str(), one.score), ("other", two.score));
        assert!(Path::new(&two.image).is_absolute());
    }
    let empty = format!("x={}", world.put("empty/readme.md", b"").parent().unwrap().display());
    Run::of(&mut score(&world, SCORERS, &["--images", &empty]))
        .expect_error(&["expected metadata.jsonl or metadata.csv", "found neither"]);
    Run::of(&mut score(&world, SCORERS, &["--models", "dpo"]))
        .expect_error(&["no pictures of a model \"dpo\"", "hint"]);
    Run::of(&mut score(&world, world.path("absent.toml"), &[])).expect_error(&["absent.toml"]);
}

fn run(world: &World, more: &[&str]) -> Command {
    let mut command = evaluate(["run", "--device", "cpu", "--steps", "2", "--seeds", "2"]);
    command.args(["--model", &model("sd"), "--model", &model("sd").replacen("sd=", "again=", 1)]);
    command.arg("--prompts").arg(world.path("prompts.txt"));
    command.args(["--scorers", SCORERS]).arg("--out").arg(world.path("out")).args(more);
    command
}

#[test]
fn a_run_draws_judges_and_reports_and_a_second_one_changes_nothing() {
    let world = World::new(&["a fox", "a mill", "a hill"]);
    let plan = Run::of(&mut run(&world, &["--dry-run"])).expect_code(0);
    assert!(plan.stdout.contains("3 prompts of prompts, 2 images each"), "{plan:#?}");
    assert!(plan.stdout.contains("again: 6 of 6 images to draw at 16x16"), "{plan:#?}");
    assert!(!world.path("out").exists(), "a dry run writes nothing");

    let first = Run::of(&mut run(&world, &[])).expect_code(0);
    assert!(first.stdout.contains("again vs sd"), "{first:#?}");
    let files = world.files("out");
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
    Run::of(&mut run(&world, &[])).expect_code(0);
    assert!(files == world.files("out"));
}

#[test]
fn unsafe_prompts_are_left_out_and_named() {
    let world = World::new(&["a fox", "a mill", "a hill"]);
    // Below every probability: nothing is safe.
    let none = ["--safe-filter", CLASSIFIER, "--safe-threshold", "1e-30"];
    let error = Run::of(&mut run(&world, &none));
    assert_eq!(error.status.code(), Some(1), "{error:#?}");
    assert!(error.stderr.contains("unsafe") && error.stderr.contains("hint"), "{error:#?}");
    let all = ["--safe-filter", CLASSIFIER, "--safe-threshold", "1", "--dry-run"];
    let kept = Run::of(&mut run(&world, &all)).expect_code(0);
    assert!(kept.stdout.contains("3 prompts of prompts"), "{kept:#?}");
}
