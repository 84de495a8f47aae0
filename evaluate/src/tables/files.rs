//! The files that tables are written to.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use runkit::files::{create_folder, write_atomic, write_json_atomic};
use schemas::evaluation::Record as _;
use schemas::winrates::{Statistic, WinRateRow, WinRatesWriter};
use serde_json::{Value, json};

use super::grid::Grid;
use super::hps_v2;
use super::render::{escape_latex, escape_markdown, latex, markdown, terminal};
use super::{BenchmarkRow, StyleMean, Tables, TablesError};
use crate::prompts::Style;

/// The name of the table of all cells for programs.
pub const WIN_RATES_FILE: &str = "winrates.parquet";

impl Tables {
    /// Writes `tables.md`, `tables.csv` (all cells), `tables.tex`, `winrates.parquet` and
    /// `summary.json` into a folder, each durably. The Parquet file holds the metadata.
    ///
    /// # Errors
    /// When a file cannot be written; those already written are complete.
    pub fn write(
        &self,
        folder: &Path,
        metadata: &BTreeMap<String, String>,
    ) -> Result<Vec<PathBuf>, TablesError> {
        create_folder(folder)?;
        let grids = self.grids();
        let files = ["tables.md", "tables.csv", "tables.tex", WIN_RATES_FILE, "summary.json"]
            .map(|name| folder.join(name));
        let [markdown_file, csv_file, latex_file, parquet_file, json_file] = &files;
        let text = self.markdown(&grids);
        write_atomic(markdown_file, |file| file.write_all(text.as_bytes()))?;
        let text =
            self.csv().map_err(|cause| TablesError::Csv { path: csv_file.clone(), cause })?;
        write_atomic(csv_file, |file| file.write_all(&text))?;
        let text = self.latex(&grids);
        write_atomic(latex_file, |file| file.write_all(text.as_bytes()))?;
        let mut writer = WinRatesWriter::create(parquet_file, metadata)?;
        self.win_rates.iter().try_for_each(|row| writer.write(row.clone()))?;
        writer.finish()?;
        write_json_atomic(json_file, &self.summary())?;
        Ok(files.to_vec())
    }

    /// The main table for a terminal, a part for each set, and the notes.
    pub fn to_text(&self) -> String {
        let mut parts: Vec<String> = self.short_grids().iter().map(terminal).collect();
        if !parts.is_empty() {
            parts.push(
                "[95 % Wilson interval]  * significant at 5 % (sign test, Holm)\n".to_owned(),
            );
        }
        parts.extend(hps_v2::grids(&self.hps_v2).iter().map(terminal));
        if !self.notes.is_empty() {
            let notes = self.notes.iter();
            let notes = notes.map(|note| runkit::text::escape_for_terminal(note).into_owned());
            parts.push(notes.map(|note| format!("note: {note}\n")).collect());
        }
        parts.join("\n")
    }

    fn markdown(&self, grids: &[Grid]) -> String {
        let mut text = "# Tables\n\n".to_owned();
        for set in self.scopes() {
            text.push_str(&format!("- {}: {}.\n", escape_markdown(set), self.power(set)));
        }
        text.push('\n');
        text.extend(grids.iter().map(markdown));
        if !self.notes.is_empty() {
            text.push_str("## Notes\n\n");
            let notes = self.notes.iter().map(|note| format!("- {}\n", escape_markdown(note)));
            text.extend(notes);
        }
        text
    }

    fn latex(&self, grids: &[Grid]) -> String {
        let mut text =
            "% Needs \\usepackage[T1]{fontenc} and \\usepackage{booktabs,graphicx,longtable}.\n"
                .to_owned();
        for set in self.scopes() {
            text.push_str(&format!("% {}: {}.\n", escape_latex(set), self.power(set)));
        }
        for grid in grids {
            text.push('\n');
            text.push_str(&latex(grid));
        }
        text
    }

