//! Rows that cannot be voted on: kept, with their reason, while the run continues.
#![expect(clippy::unwrap_used, reason = "a test stops where something is missing")]

mod common;

use std::path::Path;

use common::{
    Fixture, MINI, Pair, Run, four_scorers, pairs_parquet, relabel, sample_pairs, scorer_entry,
};
use schemas::labels::{LabelRow, Status};

const JPEG: &[u8] = b"\xff\xd8\xff";
const PNG: &[u8] = b"\x89PNG";

/// An image of the sample whose bytes begin like this.
fn sample_image(begins: &[u8]) -> Vec<u8> {
    let images = sample_pairs(100).into_iter().flat_map(|pair| pair.image).flatten();
    images.into_iter().find(|image| image.starts_with(begins)).unwrap()
}

/// A PNG whose header states 60000x60000 pixels, with a checksum that fits.
fn oversized_png() -> Vec<u8> {
    let mut png = sample_image(PNG);
    png[16..20].copy_from_slice(&60_000u32.to_be_bytes());
    png[20..24].copy_from_slice(&60_000u32.to_be_bytes());
    let mut crc = u32::MAX;
    for &byte in &png[12..29] {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0xedb8_8320 * (crc & 1));
        }
    }
    png[29..33].copy_from_slice(&(!crc).to_be_bytes());
    png
}

fn truncated_jpeg() -> Vec<u8> {
    let mut jpeg = sample_image(JPEG);
    jpeg.truncate(jpeg.len() * 2 / 3);
    jpeg
}

/// A sound pair whose uids are nobody else's.
fn pair(number: usize) -> Pair {
    let mut pair = sample_pairs(number + 1).pop().unwrap();
    pair.ranking_id = Some(number as i64);
    pair.uid = [Some(format!("left {number}")), Some(format!("right {number}"))];
    pair
}

fn with_image(number: usize, position: usize, image: Option<Vec<u8>>) -> Pair {
    let mut pair = pair(number);
    pair.image[position] = image;
    pair
}

fn with_caption(number: usize, caption: Option<&str>) -> Pair {
    Pair { caption: caption.map(str::to_owned), ..pair(number) }
}

/// The row has this status, a reason that says `words`, and no votes; where an image could be
/// scored, its scores are there.
#[track_caller]
fn assert_failed(row: &LabelRow, status: Status, words: &str, scored: [bool; 2]) {
    assert_eq!(row.status, status, "{row:#?}");
    assert!(row.error.as_deref().unwrap().contains(words), "{row:#?}");
    assert_eq!((row.vote_sum, row.consensus), (None, None), "{row:#?}");
    assert!(row.votes.iter().all(Option::is_none), "{row:#?}");
    for scores in &row.scores {
        assert_eq!(scores.map(|score| score.is_some()), scored, "{row:#?}");
    }
}

