//! Which images are scored: those that `evaluate generate` drew, and folders of images made
//! elsewhere.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use runkit::text::escape_for_terminal;
use runkit::text::{excerpt, quoted};
use serde_json::{Map, Value};

use super::Checksum;
use crate::prompts::Prompt;
use crate::sources::ImagesSource;

/// File name extensions of images.
const EXTENSIONS: [&str; 4] = ["png", "jpg", "jpeg", "webp"];
/// Lists of images, as Hugging Face's ImageFolder has them.
const LISTS: [&str; 2] = ["metadata.jsonl", "metadata.csv"];

/// An image that is to be scored, or should be there.
#[derive(Debug, Clone)]
pub(super) struct Subject<'run> {
    pub(super) model: &'run str,
    pub(super) prompt: &'run Prompt,
    pub(super) seed: u64,
    /// `None` if there is no such image.
    pub(super) path: Option<PathBuf>,
    /// An earlier command scored it outside the folder, and it is not there any more.
    pub(super) is_gone: bool,
}

/// The images of one model that are to be scored, with their checksums.
#[derive(Debug)]
pub(super) struct ModelImages<'run> {
    pub(super) collection: &'run Collection,
    pub(super) subjects: Vec<Subject<'run>>,
    pub(super) checksums: Vec<Checksum>,
}

/// Where the images of one model are.
#[derive(Debug)]
pub(super) struct Collection {
    pub(super) model: String,
    /// Whether the command names the model; else the folder holds it.
    pub(super) named: bool,
    /// The seeds that every prompt should have.
    pub(super) seeds: BTreeSet<u64>,
    layout: Layout,
}

#[derive(Debug)]
enum Layout {
    /// `PROMPT_ID/SEED.png`.
    Folders(PathBuf),
    /// `SET/00000.jpg`, numbered by the place of the prompt in its file, as HPS v2's benchmark has
    /// them.
    Numbered(PathBuf),
    /// A list says which image belongs to which prompt; by text and seed.
    Listed(HashMap<String, BTreeMap<u64, PathBuf>>),
    /// Only the scores say where they are.
    Existing,
}

impl Collection {
    /// Images that `evaluate generate` drew.
    pub(super) fn generated(
        model: &str,
        named: bool,
        folder: PathBuf,
        seeds: BTreeSet<u64>,
    ) -> Self {
        Self { model: model.to_owned(), named, seeds, layout: Layout::Folders(folder) }
    }

    /// Images made elsewhere that an earlier command scored.
    pub(super) fn existing(model: &str) -> Self {
        let seeds = BTreeSet::new();
        Self { model: model.to_owned(), named: false, seeds, layout: Layout::Existing }
    }

