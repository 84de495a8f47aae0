//! Kills, full disks, signals and rival processes, with real child processes.
//!
//! The children are this test binary again: [`child`] runs the role named in `RUNKIT_TEST_ROLE`.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(unsafe_code, reason = "signals and limits of child processes")]
#![expect(clippy::disallowed_methods, reason = "fixtures need not be durable")]
#![expect(clippy::print_stdout, reason = "a child talks to its parent through stdout")]

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use runkit::files::{AtomicFile, FileError, remove_stale_temporaries, write_atomic};
use runkit::lock::OutputLock;

const ROLE: &str = "RUNKIT_TEST_ROLE";
const FOLDER: &str = "RUNKIT_TEST_FOLDER";
const OLD: &[u8] = b"the old contents";

/// Four writes of 4 KiB.
fn new_contents() -> Vec<u8> {
    (0..16_384_u32).map(|index| (index % 251) as u8).collect()
}

fn write_new_contents(folder: &Path) -> Result<(), FileError> {
    let path = folder.join("out.bin");
    let mut file = AtomicFile::create(&path)?;
    for chunk in new_contents().chunks(4096) {
        file.write_all(chunk)
            .map_err(|error| FileError::new(&path, runkit::files::Operation::Write, error))?;
    }
    file.commit()
}

/// Not a test of its own: what a child process does.
#[test]
#[ignore = "the other tests start it as their child process"]
#[expect(clippy::exit, reason = "the exit code is what the parent looks at")]
fn child() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let folder = PathBuf::from(std::env::var_os(FOLDER).unwrap());
    match role.as_str() {
        "write" => {
            runkit::signals::install().unwrap();
            if let Err(error) = write_new_contents(&folder) {
                eprintln!("child: {error}");
                std::process::exit(1);
            }
        }
        "hold" => {
            let _lock = OutputLock::exclusive(folder.join("out.lock")).unwrap();
            announce_and_wait();
        }
        "hold-without-locks" => {
            let first = OutputLock::exclusive(folder.join("out.lock")).unwrap();
            let second = OutputLock::exclusive(folder.join("out.lock")).unwrap();
            let _shared = OutputLock::shared(folder.join("out.lock")).unwrap();
            write_new_contents(&folder).unwrap();
            // The process whose number the leftover bears has ended, that of the other has not.
            let removed = remove_stale_temporaries(&folder).unwrap();
            println!("{} removed", removed.len());
            drop((first, second));
        }
        "long-batch" => {
            runkit::logging::init(0, runkit::logging::LogFormat::Json).unwrap();
            let progress = runkit::progress::Progress::new("generating", "images", 64);
            std::thread::sleep(Duration::from_secs(6));
            progress.add(64);
            progress.finish();
        }
        "hash" => {
            let stop = runkit::signals::install().unwrap();
            println!("ready");
            let error = runkit::files::blake3_of(folder.join("large.bin"), &stop).unwrap_err();
            assert_eq!(error.stopped().unwrap().0, runkit::signals::Signal::Terminate);
            println!("stopped");
        }
        "write-slowly" => {
            let mut file = AtomicFile::create(folder.join("out.bin")).unwrap();
            file.write_all(b"half").unwrap();
            announce_and_wait();
        }
        "stop-politely" | "ignore-stop" => {
            let stop = runkit::signals::install().unwrap();
            println!("ready");
            loop {
                std::thread::sleep(Duration::from_millis(5));
                if let Some(signal) = stop.requested() {
                    println!("asked");
                    if role == "stop-politely" {
                        let status = runkit::exit::ExitStatus::from(signal);
                        std::process::exit(i32::from(status.code()));
                    }
                }
            }
        }
        "print" => {
            runkit::signals::quiet_broken_pipe().unwrap();
            println!("ready");
            loop {
                println!("{}", "x".repeat(4096));
            }
        }
        other => panic!("unknown role {other}"),
    }
    std::process::exit(0);
}

fn announce_and_wait() {
    println!("ready");
    loop {
        std::thread::sleep(Duration::from_secs(1));
    }
}

