//! Which images are scored, and in which order: those that a command names, and those that the
//! folder's scores already hold.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};

use super::existing::{Existing, ExistingIndex, ordered};
use super::images::{Collection, Subject};
use crate::prompts::Prompt;

/// Why an image belongs to the scores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    /// The command names it. If it has no file, its row says so.
    Named,
    /// The scores hold it already, or its model is in the folder.
    Existing,
    /// It does not belong to them.
    No,
}

/// The images and prompts of a run.
pub(super) struct Scope<'run> {
    pub(super) out: &'run Path,
    /// Named and existing ones, in the order of the rows.
    pub(super) prompts: Vec<&'run Prompt>,
    /// The ids and sets that the command names.
    named: HashSet<(&'run str, &'run str)>,
    collections: &'run [Collection],
    pub(super) existing: ExistingIndex<'run>,
}

impl<'run> Scope<'run> {
    pub(super) fn new(
        out: &'run Path,
        named: &'run [Prompt],
        existing_prompts: &'run [Prompt],
        collections: &'run [Collection],
        existing: &'run Existing,
    ) -> Self {
        let key = |prompt: &'run Prompt| (prompt.set.as_str(), prompt.id.as_str());
        Self {
            out,
            prompts: merged(named, existing_prompts),
            named: named.iter().map(key).collect(),
            collections,
            existing: existing.index(),
        }
    }

    fn wanted(&self, collection: &Collection, prompt: &Prompt, seed: u64) -> Wanted {
        let named = self.named.contains(&(prompt.set.as_str(), prompt.id.as_str()))
            && collection.seeds.contains(&seed);
        if named && collection.named {
            Wanted::Named
        } else if named || !self.existing.rows(&collection.model, prompt, seed).is_empty() {
            Wanted::Existing
        } else {
            Wanted::No
        }
    }

    /// Whether the scores have rows of an image under a prompt of a set.
    pub(super) fn has(&self, collection: &Collection, prompt: &Prompt, seed: u64) -> bool {
        self.wanted(collection, prompt, seed) != Wanted::No
    }

    /// The images of each model, prompt by prompt; an image of two sets once. Also counts the
    /// images of existing scores that are gone.
    pub(super) fn subjects(&self) -> (Vec<Vec<Subject<'run>>>, usize) {
        let mut gone = 0;
        let collections = self.collections.iter();
        let subjects = collections.map(|collection| self.of_model(collection, &mut gone)).collect();
        (subjects, gone)
    }

    fn of_model(&self, collection: &'run Collection, gone: &mut usize) -> Vec<Subject<'run>> {
        let mut seeds: BTreeSet<u64> = collection.seeds.clone();
        seeds.extend(self.existing.seeds(&collection.model));
        let mut subjects: Vec<Subject<'run>> = Vec::new();
        let mut known = HashMap::<(&str, u64), Option<usize>>::new();
        for &prompt in &self.prompts {
            for &seed in &seeds {
                let wanted = self.wanted(collection, prompt, seed);
                let place = known.get(&(prompt.id.as_str(), seed)).copied();
                if wanted == Wanted::No || place.is_some_and(|place| place.is_some()) {
                    continue;
                }
                let existing = self.existing.rows(&collection.model, prompt, seed).first();
                let (path, elsewhere) =
                    self.find(collection, prompt, seed, existing.map(|row| &*row.image));
                if wanted == Wanted::Existing && path.is_none() && !elsewhere {
                    *gone += usize::from(existing.is_some() && place.is_none());
                    known.insert((&prompt.id, seed), None);
                    continue;
                }
                known.insert((&prompt.id, seed), Some(subjects.len()));
                subjects.push(Subject {
                    model: &collection.model,
                    prompt,
                    seed,
                    is_gone: wanted == Wanted::Existing && path.is_none(),
                    path,
                });
            }
        }
        subjects
    }

    /// The file of an image, and whether existing scores have it outside the folder: then they stay
    /// if it is gone.
    fn find(
        &self,
        collection: &Collection,
        prompt: &Prompt,
        seed: u64,
        existing: Option<&str>,
    ) -> (Option<PathBuf>, bool) {
        let elsewhere = existing.is_some_and(|image| Path::new(image).is_absolute());
        let of_row = || existing.map(|image| self.out.join(image)).filter(|path| path.is_file());
        (collection.find(prompt, seed).or_else(of_row), elsewhere)
    }
}

/// Named and existing prompts, set by set; within a set in the order of its file.
fn merged<'run>(named: &'run [Prompt], existing: &'run [Prompt]) -> Vec<&'run Prompt> {
    let sets = |prompts: &'run [Prompt]| {
        let mut sets: Vec<&str> = Vec::new();
        for prompt in prompts {
            if !sets.contains(&prompt.set.as_str()) {
                sets.push(&prompt.set);
            }
        }
        sets
    };
    let mut prompts = Vec::with_capacity(named.len() + existing.len());
    for set in ordered(&sets(named), &sets(existing)) {
        let of = |prompts: &'run [Prompt]| prompts.iter().filter(move |prompt| prompt.set == set);
        let first = prompts.len();
        prompts.extend(of(named));
        let ours: HashSet<&str> = of(named).map(|prompt| prompt.id.as_str()).collect();
        let besides = of(existing).filter(|prompt| !ours.contains(prompt.id.as_str()));
        let count = prompts.len();
        prompts.extend(besides);
        if first < count && count < prompts.len() {
            prompts[first..].sort_by_key(|prompt| row(&prompt.id));
        }
    }
    prompts
}

/// The row in a prompt's id. Ids of other programs come last.
pub(super) fn row(id: &str) -> u64 {
    let row = id.split_once('-').and_then(|(row, _)| row.parse().ok());
    row.unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prompt(set: &str, id: &str) -> Prompt {
        let text = id.to_owned();
        Prompt { id: id.to_owned(), text, category: None, set: set.to_owned() }
    }

    #[test]
    fn prompts_stand_as_their_files_have_them() {
        let named = [prompt("b", "00002-x"), prompt("c", "00001-x")];
        let existing = [prompt("a", "00001-x"), prompt("b", "00001-x"), prompt("b", "00003-x")];
        let order: Vec<(&str, &str)> =
            merged(&named, &existing).iter().map(|prompt| (&*prompt.set, &*prompt.id)).collect();
        let expected = [
            ("a", "00001-x"),
            ("b", "00001-x"),
            ("b", "00002-x"),
            ("b", "00003-x"),
            ("c", "00001-x"),
        ];
        assert_eq!(order, expected);
        assert_eq!([row("123456-x"), row("other")], [123_456, u64::MAX]);
    }
}
