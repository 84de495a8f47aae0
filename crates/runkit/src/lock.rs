//! One output, one writer: advisory locks that name their holder.
//!
//! The lock is `flock` on a small file that the holder fills with its process number, host, start
//! and command line. The kernel lets go of it when the holder ends, also by `kill -9`, so there is
//! no stale lock to remove; the file itself is never deleted, because someone else may just have
//! opened it. On file systems that grant every `flock` (some network ones), or have none (Lustre
//! without `-o flock`, some FUSE mounts; a warning says so), the lock protects nothing; what is
//! written is still whole, since temporary names are unique ([`crate::files`]).

use std::fmt;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::fault;
use crate::files::error::hint;
use crate::text::escape_for_terminal;

/// Much more than the holders' lines ever need: a foreign file under this name is not read whole.
const MAXIMUM_HOLDER_BYTES: u64 = 1 << 16;
/// A command line is shown and kept up to this many characters.
const MAXIMUM_COMMAND_CHARACTERS: usize = 300;

/// How often, and after how long, a shared lock is asked for again if the lock file names no holder.
const MOMENTS: u32 = 100;
/// The same if the lock file names a holder, and for a lock of one alone.
const MOMENTS_WITH_NAMES: u32 = 3;
const MOMENT: Duration = Duration::from_millis(10);

/// A lock was not obtained.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Someone else holds it.
    #[error(
        "{} is held by {}\nhint: wait for it or stop it, then run the same command again",
        path.display(),
        Holders(holders)
    )]
    Held {
        /// The lock file.
        path: PathBuf,
        /// Who wrote into the lock file and is still alive; empty if nobody did.
        holders: Vec<Holder>,
    },
    /// The lock file cannot be used.
    #[error("cannot lock {}: {cause}{}", path.display(), Hint(cause))]
    Unusable {
        /// The lock file.
        path: PathBuf,
        /// Why not.
        cause: io::Error,
    },
}

/// Who holds a lock, as written into the lock file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Process number on `host`.
    pub process: u32,
    /// Seconds since 1970 at which the lock was taken.
    pub since: u64,
    /// Name of the machine.
    pub host: String,
    /// The command line, shortened.
    pub command: String,
}

/// A held lock; dropping it lets go.
#[derive(Debug)]
pub struct OutputLock {
    path: PathBuf,
    /// The lock belongs to the open file.
    _file: File,
}

impl OutputLock {
    /// Takes the lock for one process alone, without waiting. `path` is the lock file, made if
    /// missing, in a folder that exists.
    ///
    /// # Errors
    /// [`LockError::Held`] naming the holders, or [`LockError::Unusable`].
    pub fn exclusive(path: impl AsRef<Path>) -> Result<Self, LockError> {
        let path = path.as_ref();
        let mut file = open(path)?;
        let mut tried = try_exclusive(&file);
        for _ in 0..MOMENTS_WITH_NAMES {
            if !matches!(tried, Tried::Held) {
                break;
            }
            // A process that was started while the lock was held has it until its program begins.
            std::thread::sleep(MOMENT);
            tried = try_exclusive(&file);
        }
        match tried {
            Tried::Taken => clear(&mut file).map_err(|cause| unusable(path, cause))?,
            Tried::Unsupported(cause) => warn_without_locks(path, &cause),
            Tried::Held => return Err(held(path, &mut file)),
            Tried::Failed(cause) => return Err(unusable(path, cause)),
        }
        add_holder(&mut file).map_err(|cause| unusable(path, cause))?;
        Ok(Self { path: path.to_owned(), _file: file })
    }

    /// Takes the lock together with other shared holders (the shards of one output); an exclusive
    /// holder excludes them, and they exclude an exclusive one.
    ///
    /// # Errors
    /// [`LockError::Held`] naming the exclusive holder, or [`LockError::Unusable`].
    pub fn shared(path: impl AsRef<Path>) -> Result<Self, LockError> {
        let path = path.as_ref();
        let mut file = open(path)?;
        // The first of several shared holders clears the names of earlier runs; for that moment it
        // is alone.
        match try_exclusive(&file) {
            Tried::Taken => clear(&mut file).map_err(|cause| unusable(path, cause))?,
            Tried::Held => {}
            Tried::Unsupported(cause) => {
                warn_without_locks(path, &cause);
                add_holder(&mut file).map_err(|cause| unusable(path, cause))?;
                return Ok(Self { path: path.to_owned(), _file: file });
            }
            Tried::Failed(cause) => return Err(unusable(path, cause)),
        }
        share(path, &mut file)?;
        add_holder(&mut file).map_err(|cause| unusable(path, cause))?;
        Ok(Self { path: path.to_owned(), _file: file })
    }