fn command(role: &str, folder: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "child", "--ignored", "--nocapture"]);
    command.env(ROLE, role).env(FOLDER, folder).env_remove("RUNKIT_FAULT");
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).stdin(Stdio::null());
    command
}

/// A started child whose stdout was read up to the line "ready"; killed when dropped.
struct Running {
    child: Child,
    stdout: BufReader<std::process::ChildStdout>,
}

impl Running {
    fn start(role: &str, folder: &Path) -> Self {
        let mut child = command(role, folder).spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let mut running = Self { child, stdout };
        running.wait_for("ready");
        running
    }

    fn wait_for(&mut self, word: &str) {
        let mut line = String::new();
        while !line.ends_with(&format!("{word}\n")) {
            line.clear();
            assert!(self.stdout.read_line(&mut line).unwrap() > 0, "the child ended too early");
        }
    }

    fn signal(&self, signal: i32) {
        let process = i32::try_from(self.child.id()).unwrap();
        // SAFETY: plain numbers; the process is our own child, not yet waited for.
        assert_eq!(unsafe { libc::kill(process, signal) }, 0);
    }

    fn wait(&mut self) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(start.elapsed() < Duration::from_secs(30), "the child does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn folder_with_old_contents() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("out.bin"), OLD).unwrap();
    folder
}

fn contents(folder: &tempfile::TempDir) -> Vec<u8> {
    std::fs::read(folder.path().join("out.bin")).unwrap()
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn run_with_fault(folder: &Path, fault: &str) -> Output {
    command("write", folder).env("RUNKIT_FAULT", fault).output().unwrap()
}

#[test]
fn killed_at_any_point_the_final_name_holds_the_old_or_the_new_file() {
    let before_rename = ["open:1", "write:1", "write:2", "write:3", "write:4", "sync:1"];
    let after_rename = ["rename:1", "marker:1"];
    for (fault, is_new) in before_rename
        .iter()
        .map(|fault| (*fault, false))
        .chain(after_rename.iter().map(|fault| (*fault, true)))
    {
        let folder = folder_with_old_contents();
        let output = run_with_fault(folder.path(), fault);
        assert_eq!(output.status.signal(), Some(libc::SIGKILL), "{fault}: {output:?}");
        let expected = if is_new { new_contents() } else { OLD.to_vec() };
        assert_eq!(contents(&folder), expected, "{fault}");
        assert_eq!(names(folder.path()).len(), if is_new { 1 } else { 2 }, "{fault}");

        let removed = remove_stale_temporaries(folder.path()).unwrap();
        assert_eq!(removed.len(), usize::from(!is_new), "{fault}");
        write_new_contents(folder.path()).unwrap();
        assert_eq!(contents(&folder), new_contents(), "{fault}");
        assert_eq!(names(folder.path()), ["out.bin"], "{fault}");
    }
}

#[test]
fn a_fault_beyond_the_last_passage_does_nothing() {
    let folder = folder_with_old_contents();
    assert!(run_with_fault(folder.path(), "write:5").status.success());
    assert_eq!(contents(&folder), new_contents());
}

#[test]
fn an_io_error_at_any_call_is_reported_and_leaves_the_old_file_alone() {
    for fault in ["open:1", "write:1", "write:2", "write:4", "sync:1", "rename:1"] {
        for (code, reason) in
            [("EIO", "os error 5"), ("ENOSPC", "no space left"), ("EDQUOT", "quota")]
        {
            let folder = folder_with_old_contents();
            let output = run_with_fault(folder.path(), &format!("{fault}:{code}"));
            let message = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(1), "{fault}: {message}");
            assert!(message.contains("out.bin") && message.contains(reason), "{fault}: {message}");
            assert_eq!(contents(&folder), OLD, "{fault}");
            assert_eq!(names(folder.path()), ["out.bin"], "{fault}");
        }
    }
}

#[test]
fn a_failed_folder_sync_is_an_error_although_the_new_file_stands() {
    let folder = folder_with_old_contents();
    let output = run_with_fault(folder.path(), "marker:1:EIO");
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(contents(&folder), new_contents());
}

#[test]
fn the_file_size_limit_is_a_clear_error_and_the_rerun_finishes() {
    let folder = folder_with_old_contents();
    let mut limited = command("write", folder.path());
    let limit = libc::rlimit { rlim_cur: 10_000, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: setrlimit is async-signal-safe and gets a valid pointer to a copied struct.
    unsafe {
        limited.pre_exec(move || match libc::setrlimit(libc::RLIMIT_FSIZE, &raw const limit) {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        });
    }
    let output = limited.output().unwrap();
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{message} {:?}", output.status);
    assert!(message.contains("out.bin"), "{message}");
    assert!(message.contains("after 10000 bytes"), "{message}");
    assert!(message.contains("hint: raise the limit and run the same command again"), "{message}");
    assert_eq!(contents(&folder), OLD);
    assert_eq!(names(folder.path()), ["out.bin"]);

    assert!(command("write", folder.path()).output().unwrap().status.success());
    assert_eq!(contents(&folder), new_contents());
}

#[test]
fn a_full_device_is_a_clear_error() {
    // A device is refused before anything is written, and survives.
    let error = AtomicFile::create("/dev/full").unwrap_err().to_string();
    assert!(error.contains("/dev/full") && error.contains("regular file"), "{error}");
    assert!(Path::new("/dev/full").exists());
}

#[test]
fn folders_missing_or_read_only_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let missing = AtomicFile::create(folder.path().join("absent/out.bin")).unwrap_err();
    assert!(missing.to_string().contains("absent/out.bin"), "{missing}");
    let error = AtomicFile::create(folder.path()).unwrap_err().to_string();
    assert!(error.contains("found a folder"), "{error}");

    // Root writes into folders without write permission; /proc refuses root too.
    let refused = AtomicFile::create("/proc/out.bin").unwrap_err();
    assert!(refused.to_string().contains("/proc/out.bin"), "{refused}");
    std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o555))
        .unwrap();
    if let Err(error) = AtomicFile::create(folder.path().join("out.bin")) {
        assert!(error.to_string().contains("hint: check the permissions"), "{error}");
    }
}

