//! The progress of a long run: a bar on a terminal, log lines elsewhere.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use indicatif::{HumanCount, HumanDuration, ProgressBar, ProgressFinish, ProgressStyle};

use crate::logging;
use crate::text::escape_for_terminal;

/// Without a screen, the first log line after this time.
const FIRST_LINE: Duration = Duration::from_secs(5);
/// And one more this often.
const LOG_INTERVAL: Duration = Duration::from_secs(10);
/// What is shown in place of a number that is not known yet.
const UNKNOWN: &str = "–";

/// The progress of one piece of work. Shared by reference between threads.
///
/// On a terminal it is a bar on stderr with rate and time left; otherwise an information line in
/// the log every ten seconds, whether or not something was done in between. With `-q` it is silent.
/// Rate and time left are of this start alone, and not shown before something is done.
#[derive(Debug)]
pub struct Progress {
    state: Arc<State>,
    view: View,
}

#[derive(Debug)]
struct State {
    label: String,
    unit: String,
    total: Option<u64>,
    started: Instant,
    /// Done by this start, in parts of a unit.
    done: AtomicU64,
    /// Done by an earlier run, in units: part of the position, not of the rate.
    earlier: AtomicU64,
    message: Mutex<String>,
}

/// The parts of a unit that [`Progress::add_parts`] counts.
pub const PARTS: u64 = 1_000;

#[derive(Debug)]
enum View {
    Bar(ProgressBar),
    Log(Ticker),
    Hidden,
}

impl Progress {
    /// Starts to show progress: `label` says what is done ("scoring"), `unit` what is counted
    /// ("pairs"), `total` how many there will be, if known.
    pub fn new(label: &str, unit: &str, total: impl Into<Option<u64>>) -> Self {
        let state = Arc::new(State {
            label: label.to_owned(),
            unit: unit.to_owned(),
            total: total.into(),
            started: Instant::now(),
            done: AtomicU64::new(0),
            earlier: AtomicU64::new(0),
            message: Mutex::new(String::new()),
        });
        let view = if logging::is_quiet() {
            View::Hidden
        } else if logging::has_screen() && !logging::is_json() {
            View::Bar(bar(&state))
        } else {
            View::Log(Ticker::start(&state))
        };
        Self { state, view }
    }

    /// Counts `amount` units that an earlier run finished: they move the position but not the rate,
    /// so that the time left is right after a resume.
    pub fn already_done(&self, amount: u64) {
        self.state.earlier.fetch_add(amount, Ordering::Relaxed);
        if let View::Bar(bar) = &self.view {
            bar.set_position(self.done());
        }
    }

    /// Counts `amount` more units.
    pub fn add(&self, amount: u64) {
        self.add_parts(amount.saturating_mul(PARTS));
    }

    /// Counts `amount` more parts of units, [`PARTS`] to the unit: if a unit takes long, the rate
    /// is known and right before the first one is done.
    pub fn add_parts(&self, amount: u64) {
        self.state.done.fetch_add(amount, Ordering::Relaxed);
        if let View::Bar(bar) = &self.view {
            bar.set_position(self.done());
        }
    }

    /// Sets the remark beside the numbers, such as "3 failed".
    pub fn message(&self, message: impl AsRef<str>) {
        let message = escape_for_terminal(message.as_ref()).into_owned();
        *self.state.message.lock().unwrap_or_else(PoisonError::into_inner) = message;
    }

    /// Takes the bar away and logs one closing line.
    pub fn finish(self) {
        match self.view {
            View::Bar(bar) => bar.finish_and_clear(),
            View::Log(ticker) => drop(ticker),
            View::Hidden => return,
        }
        self.state.log(true);
    }

    /// The units done, earlier runs included.
    pub fn done(&self) -> u64 {
        self.state.position()
    }
}

impl State {
    fn position(&self) -> u64 {
        self.done.load(Ordering::Relaxed) / PARTS + self.earlier.load(Ordering::Relaxed)
    }

    /// Units done by this start, as a fraction.
    fn done_now(&self) -> f64 {
        self.done.load(Ordering::Relaxed) as f64 / PARTS as f64
    }

    /// Units a second since this start, once something is done.
    fn rate(&self, elapsed: Duration) -> Option<f64> {
        let done = self.done_now();
        (done > 0.0).then(|| done / elapsed.as_secs_f64().max(1e-3))
    }

