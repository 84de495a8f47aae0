//! A plan in the work folder: the first process of a run makes it, the others and later starts
//! read it.
//!
//! The file is one line that says what it is, the length of a header, the header as JSON
//! ([`Header`]), the lists of the plan as little-endian numbers, the text of the captions, the texts
//! of tars that lie elsewhere, and the BLAKE3 of all that. A plan that is damaged, or was made of other inputs, counts as absent.

use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::path::Path;

use anyhow::{Context as _, Result};
use rayon::prelude::*;
use runkit::files::write_atomic;
use runkit::signals::StopFlag;
use schemas::layouts::{Kept, Layout, TextStore};
use schemas::pairs::{InputFile, PairFile};
use serde::{Deserialize, Serialize};

use super::ids::Renamed;
use super::units::Unit;
use super::{CaptionText, ImageCaption, MAX_ROWS, Plan, PlanOptions, PlannedFile};

/// The first line. Another layout has another line.
const HEAD: &[u8; 27] = b"plan of relabel, version 3\n";
/// A longer header is damaged.
const MAX_HEADER_BYTES: u64 = 1 << 30;
/// Bytes that are read or written at a time.
const PIECE_BYTES: usize = 1 << 18;

/// What the lists of a plan belong to, and how long they are.
#[derive(Debug, Serialize, Deserialize)]
struct Header {
    /// The version of the program.
    crate_version: String,
    options: PlanOptions,
    content: String,
    #[serde(default)]
    marked: Vec<(u64, String)>,
    images: u64,
    files: Vec<FileHeader>,
    /// File, first row and end of each unit.
    units: Vec<(usize, u64, u64)>,
    image_captions: u64,
    captions: u64,
    renamed: u64,
    /// Bytes of the texts of tars.
    texts: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct FileHeader {
    source_file: String,
    fingerprint: String,
    rows: u64,
    layout: Layout,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    kept: Option<Kept>,
}

impl Plan {
    /// Writes the plan, made with these options, to `path`.
    ///
    /// # Errors
    /// If the file cannot be written, or the scratch file of the captions not be read.
    pub(crate) fn save(&self, options: PlanOptions, path: &Path) -> Result<()> {
        let file = |file: &PlannedFile| FileHeader {
            source_file: file.input.source_file.clone(),
            fingerprint: file.fingerprint.clone(),
            rows: file.rows,
            layout: file.layout,
            kept: file.kept.clone(),
        };
        let header = Header {
            crate_version: env!("CARGO_PKG_VERSION").to_owned(),
            options,
            content: self.content.clone(),
            marked: self.marked.clone(),
            images: self.images,
            files: self.files.iter().map(file).collect(),
            units: self
                .units
                .iter()
                .map(|unit| (unit.file, unit.rows.start, unit.rows.end))
                .collect(),
            image_captions: self.image_captions.len() as u64,
            captions: self.captions.len() as u64,
            renamed: self.renamed.len() as u64,
            texts: self.kept_bytes(),
        };
        let header = serde_json::to_vec(&header)?;
        write_atomic(path, |file| {
            let mut out = Hashed { inner: file, hasher: blake3::Hasher::new() };
            out.write_all(HEAD)?;
            out.write_all(&(header.len() as u64).to_le_bytes())?;
            out.write_all(&header)?;
            let pairs = self.image_captions.iter();
            write_numbers(&mut out, pairs.flat_map(|pair| [pair.owner, pair.caption]))?;
            write_numbers(&mut out, self.owner.iter().copied())?;
            write_numbers(&mut out, self.caption.iter().copied())?;
            let renamed = self.renamed.iter();
            write_numbers(&mut out, renamed.flat_map(|it| [it.row, it.attempt]))?;
            let ends = self.captions.ends().iter();
            write_numbers(&mut out, ends.flat_map(|&end| [end as u32, (end >> 32) as u32]))?;
            let mut text = self.captions.reader();
            io::copy(&mut text, &mut out)?;
            if let Some(texts) = &self.texts {
                io::copy(&mut texts.reader(), &mut out)?;
            }
            let digest = out.hasher.finalize();
            out.inner.write_all(digest.as_bytes())
        })?;
        Ok(())
    }

