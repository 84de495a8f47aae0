//! The metrics of a long run, step by step: `metrics.jsonl` for programs, `tensorboard/` to look
//! at.
//!
//! `metrics.jsonl` has one JSON object a step: `step`, then the values in the order they were
//! given. Names that begin with [`TIME_GROUP`] hold clock readings. All others depend on the run
//! alone, so a run that was stopped and resumed leaves the same lines but for those.
//!
//! Both are logs and grow in place: a kill may truncate the last line, and may leave lines of steps
//! that a resumed run repeats. [`Metrics::open`] removes both from `metrics.jsonl`; in
//! TensorBoard's files a mark of a restart makes TensorBoard drop those steps. [`Metrics::sync`],
//! called before a checkpoint is marked complete, makes sure that no line up to it can be lost.

mod tensorboard;

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::fault;
use crate::files::{FileError, Operation, create_folder, sync_folder};
use tensorboard::EventFile;

/// The beginning of the names of values that a clock gave.
pub const TIME_GROUP: &str = "time/";

/// The name of the file of lines.
pub const LOG_NAME: &str = "metrics.jsonl";
/// The name of the folder of TensorBoard's files.
pub const TENSORBOARD_NAME: &str = "tensorboard";

/// The name of the step in a line.
const STEP: &str = "step";

/// The open metrics of a run. One process writes them at a time: hold the lock of the run.
#[derive(Debug)]
pub struct Metrics {
    path: PathBuf,
    log: File,
    /// Bytes of whole lines.
    length: u64,
    last_step: Option<u64>,
    events: EventFile,
}

impl Metrics {
    /// Opens the metrics in the folder of a run, which is made if it is missing. If the run resumes
    /// after step `resume_step`, lines of later steps are removed; if it begins (`None`), all are.
    ///
    /// # Errors
    /// When a file or folder cannot be made, read or shortened.
    pub fn open(folder: impl AsRef<Path>, resume_step: Option<u64>) -> Result<Self, FileError> {
        let folder = folder.as_ref();
        create_folder(folder)?;
        let path = folder.join(LOG_NAME);
        let fail = |operation| move |cause| FileError::new(folder.join(LOG_NAME), operation, cause);
        let log = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .open(&path)
            .map_err(fail(Operation::Create))?;
        sync_folder(folder).map_err(fail(Operation::Sync))?;
        let (length, last_step) = match resume_step {
            None => (0, None),
            Some(step) => kept_lines(&log, step).map_err(fail(Operation::Read))?,
        };
        log.set_len(length).and_then(|()| log.sync_all()).map_err(fail(Operation::Write))?;
        if let Some(step) = resume_step
            && step > 0
            && last_step != Some(step)
        {
            let found = last_step.map_or("none".to_owned(), |last| format!("step {last}"));
            tracing::warn!(
                "{}: the last line before step {step} is missing, found {found}: figures of \
                 earlier steps are lost",
                path.display()
            );
        }
        let first_step = resume_step.map_or(0, |step| step + 1);
        let events = EventFile::create(&folder.join(TENSORBOARD_NAME), first_step)?;
        Ok(Self { path, log, length, last_step, events })
    }

    /// Writes the values of one step: numbers go to both, text and others to the line alone. A
    /// number that is not finite is null in the line.
    ///
    /// # Errors
    /// When it cannot be written, or the step is not later than the one before. The file then holds
    /// nothing of the line.
    pub fn write(&mut self, step: u64, values: &[(&str, Value)]) -> Result<(), FileError> {
        if self.last_step.is_some_and(|last| last >= step) {
            let last = self.last_step.unwrap_or_default();
            let cause = format!("expected a step after {last}, found step {step}");
            return Err(self.error(Operation::Write, std::io::Error::other(cause)));
        }
        let mut row = Map::with_capacity(values.len() + 1);
        row.insert(STEP.to_owned(), step.into());
        for (name, value) in values {
            row.insert((*name).to_owned(), value.clone());
        }
        let mut line = Value::Object(row).to_string();
        line.push('\n');
        let written = fault::error_at("metrics").and_then(|()| self.log.write_all(line.as_bytes()));
        if let Err(cause) = written {
            // Half a line must not become part of the next one. If this fails too, the next start
            // removes it.
            let _ = self.log.set_len(self.length);
            return Err(self.error(Operation::Write, cause));
        }
        fault::point("metrics");
        self.length += line.len() as u64;
        self.last_step = Some(step);
        let scalars: Vec<(&str, f32)> = values
            .iter()
            .filter_map(|(name, value)| Some((*name, value.as_f64()? as f32)))
            .collect();
        self.events.scalars(step, &scalars)
    }

