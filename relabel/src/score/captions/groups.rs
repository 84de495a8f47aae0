//! Which captions are encoded together.
//!
//! A feature's last bits depend on the captions that it was encoded with, so a group is the same in
//! every process, and also when pairs are added at the end of the input: a group has captions that
//! first appear in the same unit, in order of first appearance.

use std::ops::Range;

use super::super::plan::Plan;

/// Captions encoded together, at most.
pub(super) const GROUP: usize = 32;
/// Captions of a file in the work folder, at most: some groups, so that syncing them is little
/// beside encoding them.
pub(super) const CHUNK: usize = 4 * GROUP;

/// The groups of all captions of a run, and the chunks of groups that are kept together.
#[derive(Debug, Clone)]
pub(crate) struct Groups {
    /// The first caption of each group, and the number of captions.
    starts: Vec<usize>,
    /// The first group of each chunk, and the number of groups.
    chunks: Vec<usize>,
}

impl Groups {
    /// Those of a plan.
    pub(crate) fn of(plan: &Plan) -> Self {
        let per_unit = plan.units.iter().map(|unit| {
            let rows = unit.slots().start / 2..unit.slots().end / 2;
            rows.filter_map(|row| plan.caption_at(2 * row)).max().map_or(0, |last| last + 1)
        });
        Self::new(per_unit.map(|end| end as usize))
    }

    /// Of captions whose units end at these numbers; a unit without a new caption has a smaller one.
    fn new(ends: impl Iterator<Item = usize>) -> Self {
        let (mut starts, mut end) = (vec![0], 0);
        for of_unit in ends {
            while end < of_unit {
                end = of_unit.min(end + GROUP);
                starts.push(end);
            }
        }
        let groups = starts.len() - 1;
        let mut chunks = vec![0];
        let mut first = 0;
        for group in 0..groups {
            if starts[group + 1] - starts[first] > CHUNK {
                chunks.push(group);
                first = group;
            }
        }
        if groups > 0 {
            chunks.push(groups);
        }
        Self { starts, chunks }
    }

    /// How many groups.
    pub(crate) fn len(&self) -> usize {
        self.starts.len() - 1
    }

    /// How many chunks.
    pub(crate) fn chunks(&self) -> usize {
        self.chunks.len() - 1
    }

    /// The group of a caption.
    pub(crate) fn group_of(&self, caption: u32) -> usize {
        self.starts.partition_point(|&start| start <= caption as usize).saturating_sub(1)
    }

    /// The captions of a group.
    pub(crate) fn captions(&self, group: usize) -> Range<usize> {
        self.starts[group]..self.starts[group + 1]
    }

    /// The captions of some groups that follow each other.
    pub(super) fn captions_in(&self, groups: &Range<usize>) -> Range<usize> {
        self.starts[groups.start]..self.starts[groups.end]
    }

    /// The chunk of a group.
    pub(super) fn chunk_of(&self, group: usize) -> usize {
        self.chunks.partition_point(|&first| first <= group).saturating_sub(1)
    }

    /// The groups of a chunk.
    pub(super) fn groups_in(&self, chunk: usize) -> Range<usize> {
        self.chunks[chunk]..self.chunks[chunk + 1]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_end_with_their_unit_and_chunks_hold_whole_groups() {
        // Units with 40, no, 1 and 100 captions that are new in them.
        let groups = Groups::new([40, 7, 41, 141].into_iter());
        assert_eq!(groups.starts, [0, 32, 40, 41, 73, 105, 137, 141]);
        assert_eq!(groups.chunks, [0, 5, 7]);
        for caption in 0..141 {
            let group = groups.group_of(caption);
            assert!(groups.captions(group).contains(&(caption as usize)));
            assert!(groups.groups_in(groups.chunk_of(group)).contains(&group));
        }
        // More units change no group of the earlier ones.
        let more = Groups::new([40, 7, 41, 141, 150].into_iter());
        assert_eq!(more.starts[..groups.starts.len()], groups.starts);
        let none = Groups::new(std::iter::empty());
        assert_eq!((none.len(), none.chunks()), (0, 0));
    }
}
