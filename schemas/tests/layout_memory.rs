//! What reading a large set holds in memory: a batch, and 8 bytes a pair or less, however many
//! pairs there are.

#![expect(clippy::unwrap_used, reason = "tests")]

mod common;

use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use common::{held, peak_of};
use runkit::signals::Stopped;
use schemas::layouts::{Conversion, Sizes, convert};
use schemas::pairs::{InputFile, PairFile, PairRow};
use tempfile::tempdir;

/// The file to read, how many pairs it has, and a folder if it is to be converted, where this
/// process is the one that is measured.
const FILE: &str = "SCHEMAS_TEST_READS";
const PAIRS: &str = "SCHEMAS_TEST_PAIRS";
const OUT: &str = "SCHEMAS_TEST_CONVERTS";
/// A batch of records is about 6 MB; a batch of images from a tar is of 64 images.
const BOUND: usize = 24 << 20;
/// A row group of 64 MiB as rows, as columns, and encoded.
const CONVERT_BOUND: usize = 288 << 20;
const IMAGE_BYTES: usize = 100_000;

#[expect(clippy::disallowed_methods, reason = "test input needs no durability")]
fn create(path: &Path) -> BufWriter<std::fs::File> {
    BufWriter::with_capacity(1 << 20, std::fs::File::create(path).unwrap())
}

fn records(path: &Path, pairs: usize) {
    let mut file = create(path);
    for number in 0..pairs {
        let before = if number == 0 { '[' } else { ',' };
        write!(
            file,
            "{before}\n{{\"prompt\": \"a picture of the number {number}, in oil\", \"path1\": \
             \"images/{number:08}-a.jpg\", \"path2\": \"images/{number:08}-b.jpg\", \
             \"choice_dist\": [11, 8], \"confidence\": 0.94, \"model1\": \"x\", \"model2\": \"y\"}}"
        )
        .unwrap();
    }
    file.write_all(b"\n]\n").unwrap();
}

fn tar(path: &Path, pairs: usize) {
    let mut file = create(path);
    let image = vec![7; IMAGE_BYTES];
    for number in 0..pairs {
        for (name, content) in [
            ("jpg_0.jpg", image.as_slice()),
            ("jpg_1.jpg", &image),
            ("label_0.txt", b"1"),
            ("original_prompt.txt", b"a fox"),
        ] {
            let mut block = [0_u8; 512];
            let name = format!("{number:08}.{name}");
            block[..name.len()].copy_from_slice(name.as_bytes());
            block[124..135].copy_from_slice(format!("{:011o}", content.len()).as_bytes());
            block[156] = b'0';
            block[148..156].fill(b' ');
            let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
            block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            file.write_all(&block).unwrap();
            file.write_all(content).unwrap();
            file.write_all(&vec![0; content.len().next_multiple_of(512) - content.len()]).unwrap();
        }
    }
    file.write_all(&[0; 1024]).unwrap();
}

struct Silent;

impl Conversion for Silent {
    fn done(&mut self, _: u64) {}

    fn absent(&mut self, _: &PairRow) {}

    fn check(&mut self) -> Result<(), Stopped> {
        Ok(())
    }
}

/// Not a test by itself: what the measured process does.
#[test]
fn measured_process() {
    let Some(path) = std::env::var_os(FILE) else { return };
    let path = PathBuf::from(path);
    let pairs: usize = std::env::var(PAIRS).unwrap().parse().unwrap();
    let with_images = path.extension().unwrap() == "tar";
    let source_file = path.file_name().unwrap().to_str().unwrap().to_owned();
    let before = held();
    let start = Instant::now();
    let input = InputFile { path, source_file, layout: None };
    let peak = peak_of(|| {
        if let Some(out) = std::env::var_os(OUT) {
            let sizes = Sizes::default();
            let converted = convert(&input, Path::new(&out), "set", sizes, &mut Silent).unwrap();
            println!("opened in no time, converted in {:.1?}", start.elapsed());
            assert_eq!(converted.rows, pairs as u64);
            return;
        }
        let file = PairFile::open(&input).unwrap();
        let opened = start.elapsed();
        assert_eq!(file.num_rows(), pairs as i64);
        let rows = match with_images {
            true => file.rows_with_images(32).unwrap(),
            false => file.plan_rows().unwrap(),
        };
        let mut count = 0;
        for batch in rows {
            count += batch.unwrap().len();
        }
        assert_eq!(count, pairs);
        println!("opened in {opened:.1?}, read in {:.1?}", start.elapsed() - opened);
    });
    println!("grown {}", peak - before);
}

#[test]
fn large_sets_are_read_in_flat_memory() {
    let folder = tempdir().unwrap();
    let (json, archive) = (folder.path().join("set.json"), folder.path().join("set.tar"));
    records(&json, 250_000);
    tar(&archive, 600);
    let out = folder.path().join("out");
    for (path, pairs, out, bound) in [
        (&json, 250_000, None, BOUND),
        (&archive, 600, None, BOUND),
        (&archive, 600, Some(&out), CONVERT_BOUND),
    ] {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["--exact", "measured_process", "--nocapture", "--test-threads=1"])
            .env(FILE, path)
            .env(PAIRS, pairs.to_string());
        if let Some(out) = out {
            command.env(OUT, out);
        }
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{text}");
        let grown = text.split("grown ").nth(1).unwrap().split_whitespace().next().unwrap();
        let grown: usize = grown.parse().unwrap();
        let opened = text.lines().find(|line| line.contains("opened in")).unwrap_or_default();
        println!("{}: {} MiB; {opened}", path.display(), grown >> 20);
        assert!(grown < bound, "{}: held {} MiB", path.display(), grown >> 20);
    }
}
