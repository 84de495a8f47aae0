//! What running a network can report.

use tch::TchError;

/// A network could not be run.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// An input does not have the documented shape or values.
    #[error("{network}: {reason}")]
    Input {
        /// The network that was asked.
        network: &'static str,
        /// What was expected and what was found.
        reason: String,
    },
    /// libtorch refused, most often for want of memory.
    #[error("libtorch: {0}")]
    Torch(#[from] TchError),
}

impl NetworkError {
    /// True where the device ran out of memory, so that a smaller batch may pass.
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
