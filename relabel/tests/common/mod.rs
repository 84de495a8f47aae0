//! The fixture the tests run in: a temporary folder with small pair files made of `data/sample`,
//! the miniature models of `data/mini`, and the program itself.

#![allow(dead_code, reason = "each test file uses a part of it")]

mod pairs;
mod tars;

use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::Command;

use schemas::labels::{LabelRow, LabelsFile};
use testkit::Folder;

#[allow(unused_imports, reason = "each test file uses a part of it")]
pub(crate) use pairs::{
    Pair, pairs_in_small_pages, pairs_parquet, pairs_parquet_with_structs, pairs_with_own_captions,
    pairs_without_images, parquet_of, png_of_size, sample_pairs,
};
#[allow(unused_imports, reason = "each test file uses a part of it")]
pub(crate) use tars::tar_of;
#[allow(unused_imports, reason = "each test file uses a part of it")]
pub(crate) use testkit::{Run, Running, wait_until};

/// The committed sample and models.
pub(crate) const SAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../data/sample");
pub(crate) const MINI: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../data/mini");
pub(crate) const ALL_SCORERS: [&str; 4] = ["clip", "hps", "pickscore", "aesthetic"];

/// The program, alone in its environment and on one thread, so that tests do not slow each other.
pub(crate) fn relabel<I: AsRef<std::ffi::OsStr>>(
    arguments: impl IntoIterator<Item = I>,
) -> Command {
    testkit::program(env!("CARGO_BIN_EXE_relabel"), arguments)
}

/// A temporary folder with inputs, outputs and configurations.
pub(crate) struct Fixture {
    folder: Folder,
}

impl Fixture {
    /// An empty fixture.
    pub(crate) fn empty() -> Self {
        Self { folder: Folder::new() }
    }

    /// `rows` pairs of the sample in three files below `pairs/`. Images recur across the files.
    pub(crate) fn with_sample(rows: usize) -> Self {
        let fixture = Self::empty();
        for (number, rows) in sample_pairs(rows).chunks(rows.div_ceil(3)).enumerate() {
            fixture.put(&format!("pairs/{number}.parquet"), &pairs_parquet(rows));
        }
        fixture
    }

    /// One file of these pairs, as `pairs/0.parquet`.
    pub(crate) fn with_pairs(pairs: &[Pair]) -> Self {
        let fixture = Self::empty();
        fixture.put("pairs/0.parquet", &pairs_parquet(pairs));
        fixture
    }

    /// The configuration `name` with these entries, as [`scorer_entry`] makes them.
    pub(crate) fn scorers(&self, name: &str, entries: &[String]) -> PathBuf {
        self.put(name, entries.concat().as_bytes())
    }

    /// The cheapest two scorers (one network serves both), for tests about files and processes.
    pub(crate) fn two_scorers(&self) -> PathBuf {
        self.scorers("two.toml", &[scorer_entry("clip"), scorer_entry("aesthetic")])
    }

    /// `relabel score` on `pairs/` into `out`.
    pub(crate) fn score(&self, scorers: &Path, out: &str, more: &[&str]) -> Command {
        let mut command = relabel(["score", "--pairs"]);
        command.arg(self.path("pairs")).arg("--scorers").arg(scorers);
        command.arg("--out").arg(self.path(out)).args(more);
        command
    }

    /// The rows of `out`.
    pub(crate) fn labels(&self, out: &str) -> Vec<LabelRow> {
        LabelsFile::open(self.path(out)).unwrap().read_rows().unwrap()
    }
}

impl Deref for Fixture {
    type Target = Folder;

    fn deref(&self) -> &Folder {
        &self.folder
    }
}

/// How many captions a process says with `-v` that it has encoded.
pub(crate) fn captions_encoded(run: &Run) -> usize {
    let number = |line: &str| {
        let (_, number) = line.split_once("captions were encoded here captions=")?;
        number.split_whitespace().next()?.parse::<usize>().ok()
    };
    run.stderr.lines().filter_map(number).sum()
}

/// The units that a process says with `-v` that it has scored, in order.
pub(crate) fn units_scored(run: &Run) -> Vec<usize> {
    let number = |line: &str| line.split_once("unit scored unit=")?.1.trim().parse().ok();
    run.stderr.lines().filter_map(number).collect()
}

/// An entry of `scorers.toml` for a miniature model, with absolute paths.
pub(crate) fn scorer_entry(name: &str) -> String {
    let text = std::fs::read_to_string(Path::new(MINI).join("scorers.toml")).unwrap();
    let entries = text.split("[[scorer]]").skip(1);
    let mut named = entries.filter(|entry| entry.contains(&format!("name = \"{name}\"")));
    let entry = named.next().unwrap_or_else(|| panic!("data/mini has no scorer {name}"));
    let absolute = |line: &str| match line.split_once(" = \"") {
        Some((key @ ("model" | "head"), value)) => format!("{key} = \"{MINI}/{value}\n"),
        _ => format!("{line}\n"),
    };
    format!("[[scorer]]\n{}\n", entry.lines().map(absolute).collect::<String>())
}

/// The four miniature scorers of the paper's kinds, [`ALL_SCORERS`], as committed.
pub(crate) fn four_scorers() -> PathBuf {
    Path::new(MINI).join("paper.toml")
}

/// The five miniature scorers, as committed.
pub(crate) fn five_scorers() -> PathBuf {
    Path::new(MINI).join("scorers.toml")
}
