//! `train merge`: a pipeline with adapters in its weights, which `DiffusionPipeline.from_pretrained`
//! loads.
//!
//! The UNet, and each text encoder that adapters change, are written in f32, one tensor at a time;
//! all else is copied. `manifest.json` says what was merged: the same command resumes where a
//! killed one stopped, and a folder of something else is refused.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use nn::lora::{LoraFile, MergedPipeline, Part, ScaledLora};
use nn::pipeline::{FetchedPipeline, PipelineFiles, PipelineSource};
use nn::unet::SAVED_WEIGHTS;
use runkit::files::FileHashes;
use runkit::run_folder::FolderKind;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::run::export::{Copied, INDEX, copied, copy_file, format_of, without_absent_parts};

const PROGRAM: &str = "train merge";
/// The weights of a text encoder.
const TEXT_WEIGHTS: &str = "model.safetensors";

/// The folder of a merged pipeline.
const MERGED: FolderKind = FolderKind {
    name: "the folder of a merged pipeline",
    flag: "--out",
    lock: ".merge.lock",
    is_ours: |manifest| manifest.get("program").and_then(Value::as_str) == Some(PROGRAM),
    numerics: &[],
    notes: &["files"],
    hint: None,
};

/// What to merge.
#[derive(Debug, Clone)]
pub struct Merge {
    /// The pipeline's folder, or its name on the hub.
    pub model: PathBuf,
    /// The adapters, in the order in which they are added.
    pub loras: Vec<ScaledLora>,
    /// The folder to write.
    pub out: PathBuf,
    /// Whether to delete what an earlier command left there.
    pub fresh: bool,
}

/// What was merged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Merged {
    /// The folder.
    pub pipeline: PathBuf,
    /// The parts that adapters changed.
    pub changed: Vec<&'static str>,
}

impl Merged {
    /// As JSON.
    pub fn json(&self) -> Value {
        json!({"pipeline": self.pipeline, "changed": self.changed})
    }
}

/// `manifest.json`.
#[derive(Debug, Serialize, Deserialize)]
struct Manifest {
    program: String,
    /// The SHA-256 of every file of the model, by its path in the result or in the model.
    model: BTreeMap<String, String>,
    /// The SHA-256 of every file of adapters, and the factor, in order.
    loras: Vec<LoraRecord>,
    /// The files of the result.
    files: Vec<String>,
}

#[derive(Debug, Serialize, Deserialize)]
struct LoraRecord {
    files: Vec<String>,
    scale: f64,
}

/// Writes the merged pipeline. A signal stops it within a moment, and the same command resumes.
///
/// # Errors
/// If the model or the adapters cannot be read or do not fit each other, or the folder holds
/// something else or cannot be written.
pub fn merge(merge: &Merge) -> Result<Merged> {
    let Merge { model, loras, out, fresh } = merge;
    ensure!(!loras.is_empty(), "--lora names no adapters; hint: --lora FILE");
    let adapters = loras.iter().map(|lora| LoraFile::open(&lora.path));
    let adapters = adapters.collect::<Result<Vec<_>, _>>()?;
    let source = PipelineSource { model: model.clone(), unet: None };
    source.check_local()?;
    let FetchedPipeline { files, .. } = source.fetch()?;
    ensure!(
        !is_inside(out, &files.folder),
        "--out {} is the folder of the model; hint: another --out",
        out.display()
    );
    let merged = MergedPipeline::open(&files, loras)?;
    let weights = changed_weights(&files, &merged);
    let is_written = |copied: &Copied| {
        weights.iter().any(|(part, _)| {
            let below = copied.to.strip_prefix(part.folder());
            below.is_some_and(|name| name.starts_with('/') && format_of(&name[1..]).is_some())
        })
    };
    let copies: Vec<Copied> =
        copied(&files)?.into_iter().filter(|copied| !is_written(copied)).collect();
    let config = Copied { from: files.unet.config.clone(), to: "unet/config.json".to_owned() };
    let copies: Vec<Copied> = copies.into_iter().chain([config]).collect();
    let mut names: Vec<String> = copies.iter().map(|copied| copied.to.clone()).collect();
    names.extend(weights.iter().map(|(part, name)| format!("{}/{name}", part.folder())));
    names.push(INDEX.to_owned());
    names.sort_unstable();
    let manifest = manifest(&files, &copies, &merged, &adapters, loras, names)?;

    let folder = MERGED.at(out);
    folder.refuse_foreign()?;
    let _lock = folder.lock()?;
    folder.refuse_foreign()?;
    let result = Merged {
        pipeline: out.clone(),
        changed: merged.changed.iter().map(|part| part.folder()).collect(),
    };
    if *fresh {
        let earlier = folder.manifest()?.unwrap_or_default();
        folder.clear(outputs(&earlier), None)?;
    } else {
        folder.refuse_another(&manifest)?;
    }
    if out.join(INDEX).is_file() {
        tracing::info!(out = %out.display(), "already complete");
        return Ok(result);
    }
    remove_temporaries(out, &manifest.files)?;
    folder.begin(&manifest)?;
    for Copied { from, to } in &copies {
        let target = out.join(to);
        // A copy that an earlier command finished.
        let length = |path: &Path| path.metadata().map(|found| found.len()).ok();
        if length(&target).is_none() || length(&target) != length(from) {
            copy_file(from, &target)?;
        }
    }
    for (part, name) in &weights {
        let place = out.join(part.folder());
        runkit::files::create_folder(&place)?;
        merged.save(*part, &place.join(name), &|| Ok(runkit::signals::check_at("merge")?))?;
    }
    let index = files.folder.join(INDEX);
    let index =
        std::fs::read(&index).with_context(|| format!("cannot read {}", index.display()))?;
    let index = without_absent_parts(&index, &files.folder)?.unwrap_or(index);
    runkit::files::write_atomic(out.join(INDEX), |file| file.write_all(&index))?;
    Ok(result)
}