#[test]
fn what_cannot_be_scored_is_kept_with_its_reason() {
    let huge = "a".repeat(1 << 20);
    let nobody = Pair { uid: [None, Some(String::new())], ..pair(8) };
    let pairs = [
        pair(0),
        with_image(1, 0, None),
        with_image(2, 1, Some(Vec::new())),
        with_image(3, 0, Some(b"this is not an image at all, only text".to_vec())),
        with_image(4, 1, Some(truncated_jpeg())),
        with_image(5, 0, Some(oversized_png())),
        with_caption(6, None),
        with_caption(7, Some(" \t\n ")),
        nobody,
        with_caption(9, Some(&huge)),
        // The uids of row 0 with other bytes: images of their own.
        Pair { uid: pair(0).uid, ..pair(10) },
        // An id that stood before, and none.
        Pair { ranking_id: Some(0), ..pair(11) },
        Pair { ranking_id: None, ..pair(12) },
        // Zero-width, right-to-left and control characters are a caption like another.
        with_caption(13, Some("\u{200f}\u{202e}שלום\u{200b} \u{1b}[31m\0 <script>")),
    ];
    let fixture = Fixture::with_pairs(&pairs);
    let scorers = fixture.two_scorers();
    let run = Run::of(&mut fixture.score(&scorers, "l.parquet", &[])).expect_code(3);
    assert!(run.stdout.starts_with("14 pairs: 6 voted on, 8 failed\n"), "{run:#?}");
    assert!(run.stdout.contains("\n  2 decode_error\n"), "{run:#?}");

    let rows = fixture.labels("l.parquet");
    assert_eq!(rows.len(), pairs.len());
    assert_eq!(rows[9].caption.as_ref().map(String::len), Some(1 << 20), "kept whole");
    assert_failed(&rows[1], Status::MissingImage, "image_0: image is null or empty", [false, true]);
    assert_failed(&rows[2], Status::MissingImage, "image_1", [true, false]);
    assert_failed(&rows[3], Status::DecodeError, "image_0", [false, true]);
    assert_failed(&rows[4], Status::DecodeError, "image_1", [true, false]);
    assert_failed(&rows[5], Status::ImageTooLarge, "60000", [false, true]);
    assert_failed(&rows[6], Status::MissingCaption, "null", [false; 2]);
    assert_failed(&rows[7], Status::EmptyCaption, "empty", [false; 2]);
    assert_failed(&rows[9], Status::CaptionTooLong, "1048576", [false; 2]);
    for number in [0, 8, 10, 11, 12, 13] {
        assert_eq!(rows[number].status, Status::Ok, "{:#?}", rows[number]);
        assert!(rows[number].vote_sum.is_some());
    }
    let ids: Vec<&str> = rows.iter().map(|row| row.pair_id.as_str()).collect();
    assert_eq!((ids[0], ids[11], ids[12]), ("0", "0.parquet:11", "0.parquet:12"));
    let mut distinct = ids.clone();
    distinct.sort_unstable();
    distinct.dedup();
    assert_eq!(distinct.len(), ids.len(), "ids are unique");
    assert!(run.stderr.contains("ranking_id"), "the renamed row is mentioned: {}", run.stderr);

    // The same command again: nothing to do, and as many failures as before.
    let before = fixture.bytes("l.parquet");
    Run::of(&mut fixture.score(&scorers, "l.parquet", &[])).expect_code(3);
    Run::of(&mut fixture.score(&scorers, "l.parquet", &["--max-failed", "7"])).expect_code(3);
    Run::of(&mut fixture.score(&scorers, "l.parquet", &["--max-failed", "8"])).expect_code(0);
    assert_eq!(fixture.bytes("l.parquet"), before);
}

#[test]
fn a_file_of_nothing_but_failures_is_a_labels_file_too() {
    let pairs = [with_caption(0, None), with_image(1, 0, None)];
    let fixture = Fixture::with_pairs(&pairs);
    let scorers = fixture.two_scorers();
    let run =
        Run::of(&mut fixture.score(&scorers, "l.parquet", &["--ties", "margin"])).expect_code(3);
    assert!(run.stdout.starts_with("2 pairs: 0 voted on, 2 failed\n"), "{run:#?}");
    assert_eq!(fixture.labels("l.parquet").len(), 2);
}

/// Scores of the same images alone: equal but for the last bits, which the other members of a batch
/// change.
#[track_caller]
fn assert_scored_as(row: &LabelRow, alone: &LabelRow) {
    assert_eq!(row.status, Status::Ok, "{row:#?}");
    let scores = row.scores.iter().flatten().zip(alone.scores.iter().flatten());
    for (found, expected) in scores {
        let (found, expected) = (found.unwrap(), expected.unwrap());
        assert!((found - expected).abs() < 1e-4, "{row:#?}\n{alone:#?}");
    }
}

/// The rows of these pairs, each file alone or all together as `0.parquet`, `1.parquet` and so on.
fn scored(files: &[Vec<Pair>], more: &[&str]) -> (Fixture, Run) {
    let fixture = Fixture::empty();
    for (number, pairs) in files.iter().enumerate() {
        fixture.put(&format!("pairs/{number}.parquet"), &pairs_parquet(pairs));
    }
    let run = Run::of(&mut fixture.score(&four_scorers(), "l.parquet", more));
    (fixture, run)
}

