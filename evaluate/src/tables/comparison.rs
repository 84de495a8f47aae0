//! Two models compared prompt by prompt, on the images (seeds) that both have scores of.

use std::ops::Range;

use schemas::winrates::Statistic;

use super::score_table::Scores;
use crate::statistics::all_pairs;

/// One way to compare two models.
#[derive(Debug)]
pub(super) struct Comparison {
    pub(super) statistic: Statistic,
    /// The judge, by number.
    pub(super) metric: usize,
    /// The metric that chooses the images.
    pub(super) chosen_by: Option<usize>,
    /// The prompts that can be compared, ascending.
    pub(super) judged: Vec<Judged>,
}

/// One prompt, compared.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Judged {
    pub(super) prompt: usize,
    /// ScoreTable of each model.
    pub(super) seeds: usize,
    /// Comparisons that the first model wins.
    pub(super) greater: usize,
    /// Comparisons without a winner.
    pub(super) equal: usize,
    /// All of them: one, or all pairs of images.
    pub(super) pairs: usize,
    /// What is compared, the first model minus the second.
    pub(super) difference: f64,
}

impl Judged {
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
    let mut push = |statistic, metric, chosen_by, judged| {
        comparisons.push(Comparison { statistic, metric, chosen_by, judged });
    };
    for statistic in [Statistic::BestOfN, Statistic::MeanOfN, Statistic::AllPairs] {
        for (metric, (a_scores, b_scores)) in a.metrics.iter().zip(&b.metrics).enumerate() {
            let of_prompt = |(prompt, images): &(usize, Range<usize>)| {
                let (a, b): (Vec<f32>, Vec<f32>) = (a_scores.get(images.clone())?.iter())
                    .zip(b_scores.get(images.clone())?)
                    .filter_map(|(a, b)| a.zip(*b))
                    .unzip();
                judge(statistic, *prompt, &a, &b)
            };
            let chosen_by = (statistic == Statistic::BestOfN).then_some(metric);
            push(statistic, metric, chosen_by, runs.iter().filter_map(of_prompt).collect());
        }
    }
    for chooser in 0..metrics {
        for metric in (0..metrics).filter(|&metric| metric != chooser) {
            let of_prompt = |(prompt, images): &(usize, Range<usize>)| {
                cross_selection(a, b, [chooser, metric], *prompt, images.clone())
            };
            let judged = runs.iter().filter_map(of_prompt).collect();
            push(Statistic::CrossSelection, metric, Some(chooser), judged);
        }
    }
    comparisons
}

/// One prompt by the scores of one metric; nothing without an image.
fn judge(statistic: Statistic, prompt: usize, a: &[f32], b: &[f32]) -> Option<Judged> {
    let seeds = a.len();
    if seeds == 0 {
        return None;
    }
    match statistic {
        Statistic::AllPairs => {
            let (greater, equal) = all_pairs(a, b);
            let difference = mean(a) - mean(b);
            Some(Judged { prompt, seeds, greater, equal, pairs: seeds * seeds, difference })
        }
        Statistic::MeanOfN => Some(Judged::new(prompt, seeds, mean(a), mean(b))),
        _ => Some(Judged::new(prompt, seeds, best(a), best(b))),
    }
}

/// One prompt by the images that one metric chooses and another judges: of each model the first of
/// the best.
fn cross_selection(
    a: &Scores,
    b: &Scores,
    [chooser, metric]: [usize; 2],
    prompt: usize,
    images: Range<usize>,
) -> Option<Judged> {
    let mut seeds = 0;
    let mut chosen: [Option<(f32, f32)>; 2] = [None, None];
    for image in images {
        let score = |scores: &Scores, metric: usize| {
            scores.metrics.get(metric).and_then(|scores| scores.get(image).copied().flatten())
        };
        let both = |scores: &Scores| score(scores, chooser).zip(score(scores, metric));
        let (Some(of_a), Some(of_b)) = (both(a), both(b)) else { continue };
        seeds += 1;
        for (chosen, (choice, judgement)) in chosen.iter_mut().zip([of_a, of_b]) {
            if chosen.is_none_or(|(best, _)| choice > best) {
                *chosen = Some((choice, judgement));
            }
        }
    }
    let [a, b] = chosen;
    let ((_, a), (_, b)) = (a?, b?);
    Some(Judged::new(prompt, seeds, f64::from(a), f64::from(b)))
}

/// The prompts of images that are sorted by prompt, with the places of their images.
pub(super) fn runs(prompts: &[usize]) -> Vec<(usize, Range<usize>)> {
    let mut runs: Vec<(usize, Range<usize>)> = Vec::new();
    for (place, &prompt) in prompts.iter().enumerate() {
        match runs.last_mut() {
            Some((last, images)) if *last == prompt => images.end = place + 1,
            _ => runs.push((prompt, place..place + 1)),
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
    fn the_first_of_the_best_is_chosen_and_gaps_are_passed_over() {
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
        let cross = comparisons.iter().find(|c| c.chosen_by == Some(0) && c.metric == 1).unwrap();
        // The last image lacks a score; then metric 0 chooses image 1 of a and image 0 of b.
        assert_eq!(cross.judged, [Judged { equal: 1, ..Judged::new(3, 3, 6.0, 6.0) }]);
        let best = &comparisons[1].judged;
        assert_eq!(best, &[Judged::new(3, 3, 7.0, 6.0)]);
        let pairs = comparisons.iter().find(|c| c.statistic == Statistic::AllPairs).unwrap();
        assert_eq!(
            (pairs.judged[0].greater, pairs.judged[0].equal, pairs.judged[0].pairs),
            (6, 3, 16)
        );
    }
}
