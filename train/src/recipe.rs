//! Recipes: settings of whole runs under a name. They are TOML files in `train/recipes`, part of the
//! program, and of the same form as a `--config` file.

use std::path::Path;

use runkit::config::{ConfigError, merge, nearest_name, parse_toml};

use crate::cli::RunSettings;

macro_rules! recipes {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_str!(concat!("../recipes/", $name, ".toml")))),*]
    };
}

/// Every recipe by its name: the models, then the rows of the paper's tables, each with a moving
/// reference and with a frozen one (`-frozen`; DiffusionDPO itself has a frozen one, and `-moving`).
pub const RECIPES: &[(&str, &str)] = recipes![
    "sd15",
    "sd21",
    "sdxl",
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
    /// There is none of that name.
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
    /// Its text is not understood.
    #[error(transparent)]
    Config(#[from] ConfigError),
}

fn names() -> String {
    let names: Vec<&str> = RECIPES.iter().map(|(name, _)| *name).collect();
    names.join(", ")
}

/// The settings of several recipes, a later one over the ones before it.
///
/// # Errors
/// Where a name is unknown.
pub fn settings<S: AsRef<str>>(names: &[S]) -> Result<RunSettings, RecipeError> {
    names
        .iter()
        .try_fold(RunSettings::default(), |lower, name| Ok(merge(&one(name.as_ref())?, &lower)?))
}

fn one(name: &str) -> Result<RunSettings, RecipeError> {
    let found = RECIPES.iter().find(|(known, _)| *known == name);
    let (known, text) = found.ok_or_else(|| RecipeError::Unknown {
        name: name.to_owned(),
        nearest: nearest_name(name, RECIPES.iter().map(|(known, _)| *known))
            .and_then(|near| RECIPES.iter().find(|(known, _)| *known == near))
            .map(|(known, _)| *known),
    })?;
    Ok(parse_toml(Path::new(known), text)?)
}

#[cfg(test)]
mod tests {
    use super::*;
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
                    files.push(if below.is_empty() { name } else { format!("{below}/{name}") });
                }
            }
        }
        files.sort();
        let mut known: Vec<&str> = RECIPES.iter().map(|(name, _)| *name).collect();
        known.sort_unstable();
        assert_eq!(files, known);
        for name in known {
            settings(&[name]).unwrap();
        }
    }

    #[test]
    fn every_row_of_the_tables_is_there_with_and_without_a_moving_reference() {
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
            let settings = settings(&["sd15".to_owned(), format!("paper/{name}")]).unwrap();
            assert_eq!(settings.preference, Some(preference), "{name}");
            assert_eq!(settings.reference_every, Some(every), "{name}");
            assert_eq!(settings.resolution, Some(512), "{name}");
        }
    }

    #[test]
    fn a_slip_gets_the_nearest_name() {
        let message = settings(&["sd-15"]).unwrap_err().to_string();
        assert!(message.contains("did you mean sd15?"), "{message}");
    }
}