    /// The time that the rest takes at this rate; `None` if it is not known, or if there is no
    /// rest.
    fn left(&self, elapsed: Duration) -> Option<Duration> {
        let earlier = self.earlier.load(Ordering::Relaxed);
        let left = self.total?.saturating_sub(earlier) as f64 - self.done_now();
        let seconds = Some(left).filter(|&left| left > 0.0)? / self.rate(elapsed)?;
        // Rounded up: "0 seconds left" is never right.
        Some(Duration::try_from_secs_f64(seconds.ceil()).unwrap_or(Duration::MAX))
    }

    fn log(&self, finished: bool) {
        let elapsed = self.started.elapsed();
        let sentence = self.sentence(elapsed, finished);
        if !logging::is_json() {
            tracing::info!("{sentence}");
            return;
        }
        let message = self.message.lock().unwrap_or_else(PoisonError::into_inner).clone();
        // What is not known yet is left out.
        tracing::info!(
            label = self.label.as_str(),
            unit = self.unit.as_str(),
            done = self.position(),
            total = self.total,
            rate = self.rate(elapsed).map(|rate| (rate * 1e3).round() / 1e3),
            seconds = logging::tenths(elapsed),
            seconds_left = self.left(elapsed).map(|left| left.as_secs_f64().round()),
            remark = message.as_str(),
            finished,
            "{sentence}"
        );
    }

    /// "scoring: 1,200 of 5,000 pairs, 31.5 pairs/s, 2 minutes left, 3 failed"
    fn sentence(&self, elapsed: Duration, finished: bool) -> String {
        let unit = &self.unit;
        let mut sentence = format!("{}: {}", self.label, HumanCount(self.position()));
        if let Some(total) = self.total {
            sentence += &format!(" of {}", HumanCount(total));
        }
        sentence += &format!(" {unit}");
        match self.rate(elapsed) {
            Some(rate) => sentence += &format!(", {} {unit}/s", shown_rate(rate)),
            None if finished && self.position() > 0 => sentence += ", already complete",
            None if finished => {}
            None => sentence += &format!(", {UNKNOWN} {unit}/s"),
        }
        if finished {
            if self.rate(elapsed).is_some() {
                sentence += &format!(", in {}", shown_duration(elapsed));
            }
        } else if let Some(left) = self.left(elapsed) {
            sentence += &format!(", {} left", HumanDuration(left));
        } else if self.total.is_some_and(|total| total > self.position()) {
            sentence += &format!(", {UNKNOWN} left");
        }
        let message = self.message.lock().unwrap_or_else(PoisonError::into_inner);
        if !message.is_empty() {
            sentence += &format!(", {message}");
        }
        sentence
    }

    /// The text beside the bar: ", 31.5 pairs/s, 2m left, 3 failed".
    fn beside_bar(&self) -> String {
        let elapsed = self.started.elapsed();
        let unit = &self.unit;
        let rate = self.rate(elapsed).map_or_else(|| UNKNOWN.to_owned(), shown_rate);
        let mut text = format!("{rate} {unit}/s");
        if self.total.is_some() {
            let left = self.left(elapsed);
            let none_missing = self.total.is_some_and(|total| total <= self.position());
            match left {
                Some(left) => text += &format!(", {:#} left", HumanDuration(left)),
                None if none_missing => {}
                None => text += &format!(", {UNKNOWN} left"),
            }
        }
        let message = self.message.lock().unwrap_or_else(PoisonError::into_inner);
        if !message.is_empty() {
            text += &format!(", {message}");
        }
        text
    }
}

