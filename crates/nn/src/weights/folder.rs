//! From a path to tensors: formats, sharded checkpoints and variants.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;

use super::mapped::{MappedFile, invalid};
use super::{Weights, WeightsError, archive, safetensors, text};

/// The usual names of weights in a model folder, the best first.
pub(super) const USUAL_NAMES: &[&str] = &[
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
];

/// An index is a list of names; the largest published ones have some hundred kilobytes.
const LARGEST_INDEX_BYTES: u64 = 32 << 20;

/// Opens one file: weights, or an index of shards.
pub(super) fn open_path(path: &Path) -> Result<Weights, WeightsError> {
    if path.to_str().is_some_and(is_index) {
        return open_index(path);
    }
    let file = MappedFile::open(path)?;
    let tensors = match sniff(file.bytes()) {
        Content::Safetensors => safetensors::read(&file)?,
        Content::Zip => archive::read(&file)?,
        Content::Other { found, hint } => {
            return Err(WeightsError::Format { file: path.to_owned(), found, hint });
        }
    };
    Ok(Weights { files: vec![path.to_owned()], tensors })
}

/// True for the name of an index: `model.safetensors.index.json`, or of a variant,
/// `model.safetensors.index.fp16.json`.
fn is_index(name: &str) -> bool {
    let Some(name) = name.strip_suffix(".json") else { return false };
    match name.rsplit_once('.') {
        Some((_, "index")) => true,
        Some((before, _variant)) => before.ends_with(".index"),
        None => false,
    }
}

/// The weights in `folder`: the first of `names` that exists, else the only variant, as diffusers
/// and transformers name it (`model.VARIANT.safetensors`, `model.safetensors.index.VARIANT.json`).
/// `None` if the folder holds no weights.
///
/// # Errors
/// If the folder cannot be read, or holds several variants.
pub fn find_file(folder: &Path, names: &[&str]) -> Result<Option<PathBuf>, WeightsError> {
    let usual = names.iter().map(|name| folder.join(name)).find(|path| path.is_file());
    if usual.is_some() || !folder.is_dir() {
        return Ok(usual);
    }
    let mut variants: BTreeMap<String, (usize, String)> = BTreeMap::new();
    for entry in fs_err::read_dir(folder)? {
        let Ok(name) = entry?.file_name().into_string() else { continue };
        for (rank, usual) in names.iter().enumerate() {
            if let Some(variant) = variant_of(&name, usual) {
                let best = variants.entry(variant.to_owned()).or_insert((rank, name.clone()));
                if rank < best.0 {
                    *best = (rank, name.clone());
                }
            }
        }
    }
    let mut found = variants.into_iter();
    match (found.next(), found.next()) {
        (None, _) => Ok(None),
        (Some((variant, (_, name))), None) => {
            let path = folder.join(name);
            tracing::info!("{}: the variant {variant} is read, the only one there", path.display());
            Ok(Some(path))
        }
        (Some(first), Some(second)) => {
            let files: Vec<String> =
                [first, second].into_iter().chain(found).map(|(_, (_, name))| name).collect();
            let usual = names.first().copied().unwrap_or_default();
            let reason = format!(
                "several variants of the weights and none of the usual names: {}\n\
                 hint: copy the one that is meant to {usual}, or its index to {usual}.index.json",
                files.join(", ")
            );
            Err(invalid(folder, reason))
        }
    }
}

/// The variant of a file that is otherwise called `usual`.
fn variant_of<'name>(name: &'name str, usual: &str) -> Option<&'name str> {
    let plain = |variant: &&str| !variant.is_empty() && !variant.contains(['.', '/']);
    let between = |start: &str, end: &str| {
        name.strip_prefix(start)?.strip_prefix('.')?.strip_suffix(end)?.strip_suffix('.')
    };
    match usual.strip_suffix(".json") {
        // A variant has no variants.
        Some(index) if index.ends_with(".index") => between(index, "json").filter(plain),
        Some(_) => None,
        None => {
            let (stem, kind) = usual.split_once('.')?;
            // The shards of a variant are found by its index.
            let shard = |variant: &&str| variant.contains("-of-");
            between(stem, kind).filter(plain).filter(|variant| !shard(variant))
        }
    }
}

/// Files of `folder` that look like weights but have another name, for messages.
pub(crate) fn other_weights(folder: &Path) -> Vec<String> {
    const KINDS: &[&str] =
        &["safetensors", "bin", "pt", "pth", "ckpt", "h5", "msgpack", "onnx", "gguf"];
    let mut found: Vec<String> = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.rsplit_once('.').is_some_and(|(_, kind)| KINDS.contains(&kind)))
        .map(|name| name.escape_debug().to_string())
        .collect();
    found.sort();
    found.truncate(8);
    found
}

