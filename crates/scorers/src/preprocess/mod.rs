//! From a model's own files to its preprocessing recipe, key by key: each key works as in the
//! Python library, or has no effect there, or is rejected by name.
//!
//! `docs/configuration.md` lists the keys.

mod hf;
mod open_clip;

use std::path::PathBuf;

use media::preprocess::{Kind, Recipe};
use serde_json::{Map, Value};

pub(crate) use self::hf::Processor;
use crate::config::{PreprocessName, ScorerConfig};
use crate::error::ScorerError;
use crate::kind::Kind as EntryKind;

/// The preprocessing that a model's folder describes.
pub(crate) enum Preprocessing {
    /// None: the library's defaults apply, for the network's size.
    Absent,
    /// The image processor of transformers.
    Hf(Section),
    /// `preprocess_cfg` of open_clip.
    OpenClip(Section),
}

/// A JSON object, with the file it comes from.
pub(crate) struct Section {
    /// The file.
    pub(crate) file: PathBuf,
    /// Its keys.
    pub(crate) keys: Map<String, Value>,
}

/// Mean and standard deviation per channel.
type Statistics = ([f32; 3], [f32; 3]);

/// What is wrong with a key.
type Problem = String;

/// The recipe of `entry` for a network that reads images of `image_size` pixels a side.
pub(crate) fn recipe(
    entry: &ScorerConfig,
    preprocessing: &Preprocessing,
    image_size: i64,
) -> Result<Recipe, ScorerError> {
    let size = u32::try_from(image_size).unwrap_or(u32::MAX);
    let file = match preprocessing {
        Preprocessing::Absent => PathBuf::new(),
        Preprocessing::Hf(section) | Preprocessing::OpenClip(section) => section.file.clone(),
    };
    let (kind, (mean, std)) = kind(entry, preprocessing, size)
        .map_err(|problem| ScorerError::File { scorer: entry.name.clone(), file, problem })?;
    Recipe::new(kind, size, mean, std)
        .map_err(|source| ScorerError::Recipe { scorer: entry.name.clone(), source })
}

fn kind(
    entry: &ScorerConfig,
    preprocessing: &Preprocessing,
    size: u32,
) -> Result<(Kind, Statistics), Problem> {
    let name = match (entry.kind, entry.preprocess) {
        // ImageReward's transform is open_clip's.
        (EntryKind::ImageReward, _) => PreprocessName::OpenClip,
        (EntryKind::Siglip | EntryKind::AestheticSiglip, _) => PreprocessName::Hf,
        // The other kinds with a network name one.
        (_, name) => name.unwrap_or(PreprocessName::Hf),
    };
    let processor = Processor::of(entry.kind);
    let published = match name {
        PreprocessName::Hf => {
            let mut steps = processor.steps(size);
            steps.alpha = entry.alpha.unwrap_or_default().into();
            Kind::Hf(steps)
        }
        PreprocessName::Hps => Kind::Hps { resize: entry.hps_resize.unwrap_or_default().into() },
        PreprocessName::OpenClip => Kind::open_clip(),
    };
    match preprocessing {
        Preprocessing::Absent => Ok((published, processor.statistics())),
        Preprocessing::Hf(section) => {
            let (mut steps, statistics) = hf::read(&section.keys, size, processor)?;
            if let Kind::Hf(named) = published {
                steps.alpha = named.alpha;
                return Ok((Kind::Hf(steps), statistics));
            }
            hf::check_published(&steps, size).map_err(|key| not_followed(name, key, "hf"))?;
            Ok((published, statistics))
        }
        Preprocessing::OpenClip(section) => {
            let (steps, statistics) = open_clip::read(&section.keys)?;
            if matches!(published, Kind::OpenClip(_)) {
                return Ok((Kind::OpenClip(steps), statistics));
            }
            open_clip::check(&steps, matches!(published, Kind::Hps { .. }))
                .map_err(|key| not_followed(name, key, "open_clip"))?;
            Ok((published, statistics))
        }
    }
}

/// The problem of a value that the recipe named in `scorers.toml` does not follow.
fn not_followed(recipe: PreprocessName, key: &str, own: &str) -> Problem {
    let recipe = match recipe {
        PreprocessName::Hf => "hf",
        PreprocessName::Hps => "hps",
        PreprocessName::OpenClip => "open_clip",
    };
    format!(
        "`{key}` is not what preprocess = \"{recipe}\" does; hint: preprocess = \"{own}\" follows the \
         model's own file"
    )
}

/// A value, shortened for a message.
fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// A key that is not `null`.
fn get<'a>(keys: &'a Map<String, Value>, key: &str) -> Option<&'a Value> {
    keys.get(key).filter(|value| !value.is_null())
}

fn expected(key: &str, what: &str, found: &Value) -> Problem {
    format!("`{key}`: expected {what}, found {}", shown(found))
}

/// One number for all channels, or one for each. With `broadcasts`, a list of one is for all.
fn channels(key: &str, value: &Value, broadcasts: bool) -> Result<[f32; 3], Problem> {
    let wrong = || expected(key, "a number or a list of three", value);
    let number = |value: &Value| value.as_f64().map(|number| number as f32).ok_or_else(wrong);
    match value {
        Value::Array(values) => match values.as_slice() {
            [red, green, blue] => Ok([number(red)?, number(green)?, number(blue)?]),
            [one] if broadcasts => Ok([number(one)?; 3]),
            _ => Err(wrong()),
        },
        value => Ok([number(value)?; 3]),
    }
}

/// Warns of keys that the Python library does not read.
fn warn_unread(section: &Section, library: &str, known: &[&str]) {
    for key in section.keys.keys().filter(|key| !known.contains(&key.as_str())) {
        let key: String = key.chars().take(60).collect();
        tracing::warn!(
            file = %section.file.display(),
            "`{key}` has no effect: {library} does not read it"
        );
    }
}

impl Section {
    /// Warns of keys that transformers does not read.
    pub(crate) fn warn_unread_hf(&self, processor: Processor) {
        let name = match processor {
            Processor::Clip => "transformers' CLIP image processor",
            Processor::Siglip => "transformers' SigLIP image processor",
        };
        warn_unread(self, name, hf::KNOWN);
    }

    /// Warns of keys that open_clip does not read.
    pub(crate) fn warn_unread_open_clip(&self) {
        warn_unread(self, "open_clip", open_clip::KNOWN);
    }
}