    /// The plan at `path`, if there is one, and it was made with these options of these inputs as
    /// they are now.
    ///
    /// # Errors
    /// If `stop` asks for a stop. A plan that cannot be used is `None`.
    pub(crate) fn read(
        path: &Path,
        inputs: &[InputFile],
        options: PlanOptions,
        stop: &StopFlag,
    ) -> Result<Option<Self>> {
        let Ok(file) = File::open(path) else { return Ok(None) };
        let found = read(file, path, inputs, options, stop);
        stop.check()?;
        match found {
            Ok(plan) => Ok(Some(plan)),
            Err(error) => {
                tracing::debug!("{}: the plan is made again: {error:#}", path.display());
                Ok(None)
            }
        }
    }
}

fn read(
    file: File,
    path: &Path,
    inputs: &[InputFile],
    options: PlanOptions,
    stop: &StopFlag,
) -> Result<Plan> {
    let (text_of, texts_of) = (file.try_clone()?, file.try_clone()?);
    let mut from = Counted {
        inner: BufReader::with_capacity(PIECE_BYTES, file),
        read: 0,
        hasher: blake3::Hasher::new(),
        stop,
    };
    let mut head = [0; HEAD.len()];
    from.read_exact(&mut head)?;
    anyhow::ensure!(head == *HEAD, "another layout");
    let mut length = [0; 8];
    from.read_exact(&mut length)?;
    let length = u64::from_le_bytes(length);
    anyhow::ensure!(length <= MAX_HEADER_BYTES, "a damaged header");
    let mut header = vec![0; usize::try_from(length)?];
    from.read_exact(&mut header)?;
    let header: Header = serde_json::from_slice(&header)?;
    let files = header.files_of(inputs, options)?;
    let rows = files.iter().fold(0, |rows: u64, file| rows.saturating_add(file.rows));
    let lists = [header.image_captions, header.captions, header.renamed];
    anyhow::ensure!(rows <= MAX_ROWS && lists.iter().all(|&list| list <= 2 * MAX_ROWS), "too long");
    let mut list = |length: u64| read_numbers(&mut from, usize::try_from(length)?);
    let image_captions = list(2 * header.image_captions)?;
    let (owner, caption) = (list(2 * rows)?, list(rows)?);
    let (renamed, ends) = (list(2 * header.renamed)?, list(2 * header.captions)?);
    let ends: Vec<u64> =
        ends.chunks_exact(2).map(|two| u64::from(two[0]) | u64::from(two[1]) << 32).collect();
    let (base, bytes) = (from.read, ends.last().copied().unwrap_or(0));
    let copied = io::copy(&mut (&mut from).take(bytes), &mut io::sink())?;
    anyhow::ensure!(copied == bytes, "it ends too soon");
    let texts = TextStore::stored(texts_of, from.read, header.texts);
    let copied = io::copy(&mut (&mut from).take(header.texts), &mut io::sink())?;
    anyhow::ensure!(copied == header.texts, "it ends too soon");
    let expected = from.hasher.finalize();
    let mut found = [0; blake3::OUT_LEN];
    from.inner.read_exact(&mut found)?;
    anyhow::ensure!(expected == blake3::Hash::from(found), "a damaged file");
    let units = header.units.into_iter().map(|(file, start, end)| {
        let first_row = files.get(file).context("a damaged header")?.first_row + start;
        Ok(Unit { file, rows: start..end, first_row })
    });
    Ok(Plan {
        units: units.collect::<Result<_>>()?,
        captions: CaptionText::stored(text_of, path, base, ends),
        content: header.content,
        marked: header.marked,
        image_captions: image_captions
            .chunks_exact(2)
            .map(|two| ImageCaption { owner: two[0], caption: two[1] })
            .collect(),
        owner,
        caption,
        renamed: renamed
            .chunks_exact(2)
            .map(|two| Renamed { row: two[0], attempt: two[1] })
            .collect(),
        images: header.images,
        texts: Some(texts).filter(|texts| !texts.is_empty()),
        files,
    })
}

impl Header {
    /// The files of the plan, if they are the first of `inputs` as these are now.
    fn files_of(&self, inputs: &[InputFile], options: PlanOptions) -> Result<Vec<PlannedFile>> {
        anyhow::ensure!(self.crate_version == env!("CARGO_PKG_VERSION"), "another version");
        let rows = self.files.iter().fold(0, |rows: u64, file| rows.saturating_add(file.rows));
        let is_known = |mark: &u64| {
            *mark == 0 || *mark >= rows || self.marked.iter().any(|(rows, _)| rows == mark)
        };
        let alike = PlanOptions { marks: self.options.marks, ..options } == self.options;
        anyhow::ensure!(alike && options.marks.iter().all(is_known), "other options");
        let is_all = self.files.len() == inputs.len();
        anyhow::ensure!(is_all || Some(rows) == options.limit, "other inputs");
        let planned: Vec<(&InputFile, &FileHeader)> = inputs.iter().zip(&self.files).collect();
        let is_same = planned.par_iter().all(|(input, planned)| {
            let same = |file: PairFile| file.fingerprint() == planned.fingerprint;
            input.source_file == planned.source_file
                && match &planned.kept {
                    // Its texts need not be fetched to see that it is the same.
                    Some(kept)
                        if kept.version().is_some() && runkit::path::is_address(&input.path) =>
                    {
                        input.version().is_ok_and(|found| found.as_deref() == kept.version())
                    }
                    _ => PairFile::open(input).is_ok_and(same),
                }
        });
        anyhow::ensure!(planned.len() == self.files.len() && is_same, "other inputs");
        let mut before = 0u64;
        let file = |(input, planned): (&InputFile, &FileHeader)| {
            let first_row = before;
            before = before.saturating_add(planned.rows);
            PlannedFile {
                input: input.clone(),
                fingerprint: planned.fingerprint.clone(),
                layout: planned.layout,
                kept: planned.kept.clone().filter(|_| runkit::path::is_address(&input.path)),
                rows: planned.rows,
                first_row,
            }
        };
        Ok(planned.into_iter().map(file).collect())
    }
}

/// A writer that hashes what goes through it.
struct Hashed<'file> {
    inner: &'file mut dyn Write,
    hasher: blake3::Hasher,
}

