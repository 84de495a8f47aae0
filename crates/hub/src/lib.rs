//! From the name of a model or data collection to local files.
//!
//! A name is a folder (relative to the file that mentions it) or `hf://owner/name[@revision]`, a
//! repository of the Hugging Face Hub. Hub files come from the cache that the Python libraries use
//! too, and are downloaded into it when they are missing. The crate does not know what the files
//! mean; it owns where they are, which revision they belong to, and that no name leads outside the
//! folder it should stay in.
//!
//! The hub is spoken to by this crate's own small client on ureq: the token goes to the hub alone,
//! every file is hashed before it has its name in the cache, every wait has a limit, and a request
//! to stop is seen at once ([`Network`]).
//!
//! Environment: `HF_HUB_CACHE` (older `HUGGINGFACE_HUB_CACHE`), `HF_HOME`, `XDG_CACHE_HOME`,
//! `HF_ENDPOINT`, `HF_TOKEN`, `HF_TOKEN_PATH`, `HF_HUB_OFFLINE` (older `TRANSFORMERS_OFFLINE`),
//! with the meaning they have in huggingface/huggingface_hub `src/huggingface_hub/constants.py`;
//! proxies in `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY`, certificates in
//! `SSL_CERT_FILE`, `SSL_CERT_DIR`, `REQUESTS_CA_BUNDLE` and `CURL_CA_BUNDLE`.

mod announce;
mod cache;
mod checksum;
mod download;
mod error;
mod http;
mod name;
mod place;
mod reach;
mod remote;
mod repository;
mod settings;

pub use announce::Downloads;
pub use checksum::sha256_file;
pub use error::HubError;
pub use http::{Limits, Network, Proxies};
pub use place::{Wanted, describe};
pub use repository::Repository;
pub use settings::Settings;

/// Takes `hf://owner/name[@revision]/file` apart into the repository and the file in it; none where
/// a name has another form.
pub fn split_file(name: &str) -> Option<(String, String)> {
    name::HubName::split_file(name)
}
