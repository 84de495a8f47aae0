//! Downloads from small servers on this machine that answer as the hub, its mirrors, and proxies
//! do.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::disallowed_methods, reason = "fixtures need not be durable")]

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use hub::{HubError, Limits, Network, Repository, Settings};
use runkit::signals::{Signal, Stopped};
use testkit::server::{Reply, Request, Sending, Server};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
/// SHA-256 of "abc" (FIPS 180-2, appendix B), and git's checksum of a file with it.
const SHA256_OF_ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
const GIT_SHA1_OF_ABC: &str = "f2ba8f84ab5c1bce84a7b441cb1959cfc7093b7f";

/// Settings for a hub at `endpoint` with an own cache, and time limits that tests can wait for.
fn settings(cache: &Path, endpoint: &str) -> Settings {
    let limits = Limits {
        connect: Duration::from_secs(2),
        idle: Duration::from_millis(300),
        window: Duration::from_millis(400),
        least_bytes: 50,
        attempts: 3,
        pause: Duration::from_millis(20),
        longest_pause: Duration::from_secs(2),
        other_process: Duration::from_secs(1),
    };
    Settings {
        cache: cache.to_owned(),
        endpoint: endpoint.to_owned(),
        token: None,
        offline: false,
        network: Network { limits, ..Network::default() },
    }
}

/// What the hub says of `owner/name`.
fn description(request: &Request) -> Option<Reply> {
    let is_asked = request.path().ends_with("/api/models/owner/name/revision/main")
        || request.path().ends_with(&format!("/api/models/owner/name/revision/{COMMIT}"));
    let body = format!("{{\"sha\": \"{COMMIT}\"}}");
    is_asked.then(|| Reply::new(200, body.as_bytes()).with("Content-Type", "application/json"))
}

/// The file that a request asks for.
fn file_of(request: &Request) -> Option<&str> {
    let start = format!("/owner/name/resolve/{COMMIT}/");
    request.path().split_once(&start).map(|(_, file)| file)
}

/// A file as the hub sends it, in ranges too.
fn hub_file(request: &Request, tag: &str, contents: &[u8]) -> Reply {
    Reply::new(200, contents)
        .ranged(request)
        .with("ETag", &format!("\"{tag}\""))
        .with("X-Repo-Commit", COMMIT)
}

fn absent() -> Reply {
    Reply::new(404, b"Entry not found").with("X-Error-Code", "EntryNotFound")
}

/// A hub that answers requests for files with `answer`, and a cache for it.
struct Hub {
    server: Server,
    cache: tempfile::TempDir,
    settings: Settings,
}

impl Hub {
    fn start(answer: impl Fn(&Request, &str) -> Reply + Send + Sync + 'static) -> Self {
        let server = Server::start(move |request| {
            description(request).unwrap_or_else(|| match file_of(request) {
                Some(file) => answer(request, file),
                None => Reply::new(404, b""),
            })
        });
        let cache = tempfile::tempdir().unwrap();
        let settings = settings(cache.path(), &server.address());
        Self { server, cache, settings }
    }

    /// A hub with these files: name, tag and contents.
    fn with(files: &[(&str, &str, &[u8])]) -> Self {
        let files: HashMap<String, (String, Vec<u8>)> = files
            .iter()
            .map(|(name, tag, body)| ((*name).to_owned(), ((*tag).to_owned(), body.to_vec())))
            .collect();
        Self::start(move |request, file| match files.get(file) {
            Some((tag, contents)) => hub_file(request, tag, contents),
            None => absent(),
        })
    }

    fn open(&self, name: &str) -> Result<Repository, HubError> {
        Repository::open_with(name, Path::new("."), self.settings.clone())
    }

    fn repository(&self) -> Repository {
        self.open("hf://owner/name").unwrap()
    }

    fn read(&self, file: &str) -> Vec<u8> {
        fs::read(self.repository().file(file).unwrap()).unwrap()
    }

    fn error(&self, file: &str) -> HubError {
        self.repository().file(file).unwrap_err()
    }

    fn folder(&self) -> PathBuf {
        self.cache.path().join("models--owner--name")
    }

    fn blob(&self, tag: &str) -> PathBuf {
        self.folder().join("blobs").join(tag)
    }

    /// Requests for files.
    fn file_requests(&self) -> Vec<Request> {
        let all = self.server.requests().into_iter();
        all.filter(|request| file_of(request).is_some()).collect()
    }

