//! Comparisons counted, tested and given intervals.

use std::collections::HashMap;

use rayon::prelude::*;
use schemas::winrates::{Statistic, WinRateRow};

use super::comparison::{ComparedPrompt, Comparison, compare};
use super::frames::Frames;
use super::{ALL_SETS, TablesConfig, TablesError};
use crate::scores_index::ScoresIndex;
use crate::statistics::{
    Resampled, Resamples, holm, interval, minimum_detectable_effect, sign_test, wilson,
};

/// A later model against an earlier one.
struct Pair {
    a: usize,
    b: usize,
    comparisons: Vec<Comparison>,
}

/// Prompts that are counted together.
struct Scope {
    kind: ScopeKind,
    prompt_set: String,
    category: Option<String>,
    /// Ascending.
    prompts: Vec<usize>,
}

/// Holm's correction is over the rows of one kind and statistic: those of one table.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum ScopeKind {
    Set,
    AllSets,
    Category,
}

/// A cell without prompts.
pub(super) struct EmptyCell {
    pub(super) models: [usize; 2],
    pub(super) metric: usize,
    pub(super) prompt_set: String,
}

/// All cells, and those of whole sets without a prompt.
pub(super) fn win_rates(
    index: &ScoresIndex<'_>,
    frames: &Frames,
    config: &TablesConfig,
) -> Result<(Vec<WinRateRow>, Vec<EmptyCell>), TablesError> {
    let models = 0..index.models.len();
    let pairs: Vec<(usize, usize)> = models.flat_map(|a| (0..a).map(move |b| (a, b))).collect();
    let compared = |(a, b)| {
        let [of_a, of_b] = frames.of_both([a, b])?;
        Ok::<_, TablesError>(Pair { a, b, comparisons: compare(&of_a, &of_b) })
    };
    let pairs: Vec<Pair> =
        pairs.into_par_iter().map(compared).collect::<Result<_, TablesError>>()?;

    let (mut rows, mut families, mut empty) = (Vec::new(), Vec::new(), Vec::new());
    // The resamples of all sets together are those of the sets side by side: sets are strata.
    let mut strata: Vec<Option<Resampled>> = Vec::new();
    for scope in scopes(index) {
        let mut cells = cells(&scope, &pairs, index);
        let resampled = match scope.kind {
            ScopeKind::AllSets => std::mem::take(&mut strata),
            _ => resample(&scope, &cells, config),
        };
        if scope.kind == ScopeKind::Set && index.sets.len() > 1 {
            merge(&mut strata, &resampled);
        }
        let intervals: Vec<(f64, f64)> = resampled
            .into_par_iter()
            .map(|resampled| interval(resampled.map(|it| it.means()).unwrap_or_default()))
            .collect();
        for cell in &mut cells {
            let Some(row) = &mut cell.row else { continue };
            let (low, high) = intervals.get(cell.column).copied().unwrap_or_default();
            (row.mean_difference_low, row.mean_difference_high) = (low, high);
        }
        for cell in cells {
            match cell.row {
                Some(row) => {
                    families.push((scope.kind, row.statistic));
                    rows.push(row);
                }
                None if scope.kind == ScopeKind::Set && cell.statistic == Statistic::BestOfN => {
                    empty.push(EmptyCell {
                        models: cell.models,
                        metric: cell.metric,
                        prompt_set: scope.prompt_set.clone(),
                    });
                }
                None => {}
            }
        }
    }
    correct(&mut rows, &families);
    Ok((rows, empty))
}

/// The sets, all of them together if there are several, and the categories of each.
fn scopes(index: &ScoresIndex<'_>) -> Vec<Scope> {
    let prompts = || index.prompts.iter().enumerate();
    let of_set = |(set, &name): (usize, &&str)| Scope {
        kind: ScopeKind::Set,
        prompt_set: name.to_owned(),
        category: None,
        prompts: prompts().filter(|(_, it)| it.set == set).map(|(prompt, _)| prompt).collect(),
    };
    let mut scopes: Vec<Scope> = index.sets.iter().enumerate().map(of_set).collect();
    if scopes.len() > 1 {
        scopes.push(Scope {
            kind: ScopeKind::AllSets,
            prompt_set: ALL_SETS.to_owned(),
            category: None,
            prompts: prompts().map(|(prompt, _)| prompt).collect(),
        });
    }
    for (set, &name) in index.sets.iter().enumerate() {
        let mut categories = std::collections::BTreeMap::<&str, Vec<usize>>::new();
        for (number, prompt) in prompts().filter(|(_, prompt)| prompt.set == set) {
            if let Some(category) = prompt.category {
                categories.entry(category).or_default().push(number);
            }
        }
        scopes.extend(categories.into_iter().map(|(category, prompts)| Scope {
            kind: ScopeKind::Category,
            prompt_set: name.to_owned(),
            category: Some(category.to_owned()),
            prompts,
        }));
    }
    scopes
}

