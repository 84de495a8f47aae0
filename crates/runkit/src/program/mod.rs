//! What the `main` of every program does around its commands: reads the command line, sets up the
//! log, runs one command, reports how it ended, and ends with its exit code.

use std::fmt::{self, Write as _};
use std::io::Write as _;
use std::process::ExitCode;

use anyhow::Context as _;

use crate::exit::ExitStatus;
use crate::logging::{self, LogArguments};
use crate::signals::{Signal, Stopped};
use crate::text::escape_for_terminal;
use crate::text::shorten_message;

mod command_line;
mod reference;
mod usage;

pub use command_line::Build;
pub use reference::{DocsArguments, ProgramCommand};
pub use usage::{ResumeFlag, UsageError, require, usage_unless};

/// Runs a program: `build` is for `--version`, `log` finds the flags of the log in what was typed,
/// `run` runs the command.
///
/// A command line that is not understood ends with [`ExitStatus::Usage`], as does a [`UsageError`]
/// anywhere behind an error of `run`; a [`Stopped`] ends with the exit code of its signal, and any
/// other error with [`ExitStatus::Failed`]. Errors go to stderr: as text, or with `--log-format
/// json` as one more object of the log.
pub fn main<C: clap::Parser>(
    build: Build,
    log: impl FnOnce(&C) -> LogArguments,
    run: impl FnOnce(C) -> anyhow::Result<ExitStatus>,
) -> ExitCode {
    let command = match parse(build) {
        Ok(command) => command,
        Err(error) => return not_understood(&usage::with_sensible_tips(error, &C::command())),
    };
    let status = match log(&command).init() {
        Ok(()) => run(command),
        Err(error) => Err(UsageError::of(error).into()),
    };
    status.unwrap_or_else(|error| report(&error)).into()
}

fn parse<C: clap::Parser>(build: Build) -> Result<C, clap::Error> {
    let mut command = command_line::command::<C>();
    // Asking the libraries takes time that no other command should pay for.
    if std::env::args_os().any(|word| word == "--version") {
        let version = command.get_version().unwrap_or_default().to_owned();
        // Clap keeps it until the process ends, which is in a moment.
        let text: &'static str = build.long_version(&version).leak();
        command = command.long_version(text);
    }
    let mut matches = command.try_get_matches_from_mut(std::env::args_os())?;
    C::from_arg_matches_mut(&mut matches).map_err(|error| error.format(&mut command))
}

/// `--json`, for every command that ends with a summary.
#[derive(Debug, Clone, Copy, Default, clap::Args)]
pub struct JsonFlag {
    /// Print the summary as one JSON object on stdout.
    #[arg(long)]
    pub json: bool,
}

impl JsonFlag {
    /// Writes a summary to stdout: `text`, or `value` as JSON if `--json` was given.
    ///
    /// # Errors
    /// If stdout is closed or full.
    pub fn say(
        self,
        text: impl FnOnce() -> String,
        value: &impl serde::Serialize,
    ) -> anyhow::Result<()> {
        match self.json {
            true => say(&format!("{}\n", serde_json::to_string_pretty(value)?)),
            false => say(&text()),
        }
    }
}

/// Logs that a command was stopped by a signal, and returns its exit code.
#[must_use]
pub fn stopped_by(signal: Signal) -> ExitStatus {
    tracing::warn!("stopped by {signal}; finished work is kept: run the same command to resume");
    signal.into()
}

/// Writes a result to stdout.
///
/// # Errors
/// When stdout is closed or full.
pub fn say(text: &str) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).context("writing to stdout")
}

/// The width of the terminal that stdout is; `None` if it is not a terminal.
#[must_use]
#[expect(unsafe_code, reason = "no safe function asks the terminal")]
pub fn columns_of_stdout() -> Option<usize> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCGWINSZ writes one `winsize`, which outlives the call.
    let code = unsafe { libc::ioctl(libc::STDOUT_FILENO, libc::TIOCGWINSZ, &raw mut size) };
    (code == 0 && size.ws_col > 0).then_some(size.ws_col.into())
}

/// The exit code of a command in which `failed` rows failed and `allowed` may (`unit` is the
/// plural: "rows", "images"). If it is [`ExitStatus::TooManyFailedRows`], a warning explains it
/// with `which`, how to list the rows.
#[must_use]
pub fn status_of_failed(failed: u64, allowed: u64, unit: &str, which: &str) -> ExitStatus {
    if failed <= allowed {
        return ExitStatus::Done;
    }
    let status = ExitStatus::TooManyFailedRows;
    let code = status.code();
    let failed = logging::counted(failed, unit);
    // Also with `-qq`: otherwise nothing explains the exit code.
    let message = format!("{failed} failed, --max-failed is {allowed}: exit code {code}; {which}");
    if tracing::enabled!(tracing::Level::WARN) {
        tracing::warn!("{message}");
    } else {
        write_last("warning", &message);
    }
    status
}

