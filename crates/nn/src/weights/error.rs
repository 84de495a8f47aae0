//! The errors of reading a checkpoint.

use std::path::PathBuf;

use tch::TchError;

/// A checkpoint could not be read, or does not fit the network.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    /// The file could not be opened, read or mapped. The message names it.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// The process was asked to stop while the file was read.
    #[error("reading weights: {0}")]
    Stopped(#[source] runkit::signals::Stopped),
    /// A folder holds no weights file under a usual name.
    #[error("{}: no weights file, looked for {names}{found}", folder.display())]
    NoWeights {
        /// The folder.
        folder: PathBuf,
        /// The names looked for.
        names: String,
        /// The files that it holds instead, on a line of its own, if there are any.
        found: String,
    },
    /// The format of the content is not supported.
    #[error(
        "{}: expected safetensors or a PyTorch zip pickle, found {found}\n\
         hint: {hint}", file.display()
    )]
    Format {
        /// The file.
        file: PathBuf,
        /// What the content looks like.
        found: String,
        /// What to do about it.
        hint: &'static str,
    },
    /// The file breaks its own format: truncated, damaged, or made to mislead.
    #[error("{}: {reason}", file.display())]
    Invalid {
        /// The file.
        file: PathBuf,
        /// What was expected and what was found.
        reason: String,
    },
    /// A pickle asks for a Python object that is not plain tensor data.
    #[error(
        "{}: refused the global {module}.{name}: only plain tensor data is read from a pickle\n\
         hint: keep only the state dict, or convert the file to safetensors", file.display()
    )]
    RefusedGlobal {
        /// The file.
        file: PathBuf,
        /// The Python module.
        module: String,
        /// The name in it.
        name: String,
    },
    /// A pickle uses an instruction that no checkpoint needs.
    #[error("{}: refused the pickle instruction {opcode} at byte {position}", file.display())]
    RefusedOpcode {
        /// The file.
        file: PathBuf,
        /// The instruction's name or number.
        opcode: String,
        /// Where in `data.pkl` it stands.
        position: usize,
    },
    /// The file has no tensor of this name.
    #[error("{}: no tensor {name:?}", file.display())]
    NoTensor {
        /// The file.
        file: PathBuf,
        /// The name asked for.
        name: String,
    },
    /// A tensor holds a NaN or an infinity.
    #[error(
        "{}: tensor {name:?} holds NaN or infinite values\n\
         hint: the training that wrote it diverged, or the file is damaged: use another checkpoint",
        file.display()
    )]
    NotFinite {
        /// The (first) file.
        file: PathBuf,
        /// The tensor.
        name: String,
    },
    /// The checkpoint does not fit the configured network. Lists all differences at once.
    #[error(
        "{}: the checkpoint does not fit the {network}: {missing_count} missing, \
         {misshapen_count} misshapen, {unexpected_count} unexpected tensors{listing}{hint}",
        file.display()
    )]
    Mismatch {
        /// The (first) file.
        file: PathBuf,
        /// The network to load.
        network: String,
        /// How many tensors of the network the file lacks.
        missing_count: usize,
        /// How many have a wrong shape.
        misshapen_count: usize,
        /// How many tensors of the file the network does not use.
        unexpected_count: usize,
        /// The first names of each kind, one per line.
        listing: String,
        /// A hint on a line of its own, if there is one.
        hint: String,
    },
    /// libtorch failed, most often because memory ran out.
    #[error("{}: libtorch: {source}", file.display())]
    Torch {
        /// The (first) file.
        file: PathBuf,
        /// libtorch's own words.
        source: TchError,
    },
}
