//! The result: `pipeline/`, the base model's folder with the trained UNet, which
//! `DiffusionPipeline.from_pretrained` loads, and a model card in it. A run of adapters leaves them
//! in `lora/`, and merged into the UNet of `pipeline/`; with `--no-merge` the card is in `lora/`.

use std::io::{Read as _, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use nn::lora::{LoraConfig, MergedPipeline, Part, ScaledLora, write_diffusers, write_kohya};
use nn::pipeline::{NetworkFiles, PipelineFiles};
use nn::unet::SAVED_WEIGHTS;
use nn::weights::Weights;
use runkit::run_folder::remove_file;
use serde_json::Value;

use super::manifest::Manifest;
use crate::adapter::{LoraFormat, LoraResult};
use crate::config::Config;
use crate::model::{BaseModel, Networks};

/// The folder of the adapters.
pub const LORA: &str = "lora";
/// The folder of the result.
pub const FOLDER: &str = "pipeline";
/// Written last: a folder that has it is complete.
pub(crate) const INDEX: &str = "model_index.json";
/// The file of the model card ([`super::card`]).
const CARD: &str = "README.md";
/// Bytes of a file that are copied between two checks for a signal.
const PIECE: usize = 1 << 20;
/// Formats of weights, the preferred one first.
const WEIGHT_EXTENSIONS: [&str; 7] = ["safetensors", "bin", "msgpack", "h5", "ckpt", "pth", "onnx"];
/// The suffix of weights in f16, which diffusers reads only if asked to.
const HALF: &str = ".fp16";

/// Whether the run's result is complete: the file that is written last is there. A run whose
/// pipeline is not merged writes the card of its adapters last, and only such a run writes it.
pub fn is_complete(run: &Path) -> bool {
    marks(run).iter().any(|mark| mark.is_file())
}

fn marks(run: &Path) -> [PathBuf; 2] {
    mark_names().map(|name| run.join(name))
}

/// The files that mark a complete result, below the run's folder: of a pipeline, and of adapters alone.
pub(super) fn mark_names() -> [String; 2] {
    [format!("{FOLDER}/{INDEX}"), format!("{LORA}/{CARD}")]
}

/// A file of the base model that the result also has.
pub(crate) struct Copied {
    pub(crate) from: PathBuf,
    /// Below the folder of the result.
    pub(crate) to: String,
}

/// The files of the result that a run should have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ResultFiles {
    /// Below `pipeline/`.
    pub pipeline: Vec<String>,
    /// Below `lora/`.
    pub lora: Vec<String>,
}

impl ResultFiles {
    /// What a run of these settings leaves.
    ///
    /// # Errors
    /// If a file of the base model cannot be read.
    pub fn of(config: &Config, base: &BaseModel) -> Result<Self> {
        let Some(LoraResult { files, is_merged }) = &config.lora_result else {
            return Ok(Self { pipeline: names(base)?, lora: Vec::new() });
        };
        let mut lora: Vec<String> = files.iter().map(|(_, name)| name.clone()).collect();
        if *is_merged {
            return Ok(Self { pipeline: names(base)?, lora });
        }
        lora.push(CARD.to_owned());
        Ok(Self { pipeline: Vec::new(), lora })
    }

    /// What a manifest lists.
    pub(super) fn listed(manifest: &Value) -> Self {
        let listed = |field: &str| {
            let listed = manifest.get(field).and_then(Value::as_array).into_iter().flatten();
            listed.filter_map(Value::as_str).map(str::to_owned).collect()
        };
        Self { pipeline: listed("result"), lora: listed("lora") }
    }

    /// The paths below the run's folder, those that mark a complete result first. The caller refuses
    /// names that lead out of the folder: a manifest is a file that anyone can write.
    fn paths(&self) -> Vec<String> {
        let marked = |folder: &str, names: &[String], mark: &str| -> Vec<String> {
            let mark = (!names.is_empty()).then(|| mark.to_owned());
            let all = mark.into_iter().chain(names.iter().cloned());
            all.map(|name| format!("{folder}/{name}")).collect()
        };
        let mut paths = marked(FOLDER, &self.pipeline, INDEX);
        paths.extend(marked(LORA, &self.lora, CARD));
        paths
    }
}

/// The files of a pipeline, by name below its folder.
fn names(base: &BaseModel) -> Result<Vec<String>> {
    let mut names: Vec<String> = copied(&base.files)?.into_iter().map(|copied| copied.to).collect();
    names.extend(["unet/config.json".to_owned(), format!("unet/{SAVED_WEIGHTS}")]);
    names.extend([CARD, INDEX].map(str::to_owned));
    names.sort_unstable();
    Ok(names)
}

