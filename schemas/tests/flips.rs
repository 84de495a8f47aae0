//! A flipped bit in any file of ours, wherever it is: the reader says so, or what it gives is what
//! was written. Never other rows.

#![expect(clippy::unwrap_used, reason = "tests")]

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use common::{label_row, put};
use schemas::columns::StoredFloat;
use schemas::labels::{LabelsFile, LabelsSchema, LabelsWriter, Status};
use schemas::latents::{
    CaptionRow, CaptionsFile, CaptionsLayout, CaptionsWriter, Geometry, ImageMoments, LatentRow,
    LatentsFile, LatentsLayout, LatentsWriter, Moments,
};
use schemas::scores::{ScoreRow, ScoresFile, ScoresWriter};
use schemas::winrates::{Statistic, WinRateRow, WinRatesFile, WinRatesWriter};
use tempfile::tempdir;

/// Flips bits all over the file at `path`: every bit of its end, where footer and checksums are,
/// and every so many before. `read` must refuse the file or give what it gives of the whole one.
fn flip<T: PartialEq>(path: &Path, read: impl Fn(&Path) -> Result<T, String>) {
    let whole = fs_err::read(path).unwrap();
    let expected = read(path).unwrap();
    let folder = tempdir().unwrap();
    let end = whole.len().saturating_sub(300);
    let bits = (0..end * 8).step_by((end * 8 / 300).max(1) | 1).chain(end * 8..whole.len() * 8);
    let (mut noticed, mut equal) = (0, 0);
    for bit in bits {
        let mut bytes = whole.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        match read(&put(folder.path(), "flipped.parquet", &bytes)) {
            Ok(found) => {
                assert!(found == expected, "bit {} of byte {} changes the rows", bit % 8, bit / 8);
                equal += 1;
            }
            Err(message) => {
                assert!(message.contains("flipped.parquet"), "{message}");
                noticed += 1;
            }
        }
    }
    // Unnoticed is only the mark of the checksums, without which the file is one of others, equal.
    assert!(equal <= 64 && noticed > 2000, "{noticed} noticed, {equal} equal");
}

fn none() -> BTreeMap<String, String> {
    BTreeMap::new()
}

fn at(folder: &Path) -> PathBuf {
    folder.join("file.parquet")
}

fn words<T, E: std::fmt::Display>(result: Result<T, E>) -> Result<T, String> {
    result.map_err(|error| error.to_string())
}

#[test]
fn labels() {
    let folder = tempdir().unwrap();
    let path = at(folder.path());
    let schema = LabelsSchema::new(&["clip", "hps"]).unwrap();
    let mut writer = LabelsWriter::create(&path, &schema, &none()).unwrap();
    (0..400).for_each(|row| writer.write(&label_row(row)).unwrap());
    writer.finish().unwrap();
    flip(&path, |path| words(LabelsFile::open(path).and_then(|file| file.read_rows())));
}

fn numbers(count: usize, seed: i64) -> Vec<f32> {
    (0..count as i64).map(|i| ((i * 37 + seed * 101) % 2000 - 1000) as f32 / 64.0).collect()
}

#[test]
fn latents() {
    let folder = tempdir().unwrap();
    let path = at(folder.path());
    let layout = LatentsLayout { stored: StoredFloat::Float16, shape: [4, 8, 8], flipped: false };
    let mut writer = LatentsWriter::create(&path, layout, &none()).unwrap();
    for number in 0..60 {
        let row = LatentRow {
            pair_id: format!("pair {number}"),
            source_file: "a.parquet".to_owned(),
            source_row: number,
            caption: Some("a fox".to_owned()),
            caption_index: Some(1),
            image_uid: [None, Some(format!("right {number}"))],
            geometry: [Some(Geometry { size: (70, 90), crop: (0, 3) }); 2],
            status: Status::Ok,
            error: None,
        };
        let moments = |image| {
            let list = numbers(layout.numbers(), number * 4 + image);
            let plain = Moments { mean: list.clone(), std: list };
            Some(ImageMoments { plain, flipped: None })
        };
        writer.write(row, [moments(0), moments(1)]).unwrap();
    }
    writer.finish().unwrap();
    flip(&path, |path| {
        let file = words(LatentsFile::open(path))?;
        let rows = words(file.rows())?.collect::<Result<Vec<_>, _>>();
        let all: Vec<i64> = (0..file.num_rows()).collect();
        let moments = [0, 1].map(|image| words(file.moments_at(image, false, &all)));
        let [first, second] = moments;
        Ok((words(rows)?, first?, second?))
    });
}

#[test]
fn captions() {
    let folder = tempdir().unwrap();
    let path = at(folder.path());
    let layout = CaptionsLayout { stored: StoredFloat::Float32, shape: [7, 16], pooled: Some(16) };
    let mut writer = CaptionsWriter::create(&path, layout, &none()).unwrap();
    for number in 0..40 {
        let row = CaptionRow {
            caption_index: number,
            caption: format!("fox {number}"),
            prompt_embeds: numbers(layout.numbers(), number),
            pooled_prompt_embeds: Some(numbers(16, number)),
        };
        writer.write(row).unwrap();
    }
    writer.finish().unwrap();
    flip(&path, |path| {
        let file = words(CaptionsFile::open(path))?;
        let all: Vec<i64> = (0..file.num_rows()).collect();
        words(file.rows_at(&all))
    });
}

#[test]
fn scores() {
    let folder = tempdir().unwrap();
    let path = at(folder.path());
    let mut writer = ScoresWriter::create(&path, &none()).unwrap();
    for number in 0..300_i64 {
        let row = ScoreRow {
            model: format!("model {}", number % 3),
            prompt_set: "parti".to_owned(),
            prompt_id: format!("{:04}", number / 12),
            prompt: format!("a fox, {}", number / 12),
            category: None,
            seed: number % 4,
            metric: "clip".to_owned(),
            score: Some(number as f32 / 7.0),
            image: format!("images/{number}.png"),
            error: None,
        };
        writer.write(row).unwrap();
    }
    writer.finish().unwrap();
    flip(&path, |path| words(ScoresFile::open(path).and_then(|file| file.read())));
}

#[test]
fn win_rates() {
    let folder = tempdir().unwrap();
    let path = at(folder.path());
    let mut writer = WinRatesWriter::create(&path, &none()).unwrap();
    for number in 0..120_i64 {
        let row = WinRateRow {
            prompt_set: "all".to_owned(),
            category: None,
            model_a: format!("model {}", number % 7),
            model_b: "base".to_owned(),
            metric: "hps".to_owned(),
            statistic: Statistic::ALL[number as usize % 4],
            selected_by: None,
            seeds: 5,
            prompts: 100 + number,
            excluded: 2,
            wins: 60,
            ties: number,
            losses: 40,
            strict_rate: 60.0 / (100 + number) as f64,
            win_rate: 0.65,
            win_rate_low: 0.35,
            win_rate_high: 0.87,
            p_value: 1.0 / (number + 1) as f64,
            p_holm: 1.0,
            mean_difference: -0.25 * number as f64,
            mean_difference_low: -1.5,
            mean_difference_high: 0.75,
            minimum_detectable_effect: 0.44,
        };
        writer.write(row).unwrap();
    }
    writer.finish().unwrap();
    flip(&path, |path| words(WinRatesFile::open(path).and_then(|file| file.read())));
}
