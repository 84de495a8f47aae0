//! The folder that is written: what it is made of, and who may write it.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail, ensure};
use runkit::lock::OutputLock;
use runkit::manifest::differences;
use runkit::path::is_address;
use runkit::run_folder::{FolderKind, RunFolder};
use schemas::layouts::{DEALING, Layout, is_converted};
use schemas::pairs::PairFile;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Config;
use super::sources::{Source, Sources};

const PROGRAM: &str = "relabel convert";
/// Another number would be other bytes of the same pairs.
const FORMAT: u32 = 1;

const FOLDER: FolderKind = FolderKind {
    name: "pairs of relabel convert",
    flag: "--out",
    lock: ".lock",
    is_ours: |manifest| manifest["program"] == PROGRAM,
    numerics: &[],
    // Compared by name, where they can be known before the files are read.
    notes: &["inputs"],
    hint: None,
};

/// What the folder is made of.
#[derive(Serialize)]
struct Manifest {
    program: &'static str,
    format: u32,
    file_mib: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    limit: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dealing: Option<&'static str>,
    inputs: Vec<Record>,
}

/// What is known of an input.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Record {
    source_file: String,
    output: String,
    layout: Layout,
    bytes: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    version: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    fingerprint: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rows: Option<i64>,
}

impl Record {
    fn new(source: &Source) -> Self {
        Self {
            source_file: source.input.source_file.clone(),
            output: source.name.clone(),
            layout: source.layout(),
            bytes: source.bytes,
            version: source.version.clone(),
            fingerprint: source.pairs.as_ref().map(PairFile::fingerprint),
            rows: source.pairs.as_ref().map(PairFile::num_rows),
        }
    }

    /// As a value in which what only one of two records knows is left out.
    fn beside(&self, other: &Self) -> Result<Value> {
        let mut value = serde_json::to_value(self)?;
        let other = serde_json::to_value(other)?;
        if let (Some(fields), Some(others)) = (value.as_object_mut(), other.as_object()) {
            fields.retain(|name, _| others.contains_key(name));
        }
        Ok(value)
    }
}

/// What an earlier start knew of its inputs, in order; empty without an earlier start.
#[derive(Default)]
pub(super) struct Earlier {
    inputs: Vec<Record>,
}

impl Earlier {
    /// Whether the source has the very version that it had then.
    pub(super) fn has_version(&self, source: &Source) -> bool {
        let same = |record: &&Record| record.source_file == source.input.source_file;
        let then = self.inputs.iter().find(same).and_then(|record| record.version.as_ref());
        then.is_some() && then == source.version.as_ref()
    }
}

/// The folder of a conversion.
pub(super) struct Output<'run> {
    config: &'run Config,
    folder: RunFolder,
}

impl<'run> Output<'run> {
    pub(super) fn new(config: &'run Config) -> Self {
        Self { config, folder: FOLDER.at(&config.out) }
    }

    /// Refuses a folder that holds something else.
    pub(super) fn refuse_foreign(&self) -> Result<()> {
        Ok(self.folder.refuse_foreign()?)
    }

    /// Refuses a folder inside one that is searched for pairs: the next start would find its files.
    pub(super) fn refuse_inside_input(&self) -> Result<()> {
        let out = whole(&self.config.out);
        let mut folders = self.config.pairs.iter().filter(|path| path.is_dir());
        match folders.find(|path| out.starts_with(whole(path))) {
            Some(folder) => self.refuse_place(&format!("one in the input {}", folder.display())),
            None => Ok(()),
        }
    }

    /// Refuses a folder that holds one of the inputs.
    pub(super) fn refuse_inputs_inside(&self, sources: &Sources) -> Result<()> {
        let out = whole(&self.config.out);
        let mut paths = sources.all.iter().map(Source::path).filter(|path| !is_address(path));
        match paths.find(|path| whole(path).starts_with(&out)) {
            Some(input) => self.refuse_place(&format!("the one of the input {}", input.display())),
            None => Ok(()),
        }
    }

    fn refuse_place(&self, found: &str) -> Result<()> {
        bail!(
            "--out {}: expected a folder apart from the pairs, found {found}; hint: choose another \
             --out",
            self.config.out.display()
        )
    }

    pub(super) fn lock(&self) -> Result<OutputLock> {
        Ok(self.folder.lock()?)
    }

