//! Folders and the cache of the Python libraries, without any network.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::disallowed_methods, reason = "fixtures need not be durable")]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use hub::{HubError, Repository, Settings};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

fn offline(cache: &Path) -> Settings {
    Settings {
        cache: cache.to_owned(),
        endpoint: "http://127.0.0.1:9".to_owned(),
        token: None,
        offline: true,
        network: hub::Network::default(),
    }
}

/// A cache as huggingface_hub leaves it: relative links from the snapshot into the blobs.
fn python_cache() -> tempfile::TempDir {
    let cache = tempfile::tempdir().unwrap();
    let repository = cache.path().join("models--owner--name");
    let snapshot = repository.join("snapshots").join(COMMIT);
    for folder in ["refs/refs/pr", "blobs"] {
        fs::create_dir_all(repository.join(folder)).unwrap();
    }
    fs::create_dir_all(snapshot.join("unet")).unwrap();
    fs::create_dir_all(repository.join(".no_exist").join(COMMIT)).unwrap();
    fs::write(repository.join(".no_exist").join(COMMIT).join("absent.json"), "").unwrap();
    fs::write(repository.join("refs/main"), COMMIT).unwrap();
    fs::write(repository.join("refs/refs/pr/1"), format!("{COMMIT}\n")).unwrap();
    fs::write(repository.join("refs/broken"), "../../../etc").unwrap();
    fs::write(repository.join("blobs/aaaa"), "{}").unwrap();
    fs::write(repository.join("blobs/bbbb"), "weights").unwrap();
    symlink("../../blobs/aaaa", snapshot.join("config.json")).unwrap();
    symlink("../../../blobs/bbbb", snapshot.join("unet/model.safetensors")).unwrap();
    cache
}

fn open(cache: &Path, name: &str) -> Result<Repository, HubError> {
    Repository::open_with(name, Path::new("/nowhere"), offline(cache))
}

#[test]
fn a_python_cache_is_read_without_network() {
    let cache = python_cache();
    for name in
        ["hf://owner/name", "hf://owner/name@refs/pr/1", &format!("hf://owner/name@{COMMIT}")]
    {
        let repository = open(cache.path(), name).unwrap();
        assert_eq!(repository.revision(), Some(COMMIT));
        let config = repository.file("config.json").unwrap();
        assert_eq!(config.file_name().unwrap(), "config.json");
        assert_eq!(fs::read(config).unwrap(), b"{}");
        assert_eq!(
            fs::read(repository.file("unet/model.safetensors").unwrap()).unwrap(),
            b"weights"
        );
        assert_eq!(repository.list_files().unwrap(), ["config.json", "unet/model.safetensors"]);
        assert!(repository.folder().unwrap().ends_with(format!("snapshots/{COMMIT}")));
    }
}

#[test]
fn a_cache_whose_repository_lies_on_another_disk_is_read() {
    let cache = python_cache();
    let elsewhere = tempfile::tempdir().unwrap();
    symlink(cache.path().join("models--owner--name"), elsewhere.path().join("models--owner--name"))
        .unwrap();
    open(elsewhere.path(), "hf://owner/name").unwrap().file("config.json").unwrap();
}

#[test]
fn offline_errors_say_what_is_missing_and_where_it_was_looked_for() {
    let cache = python_cache();
    let repository = open(cache.path(), "hf://owner/name").unwrap();
    let message = repository.file("model.safetensors").unwrap_err().to_string();
    for part in ["model.safetensors", "hf://owner/name@main", "HF_HUB_OFFLINE", "snapshots"] {
        assert!(message.contains(part), "{part} is missing: {message}");
    }
    assert_eq!(repository.optional_file("model.safetensors").unwrap(), None);
    for name in ["hf://owner/other", "hf://owner/name@v2", "hf://owner/name@broken"] {
        let error = open(cache.path(), name).unwrap_err();
        assert!(matches!(error, HubError::Offline { .. }), "{error}");
        assert!(error.to_string().contains("refs"), "{error}");
    }
}

#[test]
fn what_a_commit_is_known_not_to_have_is_not_asked_for() {
    let cache = python_cache();
    // Online, but the address leads nowhere: an attempt to ask would be an error.
    let online = Settings { offline: false, ..offline(cache.path()) };
    let repository = Repository::open_with("hf://owner/name", Path::new("."), online).unwrap();
    assert_eq!(repository.optional_file("absent.json").unwrap(), None);
    assert!(matches!(repository.file("absent.json"), Err(HubError::NotOnHub { .. })));
}

