//! Damaged and hostile files in the layouts: a row with a reason, or an error that names the place;
//! never a panic, a hang, a file outside the folder, or memory without a bound.

#![expect(clippy::unwrap_used, reason = "tests")]

mod common;

use std::io::Write as _;
use std::path::{Path, PathBuf};

use common::put;
use flate2::Compression;
use flate2::write::DeflateEncoder;
use schemas::layouts::MAX_IMAGE_BYTES;
use schemas::pairs::{InputFile, NoVote, PairFile, PairRow, PairsError, discover};
use tempfile::tempdir;

fn input(path: PathBuf) -> InputFile {
    let source_file = path.file_name().unwrap().to_str().unwrap().to_owned();
    InputFile { path, source_file, layout: None }
}

fn read(path: &Path) -> Result<Vec<PairRow>, PairsError> {
    let file = PairFile::open(&input(path.to_owned()))?;
    file.plan_rows()?.collect_rows()?;
    file.rows_with_images(4)?.collect_rows()
}

fn error(path: &Path) -> String {
    let error = read(path).unwrap_err().to_string();
    assert!(error.contains(path.file_name().unwrap().to_str().unwrap()), "{error}");
    error
}

#[test]
fn an_image_that_cannot_be_had_costs_its_row_and_says_why() {
    let folder = tempdir().unwrap();
    put(folder.path(), "secret.txt", b"secret");
    put(folder.path(), "set/a.jpg", b"an image");
    put(folder.path(), "set/empty.jpg", b"");
    std::fs::create_dir(folder.path().join("set/folder.jpg")).unwrap();
    let large = std::fs::OpenOptions::new()
        .create_new(true)
        .write(true)
        .open(folder.path().join("set/large.jpg"))
        .unwrap();
    large.set_len(MAX_IMAGE_BYTES + 1).unwrap();
    let cases = [
        ("a.jpg", None),
        ("none.jpg", Some("no such file beside the pairs")),
        ("../secret.txt", Some("expected a path below the folder")),
        ("/etc/passwd", Some("expected a path relative to the file")),
        ("https://host/a.jpg", Some("found a URL")),
        ("folder.jpg", Some("a folder")),
        ("a.jpg/b.jpg", Some("no such file")),
        ("large.jpg", Some("at most 67108864 are read")),
        ("", Some("expected the name of an image file")),
        ("a\\u0000b", Some("expected the name of an image file")),
    ];
    let record = |name: &str| {
        format!("{{\"prompt\": \"x\", \"image_0\": \"a.jpg\", \"image_1\": \"{name}\"}}\n")
    };
    let lines: String = cases.iter().map(|(name, _)| record(name)).collect();
    let rows = read(&put(folder.path(), "set/pairs.jsonl", lines.as_bytes())).unwrap();
    assert_eq!(rows.len(), cases.len());
    for ((name, expected), row) in cases.iter().zip(rows) {
        assert_eq!(row.image[0].as_deref(), Some(&b"an image"[..]));
        assert_eq!(row.absent[0], None);
        match expected {
            None => assert_eq!(
                (row.image[1].as_deref(), &row.absent[1]),
                (Some(&b"an image"[..]), &None)
            ),
            Some(expected) => {
                let reason = row.absent[1].as_deref().unwrap();
                assert!(row.image[1].is_none() && reason.contains(expected), "{name}: {reason}");
            }
        }
    }
}

#[test]
fn broken_records_are_named_by_their_line_or_number() {
    let folder = tempdir().unwrap();
    let good = r#"{"prompt": "a", "image_0": "a.jpg", "image_1": "b.jpg", "label_0": 1}"#;
    let bad = |text: &str| good.replace("\"label_0\": 1", text);
    for (name, text, expected) in [
        ("a.jsonl", format!("{good}\n\n{{\"prompt\"\n"), "line 3: not JSON"),
        (
            "b.jsonl",
            format!("{good}\n{}\n", bad("\"label_0\": 2")),
            "line 2: label_0 is 2, expected 1",
        ),
        ("c.jsonl", format!("{good}\n{}\n", bad("\"pair_id\": \"\\ud800\"")), "line 2: not JSON"),
        ("d.jsonl", format!("{good}\n{}\n", good.replace("\"a\"", "7")), "line 2: not the record"),
        (
            "e.json",
            format!("[{good},\n{good},\n{}]", bad("\"label_0\": ")),
            "record 3 (counted from 1): not JSON",
        ),
        ("f.json", format!("[{good},\n{good}"), "hint: the download or copy is incomplete"),
        ("g.json", format!("[{good}, {}", "[".repeat(1000)), "expected an object"),
        ("h.jsonl", format!("{good}\n{}\n", "[".repeat(5000)), "line 2: not"),
    ] {
        let found = error(&put(folder.path(), name, text.as_bytes()));
        assert!(found.contains(expected), "{name}: {found}");
    }
    let ranked = r#"{"prompt": "a", "file_path": ["a", "b"], "human_preference": [1]}"#;
    let found = error(&put(folder.path(), "train.json", format!("[{ranked}]").as_bytes()));
    assert!(found.contains("record 1 (counted from 1): expected a rank for each image"), "{found}");
    let names = vec!["\"a\""; 300].join(",");
    let ranks = vec!["1"; 300].join(",");
    let ranked = format!(
        r#"[{{"prompt": "a", "file_path": [{names}], "rank": [{ranks}], "human_preference": 1}}]"#
    );
    let found = error(&put(folder.path(), "large.json", ranked.as_bytes()));
    assert!(found.contains("record 1"), "{found}");
}

