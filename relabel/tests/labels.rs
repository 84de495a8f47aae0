//! What a whole run writes: every pair once and in order, scores that do not depend on place, batch
//! or layout, and votes and consensus that follow from the scores.
#![expect(clippy::unwrap_used, reason = "a test stops where something is missing")]

mod common;

use std::collections::HashMap;

use common::{
    ALL_SCORERS, Fixture, Pair, Run, four_scorers, pairs_parquet, pairs_parquet_with_structs,
    relabel, sample_pairs, scorer_entry,
};
use schemas::labels::{LabelRow, LabelsFile, LabelsSchema, Status};

/// Scores may differ by this much between batch sizes; votes only where the margin is smaller.
const TOLERANCE: f32 = 1e-5;

/// Two sets of scores of the same pairs are the same, and so are the votes they lead to.
#[track_caller]
fn assert_same_scores(one: &[LabelRow], other: &[LabelRow]) {
    assert_eq!(one.len(), other.len());
    for (one, other) in one.iter().zip(other) {
        for (scorer, (left, right)) in one.scores.iter().zip(&other.scores).enumerate() {
            for image in [0, 1] {
                let difference = (left[image].unwrap() - right[image].unwrap()).abs();
                // The aesthetic score is some ten times a cosine's size.
                let allowed = TOLERANCE * left[image].unwrap().abs().max(1.0);
                assert!(difference <= allowed, "{}: {left:?} and {right:?}", one.pair_id);
            }
            let margin = left[0].unwrap() - left[1].unwrap();
            if margin.abs() > 2.0 * TOLERANCE {
                assert_eq!(one.votes[scorer], other.votes[scorer], "{}", one.pair_id);
            }
        }
    }
}

/// Equations 6 and 7, written down once more.
fn assert_votes_follow_from_scores(rows: &[LabelRow]) {
    for row in rows.iter().filter(|row| row.status == Status::Ok) {
        let votes: Vec<i8> = row
            .scores
            .iter()
            .map(|scores| if scores[0].unwrap() >= scores[1].unwrap() { 1 } else { -1 })
            .collect();
        let sum: i8 = votes.iter().sum();
        assert_eq!(row.votes, votes.into_iter().map(Some).collect::<Vec<_>>(), "{}", row.pair_id);
        assert_eq!(row.vote_sum, Some(sum), "{}", row.pair_id);
        assert_eq!(row.consensus, Some(sum.signum()), "{}", row.pair_id);
        assert_eq!(row.error, None);
    }
}

fn assert_rows_are_the_pairs(rows: &[LabelRow], pairs: &[Pair], rows_per_file: usize) {
    assert_eq!(rows.len(), pairs.len());
    for (number, (row, pair)) in rows.iter().zip(pairs).enumerate() {
        assert_eq!(row.pair_id, pair.ranking_id.unwrap().to_string());
        assert_eq!(row.source_file, format!("{}.parquet", number / rows_per_file));
        assert_eq!(row.source_row, (number % rows_per_file) as i64);
        assert_eq!(row.caption, pair.caption);
        assert_eq!(row.image_uid, pair.uid);
        assert_eq!(row.human_label_0, pair.label_0);
    }
}

