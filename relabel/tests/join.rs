//! Scorers of several files side by side, and scores that another program made.
#![expect(clippy::unwrap_used, reason = "a test stops where something is missing")]

mod common;

use std::fmt::Write as _;
use std::process::Command;
use std::sync::Arc;

use arrow::array::{ArrayRef, Float32Array, StringArray};
use common::{Fixture, Run, pairs_parquet, parquet_of, relabel, sample_pairs, scorer_entry};
use schemas::labels::{KEY_MANIFEST, LabelRow, LabelsFile, Status};

/// Labels of clip, of hps and of both over twelve pairs.
fn scored() -> Fixture {
    let fixture = Fixture::with_sample(12);
    for (out, names) in [
        ("clip.parquet", &["clip"][..]),
        ("hps.parquet", &["hps"]),
        ("both.parquet", &["clip", "hps"]),
    ] {
        let entries: Vec<String> = names.iter().map(|name| scorer_entry(name)).collect();
        let scorers = fixture.scorers("scorers.toml", &entries);
        Run::of(&mut fixture.score(&scorers, out, &[])).expect_code(0);
    }
    fixture
}

fn join(fixture: &Fixture, labels: [&str; 2], out: &str) -> Command {
    let mut command = relabel(["join"]);
    command.args(labels.map(|name| fixture.path(name))).arg("--out").arg(fixture.path(out));
    command
}

fn import(fixture: &Fixture, table: &str, out: &str) -> Command {
    let mut command = relabel(["import", "--name", "hps", "--scores"]);
    command.arg(fixture.path(table)).arg("--labels").arg(fixture.path("clip.parquet"));
    command.arg("--out").arg(fixture.path(out));
    command
}

fn manifest(fixture: &Fixture, labels: &str) -> serde_json::Value {
    let labels = LabelsFile::open(fixture.path(labels)).unwrap();
    serde_json::from_str(&labels.metadata()[KEY_MANIFEST]).unwrap()
}

#[test]
fn scorers_of_two_files_vote_together() {
    let fixture = scored();
    let run = Run::of(&mut join(&fixture, ["clip.parquet", "hps.parquet"], "joined.parquet"));
    assert!(run.expect_code(0).stdout.starts_with("12 pairs: 12 voted on, 0 failed\n"));
    assert_eq!(fixture.labels("joined.parquet"), fixture.labels("both.parquet"));
    let joined = manifest(&fixture, "joined.parquet");
    assert_eq!(joined["voters"], serde_json::json!(["clip", "hps"]));
    assert_eq!(joined["joined"][1], manifest(&fixture, "hps.parquet"));
    assert_eq!(joined["input"], manifest(&fixture, "both.parquet")["input"]);

    // The same again is complete; another policy is another file.
    let before = fixture.bytes("joined.parquet");
    let again = || join(&fixture, ["clip.parquet", "hps.parquet"], "joined.parquet");
    let run = Run::of(&mut again()).expect_code(0);
    assert!(run.stderr.contains("already complete") && before == fixture.bytes("joined.parquet"));
    Run::of(again().args(["--ties", "first"])).expect_error(&["another run", "ties", "--fresh"]);
    Run::of(again().args(["--ties", "margin", "--fresh"])).expect_code(0);
    let mut vote = relabel(["vote", "--ties", "margin", "--labels"]);
    vote.arg(fixture.path("both.parquet")).arg("--out").arg(fixture.path("margin.parquet"));
    Run::of(&mut vote).expect_code(0);
    assert_eq!(fixture.labels("joined.parquet"), fixture.labels("margin.parquet"));

    // Scores of a joined file are taken over as those of any other.
    let entries = ["clip", "hps"].map(scorer_entry);
    let scorers = fixture.scorers("scorers.toml", &entries);
    let mut command = fixture.score(&scorers, "reused.parquet", &["-v", "--reuse"]);
    let run = Run::of(command.arg(fixture.path("joined.parquet"))).expect_code(0);
    assert!(!run.stderr.contains("unit scored"), "{run:#?}");
    assert!(fixture.bytes("reused.parquet") == fixture.bytes("both.parquet"));
}

#[test]
fn what_does_not_belong_together_is_refused_with_the_first_difference() {
    let fixture = scored();
    let refused = |labels, words: &[&str]| {
        Run::of(&mut join(&fixture, labels, "joined.parquet")).expect_error(words);
        assert!(!fixture.path("joined.parquet").exists());
    };
    refused(["clip.parquet", "both.parquet"], &["both have scores of clip", "relabel vote"]);
    let mut pairs = sample_pairs(4);
    pairs[2].caption = Some("another caption".to_owned());
    fixture.put("pairs/0.parquet", &pairs_parquet(&pairs));
    let scorers = fixture.scorers("scorers.toml", &[scorer_entry("hps")]);
    Run::of(&mut fixture.score(&scorers, "changed.parquet", &[])).expect_code(0);
    refused(
        ["clip.parquet", "changed.parquet"],
        &["another caption in row 2", "\"another caption\""],
    );
    Run::of(&mut fixture.score(&scorers, "fewer.parquet", &["--limit", "2"])).expect_code(0);
    refused(["clip.parquet", "fewer.parquet"], &["has 12 rows", "has 2", "row 2"]);
    let run = Run::of(&mut join(&fixture, ["clip.parquet", "hps.parquet"], "clip.parquet"));
    run.expect_error(&["is one of the inputs"]);
}