    /// Images made elsewhere, of these `seeds` or of all that are there.
    pub(super) fn made_elsewhere(
        source: &ImagesSource,
        prompts: &[Prompt],
        seeds: Option<BTreeSet<u64>>,
    ) -> Result<Self> {
        let folder = &source.folder;
        let found = match folder.metadata() {
            Ok(found) if found.is_dir() => "",
            Ok(_) => "a file; hint: name the folder that the images are in",
            Err(error) if error.kind() == ErrorKind::NotFound => {
                "nothing; hint: --images NAME=DIR, with a folder relative to the current one"
            }
            Err(_) => "one that cannot be read",
        };
        ensure!(
            found.is_empty(),
            "{}: expected the folder of images of {}, found {found}",
            folder.display(),
            source.name
        );
        let list = LISTS.iter().map(|name| folder.join(name)).find(|list| list.is_file());
        let (layout, found) = match list {
            Some(list) => {
                let listed = read_list(&list)?;
                let known = |text: &&String| prompts.iter().any(|prompt| prompt.text == **text);
                let matched = listed.keys().filter(known).count();
                ensure!(
                    matched > 0,
                    "{}: none of its {} prompts is in --prompts; hint: did you mean other \
                     --prompts?",
                    list.display(),
                    listed.len()
                );
                if matched < listed.len() {
                    tracing::warn!(
                        "{}: skipped the images of {} of its {} prompts, which are not in \
                         --prompts",
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
                if found.is_empty() {
                    let first = prompts.first();
                    ensure!(
                        prompts.iter().any(|prompt| numbered(folder, prompt).is_some()),
                        "{}: expected {} with file_name and prompt, images PROMPT_ID/SEED.png as \
                         {}/0.png, or SET/NUMBER.jpg as {}/00000.jpg; found none of these",
                        folder.display(),
                        LISTS.join(" or "),
                        first.map_or("00001-8f14e45f", |prompt| &prompt.id),
                        first.map_or("anime", |prompt| &prompt.set)
                    );
                    (Layout::Numbered(folder.clone()), BTreeSet::from([0]))
                } else {
                    (Layout::Folders(folder.clone()), found)
                }
            }
        };
        let seeds = seeds.unwrap_or(found);
        Ok(Self { model: source.name.clone(), named: true, seeds, layout })
    }

    /// The file of an image.
    pub(super) fn find(&self, prompt: &Prompt, seed: u64) -> Option<PathBuf> {
        match &self.layout {
            Layout::Folders(folder) => EXTENSIONS
                .iter()
                .map(|extension| folder.join(&prompt.id).join(format!("{seed}.{extension}")))
                .find(|path| path.is_file()),
            Layout::Numbered(folder) => numbered(folder, prompt).filter(|_| seed == 0),
            Layout::Listed(listed) => listed.get(&prompt.text)?.get(&seed).cloned(),
            Layout::Existing => None,
        }
    }
}

/// The image of a prompt that is numbered by the place of the prompt in its file, from 0. Ids
/// begin with that place, from 1.
fn numbered(folder: &Path, prompt: &Prompt) -> Option<PathBuf> {
    let (place, _) = prompt.id.split_once('-')?;
    let number = place.parse::<u64>().ok()?.checked_sub(1)?;
    let folder = folder.join(&prompt.set);
    let mut paths =
        EXTENSIONS.iter().map(|extension| folder.join(format!("{number:05}.{extension}")));
    paths.find(|path| path.is_file())
}

/// The seeds that images in the folders of prompts are named by.
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

/// A row of a list of images, as Hugging Face's ImageFolder has it.
#[derive(Debug)]
struct Listed {
    file_name: String,
    prompt: String,
    seed: Option<u64>,
}

impl Listed {
    /// The names of the column with the prompt, the best first.
    const PROMPT: [&str; 3] = ["prompt", "text", "caption"];

    fn new(row: &Map<String, Value>) -> Result<Self, String> {
        let text = |names: &[&str]| {
            let found = names.iter().find_map(|name| row.get(*name));
            match found {
                Some(Value::String(text)) => Ok(text.clone()),
                Some(Value::Null) => Ok(String::new()),
                other => {
                    let names = names.join(" or ");
                    let found =
                        other.map_or("none".to_owned(), |value| excerpt(&value.to_string()));
                    Err(format!("expected a text {names:?}, found {found}"))
                }
            }
        };
        let seed = row.get("seed").map_or(Ok(None), seed)?;
        Ok(Self { file_name: text(&["file_name"])?, prompt: text(&Self::PROMPT)?, seed })
    }
}

/// A seed as programs write it: 7, "7", or 7.0 as pandas writes a column with gaps.
fn seed(value: &Value) -> Result<Option<u64>, String> {
    /// Above it, not every whole number is an f64.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    let whole = |number: f64| {
        let fits = number.fract() == 0.0 && (0.0..=EXACT).contains(&number);
        fits.then_some(number as u64)
    };
    let found = match value {
        Value::Null => return Ok(None),
        Value::Number(number) => number.as_u64().or_else(|| number.as_f64().and_then(whole)),
        Value::String(text) => match text.trim() {
            "" | "NaN" | "nan" | "<NA>" | "\\N" => return Ok(None),
            text => text.parse().ok().or_else(|| text.parse().ok().and_then(whole)),
        },
        _ => None,
    };
    found.map(Some).ok_or_else(|| {
        let found = excerpt(&value.to_string());
        format!("expected a seed, a whole number from 0, found {found}")
    })
}

/// The rows of a list with their lines.
fn list_rows(list: &Path) -> Result<Vec<(u64, Map<String, Value>)>> {
    let shown = list.display();
    let bytes = std::fs::read(list).with_context(|| format!("{shown}: cannot be read"))?;
    let bytes =
        runkit::lists::without_mark(&bytes).map_err(|error| anyhow!("{shown}:1: {error}"))?;
    let mut rows = Vec::new();
    if list.extension().is_some_and(|extension| extension == "csv") {
        let mut reader = csv::Reader::from_reader(bytes);
        let table = || format!("{shown}: expected a table in UTF-8 with file_name and prompt");
        let names = reader.headers().with_context(table)?.clone();
        for record in reader.records() {
            let record = record.with_context(table)?;
            let line = record.position().map_or(0, csv::Position::line);
            let fields = record.iter().map(|field| Value::String(field.to_owned()));
            rows.push((
                line,
                names.iter().map(|name| name.trim().to_owned()).zip(fields).collect(),
            ));
        }
        return Ok(rows);
    }
    for (number, line) in (1..).zip(runkit::lists::lines(bytes)) {
        if line.trim_ascii().is_empty() {
            continue;
        }
        let row = serde_json::from_slice(line).with_context(|| {
            format!("{shown}:{number}: expected file_name and prompt (or text) in each line")
        })?;
        rows.push((number, row));
    }
    Ok(rows)
}

/// The images of a list by prompt and seed. Without seeds, they are numbered in the order of the
/// list.
fn read_list(list: &Path) -> Result<HashMap<String, BTreeMap<u64, PathBuf>>> {
    let folder = list.parent().unwrap_or(Path::new(""));
    let mut listed = HashMap::<String, BTreeMap<u64, PathBuf>>::new();
    for (line, row) in list_rows(list)? {
        let row =
            Listed::new(&row).map_err(|reason| anyhow!("{}:{line}: {reason}", list.display()))?;
        let seeds = listed.entry(row.prompt.trim().to_owned()).or_default();
        let seed = row.seed.unwrap_or(seeds.len() as u64);
        if seeds.insert(seed, folder.join(&row.file_name)).is_some() {
            bail!(
                "{}:{line}: the prompt {} has two images of seed {seed}",
                list.display(),
                quoted(&row.prompt)
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
    fn listed_images_belong_to_their_prompts() {
        let folder = tempfile::tempdir().unwrap();
        let lines = "{\"file_name\":\"a.png\",\"prompt\":\"a fox\"}\n\n\
                     {\"file_name\":\"b.png\",\"text\":\"a fox \"}\n\
                     {\"file_name\":\"c.png\",\"prompt\":\"a cat\",\"seed\":7}\n";
        std::fs::write(folder.path().join("metadata.jsonl"), lines).unwrap();
        let source: ImagesSource = format!("sd={}", folder.path().display()).parse().unwrap();
        let prompts = [prompt(1, "a fox"), prompt(2, "a dog")];
        let collection = Collection::made_elsewhere(&source, &prompts, None).unwrap();
        let of_prompt = |prompt| {
            let seeds = collection.seeds.iter();
            seeds.map(move |&seed| (prompt, seed))
        };
        let found: Vec<_> = prompts
            .iter()
            .flat_map(of_prompt)
            .map(|(prompt, seed)| (&*prompt.text, seed, collection.find(prompt, seed).is_some()))
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
    fn lists_are_read_as_programs_write_them() {
        let folder = tempfile::tempdir().unwrap();
        let list = |name: &str, bytes: &[u8]| {
            let path = folder.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            let listed = read_list(&path).map_err(|error| format!("{error:#}"))?;
            let mut found: Vec<_> = listed
                .into_iter()
                .flat_map(|(prompt, seeds)| {
                    seeds.into_iter().map(move |(seed, path)| {
                        (prompt.clone(), seed, path.file_name().unwrap().to_owned())
                    })
                })
                .map(|(prompt, seed, name)| format!("{prompt}/{seed}/{}", name.display()))
                .collect();
            found.sort();
            Ok::<_, String>(found)
        };
        // pandas: an index, a column of seeds with a gap, quotes; Excel: a mark, CRLF.
        let table = b"\xef\xbb\xbf,file_name,text,seed\r\n0,007,\"a \"\"fox\"\"\",0.0\r\n\
                      1,b.png,a cat,3.0\r\n2,c.png,a cat,\r\n";
        let expected = ["a \"fox\"/0/007", "a cat/1/c.png", "a cat/3/b.png"];
        assert_eq!(list("a.csv", table).unwrap(), expected);
        let lines = b"\xef\xbb\xbf{\"file_name\":\"a.png\",\"prompt\":\"a\",\"text\":\"b\",\"seed\":2.0}\r\n\
                      {\"file_name\":\"b.png\",\"prompt\":\"a\",\"seed\":null}\r\n";
        assert_eq!(list("a.jsonl", lines).unwrap(), ["a/1/b.png", "a/2/a.png"]);
        for (name, bytes, says) in [
            (
                "a.csv",
                &b"file_name,prompt,seed\na,b,0.5\n"[..],
                "a.csv:2: expected a seed, a whole",
            ),
            ("a.csv", b"file_name,prompt,seed\na,b,-1\n", "a.csv:2: expected a seed, a whole"),
            ("a.csv", b"file_name,prompt\na\n", "a.csv: expected a table in UTF-8"),
            ("a.csv", b"name,prompt\na,b\n", "a.csv:2: expected a text \"file_name\", found none"),
            (
                "a.csv",
                b"file_name,prompt,seed\na,b,1\nc,b,1.0\n",
                "a.csv:3: the prompt \"b\" has two",
            ),
            ("a.jsonl", b"\n{\"file_name\":1,\"prompt\":\"a\"}\n", "a.jsonl:2: expected a text"),
            ("a.jsonl", b"\xff\xfe{\0", "a.jsonl:1: expected UTF-8 text, found UTF-16"),
            ("a.jsonl", b"[1]\n", "a.jsonl:1: expected file_name and prompt"),
        ] {
            let error = list(name, bytes).unwrap_err();
            assert!(error.contains(says), "{says:?} is not in {error}");
        }
    }

    #[test]
    fn folders_are_those_of_prompts() {
        let folder = tempfile::tempdir().unwrap();
        let prompts = [prompt(1, "a fox"), prompt(2, "a cat")];
        let source: ImagesSource = format!("sd={}", folder.path().display()).parse().unwrap();
        let error = Collection::made_elsewhere(&source, &prompts, None).unwrap_err().to_string();
        assert!(error.contains("00001-x/0.png, or SET/NUMBER.jpg as s/00000.jpg"), "{error}");
        std::fs::create_dir(folder.path().join("00002-x")).unwrap();
        for name in ["3.jpg", "notes.png", "4.txt"] {
            std::fs::write(folder.path().join("00002-x").join(name), "").unwrap();
        }
        let collection = Collection::made_elsewhere(&source, &prompts, None).unwrap();
        assert_eq!(collection.seeds, BTreeSet::from([3]));
        assert_eq!(
            prompts.each_ref().map(|prompt| collection.find(prompt, 3).is_some()),
            [false, true]
        );
    }

    #[test]
    fn numbered_images_are_those_of_the_benchmark_of_hps_v2() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("s")).unwrap();
        for name in ["00000.jpg", "00002.png"] {
            std::fs::write(folder.path().join("s").join(name), "").unwrap();
        }
        let source: ImagesSource = format!("sd={}", folder.path().display()).parse().unwrap();
        // The second prompt was a repetition of the first, so it is not in the list.
        let prompts = [prompt(1, "a fox"), prompt(3, "a cat"), prompt(4, "a dog")];
        let collection = Collection::made_elsewhere(&source, &prompts, None).unwrap();
        assert_eq!(collection.seeds, BTreeSet::from([0]));
        let found = prompts.each_ref().map(|prompt| {
            let path = collection.find(prompt, 0)?;
            Some(path.file_name()?.to_string_lossy().into_owned())
        });
        assert_eq!(found, [Some("00000.jpg".to_owned()), Some("00002.png".to_owned()), None]);
        assert_eq!(collection.find(&prompts[0], 1), None);
    }
}
