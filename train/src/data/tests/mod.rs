//! Joining and streaming, on small files made here.

mod ranks;
mod selection;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{ArrayRef, BinaryArray, Int64Array, RecordBatch, StringArray};
use parquet::arrow::ArrowWriter;
use parquet::file::properties::WriterProperties;
use schemas::labels::{LabelRow, LabelsSchema, LabelsWriter, Status};
use tempfile::TempDir;

use super::*;

/// A PNG of one colour and some size.
fn image(row: usize, image: usize) -> Vec<u8> {
    let (width, height) = (8 + row as u32 % 5, 9 + image as u32);
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, width, height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    let mut writer = encoder.write_header().unwrap();
    let pixel = |at: usize| ((row * 40 + image * 20 + at * 3) % 256) as u8;
    let pixels: Vec<u8> = (0..3 * (width * height) as usize).map(pixel).collect();
    writer.write_image_data(&pixels).unwrap();
    writer.finish().unwrap();
    bytes
}

/// The pairs of one file; a test changes the fields that it is about.
struct PairsFile {
    name: &'static str,
    captions: Vec<String>,
    images: [Vec<Option<Vec<u8>>>; 2],
    ranking_ids: Vec<Option<i64>>,
    group_rows: usize,
}

impl PairsFile {
    fn new(name: &'static str, rows: usize, group_rows: usize) -> Self {
        let images = |index| (0..rows).map(|row| Some(image(row, index))).collect();
        Self {
            name,
            captions: (0..rows).map(|row| format!("{name} {row}")).collect(),
            images: [images(0), images(1)],
            ranking_ids: vec![None; rows],
            group_rows,
        }
    }

    fn write(&self, folder: &Path) {
        let rows = self.captions.len();
        let uid = |image: usize| -> ArrayRef {
            let uid = |row| format!("{} {row} {image}", self.name);
            Arc::new(StringArray::from_iter_values((0..rows).map(uid)))
        };
        let columns: Vec<(&str, ArrayRef)> = vec![
            ("caption", Arc::new(StringArray::from_iter_values(&self.captions))),
            ("image_0_uid", uid(0)),
            ("image_1_uid", uid(1)),
            ("jpg_0", Arc::new(BinaryArray::from_iter(self.images[0].iter()))),
            ("jpg_1", Arc::new(BinaryArray::from_iter(self.images[1].iter()))),
            ("ranking_id", Arc::new(Int64Array::from_iter(self.ranking_ids.iter().copied()))),
        ];
        let batch = RecordBatch::try_from_iter(columns).unwrap();
        let properties =
            WriterProperties::builder().set_max_row_group_row_count(Some(self.group_rows)).build();
        let file = fs_err::File::create(folder.join(self.name)).unwrap();
        let mut writer = ArrowWriter::try_new(file, batch.schema(), Some(properties)).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
    }

    /// What relabelling makes of it: every fifth row failed, every third of the rest a tie.
    fn labels(&self) -> Vec<LabelRow> {
        let label = |row: usize| {
            let failed = row % 5 == 4;
            let consensus = [1, -1, 0][row % 3];
            LabelRow {
                pair_id: self.ranking_ids[row]
                    .map_or_else(|| positional(self.name, row), |id| id.to_string()),
                source_file: self.name.to_owned(),
                source_row: row as i64,
                caption: Some(self.captions[row].clone()),
                image_uid: [0, 1].map(|image| Some(format!("{} {row} {image}", self.name))),
                human_label_0: None,
                scores: vec![[Some(1.0), Some(2.0)]],
                votes: vec![(!failed).then_some(1)],
                vote_sum: (!failed).then_some(consensus),
                consensus: (!failed).then_some(consensus),
                status: if failed { Status::DecodeError } else { Status::Ok },
                error: None,
            }
        };
        (0..self.captions.len()).map(label).collect()
    }
}

fn positional(name: &str, row: usize) -> String {
    format!("{name}:{row}")
}

