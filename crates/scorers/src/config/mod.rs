//! `scorers.toml`: one `[[scorer]]` entry per reward model.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use media::preprocess::{Alpha, HpsResize};
use media::text::{LOWER_CASED, TokenizerKind};
use nn::clip::ClipLayout;
use serde::{Deserialize, Serialize};

use crate::error::ScorerError;
use crate::external::{CommandConfig, VlmConfig, VlmRead};
use crate::kind::Kind;

/// The whole file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScorersConfig {
    /// The entries, in the order in which their columns appear in the labels.
    #[serde(default)]
    pub scorer: Vec<ScorerConfig>,
    /// The base of relative paths; not part of the file.
    #[serde(skip)]
    pub folder: PathBuf,
    /// The file itself; not part of it.
    #[serde(skip)]
    pub file: PathBuf,
}

/// One reward model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScorerConfig {
    /// Column prefix in the labels: lower-case letters, digits and underscores.
    pub name: String,
    /// What turns features into a score.
    pub kind: Kind,
    /// A folder (relative to the file) or `hf://owner/name[@revision]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// How the checkpoint names its tensors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layout: Option<ClipLayout>,
    /// The weights file inside `model`; if absent, found by the layout's usual names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights: Option<String>,
    /// A published open_clip architecture, for folders without `open_clip_config.json`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub architecture: Option<String>,
    /// The aesthetic head: a `.pth` or safetensors file (relative to the TOML file), or
    /// `hf://owner/name[@revision]/file`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head: Option<String>,
    /// The SHA-256 of the head, compared before it is used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head_sha256: Option<String>,
    /// How pixels become the network's input.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preprocess: Option<PreprocessName>,
    /// Which bicubic the `hps` recipe uses; `legacy` if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hps_resize: Option<HpsResizeName>,
    /// What the `hf` recipe does with transparency; `white` if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alpha: Option<AlphaName>,
    /// How captions become tokens; if absent, as the layout's Python library does it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<TokenizerName>,
    /// Where the vocabulary of a BERT comes from: a folder (relative to the file) or
    /// `hf://owner/name[@revision]` with `vocab.txt` or `tokenizer.json`. If absent, the folder of
    /// the model, or else `hf://google-bert/bert-base-uncased`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vocabulary: Option<String>,
    /// The server of a `vlm` ([`VlmConfig::endpoint`]); this and what follows as there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// What a `vlm` is asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
    /// How an answer of a `vlm` becomes a score.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read: Option<VlmRead>,
    /// What is looked for in an answer of a `vlm`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pattern: Option<String>,
    /// Tokens of an answer of a `vlm` at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u32>,
    /// Further keys of a request to a `vlm`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub extra_body: Option<serde_json::Map<String, serde_json::Value>>,
    /// Requests to a `vlm` at a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<usize>,
    /// Seconds that an answer of a `vlm`, or a line of a `command`, may take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_s: Option<f64>,
    /// Further attempts of a request to a `vlm`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retries: Option<u32>,
    /// Requests to a `vlm` in a run at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_requests: Option<u64>,
    /// The environment variable with the API key of a `vlm`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_key_env: Option<String>,
    /// The program of a `command` and its arguments ([`CommandConfig::command`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<Vec<String>>,
}

/// How captions become tokens, as in `scorers.toml`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TokenizerName {
    /// As transformers does it; for SigLIP as `AutoTokenizer` opens the folder.
    Hf,
    /// As open_clip does it.
    OpenClip,
    /// As transformers' `Siglip2Tokenizer` does it: Gemma's tokens of the caption in lower case.
    Siglip2,
}

/// Named preprocessing, as in `scorers.toml`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PreprocessName {
    /// transformers' CLIPImageProcessor on Pillow.
    Hf,
    /// HPS v2's longest-side float resize with zero padding.
    Hps,
    /// Stock open_clip validation transform.
    OpenClip,
}

/// Which bicubic the `hps` recipe uses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HpsResizeName {
    /// Without antialiasing, as torchvision before 0.17 did: what HPS v2 was trained with.
    #[default]
    Legacy,
    /// With antialiasing, as torchvision does today.
    Antialias,
}

/// What the `hf` recipe does with transparency.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AlphaName {
    /// Composite the image on white, as transformers does today.
    #[default]
    White,
    /// Drop the alpha channel and keep the colours, as transformers did before version 5.
    Drop,
}

impl From<AlphaName> for Alpha {
    fn from(name: AlphaName) -> Self {
        match name {
            AlphaName::White => Self::White,
            AlphaName::Drop => Self::Drop,
        }
    }
}

impl From<HpsResizeName> for HpsResize {
    fn from(name: HpsResizeName) -> Self {
        match name {
            HpsResizeName::Legacy => Self::Legacy,
            HpsResizeName::Antialias => Self::Antialias,
        }
    }
}

impl ScorersConfig {
    /// Reads and checks `file`. Rejects unknown keys and values, naming the nearest known one,
    /// entries whose keys do not fit their kind, and two entries of one name.
    pub fn read(file: &Path) -> Result<Self, ScorerError> {
        let mut config: Self = runkit::config::read_toml(file)?;
        config.file = file.to_path_buf();
        config.folder = file.parent().map(Path::to_path_buf).unwrap_or_default();
        config.validate()?;
        Ok(config)
    }

