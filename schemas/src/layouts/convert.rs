//! Writes pairs of any layout as our Parquet: row groups of 64 to 128 MiB, page index, bytes of
//! images, uids and ids as they were read, winner-first sets dealt out.
//!
//! A file becomes several, each complete when it has its name, so that a stopped conversion resumes
//! behind the last of them. Equal input gives equal bytes, whether it was stopped or not.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{ArrayRef, BinaryArray, Float64Array, StringArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;

use super::DEALING;
use crate::input::{InputError, ParquetInput};
use crate::pairs::{InputFile, PairFile, PairRow, PairsError};
use crate::table_writer::{Format, TableWriter, WriteError};

/// How large row groups and files are, in bytes of their images and texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// A row group ends behind the row with which it has as many. It is also what is in memory.
    pub row_group: usize,
    /// A file ends behind the row group with which it has as many.
    pub file: usize,
}

impl Default for Sizes {
    /// Row groups of 64 MiB and a row, files of 1 GiB and a row group.
    fn default() -> Self {
        Self { row_group: 64 << 20, file: 1 << 30 }
    }
}

/// A page of images, in bytes; every row can be read alone by the page index.
const PAGE_BYTES: usize = 1 << 20;
/// Rows that are read together.
const READ_ROWS: usize = 16;

const KEY_VERSION: &str = "balanceddpo.pairs.schema_version";
const KEY_SOURCE: &str = "balanceddpo.pairs.source_file";
const KEY_FINGERPRINT: &str = "balanceddpo.pairs.source_fingerprint";
const KEY_FIRST_ROW: &str = "balanceddpo.pairs.first_row";
const KEY_LAYOUT: &str = "balanceddpo.pairs.layout";
const KEY_DEALING: &str = "balanceddpo.pairs.dealing";

/// Why pairs could not be converted.
#[derive(Debug, thiserror::Error)]
pub enum ConvertError {
    /// The input.
    #[error(transparent)]
    Pairs(#[from] PairsError),
    /// A file that was written before cannot be read.
    #[error(transparent)]
    Written(#[from] InputError),
    /// The output.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// The output folder.
    #[error(transparent)]
    File(#[from] runkit::files::FileError),
    /// A signal.
    #[error(transparent)]
    Stopped(#[from] runkit::signals::Stopped),
    /// Two inputs would become files of the same names.
    #[error(
        "{first:?} and {second:?} would both become {name}-00000.parquet; hint: convert them into \
         folders of their own"
    )]
    SameName {
        /// The first input.
        first: String,
        /// The second.
        second: String,
        /// The common name.
        name: String,
    },
    /// The file under the name of an output is not this conversion's.
    #[error(
        "{}: expected rows of {source_file:?} from row {row} on, as they are now; found another \
         file; hint: choose another --out, or remove this file",
        path.display()
    )]
    Foreign {
        /// The file.
        path: PathBuf,
        /// The input.
        source_file: String,
        /// Its row.
        row: i64,
    },
}

/// What a conversion did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Converted {
    /// Pairs in the output, with those that were there before.
    pub rows: u64,
    /// Pairs without one of their images, among those written now.
    pub without_images: u64,
    /// Files written now.
    pub files: u64,
    /// Bytes of images written now.
    pub bytes: u64,
}

/// Receives the progress of a conversion and may stop it.
pub trait Conversion {
    /// Rows that are in the output, now or from before.
    fn done(&mut self, rows: u64);
    /// A row lacks an image.
    fn absent(&mut self, row: &PairRow);
    /// # Errors
    /// If the conversion is to stop.
    fn check(&mut self) -> Result<(), runkit::signals::Stopped>;
}