    /// What an earlier start knew of its inputs. Another conversion, and inputs that have changed,
    /// are refused, unless `--fresh` deletes what they left.
    pub(super) fn earlier(&self, sources: &Sources) -> Result<Earlier> {
        let Some(manifest) = self.folder.manifest()? else { return Ok(Earlier::default()) };
        if self.config.fresh {
            return Ok(Earlier::default());
        }
        self.folder.refuse_another(&self.manifest(sources))?;
        let inputs = records_of(&manifest);
        let hint = "choose another --out, or start over with --fresh";
        let out = self.config.out.display();
        for source in &sources.all {
            let now = Record::new(source);
            let path = source.path().display();
            let Some(then) = inputs.iter().find(|it| it.source_file == now.source_file) else {
                bail!("{path}: not among the inputs with which {out} was begun; hint: {hint}")
            };
            let found = differences(&then.beside(&now)?, &now.beside(then)?);
            if let Some(difference) = found.first() {
                bail!(
                    "{path}: changed since the conversion into {out} began ({difference}); hint: \
                     put the earlier file back, {hint}"
                );
            }
        }
        let names: Vec<&str> =
            sources.all.iter().map(|source| source.input.source_file.as_str()).collect();
        let missing = inputs.iter().find(|it| !names.contains(&it.source_file.as_str()));
        ensure!(
            missing.is_none(),
            "{}: among the inputs with which {out} was begun, and not found now; hint: {hint}",
            missing.map_or("", |record| &record.source_file)
        );
        Ok(Earlier { inputs })
    }

    /// Makes the folder, or takes it over from an earlier start.
    pub(super) fn begin(&self, sources: &Sources) -> Result<()> {
        if self.config.fresh
            && let Some(manifest) = self.folder.manifest()?
        {
            let root = self.folder.path();
            let earlier = records_of(&manifest);
            let is_output = |below: &Path| {
                let name = below.with_extension("");
                let name = name.to_string_lossy();
                let name = name.rsplit_once('-').map(|(name, _)| name);
                earlier.iter().any(|record| name == Some(record.output.as_str()))
            };
            let found = parquet_below(root)?;
            let below = found.iter().filter_map(|path| path.strip_prefix(root).ok());
            let ours = below.filter(|path| is_output(path) && is_converted(&root.join(path)));
            self.folder.clear(ours, None)?;
        }
        self.folder.begin(&self.manifest(sources))?;
        for source in &sources.all {
            if let Some(folder) = self.config.out.join(&source.name).parent() {
                runkit::files::remove_stale_temporaries(folder)?;
            }
        }
        Ok(())
    }

    /// The bytes that an earlier start wrote and this one keeps.
    pub(super) fn bytes(&self) -> u64 {
        let length = |path: PathBuf| path.metadata().map_or(0, |found| found.len());
        parquet_below(self.folder.path()).unwrap_or_default().into_iter().map(length).sum()
    }

    fn manifest(&self, sources: &Sources) -> Manifest {
        let is_dealt = sources.all.iter().any(|source| source.layout().is_dealt());
        Manifest {
            program: PROGRAM,
            format: FORMAT,
            file_mib: self.config.file_mib,
            limit: self.config.limit,
            dealing: is_dealt.then_some(DEALING),
            inputs: sources.all.iter().map(Record::new).collect(),
        }
    }
}

/// The inputs that a manifest names.
fn records_of(manifest: &Value) -> Vec<Record> {
    serde_json::from_value(manifest["inputs"].clone()).unwrap_or_default()
}

/// The Parquet files below a folder; none if it is not there.
fn parquet_below(folder: &Path) -> std::io::Result<Vec<PathBuf>> {
    let (mut folders, mut found) = (vec![folder.to_owned()], Vec::new());
    while let Some(folder) = folders.pop() {
        if !folder.exists() {
            continue;
        }
        for entry in std::fs::read_dir(folder)? {
            let (entry, path) = entry.map(|entry| (entry.file_type(), entry.path()))?;
            match entry?.is_dir() {
                true => folders.push(path),
                false if path.extension().is_some_and(|ending| ending == "parquet") => {
                    found.push(path);
                }
                false => {}
            }
        }
    }
    Ok(found)
}

/// The path without links and from the root, as far as it exists.
fn whole(path: &Path) -> PathBuf {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let existing = path.ancestors().find_map(|above| Some((above, above.canonicalize().ok()?)));
    match existing {
        Some((above, canonical)) => match path.strip_prefix(above) {
            Ok(rest) if rest.as_os_str().is_empty() => canonical,
            Ok(rest) => canonical.join(rest),
            Err(_) => path,
        },
        None => path,
    }
}
