//! Log lines at a terminal: the sentence, and its level if it is a warning or worse.

use std::fmt::{self, Debug, Write as _};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use crate::text::escape_for_terminal;

/// Writes `warning: the sentence (field value)`, and of an information event the sentence alone:
/// its fields are for machines.
pub(super) struct TerminalFormat {
    pub(super) coloured: bool,
}

impl<S, N> FormatEvent<S, N> for TerminalFormat
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let (word, colour) = match *event.metadata().level() {
            Level::ERROR => ("error: ", "1;31"),
            Level::WARN => ("warning: ", "1;33"),
            Level::INFO => ("", ""),
            _ => ("debug: ", "2"),
        };
        match self.coloured && !word.is_empty() {
            true => write!(writer, "\u{1b}[{colour}m{word}\u{1b}[0m")?,
            false => writer.write_str(word)?,
        }
        match *event.metadata().level() {
            Level::INFO => {
                let mut message = Message(String::new());
                event.record(&mut message);
                lines(&mut writer, &message.0)?;
            }
            _ => context.field_format().format_fields(writer.by_ref(), event)?,
        }
        writeln!(writer)
    }
}

/// The sentence of an event.
struct Message(String);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() == "message" {
            // Writing to a String cannot fail.
            let _ = write!(self.0, "{value:?}");
        }
    }
}

/// Several lines, made safe one by one.
fn lines(writer: &mut Writer<'_>, text: &str) -> fmt::Result {
    for (index, line) in text.lines().enumerate() {
        let between = if index == 0 { "" } else { "\n" };
        write!(writer, "{between}{}", escape_for_terminal(line))?;
    }
    Ok(())
}

/// Writes one field: the message as it is, others after it.
pub(super) fn field(writer: &mut Writer<'_>, field: &Field, value: &dyn Debug) -> fmt::Result {
    let text = format!("{value:?}");
    match field.name() {
        "message" => lines(writer, &text),
        name => write!(writer, " ({name} {})", escape_for_terminal(&text)),
    }
}
