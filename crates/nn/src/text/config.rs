//! `config.json` of `transformers`' `CLIPTextModel` and `CLIPTextModelWithProjection`.

use std::path::Path;

use serde_json::Value;

use crate::clip::{TextConfig, transformers_config};
use crate::config::{ConfigError, Options, read_json};

/// The text encoder of a diffusion pipeline.
#[derive(Debug, Clone, PartialEq)]
pub struct TextEncoderConfig {
    /// The sizes of the network.
    pub sizes: TextConfig,
    /// Length of the projected features, if the network has a projection.
    pub projection: Option<i64>,
    /// The end token. With 2, as in files written before transformers 4.31, the largest token of a
    /// text is its end; otherwise the first token that equals this one.
    pub end_token: i64,
}

impl TextEncoderConfig {
    /// Reads `config.json`, whose `architectures` say whether the network has a projection.
    pub fn read(file: &Path) -> Result<Self, ConfigError> {
        Self::read_from(file, None)
    }

    /// [`Self::read`] for a network whose projection does not depend on `architectures`: a
    /// diffusers pipeline names the class of each part in its index.
    pub fn read_as(file: &Path, projects: bool) -> Result<Self, ConfigError> {
        Self::read_from(file, Some(projects))
    }

    fn read_from(file: &Path, projects: Option<bool>) -> Result<Self, ConfigError> {
        Self::parse(&read_json(file)?, file, projects).map_err(|error| error.in_file(file))
    }

    /// Options that a file omits have the library's default: huggingface/transformers
    /// `src/transformers/models/clip/configuration_clip.py` at v5.23.0.
    fn parse(json: &Value, file: &Path, projects: Option<bool>) -> Result<Self, ConfigError> {
        let options = Options::new(json, "");
        let hint = "the config.json of a CLIPTextModel";
        options.fixed("model_type", &["\"clip_text_model\"", "null"], hint)?;
        let hint = "CLIP's text encoders read their padding";
        options.fixed("use_attention_mask", &["false", "null"], hint)?;
        let classes = options.get("architectures", "a list of names", None::<Vec<String>>)?;
        let named = || {
            let is = |name: &String| name == "CLIPTextModelWithProjection";
            classes.is_some_and(|names| names.iter().any(is))
        };
        let sizes = transformers_config::text(&options)?;
        let projection = if projects.unwrap_or_else(named) {
            Some(options.integer("projection_dim", 512)?)
        } else {
            None
        };
        let config =
            Self { sizes, projection, end_token: options.get("eos_token_id", "one token", 49407)? };
        options.warn_of_unknown(file, "transformers");
        config.validate()?;
        Ok(config)
    }

    /// Checks that all sizes are possible. [`super::TextEncoder::load`] does it as well.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.sizes.validate()?;
        match self.projection {
            Some(found) if !(1..=1 << 20).contains(&found) => Err(ConfigError::Size {
                what: "projection_dim",
                found,
                expected: format!("1 to {}", 1 << 20),
            }),
            _ => Ok(()),
        }
    }
}
