//! Cached latents: written and read back row by row, refused where they do not fit, and the same
//! bytes for the same rows.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::path::Path;

use schemas::labels::Status;
use schemas::latents::{
    CaptionRow, CaptionsFile, CaptionsLayout, CaptionsWriter, Geometry, ImageMoments, KEY_MANIFEST,
    LatentRow, LatentsError, LatentsFile, LatentsLayout, LatentsWriter, Moments, StoredFloat,
};
use tempfile::tempdir;

fn layout(stored: StoredFloat, flipped: bool) -> LatentsLayout {
    LatentsLayout { stored, shape: [4, 16, 8], flipped }
}

/// Numbers that half precision holds exactly.
fn numbers(count: usize, seed: i64) -> Vec<f32> {
    (0..count as i64).map(|i| ((i * 37 + seed * 101) % 2000 - 1000) as f32 / 64.0).collect()
}

fn moments(layout: &LatentsLayout, row: i64, image: i64) -> ImageMoments {
    let of = |variant: i64| Moments {
        mean: numbers(layout.numbers(), row * 8 + image * 4 + variant),
        std: numbers(layout.numbers(), row * 8 + image * 4 + variant + 1),
    };
    ImageMoments { plain: of(0), flipped: layout.flipped.then(|| of(2)) }
}

fn row(number: i64) -> LatentRow {
    let ok = number % 5 != 3;
    LatentRow {
        pair_id: format!("pair {number}"),
        source_file: "a/b.parquet".to_owned(),
        source_row: number,
        caption: (number % 7 != 6).then(|| format!("a fox {}", number / 3)),
        caption_index: (number % 7 != 6).then_some(1 + number / 3),
        image_uid: [Some(format!("left {number}")), None],
        geometry: [0, 1].map(|image| {
            ok.then_some(Geometry { size: (70 + image, 90), crop: (0, number as u32 % 13) })
        }),
        status: if ok { Status::Ok } else { Status::DecodeError },
        error: (!ok).then(|| "not an image".to_owned()),
    }
}

fn write(path: &Path, layout: LatentsLayout, rows: i64) {
    let metadata = BTreeMap::from([(KEY_MANIFEST.to_owned(), "{}".to_owned())]);
    let mut writer = LatentsWriter::create(path, layout, &metadata).unwrap();
    for number in 0..rows {
        let row = row(number);
        let ok = row.status == Status::Ok;
        let moments = [0, 1].map(|image| ok.then(|| moments(&layout, number, image)));
        writer.write(row, moments).unwrap();
    }
    writer.finish().unwrap();
}

#[test]
fn latents_are_read_back_in_any_rows() {
    let folder = tempdir().unwrap();
    for (stored, flipped) in [(StoredFloat::Float16, true), (StoredFloat::Float32, false)] {
        let path = folder.path().join("latents.parquet");
        let layout = layout(stored, flipped);
        // More than one batch of the writer, which takes up to 1024 rows.
        write(&path, layout, 1500);
        let file = LatentsFile::open(&path).unwrap();
        assert_eq!((file.layout(), file.num_rows()), (layout, 1500));
        assert_eq!(file.metadata()[KEY_MANIFEST], "{}");
        let rows: Vec<LatentRow> = file.rows().unwrap().flat_map(Result::unwrap).collect();
        assert_eq!(rows, (0..1500).map(row).collect::<Vec<_>>());

        let wanted: Vec<i64> =
            (0..1500).filter(|row| row % 5 != 3 && (row % 17 < 2 || *row > 1490)).collect();
        assert_eq!(
            file.rows_at(&wanted).unwrap(),
            wanted.iter().map(|&number| row(number)).collect::<Vec<_>>()
        );
        for image in 0..2 {
            let of = |number: i64| moments(&layout, number, image as i64);
            let plain: Vec<Moments> = wanted.iter().map(|&number| of(number).plain).collect();
            assert_eq!(file.moments_at(image, false, &wanted).unwrap(), plain);
            match file.moments_at(image, true, &wanted) {
                Ok(found) => {
                    let expected = wanted.iter().map(|&number| of(number).flipped.unwrap());
                    assert_eq!(found, expected.collect::<Vec<_>>());
                }
                Err(error) => {
                    assert!(!flipped && error.to_string().contains("_flipped_mean"), "{error}");
                }
            }
        }
        let message = file.moments_at(0, false, &[2, 3]).unwrap_err().to_string();
        assert!(message.contains("row 3") && message.contains("no latents"), "{message}");
        for wrong in [&[1500][..], &[-1], &[5, 4], &[4, 4]] {
            assert!(matches!(file.rows_at(wrong), Err(LatentsError::Row { .. })), "{wrong:?}");
        }
    }
}