/// Deletes the temporary files that killed commands left beside these files.
fn remove_temporaries(out: &Path, names: &[String]) -> Result<()> {
    let folders: BTreeSet<PathBuf> =
        names.iter().filter_map(|name| Some(out.join(name).parent()?.to_owned())).collect();
    for folder in folders.iter().filter(|folder| folder.is_dir()) {
        runkit::files::remove_stale_temporaries(folder)?;
    }
    Ok(())
}

/// The weights that are written anew: the UNet's, and those of each text encoder that changes.
fn changed_weights(files: &PipelineFiles, merged: &MergedPipeline) -> Vec<(Part, &'static str)> {
    let encoders = [Part::TextEncoder, Part::TextEncoder2].into_iter();
    let encoders = encoders.take(files.text_encoders.len());
    let changed = encoders.filter(|part| merged.changed.contains(part));
    let mut weights = vec![(Part::Unet, SAVED_WEIGHTS)];
    weights.extend(changed.map(|part| (part, TEXT_WEIGHTS)));
    weights
}

fn manifest(
    files: &PipelineFiles,
    copies: &[Copied],
    merged: &MergedPipeline,
    adapters: &[LoraFile],
    loras: &[ScaledLora],
    names: Vec<String>,
) -> Result<Manifest> {
    let mut hashes = FileHashes::default();
    let mut parts: Vec<(String, PathBuf)> =
        copies.iter().map(|copied| (copied.to.clone(), copied.from.clone())).collect();
    let all = std::iter::once(&merged.unet).chain(&merged.text_encoders);
    for (weights, part) in all.zip([Part::Unet, Part::TextEncoder, Part::TextEncoder2]) {
        for file in weights.files() {
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            parts.push((format!("{}/{name}", part.folder()), file.clone()));
        }
    }
    parts.push((INDEX.to_owned(), files.folder.join(INDEX)));
    let of_adapters = adapters.iter().flat_map(|lora| &lora.files);
    hashes.learn(parts.iter().map(|(_, path)| path).chain(of_adapters).map(PathBuf::as_path))?;
    let hash = |path: &Path| {
        let hash = hashes.of(path).map(str::to_owned);
        hash.with_context(|| format!("{}: it was not hashed", path.display()))
    };
    let model = parts.iter().map(|(name, path)| Ok((name.clone(), hash(path)?)));
    let loras = adapters.iter().zip(loras).map(|(lora, scaled)| {
        let files = lora.files.iter().map(|file| hash(file)).collect::<Result<_>>()?;
        Ok(LoraRecord { files, scale: scaled.scale })
    });
    Ok(Manifest {
        program: PROGRAM.to_owned(),
        model: model.collect::<Result<_>>()?,
        loras: loras.collect::<Result<_>>()?,
        files: names,
    })
}

/// The files that an earlier command may have written, the mark of a complete result first.
fn outputs(manifest: &Value) -> Vec<String> {
    let listed = manifest.get("files").and_then(Value::as_array).into_iter().flatten();
    let names = listed.filter_map(Value::as_str).map(str::to_owned);
    std::iter::once(INDEX.to_owned()).chain(names).collect()
}

/// Whether both paths are one folder, or the first is inside the second.
fn is_inside(path: &Path, folder: &Path) -> bool {
    let whole = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let folder = whole(folder);
    path.ancestors().any(|one| !one.as_os_str().is_empty() && whole(one) == folder)
}
