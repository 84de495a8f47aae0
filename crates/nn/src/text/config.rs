//! `config.json` of `transformers`' `CLIPTextModel` and `CLIPTextModelWithProjection`.

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use crate::clip::TextConfig;
use crate::clip::transformers_config::Text;
use crate::config::{ConfigError, invalid, read_json, unsupported};

/// The text encoder of a diffusion pipeline.
#[derive(Debug, Clone, PartialEq)]
pub struct TextEncoderConfig {
    /// The sizes of the network.
    pub sizes: TextConfig,
    /// Length of the projected features, where the network is one with a projection.
    pub projection: Option<i64>,
    /// The end token. With 2, as in files written before transformers 4.31, the largest token of a
    /// text is its end; else the first that equals this one.
    pub end_token: i64,
}

/// What stands in the file beside the sizes. What it leaves out has the library's default:
/// huggingface/transformers `src/transformers/models/clip/configuration_clip.py` at v5.23.0.
#[derive(Deserialize)]
#[serde(default)]
struct Rest {
    model_type: Option<String>,
    architectures: Option<Vec<String>>,
    projection_dim: i64,
    eos_token_id: Value,
    use_attention_mask: bool,
}

impl Default for Rest {
    fn default() -> Self {
        Self {
            model_type: None,
            architectures: None,
            projection_dim: 512,
            eos_token_id: 49407.into(),
            use_attention_mask: false,
        }
    }
}

impl TextEncoderConfig {
    /// Reads `config.json`.
    ///
    /// # Errors
    /// Where the file cannot be read, or describes another kind of network.
    pub fn read(file: &Path) -> Result<Self, ConfigError> {
        Self::parse(&read_json(file)?, file).map_err(|error| error.in_file(file))
    }

    fn parse(json: &Value, file: &Path) -> Result<Self, ConfigError> {
        let malformed = |error: serde_json::Error| invalid(file, error.to_string());
        let rest = Rest::deserialize(json).map_err(malformed)?;
        if let Some(found) = rest.model_type.filter(|found| found != "clip_text_model") {
            let hint = "expected the config.json of a CLIPTextModel";
            return Err(unsupported("model_type", &found.into(), hint));
        }
        if rest.use_attention_mask {
            let hint = "CLIP's text encoders read their padding";
            return Err(unsupported("use_attention_mask", &true.into(), hint));
        }
        let end_token = rest
            .eos_token_id
            .as_i64()
            .ok_or_else(|| unsupported("eos_token_id", &rest.eos_token_id, "expected one token"))?;
        let projects = rest
            .architectures
            .is_some_and(|names| names.iter().any(|name| name == "CLIPTextModelWithProjection"));
        let config = Self {
            sizes: Text::deserialize(json).map_err(malformed)?.config("")?,
            projection: projects.then_some(rest.projection_dim),
            end_token,
        };
        config.validate()?;
        Ok(config)
    }

    /// Checks that all sizes are possible. [`super::TextEncoder::load`] does it as well.
    ///
    /// # Errors
    /// Where one is not.
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
