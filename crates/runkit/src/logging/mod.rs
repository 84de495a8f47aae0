//! Logs on stderr, as text or JSON lines, that never tear the progress bar and never let logged
//! text drive the terminal.
//!
//! On a terminal a line is the sentence alone, with its level if it is a warning or worse.
//! Elsewhere, and with `-v`, it has time, level and fields.
//!
//! stdout belongs to results. Every log line goes through the same [`indicatif::MultiProgress`]
//! that shows the bars: it removes the bar, writes the line, and shows the bar again.

use std::io::{self, IsTerminal, Write};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::text::quoted;
use clap::ArgAction;
use indicatif::MultiProgress;
use tracing::{Level, Metadata};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::field::MakeExt as _;
use tracing_subscriber::fmt::MakeWriter;

mod terminal;

use terminal::TerminalFormat;

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// One readable line per event.
    #[default]
    Text,
    /// One JSON object per event, for collectors.
    Json,
}

/// The words `text` and `json`, as of `--log-format`.
impl std::str::FromStr for LogFormat {
    type Err = LoggingError;

    fn from_str(text: &str) -> Result<Self, LoggingError> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err(LoggingError::Format(text.to_owned())),
        }
    }
}

/// The heading of the flags of the log in help texts.
const LOGGING: &str = "Logging";

/// The flags of every program that say what is logged, and how.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct LogArguments {
    /// Log more to stderr (twice: everything of this program).
    #[arg(short, long, global = true, action = ArgAction::Count, conflicts_with = "quiet", display_order = 100, help_heading = LOGGING)]
    pub verbose: u8,
    /// Log less: warnings only, no progress (twice: errors only).
    #[arg(short, long, global = true, action = ArgAction::Count, display_order = 101, help_heading = LOGGING)]
    pub quiet: u8,
    /// The format of log lines: text or json.
    #[arg(long, global = true, value_name = "FORMAT", default_value = "text", display_order = 102, help_heading = LOGGING)]
    pub log_format: LogFormat,
}

impl LogArguments {
    /// Sets up logging as the flags say.
    pub fn init(self) -> Result<(), LoggingError> {
        let count = |times: u8| i8::try_from(times).unwrap_or(i8::MAX);
        init(count(self.verbose) - count(self.quiet), self.log_format)
    }
}

/// Logging cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    /// The log format is not known.
    #[error("unknown log format {}: expected text or json", quoted(.0))]
    Format(String),
    /// `RUST_LOG` is set and cannot be understood.
    #[error(
        "RUST_LOG is not understood: {0}\nhint: a level (info) or a list such as warn,relabel=debug"
    )]
    Filter(String),
    /// Logging was set up before in this process.
    #[error("logging is already set up in this process")]
    AlreadySet,
}

static QUIET: AtomicBool = AtomicBool::new(false);
static JSON: AtomicBool = AtomicBool::new(false);
/// Whether `-v` or `RUST_LOG` asks for more than usual, of every rank then.
static VERBOSE: AtomicBool = AtomicBool::new(false);
/// The rank of this process among those that work as one.
static RANK: AtomicUsize = AtomicUsize::new(0);
/// Whether a rank other than 0 logs errors alone.
static MUTED: AtomicBool = AtomicBool::new(false);

/// Says which of several processes this is. Rank 0 logs what all of them know. Any other rank
/// shows no progress, writes `rank N: ` before each line, and logs warnings and errors alone; with
/// `is_muted`, for work that rank 0 does in the same way, errors alone. With `-v` or `RUST_LOG` it
/// logs all the same.
pub fn of_rank(rank: usize, is_muted: bool) {
    RANK.store(rank, Ordering::Relaxed);
    MUTED.store(is_muted, Ordering::Relaxed);
}

/// What stands before each line of this process.
pub(crate) fn prefix() -> String {
    match RANK.load(Ordering::Relaxed) {
        0 => String::new(),
        rank => format!("rank {rank}: "),
    }
}

/// Whether this process logs events of a level.
fn logs(level: Level) -> bool {
    let most = if MUTED.load(Ordering::Relaxed) { Level::ERROR } else { Level::WARN };
    RANK.load(Ordering::Relaxed) == 0 || VERBOSE.load(Ordering::Relaxed) || level <= most
}

pub(crate) static BARS: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);

/// Whether there is no progress bar: with `-q`, and at ranks other than 0.
pub(crate) fn is_quiet() -> bool {
    QUIET.load(Ordering::Relaxed) || RANK.load(Ordering::Relaxed) > 0
}

/// Whether the log is JSON.
pub(crate) fn is_json() -> bool {
    JSON.load(Ordering::Relaxed)
}

/// Whether stderr is a terminal that can move its cursor: `TERM=dumb` says that it cannot.
pub(crate) fn has_screen() -> bool {
    io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|terminal| terminal != "dumb")
}

/// A number with what it counts, in the plural unless it is 1: "1 row", "1,234 rows".
#[must_use]
pub fn counted(number: u64, unit: &str) -> String {
    let unit = if number == 1 { unit.strip_suffix('s').unwrap_or(unit) } else { unit };
    format!("{} {unit}", indicatif::HumanCount(number))
}

/// A duration rounded to tenths of a second, as a field of a log line.
#[must_use]
pub fn tenths(duration: std::time::Duration) -> f64 {
    (duration.as_secs_f64() * 10.0).round() / 10.0
}

