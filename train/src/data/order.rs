//! The order of an epoch: a function of the seed, the epoch and the footers of the input, close to
//! uniform over the whole set, and cheap to enter at any position.
//!
//! A uniform permutation of the rows would read a random row group for every pair, and the
//! published collection (335 GB) does not fit into memory. So the order is shuffled in two levels:
//! the input is split into blocks of neighbouring rows (row groups; a large one into several
//! blocks), the blocks are permuted over the whole set and grouped into windows that fit into
//! memory, and the rows of a window are permuted. This needs only the footers, and a resumed run
//! finds its position with a binary search over the windows, without reading what came before.
//!
//! Neither the labels nor the memory of a run change the order: two runs over the same pairs with
//! the same seed see the pairs that both train on in the same order.
//!
//! Both permutations sort by a hash. An epoch has two keys: the first 16 bytes of the BLAKE3 hash
//! of `train/order/1` and then seed and epoch as little-endian 64-bit numbers. Blocks are sorted by
//! XXH3 (64 bits) of the block's number with the first key as seed, rows by that of their location,
//! file · 2³² + row, with the second. Changing any of this, or [`BLOCK_BYTES`] or [`WINDOW_BYTES`],
//! changes every run.

use std::ops::Range;

use xxhash_rust::xxh3::xxh3_64_with_seed;

/// The size of a window in bytes of encoded pairs: about a thousand pairs of the published
/// collection.
pub const WINDOW_BYTES: u64 = 256 << 20;
/// The largest block, except for a single larger row. A window then mixes rows from 64 parts of the
/// set.
pub const BLOCK_BYTES: u64 = 4 << 20;

/// Neighbouring rows of one file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Block {
    pub(crate) file: u32,
    pub(crate) first_row: u32,
    pub(crate) rows: u32,
    bytes: u64,
}

/// The blocks of all files.
#[derive(Debug)]
pub(crate) struct Geometry {
    blocks: Vec<Block>,
    window_bytes: u64,
}

impl Geometry {
    /// Makes blocks from the rows and bytes of each row group of each file.
    pub(crate) fn new(files: &[Vec<(u32, u64)>]) -> Self {
        Self::with_sizes(files, BLOCK_BYTES, WINDOW_BYTES)
    }

    pub(crate) fn with_sizes(
        files: &[Vec<(u32, u64)>],
        block_bytes: u64,
        window_bytes: u64,
    ) -> Self {
        let mut blocks = Vec::new();
        for (file, groups) in (0..).zip(files) {
            let mut group_start = 0_u32;
            for &(rows, bytes) in groups.iter().filter(|(rows, _)| *rows > 0) {
                let count = bytes.div_ceil(block_bytes.max(1)).clamp(1, u64::from(rows));
                let cut = |block: u64| to_u32(block * u64::from(rows) / count);
                for block in 0..count {
                    let (start, end) = (cut(block), cut(block + 1));
                    let rows_here = u64::from(end - start);
                    blocks.push(Block {
                        file,
                        first_row: group_start.saturating_add(start),
                        rows: end - start,
                        bytes: fraction_of(bytes, rows_here, u64::from(rows)).max(1),
                    });
                }
                group_start = group_start.saturating_add(rows);
            }
        }
        Self { blocks, window_bytes: window_bytes.max(1) }
    }
}

/// number · part / whole, without overflow.
fn fraction_of(number: u64, part: u64, whole: u64) -> u64 {
    let fraction = u128::from(number) * u128::from(part) / u128::from(whole.max(1));
    u64::try_from(fraction).unwrap_or(u64::MAX)
}