    /// The lock file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// How an attempt to lock a file ended.
#[derive(Debug)]
pub(crate) enum Tried {
    /// The lock is ours until the file is closed.
    Taken,
    /// Someone else has it.
    Held,
    /// The file system has no locks.
    Unsupported(io::Error),
    /// Something else is wrong.
    Failed(io::Error),
}

/// Takes the lock of an open file for one alone, without waiting.
pub(crate) fn try_exclusive(file: &File) -> Tried {
    tried(fault::error_at("lock").map_err(TryLockError::Error).and_then(|()| file.try_lock()))
}

fn try_shared(file: &File) -> Tried {
    tried(
        fault::error_at("lock").map_err(TryLockError::Error).and_then(|()| file.try_lock_shared()),
    )
}

fn tried(result: Result<(), TryLockError>) -> Tried {
    match result {
        Ok(()) => Tried::Taken,
        Err(TryLockError::WouldBlock) => Tried::Held,
        Err(TryLockError::Error(cause)) if is_unsupported(&cause) => Tried::Unsupported(cause),
        Err(TryLockError::Error(cause)) => Tried::Failed(cause),
    }
}

/// What systems say that cannot lock: Lustre without `-o flock` ENOSYS, FUSE mounts any of the
/// three, NFS without its lock service ENOLCK. (ENOTSUP and EOPNOTSUPP are one number on Linux.)
fn is_unsupported(cause: &io::Error) -> bool {
    [libc::ENOSYS, libc::ENOTSUP, libc::EOPNOTSUPP, libc::ENOLCK]
        .iter()
        .any(|code| cause.raw_os_error() == Some(*code))
}

/// Said once in a process: it concerns the mount, not the file.
fn warn_without_locks(path: &Path, cause: &io::Error) {
    static SAID: Once = Once::new();
    SAID.call_once(|| {
        tracing::warn!(
            "{}: this file system has no locks ({cause}); nothing keeps two runs from this output: \
             make sure that only one writes it",
            path.display()
        );
    });
}

/// Locks `file` together with others. Several that start at once meet in the moment in which the
/// first is alone: so a refusal counts only when it lasts. Names say that it will, unless those who
/// have them shared the lock between the refusal and the reading of the names.
fn share(path: &Path, file: &mut File) -> Result<(), LockError> {
    let mut with_names = 0;
    for _ in 0..MOMENTS {
        match try_shared(file) {
            Tried::Taken | Tried::Unsupported(_) => return Ok(()),
            Tried::Failed(cause) => return Err(unusable(path, cause)),
            Tried::Held => {}
        }
        match held(path, file) {
            LockError::Held { holders, .. } if holders.is_empty() => {}
            LockError::Held { .. } if with_names < MOMENTS_WITH_NAMES => with_names += 1,
            error => return Err(error),
        }
        std::thread::sleep(MOMENT);
    }
    match try_shared(file) {
        Tried::Taken | Tried::Unsupported(_) => Ok(()),
        Tried::Failed(cause) => Err(unusable(path, cause)),
        Tried::Held => Err(held(path, file)),
    }
}

fn open(path: &Path) -> Result<File, LockError> {
    let opened = OpenOptions::new().read(true).append(true).create(true).open(path);
    opened.map_err(|cause| unusable(path, cause))
}

fn unusable(path: &Path, cause: io::Error) -> LockError {
    LockError::Unusable { path: path.to_owned(), cause }
}

fn held(path: &Path, file: &mut File) -> LockError {
    let mut holders = read_holders(file).unwrap_or_default();
    holders.retain(Holder::may_be_alive);
    LockError::Held { path: path.to_owned(), holders }
}

/// Removes the names of earlier holders. What is no list of holders is not ours, and stays.
fn clear(file: &mut File) -> io::Result<()> {
    let is_ours = !read_holders(file)?.is_empty();
    if is_ours { file.set_len(0) } else { Ok(()) }
}

fn add_holder(file: &mut File) -> io::Result<()> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs());
    let words: Vec<String> = std::env::args_os()
        .enumerate()
        .map(|(index, word)| match index {
            0 => Path::new(&word).file_name().unwrap_or(&word).to_string_lossy().into_owned(),
            _ => word.to_string_lossy().into_owned(),
        })
        .collect();
    let command: String =
        escape_for_terminal(&words.join(" ")).chars().take(MAXIMUM_COMMAND_CHARACTERS).collect();
    // One write of one line: appends of several shared holders do not mix.
    let line = format!("{}\t{since}\t{}\t{command}\n", std::process::id(), host_name());
    file.write_all(line.as_bytes())
}