fn write_labels(folder: &Path, rows: &[LabelRow]) -> PathBuf {
    let path = folder.join("labels.bin");
    let schema = LabelsSchema::new(&["clip"]).unwrap();
    let mut writer = LabelsWriter::create(&path, &schema, &BTreeMap::new()).unwrap();
    rows.iter().for_each(|row| writer.write(row).unwrap());
    writer.finish().unwrap();
    path
}

/// Ties are dropped.
fn sign_of(row: &LabelRow) -> Option<i8> {
    assert_eq!(row.status, Status::Ok);
    row.consensus.filter(|sign| *sign != 0)
}

/// Two files and their labels.
fn two_files() -> (TempDir, PathBuf, Vec<LabelRow>) {
    let folder = tempfile::tempdir().unwrap();
    let (mut first, second) =
        (PairsFile::new("a.parquet", 23, 4), PairsFile::new("b.parquet", 12, 100));
    first.ranking_ids = (0..23).map(|row| (row % 2 == 0).then_some(500 + row)).collect();
    first.write(folder.path());
    second.write(folder.path());
    let labels = [first.labels(), second.labels()].concat();
    let path = write_labels(folder.path(), &labels);
    (folder, path, labels)
}

fn open(folder: &Path, labels: &Path) -> Result<Dataset<i8>, DataError> {
    Dataset::open(&[folder.to_owned()], &[], labels, &mut sign_of)
}

fn options() -> StreamOptions {
    StreamOptions {
        seed: 3,
        resolution: (8, 8),
        random_crop: true,
        hflip: true,
        position: 0,
        positions: Positions::ALL,
        threads: 2,
        memory: 1 << 20,
    }
}

/// What a test compares of an example.
#[derive(Clone, Debug, PartialEq)]
struct Seen {
    pair_id: String,
    caption: String,
    label: i8,
    position: u64,
    pixels: [Vec<f32>; 2],
}

fn take(dataset: &Arc<Dataset<i8>>, options: StreamOptions, count: usize) -> Vec<Seen> {
    let mut stream = Stream::start(Arc::clone(dataset), options).unwrap();
    (0..count)
        .map(|_| {
            let example = stream.next().unwrap();
            let Content::Pixels(pixels) = example.content else { panic!("no pixels") };
            Seen {
                pair_id: example.pair_id,
                caption: example.caption,
                label: example.label,
                position: example.position,
                pixels,
            }
        })
        .collect()
}

#[test]
fn labels_are_joined_and_counted() {
    let (folder, path, labels) = two_files();
    let dataset = open(folder.path(), &path).unwrap();
    let selected: Vec<&LabelRow> =
        labels.iter().filter(|row| row.status == Status::Ok && row.consensus != Some(0)).collect();
    assert_eq!(dataset.len(), selected.len() as u64);
    let signs: Vec<i8> = selected.iter().filter_map(|row| row.consensus).collect();
    assert_eq!(dataset.labels(), signs);
    let counts = dataset.counts();
    let failed = labels.iter().filter(|row| row.status != Status::Ok).count() as u64;
    assert_eq!((counts.rows, counts.failed), (35, failed));
    assert_eq!(counts.dropped, 35 - failed - counts.selected);
    assert_eq!((counts.unlabelled, counts.uncached), (0, 0));
    assert_eq!(counts.by_file.len(), 2);
    assert_eq!(counts.by_file[1].source_file, "b.parquet");
    assert_eq!(counts.by_file[1].pairs, 12);
    assert!(dataset.cache().is_none());

    // Labels of a part of the pairs, in another order, are the same pairs.
    let mut some: Vec<LabelRow> = labels.iter().take(20).cloned().collect();
    some.reverse();
    let path = write_labels(folder.path(), &some);
    let part = open(folder.path(), &path).unwrap();
    assert_eq!(part.counts().unlabelled, 15);
    assert_eq!(part.labels(), &signs[..part.len() as usize]);
    assert_ne!(part.fingerprint(), dataset.fingerprint());
}