#[test]
fn a_damaged_owner_costs_its_own_row_only() {
    let cut = truncated_jpeg();
    for (broken, status) in [
        (None, Status::MissingImage),
        (Some(Vec::new()), Status::MissingImage),
        (Some(cut), Status::DecodeError),
        (Some(oversized_png()), Status::ImageTooLarge),
    ] {
        // Row 0 owns the uid; the others have sound bytes of it, twice in this file and once in
        // each of two more.
        let sound: Vec<Pair> = (0..5)
            .map(|number| {
                let mut sound = pair(number);
                sound.uid[0] = pair(0).uid[0].clone();
                sound.image[0] = pair(0).image[0].clone();
                sound
            })
            .collect();
        let mut pairs = sound.clone();
        pairs[0].image[0] = broken;
        let files = [pairs[..3].to_vec(), pairs[3..4].to_vec(), pairs[4..].to_vec()];
        let (fixture, run) = scored(&files, &["--batch-size", "2"]);
        run.expect_code(3);
        let rows = fixture.labels("l.parquet");
        assert_failed(&rows[0], status, "image_0", [false, true]);
        let (alone, run) = scored(&[sound], &[]);
        run.expect_code(0);
        for (row, alone) in rows.iter().zip(alone.labels("l.parquet")).skip(1) {
            assert_scored_as(row, &alone);
        }
        // The same bytes have the same aesthetic score, whichever file they were scored for.
        let aesthetic: Vec<_> =
            rows[1..].iter().map(|row| row.scores[3][0].map(f32::to_bits)).collect();
        assert!(aesthetic.iter().all(|score| *score == aesthetic[0]), "{aesthetic:?}");
    }
}

#[test]
fn each_content_of_a_uid_is_an_image_of_its_own() {
    // One uid in five rows and three files, with the bytes of three images and none.
    let uid = Some("the same".to_owned());
    let other = |number: usize, image: Option<Vec<u8>>| Pair {
        uid: [uid.clone(), pair(number).uid[1].clone()],
        image: [image, pair(number).image[1].clone()],
        ..pair(number)
    };
    let image = |number: usize| pair(number).image[0].clone();
    let pairs = [
        other(0, image(0)),
        other(1, image(1)),
        other(2, image(2)),
        other(3, None),
        other(4, image(1)),
    ];
    let files = [pairs[..2].to_vec(), pairs[2..4].to_vec(), pairs[4..].to_vec()];
    let (fixture, run) = scored(&files, &[]);
    let run = run.expect_code(3);
    assert!(run.stderr.contains("each is scored as an image of its own"), "{run:#?}");
    let rows = fixture.labels("l.parquet");
    assert_failed(&rows[3], Status::MissingImage, "image_0", [false, true]);
    for number in [0, 1, 2, 4] {
        let mut alone = pairs[number].clone();
        alone.uid = [None, None];
        let (fixture, run) = scored(&[vec![alone]], &[]);
        run.expect_code(0);
        assert_scored_as(&rows[number], &fixture.labels("l.parquet")[0]);
    }
    assert_eq!(rows[1].scores[3][0], rows[4].scores[3][0], "the same bytes");
}

#[test]
fn the_same_bytes_have_the_same_scores_whatever_they_are_called() {
    // Eleven images under two names each and under none, in one file and in another, with the
    // caption of one another and with a caption of their own, in batches that mix them.
    let named = |number: usize, uid: Option<&str>, caption: &str| Pair {
        ranking_id: None,
        caption: Some(caption.to_owned()),
        uid: [0, 1].map(|side| uid.map(|uid| format!("{uid} {number} {side}"))),
        ..sample_pairs(number + 1).pop().unwrap()
    };
    let mut first: Vec<Pair> = (0..11).map(|number| named(number, Some("a"), "a cat")).collect();
    first.extend((0..11).rev().map(|number| named(number, Some("b"), "a cat")));
    first.extend((0..11).map(|number| named(number, None, "a cat")));
    let mut second: Vec<Pair> =
        (0..11).rev().map(|number| named(number, Some("c"), "a cat")).collect();
    second.extend((0..11).map(|number| named(number, Some("b"), "a dog")));
    second.extend((0..11).map(|number| named(number, Some("c"), "a dog")));
    let image_of = |pair: &Pair| pair.image.clone();
    let pairs = [first.clone(), second.clone()].concat();
    let (fixture, run) = scored(&[first, second], &["--batch-size", "5"]);
    run.expect_code(0);
    let rows = fixture.labels("l.parquet");
    let bits = |row: &LabelRow| -> Vec<[Option<u32>; 2]> {
        row.scores.iter().map(|scores| scores.map(|score| score.map(f32::to_bits))).collect()
    };
    let mut compared = 0;
    for (row, pair) in rows.iter().zip(&pairs) {
        for (other, other_pair) in rows.iter().zip(&pairs) {
            if image_of(pair) != image_of(other_pair) {
                continue;
            }
            compared += 1;
            // The aesthetic score does not depend on the caption.
            assert_eq!(bits(row)[3], bits(other)[3], "{row:#?}\n{other:#?}");
            if row.caption == other.caption {
                assert_eq!(bits(row), bits(other), "{row:#?}\n{other:#?}");
            }
        }
    }
    assert!(compared > 66, "{compared}");
}

