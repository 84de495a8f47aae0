//! From the name of a model or data collection to local files.
//!
//! A name is a folder (relative to the file that mentions it) or `hf://owner/name[@revision]`, a
//! repository of the Hugging Face Hub. Hub files come from the cache that the Python libraries use
//! too, and are downloaded into it when they are missing. The crate does not know what the files
//! mean; it owns where they are, which revision they belong to, and that no name leads outside the
//! folder it should stay in.
//!
//! A small client on ureq talks to the hub: the token goes only to the hub, a file gets its name in
//! the cache only after its checksum was compared, every wait has a limit, and a request to stop
//! takes effect at once ([`Network`]).
//!
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let base = std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../data/mini"));
//! // `clip` is a folder beside the file that names it; `hf://openai/clip-vit-large-patch14` would be
//! // the hub's.
//! let model = hub::Repository::open("clip", base)?;
//! assert!(model.file("config.json")?.is_file());
//! assert_eq!(model.optional_file("absent.json")?, None);
//! # Ok(())
//! # }
//! ```
//!
//! Environment: `HF_HUB_CACHE` (older `HUGGINGFACE_HUB_CACHE`), `HF_HOME`, `XDG_CACHE_HOME`,
//! `HF_ENDPOINT`, `HF_TOKEN`, `HF_TOKEN_PATH`, `HF_HUB_OFFLINE` (older `TRANSFORMERS_OFFLINE`),
//! with the meaning they have in huggingface/huggingface_hub `src/huggingface_hub/constants.py`;
//! proxies in `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY`, certificates in
//! `SSL_CERT_FILE`, `SSL_CERT_DIR`, `REQUESTS_CA_BUNDLE` and `CURL_CA_BUNDLE`.

mod cache;
mod checksum;
mod describe;
mod download;
mod downloads;
mod error;
mod http;
mod name;
mod reach;
mod remote;
mod repository;
mod settings;

pub use checksum::sha256_file;
pub use describe::{Wanted, describe};
pub use downloads::Downloads;
pub use error::HubError;
pub use http::{Connections, Fault, Limits, Network, Proxies, encode, join, origin};
pub use repository::Repository;
pub use settings::Settings;

/// Splits `hf://owner/name[@revision]/file` into the repository and the file in it; `None` if the
/// name has another form.
pub fn split_file(name: &str) -> Option<(String, String)> {
    name::HubName::split_file(name)
}
