//! The output of a run: the labels file, the work folder and the locks beside it, and the settings
//! that made it.
//!
//! The work folder is `OUT.work`, and the locks are beside the output. If the user chose the folder,
//! or the output is at an address, the locks are beside the work folder.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use runkit::files::FileHashes;
use runkit::lock::{LockError, OutputLock};
use runkit::output::{OutputFile, State};
use runkit::run_folder::{FolderKind, RunFolder, hidden_beside};
use runkit::signals::StopFlag;
use schemas::labels::{KEY_MANIFEST, LabelsError, LabelsFile};
use schemas::pairs::InputFile;
use serde::Serialize;
use serde_json::{Value, json};

use super::elsewhere::Elsewhere;
use super::plan::{Plan, PlanOptions};
use super::{Config, Manifest, Sharing, part, reuse};

/// The work folder, which holds what a run has until the labels file is complete.
const WORK: FolderKind = FolderKind {
    name: "the unfinished work of relabel score",
    flag: "--out",
    lock: "lock",
    is_ours: |manifest| manifest.get("scorers").is_some(),
    numerics: &[],
    // Compared on its own, before the run is planned.
    notes: &["versions"],
    hint: None,
};

/// The flag that names the labels file.
pub(super) const FLAG: &str = "--out";
/// What it holds.
pub(super) const LABELS: &str = "labels of relabel";

/// How often a process looks whether another one has made the plan.
const POLL: Duration = Duration::from_millis(100);

/// The first line of saved settings. It shows that a file is ours.
pub(super) const SETTINGS_HEAD: &str = "# Written by relabel score; a valid --config.\n";

/// The output of the run that `config` describes.
pub(super) struct Output<'run> {
    config: &'run Config,
    work: RunFolder,
    /// The labels file, if it is at an address.
    elsewhere: Option<Elsewhere<'run>>,
}

/// What is under the name of the labels file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// Nothing, or what `--fresh` replaces.
    New,
    /// The labels of this very run.
    Complete,
    /// Those of this run over fewer pairs.
    Grown,
}

/// What keeps other runs from an output, until it is dropped.
pub(super) struct Locks {
    _work: OutputLock,
    _labels: Option<OutputLock>,
}

/// The manifest of a work folder.
#[derive(Serialize)]
struct WorkManifest<'run> {
    #[serde(flatten)]
    manifest: &'run Manifest,
    /// The versions of the inputs that lie elsewhere, by their addresses: those that the parts were
    /// made of. Labels do not depend on where the pairs lie.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    versions: BTreeMap<String, String>,
}

impl Config {
    /// The work folder.
    fn work(&self) -> RunFolder {
        match &self.work {
            Some(work) => FolderKind { flag: "--work", ..WORK }.apart(work),
            None => WORK.beside(&self.out),
        }
    }

    /// Where the work folder is.
    #[must_use]
    pub fn work_folder(&self) -> PathBuf {
        self.work().path().to_owned()
    }

    /// The folder that holds the work folder.
    pub(super) fn folder_of_work(&self) -> PathBuf {
        folder_of(self.work().path())
    }
}

/// The folder a file is in; the current one for a bare name.
pub(super) fn folder_of(file: &Path) -> PathBuf {
    match file.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder.to_path_buf(),
        _ => PathBuf::from("."),
    }
}

/// The labels file that a command is about to write.
pub(crate) fn labels_output(out: &Path, fresh: bool) -> OutputFile<'_> {
    OutputFile { path: out, flag: FLAG, expected: LABELS, fresh }
}

/// The manifest in a labels file of ours; `None` for any other file.
pub(crate) fn manifest_of_labels(file: &Path) -> Option<Value> {
    match LabelsFile::open(file) {
        Ok(labels) => manifest_in(&labels),
        Err(LabelsError::Version { found, .. }) => Some(manifest_of_version(&found)),
        Err(_) => None,
    }
}

/// The manifest in labels; `None` if this program did not write them.
pub(super) fn manifest_in(labels: &LabelsFile) -> Option<Value> {
    serde_json::from_str(labels.metadata().get(KEY_MANIFEST)?).ok()
}

/// What is known of labels that another version of this program wrote.
pub(super) fn manifest_of_version(found: &str) -> Value {
    json!({ "schema_version": found })
}

