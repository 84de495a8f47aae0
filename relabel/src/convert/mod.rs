//! `relabel convert`: pairs of any layout, from anywhere, as our Parquet in a local folder.
//!
//! Each input becomes files of its own, complete when they have their names, so that a stopped
//! conversion resumes behind the last of them ([`schemas::layouts::convert`]). `manifest.json`
//! says what the folder is made of: a conversion of other inputs, or of inputs that have changed,
//! is refused. Memory holds a row group, whatever the size of the set.

mod output;
mod sources;
mod watch;

use std::fmt;
use std::path::PathBuf;

use anyhow::{Result, ensure};
use indicatif::HumanBytes;
use runkit::logging::counted;
use runkit::signals::StopFlag;
use schemas::layouts::{ConvertError, Converted, Layout, Sizes, convert_rows, converted};
use schemas::table_writer::WriteError;
use serde::Serialize;

use self::output::Output;
use self::sources::Sources;
use self::watch::Watch;

/// A row group, at most.
const ROW_GROUP_MIB: u64 = 64;

/// A validated conversion.
#[derive(Debug, Clone)]
pub struct Config {
    /// Inputs as given.
    pub pairs: Vec<PathBuf>,
    /// The splits to take of them. If empty, all, which must then be one.
    pub splits: Vec<String>,
    /// Their layout, if the user named it.
    pub layout: Option<Layout>,
    /// At most this many pairs.
    pub limit: Option<u64>,
    /// The folder to write.
    pub out: PathBuf,
    /// The size of a file.
    pub file_mib: u64,
    /// Delete what an earlier conversion left.
    pub fresh: bool,
    /// Write nothing.
    pub dry_run: bool,
}

/// What is in the folder, or would be.
#[derive(Debug, Clone, Serialize)]
pub struct Summary {
    /// "complete", or "dry_run".
    pub state: &'static str,
    /// Files of pairs that were read.
    pub inputs: usize,
    /// Pairs; `None` in a dry run if a tar that lies elsewhere was not read for it.
    pub pairs: Option<u64>,
    /// Pairs that this start wrote.
    pub new_pairs: u64,
    /// Pairs without one of their images.
    pub without_images: u64,
    /// Files in the folder.
    pub files: u64,
    /// Their bytes. In a dry run what the rest takes, as far as the sizes of the inputs tell it.
    pub bytes: u64,
    /// Free bytes on the disk of the folder.
    pub free_bytes: u64,
    /// The folder.
    pub out: PathBuf,
}

/// Converts, or finishes what an earlier start has begun.
///
/// # Errors
/// One sentence about what is wrong with an input, the folder, or an earlier conversion that this
/// one would mix with; [`runkit::signals::Stopped`] if `stop` asked for a stop. The same command
/// then resumes.
pub fn run(config: &Config, stop: &StopFlag) -> Result<Summary> {
    let output = Output::new(config);
    output.refuse_foreign()?;
    output.refuse_inside_input()?;
    let sources = Sources::open(config, stop)?;
    output.refuse_inputs_inside(&sources)?;
    sources.say_layouts(config.layout);
    let _lock = if config.dry_run { None } else { Some(output.lock()?) };
    output.refuse_foreign()?;
    let earlier = output.earlier(&sources)?;
    let bytes = sources.lower_bytes(config.limit).saturating_sub(output.bytes());
    let free_bytes = runkit::files::free_space(&config.out)?;
    let mut summary = Summary {
        state: "dry_run",
        inputs: sources.all.len(),
        pairs: sources.pairs(config.limit),
        new_pairs: 0,
        without_images: 0,
        files: 0,
        bytes,
        free_bytes,
        out: config.out.clone(),
    };
    if config.dry_run {
        return Ok(summary);
    }
    ensure!(
        bytes <= free_bytes,
        "{}: no space left for the pairs: about {} are still to be written, only {} are free; \
         hint: choose another --out, or free some space and run the same command again",
        config.out.display(),
        HumanBytes(bytes),
        HumanBytes(free_bytes)
    );
    output.begin(&sources)?;
    let total = convert_all(config, &sources, &output, &earlier, stop)?;
    summary.state = "complete";
    summary.pairs = Some(total.rows);
    (summary.new_pairs, summary.without_images) = (total.new_rows, total.without_images);
    (summary.files, summary.bytes) = (total.files, total.bytes);
    summary.free_bytes = runkit::files::free_space(&config.out)?;
    ensure!(
        total.rows > 0,
        "the inputs hold no pair; hint: look into what was read, {}",
        counted(sources.all.len() as u64, "files")
    );
    Ok(summary)
}

