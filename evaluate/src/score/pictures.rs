//! Which pictures are scored: those that `evaluate generate` drew, and folders of pictures made
//! elsewhere.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context as _, Result, bail, ensure};
use runkit::logging::escape_for_terminal;
use serde::{Deserialize, Serialize};

use crate::generate::ModelSource;
use crate::prompts::Prompt;

/// What pictures may be called after the dot.
const EXTENSIONS: [&str; 4] = ["png", "jpg", "jpeg", "webp"];
/// Lists of pictures in the manner of Hugging Face's ImageFolder.
const LISTS: [&str; 2] = ["metadata.jsonl", "metadata.csv"];

/// `NAME=DIR`: pictures made elsewhere, under a name of the user's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ImagesSource {
    /// What their model is called in tables.
    pub name: String,
    /// Where they are.
    pub folder: PathBuf,
}

impl FromStr for ImagesSource {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // The rules of names are those of models.
        let ModelSource { name, folder, unet } =
            text.parse().map_err(|error: String| error.replace(" or NAME=DIR,unet=DIR", ""))?;
        match unet {
            None => Ok(Self { name, folder }),
            Some(_) => Err(format!("expected NAME=DIR, a folder of pictures, found {text:?}")),
        }
    }
}

impl fmt::Display for ImagesSource {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}={}", self.name, self.folder.display())
    }
}

impl TryFrom<String> for ImagesSource {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<ImagesSource> for String {
    fn from(source: ImagesSource) -> Self {
        source.to_string()
    }
}

/// A picture that is to be scored, or should be there.
#[derive(Debug, Clone)]
pub(super) struct Subject<'run> {
    pub(super) model: &'run str,
    pub(super) prompt: &'run Prompt,
    pub(super) seed: u64,
    /// None where there is no such picture.
    pub(super) path: Option<PathBuf>,
}

/// The pictures of one model.
#[derive(Debug)]
pub(super) struct Collection {
    pub(super) model: String,
    /// The seeds that every prompt should have.
    seeds: BTreeSet<u64>,
    layout: Layout,
}

#[derive(Debug)]
enum Layout {
    /// `PROMPT_ID/SEED.png`.
    Folders(PathBuf),
    /// A list says which picture belongs to which prompt; by text and seed.
    Listed(HashMap<String, BTreeMap<u64, PathBuf>>),
}

impl Collection {
    /// Pictures that `evaluate generate` drew.
    pub(super) fn drawn(model: &str, folder: PathBuf, seeds: BTreeSet<u64>) -> Self {
        Self { model: model.to_owned(), seeds, layout: Layout::Folders(folder) }
    }

    /// Pictures made elsewhere; `seeds` where they are given, else those that are there.
    pub(super) fn made_elsewhere(
        source: &ImagesSource,
        prompts: &[Prompt],
        seeds: Option<BTreeSet<u64>>,
    ) -> Result<Self> {
        let folder = &source.folder;
        ensure!(folder.is_dir(), "{}: expected a folder of pictures", folder.display());
        let list = LISTS.iter().map(|name| folder.join(name)).find(|list| list.is_file());
        let (layout, found) = match list {
            Some(list) => {
                let listed = read_list(&list)?;
                let known = |text: &&String| prompts.iter().any(|prompt| prompt.text == **text);
                let matched = listed.keys().filter(known).count();
                ensure!(
                    matched > 0,
                    "{}: none of its {} prompts is among the prompts given; hint: are these its \
                     --prompts?",
                    list.display(),
                    listed.len()
                );
                if matched < listed.len() {
                    tracing::warn!(
                        "{}: {} of its {} prompts are not among the prompts given, their pictures \
                         are passed over",
                        escape_for_terminal(&list.display().to_string()),
                        listed.len() - matched,
                        listed.len()
                    );
                }
                let found = listed.values().flat_map(|seeds| seeds.keys().copied()).collect();
                (Layout::Listed(listed), found)
            }
            None => {
                let found = seeds_in_folders(folder, prompts)?;
                ensure!(
                    !found.is_empty(),
                    "{}: expected {} with file_name and prompt, or pictures PROMPT_ID/SEED.png as \
                     {}/0.png; found neither",
                    folder.display(),
                    LISTS.join(" or "),
                    prompts.first().map_or("00001-8f14e45f", |prompt| &prompt.id)
                );
                (Layout::Folders(folder.clone()), found)
            }
        };
        Ok(Self { model: source.name.clone(), seeds: seeds.unwrap_or(found), layout })
    }

    /// What is to be scored: every seed of every distinct prompt, prompt by prompt.
    pub(super) fn subjects<'run>(&'run self, prompts: &[&'run Prompt]) -> Vec<Subject<'run>> {
        let of_prompt = |&prompt: &&'run Prompt| {
            self.seeds.iter().map(move |&seed| Subject {
                model: &self.model,
                prompt,
                seed,
                path: self.find(prompt, seed),
            })
        };
        prompts.iter().flat_map(of_prompt).collect()
    }

    fn find(&self, prompt: &Prompt, seed: u64) -> Option<PathBuf> {
        match &self.layout {
            Layout::Folders(folder) => EXTENSIONS
                .iter()
                .map(|extension| folder.join(&prompt.id).join(format!("{seed}.{extension}")))
                .find(|path| path.is_file()),
            Layout::Listed(listed) => listed.get(&prompt.text)?.get(&seed).cloned(),
        }
    }
}

