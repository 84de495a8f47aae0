//! `evaluate filter-prompts` with the small classifier that `scripts/goldens/distilbert.py` makes.
#![expect(clippy::unwrap_used, reason = "a test stops where something is missing")]

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use common::{Fixture, Generated as _, Run, evaluate, model};
use evaluate::prompts::{self, PromptSource, SafetyClassifier};
use serde_json::Value;

fn classifier() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/nn/tests/fixtures/distilbert")
}

/// The texts of the golden and how unsafe transformers finds each; those that are no prompts left
/// out.
fn golden() -> Vec<(String, f64)> {
    let text = std::fs::read_to_string(classifier().join("expected.json")).unwrap();
    let golden: Value = serde_json::from_str(&text).unwrap();
    let texts = golden["texts"].as_array().unwrap().iter().map(|text| text.as_str().unwrap());
    let logits = golden["logits"].as_array().unwrap();
    texts
        .zip(logits)
        .filter(|(text, _)| !text.trim().is_empty() && !text.contains(['\0', '\n']))
        .map(|(text, logits)| {
            let [safe, not] = [0, 1].map(|class| logits[class].as_f64().unwrap());
            (text.to_owned(), 1.0 / (1.0 + (safe - not).exp()))
        })
        .collect()
}

fn filter_prompts(fixture: &Fixture, sources: &[&str], more: &[&str]) -> Command {
    let mut command = evaluate(["filter-prompts", "--out"]);
    command.arg(fixture.path("out/safe.jsonl")).arg("--prompts").args(sources).args(more);
    if !more.contains(&"--classifier") {
        command.arg("--classifier").arg(classifier());
    }
    command
}

fn lines(fixture: &Fixture, name: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(fixture.path(name)).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn decisions_are_those_of_transformers_and_ids_stay() {
    let golden = golden();
    let texts: Vec<&str> = golden.iter().map(|(text, _)| text.as_str()).collect();
    let fixture = Fixture::new(&texts);
    let table =
        "Prompt\tCategory\na cat\tAnimals\nnaked woman, blood and a gun\tPeople\na cat\tArt\n";
    let table = fixture.put("table.tsv", table.as_bytes());
    let list = fixture.path("prompts.txt").display().to_string();
    let sources = [list.as_str(), &format!("{},name=parti", table.display())];
    let run = Run::of(&mut filter_prompts(&fixture, &sources, &[])).expect_code(0);

    let (kept, dropped) =
        (lines(&fixture, "out/safe.jsonl"), lines(&fixture, "out/safe.dropped.jsonl"));
    let of = |set: &str, rows: &[Value]| -> Vec<Value> {
        rows.iter().filter(|row| row["set"] == set).cloned().collect()
    };
    let mut classified = of("prompts", &kept);
    classified.extend(of("prompts", &dropped));
    assert_eq!(classified.len(), golden.len());
    for (text, probability) in &golden {
        let row = classified.iter().find(|row| row["prompt"] == text.trim()).unwrap();
        let found = row["unsafe_probability"].as_f64().unwrap();
        assert!((found - probability).abs() < 1e-5, "{text:?}: {found}, not {probability}");
        assert_eq!(row["kept"], *probability < 0.5, "{text:?}");
    }
    let (safe, unsafe_ones) = (of("prompts", &kept).len(), of("prompts", &dropped).len());
    assert!(safe > 5 && unsafe_ones > 5, "the golden tells texts apart");
    let figures = format!("prompts: {} prompts read, {safe} kept", golden.len());
    assert!(run.stdout.contains(&figures), "{run:#?}");
    assert!(run.stdout.contains("parti: 2 prompts read"), "{run:#?}");
    assert!(run.stdout.contains(dropped[0]["id"].as_str().unwrap()), "{run:#?}");
    assert!(
        run.stderr.contains("skipped 1 row with an earlier prompt (the first is row 3)"),
        "{run:#?}"
    );

    // What was kept is read with the ids, sets and categories that it had.
    let whole = prompts::read(&sources.map(|source| source.parse().unwrap())).unwrap();
    let source = PromptSource::from(fixture.path("out/safe.jsonl"));
    let safe = prompts::read(std::slice::from_ref(&source)).unwrap();
    assert!(safe.iter().all(|set| whole.iter().any(|whole| whole.name == set.name)));
    for set in &safe {
        let whole = whole.iter().find(|whole| whole.name == set.name).unwrap();
        assert!(set.prompts.iter().all(|prompt| whole.prompts.contains(prompt)), "{set:#?}");
    }
    // The library gives what the command writes.
    let name = classifier().display().to_string();
    let classifier = SafetyClassifier::open(&name, "nsfw", tch::Device::Cpu).unwrap();
    assert_eq!(classifier.record().files.len(), 2);
    let filtered = prompts::filter(whole, &classifier, 0.5).unwrap();
    let reasons =
        filtered.iter().flat_map(|set| &set.dropped).map(prompts::ClassifiedPrompt::reason);
    assert!(reasons.into_iter().all(|reason| reason.starts_with("unsafe with probability ")));
    let kept: Vec<_> = filtered.into_iter().map(prompts::FilteredSet::into_kept).collect();
    let texts = |sets: &[prompts::PromptSet]| -> Vec<String> {
        sets.iter().flat_map(|set| &set.prompts).map(|prompt| prompt.id.clone()).collect()
    };
    assert_eq!(texts(&kept), texts(&safe));
}

#[test]
fn images_are_generated_for_what_is_kept() {
    let fixture = Fixture::new(&[
        "a cat",
        "a knight with a gun in the night city",
        "the old castle",
        "a fox",
    ]);
    let list = fixture.path("prompts.txt").display().to_string();
    Run::of(&mut filter_prompts(&fixture, &[&list], &["--safe-threshold", "1"])).expect_code(0);
    let all = lines(&fixture, "out/safe.jsonl");
    let mut sorted: Vec<f64> =
        all.iter().map(|row| row["unsafe_probability"].as_f64().unwrap()).collect();
    sorted.sort_by(f64::total_cmp);
    // A threshold that two of them pass; the same prompt has the same image in both runs.
    let threshold = ((sorted[1] + sorted[2]) / 2.0).to_string();
    Run::of(&mut filter_prompts(&fixture, &[&list], &["--safe-threshold", &threshold]))
        .expect_code(0);
    assert_eq!(lines(&fixture, "out/safe.dropped.jsonl").len(), 2);
    let safe = fixture.path("out/safe.jsonl").display().to_string();
    let sd = model("sd");
    Run::of(&mut fixture.generate(&[&sd], &["--seeds", "1"])).expect_generated(4, 4);
    let more = ["--prompts", &safe, "--seeds", "1"];
    Run::of(&mut fixture.generate(&[&sd], &more)).expect_generated(0, 2);
}

#[test]
fn what_makes_no_sense_is_refused_and_leaves_no_trace() {
    let fixture = Fixture::new(&["a cat"]);
    let list = fixture.path("prompts.txt").display().to_string();
    let refused = |source: &str, more: &[&str], says: &[&str]| {
        Run::of(&mut filter_prompts(&fixture, &[source], more)).expect_error(says);
        assert!(!fixture.path("out/safe.jsonl").exists());
    };
    for (flag, value, says) in [
        ("--safe-threshold", "0", "--safe-threshold must be in (0, 1], found 0"),
        ("--safe-threshold", "NaN", "found NaN"),
        ("--safe-threshold", "50", "found 50"),
        ("--device", "gpu", "unknown device \"gpu\""),
    ] {
        let run = Run::of(&mut filter_prompts(&fixture, &[&list], &[flag, value]));
        run.expect_usage_error(&[says, "hint"]);
        assert!(!fixture.path("out/safe.jsonl").exists());
    }
    refused(&list, &["--unsafe-label", "toxic"], &["no class \"toxic\"", "SFW, NSFW", "hint"]);
    let run = Run::of(&mut filter_prompts(&fixture, &[&format!("{list},limit=2")], &[]));
    run.expect_usage_error(&["limit= counts kept prompts", "hint"]);
    refused(&fixture.path("absent.txt").display().to_string(), &[], &["cannot read", "absent.txt"]);
    let absent = fixture.path("absent").display().to_string();
    refused(&list, &["--classifier", &absent], &["absent does not exist"]);
    let mut to_text = evaluate(["filter-prompts", "--prompts", &list, "--out", "safe.txt"]);
    Run::of(&mut to_text)
        .expect_usage_error(&["safe.txt is not the name of a .jsonl file", "hint"]);

    let mine = fixture.path("mine").display().to_string();
    let copy = |without: &str| {
        for entry in std::fs::read_dir(classifier()).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            let path = fixture.put(&format!("mine/{name}"), &std::fs::read(entry.path()).unwrap());
            if name == without {
                std::fs::remove_file(path).unwrap();
            }
        }
    };
    for (without, says) in [
        ("config.json", "has no file config.json"),
        ("model.safetensors", "has none of model.safetensors"),
        ("tokenizer.json", "has no file vocab.txt"),
    ] {
        copy(without);
        refused(&list, &["--classifier", &mine], &["the safety classifier", says]);
    }
    copy("");
    let tokenizer = std::fs::read_to_string(fixture.path("mine/tokenizer.json")).unwrap();
    let larger = tokenizer.replacen("\"vocab\": {", "\"vocab\": {\"zebra\": 5000,", 1);
    assert_ne!(larger, tokenizer);
    fixture.put("mine/tokenizer.json", larger.as_bytes());
    refused(&list, &["--classifier", &mine], &["tokenizer has 5001 tokens", "hint"]);
}