    /// The names in `blobs`.
    fn blobs(&self) -> Vec<String> {
        let entries = fs::read_dir(self.folder().join("blobs")).into_iter().flatten();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

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
fn a_broken_connection_is_taken_up_where_it_broke() {
    let asked = AtomicUsize::new(0);
    let hub = Hub::start(move |request, _| {
        let reply = hub_file(request, SHA256_OF_ABC, b"abc");
        match asked.fetch_add(1, Ordering::SeqCst) {
            0 => reply.sent(Sending::Breaks(1)),
            _ => reply,
        }
    });
    assert_eq!(hub.read("model.safetensors"), b"abc");
    let ranges: Vec<Option<usize>> = hub.file_requests().iter().map(Request::range_from).collect();
    assert_eq!(ranges, [None, Some(1)]);
}

#[test]
fn the_rest_of_an_interrupted_download_is_fetched_or_started_over() {
    for left in ["a", "abc", "xb", "abd", "longer than announced"] {
        let hub = Hub::with(&[("model.safetensors", SHA256_OF_ABC, b"abc")]);
        let partial = hub.blob(&format!("{SHA256_OF_ABC}.incomplete"));
        fs::create_dir_all(partial.parent().unwrap()).unwrap();
        fs::write(&partial, left).unwrap();
        assert_eq!(hub.read("model.safetensors"), b"abc", "{left:?}");
        assert_eq!(hub.blobs(), [SHA256_OF_ABC], "{left:?}");
    }
}

#[test]
fn a_server_without_ranges_sends_all_again() {
    let asked = AtomicUsize::new(0);
    let hub = Hub::start(move |_, _| {
        let reply = Reply::new(200, b"abc").with("ETag", &format!("\"{SHA256_OF_ABC}\""));
        match asked.fetch_add(1, Ordering::SeqCst) {
            0 => reply.sent(Sending::Breaks(2)),
            _ => reply,
        }
    });
    assert_eq!(hub.read("model.safetensors"), b"abc");
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
fn unknown_and_gated_repositories_are_explained() {
    let server = Server::start(|request| {
        let gated = request.target.contains("gated");
        let message = if gated { "Access to it is restricted" } else { "Repository not found" };
        Reply::new(if gated { 401 } else { 404 }, b"").with("X-Error-Message", message)
    });
    let cache = tempfile::tempdir().unwrap();
    let settings = settings(cache.path(), &server.address());
    let open = |name: &str| Repository::open_with(name, Path::new("."), settings.clone());
    for (name, status, said) in [
        ("hf://owner/unknown", 404, "Repository not found"),
        ("hf://owner/gated", 401, "restricted"),
    ] {
        let message = open(name).unwrap_err().to_string();
        assert!(message.contains(&format!("HTTP {status}")), "{message}");
        assert!(message.contains("set HF_TOKEN") && message.contains(name), "{message}");
        assert!(message.contains(said), "{message}");
    }
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let settings = Settings { endpoint: format!("http://{nobody}"), ..settings.clone() };
    let error = Repository::open_with("hf://owner/name", Path::new("."), settings).unwrap_err();
    assert!(matches!(error, HubError::Download { .. }), "{error}");
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
    // A tag that cannot be a file's name is none.
    for tag in ["\"../../../../escaped\"", "\"\"", "\"a/b=\"", "W/\"..\""] {
        let hub = Hub::start(move |_, _| Reply::new(200, b"abc").with("ETag", tag));
        assert_eq!(hub.read("config.json"), b"abc", "{tag}");
        assert_eq!(hub.blobs(), [SHA256_OF_ABC], "{tag}");
    }
}

#[test]
fn the_token_goes_to_the_hub_and_nowhere_else() {
    for status in [301, 302, 303, 307, 308] {
        let other = Server::start(|request| Reply::new(200, b"abc").ranged(request));
        let elsewhere = other.address();
        let mut hub =
            Hub::start(move |request, file| match (file, request.target.contains("moved")) {
                ("near", false) => {
                    let place = request.path().replace("near", "near?moved=1");
                    Reply::new(status, b"").with("Location", &place).with("X-Repo-Commit", COMMIT)
                }
                ("near", true) => hub_file(request, SHA256_OF_ABC, b"abc"),
                _ => Reply::new(status, b"Moved. Redirecting")
                    .with("Location", &format!("{elsewhere}/blob?signature=1"))
                    .with("X-Linked-ETag", &format!("\"{SHA256_OF_ABC}\""))
                    .with("X-Linked-Size", "3")
                    .with("X-Repo-Commit", COMMIT),
            });
        hub.settings.token = Some("secret".to_owned());
        assert_eq!(hub.read("far"), b"abc");
        assert_eq!(hub.read("near"), b"abc");
        let carries = |request: &Request| request.header("authorization") == Some("Bearer secret");
        assert!(hub.server.requests().iter().all(carries), "{status}");
        let leaked: Vec<Request> = other
            .requests()
            .into_iter()
            .filter(|request| request.header("authorization").is_some())
            .collect();
        assert!(leaked.is_empty() && !other.requests().is_empty(), "{status}: {leaked:?}");
    }
}

#[test]
fn a_mirror_may_lead_to_the_hub_with_a_whole_address() {
    let hub = Hub::with(&[("model.safetensors", SHA256_OF_ABC, b"abc")]);
    let origin = hub.server.address();
    let mirror = Server::start(move |request| {
        let place = request.target.strip_prefix("/mirror").unwrap_or_default();
        Reply::new(308, b"").with("Location", &format!("{origin}{place}"))
    });
    let cache = tempfile::tempdir().unwrap();
    // An endpoint may have a path.
    let settings = settings(cache.path(), &format!("{}/mirror", mirror.address()));
    let repository = Repository::open_with("hf://owner/name", Path::new("."), settings).unwrap();
    assert_eq!(fs::read(repository.file("model.safetensors").unwrap()).unwrap(), b"abc");
    assert!(cache.path().join("models--owner--name/blobs").join(SHA256_OF_ABC).is_file());
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
fn a_chunked_answer_that_breaks_is_not_whole() {
    let asked = AtomicUsize::new(0);
    let hub = Hub::start(move |_, _| match asked.fetch_add(1, Ordering::SeqCst) {
        // A chunk is announced and does not come.
        0 => Reply::new(200, b"5\r\nab")
            .with("Transfer-Encoding", "chunked")
            .sent(Sending::UntilClosed),
        _ => Reply::new(200, b"abc").sent(Sending::Chunked),
    });
    assert_eq!(hub.read("model.safetensors"), b"abc");
}

#[test]
fn busy_servers_are_asked_again() {
    for (status, header) in [
        (429, Some(("Retry-After", "1"))),
        (503, None),
        (500, None),
        (429, Some(("RateLimit", "\"api\";r=0;t=1"))),
    ] {
        let asked = AtomicUsize::new(0);
        let server = Server::start(move |request| {
            // The description and the file are each refused once.
            if asked.fetch_add(1, Ordering::SeqCst).is_multiple_of(2) {
                let reply = Reply::new(status, b"later");
                return match header {
                    Some((name, value)) => reply.with(name, value),
                    None => reply,
                };
            }
            description(request).unwrap_or_else(|| hub_file(request, SHA256_OF_ABC, b"abc"))
        });
        let cache = tempfile::tempdir().unwrap();
        let start = Instant::now();
        let settings = settings(cache.path(), &server.address());
        let repository =
            Repository::open_with("hf://owner/name", Path::new("."), settings).unwrap();
        assert_eq!(fs::read(repository.file("a").unwrap()).unwrap(), b"abc", "{status}");
        if header.is_some() {
            assert!(start.elapsed() >= Duration::from_secs(2), "{status}: the pause was not kept");
        }
    }
}

#[test]
fn a_server_that_stays_busy_is_given_up() {
    for (header, expected) in [(None, "3 attempts"), (Some("3600"), "wait 3600 seconds")] {
        let server = Server::start(move |_| {
            let reply = Reply::new(503, b"");
            match header {
                Some(seconds) => reply.with("Retry-After", seconds),
                None => reply,
            }
        });
        let cache = tempfile::tempdir().unwrap();
        let settings = settings(cache.path(), &server.address());
        let error = Repository::open_with("hf://owner/name", Path::new("."), settings).unwrap_err();
        let message = error.to_string();
        assert!(message.contains("HTTP 503") && message.contains(expected), "{message}");
    }
}

#[test]
fn a_connection_that_stalls_ends() {
    for sending in [Sending::Stalls(0), Sending::Stalls(2), Sending::Trickles(250)] {
        let hub = Hub::start(move |request, _| {
            hub_file(request, SHA256_OF_ABC, &[b'a'; 100]).sent(sending)
        });
        let start = Instant::now();
        let error = hub.error("model.safetensors");
        assert!(matches!(error, HubError::Download { .. }), "{error}");
        assert!(start.elapsed() < Duration::from_secs(8), "{sending:?}: {:?}", start.elapsed());
    }
    // Nothing at all comes.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let cache = tempfile::tempdir().unwrap();
    let start = Instant::now();
    let settings = settings(cache.path(), &address);
    assert!(Repository::open_with("hf://owner/name", Path::new("."), settings).is_err());
    assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
}

#[test]
fn a_request_to_stop_is_seen_while_nothing_comes() {
    let mut hub =
        Hub::start(|request, _| hub_file(request, SHA256_OF_ABC, b"abc").sent(Sending::Stalls(2)));
    hub.settings.network.limits.idle = Duration::from_secs(50);
    hub.settings.network.limits.window = Duration::from_secs(50);
    let stop = hub.settings.network.stop.clone();
    let repository = hub.repository();
    let asked = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(300));
        stop.request(Signal::Terminate);
        Instant::now()
    });
    let error = repository.file("model.safetensors").unwrap_err();
    let seen = asked.join().unwrap().elapsed();
    let stopped = Stopped::behind(&error);
    assert_eq!(stopped, Some(Stopped(Signal::Terminate)), "{error}");
    assert!(seen < Duration::from_secs(2), "{seen:?}");
    // What came is kept, and has no name.
    assert_eq!(hub.blobs(), [format!("{SHA256_OF_ABC}.incomplete")]);
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

#[test]
fn plain_http_is_forwarded_by_a_proxy_and_https_is_tunnelled() {
    let hub = Hub::with(&[("config.json", "aaaa", b"{}")]);
    let proxy = Server::start(|request| {
        if request.method == "CONNECT" {
            return Reply::new(407, b"");
        }
        let plain = Request {
            target: request.target.replacen("http://hub.invalid", "", 1),
            ..request.clone()
        };
        assert_ne!(plain.target, request.target);
        description(&plain).unwrap_or_else(|| hub_file(&plain, "aaaa", b"{}"))
    });
    let address = proxy.address().replace("http://", "http://user:password@");
    let variables = |endpoint: &str, no_proxy: &str| {
        let all: HashMap<String, String> = [
            ("HF_HUB_CACHE", hub.cache.path().to_str().unwrap()),
            ("HF_ENDPOINT", endpoint),
            ("HTTP_PROXY", &address),
            ("HTTPS_PROXY", &address),
            ("NO_PROXY", no_proxy),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
        let mut found = Settings::from_lookup(|name| all.get(name).map(Into::into)).unwrap();
        found.network.limits = hub.settings.network.limits;
        found
    };
    let open =
        |settings: Settings| Repository::open_with("hf://owner/name", Path::new("."), settings);
    let repository = open(variables("http://hub.invalid", "")).unwrap();
    assert_eq!(fs::read(repository.file("config.json").unwrap()).unwrap(), b"{}");
    let seen = proxy.requests();
    assert!(seen.iter().all(|request| request.header("host") == Some("hub.invalid")), "{seen:?}");
    // user:password in base64.
    let credentials = Some("Basic dXNlcjpwYXNzd29yZA==");
    assert!(
        seen.iter().all(|request| request.header("proxy-authorization") == credentials),
        "{seen:?}"
    );
    assert!(seen.iter().all(|request| request.header("authorization").is_none()));

    fs::remove_dir_all(hub.folder()).unwrap();
    let error = open(variables("https://hub.invalid", "")).unwrap_err().to_string();
    assert!(error.contains("proxy") && error.contains("407"), "{error}");
    assert_eq!(proxy.requests().last().unwrap().target, "hub.invalid:443");

    let before = proxy.requests().len();
    let direct = open(variables(&hub.server.address(), "other, 127.0.0.1")).unwrap();
    assert_eq!(fs::read(direct.file("config.json").unwrap()).unwrap(), b"{}");
    assert_eq!(proxy.requests().len(), before);
}

#[test]
fn one_process_waits_for_another_that_downloads_and_not_for_ever() {
    let hub = Hub::with(&[("model.safetensors", SHA256_OF_ABC, b"abc")]);
    let lock = hub.cache.path().join(format!(".locks/models--owner--name/{SHA256_OF_ABC}.lock"));
    fs::create_dir_all(lock.parent().unwrap()).unwrap();
    let held = fs::File::create(&lock).unwrap();
    held.lock().unwrap();
    // The holder gives it back.
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
        child.args(["download_in_a_child", "--ignored", "--exact"]);
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
