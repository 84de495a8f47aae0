//! `train cache`: latents and prompt embeddings of pairs, written once for many runs.
//!
//! A part is a range of rows of one input file and has two files, `captions-*.parquet` and
//! `latents-*.parquet`, with every pair in its position ([`schemas::latents`]). The cache does not
//! read labels, so it serves every labelling of the pairs. A part appears under its name only when
//! it is complete and synced, and its bytes are a function of the input, the model and the
//! settings: after a kill at any instant the same command finishes the cache with the same bytes,
//! and so do several processes that share the parts. `manifest.json` lists the parts and, as each
//! part does, what they were made with; a run that differs in any of it is refused. More files add
//! parts and change none.

mod captions;
mod latents;
mod manifest;
mod networks;
mod plan;
mod ranks;
mod settings;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use nn::device::Precision;
use nn::distributed::{Deal, sharing_stops};
use nn::pipeline::Encoders;
use runkit::files::FileHashes;
use runkit::launch::Launch;
use runkit::logging::counted;
use runkit::progress::Progress;
use runkit::run_folder::{FolderKind, MANIFEST, names_in, remove_file};
use runkit::shard::Shard;
use runkit::signals::{StopFlag, Stoppable, stoppable};
use schemas::labels::Status;
use schemas::latents::{
    CacheManifest, CaptionsFile, KEY_FINGERPRINT, KEY_PART, LatentsFile, Manifest, PartPlan,
    PartRecord, captions_name, latents_name,
};
use serde_json::{Value, json};
use tch::Device;

use self::manifest::{GROWING, NUMERICS};
use self::plan::{Plan, PlannedFile, is_there};
use self::ranks::Ranks;
pub use self::settings::settings;
use crate::data::PairInputs;
use crate::model::BaseModel;
use crate::run::ranks::plain;

/// A validated run.
#[derive(Debug, Clone)]
pub struct Config {
    /// The pipeline whose encoders are used.
    pub model: PathBuf,
    /// The pairs, as given.
    pub inputs: PairInputs,
    /// The folder to write.
    pub out: PathBuf,
    /// Height and width in pixels; `None` for the model's own.
    pub resolution: Option<i64>,
    /// Whether every image is also encoded horizontally flipped.
    pub hflip: bool,
    /// Device.
    pub device: Device,
    /// The dtype that the encoders compute in. f32 is stored as f32; bf16 and f16 as f16, which
    /// holds all bits of usual latents in either.
    pub precision: Precision,
    /// Images encoded at once; the last bits depend on it.
    pub batch_size: usize,
    /// The most pairs to cache, from the first on; what the cache holds already stays.
    pub limit: Option<u64>,
    /// The parts to write, if the launcher does not say so.
    pub shard: Option<Shard>,
    /// The processes that write the cache.
    pub launch: Launch,
    /// Whether to delete what an earlier run left.
    pub fresh: bool,
}

/// The content of a cache.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Summary {
    /// Pairs.
    pub rows: u64,
    /// Pairs without latents.
    pub failed: u64,
    /// Distinct captions.
    pub captions: u64,
    /// Bytes of all parts.
    pub bytes: u64,
    /// Parts that other processes have yet to write.
    pub missing: u64,
}

impl Summary {
    /// The summary as JSON, with the folder of the cache.
    pub fn json(&self, cache: &Path) -> Value {
        let Self { rows, failed, captions, bytes, missing } = self;
        json!({
            "pairs": rows,
            "failed": failed,
            "captions": captions,
            "bytes": bytes,
            "missing_parts": missing,
            "cache": cache,
        })
    }
}

/// The folder of a cache.
const CACHE: FolderKind = FolderKind {
    name: "the folder of a cache",
    flag: "--out",
    lock: ".cache.lock",
    is_ours: |manifest| {
        manifest.get("latent_shape").is_some() && manifest.get("encoders").is_some()
    },
    numerics: &NUMERICS,
    notes: &GROWING,
    hint: None,
};

/// Writes the cache, or this process's parts of it, unless a signal stops it. `None` at a rank that
/// leaves the summary to rank 0.
///
/// # Errors
/// One sentence about what is wrong with an input, the model, the folder, or an earlier run that
/// this one would mix with.
pub fn write(config: &Config, stop: &StopFlag) -> Result<Stoppable<Option<Summary>>> {
    let ranks = Ranks::join(&config.launch, config.shard)?;
    ensure!(
        !config.fresh || !matches!(ranks.deal, Deal::Shard(_)),
        "--fresh with a shard would delete what other shards have done; hint: delete {} before \
         you start them",
        config.out.display()
    );
    let work = || {
        let count = ranks.finish(make(config, &ranks, stop))?;
        if !ranks.world.is_first() {
            return Ok(None);
        }
        runkit::files::remove_stale_temporaries(&config.out)?;
        Ok(Some(summary(&config.out, count)?))
    };
    let end = sharing_stops(ranks.world.store().map(AsRef::as_ref), stop, work);
    stoppable(end.map(ControlFlow::Continue).map_err(plain))
}