#[test]
fn leftovers_of_living_processes_and_foreign_files_stay() {
    let folder = tempfile::tempdir().unwrap();
    let writer = Running::start("write-slowly", folder.path());
    for foreign in ["notes.runkit-tmp", ".hidden", ".x.runkit-tmp.txt"] {
        std::fs::write(folder.path().join(foreign), b"mine").unwrap();
    }
    std::fs::create_dir(folder.path().join(".folder.runkit-tmp")).unwrap();
    assert_eq!(remove_stale_temporaries(folder.path()).unwrap(), Vec::<PathBuf>::new());
    assert_eq!(names(folder.path()).len(), 5);
    drop(writer);
    assert_eq!(remove_stale_temporaries(folder.path()).unwrap().len(), 1);
    assert_eq!(names(folder.path()).len(), 4);
}

/// The name of a temporary file that `write-slowly` leaves when it is killed.
fn leftover(folder: &Path) -> PathBuf {
    drop(Running::start("write-slowly", folder));
    let mut left = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    left.find(|path| runkit::files::is_temporary_name(path)).unwrap()
}

#[test]
fn the_leftovers_of_another_machine_stay() {
    let folder = tempfile::tempdir().unwrap();
    let left = leftover(folder.path());
    let name = left.file_name().unwrap().to_str().unwrap();
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    let host: String = host
        .trim()
        .chars()
        .map(|one| if one.is_ascii_alphanumeric() { one } else { '-' })
        .take(24)
        .collect();
    assert!(name.contains(&format!(".{host}.")), "{name} does not name {host}");
    // Nobody here has it open, as nobody here can tell for a file of another machine.
    let other = name.replace(&format!(".{host}."), ".another-node.");
    std::fs::rename(&left, folder.path().join(&other)).unwrap();
    assert_eq!(remove_stale_temporaries(folder.path()).unwrap(), Vec::<PathBuf>::new());
    assert_eq!(names(folder.path()), [other]);
}

