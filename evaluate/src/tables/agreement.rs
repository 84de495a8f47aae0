//! How far two metrics order the images of a prompt alike: whether two columns of a table are two
//! witnesses, or one.

use runkit::statistics::wilson;

use super::ALL_SETS;
use crate::scores_index::{IndexedPrompt, ScoresIndex};

/// Above this kappa, agreement is "almost perfect" by J. R. Landis and G. G. Koch, "The measurement
/// of observer agreement for categorical data", Biometrics 33 (1977).
pub(super) const ALMOST_PERFECT: f64 = 0.8;

/// Two metrics on one set of prompts.
#[derive(Clone, Debug, PartialEq)]
pub struct MetricAgreement {
    /// The set of prompts; `all` is all sets together.
    pub prompt_set: String,
    /// A metric.
    pub metric_a: String,
    /// A later one.
    pub metric_b: String,
    /// Prompts with at least two images that both metrics order.
    pub prompts: i64,
    /// Pairs of images that both metrics order.
    pub pairs: i64,
    /// Mean over the prompts of the fraction of pairs that both order alike, 0 to 1.
    pub agreement: f64,
    /// Lower end of its 95 % Wilson interval over prompts.
    pub agreement_low: f64,
    /// Upper end of that interval.
    pub agreement_high: f64,
    /// Cohen's kappa. Which image of a pair is named first means nothing, so each pair counts in
    /// both directions; then chance is exactly one half and kappa is 2 · agreement − 1.
    pub kappa: f64,
}

/// Pairs of images of one prompt by two metrics.
#[derive(Clone, Copy, Default)]
struct Orders {
    alike: u64,
    all: u64,
}

/// Every two metrics on every set, in the order of sets and metrics. Two metrics that no prompt
/// compares are left out.
///
/// All images of a prompt count, whichever model made them. Pairs with equal scores by one of the
/// metrics do not count.
pub(super) fn agreement(index: &ScoresIndex<'_>) -> Vec<MetricAgreement> {
    let count = index.metrics.len();
    let twos: Vec<[usize; 2]> =
        (0..count).flat_map(|b| (0..b).map(move |a| [a, b])).collect::<Vec<_>>();
    let of_prompts: Vec<(usize, Vec<Orders>)> =
        index.prompts.iter().map(|prompt| (prompt.set, orders(prompt, &twos))).collect();
    let all = (index.sets.len() > 1).then_some((None, ALL_SETS));
    let sets = index.sets.iter().enumerate().map(|(set, name)| (Some(set), *name));
    let mut rows = Vec::new();
    for (set, name) in sets.chain(all) {
        for (place, [a, b]) in twos.iter().enumerate() {
            let inside = of_prompts.iter().filter(|(of, _)| set.is_none_or(|set| set == *of));
            let orders = inside.filter_map(|(_, orders)| orders.get(place));
            let compared: Vec<&Orders> = orders.filter(|orders| orders.all > 0).collect();
            if compared.is_empty() {
                continue;
            }
            let fractions = compared.iter().map(|orders| orders.alike as f64 / orders.all as f64);
            let agreement = fractions.sum::<f64>() / compared.len() as f64;
            let (agreement_low, agreement_high) = wilson(agreement, compared.len() as u64);
            rows.push(MetricAgreement {
                prompt_set: name.to_owned(),
                metric_a: index.metrics[*a].to_owned(),
                metric_b: index.metrics[*b].to_owned(),
                prompts: compared.len() as i64,
                pairs: compared.iter().map(|orders| orders.all as i64).sum(),
                agreement,
                agreement_low,
                agreement_high,
                kappa: 2.0 * agreement - 1.0,
            });
        }
    }
    rows
}

/// For each two metrics the pairs of a prompt's images.
fn orders(prompt: &IndexedPrompt<'_>, twos: &[[usize; 2]]) -> Vec<Orders> {
    let images: Vec<&[Option<f32>]> =
        prompt.images.iter().flatten().map(|image| image.scores.as_slice()).collect();
    let mut orders = vec![Orders::default(); twos.len()];
    for (number, one) in images.iter().enumerate() {
        for other in images.iter().take(number) {
            let order = |metric: usize| {
                let (one, other) = (one.get(metric).copied()??, other.get(metric).copied()??);
                (one != other).then_some(one > other)
            };
            for (orders, [a, b]) in orders.iter_mut().zip(twos) {
                if let (Some(a), Some(b)) = (order(*a), order(*b)) {
                    orders.all += 1;
                    orders.alike += u64::from(a == b);
                }
            }
        }
    }
    orders
}

/// A sentence for every two metrics that are nearly one.
pub(super) fn notes(rows: &[MetricAgreement]) -> impl Iterator<Item = String> {
    rows.iter().filter(|row| row.kappa > ALMOST_PERFECT).map(|row| {
        format!(
            "{}: {} and {} order {:.1} % of the pairs of images alike (kappa {:.2}): read their \
             columns as one.",
            row.prompt_set,
            row.metric_a,
            row.metric_b,
            100.0 * row.agreement,
            row.kappa
        )
    })
}