/// A cell in the making.
struct Cell<'a> {
    models: [usize; 2],
    metric: usize,
    statistic: Statistic,
    compared: Vec<&'a ComparedPrompt>,
    /// Its index among the columns that are resampled.
    column: usize,
    /// `None` if no prompt can be compared.
    row: Option<WinRateRow>,
}

/// The cells of a scope by statistic, pair and metric. Categories have the paper's statistic only.
fn cells<'a>(scope: &Scope, pairs: &'a [Pair], index: &ScoresIndex<'_>) -> Vec<Cell<'a>> {
    let mut inside = vec![false; index.prompts.len()];
    for &prompt in &scope.prompts {
        inside[prompt] = true;
    }
    let mut columns = HashMap::new();
    let mut cells = Vec::new();
    for statistic in Statistic::ALL {
        if scope.kind == ScopeKind::Category && statistic != Statistic::BestOfN {
            continue;
        }
        for (number, pair) in pairs.iter().enumerate() {
            let present = |prompt: usize| {
                [pair.a, pair.b]
                    .iter()
                    .any(|&model| !index.prompts[prompt].images[model].is_empty())
            };
            let known = scope.prompts.iter().filter(|prompt| present(**prompt)).count();
            let of_statistic = |comparison: &&Comparison| comparison.statistic == statistic;
            for comparison in pair.comparisons.iter().filter(of_statistic) {
                let compared: Vec<&ComparedPrompt> =
                    comparison.prompts.iter().filter(|it| inside[it.prompt]).collect();
                // All pairs and means differ by the same numbers.
                let kind = match statistic {
                    Statistic::AllPairs => Statistic::MeanOfN,
                    other => other,
                };
                let next = columns.len();
                let key = (kind, number, comparison.metric, comparison.selected_by);
                let column = *columns.entry(key).or_insert(next);
                let counts = (!compared.is_empty()).then(|| Counts::new(&compared, known));
                let row = counts.map(|counts| row(scope, pair, comparison, &counts, index));
                cells.push(Cell {
                    models: [pair.a, pair.b],
                    metric: comparison.metric,
                    statistic,
                    compared,
                    column,
                    row,
                });
            }
        }
    }
    cells
}

/// What the compared prompts of a cell come to.
struct Counts {
    seeds: usize,
    prompts: usize,
    excluded: usize,
    wins: usize,
    losses: usize,
    strict_rate: f64,
    win_rate: f64,
    mean_difference: f64,
}

impl Counts {
    /// Of at least one prompt; the scope has `known` prompts of one model or both.
    fn new(compared: &[&ComparedPrompt], known: usize) -> Self {
        let prompts = compared.len();
        let mean = |value: &dyn Fn(&ComparedPrompt) -> f64| {
            compared.iter().map(|it| value(it)).sum::<f64>() / prompts as f64
        };
        // A prompt is won by the model that wins more of its comparisons.
        let losses_of = |it: &ComparedPrompt| it.pairs - it.greater - it.equal;
        Self {
            seeds: compared.iter().map(|it| it.seeds).max().unwrap_or(0),
            prompts,
            excluded: known - prompts,
            wins: compared.iter().filter(|it| it.greater > losses_of(it)).count(),
            losses: compared.iter().filter(|it| it.greater < losses_of(it)).count(),
            strict_rate: mean(&|it| it.greater as f64 / it.pairs as f64),
            win_rate: mean(&|it| (it.greater as f64 + 0.5 * it.equal as f64) / it.pairs as f64),
            mean_difference: mean(&|it| it.difference),
        }
    }
}