/// The rows of a table by pair, of these labels' second scorer.
fn table(rows: &[LabelRow]) -> String {
    let mut table = "pair_id,score_0,score_1\n".to_owned();
    for row in rows {
        let [first, second] = row.scores[1].map(Option::unwrap);
        writeln!(table, "{},{first},{second}", row.pair_id).unwrap();
    }
    table
}

#[test]
fn a_table_becomes_a_scorer() {
    let fixture = scored();
    let both = fixture.labels("both.parquet");
    fixture.put("table.csv", table(&both).as_bytes());
    Run::of(&mut import(&fixture, "table.csv", "imported.parquet")).expect_code(0);
    assert_eq!(fixture.labels("imported.parquet"), both, "f32 as text reads back exactly");
    let imported = manifest(&fixture, "imported.parquet");
    assert_eq!(imported["scorers"][1]["kind"], "imported");
    assert_eq!(imported["scorers"][1]["table"]["file"], "table.csv");
    assert_eq!(imported["voters"], serde_json::json!(["clip", "hps"]));

    // By image and caption, as Parquet; images that recur are there once.
    let (mut uids, mut captions, mut scores) = (Vec::new(), Vec::new(), Vec::new());
    for row in &both {
        for position in [0, 1] {
            let uid = row.image_uid[position].clone().unwrap();
            let known = uids
                .iter()
                .zip(&captions)
                .any(|(other, caption)| (other, caption) == (&uid, row.caption.as_ref().unwrap()));
            if !known {
                uids.push(uid);
                captions.push(row.caption.clone().unwrap());
                scores.push(row.scores[1][position]);
            }
        }
    }
    let columns: Vec<(&'static str, ArrayRef)> = vec![
        ("score", Arc::new(Float32Array::from(scores))),
        ("caption", Arc::new(StringArray::from(captions))),
        ("image_uid", Arc::new(StringArray::from(uids))),
    ];
    fixture.put("table.parquet", &parquet_of(columns));
    Run::of(&mut import(&fixture, "table.parquet", "by-image.parquet")).expect_code(0);
    assert_eq!(fixture.labels("by-image.parquet"), both);
}

#[test]
fn what_a_table_lacks_is_a_failed_score_and_what_it_has_too_much_is_counted() {
    let fixture = scored();
    let both = fixture.labels("both.parquet");
    let mut text = table(&both[2..]);
    writeln!(text, "{},1,", both[1].pair_id).unwrap();
    writeln!(text, "{},7,7\nnobody,1,2", both[3].pair_id).unwrap();
    fixture.put("table.csv", text.as_bytes());
    let run = Run::of(&mut import(&fixture, "table.csv", "imported.parquet")).expect_code(0);
    assert!(run.stdout.starts_with("12 pairs: 10 voted on, 2 failed\n"), "{run:#?}");
    for words in [
        "left out 1 row of no pair, such as \"nobody\"",
        "left out 1 row whose pair or image stood before, 1 with another score",
        "lacks a score of 2 pairs",
    ] {
        assert!(run.stderr.contains(words), "{words}: {run:#?}");
    }
    let rows = fixture.labels("imported.parquet");
    for (row, error) in rows.iter().zip([
        "image_0: scorer `hps` has no score; image_1: scorer `hps` has no score",
        "image_1: scorer `hps` has no score",
    ]) {
        assert_eq!((row.status, row.error.as_deref()), (Status::Partial, Some(error)));
        assert_eq!((row.scores[1], row.votes[1]), ([None; 2], None));
        assert!(row.votes[0].is_some() && row.consensus.is_none(), "{row:#?}");
    }
    assert_eq!(rows[2..], both[2..]);
    let mut voted = import(&fixture, "table.csv", "voted.parquet");
    Run::of(voted.args(["--missing", "vote"])).expect_code(0);
    assert_eq!(fixture.labels("voted.parquet")[0].consensus, both[0].votes[0]);

    // A table of nobody, a name that is there, something else than a table.
    fixture.put("nobody.csv", b"pair_id,score_0,score_1\nnobody,1,2\n");
    let run = Run::of(&mut import(&fixture, "nobody.csv", "none.parquet"));
    run.expect_error(&["none of its 1 row is of a pair of", "hint"]);
    let mut named = relabel(["import", "--name", "clip", "--scores"]);
    named.arg(fixture.path("table.csv")).arg("--labels").arg(fixture.path("clip.parquet"));
    named.arg("--out").arg(fixture.path("none.parquet"));
    Run::of(&mut named).expect_error(&["has scores of `clip` already", "--name"]);
    fixture.put("text.parquet", b"no table at all");
    Run::of(&mut import(&fixture, "text.parquet", "none.parquet")).expect_error(&["text.parquet"]);
    assert!(!fixture.path("none.parquet").exists());
}
