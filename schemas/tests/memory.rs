//! What reading holds in memory, of files with pages as pyarrow, pandas and this crate's own writer
//! make them where nothing is set: a dictionary page of 1,024 images, then data pages of 1,024.

#![expect(clippy::unwrap_used, reason = "tests")]

mod common;

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use arrow::array::{ArrayRef, BinaryArray, RecordBatch};
use common::{held, input, pair_columns, peak_of, with};
use parquet::arrow::ArrowWriter;
use parquet::basic::{BrotliLevel, Compression, GzipLevel, ZstdLevel};
use parquet::file::properties::WriterProperties;
use parquet::file::reader::{FileReader as _, SerializedFileReader};
use schemas::pairs::PairFile;
use schemas::scratch::IN_MEMORY_BYTES;
use tempfile::tempdir;

/// The file to read, where this process is the one that is measured.
const FILE: &str = "SCHEMAS_TEST_READS";
const ROWS: usize = 2100;
const IMAGE_BYTES: usize = 24_000;
/// Values of a page where nothing is set.
const PAGE_VALUES: usize = 1024;
/// Of each column a page in memory, and one that is being decompressed; texts, and what a process
/// has.
const BOUND: usize = 4 * IN_MEMORY_BYTES + (8 << 20);

/// Bytes that no codec makes smaller, as those of a JPEG.
fn image(row: usize, side: usize) -> Vec<u8> {
    let mut state = (row * 2 + side) as u64;
    let next = |_| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    (0..IMAGE_BYTES).map(next).collect()
}

fn write(path: &Path, codec: Compression) {
    let images = |side: usize| -> ArrayRef {
        Arc::new(BinaryArray::from_iter_values((0..ROWS).map(|row| image(row, side))))
    };
    let columns = with(with(pair_columns(ROWS as i64), "jpg_0", images(0)), "jpg_1", images(1));
    let batch = RecordBatch::try_from_iter_with_nullable(
        columns.into_iter().map(|(name, array)| (name, array, true)),
    )
    .unwrap();
    #[expect(clippy::disallowed_methods, reason = "test input needs no durability")]
    let file = std::fs::File::create(path).unwrap();
    // pyarrow looks at the size of a page after every 1,024 values, whatever they are.
    let page_bytes = PAGE_VALUES * IMAGE_BYTES;
    let properties = WriterProperties::builder()
        .set_compression(codec)
        .set_dictionary_page_size_limit(page_bytes)
        .set_data_page_size_limit(page_bytes)
        .set_write_batch_size(PAGE_VALUES)
        .build();
    let mut writer = ArrowWriter::try_new(file, batch.schema(), Some(properties)).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    // The pages are as large as they are meant to be, or nothing is shown.
    let reader = SerializedFileReader::new(std::fs::File::open(path).unwrap()).unwrap();
    assert_eq!(reader.metadata().num_row_groups(), 1);
    for column in [4, 5] {
        let chunk = reader.metadata().row_group(0).column(column);
        let dictionary = chunk.data_page_offset() - chunk.dictionary_page_offset().unwrap();
        assert!(dictionary as usize > PAGE_VALUES * IMAGE_BYTES * 9 / 10, "{dictionary}");
    }
}

/// Not a test by itself: what the measured process does.
#[test]
fn measured_process() {
    let Some(path) = std::env::var_os(FILE) else { return };
    let before = held();
    let peak = peak_of(|| {
        let file = PairFile::open(&input(path.into())).unwrap();
        let mut rows = 0;
        for batch in file.rows_with_images(32).unwrap() {
            for row in batch.unwrap() {
                for (side, found) in row.image.iter().enumerate() {
                    assert!(found.as_ref().unwrap() == &image(rows, side), "row {rows}");
                }
                rows += 1;
            }
        }
        assert_eq!(rows, ROWS);
    });
    println!("grown {}", peak - before);
}

#[test]
fn pages_of_a_thousand_images_are_not_held_in_memory() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("pairs.parquet");
    for codec in [
        Compression::UNCOMPRESSED,
        Compression::SNAPPY,
        Compression::ZSTD(ZstdLevel::try_new(1).unwrap()),
        Compression::GZIP(GzipLevel::try_new(1).unwrap()),
        Compression::BROTLI(BrotliLevel::try_new(0).unwrap()),
    ] {
        write(&path, codec);
        // A process of its own: memory that the writer gave back would be used again here.
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "measured_process", "--nocapture", "--test-threads=1"])
            .env(FILE, &path)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{codec}: {text}");
        let grown = text.split("grown ").nth(1).unwrap().split_whitespace().next().unwrap();
        let grown: usize = grown.parse().unwrap();
        println!("{codec}: {} MiB", grown >> 20);
        assert!(grown < BOUND, "{codec}: reading held {} MiB", grown >> 20);
    }
}

/// What lz4 pages are made of is known to the library alone, which decompresses in memory: one page
/// at a time, and none is kept.
#[test]
fn every_codec_gives_the_same_rows() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("pairs.parquet");
    for codec in [Compression::LZ4, Compression::LZ4_RAW, Compression::SNAPPY] {
        write(&path, codec);
        let file = PairFile::open(&input(path.clone())).unwrap();
        let rows = file.rows_with_images_in(1000..1100, 32).unwrap().collect_rows().unwrap();
        assert_eq!(rows.len(), 100);
        for (row, number) in rows.iter().zip(1000..) {
            assert_eq!(row.row, number as i64);
            for side in [0, 1] {
                assert!(row.image[side].as_ref().unwrap() == &image(number, side), "{codec}");
            }
        }
    }
}