/// Writes parts and returns how many the cache has.
fn make(config: &Config, ranks: &Ranks, stop: &StopFlag) -> Result<usize> {
    let folder = CACHE.at(&config.out);
    // A part names its run by itself, so that a folder that lost its manifest still counts as ours.
    let has_parts = |out: &Path| {
        let is_part = |path: &PathBuf| {
            LatentsFile::open(path).is_ok_and(|part| part.metadata().contains_key(KEY_FINGERPRINT))
        };
        parts(out).unwrap_or_default().iter().any(|name| is_part(&out.join(name)))
    };
    folder.refuse_foreign_unless(has_parts)?;
    // What is on this machine is checked before a model of the hub is downloaded.
    BaseModel::check_local(&config.model)?;
    config.inputs.find()?;
    let base = BaseModel::open(&config.model, config.resolution)?;
    let _lock = if ranks.deal.is_shared() { folder.lock_shared()? } else { folder.lock()? };
    let mut encoders = None;
    let planned = ranks.first(|| {
        let planned = plan(config, &base)?;
        if planned.is_missing {
            // The networks are loaded before anything is written: a wrong checkpoint leaves no
            // trace.
            encoders = Some(load(config, &base)?);
            folder.begin(&planned.manifest)?;
            planned.hashes.write(&config.out)?;
        }
        Ok(planned.manifest)
    })?;
    let count = planned.parts.len();
    let fingerprint = manifest::fingerprint(&planned.manifest)?;
    // Rank 0 planned all parts: this numbers their captions.
    let plan = Plan::make(&config.inputs, config.limit, Some(&planned), &config.out, false)?;
    ensure!(
        plan.parts == planned.parts,
        "this process finds other pairs than rank 0: {} parts, not {count}; hint: give all \
         processes the same files",
        plan.parts.len()
    );
    let manifest = manifest::with_numerics_of(config, planned.manifest);
    let mut missing = Vec::with_capacity(count);
    for (number, part) in plan.parts.iter().enumerate() {
        let is_done = is_done(&config.out, number, part, &fingerprint)?;
        missing.push(if is_done { 0 } else { part.rows });
    }
    let missing_rows: u64 = missing.iter().sum();
    if missing_rows == 0 {
        return Ok(count);
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = (cores / config.launch.local_world.max(1)).max(1);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
    let progress = Progress::new("encoding", "pairs", manifest.input.rows);
    progress.already_done(manifest.input.rows - missing_rows);
    let mut passed = 0;
    for number in ranks.deal.units("cache", count as u64) {
        let number = usize::try_from(number?)?;
        // Other processes wrote those between, or are at it: the rate is that of all.
        progress.add(missing.get(passed..number).unwrap_or_default().iter().sum());
        passed = number + 1;
        let planned_part = plan.parts.get(number).context("a part was lost")?;
        if is_done(&config.out, number, planned_part, &fingerprint)? {
            continue;
        }
        let encoders = match &mut encoders {
            Some(encoders) => encoders,
            none => none.insert(load(config, &base)?),
        };
        let part = Part {
            config,
            base: &base,
            manifest: &manifest,
            fingerprint: &fingerprint,
            plan: &plan,
            planned: planned_part,
            file: plan.file(planned_part).context("a file was lost")?,
            number,
            pool: &pool,
        };
        let path = part.file.input.path.display();
        captions::write(&part, encoders)
            .with_context(|| format!("encoding the captions of {path}"))?;
        latents::write(&part, encoders, &progress, stop)
            .with_context(|| format!("encoding {path}"))?;
    }
    progress.finish();
    Ok(count)
}

/// What the folder will hold.
struct Planned {
    manifest: CacheManifest,
    /// Whether any part is missing yet.
    is_missing: bool,
    hashes: FileHashes,
}

fn plan(config: &Config, base: &BaseModel) -> Result<Planned> {
    tracing::info!("planning");
    let mut hashes = FileHashes::read(&config.out);
    let mut manifest = manifest::describe(config, base, &mut hashes)?;
    let fingerprint = manifest::fingerprint(&manifest)?;
    if config.fresh {
        clear(&config.out)?;
    }
    let earlier = earlier(config, &manifest)?;
    let plan = Plan::make(&config.inputs, config.limit, earlier.as_ref(), &config.out, true)?;
    let input = plan.input();
    let (rows, files) = (input.rows, input.files.len());
    ensure!(
        rows > 0,
        "the inputs hold no pair; hint: look into what was read, {}",
        counted(files as u64, "files")
    );
    let mut is_missing = false;
    for (number, part) in plan.parts.iter().enumerate() {
        is_missing |= !is_done(&config.out, number, part, &fingerprint)?;
    }
    if let Some(earlier) = earlier {
        let before = earlier.manifest.input.rows;
        if before < rows {
            tracing::info!("adding {} pairs to the {before} of the cache", rows - before);
        }
        // The earlier start may have had other numerics; its manifest keeps them.
        manifest = earlier.manifest;
    }
    manifest.input = input;
    Ok(Planned { manifest: CacheManifest { manifest, parts: plan.parts }, is_missing, hashes })
}

/// Loads the encoders.
fn load(config: &Config, base: &BaseModel) -> Result<Encoders> {
    Encoders::load(&base.files, config.device, config.precision)
        .with_context(|| format!("loading the encoders of {}", base.files.folder.display()))
}

/// One part and what it is made from.
struct Part<'run> {
    config: &'run Config,
    base: &'run BaseModel,
    manifest: &'run Manifest,
    fingerprint: &'run str,
    plan: &'run Plan,
    planned: &'run PartPlan,
    file: &'run PlannedFile,
    number: usize,
    /// The threads that decode.
    pool: &'run rayon::ThreadPool,
}

