//! The tool of the file contract: writes the reference pages and the DuckDB views, and checks
//! files.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, anyhow, bail};
use clap::{Parser, Subcommand};
use schemas::evaluation::EvaluationError;
use schemas::labels::{LabelsError, LabelsFile};
use schemas::latents::{CaptionsFile, LatentsError, LatentsFile};
use schemas::pairs::{InputFile, PairFile, PairsError};
use schemas::reference;
use schemas::scores::ScoresFile;
use schemas::winrates::WinRatesFile;

/// The file contract of the pipeline: reference pages, DuckDB views, checks of files.
#[derive(Parser)]
#[command(version, max_term_width = 79)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Write docs/{labels,latents,evaluation}-schema.md and schemas/duckdb/*.sql
    Docs {
        /// Write nothing; fail if a file is not up to date
        #[arg(long)]
        check: bool,
        /// Root of the repository
        #[arg(long, default_value = ".")]
        root: PathBuf,
    },
    /// Print the DuckDB views of labels, a cache of latents or an evaluation
    Sql {
        /// labels.parquet, or the folder of `train cache` or `evaluate`
        path: PathBuf,
    },
    /// Name the kind of a file and check all its rows
    Check {
        /// A file of labels, pairs, cached latents, captions, scores or win rates
        file: PathBuf,
    },
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        // The reader of the output, such as `head`, has seen enough.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            let text = runkit::text::shorten_message(&error.to_string());
            let _nobody_listens = writeln!(io::stderr(), "error: {text}");
            ExitCode::FAILURE
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Docs { check: true, root } => match reference::outdated(&root).as_slice() {
            [] => Ok(()),
            files => bail!("not up to date: {}; hint: run `schemas docs`", files.join(", ")),
        },
        Command::Docs { check: false, root } => Ok(reference::write_generated(&root)?),
        Command::Sql { path } => Ok(io::stdout().write_all(views(&path)?.as_bytes())?),
        Command::Check { file } => {
            let sentence = check(&file)?;
            Ok(writeln!(io::stdout(), "{}: {sentence}", file.display())?)
        }
    }
}

/// The DuckDB views of a labels file, or of the files in a folder; absolute paths, so that DuckDB
/// may start in any folder.
fn views(path: &Path) -> Result<String> {
    let absolute = path
        .canonicalize()
        .map_err(|error| anyhow!("{}: cannot be opened: {error}", path.display()))?;
    let name = absolute.to_str().context("expected a path in UTF-8")?;
    if absolute.is_file() {
        let file = LabelsFile::open(&absolute)?;
        return Ok(reference::duckdb_views(file.schema().scorers(), name));
    }
    if absolute.join("scores.parquet").is_file() {
        return Ok(reference::evaluation_views(name));
    }
    let is_part = |name: &std::ffi::OsStr| name.as_encoded_bytes().starts_with(b"latents-");
    for entry in absolute.read_dir()? {
        if is_part(&entry?.file_name()) {
            return Ok(reference::latents_views(name));
        }
    }
    bail!(
        "{}: expected scores.parquet or latents-*.parquet in this folder, found neither; hint: name \
         labels.parquet, or the folder of `train cache` or `evaluate`",
        path.display()
    )
}

/// Recognises a file and reads it whole.
fn check(path: &Path) -> Result<String> {
    match LatentsFile::open(path) {
        Ok(file) => return check_latents(&file),
        Err(LatentsError::Columns { .. } | LatentsError::Input(_)) => {}
        Err(error) => return Err(error.into()),
    }
    match CaptionsFile::open(path) {
        Ok(file) => return check_captions(&file),
        Err(LatentsError::Columns { .. } | LatentsError::Input(_)) => {}
        Err(error) => return Err(error.into()),
    }
    match ScoresFile::open(path) {
        Ok(file) => return Ok(format!("valid scores, {} rows", file.read()?.len())),
        Err(error @ EvaluationError::Version { .. }) => return Err(error.into()),
        Err(_) => {}
    }
    match WinRatesFile::open(path) {
        Ok(file) => return Ok(format!("valid win rates, {} rows", file.read()?.len())),
        Err(error @ EvaluationError::Version { .. }) => return Err(error.into()),
        Err(_) => {}
    }
    let labels = match LabelsFile::open(path) {
        Ok(file) => return check_labels(&file),
        Err(LabelsError::Columns { problems, .. }) => problems,
        Err(error) => return Err(error.into()),
    };
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let input = InputFile { path: path.to_owned(), source_file: name, layout: None };
    match PairFile::open_without_images(&input) {
        Ok(_) => check_pairs(&input),
        Err(PairsError::Columns { problems: pairs, .. }) => bail!(
            "{}: neither labels nor pairs\n  not labels:\n    {}\n  not pairs:\n    {}",
            path.display(),
            labels.join("\n    "),
            pairs.join("\n    ")
        ),
        Err(error) => Err(error.into()),
    }
}

fn check_latents(file: &LatentsFile) -> Result<String> {
    let layout = file.layout();
    let mut failed = 0;
    for rows in file.rows()? {
        let rows = rows?;
        let fine = |row: &&schemas::latents::LatentRow| row.status == schemas::labels::Status::Ok;
        let wanted: Vec<i64> = rows.iter().filter(fine).map(|row| row.source_row).collect();
        failed += rows.len() - wanted.len();
        for image in [0, 1] {
            file.moments_at(image, false, &wanted)?;
            if layout.flipped {
                file.moments_at(image, true, &wanted)?;
            }
        }
    }
    let [channels, height, width] = layout.shape;
    let (rows, stored) = (file.num_rows(), layout.stored.name());
    let flipped = if layout.flipped { ", also of flipped images" } else { "" };
    Ok(format!(
        "valid latents, {rows} rows, {failed} of them failed, {channels}x{height}x{width} in {stored}{flipped}"
    ))
}

fn check_captions(file: &CaptionsFile) -> Result<String> {
    const TOGETHER: usize = 64;
    let rows: Vec<i64> = (0..file.num_rows()).collect();
    for rows in rows.chunks(TOGETHER) {
        file.rows_at(rows)?;
    }
    let [tokens, features] = file.layout().shape;
    Ok(format!("valid captions, {} rows, {tokens}x{features}", rows.len()))
}

fn check_labels(file: &LabelsFile) -> Result<String> {
    let mut ids = std::collections::HashSet::new();
    for batch in file.batches()? {
        let batch = batch?;
        for id in batch.pair_id().iter().flatten() {
            if !ids.insert(blake3::hash(id.as_bytes())) {
                bail!("{}: expected each pair_id once, found {id:?} twice", file.path().display());
            }
        }
    }
    let scorers = file.schema().scorers().join(", ");
    Ok(format!("valid labels, {} rows, scorers {scorers}", file.num_rows()))
}

fn check_pairs(input: &InputFile) -> Result<String> {
    let with_images = PairFile::open(input);
    let (file, images) = match with_images {
        Ok(file) => (file, "with images"),
        Err(PairsError::Columns { .. }) => {
            (PairFile::open_without_images(input)?, "without images")
        }
        Err(error) => return Err(error.into()),
    };
    let rows = if file.has_images() { file.rows_with_images(64)? } else { file.plan_rows()? };
    rows.into_iter().try_for_each(|batch| batch.map(drop))?;
    Ok(format!("valid pairs {images}, {} rows", file.num_rows()))
}
