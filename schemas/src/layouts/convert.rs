//! Writes pairs of any layout as our Parquet: row groups of 64 to 128 MiB, page index, bytes of
//! images, uids and ids as they were read, winner-first sets dealt out.
//!
//! A file becomes several, each complete when it has its name, so that a stopped conversion resumes
//! behind the last of them. Equal input gives equal bytes, whether it was stopped or not.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use runkit::prefetch::prefetch;

use super::DEALING;
use super::writer::{KEY_DEALING, KEY_FIRST_ROW, LabelsOf, PairsWriter, Sizes};
use crate::input::{InputError, ParquetInput};
use crate::pairs::{InputFile, PairFile, PairRow, PairsError};
use crate::table_writer::WriteError;

/// Rows that are read together.
const READ_ROWS: usize = 16;
/// Batches of them that wait for the writer at most.
const BATCHES_AHEAD: usize = 2;

const KEY_SOURCE: &str = "balanceddpo.pairs.source_file";
const KEY_FINGERPRINT: &str = "balanceddpo.pairs.source_fingerprint";
const KEY_LAYOUT: &str = "balanceddpo.pairs.layout";
const KEY_WITHOUT_IMAGES: &str = "balanceddpo.pairs.without_images";
/// In the last file of an input.
const KEY_LAST: &str = "balanceddpo.pairs.last";

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

/// What a conversion has written of an input, now and before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Converted {
    /// Pairs.
    pub rows: u64,
    /// Pairs without one of their images.
    pub without_images: u64,
    /// Files.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Pairs that were written now.
    pub new_rows: u64,
}

/// Receives the progress of a conversion and may stop it.
pub trait Conversion {
    /// So many more rows were read, which are in the output soon.
    fn done(&mut self, rows: u64);
    /// So many rows are in the output from before.
    fn earlier(&mut self, rows: u64) {
        self.done(rows);
    }
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
    convert_rows(&pairs, pairs.num_rows(), out, name, sizes, conversion)
}

/// [`convert`] for the first `rows` of an opened file. The next rows are read while some are
/// written.
///
/// # Errors
/// As for [`convert`].
pub fn convert_rows(
    pairs: &PairFile,
    rows: i64,
    out: &Path,
    name: &str,
    sizes: Sizes,
    conversion: &mut dyn Conversion,
) -> Result<Converted, ConvertError> {
    let rows = rows.min(pairs.num_rows());
    let outputs = Outputs { out, name };
    let mut converted = Converted::default();
    while (converted.rows as i64) < rows && is_there(&outputs.path(converted.files)) {
        let path = outputs.path(converted.files);
        let written = Written::read(&path)?
            .filter(|file| file.is_of(pairs, converted.rows, rows))
            .ok_or_else(|| foreign(path, pairs, converted.rows as i64))?;
        converted.add(&written);
        conversion.earlier(written.rows);
    }
    let first = converted.rows as i64;
    if first >= rows {
        return Ok(converted);
    }
    if let Some(folder) = outputs.path(converted.files).parent() {
        runkit::files::create_folder(folder)?;
    }
    let batches = pairs.rows_with_images_in(first..rows, READ_ROWS)?;
    let mut writing = Writing { pairs, rows, outputs, sizes, open: None, converted };
    prefetch(batches, BATCHES_AHEAD, |batches| -> Result<(), ConvertError> {
        for batch in batches {
            conversion.check()?;
            let batch = batch?;
            let count = batch.len() as u64;
            for pair in batch {
                if pair.image.iter().any(|image| image.as_ref().is_none_or(Bytes::is_empty)) {
                    conversion.absent(&pair);
                }
                writing.write(pair)?;
            }
            conversion.done(count);
        }
        Ok(())
    })?;
    Ok(writing.converted)
}

/// What is written of an input, if all of it is: `None` if a file is missing.
///
/// # Errors
/// When a file cannot be read.
pub fn converted(
    out: &Path,
    name: &str,
    source_file: &str,
) -> Result<Option<Converted>, ConvertError> {
    let outputs = Outputs { out, name };
    let mut converted = Converted::default();
    while is_there(&outputs.path(converted.files)) {
        let Some(file) = Written::read(&outputs.path(converted.files))? else { break };
        if file.source_file != source_file || file.first_row != converted.rows {
            break;
        }
        converted.add(&file);
        if file.is_last {
            return Ok(Some(converted));
        }
    }
    Ok(None)
}

/// Whether a conversion wrote this file.
#[must_use]
pub fn is_converted(path: &Path) -> bool {
    PairsWriter::metadata_of(path).is_some_and(|keys| keys.contains_key(KEY_SOURCE))
}

