//! Several processes with one cache, and processes that are killed.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use hub::{Repository, Settings};

use crate::fixture::{Hub, SHA256_OF_ABC, hub_file, settings};

#[test]
fn one_process_waits_for_another_that_downloads_and_not_for_ever() {
    let hub = Hub::with(&[("model.safetensors", SHA256_OF_ABC, b"abc")]);
    let lock = hub.cache.path().join(format!(".locks/models--owner--name/{SHA256_OF_ABC}.lock"));
    fs::create_dir_all(lock.parent().unwrap()).unwrap();
    let held = fs::File::create(&lock).unwrap();
    held.lock().unwrap();
    // The holder releases it.
    let repository = hub.repository();
    let other = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(300));
        held.unlock().unwrap();
        held
    });
    assert_eq!(fs::read(repository.file("model.safetensors").unwrap()).unwrap(), b"abc");
    // The holder does nothing.
    let held = other.join().unwrap();
    held.lock().unwrap();
    fs::remove_dir_all(hub.folder()).unwrap();
    let start = Instant::now();
    assert_eq!(hub.read("model.safetensors"), b"abc");
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    assert_eq!(hub.blobs(), [SHA256_OF_ABC]);
}

/// Run by `killed_at_any_point_nothing_unchecked_has_a_name` in a process of its own.
#[test]
#[ignore = "a child process of another test"]
fn download_in_a_child() {
    let cache = std::env::var("TEST_CACHE").unwrap();
    let settings = settings(Path::new(&cache), &std::env::var("TEST_ENDPOINT").unwrap());
    let repository = Repository::open_with("hf://owner/name", Path::new("."), settings).unwrap();
    repository.file("model.safetensors").unwrap();
}

#[test]
fn killed_at_any_point_nothing_unchecked_has_a_name() {
    for point in ["download", "received", "rename", "marker"] {
        let asked = AtomicUsize::new(0);
        // The first download is of other bytes than announced.
        let hub = Hub::start(move |request, _| {
            let first = asked.fetch_add(1, Ordering::SeqCst) == 0;
            hub_file(
                request,
                SHA256_OF_ABC,
                if first && point == "download" { b"abd" } else { b"abc" },
            )
        });
        hub.repository();
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["processes::download_in_a_child", "--ignored", "--exact"]);
        child.env("TEST_CACHE", hub.cache.path()).env("TEST_ENDPOINT", hub.server.address());
        // The reference to the commit is there already, so the file's points are the first ones.
        let ended = child.env("RUNKIT_FAULT", format!("{point}:1")).output().unwrap();
        assert!(!ended.status.success(), "{point}: the child was not killed");
        let named = hub.blob(SHA256_OF_ABC);
        if named.exists() {
            assert_eq!(fs::read(&named).unwrap(), b"abc", "{point}");
        }
        let offline = Settings { offline: true, ..hub.settings.clone() };
        let offline = Repository::open_with("hf://owner/name", Path::new("."), offline).unwrap();
        assert_eq!(offline.optional_file("model.safetensors").unwrap(), None, "{point}");
        assert_eq!(hub.read("model.safetensors"), b"abc", "{point}");
        assert_eq!(hub.blobs(), [SHA256_OF_ABC], "{point}");
    }
}