    /// Checks what the types cannot express.
    pub fn validate(&self) -> Result<(), ScorerError> {
        if self.scorer.is_empty() {
            return Err(ScorerError::Empty(self.file.clone()));
        }
        let mut names = HashSet::new();
        for (number, scorer) in self.scorer.iter().enumerate() {
            let problem = scorer.problem().or_else(|| {
                (!names.insert(scorer.name.as_str())).then(|| {
                    "another entry has the same name; names are column prefixes and must differ"
                        .to_owned()
                })
            });
            if let Some(problem) = problem {
                let name = if scorer.name.is_empty() {
                    format!("#{}", number + 1)
                } else {
                    scorer.name.clone()
                };
                return Err(ScorerError::Invalid {
                    file: self.file.clone(),
                    scorer: name,
                    problem,
                });
            }
        }
        Ok(())
    }
}

impl ScorerConfig {
    fn problem(&self) -> Option<String> {
        let name_is_plain = self.name.starts_with(|c: char| c.is_ascii_lowercase())
            && self.name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
        if !name_is_plain {
            return Some(format!(
                "name {:?} cannot be a column prefix; use lower-case letters, digits and underscores, a letter first",
                self.name
            ));
        }
        if let Some(sum) = &self.head_sha256 {
            if self.head.is_none() {
                return Some("`head_sha256` belongs to `head`, which is missing".to_owned());
            }
            if sum.len() != 64 || !sum.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                return Some("`head_sha256` is not 64 hexadecimal digits".to_owned());
            }
        }
        if let Some(problem) = self.kind.problem(&self.keys()) {
            return Some(problem);
        }
        if self.hps_resize.is_some() && self.preprocess != Some(PreprocessName::Hps) {
            return Some("`hps_resize` belongs to preprocess = \"hps\" only".to_owned());
        }
        if self.alpha.is_some()
            && self.preprocess.is_some_and(|preprocess| preprocess != PreprocessName::Hf)
        {
            return Some(
                "`alpha` belongs to preprocess = \"hf\" only; the other recipes always drop it"
                    .to_owned(),
            );
        }
        if self.architecture.is_some() && self.layout != Some(ClipLayout::OpenClip) {
            return Some("`architecture` belongs to layout = \"open_clip\" only; transformers models have a config.json".to_owned());
        }
        let siglip = self.kind == Kind::Siglip;
        match self.tokenizer {
            Some(TokenizerName::Siglip2) if !siglip => {
                return Some(
                    "tokenizer = \"siglip2\" belongs to kind = \"siglip\" only".to_owned(),
                );
            }
            Some(TokenizerName::OpenClip) if siglip => {
                return Some(
                    "kind = \"siglip\" has the tokenizers of transformers: \"hf\", as the model's folder \
                     says, or \"siglip2\""
                        .to_owned(),
                );
            }
            _ => {}
        }
        for (key, value) in [("model", &self.model), ("vocabulary", &self.vocabulary)] {
            if value.as_deref() == Some("") {
                return Some(format!("`{key}` is empty; name a folder or hf://owner/name"));
            }
        }
        if let Some(vlm) = self.vlm() {
            return vlm.problem();
        }
        self.program().and_then(|program| program.problem())
    }

    /// The settings of a `vlm`; `None` for other kinds.
    #[must_use]
    pub fn vlm(&self) -> Option<VlmConfig> {
        if self.kind != Kind::Vlm {
            return None;
        }
        let entry = self.clone();
        Some(VlmConfig {
            endpoint: entry.endpoint?,
            model: entry.model?,
            prompt: entry.prompt?,
            read: entry.read?,
            pattern: entry.pattern,
            max_tokens: entry.max_tokens,
            extra_body: entry.extra_body,
            concurrency: entry.concurrency,
            timeout_s: entry.timeout_s,
            retries: entry.retries,
            max_requests: entry.max_requests,
            api_key_env: entry.api_key_env,
        })
    }

    /// The settings of a `command`; `None` for other kinds.
    #[must_use]
    pub fn program(&self) -> Option<CommandConfig> {
        match self.kind {
            Kind::Command => {
                let command = self.command.clone()?;
                Some(CommandConfig { command, timeout_s: self.timeout_s })
            }
            _ => None,
        }
    }

    /// Whether the scorer votes on pairs and has no score for one image.
    #[must_use]
    pub fn compares(&self) -> bool {
        self.kind == Kind::Vlm && self.read == Some(VlmRead::Pair)
    }

    /// The keys that the entry sets, besides `name` and `kind`.
    fn keys(&self) -> Vec<String> {
        let Ok(serde_json::Value::Object(set)) = serde_json::to_value(self) else {
            return Vec::new();
        };
        set.into_iter().map(|(key, _)| key).filter(|key| key != "name" && key != "kind").collect()
    }

    /// The model, empty for a kind that has none.
    #[must_use]
    pub fn model(&self) -> &str {
        self.model.as_deref().unwrap_or_default()
    }

    /// The layout of a CLIP-type checkpoint.
    #[must_use]
    pub fn clip_layout(&self) -> ClipLayout {
        // Kinds with such a checkpoint have this key.
        self.layout.unwrap_or(ClipLayout::Transformers)
    }

    /// The tokenizer of a CLIP-type text tower: the entry's own, or the one its layout's Python
    /// library uses.
    #[must_use]
    pub fn tokenizer_kind(&self) -> TokenizerKind {
        match (self.tokenizer, self.clip_layout()) {
            (Some(TokenizerName::OpenClip), _) | (None, ClipLayout::OpenClip) => {
                TokenizerKind::OpenClip
            }
            _ => TokenizerKind::HuggingFace,
        }
    }

    /// The class of SigLIP's tokenizer, if the entry names another one than its folder does.
    #[must_use]
    pub fn siglip_tokenizer(&self) -> Option<&'static str> {
        (self.tokenizer == Some(TokenizerName::Siglip2)).then_some(LOWER_CASED)
    }
}

#[cfg(test)]
mod tests;