/// The bytes of the files that are copied from the base model.
///
/// # Errors
/// If a file of the base model cannot be read.
pub fn copied_bytes(base: &BaseModel) -> Result<u64> {
    let length = |copied: &Copied| copied.from.metadata().map_or(0, |found| found.len());
    Ok(copied(&base.files)?.iter().map(length).sum())
}

/// Deletes the marks of a complete result, so that it no longer counts as the result of the run.
///
/// # Errors
/// If one cannot be deleted.
pub fn unmark(run: &Path) -> Result<()> {
    Ok(marks(run).iter().try_for_each(|mark| remove_file(mark))?)
}

/// Deletes the files of an earlier result that the next one does not have.
///
/// # Errors
/// If one cannot be deleted.
pub(super) fn remove_others(run: &Path, earlier: &Manifest, next: &ResultFiles) -> Result<()> {
    let earlier = ResultFiles { pipeline: earlier.result.clone(), lora: earlier.lora.clone() };
    let next = next.paths();
    for path in earlier.paths().into_iter().filter(|path| !next.contains(path)) {
        let is_inside = Path::new(&path)
            .components()
            .all(|part| matches!(part, std::path::Component::Normal(_)));
        if is_inside {
            remove_file(&run.join(&path))?;
        }
    }
    Ok(())
}

/// The files of a result below the run's folder, as a manifest lists them, the marks first.
pub(super) fn outputs(manifest: &Value) -> Vec<String> {
    ResultFiles::listed(manifest).paths()
}

/// The files of a result below the run's folder, as a manifest lists them, in an order in which they
/// can be copied: what marks a complete result comes last.
pub(super) fn in_order_of_copying(manifest: &Value) -> Vec<String> {
    let ResultFiles { pipeline, lora } = ResultFiles::listed(manifest);
    let below = |folder: &'static str| move |name: String| format!("{folder}/{name}");
    let lora = lora.into_iter().map(below(LORA));
    let mut files: Vec<String> = lora.chain(pipeline.into_iter().map(below(FOLDER))).collect();
    files.sort_by_key(|name| mark_names().contains(name));
    files
}

/// Writes the result. A signal stops it within a moment; another call writes
/// what is missing.
///
/// # Errors
/// If a file cannot be read or written, or a signal stops it.
pub fn write(
    run: &Path,
    config: &Config,
    base: &BaseModel,
    networks: &Networks,
    card: &str,
) -> Result<()> {
    let unet = &networks.pipeline.unet;
    let (Some(lora), Some(result)) = (&config.lora, &config.lora_result) else {
        return write_pipeline(&run.join(FOLDER), base, card, &|folder| {
            unet.save_while(folder, &check)?;
            Ok(())
        });
    };
    let folder = run.join(LORA);
    runkit::files::create_folder(&folder)?;
    for (format, name) in &result.files {
        check()?;
        write_adapters(&folder.join(name), *format, base, networks, lora)?;
    }
    let first = result.files.first().map(|(_, name)| folder.join(name)).unwrap_or_default();
    if !result.is_merged {
        runkit::files::write_atomic(folder.join(CARD), |file| file.write_all(card.as_bytes()))?;
        return Ok(());
    }
    let merged = ScaledLora { path: first, scale: 1.0 };
    let merged = MergedPipeline::open(&base.files, &[merged])?;
    write_pipeline(&run.join(FOLDER), base, card, &|folder| {
        merged.save(Part::Unet, &folder.join(SAVED_WEIGHTS), &check)?;
        let config = base.unet.source();
        Ok(runkit::files::write_json_atomic(folder.join("config.json"), config)?)
    })
}

fn check() -> std::io::Result<()> {
    Ok(runkit::signals::check_at("result")?)
}

fn write_adapters(
    file: &Path,
    format: LoraFormat,
    base: &BaseModel,
    networks: &Networks,
    config: &LoraConfig,
) -> Result<()> {
    let adapters = networks.pipeline.unet.parameters();
    match format {
        LoraFormat::Diffusers => write_diffusers(file, adapters, config)?,
        LoraFormat::Kohya => {
            // Without a prefix that all names may have.
            let weights = MergedPipeline::open(&base.files, &[])?.unet;
            let names = weights.names().map(str::to_owned);
            write_kohya(file, adapters, names, config, &base.unet)?
        }
    };
    Ok(())
}

