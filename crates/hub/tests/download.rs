//! Downloads from a small HTTP server on this machine that answers as the hub does.
//!
//! The tests run in one child process without proxy variables, which would send the requests for
//! 127.0.0.1 elsewhere.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::disallowed_methods, reason = "fixtures need not be durable")]

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};

use hub::{HubError, Repository, Settings};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
/// SHA-256 of "abc" (FIPS 180-2, appendix B).
const SHA256_OF_ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

#[test]
fn downloads() {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["hub_server", "--ignored", "--nocapture"]);
    for variable in ["http_proxy", "https_proxy", "all_proxy"] {
        command.env_remove(variable).env_remove(variable.to_uppercase());
    }
    let output = command.output().unwrap();
    let shown = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{shown}");
    assert!(shown.contains("test result: ok. 9 passed"), "{shown}");
}

#[derive(Clone)]
struct Served {
    etag: String,
    commit: String,
    contents: Vec<u8>,
    /// Bytes sent before the connection breaks, at the first request for the contents.
    breaks_after: Option<usize>,
}

impl Served {
    fn new(etag: &str, contents: &[u8]) -> Self {
        let (etag, contents) = (etag.to_owned(), contents.to_vec());
        Self { etag, commit: COMMIT.to_owned(), contents, breaks_after: None }
    }
}

type Log = Arc<Mutex<Vec<String>>>;

/// A hub with the repository `owner/name`, and a cache for it.
struct Hub {
    settings: Settings,
    log: Log,
    cache: tempfile::TempDir,
}

impl Hub {
    fn start(files: &[(&str, Served)]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let mut files: HashMap<String, Served> =
            files.iter().map(|(name, file)| ((*name).to_owned(), file.clone())).collect();
        let log = Log::default();
        let server_log = Arc::clone(&log);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let _ = answer(stream.unwrap(), &mut files, &server_log);
            }
        });
        let cache = tempfile::tempdir().unwrap();
        let settings =
            Settings { cache: cache.path().to_owned(), endpoint, token: None, offline: false };
        Self { settings, log, cache }
    }

    fn open(&self, name: &str) -> Result<Repository, HubError> {
        Repository::open_with(name, Path::new("."), self.settings.clone())
    }

    fn requests(&self) -> usize {
        self.log.lock().unwrap().len()
    }

    fn blob(&self, etag: &str) -> std::path::PathBuf {
        self.cache.path().join("models--owner--name/blobs").join(etag)
    }
}

