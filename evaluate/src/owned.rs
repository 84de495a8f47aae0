//! Which files evaluate may overwrite: those that it wrote, by their content, and never an input.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use runkit::output::{OutputError, foreign, refuse_input};
use schemas::evaluation::{KEY_FINGERPRINT, Record as _};
use schemas::scores::ScoreRow;
use schemas::winrates::{WinRateRow, WinRatesFile};
use serde_json::Value;

use crate::present::{bitmap, report};

/// A file of an output folder.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Owned {
    name: &'static str,
    expected: &'static str,
    is_ours: fn(&Path) -> bool,
}

/// What `evaluate tables` writes.
pub(crate) const TABLES: [Owned; 5] = [
    Owned {
        name: "tables.md",
        expected: EXPECTED_TABLES,
        is_ours: |path| begins(path, "# Tables\n"),
    },
    Owned {
        name: "tables.tex",
        expected: EXPECTED_TABLES,
        is_ours: |path| begins(path, "% Needs \\usepackage[T1]{fontenc}"),
    },
    Owned {
        name: "tables.csv",
        expected: EXPECTED_TABLES,
        is_ours: |path| begins(path, &header()),
    },
    Owned { name: "winrates.parquet", expected: EXPECTED_TABLES, is_ours: is_win_rates },
    Owned { name: "summary.json", expected: EXPECTED_TABLES, is_ours: is_summary },
];
/// What `evaluate report` writes besides its figures.
pub(crate) const REPORT: Owned = Owned {
    name: "report.html",
    expected: "a report of evaluate",
    is_ours: |path| {
        let head = String::from_utf8_lossy(&head(path, 4096)).into_owned();
        // Reports of earlier versions have only their title and policy.
        head.contains("<meta name=\"generator\" content=\"evaluate\">")
            || (head.contains("<title>Evaluation of ") && head.contains("script-src 'sha256-"))
    },
};
const EXPECTED_TABLES: &str = "a file of evaluate's tables";

/// Checks that these files may be written in `folder`, which `flag` names.
///
/// # Errors
/// If one of them is an input, or evaluate did not write it.
pub(crate) fn check_files(
    flag: &'static str,
    folder: &Path,
    files: &[Owned],
    inputs: &[PathBuf],
) -> Result<(), OutputError> {
    files.iter().try_for_each(|file| {
        check(flag, &folder.join(file.name), file.expected, file.is_ours, inputs)
    })
}

/// Checks that the figures of a report may be written below `folder`.
pub(crate) fn check_figures(
    flag: &'static str,
    folder: &Path,
    inputs: &[PathBuf],
) -> Result<(), OutputError> {
    let figures = folder.join("figures");
    if figures.symlink_metadata().is_ok() && !figures.is_dir() {
        return Err(foreign(flag, &figures, "a folder of figures"));
    }
    let entries = std::fs::read_dir(&figures).into_iter().flatten().flatten();
    let pngs = entries.map(|entry| entry.path()).filter(|path| {
        path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("png"))
    });
    let mut pngs: Vec<PathBuf> = pngs.collect();
    pngs.sort();
    pngs.iter().try_for_each(|path| check(flag, path, "a figure of evaluate", is_figure, inputs))
}

/// Checks that a contact sheet may be written.
pub(crate) fn check_sheet(path: &Path, inputs: &[PathBuf]) -> Result<(), OutputError> {
    check("--out", path, "a contact sheet of evaluate", bitmap::is_ours, inputs)
}

/// Checks that a list of prompts may be written.
pub(crate) fn check_list(path: &Path, inputs: &[PathBuf]) -> Result<(), OutputError> {
    check("--out", path, "prompts of evaluate filter-prompts", is_list, inputs)
}

/// The images of scores. They are inputs: no output may overwrite them.
pub(crate) fn images(folder: &Path, rows: &[ScoreRow]) -> Vec<PathBuf> {
    let mut images: Vec<PathBuf> = rows.iter().map(|row| folder.join(&row.image)).collect();
    images.sort();
    images.dedup();
    images
}

fn check(
    flag: &'static str,
    path: &Path,
    expected: &'static str,
    is_ours: fn(&Path) -> bool,
    inputs: &[PathBuf],
) -> Result<(), OutputError> {
    refuse_input(flag, path, inputs)?;
    match path.symlink_metadata() {
        Ok(_) if !is_ours(path) => Err(foreign(flag, path, expected)),
        _ => Ok(()),
    }
}

/// Figures of earlier versions have no mark, only their width.
fn is_figure(path: &Path) -> bool {
    bitmap::is_ours(path) || bitmap::is_plain_of_width(path, report::FIGURE_PIXELS)
}

fn head(path: &Path, length: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(length).read_to_end(&mut bytes));
    if read.is_err() {
        bytes.clear();
    }
    bytes
}

fn begins(path: &Path, text: &str) -> bool {
    head(path, text.len() as u64) == text.as_bytes()
}

fn header() -> String {
    let names = WinRateRow::columns().into_iter().map(|column| column.name);
    names.collect::<Vec<_>>().join(",") + "\n"
}

fn is_win_rates(path: &Path) -> bool {
    WinRatesFile::open(path).is_ok_and(|file| file.metadata().contains_key(KEY_FINGERPRINT))
}

fn is_summary(path: &Path) -> bool {
    let text = std::fs::read(path).unwrap_or_default();
    let value: Value = serde_json::from_slice(&text).unwrap_or_default();
    ["models", "prompt_sets", "win_rates", "means"].iter().all(|key| value.get(key).is_some())
}

/// The first line shows it. A filter that keeps no prompt leaves an empty file; overwriting that
/// loses nothing.
fn is_list(path: &Path) -> bool {
    const LONGEST_LINE: u64 = 1 << 20;
    let head = head(path, LONGEST_LINE);
    let line = head.split(|&byte| byte == b'\n').next().unwrap_or_default();
    let value: Value = serde_json::from_slice(line).unwrap_or_default();
    let ours = ["id", "set", "prompt", "unsafe_probability", "kept"];
    path.metadata().is_ok_and(|found| found.is_file() && found.len() == 0)
        || ours.iter().all(|key| value.get(key).is_some())
}
