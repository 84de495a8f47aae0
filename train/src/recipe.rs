//! Recipes: settings of whole runs under a name. They are TOML files in `train/recipes`, embedded
//! in the program, in the form of a `--config` file. Below all of them is `defaults.toml`.

use std::path::Path;
use std::sync::LazyLock;

use runkit::config::{ConfigError, merge, nearest_name, parse_toml};
use serde_json::{Value, json};

use crate::settings::{CacheOptions, RunOptions};

macro_rules! recipes {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_str!(concat!("../recipes/", $name, ".toml")))),*]
    };
}

/// Every recipe by its name: the models, then the rows of the paper's tables. Each row has a
/// reference model that is updated and a twin with a frozen one (`-frozen`); for DiffusionDPO,
/// whose reference is frozen, the twin is `-moving`.
pub const RECIPES: &[(&str, &str)] = recipes![
    "sd15",
    "sd21",
    "sdxl",
    "sd15-lora",
    "sdxl-lora",
    "mini",
    "paper/balanced",
    "paper/balanced-frozen",
    "paper/diffusion-dpo",
    "paper/diffusion-dpo-moving",
    "paper/hps",
    "paper/hps-frozen",
    "paper/clip",
    "paper/clip-frozen",
    "paper/pickscore",
    "paper/pickscore-frozen",
    "paper/aesthetic",
    "paper/aesthetic-frozen",
    "paper/random-scorer",
    "paper/random-scorer-frozen",
    "paper/vanilla",
    "paper/vanilla-frozen",
    "paper/score-sum",
    "paper/score-sum-frozen",
    "paper/normalized-sum",
    "paper/normalized-sum-frozen",
];

/// A recipe cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RecipeError {
    /// There is no recipe of that name.
    #[error(
        "unknown recipe {name:?}, expected one of {}{}",
        names(),
        nearest.map(|name| format!("\nhint: did you mean {name}?")).unwrap_or_default()
    )]
    Unknown {
        /// The name given.
        name: String,
        /// The name that is nearest.
        nearest: Option<&'static str>,
    },
    /// Its file is not valid.
    #[error(transparent)]
    Config(#[from] ConfigError),
}

fn names() -> String {
    let names: Vec<&str> = RECIPES.iter().map(|(name, _)| *name).collect();
    names.join(", ")
}

/// The defaults of `train run`, below all recipes.
const DEFAULTS: &str = include_str!("../recipes/defaults.toml");
/// The defaults of `train cache`.
const CACHE_DEFAULTS: &str = include_str!("../recipes/cache-defaults.toml");

/// The settings of several recipes, a later one over the ones before it, and all over the defaults.
///
/// # Errors
/// If a name is unknown.
pub fn over_defaults<S: AsRef<str>>(names: &[S]) -> Result<RunOptions, RecipeError> {
    let defaults = parse_toml(Path::new("recipes/defaults.toml"), DEFAULTS)?;
    names.iter().try_fold(defaults, |lower, name| Ok(merge(&one(name.as_ref())?, &lower)?))
}

/// The defaults of `train cache`.
///
/// # Errors
/// Never: a test reads them.
pub fn cache_options() -> Result<CacheOptions, ConfigError> {
    parse_toml(Path::new("recipes/cache-defaults.toml"), CACHE_DEFAULTS)
}

/// The defaults of `train run` by name, for `--help`.
pub(crate) fn run_defaults() -> &'static toml::Table {
    static TABLE: LazyLock<toml::Table> = LazyLock::new(|| DEFAULTS.parse().unwrap_or_default());
    &TABLE
}

/// The defaults of `train cache` by name, for `--help`.
pub(crate) fn cache_defaults() -> &'static toml::Table {
    static TABLE: LazyLock<toml::Table> =
        LazyLock::new(|| CACHE_DEFAULTS.parse().unwrap_or_default());
    &TABLE
}

/// One recipe's own settings.
fn one(name: &str) -> Result<RunOptions, RecipeError> {
    let found = RECIPES.iter().find(|(known, _)| *known == name);
    let (known, text) = found.ok_or_else(|| RecipeError::Unknown {
        name: name.to_owned(),
        nearest: nearest_name(name, RECIPES.iter().map(|(known, _)| *known))
            .and_then(|near| RECIPES.iter().find(|(known, _)| *known == near))
            .map(|(known, _)| *known),
    })?;
    Ok(parse_toml(Path::new(known), text)?)
}

/// What a recipe is, in one line: the first line of its file.
fn description(text: &str) -> &str {
    text.lines().next().unwrap_or_default().trim_start_matches('#').trim()
}

/// All recipes, one line each.
pub fn list() -> String {
    let lines = RECIPES.iter().map(|(name, text)| format!("{name:<28}{}\n", description(text)));
    lines.collect()
}

