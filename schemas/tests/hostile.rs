//! Damaged and hostile files: an error that names the file, or readable rows; never a panic, a
//! hang, or memory without a bound.

#![expect(clippy::unwrap_used, reason = "tests")]

mod common;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{ArrayRef, RecordBatch, StringArray};
use common::{input, label_row, pair_columns, parquet_bytes, put, with};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::metadata::{
    ColumnChunkMetaDataBuilder, ParquetMetaDataReader, ParquetMetaDataWriter,
};
use parquet::file::properties::WriterProperties;
use schemas::input::{InputError, MAX_COLUMN_CHUNK_BYTES, MAX_FOOTER_BYTES};
use schemas::labels::{LabelRow, LabelsFile, LabelsSchema, LabelsWriter};
use schemas::pairs::{PairFile, PairRow, PairsError};
use tempfile::tempdir;

/// All that can be read of a file, or the message of its error.
fn read_pairs(path: &Path) -> Result<Vec<PairRow>, String> {
    let name = path.file_name().unwrap().to_str().unwrap().to_owned();
    let read = || -> Result<Vec<PairRow>, PairsError> {
        let file = PairFile::open(&input(path.to_owned()))?;
        file.plan_rows()?.collect_rows()?;
        file.rows_with_images(5)?.collect_rows()
    };
    read().map_err(|error| {
        assert!(error.to_string().contains(&name), "the error names the file: {error}");
        error.to_string()
    })
}

fn read_labels(path: &Path) -> Result<Vec<LabelRow>, String> {
    LabelsFile::open(path).and_then(|file| file.read_rows()).map_err(|error| error.to_string())
}

/// A pairs file with some of everything: compressed, several row groups and pages, dictionaries.
fn small_pairs() -> Vec<u8> {
    let batch = RecordBatch::try_from_iter_with_nullable(
        pair_columns(30).into_iter().map(|(name, array)| (name, array, true)),
    )
    .unwrap();
    let properties = WriterProperties::builder()
        .set_max_row_group_row_count(Some(12))
        .set_data_page_row_count_limit(5)
        .set_write_batch_size(5)
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(3).unwrap()))
        .build();
    let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), Some(properties)).unwrap();
    writer.write(&batch).unwrap();
    writer.into_inner().unwrap()
}

fn small_labels(folder: &Path) -> Vec<u8> {
    let path = folder.join("labels.parquet");
    let schema = LabelsSchema::new(&["clip", "hps"]).unwrap();
    let mut writer = LabelsWriter::create(&path, &schema, &BTreeMap::new()).unwrap();
    (0..40).for_each(|row| writer.write(&label_row(row)).unwrap());
    writer.finish().unwrap();
    std::fs::read(path).unwrap()
}

/// A fixed sequence of numbers (splitmix64; Steele, Lea and Flood, 2014).
fn numbers(mut state: u64) -> impl Iterator<Item = u64> {
    std::iter::repeat_with(move || {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    })
}

#[test]
fn truncated_files_are_refused_in_one_sentence() {
    let folder = tempdir().unwrap();
    for bytes in [small_pairs(), small_labels(folder.path())] {
        for part in 0..64 {
            let path = put(folder.path(), "cut.parquet", &bytes[..bytes.len() * part / 64]);
            for error in [read_pairs(&path).unwrap_err(), read_labels(&path).unwrap_err()] {
                assert!(error.contains("cut.parquet: expected a Parquet file, found"), "{error}");
                assert_eq!(error.lines().count(), 1, "{error}");
            }
        }
    }
}