#[test]
fn every_pair_is_written_once_in_order_with_votes_that_follow_from_its_scores() {
    let fixture = Fixture::with_sample(24);
    let run = Run::of(&mut fixture.score(&four_scorers(), "labels.parquet", &[])).expect_code(0);
    assert!(run.stdout.starts_with("24 pairs: 24 voted on, 0 failed\n"), "{run:#?}");
    assert!(
        run.stdout.ends_with(&format!("labels: {}\n", fixture.path("labels.parquet").display()))
    );
    assert_eq!(fixture.names(""), ["labels.config.toml", "labels.parquet", "pairs"]);

    let file = LabelsFile::open(fixture.path("labels.parquet")).unwrap();
    assert_eq!(file.schema(), &LabelsSchema::new(&ALL_SCORERS).unwrap());
    let (rows, pairs) = (file.read_rows().unwrap(), sample_pairs(24));
    assert_rows_are_the_pairs(&rows, &pairs, 8);
    assert!(rows.iter().all(|row| row.status == Status::Ok), "the sample is sound");
    assert_votes_follow_from_scores(&rows);

    // One score per image and caption, wherever the image stands.
    let mut scores: HashMap<(&str, &str), Vec<u32>> = HashMap::new();
    let mut recurring = 0;
    for row in &rows {
        for image in [0, 1] {
            let uid = row.image_uid[image].as_deref().unwrap();
            let bits = row.scores.iter().map(|scores| scores[image].unwrap().to_bits()).collect();
            let known = scores.entry((uid, row.caption.as_deref().unwrap()));
            recurring +=
                usize::from(matches!(known, std::collections::hash_map::Entry::Occupied(_)));
            assert_eq!(*known.or_insert_with(|| Vec::clone(&bits)), bits, "{uid}");
        }
    }
    assert!(recurring > 10, "the sample's images recur");
    let distinct = format!("images={}", 48 - recurring);
    assert!(run.stderr.contains(&distinct), "{distinct} in {}", run.stderr);
    assert!(run.stderr.contains(&format!("{0} of {0} images", 48 - recurring)), "{}", run.stderr);
}

#[test]
fn columns_are_those_of_the_contract() {
    let fixture = Fixture::with_sample(6);
    let scorers = fixture.two_scorers();
    Run::of(&mut fixture.score(&scorers, "labels.parquet", &["--batch-size", "5"])).expect_code(0);
    let bytes = bytes::Bytes::from(fixture.bytes("labels.parquet"));
    let reader =
        parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder::try_new(bytes).unwrap();
    let columns: Vec<String> = reader
        .schema()
        .fields()
        .iter()
        .map(|field| format!("{}: {}", field.name(), field.data_type()))
        .collect();
    let expected = [
        "pair_id: Utf8",
        "source_file: Dictionary(Int32, Utf8)",
        "source_row: Int64",
        "caption: Utf8",
        "image_0_uid: Utf8",
        "image_1_uid: Utf8",
        "human_label_0: Float64",
        "clip_score_0: Float32",
        "clip_score_1: Float32",
        "clip_vote: Int8",
        "aesthetic_score_0: Float32",
        "aesthetic_score_1: Float32",
        "aesthetic_vote: Int8",
        "vote_sum: Int8",
        "consensus: Int8",
        "status: Utf8",
        "error: Utf8",
    ];
    assert_eq!(columns, expected);
    let file = LabelsFile::open(fixture.path("labels.parquet")).unwrap();
    let keys: Vec<&str> = file.metadata().keys().map(String::as_str).collect();
    assert_eq!(keys, ["relabel.fingerprint", "relabel.manifest", "relabel.schema_version"]);
    let manifest = &file.metadata()["relabel.manifest"];
    let here = fixture.path("").display().to_string();
    assert!(!manifest.contains(&here), "the manifest holds no path: {manifest}");
    for key in ["\"sha256\"", "\"batch_size\":5", "\"dtype\":\"f32\"", "\"ties\":\"zero\""] {
        assert!(manifest.contains(key), "{key} in {manifest}");
    }
}

#[test]
fn batch_size_changes_no_score_beyond_rounding() {
    let fixture = Fixture::with_sample(15);
    let rows = ["1", "7", "64"].map(|size| {
        let out = format!("labels-{size}.parquet");
        Run::of(&mut fixture.score(&four_scorers(), &out, &["--batch-size", size])).expect_code(0);
        fixture.labels(&out)
    });
    assert_same_scores(&rows[0], &rows[1]);
    assert_same_scores(&rows[0], &rows[2]);
}

