//! Why no pairs were made.

use std::io;
use std::path::PathBuf;

use runkit::files::FileError;
use runkit::output::OutputError;
use runkit::signals::Stopped;
use schemas::evaluation::EvaluationError;
use schemas::labels::LabelsError;
use schemas::layouts::MAX_IMAGE_BYTES;
use schemas::table_writer::WriteError;

use super::{Choose, LeftOut};
use crate::scores_index::IndexError;

/// Why no pairs were made.
#[derive(Debug, thiserror::Error)]
pub enum PairsError {
    /// The scores cannot be read.
    #[error(transparent)]
    Scores(#[from] EvaluationError),
    /// The scores contradict each other, or do not have what was named.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// No two images of a prompt became a pair.
    #[error(
        "{}: expected two images of a prompt to make a pair of, found none: {left_out}; hint: {}",
        scores.display(),
        match choose {
            Choose::Unanimous => "more images of each prompt (--seeds), or another --choose",
            _ => "evaluate generate --seeds makes more images of each prompt, evaluate score scores \
                  them",
        }
    )]
    Empty {
        /// The scores.
        scores: PathBuf,
        /// Which images become pairs.
        choose: Choose,
        /// Why they did not.
        left_out: LeftOut,
    },
    /// The computed scores of the folder cannot be read.
    #[error("{detail}")]
    Store {
        /// The error.
        detail: String,
    },
    /// An image that has scores is not there, or cannot be read.
    #[error(
        "{}: expected the image that was scored, found {cause}; hint: generate it again and score \
         it, with evaluate generate and evaluate score",
        path.display()
    )]
    Image {
        /// The image.
        path: PathBuf,
        /// What reading it ended with.
        cause: io::Error,
    },
    /// An image is not the one that was scored.
    #[error(
        "{}: expected the image that was scored, found other bytes; hint: evaluate score with the \
         prompts and scorers as before scores it again",
        path.display()
    )]
    Changed {
        /// The image.
        path: PathBuf,
    },
    /// An image is larger than readers of pairs take.
    #[error(
        "{}: expected an image of at most {MAX_IMAGE_BYTES} bytes, found {bytes}; hint: save it as \
         JPEG, or name the other models with --models",
        path.display()
    )]
    TooLarge {
        /// The image.
        path: PathBuf,
        /// Its bytes.
        bytes: u64,
    },
    /// The output cannot be written, or is not ours.
    #[error(transparent)]
    Output(#[from] OutputError),
    /// A file of the output.
    #[error(transparent)]
    File(#[from] FileError),
    /// A file of pairs.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// The labels.
    #[error(transparent)]
    Labels(#[from] LabelsError),
    /// A file of pairs that an earlier start wrote cannot be read.
    #[error(transparent)]
    Written(#[from] schemas::pairs::PairsError),
    /// The manifest cannot be written as JSON.
    #[error("the manifest: {0}")]
    Manifest(#[from] serde_json::Error),
    /// A signal.
    #[error(transparent)]
    Stopped(#[from] Stopped),
}
