//! Ids of rows that are unique even if the input's own ids are not.
//!
//! In input order each row takes the first of these ids that no earlier row has: its own id, its
//! position `source_file:source_row`, the position followed by `#2`, `#3` and so on.

use std::collections::{BTreeSet, HashSet};

use super::{Digest, digest};

/// A row that is not named by its own id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Renamed {
    /// The row, counted over the whole run.
    pub(super) row: u32,
    /// 1: its position. More: its position and this number, since other rows have the ids before.
    pub(super) attempt: u32,
}

impl Renamed {
    /// Its id, made from its position.
    pub(super) fn name(self, place: &str) -> String {
        if self.attempt == 1 { place.to_owned() } else { format!("{place}#{}", self.attempt) }
    }
}

/// The rows that cannot keep their own id, in order. `ids` are the own ids with their rows, `place`
/// returns the position of a row as text.
///
/// Sorted lists instead of a set of all names: 20 bytes a row, and none if ids are unique.
pub(super) fn make_unique(
    mut ids: Vec<(Digest, u32)>,
    place: impl Fn(u32) -> String,
) -> Vec<Renamed> {
    ids.sort_unstable();
    let mut waiting: BTreeSet<u32> = ids
        .chunk_by(|one, other| one.0 == other.0)
        .flat_map(|rows| rows[1..].iter().map(|&(_, row)| row))
        .collect();
    let (mut renamed, mut given) = (Vec::new(), HashSet::new());
    // A renamed row may take the id of a later row, which then needs another one too.
    while let Some(row) = waiting.pop_first() {
        let place = place(row);
        let mut next = Renamed { row, attempt: 1 };
        loop {
            let name = digest(next.name(&place).as_bytes());
            let first = ids.partition_point(|(id, _)| *id < name);
            let holder = ids.get(first).filter(|(id, _)| *id == name).map(|&(_, holder)| holder);
            let is_free = holder.is_none_or(|holder| holder > row);
            if is_free && given.insert(name) {
                // Its later holders wait already.
                waiting.extend(holder);
                break;
            }
            next.attempt += 1;
        }
        renamed.push(next);
    }
    renamed
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The names of all rows, by the rule as it is stated.
    fn by_the_rule(own: &[String]) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        for (row, own) in own.iter().enumerate() {
            let place = format!("p:{row}");
            let numbered = (2..).map(|number| format!("{place}#{number}"));
            let mut choices = [own.clone(), place.clone()].into_iter().chain(numbered);
            names.push(choices.find(|name| !names.contains(name)).unwrap());
        }
        names
    }

    fn names(own: &[String]) -> Vec<String> {
        let ids = own.iter().zip(0..).map(|(own, row)| (digest(own.as_bytes()), row)).collect();
        let renamed = make_unique(ids, |row| format!("p:{row}"));
        assert!(renamed.is_sorted_by_key(|renamed| renamed.row));
        let mut names = own.to_vec();
        for renamed in renamed {
            names[renamed.row as usize] = renamed.name(&format!("p:{}", renamed.row));
        }
        names
    }

    #[test]
    fn a_renamed_row_takes_no_name_of_another() {
        let own = ["a", "a", "p:1", "p:2", "p:3"].map(str::to_owned);
        assert_eq!(names(&own), ["a", "p:1", "p:2", "p:3", "p:4"]);
        let own = ["p:1", "p:1", "p:1#2"].map(str::to_owned);
        assert_eq!(names(&own), ["p:1", "p:1#2", "p:2"]);
    }

    proptest! {
        #[test]
        fn names_are_unique_and_follow_the_rule(own in proptest::collection::vec("(a|p:[0-5](#[23])?)", 0..12)) {
            let names = names(&own);
            let distinct: HashSet<&String> = names.iter().collect();
            prop_assert_eq!(distinct.len(), names.len());
            prop_assert_eq!(names, by_the_rule(&own));
        }
    }
}
