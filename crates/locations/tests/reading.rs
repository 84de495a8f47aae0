//! Listing and reading from object storage, web servers and the hub, with faults in between.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::io::Read as _;
use std::time::{Duration, Instant};

use common::{access, at, noise};
use locations::{Access, File, LocationError, find};
use testkit::objects::{ACCESS_KEY, DatasetHub, ObjectStore, SECRET, TOKEN, etag};
use testkit::server::{Reply, Sending, Server};

fn names(access: &Access, text: &str) -> Vec<String> {
    find(&at(access, text)).unwrap().items.into_iter().map(|item| item.name).collect()
}

/// The error of reading the whole file.
fn failure(access: &Access, text: &str) -> LocationError {
    match File::open(&at(access, text)) {
        Err(error) => error,
        Ok(file) => {
            let error = file.bytes(0..file.len()).unwrap_err();
            LocationError::behind(&error).unwrap().clone()
        }
    }
}

#[test]
fn prefixes_and_patterns_of_object_storage_are_listed_in_order() {
    let store = ObjectStore::start();
    for name in ["b.parquet", "a/z.parquet", "a-b/c.parquet", "a/y.txt", "a/x/w.parquet"] {
        store.put(&format!("bucket/pairs/{name}"), name.as_bytes());
    }
    store.put("bucket/pairs-2/other.parquet", b"x");
    store.put("bucket/pairs/", b"");
    let access = access(store.variables());
    let all = ["a/x/w.parquet", "a/y.txt", "a/z.parquet", "a-b/c.parquet", "b.parquet"];
    assert_eq!(names(&access, "s3://bucket/pairs"), all);
    assert_eq!(names(&access, "s3://bucket/pairs/"), all);
    assert_eq!(names(&access, "s3://bucket/pairs/*.parquet"), ["b.parquet"]);
    let two = ["a/z.parquet", "a-b/c.parquet"];
    assert_eq!(names(&access, "s3://bucket/pairs/*/*.parquet"), two);
    assert_eq!(names(&access, "s3://bucket/pairs/a*/?.parquet"), two);
    assert_eq!(names(&access, "s3://bucket/pairs/b.parquet"), ["b.parquet"]);
    assert_eq!(names(&access, "s3://bucket").len(), 6);
    let found = find(&at(&access, "s3://bucket/pairs/a/*.parquet")).unwrap();
    assert_eq!(found.base.to_string(), "s3://bucket/pairs/a");
    assert_eq!(found.items[0].location.to_string(), "s3://bucket/pairs/a/z.parquet");
    let error = find(&at(&access, "s3://bucket/none")).unwrap_err();
    assert!(matches!(error, LocationError::Missing { .. }), "{error}");
}

#[test]
fn every_range_is_that_of_the_object_and_requests_are_few() {
    let store = ObjectStore::start();
    let bytes = noise(30 << 20);
    store.put("bucket/one.bin", &bytes);
    let access = access(store.variables());
    let file = File::open(&at(&access, "s3://bucket/one.bin")).unwrap();
    assert_eq!((file.len(), file.version()), (30 << 20, Some(etag(&bytes).as_str())));
    assert!(file.bytes(5..1000).unwrap() == bytes[5..1000]);
    assert!(file.bytes(29 << 20..file.len() + 5).is_err());
    // Two columns, read in turns; and ranges that nobody announced.
    let middle = 15 << 20;
    let lanes = vec![vec![vec![0..middle]], vec![vec![middle..30 << 20]]];
    let before = access.traffic();
    let ahead = file.reading(lanes);
    for step in 0..150 {
        for start in [step * 100_000, middle as usize + step * 100_000] {
            let mut part = vec![0; 100_000];
            ahead.read_exact_at(&mut part, start as u64).unwrap();
            assert!(part == bytes[start..start + 100_000]);
        }
    }
    let across = (middle as usize - 10)..(middle as usize + 10);
    assert!(ahead.bytes(across.start as u64..across.end as u64).unwrap() == bytes[across]);
    let after = access.traffic();
    // Four pieces, and the one range across both columns.
    assert_eq!(after.requests - before.requests, 5, "{after:?}");
    assert!(after.bytes - before.bytes <= (30 << 20) + 20, "{after:?}");
    let mut all = Vec::new();
    let mut reader = file.reader(7..file.len());
    reader.read_to_end(&mut all).unwrap();
    assert!(all == bytes[7..] && reader.position() == file.len());
}

