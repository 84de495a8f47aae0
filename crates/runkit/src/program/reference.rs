//! What is made from the command line as clap knows it: completions, man pages, and a page of
//! Markdown.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use clap::{Arg, Command, CommandFactory};

use super::command_line;
use crate::exit::ExitStatus;
use crate::files::{create_folder, write_atomic};

/// Columns of the page of Markdown.
const COLUMNS: usize = 100;

/// Commands that every program has. Flatten it into the program's own:
/// `#[command(flatten)] Program(ProgramCommand)`.
#[derive(Debug, Clone, clap::Subcommand)]
pub enum ProgramCommand {
    /// Print the completion script of a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Write man pages and the reference of the command line.
    #[command(hide = true)]
    Docs(DocsArguments),
}

/// Where generated pages go.
#[derive(Debug, Clone, clap::Args)]
pub struct DocsArguments {
    /// The root of the repository; the page is docs/cli/PROGRAM.md below it.
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub root: PathBuf,
    /// Write nothing; fail if the page is not up to date.
    #[arg(long)]
    pub check: bool,
    /// Write man pages to this folder instead.
    #[arg(long, value_name = "DIR", conflicts_with = "check")]
    pub man: Option<PathBuf>,
}

impl ProgramCommand {
    /// Runs the command for the program whose command line is `C`.
    ///
    /// # Errors
    /// If stdout or a file cannot be written, or a page is not up to date.
    pub fn run<C: CommandFactory>(&self) -> Result<ExitStatus> {
        let mut command = command_line::command::<C>();
        match self {
            Self::Completions { shell } => {
                let name = command.get_name().to_owned();
                let mut script = Vec::new();
                clap_complete::generate(*shell, &mut command, name, &mut script);
                super::say(&String::from_utf8_lossy(&script))?;
            }
            Self::Docs(DocsArguments { man: Some(folder), .. }) => write_man(command, folder)?,
            Self::Docs(DocsArguments { root, check, .. }) => {
                let name = command.get_name().to_owned();
                let file = root.join("docs/cli").join(format!("{name}.md"));
                let page = markdown(command);
                match check {
                    true if std::fs::read_to_string(&file).ok().as_ref() == Some(&page) => {}
                    true => bail!("{}: not up to date; hint: run `{name} docs`", file.display()),
                    false => {
                        create_folder(root.join("docs/cli"))?;
                        write_atomic(&file, |file| file.write_all(page.as_bytes()))?;
                    }
                }
            }
        }
        Ok(ExitStatus::Done)
    }
}

/// A man page of the program and of each of its commands.
fn write_man(mut command: Command, folder: &Path) -> Result<()> {
    create_folder(folder)?;
    command.build();
    let root = command.get_name().to_owned();
    let commands = command.get_subcommands().filter(|below| is_listed(below)).cloned();
    let commands: Vec<Command> = commands
        .map(|below| {
            let name = format!("{root}-{}", below.get_name());
            below.display_name(name)
        })
        .collect();
    for command in commands.into_iter().chain([command]) {
        let name = command.get_display_name().unwrap_or_else(|| command.get_name()).to_owned();
        let mut page = Vec::new();
        let man = clap_mangen::Man::new(command);
        man.render(&mut page).with_context(|| format!("writing the man page of {name}"))?;
        write_atomic(folder.join(format!("{name}.1")), |file| file.write_all(&page))?;
    }
    Ok(())
}

/// Clap adds a command `help`, which the page need not explain.
fn is_listed(command: &Command) -> bool {
    !command.is_hide_set() && command.get_name() != "help"
}

/// The whole command line as one page.
fn markdown(mut command: Command) -> String {
    command.build();
    let name = command.get_name().to_owned();
    let mut page = Page(format!(
        "# The command line of `{name}`\n\nMade by `{name} docs` from the program's own help; do not edit.\n"
    ));
    page.command(&command, true);
    for below in command.get_subcommands().filter(|below| is_listed(below)) {
        page.0 += &format!("\n## `{name} {}`\n", below.get_name());
        page.command(below, false);
    }
    page.0
}

struct Page(String);

