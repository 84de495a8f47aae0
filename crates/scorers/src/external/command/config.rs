//! The settings of `kind = "command"`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Seconds without a line of the program.
const TIMEOUT_S: f64 = 60.0;
/// Seconds to the first line: programs load models.
const FIRST_TIMEOUT_S: f64 = 600.0;

/// A program that reads questions as JSON lines and writes scores.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CommandConfig {
    /// The program and its arguments. It runs in the folder of the TOML file, without a shell.
    pub command: Vec<String>,
    /// Seconds that may pass without a line while questions are open; if absent, 60, and 600 before
    /// the first line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_s: Option<f64>,
}

impl CommandConfig {
    /// What is wrong with the settings, with a hint.
    pub(crate) fn problem(&self) -> Option<String> {
        let program = self.command.first().map_or("", String::as_str);
        if program.trim().is_empty() {
            let problem = "`command` names no program; hint: such as command = [\"python3\", \
                           \"score.py\"]";
            return Some(problem.to_owned());
        }
        if self.command.iter().any(|argument| argument.contains('\0')) {
            return Some("`command` has a zero byte, which no argument can hold".to_owned());
        }
        if self.command.len() == 1 && program.trim().contains(' ') && !program.contains('/') {
            return Some(format!(
                "`command` is one word with spaces, {program:?}, and no shell reads it; hint: \
                 command = [{}]",
                program
                    .split_whitespace()
                    .map(|word| format!("{word:?}"))
                    .collect::<Vec<_>>()
                    .join(", ")
            ));
        }
        match self.timeout_s {
            Some(seconds) if !(0.001..=86_400.0).contains(&seconds) => {
                Some(format!("`timeout_s` is {seconds}; expected 0.001 to 86400"))
            }
            _ => None,
        }
    }

    /// The time limit between two lines.
    pub(super) fn timeout(&self) -> Duration {
        Duration::from_secs_f64(self.timeout_s.unwrap_or(TIMEOUT_S))
    }

    /// The time limit to the first line.
    pub(super) fn first_timeout(&self) -> Duration {
        Duration::from_secs_f64(self.timeout_s.unwrap_or(FIRST_TIMEOUT_S))
    }

    /// The program as it is started from `folder`: a path is relative to it, a bare name is looked
    /// for in `PATH`.
    pub(super) fn program(&self, folder: &Path) -> Result<PathBuf, String> {
        let name = self.command.first().map_or("", String::as_str);
        if name.contains('/') {
            let path = runkit::path::resolve(Path::new(name), folder);
            let path = std::path::absolute(&path).unwrap_or(path);
            return match path.is_file() {
                true => Ok(path),
                false => Err(format!(
                    "the program {} is not a file; hint: paths are relative to the TOML file",
                    path.display()
                )),
            };
        }
        let folders = std::env::var_os("PATH").unwrap_or_default();
        let found = std::env::split_paths(&folders).map(|folder| folder.join(name));
        found.into_iter().find(|path| path.is_file()).ok_or_else(|| {
            format!("no program {name:?} in PATH; hint: name it by its path, such as ./{name}")
        })
    }
}

/// The files among the arguments, which decide the scores: scripts, configurations, weights.
pub(crate) fn script_files(config: &CommandConfig, folder: &Path) -> Vec<(String, PathBuf)> {
    let files = config.command.iter().enumerate().filter_map(|(number, argument)| {
        // A bare program is a file of the machine, such as an interpreter.
        if number == 0 && !argument.contains('/') {
            return None;
        }
        let path = runkit::path::resolve(Path::new(argument), folder);
        path.is_file().then(|| (argument.clone(), path))
    });
    files.collect()
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "fixtures need not be durable")]
mod tests {
    use super::*;

    fn of(command: &[&str]) -> CommandConfig {
        let command = command.iter().map(|&word| word.to_owned()).collect();
        CommandConfig { command, timeout_s: None }
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        assert!(of(&[]).problem().unwrap().contains("names no program"));
        let problem = of(&["python3 score.py"]).problem().unwrap();
        assert!(problem.contains("command = [\"python3\", \"score.py\"]"), "{problem}");
        assert!(of(&["a", "b\0"]).problem().unwrap().contains("zero byte"));
        let late = CommandConfig { timeout_s: Some(0.0), ..of(&["a"]) };
        assert!(late.problem().unwrap().contains("`timeout_s` is 0"));
        assert_eq!(of(&["python3", "score.py"]).problem(), None);
    }

    #[test]
    fn files_among_the_arguments_are_found_beside_the_toml_file() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("score.py"), "").unwrap();
        let config = of(&["python3", "score.py", "--fast", "absent.json"]);
        let files = script_files(&config, folder.path());
        assert_eq!(files, [("score.py".to_owned(), folder.path().join("score.py"))]);
        assert!(config.program(folder.path()).is_ok());
        let absent = of(&["./absent"]).program(folder.path()).unwrap_err();
        assert!(absent.contains("relative to the TOML file"), "{absent}");
        let absent = of(&["no-such-program"]).program(folder.path()).unwrap_err();
        assert!(absent.contains("in PATH"), "{absent}");
    }
}
