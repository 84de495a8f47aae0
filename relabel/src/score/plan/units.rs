//! Units of work: a range of rows of one file, which one process scores and writes as one part.
//!
//! Where units begin and end follows from the file alone (its row groups, and where the run ends in
//! it). The batches of a unit follow from the unit and the plan, so it changes no score
//! which process computes which unit.

use std::ops::Range;

use schemas::pairs::RowGroup;

/// Pairs of a unit, unless the user chooses: some twenty batches of a GPU.
pub const UNIT_PAIRS: u64 = 1024;

/// A range of rows of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unit {
    /// Index of the file in the plan.
    pub(crate) file: usize,
    /// Its rows, counted in the file.
    pub(crate) rows: Range<u64>,
    /// The rows of the run before it.
    pub(crate) first_row: u64,
}

impl Unit {
    /// The slots (2·row + position, counted over the whole run) of its images.
    pub(crate) fn slots(&self) -> Range<u64> {
        2 * self.first_row..2 * (self.first_row + self.rows.end - self.rows.start)
    }
}

/// Cuts a file into units of `target` to twice as many rows: at the nearest row group before the
/// even cut, or inside a row group that is larger than a unit. Only its first `rows` rows are taken;
/// how many those are moves no border, so that more of them leave the units before as they are.
///
/// A file of fewer than twice `target` rows, an empty one too, is one unit.
pub(super) fn cut(groups: &[RowGroup], all: u64, rows: u64, target: u64) -> Vec<Range<u64>> {
    let mut units = cut_all(groups, all, target);
    units.retain(|unit| unit.start < rows || unit.start == 0);
    if let Some(last) = units.last_mut() {
        last.end = rows;
    }
    // A short rest joins the unit before it.
    match units.as_slice() {
        [.., before, last] if 2 * (last.end - last.start) <= target => {
            let joined = before.start..last.end;
            units.truncate(units.len() - 2);
            units.push(joined);
        }
        _ => {}
    }
    units
}

/// The units of a whole file.
fn cut_all(groups: &[RowGroup], rows: u64, target: u64) -> Vec<Range<u64>> {
    let target = target.max(1);
    let count = (rows / target).max(1);
    let mut starts: Vec<u64> =
        groups.iter().filter_map(|group| u64::try_from(group.first_row).ok()).collect();
    starts.sort_unstable();
    let border = |number: u64| {
        let even = rows * number / count;
        let before = starts.partition_point(|&start| start <= even).checked_sub(1);
        match before.map(|index| starts[index]) {
            // Less than half a unit before: the border before this one is further away.
            Some(start) if even - start < target.div_ceil(2) => start,
            _ => even,
        }
    };
    let mut borders = vec![0];
    borders.extend((1..count).map(border));
    borders.push(rows);
    borders.windows(2).map(|two| two[0]..two[1]).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn groups(sizes: &[i64]) -> Vec<RowGroup> {
        let mut first_row = 0;
        let group = |&num_rows: &i64| {
            first_row += num_rows;
            RowGroup {
                first_row: first_row - num_rows,
                num_rows,
                compressed_bytes: 0,
                uncompressed_bytes: 0,
                missing_images: [0, 0],
            }
        };
        sizes.iter().map(group).collect()
    }

    /// Where the units of the first so many rows in such groups begin.
    fn starts(sizes: &[i64], rows: u64) -> Vec<u64> {
        let all = sizes.iter().sum::<i64>() as u64;
        cut(&groups(sizes), all, rows, 1024).into_iter().map(|unit| unit.start).collect()
    }

    #[test]
    fn small_files_are_one_unit_and_borders_are_those_of_row_groups() {
        assert_eq!(starts(&[100, 60], 160), [0]);
        assert_eq!(starts(&[], 0), [0]);
        assert_eq!(starts(&[2047], 2047), [0]);
        assert_eq!(starts(&[100; 33], 3300), [0, 1100, 2200]);
        // One giant row group is cut by rows.
        assert_eq!(starts(&[3300], 3300), [0, 1100, 2200]);
        // `--limit` moves no border, but a short rest has no unit of its own.
        assert_eq!(starts(&[100; 33], 2100), [0, 1100]);
        assert_eq!(starts(&[100; 33], 1500), [0]);
        assert_eq!(starts(&[100; 33], 0), [0]);
    }

    proptest! {
        #[test]
        fn units_cover_every_row_once_and_have_at_least_half_the_pairs(
            sizes in proptest::collection::vec(0i64..40, 0..60), target in 1u64..50, part in 0u64..=100
        ) {
            let total: i64 = sizes.iter().sum();
            let rows = total as u64 * part / 100;
            let units = cut(&groups(&sizes), total as u64, rows, target);
            prop_assert_eq!(units[0].start, 0);
            prop_assert_eq!(units[units.len() - 1].end, rows);
            prop_assert!(units.windows(2).all(|two| two[0].end == two[1].start));
            for unit in units.iter().filter(|_| units.len() > 1) {
                let length = unit.end - unit.start;
                prop_assert!(2 * length > target && length < 3 * target, "{:?}", units);
            }
        }
    }
}