#[test]
fn a_file_of_a_living_process_stays_even_if_its_lock_is_granted() {
    let folder = tempfile::tempdir().unwrap();
    let left = leftover(folder.path());
    // As on a file system that grants every lock.
    let mut living = Command::new("sleep").arg("60").spawn().unwrap();
    let name = left.file_name().unwrap().to_str().unwrap();
    let (start, end) = name.rsplit_once(".runkit-tmp").unwrap().0.rsplit_once('.').unwrap();
    let (_, end) = end.split_once('-').unwrap();
    let name = format!("{start}.{}-{end}.runkit-tmp", living.id());
    std::fs::rename(&left, folder.path().join(&name)).unwrap();
    assert_eq!(remove_stale_temporaries(folder.path()).unwrap(), Vec::<PathBuf>::new());
    living.kill().unwrap();
    // Nobody has waited for it: its number is still there.
    let deadline = Instant::now() + Duration::from_secs(10);
    while remove_stale_temporaries(folder.path()).unwrap().is_empty() {
        assert!(Instant::now() < deadline, "a dead process counts as living");
        std::thread::sleep(Duration::from_millis(5));
    }
    living.wait().unwrap();
}

#[test]
fn a_file_system_without_locks_is_warned_of_and_used() {
    for error in ["ENOSYS", "ENOTSUP"] {
        let folder = folder_with_old_contents();
        leftover(folder.path());
        let living = Running::start("write-slowly", folder.path());
        let mut command = command("hold-without-locks", folder.path());
        let output = command.env("RUNKIT_FAULT", format!("lock:*:{error}")).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(stdout.contains("1 removed"), "{stdout}");
        assert_eq!(contents(&folder), new_contents());
        drop(living);
    }
}

#[test]
fn any_other_error_of_a_lock_is_an_error_with_a_hint() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = command("hold", folder.path());
    let output = command.env("RUNKIT_FAULT", "lock:1:EROFS").output().unwrap();
    assert!(!output.status.success());
    // The child unwraps the error; its message is what `Debug` shows of it.
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(stderr.contains("Unusable") && stderr.contains("out.lock"), "{stderr}");
}

#[test]
fn a_long_batch_is_heard_of_before_it_ends() {
    let folder = tempfile::tempdir().unwrap();
    let output = command("long-batch", folder.path()).output().unwrap();
    let lines: Vec<serde_json::Value> = String::from_utf8_lossy(&output.stderr)
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect();
    let fields: Vec<&serde_json::Value> = lines.iter().map(|line| &line["fields"]).collect();
    let [first, last] = fields[..] else { panic!("expected two lines, found {lines:?}") };
    assert_eq!((&first["done"], &first["total"]), (&0.into(), &64.into()), "{first}");
    assert!(first["rate"].is_null() && first["seconds_left"].is_null(), "{first}");
    assert_eq!(first["message"], "generating: 0 of 64 images, – images/s, – left");
    assert!(last["rate"].is_f64() && last["finished"] == true, "{last}");
}

#[test]
fn a_large_file_is_left_within_a_moment_of_a_signal() {
    let folder = tempfile::tempdir().unwrap();
    // Terabytes of a sparse file: hashing it takes minutes, whatever the machine.
    let large = std::fs::File::create(folder.path().join("large.bin")).unwrap();
    large.set_len(1 << 42).unwrap();
    let mut running = Running::start("hash", folder.path());
    std::thread::sleep(Duration::from_millis(200));
    let asked = Instant::now();
    running.signal(libc::SIGTERM);
    running.wait_for("stopped");
    assert!(asked.elapsed() < Duration::from_secs(2), "{:?}", asked.elapsed());
    assert!(running.wait().success());
}

#[test]
fn a_second_process_learns_who_holds_the_lock_and_takes_over_after_a_kill() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out.lock");
    let mut holder = Running::start("hold", folder.path());
    let message = OutputLock::exclusive(&path).unwrap_err().to_string();
    assert!(message.contains(&format!("held by process {}", holder.child.id())), "{message}");
    assert!(message.contains("--exact child"), "the command line is missing: {message}");
    holder.signal(libc::SIGKILL);
    holder.wait();
    let _taken_over = OutputLock::exclusive(&path).unwrap();
    let written = std::fs::read_to_string(&path).unwrap();
    assert_eq!(written.lines().count(), 1, "{written}");
    assert!(written.starts_with(&format!("{}\t", std::process::id())), "{written}");
}

