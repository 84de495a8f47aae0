//! How far a long run is: a bar where someone watches, log lines where nobody does.

use std::io::IsTerminal;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{HumanCount, HumanDuration, ProgressBar, ProgressFinish, ProgressStyle};

use crate::logging::{self, escape_for_terminal};

/// Without a terminal, one log line this often.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// The progress of one piece of work. Shared by reference between threads.
///
/// On a terminal it is a bar on stderr with rate and time left; otherwise an information line in the
/// log every ten seconds. With `-q` it is silent.
#[derive(Debug)]
pub struct Progress {
    label: String,
    unit: String,
    total: Option<u64>,
    started: Instant,
    done: AtomicU64,
    /// Done by an earlier run: part of the position, not of the rate.
    earlier: AtomicU64,
    message: Mutex<String>,
    view: View,
}

#[derive(Debug)]
enum View {
    Bar(ProgressBar),
    /// Milliseconds after the start at which the next line is due.
    Log(AtomicU64),
    Hidden,
}

impl Progress {
    /// Starts to show progress: `label` says what is done ("scoring"), `unit` what is counted
    /// ("pairs"), `total` how many there will be, if known.
    pub fn new(label: &str, unit: &str, total: impl Into<Option<u64>>) -> Self {
        let total = total.into();
        let view = if logging::is_quiet() {
            View::Hidden
        } else if std::io::stderr().is_terminal() {
            View::Bar(bar(label, unit, total))
        } else {
            View::Log(AtomicU64::new(milliseconds(LOG_INTERVAL)))
        };
        Self {
            label: label.to_owned(),
            unit: unit.to_owned(),
            total,
            started: Instant::now(),
            done: AtomicU64::new(0),
            earlier: AtomicU64::new(0),
            message: Mutex::new(String::new()),
            view,
        }
    }

    /// Counts `amount` units that an earlier run finished: they move the position but not the rate,
    /// so that the time left is right after a resume.
    pub fn already_done(&self, amount: u64) {
        self.earlier.fetch_add(amount, Ordering::Relaxed);
        if let View::Bar(bar) = &self.view {
            bar.inc(amount);
            bar.reset_eta();
        }
    }

    /// Counts `amount` more units.
    pub fn add(&self, amount: u64) {
        self.done.fetch_add(amount, Ordering::Relaxed);
        match &self.view {
            View::Bar(bar) => bar.inc(amount),
            View::Log(next) => self.log_if_due(next),
            View::Hidden => {}
        }
    }

    /// Sets the remark beside the figures, such as "3 failed".
    pub fn message(&self, message: impl AsRef<str>) {
        let message = escape_for_terminal(message.as_ref()).into_owned();
        if let View::Bar(bar) = &self.view {
            bar.set_message(message.clone());
        }
        *self.message.lock().unwrap_or_else(PoisonError::into_inner) = message;
    }

    /// Takes the bar away and logs one closing line.
    pub fn finish(self) {
        if let View::Bar(bar) = &self.view {
            bar.finish_and_clear();
        }
        if !matches!(self.view, View::Hidden) {
            let elapsed = HumanDuration(self.started.elapsed());
            tracing::info!("{} in {elapsed}", self.sentence(self.started.elapsed()));
        }
    }