/// What becomes of an answer, by the number of requests before it.
type Trouble = fn(usize, Reply) -> Reply;

#[test]
fn what_passes_is_tried_again() {
    let store = ObjectStore::start();
    let bytes = noise(100_000);
    store.put("bucket/one.bin", &bytes);
    let faults: [(&str, Trouble); 7] = [
        ("a reset before the answer", |before, reply| {
            if before == 0 { reply.sent(Sending::Breaks(0)) } else { reply }
        }),
        (
            "a status of a proxy",
            |before, reply| {
                if before == 0 { Reply::new(520, b"") } else { reply }
            },
        ),
        ("503 twice", |before, reply| if before < 2 { Reply::new(503, b"") } else { reply }),
        ("429 that asks to wait", |before, reply| match before {
            0 => Reply::new(429, b"").with("Retry-After", "0"),
            _ => reply,
        }),
        ("a reset in the middle", |before, reply| {
            if before == 0 { reply.sent(Sending::Breaks(40_000)) } else { reply }
        }),
        ("a stall in the middle", |before, reply| {
            if before == 0 { reply.sent(Sending::Stalls(40_000)) } else { reply }
        }),
        ("a byte now and then", |before, reply| {
            if before == 0 { reply.sent(Sending::Trickles(50)) } else { reply }
        }),
    ];
    for (what, fault) in faults {
        store.clear_fault();
        let access = access(store.variables());
        let file = File::open(&at(&access, "s3://bucket/one.bin")).unwrap();
        store.set_fault(move |_, before, reply| fault(before, reply));
        assert!(file.bytes(0..file.len()).unwrap() == bytes, "{what}");
        assert!(access.traffic().retries >= 1, "{what}");
    }
}

#[test]
fn a_response_that_was_shortened_is_not_taken_for_the_whole() {
    let store = ObjectStore::start();
    store.put("bucket/one.bin", &noise(5000));
    let access = access(store.variables());
    let file = File::open(&at(&access, "s3://bucket/one.bin")).unwrap();
    // A proxy that ends every body early, and says so in the length.
    store.set_fault(|_, _, mut reply| {
        reply.body.truncate(4000);
        reply
    });
    let error = file.bytes(0..5000).unwrap_err();
    let error = LocationError::behind(&error).unwrap();
    assert!(matches!(error, LocationError::Unavailable { .. }), "{error}");
}

#[test]
fn an_object_that_changes_ends_the_run_by_its_name() {
    let store = ObjectStore::start();
    store.put("bucket/one.bin", &noise(5000));
    let access = access(store.variables());
    let file = File::open(&at(&access, "s3://bucket/one.bin")).unwrap();
    assert!(file.bytes(0..10).is_ok());
    store.put("bucket/one.bin", &vec![7; 5000]);
    // Also for one who opens it anew in the same run.
    let again = File::open(&at(&access, "s3://bucket/one.bin")).unwrap();
    for file in [file, again] {
        let error = file.bytes(0..10).unwrap_err();
        let error = LocationError::behind(&error).unwrap();
        assert!(matches!(error, LocationError::Changed { .. }), "{error}");
        assert!(error.to_string().starts_with("s3://bucket/one.bin: changed"), "{error}");
    }
}

#[test]
fn trouble_without_end_ends_with_one_sentence() {
    let store = ObjectStore::start();
    store.put("bucket/one.bin", b"x");
    store.set_fault(|_, _, _| Reply::new(503, b""));
    let begun = Instant::now();
    let error = failure(&access(store.variables()), "s3://bucket/one.bin");
    assert!(begun.elapsed() < Duration::from_secs(8));
    let message = error.to_string();
    assert!(message.contains("HTTP 503") && message.contains("attempts"), "{message}");
    // A server that wants to be asked again when the run is long over.
    for seconds in ["3600", "18446744073709551615"] {
        store.set_fault(move |_, _, _| Reply::new(503, b"").with("Retry-After", seconds));
        let begun = Instant::now();
        let error = failure(&access(store.variables()), "s3://bucket/one.bin");
        assert!(matches!(error, LocationError::Unavailable { attempts: 1, .. }), "{error}");
        assert!(begun.elapsed() < Duration::from_secs(3), "{error}");
    }
    // Nobody listens there.
    let mut variables = store.variables();
    variables[0].1 = "http://127.0.0.1:9".to_owned();
    let error = failure(&access(variables), "s3://bucket/one.bin");
    assert!(matches!(error, LocationError::Unavailable { .. }), "{error}");
}