#[test]
fn equal_rows_give_equal_bytes_and_nothing_unfit_is_written() {
    let folder = tempdir().unwrap();
    let [first, second] = ["a", "b"].map(|name| folder.path().join(name));
    let layout = layout(StoredFloat::Float16, true);
    write(&first, layout, 30);
    write(&second, layout, 30);
    assert_eq!(fs_err::read(&first).unwrap(), fs_err::read(&second).unwrap());

    let third = folder.path().join("c");
    let fine = || [0, 1].map(|image| Some(moments(&layout, 0, image)));
    let refused = |row: LatentRow, moments: [Option<ImageMoments>; 2]| {
        let mut writer = LatentsWriter::create(&third, layout, &BTreeMap::new()).unwrap();
        let error = writer.write(row, moments).and_then(|()| writer.finish()).unwrap_err();
        assert!(!third.exists());
        error.to_string()
    };
    let [left, right] = fine();
    assert!(refused(row(0), [left, None]).contains("image 1"));
    assert!(refused(row(3), fine()).contains("status decode_error"));
    let mut short = fine();
    short[1].as_mut().unwrap().plain.mean.pop();
    assert!(refused(row(0), short).contains("expected 512 numbers"));
    drop(right);
    for wrong in [f32::NAN, f32::INFINITY, 70_000.0] {
        let mut unfit = fine();
        unfit[0].as_mut().unwrap().plain.mean[7] = wrong;
        assert!(refused(row(0), unfit).contains("expected"), "{wrong}");
    }
}

#[test]
fn captions_are_read_back_in_any_rows() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("captions.parquet");
    for pooled in [None, Some(12)] {
        let layout = CaptionsLayout { stored: StoredFloat::Float32, shape: [77, 8], pooled };
        let caption = |index: i64| CaptionRow {
            caption_index: 40 + index,
            caption: format!("caption {index}"),
            prompt_embeds: numbers(77 * 8, index),
            pooled_prompt_embeds: pooled.map(|length| numbers(length as usize, index + 1)),
        };
        let mut writer = CaptionsWriter::create(&path, layout, &BTreeMap::new()).unwrap();
        (0..100).for_each(|index| writer.write(caption(index)).unwrap());
        assert!(writer.write(CaptionRow { prompt_embeds: vec![], ..caption(0) }).is_err());
        writer.finish().unwrap();
        let file = CaptionsFile::open(&path).unwrap();
        assert_eq!((file.layout(), file.num_rows()), (layout, 100));
        let wanted = [0, 1, 2, 50, 99];
        assert_eq!(file.rows_at(&wanted).unwrap(), wanted.map(caption).to_vec());
    }
    // A part without a new caption.
    let layout = CaptionsLayout { stored: StoredFloat::Float16, shape: [77, 8], pooled: None };
    CaptionsWriter::create(&path, layout, &BTreeMap::new()).unwrap().finish().unwrap();
    assert_eq!(CaptionsFile::open(&path).unwrap().rows_at(&[]).unwrap(), []);
}

#[test]
fn other_files_are_refused_by_name() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("latents.parquet");
    write(&path, layout(StoredFloat::Float16, false), 3);
    let message = CaptionsFile::open(&path).unwrap_err().to_string();
    assert!(message.contains("latents.parquet: not cached captions"), "{message}");
    let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/sample");
    let pairs = sample.join("pairs-00000-of-00003.parquet");
    let message = LatentsFile::open(pairs).unwrap_err().to_string();
    assert!(message.contains("not cached latents") && message.contains("train cache"), "{message}");
}

/// Every prefix of a file, and many single damaged bits: an error or the same rows, never a panic.
#[test]
fn damaged_files_are_errors() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("latents.parquet");
    let layout = layout(StoredFloat::Float32, false);
    write(&path, layout, 12);
    let whole = fs_err::read(&path).unwrap();
    let damaged = folder.path().join("damaged.parquet");
    let read = |bytes: &[u8]| {
        fs_err::write(&damaged, bytes).unwrap();
        let file = LatentsFile::open(&damaged)?;
        file.rows()?.try_for_each(|rows| rows.map(drop))?;
        file.moments_at(0, false, &[0, 4]).map(drop)
    };
    assert!(read(&whole).is_ok());
    for sixtyfourth in 0..64 {
        assert!(read(&whole[..whole.len() * sixtyfourth / 64]).is_err());
    }
    let mut position = 12_345_usize;
    for _ in 0..200 {
        position = (position * 1_103_515_245 + 12_345) % (whole.len() * 8);
        let mut bytes = whole.clone();
        bytes[position / 8] ^= 1 << (position % 8);
        let _either = read(&bytes);
    }
}