fn to_u32(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// The selected rows, file after file, in ascending order within a file.
#[derive(Debug, Default)]
pub(crate) struct Rows {
    /// The index at which each file's rows start, and the end of the last file's.
    starts: Vec<usize>,
    rows: Vec<u32>,
}

impl Rows {
    pub(crate) fn new() -> Self {
        Self { starts: vec![0], rows: Vec::new() }
    }

    /// Adds a row of the current file.
    pub(crate) fn push(&mut self, row: u32) {
        self.rows.push(row);
    }

    /// Ends the current file.
    pub(crate) fn end_file(&mut self) {
        self.starts.push(self.rows.len());
    }

    /// Splits the rows into those that are `wanted`, by index, and the others.
    pub(crate) fn split(&self, wanted: &[bool]) -> (Self, Self) {
        let (mut these, mut others) = (Self::new(), Self::new());
        for bounds in self.starts.windows(2) {
            for index in bounds[0]..bounds[1] {
                let side = match wanted.get(index) {
                    Some(true) => &mut these,
                    _ => &mut others,
                };
                side.rows.extend(self.rows.get(index));
            }
            these.end_file();
            others.end_file();
        }
        (these, others)
    }

    pub(crate) fn len(&self) -> usize {
        self.rows.len()
    }

    /// The location of the row with this index.
    pub(crate) fn location(&self, index: usize) -> Location {
        let file = self.starts.partition_point(|&start| start <= index).saturating_sub(1);
        Location { file: to_u32(file as u64), row: self.rows.get(index).copied().unwrap_or(0) }
    }

    /// The indexes of the rows of a block.
    fn of(&self, block: &Block) -> Range<usize> {
        let first = u64::from(block.first_row);
        self.between(block.file as usize, first..first + u64::from(block.rows))
    }

    /// The indexes of the rows that are in a range of a file's rows.
    fn between(&self, file: usize, rows: Range<u64>) -> Range<usize> {
        let bound = |file: usize| self.starts.get(file).copied().unwrap_or(self.rows.len());
        let (start, end) = (bound(file), bound(file + 1));
        let all = self.rows.get(start..end).unwrap_or_default();
        let index = |limit: u64| start + all.partition_point(|&row| u64::from(row) < limit);
        index(rows.start)..index(rows.end)
    }

    /// The rows that are in a range of a file's rows.
    pub(crate) fn among(&self, file: usize, rows: Range<u64>) -> &[u32] {
        self.rows.get(self.between(file, rows)).unwrap_or_default()
    }
}

/// The location of a pair in the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Location {
    pub(crate) file: u32,
    pub(crate) row: u32,
}

impl Location {
    /// file · 2³² + row.
    pub(crate) fn number(self) -> u64 {
        (u64::from(self.file) << 32) | u64::from(self.row)
    }
}

/// The order of one epoch.
#[derive(Debug)]
pub(crate) struct EpochOrder {
    /// All blocks, permuted.
    blocks: Vec<Block>,
    /// The blocks of each window.
    windows: Vec<Range<usize>>,
    /// The position in the epoch at which each window starts, and after the last the end.
    starts: Vec<u64>,
    row_key: u64,
}

impl EpochOrder {
    pub(crate) fn new(geometry: &Geometry, rows: &Rows, seed: u64, epoch: u64) -> Self {
        let (block_key, row_key) = keys(seed, epoch);
        let mut numbers: Vec<(u64, usize)> = (0..geometry.blocks.len())
            .map(|number| (xxh3_64_with_seed(&(number as u64).to_le_bytes(), block_key), number))
            .collect();
        numbers.sort_unstable();
        let blocks: Vec<Block> = numbers
            .iter()
            .filter_map(|(_, number)| geometry.blocks.get(*number))
            .copied()
            .collect();
        // As few windows as possible, all of about the same size: a small last window would mix its
        // rows less than the others. A window ends at the block that reaches its part of the total,
        // computed in u128 since bytes times a count of windows may exceed u64.
        let total: u128 = blocks.iter().map(|block| u128::from(block.bytes)).sum();
        let count = total.div_ceil(u128::from(geometry.window_bytes)).max(1);
        let (mut windows, mut starts) = (Vec::new(), vec![0]);
        let (mut first, mut bytes, mut position) = (0, 0_u128, 0_u64);
        for (number, block) in blocks.iter().enumerate() {
            bytes += u128::from(block.bytes);
            position += rows.of(block).len() as u64;
            let due = (windows.len() as u128 + 1) * total / count;
            if bytes >= due || number + 1 == blocks.len() {
                windows.push(first..number + 1);
                starts.push(position);
                first = number + 1;
            }
        }
        Self { blocks, windows, starts, row_key }
    }

    /// The window that holds the pair at `position` of the epoch.
    pub(crate) fn window_at(&self, position: u64) -> usize {
        self.starts.partition_point(|&start| start <= position).saturating_sub(1)
    }