/// All recipes with their settings, as JSON.
///
/// # Errors
/// Never: a test reads every recipe.
pub fn list_json() -> Result<Value, RecipeError> {
    let recipe = |(name, text): &(&str, &str)| {
        Ok(json!({"name": name, "description": description(text), "settings": one(name)?}))
    };
    RECIPES.iter().map(recipe).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapter::AdapterKind;
    use crate::preference::Preference;

    #[test]
    fn every_file_of_the_folder_is_a_recipe_and_is_understood() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes");
        let mut files = Vec::new();
        for below in ["", "paper"] {
            for entry in std::fs::read_dir(folder.join(below)).unwrap() {
                let path = entry.unwrap().path();
                if path.extension().is_some_and(|extension| extension == "toml") {
                    let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
                    if !name.ends_with("defaults") {
                        files.push(if below.is_empty() { name } else { format!("{below}/{name}") });
                    }
                }
            }
        }
        files.sort();
        let mut known: Vec<&str> = RECIPES.iter().map(|(name, _)| *name).collect();
        known.sort_unstable();
        assert_eq!(files, known);
        for name in known {
            over_defaults(&[name]).unwrap();
        }
        for line in list().lines() {
            assert!(line.len() > 40 && line.chars().count() <= 100, "{line}");
        }
        assert_eq!(list_json().unwrap().as_array().unwrap().len(), RECIPES.len());
    }

    #[test]
    fn every_row_of_the_tables_is_there_with_an_updated_and_with_a_frozen_reference() {
        let mut rows = vec![
            ("diffusion-dpo".to_owned(), Preference::Human, 0),
            ("diffusion-dpo-moving".to_owned(), Preference::Human, 100),
        ];
        for (row, preference) in [
            ("balanced", Preference::Consensus),
            ("hps", Preference::Scorer("hps".to_owned())),
            ("clip", Preference::Scorer("clip".to_owned())),
            ("pickscore", Preference::Scorer("pickscore".to_owned())),
            ("aesthetic", Preference::Scorer("aesthetic".to_owned())),
            ("random-scorer", Preference::RandomScorer),
            ("vanilla", Preference::Vanilla),
            ("score-sum", Preference::ScoreSum),
            ("normalized-sum", Preference::NormalizedSum),
        ] {
            let frozen = format!("{row}-frozen");
            rows.push((row.to_owned(), preference.clone(), 100));
            rows.push((frozen, preference, 0));
        }
        for (name, preference, every) in rows {
            let settings = over_defaults(&["sd15".to_owned(), format!("paper/{name}")]).unwrap();
            assert_eq!(settings.preference, Some(preference), "{name}");
            assert_eq!(settings.reference_every, Some(every), "{name}");
            assert_eq!(settings.resolution, Some(512), "{name}");
        }
    }

    #[test]
    fn recipes_of_adapters_go_with_the_rows_of_the_tables() {
        for name in ["sd15-lora", "sdxl-lora"] {
            let alone = over_defaults(&[name]).unwrap();
            assert_eq!(alone.adapter, Some(AdapterKind::Lora), "{name}");
            assert_eq!((alone.lr, alone.scale_lr), (Some(1e-5), Some(false)), "{name}");
            assert_eq!(alone.reference_every, Some(0), "{name}");
            let balanced = over_defaults(&[name, "paper/balanced"]).unwrap();
            assert_eq!(balanced.reference_every, Some(100), "{name}");
            assert_eq!(balanced.adapter, Some(AdapterKind::Lora), "{name}");
            // A row changes nothing but what it names, and the recipe none of that.
            for (row, text) in RECIPES.iter().filter(|(row, _)| row.starts_with("paper/")) {
                let json = |options: &RunOptions| serde_json::to_value(options).unwrap();
                let together = json(&over_defaults(&[name, row]).unwrap());
                let (alone, of_row) = (json(&alone), json(&one(row).unwrap()));
                for (key, value) in together.as_object().unwrap() {
                    let expected = if of_row[key].is_null() { &alone[key] } else { &of_row[key] };
                    assert_eq!(value, expected, "{name},{row}: {key}");
                }
                assert!(text.contains("reference_every"), "{row}");
            }
        }
    }

    /// examples/research_projects/diffusion_dpo/README.md of huggingface/diffusers.
    #[test]
    fn recipes_of_adapters_have_the_published_numbers_and_name_their_source() {
        for (name, resolution, steps, batch_size) in
            [("sd15-lora", 512, 10_000, 2 * 16), ("sdxl-lora", 1024, 2_000, 2 * 8)]
        {
            let (_, text) = RECIPES.iter().find(|(known, _)| *known == name).unwrap();
            let source =
                "examples/research_projects/diffusion_dpo/README.md of huggingface/diffusers";
            assert!(text.contains(source), "{text}");
            let found = serde_json::to_value(over_defaults(&[name]).unwrap()).unwrap();
            let expected = json!({
                "resolution": resolution, "steps": steps, "batch_size": batch_size, "rank": 8,
                "lr": 1e-5, "scale_lr": false, "lr_schedule": "constant", "warmup_steps": 0,
                "optimizer": "adamw8bit", "weight_decay": 0.01, "max_grad_norm": 1.0,
                "grad_checkpointing": true, "beta": 5000.0,
            });
            for (key, value) in expected.as_object().unwrap() {
                assert_eq!(&found[key], value, "{name}: {key}");
            }
        }
    }

    #[test]
    fn a_typo_gets_the_nearest_name() {
        let message = over_defaults(&["sd-15"]).unwrap_err().to_string();
        assert!(message.contains("did you mean sd15?"), "{message}");
    }
}
