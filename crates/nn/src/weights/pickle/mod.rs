//! A machine that reads the pickles of `torch.save` and can do nothing else.
//!
//! Python's pickle is a program for a stack machine whose `GLOBAL` and `REDUCE` call any function.
//! Here the only globals are those that describe tensors (`Global`); each is a case of a match,
//! nothing is imported or called, and every other name is an error that says which.
//!
//! All containers live in one arena, and a value is at most an index into it. Sharing, cycles and
//! nesting therefore cost no more than the bytes that made them: a program of n bytes makes at most
//! n values, dropping them does not recurse, and the caller bounds n.
//!
//! The instructions are those of pickle protocol 2, which `torch.save` writes, and the plain data
//! ones of 4 (`Lib/pickle.py` of CPython 3.11); the tensor calls are those of
//! pytorch/pytorch `torch/_utils.py` and `torch/serialization.py` at v2.11.0.

mod machine;
mod tensors;

use std::path::Path;

use tch::Kind;

use machine::Machine;

use super::WeightsError;

/// A tensor as the pickle describes it; nothing is checked against the storage yet.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct PickledTensor {
    /// Key of the storage in the zip.
    pub(super) storage: String,
    pub(super) kind: Kind,
    /// First element in the storage.
    pub(super) offset: usize,
    pub(super) shape: Vec<i64>,
    /// In elements.
    pub(super) strides: Vec<i64>,
}

/// The named tensors of a state dict, or of the one under `state_dict`, `model` or `module`. Other
/// entries (an epoch, arguments) are ignored.
pub(super) fn read(
    path: &Path,
    program: &[u8],
) -> Result<Vec<(String, PickledTensor)>, WeightsError> {
    let mut machine = Machine::new(path, program);
    let top = machine.run()?;
    machine.state_dict(top)
}

/// The Python names that a checkpoint may contain.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Global {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    Size,
    Storage(Kind),
    /// Data that describes no tensor: read, kept as `Value::Inert`, never used.
    Inert,
}

fn global(module: &str, name: &str) -> Option<Global> {
    Some(match (module, name) {
        ("collections", "OrderedDict") => Global::OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2") => Global::RebuildTensor,
        ("torch._utils", "_rebuild_parameter") | ("torch.nn.parameter", "Parameter") => {
            Global::RebuildParameter
        }
        ("torch", "Size") => Global::Size,
        ("torch", "FloatStorage") => Global::Storage(Kind::Float),
        ("torch", "HalfStorage") => Global::Storage(Kind::Half),
        ("torch", "BFloat16Storage") => Global::Storage(Kind::BFloat16),
        ("torch", "DoubleStorage") => Global::Storage(Kind::Double),
        ("torch", "LongStorage") => Global::Storage(Kind::Int64),
        ("torch", "IntStorage") => Global::Storage(Kind::Int),
        ("torch", "ShortStorage") => Global::Storage(Kind::Int16),
        ("torch", "CharStorage") => Global::Storage(Kind::Int8),
        ("torch", "ByteStorage") => Global::Storage(Kind::Uint8),
        ("torch", "BoolStorage") => Global::Storage(Kind::Bool),
        (
            "torch",
            "float32" | "float16" | "bfloat16" | "float64" | "int64" | "int32" | "int16" | "int8"
            | "uint8" | "bool" | "device",
        )
        | ("argparse", "Namespace")
        | ("numpy", "dtype")
        | ("numpy.core.multiarray" | "numpy._core.multiarray", "scalar")
        | ("_codecs", "encode") => Global::Inert,
        _ => return None,
    })
}
