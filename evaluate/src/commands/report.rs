//! `evaluate report`: the page of an evaluation from its scores.

use std::path::Path;

use anyhow::{Context as _, Result};
use runkit::exit::ExitStatus;
use schemas::evaluation::KEY_MANIFEST;
use schemas::scores::ScoresFile;

use crate::cli::report::ReportArguments;
use crate::owned;
use crate::present::report::{self, ReportInputs};
use crate::scores_index::{ScoresIndex, Selection};
use crate::tables::{Tables, TablesConfig};

/// Runs the command.
pub(super) fn run(arguments: &ReportArguments) -> Result<ExitStatus> {
    let folder = arguments.scores.parent().unwrap_or(Path::new(""));
    let out = arguments.out.as_deref().unwrap_or(folder);
    crate::output::check_writable(out)?;
    if let Some(labels) = &arguments.labels {
        crate::present::figures::check_labels(labels)?;
    }
    let file = ScoresFile::open(&arguments.scores)?;
    let scores = file.read()?;
    let mut inputs = owned::images(folder, &scores);
    inputs.push(arguments.scores.clone());
    inputs.extend(arguments.labels.clone());
    owned::check_files("--out", out, &[owned::REPORT], &inputs)?;
    owned::check_figures("--out", out, &inputs)?;
    let config = TablesConfig { models: arguments.models.clone(), ..TablesConfig::default() };
    let tables = Tables::compute(&scores, &config)?;
    let selection = Selection { models: arguments.models.as_deref(), metrics: None };
    let index = ScoresIndex::new(&scores, selection)?;
    let manifest = file.metadata().get(KEY_MANIFEST);
    let manifest = manifest.and_then(|text| serde_json::from_str(text).ok());
    let inputs = ReportInputs {
        folder,
        index: &index,
        win_rates: &tables.win_rates,
        means: &tables.means,
        agreement: &tables.agreement,
        notes: &tables.notes,
        labels: arguments.labels.as_deref(),
        manifest: &manifest.unwrap_or_default(),
        dropped: &[],
    };
    let page = report::write(&inputs, out)
        .with_context(|| format!("writing the report of {}", arguments.scores.display()))?;
    let value = serde_json::json!({ "report": page });
    arguments.json.say(|| format!("report: {}\n", page.display()), &value)?;
    Ok(ExitStatus::Done)
}