impl<'run> Output<'run> {
    pub(super) fn new(config: &'run Config) -> Self {
        let elsewhere = config.address.as_ref().map(Elsewhere::new);
        Self { config, work: config.work(), elsewhere }
    }

    /// The folder of the parts.
    pub(super) fn parts(&self) -> PathBuf {
        self.work.path().join("parts")
    }

    /// The folder of the caption features that the processes share.
    pub(super) fn captions(&self) -> PathBuf {
        self.work.path().join("captions")
    }

    /// The folder of the answers of external scorers.
    pub(super) fn answers(&self) -> PathBuf {
        self.work.path().join("answers")
    }

    /// The folder of images for programs that read files.
    pub(super) fn images(&self) -> PathBuf {
        self.work.path().join("images")
    }

    /// The plan.
    fn plan(&self) -> PathBuf {
        self.work.path().join("plan")
    }

    /// The plan that an earlier start or another process has made of these inputs.
    pub(super) fn read_plan(
        &self,
        inputs: &[InputFile],
        options: PlanOptions,
        stop: &StopFlag,
    ) -> Result<Option<Plan>> {
        match self.config.fresh {
            true => Ok(None),
            false => Plan::read(&self.plan(), inputs, options, stop),
        }
    }

    /// The checksums of weights that an earlier start or another process has computed.
    pub(super) fn read_hashes(&self) -> FileHashes {
        FileHashes::read(self.work.path())
    }