impl Part<'_> {
    fn latents_path(&self) -> PathBuf {
        self.config.out.join(latents_name(self.number))
    }

    fn captions_path(&self) -> PathBuf {
        self.config.out.join(captions_name(self.number))
    }
}

/// Whether both files of a part exist. Those that exist must be of this cache.
fn is_done(out: &Path, number: usize, planned: &PartPlan, fingerprint: &str) -> Result<bool> {
    let [latents, captions] =
        [latents_name(number), captions_name(number)].map(|name| out.join(name));
    let of_this_run = |path: &Path, metadata: &BTreeMap<String, String>| {
        let record: Option<PartRecord> =
            metadata.get(KEY_PART).and_then(|record| serde_json::from_str(record).ok());
        let fits = record.is_some_and(|record| {
            (record.first_row, record.first_caption) == (planned.first_row, planned.first_caption)
        });
        ensure!(
            fits && metadata.get(KEY_FINGERPRINT).is_some_and(|found| found == fingerprint),
            "{}: this part belongs to another run; hint: choose another --out, or start over with \
             --fresh",
            path.display()
        );
        Ok(())
    };
    let damaged = |path: &Path| {
        format!("{}: remove this part and run the same command again", path.display())
    };
    if latents.exists() {
        let file = LatentsFile::open(&latents).with_context(|| damaged(&latents))?;
        of_this_run(&latents, file.metadata())?;
    }
    if captions.exists() {
        let file = CaptionsFile::open(&captions).with_context(|| damaged(&captions))?;
        of_this_run(&captions, file.metadata())?;
    }
    Ok(is_there(out, number))
}

/// The manifest that an earlier start left; refuses the cache of another run.
fn earlier(config: &Config, manifest: &Manifest) -> Result<Option<CacheManifest>> {
    let folder = CACHE.at(&config.out);
    let path = config.out.join(MANIFEST);
    let Some(found) = folder.manifest()? else {
        if let Some(part) = parts(&config.out)?.first() {
            bail!(
                "{} exists without {MANIFEST}, which says what it was made with; hint: choose \
                 another --out, or start over with --fresh",
                config.out.join(part).display()
            );
        }
        return Ok(None);
    };
    for difference in folder.refuse_another(manifest)? {
        tracing::warn!("resuming with other numerics: {difference}; latents differ by rounding");
    }
    let found = serde_json::from_value(found).with_context(|| {
        format!(
            "{}: expected the manifest of a cache; hint: start over with --fresh",
            path.display()
        )
    })?;
    Ok(Some(found))
}

/// Deletes the parts of a cache, and then its manifest: after a kill the rest is still a cache.
fn clear(out: &Path) -> Result<()> {
    for name in parts(out)?.iter().map(String::as_str).chain([FileHashes::FILE, MANIFEST]) {
        remove_file(&out.join(name))?;
    }
    Ok(())
}

/// The names of the parts in a folder.
fn parts(out: &Path) -> Result<Vec<String>> {
    let is_part = |name: &str| {
        ["latents-", "captions-"].iter().any(|start| name.starts_with(start))
            && name.ends_with(".parquet")
    };
    Ok(names_in(out, is_part)?)
}

/// Counts the content of a cache of so many parts.
fn summary(out: &Path, count: usize) -> Result<Summary> {
    let mut summary = Summary::default();
    for number in 0..count {
        if !is_there(out, number) {
            summary.missing += 1;
            continue;
        }
        let (latents, captions) = (out.join(latents_name(number)), out.join(captions_name(number)));
        for rows in LatentsFile::open(&latents)?.rows()? {
            runkit::signals::check()?;
            let rows = rows?;
            summary.rows += rows.len() as u64;
            let failed = rows.iter().filter(|row| row.status != Status::Ok).count();
            summary.failed += failed as u64;
        }
        let texts = CaptionsFile::open(&captions)?.num_rows();
        // The empty caption belongs to no pair.
        let texts = if number == 0 { texts - 1 } else { texts };
        summary.captions += u64::try_from(texts).unwrap_or(0);
        for path in [latents, captions] {
            summary.bytes += std::fs::metadata(&path).map_or(0, |file| file.len());
        }
    }
    Ok(summary)
}