/// Sets up logging for the process. `verbosity` is the count of `-v` minus the count of `-q`:
/// −2 errors only, −1 warnings, 0 information, 1 debugging, 2 everything. `RUST_LOG`, when set and
/// not empty, decides instead of the level. `NO_COLOR` and `TERM=dumb` are honoured.
///
/// # Errors
/// When `RUST_LOG` cannot be understood, or logging was set up before.
pub fn init(verbosity: i8, format: LogFormat) -> Result<(), LoggingError> {
    QUIET.store(verbosity < 0, Ordering::Relaxed);
    JSON.store(format == LogFormat::Json, Ordering::Relaxed);
    VERBOSE.store(verbosity > 0, Ordering::Relaxed);
    let filter = match std::env::var("RUST_LOG") {
        Ok(asked) if !asked.trim().is_empty() => {
            VERBOSE.store(true, Ordering::Relaxed);
            EnvFilter::try_new(asked).map_err(|error| LoggingError::Filter(error.to_string()))?
        }
        _ => EnvFilter::new(default_filter(verbosity)),
    };
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(Stderr);
    let result = match format {
        LogFormat::Json => builder.json().try_init(),
        LogFormat::Text => {
            let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
            let coloured = has_screen() && !no_color;
            if io::stderr().is_terminal() && verbosity <= 0 {
                let fields =
                    tracing_subscriber::fmt::format::debug_fn(terminal::field).delimited("");
                let format = TerminalFormat { coloured };
                builder.with_ansi(coloured).event_format(format).fmt_fields(fields).try_init()
            } else {
                builder.with_ansi(coloured).with_target(verbosity > 0).try_init()
            }
        }
    };
    result.map_err(|_| LoggingError::AlreadySet)
}

/// The crates of this workspace, by the names in their log lines.
const OWN_CRATES: [&str; 10] = [
    "evaluate",
    "hub",
    "locations",
    "media",
    "nn",
    "relabel",
    "runkit",
    "schemas",
    "scorers",
    "train",
];

/// `-v` raises the level of our own crates alone: libraries log thousands of lines that nobody
/// reads.
fn default_filter(verbosity: i8) -> String {
    let own = |level: &str| {
        OWN_CRATES.iter().fold("info".to_owned(), |all, name| format!("{all},{name}={level}"))
    };
    match verbosity {
        ..=-2 => "error".to_owned(),
        -1 => "warn".to_owned(),
        0 => "info".to_owned(),
        1 => own("debug"),
        2.. => own("trace"),
    }
}

/// Events longer than this quote more of an input than anyone reads.
const LONGEST_EVENT: usize = 250;

/// Makes a writer for each event that this process logs.
struct Stderr;

impl MakeWriter<'_> for Stderr {
    type Writer = BarAwareStderr;

    fn make_writer(&self) -> BarAwareStderr {
        BarAwareStderr::default()
    }

    fn make_writer_for(&self, metadata: &Metadata<'_>) -> BarAwareStderr {
        BarAwareStderr { line: Vec::new(), is_muted: !logs(*metadata.level()) }
    }
}

/// Collects one event's bytes and writes them at once while the bars are taken away.
#[derive(Default)]
struct BarAwareStderr {
    line: Vec<u8>,
    is_muted: bool,
}

impl Write for BarAwareStderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.line.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let mut line = std::mem::take(&mut self.line);
        if self.is_muted || line.is_empty() {
            return Ok(());
        }
        let rank = RANK.load(Ordering::Relaxed);
        if rank > 0 {
            line = match (is_json(), line.strip_prefix(b"{")) {
                (true, Some(rest)) => [format!("{{\"rank\":{rank},").as_bytes(), rest].concat(),
                _ => [prefix().as_bytes(), &line].concat(),
            };
        }
        if line.len() > LONGEST_EVENT && !is_json() {
            let text = String::from_utf8_lossy(&line);
            line = format!("{}\n", crate::text::shorten_message(&text)).into_bytes();
        }
        BARS.suspend(|| io::stderr().write_all(&line))
    }
}

impl Drop for BarAwareStderr {
    fn drop(&mut self) {
        // A log line that cannot be written has nowhere to be reported.
        let _ = self.flush();
    }
}

#[cfg(test)]
mod tests {
    use super::{LogFormat, counted, default_filter};
    use tracing_subscriber::EnvFilter;

    #[test]
    fn every_verbosity_has_a_valid_filter() {
        for verbosity in i8::MIN..=i8::MAX {
            EnvFilter::try_new(default_filter(verbosity)).unwrap();
        }
    }

    #[test]
    fn more_is_asked_of_our_own_crates_alone() {
        for verbosity in [1, 2] {
            let filter = default_filter(verbosity);
            assert!(filter.starts_with("info,") && filter.contains("relabel="), "{filter}");
            assert!(!filter.contains("tokenizers"), "{filter}");
        }
    }

    #[test]
    fn one_is_not_plural() {
        assert_eq!(counted(1, "rows"), "1 row");
        assert_eq!(counted(0, "rows"), "0 rows");
        assert_eq!(counted(12_345, "rows"), "12,345 rows");
    }

    #[test]
    fn formats_are_read() {
        assert_eq!("json".parse::<LogFormat>().unwrap(), LogFormat::Json);
        assert!("yaml".parse::<LogFormat>().unwrap_err().to_string().contains("text or json"));
    }
}
