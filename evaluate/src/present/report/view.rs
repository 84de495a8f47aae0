//! The numbers of the tables as the page shows them.

use schemas::winrates::{Statistic, WinRateRow};
use serde::Serialize;

use crate::present::figures::{Outcome, class, pairs, sets};
use crate::tables::{ALL_SETS, MeanRow};

/// The tables of one set of prompts.
#[derive(Debug, Serialize)]
pub(super) struct SetView<'a> {
    /// The name of the set.
    set: &'a str,
    /// As a sentence names it.
    name: &'a str,
    metrics: Vec<&'a str>,
    pairs: Vec<PairView<'a>>,
    means: Vec<MeansView<'a>>,
}

#[derive(Debug, Serialize)]
struct PairView<'a> {
    a: &'a str,
    b: &'a str,
    prompts: i64,
    seeds: i64,
    /// In words: on how many metrics A is better, and on how many significantly.
    verdict: String,
    /// The mean win rate, by which the table can be sorted.
    mean: f64,
    /// For each metric of the set; `None` if the two were not compared.
    cells: Vec<Option<CellView>>,
}

#[derive(Debug, Serialize)]
struct CellView {
    metric: String,
    /// The class of its [`Outcome`].
    outcome: &'static str,
    value: f64,
    rate: String,
    interval: String,
    record: String,
    strict: String,
    p_value: String,
    p_holm: String,
    difference: String,
    mean_of_n: String,
    all_pairs: String,
    minimum_detectable: String,
    excluded: i64,
}

#[derive(Debug, Serialize)]
struct MeansView<'a> {
    model: &'a str,
    cells: Vec<Option<MeanView>>,
}

#[derive(Debug, Serialize)]
struct MeanView {
    metric: String,
    value: f64,
    mean: String,
    std: String,
    /// The mean of single images instead of the best.
    of_all: String,
    extent: String,
    highest: bool,
}

/// A name with the class of its colour.
#[derive(Debug, Serialize)]
pub(super) struct ModelView<'a> {
    name: &'a str,
    class: String,
}

/// The models in their colours.
pub(super) fn models<'a>(names: &[&'a str]) -> Vec<ModelView<'a>> {
    names.iter().enumerate().map(|(model, name)| ModelView { name, class: class(model) }).collect()
}

/// The tables of every set, all sets together first.
pub(super) fn tables<'a>(
    metrics: &[&'a str],
    win_rates: &'a [WinRateRow],
    means: &'a [MeanRow],
) -> Vec<SetView<'a>> {
    sets(win_rates).into_iter().map(|set| of_set(set, metrics, win_rates, means)).collect()
}

fn of_set<'a>(
    set: &'a str,
    metrics: &[&'a str],
    win_rates: &'a [WinRateRow],
    means: &'a [MeanRow],
) -> SetView<'a> {
    let rows: Vec<&WinRateRow> =
        win_rates.iter().filter(|row| row.prompt_set == set && row.category.is_none()).collect();
    let views = pairs(win_rates).into_iter().map(|pair| of_pair(pair, metrics, &rows));
    SetView {
        set,
        name: if set == ALL_SETS { "all prompts" } else { set },
        metrics: metrics.to_vec(),
        pairs: views.filter(|view| view.cells.iter().any(Option::is_some)).collect(),
        means: of_means(set, metrics, means),
    }
}

fn of_pair<'a>([a, b]: [&'a str; 2], metrics: &[&str], rows: &[&WinRateRow]) -> PairView<'a> {
    let row = |metric: &str, statistic: Statistic| {
        let mut of_pair = rows.iter().filter(|row| [&*row.model_a, &*row.model_b] == [a, b]);
        of_pair.find(|row| row.metric == metric && row.statistic == statistic)
    };
    let best: Vec<&WinRateRow> =
        metrics.iter().filter_map(|metric| row(metric, Statistic::BestOfN).copied()).collect();
    let rate = |metric: &str, statistic| {
        row(metric, statistic).map_or_else(|| "–".to_owned(), |row| percent(row.win_rate))
    };
    let cell = |metric: &&str| {
        let best = row(metric, Statistic::BestOfN).filter(|row| row.prompts > 0)?;
        let rates = [Statistic::MeanOfN, Statistic::AllPairs].map(|other| rate(metric, other));
        Some(CellView::new(best, rates))
    };
    let compared: Vec<&&WinRateRow> = best.iter().filter(|row| row.prompts > 0).collect();
    let ahead = compared.iter().filter(|row| row.win_rate > 0.5).count();
    let count = |outcome| compared.iter().filter(|row| Outcome::of(row) == outcome).count();
    let rates: f64 = compared.iter().map(|row| row.win_rate).sum();
    PairView {
        a,
        b,
        prompts: best.iter().map(|row| row.prompts).max().unwrap_or(0),
        seeds: best.iter().map(|row| row.seeds).max().unwrap_or(0),
        verdict: verdict([ahead, compared.len()], count(Outcome::Ahead), count(Outcome::Behind)),
        mean: rates / compared.len().max(1) as f64,
        cells: metrics.iter().map(cell).collect(),
    }
}

