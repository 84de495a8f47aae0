//! From a path to tensors: which format it is, and sharded checkpoints.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path};

use serde::Deserialize;

use super::mapped::{MappedFile, invalid};
use super::{Weights, WeightsError, archive, safetensors};

/// Usual names of weights in a model folder, the best first.
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

/// True for the name of an index: `model.safetensors.index.json`, or of a variant in half
/// precision, `model.safetensors.index.fp16.json`.
fn is_index(name: &str) -> bool {
    name.ends_with(".index.json") || name.ends_with(".index.fp16.json")
}

enum Content {
    Safetensors,
    Zip,
    Other { found: &'static str, hint: &'static str },
}

/// What a file is, by its first bytes.
fn sniff(bytes: &[u8]) -> Content {
    let resave = "load and save it again with PyTorch 1.6 or newer, or convert it to safetensors";
    let download = "download the file again";
    if bytes.starts_with(b"PK\x03\x04") || bytes.starts_with(b"PK\x05\x06") {
        Content::Zip
    } else if bytes.get(8) == Some(&b'{') {
        Content::Safetensors
    } else if bytes.starts_with(b"version https://git-lfs") {
        Content::Other {
            found: "a Git LFS pointer instead of the file itself",
            hint: "run git lfs pull in the folder it came from",
        }
    } else if bytes.first() == Some(&0x80) && bytes.get(1).is_some_and(|version| *version <= 5) {
        Content::Other { found: "a pickle in the format from before PyTorch 1.6", hint: resave }
    } else if bytes.trim_ascii_start().starts_with(b"<") {
        Content::Other { found: "a web page", hint: download }
    } else {
        Content::Other { found: "something else", hint: download }
    }
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// Opens all shards that an index names. Each tensor must lie in the shard the index says.
fn open_index(path: &Path) -> Result<Weights, WeightsError> {
    if fs_err::metadata(path)?.len() > LARGEST_INDEX_BYTES {
        return Err(invalid(path, "an index of more than 32 MiB is not read"));
    }
    let index: Index = serde_json::from_slice(&fs_err::read(path)?)
        .map_err(|error| invalid(path, format!("not a valid index of shards: {error}")))?;
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
    use super::is_plain_file_name;

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
