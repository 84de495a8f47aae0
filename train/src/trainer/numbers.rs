//! The numbers of a step: from a table on the device of each rank to those of all pairs, in order of
//! position.

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

/// Numbers per pair in a micro-batch's table.
const ROWS: usize = 9;

/// The numbers of a step, on the CPU; every list has one number for each pair of the step that was
/// not skipped, in order of position.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Numbers {
    pub(super) losses: Vec<f64>,
    pub(super) agreement: Vec<f64>,
    pub(super) logits: Vec<f64>,
    pub(super) probability: Vec<f64>,
    pub(super) weight: Vec<f64>,
    /// The model's errors on images 0 and 1, then the reference model's.
    pub(super) errors: [Vec<f64>; 4],
    pub(super) grad_norm: f64,
    /// How many pairs each micro-batch of the step has, without the skipped ones.
    pub(super) pairs: Vec<usize>,
}

impl Numbers {
    /// Whether the numbers of a pair are finite.
    pub(super) fn is_finite(&self, index: usize) -> bool {
        let finite = |numbers: &[f64]| numbers.get(index).is_some_and(|number| number.is_finite());
        finite(&self.losses)
            && finite(&self.logits)
            && self.errors.iter().all(|errors| finite(errors))
    }

    pub(super) fn losses_are_finite(&self) -> bool {
        (0..self.losses.len()).all(|index| self.is_finite(index))
    }

    /// The lists in the order of a table's rows.
    fn rows(&mut self) -> [&mut Vec<f64>; ROWS] {
        let [e0, e1, e2, e3] = &mut self.errors;
        let Self { losses, agreement, logits, probability, weight, .. } = self;
        [losses, agreement, logits, probability, weight, e0, e1, e2, e3]
    }
}

/// What a rank sends: the tables of its micro-batches, one after the other.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct RankNumbers {
    /// How many pairs each of its micro-batches has.
    pairs: Vec<usize>,
    /// `[ROWS, pairs]` and the gradient norm: the bits of f32 numbers, so that NaN survives.
    bits: Vec<u32>,
}

impl RankNumbers {
    /// Copies the tables `[ROWS, P]` of this rank's micro-batches and the gradient norm to the CPU;
    /// this waits for the device. `None` is a micro-batch whose pairs are all skipped.
    pub(super) fn of(tables: &[Option<&Tensor>], grad_norm: &Tensor) -> Result<Self> {
        // If all pairs are skipped there is no table to concatenate: this one has no column.
        let none = Tensor::f_zeros([ROWS as i64, 0], (Kind::Float, grad_norm.device()))?;
        let parts: Vec<&Tensor> = tables.iter().flatten().copied().chain([&none]).collect();
        let table = Tensor::f_cat(&parts, 1)?.f_flatten(0, -1)?;
        let all = Tensor::f_cat(&[table, grad_norm.f_view([1])?], 0)?;
        let all = Vec::<f32>::try_from(&all.f_to_device(Device::Cpu)?)?;
        let pairs = tables.iter().map(|table| match table {
            Some(table) => Ok(usize::try_from(table.size2()?.1)?),
            None => Ok(0),
        });
        Ok(Self {
            pairs: pairs.collect::<Result<_>>()?,
            bits: all.into_iter().map(f32::to_bits).collect(),
        })
    }

    fn row(&self, row: usize) -> Option<&[u32]> {
        let pairs = self.pairs.iter().sum::<usize>();
        self.bits.get(row * pairs..(row + 1) * pairs)
    }
}

/// Puts the numbers of ranks in order of position: micro-batch `i` of the step is that of rank
/// `i % W`. The result is the same at all ranks.
pub(super) fn in_order(ranks: &[RankNumbers]) -> Result<Numbers> {
    let lost = "a rank's numbers are not complete";
    let mut numbers = Numbers::default();
    let count = ranks.first().context(lost)?.pairs.len();
    for rank in ranks {
        let pairs = rank.pairs.iter().sum::<usize>();
        ensure!(rank.pairs.len() == count && rank.bits.len() == ROWS * pairs + 1, lost);
    }
    let first = ranks.first().and_then(|rank| rank.bits.last());
    numbers.grad_norm = f64::from(f32::from_bits(*first.context(lost)?));
    let mut starts = vec![0; ranks.len()];
    for micro in 0..count {
        for (rank, start) in ranks.iter().zip(&mut starts) {
            let pairs = rank.pairs.get(micro).copied().context(lost)?;
            for (index, list) in numbers.rows().into_iter().enumerate() {
                let row = rank.row(index).and_then(|row| row.get(*start..*start + pairs));
                list.extend(row.context(lost)?.iter().map(|bits| f64::from(f32::from_bits(*bits))));
            }
            numbers.pairs.push(pairs);
            *start += pairs;
        }
    }
    Ok(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The numbers of micro-batches whose pairs have these positions.
    fn of(micro_batches: &[&[u32]]) -> RankNumbers {
        let table = |positions: &[u32]| {
            let rows = (0..ROWS).flat_map(|row| {
                positions.iter().map(move |position| (1000 * row) as f32 + *position as f32)
            });
            let rows: Vec<f32> = rows.collect();
            Tensor::from_slice(&rows).view([ROWS as i64, positions.len() as i64])
        };
        let tables: Vec<Option<Tensor>> = micro_batches
            .iter()
            .map(|positions| (!positions.is_empty()).then(|| table(positions)))
            .collect();
        let tables: Vec<Option<&Tensor>> = tables.iter().map(Option::as_ref).collect();
        RankNumbers::of(&tables, &Tensor::from(0.5_f32)).unwrap()
    }

    #[test]
    fn numbers_of_ranks_come_in_order_of_position() {
        let alone = [&[0, 1][..], &[2, 3], &[], &[6], &[8, 9], &[10, 11]];
        let expected = in_order(&[of(&alone)]).unwrap();
        assert_eq!(expected.losses, [0.0, 1.0, 2.0, 3.0, 6.0, 8.0, 9.0, 10.0, 11.0]);
        assert_eq!(expected.errors[3][8], 8011.0);
        assert_eq!((expected.grad_norm, &expected.pairs[..]), (0.5, &[2, 2, 0, 1, 2, 2][..]));
        for world in [2, 3, 6] {
            let ranks: Vec<RankNumbers> = (0..world)
                .map(|rank| {
                    let own = alone.iter().skip(rank).step_by(world);
                    of(&own.copied().collect::<Vec<_>>())
                })
                .collect();
            assert_eq!(in_order(&ranks).unwrap(), expected, "{world} ranks");
        }
    }

    #[test]
    fn nan_of_one_rank_is_that_of_the_step() {
        let mut second = of(&[&[1]]);
        second.bits[0] = f32::NAN.to_bits();
        let numbers = in_order(&[of(&[&[0]]), second]).unwrap();
        assert!(numbers.is_finite(0) && !numbers.is_finite(1) && !numbers.losses_are_finite());
        assert!(in_order(&[of(&[&[0]]), of(&[&[1], &[2]])]).is_err());
    }
}
