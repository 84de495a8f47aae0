//! What the scores of a unit depend on, besides the scorers: which of them are those of another run
//! is decided by it.
//!
//! The batches of a unit follow from its images, and from the captions of those that it owns; the
//! features of a caption from the captions of its group. All of that is in the key of a unit. A unit
//! keeps its key if rows are added behind it, unless they bring new captions for its images.

use std::io::Read as _;

use anyhow::{Context as _, Result};

use super::super::captions::Groups;
use super::{Digest, NO_INDEX, Plan, digest};

/// Stands for an image that an earlier unit owns.
const EARLIER: u32 = NO_INDEX - 1;

impl Plan {
    /// The key of every unit, in hexadecimal: equal keys, equal batches.
    ///
    /// # Errors
    /// If the text of the captions cannot be read.
    pub(crate) fn unit_keys(&self, batch_size: usize) -> Result<Vec<String>> {
        let groups = Groups::of(self);
        let texts = self.group_digests(&groups)?;
        let mut keys = Vec::with_capacity(self.units.len());
        for unit in &self.units {
            let mut hasher = blake3::Hasher::new();
            let mut number = |number: u64| {
                hasher.update(&number.to_le_bytes());
            };
            number(batch_size as u64);
            number(unit.rows.start);
            number(unit.rows.end);
            let slots = unit.slots();
            for slot in slots.clone() {
                let owner = self.owner(slot).unwrap_or(NO_INDEX);
                if owner == NO_INDEX {
                    number(u64::from(NO_INDEX));
                } else if u64::from(owner) < slots.start {
                    number(u64::from(EARLIER));
                } else {
                    number(u64::from(owner) - slots.start);
                }
            }
            let mut used = Vec::new();
            for slot in self.owners_in(unit) {
                let captions = self.image_captions_of(slot);
                number(captions.len() as u64);
                for caption in captions.filter_map(|it| Some(self.image_caption(it)?.caption)) {
                    number(u64::from(caption));
                    used.push(groups.group_of(caption));
                }
            }
            used.sort_unstable();
            used.dedup();
            hasher.update(env!("CARGO_PKG_VERSION").as_bytes());
            hasher.update(self.files[unit.file].fingerprint.as_bytes());
            for group in used {
                hasher.update(&groups.captions(group).start.to_le_bytes());
                hasher.update(&texts[group]);
            }
            keys.push(hasher.finalize().to_hex()[..32].to_owned());
        }
        Ok(keys)
    }

    /// The slots of a unit at which a uid occurs first.
    fn owners_in(&self, unit: &super::Unit) -> impl Iterator<Item = u32> {
        let owners = unit.slots().filter_map(|slot| Some((slot, self.owner(slot)?)));
        owners.filter(|&(slot, owner)| slot == u64::from(owner)).map(|(_, owner)| owner)
    }

    /// A digest of the text of each group of captions.
    fn group_digests(&self, groups: &Groups) -> Result<Vec<Digest>> {
        let (mut text, mut before) = (self.captions.reader(), 0);
        let mut digests = Vec::with_capacity(groups.len());
        for group in 0..groups.len() {
            let ends = &self.captions.ends()[groups.captions(group)];
            let end = ends.last().copied().unwrap_or(before);
            let mut bytes = vec![0; usize::try_from(end - before)?];
            text.read_exact(&mut bytes).context("reading the captions")?;
            // Where one caption ends and the next begins is part of it.
            ends.iter().for_each(|end| bytes.extend_from_slice(&(end - before).to_le_bytes()));
            digests.push(digest(&bytes));
            before = end;
        }
        Ok(digests)
    }

    /// Which units have the very batches that they had in a run over the first `rows` rows alone,
    /// with units of the same size.
    pub(crate) fn units_of_first(&self, rows: u64, unit_pairs: u64) -> Vec<bool> {
        if rows >= self.pairs() {
            return vec![rows == self.pairs(); self.units.len()];
        }
        let end = |index: usize| self.units[index].slots().end / 2;
        let begin = |index: usize| self.units[index].slots().start / 2;
        // A run that ends soon after a unit of the same file took the short rest into it.
        let took_rest = |index: usize| {
            let rest = rows - end(index);
            let next = self.units.get(index + 1);
            let is_same_file = next.is_some_and(|next| next.file == self.units[index].file);
            is_same_file && end(index + 1) > rows && rest > 0 && 2 * rest <= unit_pairs
        };
        let complete: Vec<bool> =
            (0..self.units.len()).map(|index| end(index) <= rows && !took_rest(index)).collect();
        // Where each caption and each image-caption pair occurs first.
        let mut unit_of_caption = Vec::with_capacity(self.captions.len());
        let mut known = vec![false; self.image_caption_count()];
        for index in 0..self.units.len() {
            for row in begin(index)..end(index) {
                let Some(caption) = self.caption_at(2 * row) else { continue };
                if caption as usize == unit_of_caption.len() {
                    unit_of_caption.push(index);
                }
                if row < rows {
                    let slots = [2 * row, 2 * row + 1];
                    let pairs = slots.into_iter().filter_map(|slot| self.image_caption_at(slot));
                    pairs.for_each(|pair| known[pair as usize] = true);
                }
            }
        }
        let is_same = |pair: u32| {
            let caption = self.image_caption(pair).map_or(0, |pair| pair.caption as usize);
            let unit = unit_of_caption.get(caption).copied().unwrap_or(usize::MAX);
            known[pair as usize] && complete.get(unit).copied().unwrap_or(false)
        };
        (0..self.units.len())
            .map(|index| {
                let mut owners = self.owners_in(&self.units[index]);
                complete[index] && owners.all(|owner| self.image_captions_of(owner).all(&is_same))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use runkit::signals::StopFlag;
    use schemas::pairs::{InputFile, discover};

    use super::super::PlanOptions;
    use super::*;

    fn plan(inputs: &[InputFile], limit: Option<u64>, unit_pairs: u64) -> Plan {
        let options = PlanOptions { limit, unit_pairs, marks: [200, 0] };
        let folder = tempfile::tempdir().unwrap();
        Plan::make(inputs, options, folder.path(), &StopFlag::never()).unwrap()
    }

    /// A unit is that of an earlier run over fewer rows where the keys say so, and its groups of
    /// captions are.
    #[test]
    fn units_of_a_run_over_fewer_rows_are_those_with_its_keys() {
        let sample = concat!(env!("CARGO_MANIFEST_DIR"), "/../data/sample");
        let inputs = discover(&[PathBuf::from(sample)], &[]).unwrap().files;
        let (mut same, mut other) = (0, 0);
        for (limit, unit_pairs) in
            [(1, 9), (7, 9), (160, 40), (163, 40), (200, 20), (333, 50), (479, 7), (480, 50)]
        {
            let whole = plan(&inputs, None, unit_pairs);
            let part = plan(&inputs, Some(limit), unit_pairs);
            let keys = whole.unit_keys(8).unwrap();
            let before = part.unit_keys(8).unwrap();
            assert_ne!(whole.unit_keys(16).unwrap(), keys);
            let found = whole.units_of_first(limit, unit_pairs);
            for (index, key) in keys.iter().enumerate() {
                let is_same = before.get(index) == Some(key);
                assert!(is_same || !found[index], "{limit}: {index}");
            }
            same += found.iter().filter(|it| **it).count();
            other += found.iter().filter(|it| !**it).count();
        }
        assert!(same > 20 && other > 20, "{same} and {other}");
        let marked = plan(&inputs, None, 50).marked;
        assert_eq!(marked, [(200, plan(&inputs, Some(200), 50).content)]);
    }
}