/// Writes the base model's folder with another UNet, which `write_unet` writes to its folder.
fn write_pipeline(
    to: &Path,
    base: &BaseModel,
    card: &str,
    write_unet: &dyn Fn(&Path) -> Result<()>,
) -> Result<()> {
    let index = base.files.folder.join(INDEX);
    let index =
        std::fs::read(&index).with_context(|| format!("cannot read {}", index.display()))?;
    let unet = to.join("unet");
    runkit::files::create_folder(&unet)?;
    write_unet(&unet)?;
    for Copied { from, to: name } in copied(&base.files)? {
        copy_file(&from, &to.join(name))?;
    }
    let index = match without_absent_parts(&index, &base.files.folder)? {
        Some(changed) => changed,
        None => index,
    };
    runkit::files::write_atomic(to.join(CARD), |file| file.write_all(card.as_bytes()))?;
    runkit::files::write_atomic(to.join(INDEX), |file| file.write_all(&index))?;
    Ok(())
}

/// Copies a file of the base model, durably.
pub(crate) fn copy_file(from: &Path, to: &Path) -> Result<()> {
    let copy = || -> Result<()> {
        runkit::files::create_folder(to.parent().unwrap_or(Path::new("")))?;
        let mut source = std::fs::File::open(from)?;
        Ok(runkit::files::write_atomic(to, |file| copy(&mut source, file))?)
    };
    copy().with_context(|| format!("copying {}", from.display()))
}

/// Copies to the end, unless a signal stops it.
fn copy(source: &mut std::fs::File, target: &mut dyn Write) -> std::io::Result<()> {
    let mut piece = vec![0; PIECE];
    loop {
        runkit::signals::check_at("copy")?;
        match source.read(&mut piece)? {
            0 => return Ok(()),
            count => target.write_all(piece.get(..count).unwrap_or_default())?,
        }
    }
}

/// The files that are copied from the base model: all parts but the UNet. Of a network that this
/// program reads, the weights that it reads; of any other part, one format of weights.
pub(crate) fn copied(files: &PipelineFiles) -> Result<Vec<Copied>> {
    let from = &files.folder;
    let index = std::fs::read(from.join(INDEX))
        .with_context(|| format!("cannot read {}", from.join(INDEX).display()))?;
    let parts: Value = serde_json::from_slice(&index)
        .with_context(|| format!("{}: not JSON", from.join(INDEX).display()))?;
    let names = parts.as_object().into_iter().flatten().map(|(name, _)| name.as_str());
    let mut all = Vec::new();
    for part in names.filter(|name| *name != "unet" && !name.starts_with('_')) {
        let folder = from.join(part);
        if folder.is_dir() {
            let read = match network_of(files, part) {
                Some(network) => Some(Weights::open(&network.weights)?.files().to_vec()),
                None => None,
            };
            list_part(&folder, part, read.as_deref(), &mut all)?;
        }
    }
    Ok(all)
}

/// The index with two nulls for each part whose folder does not exist, which is how diffusers
/// writes absent parts: the safety checker of a model on the hub is not downloaded. `None` if all
/// parts exist.
pub(crate) fn without_absent_parts(index: &[u8], folder: &Path) -> Result<Option<Vec<u8>>> {
    let mut changed: Value = serde_json::from_slice(index)
        .with_context(|| format!("{}: not JSON", folder.join(INDEX).display()))?;
    let Some(parts) = changed.as_object_mut() else { return Ok(None) };
    let mut any = false;
    for (name, part) in parts.iter_mut() {
        // `["library", "class"]`; options of the pipeline are not lists.
        let is_part = part.as_array().is_some_and(|pair| pair.len() == 2 && pair[1].is_string());
        if is_part && name != "unet" && !folder.join(name).is_dir() {
            *part = Value::Array(vec![Value::Null, Value::Null]);
            any = true;
        }
    }
    if !any {
        return Ok(None);
    }
    if parts.get("safety_checker").is_some_and(|part| part.get(1) == Some(&Value::Null)) {
        parts.insert("requires_safety_checker".to_owned(), Value::Bool(false));
    }
    Ok(Some(serde_json::to_vec_pretty(&changed)?))
}

/// The network of a part, if this program reads its weights.
fn network_of<'files>(files: &'files PipelineFiles, part: &str) -> Option<&'files NetworkFiles> {
    match part {
        "vae" => Some(&files.vae),
        "text_encoder" => files.text_encoders.first(),
        "text_encoder_2" => files.text_encoders.get(1),
        _ => None,
    }
}

