//! The paired percentile bootstrap by prompt.

use rayon::prelude::*;

/// Resamples of a block: their weights lie side by side for the vector units.
const LANES: usize = 8;
/// Columns that are summed together: each weight is loaded once for all of them.
const COLUMNS: usize = 3;

/// Resamples of a number of prompts, the same for every column of values: how often each prompt
/// occurs in each resample.
///
/// A resample depends on the seed and its own number alone, so neither threads nor columns change
/// it.
#[derive(Clone, Copy, Debug)]
pub struct Resamples {
    prompts: usize,
    resamples: usize,
    seed: u64,
}

/// The sums of one column, one for each resample.
#[derive(Clone, Debug)]
pub struct Resampled {
    /// The sum of its values.
    sums: Vec<f64>,
    /// How many of the sampled prompts have a value.
    counts: Vec<f64>,
}

impl Resamples {
    /// `resamples` samples of `prompts` prompts with replacement.
    pub fn new(prompts: usize, resamples: usize, seed: u64) -> Self {
        Self { prompts, resamples, seed }
    }

    /// Sums every column over every resample. A column has a value for each prompt; a prompt
    /// without one is sampled as the others are and adds nothing.
    pub fn of(&self, columns: &[Vec<Option<f64>>]) -> Vec<Resampled> {
        // Sums of the values, then of a column of 0 and 1 for each different pattern of gaps: the
        // counts that divide the sums.
        let mut summed: Vec<Vec<f64>> = Vec::with_capacity(columns.len());
        summed.extend(columns.iter().map(|column| numbers(column, |value| value)));
        let mut gaps: Vec<(Vec<bool>, usize)> = Vec::new();
        let counted: Vec<Option<usize>> = columns
            .iter()
            .map(|column| {
                let present: Vec<bool> = column.iter().map(Option::is_some).collect();
                if present.iter().all(|&present| present) {
                    return None;
                }
                if let Some((_, column)) = gaps.iter().find(|(other, _)| *other == present) {
                    return Some(*column);
                }
                gaps.push((present, summed.len()));
                summed.push(numbers(column, |_| 1.0));
                Some(summed.len() - 1)
            })
            .collect();
        let sums = self.sums(&summed);
        let all = vec![self.prompts as f64; self.resamples];
        let counts = |column: Option<usize>| column.and_then(|it| sums.get(it)).unwrap_or(&all);
        (sums.iter().zip(counted))
            .map(|(sum, column)| Resampled { sums: sum.clone(), counts: counts(column).clone() })
            .collect()
    }

    /// For every column its weighted sum in every resample.
    fn sums(&self, columns: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let groups: Vec<Vec<[f64; COLUMNS]>> =
            columns.chunks(COLUMNS).map(|group| self.side_by_side(group)).collect();
        let blocks: Vec<Vec<[f64; LANES]>> = (0..self.resamples.div_ceil(LANES))
            .into_par_iter()
            .map_init(
                || vec![[0.0; LANES]; self.prompts],
                |weights, block| {
                    self.sample(block, weights);
                    groups.iter().flat_map(|group| weighted_sums(group, weights)).collect()
                },
            )
            .collect();
        let of_column = |column: usize| {
            let lanes = blocks.iter().filter_map(|block| block.get(column)).flatten().copied();
            lanes.take(self.resamples).collect()
        };
        (0..columns.len()).into_par_iter().map(of_column).collect()
    }

    /// The values of a few columns, prompt by prompt; 0 if there are fewer columns.
    fn side_by_side(&self, columns: &[Vec<f64>]) -> Vec<[f64; COLUMNS]> {
        let mut rows = vec![[0.0; COLUMNS]; self.prompts];
        for (number, column) in columns.iter().enumerate() {
            rows.iter_mut().zip(column).for_each(|(row, value)| row[number] = *value);
        }
        rows
    }

    /// Counts how often every prompt occurs in the resamples of a block.
    fn sample(&self, block: usize, weights: &mut [[f64; LANES]]) {
        weights.fill([0.0; LANES]);
        for lane in 0..LANES {
            let number = (block * LANES + lane) as u64;
            let mut random = SplitMix64(self.seed ^ SplitMix64(number).next());
            for _ in 0..self.prompts {
                let prompt = random.below(self.prompts);
                if let Some(lanes) = weights.get_mut(prompt) {
                    lanes[lane] += 1.0;
                }
            }
        }
    }
}

impl Resampled {
    /// Adds another stratum: the prompts of each set are sampled on their own.
    pub fn add(&mut self, other: &Self) {
        self.sums.iter_mut().zip(&other.sums).for_each(|(sum, other)| *sum += other);
        self.counts.iter_mut().zip(&other.counts).for_each(|(count, other)| *count += other);
    }

