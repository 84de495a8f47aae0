//! Scores of the miniature models against those of transformers, open_clip and timm, as
//! `scripts/miniature/evaluate_models.py` wrote them into `data/mini/golden_scores.json`.
#![expect(clippy::unwrap_used, reason = "a test stops where something is missing")]

mod common;

use std::collections::HashMap;
use std::path::Path;

use common::{Fixture, MINI, Run, SAMPLE, five_scorers, relabel};
use schemas::labels::LabelsFile;

const SCORERS: [&str; 5] = ["clip", "hps", "pickscore", "aesthetic", "image_reward"];

#[test]
fn scores_equal_those_of_the_python_libraries() {
    let text = std::fs::read(Path::new(MINI).join("golden_scores.json")).unwrap();
    let golden: serde_json::Value = serde_json::from_slice(&text).unwrap();
    let pairs = golden["pairs"].as_array().unwrap();
    assert!(pairs.len() >= 10, "{} pairs", pairs.len());

    let fixture = Fixture::empty();
    let out = fixture.path("labels.parquet");
    let mut command = relabel(["score", "--pairs", SAMPLE, "--scorers"]);
    Run::of(command.arg(five_scorers()).arg("--out").arg(&out)).expect_code(0);
    let rows = LabelsFile::open(&out).unwrap().read_rows().unwrap();
    let rows: HashMap<(&str, i64), _> =
        rows.iter().map(|row| ((row.source_file.as_str(), row.source_row), row)).collect();

    let mut largest = [0f64; SCORERS.len()];
    for pair in pairs {
        let row = rows[&(pair["file"].as_str().unwrap(), pair["row"].as_i64().unwrap())];
        assert_eq!(row.caption.as_deref(), pair["caption"].as_str());
        assert_eq!(row.image_uid[0].as_deref(), pair["image_0_uid"].as_str());
        for (scorer, name) in SCORERS.into_iter().enumerate() {
            for image in [0, 1] {
                let expected = pair["scores"][name][image].as_f64().unwrap();
                let found = f64::from(row.scores[scorer][image].unwrap());
                // Of a score beyond 1, its last bits.
                let apart = match name {
                    "image_reward" => (found - expected).abs() / expected.abs().max(1.0),
                    _ => (found - expected).abs(),
                };
                largest[scorer] = largest[scorer].max(apart);
            }
        }
    }
    // The default has an odd number of voters: no vote ties, as all pairs of the sample can be scored.
    assert!(rows.values().all(|row| row.consensus.is_some_and(|consensus| consensus != 0)));
    println!("largest differences of {SCORERS:?}: {largest:?}");
    for (name, difference) in SCORERS.into_iter().zip(largest) {
        let allowed = if name == "aesthetic" { 1e-4 } else { 1e-5 };
        assert!(difference <= allowed, "{name}: {difference:e}");
    }
}
