//! What is taken for pairs, and what a human label is: splits, own outputs beside the pairs, labels
//! of another meaning.
#![expect(clippy::unwrap_used, reason = "a test stops where something is missing")]

mod common;

use std::sync::Arc;

use arrow::array::{ArrayRef, BinaryArray, BooleanArray, Float64Array, StringArray};
use common::{Fixture, Pair, Run, pairs_parquet, parquet_of, relabel, sample_pairs};

/// Pairs with labels and flags of one's own.
fn labelled(pairs: &[Pair], labels: Vec<f64>, flags: Vec<Option<bool>>) -> Vec<u8> {
    let text = |value: &dyn Fn(&Pair) -> Option<String>| -> ArrayRef {
        Arc::new(pairs.iter().map(value).collect::<StringArray>())
    };
    let image = |side: usize| -> ArrayRef {
        Arc::new(BinaryArray::from_iter(pairs.iter().map(|pair| pair.image[side].clone())))
    };
    parquet_of(vec![
        ("caption", text(&|pair| pair.caption.clone())),
        ("image_0_uid", text(&|pair| pair.uid[0].clone())),
        ("image_1_uid", text(&|pair| pair.uid[1].clone())),
        ("jpg_0", image(0)),
        ("jpg_1", image(1)),
        ("label_0", Arc::new(Float64Array::from(labels))),
        ("has_label", Arc::new(BooleanArray::from(flags))),
    ])
}

#[test]
fn several_splits_need_a_choice_which_is_scored_alone() {
    let fixture = Fixture::empty();
    let scorers = fixture.two_scorers();
    let pairs = sample_pairs(4);
    fixture.put("pairs/data/train-00000-of-00001-ab.parquet", &pairs_parquet(&pairs[..3]));
    fixture.put("pairs/data/validation_unique-00000-of-00001.parquet", &pairs_parquet(&pairs[3..]));
    for command in ["score", "check"] {
        let mut command = relabel([command, "--pairs"]);
        command.arg(fixture.path("pairs")).arg("--scorers").arg(&scorers);
        command.arg("--out").arg(fixture.path("out/labels.parquet"));
        Run::of(&mut command)
            .expect_error(&["train (1 file), validation_unique (1 file)", "--split train"]);
    }
    assert!(!fixture.path("out").exists());
    Run::of(&mut fixture.score(&scorers, "out/labels.parquet", &["--split", "train"]))
        .expect_code(0);
    let labels = fixture.labels("out/labels.parquet");
    assert_eq!(labels.len(), 3);
    assert!(labels.iter().all(|row| row.source_file == "data/train-00000-of-00001-ab.parquet"));
    // A settings file says it as well, as a text or as a list.
    for split in ["\"validation_unique\"", "[\"validation_unique\"]"] {
        fixture.put("settings.toml", format!("split = {split}\n").as_bytes());
        let settings = fixture.path("settings.toml");
        let more = ["--config", settings.to_str().unwrap(), "--fresh"];
        Run::of(&mut fixture.score(&scorers, "out/labels.parquet", &more)).expect_code(0);
        assert_eq!(fixture.labels("out/labels.parquet").len(), 1);
    }
    Run::of(&mut fixture.score(&scorers, "out/other.parquet", &["--split", "test"]))
        .expect_error(&["\"test\"", "train (1 file), validation_unique (1 file)"]);
}

