//! `relabel inspect --voting` against numbers that `scripts/goldens/voting.py` computed from the
//! papers, with five voters and with four.
#![expect(clippy::unwrap_used, reason = "a test stops where something is missing")]

mod common;

use std::collections::BTreeMap;

use common::{Fixture, Run, relabel};
use schemas::labels::{LabelRow, LabelsSchema, LabelsWriter, Status, consensus, vote};
use serde_json::Value;

/// Fits end when the log-likelihood changes by less than 1e-9; last bits of it decide when.
const TOLERANCE: f64 = 1e-6;

fn golden() -> Value {
    serde_json::from_str(include_str!("fixtures/voting.json")).unwrap()
}

/// The labels file of the golden rows, with the first `voters` voters.
fn labels_file(fixture: &Fixture, golden: &Value, voters: usize, has_human_labels: bool) {
    let names: Vec<&str> = golden["voters"].as_array().unwrap()[..voters]
        .iter()
        .map(|it| it.as_str().unwrap())
        .collect();
    let schema = LabelsSchema::new(&names).unwrap();
    let path = fixture.path("labels.parquet");
    let mut writer = LabelsWriter::create(&path, &schema, &BTreeMap::new()).unwrap();
    for (number, row) in (0..).zip(golden["rows"].as_array().unwrap()) {
        let score = |scorer: usize, image: usize| {
            Some(row["scores"][scorer].get(image)?.as_f64().unwrap() as f32 / 64.0)
        };
        let scores: Vec<_> = (0..voters).map(|it| [score(it, 0), score(it, 1)]).collect();
        let votes: Vec<Option<i8>> =
            scores.iter().map(|[first, second]| Some(vote((*first)?, (*second)?))).collect();
        let is_whole = votes.iter().all(Option::is_some);
        let vote_sum = is_whole.then(|| votes.iter().flatten().sum::<i8>());
        let row = LabelRow {
            pair_id: format!("pair {number}"),
            source_file: "pairs.parquet".to_owned(),
            source_row: number,
            caption: row["caption"].as_str().map(str::to_owned),
            image_uid: [Some(format!("left {number}")), Some(format!("right {number}"))],
            human_label_0: row["human_label_0"].as_f64().filter(|_| has_human_labels),
            scores,
            votes,
            vote_sum,
            consensus: vote_sum.map(consensus),
            status: if is_whole { Status::Ok } else { Status::Partial },
            error: (!is_whole).then(|| "a scorer returned NaN".to_owned()),
        };
        writer.write(&row).unwrap();
    }
    writer.finish().unwrap();
}

fn study(fixture: &Fixture) -> Value {
    let labels = fixture.path("labels.parquet");
    let run = Run::of(relabel(["inspect", "--voting", "--json"]).arg(labels)).expect_code(0);
    serde_json::from_str(&run.stdout).unwrap()
}

/// Every value of `expected` is in `found`, numbers to [`TOLERANCE`].
fn compare(found: &Value, expected: &Value, place: &str) {
    match expected {
        Value::Object(fields) => {
            for (name, expected) in fields {
                compare(&found[name], expected, &format!("{place}.{name}"));
            }
        }
        Value::Array(items) => {
            assert_eq!(found.as_array().unwrap().len(), items.len(), "{place}");
            for (number, expected) in items.iter().enumerate() {
                compare(&found[number], expected, &format!("{place}[{number}]"));
            }
        }
        Value::Number(number) => {
            let (found, expected) = (found.as_f64(), number.as_f64().unwrap());
            let difference = (found.unwrap_or(f64::NAN) - expected).abs();
            let allowed = TOLERANCE * expected.abs().max(1.0);
            assert!(difference <= allowed, "{place}: found {found:?}, expected {expected}");
        }
        _ => assert_eq!(found, expected, "{place}"),
    }
}

#[test]
fn rules_voters_and_rates_equal_those_computed_from_the_papers() {
    let golden = golden();
    for (name, voters) in [("five", 5), ("four", 4)] {
        let fixture = Fixture::empty();
        labels_file(&fixture, &golden, voters, true);
        let found = study(&fixture);
        let mut expected = golden[name].clone();
        // The last bits of a sum may end the fit an iteration earlier or later.
        let iterations = expected["dawid_skene"].as_object_mut().unwrap().remove("iterations");
        let iterations = iterations.unwrap().as_u64().unwrap();
        let of_program = found["dawid_skene"]["iterations"].as_u64().unwrap();
        assert!(of_program.abs_diff(iterations) <= 1, "{of_program} {iterations}");
        compare(&found, &expected, name);
        let ties = found["rules"][0]["ties"].as_u64().unwrap();
        assert!(ties > 0 && found["partial_rows"].as_u64().unwrap() > 0, "{found}");
    }
}

#[test]
fn without_human_labels_the_study_has_rules_and_reliabilities() {
    let golden = golden();
    let fixture = Fixture::empty();
    labels_file(&fixture, &golden, 5, false);
    let found = study(&fixture);
    let names: Vec<&str> =
        found["rules"].as_array().unwrap().iter().map(|it| it["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["majority", "borda", "dawid_skene", "unanimous"]);
    assert!(found["rules"].as_array().unwrap().iter().all(|it| it["human_agreement"].is_null()));
    assert_eq!(found["voters"][0]["weight"], Value::Null);
    assert_eq!(found["human_pairs"], 0);
    let (rates, expected) = (&found["dawid_skene"], &golden["five"]["dawid_skene"]);
    compare(&rates["reliability"], &expected["reliability"], "human labels change nothing");
    compare(&rates["class_prior"], &expected["class_prior"], "prior");
}

#[test]
fn the_study_is_readable_and_goes_with_no_list_of_failures() {
    let fixture = Fixture::empty();
    labels_file(&fixture, &golden(), 5, true);
    let labels = fixture.path("labels.parquet");
    let run = Run::of(relabel(["inspect", "--voting"]).arg(&labels)).expect_code(0);
    for words in ["300 pairs", "dawid-skene", "unanimous", "who decides", "lack a voter"] {
        assert!(run.stdout.contains(words), "{words}: {}", run.stdout);
    }
    for line in run.stdout.lines() {
        assert!(line.chars().count() <= 100, "{line}");
    }
    Run::of(relabel(["inspect", "--voting", "--failed"]).arg(&labels))
        .expect_usage_error(&["--failed", "--voting"]);
    assert_eq!(study(&fixture), study(&fixture), "equal input, equal numbers");
}