#[test]
fn missing_and_refused_credentials_end_at_once_and_are_never_shown() {
    let store = ObjectStore::start();
    store.put("bucket/one.bin", b"x");
    let with = |changes: &[(&str, Option<&str>)]| {
        let mut variables = store.variables();
        for (name, value) in changes {
            variables.retain(|(known, _)| known != name);
            variables.extend(value.map(|value| ((*name).to_owned(), value.to_owned())));
        }
        let begun = Instant::now();
        let error = failure(&access(variables), "s3://bucket/one.bin");
        assert!(begun.elapsed() < Duration::from_secs(30), "{error}");
        let message = error.to_string();
        assert!(!message.contains(SECRET) && !message.contains('\n'), "{message}");
        assert!(message.contains("AWS_ACCESS_KEY_ID"), "{message}");
        error
    };
    let none = with(&[("AWS_ACCESS_KEY_ID", None), ("AWS_SECRET_ACCESS_KEY", None)]);
    assert!(matches!(none, LocationError::NoCredentials { .. }), "{none}");
    let wrong = with(&[("AWS_ACCESS_KEY_ID", Some("another-key"))]);
    assert!(matches!(&wrong, LocationError::Refused { status: 403, .. }), "{wrong:?}");
    // HEAD has no body; the code comes with GET.
    assert!(!ACCESS_KEY.is_empty());
    let unsigned = with(&[("AWS_SKIP_SIGNATURE", Some("true"))]);
    assert!(matches!(unsigned, LocationError::Refused { .. }), "{unsigned:?}");
}

/// With the limits of the programs: reported within a minute, although this machine is asked whether it
/// belongs to a cloud that knows its credentials.
#[test]
fn missing_credentials_are_reported_within_a_minute() {
    let store = ObjectStore::start();
    let [endpoint, _, _, region] = <[_; 4]>::try_from(store.variables()).unwrap();
    let never = runkit::signals::StopFlag::never();
    let access = Access::new(vec![endpoint, region], locations::Limits::default(), never);
    let begun = Instant::now();
    let error = find(&at(&access, "s3://bucket/pairs")).unwrap_err();
    assert!(matches!(error, LocationError::NoCredentials { .. }), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
    assert!(store.server.requests().is_empty());
}

#[test]
fn the_usual_limits_end_within_five_minutes() {
    let limits = locations::Limits::default();
    // An attempt that begins at the last moment: a name is looked up, a connection made, a response
    // awaited; then its bytes come so slowly that it is given up.
    let last = limits.connect * 2 + limits.idle + limits.window + limits.idle;
    assert!(limits.total + last < Duration::from_secs(300));
}

#[test]
fn a_bucket_of_another_region_is_named_with_its_region() {
    let store = ObjectStore::start();
    store.set_fault(|_, _, _| Reply::new(400, b"").with("x-amz-bucket-region", "eu-central-1"));
    let message = failure(&access(store.variables()), "s3://bucket/one.bin").to_string();
    assert!(message.contains("set AWS_REGION=eu-central-1"), "{message}");
}

#[test]
fn plain_http_to_another_machine_needs_the_variable() {
    let mut variables = ObjectStore::start().variables();
    variables[0].1 = "http://storage.example:9000".to_owned();
    let error = failure(&access(variables), "s3://bucket/one.bin");
    assert!(matches!(error, LocationError::PlainHttp { .. }), "{error}");
}

#[test]
fn a_stop_ends_the_wait_for_a_server() {
    let server = Server::start(|_| Reply::new(206, b"x").sent(Sending::Stalls(0)));
    let stop = runkit::signals::StopFlag::never();
    let limits = locations::Limits::default();
    let access = Access::new(Vec::new(), limits, stop.clone());
    let address = format!("{}/one.bin", server.address());
    let begun = Instant::now();
    std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(300));
        stop.request(runkit::signals::Signal::Interrupt);
    });
    let error = File::open(&at(&access, &address)).unwrap_err();
    assert!(matches!(error, LocationError::Stopped(_)), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(3));
    assert!(runkit::signals::Stopped::behind(&std::io::Error::from(error)).is_some());
}

