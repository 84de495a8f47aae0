//! The defaults of `defaults.toml`, below the settings that a user gives, and in the help.

use std::path::Path;
use std::sync::LazyLock;

use clap::Arg;
use runkit::config::{ConfigError, merge, parse_toml};
use serde::Serialize;
use serde_json::Value;

use super::generate::GenerateSettings;
use super::run::RunSettings;
use super::score::ScoreSettings;
use crate::prompts::Preset;

/// The settings of `defaults.toml`.
pub(crate) static DEFAULTS: LazyLock<RunSettings> = LazyLock::new(|| {
    // A test reads the file: it is part of the program, and cannot be wrong for one user alone.
    parse_toml(Path::new("defaults.toml"), include_str!("defaults.toml")).unwrap_or_default()
});

impl GenerateSettings {
    /// These settings over those of their preset and the defaults.
    pub(crate) fn with_defaults(&self) -> Result<Self, ConfigError> {
        merge(&self.with_preset(), &DEFAULTS.generate)
    }

    fn with_preset(&self) -> Self {
        let of_preset = self.preset.and_then(Preset::seeds);
        Self { seeds: self.seeds.or(of_preset), ..self.clone() }
    }
}

impl ScoreSettings {
    /// These settings over the defaults. All seeds are scored unless some are named.
    pub(crate) fn with_defaults(&self) -> Result<Self, ConfigError> {
        let GenerateSettings { device, dtype, base_seed, .. } = DEFAULTS.generate.clone();
        let base_seed = base_seed.filter(|_| self.seeds.is_some());
        let scoring = DEFAULTS.scoring.clone();
        merge(self, &Self { scoring, device, dtype, base_seed, ..Self::default() })
    }
}

impl RunSettings {
    /// These settings over the defaults.
    pub(crate) fn with_defaults(&self) -> Result<Self, ConfigError> {
        merge(&Self { generate: self.generate.with_preset(), ..self.clone() }, &DEFAULTS)
    }
}

/// Adds these defaults to the help of a command's flags, for clap's `mut_args`.
pub(super) fn in_help<S: Serialize>(defaults: &S) -> impl FnMut(Arg) -> Arg {
    let defaults = serde_json::to_value(defaults).unwrap_or_default();
    move |argument| match (find(&defaults, argument.get_id().as_str()), argument.get_help()) {
        (Some(default), Some(help)) => {
            let default = default.as_str().map_or_else(|| default.to_string(), str::to_owned);
            let help = format!("{help} [default: {default}]");
            argument.help(help)
        }
        _ => argument,
    }
}

/// The value of a setting, which may be in a table.
fn find<'value>(settings: &'value Value, name: &str) -> Option<&'value Value> {
    let fields = settings.as_object()?;
    let found = fields.get(name).filter(|value| !value.is_object() && !value.is_null());
    found.or_else(|| fields.values().find_map(|table| find(table, name)))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_help_of_each_command_has_its_defaults() {
        let text = include_str!("defaults.toml");
        let defaults: RunSettings = parse_toml(Path::new("defaults.toml"), text).unwrap();
        assert_eq!(defaults.generate.steps, Some(50));
        let mut program = crate::cli::Cli::command();
        for (command, shown, hidden) in [
            ("generate", &["prompt [default: 5]", "[default: auto]"][..], "[default: 0.5]"),
            ("score", &["[default: auto]", "(exit code 0) [default: 0]"], "[default: 5]"),
            ("run", &["[default: 50]", "[default: none]", "[default: false]"], "[default: 8]"),
        ] {
            let help = program.find_subcommand_mut(command).unwrap().render_help().to_string();
            let words = help.split_whitespace().collect::<Vec<_>>().join(" ");
            for text in shown {
                assert!(words.contains(text), "{text} is not in {help}");
            }
            assert!(!words.contains(hidden), "{hidden} is in {help}");
        }
    }

    #[test]
    fn a_preset_says_how_many_seeds_unless_a_flag_does() {
        let seeds = |preset: &str, seeds: Option<u64>| {
            let preset = Some(preset.parse().unwrap());
            let generate = GenerateSettings { preset, seeds, ..GenerateSettings::default() };
            let run = RunSettings { generate: generate.clone(), ..RunSettings::default() };
            let of_run = run.with_defaults().unwrap().generate.seeds;
            assert_eq!(generate.with_defaults().unwrap().seeds, of_run);
            of_run
        };
        assert_eq!(seeds("hps-v2", None), Some(1));
        assert_eq!(seeds("hps-v2", Some(4)), Some(4));
        assert_eq!(seeds("paper-sd15", None), Some(5));
    }
}
