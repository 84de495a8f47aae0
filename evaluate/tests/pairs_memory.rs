//! What `evaluate pairs` holds in memory: a row group and the images of a prompt, however many
//! pairs there are. Alone in its process, whose peak is measured.
#![expect(clippy::unwrap_used, reason = "a test stops where something is missing")]

use std::collections::BTreeMap;

use evaluate::pairs::{By, Choose, Config};
use schemas::layouts::Sizes;
use schemas::scores::{ScoreRow, ScoresWriter};
use testkit::Folder;

const PROMPTS: usize = 100;
const IMAGE_BYTES: usize = 1 << 20;
const ROW_GROUP: usize = 4 << 20;
/// Two images of a prompt, a row group as rows, as columns and encoded, and what the allocator
/// keeps. All images together are 200 MiB.
const BOUND: usize = 64 << 20;

fn peak() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<usize>().unwrap() << 10
}

#[test]
fn memory_is_flat_in_the_number_of_pairs() {
    let folder = Folder::new();
    let mut writer =
        ScoresWriter::create(folder.put("eval/scores.parquet", b""), &BTreeMap::new()).unwrap();
    for number in 0..PROMPTS {
        for seed in 0..2 {
            let image = format!("{number}-{seed}.png");
            let mut bytes = vec![seed as u8; IMAGE_BYTES];
            bytes[0] = number as u8;
            folder.put(&format!("eval/{image}"), &bytes);
            let row = ScoreRow {
                model: "base".to_owned(),
                prompt_set: "mine".to_owned(),
                prompt_id: number.to_string(),
                prompt: format!("fox number {number}"),
                category: None,
                seed,
                metric: "clip".to_owned(),
                score: Some(seed as f32),
                image,
                error: None,
            };
            writer.write(row).unwrap();
        }
    }
    writer.finish().unwrap();
    let config = Config {
        scores: folder.path("eval/scores.parquet"),
        out: folder.path("pairs"),
        choose: Choose::BestWorst,
        by: By::MeanRank,
        models: None,
        voters: None,
        sets: None,
        fresh: false,
        sizes: Sizes { row_group: ROW_GROUP, file: 64 << 20 },
    };
    let before = peak();
    let summary = evaluate::pairs::run(&config).unwrap();
    let grown = peak() - before;
    assert_eq!(summary.pairs, PROMPTS as u64);
    assert!(grown < BOUND, "{} MiB more than before", grown >> 20);
}