/// Prints what ended a command, with its causes, and returns the exit code.
fn report(error: &anyhow::Error) -> ExitStatus {
    if let Some(Stopped(signal)) = stopped(error) {
        return stopped_by(signal);
    }
    write_last("error", &message_of(error));
    match error.downcast_ref::<UsageError>() {
        Some(_) => ExitStatus::Usage,
        None => ExitStatus::Failed,
    }
}

/// The stop that is behind an error, if there is one.
#[must_use]
pub fn stopped(error: &anyhow::Error) -> Option<Stopped> {
    if let Some(stopped) = Stopped::behind(error.as_ref()) {
        return Some(stopped);
    }
    // Libraries between may have kept its words alone.
    let signal = crate::signals::flag_of_process().requested()?;
    let words = Stopped(signal).to_string();
    error.chain().any(|cause| cause.to_string().contains(&words)).then_some(Stopped(signal))
}

/// The error and its causes, a line each. Errors of this workspace quote their cause in their own
/// sentence (`Display` embeds it), so a cause that an earlier line already quotes is left out.
pub fn message_of(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        if !text.contains(&cause) {
            let between = if text.is_empty() { "" } else { "\n  because: " };
            // Writing to a String cannot fail.
            let _ = write!(text, "{between}{cause}");
        }
    }
    shorten_message(&text)
}

fn not_understood(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        // Help and version go to stdout; a reader that closed it has seen enough.
        let _ = error.print();
        return ExitStatus::Done.into();
    }
    let text = error.render().to_string();
    let shortened = shorten_message(&text);
    if usage::asks_for_json(std::env::args_os()) {
        // The log is not set up twice: nothing was parsed.
        let _ = logging::init(0, logging::LogFormat::Json);
        write_last("error", shortened.trim_start_matches("error: ").trim_end());
    } else if shortened.lines().eq(text.lines()) {
        let _ = error.print();
    } else {
        write_lines(&shortened);
    }
    ExitStatus::Usage.into()
}

/// The last words of a program: part of the log if it is JSON, else plain text that no filter
/// drops.
fn write_last(level: &str, message: &str) {
    if logging::is_json() {
        match level {
            "error" if tracing::enabled!(tracing::Level::ERROR) => tracing::error!("{message}"),
            _ => {
                let line = serde_json::json!({
                    "level": level.to_uppercase(), "fields": { "message": message }
                });
                write_lines(&line.to_string());
            }
        }
    } else {
        write_lines(&format!("{}{level}: {message}", logging::prefix()));
    }
}

fn write_lines(text: &str) {
    for line in text.lines() {
        // A message that cannot be written has nowhere to be reported.
        let _ = writeln!(std::io::stderr(), "{}", escape_for_terminal(line));
    }
}

impl fmt::Display for UsageError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use anyhow::{Context as _, anyhow};

    use super::{ExitStatus, Stopped, UsageError, message_of, report, status_of_failed};
    use crate::signals::Signal;

    #[test]
    fn the_end_decides_the_exit_code() {
        assert_eq!(report(&anyhow!("no")), ExitStatus::Failed);
        let usage = anyhow::Error::from(UsageError::new("--steps 0"));
        assert_eq!(report(&usage.context("reading settings")), ExitStatus::Usage);
        let stopped = std::io::Error::from(Stopped(Signal::Terminate));
        let stopped = Err::<(), _>(stopped).context("reading x").unwrap_err();
        assert_eq!(report(&stopped), ExitStatus::Terminated);
    }

    #[test]
    fn causes_are_said_once_and_cut() {
        let error = anyhow!("inner").context("outer: inner").context("top");
        assert_eq!(message_of(&error), "top\n  because: outer: inner");
        let long = anyhow!("found {:?}", "x".repeat(1 << 20));
        assert!(message_of(&long).len() < 300);
    }

    #[test]
    fn too_many_failed_rows_have_their_own_code() {
        assert_eq!(status_of_failed(3, 3, "rows", "x"), ExitStatus::Done);
        assert_eq!(status_of_failed(4, 3, "rows", "x"), ExitStatus::TooManyFailedRows);
    }
}