/// Whether anything has that name, a link to nothing included.
fn is_there(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

fn foreign(path: PathBuf, pairs: &PairFile, row: i64) -> ConvertError {
    ConvertError::Foreign { path, source_file: pairs.source_file().to_owned(), row }
}

/// The outputs of an input.
#[derive(Clone, Copy)]
struct Outputs<'run> {
    out: &'run Path,
    name: &'run str,
}

impl Outputs<'_> {
    fn path(&self, number: u64) -> PathBuf {
        self.out.join(format!("{}-{number:05}.parquet", self.name))
    }
}

/// A file that an earlier start, or this one, wrote.
struct Written {
    source_file: String,
    fingerprint: String,
    layout: String,
    first_row: u64,
    rows: u64,
    without_images: u64,
    bytes: u64,
    is_last: bool,
}

impl Written {
    /// `None` of a file that no conversion wrote.
    fn read(path: &Path) -> Result<Option<Self>, ConvertError> {
        let file = ParquetInput::open(path)?;
        let keys = file.key_values();
        let text = |key: &str| keys.get(key).cloned();
        let number = |key: &str| keys.get(key)?.parse::<u64>().ok();
        let read = || {
            Some(Self {
                source_file: text(KEY_SOURCE)?,
                fingerprint: text(KEY_FINGERPRINT)?,
                layout: text(KEY_LAYOUT)?,
                first_row: number(KEY_FIRST_ROW)?,
                rows: u64::try_from(file.num_rows()).ok()?,
                without_images: number(KEY_WITHOUT_IMAGES)?,
                bytes: file.file_length(),
                is_last: keys.contains_key(KEY_LAST),
            })
        };
        Ok(read())
    }

    /// Whether it holds rows of `pairs`.
    fn is_from(&self, pairs: &PairFile) -> bool {
        self.source_file == pairs.source_file()
            && self.fingerprint == pairs.fingerprint()
            && self.layout == pairs.layout().name()
    }

    /// Whether it holds rows of `pairs` from row `first` on, as far as the first `rows`.
    fn is_of(&self, pairs: &PairFile, first: u64, rows: i64) -> bool {
        let end = i64::try_from(first + self.rows).unwrap_or(i64::MAX);
        self.is_from(pairs)
            && self.first_row == first
            && self.rows > 0
            && end <= rows
            && self.is_last == (end == rows)
    }
}

impl Converted {
    fn add(&mut self, file: &Written) {
        self.rows += file.rows;
        self.without_images += file.without_images;
        self.files += 1;
        self.bytes += file.bytes;
    }
}

/// Writes the files of an input.
struct Writing<'run> {
    pairs: &'run PairFile,
    rows: i64,
    outputs: Outputs<'run>,
    sizes: Sizes,
    /// The file that is being written, and its rows without images.
    open: Option<(PairsWriter, u64)>,
    converted: Converted,
}

impl Writing<'_> {
    fn write(&mut self, pair: PairRow) -> Result<(), ConvertError> {
        let lacks = pair.image.iter().any(|image| image.as_ref().is_none_or(Bytes::is_empty));
        let is_last = pair.row + 1 >= self.rows;
        let (file, without_images) = match &mut self.open {
            Some(open) => open,
            None => {
                let path = self.outputs.path(self.converted.files);
                // Somebody may have removed the file before it.
                if is_there(&path)
                    && !Written::read(&path)?.is_some_and(|file| file.is_from(self.pairs))
                {
                    return Err(foreign(path, self.pairs, pair.row));
                }
                let metadata = metadata(self.pairs, pair.row);
                let file = PairsWriter::create(&path, &metadata, LabelsOf::Humans, self.sizes)?;
                self.open.insert((file, 0))
            }
        };
        *without_images += u64::from(lacks);
        file.write(pair)?;
        if is_last || file.is_full() { self.finish(is_last) } else { Ok(()) }
    }

    fn finish(&mut self, is_last: bool) -> Result<(), ConvertError> {
        let Some((mut file, without_images)) = self.open.take() else { return Ok(()) };
        file.add_metadata(KEY_WITHOUT_IMAGES, without_images.to_string());
        if is_last {
            file.add_metadata(KEY_LAST, is_last.to_string());
        }
        self.converted.new_rows += file.num_rows();
        file.finish()?;
        let path = self.outputs.path(self.converted.files);
        if let Some(written) = Written::read(&path)? {
            self.converted.add(&written);
        }
        Ok(())
    }
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