/// Lists a part of the pipeline. Of its weights, lists the files `read`, or those of the preferred
/// format. Weights in f16 lose the suffix in their name, or diffusers would not find them.
fn list_part(
    folder: &Path,
    name: &str,
    read: Option<&[PathBuf]>,
    all: &mut Vec<Copied>,
) -> Result<()> {
    let list = || format!("cannot list {}", folder.display());
    let mut paths = std::fs::read_dir(folder)
        .with_context(list)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<std::io::Result<Vec<_>>>()
        .with_context(list)?;
    paths.sort();
    let file_name =
        |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let files = paths.iter().filter(|path| path.is_file());
    let best = files.filter_map(|path| format_of(&file_name(path))).min();
    let is_wanted = |path: &PathBuf| match (read, format_of(&file_name(path))) {
        (_, None) => true,
        (Some(read), Some(_)) => read.contains(path),
        (None, format) => format == best,
    };
    let weights = paths.iter().filter(|path| format_of(&file_name(path)).is_some());
    let is_single = weights.filter(|path| path.is_file() && is_wanted(path)).count() == 1;
    for path in &paths {
        let own = file_name(path);
        if path.is_dir() {
            if !own.starts_with('.') {
                list_part(path, &format!("{name}/{own}"), None, all)?;
            }
        } else if is_wanted(path) {
            let renamed = match is_single && format_of(&own).is_some() {
                true => own.replace(HALF, ""),
                false => own,
            };
            all.push(Copied { from: path.clone(), to: format!("{name}/{renamed}") });
        }
    }
    Ok(())
}

/// The format of a file of weights or of its index, by name: the position in [`WEIGHT_EXTENSIONS`],
/// and whether it is a variant such as f16. `None` for another file.
pub(crate) fn format_of(name: &str) -> Option<(usize, bool)> {
    let (file, variant) = match name.split_once(".index.") {
        Some((file, rest)) => (file, rest.strip_suffix("json")?.trim_end_matches('.')),
        None => (name, ""),
    };
    let (stem, extension) = file.rsplit_once('.')?;
    let format = WEIGHT_EXTENSIONS.iter().position(|known| *known == extension)?;
    Some((format, stem.contains('.') || !variant.is_empty()))
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "fixtures need not be durable")]
mod tests {
    use super::*;

    #[test]
    fn one_format_of_weights_of_an_unknown_part_is_copied() {
        let place = tempfile::tempdir().unwrap();
        let listed = |files: &[&str]| -> Vec<String> {
            let folder = place.path().join("safety_checker");
            std::fs::create_dir(&folder).unwrap();
            files.iter().for_each(|name| std::fs::write(folder.join(name), "x").unwrap());
            let mut all = Vec::new();
            list_part(&folder, "safety_checker", None, &mut all).unwrap();
            std::fs::remove_dir_all(&folder).unwrap();
            let name =
                |copied: Copied| copied.to.strip_prefix("safety_checker/").unwrap().to_owned();
            all.into_iter().map(name).collect()
        };
        let all = [
            "config.json",
            "model.fp16.safetensors",
            "model.safetensors",
            "pytorch_model.bin",
            "pytorch_model.fp16.bin",
        ];
        assert_eq!(listed(&all), ["config.json", "model.safetensors"]);
        // The only one loses its suffix.
        assert_eq!(listed(&all[..2]), ["config.json", "model.safetensors"]);
        let sharded = [
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.fp16.json",
            "model.safetensors.index.json",
            "pytorch_model.bin.index.json",
            "vocab.json",
        ];
        assert_eq!(listed(&sharded), [sharded[0], sharded[1], sharded[3], sharded[5]]);
        assert_eq!(listed(&["model.onnx", "merges.txt"]), ["merges.txt", "model.onnx"]);
    }

    #[test]
    fn absent_parts_are_null_in_the_index() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("vae")).unwrap();
        let index = br#"{
            "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"]
        }"#;
        let changed = without_absent_parts(index, folder.path()).unwrap().unwrap();
        let changed: Value = serde_json::from_slice(&changed).unwrap();
        assert_eq!(changed["safety_checker"], serde_json::json!([null, null]));
        assert_eq!(changed["requires_safety_checker"], false);
        assert_eq!(changed["vae"][1], "AutoencoderKL");
        std::fs::create_dir(folder.path().join("safety_checker")).unwrap();
        assert_eq!(without_absent_parts(index, folder.path()).unwrap(), None);
    }
}