impl Page {
    fn command(&mut self, command: &Command, is_root: bool) {
        let about = command.get_long_about().or(command.get_about());
        self.paragraph("", &sentence(&about.map(ToString::to_string).unwrap_or_default()));
        let usage = command.clone().render_usage().to_string();
        let usage = usage.strip_prefix("Usage: ").unwrap_or(&usage);
        let lines: Vec<&str> = usage.lines().map(str::trim).collect();
        self.0 += &format!("\n```\n{}\n```\n", lines.join("\n"));
        if is_root {
            self.0 += "\nCommands:\n\n";
            for below in command.get_subcommands().filter(|below| is_listed(below)) {
                let about = below.get_about().map(ToString::to_string).unwrap_or_default();
                self.item(&format!("`{}`: {}", below.get_name(), sentence(&about)));
            }
        }
        // Flags that every command has are listed once, under the program.
        let shown = |argument: &&Arg| {
            let is_clap = ["help", "version"].contains(&argument.get_id().as_str());
            !argument.is_hide_set() && !is_clap && (is_root || !argument.is_global_set())
        };
        let mut headings: Vec<&str> = Vec::new();
        for argument in command.get_arguments().filter(shown) {
            let heading = heading_of(argument);
            if !headings.contains(&heading) {
                headings.push(heading);
            }
        }
        for heading in headings {
            self.0 += &format!("\n{heading}:\n\n");
            let arguments = command.get_arguments().filter(shown);
            for argument in arguments.filter(|argument| heading_of(argument) == heading) {
                self.argument(argument);
            }
        }
        let after = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        for block in after.split("\n\n") {
            match block.split_once(":\n") {
                Some((title, lines)) => {
                    let lines: Vec<&str> = lines.lines().map(str::trim).collect();
                    self.0 += &format!("\n{title}:\n\n```\n{}\n```\n", lines.join("\n"));
                }
                // The link is to a page beside this one's folder.
                None => {
                    let sentences = block.lines().filter(|line| !line.starts_with("More: "));
                    self.paragraph("", &sentences.collect::<Vec<_>>().join(" "));
                }
            }
        }
    }

    fn argument(&mut self, argument: &Arg) {
        let help = argument.get_long_help().or(argument.get_help());
        let help = help.map(ToString::to_string).unwrap_or_default();
        let mut text = format!("`{}`: {}", signature(argument), sentence(&help));
        let values: Vec<String> = match argument.get_action().takes_values() {
            true => {
                let values = argument.get_possible_values();
                let shown = values.iter().filter(|value| !value.is_hide_set());
                shown.map(|value| format!("`{}`", value.get_name())).collect()
            }
            false => Vec::new(),
        };
        if !values.is_empty() && values != ["`true`", "`false`"] {
            text += &format!(" One of {}.", values.join(", "));
        }
        let defaults = argument.get_default_values();
        if !defaults.is_empty() && argument.get_action().takes_values() {
            let defaults: Vec<_> = defaults.iter().map(|value| value.to_string_lossy()).collect();
            text += &format!(" Default: `{}`.", defaults.join(" "));
        }
        if let Some(variable) = argument.get_env() {
            text += &format!(" Environment variable: `{}`.", variable.to_string_lossy());
        }
        self.item(&text);
    }

    fn item(&mut self, text: &str) {
        self.wrapped("- ", "  ", text);
    }

    fn paragraph(&mut self, indent: &str, text: &str) {
        if !text.is_empty() {
            self.0.push('\n');
            self.wrapped(indent, indent, text);
        }
    }

    /// Text in lines of at most [`COLUMNS`]; code between backquotes is not broken.
    fn wrapped(&mut self, first: &str, others: &str, text: &str) {
        let mut line = first.to_owned();
        let mut is_empty = true;
        for word in words(text) {
            if !is_empty && line.chars().count() + 1 + word.chars().count() > COLUMNS {
                self.0 += &format!("{line}\n");
                line = others.to_owned();
                is_empty = true;
            }
            if !is_empty {
                line.push(' ');
            }
            line += &word;
            is_empty = false;
        }
        self.0 += &format!("{line}\n");
    }
}

/// Clap takes the full stop off the end of a doc comment.
fn sentence(text: &str) -> String {
    let is_open = text.ends_with(|last: char| last.is_alphanumeric() || ")]`\"".contains(last));
    format!("{text}{}", if is_open { "." } else { "" })
}

