//! Pairs for the tests: rows of `data/sample`, changed where a test needs it, and written as
//! Parquet.

use std::path::Path;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, BinaryArray, Float64Array, Int64Array, RecordBatch, StringArray, StructArray,
};
use arrow::buffer::NullBuffer;
use arrow::datatypes::{DataType, Field, Fields};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;
use schemas::pairs::{PairFile, discover};

/// One pair, to be written.
#[derive(Clone, Debug)]
pub(crate) struct Pair {
    pub(crate) ranking_id: Option<i64>,
    pub(crate) caption: Option<String>,
    pub(crate) uid: [Option<String>; 2],
    pub(crate) image: [Option<Vec<u8>>; 2],
    pub(crate) label_0: Option<f64>,
}

impl Pair {
    /// The same pair with its images in the other order.
    pub(crate) fn swapped(mut self) -> Self {
        self.uid.reverse();
        self.image.reverse();
        self.label_0 = self.label_0.map(|label| 1.0 - label);
        self
    }
}

/// The first pairs of the sample.
pub(crate) fn sample_pairs(rows: usize) -> Vec<Pair> {
    let mut pairs = Vec::new();
    for input in discover(&[Path::new(super::SAMPLE).to_owned()], &[]).unwrap().files {
        for batch in PairFile::open(&input).unwrap().rows_with_images(32).unwrap() {
            for row in batch.unwrap() {
                if pairs.len() == rows {
                    return pairs;
                }
                pairs.push(Pair {
                    ranking_id: Some(row.pair_id.parse().unwrap()),
                    caption: row.caption,
                    uid: row.image_uid,
                    image: row.image.map(|image| image.map(|bytes| bytes.to_vec())),
                    label_0: row.human_label_0,
                });
            }
        }
    }
    panic!("the sample has fewer than {rows} pairs");
}

/// A Parquet file in Pick-a-Pic's layout, in row groups of five.
pub(crate) fn pairs_parquet(pairs: &[Pair]) -> Vec<u8> {
    parquet_of(columns(pairs, |images| Arc::new(BinaryArray::from_iter(images))))
}

/// The same with images as the struct `{bytes, path}` of the `datasets` library.
pub(crate) fn pairs_parquet_with_structs(pairs: &[Pair]) -> Vec<u8> {
    parquet_of(columns(pairs, |images| {
        let nulls: NullBuffer = images.iter().map(Option::is_some).collect();
        let paths: ArrayRef = Arc::new(StringArray::from(vec![None::<&str>; images.len()]));
        let fields = Fields::from(vec![
            Field::new("bytes", DataType::Binary, true),
            Field::new("path", DataType::Utf8, true),
        ]);
        let bytes: ArrayRef = Arc::new(BinaryArray::from_iter(images));
        Arc::new(StructArray::new(fields, vec![bytes, paths], Some(nulls)))
    }))
}

fn columns(
    pairs: &[Pair],
    images: impl Fn(Vec<Option<&[u8]>>) -> ArrayRef,
) -> Vec<(&'static str, ArrayRef)> {
    let text = |value: fn(&Pair) -> Option<&str>| -> ArrayRef {
        Arc::new(StringArray::from_iter(pairs.iter().map(value)))
    };
    let image = |position: usize| -> ArrayRef {
        images(pairs.iter().map(|pair| pair.image[position].as_deref()).collect())
    };
    vec![
        ("caption", text(|pair| pair.caption.as_deref())),
        ("jpg_0", image(0)),
        ("jpg_1", image(1)),
        ("image_0_uid", text(|pair| pair.uid[0].as_deref())),
        ("image_1_uid", text(|pair| pair.uid[1].as_deref())),
        ("label_0", Arc::new(Float64Array::from_iter(pairs.iter().map(|pair| pair.label_0)))),
        ("ranking_id", Arc::new(Int64Array::from_iter(pairs.iter().map(|pair| pair.ranking_id)))),
    ]
}

/// So many pairs of the sample's images, each with a caption and uids of its own, so that every
/// unit has images to score.
pub(crate) fn pairs_with_own_captions(rows: usize) -> Vec<Pair> {
    let some = sample_pairs(20);
    let pair = |row: usize| Pair {
        ranking_id: Some(row as i64),
        caption: Some(format!("a red fox in the snow, number {row}")),
        uid: ["left", "right"].map(|side| Some(format!("{side} {row}"))),
        ..some[row % some.len()].clone()
    };
    (0..rows).map(pair).collect()
}

/// A file of so many pairs without images, each with uids and a caption of its own: for tests about
/// the number of rows. `first` is the number of the first of them.
pub(crate) fn pairs_without_images(first: usize, rows: usize) -> Vec<u8> {
    let numbers = || first..first + rows;
    let text = |name: &str| -> ArrayRef {
        Arc::new(StringArray::from_iter_values(numbers().map(|number| format!("{name} {number}"))))
    };
    let none =
        || -> ArrayRef { Arc::new(BinaryArray::from_iter((0..rows).map(|_| None::<&[u8]>))) };
    let columns = [
        ("caption", text("a caption of its own for pair")),
        ("jpg_0", none()),
        ("jpg_1", none()),
        ("image_0_uid", text("left")),
        ("image_1_uid", text("right")),
    ];
    let columns = columns.map(|(name, array)| (name, array, true));
    written(&RecordBatch::try_from_iter_with_nullable(columns).unwrap(), WriterProperties::new())
}

/// A file whose pages hold `pairs` one by one, so that each image has memory of its own when it is
/// read, however often it recurs.
pub(crate) fn pairs_in_small_pages(pairs: &[Pair]) -> Vec<u8> {
    let columns = columns(pairs, |images| Arc::new(BinaryArray::from_iter(images)));
    let columns = columns.into_iter().map(|(name, array)| (name, array, true));
    let properties = WriterProperties::builder()
        .set_dictionary_enabled(false)
        .set_write_batch_size(1)
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .build();
    written(&RecordBatch::try_from_iter_with_nullable(columns).unwrap(), properties)
}

fn written(batch: &RecordBatch, properties: WriterProperties) -> Vec<u8> {
    let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), Some(properties)).unwrap();
    writer.write(batch).unwrap();
    writer.into_inner().unwrap()
}

/// The bytes of a Parquet file of these columns, in row groups of five.
pub(crate) fn parquet_of(columns: Vec<(&'static str, ArrayRef)>) -> Vec<u8> {
    let columns = columns.into_iter().map(|(name, array)| (name, array, true));
    let batch = RecordBatch::try_from_iter_with_nullable(columns).unwrap();
    let properties = WriterProperties::builder().set_max_row_group_row_count(Some(5)).build();
    written(&batch, properties)
}

/// A sound PNG of the sample with so many bytes more, in a chunk that readers pass over. Different
/// `fill` makes different bytes of the same image.
pub(crate) fn png_of_size(bytes: usize, fill: u8) -> Vec<u8> {
    let images = sample_pairs(100).into_iter().flat_map(|pair| pair.image).flatten();
    let mut png = images.into_iter().find(|image| image.starts_with(b"\x89PNG")).unwrap();
    let mut chunk = b"stUf".to_vec();
    chunk.resize(4 + bytes, fill);
    let mut crc = u32::MAX;
    for &byte in &chunk {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0xedb8_8320 * (crc & 1));
        }
    }
    chunk.splice(0..0, u32::try_from(bytes).unwrap().to_be_bytes());
    chunk.extend((!crc).to_be_bytes());
    // Behind the header, whose chunk ends at byte 33.
    png.splice(33..33, chunk);
    png
}
