//! Scores of the miniature models against those of transformers and open_clip, as
//! `scripts/miniature/evaluate_models.py` wrote them into `data/mini/golden_scores.json`.
#![expect(clippy::unwrap_used, reason = "a test stops where something is missing")]

mod common;

use std::collections::HashMap;
use std::path::Path;

use common::{ALL_SCORERS, Fixture, MINI, Run, SAMPLE, four_scorers, relabel};
use schemas::labels::LabelsFile;

#[test]
fn scores_equal_those_of_the_python_libraries() {
    let text = std::fs::read(Path::new(MINI).join("golden_scores.json")).unwrap();
    let golden: serde_json::Value = serde_json::from_slice(&text).unwrap();
    let pairs = golden["pairs"].as_array().unwrap();
    assert!(pairs.len() >= 10, "{} pairs", pairs.len());

    let fixture = Fixture::empty();
    let out = fixture.path("labels.parquet");
    let mut command = relabel(["score", "--pairs", SAMPLE, "--scorers"]);
    Run::of(command.arg(four_scorers()).arg("--out").arg(&out)).expect_code(0);
    let rows = LabelsFile::open(&out).unwrap().read_rows().unwrap();
    let rows: HashMap<(&str, i64), _> =
        rows.iter().map(|row| ((row.source_file.as_str(), row.source_row), row)).collect();

    let mut largest = [0f64; ALL_SCORERS.len()];
    for pair in pairs {
        let row = rows[&(pair["file"].as_str().unwrap(), pair["row"].as_i64().unwrap())];
        assert_eq!(row.caption.as_deref(), pair["caption"].as_str());
        assert_eq!(row.image_uid[0].as_deref(), pair["image_0_uid"].as_str());
        for (scorer, name) in ALL_SCORERS.into_iter().enumerate() {
            for image in [0, 1] {
                let expected = pair["scores"][name][image].as_f64().unwrap();
                let found = f64::from(row.scores[scorer][image].unwrap());
                largest[scorer] = largest[scorer].max((found - expected).abs());
            }
        }
    }
    println!("largest differences of {ALL_SCORERS:?}: {largest:?}");
    for (name, difference) in ALL_SCORERS.into_iter().zip(largest) {
        let allowed = if name == "aesthetic" { 1e-4 } else { 1e-5 };
        assert!(difference <= allowed, "{name}: {difference:e}");
    }
}
