//! Safetensors files. The `safetensors` crate checks the header: its size, that the tensors tile
//! the data exactly, and that every shape fits its bytes.

use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::path::Path;
use std::sync::Arc;

use runkit::files::{AtomicFile, FileError, Operation};
use safetensors::{Dtype, SafeTensors};
use serde_json::{Map, Value, json};
use tch::{Device, Kind, TchError, Tensor};

use super::mapped::{MappedFile, element_count, invalid, row_major_strides};
use super::{Stored, WeightsError};

/// Bytes before the header: its length as a little-endian number.
const LENGTH_BYTES: usize = 8;

/// All tensors of a file.
pub(super) fn read(file: &Arc<MappedFile>) -> Result<BTreeMap<String, Stored>, WeightsError> {
    let (header, metadata) = SafeTensors::read_metadata(file.bytes())
        .map_err(|error| invalid(file.path(), format!("not a valid safetensors file: {error}")))?;
    let data_start = LENGTH_BYTES + header;
    let mut tensors = BTreeMap::new();
    for (name, info) in metadata.tensors() {
        let kind = kind_of(info.dtype).ok_or_else(|| {
            let reason = format!("tensor {name:?} has the unsupported type {:?}", info.dtype);
            invalid(file.path(), reason)
        })?;
        let shape = info
            .shape
            .iter()
            .map(|size| i64::try_from(*size).ok())
            .collect::<Option<Vec<i64>>>()
            .filter(|shape| element_count(shape).is_some_and(|count| count <= i64::MAX as usize))
            .ok_or_else(|| {
                invalid(
                    file.path(),
                    format!("tensor {name:?} has the impossible shape {:?}", info.shape),
                )
            })?;
        let stored = Stored {
            file: Arc::clone(file),
            offset: data_start + info.data_offsets.0,
            kind,
            strides: row_major_strides(&shape),
            shape,
            deltas: Vec::new(),
        };
        tensors.insert(name, stored);
    }
    Ok(tensors)
}

/// The entries of a file's metadata; none if it is no such file.
pub(super) fn metadata(file: &MappedFile) -> BTreeMap<String, String> {
    let read = SafeTensors::read_metadata(file.bytes()).ok();
    let entries = read.and_then(|(_, metadata)| metadata.metadata().clone());
    entries.into_iter().flatten().collect()
}

fn kind_of(dtype: Dtype) -> Option<Kind> {
    Some(match dtype {
        Dtype::BOOL => Kind::Bool,
        Dtype::U8 => Kind::Uint8,
        Dtype::I8 => Kind::Int8,
        Dtype::I16 => Kind::Int16,
        Dtype::I32 => Kind::Int,
        Dtype::I64 => Kind::Int64,
        Dtype::F16 => Kind::Half,
        Dtype::BF16 => Kind::BFloat16,
        Dtype::F32 => Kind::Float,
        Dtype::F64 => Kind::Double,
        _ => return None,
    })
}

/// Writes tensors by name to a safetensors file, which appears complete or not at all, with the
/// entry `format: pt` that PyTorch's libraries expect. Copies one tensor at a time to the CPU.
///
/// # Errors If the file cannot be written, or a tensor cannot be copied to the CPU.
pub fn write(path: &Path, tensors: &[(String, Tensor)]) -> Result<Written, FileError> {
    write_with_metadata(path, tensors, &[])
}

/// A record of the bytes on their way to the disk, so that nobody has to read them back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// The length of the file in bytes.
    pub bytes: u64,
    /// The BLAKE3 hash of the file, 64 hexadecimal digits.
    pub blake3: String,
}

/// A file that is hashed while it is written.
struct Hashed {
    file: AtomicFile,
    hasher: blake3::Hasher,
}

impl Hashed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        // On all cores: hashing on one core is slower than a good disk.
        self.hasher.update_rayon(bytes);
        self.file.write_all(bytes)
    }

    fn commit(self) -> Result<Written, FileError> {
        let bytes = self.file.bytes_written();
        self.file.commit()?;
        Ok(Written { bytes, blake3: self.hasher.finalize().to_hex().to_string() })
    }
}

/// [`write()`] with further entries in the header's metadata, in this order.
pub fn write_with_metadata(
    path: &Path,
    tensors: &[(String, Tensor)],
    metadata: &[(&str, String)],
) -> Result<Written, FileError> {
    write_while(path, tensors, metadata, &|| Ok(()))
}