#[test]
fn partial_rows_that_lack_their_label_are_counted_as_failed() {
    let (folder, _, mut labels) = two_files();
    let is_ok = |row: &&mut LabelRow| row.status == Status::Ok && row.consensus != Some(0);
    for (number, row) in labels.iter_mut().filter(is_ok).enumerate().take(4) {
        row.status = Status::Partial;
        row.error = Some("image_0: scorer `clip` gave NaN".to_owned());
        if number % 2 == 0 {
            (row.vote_sum, row.consensus) = (None, None);
        }
    }
    let decided = labels.iter().filter(|row| row.consensus.is_some_and(|it| it != 0)).count();
    let undecided = labels.iter().filter(|row| row.consensus.is_none()).count();
    let path = write_labels(folder.path(), &labels);
    let mut label = |row: &LabelRow| row.consensus.filter(|sign| *sign != 0);
    let inputs = [folder.path().to_owned()];
    let dataset = Dataset::open(&inputs, &[], &path, &mut label).unwrap();
    let counts = dataset.counts();
    assert_eq!((counts.selected, counts.failed), (decided as u64, undecided as u64));
}

#[test]
fn every_example_is_its_pair() {
    let (folder, path, labels) = two_files();
    let dataset = Arc::new(open(folder.path(), &path).unwrap());
    let count = dataset.len() as usize;
    for seen in take(&dataset, options(), count) {
        let label = labels.iter().find(|row| row.pair_id == seen.pair_id).unwrap();
        assert_eq!(label.caption.as_ref(), Some(&seen.caption));
        assert_eq!(label.consensus, Some(seen.label));
        // The first pixel of an image says its row, wherever it was cropped and flipped.
        for pixels in &seen.pixels {
            assert_eq!(pixels.len(), 3 * 8 * 8);
            assert!(pixels.iter().all(|value| (-1.0..=1.0).contains(value)));
        }
    }
    // A renamed pair keeps the name that the labels give it.
    let mut renamed = labels.clone();
    let other = renamed.iter_mut().find(|row| row.pair_id == "500").unwrap();
    other.pair_id = positional("a.parquet", 0);
    let path = write_labels(folder.path(), &renamed);
    let dataset = Arc::new(open(folder.path(), &path).unwrap());
    let names: Vec<String> =
        take(&dataset, options(), count).into_iter().map(|seen| seen.pair_id).collect();
    assert!(names.contains(&positional("a.parquet", 0)) && !names.contains(&"500".to_owned()));
}

/// Windows of a few rows, so that small files have several.
fn with_small_windows(mut dataset: Dataset<i8>) -> Arc<Dataset<i8>> {
    let selection = Arc::get_mut(&mut dataset.selection).unwrap();
    let Source::Pairs(files) = &*selection.source else { panic!("no pairs") };
    let groups: Vec<_> = files.iter().map(|file| file.row_group_sizes().unwrap()).collect();
    let bytes: u64 = groups.iter().flatten().map(|(_, bytes)| bytes).sum();
    selection.geometry = Arc::new(Geometry::with_sizes(&groups, bytes / 20, bytes / 5));
    Arc::new(dataset)
}

