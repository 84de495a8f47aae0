//! Where the sizes of a CLIP-type model come from: its configuration file in either layout, or its
//! published name.

use std::path::Path;

use super::config::{ClipConfig, Problem};
use super::layout::ClipLayout;
use super::published::{self, PUBLISHED_NAMES};
use super::{open_clip_config, transformers_config};
use crate::config::{ConfigError, invalid, read_json};

impl ClipConfig {
    /// Reads the configuration file of a model.
    pub fn read(file: &Path, layout: ClipLayout) -> Result<Self, ConfigError> {
        let json = read_json(file)?;
        let config = match layout {
            ClipLayout::Transformers => transformers_config::read(&json, file),
            ClipLayout::OpenClip => open_clip_config::read(&json),
        };
        config.map_err(|problem| match problem {
            Problem::Json(reason) => invalid(file, reason),
            Problem::Config(error) => error.in_file(file),
        })
    }

    /// A published architecture by open_clip's name for it ([`PUBLISHED_NAMES`]).
    pub fn published(name: &str) -> Result<Self, ConfigError> {
        published::find(name).ok_or_else(|| ConfigError::UnknownArchitecture {
            name: name.to_owned(),
            known: PUBLISHED_NAMES.join(", "),
        })
    }
}
