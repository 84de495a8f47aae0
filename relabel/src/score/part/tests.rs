use super::*;

fn key_of(unit: &str, scorers: &[&str]) -> PartKey {
    let scorer =
        |name: &&str| ScorerKey { name: (*name).to_owned(), key: format!("key of {name}") };
    PartKey { unit: unit.to_owned(), scorers: scorers.iter().map(scorer).collect() }
}

#[test]
fn parts_of_fewer_units_become_those_of_more() {
    let folder = tempfile::tempdir().unwrap();
    for (path, name) in [
        (path(folder.path(), 0, 2), "first"),
        (path(folder.path(), 1, 2), "second"),
        (path(folder.path(), 1, 3), "second of three"),
        (rest_path(folder.path(), 0, 2), "rest"),
    ] {
        PartWriter::create(&path, &key_of(name, &[])).unwrap().finish().unwrap();
    }
    adopt(folder.path(), 3).unwrap();
    let names = runkit::run_folder::names_in(folder.path(), |_| true).unwrap();
    assert_eq!(names, ["part-00000-of-00003.parquet", "part-00001-of-00003.parquet"]);
    let unit = |index| key(&path(folder.path(), index, 3)).unwrap().unwrap().unit;
    assert_eq!((unit(0).as_str(), unit(1).as_str()), ("first", "second of three"));
}

#[test]
fn a_part_reads_back_as_written_and_serves_those_with_its_keys() {
    let folder = tempfile::tempdir().unwrap();
    let path = path(folder.path(), 3, 12);
    assert!(path.ends_with("part-00003-of-00012.parquet"));
    let key = key_of("a", &["clip", "hps"]);
    let rows = vec![
        PartRow { slot: 0, content: Some([7; 16]), found: Found::Occurrence },
        PartRow {
            slot: 0,
            content: Some([7; 16]),
            found: Found::Scores {
                caption: 7,
                scores: vec![Ok(0.25), Err(ScoreFailure::new("gave inf"))],
            },
        },
        PartRow { slot: 1, content: None, found: Found::Occurrence },
        PartRow {
            slot: 0,
            content: None,
            found: Found::Votes(vec![Ok(0.0), Err(ScoreFailure::new("gave no vote: x"))]),
        },
        PartRow {
            slot: 2,
            content: Some([1; 16]),
            found: Found::Failure { status: Status::DecodeError, error: "cut short".to_owned() },
        },
    ];
    assert!(!is_done(&path, &key).unwrap());
    let mut writer = PartWriter::create(&path, &key).unwrap();
    rows.iter().for_each(|row| writer.write(row.clone()).unwrap());
    assert!(!path.exists(), "nothing under the final name before the end");
    let note =
        |on_white, images, captions| Note { on_white, memory: MemoryLimits { images, captions } };
    writer.note = note(3, Some(16), None);
    writer.finish().unwrap();
    let read_note = Note::read(&path).unwrap();
    assert_eq!(read_note, note(3, Some(16), None));
    assert_eq!(read_note.with(Note::default()), read_note);
    assert_eq!(read_note.with(note(2, Some(8), Some(4))), note(5, Some(8), Some(4)));
    let mut found = Vec::new();
    read(&path, &key.scorers, |row| {
        found.push(row);
        Ok(())
    })
    .unwrap();
    assert_eq!(found, rows);
    assert_eq!(super::key(&path).unwrap(), Some(key.clone()));
    assert!(is_done(&path, &key).unwrap() && is_done(&path, &key_of("a", &["hps"])).unwrap());
    let mut other = key.clone();
    other.scorers[1].key.push('x');
    for other in [key_of("b", &["clip"]), key_of("a", &["clip", "aesthetic"]), other] {
        assert!(!is_done(&path, &other).unwrap(), "{other:?}");
    }
    let message = read(&path, &key.scorers[..1], |_| Ok(())).unwrap_err().to_string();
    assert!(message.contains("expected the columns"), "{message}");
}

/// Every bit of a part: the reader says so, or gives what was written.
#[test]
fn a_flipped_bit_never_changes_a_score() {
    let folder = tempfile::tempdir().unwrap();
    let path = path(folder.path(), 0, 1);
    let key = key_of("a", &["clip"]);
    let mut writer = PartWriter::create(&path, &key).unwrap();
    for slot in 0..300 {
        let found = Found::Scores { caption: slot as u32, scores: vec![Ok(slot as f32 / 7.0)] };
        let content = Some([((slot * 0x9E37_79B9) >> 8) as u8; 16]);
        let row = PartRow { slot, content, found };
        writer.write(row).unwrap();
    }
    writer.finish().unwrap();
    let rows = |path: &Path| {
        let mut found = Vec::new();
        is_done(path, &key)?;
        let read = read(path, &key.scorers, |row| {
            found.push(row);
            Ok(())
        });
        read.map(|()| found)
    };
    let (whole, expected) = (std::fs::read(&path).unwrap(), rows(&path).unwrap());
    let mut noticed = 0;
    for bit in (0..whole.len() * 8).step_by(13) {
        let mut bytes = whole.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        runkit::files::write_atomic(&path, |file| std::io::Write::write_all(file, &bytes)).unwrap();
        match rows(&path) {
            Ok(found) => assert_eq!(found, expected, "bit {bit}"),
            Err(_) => noticed += 1,
        }
    }
    assert!(noticed * 13 > whole.len() * 8 - 200, "{noticed} of {}", whole.len() * 8 / 13);
}
