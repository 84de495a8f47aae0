//! What there is to score: of each unit the scorers whose scores are not taken over, and which of
//! that a process may have to do, and what it gets.

use anyhow::Result;
use runkit::progress::Progress;

use super::batches::Choice;
use super::part::{PartKey, ScorerKey};
use super::pipeline::Task;
use super::reuse::Reuse;
use super::sharing::Member;
use super::{Run, part};

/// Units that lack the scores of the same scorers, which are loaded together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Group {
    /// Of each scorer whether it scores the units. If none does, they are only read.
    pub(super) scorers: Vec<bool>,
    /// For each unit of the run whether it is one of them.
    units: Vec<bool>,
}

/// The groups of a run's units, in order of their first units. It depends on nothing that a process
/// of the run changes, so that all of them have the same.
pub(super) fn groups(units: usize, scorers: usize, reuse: Option<&Reuse>) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for unit in 0..units {
        let wanted: Vec<bool> = (0..scorers)
            .map(|scorer| !reuse.is_some_and(|reuse| reuse.takes(unit, scorer)))
            .collect();
        let group = groups.iter().position(|group| group.scorers == wanted).unwrap_or_else(|| {
            groups.push(Group { scorers: wanted, units: vec![false; units] });
            groups.len() - 1
        });
        groups[group].units[unit] = true;
    }
    groups
}

impl Group {
    /// Whether its units are only read.
    pub(super) fn is_read_alone(&self) -> bool {
        !self.scorers.contains(&true)
    }

    /// The scorers of a list that has one entry for each scorer of the run.
    pub(super) fn of<'list, T>(&self, list: &'list [T]) -> impl Iterator<Item = &'list T> {
        list.iter().zip(&self.scorers).filter(|(_, wanted)| **wanted).map(|(it, _)| it)
    }
}

/// What this process may have to do.
#[derive(Debug, Default)]
pub(super) struct Todo {
    /// Units without a part that this process may get.
    pub(super) units: Vec<usize>,
    /// For every unit of the run, whether an earlier start or another process has scored it.
    pub(super) done: Vec<bool>,
    /// Distinct images of the units that this process may get and score, the scored ones too.
    pub(super) images: u64,
    /// Those of them that are scored.
    pub(super) images_done: u64,
}

impl Todo {
    pub(super) fn find(run: &Run<'_>) -> Result<Self> {
        let (config, count) = (run.config, run.plan.units.len());
        let mut todo = Self { done: vec![false; count], ..Self::default() };
        for index in (0..count).filter(|&index| config.sharing.may_do(index)) {
            let path = part::path(&run.parts, index, count);
            let owned = run.images_to_score(index);
            todo.images += owned;
            if !config.fresh && part::is_done(&path, &run.part_key(index))? {
                todo.images_done += owned;
                todo.done[index] = true;
            } else {
                todo.units.push(index);
            }
        }
        Ok(todo)
    }
}

impl Run<'_> {
    /// The group of a unit.
    pub(super) fn group_of(&self, unit: usize) -> &Group {
        // Every unit has one.
        self.groups.iter().find(|group| group.units[unit]).unwrap_or(&self.groups[0])
    }

    /// What the scores that this run computes in a unit depend on.
    pub(super) fn part_key(&self, unit: usize) -> PartKey {
        self.key_of(unit, self.group_of(unit))
    }

    /// The key of a part of a unit with the scores of these scorers.
    pub(super) fn key_of(&self, unit: usize, group: &Group) -> PartKey {
        let scorers: Vec<ScorerKey> = group.of(&self.scorer_keys).cloned().collect();
        PartKey { unit: self.unit_keys[unit].clone(), scorers }
    }

    /// The images of a unit that go through networks.
    pub(super) fn images_to_score(&self, unit: usize) -> u64 {
        match self.group_of(unit).is_read_alone() {
            true => 0,
            false => self.plan.images_owned_by(&self.plan.units[unit]),
        }
    }

    /// What this process gets to do of a group, unit by unit. `number` is that of the group.
    pub(super) fn tasks<'task>(
        &'task self,
        number: usize,
        todo: &'task Todo,
        member: &'task Member<'_>,
        progress: &'task Progress,
    ) -> impl Iterator<Item = Result<Task>> + Send + 'task {
        let count = self.plan.units.len();
        let group = &self.groups[number];
        let mut units = member.deal(&dealt("units", number), count);
        let mut next = 0;
        // Units that are dealt to others move the progress of all.
        let pass = move |from: usize, to: usize| {
            let others =
                |&unit: &usize| member.has_store() && !todo.done[unit] && group.units[unit];
            for unit in (from..to).filter(others) {
                progress.add(self.images_to_score(unit));
            }
        };
        std::iter::from_fn(move || {
            loop {
                let unit = match units.next() {
                    Some(Ok(unit)) => unit,
                    Some(Err(error)) => return Some(Err(error)),
                    None => {
                        pass(next, count);
                        next = count;
                        return None;
                    }
                };
                pass(next, unit);
                next = unit + 1;
                if todo.done[unit] || !group.units[unit] {
                    continue;
                }
                let (path, key) = (part::path(&self.parts, unit, count), self.key_of(unit, group));
                match part::is_done(&path, &key) {
                    Ok(true) => pass(unit, unit + 1),
                    Ok(false) => return Some(Ok(Task { unit, choice: Choice::First, path, key })),
                    Err(error) => return Some(Err(error)),
                }
            }
        })
    }
}

/// The name of a list that the processes of a run share out, for a group of this number.
pub(super) fn dealt(what: &str, number: usize) -> String {
    if number == 0 { what.to_owned() } else { format!("{what} {number}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_an_earlier_run_all_units_want_all_scorers() {
        let found = groups(3, 2, None);
        assert_eq!(found, [Group { scorers: vec![true; 2], units: vec![true; 3] }]);
        assert!(!found[0].is_read_alone());
        assert_eq!(found[0].of(&["clip", "hps"]).collect::<Vec<_>>(), [&"clip", &"hps"]);
        assert_eq!(dealt("units", 0), "units");
    }
}