#[test]
fn links_out_of_the_cache_are_refused() {
    let cache = python_cache();
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), "secret").unwrap();
    let snapshot = cache.path().join("models--owner--name/snapshots").join(COMMIT);
    symlink(outside.path().join("secret"), snapshot.join("direct")).unwrap();
    symlink(outside.path(), snapshot.join("folder")).unwrap();
    let repository = open(cache.path(), "hf://owner/name").unwrap();
    for file in ["direct", "folder/secret"] {
        let error = repository.file(file).unwrap_err();
        assert!(matches!(error, HubError::Outside { .. }), "{error}");
        assert!(repository.optional_file(file).is_err());
    }
}

#[test]
fn no_file_name_leads_out_of_a_repository() {
    let cache = python_cache();
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("x"), "").unwrap();
    fs::create_dir(folder.path().join("inner")).unwrap();
    let local = Repository::open("inner", folder.path()).unwrap();
    let cached = open(cache.path(), "hf://owner/name").unwrap();
    for repository in [local, cached] {
        for file in ["../x", "/etc/passwd", "a/../../x", "..\\x", "C:\\x", "x\0", "", "a//b"] {
            assert!(matches!(repository.file(file), Err(HubError::FileName { .. })), "{file:?}");
            assert!(matches!(repository.optional_file(file), Err(HubError::FileName { .. })));
        }
    }
}

#[test]
fn a_folder_is_relative_to_the_file_that_names_it() {
    let base = tempfile::tempdir().unwrap();
    let model = base.path().join("my model");
    fs::create_dir_all(model.join("unet")).unwrap();
    fs::write(model.join("config.json"), "{}").unwrap();
    fs::write(model.join("unet/config.json"), "{}").unwrap();
    let absolute = model.to_str().unwrap();
    for name in ["my model", "./my model/", "unused/../my model", absolute] {
        if name.starts_with("unused") {
            fs::create_dir(base.path().join("unused")).unwrap();
        }
        let repository = Repository::open(name, base.path()).unwrap();
        assert!(repository.file("config.json").unwrap().is_file());
        assert_eq!(repository.optional_file("absent").unwrap(), None);
        assert_eq!(repository.revision(), None);
        assert_eq!(repository.list_files().unwrap(), ["config.json", "unet/config.json"]);
        assert!(repository.folder().unwrap().is_dir());
    }
}

#[test]
fn a_missing_file_names_the_folder_and_what_it_holds() {
    let base = tempfile::tempdir().unwrap();
    for index in 0..25 {
        fs::write(base.path().join(format!("file-{index:02}\u{1b}")), "").unwrap();
    }
    let repository = Repository::open(".", base.path()).unwrap();
    let message = repository.file("config.json").unwrap_err().to_string();
    assert!(message.contains("config.json") && message.contains("file-00\\u{1b}"), "{message}");
    assert!(message.ends_with("and 5 more"), "{message}");
    // A folder is not a file.
    fs::create_dir(base.path().join("folder")).unwrap();
    assert!(matches!(repository.file("folder"), Err(HubError::Missing { .. })));
}

#[test]
fn names_that_are_no_folder_are_explained() {
    let base = tempfile::tempdir().unwrap();
    fs::write(base.path().join("model.pt"), "").unwrap();
    for (name, expected) in [
        ("absent", "paths are relative to the file that names them"),
        ("model.pt", "holds the weights of one network, without its config.json"),
        ("", "it is empty"),
        ("a\0b", "NUL"),
        ("https://example.org/model", "only hf:// addresses are known"),
        ("https://huggingface.co/owner/name/tree/v1", "hint: write hf://owner/name@v1"),
        ("owner/name", "write hf://owner/name, which downloads it"),
        ("hf://name", "the owner is missing"),
    ] {
        let message = Repository::open(name, base.path()).unwrap_err().to_string();
        assert!(message.contains(expected), "{name:?}: {message}");
    }
}

#[test]
fn loops_of_links_end() {
    let base = tempfile::tempdir().unwrap();
    symlink(base.path(), base.path().join("loop")).unwrap();
    symlink("self", base.path().join("self")).unwrap();
    let repository = Repository::open(".", base.path()).unwrap();
    assert_eq!(repository.list_files().unwrap(), Vec::<String>::new());
    assert_eq!(repository.optional_file("self").unwrap(), None);
}