    /// Shows a PNG image of `width` × `height` pixels under a name in TensorBoard.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn image(
        &mut self,
        step: u64,
        name: &str,
        (width, height): (u32, u32),
        png: &[u8],
    ) -> Result<(), FileError> {
        self.events.image(step, name, (width, height), png)
    }

    /// Brings all that was written to the disk.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn sync(&mut self) -> Result<(), FileError> {
        self.log.sync_data().map_err(|cause| self.error(Operation::Sync, cause))?;
        self.events.sync()
    }

    /// The file of lines.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn error(&self, operation: Operation, cause: std::io::Error) -> FileError {
        FileError::new(&self.path, operation, cause)
    }
}

/// The bytes of the whole lines up to a step, and the step of the last of them.
fn kept_lines(log: &File, step: u64) -> std::io::Result<(u64, Option<u64>)> {
    let mut reader = BufReader::new(log);
    let (mut kept, mut last) = (0, None);
    let mut line = Vec::new();
    loop {
        line.clear();
        let count = reader.read_until(b'\n', &mut line)?;
        let whole = line.ends_with(b"\n");
        let row = serde_json::from_slice::<Map<String, Value>>(&line).ok();
        match row.and_then(|row| row.get(STEP)?.as_u64()) {
            Some(found) if whole && found <= step => {
                kept += count as u64;
                last = Some(found);
            }
            _ => return Ok((kept, last)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn write(metrics: &mut Metrics, steps: std::ops::RangeInclusive<u64>) {
        for step in steps {
            let values = [
                ("loss", json!(1.0 / step as f64)),
                ("scorer", json!("clip")),
                ("pairs", json!(step)),
            ];
            metrics.write(step, &values).unwrap();
        }
    }

    fn text(folder: &Path) -> String {
        fs_err::read_to_string(folder.join(LOG_NAME)).unwrap()
    }

    #[test]
    fn a_line_has_the_step_and_the_values_in_their_order() {
        let folder = tempfile::tempdir().unwrap();
        let mut metrics = Metrics::open(folder.path().join("run"), None).unwrap();
        let values =
            [("z/mean", json!(0.1_f64)), ("loss", json!(f64::NAN)), ("name", json!("a\nb"))];
        metrics.write(7, &values).unwrap();
        metrics.sync().unwrap();
        assert_eq!(
            text(&folder.path().join("run")),
            "{\"step\":7,\"z/mean\":0.1,\"loss\":null,\"name\":\"a\\nb\"}\n"
        );
        let error = metrics.write(7, &[]).unwrap_err().to_string();
        assert!(error.contains("after 7") && error.contains(LOG_NAME), "{error}");
    }

    #[test]
    fn resumed_runs_leave_the_lines_of_an_uninterrupted_one() {
        let straight = tempfile::tempdir().unwrap();
        write(&mut Metrics::open(straight.path(), None).unwrap(), 1..=9);
        let resumed = tempfile::tempdir().unwrap();
        write(&mut Metrics::open(resumed.path(), None).unwrap(), 1..=3);
        // Before the first checkpoint: from the beginning.
        write(&mut Metrics::open(resumed.path(), None).unwrap(), 1..=6);
        // Two resumes from checkpoints that lie behind, each after a kill in the middle of a line.
        for (checkpoint, last) in [(4, 7), (5, 9)] {
            let path = resumed.path().join(LOG_NAME);
            OpenOptions::new().append(true).open(path).unwrap().write_all(b"{\"step\":9").unwrap();
            let mut metrics = Metrics::open(resumed.path(), Some(checkpoint)).unwrap();
            write(&mut metrics, checkpoint + 1..=last);
        }
        assert_eq!(text(straight.path()), text(resumed.path()));
        let files = fs_err::read_dir(resumed.path().join(TENSORBOARD_NAME)).unwrap().count();
        assert_eq!(files, 4);
    }

    #[test]
    fn a_cut_at_any_byte_keeps_whole_lines_only() {
        let folder = tempfile::tempdir().unwrap();
        write(&mut Metrics::open(folder.path(), None).unwrap(), 1..=3);
        let whole = text(folder.path());
        let file = OpenOptions::new().write(true).open(folder.path().join(LOG_NAME)).unwrap();
        for length in (0..=whole.len()).rev() {
            file.set_len(length as u64).unwrap();
            let (kept, last) = {
                let log = File::open(folder.path().join(LOG_NAME)).unwrap();
                kept_lines(&log, 2).unwrap()
            };
            let lines = whole[..length].matches('\n').count().min(2);
            assert_eq!(last.unwrap_or(0), lines as u64, "{length}");
            let expected: usize = whole.split_inclusive('\n').take(lines).map(str::len).sum();
            assert_eq!(kept, expected as u64, "{length}");
        }
    }
}
