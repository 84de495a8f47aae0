//! What a process may have to score, and what it gets.

use anyhow::Result;
use runkit::progress::Progress;

use super::batches::Choice;
use super::pipeline::Task;
use super::sharing::Member;
use super::{Run, part};

/// What this process may have to score.
#[derive(Debug, Default)]
pub(super) struct Todo {
    /// Units without a part that this process may get.
    pub(super) units: Vec<usize>,
    /// For every unit of the run, whether an earlier start or another process has scored it.
    pub(super) done: Vec<bool>,
    /// Distinct images of the units that this process may get, the scored ones too.
    pub(super) images: u64,
    /// Those of them that are scored.
    pub(super) images_done: u64,
}

impl Todo {
    pub(super) fn find(run: &Run<'_>) -> Result<Self> {
        let (config, count) = (run.config, run.plan.units.len());
        let mut todo = Self { done: vec![false; count], ..Self::default() };
        for (index, unit) in run.plan.units.iter().enumerate() {
            if !config.sharing.may_do(index) {
                continue;
            }
            let path = part::path(&run.parts, index, count);
            let owned = run.plan.images_owned_by(unit);
            todo.images += owned;
            if !config.fresh && part::is_done(&path, &run.fingerprint)? {
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
    /// What this process gets to score, unit by unit.
    pub(super) fn tasks<'task>(
        &'task self,
        todo: &'task Todo,
        member: &'task Member<'_>,
        progress: &'task Progress,
    ) -> impl Iterator<Item = Result<Task>> + Send + 'task {
        let count = self.plan.units.len();
        let mut units = member.deal("units", count);
        let mut next = 0;
        // Units that are dealt to others move the progress of all.
        let pass = move |from: usize, to: usize| {
            for unit in (from..to).filter(|&unit| member.has_store() && !todo.done[unit]) {
                progress.add(self.plan.images_owned_by(&self.plan.units[unit]));
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
                if todo.done[unit] {
                    continue;
                }
                let path = part::path(&self.parts, unit, count);
                match part::is_done(&path, &self.fingerprint) {
                    Ok(true) => pass(unit, unit + 1),
                    Ok(false) => return Some(Ok(Task { unit, choice: Choice::First, path })),
                    Err(error) => return Some(Err(error)),
                }
            }
        })
    }
}