enum Content {
    Safetensors,
    Zip,
    Other { found: String, hint: &'static str },
}

/// What a file is, by its first bytes.
fn sniff(bytes: &[u8]) -> Content {
    // Eight letters are never the length of a header: it would be an exabyte.
    let letter = |byte: &u8| byte.is_ascii_graphic() || byte.is_ascii_whitespace();
    let letters = bytes.iter().take(8).all(letter);
    if bytes.starts_with(b"PK\x03\x04") || bytes.starts_with(b"PK\x05\x06") {
        Content::Zip
    } else if bytes.get(8) == Some(&b'{') && !letters {
        Content::Safetensors
    } else if bytes.first() == Some(&0x80) && bytes.get(1).is_some_and(|version| *version <= 5) {
        let found = "a pickle in the format from before PyTorch 1.6".to_owned();
        let hint = "load and save it again with PyTorch 1.6 or newer, or convert it to safetensors";
        Content::Other { found, hint }
    } else {
        let (found, hint) = text::name(bytes);
        Content::Other { found, hint }
    }
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// Opens all shards that an index names. Each tensor must be in the shard that the index says.
fn open_index(path: &Path) -> Result<Weights, WeightsError> {
    if fs_err::metadata(path)?.len() > LARGEST_INDEX_BYTES {
        return Err(invalid(path, "an index of more than 32 MiB is not read"));
    }
    let bytes = fs_err::read(path)?;
    let index: Index =
        serde_json::from_slice(&bytes).map_err(|error| match text::name_text(&bytes) {
            Some((found, hint)) => {
                invalid(path, format!("not a valid index of shards: {found}\nhint: {hint}"))
            }
            None => invalid(path, format!("not a valid index of shards: {error}")),
        })?;
    let shards: BTreeSet<&str> = index.weight_map.values().map(String::as_str).collect();
    let folder = path.parent().unwrap_or_else(|| Path::new(""));
    let mut all = Weights { files: vec![path.to_owned()], ..Weights::default() };
    for shard in shards {
        if !is_plain_file_name(shard) {
            let reason = format!("a shard must be a file beside the index, found {shard:?}");
            return Err(invalid(path, reason));
        }
        let shard_path = folder.join(shard);
        if is_index(shard) {
            return Err(invalid(path, format!("shard {shard:?} is an index itself")));
        }
        let opened = open_path(&shard_path)?;
        for name in opened.names() {
            if index.weight_map.get(name).map(String::as_str) != Some(shard) {
                let reason = format!("tensor {name:?} is not where {} says", path.display());
                return Err(invalid(&shard_path, reason));
            }
        }
        all.merge(opened)?;
    }
    if let Some(name) = index.weight_map.keys().find(|name| !all.contains(name)) {
        return Err(invalid(path, format!("tensor {name:?} is in none of the shards")));
    }
    Ok(all)
}

/// True for a name that stays in its folder on every operating system.
fn is_plain_file_name(name: &str) -> bool {
    let mut components = Path::new(name).components();
    matches!((components.next(), components.next()), (Some(Component::Normal(_)), None))
        && !name.contains(['/', '\\', '\0', ':'])
}

#[cfg(test)]
mod tests {
    use super::{is_index, is_plain_file_name, variant_of};

    #[test]
    fn variants_differ_from_shards_and_other_files() {
        for (name, usual, variant) in [
            ("model.bf16.safetensors", "model.safetensors", Some("bf16")),
            ("model.non_ema.safetensors", "model.safetensors", Some("non_ema")),
            ("model.safetensors", "model.safetensors", None),
            ("model.fp16-00001-of-00002.safetensors", "model.safetensors", None),
            ("model-00001-of-00002.fp16.safetensors", "model.safetensors", None),
            ("model_copy.bf16.safetensors", "model.safetensors", None),
            ("model.safetensors.index.bf16.json", "model.safetensors.index.json", Some("bf16")),
            ("model.safetensors.index.json", "model.safetensors.index.json", None),
        ] {
            assert_eq!(variant_of(name, usual), variant, "{name}");
        }
        for name in ["model.safetensors.index.json", "model.bin.index.my-variant.json"] {
            assert!(is_index(name), "{name}");
        }
        for name in ["config.json", "index.safetensors", "model.index.safetensors", "a.b.json"] {
            assert!(!is_index(name), "{name}");
        }
    }

    #[test]
    fn shards_stay_in_their_folder() {
        assert!(is_plain_file_name("model-00001-of-00002.safetensors"));
        for name in [
            "",
            ".",
            "..",
            "/etc/passwd",
            "../x",
            "a/b",
            "a/",
            "./a",
            "a\\b",
            "C:x",
            "a\0b",
            "..\\x",
        ] {
            assert!(!is_plain_file_name(name), "{name:?}");
        }
    }
}