#[test]
fn a_file_of_a_web_server_is_read_by_the_range() {
    let bytes = noise(50_000);
    let held = bytes.clone();
    let server = Server::start(move |request| match request.path() {
        "/moved.bin" => Reply::new(302, b"").with("Location", "/one.bin"),
        "/one.bin" if request.query("key").as_deref() == Some("s3cret") => {
            Reply::new(200, &held).ranged(request).with("ETag", "\"a\"")
        }
        "/one.bin" => Reply::new(403, b""),
        "/whole.bin" => Reply::new(200, &held),
        _ => Reply::new(404, b""),
    });
    let access = access(Vec::new());
    let of = |path: &str| format!("{}/{path}", server.address());
    let file = File::open(&at(&access, &of("one.bin?key=s3cret"))).unwrap();
    assert_eq!((file.len(), file.version()), (50_000, Some("\"a\"")));
    assert!(file.bytes(10..40_000).unwrap() == bytes[10..40_000]);
    // The address that is shown leads back to the file, and holds no secret.
    assert_eq!(file.path().to_str(), Some(of("one.bin").as_str()));
    let shown = at(&access, file.path().to_str().unwrap());
    assert!(File::open(&shown).unwrap().bytes(1..2).unwrap() == bytes[1..2]);
    assert_eq!(find(&shown).unwrap().items[0].name, "one.bin");
    let message = failure(&access, &of("moved.bin")).to_string();
    assert!(message.contains("access refused (HTTP 403)"), "{message}");
    let message = failure(&access, &of("whole.bin")).to_string();
    assert!(message.contains("must know ranges"), "{message}");
    assert!(matches!(failure(&access, &of("none.bin")), LocationError::Missing { .. }));
}

#[test]
fn a_data_set_of_the_hub_is_listed_by_pages_and_read_from_the_second_server() {
    let folder = testkit::Folder::new();
    for name in ["data/train-0.parquet", "data/train-1.parquet", "data/test-0.parquet", "a.md"] {
        folder.put(name, &noise(name.len() * 1000));
    }
    let hub = DatasetHub::start("owner/name", &folder.path(""), true);
    let access = access(hub.variables());
    let root = "hf://datasets/owner/name";
    let all = ["a.md", "data/test-0.parquet", "data/train-0.parquet", "data/train-1.parquet"];
    assert_eq!(names(&access, root), all);
    let train = ["train-0.parquet", "train-1.parquet"];
    assert_eq!(names(&access, &format!("{root}/data/train-*.parquet")), train);
    assert_eq!(names(&access, &format!("{root}@main/data")).len(), 3);
    assert_eq!(names(&access, &format!("{root}/data/train-1.parquet")), ["train-1.parquet"]);
    let file = File::open(&at(&access, &format!("{root}/data/train-1.parquet"))).unwrap();
    let bytes = noise("data/train-1.parquet".len() * 1000);
    for start in [0, 5000, 10_000] {
        assert!(file.bytes(start..start + 99).unwrap() == bytes[start as usize..][..99]);
    }
    // The commit was asked for once, and the second server is remembered.
    let asked = |part: &str| {
        hub.hub.requests().iter().filter(|request| request.path().contains(part)).count()
    };
    assert_eq!((asked("/revision/"), asked("/resolve/")), (1, 1));
    assert_eq!(hub.files.requests().len(), 3);
    let commit = testkit::server::COMMIT;
    assert!(
        hub.hub
            .requests()
            .iter()
            .all(|r| r.path().contains(commit) || r.path().contains("/revision/"))
    );
}

#[test]
fn a_gated_data_set_and_an_offline_machine_are_errors() {
    let folder = testkit::Folder::new();
    folder.put("x.parquet", b"x");
    let hub = DatasetHub::start("owner/name", &folder.path(""), true);
    let mut variables = hub.variables();
    variables[1].1 = "hf_another_secret".to_owned();
    let message = failure(&access(variables), "hf://datasets/owner/name/x.parquet").to_string();
    assert!(message.contains("HF_TOKEN") && message.contains("401, GatedRepo"), "{message}");
    assert!(!message.contains("hf_another_secret") && !message.contains(TOKEN), "{message}");
    let mut variables = hub.variables();
    variables.push(("HF_HUB_OFFLINE".to_owned(), "1".to_owned()));
    let error = failure(&access(variables), "hf://datasets/owner/name/x.parquet");
    assert!(matches!(error, LocationError::Offline { .. }), "{error}");
    let message = failure(&access(hub.variables()), "hf://datasets/owner/other/x.parquet");
    assert!(message.to_string().contains("check the name"), "{message}");
}
