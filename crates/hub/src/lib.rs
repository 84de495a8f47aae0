//! From the name of a model or data collection to local files.
//!
//! A name is a folder (relative to the file that mentions it) or `hf://owner/name[@revision]`, a
//! repository of the Hugging Face Hub. Hub files come from the cache that the Python libraries use
//! too, and are downloaded into it when they are missing. The crate does not know what the files
//! mean; it owns where they are, which revision they belong to, and that no name leads outside the
//! folder it should stay in.
//!
//! Environment: `HF_HUB_CACHE` (older `HUGGINGFACE_HUB_CACHE`), `HF_HOME`, `XDG_CACHE_HOME`,
//! `HF_ENDPOINT`, `HF_TOKEN`, `HF_TOKEN_PATH`, `HF_HUB_OFFLINE` (older `TRANSFORMERS_OFFLINE`), with
//! the meaning they have in huggingface/huggingface_hub `src/huggingface_hub/constants.py`.

mod cache;
mod checksum;
mod download;
mod error;
mod name;
mod repository;
mod settings;

pub use checksum::sha256_file;
pub use error::HubError;
pub use repository::Repository;
pub use settings::Settings;
