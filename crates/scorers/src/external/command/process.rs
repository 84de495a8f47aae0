//! The program: started once, fed by a thread that also ends it, read by two.

use std::io::{BufRead, BufReader, Read, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use runkit::text::excerpt;

use super::config::CommandConfig;
use super::lines::{Said, parse};

/// The longest line of a program. A longer one is no score.
const LONGEST_LINE: u64 = 1 << 20;
/// How long a program may take to end once there are no more questions.
const ENDING: Duration = Duration::from_secs(5);
/// How long the last lines of a program that has ended are waited for.
const READING: Duration = Duration::from_millis(500);
const POLL: Duration = Duration::from_millis(20);

/// What comes from the program.
#[derive(Debug)]
pub(super) enum Event {
    Said(Said),
    /// It has ended or closed its output.
    End,
}

/// A running program. Dropping it closes its input and waits for its end.
#[derive(Debug)]
pub(super) struct Process {
    questions: Option<Sender<Vec<u8>>>,
    events: Receiver<Event>,
    keeper: Option<JoinHandle<Option<ExitStatus>>>,
    /// The id of the process; 0 once it has ended.
    id: Arc<AtomicI32>,
    last_words: Arc<Mutex<String>>,
}

impl Process {
    /// Starts the program in `folder`.
    pub(super) fn start(name: &str, config: &CommandConfig, folder: &Path) -> Result<Self, String> {
        let path = config.program(folder)?;
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        let mut command = Command::new(&path);
        command
            .args(config.command.iter().skip(1))
            .current_dir(folder)
            // A line must come when it is printed, and not when 8 KiB of them are full.
            .env("PYTHONUNBUFFERED", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // Ctrl-C is for us: the open questions are finished first.
            .process_group(0);
        die_with_parent(&mut command);
        let (questions, feed) = channel::<Vec<u8>>();
        let (events, received) = channel();
        let (started, start) = channel();
        let id = Arc::new(AtomicI32::new(0));
        let last_words = Arc::<Mutex<String>>::default();
        let (id_of_keeper, words, name) =
            (Arc::clone(&id), Arc::clone(&last_words), name.to_owned());
        // The thread that starts it stays as long as the program: the system ends the program with
        // the thread.
        let keep = move || {
            let mut child = match command.spawn() {
                Ok(child) => child,
                Err(error) => {
                    let _ = started.send(Err(error));
                    return None;
                }
            };
            id_of_keeper.store(i32::try_from(child.id()).unwrap_or(0), Ordering::SeqCst);
            let _ = started.send(Ok(()));
            let readers = read(&mut child, &name, events, words);
            feed_and_close(&mut child, &feed);
            let status = wait(&mut child, ENDING);
            if status.is_none() {
                end_group(id_of_keeper.load(Ordering::SeqCst));
            }
            let status = status.or_else(|| child.wait().ok());
            id_of_keeper.store(0, Ordering::SeqCst);
            // What it wrote last is read within a moment, unless something else holds its pipes.
            let ended = Instant::now();
            while !readers.iter().all(JoinHandle::is_finished) && ended.elapsed() < READING {
                std::thread::sleep(POLL);
            }
            status
        };
        let keeper = std::thread::Builder::new().name("command".to_owned()).spawn(keep);
        let keeper = keeper.map_err(|error| format!("cannot start a thread: {error}"))?;
        match start.recv() {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(format!("{} does not start: {error}", path.display())),
            Err(_) => return Err(format!("{} does not start", path.display())),
        }
        let (questions, keeper) = (Some(questions), Some(keeper));
        Ok(Self { questions, events: received, keeper, id, last_words })
    }

    /// Sends lines. One that has ended takes them and answers none.
    pub(super) fn send(&self, lines: Vec<u8>) {
        if let Some(questions) = &self.questions {
            let _ = questions.send(lines);
        }
    }

    /// What comes next, waited for so long.
    pub(super) fn next(&self, wait: Duration) -> Option<Event> {
        match self.events.recv_timeout(wait) {
            Ok(event) => Some(event),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => Some(Event::End),
        }
    }

    /// Kills the program with what it started.
    pub(super) fn kill(&self) {
        end_group(self.id.load(Ordering::SeqCst));
    }

    /// How it ended: waits for its end, which [`Event::End`] announces.
    pub(super) fn ending(&mut self) -> String {
        let mut text = match self.finish() {
            Some(status) => format!("the program ended early ({status})"),
            None => "the program ended early".to_owned(),
        };
        let words = self.last_words.lock().unwrap_or_else(PoisonError::into_inner);
        if !words.is_empty() {
            text += &format!("; its last words: {words}");
        }
        text
    }

    /// Closes its input and waits for its end; a program that does not end is killed.
    fn finish(&mut self) -> Option<ExitStatus> {
        self.questions = None;
        let keeper = self.keeper.take()?;
        let started = Instant::now();
        // The thread may be writing to a program that reads nothing.
        while !keeper.is_finished() && started.elapsed() < ENDING + READING + POLL {
            std::thread::sleep(POLL);
        }
        if !keeper.is_finished() {
            self.kill();
        }
        keeper.join().ok().flatten()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.finish();
    }
}

/// Threads that read what the program writes.
fn read(
    child: &mut Child,
    name: &str,
    events: Sender<Event>,
    words: Arc<Mutex<String>>,
) -> Vec<JoinHandle<()>> {
    let name = name.to_owned();
    let output = child.stdout.take().map(|output| {
        std::thread::spawn(move || {
            each_line(output, |line| {
                let said = match line {
                    Some(line) => parse(line),
                    None => Said::Junk(format!("a line of more than {LONGEST_LINE} bytes")),
                };
                events.send(Event::Said(said)).is_ok()
            });
            let _ = events.send(Event::End);
        })
    });
    let errors = child.stderr.take().map(|errors| {
        std::thread::spawn(move || {
            each_line(errors, |line| {
                let line = line.map(String::from_utf8_lossy).unwrap_or_default();
                let line = excerpt(line.trim());
                if !line.is_empty() {
                    tracing::debug!("{name}: {line}");
                    *words.lock().unwrap_or_else(PoisonError::into_inner) = line;
                }
                true
            });
        })
    });
    output.into_iter().chain(errors).collect()
}

/// Calls `each` with every line, `None` for one that is too long, until it returns false.
fn each_line(stream: impl Read, mut each: impl FnMut(Option<&[u8]>) -> bool) {
    let mut reader = BufReader::new(stream);
    let mut line = Vec::new();
    loop {
        line.clear();
        let found = reader.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut line);
        if !matches!(found, Ok(1..)) {
            return;
        }
        let is_cut = line.last() != Some(&b'\n') && line.len() as u64 == LONGEST_LINE;
        if is_cut && !skip_line(&mut reader) {
            return;
        }
        if !each((!is_cut).then_some(&line[..])) {
            return;
        }
    }
}

/// Reads on to the end of the line; false at the end of the stream.
fn skip_line(reader: &mut impl BufRead) -> bool {
    loop {
        let (length, is_end) = match reader.fill_buf() {
            Ok([]) | Err(_) => return false,
            Ok(bytes) => match bytes.iter().position(|&byte| byte == b'\n') {
                Some(end) => (end + 1, true),
                None => (bytes.len(), false),
            },
        };
        reader.consume(length);
        if is_end {
            return true;
        }
    }
}

/// Writes what is sent to the program's input until there is no more, then closes it.
fn feed_and_close(child: &mut Child, feed: &Receiver<Vec<u8>>) {
    let Some(mut input) = child.stdin.take() else { return };
    while let Ok(lines) = feed.recv() {
        // Whoever has ended reads nothing; the end of its output says so.
        if input.write_all(&lines).and_then(|()| input.flush()).is_err() {
            break;
        }
    }
}

fn wait(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    let started = Instant::now();
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status),
            Ok(None) if started.elapsed() < limit => std::thread::sleep(POLL),
            Ok(None) | Err(_) => return None,
        }
    }
}

/// The program dies if we are killed, also where it does not read its input.
#[cfg(target_os = "linux")]
#[allow(unsafe_code)]
fn die_with_parent(command: &mut Command) {
    let ask = || {
        // SAFETY: prctl with these plain numbers is a system call that touches no memory of ours,
        // as is required between fork and exec.
        match unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    };
    // SAFETY: the closure makes one system call and allocates nothing.
    unsafe {
        command.pre_exec(ask);
    }
}

#[cfg(not(target_os = "linux"))]
fn die_with_parent(_: &mut Command) {}

/// Kills a process group, if it has not ended.
#[allow(unsafe_code)]
fn end_group(id: i32) {
    if id > 0 {
        // SAFETY: the call takes plain numbers; the group is one that we made.
        unsafe {
            libc::kill(-id, libc::SIGKILL);
        }
    }
}
