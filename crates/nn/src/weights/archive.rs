//! The zip files of `torch.save`: `PREFIX/data.pkl` describes the tensors, and `PREFIX/data/KEY`
//! holds the bytes of each storage, uncompressed, so that they can be mapped.
//!
//! Names in the zip are only compared, never used as paths.

use std::collections::{BTreeMap, HashMap};
use std::io::Cursor;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use zip::{CompressionMethod, ZipArchive};

use super::mapped::{MappedFile, element_count, invalid, span};
use super::pickle::{self, PickledTensor};
use super::{Stored, WeightsError};

/// The list of tensors of the largest published checkpoints takes some hundred kilobytes.
const LARGEST_PICKLE_BYTES: usize = 8 << 20;

/// All tensors of a file.
pub(super) fn read(file: &Arc<MappedFile>) -> Result<BTreeMap<String, Stored>, WeightsError> {
    let path = file.path();
    let entries = entries(path, file.bytes())?;
    let prefix = prefix(path, &entries)?;
    let bytes_of = |name: &str| entries.get(name).and_then(|range| file.bytes().get(range.clone()));

    if bytes_of(&format!("{prefix}byteorder")).is_some_and(|order| order != b"little") {
        return Err(invalid(path, "the numbers are stored big-endian, expected little-endian"));
    }
    let program = bytes_of(&format!("{prefix}data.pkl")).unwrap_or_default();
    if program.len() > LARGEST_PICKLE_BYTES {
        let reason = format!("data.pkl has {} bytes, expected at most 8 MiB", program.len());
        return Err(invalid(path, reason));
    }

    let mut tensors = BTreeMap::new();
    for (name, pickled) in pickle::read(path, program)? {
        let entry = format!("{prefix}data/{}", pickled.storage);
        let range = entries.get(&entry).ok_or_else(|| {
            let reason = format!("the storage of tensor {name:?}, {entry:?}, is not in the zip");
            invalid(path, reason)
        })?;
        let stored = locate(file, range, pickled)
            .map_err(|reason| invalid(path, format!("tensor {name:?}: {reason}")))?;
        tensors.insert(name, stored);
    }
    Ok(tensors)
}

/// Checks that every element of a tensor lies in its storage.
fn locate(
    file: &Arc<MappedFile>,
    range: &Range<usize>,
    tensor: PickledTensor,
) -> Result<Stored, String> {
    let PickledTensor { kind, offset, shape, strides, .. } = tensor;
    let size = kind.elt_size_in_bytes();
    let available = range.len() / size;
    let elements = element_count(&shape).ok_or_else(|| format!("impossible shape {shape:?}"))?;
    let reached = span(&shape, &strides)
        .and_then(|span| span.checked_add(offset))
        .ok_or_else(|| format!("impossible strides {strides:?} of shape {shape:?}"))?;
    // Repeated elements (a stride of zero) would let a small file describe a tensor of any size.
    if reached > available || elements > available {
        return Err(format!(
            "shape {shape:?} with strides {strides:?} at {offset} needs {} elements, but its \
             storage has {available}",
            reached.max(elements)
        ));
    }
    Ok(Stored {
        file: Arc::clone(file),
        offset: range.start + offset * size,
        kind,
        shape,
        strides,
        deltas: Vec::new(),
    })
}

/// The position of every entry's content. Compressed entries are rejected.
fn entries(path: &Path, bytes: &[u8]) -> Result<HashMap<String, Range<usize>>, WeightsError> {
    let damaged = |error| invalid(path, format!("not a valid zip file: {error}"));
    let mut archive = ZipArchive::new(Cursor::new(bytes)).map_err(damaged)?;
    let mut entries = HashMap::new();
    for index in 0..archive.len() {
        let entry = archive.by_index_raw(index).map_err(damaged)?;
        let name = entry.name().to_owned();
        if entry.is_dir() {
            continue;
        }
        if entry.compression() != CompressionMethod::Stored || entry.encrypted() {
            let reason = format!(
                "entry {name:?} is compressed or encrypted, expected it stored as torch.save does\n\
                 hint: load the file with PyTorch and save it again"
            );
            return Err(invalid(path, reason));
        }
        let range = entry
            .data_start()
            .and_then(|start| usize::try_from(start).ok())
            .zip(usize::try_from(entry.size()).ok())
            .and_then(|(start, size)| Some(start..start.checked_add(size)?))
            .filter(|range| range.end <= bytes.len())
            .ok_or_else(|| invalid(path, format!("entry {name:?} reaches beyond the file")))?;
        entries.insert(name, range);
    }
    Ok(entries)
}

/// The prefix of `data.pkl`, with its slash.
fn prefix(path: &Path, entries: &HashMap<String, Range<usize>>) -> Result<String, WeightsError> {
    let mut prefixes = entries
        .keys()
        .filter_map(|name| name.strip_suffix("data.pkl"))
        .filter(|prefix| prefix.ends_with('/') && prefix.matches('/').count() == 1);
    let (Some(prefix), None) = (prefixes.next(), prefixes.next()) else {
        return Err(WeightsError::Format {
            file: path.to_owned(),
            found: "a zip file without one data.pkl in its folder".to_owned(),
            hint: "load and save it again with torch.save",
        });
    };
    if entries.contains_key(&format!("{prefix}constants.pkl")) {
        return Err(WeightsError::Format {
            file: path.to_owned(),
            found: "a TorchScript archive, which holds a program".to_owned(),
            hint: "save its state dict: torch.save(torch.jit.load(file).state_dict(), file)",
        });
    }
    Ok(prefix.to_owned())
}
