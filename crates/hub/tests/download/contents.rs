//! What arrives: checked, cached, linked, or rejected.

use std::fs;
use std::path::Path;

use hub::{HubError, Repository, Settings};
use testkit::server::{Reply, Sending, Server};

use crate::fixture::{COMMIT, GIT_SHA1_OF_ABC, Hub, SHA256_OF_ABC, hub_file, settings};

#[test]
fn files_arrive_once_and_are_then_cached() {
    let hub = Hub::with(&[
        ("config.json", "9e26dfeeb6e641a33dae4961196235bdb965b21b", b"{}"),
        ("unet/model.safetensors", SHA256_OF_ABC, b"abc"),
    ]);
    let repository = hub.repository();
    assert_eq!(repository.revision(), Some(COMMIT));
    assert_eq!(fs::read(repository.file("config.json").unwrap()).unwrap(), b"{}");
    let weights = repository.file("unet/model.safetensors").unwrap();
    assert_eq!(fs::read(&weights).unwrap(), b"abc");
    assert!(weights.is_symlink() && hub.blob(SHA256_OF_ABC).is_file());
    assert_eq!(repository.list_files().unwrap(), ["config.json", "unet/model.safetensors"]);
    assert_eq!(hub.blobs().len(), 2, "{:?}", hub.blobs());

    let requests = hub.server.requests().len();
    let again = hub.repository();
    assert_eq!(again.file("unet/model.safetensors").unwrap(), weights);
    assert_eq!(hub.server.requests().len(), requests, "a cached file was asked for again");
    let offline = Settings { offline: true, ..hub.settings.clone() };
    let offline = Repository::open_with("hf://owner/name", Path::new("."), offline).unwrap();
    assert_eq!(offline.file("config.json").unwrap(), repository.file("config.json").unwrap());
}

#[test]
fn a_damaged_file_gets_no_name() {
    for (tag, contents) in [(SHA256_OF_ABC, b"abd"), (GIT_SHA1_OF_ABC, b"abd")] {
        let hub = Hub::with(&[("model.safetensors", tag, contents)]);
        let error = hub.error("model.safetensors");
        assert!(matches!(error, HubError::Damaged { .. }), "{error}");
        assert!(error.to_string().contains(tag), "{error}");
        assert_eq!(hub.blobs(), Vec::<String>::new());
        assert_eq!(hub.repository().list_files().unwrap(), Vec::<String>::new());
    }
    // Some mirrors have the SHA-1 of the contents themselves as their tag.
    let hub = Hub::with(&[("a", "a9993e364706816aba3e25717850c26c9cd0d89d", b"abc")]);
    assert_eq!(hub.read("a"), b"abc");
}

#[test]
fn cleaned_and_shared_contents_are_linked_again() {
    let hub = Hub::with(&[("unet/model.safetensors", SHA256_OF_ABC, b"abc")]);
    let path = hub.repository().file("unet/model.safetensors").unwrap();
    // The contents are gone, the link is left.
    fs::remove_file(hub.blob(SHA256_OF_ABC)).unwrap();
    assert_eq!(hub.read("unet/model.safetensors"), b"abc");
    // The link is gone, the contents are left: one question.
    fs::remove_file(&path).unwrap();
    let requests = hub.file_requests().len();
    assert_eq!(hub.read("unet/model.safetensors"), b"abc");
    assert_eq!(hub.file_requests().len(), requests + 1);
    // Contents that are not what their name says are not linked: their size is right.
    fs::remove_file(&path).unwrap();
    fs::write(hub.blob(SHA256_OF_ABC), "abd").unwrap();
    assert_eq!(hub.read("unet/model.safetensors"), b"abc");
}

#[test]
fn absence_is_remembered_when_the_hub_says_so() {
    let hub = Hub::with(&[]);
    let repository = hub.repository();
    assert_eq!(repository.optional_file("merges.txt").unwrap(), None);
    let requests = hub.server.requests().len();
    assert_eq!(hub.repository().optional_file("merges.txt").unwrap(), None);
    let error = hub.error("merges.txt");
    assert!(matches!(error, HubError::NotOnHub { .. }), "{error}");
    assert_eq!(hub.server.requests().len(), requests);
    // A page of a server in between is believed for the moment only.
    let hub = Hub::start(|_, _| Reply::new(404, b"<html>not here</html>"));
    let repository = hub.repository();
    for _ in 0..2 {
        assert_eq!(repository.optional_file("merges.txt").unwrap(), None);
    }
    assert_eq!(hub.file_requests().len(), 1);
    assert_eq!(hub.repository().optional_file("merges.txt").unwrap(), None);
    assert_eq!(hub.file_requests().len(), 2);
}