impl Write for Hashed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// A reader that counts and hashes what goes through it, and ends at a request to stop.
struct Counted<'stop> {
    inner: BufReader<File>,
    read: u64,
    hasher: blake3::Hasher,
    stop: &'stop StopFlag,
}

impl Read for Counted<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.stop.check()?;
        let count = self.inner.read(into)?;
        self.hasher.update(&into[..count]);
        self.read += count as u64;
        Ok(count)
    }
}

fn write_numbers(out: &mut impl Write, numbers: impl Iterator<Item = u32>) -> io::Result<()> {
    let mut piece = Vec::with_capacity(PIECE_BYTES);
    for number in numbers {
        piece.extend_from_slice(&number.to_le_bytes());
        if piece.len() == PIECE_BYTES {
            out.write_all(&piece)?;
            piece.clear();
        }
    }
    out.write_all(&piece)
}

fn read_numbers(from: &mut impl Read, length: usize) -> Result<Vec<u32>> {
    let mut numbers = Vec::new();
    let mut piece = vec![0; PIECE_BYTES];
    while numbers.len() < length {
        // The memory grows with what was read, not with what the header promises.
        let now = (length - numbers.len()).min(PIECE_BYTES / size_of::<u32>());
        let piece = &mut piece[..now * size_of::<u32>()];
        from.read_exact(piece)?;
        numbers.reserve_exact(now.max(numbers.len().min(length - numbers.len())));
        let number = |bytes: &[u8]| u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        numbers.extend(piece.chunks_exact(size_of::<u32>()).map(number));
    }
    Ok(numbers)
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "fixtures need not be durable")]
mod tests {
    use std::path::PathBuf;

    use schemas::pairs::discover;

    use super::*;

    fn inputs() -> Vec<InputFile> {
        let sample = concat!(env!("CARGO_MANIFEST_DIR"), "/../data/sample");
        discover(&[PathBuf::from(sample)], &[]).unwrap().files
    }

    /// Everything that a plan holds.
    fn facts(plan: &Plan) -> String {
        let captions: Vec<String> =
            (0..plan.captions.len()).map(|index| plan.captions.get(index).unwrap()).collect();
        let rows: Vec<u64> = plan.files.iter().map(|file| file.first_row).collect();
        let Plan { units, content, image_captions, owner, caption, renamed, images, .. } = plan;
        format!(
            "{units:?} {content} {image_captions:?} {owner:?} {caption:?} {renamed:?} {images} {rows:?} {captions:?}"
        )
    }

    #[test]
    fn a_plan_reads_back_for_the_same_inputs_and_options_alone() {
        let folder = tempfile::tempdir().unwrap();
        let (path, stop) = (folder.path().join("plan"), StopFlag::never());
        let options = PlanOptions { limit: Some(333), unit_pairs: 50, ..PlanOptions::default() };
        let plan = Plan::make(&inputs(), options, folder.path(), &stop).unwrap();
        assert_eq!((plan.pairs(), plan.files.len(), plan.units.len()), (333, 3, 7));
        let read =
            |inputs: &[InputFile], options| Plan::read(&path, inputs, options, &stop).unwrap();
        assert!(read(&inputs(), options).is_none(), "it is not there yet");
        plan.save(options, &path).unwrap();
        let again = read(&inputs(), options).unwrap();
        assert_eq!(facts(&again), facts(&plan));
        assert!(read(&inputs(), PlanOptions::default()).is_none());
        let mut others = inputs();
        others.swap(0, 1);
        assert!(read(&others, options).is_none());
        assert!(read(&inputs()[..2], options).is_none());
        // What is read can be saved, to the same bytes.
        let bytes = std::fs::read(&path).unwrap();
        again.save(options, &path).unwrap();
        assert!(std::fs::read(&path).unwrap() == bytes);
    }

    #[test]
    fn a_flipped_bit_or_a_shorter_file_makes_it_absent() {
        let folder = tempfile::tempdir().unwrap();
        let (path, stop) = (folder.path().join("plan"), StopFlag::never());
        let options = PlanOptions { limit: Some(9), unit_pairs: 3, ..PlanOptions::default() };
        let plan = Plan::make(&inputs(), options, folder.path(), &stop).unwrap();
        plan.save(options, &path).unwrap();
        let whole = std::fs::read(&path).unwrap();
        let read = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            Plan::read(&path, &inputs(), options, &stop).unwrap()
        };
        for bit in (0..whole.len() * 8).step_by(61) {
            let mut bytes = whole.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(read(&bytes).is_none(), "bit {bit}");
        }
        for length in (0..whole.len()).step_by(37) {
            assert!(read(&whole[..length]).is_none(), "{length} bytes");
        }
        assert!(read(&whole).is_some());
    }
}