fn verdict([ahead, of]: [usize; 2], better: usize, worse: usize) -> String {
    let significant = match (better, worse) {
        (0, 0) => "none significant".to_owned(),
        (better, 0) => format!("{better} significant"),
        (0, worse) => format!("significantly worse on {worse}"),
        (better, worse) => format!("{better} significant, significantly worse on {worse}"),
    };
    format!("better on {ahead} of {of} metrics, {significant}")
}

impl CellView {
    fn new(row: &WinRateRow, [mean_of_n, all_pairs]: [String; 2]) -> Self {
        Self {
            metric: row.metric.clone(),
            outcome: Outcome::of(row).class(),
            value: row.win_rate,
            rate: percent(row.win_rate),
            interval: format!("{}–{}", percent(row.win_rate_low), percent(row.win_rate_high)),
            record: format!("{} / {} / {}", row.wins, row.ties, row.losses),
            strict: percent(row.strict_rate),
            p_value: probability(row.p_value),
            p_holm: probability(row.p_holm),
            difference: format!(
                "{} [{}, {}]",
                signed(row.mean_difference),
                signed(row.mean_difference_low),
                signed(row.mean_difference_high)
            ),
            mean_of_n,
            all_pairs,
            minimum_detectable: format!("±{}", percent(row.minimum_detectable_effect)),
            excluded: row.excluded,
        }
    }
}

fn of_means<'a>(set: &str, metrics: &[&str], means: &'a [MeanRow]) -> Vec<MeansView<'a>> {
    let of_set: Vec<&MeanRow> = means.iter().filter(|row| row.prompt_set == set).collect();
    let find = |model: &str, metric: &str, statistic: Statistic| {
        of_set
            .iter()
            .find(|row| row.model == model && row.metric == metric && row.statistic == statistic)
    };
    let mut models: Vec<&str> = Vec::new();
    for row in &of_set {
        if !models.contains(&&*row.model) {
            models.push(&row.model);
        }
    }
    let highest = |metric: &str| {
        let best = models.iter().filter_map(|model| find(model, metric, Statistic::BestOfN));
        best.map(|row| row.mean).fold(f64::NEG_INFINITY, f64::max)
    };
    let cell = |model: &str, metric: &str| {
        let row = find(model, metric, Statistic::BestOfN).filter(|row| row.mean.is_finite())?;
        let of_all = find(model, metric, Statistic::MeanOfN);
        Some(MeanView {
            metric: metric.to_owned(),
            value: row.mean,
            mean: number(row.mean),
            std: number(row.std),
            of_all: of_all.map_or_else(|| "–".to_owned(), |row| number(row.mean)),
            extent: format!(
                "{} to {} over {} prompts",
                number(row.min),
                number(row.max),
                row.prompts
            ),
            highest: row.mean >= highest(metric),
        })
    };
    let row = |&model: &&'a str| MeansView {
        model,
        cells: metrics.iter().map(|metric| cell(model, metric)).collect(),
    };
    models.iter().map(row).collect()
}

/// A rate in per cent, without the sign.
fn percent(rate: f64) -> String {
    format!("{:.1}", 100.0 * rate)
}

/// A score with four significant digits.
fn number(value: f64) -> String {
    let decimals = if value.abs() < 1.0 {
        4
    } else if value.abs() < 100.0 {
        3
    } else {
        1
    };
    format!("{value:.decimals$}")
}

fn signed(value: f64) -> String {
    format!("{}{}", if value < 0.0 { "−" } else { "+" }, number(value.abs()))
}

/// A p value as papers print it.
fn probability(p: f64) -> String {
    if p < 0.0001 { "<0.0001".to_owned() } else { format!("{p:.4}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts_are_words() {
        assert_eq!(verdict([4, 4], 3, 0), "better on 4 of 4 metrics, 3 significant");
        assert_eq!(verdict([1, 4], 0, 0), "better on 1 of 4 metrics, none significant");
        assert_eq!(
            verdict([1, 4], 1, 2),
            "better on 1 of 4 metrics, 1 significant, significantly worse on 2"
        );
    }

    #[test]
    fn numbers_have_four_significant_digits() {
        assert_eq!([percent(0.6127), percent(1.0)], ["61.3", "100.0"]);
        assert_eq!([number(0.20571), number(4.57), number(-123.45)], ["0.2057", "4.570", "-123.5"]);
        assert_eq!([signed(0.01), signed(-0.01)], ["+0.0100", "−0.0100"]);
        assert_eq!([probability(0.5), probability(1e-9)], ["0.5000", "<0.0001"]);
    }
}