/// A tar of these members, made by hand: (name, content).
fn tar(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut tar = Vec::new();
    for (name, content) in members {
        tar.extend(header(name, content.len() as u64, b'0'));
        tar.extend_from_slice(content);
        tar.resize(tar.len().div_ceil(512) * 512, 0);
    }
    tar.resize(tar.len() + 1024, 0);
    tar
}

fn header(name: &str, size: u64, kind: u8) -> [u8; 512] {
    let mut block = [0; 512];
    block[..name.len()].copy_from_slice(name.as_bytes());
    block[124..135].copy_from_slice(format!("{size:011o}").as_bytes());
    block[156] = kind;
    block[257..265].copy_from_slice(b"ustar\x0000");
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

fn sample(key: &str) -> [(String, &'static [u8]); 5] {
    [
        ("jpg_0.jpg", &b"first"[..]),
        ("jpg_1.jpg", b"second"),
        ("label_0.txt", b"0.5"),
        ("label_1.txt", b"0.5"),
        ("original_prompt.txt", b"a fox"),
    ]
    .map(|(name, content)| (format!("{key}.{name}"), content))
}

fn members<'own>(samples: &'own [(String, &'static [u8])]) -> Vec<(&'own str, &'own [u8])> {
    samples.iter().map(|(name, content)| (name.as_str(), *content)).collect()
}

#[test]
fn samples_that_lack_something_keep_their_row() {
    let folder = tempdir().unwrap();
    let mut all: Vec<_> = ["0", "1", "2", "3", "4"].iter().flat_map(|key| sample(key)).collect();
    all.retain(|(name, _)| {
        !["1.jpg_1.jpg", "2.label_1.txt", "3.original_prompt.txt"].contains(&name.as_str())
    });
    for (name, content) in &mut all {
        match name.as_str() {
            "0.label_1.txt" => *content = b"0",
            "2.label_0.txt" => *content = b"nan",
            "4.label_0.txt" => *content = b"",
            _ => {}
        }
    }
    all.push(("README.md".to_owned(), b"no part of a pair"));
    let rows = read(&put(folder.path(), "a.tar", &tar(&members(&all)))).unwrap();
    assert_eq!(rows.len(), 5);
    assert_eq!((rows[0].human_label_0, rows[0].no_vote), (None, Some(NoVote::Contradiction)));
    assert_eq!(rows[1].human_label_0, Some(0.5));
    assert_eq!(rows[1].absent, [None, Some("the sample \"1\" has no image 1".to_owned())]);
    assert_eq!((rows[2].human_label_0, rows[2].no_vote), (None, Some(NoVote::NotANumber)));
    assert_eq!((&rows[3].caption, &rows[4].caption), (&None, &Some("a fox".to_owned())));
    assert_eq!((rows[4].human_label_0, rows[4].no_vote), (None, None));
    assert_eq!(rows[2].image[0].as_deref(), Some(&b"first"[..]));
    assert_eq!(rows[2].image_uid[0].as_deref(), Some("a.tar/2.jpg_0.jpg"));
}

#[test]
fn a_damaged_file_among_json_is_an_error_and_json_of_another_kind_is_said() {
    let folder = tempdir().unwrap();
    let at = |name: &str, bytes: &[u8]| put(folder.path(), name, bytes);
    let record = br#"[{"prompt": "a", "path1": "a.jpg", "path2": "b.jpg", "confidence": 1}]"#;
    at("one.json", record);
    at("dataset_infos.json", b"{\n  \"default\": {\"description\": \"\"}\n}\n");
    at("numbers.json", b"[1, 2]");
    at("text.json", b"\"text\"");
    at("none.json", b"[]");
    let inputs = [folder.path().to_owned()];
    let found = discover(&inputs, &[]).unwrap();
    assert_eq!(found.files.len(), 1);
    let others =
        "4 files of JSON without pairs (dataset_infos.json, none.json, numbers.json, 1 more)";
    assert_eq!(found.skipped().unwrap(), format!("skipped: {others}"));
    for (bytes, says) in [
        (record.to_vec(), None),
        (record[..30].to_vec(), Some("the download or copy is incomplete")),
        (
            br#"[{"path1": "a.jpg", "path2": "b.jpg", "confidence": NaN}]"#.to_vec(),
            Some("write null"),
        ),
    ] {
        let path = at("two.json", &bytes);
        match says {
            None => assert_eq!(discover(&inputs, &[]).unwrap().files.len(), 2),
            Some(says) => {
                let error = discover(&inputs, &[]).unwrap_err().to_string();
                assert!(
                    error.contains(&*path.to_string_lossy()) && error.contains(says),
                    "{error}"
                );
            }
        }
    }
}

#[test]
fn damaged_tars_are_errors_that_name_the_byte() {
    let folder = tempdir().unwrap();
    let all: Vec<_> = ["0", "1"].iter().flat_map(|key| sample(key)).collect();
    let whole = tar(&members(&all));
    assert_eq!(read(&put(folder.path(), "whole.tar", &whole)).unwrap().len(), 2);
    // One block of zeros ends an archive; without it, members may be missing.
    let end = whole.len() - 1024;
    assert_eq!(read(&put(folder.path(), "one.tar", &whole[..end + 512])).unwrap().len(), 2);
    for length in [0, end / 2, end - 100, end] {
        let error = error(&put(folder.path(), "cut.tar", &whole[..length]));
        assert!(error.contains("without the block of zeros that ends an archive"), "{error}");
    }
    let with = |at: usize, bytes: &[u8]| {
        let mut changed = whole.clone();
        changed[at..at + bytes.len()].copy_from_slice(bytes);
        changed
    };
    let lies = |size: u64, kind: u8| {
        let mut changed = whole[..1024].to_vec();
        changed.extend(header("0.jpg_1.jpg", size, kind));
        changed.resize(4096, b'x');
        changed
    };
    for (name, bytes, expected) in [
        ("cut-header.tar", whole[..1300].to_vec(), "byte 1024 of the tar: it ends inside a header"),
        (
            "cut-data.tar",
            whole[..1024 + 512 + 3].to_vec(),
            "byte 1024 of the tar: a member of 6 bytes",
        ),
        ("checksum.tar", with(1030, b"X"), "byte 1024 of the tar: expected a header"),
        ("no-tar.tar", b"<html>".repeat(1000), "byte 0 of the tar: expected a header"),
        (
            "size.tar",
            lies(u64::from(u32::MAX), b'0'),
            "byte 1024 of the tar: a member of 4294967295 bytes",
        ),
        ("name.tar", lies(3000, b'L'), "byte 1024 of the tar"),
        ("pax.tar", lies(100, b'x'), "byte 1024 of the tar: the attributes of a member"),
        (
            "label.tar",
            tar(&[("0.jpg_0.jpg", b"a"), ("0.label_0.txt", b"7")]),
            "member \"0.label_0.txt\": the label is \"7\"",
        ),
        (
            "text.tar",
            tar(&[("0.jpg_0.jpg", b"a"), ("0.original_prompt.txt", b"\xff\xfe")]),
            "expected text in UTF-8",
        ),
        ("json.tar", tar(&[("0.0.jpg", b"a"), ("0.json", b"{")]), "member \"0.json\": not JSON"),
        (
            "other.tar",
            tar(&[("a/x.cls", b"1"), ("a/x.png", b"1")]),
            "found members such as \"a/x.cls\"",
        ),
    ] {
        let found = error(&put(folder.path(), name, &bytes));
        assert!(found.contains(expected), "{name}: {found}");
    }
    // Folders and links without end are skipped, one after the other.
    let mut links = Vec::new();
    for _ in 0..100_000 {
        links.extend(header("dir/", 0, b'5'));
    }
    links.extend(&whole);
    assert_eq!(read(&put(folder.path(), "links.tar", &links)).unwrap().len(), 2);
}

#[test]
fn a_flipped_byte_anywhere_in_a_tar_is_an_error_or_other_rows() {
    let folder = tempdir().unwrap();
    let all: Vec<_> = ["0", "1"].iter().flat_map(|key| sample(key)).collect();
    let whole = tar(&members(&all));
    for at in (0..whole.len()).step_by(7) {
        let mut flipped = whole.clone();
        flipped[at] ^= 0x55;
        let path = put(folder.path(), "flipped.tar", &flipped);
        let _ = read(&path);
    }
}

/// A zip of one member, deflated, that claims another size and checksum than it has.
fn bomb(name: &str, content: &[u8], claimed: u32) -> Vec<u8> {
    let mut deflated = DeflateEncoder::new(Vec::new(), Compression::best());
    deflated.write_all(content).unwrap();
    let deflated = deflated.finish().unwrap();
    let mut crc = flate2::Crc::new();
    crc.update(content);
    let fields = |zip: &mut Vec<u8>| {
        zip.extend([20, 0, 0, 0, 8, 0, 0, 0, 33, 0]);
        zip.extend(crc.sum().to_le_bytes());
        zip.extend((deflated.len() as u32).to_le_bytes());
        zip.extend(claimed.to_le_bytes());
        zip.extend((name.len() as u16).to_le_bytes());
        zip.extend([0, 0]);
    };
    let mut zip = b"PK\x03\x04".to_vec();
    fields(&mut zip);
    zip.extend(name.as_bytes());
    zip.extend(&deflated);
    let directory = zip.len();
    zip.extend(b"PK\x01\x02\x14\0");
    fields(&mut zip);
    zip.extend([0; 14]);
    zip.extend(name.as_bytes());
    let length = zip.len() - directory;
    zip.extend(b"PK\x05\x06\0\0\0\0\x01\0\x01\0");
    zip.extend((length as u32).to_le_bytes());
    zip.extend((directory as u32).to_le_bytes());
    zip.extend([0, 0]);
    zip
}

#[test]
fn zips_that_lie_or_are_damaged_cost_the_rows_of_their_images() {
    let folder = tempdir().unwrap();
    let large = vec![0; MAX_IMAGE_BYTES as usize + 1];
    let good = b"an image".repeat(10);
    put(folder.path(), "bomb.zip", &bomb("1.jpg", &large, 100));
    put(folder.path(), "lies.zip", &bomb("1.jpg", &good, 7));
    put(folder.path(), "good.zip", &bomb("1.jpg", &good, good.len() as u32));
    put(folder.path(), "text.zip", b"no zip at all");
    let mut cut = bomb("1.jpg", &good, good.len() as u32);
    cut.truncate(60);
    put(folder.path(), "cut.zip", &cut);
    let record = |zip: &str| {
        format!(
            r#"{{"prompt": "a", "file_path": ["good/1.jpg", "{zip}/1.jpg"], "human_preference": [1, 0]}}"#
        )
    };
    let cases = [
        ("good", None),
        ("bomb", Some("with more than 67108864 bytes")),
        ("lies", Some("the checksum of \"1.jpg\" is wrong")),
        ("text", Some("not a readable zip")),
        ("cut", Some("not a readable zip")),
        ("none", Some("no such file beside the pairs")),
    ];
    let records: Vec<String> = cases.iter().map(|(zip, _)| record(zip)).collect();
    let path = put(folder.path(), "train.json", format!("[{}]", records.join(",")).as_bytes());
    for ((zip, expected), row) in cases.iter().zip(read(&path).unwrap()) {
        assert_eq!(row.image[0].as_deref(), Some(good.as_slice()), "{zip}");
        match expected {
            None => assert_eq!(row.image[1].as_deref(), Some(good.as_slice())),
            Some(expected) => {
                let reason = row.absent[1].as_deref().unwrap();
                assert!(reason.contains(expected), "{zip}: {reason}");
            }
        }
    }
}

#[test]
fn a_folder_with_half_a_pair_says_what_is_missing() {
    let folder = tempdir().unwrap();
    for name in
        ["a_w.png", "a_l.png", "a.txt", "b_w.jpg", "b.txt", "c_l.WEBP", "d.png", "._a_w.png"]
    {
        put(folder.path(), name, name.as_bytes());
    }
    let rows = read(folder.path()).unwrap();
    assert_eq!(rows.len(), 3);
    let captions: Vec<_> = rows.iter().map(|row| row.caption.as_deref()).collect();
    assert_eq!(captions, [Some("a.txt"), Some("b.txt"), None]);
    let reasons: Vec<_> = rows.iter().map(|row| row.absent.iter().flatten().next()).collect();
    assert_eq!(reasons[0], None);
    assert_eq!(reasons[1].unwrap(), "the image b_l is missing");
    assert_eq!(reasons[2].unwrap(), "the image c_w is missing");
    let none = tempdir().unwrap();
    put(none.path(), "a.png", b"");
    let error = read(none.path()).unwrap_err().to_string();
    assert!(error.contains("expected NAME_w.EXT") && error.contains("a.png"), "{error}");
}