fn read_holders(file: &mut File) -> io::Result<Vec<Holder>> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0))?;
    file.take(MAXIMUM_HOLDER_BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).lines().filter_map(Holder::parse).collect())
}

/// The machine's name; empty if the system does not say.
pub(crate) fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    escape_for_terminal(name.trim()).into_owned()
}

impl Holder {
    fn parse(line: &str) -> Option<Self> {
        let mut fields = line.splitn(4, '\t');
        Some(Self {
            process: fields.next()?.parse().ok()?,
            since: fields.next()?.parse().ok()?,
            host: escape_for_terminal(fields.next()?).into_owned(),
            command: escape_for_terminal(fields.next()?).into_owned(),
        })
    }

    /// False only for a process of this machine that is known to have ended.
    fn may_be_alive(&self) -> bool {
        self.host != host_name() || process_may_be_alive(self.process)
    }
}

/// False only if the process of this number is known to have ended on this machine.
pub(crate) fn process_may_be_alive(process: u32) -> bool {
    if !Path::new("/proc/self").exists() {
        return true;
    }
    match std::fs::read_to_string(format!("/proc/{process}/stat")) {
        // A process that has ended keeps its number, in state Z, until its parent has waited for
        // it.
        Ok(stat) => {
            let state = stat.rsplit(')').next().and_then(|fields| fields.trim().chars().next());
            !matches!(state, Some('Z' | 'X'))
        }
        Err(error) => error.kind() != io::ErrorKind::NotFound,
    }
}

/// What to do about an error of the system, as a line of its own.
struct Hint<'a>(&'a io::Error);

impl fmt::Display for Hint<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match hint(self.0) {
            Some(hint) => write!(formatter, "\nhint: {hint}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "process {} ({})", self.process, self.command)?;
        if self.host != host_name() {
            write!(formatter, " on {}", self.host)?;
        }
        let start = UNIX_EPOCH + Duration::from_secs(self.since);
        match SystemTime::now().duration_since(start) {
            Ok(age) => write!(formatter, ", for {}", indicatif::HumanDuration(age)),
            Err(_) => Ok(()),
        }
    }
}

struct Holders<'a>(&'a [Holder]);

impl fmt::Display for Holders<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((first, others)) = self.0.split_first() else {
            return formatter.write_str("another process");
        };
        write!(formatter, "{first}")?;
        others.iter().try_for_each(|holder| write!(formatter, " and {holder}"))
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "fixtures need not be durable")]
mod tests {
    use super::{Holder, LockError, OutputLock};

    #[test]
    fn a_refusal_names_the_holder() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("labels.lock");
        let first = OutputLock::exclusive(&path).unwrap();
        let refused = OutputLock::exclusive(&path).unwrap_err();
        let message = refused.to_string();
        assert!(message.contains(&format!("process {}", std::process::id())), "{message}");
        assert!(message.contains("labels.lock"), "{message}");
        assert!(matches!(OutputLock::shared(&path), Err(LockError::Held { .. })));
        drop(first);
        OutputLock::exclusive(&path).unwrap();
    }

    #[test]
    fn shared_holders_are_all_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("labels.lock");
        std::fs::write(&path, "999999999\t0\tnowhere\told leftover\n").unwrap();
        let _first = OutputLock::shared(&path).unwrap();
        let _second = OutputLock::shared(&path).unwrap();
        match OutputLock::exclusive(&path) {
            Err(LockError::Held { holders, .. }) => assert_eq!(holders.len(), 2, "{holders:?}"),
            other => panic!("expected a refusal, got {other:?}"),
        }
    }

    #[test]
    fn shared_holders_that_start_at_once_do_not_refuse_each_other() {
        let folder = tempfile::tempdir().unwrap();
        for round in 0..50 {
            let path = folder.path().join(format!("{round}.lock"));
            let all = std::sync::Barrier::new(4);
            std::thread::scope(|scope| {
                for _ in 0..4 {
                    scope.spawn(|| {
                        all.wait();
                        let held = OutputLock::shared(&path);
                        all.wait();
                        held.unwrap();
                    });
                }
            });
        }
    }

    #[test]
    fn foreign_contents_are_harmless() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("labels.lock");
        std::fs::write(&path, b"\xff\xfe garbage\nmore").unwrap();
        let _held = OutputLock::exclusive(&path).unwrap();
        assert_eq!(Holder::parse("1\t2\t\x1b[2J\tx\x07").unwrap().host, "\\u{1b}[2J");
        assert_eq!(Holder::parse("not a line"), None);
    }

    #[test]
    fn a_missing_folder_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let message =
            OutputLock::exclusive(folder.path().join("absent/x.lock")).unwrap_err().to_string();
        assert!(message.contains("absent/x.lock"), "{message}");
    }
}
