//! Two models compared prompt by prompt, on the images (seeds) that both have scores of.

use std::ops::Range;

use schemas::winrates::Statistic;

use super::frames::Scores;
use crate::statistics::all_pairs;

/// One way to compare two models.
#[derive(Debug)]
pub(super) struct Comparison {
    pub(super) statistic: Statistic,
    /// The index of the metric that scores.
    pub(super) metric: usize,
    /// The index of the metric that selects the images.
    pub(super) selected_by: Option<usize>,
    /// The prompts that can be compared, ascending.
    pub(super) prompts: Vec<ComparedPrompt>,
}

/// One prompt, compared.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct ComparedPrompt {
    pub(super) prompt: usize,
    /// Images of each model.
    pub(super) seeds: usize,
    /// Comparisons that the first model wins.
    pub(super) greater: usize,
    /// Comparisons without a winner.
    pub(super) equal: usize,
    /// All comparisons: one, or all pairs of images.
    pub(super) pairs: usize,
    /// What is compared, the first model minus the second.
    pub(super) difference: f64,
}

impl ComparedPrompt {
    /// One value of each model.
    fn new(prompt: usize, seeds: usize, a: f64, b: f64) -> Self {
        let (greater, equal) = (usize::from(a > b), usize::from(a == b));
        Self { prompt, seeds, greater, equal, pairs: 1, difference: a - b }
    }
}

/// Every statistic of two models; `a` and `b` hold the same images.
pub(super) fn compare(a: &Scores, b: &Scores) -> Vec<Comparison> {
    let metrics = a.metrics.len();
    let runs = runs(&a.prompts);
    let mut comparisons: Vec<Comparison> = Vec::new();
    let mut push = |statistic, metric, selected_by, prompts| {
        comparisons.push(Comparison { statistic, metric, selected_by, prompts });
    };
    for statistic in [Statistic::BestOfN, Statistic::MeanOfN, Statistic::AllPairs] {
        for (metric, (a_scores, b_scores)) in a.metrics.iter().zip(&b.metrics).enumerate() {
            let of_prompt = |(prompt, images): &(usize, Range<usize>)| {
                let (a, b): (Vec<f32>, Vec<f32>) = (a_scores.get(images.clone())?.iter())
                    .zip(b_scores.get(images.clone())?)
                    .filter_map(|(a, b)| a.zip(*b))
                    .unzip();
                compare_prompt(statistic, *prompt, &a, &b)
            };
            let selected_by = (statistic == Statistic::BestOfN).then_some(metric);
            push(statistic, metric, selected_by, runs.iter().filter_map(of_prompt).collect());
        }
    }
    for selector in 0..metrics {
        for metric in (0..metrics).filter(|&metric| metric != selector) {
            let of_prompt = |(prompt, images): &(usize, Range<usize>)| {
                cross_selection([a, b], [selector, metric], *prompt, images.clone())
            };
            let prompts = runs.iter().filter_map(of_prompt).collect();
            push(Statistic::CrossSelection, metric, Some(selector), prompts);
        }
    }
    comparisons
}

/// One prompt by the scores of one metric; `None` without an image.
fn compare_prompt(
    statistic: Statistic,
    prompt: usize,
    a: &[f32],
    b: &[f32],
) -> Option<ComparedPrompt> {
    let seeds = a.len();
    if seeds == 0 {
        return None;
    }
    match statistic {
        Statistic::AllPairs => {
            let (greater, equal) = all_pairs(a, b);
            let difference = mean(a) - mean(b);
            Some(ComparedPrompt { prompt, seeds, greater, equal, pairs: seeds * seeds, difference })
        }
        Statistic::MeanOfN => Some(ComparedPrompt::new(prompt, seeds, mean(a), mean(b))),
        _ => Some(ComparedPrompt::new(prompt, seeds, best(a), best(b))),
    }
}

/// One prompt by the images that one metric selects and another scores: of each model the first of
/// the best.
fn cross_selection(
    [a, b]: [&Scores; 2],
    [selector, metric]: [usize; 2],
    prompt: usize,
    images: Range<usize>,
) -> Option<ComparedPrompt> {
    let mut seeds = 0;
    let mut selected: [Option<(f32, f32)>; 2] = [None, None];
    for image in images {
        let score = |scores: &Scores, metric: usize| {
            scores.metrics.get(metric).and_then(|scores| scores.get(image).copied().flatten())
        };
        let both = |scores: &Scores| score(scores, selector).zip(score(scores, metric));
        let (Some(of_a), Some(of_b)) = (both(a), both(b)) else { continue };
        seeds += 1;
        for (selected, (value, score)) in selected.iter_mut().zip([of_a, of_b]) {
            if selected.is_none_or(|(best, _)| value > best) {
                *selected = Some((value, score));
            }
        }
    }
    let [a, b] = selected;
    let ((_, a), (_, b)) = (a?, b?);
    Some(ComparedPrompt::new(prompt, seeds, f64::from(a), f64::from(b)))
}

/// The prompts of images that are sorted by prompt, with the positions of their images.
fn runs(prompts: &[usize]) -> Vec<(usize, Range<usize>)> {
    let mut runs: Vec<(usize, Range<usize>)> = Vec::new();
    for (position, &prompt) in prompts.iter().enumerate() {
        match runs.last_mut() {
            Some((last, images)) if *last == prompt => images.end = position + 1,
            _ => runs.push((prompt, position..position + 1)),
        }
    }
    runs
}

/// The largest score.
pub(super) fn best(scores: &[f32]) -> f64 {
    f64::from(scores.iter().copied().fold(f32::NEG_INFINITY, f32::max))
}

/// The mean score.
pub(super) fn mean(scores: &[f32]) -> f64 {
    scores.iter().copied().map(f64::from).sum::<f64>() / scores.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_the_best_is_selected_and_gaps_are_passed_over() {
        let some = |numbers: [f32; 4]| numbers.map(Some).to_vec();
        let a = Scores {
            prompts: vec![3; 4],
            metrics: vec![some([1.0, 2.0, 2.0, 9.0]), some([5.0, 6.0, 7.0, 8.0])],
        };
        let mut b = Scores {
            prompts: vec![3; 4],
            metrics: vec![some([4.0, 3.0, 2.0, 1.0]), some([6.0, 1.0, 1.0, 1.0])],
        };
        b.metrics[1][3] = None;
        let comparisons = compare(&a, &b);
        let cross = comparisons.iter().find(|c| c.selected_by == Some(0) && c.metric == 1).unwrap();
        // The last image lacks a score; then metric 0 selects image 1 of a and image 0 of b.
        assert_eq!(
            cross.prompts,
            [ComparedPrompt { equal: 1, ..ComparedPrompt::new(3, 3, 6.0, 6.0) }]
        );
        let best = &comparisons[1].prompts;
        assert_eq!(best, &[ComparedPrompt::new(3, 3, 7.0, 6.0)]);
        let pairs = comparisons.iter().find(|c| c.statistic == Statistic::AllPairs).unwrap();
        assert_eq!(
            (pairs.prompts[0].greater, pairs.prompts[0].equal, pairs.prompts[0].pairs),
            (6, 3, 16)
        );
    }
}