/// The names of the outputs of each input, below the output folder and without their numbers.
///
/// # Errors
/// When two are the same.
pub fn names_of(inputs: &[InputFile]) -> Result<Vec<String>, ConvertError> {
    let mut taken: BTreeMap<String, &str> = BTreeMap::new();
    let mut names = Vec::with_capacity(inputs.len());
    for input in inputs {
        let source = input.source_file.as_str();
        let (folder, file) = match source.rsplit_once('/') {
            Some((folder, file)) => (Some(folder), file),
            None => (None, source),
        };
        let stem = file.rsplit_once('.').map_or(file, |(stem, _)| stem);
        let name = folder.map_or_else(|| stem.to_owned(), |folder| format!("{folder}/{stem}"));
        if let Some(first) = taken.insert(name.clone(), source) {
            let (first, second) = (first.to_owned(), source.to_owned());
            return Err(ConvertError::SameName { first, second, name });
        }
        names.push(name);
    }
    Ok(names)
}

/// Converts a file of pairs into `out/NAME-00000.parquet` and so on; `name` is of [`names_of`].
///
/// # Errors
/// When the input cannot be read, the output not written, or a file stands under the name of an
/// output that is not of this conversion.
pub fn convert(
    input: &InputFile,
    out: &Path,
    name: &str,
    sizes: Sizes,
    conversion: &mut dyn Conversion,
) -> Result<Converted, ConvertError> {
    let pairs = PairFile::open(input)?;
    let mut converted = Converted::default();
    let (mut row, mut number) = (0_i64, 0_u32);
    let path_of = |number: u32| out.join(format!("{name}-{number:05}.parquet"));
    while row < pairs.num_rows() && path_of(number).exists() {
        let rows = written(&path_of(number), &pairs, row)?;
        row += rows;
        number += 1;
        converted.rows += rows.unsigned_abs();
        conversion.done(rows.unsigned_abs());
    }
    if row >= pairs.num_rows() {
        return Ok(converted);
    }
    if let Some(folder) = path_of(number).parent() {
        runkit::files::create_folder(folder)?;
    }
    let mut writer: Option<Writer> = None;
    for batch in pairs.rows_with_images_in(row..pairs.num_rows(), READ_ROWS)? {
        conversion.check()?;
        for pair in batch? {
            let open = match &mut writer {
                Some(open) => open,
                None => writer.insert(Writer::create(&path_of(number), &pairs, pair.row)?),
            };
            if pair.image.iter().any(|image| image.as_ref().is_none_or(bytes::Bytes::is_empty)) {
                converted.without_images += 1;
                conversion.absent(&pair);
            }
            converted.bytes +=
                pair.image.iter().flatten().map(|bytes| bytes.len() as u64).sum::<u64>();
            converted.rows += 1;
            open.add(pair, sizes.row_group)?;
            if open.pending.is_empty() && open.bytes >= sizes.file {
                let rows = open.rows;
                if let Some(full) = writer.take() {
                    full.finish()?;
                }
                (number, converted.files) = (number + 1, converted.files + 1);
                conversion.done(rows);
            }
        }
    }
    if let Some(last) = writer {
        let rows = last.rows;
        last.finish()?;
        converted.files += 1;
        conversion.done(rows);
    }
    Ok(converted)
}

/// How many rows an earlier start wrote into this file, which must begin with row `row`.
fn written(path: &Path, pairs: &PairFile, row: i64) -> Result<i64, ConvertError> {
    let file = ParquetInput::open(path)?;
    let keys = file.key_values();
    let is = |key: &str, value: &str| keys.get(key).is_some_and(|found| found == value);
    let rows = file.num_rows();
    let fits = is(KEY_SOURCE, pairs.source_file())
        && is(KEY_FINGERPRINT, &pairs.fingerprint())
        && is(KEY_FIRST_ROW, &row.to_string())
        && is(KEY_LAYOUT, pairs.layout().name())
        && rows > 0
        && row + rows <= pairs.num_rows();
    if fits {
        return Ok(rows);
    }
    let (path, source_file) = (path.to_owned(), pairs.source_file().to_owned());
    Err(ConvertError::Foreign { path, source_file, row })
}

/// One output file.
struct Writer {
    table: TableWriter,
    /// The rows of the row group that is not written yet, and their bytes.
    pending: Vec<PairRow>,
    pending_bytes: usize,
    /// All rows and bytes.
    rows: u64,
    bytes: usize,
}