#[test]
fn lists_that_are_not_ours_are_not_overwritten() {
    let fixture = Fixture::new(&["a cat"]);
    let list = fixture.path("prompts.txt").display().to_string();
    for name in ["out/safe.jsonl", "out/safe.dropped.jsonl"] {
        let mine = fixture.put(name, b"{\"prompt\": \"a fox\"}\n");
        let says = [name, "this program did not write", "hint: choose another --out"];
        Run::of(&mut filter_prompts(&fixture, &[&list], &[])).expect_error(&says);
        // Also as the list that is read.
        let mine = mine.display().to_string();
        let says = [name, "is one of the inputs"];
        Run::of(&mut filter_prompts(&fixture, &[&mine], &[])).expect_error(&says);
        assert_eq!(fixture.files("out").len(), 1, "nothing is written");
        std::fs::remove_file(&mine).unwrap();
    }
    for _ in 0..2 {
        Run::of(&mut filter_prompts(&fixture, &[&list], &[])).expect_code(0);
    }
}

#[test]
fn an_edited_prompt_is_not_taken_for_the_old_one() {
    let fixture = Fixture::new(&["a cat"]);
    let list = fixture.path("prompts.txt").display().to_string();
    Run::of(&mut filter_prompts(&fixture, &[&list], &["--safe-threshold", "1"])).expect_code(0);
    let text = std::fs::read_to_string(fixture.path("out/safe.jsonl")).unwrap();
    let file = fixture.put("edited.jsonl", text.replace("a cat", "a dog").as_bytes());
    let error = prompts::read(&[file.into()]).unwrap_err().to_string();
    assert!(error.contains("edited.jsonl:1: expected the id of the prompt \"a dog\""), "{error}");
    assert!(error.contains("hint: the prompt has changed"), "{error}");
}
