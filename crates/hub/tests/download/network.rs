//! What servers, mirrors and proxies do: redirect, break off, stall, refuse.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use hub::{HubError, Repository, Settings};
use runkit::signals::{Signal, Stopped};
use testkit::server::{Reply, Request, Sending, Server};

use crate::fixture::{COMMIT, Hub, SHA256_OF_ABC, description, hub_file, settings};

#[test]
fn a_broken_download_resumes_where_it_broke() {
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
fn a_chunked_response_that_breaks_is_not_whole() {
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
fn busy_servers_are_retried() {
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
fn a_request_to_stop_ends_a_wait_for_bytes() {
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