#[test]
fn ids_are_unique_whatever_the_input_calls_its_rows() {
    let fixture = Fixture::empty();
    let ids = ["a", "a", "0.parquet:1", "0.parquet:1", "0.parquet:2", "", "0.parquet:5"];
    let columns = |ids: &[&str]| -> Vec<(&'static str, arrow::array::ArrayRef)> {
        use std::sync::Arc;
        let text = |name: &str| Arc::new(arrow::array::StringArray::from(vec![name; ids.len()]));
        let image = || Arc::new(arrow::array::BinaryArray::from(vec![None::<&[u8]>; ids.len()]));
        vec![
            ("caption", text("a cat")),
            ("jpg_0", image()),
            ("jpg_1", image()),
            ("image_0_uid", text("left")),
            ("image_1_uid", text("right")),
            ("ranking_id", Arc::new(arrow::array::StringArray::from(ids.to_vec()))),
        ]
    };
    fixture.put("pairs/0.parquet", &common::parquet_of(columns(&ids)));
    fixture.put("pairs/1.parquet", &common::parquet_of(columns(&["0.parquet:6", "1.parquet:0"])));
    let scorers = fixture.two_scorers();
    Run::of(&mut fixture.score(&scorers, "l.parquet", &[])).expect_code(3);
    let rows = fixture.labels("l.parquet");
    let found: Vec<&str> = rows.iter().map(|row| row.pair_id.as_str()).collect();
    let expected = [
        "a",
        "0.parquet:1",
        "0.parquet:2",
        "0.parquet:3",
        "0.parquet:4",
        "0.parquet:5",
        "0.parquet:6",
        "1.parquet:0",
        "1.parquet:1",
    ];
    assert_eq!(found, expected);
}

/// The place of a tensor's values in a safetensors file.
fn tensor_bytes(file: &[u8], name: &str) -> std::ops::Range<usize> {
    let header_length = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&file[8..8 + header_length]).unwrap();
    assert_eq!(header[name]["dtype"], "F32");
    let place = |end: usize| header[name]["data_offsets"][end].as_u64().unwrap() as usize;
    8 + header_length + place(0)..8 + header_length + place(1)
}

/// `data/mini`'s pickscore with NaN where `broken` says, as an entry of its own.
fn pickscore_with_nan(
    fixture: &Fixture,
    tensor: &str,
    broken: impl Fn(std::ops::Range<usize>) -> std::ops::Range<usize>,
) -> String {
    for entry in std::fs::read_dir(Path::new(MINI).join("pickscore")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        if name == "model.safetensors" {
            let values = broken(tensor_bytes(&bytes, tensor));
            bytes[values].chunks_exact_mut(4).for_each(|value| {
                value.copy_from_slice(&f32::NAN.to_le_bytes());
            });
        }
        fixture.put(&format!("broken/{name}"), &bytes);
    }
    let entry = scorer_entry("pickscore");
    entry.replace(&format!("{MINI}/pickscore"), fixture.path("broken").to_str().unwrap())
}