/// Converts the inputs one after the other.
fn convert_all(
    config: &Config,
    sources: &Sources,
    output: &Output<'_>,
    earlier: &output::Earlier,
    stop: &StopFlag,
) -> Result<Converted> {
    let file = usize::try_from(config.file_mib << 20).unwrap_or(usize::MAX);
    let sizes = Sizes { row_group: file.min((ROW_GROUP_MIB << 20) as usize), file };
    let mut total = Converted::default();
    let mut watch = Watch::new(sources, config.limit, stop);
    for source in &sources.all {
        stop.check()?;
        let left = config.limit.map_or(i64::MAX, |limit| (limit - total.rows) as i64);
        if left == 0 {
            break;
        }
        watch.begin(source);
        let name = source.name.as_str();
        // A tar that lies elsewhere costs its whole length to open.
        let is_known = source.pairs.is_none() && earlier.has_version(source);
        let before = match is_known {
            true => converted(&config.out, name, &source.input.source_file)?,
            false => None,
        };
        let done = match before {
            Some(done) => {
                watch.is_done(done.rows);
                done
            }
            None => {
                let pairs = source.open()?;
                watch.rows(pairs.num_rows().min(left));
                convert_rows(&pairs, left, &config.out, name, sizes, &mut watch)
                    .map_err(|error| told(error, config, sources, output))?
            }
        };
        total.rows += done.rows;
        total.new_rows += done.new_rows;
        total.without_images += done.without_images;
        total.files += done.files;
        total.bytes += done.bytes;
    }
    watch.finish();
    Ok(total)
}

/// The error as it is shown: of a full disk with what is still needed.
fn told(
    error: ConvertError,
    config: &Config,
    sources: &Sources,
    output: &Output<'_>,
) -> anyhow::Error {
    let is_full = match &error {
        ConvertError::Write(WriteError::File(cause)) | ConvertError::File(cause) => {
            cause.is_out_of_space()
        }
        _ => false,
    };
    match error {
        ConvertError::Stopped(stopped) => stopped.into(),
        ConvertError::Pairs(error) => error.into(),
        error if is_full => {
            let left = sources.lower_bytes(config.limit).saturating_sub(output.bytes());
            let (out, left) = (config.out.display(), HumanBytes(left));
            let told = format!("{out}: the disk is full; about {left} are still to be written");
            anyhow::Error::from(error).context(told)
        }
        error => error.into(),
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inputs = counted(self.inputs as u64, "files");
        let (bytes, free) = (HumanBytes(self.bytes), HumanBytes(self.free_bytes));
        let out = self.out.display();
        if self.state == "dry_run" {
            match self.pairs {
                Some(pairs) => writeln!(formatter, "pairs      {pairs} in {inputs}")?,
                None => writeln!(formatter, "pairs      {inputs}, read when they are converted")?,
            }
            return writeln!(formatter, "disk       at least {bytes} in {out}, {free} free");
        }
        let pairs = self.pairs.unwrap_or_default();
        let files = counted(self.files, "files");
        writeln!(
            formatter,
            "{pairs} pairs of {inputs}, {} of them new, in {files} ({bytes})",
            self.new_pairs
        )?;
        if self.without_images > 0 {
            let pairs = counted(self.without_images, "pairs");
            writeln!(formatter, "{pairs} without an image, which is null")?;
        }
        writeln!(formatter, "pairs: {out}")
    }
}