#[test]
fn the_first_signal_asks_and_its_number_decides_the_exit_code() {
    let folder = tempfile::tempdir().unwrap();
    for (signal, code) in [(libc::SIGTERM, 143), (libc::SIGINT, 130)] {
        let mut running = Running::start("stop-politely", folder.path());
        running.signal(signal);
        running.wait_for("asked");
        assert_eq!(running.wait().code(), Some(code));
    }
}

#[test]
fn the_second_signal_ends_the_process_at_once() {
    let folder = tempfile::tempdir().unwrap();
    for (first, second, code) in [
        (libc::SIGTERM, libc::SIGTERM, 143),
        (libc::SIGINT, libc::SIGINT, 130),
        (libc::SIGINT, libc::SIGTERM, 143),
    ] {
        let mut running = Running::start("ignore-stop", folder.path());
        running.signal(first);
        running.wait_for("asked");
        running.signal(second);
        let start = Instant::now();
        assert_eq!(running.wait().code(), Some(code));
        assert!(start.elapsed() < Duration::from_secs(5));
    }
}

#[test]
fn a_closed_stdout_ends_the_printing_process_silently() {
    let folder = tempfile::tempdir().unwrap();
    let mut running = Running::start("print", folder.path());
    let mut stderr = running.child.stderr.take().unwrap();
    // Closing our end is what `head` does.
    let mut replacement = Command::new("true").stdout(Stdio::piped()).spawn().unwrap();
    running.stdout = BufReader::new(replacement.stdout.take().unwrap());
    replacement.wait().unwrap();
    assert_eq!(running.wait().signal(), Some(libc::SIGPIPE));
    let mut said = String::new();
    stderr.read_to_string(&mut said).unwrap();
    assert_eq!(said, "");
}

#[test]
fn what_the_writer_closure_reports_is_kept() {
    let folder = folder_with_old_contents();
    let path = folder.path().join("out.bin");
    let error = write_atomic(&path, |writer| {
        writer.write_all(b"half")?;
        Err(std::io::Error::other("the rows ran out"))
    })
    .unwrap_err();
    assert!(error.to_string().contains("the rows ran out"), "{error}");
    assert_eq!(contents(&folder), OLD);
    assert_eq!(names(folder.path()), ["out.bin"]);
}

#[test]
fn a_link_is_followed_and_a_long_name_fits() {
    let folder = folder_with_old_contents();
    let link = folder.path().join("link");
    std::os::unix::fs::symlink("out.bin", &link).unwrap();
    write_atomic(&link, |writer| writer.write_all(b"through the link")).unwrap();
    assert!(link.is_symlink());
    assert_eq!(contents(&folder), b"through the link");
    let long = folder.path().join("é".repeat(127));
    write_atomic(&long, |writer| writer.write_all(b"x")).unwrap();
    assert_eq!(std::fs::read(&long).unwrap(), b"x");
}

#[test]
fn folders_are_made_and_space_is_known_for_paths_to_come() {
    let folder = tempfile::tempdir().unwrap();
    let deep = folder.path().join("a/b/c");
    assert!(runkit::files::free_space(deep.join("out.bin")).unwrap() > 0);
    runkit::files::create_folder(&deep).unwrap();
    runkit::files::create_folder(&deep).unwrap();
    assert!(deep.is_dir());
    std::fs::write(deep.join("file"), b"").unwrap();
    let error = runkit::files::create_folder(deep.join("file/below")).unwrap_err().to_string();
    assert!(error.contains("file/below"), "{error}");
    runkit::files::write_json_atomic(deep.join("x.json"), &[1, 2]).unwrap();
    assert_eq!(std::fs::read_to_string(deep.join("x.json")).unwrap(), "[\n  1,\n  2\n]\n");
}
