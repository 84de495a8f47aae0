//! Reading cached latents in the order of training: random rows, some hundred at a time.
//!
//!     cargo bench -p balanceddpo-schemas --bench latents [-- PAIRS]
//!
//! Pairs of the size of Stable Diffusion 1.5 at 512 pixels (4x64x64 in half precision, a caption
//! for every third pair), 2000 unless said otherwise.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a benchmark for people")]

use std::collections::BTreeMap;
use std::time::Instant;

use schemas::labels::Status;
use schemas::latents::{
    CaptionRow, CaptionsFile, CaptionsLayout, CaptionsWriter, Geometry, ImageMoments, LatentRow,
    LatentsFile, LatentsLayout, LatentsWriter, Moments, StoredFloat,
};

/// Rows that are read together.
const CHUNK: i64 = 256;

/// Numbers without a pattern, about normal.
fn noise(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    (0..count).map(|_| (next() + next() + next() + next()) * 6.0).collect()
}

fn main() {
    let pairs: i64 = std::env::args().find_map(|argument| argument.parse().ok()).unwrap_or(2000);
    let folder = tempfile::tempdir().unwrap();
    let stored = StoredFloat::Float16;
    let layout = LatentsLayout { stored, shape: [4, 64, 64], flipped: false };
    let texts = CaptionsLayout { stored, shape: [77, 768], pooled: None };
    let (latents, captions) = (folder.path().join("latents"), folder.path().join("captions"));

    let started = Instant::now();
    let mut writer = LatentsWriter::create(&latents, layout, &BTreeMap::new()).unwrap();
    for row in 0..pairs {
        let geometry = Some(Geometry { size: (512, 512), crop: (0, 0) });
        let label = LatentRow {
            pair_id: row.to_string(),
            source_file: "a.parquet".to_owned(),
            source_row: row,
            caption: Some(format!("caption {}", row / 3)),
            caption_index: Some(row / 3),
            image_uid: [Some(format!("left {row}")), Some(format!("right {row}"))],
            geometry: [geometry; 2],
            status: Status::Ok,
            error: None,
        };
        let image = |image: u64| {
            let numbers = |part| noise(layout.numbers(), row as u64 * 4 + image * 2 + part);
            let plain = Moments { mean: numbers(0), std: numbers(1) };
            Some(ImageMoments { plain, flipped: None })
        };
        writer.write(label, [image(0), image(1)]).unwrap();
    }
    writer.finish().unwrap();
    let mut writer = CaptionsWriter::create(&captions, texts, &BTreeMap::new()).unwrap();
    for caption_index in 0..=pairs / 3 {
        let prompt_embeds = noise(texts.numbers(), caption_index as u64);
        let caption = format!("caption {caption_index}");
        writer
            .write(CaptionRow { caption_index, caption, prompt_embeds, pooled_prompt_embeds: None })
            .unwrap();
    }
    writer.finish().unwrap();
    let size = |path| std::fs::metadata(path).unwrap().len() as f64;
    println!(
        "wrote {pairs} pairs in {:.1} s: {:.1} kB of latents a pair, {:.1} kB a caption",
        started.elapsed().as_secs_f64(),
        size(&latents) / 1e3 / pairs as f64,
        size(&captions) / 1e3 / (pairs / 3 + 1) as f64
    );

    let (latents, captions) =
        (LatentsFile::open(&latents).unwrap(), CaptionsFile::open(&captions).unwrap());
    // A stride that is coprime to the number of rows visits all of them in no order.
    let stride = (pairs * 5 / 8..).find(|stride| gcd(*stride, pairs) == 1).unwrap();
    let order: Vec<i64> = (0..pairs).map(|row| row * stride % pairs).collect();
    let started = Instant::now();
    for chunk in order.chunks(CHUNK as usize) {
        let mut rows = chunk.to_vec();
        rows.sort_unstable();
        let small = latents.rows_at(&rows).unwrap();
        for image in [0, 1] {
            std::hint::black_box(latents.moments_at(image, false, &rows).unwrap());
        }
        let mut numbers: Vec<i64> = small.iter().filter_map(|row| row.caption_index).collect();
        numbers.dedup();
        std::hint::black_box(captions.rows_at(&numbers).unwrap());
    }
    let seconds = started.elapsed().as_secs_f64();
    println!("read {pairs} pairs in random order: {:.0} pairs/s", pairs as f64 / seconds);
}

fn gcd(a: i64, b: i64) -> i64 {
    if b == 0 { a } else { gcd(b, a % b) }
}
