//! `winrates.parquet` of an evaluation: one row for each pair of models, set of prompts, metric and
//! statistic.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use arrow::array::{Array as _, ArrayRef, Float64Array, Int64Array, StringArray};
use arrow::datatypes::{Float64Type, Int64Type};
use arrow::error::ArrowError;

use crate::columns::{Column, win_rates_columns};
use crate::evaluation::{Columns, Record, RecordFile, RecordWriter, categories};

/// How a prompt is decided between two models.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Statistic {
    /// By the best image of each model.
    BestOfN,
    /// By the mean over the images of each model.
    MeanOfN,
    /// By all pairs of an image of one model and an image of the other.
    AllPairs,
    /// By the images that another metric selected.
    CrossSelection,
}

impl Statistic {
    /// All statistics, in the order of the tables.
    pub const ALL: [Self; 4] = [Self::BestOfN, Self::MeanOfN, Self::AllPairs, Self::CrossSelection];

    /// The value in the column `statistic`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::BestOfN => "best_of_n",
            Self::MeanOfN => "mean_of_n",
            Self::AllPairs => "all_pairs",
            Self::CrossSelection => "cross_selection",
        }
    }

    /// One sentence for the reference page.
    pub fn meaning(self) -> &'static str {
        match self {
            Self::BestOfN => {
                "the paper's: the highest score among the images of one model against the highest \
                 among those of the other"
            }
            Self::MeanOfN => "mean score of one model's images against that of the other's",
            Self::AllPairs => {
                "every image of one model against every image of the other; the rates are means \
                 over prompts of the fraction of pairs won, and a prompt is won if more than half of \
                 its pairs are won"
            }
            Self::CrossSelection => {
                "`selected_by` selects the best image of each model, `metric` scores the two"
            }
        }
    }
}

impl fmt::Display for Statistic {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

/// A statistic that this version does not know.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown statistic {0:?}")]
pub struct UnknownStatistic(pub String);

impl FromStr for Statistic {
    type Err = UnknownStatistic;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let known = Self::ALL.into_iter().find(|statistic| statistic.as_str() == text);
        known.ok_or_else(|| UnknownStatistic(text.to_owned()))
    }
}

/// One cell: model A against model B on one set of prompts by one metric.
/// [`win_rates_columns`] says what each value means.
#[derive(Clone, Debug, PartialEq)]
pub struct WinRateRow {
    /// The set of prompts; `all` is all sets together.
    pub prompt_set: String,
    /// The category of the prompts; `None` for the whole set.
    pub category: Option<String>,
    /// The model whose wins are counted.
    pub model_a: String,
    /// The model it is compared with.
    pub model_b: String,
    /// The metric that scores the images.
    pub metric: String,
    /// How a prompt is decided.
    pub statistic: Statistic,
    /// The metric that selected the images.
    pub selected_by: Option<String>,
    /// Images of each prompt.
    pub seeds: i64,
    /// Prompts compared.
    pub prompts: i64,
    /// Prompts not compared.
    pub excluded: i64,
    /// Prompts that A wins.
    pub wins: i64,
    /// Prompts with exact ties.
    pub ties: i64,
    /// Prompts that B wins.
    pub losses: i64,
    /// Wins alone, 0 to 1.
    pub strict_rate: f64,
    /// Wins and half the ties, 0 to 1.
    pub win_rate: f64,
    /// Lower end of the 95 % Wilson interval of the win rate.
    pub win_rate_low: f64,
    /// Upper end of that interval.
    pub win_rate_high: f64,
    /// Exact two-sided sign test.
    pub p_value: f64,
    /// The p-value with Holm's correction.
    pub p_holm: f64,
    /// Mean difference A minus B, in the metric's unit.
    pub mean_difference: f64,
    /// Lower end of the 95 % bootstrap interval of the mean difference.
    pub mean_difference_low: f64,
    /// Upper end of that interval.
    pub mean_difference_high: f64,
    /// Smallest distance of a win rate from 0.5 that is detected at 80 % power.
    pub minimum_detectable_effect: f64,
}

/// Reads `winrates.parquet`.
pub type WinRatesFile = RecordFile<WinRateRow>;
/// Writes `winrates.parquet`.
pub type WinRatesWriter = RecordWriter<WinRateRow>;

impl Record for WinRateRow {
    const SCHEMA_VERSION: u32 = 2;
    const WHAT: &'static str = "win rates";
    const HINT: &'static str =
        "name the winrates.parquet that `evaluate tables` or `evaluate run` wrote";

    fn columns() -> Vec<Column> {
        win_rates_columns()
    }