    /// All cells, in the columns of the Parquet file; null is empty.
    fn csv(&self) -> Result<Vec<u8>, csv::Error> {
        let mut writer = csv::Writer::from_writer(Vec::new());
        writer.write_record(WinRateRow::columns().iter().map(|column| column.name.as_str()))?;
        for row in &self.win_rates {
            let mut record = vec![
                row.prompt_set.clone(),
                row.category.clone().unwrap_or_default(),
                row.model_a.clone(),
                row.model_b.clone(),
                row.metric.clone(),
                row.statistic.to_string(),
                row.selected_by.clone().unwrap_or_default(),
            ];
            let counts = [row.seeds, row.prompts, row.excluded, row.wins, row.ties, row.losses];
            record.extend(counts.map(|count| count.to_string()));
            record.extend(numbers(row).map(|number| number.to_string()));
            writer.write_record(&record)?;
        }
        writer.into_inner().map_err(|error| csv::Error::from(error.into_error()))
    }

    /// The main cells and the means, for programs that do not read Parquet.
    fn summary(&self) -> Value {
        let main = self
            .win_rates
            .iter()
            .filter(|row| row.category.is_none() && row.statistic == Statistic::BestOfN);
        let sets = self.scopes().into_iter().map(|set| {
            let of_set = |row: &&WinRateRow| row.prompt_set == set && row.category.is_none();
            let largest = self.win_rates.iter().filter(of_set).max_by_key(|row| row.prompts);
            json!({
                "name": set,
                "prompts": largest.map_or(0, |row| row.prompts),
                "minimum_detectable_effect": largest.map(|row| row.minimum_detectable_effect),
            })
        });
        json!({
            "models": self.models,
            "metrics": self.metrics,
            "prompt_sets": sets.collect::<Vec<_>>(),
            "baselines": self.config.baselines,
            "bootstrap": self.config.bootstrap,
            "seed": self.config.seed,
            "win_rates": main.map(cell).collect::<Vec<_>>(),
            "means": self.means.iter().map(|row| json!({
                "prompt_set": row.prompt_set,
                "model": row.model,
                "metric": row.metric,
                "statistic": row.statistic.as_str(),
                "prompts": row.prompts,
                "mean": row.mean,
                "min": row.min,
                "max": row.max,
                "std": row.std,
            })).collect::<Vec<_>>(),
            "metric_agreement": self.agreement.iter().map(|row| json!({
                "prompt_set": row.prompt_set,
                "metric_a": row.metric_a,
                "metric_b": row.metric_b,
                "prompts": row.prompts,
                "pairs": row.pairs,
                "agreement": row.agreement,
                "agreement_low": row.agreement_low,
                "agreement_high": row.agreement_high,
                "kappa": row.kappa,
            })).collect::<Vec<_>>(),
            "hps_v2": self.hps_v2.iter().map(benchmark).collect::<Vec<_>>(),
            "notes": self.notes,
        })
    }
}

/// The last ten columns, in file order.
fn numbers(row: &WinRateRow) -> [f64; 10] {
    [
        row.strict_rate,
        row.win_rate,
        row.win_rate_low,
        row.win_rate_high,
        row.p_value,
        row.p_holm,
        row.mean_difference,
        row.mean_difference_low,
        row.mean_difference_high,
        row.minimum_detectable_effect,
    ]
}

fn benchmark(row: &BenchmarkRow) -> Value {
    let styles = Style::ALL.iter().zip(&row.styles).filter_map(|(style, mean)| {
        let StyleMean { prompts, mean, std } = (*mean)?;
        Some((style.name().to_owned(), json!({ "prompts": prompts, "mean": mean, "std": std })))
    });
    json!({
        "metric": row.metric,
        "model": row.model,
        "styles": styles.collect::<serde_json::Map<_, _>>(),
        "average": row.average,
    })
}

fn cell(row: &WinRateRow) -> Value {
    json!({
        "prompt_set": row.prompt_set,
        "model_a": row.model_a,
        "model_b": row.model_b,
        "metric": row.metric,
        "seeds": row.seeds,
        "prompts": row.prompts,
        "excluded": row.excluded,
        "wins": row.wins,
        "ties": row.ties,
        "losses": row.losses,
        "strict_rate": row.strict_rate,
        "win_rate": row.win_rate,
        "win_rate_low": row.win_rate_low,
        "win_rate_high": row.win_rate_high,
        "p_value": row.p_value,
        "p_holm": row.p_holm,
        "mean_difference": row.mean_difference,
        "mean_difference_low": row.mean_difference_low,
        "mean_difference_high": row.mean_difference_high,
    })
}