/// The format has no checksum that is always there, so a flip inside a value can pass unseen; it
/// must still be the same number of rows in the same order.
#[test]
fn flipped_bits_never_panic_or_hang() {
    let folder = tempdir().unwrap();
    let pairs = small_pairs();
    let labels = small_labels(folder.path());
    let start = Instant::now();
    let (mut refused, mut equal, mut other) = (0, 0, 0);
    let whole = read_pairs(&put(folder.path(), "flip.parquet", &pairs)).unwrap();
    for number in numbers(7).take(400) {
        // half of them in the footer, where the claims are
        let footer = number % 2 * (pairs.len() as u64 * 2 / 3);
        let bit = footer * 8 + (number >> 8) % ((pairs.len() as u64 - footer) * 8);
        let mut bytes = pairs.clone();
        bytes[(bit / 8) as usize] ^= 1 << (bit % 8);
        match read_pairs(&put(folder.path(), "flip.parquet", &bytes)) {
            Err(_) => refused += 1,
            Ok(rows) if rows == whole => equal += 1,
            Ok(rows) => {
                assert!(rows.iter().map(|row| row.row).eq(0..rows.len() as i64));
                other += 1;
            }
        }
    }
    for number in numbers(8).take(200) {
        let bit = number % (labels.len() as u64 * 8);
        let mut bytes = labels.clone();
        bytes[(bit / 8) as usize] ^= 1 << (bit % 8);
        let _either = read_labels(&put(folder.path(), "flip.parquet", &bytes));
    }
    assert!(refused > 50 && equal > 50, "{refused} refused, {equal} equal, {other} other");
    assert!(start.elapsed() < Duration::from_secs(60));
}

