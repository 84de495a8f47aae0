//! How fast labels are written, read and redecided, at a million rows like Pick-a-Pic's.
//!
//!     cargo bench -p balanceddpo-schemas --profile release [-- FOLDER]
//!
//! With a folder the files stay there, `labels.parquet` for the other checks.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a benchmark for people")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use arrow::array::Int8Array;
use schemas::labels::{
    LabelBatch, LabelBatchBuilder, LabelRow, LabelsFile, LabelsSchema, LabelsWriter, Status,
};

const ROWS: i64 = 1_000_000;
const SCORERS: [&str; 4] = ["clip", "hps", "pickscore", "aesthetic"];

/// A fixed number for a position (the mixing step of splitmix64).
fn mixed(position: u64) -> u64 {
    let mixed = (position ^ (position >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}

fn uid(image: u64) -> String {
    let (a, b) = (mixed(image), mixed(image ^ 0xABCD_EF01));
    format!(
        "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
        a >> 32,
        a >> 16 & 0xFFFF,
        a & 0xFFFF,
        b >> 48,
        b & 0xFFFF_FFFF_FFFF
    )
}

/// A row as in the real collection: about 16 pairs a caption, a winner that stays on, 1,500 rows a
/// file, 2 in 1,000 rows failed.
fn row(row: i64) -> LabelRow {
    let position = row as u64;
    let failed = mixed(position).is_multiple_of(500);
    let score = |scorer: u64, image: u64| {
        let noise = (mixed(position * 8 + scorer * 2 + image) >> 40) as f32 / (1 << 24) as f32;
        (!failed).then_some(0.18 + 0.2 * noise)
    };
    let scores: Vec<[Option<f32>; 2]> = (0..4).map(|s| [score(s, 0), score(s, 1)]).collect();
    let votes: Vec<Option<i8>> = scores
        .iter()
        .map(|[first, second]| first.map(|_| if first >= second { 1 } else { -1 }))
        .collect();
    let sum: i8 = votes.iter().flatten().sum();
    let words: Vec<String> =
        (0..12).map(|word| format!("word{}", mixed(position / 16 * 16 + word) % 5000)).collect();
    LabelRow {
        pair_id: row.to_string(),
        source_file: format!("train-{:05}-of-00645.parquet", row / 1500),
        source_row: row % 1500,
        caption: Some(words.join(" ")),
        image_uid: [Some(uid(position)), Some(uid(position + 1))],
        human_label_0: Some((mixed(position) % 3) as f64 / 2.0),
        scores,
        votes,
        vote_sum: (!failed).then_some(sum),
        consensus: (!failed).then_some(sum.signum()),
        status: if failed { Status::DecodeError } else { Status::Ok },
        error: failed.then(|| "image 0: not a JPEG".to_owned()),
    }
}

/// The votes of the first three scorers alone.
fn redecided(batch: &LabelBatch) -> LabelBatch {
    let votes: Vec<Int8Array> = (0..4)
        .map(|scorer| {
            let [first, second] = batch.scores(scorer);
            first
                .iter()
                .zip(second)
                .map(|pair| match pair {
                    (Some(first), Some(second)) if scorer < 3 => {
                        Some(if first >= second { 1 } else { -1 })
                    }
                    _ => None,
                })
                .collect()
        })
        .collect();
    let sum = |row: usize| votes[0].values()[row] + votes[1].values()[row] + votes[2].values()[row];
    let ok: Vec<bool> = batch.status().iter().map(|status| status == Some("ok")).collect();
    let sums: Int8Array = ok.iter().enumerate().map(|(row, ok)| ok.then(|| sum(row))).collect();
    let signs: Int8Array = sums.iter().map(|sum| sum.map(i8::signum)).collect();
    batch.with_decisions(votes, sums, signs).unwrap()
}

/// Wall time and the processor time of all threads, which also means something on a busy machine.
fn timed<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let (start, processor) = (Instant::now(), processor_seconds());
    let result = work();
    let seconds = start.elapsed().as_secs_f64();
    let processor = processor_seconds() - processor;
    let rate = ROWS as f64 / 1e6 / seconds;
    println!("{what}: {seconds:.2} s, {processor:.2} processor s, {rate:.2} million rows/s");
    result
}

/// User and system time of this process: fields 14 and 15 of its stat line, in hundredths.
fn processor_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let (_, after_name) = stat.rsplit_once(')').unwrap();
    let fields = after_name.split_whitespace().skip(11).take(2);
    fields.map(|ticks| ticks.parse::<f64>().unwrap()).sum::<f64>() / 100.0
}

fn main() {
    let kept = std::env::args().skip(1).find(|argument| !argument.starts_with("--"));
    let temporary = tempfile::tempdir().unwrap();
    let folder = kept.map_or_else(|| temporary.path().to_owned(), PathBuf::from);
    let schema = LabelsSchema::new(&SCORERS).unwrap();
    let batches: Vec<LabelBatch> = (0..ROWS)
        .step_by(8192)
        .map(|start| {
            let mut builder = LabelBatchBuilder::new(&schema);
            (start..ROWS.min(start + 8192))
                .for_each(|position| builder.push(&row(position)).unwrap());
            builder.finish().unwrap()
        })
        .collect();
    let labels = folder.join("labels.parquet");
    let write = |path: &Path, batches: &mut dyn Iterator<Item = LabelBatch>| {
        let mut writer = LabelsWriter::create(path, &schema, &BTreeMap::new()).unwrap();
        batches.for_each(|batch| writer.write_batch(&batch).unwrap());
        writer.finish().unwrap();
    };
    timed("write", || write(&labels, &mut batches.into_iter()));
    println!("size: {:.1} MB", std::fs::metadata(&labels).unwrap().len() as f64 / 1e6);
    let read = || LabelsFile::open(&labels).unwrap().batches().unwrap().map(Result::unwrap);
    let rows: usize = timed("read", || read().map(|batch| batch.num_rows()).sum());
    assert_eq!(rows as i64, ROWS);
    timed("read, decide, write", || {
        write(&folder.join("redecided.parquet"), &mut read().map(|batch| redecided(&batch)));
    });
}