    fn labels(&self) -> OutputFile<'run> {
        labels_output(&self.config.out, self.config.fresh)
    }

    /// A file whose name begins with a dot, beside the labels file or, if that is at an address,
    /// beside the work folder.
    fn beside(&self, suffix: &str) -> PathBuf {
        match &self.elsewhere {
            None => hidden_beside(&self.config.out, suffix),
            Some(_) => hidden_beside(self.work.path(), suffix),
        }
    }

    /// Where the labels file is made: under its own name, or in the work folder if it is uploaded.
    pub(super) fn labels_here(&self) -> PathBuf {
        match &self.elsewhere {
            None => self.config.out.clone(),
            Some(_) => self.work.path().join("labels.parquet"),
        }
    }

    /// Uploads the labels file, if its place is at an address.
    pub(super) fn upload(&self, manifest: &Manifest) -> Result<()> {
        let Some(elsewhere) = &self.elsewhere else { return Ok(()) };
        elsewhere.upload(&self.labels_here(), &serde_json::to_value(manifest)?)
    }

    /// Tries whether the labels file can be uploaded, before hours of work.
    pub(super) fn try_writing(&self) -> Result<()> {
        self.elsewhere.as_ref().map_or(Ok(()), Elsewhere::try_writing)
    }

    /// Refuses to resume the work on inputs that lie elsewhere if one of them was replaced since:
    /// the parts are of the earlier one.
    pub(super) fn refuse_replaced(&self, inputs: &[InputFile]) -> Result<()> {
        if self.config.fresh {
            return Ok(());
        }
        let Some(manifest) = self.work.manifest()? else { return Ok(()) };
        for (address, found) in versions(inputs)? {
            let before = manifest["versions"][&address].as_str();
            ensure!(
                before.is_none_or(|before| before == found),
                "{address}: replaced since the run began (expected the version {}, found {found}); \
                 hint: put the earlier object back, or start over with --fresh",
                before.unwrap_or_default()
            );
        }
        Ok(())
    }

    /// Refuses an output that is not ours or that is one of the inputs, with and without `--fresh`:
    /// before anything is planned, written or removed.
    pub(super) fn refuse_foreign(&self, inputs: &[InputFile]) -> Result<()> {
        let (config, labels) = (self.config, self.labels());
        if let Some(elsewhere) = &self.elsewhere {
            elsewhere.refuse_foreign(inputs.iter().map(|input| input.path.as_path()))?;
            return Ok(self.work.refuse_foreign()?);
        }
        let mut read: Vec<PathBuf> = inputs.iter().map(|input| input.path.clone()).collect();
        read.push(config.scorers.clone());
        read.extend(config.settings_file.clone());
        read.extend(config.reuse.clone());
        runkit::output::refuse_input(labels.flag, labels.path, &read)?;
        if labels.path.symlink_metadata().is_ok() && manifest_of_labels(labels.path).is_none() {
            return Err(runkit::output::foreign(labels.flag, labels.path, labels.expected).into());
        }
        Ok(self.work.refuse_foreign()?)
    }

    /// The locks that keep two runs from one output and one work folder. The processes of one run
    /// hold them together.
    pub(super) fn lock(&self) -> Result<Locks> {
        let is_alone = self.config.sharing.is_alone();
        let work = if is_alone { self.work.lock()? } else { self.work.lock_shared()? };
        // Beside the output is the lock of the usual work folder.
        let is_apart = self.config.work.is_some() && self.elsewhere.is_none();
        let labels = match (is_apart, is_alone) {
            (false, _) => None,
            (true, true) => Some(WORK.beside(&self.config.out).lock()?),
            (true, false) => Some(WORK.beside(&self.config.out).lock_shared()?),
        };
        Ok(Locks { _work: work, _labels: labels })
    }

    /// The lock that keeps two processes from one shard or rank; `None` if this process does all of
    /// the work.
    pub(super) fn member_lock(&self) -> Result<Option<OutputLock>> {
        let Some(name) = self.config.sharing.lock_name() else { return Ok(None) };
        let file = self.work.path().join(format!("{name}.lock"));
        Ok(Some(OutputLock::exclusive(file)?))
    }

    /// The lock of the shard that makes the plan and the checksums; the others wait for it, and
    /// then find both in the work folder. `None` if this process does all of the work, or a
    /// launcher says who makes them.
    pub(super) fn planning_lock(&self, stop: &StopFlag) -> Result<Option<OutputLock>> {
        if !matches!(self.config.sharing, Sharing::Shard(_)) {
            return Ok(None);
        }
        let file = self.beside("plan.lock");
        let mut is_said = false;
        loop {
            match OutputLock::exclusive(&file) {
                Ok(lock) => return Ok(Some(lock)),
                Err(LockError::Held { holders, .. }) => {
                    if let Some(holder) = holders.first().filter(|_| !is_said) {
                        tracing::info!(
                            process = holder.process,
                            host = holder.host,
                            "waiting for another shard, which makes the plan"
                        );
                        is_said = true;
                    }
                }
                Err(error) => return Err(error.into()),
            }
            stop.check()?;
            std::thread::sleep(POLL);
        }
    }

    /// The lock of the process that writes the labels file; `None` if another one has it.
    pub(super) fn merge_lock(&self) -> Result<Option<OutputLock>> {
        match OutputLock::exclusive(self.beside("merge.lock")) {
            Ok(lock) => Ok(Some(lock)),
            Err(LockError::Held { .. }) if !self.config.sharing.is_alone() => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The numbers of first rows that an earlier run may be of: that of the labels which are there,
    /// and that of those whose scores are taken over.
    pub(super) fn marks(&self) -> Result<[u64; 2]> {
        let there = match (&self.elsewhere, self.config.fresh) {
            (_, true) => 0,
            (Some(elsewhere), _) => elsewhere.rows(),
            (None, _) => manifest_of_labels(&self.config.out).map_or(0, |it| reuse::rows_of(&it)),
        };
        let reused = self.config.reuse.as_ref().map(|path| reuse::open(path)).transpose()?;
        Ok([there, reused.map_or(0, |(_, manifest)| reuse::rows_of(&manifest))])
    }

    /// What is under the name of the labels file. Another run's labels are refused, unless `--fresh`
    /// replaces them or this run only has more pairs.
    pub(super) fn examine(&self, manifest: &Manifest, plan: &Plan) -> Result<Found> {
        let value = serde_json::to_value(manifest)?;
        let has_grown = |found: &Value| {
            *found != value && reuse::has_grown(found, manifest, plan).unwrap_or(false)
        };
        let fresh = self.config.fresh;
        if let Some(elsewhere) = &self.elsewhere {
            return elsewhere.examine(&value, fresh, has_grown);
        }
        let out = &self.config.out;
        if !fresh && manifest_of_labels(out).is_some_and(|found| has_grown(&found)) {
            return Ok(Found::Grown);
        }
        Ok(match self.labels().examine(&[], &value, manifest_of_labels)? {
            State::Complete => Found::Complete,
            State::New | State::Replace => Found::New,
        })
    }

    /// Whether the work folder is of this run, over as many pairs or fewer.
    fn is_of_fewer(&self, manifest: &Manifest) -> Result<bool> {
        let Some(found) = self.work.manifest()? else { return Ok(false) };
        Ok(reuse::is_same_but_for_pairs(&found, manifest)?
            && reuse::same_first_files(&found, manifest).is_ok())
    }

    /// Refuses to resume the work of another run, or parts of other units. More pairs are no other
    /// run.
    pub(super) fn refuse_another_run(&self, manifest: &Manifest, plan: &Plan) -> Result<()> {
        if self.config.fresh {
            return Ok(());
        }
        match (self.is_of_fewer(manifest)?, self.has_other_input(manifest)?) {
            (true, true) => return Ok(()),
            (true, false) => {}
            (false, _) => drop(self.work.refuse_another(manifest)?),
        }
        let units = plan.units.len();
        if let Some(other) = part::of_other_units(&self.parts(), units)? {
            bail!(
                "{}: expected parts of {units} units, found one of an earlier version, which scored \
                 whole files\n\
                 hint: finish the run with that version, or start over with --fresh",
                other.display()
            );
        }
        Ok(())
    }

    /// Whether the work folder is there, and its manifest has other pairs.
    fn has_other_input(&self, manifest: &Manifest) -> Result<bool> {
        let input = serde_json::to_value(&manifest.input)?;
        Ok(self.work.manifest()?.is_some_and(|found| found["input"] != input))
    }

    /// Makes the work folder with the checksums and the plan, or resumes that of an earlier start.
    /// `new_plan` is the plan if it is not there.
    pub(super) fn begin(
        &self,
        manifest: &Manifest,
        inputs: &[InputFile],
        hashes: &FileHashes,
        new_plan: Option<(&Plan, PlanOptions)>,
    ) -> Result<()> {
        if self.config.fresh {
            self.work.remove()?;
        }
        if let Some((plan, _)) = new_plan
            && self.has_other_input(manifest)?
        {
            part::adopt(&self.parts(), plan.units.len())?;
        }
        // Inputs of an earlier start, which may have had the same pairs from another place, count.
        let earlier = self.work.manifest()?.and_then(|mut found| {
            let versions = found.get_mut("versions").map(Value::take)?;
            serde_json::from_value::<BTreeMap<String, String>>(versions).ok()
        });
        let mut versions = versions(inputs)?;
        versions.extend(earlier.unwrap_or_default());
        self.work.begin(&WorkManifest { manifest, versions })?;
        runkit::files::create_folder(self.parts())?;
        if self.config.sharing.is_alone() {
            for folder in [self.parts(), self.captions()] {
                runkit::files::remove_stale_temporaries(folder)?;
            }
            // Images that a killed process left for its program.
            let images = self.images();
            for name in runkit::run_folder::names_in(&images, |name| name.starts_with("image-"))? {
                runkit::run_folder::remove_file(&images.join(name))?;
            }
        }
        if self.read_hashes() != *hashes {
            hashes.write(self.work.path())?;
        }
        if let Some((plan, options)) = new_plan {
            plan.save(options, &self.plan())?;
        }
        Ok(())
    }

    /// With the labels file complete: saves the settings beside it and removes the work folder.
    /// Call it with the merge lock.
    pub(super) fn tidy(&self) -> Result<()> {
        let config = self.config;
        if let Some(elsewhere) = &self.elsewhere {
            if self.work.path().exists() {
                elsewhere.save_settings(&config.saved_settings)?;
            }
            return Ok(self.work.remove()?);
        }
        let file = config.out.with_extension("config.toml");
        // A finished run has no work folder. Whoever repeats its command leaves its settings as
        // they are.
        if self.work.path().exists() || !file.exists() {
            let read = config.settings_file.as_deref();
            runkit::settings::save(&file, SETTINGS_HEAD, &config.saved_settings, read)?;
        }
        self.work.remove()?;
        runkit::files::remove_stale_temporaries(folder_of(&config.out))?;
        Ok(())
    }
}

/// The versions of the inputs that lie elsewhere and whose servers tell them, by address.
fn versions(inputs: &[InputFile]) -> Result<BTreeMap<String, String>> {
    let mut versions = BTreeMap::new();
    for input in inputs {
        if let Some(version) = input.version()? {
            versions.insert(input.path.display().to_string(), version);
        }
    }
    Ok(versions)
}
