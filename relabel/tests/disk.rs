//! A full disk and a limit on file sizes: one clear error that names the file, nothing
//! half-written, and the rerun finishes.
#![expect(clippy::unwrap_used, reason = "a test stops where something is missing")]
#![expect(clippy::print_stdout, reason = "a skipped test says so")]

mod common;

use std::path::Path;
use std::process::Command;

use common::{Fixture, Run, relabel};

/// The same command under `ulimit -f`, in blocks of 512 bytes as POSIX has it.
fn with_file_size_limit(command: &Command, blocks: u32) -> Command {
    let mut limited = relabel([""; 0]);
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(format!("ulimit -f {blocks} && exec \"$0\" \"$@\""));
    shell.arg(limited.get_program()).args(command.get_args());
    for (name, value) in limited.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    limited = shell;
    limited
}

#[test]
fn a_limit_on_file_sizes_is_reported_and_the_rerun_finishes() {
    let fixture = Fixture::with_sample(12);
    let scorers = fixture.two_scorers();
    Run::of(&mut fixture.score(&scorers, "labels.parquet", &[])).expect_code(0);
    let (labels, length) = (fixture.bytes("labels.parquet"), fixture.bytes("labels.parquet").len());
    let largest = u32::try_from(length / 512).unwrap();
    for (blocks, reason) in [
        (0, "File too large"),
        (2, "file-size limit"),
        (largest / 2, "file-size limit"),
        (largest, "file-size limit"),
    ] {
        let command = fixture.score(&scorers, "out/labels.parquet", &[]);
        let run = Run::of(&mut with_file_size_limit(&command, blocks));
        let folder = fixture.path("out").display().to_string();
        run.expect_error(&[reason, &folder]);
        assert!(!fixture.path("out/labels.parquet").exists());
        let leftovers = fixture.names("out");
        assert!(leftovers.is_empty() || leftovers == ["labels.parquet.work"], "{leftovers:?}");
    }
    Run::of(&mut fixture.score(&scorers, "out/labels.parquet", &[])).expect_code(0);
    assert!(fixture.bytes("out/labels.parquet") == labels);
    assert_eq!(fixture.names("out"), ["labels.config.toml", "labels.parquet"]);
}

/// A mounted memory disk, unmounted when the test ends.
struct SmallDisk<'folder>(&'folder Path);

impl<'folder> SmallDisk<'folder> {
    /// `None` where this process may not mount.
    fn mount(folder: &'folder Path, options: &str) -> Option<Self> {
        std::fs::create_dir_all(folder).unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(folder);
        match mount.output() {
            Ok(output) if output.status.success() => Some(Self(folder)),
            refused => {
                println!("skipped: a memory disk cannot be mounted here: {refused:?}");
                None
            }
        }
    }
}

impl Drop for SmallDisk<'_> {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg(self.0).status();
        assert!(unmounted.is_ok_and(|status| status.success()), "{} stays", self.0.display());
    }
}

#[test]
fn a_full_disk_is_reported_and_with_room_the_rerun_finishes() {
    let fixture = Fixture::with_sample(12);
    let scorers = fixture.two_scorers();
    Run::of(&mut fixture.score(&scorers, "labels.parquet", &[])).expect_code(0);
    let labels = fixture.bytes("labels.parquet");
    let folder = fixture.path("disk");
    let Some(_disk) = SmallDisk::mount(&folder, "size=1m") else { return };

    // The disk has 256 pages; all but some are taken by something else.
    for pages_left in [1, 3, 5, 9] {
        fixture.put("disk/ballast", &vec![1; (256 - pages_left) * 4096]);
        let run = Run::of(&mut fixture.score(&scorers, "disk/labels.parquet", &[]));
        run.expect_error(&["o space left", folder.to_str().unwrap()]);
        // What is under its final name is whole: only the settings beside it may have found no
        // room.
        let found = std::fs::read(fixture.path("disk/labels.parquet"));
        assert!(found.is_err() || found.is_ok_and(|found| found == labels), "half a file");
    }
    std::fs::remove_file(fixture.path("disk/ballast")).unwrap();
    Run::of(&mut fixture.score(&scorers, "disk/labels.parquet", &[])).expect_code(0);
    assert!(fixture.bytes("disk/labels.parquet") == labels);
    assert_eq!(fixture.names("disk"), ["labels.config.toml", "labels.parquet"]);
}

#[test]
fn a_vote_that_finds_no_room_leaves_the_old_file_as_it_was() {
    let fixture = Fixture::with_sample(12);
    let scorers = fixture.two_scorers();
    Run::of(&mut fixture.score(&scorers, "labels.parquet", &[])).expect_code(0);
    let vote = |ties: &str| {
        let mut command = relabel(["vote", "--fresh", "--ties", ties, "--labels"]);
        command.arg(fixture.path("labels.parquet")).arg("--out").arg(fixture.path("again.parquet"));
        command
    };
    Run::of(&mut vote("second")).expect_code(0);
    let old = fixture.bytes("again.parquet");
    let run = Run::of(&mut with_file_size_limit(&vote("first"), 2));
    run.expect_error(&["file-size limit", "again.parquet"]);
    assert!(fixture.bytes("again.parquet") == old);
    Run::of(&mut vote("first")).expect_code(0);
    assert!(fixture.bytes("again.parquet") != old);
    assert_eq!(fixture.labels("again.parquet").len(), 12);
}