/// A thread that logs the state at intervals until it is dropped.
#[derive(Debug)]
struct Ticker {
    end: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Ticker {
    fn start(state: &Arc<State>) -> Self {
        let state = Arc::clone(state);
        let (end, ended) = channel::<()>();
        let tick = move || {
            let mut wait = FIRST_LINE;
            while ended.recv_timeout(wait) == Err(RecvTimeoutError::Timeout) {
                state.log(false);
                wait = LOG_INTERVAL;
            }
        };
        // Without the thread there are no lines in between; the work continues.
        let thread = std::thread::Builder::new().name("progress".to_owned()).spawn(tick).ok();
        Self { end: Some(end), thread }
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.end = None;
        if let Some(thread) = self.thread.take() {
            // It does not panic; if it did, a missing log line is all that is lost.
            let _ = thread.join();
        }
    }
}

/// "2.3 s" of what is over soon, else "2 minutes".
fn shown_duration(duration: Duration) -> String {
    match duration.as_secs() {
        0..10 => format!("{:.1} s", duration.as_secs_f64()),
        _ => HumanDuration(duration).to_string(),
    }
}

/// Units a second: "31.5", or of what takes longer than a second "0.062".
fn shown_rate(rate: f64) -> String {
    let digits = if rate > 0.0 && rate < 1.0 { 3 } else { 1 };
    format!("{rate:.digits$}")
}

fn bar(state: &Arc<State>) -> ProgressBar {
    let template = match state.total {
        Some(_) => "{prefix} {wide_bar} {human_pos}/{human_len} {unit}, {figures}",
        None => "{prefix} {spinner} {human_pos} {unit}, {figures}",
    };
    let unit = state.unit.clone();
    let shown = Arc::clone(state);
    // The template is one of the two above; a bar in indicatif's own style is the worst case.
    let style = ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .with_key("unit", move |_: &_, writer: &mut dyn std::fmt::Write| {
            // Writing to indicatif's String cannot fail.
            let _ = writer.write_str(&unit);
        })
        .with_key("figures", move |_: &_, writer: &mut dyn std::fmt::Write| {
            let _ = writer.write_str(&shown.beside_bar());
        });
    let bar = match state.total {
        Some(total) => ProgressBar::new(total),
        None => ProgressBar::no_length(),
    };
    let bar = logging::BARS.add(bar.with_finish(ProgressFinish::AndClear));
    bar.set_style(style);
    bar.set_prefix(state.label.clone());
    bar.enable_steady_tick(Duration::from_millis(250));
    bar
}

#[cfg(test)]
mod tests {
    use super::Progress;
    use std::time::Duration;

    fn sentence(progress: &Progress, seconds: u64, finished: bool) -> String {
        progress.state.sentence(Duration::from_secs(seconds), finished)
    }

    #[test]
    fn the_log_line_has_position_rate_and_time_left() {
        let progress = Progress::new("scoring", "pairs", 5_000);
        progress.already_done(1_000);
        progress.add(200);
        progress.message("3 failed\n");
        assert_eq!(
            sentence(&progress, 10, false),
            "scoring: 1,200 of 5,000 pairs, 20.0 pairs/s, 3 minutes left, 3 failed\\n"
        );
    }

    #[test]
    fn nothing_is_left_and_no_rate_is_known_before_something_is_done() {
        let progress = Progress::new("generating", "images", 1_070);
        progress.already_done(400);
        progress.message("step 7 of 25");
        let shown = sentence(&progress, 30, false);
        assert_eq!(shown, "generating: 400 of 1,070 images, – images/s, – left, step 7 of 25");
        let beside = progress.state.beside_bar();
        assert_eq!(beside, "– images/s, – left, step 7 of 25");
    }

    #[test]
    fn the_rate_after_a_resume_is_that_of_this_start() {
        let progress = Progress::new("training", "pairs", 1_920);
        progress.already_done(384);
        progress.add(32);
        let shown = sentence(&progress, 3, false);
        assert!(shown.contains("10.7 pairs/s, 2 minutes left"), "{shown}");
        assert!(progress.state.beside_bar().contains("left"), "{shown}");
    }

    #[test]
    fn unknown_totals_and_no_work_are_fine() {
        let progress = Progress::new("reading", "rows", None);
        assert_eq!(sentence(&progress, 0, false), "reading: 0 rows, – rows/s");
        let complete = Progress::new("reading", "rows", 0);
        assert_eq!(sentence(&complete, 0, true), "reading: 0 of 0 rows");
        complete.finish();
        let resumed = Progress::new("generating", "images", 240);
        resumed.already_done(240);
        assert_eq!(sentence(&resumed, 0, true), "generating: 240 of 240 images, already complete");
    }

    #[test]
    fn parts_of_a_unit_give_a_rate_before_the_first_is_done() {
        let progress = Progress::new("generating", "images", 100);
        progress.add_parts(2 * super::PARTS / 4);
        let shown = sentence(&progress, 10, false);
        assert_eq!(shown, "generating: 0 of 100 images, 0.050 images/s, 33 minutes left");
        progress.add_parts(super::PARTS / 2);
        assert_eq!(progress.done(), 1);
    }

    #[test]
    fn a_slow_rate_is_not_zero() {
        let progress = Progress::new("training", "pairs", 100);
        progress.add(6);
        let sentence = sentence(&progress, 120, false);
        assert!(sentence.contains(" 0.050 pairs/s"), "{sentence}");
    }
}