#[test]
fn other_files_are_called_by_what_they_are() {
    let folder = tempdir().unwrap();
    let error =
        |name: &str, bytes: &[u8]| read_pairs(&put(folder.path(), name, bytes)).unwrap_err();
    assert!(error("empty", b"").contains("an empty file"));
    assert!(error("tiny", b"PAR1PAR1").contains("8 bytes, too few"));
    assert!(error("page", b"<html>404 not found</html>").contains("an HTML page"));
    assert!(
        error("lfs", b"version https://git-lfs.github.com/spec/v1\n").contains("a git-lfs pointer")
    );
    assert!(error("server", br#"{"error": "Repository not found"}"#).contains("JSON"));
    assert!(error("noise", &[7; 100]).contains("other data"));
    assert!(error("secret", b"PARE1234567890PARE").contains("encrypted"));
    assert!(
        error("garbage", b"PAR1\xff\xfe\xfd\xfc\xfb\xfa\x04\x00\x00\x00PAR1").contains("damaged")
    );
    let claims = [b"PAR1".as_slice(), &[0; 40], &1000_u32.to_le_bytes(), b"PAR1"].concat();
    assert!(error("long", &claims).contains("a footer of 1000 bytes in a file of 52"));
    let folder_error = PairFile::open(&input(folder.path().to_owned())).unwrap_err();
    assert!(folder_error.to_string().contains("expected NAME_w.EXT"), "{folder_error}");
    assert!(PairFile::open(&input(folder.path().join("none"))).is_err());
}

#[test]
fn a_giant_footer_is_not_read() {
    let folder = tempdir().unwrap();
    let path = put(folder.path(), "giant.parquet", b"PAR1");
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    let length = MAX_FOOTER_BYTES + 1000;
    file.set_len(length).unwrap();
    let tail = [&(MAX_FOOTER_BYTES as u32 + 1).to_le_bytes(), b"PAR1".as_slice()].concat();
    std::os::unix::fs::FileExt::write_all_at(&file, &tail, length - 8).unwrap();
    let error = PairFile::open(&input(path)).unwrap_err();
    assert!(matches!(error, PairsError::Input(InputError::Limit { .. })), "{error}");
}

/// The same data under a footer that makes other claims about its first two columns.
fn with_claims(
    bytes: &[u8],
    claim: impl Fn(ColumnChunkMetaDataBuilder) -> ColumnChunkMetaDataBuilder,
    rows: i64,
) -> Vec<u8> {
    let shared = bytes::Bytes::copy_from_slice(bytes);
    let parsed = ParquetMetaDataReader::new().parse_and_finish(&shared).unwrap();
    let mut group = parsed.row_group(0).clone().into_builder();
    let columns = group.take_columns().into_iter();
    let columns = columns.enumerate().map(|(position, column)| match position {
        0 | 1 => claim(column.into_builder()).build().unwrap(),
        _ => column,
    });
    let group = group.set_column_metadata(columns.collect()).set_num_rows(rows).build().unwrap();
    let parsed = parsed.into_builder().set_row_groups(vec![group]).build();
    let tail = bytes.len() - 8;
    let footer = u32::from_le_bytes(bytes[tail..tail + 4].try_into().unwrap()) as usize;
    let mut changed = bytes[..tail - footer].to_vec();
    ParquetMetaDataWriter::new(&mut changed, &parsed).finish().unwrap();
    changed
}

#[test]
fn claims_of_the_footer_are_checked_before_reading() {
    let folder = tempdir().unwrap();
    let columns = common::without(pair_columns(3), "are_different");
    let bytes = parquet_bytes(columns, 4);
    let error =
        |bytes: Vec<u8>| read_pairs(&put(folder.path(), "claim.parquet", &bytes)).unwrap_err();
    assert!(
        read_pairs(&put(folder.path(), "fine.parquet", &with_claims(&bytes, |c| c, 3))).is_ok()
    );
    // A row group of DuckDB, 122,880 rows of images of 150 kB, has 18 GB in a chunk.
    let large = with_claims(&bytes, |c| c.set_total_uncompressed_size(18 << 30), 3);
    assert_eq!(read_pairs(&put(folder.path(), "large.parquet", &large)).unwrap().len(), 3);
    for claim in [MAX_COLUMN_CHUNK_BYTES + 1, i64::MAX] {
        let found = error(with_claims(&bytes, |c| c.set_total_uncompressed_size(claim), 3));
        assert!(found.contains("expected at most 17592186044416 bytes"), "{found}");
        assert!(found.contains(&format!("a claim of {claim}")), "{found}");
    }
    let found = error(with_claims(&bytes, |c| c.set_compression(Compression::LZO), 3));
    assert!(found.contains("column caption of row group 0 is compressed with LZO"), "{found}");
    assert!(found.contains("brotli, zstd or lz4; hint:"), "{found}");
    for claim in [-1, i64::MIN, bytes.len() as i64, i64::MAX] {
        let found = error(with_claims(&bytes, |c| c.set_total_compressed_size(claim), 3));
        assert!(found.contains("outside"), "{found}");
        let offset = |c: ColumnChunkMetaDataBuilder| c.set_dictionary_page_offset(None);
        let found = error(with_claims(&bytes, |c| offset(c).set_data_page_offset(claim), 3));
        assert!(found.contains("outside"), "{found}");
    }
    for rows in [-1, 4, i64::MAX] {
        let found = error(with_claims(&bytes, |c| c, rows));
        assert!(found.contains("rows"), "{found}");
    }
}

#[test]
fn many_columns_are_no_problem() {
    let folder = tempdir().unwrap();
    let names: Vec<&'static str> =
        (0..10_000).map(|index| &*Box::leak(format!("extra_{index}").into_boxed_str())).collect();
    let mut columns = pair_columns(2);
    let empty: ArrayRef = Arc::new(StringArray::from(vec![None::<&str>; 2]));
    columns.extend(names.into_iter().map(|name| (name, Arc::clone(&empty))));
    let path = put(folder.path(), "wide.parquet", &parquet_bytes(columns, 4));
    let start = Instant::now();
    assert_eq!(read_pairs(&path).unwrap().len(), 2);
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
}

#[test]
fn captions_of_any_content_pass_unchanged() {
    let folder = tempdir().unwrap();
    let captions =
        ["", "\u{0}", "a\nb", "\u{1b}[31mred", "\u{202e}rtl", "<script>", &"🦀".repeat(500_000)];
    let column: ArrayRef = Arc::new(StringArray::from_iter_values(captions));
    let path = put(
        folder.path(),
        "text.parquet",
        &parquet_bytes(with(pair_columns(7), "caption", column), 4),
    );
    let found = read_pairs(&path).unwrap();
    assert!(found.iter().map(|row| row.caption.as_deref().unwrap()).eq(captions));
}
