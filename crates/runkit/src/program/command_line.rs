//! The command line as every program shows it: wide help, exit codes and a link in each help text,
//! negative numbers as values, and the long version.

use std::any::TypeId;

use clap::Command;

/// Help is wrapped at the width of the terminal, and at this many columns in a wider one.
const MOST_COLUMNS: usize = 120;
/// Where help is wrapped if it does not go to a terminal.
const COLUMNS_OF_A_FILE: usize = 80;

/// What `--version` shows besides the number: see [`crate::build!`].
#[derive(Debug, Clone, Copy)]
pub struct Build {
    /// The commit that the program was built from, if the build knew it.
    pub commit: Option<&'static str>,
    /// The libraries that compute, such as libtorch and CUDA. Called only if the text is shown.
    pub libraries: fn() -> String,
}

/// A [`Build`] whose commit is the environment variable `BALANCEDDPO_COMMIT` at compile time.
///
/// Use it in `main.rs`: a new commit then recompiles that file alone, and no library. `$libraries`
/// is a `fn() -> String`.
#[macro_export]
macro_rules! build {
    ($libraries:expr) => {
        $crate::program::Build { commit: option_env!("BALANCEDDPO_COMMIT"), libraries: $libraries }
    };
}

impl Build {
    /// "0.1.0", a line for the commit, and one for the libraries.
    pub(super) fn long_version(self, version: &str) -> String {
        let commit = self.commit.filter(|commit| !commit.is_empty()).unwrap_or("unknown");
        format!("{version}\ncommit {commit}\n{}", (self.libraries)())
    }
}

/// The command line of `C`, dressed.
pub(super) fn command<C: clap::CommandFactory>() -> Command {
    let columns = super::columns_of_stdout().unwrap_or(COLUMNS_OF_A_FILE);
    let command = C::command().term_width(columns.min(MOST_COLUMNS));
    let page = format!("docs/{}.md", command.get_name());
    dress(command, &page, true)
}

fn dress(command: Command, page: &str, is_root: bool) -> Command {
    let mut command = command.mut_args(|argument| match argument.get_action().takes_values() {
        // `--lr -1` is then refused by its range, and not as an unknown flag `-1`. What clap knows as
        // a negative number has no exponent, so numbers with a fraction take all that follows.
        true if argument.get_value_parser().type_id() == TypeId::of::<f64>() => {
            argument.allow_hyphen_values(true)
        }
        true => argument.allow_negative_numbers(true),
        false => argument,
    });
    let names: Vec<String> =
        command.get_subcommands().map(|below| below.get_name().to_owned()).collect();
    for name in names {
        command = command.mut_subcommand(name, |below| dress(below, page, false));
    }
    let mut text = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    if !text.contains("xit codes") {
        let between = if text.is_empty() { "" } else { "\n\n" };
        text += &format!("{between}{}", exit_codes(&command, is_root));
    }
    if !text.contains(page) {
        text += &format!("\nMore: {page}");
    }
    command.after_help(text)
}

/// The exit codes that a command can end with.
fn exit_codes(command: &Command, is_root: bool) -> String {
    let has = |name: &str| {
        command.get_arguments().any(|argument| argument.get_id() == name && !argument.is_hide_set())
    };
    let mut codes = "Exit codes: 0 done, 1 failed, 2 usage".to_owned();
    if is_root || has("max_failed") {
        codes += ", 3 finished with more failures than --max-failed";
    }
    if is_root || has("out") {
        codes += ", 130/143 stopped by SIGINT/SIGTERM (the same command resumes)";
    }
    codes
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::{Build, command};

    /// An example.
    #[derive(Debug, Parser)]
    #[command(name = "example", version, after_help = "Examples:\n  example score --out x")]
    struct Example {
        #[command(subcommand)]
        command: Below,
    }

    #[derive(Debug, clap::Subcommand)]
    enum Below {
        /// Scores.
        Score {
            #[arg(long)]
            lr: Option<f64>,
            #[arg(long)]
            out: Option<String>,
        },
        /// Looks.
        Inspect { file: String },
    }

    #[test]
    fn clap_finds_no_fault() {
        command::<Example>().debug_assert();
    }

    #[test]
    fn negative_numbers_are_values() {
        let parse = |words: &[&str]| {
            let mut matches = command::<Example>().try_get_matches_from(words).unwrap();
            <Example as clap::FromArgMatches>::from_arg_matches_mut(&mut matches).unwrap()
        };
        let parsed = parse(&["example", "score", "--lr", "-1.5"]);
        assert!(matches!(parsed.command, Below::Score { lr: Some(lr), .. } if lr == -1.5));
        let parsed = parse(&["example", "score", "--lr", "-1e-3"]);
        assert!(matches!(parsed.command, Below::Score { lr: Some(lr), .. } if lr == -1e-3));
        let parsed = parse(&["example", "inspect", "-1"]);
        assert!(matches!(parsed.command, Below::Inspect { file } if file == "-1"));
    }

    #[test]
    fn every_help_has_exit_codes_and_a_link() {
        let mut root = command::<Example>();
        let help = root.render_help().to_string();
        assert!(
            help.contains("Examples:\n  example score") && help.contains("3 finished"),
            "{help}"
        );
        let score = root.find_subcommand_mut("score").unwrap().render_help().to_string();
        assert!(score.contains("130/143") && score.contains("More: docs/example.md"), "{score}");
        let inspect = root.find_subcommand_mut("inspect").unwrap().render_help().to_string();
        assert!(!inspect.contains("130/143") && inspect.contains("2 usage"), "{inspect}");
    }

    #[test]
    fn the_long_version_names_commit_and_libraries() {
        let build = Build { commit: Some("abc"), libraries: || "libtorch 2.11.0".to_owned() };
        assert_eq!(build.long_version("0.1.0"), "0.1.0\ncommit abc\nlibtorch 2.11.0");
        let build = Build { commit: None, ..build };
        assert!(build.long_version("0.1.0").contains("\ncommit unknown\n"));
    }
}
