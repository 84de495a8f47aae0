//! What can go wrong between `scorers.toml` and a score.

use std::path::PathBuf;

/// An error of configuring, loading or running the reward models.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ScorerError {
    /// `scorers.toml` cannot be read or parsed.
    #[error(transparent)]
    Toml(#[from] runkit::config::ConfigError),
    /// A value of `scorers.toml` is invalid.
    #[error("{}: scorer `{scorer}`: {problem}", file.display())]
    Invalid {
        /// The configuration file.
        file: PathBuf,
        /// The name of the entry, or its number if it has none.
        scorer: String,
        /// What is wrong, with a hint.
        problem: String,
    },
    /// The file lists no scorer.
    #[error("{}: no `[[scorer]]` entry found; hint: start from data/mini/scorers.toml", .0.display())]
    Empty(PathBuf),
    /// A model folder, a hub name or one of its files is not available.
    #[error("scorer `{scorer}`: {source}")]
    Hub {
        /// The entry that names the model.
        scorer: String,
        /// The cause.
        source: Box<hub::HubError>,
    },
    /// A file of the model cannot be read.
    #[error("scorer `{scorer}`: {}: {problem}", file.display())]
    File {
        /// The entry that names the model.
        scorer: String,
        /// The file.
        file: PathBuf,
        /// What was expected and what was found.
        problem: String,
    },
    /// Weights cannot be read for their checksum, or a stop was asked for meanwhile.
    #[error(transparent)]
    Hash(#[from] runkit::files::FileError),
    /// A checkpoint cannot be read, or does not hold the network that its configuration describes.
    #[error("scorer `{scorer}`: {source}")]
    Network {
        /// The entry that names the model.
        scorer: String,
        /// The cause.
        source: Box<nn::ModelError>,
    },
    /// A model's pixel size, mean or standard deviation cannot be a preprocessing recipe.
    #[error("scorer `{scorer}`: {source}")]
    Recipe {
        /// The entry that names the model.
        scorer: String,
        /// The cause.
        source: media::preprocess::PreprocessError,
    },
    /// An image cannot be preprocessed.
    #[error("image: {0}")]
    Image(#[source] media::preprocess::PreprocessError),
    /// The vocabulary cannot be read.
    #[error("scorer `{scorer}`: {source}")]
    Tokenizer {
        /// The entry that names the model.
        scorer: String,
        /// The cause.
        source: media::text::TokenizerError,
    },
    /// An external scorer cannot be asked at all: no program, no server, a wrong key.
    #[error("scorer `{scorer}`: {problem}")]
    External {
        /// The entry.
        scorer: String,
        /// What is wrong, with a hint.
        problem: String,
    },
    /// The budget of an external scorer is spent. What it has answered is kept.
    #[error(
        "scorer `{scorer}`: max_requests = {limit} requests are sent; hint: raise max_requests in \
         scorers.toml and run the same command again, which asks nothing twice"
    )]
    OutOfRequests {
        /// The entry.
        scorer: String,
        /// Its `max_requests`.
        limit: u64,
    },
    /// A request to stop arrived.
    #[error(transparent)]
    Stopped(#[from] runkit::signals::Stopped),
    /// A network or a scorer failed on a batch.
    #[error("{tower}: a batch of {batch} failed: {source}")]
    Forward {
        /// Which tower or scorer.
        tower: String,
        /// How many images, captions or pairs the batch held.
        batch: usize,
        /// The cause.
        source: nn::NetworkError,
    },
}

/// The constructors below take the scorer's name first, so that `map_err` reads as a sentence.
impl ScorerError {
    pub(crate) fn hub(scorer: &str) -> impl Fn(hub::HubError) -> Self + Copy + '_ {
        move |source| Self::Hub { scorer: scorer.to_owned(), source: Box::new(source) }
    }

    pub(crate) fn network<E: Into<nn::ModelError>>(scorer: &str) -> impl Fn(E) -> Self + Copy + '_ {
        move |source| Self::Network { scorer: scorer.to_owned(), source: Box::new(source.into()) }
    }
}
