//! Data where it lies: a local path, object storage, a file of a web server, a data set of the
//! Hugging Face Hub.
//!
//! | spelling | what | credentials and endpoint |
//! |---|---|---|
//! | `DIR`, `FILE`, `GLOB` | this machine | |
//! | `s3://BUCKET/KEY` | S3 and what speaks its language | `AWS_*`, `AWS_ENDPOINT_URL` |
//! | `gs://BUCKET/KEY` | Google Cloud Storage | `GOOGLE_*` |
//! | `az://CONTAINER/KEY`, `abfs[s]://CONTAINER@ACCOUNT.dfs.core.windows.net/KEY` | Azure | `AZURE_*` |
//! | `https://HOST/FILE` | one file of a server that knows ranges | |
//! | `hf://datasets/OWNER/NAME[@REVISION]/PATH` | the hub; `@~parquet` is its converted branch | `HF_TOKEN`, `HF_ENDPOINT`, `HF_HUB_OFFLINE` |
//!
//! A [`Location`] is what the user wrote; [`find()`] lists the files it stands for; [`File`] reads
//! one of them, by the range, with the next ranges fetched in the background; [`Upload`] writes one.
//! Callers are synchronous: a small runtime of this crate drives the requests, which go through the
//! connections of [`hub`], so proxies and certificates are those of every other download.
//!
//! Every request has a time limit, and what may pass is tried again ([`Limits`]). Every request
//! after the first names the ETag of the first, so an object that changes ends the run by its name.
//! No message holds a token, a signature or the query of an address.

mod access;
mod ahead;
mod error;
mod file;
mod find;
mod hub_data;
mod location;
mod remote;
mod remove;
mod retry;
mod spelling;
mod store;
mod transport;
mod upload;
mod web;

pub use access::{Access, Limits, Traffic, log_traffic};
pub use ahead::PIECE_BYTES;
pub use error::LocationError;
pub use file::{File, Reader};
pub use find::{Found, Item, find};
pub use location::{Location, Remote};
pub use remove::remove;
pub use spelling::shown;
pub use upload::{Condition, Upload};

/// The schemes, for messages.
pub const SCHEMES: &str = "s3://, gs://, az://, abfs://, abfss://, https:// or hf://datasets/";
/// The characters that make a name a pattern.
pub const PATTERN_CHARACTERS: [char; 3] = ['*', '?', '['];
/// As a shell matches: `*` does not reach into folders, nor match a leading dot.
pub const PATTERN_RULES: glob::MatchOptions = glob::MatchOptions {
    case_sensitive: true,
    require_literal_separator: true,
    require_literal_leading_dot: true,
};