#[test]
fn a_stream_resumes_at_every_position_as_if_never_stopped() {
    let (folder, path, _) = two_files();
    for small in [false, true] {
        let dataset = open(folder.path(), &path).unwrap();
        let dataset = if small { with_small_windows(dataset) } else { Arc::new(dataset) };
        let length = dataset.len() as usize;
        let whole = take(&dataset, options(), 3 * length);
        for (position, seen) in (0..).zip(&whole) {
            assert_eq!(seen.position, position);
        }
        // Every pair once an epoch, each time in another order and augmented anew.
        let epochs: Vec<Vec<&str>> = whole
            .chunks(length)
            .map(|epoch| epoch.iter().map(|seen| &*seen.pair_id).collect())
            .collect();
        for epoch in &epochs {
            let distinct: std::collections::HashSet<_> = epoch.iter().collect();
            assert_eq!(distinct.len(), length);
        }
        assert!(epochs[0] != epochs[1] && epochs[1] != epochs[2]);
        let first = |epoch: usize| {
            let of_epoch = &whole[epoch * length..][..length];
            of_epoch.iter().find(|seen| seen.pair_id == whole[0].pair_id).unwrap()
        };
        let same = (1..3).filter(|&epoch| first(epoch).pixels == first(0).pixels).count();
        assert!(same < 2, "the same crop and flipping in every epoch");
        for position in 0..2 * length {
            let position_here = position as u64;
            let resumed = take(&dataset, StreamOptions { position: position_here, ..options() }, 3);
            assert_eq!(resumed, whole[position..position + 3], "from {position}");
        }
        // Neither threads nor memory change anything.
        for (threads, memory) in [(1, 0), (0, 1), (5, u64::MAX)] {
            let again = take(&dataset, StreamOptions { threads, memory, ..options() }, 2 * length);
            assert_eq!(again, whole[..2 * length]);
        }
        let other = take(&dataset, StreamOptions { seed: 4, ..options() }, length);
        assert_ne!(other, whole[..length]);
    }
}

#[test]
fn without_chance_every_epoch_has_the_same_pixels() {
    let (folder, path, _) = two_files();
    let dataset = Arc::new(open(folder.path(), &path).unwrap());
    let length = dataset.len() as usize;
    let plain = StreamOptions { random_crop: false, hflip: false, ..options() };
    let whole = take(&dataset, plain, 2 * length);
    let (first, second) = whole.split_at(length);
    for seen in first {
        let again = second.iter().find(|other| other.pair_id == seen.pair_id).unwrap();
        assert_eq!(seen.pixels, again.pixels);
    }
    // Both images of a pair are flipped independently.
    let flipped = take(&dataset, StreamOptions { random_crop: false, ..options() }, 2 * length);
    let flips: std::collections::HashSet<[bool; 2]> = flipped
        .iter()
        .map(|seen| {
            let plain = first.iter().find(|other| other.pair_id == seen.pair_id).unwrap();
            [0, 1].map(|image| seen.pixels[image] != plain.pixels[image])
        })
        .collect();
    assert_eq!(flips.len(), 4);
}