#[test]
fn the_output_may_stand_among_the_pairs() {
    let fixture = Fixture::with_sample(9);
    let scorers = fixture.two_scorers();
    fixture.put("pairs/_temporary/0/part-00000.parquet", b"PAR1half");
    fixture.put("pairs/_common_metadata.parquet", b"PAR1xx");
    let score = |out: &str, more: &[&str]| Run::of(&mut fixture.score(&scorers, out, more));
    score("out/elsewhere.parquet", &[]).expect_code(0);
    let expected = std::fs::read(fixture.path("out/elsewhere.parquet")).unwrap();
    // Shards leave parts beside the pairs, which the next shard passes over.
    for shard in ["0/3", "1/3", "2/3"] {
        score("pairs/labels.parquet", &["--shard", shard]).expect_code(0);
    }
    let labels = std::fs::read(fixture.path("pairs/labels.parquet")).unwrap();
    assert!(labels == expected, "the same bytes as elsewhere");
    let again = score("pairs/labels.parquet", &[]).expect_code(0);
    assert!(again.stderr.contains("already complete"), "{again:#?}");
    assert!(again.stderr.contains("skipped: 1 output of this program (labels.parquet)"));
    assert!(again.stderr.contains("2 names beginning with . or _"), "{again:#?}");
    // A pattern, and a copy by another tool, which has lost the metadata.
    let mut pattern = relabel(["score", "--pairs"]);
    pattern.arg(fixture.path("pairs/*.parquet")).arg("--scorers").arg(&scorers);
    pattern.arg("--out").arg(fixture.path("pairs/labels.parquet"));
    let run = Run::of(&mut pattern).expect_code(0);
    assert!(run.stderr.contains("already complete"), "{run:#?}");
    let mut alone = relabel(["score", "--pairs"]);
    alone.arg(fixture.path("pairs/labels.parquet")).arg("--scorers").arg(&scorers);
    alone.arg("--out").arg(fixture.path("out/x.parquet"));
    Run::of(&mut alone).expect_error(&["labels.parquet", "expected pairs, found labels"]);
}

#[test]
fn labels_of_another_meaning_are_refused_while_planning() {
    let pairs = sample_pairs(3);
    for (labels, says) in [
        (vec![1.0, -1.0, 0.0], "row 1 (counted from 0): label_0 is -1"),
        (vec![1.0, 2.0, 1.0], "row 1 (counted from 0): label_0 is 2"),
        (vec![0.0, 1.0, 80.0], "row 2 (counted from 0): label_0 is 80"),
    ] {
        let fixture = Fixture::empty();
        let scorers = fixture.two_scorers();
        fixture.put("pairs/p.parquet", &labelled(&pairs, labels, vec![Some(true); 3]));
        let run = Run::of(&mut fixture.score(&scorers, "out/labels.parquet", &[]));
        run.expect_error(&["p.parquet", says, "expected 1 (image 0), 0 (image 1), 0.5 (a tie)"]);
        assert!(!fixture.path("out/labels.parquet").exists());
    }
}

#[test]
fn a_row_without_a_label_is_no_human_vote() {
    let fixture = Fixture::empty();
    let scorers = fixture.two_scorers();
    let flags = vec![Some(false), Some(true), None, Some(true)];
    let labels = vec![0.0, 1.0, 0.5, f64::NAN];
    fixture.put("pairs/p.parquet", &labelled(&sample_pairs(4), labels, flags));
    let more = ["--ties", "human"];
    let run = Run::of(&mut fixture.score(&scorers, "out/labels.parquet", &more)).expect_code(0);
    assert!(run.stderr.contains("label_0 of 1 row is not a human vote: has_label is false"));
    assert!(run.stderr.contains("label_0 of 1 row is not a human vote: it is NaN"), "{run:#?}");
    let labels = fixture.labels("out/labels.parquet");
    let human: Vec<Option<f64>> = labels.iter().map(|row| row.human_label_0).collect();
    assert_eq!(human, [None, Some(1.0), Some(0.5), None]);
    // Two scorers that disagree: nobody decided the tie of row 0.
    for row in labels.iter().filter(|row| row.vote_sum == Some(0)) {
        let decided = row.human_label_0.map_or(0, |label| (2.0 * label - 1.0) as i8);
        assert_eq!(row.consensus, Some(decided), "{row:?}");
    }
    assert!(run.stdout.contains("2 pairs without a human label"), "{}", run.stdout);
}