fn schema() -> SchemaRef {
    let text = |name| Field::new(name, DataType::Utf8, true);
    let image = |name| Field::new(name, DataType::Binary, true);
    let number = |name| Field::new(name, DataType::Float64, true);
    Arc::new(Schema::new(vec![
        text("caption"),
        text("image_0_uid"),
        text("image_1_uid"),
        image("jpg_0"),
        image("jpg_1"),
        number("label_0"),
        number("label_1"),
        Field::new("ranking_id", DataType::Utf8, false),
    ]))
}

fn properties(pairs: &PairFile, first_row: i64) -> WriterProperties {
    let mut metadata: BTreeMap<String, String> = [
        (KEY_SOURCE, pairs.source_file().to_owned()),
        (KEY_FINGERPRINT, pairs.fingerprint()),
        (KEY_FIRST_ROW, first_row.to_string()),
        (KEY_LAYOUT, pairs.layout().to_string()),
    ]
    .into_iter()
    .map(|(key, value)| (key.to_owned(), value))
    .collect();
    if pairs.layout().is_dealt() {
        metadata.insert(KEY_DEALING.to_owned(), DEALING.to_owned());
    }
    let format = Format {
        version_key: KEY_VERSION,
        version: 1,
        zstd_level: 3,
        // Row groups end by their bytes.
        row_group_rows: usize::MAX,
    };
    let mut builder = format
        .properties(&metadata)
        .set_data_page_size_limit(PAGE_BYTES)
        // The size of a page is looked at this often.
        .set_write_batch_size(1)
        .set_dictionary_enabled(false);
    for image in ["jpg_0", "jpg_1"] {
        let path = || ColumnPath::from(image);
        // Images are compressed already; the footer counts those that are missing.
        builder = builder
            .set_column_compression(path(), parquet::basic::Compression::UNCOMPRESSED)
            .set_column_statistics_enabled(path(), EnabledStatistics::Chunk);
    }
    builder.build()
}

impl Writer {
    fn create(path: &Path, pairs: &PairFile, first_row: i64) -> Result<Self, ConvertError> {
        let table = TableWriter::create(path, schema(), properties(pairs, first_row))?;
        Ok(Self { table, pending: Vec::new(), pending_bytes: 0, rows: 0, bytes: 0 })
    }

    fn add(&mut self, mut pair: PairRow, group_bytes: usize) -> Result<(), ConvertError> {
        // A slice keeps its page, or a scratch file, alive.
        for image in pair.image.iter_mut().flatten() {
            *image = bytes::Bytes::copy_from_slice(image);
        }
        let images = pair.image.iter().flatten().map(bytes::Bytes::len).sum::<usize>();
        let bytes = images + pair.caption.as_ref().map_or(0, String::len);
        self.pending.push(pair);
        self.pending_bytes += bytes;
        self.bytes += bytes;
        self.rows += 1;
        if self.pending_bytes >= group_bytes { self.flush() } else { Ok(()) }
    }

    /// Writes the pending rows as a row group.
    fn flush(&mut self) -> Result<(), ConvertError> {
        let rows = std::mem::take(&mut self.pending);
        self.pending_bytes = 0;
        if rows.is_empty() {
            return Ok(());
        }
        let text = |value: fn(&PairRow) -> Option<&str>| -> ArrayRef {
            Arc::new(rows.iter().map(value).collect::<StringArray>())
        };
        let image = |side: usize| -> ArrayRef {
            let bytes = rows.iter().map(|row| row.image.get(side)?.as_deref());
            Arc::new(bytes.collect::<BinaryArray>())
        };
        let label = |of: fn(f64) -> f64| -> ArrayRef {
            Arc::new(rows.iter().map(|row| row.human_label_0.map(of)).collect::<Float64Array>())
        };
        self.table.write(vec![
            text(|row| row.caption.as_deref()),
            text(|row| row.image_uid[0].as_deref()),
            text(|row| row.image_uid[1].as_deref()),
            image(0),
            image(1),
            label(|label| label),
            label(|label| 1.0 - label),
            text(|row| Some(&row.pair_id)),
        ])?;
        Ok(self.table.end_row_group()?)
    }

    fn finish(mut self) -> Result<(), ConvertError> {
        self.flush()?;
        Ok(self.table.finish()?)
    }
}