#[test]
fn a_network_of_nan_gives_no_vote_and_stops_nothing() {
    let fixture = Fixture::with_sample(9);
    let broken = pickscore_with_nan(&fixture, "visual_projection.weight", |whole| whole);
    let scorers = fixture.scorers("scorers.toml", &[scorer_entry("clip"), broken]);
    let run = Run::of(&mut fixture.score(&scorers, "l.parquet", &[])).expect_code(3);
    assert!(run.stdout.starts_with("9 pairs: 0 voted on, 9 failed\n"), "{run:#?}");
    // The other scorer keeps its scores and its votes.
    let rows = fixture.labels("l.parquet");
    for row in &rows {
        assert_eq!(row.status, Status::Partial, "{row:#?}");
        let error = row.error.as_deref().unwrap();
        assert!(error.contains("image_0: scorer `pickscore` gave NaN"), "{error}");
        assert!(error.contains("image_1: scorer `pickscore` gave NaN"), "{error}");
        assert_eq!((row.vote_sum, row.consensus), (None, None), "{row:#?}");
        assert!(row.scores[0].iter().all(Option::is_some) && row.votes[0].is_some(), "{row:#?}");
        assert_eq!((row.scores[1], row.votes[1]), ([None; 2], None), "{row:#?}");
    }
    // It decides alone, with the votes it has in a run of its own.
    let mut command = relabel(["vote", "--voters", "clip", "--labels"]);
    command.arg(fixture.path("l.parquet")).arg("--out").arg(fixture.path("clip.parquet"));
    let run = Run::of(&mut command).expect_code(0);
    assert!(run.stdout.starts_with("9 pairs: 9 voted on, 0 failed\n"), "{run:#?}");
    let scorers = fixture.scorers("clip.toml", &[scorer_entry("clip")]);
    Run::of(&mut fixture.score(&scorers, "alone.parquet", &[])).expect_code(0);
    assert_eq!(fixture.labels("clip.parquet"), fixture.labels("alone.parquet"));
    // With the broken one nothing is decided.
    let mut command = relabel(["vote", "--ties", "margin", "--labels"]);
    command.arg(fixture.path("l.parquet")).arg("--out").arg(fixture.path("again.parquet"));
    Run::of(&mut command).expect_code(0);
    assert_eq!(fixture.labels("again.parquet"), rows);
    // With `--missing vote` the other one decides, and the rows say what is missing.
    let mut command = relabel(["vote", "--missing", "vote", "--labels"]);
    command.arg(fixture.path("l.parquet")).arg("--out").arg(fixture.path("voted.parquet"));
    let run = Run::of(&mut command).expect_code(0);
    assert!(run.stdout.starts_with("9 pairs: 9 voted on, 0 failed\n"), "{run:#?}");
    assert!(
        run.stdout.contains("\n9 pairs partial, without the vote of pickscore in 9\n"),
        "{run:#?}"
    );
    for (row, alone) in fixture.labels("voted.parquet").iter().zip(fixture.labels("clip.parquet")) {
        assert_eq!((row.vote_sum, row.consensus), (alone.vote_sum, alone.consensus));
        assert_eq!((row.status, row.votes[1]), (Status::Partial, None), "{row:#?}");
        assert!(row.error.as_deref().unwrap().contains("`pickscore` gave NaN"), "{row:#?}");
    }
    // `relabel score` does the same, and then nothing has failed.
    let scorers = fixture.path("scorers.toml");
    let more = ["--missing", "vote"];
    Run::of(&mut fixture.score(&scorers, "scored.parquet", &more)).expect_code(0);
    assert_eq!(fixture.labels("scored.parquet"), fixture.labels("voted.parquet"));
    assert_eq!(manifest(&fixture, "scored.parquet")["missing"], "vote");
    assert_eq!(manifest(&fixture, "voted.parquet")["missing"], "vote");
    assert_eq!(manifest(&fixture, "l.parquet")["missing"], serde_json::Value::Null);
}

fn manifest(fixture: &Fixture, labels: &str) -> serde_json::Value {
    let labels = schemas::labels::LabelsFile::open(fixture.path(labels)).unwrap();
    serde_json::from_str(&labels.metadata()[schemas::labels::KEY_MANIFEST]).unwrap()
}

#[test]
fn nan_reaches_only_the_captions_that_touch_it() {
    let fixture = Fixture::with_sample(24);
    let vocabulary = std::fs::read(Path::new(MINI).join("pickscore/vocab.json")).unwrap();
    let vocabulary: serde_json::Value = serde_json::from_slice(&vocabulary).unwrap();
    let token = vocabulary["a</w>"].as_u64().expect("every letter is a token") as usize;
    let table = "text_model.embeddings.token_embedding.weight";
    let width = 4 * 96;
    let broken = pickscore_with_nan(&fixture, table, |whole| {
        whole.start + token * width..whole.start + (token + 1) * width
    });
    let scorers = fixture.scorers("scorers.toml", &[scorer_entry("clip"), broken]);
    Run::of(&mut fixture.score(&scorers, "l.parquet", &[])).expect_code(3);
    let rows = fixture.labels("l.parquet");
    let words = |row: &LabelRow| -> Vec<String> {
        row.caption.as_deref().unwrap().split_whitespace().map(str::to_owned).collect()
    };
    let (mut touched, mut untouched) = (0, 0);
    for row in &rows {
        if words(row).iter().any(|word| word == "a") {
            assert_eq!(row.status, Status::Partial, "{row:#?}");
            assert!(row.votes[0].is_some() && row.votes[1].is_none(), "{row:#?}");
            touched += 1;
        // A longer word may end in this very token.
        } else if !words(row).iter().any(|word| word.ends_with('a')) {
            assert_eq!(row.status, Status::Ok, "{row:#?}");
            untouched += 1;
        }
    }
    assert!(touched > 0 && untouched > 0, "{touched} and {untouched}");
}
