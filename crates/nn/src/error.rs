//! What loading and running a network can report.

use tch::TchError;

use crate::config::ConfigError;
use crate::device::DeviceError;
use crate::lora::LoraError;
use crate::weights::WeightsError;

/// A network could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The configuration describes a network that is not implemented.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The checkpoint could not be read or does not fit.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The precision cannot be used on the device.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// A file could not be written. The message names it.
    #[error(transparent)]
    File(#[from] runkit::files::FileError),
    /// A file of the hub could not be fetched.
    #[error(transparent)]
    Hub(#[from] hub::HubError),
    /// Adapters cannot be used.
    #[error(transparent)]
    Lora(Box<LoraError>),
    /// A folder is not the model that was expected.
    #[error("{}: {reason}", folder.display())]
    Folder {
        /// The folder.
        folder: std::path::PathBuf,
        /// What was expected and what was found, with a hint.
        reason: String,
    },
}

impl From<LoraError> for ModelError {
    fn from(error: LoraError) -> Self {
        Self::Lora(Box::new(error))
    }
}

/// A network could not be run.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// An input does not have the documented shape or values.
    #[error("{network}: {reason}")]
    Input {
        /// The network, or a part of it.
        network: &'static str,
        /// What was expected and what was found.
        reason: String,
    },
    /// libtorch failed, most often because memory ran out.
    #[error("libtorch: {0}")]
    Torch(#[from] TchError),
}

impl NetworkError {
    /// True if the device ran out of memory, so that a smaller batch may fit.
    pub fn is_out_of_memory(&self) -> bool {
        match self {
            Self::Input { .. } => false,
            Self::Torch(error) => {
                let text = error.to_string();
                text.contains("out of memory") || text.contains("can't allocate memory")
            }
        }
    }
}
