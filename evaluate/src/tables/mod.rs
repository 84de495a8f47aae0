//! From scores to the tables of the paper: win rates of every pair of models with intervals and
//! tests, and mean scores.
//!
//! | what | module |
//! |---|---|
//! | two models' scores joined, by Polars | `frames` |
//! | two models compared prompt by prompt | `comparison` |
//! | comparisons counted and tested | `cells` |
//! | mean scores | `means` |
//! | how far metrics agree | `agreement` |
//! | the benchmark of HPS v2 | `hps_v2` |
//! | what is missing, in sentences | `notes` |
//! | a table as cells | `grid` |
//! | the layouts of the paper, and more | `layout` |
//! | Markdown, LaTeX and the terminal | `render` |
//! | the files | `files` |

mod agreement;
mod cells;
mod comparison;
mod files;
mod frames;
mod grid;
mod hps_v2;
mod layout;
mod means;
mod notes;
mod render;

use std::path::PathBuf;

use polars::error::PolarsError;
use runkit::files::FileError;
use schemas::evaluation::EvaluationError;
use schemas::scores::ScoreRow;
use schemas::winrates::WinRateRow;

pub use agreement::MetricAgreement;
pub use files::WIN_RATES_FILE;
pub use hps_v2::{BenchmarkRow, StyleMean};
pub use means::MeanRow;

use crate::prompts::Style;
use crate::scores_index::{IndexError, ScoresIndex, Selection};
use frames::Frames;

/// The name of all sets together.
pub const ALL_SETS: &str = "all";
/// A difference is significant if its corrected p-value is below this.
pub const SIGNIFICANCE: f64 = 0.05;

/// What the tables show.
#[derive(Clone, Debug, PartialEq)]
pub struct TablesConfig {
    /// The models and their order: a later model is compared with an earlier one. By default all,
    /// in order of appearance.
    pub models: Option<Vec<String>>,
    /// The metrics and their order. By default all, in order of appearance.
    pub metrics: Option<Vec<String>>,
    /// The models of the column groups of the tables of ablations (the paper's Tables 3 and 4).
    pub baselines: Vec<String>,
    /// Resamples of the bootstrap.
    pub bootstrap: usize,
    /// Its seed.
    pub seed: u64,
    /// Whether there is a table as HPS v2's benchmark prints it.
    pub hps_v2: bool,
}

impl Default for TablesConfig {
    fn default() -> Self {
        Self {
            models: None,
            metrics: None,
            baselines: Vec::new(),
            bootstrap: 10_000,
            seed: 0,
            hps_v2: false,
        }
    }
}

impl TablesConfig {
    /// Whether tables of these models and sets can be made, before there are scores of them.
    ///
    /// # Errors
    /// When a baseline is not a model or is named twice, a set has the name of all sets together,
    /// the bootstrap has no resamples, or the table of HPS v2 has no set.
    pub fn check(&self, models: &[String], sets: &[String]) -> Result<(), TablesError> {
        if self.bootstrap == 0 {
            return Err(TablesError::NoResamples);
        }
        for (number, name) in self.baselines.iter().enumerate() {
            if !models.contains(name) {
                let (what, name, known) = ("model", name.clone(), models.to_vec());
                return Err(IndexError::Unknown { what, name, known }.into());
            }
            if self.baselines.iter().take(number).any(|other| other == name) {
                return Err(IndexError::Twice { what: "baseline", name: name.clone() }.into());
            }
        }
        if sets.len() > 1 && sets.iter().any(|set| set == ALL_SETS) {
            return Err(TablesError::SetNamedAll);
        }
        if self.hps_v2 && sets.iter().all(|set| Style::of(set).is_none()) {
            return Err(TablesError::NoStyle { found: sets.to_vec() });
        }
        Ok(())
    }
}

/// Why there are no tables.
#[derive(Debug, thiserror::Error)]
pub enum TablesError {
    /// The scores cannot be indexed.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// A set has the name of all sets together.
    #[error(
        "a set of prompts is called {ALL_SETS:?}, which stands for all sets together; hint: rename \
         its file and score it again"
    )]
    SetNamedAll,
    /// A bootstrap without a resample.
    #[error("the bootstrap needs at least one resample; hint: 10000 is usual")]
    NoResamples,
    /// No set is a style of HPS v2's benchmark.
    #[error(
        "--preset hps-v2 needs scores of the sets anime, concept-art, paintings or photo, found \
         those of {}; hint: score them with --prompts FILE,name=anime",
        runkit::text::choices(found)
    )]
    NoStyle {
        /// The sets.
        found: Vec<String>,
    },
    /// Polars fails.
    #[error("joining scores: {0}")]
    Polars(#[from] PolarsError),
    /// A Parquet file cannot be read or written.
    #[error(transparent)]
    Parquet(#[from] EvaluationError),
    /// A file cannot be written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The CSV cannot be made.
    #[error("cannot write {}: {cause}", path.display())]
    Csv {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        cause: csv::Error,
    },
}

/// Win rates and means of one evaluation.
#[derive(Clone, Debug, PartialEq)]
pub struct Tables {
    /// Every cell: sets, all sets together, categories; within each by statistic, pair of models in
    /// the order of the paper, and metric.
    pub win_rates: Vec<WinRateRow>,
    /// Mean scores of each model.
    pub means: Vec<MeanRow>,
    /// How far every two metrics agree.
    pub agreement: Vec<MetricAgreement>,
    /// The table of HPS v2's benchmark, if it was asked for.
    pub hps_v2: Vec<BenchmarkRow>,
    /// The models, in the order of the tables.
    pub models: Vec<String>,
    /// The metrics.
    pub metrics: Vec<String>,
    /// The sets of prompts.
    pub sets: Vec<String>,
    /// What was excluded and why, a sentence each.
    pub notes: Vec<String>,
    /// How the tables were made.
    pub config: TablesConfig,
}

impl Tables {
    /// Counts, tests and averages. The order of the rows decides the order of the names and nothing
    /// else.
    ///
    /// # Errors
    /// When there are no scores, an image has two scores by one metric, a score is not finite, or a
    /// name of the configuration is unknown or named twice.
    pub fn compute(scores: &[ScoreRow], config: &TablesConfig) -> Result<Self, TablesError> {
        let selection =
            Selection { models: config.models.as_deref(), metrics: config.metrics.as_deref() };
        let index = ScoresIndex::new(scores, selection)?;
        let [models, metrics, sets] = [&index.models, &index.metrics, &index.sets]
            .map(|names| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>());
        config.check(&models, &sets)?;
        let (win_rates, empty) = cells::win_rates(&index, &Frames::new(&index)?, config)?;
        let means = means::means(&index);
        let agreement = agreement::agreement(&index);
        let hps_v2 = if config.hps_v2 { hps_v2::rows(&index) } else { Vec::new() };
        let mut notes = notes::notes(&index, &empty);
        notes.extend(agreement::notes(&agreement));
        Ok(Self {
            win_rates,
            means,
            agreement,
            hps_v2,
            models,
            metrics,
            sets,
            notes,
            config: config.clone(),
        })
    }

    /// The sets of the cells: each set, and [`ALL_SETS`] if there are several.
    fn scopes(&self) -> Vec<&str> {
        let all = (self.sets.len() > 1).then_some(ALL_SETS);
        self.sets.iter().map(String::as_str).chain(all).collect()
    }
}
