//! What is missing or does not fit, in sentences: nothing is excluded silently.

use std::collections::{BTreeMap, BTreeSet};

use schemas::scores::ScoreRow;

use super::cells::EmptyCell;
use crate::scores_index::{IndexedPrompt, ScoresIndex};

/// All sentences.
pub(super) fn notes(index: &ScoresIndex<'_>, empty: &[EmptyCell]) -> Vec<String> {
    let mut notes = Vec::new();
    if index.models.len() == 1 {
        notes.push("There is one model, so there are no win rates.".to_owned());
    }
    notes.extend(missing_prompts(index));
    notes.extend(changed_prompts(index));
    notes.extend(seeds(index));
    notes.extend(missing_scores(&index.rows));
    notes.extend(empty_cells(index, empty));
    notes
}

/// Prompts that a model was not evaluated on and another was.
fn missing_prompts(index: &ScoresIndex<'_>) -> Vec<String> {
    let mut notes = Vec::new();
    for (set, name) in index.sets.iter().enumerate() {
        let prompts = || index.prompts.iter().filter(|prompt| prompt.set == set);
        let all = prompts().count();
        for (number, model) in index.models.iter().enumerate() {
            let mut missing = prompts().filter(|prompt| prompt.images[number].is_empty());
            let Some(first) = missing.next() else { continue };
            let count = 1 + missing.count();
            notes.push(format!(
                "{name}: {model} was not scored on {count} of {all} prompts (the first is {:?}); \
                 its comparisons exclude them.",
                first.id
            ));
        }
    }
    notes
}

/// Ids of different texts.
fn changed_prompts(index: &ScoresIndex<'_>) -> Vec<String> {
    let same_id =
        |pair: &&[IndexedPrompt<'_>]| pair[0].set == pair[1].set && pair[0].id == pair[1].id;
    let mut changed = BTreeMap::<usize, BTreeSet<&str>>::new();
    for pair in index.prompts.windows(2).filter(same_id) {
        changed.entry(pair[0].set).or_default().insert(pair[0].id);
    }
    let note = |(set, ids): (usize, BTreeSet<&str>)| {
        let name = index.sets.get(set)?;
        let first = ids.iter().next()?;
        let count = ids.len();
        Some(format!(
            "{name}: {} for different prompts (the first is {first:?}); models are compared on \
             equal texts only.",
            if count == 1 { "one id stands".to_owned() } else { format!("{count} ids stand") }
        ))
    };
    changed.into_iter().filter_map(note).collect()
}

/// The seeds of each prompt, by id and text.
type SeedsOfPrompts<'a> = BTreeMap<(&'a str, &'a str), BTreeSet<i64>>;

/// Models with different seeds, and prompts with fewer images than the others.
fn seeds(index: &ScoresIndex<'_>) -> Vec<String> {
    let mut notes = Vec::new();
    let mut of_prompts = BTreeMap::<(&str, &str), SeedsOfPrompts<'_>>::new();
    for row in &index.rows {
        let prompts = of_prompts.entry((&row.prompt_set, &row.model)).or_default();
        prompts.entry((&row.prompt_id, &row.prompt)).or_default().insert(row.seed);
    }
    for &set in &index.sets {
        let mut found: Vec<(&str, &SeedsOfPrompts<'_>, BTreeSet<i64>)> = Vec::new();
        for &model in &index.models {
            if let Some(prompts) = of_prompts.get(&(set, model)) {
                found.push((model, prompts, prompts.values().flatten().copied().collect()));
            }
        }
        let different: BTreeSet<&BTreeSet<i64>> = found.iter().map(|(.., seeds)| seeds).collect();
        if different.len() > 1 {
            let lists = found.iter().map(|(model, _, seeds)| format!("{model} {}", ranges(seeds)));
            let lists = lists.collect::<Vec<_>>().join(", ");
            notes.push(format!(
                "{set}: the seeds differ ({lists}); two models are compared on those that both have."
            ));
        }
        for (model, prompts, seeds) in &found {
            let mut fewer = prompts.iter().filter(|(_, its)| its.len() < seeds.len());
            let Some((first, _)) = fewer.next() else { continue };
            let count = 1 + fewer.count();
            notes.push(format!(
                "{set}: {model} has fewer than {} images of {count} of {} prompts (the first is \
                 {:?}); they are compared on the images that exist.",
                seeds.len(),
                prompts.len(),
                first.0
            ));
        }
    }
    notes
}

/// Images that a metric has no score of.
fn missing_scores(used: &[&ScoreRow]) -> Vec<String> {
    let mut counts = BTreeMap::<(&str, &str, &str), (usize, usize, Option<&ScoreRow>)>::new();
    for row in used {
        let key = (row.prompt_set.as_str(), row.model.as_str(), row.metric.as_str());
        let (all, missing, first) = counts.entry(key).or_default();
        *all += 1;
        if row.score.is_none() {
            *missing += 1;
            let earlier =
                |first: &ScoreRow| (&first.prompt_id, first.seed) <= (&row.prompt_id, row.seed);
            if !first.is_some_and(earlier) {
                *first = Some(row);
            }
        }
    }
    let note = |((set, model, metric), (all, missing, first)): (
        _,
        (usize, usize, Option<&ScoreRow>),
    )| {
        let first = first?;
        let reason = first.error.as_deref().unwrap_or("no reason given");
        let reason = reason.split_whitespace().collect::<Vec<_>>().join(" ");
        Some(format!(
            "{set}: {missing} of {all} images of {model} have no score of {metric} (the first is \
             prompt {:?}, seed {}: {reason}).",
            first.prompt_id, first.seed
        ))
    };
    counts.into_iter().filter_map(note).collect()
}

/// Cells without a prompt.
fn empty_cells(index: &ScoresIndex<'_>, empty: &[EmptyCell]) -> Vec<String> {
    let mut metrics = BTreeMap::<(&str, [usize; 2]), Vec<&str>>::new();
    for cell in empty {
        let name = index.metrics.get(cell.metric).copied().unwrap_or_default();
        metrics.entry((&cell.prompt_set, cell.models)).or_default().push(name);
    }
    let name = |model: usize| index.models.get(model).copied().unwrap_or_default();
    let note = |((set, [a, b]), metrics): ((&str, [usize; 2]), Vec<&str>)| {
        format!(
            "{set}: {} and {} have no image in common with a score by {}; there is no win rate.",
            name(a),
            name(b),
            metrics.join(", ")
        )
    };
    metrics.into_iter().map(note).collect()
}

/// `0–4, 7`
fn ranges(seeds: &BTreeSet<i64>) -> String {
    let mut runs: Vec<(i64, i64)> = Vec::new();
    for &seed in seeds {
        match runs.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(seed) => *last = seed,
            _ => runs.push((seed, seed)),
        }
    }
    let written = |(first, last): &(i64, i64)| {
        if first == last { first.to_string() } else { format!("{first}–{last}") }
    };
    runs.iter().map(written).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::ranges;

    #[test]
    fn seeds_are_written_as_ranges() {
        assert_eq!(ranges(&[0, 1, 2, 3, 4, 7, 9, 10].into()), "0–4, 7, 9–10");
        assert_eq!(ranges(&[i64::MAX].into()), i64::MAX.to_string());
    }
}
