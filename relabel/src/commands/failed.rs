//! `relabel inspect --failed`: the rows without a consensus, their positions and the reasons.

use std::io::{BufWriter, Write as _};
use std::path::Path;

use anyhow::{Context as _, Result};
use arrow::array::{Array as _, StringViewArray};
use runkit::exit::ExitStatus;
use runkit::text::escape_for_terminal;
use schemas::labels::{LabelBatch, LabelsFile, Status};
use serde::Serialize;

use crate::cli::ReportFormat;

/// A row that failed; in JSON an object of the array.
#[derive(Debug, Serialize)]
struct Failed<'batch> {
    pair_id: &'batch str,
    source_file: &'batch str,
    source_row: i64,
    status: &'batch str,
    error: Option<&'batch str>,
}

/// Prints every failed row of `labels`, in order, as they are read: a line each, or the elements of
/// one JSON array.
pub(super) fn run(labels: &Path, format: ReportFormat) -> Result<ExitStatus> {
    let file = LabelsFile::open(labels)?;
    let mut out = BufWriter::new(std::io::stdout().lock());
    let mut print = |text: &str| out.write_all(text.as_bytes()).context("writing to stdout");
    let mut before = "[\n";
    for batch in file.batches()? {
        let batch =
            batch.with_context(|| format!("reading {}", locations::shown(labels).display()))?;
        for row in (0..batch.num_rows()).filter(|&row| has_failed(&batch, row)) {
            let failed = Failed::of(&batch, row);
            match format {
                ReportFormat::Text => print(&format!("{}\n", failed.to_line()))?,
                ReportFormat::Json => {
                    print(&format!("{before}  {}", serde_json::to_string(&failed)?))?;
                    before = ",\n";
                }
            }
        }
    }
    if let ReportFormat::Json = format {
        print(if before == ",\n" { "\n]\n" } else { "[]\n" })?;
    }
    out.flush().context("writing to stdout")?;
    Ok(ExitStatus::Done)
}

/// As `inspect` counts them.
fn has_failed(batch: &LabelBatch, row: usize) -> bool {
    batch.status().value(row) != Status::Ok.as_str()
        || batch.vote_sum().is_null(row)
        || batch.consensus().is_null(row)
}

impl<'batch> Failed<'batch> {
    fn of(batch: &'batch LabelBatch, row: usize) -> Self {
        let text = |column: &'batch StringViewArray| column.value(row);
        Self {
            pair_id: text(batch.pair_id()),
            source_file: text(batch.source_file()),
            source_row: batch.source_row().value(row),
            status: text(batch.status()),
            error: batch.error().is_valid(row).then(|| text(batch.error())),
        }
    }

    /// Four columns with tabs between them, and no control character of the input.
    fn to_line(&self) -> String {
        let place = format!("{}:{}", self.source_file, self.source_row);
        let columns = [self.pair_id, &place, self.status, self.error.unwrap_or_default()];
        let columns = columns.map(|text| escape_for_terminal(text).replace(['\t', '\n'], " "));
        columns.join("\t")
    }
}