/// [`write_with_metadata`] that calls `check` before each tensor; its error ends the writing.
pub(crate) fn write_while(
    path: &Path,
    tensors: &[(String, Tensor)],
    metadata: &[(&str, String)],
    check: &dyn Fn() -> io::Result<()>,
) -> Result<Written, FileError> {
    let entries: Vec<Entry<'_>> = tensors
        .iter()
        .map(|(name, tensor)| Entry { name, kind: tensor.kind(), shape: tensor.size() })
        .collect();
    write_each(path, &entries, metadata, &mut |index| {
        check()?;
        let tensor = tensors.get(index).map(|(_, tensor)| tensor.shallow_clone());
        Ok(tensor.unwrap_or_default())
    })
}

/// A tensor to write: what the header says of it.
pub(crate) struct Entry<'names> {
    pub(crate) name: &'names str,
    pub(crate) kind: Kind,
    pub(crate) shape: Vec<i64>,
}

/// [`write_with_metadata`] for tensors that `tensor` makes one after the other, by their number; its
/// error ends the writing.
pub(crate) fn write_each(
    path: &Path,
    entries: &[Entry<'_>],
    metadata: &[(&str, String)],
    tensor: &mut dyn FnMut(usize) -> io::Result<Tensor>,
) -> Result<Written, FileError> {
    let fail = |cause: io::Error| FileError::new(path, Operation::Write, cause);
    let torch = |error: TchError| fail(io::Error::other(error.to_string()));
    let mut header = Map::new();
    let mut texts = Map::from_iter([("format".to_owned(), json!("pt"))]);
    texts.extend(metadata.iter().map(|(key, text)| ((*key).to_owned(), json!(text))));
    header.insert("__metadata__".to_owned(), Value::Object(texts));
    let mut end = 0;
    for Entry { name, kind, shape } in entries {
        let (dtype, size) = dtype_of(*kind).ok_or_else(|| {
            fail(io::Error::other(format!("tensor {name:?} has an unsupported type")))
        })?;
        let start = end;
        end += element_count(shape).unwrap_or_default() * size;
        let entry = json!({"dtype": dtype, "shape": shape, "data_offsets": [start, end]});
        header.insert((*name).to_owned(), entry);
    }
    let mut header = Value::Object(header).to_string().into_bytes();
    // The data begins at a multiple of eight bytes.
    header.resize(header.len().next_multiple_of(LENGTH_BYTES), b' ');
    let mut file = Hashed { file: AtomicFile::create(path)?, hasher: blake3::Hasher::new() };
    file.write(&(header.len() as u64).to_le_bytes()).map_err(fail)?;
    file.write(&header).map_err(fail)?;
    let mut bytes = Vec::new();
    for (index, entry) in entries.iter().enumerate() {
        let tensor = tensor(index).map_err(fail)?;
        if (tensor.kind(), tensor.size()) != (entry.kind, entry.shape.clone()) {
            let reason = format!("tensor {:?} is not what the header says", entry.name);
            return Err(fail(io::Error::other(reason)));
        }
        let tensor = tensor.f_detach().and_then(|tensor| tensor.f_to_device(Device::Cpu));
        let tensor = tensor.and_then(|tensor| tensor.f_contiguous()).map_err(torch)?;
        let (_, size) = dtype_of(tensor.kind()).unwrap_or_default();
        bytes.resize(tensor.numel() * size, 0);
        tensor.f_copy_data_u8(&mut bytes, tensor.numel()).map_err(torch)?;
        file.write(&bytes).map_err(fail)?;
    }
    file.commit()
}

/// The format's name of a dtype, and its size in bytes.
fn dtype_of(kind: Kind) -> Option<(&'static str, usize)> {
    Some(match kind {
        Kind::Bool => ("BOOL", 1),
        Kind::Uint8 => ("U8", 1),
        Kind::Int8 => ("I8", 1),
        Kind::Int16 => ("I16", 2),
        Kind::Int => ("I32", 4),
        Kind::Int64 => ("I64", 8),
        Kind::Half => ("F16", 2),
        Kind::BFloat16 => ("BF16", 2),
        Kind::Float => ("F32", 4),
        Kind::Double => ("F64", 8),
        _ => return None,
    })
}