    /// The mean in every resample; a resample without a single value has none.
    pub fn means(&self) -> Vec<f64> {
        let sampled = self.sums.iter().zip(&self.counts).filter(|(_, count)| **count > 0.0);
        sampled.map(|(sum, count)| sum / count).collect()
    }
}

/// The 2.5 and 97.5 percentiles, linear between two values as numpy's default; 0 if there are no
/// values.
pub fn interval(mut values: Vec<f64>) -> (f64, f64) {
    (percentile(&mut values, 0.025), percentile(&mut values, 0.975))
}

fn percentile(values: &mut [f64], level: f64) -> f64 {
    let Some(last) = values.len().checked_sub(1) else { return 0.0 };
    let position = level * last as f64;
    let (_, low, above) = values.select_nth_unstable_by(position as usize, f64::total_cmp);
    let low = *low;
    let next = above.iter().copied().min_by(f64::total_cmp).unwrap_or(low);
    low + (next - low) * position.fract()
}

fn numbers(column: &[Option<f64>], number: impl Fn(f64) -> f64) -> Vec<f64> {
    column.iter().map(|value| value.map_or(0.0, &number)).collect()
}

fn weighted_sums(rows: &[[f64; COLUMNS]], weights: &[[f64; LANES]]) -> [[f64; LANES]; COLUMNS] {
    let mut sums = [[0.0; LANES]; COLUMNS];
    for (values, weights) in rows.iter().zip(weights) {
        for (sums, value) in sums.iter_mut().zip(values) {
            for (sum, weight) in sums.iter_mut().zip(weights) {
                *sum += value * weight;
            }
        }
    }
    sums
}

/// Steele, Lea and Flood's generator (OOPSLA 2014), enough to choose prompts.
struct SplitMix64(u64);

impl SplitMix64 {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number from 0 to below `bound`.
    fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.next()) * bound as u128) >> 64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(prompts: usize) -> Vec<Option<f64>> {
        let mut random = SplitMix64(7);
        (0..prompts).map(|_| Some(random.below(1000) as f64 / 100.0 - 4.0)).collect()
    }

    /// Against theory: the mean of resampled means is the mean, their std σ/√n, the interval ±1.96
    /// of that.
    #[test]
    fn resampled_means_have_the_std_of_theory() {
        let values = column(400);
        let numbers: Vec<f64> = values.iter().copied().flatten().collect();
        let mean = numbers.iter().sum::<f64>() / 400.0;
        let variance = numbers.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / 400.0;
        let error = (variance / 400.0).sqrt();
        let means = Resamples::new(400, 10_000, 3).of(&[values])[0].means();
        assert_eq!(means.len(), 10_000);
        let middle = means.iter().sum::<f64>() / 10_000.0;
        assert!((middle - mean).abs() < 0.05 * error, "{middle} {mean}");
        let variance = means.iter().map(|value| (value - middle).powi(2)).sum::<f64>() / 10_000.0;
        assert!((variance.sqrt() / error - 1.0).abs() < 0.03, "{} {error}", variance.sqrt());
        let (low, high) = interval(means);
        assert!(((mean - low) / error - 1.96).abs() < 0.1, "{low}");
        assert!(((high - mean) / error - 1.96).abs() < 0.1, "{high}");
    }

    #[test]
    fn seed_and_column_alone_decide() {
        let (first, second) = (column(57), column(58)[1..].to_vec());
        let one = Resamples::new(57, 100, 1).of(std::slice::from_ref(&first))[0].means();
        let both = Resamples::new(57, 100, 1).of(&[second, first.clone()]);
        assert_eq!(one, both[1].means());
        assert_ne!(one, Resamples::new(57, 100, 2).of(&[first])[0].means());
    }

    #[test]
    fn gaps_add_nothing() {
        let constant = vec![Some(2.0), None, Some(2.0), None, None, None];
        let other = vec![None, Some(1.0), None, None, None, None];
        let resampled = Resamples::new(6, 500, 0).of(&[constant.clone(), other, constant]);
        let means = resampled[0].means();
        assert!(means.iter().all(|&mean| mean == 2.0));
        // A resample without either of the two prompts has no mean.
        assert!(means.len() < 500 && means.len() > 400, "{}", means.len());
        let mut both = resampled[0].clone();
        both.add(&resampled[2]);
        assert_eq!(both.means(), means);
        assert_eq!(interval(Resamples::new(0, 10, 0).of(&[vec![]])[0].means()), (0.0, 0.0));
    }

    #[test]
    fn percentiles_are_linear_between_two_values() {
        let (low, high) = interval((0..=10).rev().map(f64::from).collect());
        assert!((low - 0.25).abs() < 1e-12 && (high - 9.75).abs() < 1e-12, "{low} {high}");
        assert_eq!(interval(vec![3.0]), (3.0, 3.0));
        assert_eq!(interval(Vec::new()), (0.0, 0.0));
    }
}