fn heading_of(argument: &Arg) -> &str {
    let usual = if argument.is_positional() { "Arguments" } else { "Options" };
    argument.get_help_heading().unwrap_or(usual)
}

/// `-v, --verbose` or `--out <FILE.parquet>`
fn signature(argument: &Arg) -> String {
    let mut text = match (argument.get_short(), argument.get_long()) {
        (Some(short), Some(long)) => format!("-{short}, --{long}"),
        (None, Some(long)) => format!("--{long}"),
        (Some(short), None) => format!("-{short}"),
        (None, None) => return format!("{argument}"),
    };
    if argument.get_action().takes_values() {
        let names = argument.get_value_names().unwrap_or_default();
        for name in names {
            text += &format!(" <{name}>");
        }
        if argument.get_num_args().is_some_and(|range| range.max_values() > names.len()) {
            text += "...";
        }
    }
    text
}

/// The words of a text; text between backquotes is one word.
fn words(text: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    let mut is_code = false;
    for word in text.split_whitespace() {
        match words.last_mut() {
            Some(last) if is_code => {
                last.push(' ');
                last.push_str(word);
            }
            _ => words.push(word.to_owned()),
        }
        is_code ^= word.matches('`').count() % 2 == 1;
    }
    words
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::{DocsArguments, ProgramCommand, words};

    /// An example of a program.
    #[derive(Debug, Parser)]
    #[command(name = "example", version)]
    struct Example {
        #[command(subcommand)]
        command: Below,
        #[command(flatten)]
        log: crate::logging::LogArguments,
    }

    #[derive(Debug, clap::Subcommand)]
    enum Below {
        /// Scores pairs.
        #[command(after_help = "Examples:\n  example score --out x")]
        Score {
            /// What to write, with a help text that is long enough to be wrapped in the page that
            /// is made.
            #[arg(long, value_name = "FILE", env = "EXAMPLE_OUT", help_heading = "Output")]
            out: String,
            /// A number.
            #[arg(long, value_name = "N", default_value_t = 3)]
            number: u32,
            #[arg(long, hide = true)]
            hidden: bool,
        },
        #[command(flatten)]
        Program(ProgramCommand),
    }

    fn docs(root: &std::path::Path, check: bool) -> anyhow::Result<crate::exit::ExitStatus> {
        let root = root.to_owned();
        ProgramCommand::Docs(DocsArguments { root, check, man: None }).run::<Example>()
    }

    #[test]
    fn the_page_holds_every_flag_and_is_checked() {
        let folder = tempfile::tempdir().unwrap();
        let message = docs(folder.path(), true).unwrap_err().to_string();
        assert!(message.contains("not up to date"), "{message}");
        docs(folder.path(), false).unwrap();
        docs(folder.path(), true).unwrap();
        let page = std::fs::read_to_string(folder.path().join("docs/cli/example.md")).unwrap();
        for part in [
            "## `example score`\n\nScores pairs",
            "\nOutput:\n\n- `--out <FILE>`: What to write",
            "Environment variable: `EXAMPLE_OUT`.",
            "- `--number <N>`: A number. Default: `3`.",
            "Examples:\n\n```\nexample score --out x\n```\n",
            "`--log-format <FORMAT>`",
            "- `completions`: ",
        ] {
            assert!(page.contains(part), "{part}: {page}");
        }
        assert!(!page.contains("--hidden") && !page.contains("`docs`:"), "{page}");
        assert_eq!(page.matches("--log-format").count(), 1, "{page}");
        assert!(page.lines().all(|line| line.chars().count() <= 100), "{page}");
    }

    #[test]
    fn man_pages_are_written_for_every_command() {
        let folder = tempfile::tempdir().unwrap();
        let man = Some(folder.path().join("man"));
        let arguments = DocsArguments { root: ".".into(), check: false, man };
        ProgramCommand::Docs(arguments).run::<Example>().unwrap();
        for name in ["example.1", "example-score.1", "example-completions.1"] {
            let page = std::fs::read_to_string(folder.path().join("man").join(name)).unwrap();
            assert!(page.contains(".TH"), "{name}");
        }
        assert!(!folder.path().join("man/example-docs.1").exists());
    }

    #[test]
    fn code_is_one_word() {
        assert_eq!(words("a `b c d` e. `f`"), ["a", "`b c d`", "e.", "`f`"]);
    }
}