#[test]
fn swapped_images_flip_every_vote() {
    let pairs = sample_pairs(12);
    let rows = [pairs.clone(), pairs.into_iter().map(Pair::swapped).collect()].map(|pairs| {
        let fixture = Fixture::with_pairs(&pairs);
        Run::of(&mut fixture.score(&four_scorers(), "labels.parquet", &[])).expect_code(0);
        fixture.labels("labels.parquet")
    });
    let back: Vec<LabelRow> = rows[1]
        .iter()
        .cloned()
        .map(|mut row| {
            row.scores.iter_mut().for_each(|scores| scores.reverse());
            row.votes.iter_mut().for_each(|vote| *vote = vote.map(|vote| -vote));
            row
        })
        .collect();
    assert_same_scores(&rows[0], &back);
    assert_votes_follow_from_scores(&rows[1]);
}

#[test]
fn images_as_structs_are_the_same_images() {
    let pairs = sample_pairs(6);
    let fixture = Fixture::with_pairs(&pairs);
    let scorers = fixture.two_scorers();
    Run::of(&mut fixture.score(&scorers, "plain.parquet", &[])).expect_code(0);
    fixture.put("pairs/0.parquet", &pairs_parquet_with_structs(&pairs));
    Run::of(&mut fixture.score(&scorers, "structs.parquet", &[])).expect_code(0);
    assert_eq!(fixture.labels("plain.parquet"), fixture.labels("structs.parquet"));
}

#[test]
fn inputs_are_taken_in_the_order_given_and_up_to_the_limit() {
    let fixture = Fixture::empty();
    let pairs = sample_pairs(10);
    let scorers = fixture.two_scorers();
    let files = [("late.parquet", &pairs[..6]), ("early.parquet", &pairs[6..])]
        .map(|(name, pairs)| fixture.put(name, &pairs_parquet(pairs)));
    let mut command = relabel(["score", "--limit", "8", "--pairs"]);
    command.args(&files).arg("--scorers").arg(&scorers).arg("--out").arg(fixture.path("l.parquet"));
    Run::of(&mut command).expect_code(0);
    let rows = fixture.labels("l.parquet");
    let ids: Vec<String> = rows.iter().map(|row| row.pair_id.clone()).collect();
    let expected: Vec<String> =
        pairs[..8].iter().map(|pair| pair.ranking_id.unwrap().to_string()).collect();
    assert_eq!(ids, expected);
    assert_eq!(rows[5].source_file, "late.parquet");
    assert_eq!((rows[7].source_file.as_str(), rows[7].source_row), ("early.parquet", 1));
}

#[test]
fn any_number_of_scorers_votes() {
    let fixture = Fixture::with_sample(9);
    let fifth = scorer_entry("pickscore")
        .replace("\"pickscore\"\n", "\"fifth\"\n")
        .replace("preprocess = \"hf\"", "preprocess = \"open_clip\"");
    assert!(fifth.contains("name = \"fifth\""), "{fifth}");
    let entries: Vec<String> = ALL_SCORERS.into_iter().map(scorer_entry).chain([fifth]).collect();
    let mut of_aesthetic: Vec<Vec<[Option<f32>; 2]>> = Vec::new();
    for (entries, names) in [
        (&entries[3..4], &["aesthetic"][..]),
        (&entries[1..2], &["hps"]),
        (&entries[2..4], &["pickscore", "aesthetic"]),
        (&entries[..], &["clip", "hps", "pickscore", "aesthetic", "fifth"]),
    ] {
        let out = format!("{}.parquet", names.join("-"));
        let scorers = fixture.scorers("scorers.toml", entries);
        Run::of(&mut fixture.score(&scorers, &out, &[])).expect_code(0);
        let file = LabelsFile::open(fixture.path(&out)).unwrap();
        assert_eq!(file.schema().scorers(), names);
        let rows = file.read_rows().unwrap();
        assert_votes_follow_from_scores(&rows);
        if names.len() % 2 == 1 {
            assert!(rows.iter().all(|row| row.consensus != Some(0)), "an odd number never ties");
        }
        if let Some(scorer) = names.iter().position(|&name| name == "aesthetic") {
            of_aesthetic.push(rows.iter().map(|row| row.scores[scorer]).collect());
        }
    }
    assert_eq!(of_aesthetic.len(), 3);
    assert!(of_aesthetic.windows(2).all(|two| two[0] == two[1]), "who else votes changes no score");
}
