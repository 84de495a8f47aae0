//! Writes pairs of any layout as our Parquet: row groups of 64 to 128 MiB, page index, bytes of
//! images, uids and ids as they were read, winner-first sets dealt out.
//!
//! A file becomes several, each complete when it has its name, so that a stopped conversion resumes
//! behind the last of them. Equal input gives equal bytes, whether it was stopped or not.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::DEALING;
use super::writer::{KEY_DEALING, KEY_FIRST_ROW, LabelsOf, PairsWriter, Sizes};
use crate::input::{InputError, ParquetInput};
use crate::pairs::{InputFile, PairFile, PairRow, PairsError};
use crate::table_writer::WriteError;

/// Rows that are read together.
const READ_ROWS: usize = 16;

const KEY_SOURCE: &str = "balanceddpo.pairs.source_file";
const KEY_FINGERPRINT: &str = "balanceddpo.pairs.source_fingerprint";
const KEY_LAYOUT: &str = "balanceddpo.pairs.layout";

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
    let mut writer: Option<PairsWriter> = None;
    for batch in pairs.rows_with_images_in(row..pairs.num_rows(), READ_ROWS)? {
        conversion.check()?;
        for pair in batch? {
            let open = match &mut writer {
                Some(open) => open,
                None => {
                    let metadata = metadata(&pairs, pair.row);
                    let path = path_of(number);
                    writer.insert(PairsWriter::create(&path, &metadata, LabelsOf::Humans, sizes)?)
                }
            };
            if pair.image.iter().any(|image| image.as_ref().is_none_or(bytes::Bytes::is_empty)) {
                converted.without_images += 1;
                conversion.absent(&pair);
            }
            converted.bytes +=
                pair.image.iter().flatten().map(|bytes| bytes.len() as u64).sum::<u64>();
            converted.rows += 1;
            open.write(pair)?;
            if open.is_full() {
                let rows = open.num_rows();
                if let Some(full) = writer.take() {
                    full.finish()?;
                }
                (number, converted.files) = (number + 1, converted.files + 1);
                conversion.done(rows);
            }
        }
    }
    if let Some(last) = writer {
        let rows = last.num_rows();
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

fn metadata(pairs: &PairFile, first_row: i64) -> BTreeMap<String, String> {
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
    metadata
}