    /// How many windows there are.
    pub(crate) fn windows(&self) -> usize {
        self.windows.len()
    }

    /// The position in the epoch at which a window starts.
    pub(crate) fn start_of(&self, window: usize) -> u64 {
        self.starts.get(window).copied().unwrap_or(0)
    }

    /// The indexes of the rows of a window, permuted.
    pub(crate) fn rows_of(&self, window: usize, rows: &Rows) -> Vec<usize> {
        let blocks = self.windows.get(window).cloned().unwrap_or_default();
        let mut keyed: Vec<(u64, usize)> = self
            .blocks
            .get(blocks)
            .unwrap_or_default()
            .iter()
            .flat_map(|block| rows.of(block))
            .map(|index| {
                // By location rather than by index: a selection of other rows keeps the order.
                let location = rows.location(index).number().to_le_bytes();
                (xxh3_64_with_seed(&location, self.row_key), index)
            })
            .collect();
        keyed.sort_unstable();
        keyed.into_iter().map(|(_, index)| index).collect()
    }
}

/// The keys of blocks and rows.
fn keys(seed: u64, epoch: u64) -> (u64, u64) {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"train/order/1").update(&seed.to_le_bytes()).update(&epoch.to_le_bytes());
    let mut keys = [0; 16];
    hasher.finalize_xof().fill(&mut keys);
    let keys = u128::from_le_bytes(keys);
    (keys as u64, (keys >> 64) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn all_rows(files: &[Vec<(u32, u64)>]) -> Rows {
        let mut rows = Rows::new();
        for groups in files {
            let count: u32 = groups.iter().map(|(rows, _)| rows).sum();
            (0..count).for_each(|row| rows.push(row));
            rows.end_file();
        }
        rows
    }

    fn order_of(geometry: &Geometry, rows: &Rows, seed: u64, epoch: u64) -> Vec<usize> {
        let order = EpochOrder::new(geometry, rows, seed, epoch);
        (0..order.windows()).flat_map(|window| order.rows_of(window, rows)).collect()
    }

    fn correlation(order: &[usize]) -> f64 {
        let n = order.len() as f64;
        let mean = (n - 1.0) / 2.0;
        let covariance: f64 = order
            .iter()
            .enumerate()
            .map(|(position, &index)| (position as f64 - mean) * (index as f64 - mean))
            .sum();
        covariance / (n * (n * n - 1.0) / 12.0)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

        /// Every row once, whatever the row groups, the block and the window; and every position is
        /// found in the window that holds it.
        #[test]
        fn an_epoch_is_a_permutation(
            files in prop::collection::vec(prop::collection::vec((0_u32..40, 0_u64..4000), 0..6), 1..5),
            kept in prop::collection::vec(any::<bool>(), 1..50),
            (block, window) in (1_u64..2000, 1_u64..9000),
            (seed, epoch) in (any::<u64>(), 0_u64..5),
        ) {
            let geometry = Geometry::with_sizes(&files, block, window);
            let mut rows = Rows::new();
            let mut number = 0;
            for groups in &files {
                for row in 0..groups.iter().map(|(rows, _)| rows).sum() {
                    if kept[number % kept.len()] {
                        rows.push(row);
                    }
                    number += 1;
                }
                rows.end_file();
            }
            let order = EpochOrder::new(&geometry, &rows, seed, epoch);
            let mut found = order_of(&geometry, &rows, seed, epoch);
            for position in 0..rows.len() as u64 {
                let window = order.window_at(position);
                let inside = position - order.start_of(window);
                prop_assert_eq!(order.rows_of(window, &rows)[inside as usize], found[position as usize]);
            }
            found.sort_unstable();
            prop_assert_eq!(found, (0..rows.len()).collect::<Vec<_>>());
        }
    }

    #[test]
    fn the_order_is_a_function_of_seed_and_epoch_that_never_changes() {
        let files = vec![vec![(3, 30), (4, 40)], vec![(5, 50)]];
        let geometry = Geometry::with_sizes(&files, 20, 60);
        let rows = all_rows(&files);
        let order = order_of(&geometry, &rows, 7, 0);
        assert_eq!(order, order_of(&geometry, &rows, 7, 0));
        assert_ne!(order, order_of(&geometry, &rows, 7, 1));
        assert_ne!(order, order_of(&geometry, &rows, 8, 0));
        // Runs in the field would no longer be resumed exactly if this changed.
        assert_eq!(order, EXPECTED);
    }

    const EXPECTED: [usize; 12] = [0, 7, 9, 1, 2, 8, 11, 6, 5, 10, 4, 3];

    #[test]
    fn a_selection_keeps_the_order_of_what_it_keeps() {
        let files = vec![vec![(100, 1000); 5], vec![(50, 700); 3]];
        let geometry = Geometry::with_sizes(&files, 100, 1500);
        let whole = all_rows(&files);
        let mut half = Rows::new();
        for (file, count) in [(0_u32, 500_u32), (1, 150)] {
            (0..count).filter(|row| (row + file) % 2 == 0).for_each(|row| half.push(row));
            half.end_file();
        }
        let location = |rows: &Rows, index: usize| rows.location(index);
        let of_half: Vec<Location> =
            order_of(&geometry, &half, 3, 2).iter().map(|&index| location(&half, index)).collect();
        let of_whole: Vec<Location> = order_of(&geometry, &whole, 3, 2)
            .iter()
            .map(|&index| location(&whole, index))
            .filter(|location| (location.row + location.file) % 2 == 0)
            .collect();
        assert_eq!(of_half, of_whole);
    }

    /// With windows of a sixteenth of the set: no trend, neighbours do not stay neighbours, and
    /// over many epochs every row comes at every time.
    #[test]
    fn the_order_is_close_to_uniform() {
        let files = vec![vec![(50, 50_000); 20]; 4];
        let geometry = Geometry::with_sizes(&files, 4000, 250_000);
        let rows = all_rows(&files);
        let count = rows.len();
        assert_eq!(count, 4000);
        let (epochs, mut sums, mut neighbours) = (200, vec![0_u64; count], 0);
        for epoch in 0..epochs {
            let order = order_of(&geometry, &rows, 1, epoch);
            // Blocks of four rows stay in one window, so the std of a correlation is about twice
            // that of a uniform order, 2/√4000; five of them.
            assert!(correlation(&order).abs() < 0.16, "epoch {epoch}: {}", correlation(&order));
            order.iter().enumerate().for_each(|(place, &index)| sums[index] += place as u64);
            neighbours += order.windows(2).filter(|pair| pair[0].abs_diff(pair[1]) == 1).count();
        }
        // The mean of 200 uniform positions deviates by 4000/√12/√200 = 82.
        let mean = (count - 1) as f64 / 2.0;
        for (index, &sum) in sums.iter().enumerate() {
            let found = sum as f64 / epochs as f64;
            assert!((found - mean).abs() < 5.5 * 82.0, "row {index} comes at {found}");
        }
        // A uniform order has 2 neighbours an epoch. Here 3 of 4 rows have their neighbour in the
        // same window of 250: about 2 · 3000/250 = 24.
        let rate = neighbours as f64 / epochs as f64;
        assert!(rate < 40.0, "{rate} neighbours stay together");
    }

    #[test]
    fn tiny_and_odd_sets_have_orders() {
        for files in
            [vec![], vec![vec![]], vec![vec![(1, 0)]], vec![vec![(1, u64::MAX)], vec![(1, 1)]]]
        {
            let geometry = Geometry::new(&files);
            let rows = all_rows(&files);
            assert_eq!(order_of(&geometry, &rows, 0, 0).len(), rows.len());
        }
        // One row a group.
        let files = vec![vec![(1, 100); 1000]];
        let geometry = Geometry::with_sizes(&files, 1 << 20, 10_000);
        let rows = all_rows(&files);
        let order = EpochOrder::new(&geometry, &rows, 5, 0);
        assert_eq!(order.windows(), 10);
        assert!(correlation(&order_of(&geometry, &rows, 5, 0)).abs() < 5.0 / 1000_f64.sqrt());
        // Row groups of half a gigabyte.
        let files = vec![vec![(10_000, 500 << 20)]];
        let geometry = Geometry::new(&files);
        assert_eq!(geometry.blocks.len(), 125);
        assert!(geometry.blocks.iter().all(|block| block.rows == 80));
    }
}