fn row(
    scope: &Scope,
    pair: &Pair,
    comparison: &Comparison,
    counts: &Counts,
    index: &ScoresIndex<'_>,
) -> WinRateRow {
    let name = |names: &[&str], number: usize| names[number].to_owned();
    let (win_rate_low, win_rate_high) = wilson(counts.win_rate, counts.prompts as u64);
    let p_value = sign_test(counts.wins as u64, counts.losses as u64);
    WinRateRow {
        prompt_set: scope.prompt_set.clone(),
        category: scope.category.clone(),
        model_a: name(&index.models, pair.a),
        model_b: name(&index.models, pair.b),
        metric: name(&index.metrics, comparison.metric),
        statistic: comparison.statistic,
        selected_by: comparison.selected_by.map(|metric| name(&index.metrics, metric)),
        seeds: counts.seeds as i64,
        prompts: counts.prompts as i64,
        excluded: counts.excluded as i64,
        wins: counts.wins as i64,
        ties: (counts.prompts - counts.wins - counts.losses) as i64,
        losses: counts.losses as i64,
        strict_rate: counts.strict_rate,
        win_rate: counts.win_rate,
        win_rate_low,
        win_rate_high,
        p_value,
        p_holm: p_value,
        mean_difference: counts.mean_difference,
        mean_difference_low: 0.0,
        mean_difference_high: 0.0,
        minimum_detectable_effect: minimum_detectable_effect(counts.prompts as u64),
    }
}

/// Resamples the prompts of a scope; `None` for a column without a prompt.
fn resample(scope: &Scope, cells: &[Cell<'_>], config: &TablesConfig) -> Vec<Option<Resampled>> {
    let position_of: HashMap<usize, usize> = scope.prompts.iter().copied().zip(0..).collect();
    let width = cells.iter().map(|cell| cell.column + 1).max().unwrap_or(0);
    let mut columns: Vec<Option<Vec<Option<f64>>>> = vec![None; width];
    for cell in cells.iter().filter(|cell| cell.row.is_some()) {
        let Some(column @ None) = columns.get_mut(cell.column) else { continue };
        let mut values = vec![None; scope.prompts.len()];
        for compared in &cell.compared {
            if let Some(position) = position_of.get(&compared.prompt) {
                values[*position] = Some(compared.difference);
            }
        }
        *column = Some(values);
    }
    let filled: Vec<bool> = columns.iter().map(Option::is_some).collect();
    let values: Vec<Vec<Option<f64>>> = columns.into_iter().flatten().collect();
    let seed = seed_of(config.seed, &scope.prompt_set, scope.category.as_deref());
    let resamples = Resamples::new(scope.prompts.len(), config.bootstrap, seed);
    let mut resampled = resamples.of(&values).into_iter();
    filled.into_iter().map(|filled| if filled { resampled.next() } else { None }).collect()
}

/// A seed for each scope, independent of the other scopes.
fn seed_of(seed: u64, prompt_set: &str, category: Option<&str>) -> u64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes()).update(prompt_set.as_bytes());
    hasher.update(&[u8::from(category.is_some())]).update(category.unwrap_or_default().as_bytes());
    let [a, b, c, d, e, f, g, h, ..] = *hasher.finalize().as_bytes();
    u64::from_le_bytes([a, b, c, d, e, f, g, h])
}

/// Adds the resamples of another set.
fn merge(strata: &mut Vec<Option<Resampled>>, set: &[Option<Resampled>]) {
    if strata.len() < set.len() {
        strata.resize(set.len(), None);
    }
    for (sum, resampled) in strata.iter_mut().zip(set) {
        match (sum, resampled) {
            (Some(sum), Some(resampled)) => sum.add(resampled),
            (sum @ None, Some(resampled)) => *sum = Some(resampled.clone()),
            (_, None) => {}
        }
    }
}

/// Holm's correction within each family.
fn correct(rows: &mut [WinRateRow], families: &[(ScopeKind, Statistic)]) {
    let mut members: HashMap<(ScopeKind, Statistic), Vec<usize>> = HashMap::new();
    for (number, family) in families.iter().enumerate() {
        members.entry(*family).or_default().push(number);
    }
    for numbers in members.into_values() {
        let p_values: Vec<f64> = numbers.iter().map(|&number| rows[number].p_value).collect();
        for (number, corrected) in numbers.into_iter().zip(holm(&p_values)) {
            rows[number].p_holm = corrected;
        }
    }
}