    /// The units done, earlier runs included.
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed) + self.earlier.load(Ordering::Relaxed)
    }

    fn log_if_due(&self, next: &AtomicU64) {
        let elapsed = self.started.elapsed();
        let now = milliseconds(elapsed);
        let due = next.load(Ordering::Relaxed);
        let following = now + milliseconds(LOG_INTERVAL);
        // Of several threads that arrive together, one writes the line.
        if now >= due
            && next.compare_exchange(due, following, Ordering::Relaxed, Ordering::Relaxed).is_ok()
        {
            tracing::info!("{}", self.sentence(elapsed));
        }
    }

    /// "scoring: 1,200 of 5,000 pairs, 31.5 pairs/s, 2 minutes left, 3 failed"
    fn sentence(&self, elapsed: Duration) -> String {
        let unit = &self.unit;
        let done_now = self.done.load(Ordering::Relaxed);
        let rate = done_now as f64 / elapsed.as_secs_f64().max(1e-3);
        let mut sentence = format!("{}: {}", self.label, HumanCount(self.done()));
        if let Some(total) = self.total {
            sentence += &format!(" of {}", HumanCount(total));
        }
        sentence += &format!(" {unit}, {} {unit}/s", shown_rate(rate));
        let left = self.total.map_or(0, |total| total.saturating_sub(self.done()));
        if left > 0 && done_now > 0 {
            let seconds = Duration::try_from_secs_f64(left as f64 / rate).unwrap_or(Duration::MAX);
            sentence += &format!(", {} left", HumanDuration(seconds));
        }
        let message = self.message.lock().unwrap_or_else(PoisonError::into_inner);
        if !message.is_empty() {
            sentence += &format!(", {message}");
        }
        sentence
    }
}

/// Units a second: "31.5", or of what takes longer than a second "0.062".
fn shown_rate(rate: f64) -> String {
    let digits = if rate > 0.0 && rate < 1.0 { 3 } else { 1 };
    format!("{rate:.digits$}")
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX / 2)
}

fn bar(label: &str, unit: &str, total: Option<u64>) -> ProgressBar {
    let template = match total {
        Some(_) => {
            "{prefix} {wide_bar} {human_pos}/{human_len} {unit} {rate} {unit}/s, {eta} left {msg}"
        }
        None => "{prefix} {spinner} {human_pos} {unit} {rate} {unit}/s {msg}",
    };
    let unit = unit.to_owned();
    // The template is one of the two above; a bar in indicatif's own style is the worst case.
    let style = ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .with_key("unit", move |_: &_, writer: &mut dyn std::fmt::Write| {
            // Writing to indicatif's String cannot fail.
            let _ = writer.write_str(&unit);
        })
        .with_key("rate", |state: &indicatif::ProgressState, writer: &mut dyn std::fmt::Write| {
            let _ = writer.write_str(&shown_rate(state.per_sec()));
        });
    let bar = match total {
        Some(total) => ProgressBar::new(total),
        None => ProgressBar::no_length(),
    };
    let bar = logging::BARS.add(bar.with_finish(ProgressFinish::AndClear));
    bar.set_style(style);
    bar.set_prefix(label.to_owned());
    bar.enable_steady_tick(Duration::from_millis(250));
    bar
}

#[cfg(test)]
mod tests {
    use super::Progress;
    use std::time::Duration;

    #[test]
    fn the_log_line_has_position_rate_and_time_left() {
        let progress = Progress::new("scoring", "pairs", 5_000);
        progress.already_done(1_000);
        progress.add(200);
        progress.message("3 failed\n");
        let sentence = progress.sentence(Duration::from_secs(10));
        assert_eq!(
            sentence,
            "scoring: 1,200 of 5,000 pairs, 20.0 pairs/s, 3 minutes left, 3 failed\\n"
        );
    }

    #[test]
    fn unknown_totals_and_no_work_are_fine() {
        let progress = Progress::new("reading", "rows", None);
        assert_eq!(progress.sentence(Duration::ZERO), "reading: 0 rows, 0.0 rows/s");
        let complete = Progress::new("reading", "rows", 0);
        assert_eq!(complete.sentence(Duration::ZERO), "reading: 0 of 0 rows, 0.0 rows/s");
        complete.finish();
    }

    #[test]
    fn a_slow_rate_is_not_zero() {
        let progress = Progress::new("training", "pairs", 100);
        progress.add(6);
        let sentence = progress.sentence(Duration::from_secs(120));
        assert!(sentence.contains(" 0.050 pairs/s"), "{sentence}");
    }
}