#[test]
fn strange_answers_write_nothing_outside() {
    for commit in ["../../../../escaped".to_owned(), "f".repeat(40)] {
        let hub = Hub::start(move |_, _| {
            Reply::new(200, b"abc").with("ETag", "\"aaaa\"").with("X-Repo-Commit", &commit)
        });
        let error = hub.error("config.json");
        assert!(matches!(error, HubError::Download { .. }), "{error}");
        assert!(!hub.folder().join("snapshots").exists() && !hub.folder().join("blobs").exists());
    }
    // A tag that cannot be a file name is ignored.
    for tag in ["\"../../../../escaped\"", "\"\"", "\"a/b=\"", "W/\"..\""] {
        let hub = Hub::start(move |_, _| Reply::new(200, b"abc").with("ETag", tag));
        assert_eq!(hub.read("config.json"), b"abc", "{tag}");
        assert_eq!(hub.blobs(), [SHA256_OF_ABC], "{tag}");
    }
}

#[test]
fn tags_may_be_weak_or_missing_and_lengths_unknown() {
    let weak = format!("W/\"{SHA256_OF_ABC}\"");
    // gzip of "abc", made by Python's `gzip.compress(b"abc", mtime=0)`.
    let zipped = [
        0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 2, 3, 0x4b, 0x4c, 0x4a, 6, 0, 0xc2, 0x41, 0x24, 0x35, 3, 0,
        0, 0,
    ];
    for (name, reply) in [
        ("weak", Reply::new(200, b"abc").with("ETag", &weak)),
        ("missing", Reply::new(200, b"abc")),
        ("chunked", Reply::new(200, b"abc").sent(Sending::Chunked)),
        ("closed", Reply::new(200, b"abc").with("ETag", &weak).sent(Sending::UntilClosed)),
        ("gzip", Reply::new(200, &zipped).with("Content-Encoding", "gzip").with("ETag", &weak)),
    ] {
        let hub = Hub::start(move |_, _| reply.clone());
        assert_eq!(hub.read("model.safetensors"), b"abc", "{name}");
        assert_eq!(hub.blobs(), [SHA256_OF_ABC], "{name}");
    }
}

#[test]
fn a_web_page_in_place_of_a_file_is_named_as_that() {
    let hub = Hub::start(|_, _| {
        Reply::new(200, b"<html>Please log in</html>")
            .with("Content-Type", "text/html; charset=utf-8")
    });
    let message = hub.error("config.json").to_string();
    assert!(message.contains("web page") && message.contains("log in"), "{message}");
    assert!(!hub.folder().join("snapshots").exists());
}

#[test]
fn names_are_written_into_addresses_as_python_does() {
    let hub = Hub::start(|request, file| {
        assert_eq!(file, "sac%2Blogos%20%C3%A4.pth");
        hub_file(request, SHA256_OF_ABC, b"abc")
    });
    assert_eq!(hub.read("sac+logos ä.pth"), b"abc");
}

#[test]
fn sizes_are_known_before_anything_is_downloaded() {
    let server = Server::start(|request| {
        if request.path().starts_with("/api/") {
            assert!(request.target.ends_with("?blobs=true"), "{}", request.target);
            let body = format!(
                "{{\"sha\": \"{COMMIT}\", \"siblings\": [\
                 {{\"rfilename\": \"config.json\", \"size\": 2, \"blobId\": \"9e26dfeeb6e641a33dae4961196235bdb965b21b\"}},\
                 {{\"rfilename\": \"model.safetensors\", \"size\": 3, \"blobId\": \"{}\", \
                 \"lfs\": {{\"sha256\": \"{SHA256_OF_ABC}\", \"size\": 3, \"pointerSize\": 130}}}}]}}",
                "1".repeat(40)
            );
            return Reply::new(200, body.as_bytes());
        }
        // No tag: the list says what the contents must be.
        Reply::new(200, if request.path().ends_with("json") { b"{}" } else { b"abd" })
    });
    let cache = tempfile::tempdir().unwrap();
    let settings = settings(cache.path(), &server.address());
    let repository = Repository::open_with("hf://owner/name", Path::new("."), settings).unwrap();
    assert_eq!(repository.names().unwrap(), ["config.json", "model.safetensors"]);
    assert!(repository.has("model.safetensors").unwrap() && !repository.has("x").unwrap());
    assert_eq!(repository.size_to_download("model.safetensors").unwrap(), Some(Some(3)));
    assert_eq!(server.requests().len(), 1);
    assert_eq!(fs::read(repository.file("config.json").unwrap()).unwrap(), b"{}");
    assert_eq!(repository.size_to_download("config.json").unwrap(), None);
    let error = repository.file("model.safetensors").unwrap_err();
    assert!(matches!(error, HubError::Damaged { .. }), "{error}");
}

#[test]
fn a_mirror_that_lists_no_files_is_asked_for_each() {
    let hub = Hub::with(&[("config.json", "aaaa", b"{}")]);
    let repository = hub.repository();
    assert!(repository.has("config.json").unwrap() && !repository.has("x").unwrap());
    assert_eq!(repository.size_to_download("config.json").unwrap(), Some(Some(2)));
    assert!(hub.file_requests().iter().all(|request| request.method == "HEAD"));
}
