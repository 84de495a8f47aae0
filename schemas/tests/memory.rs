//! Reading holds pages, not row groups. Alone in its process, for its peak of memory is measured.

#![expect(clippy::unwrap_used, reason = "tests")]

mod common;

use std::sync::Arc;

use arrow::array::{ArrayRef, BinaryArray, RecordBatch};
use common::{input, pair_columns, parquet_bytes, with};
use parquet::arrow::ArrowWriter;
use parquet::basic::Compression;
use parquet::file::properties::WriterProperties;
use schemas::pairs::PairFile;
use tempfile::tempdir;

/// 400 MB of images in one row group: reading them must hold a few pages, not the row group.
#[test]
fn a_large_row_group_streams() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("large.parquet");
    let schema = {
        let bytes = parquet_bytes(pair_columns(1), 4);
        let reader = parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder::try_new(
            bytes::Bytes::from(bytes),
        );
        Arc::clone(reader.unwrap().schema())
    };
    #[expect(clippy::disallowed_methods, reason = "test input needs no durability")]
    let file = std::fs::File::create(&path).unwrap();
    let properties = WriterProperties::builder()
        .set_compression(Compression::UNCOMPRESSED)
        .set_dictionary_enabled(false)
        .set_write_batch_size(4)
        .build();
    let mut writer = ArrowWriter::try_new(file, Arc::clone(&schema), Some(properties)).unwrap();
    for block in 0..20 {
        let image = vec![block as u8; 500_000];
        let images: ArrayRef = Arc::new(BinaryArray::from_iter_values(vec![&image; 20]));
        let columns = with(with(pair_columns(20), "jpg_0", Arc::clone(&images)), "jpg_1", images);
        let columns = columns.into_iter().map(|(_, array)| array).collect();
        writer.write(&RecordBatch::try_new(Arc::clone(&schema), columns).unwrap()).unwrap();
    }
    writer.close().unwrap();

    let file = PairFile::open(&input(path)).unwrap();
    assert_eq!(file.row_groups().len(), 1);
    let before = peak_memory();
    let (mut rows, mut bytes) = (0, 0);
    for batch in file.rows_with_images(8).unwrap() {
        let batch = batch.unwrap();
        rows += batch.len();
        bytes += batch
            .iter()
            .flat_map(|r| r.image.iter().flatten())
            .map(bytes::Bytes::len)
            .sum::<usize>();
    }
    assert_eq!((rows, bytes), (400, 400 * 2 * 500_000));
    let grown = peak_memory() - before;
    assert!(grown < 100 << 20, "reading held {} MiB", grown >> 20);
}

/// The most memory this process has held, in bytes.
fn peak_memory() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() << 10
}