/// The numbers that pictures in the folders of prompts are called by.
fn seeds_in_folders(folder: &Path, prompts: &[Prompt]) -> Result<BTreeSet<u64>> {
    let mut seeds = BTreeSet::new();
    for prompt in prompts {
        let folder = folder.join(&prompt.id);
        if !folder.is_dir() {
            continue;
        }
        let entries = std::fs::read_dir(&folder)
            .with_context(|| format!("{}: cannot be listed", folder.display()))?;
        for entry in entries {
            let path = entry?.path();
            let extension = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
            if EXTENSIONS.contains(&extension.as_str()) {
                let stem = path.file_stem().unwrap_or_default().to_string_lossy();
                seeds.extend(stem.parse::<u64>().ok());
            }
        }
    }
    Ok(seeds)
}

/// A line of a list, as Hugging Face's ImageFolder has it.
#[derive(Deserialize)]
struct Listed {
    file_name: String,
    #[serde(alias = "text", alias = "caption")]
    prompt: String,
    seed: Option<u64>,
}

/// The pictures of a list by prompt and seed; without seeds they count up in the list's order.
fn read_list(list: &Path) -> Result<HashMap<String, BTreeMap<u64, PathBuf>>> {
    let folder = list.parent().unwrap_or(Path::new(""));
    let text = std::fs::read_to_string(list)
        .with_context(|| format!("{}: cannot be read", list.display()))?;
    let rows: Vec<Listed> = if list.extension().is_some_and(|extension| extension == "csv") {
        csv::Reader::from_reader(text.as_bytes()).deserialize().collect::<Result<_, _>>()?
    } else {
        let lines = text.lines().filter(|line| !line.trim().is_empty());
        lines.map(serde_json::from_str).collect::<Result<_, _>>().with_context(|| {
            format!("{}: expected file_name and prompt (or text) in each line", list.display())
        })?
    };
    let mut listed = HashMap::<String, BTreeMap<u64, PathBuf>>::new();
    for row in rows {
        let seeds = listed.entry(row.prompt.trim().to_owned()).or_default();
        let seed = row.seed.unwrap_or(seeds.len() as u64);
        if seeds.insert(seed, folder.join(&row.file_name)).is_some() {
            bail!(
                "{}: the prompt {:?} has two pictures of seed {seed}",
                list.display(),
                escape_for_terminal(&row.prompt)
            );
        }
    }
    Ok(listed)
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "fixtures need not be durable")]
mod tests {
    use super::*;

    fn prompt(row: usize, text: &str) -> Prompt {
        Prompt {
            id: format!("{row:05}-x"),
            text: text.to_owned(),
            set: "s".to_owned(),
            category: None,
        }
    }

    #[test]
    fn listed_pictures_belong_to_their_prompts() {
        let folder = tempfile::tempdir().unwrap();
        let lines = "{\"file_name\":\"a.png\",\"prompt\":\"a fox\"}\n\n\
                     {\"file_name\":\"b.png\",\"text\":\"a fox \"}\n\
                     {\"file_name\":\"c.png\",\"prompt\":\"a cat\",\"seed\":7}\n";
        std::fs::write(folder.path().join("metadata.jsonl"), lines).unwrap();
        let source: ImagesSource = format!("sd={}", folder.path().display()).parse().unwrap();
        let prompts = [prompt(1, "a fox"), prompt(2, "a dog")];
        let collection = Collection::made_elsewhere(&source, &prompts, None).unwrap();
        let both: Vec<&Prompt> = prompts.iter().collect();
        let subjects = collection.subjects(&both);
        let found: Vec<_> = subjects
            .iter()
            .map(|subject| (&*subject.prompt.text, subject.seed, subject.path.is_some()))
            .collect();
        let expected = [
            ("a fox", 0, true),
            ("a fox", 1, true),
            ("a fox", 7, false),
            ("a dog", 0, false),
            ("a dog", 1, false),
            ("a dog", 7, false),
        ];
        assert_eq!(found, expected);
        let error = Collection::made_elsewhere(&source, &prompts[1..], None).unwrap_err();
        assert!(error.to_string().contains("none of its 2 prompts"), "{error}");
    }

    #[test]
    fn folders_are_those_of_prompts() {
        let folder = tempfile::tempdir().unwrap();
        let prompts = [prompt(1, "a fox"), prompt(2, "a cat")];
        let source: ImagesSource = format!("sd={}", folder.path().display()).parse().unwrap();
        let error = Collection::made_elsewhere(&source, &prompts, None).unwrap_err().to_string();
        assert!(error.contains("00001-x/0.png; found neither"), "{error}");
        std::fs::create_dir(folder.path().join("00002-x")).unwrap();
        for name in ["3.jpg", "notes.png", "4.txt"] {
            std::fs::write(folder.path().join("00002-x").join(name), "").unwrap();
        }
        let collection = Collection::made_elsewhere(&source, &prompts, None).unwrap();
        let both: Vec<&Prompt> = prompts.iter().collect();
        let found: Vec<bool> =
            collection.subjects(&both).iter().map(|subject| subject.path.is_some()).collect();
        assert_eq!(found, [false, true]);
        assert!("a=b,unet=c".parse::<ImagesSource>().is_err());
        assert!("a/b=c".parse::<ImagesSource>().unwrap_err().contains("expected NAME=DIR with"));
    }
}