#[test]
fn what_is_wrong_is_said_at_once_and_by_name() {
    let (folder, path, labels) = two_files();
    let refused = |rows: &[LabelRow]| {
        let path = write_labels(folder.path(), rows);
        let message = open(folder.path(), &path).unwrap_err().to_string();
        assert!(message.contains("labels.bin"), "{message}");
        message
    };
    let changed = |change: fn(&mut LabelRow)| {
        let mut rows = labels.clone();
        change(&mut rows[5]);
        refused(&rows)
    };
    let message = changed(|row| row.caption = Some("a cat".to_owned()));
    assert!(message.contains("caption of row 5 of") && message.contains("\"a cat\""), "{message}");
    assert!(message.contains("a.parquet") && message.contains("a.parquet 5"), "{message}");
    let message = changed(|row| row.image_uid[1] = None);
    assert!(message.contains("image_1_uid of row 5") && message.contains("null"), "{message}");
    let message = changed(|row| row.pair_id = "9".to_owned());
    assert!(message.contains("the id of row 5"), "{message}");
    let mut others = labels.clone();
    others.iter_mut().for_each(|row| row.source_file = "c.parquet".to_owned());
    let message = refused(&others);
    assert!(
        message.contains("row 0 is of \"c.parquet\"") && message.contains("b.parquet"),
        "{message}"
    );
    // Labels of other files as well select the pairs that are there.
    others.truncate(12);
    others.extend(labels.iter().take(20).cloned());
    let some = open(folder.path(), &write_labels(folder.path(), &others)).unwrap();
    assert_eq!((some.counts().rows, some.counts().elsewhere), (20, 12));
    assert_eq!(some.counts().unlabelled, 15);
    for row in [23, -1, i64::MAX] {
        let mut rows = labels.clone();
        rows[5].source_row = row;
        assert!(refused(&rows).contains("23 rows"), "{row}");
    }
    let message = changed(|row| row.source_row = 6);
    assert!(message.contains("row 6 of \"a.parquet\" twice"), "{message}");
    let mut ties = labels.clone();
    ties.iter_mut().filter(|row| row.status == Status::Ok).for_each(|row| row.consensus = Some(0));
    let message = refused(&ties);
    assert!(message.contains("no pair is left") && message.contains("--ties"), "{message}");
    assert!(refused(&[]).contains("of 0 rows"));

    // Pairs without their images, and nothing at all.
    let mut bare = PairsFile::new("a.parquet", 23, 4);
    bare.images[1][3] = None;
    bare.write(folder.path());
    let columns: Vec<(&str, ArrayRef)> =
        vec![("caption", Arc::new(StringArray::from_iter_values(["x"])))];
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    let file = fs_err::File::create(folder.path().join("c.parquet")).unwrap();
    let mut writer = ArrowWriter::try_new(file, batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    let message = open(folder.path(), &path).unwrap_err().to_string();
    assert!(message.contains("c.parquet") && message.contains("\"jpg_0\""), "{message}");
    assert!(open(&folder.path().join("nowhere"), &path).is_err());
}

#[test]
fn images_that_changed_since_they_were_labelled_end_the_stream_by_name() {
    for (broken, expected) in [
        (Some(Vec::new()), "pair a:1 (row 1) has no image 1"),
        (Some(b"\xff\xd8\xff".to_vec()), "image 1 of pair a:1"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let mut pairs = PairsFile::new("a", 4, 2);
        pairs.images[1][1] = broken;
        pairs.write(folder.path());
        let labels = write_labels(folder.path(), &pairs.labels());
        let input = [folder.path().join("a")];
        let dataset = Arc::new(Dataset::open(&input, &[], &labels, &mut sign_of).unwrap());
        let mut stream = Stream::start(dataset, options()).unwrap();
        let error = (0..10).find_map(|_| stream.next().err()).unwrap().to_string();
        assert!(error.contains(expected), "{error}");
        // And it stays ended, without hanging.
        drop(stream);
    }
}

#[test]
fn images_that_are_null_are_said_before_the_stream() {
    let folder = tempfile::tempdir().unwrap();
    let mut pairs = PairsFile::new("a", 4, 2);
    pairs.images[1][1] = None;
    pairs.write(folder.path());
    let mut rows = pairs.labels();
    let open = |rows: &[LabelRow]| {
        let labels = write_labels(folder.path(), rows);
        Dataset::open(&[folder.path().join("a")], &[], &labels, &mut sign_of)
    };
    let error = open(&rows).unwrap_err().to_string();
    assert!(error.contains("pair a:1 (row 1) has no image 1"), "{error}");
    // A pair that was not labelled may lack its images.
    rows.remove(1);
    assert_eq!(open(&rows).unwrap().counts().selected, 2);
}

#[test]
fn prefetching_stays_within_the_bound() {
    let folder = tempfile::tempdir().unwrap();
    let mut pairs = PairsFile::new("a", 60, 1);
    // Bytes after the end of a PNG are not looked at.
    let padded = |index: usize| {
        (0..60).map(|row| Some([image(row, index), vec![0; 20_000]].concat())).collect()
    };
    pairs.images = [padded(0), padded(1)];
    pairs.write(folder.path());
    let labels = write_labels(folder.path(), &pairs.labels());
    let dataset = Dataset::open(&[folder.path().join("a")], &[], &labels, &mut sign_of).unwrap();
    let dataset = with_small_windows(dataset);
    let memory = 900_000;
    let mut stream =
        Stream::start(Arc::clone(&dataset), StreamOptions { memory, ..options() }).unwrap();
    for _ in 0..200 {
        stream.next().unwrap();
        assert!(stream.bytes_held() <= memory, "{}", stream.bytes_held());
    }
    // Dropped in the middle, its threads end.
    drop(stream);
    let impossible = StreamOptions { resolution: (0, 8), ..options() };
    assert!(Stream::start(dataset, impossible).is_err());
}