fn answer(
    mut stream: TcpStream,
    files: &mut HashMap<String, Served>,
    log: &Log,
) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut request = String::new();
    reader.read_line(&mut request)?;
    let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
    let (mut range, mut token) = (None, None);
    loop {
        let mut header = String::new();
        reader.read_line(&mut header)?;
        if header.trim().is_empty() {
            break;
        }
        let (name, value) = header.trim().split_once(": ").unwrap_or_default();
        match name.to_lowercase().as_str() {
            "range" => range = value.strip_prefix("bytes=").map(str::to_owned),
            "authorization" => token = Some(value.to_owned()),
            _ => {}
        }
    }
    log.lock().unwrap().push(format!("{path} {}", token.as_deref().unwrap_or_default()));
    if path == "/api/models/owner/name/revision/main" {
        let body = format!("{{\"sha\": \"{COMMIT}\", \"siblings\": []}}");
        let length = body.len();
        return write!(
            stream,
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\
             Connection: close\r\n\r\n{body}"
        );
    }
    if path.contains("gated") {
        return write!(
            stream,
            "HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        );
    }
    let file = path
        .strip_prefix(&format!("/owner/name/resolve/{COMMIT}/"))
        .and_then(|name| files.get_mut(name));
    let (Some(file), Some(range)) = (file, range) else {
        return write!(
            stream,
            "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        );
    };
    let size = file.contents.len();
    let (first, last) = range.split_once('-').unwrap();
    let first: usize = first.parse().unwrap();
    let end = last.parse().map_or(size, |last: usize| (last + 1).min(size));
    let body = &file.contents[first..end];
    write!(
        stream,
        "HTTP/1.1 206 Partial Content\r\nContent-Length: {}\r\n\
         Content-Range: bytes {first}-{}/{size}\r\nETag: \"{}\"\r\nX-Repo-Commit: {}\r\n\
         Connection: close\r\n\r\n",
        body.len(),
        end.saturating_sub(1),
        file.etag,
        file.commit
    )?;
    if last.is_empty()
        && let Some(count) = file.breaks_after.take()
    {
        return stream.write_all(&body[..count]);
    }
    stream.write_all(body)
}

#[test]
#[ignore = "run by `downloads`"]
fn hub_server_files_arrive_once_and_are_then_cached() {
    let hub = Hub::start(&[
        ("config.json", Served::new("aaaa", b"{}")),
        ("unet/model.safetensors", Served::new(SHA256_OF_ABC, b"abc")),
    ]);
    let repository = hub.open("hf://owner/name").unwrap();
    assert_eq!(repository.revision(), Some(COMMIT));
    assert_eq!(fs::read(repository.file("config.json").unwrap()).unwrap(), b"{}");
    let weights = repository.file("unet/model.safetensors").unwrap();
    assert_eq!(fs::read(&weights).unwrap(), b"abc");
    assert!(weights.is_symlink() && hub.blob(SHA256_OF_ABC).is_file());
    assert_eq!(repository.list_files().unwrap(), ["config.json", "unet/model.safetensors"]);

    let requests = hub.requests();
    let again = hub.open("hf://owner/name").unwrap();
    assert_eq!(again.file("unet/model.safetensors").unwrap(), weights);
    assert_eq!(hub.requests(), requests, "a cached file was asked for again");
    let offline = Settings { offline: true, ..hub.settings.clone() };
    let offline = Repository::open_with("hf://owner/name", Path::new("."), offline).unwrap();
    assert_eq!(offline.file("config.json").unwrap(), repository.file("config.json").unwrap());
}

#[test]
#[ignore = "run by `downloads`"]
fn hub_server_a_damaged_file_is_removed() {
    let hub = Hub::start(&[("model.safetensors", Served::new(SHA256_OF_ABC, b"abd"))]);
    let repository = hub.open("hf://owner/name").unwrap();
    let error = repository.file("model.safetensors").unwrap_err();
    assert!(matches!(error, HubError::Damaged { .. }), "{error}");
    assert!(error.to_string().contains(SHA256_OF_ABC), "{error}");
    assert!(!hub.blob(SHA256_OF_ABC).exists());
    assert_eq!(repository.list_files().unwrap(), Vec::<String>::new());
}

#[test]
#[ignore = "run by `downloads`"]
fn hub_server_a_broken_connection_is_taken_up_where_it_broke() {
    let served = Served { breaks_after: Some(1), ..Served::new(SHA256_OF_ABC, b"abc") };
    let hub = Hub::start(&[("model.safetensors", served)]);
    let path = hub.open("hf://owner/name").unwrap().file("model.safetensors").unwrap();
    assert_eq!(fs::read(path).unwrap(), b"abc");
}

#[test]
#[ignore = "run by `downloads`"]
fn hub_server_the_rest_of_an_interrupted_download_is_fetched_or_started_over() {
    for left in ["a", "abc", "longer than announced"] {
        let hub = Hub::start(&[("model.safetensors", Served::new(SHA256_OF_ABC, b"abc"))]);
        let part = hub.blob(SHA256_OF_ABC).with_extension("part");
        fs::create_dir_all(part.parent().unwrap()).unwrap();
        fs::write(&part, left).unwrap();
        let path = hub.open("hf://owner/name").unwrap().file("model.safetensors").unwrap();
        assert_eq!(fs::read(path).unwrap(), b"abc", "{left:?}");
    }
}

#[test]
#[ignore = "run by `downloads`"]
fn hub_server_cleaned_and_shared_contents_are_linked_again() {
    let hub = Hub::start(&[("unet/model.safetensors", Served::new(SHA256_OF_ABC, b"abc"))]);
    let repository = hub.open("hf://owner/name").unwrap();
    let path = repository.file("unet/model.safetensors").unwrap();
    // The contents are gone, the link is left.
    fs::remove_file(hub.blob(SHA256_OF_ABC)).unwrap();
    assert_eq!(fs::read(repository.file("unet/model.safetensors").unwrap()).unwrap(), b"abc");
    // The link is gone, the contents are left: one question, no download.
    fs::remove_file(&path).unwrap();
    let requests = hub.requests();
    assert_eq!(fs::read(repository.file("unet/model.safetensors").unwrap()).unwrap(), b"abc");
    assert_eq!(hub.requests(), requests + 1);
}

#[test]
#[ignore = "run by `downloads`"]
fn hub_server_absent_files_are_remembered() {
    let hub = Hub::start(&[]);
    let repository = hub.open("hf://owner/name").unwrap();
    assert_eq!(repository.optional_file("merges.txt").unwrap(), None);
    let requests = hub.requests();
    assert_eq!(repository.optional_file("merges.txt").unwrap(), None);
    let error = repository.file("merges.txt").unwrap_err();
    assert!(matches!(error, HubError::NotOnHub { .. }), "{error}");
    assert_eq!(hub.requests(), requests);
}

#[test]
#[ignore = "run by `downloads`"]
fn hub_server_unknown_and_gated_repositories_are_explained() {
    let hub = Hub::start(&[]);
    for (name, status) in [("hf://owner/unknown", 404), ("hf://owner/gated", 401)] {
        let message = hub.open(name).unwrap_err().to_string();
        assert!(message.contains(&format!("HTTP {status}")), "{message}");
        assert!(message.contains("set HF_TOKEN") && message.contains(name), "{message}");
    }
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let settings = Settings { endpoint: format!("http://{nobody}"), ..hub.settings.clone() };
    let error = Repository::open_with("hf://owner/name", Path::new("."), settings).unwrap_err();
    assert!(matches!(error, HubError::Download { .. }), "{error}");
}

#[test]
#[ignore = "run by `downloads`"]
fn hub_server_strange_answers_write_nothing_outside() {
    let other_commit = "f".repeat(40);
    for (etag, commit) in [
        ("../../../../escaped", COMMIT),
        ("", COMMIT),
        ("aaaa", "../../../../escaped"),
        ("aaaa", other_commit.as_str()),
    ] {
        let served = Served { commit: commit.to_owned(), ..Served::new(etag, b"abc") };
        let hub = Hub::start(&[("config.json", served)]);
        let error = hub.open("hf://owner/name").unwrap().file("config.json").unwrap_err();
        assert!(matches!(error, HubError::Download { .. }), "{error}");
        assert!(!hub.cache.path().join("models--owner--name/snapshots").exists());
        assert!(!hub.cache.path().join("models--owner--name/blobs").exists());
    }
}

#[test]
#[ignore = "run by `downloads`"]
fn hub_server_the_token_is_sent() {
    let mut hub = Hub::start(&[("config.json", Served::new("aaaa", b"{}"))]);
    hub.settings.token = Some("secret".to_owned());
    hub.open("hf://owner/name").unwrap().file("config.json").unwrap();
    let log = hub.log.lock().unwrap();
    assert!(log.iter().all(|line| line.ends_with(" Bearer secret")), "{log:?}");
}
