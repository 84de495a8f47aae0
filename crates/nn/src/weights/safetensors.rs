//! Safetensors files. The header is checked by the `safetensors` crate: its size, that the tensors
//! tile the data exactly, and that every shape fits its bytes.

use std::collections::BTreeMap;
use std::sync::Arc;

use safetensors::{Dtype, SafeTensors};
use tch::Kind;

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
        };
        tensors.insert(name, stored);
    }
    Ok(tensors)
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