    fn check(&self) -> Result<(), String> {
        let fractions = [
            ("strict_rate", self.strict_rate),
            ("win_rate", self.win_rate),
            ("win_rate_low", self.win_rate_low),
            ("win_rate_high", self.win_rate_high),
            ("p_value", self.p_value),
            ("p_holm", self.p_holm),
            ("minimum_detectable_effect", self.minimum_detectable_effect),
        ];
        if let Some((name, found)) =
            fractions.iter().find(|(_, found)| !(0.0..=1.0).contains(found))
        {
            return Err(format!("{name} is {found}, expected a number from 0 to 1"));
        }
        let numbers = [
            ("mean_difference", self.mean_difference),
            ("mean_difference_low", self.mean_difference_low),
            ("mean_difference_high", self.mean_difference_high),
        ];
        if let Some((name, found)) = numbers.iter().find(|(_, number)| !number.is_finite()) {
            return Err(format!("{name} is {found}, expected a number"));
        }
        let counts = [self.wins, self.ties, self.losses, self.prompts];
        let sum = counts.iter().take(3).try_fold(0_i64, |sum, &count| sum.checked_add(count));
        if counts.iter().any(|&count| count < 0) || sum != Some(self.prompts) {
            return Err(format!(
                "{} wins, {} ties and {} losses do not make {} prompts",
                self.wins, self.ties, self.losses, self.prompts
            ));
        }
        Ok(())
    }

    fn to_arrays(rows: &[Self]) -> Vec<ArrayRef> {
        let text = |value: fn(&Self) -> Option<&str>| categories(rows.iter().map(value));
        let int64 = |value: fn(&Self) -> i64| -> ArrayRef {
            Arc::new(Int64Array::from_iter_values(rows.iter().map(value)))
        };
        let float64 = |value: fn(&Self) -> f64| -> ArrayRef {
            Arc::new(Float64Array::from_iter_values(rows.iter().map(value)))
        };
        vec![
            text(|row| Some(&row.prompt_set)),
            text(|row| row.category.as_deref()),
            text(|row| Some(&row.model_a)),
            text(|row| Some(&row.model_b)),
            text(|row| Some(&row.metric)),
            text(|row| Some(row.statistic.as_str())),
            text(|row| row.selected_by.as_deref()),
            int64(|row| row.seeds),
            int64(|row| row.prompts),
            int64(|row| row.excluded),
            int64(|row| row.wins),
            int64(|row| row.ties),
            int64(|row| row.losses),
            float64(|row| row.strict_rate),
            float64(|row| row.win_rate),
            float64(|row| row.win_rate_low),
            float64(|row| row.win_rate_high),
            float64(|row| row.p_value),
            float64(|row| row.p_holm),
            float64(|row| row.mean_difference),
            float64(|row| row.mean_difference_low),
            float64(|row| row.mean_difference_high),
            float64(|row| row.minimum_detectable_effect),
        ]
    }

    fn from_arrays(columns: &Columns<'_>) -> Result<Vec<Self>, ArrowError> {
        let int64 = |name: &str| columns.number::<Int64Type>(name);
        let float64 = |name: &str| columns.number::<Float64Type>(name);
        let [prompt_set, metric] = [columns.text("prompt_set")?, columns.text("metric")?];
        let [model_a, model_b] = [columns.text("model_a")?, columns.text("model_b")?];
        let [category, selected_by] = [columns.text("category")?, columns.text("selected_by")?];
        let statistic = columns.text("statistic")?;
        let [seeds, prompts] = [int64("seeds")?, int64("prompts")?];
        let [wins, ties, losses] = [int64("wins")?, int64("ties")?, int64("losses")?];
        let excluded = int64("excluded")?;
        let [strict_rate, win_rate] = [float64("strict_rate")?, float64("win_rate")?];
        let [win_rate_low, win_rate_high] = [float64("win_rate_low")?, float64("win_rate_high")?];
        let [p_value, p_holm] = [float64("p_value")?, float64("p_holm")?];
        let mean_difference = float64("mean_difference")?;
        let mean_difference_low = float64("mean_difference_low")?;
        let mean_difference_high = float64("mean_difference_high")?;
        let minimum_detectable_effect = float64("minimum_detectable_effect")?;
        let optional = |text: &StringArray, index: usize| {
            text.is_valid(index).then(|| text.value(index).to_owned())
        };
        let row = |index: usize| {
            let parsed = statistic.value(index).parse::<Statistic>();
            Ok(Self {
                prompt_set: prompt_set.value(index).to_owned(),
                category: optional(category, index),
                model_a: model_a.value(index).to_owned(),
                model_b: model_b.value(index).to_owned(),
                metric: metric.value(index).to_owned(),
                statistic: parsed.map_err(|error| ArrowError::ParseError(error.to_string()))?,
                selected_by: optional(selected_by, index),
                seeds: seeds.value(index),
                prompts: prompts.value(index),
                excluded: excluded.value(index),
                wins: wins.value(index),
                ties: ties.value(index),
                losses: losses.value(index),
                strict_rate: strict_rate.value(index),
                win_rate: win_rate.value(index),
                win_rate_low: win_rate_low.value(index),
                win_rate_high: win_rate_high.value(index),
                p_value: p_value.value(index),
                p_holm: p_holm.value(index),
                mean_difference: mean_difference.value(index),
                mean_difference_low: mean_difference_low.value(index),
                mean_difference_high: mean_difference_high.value(index),
                minimum_detectable_effect: minimum_detectable_effect.value(index),
            })
        };
        (0..columns.num_rows()).map(row).collect()
    }
}
