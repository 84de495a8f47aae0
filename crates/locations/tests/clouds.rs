//! Google Cloud Storage and Azure: what goes to which address, with whose name. Servers of this
//! machine answer in their languages.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::io::Write as _;
use std::sync::{Arc, Mutex};

use common::{access, at, noise};
use locations::{Access, Condition, File, LocationError, Upload, find};
use testkit::server::{Reply, Request, Server};

const DATE: &str = "Sat, 28 Nov 2026 10:00:00 GMT";

/// Lists and reads the two files below `pairs`, by `root`.
fn lists_and_reads(access: &Access, root: &str, bytes: &[u8]) {
    let found = find(&at(access, &format!("{root}/pairs/*.parquet"))).unwrap();
    let names: Vec<&str> = found.items.iter().map(|item| item.name.as_str()).collect();
    assert_eq!(names, ["a b.parquet", "c.parquet"]);
    for item in &found.items {
        // Of the version that the listing told, whose spelling may be another.
        let file = File::open(&item.location).unwrap();
        assert_eq!((file.len(), file.version()), (bytes.len() as u64, Some("\"0x8D1\"")));
        assert!(file.bytes(10..4000).unwrap() == bytes[10..4000]);
    }
    // Without a listing before.
    let file = File::open(&at(access, &format!("{root}/pairs/alone.parquet"))).unwrap();
    assert!(file.bytes(0..file.len()).unwrap() == bytes);
    let missing = File::open(&at(access, &format!("{root}/pairs/none.parquet"))).unwrap_err();
    assert!(matches!(missing, LocationError::Missing { .. }), "{missing}");
}

/// An object, where there is one.
fn object(request: &Request, bytes: &[u8]) -> Reply {
    let path = request.decoded_path();
    if !path.ends_with(".parquet") || path.ends_with("none.parquet") {
        return Reply::new(404, b"");
    }
    if request.header("if-match").is_some_and(|tag| tag != "\"0x8D1\"") {
        return Reply::new(412, b"");
    }
    let reply = Reply::new(200, bytes).ranged(request);
    reply.with("ETag", "\"0x8D1\"").with("Last-Modified", DATE)
}

#[test]
fn google_cloud_storage_is_listed_and_read() {
    let bytes = noise(5000);
    let held = bytes.clone();
    let server = Server::start(move |request| {
        if request.path() != "/bucket" {
            return object(request, &held);
        }
        let rows = ["pairs/a b.parquet", "pairs/c.parquet", "pairs/d/c.parquet"].map(|key| {
            format!(
                "<Contents><Key>{key}</Key><LastModified>2026-11-28T10:00:00Z</LastModified>\
                 <ETag>&quot;0x8D1&quot;</ETag><Size>5000</Size></Contents>"
            )
        });
        let body = format!("<ListBucketResult>{}</ListBucketResult>", rows.concat());
        Reply::new(200, body.as_bytes())
    });
    // A key as emulators want it.
    let key = format!(
        "{{\"private_key\": \"s3cret\", \"private_key_id\": \"k\", \"client_email\": \"me\", \
         \"disable_oauth\": true, \"gcs_base_url\": \"{}\"}}",
        server.address()
    );
    let with_key = [("GOOGLE_SERVICE_ACCOUNT_KEY", key.as_str())];
    lists_and_reads(&access(owned(&with_key)), "gs://bucket", &bytes);
    let address = server.address();
    let with_token = [("GOOGLE_BASE_URL", address.as_str()), ("GOOGLE_BEARER_TOKEN", "token")];
    lists_and_reads(&access(owned(&with_token)), "gs://bucket", &bytes);
    let requests = server.requests();
    let asked: Vec<String> = requests.iter().map(Request::decoded_path).collect();
    assert!(asked.contains(&"/bucket/pairs/a b.parquet".to_owned()), "{asked:?}");
    let lists: Vec<_> = requests.iter().filter(|request| request.path() == "/bucket").collect();
    assert_eq!(lists.len(), 2, "{asked:?}");
    assert!(lists.iter().all(|list| list.query("prefix").as_deref() == Some("pairs/")));
    assert_eq!(lists[1].header("authorization"), Some("Bearer token"));
    // Plain http is for this machine.
    let elsewhere = [("GOOGLE_BASE_URL", "http://storage.example"), ("GOOGLE_BEARER_TOKEN", "t")];
    let error = find(&at(&access(owned(&elsewhere)), "gs://bucket/x")).unwrap_err();
    assert!(matches!(error, LocationError::PlainHttp { .. }), "{error}");
}

#[test]
fn azure_is_listed_and_read() {
    let bytes = noise(5000);
    let held = bytes.clone();
    let server = Server::start(move |request| {
        if !request.header("authorization").unwrap_or("").starts_with("SharedKey account:") {
            return Reply::new(403, b"").with("x-ms-error-code", "AuthenticationFailed");
        }
        if request.query("comp").is_none() {
            return object(request, &held);
        }
        let rows = ["pairs/a b.parquet", "pairs/c.parquet", "pairs/d/c.parquet"].map(|name| {
            format!(
                "<Blob><Name>{name}</Name><Properties><Last-Modified>{DATE}</Last-Modified>\
                 <Etag>0x8D1</Etag><Content-Length>5000</Content-Length>\
                 <Content-Type>application/octet-stream</Content-Type></Properties></Blob>"
            )
        });
        let body = format!(
            "<EnumerationResults><Blobs>{}</Blobs><NextMarker/></EnumerationResults>",
            rows.concat()
        );
        Reply::new(200, body.as_bytes())
    });
    let address = server.address();
    let variables = [
        ("AZURE_STORAGE_ENDPOINT", address.as_str()),
        ("AZURE_STORAGE_ACCOUNT_NAME", "account"),
        ("AZURE_STORAGE_ACCOUNT_KEY", "czNjcmV0"),
    ];
    lists_and_reads(&access(owned(&variables)), "az://container", &bytes);
    let root = "abfss://container@account.dfs.core.windows.net";
    lists_and_reads(&access(owned(&variables)), root, &bytes);
    let requests = server.requests();
    let lists: Vec<_> = requests.iter().filter(|list| list.query("comp").is_some()).collect();
    assert_eq!(lists.len(), 2);
    for list in lists {
        assert_eq!(list.path(), "/container");
        assert_eq!(list.query("prefix").as_deref(), Some("pairs/"));
        assert_eq!(list.query("comp").as_deref(), Some("list"));
    }
    // Another account is refused, and its key is in no message.
    let mut others = variables;
    others[1].1 = "another";
    let error = find(&at(&access(owned(&others)), "az://container/pairs")).unwrap_err();
    let message = error.to_string();
    assert!(matches!(error, LocationError::Refused { status: 403, .. }), "{message}");
    assert!(message.contains("AZURE_STORAGE_ACCOUNT_KEY"), "{message}");
    assert!(!message.contains("czNjcmV0"), "{message}");
    // No account at all.
    let error = find(&at(&access(owned(&variables[..1])), "az://container/pairs")).unwrap_err();
    assert!(error.to_string().contains("AZURE_STORAGE_ACCOUNT_NAME"), "{error}");
    let spoiled = [variables[0], variables[1], ("AZURE_STORAGE_ACCOUNT_KEY", "not base64!")];
    let message =
        find(&at(&access(owned(&spoiled)), "az://container/pairs")).unwrap_err().to_string();
    assert!(!message.contains("not base64!") && !message.contains('\n'), "{message}");
}

fn owned(variables: &[(&str, &str)]) -> Vec<(String, String)> {
    variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

/// An object that both languages write: its bytes, and how often it was written.
type Held = Arc<Mutex<Option<(Vec<u8>, usize)>>>;

/// A server that holds one object and knows the conditions of both clouds.
fn writable(held: &Held) -> Server {
    let held = Arc::clone(held);
    Server::start(move |request| {
        let mut held = held.lock().unwrap();
        let tag = |version: usize| format!("\"tag {version}\"");
        let described = |reply: Reply, version: usize| {
            let reply = reply.with("ETag", &tag(version)).with("Last-Modified", DATE);
            reply.with("x-goog-generation", &version.to_string())
        };
        let version = held.as_ref().map(|(_, version)| *version);
        match (request.method.as_str(), &*held) {
            ("PUT", _) => {
                let generation = request.header("x-goog-if-generation-match");
                let wrong = match (generation, request.header("if-match"), version) {
                    (Some(generation), ..) => generation != version.unwrap_or(0).to_string(),
                    (_, Some(wanted), version) => version.map(tag).as_deref() != Some(wanted),
                    (None, None, version) => {
                        assert_eq!(request.header("if-none-match"), Some("*"), "{request:?}");
                        version.is_some()
                    }
                };
                if wrong {
                    return Reply::new(412, b"");
                }
                let version = version.unwrap_or(0) + 1;
                *held = Some((request.body.clone(), version));
                described(Reply::new(201, b""), version)
            }
            (_, Some((bytes, version))) => {
                described(Reply::new(200, bytes).ranged(request), *version)
            }
            (_, None) => Reply::new(404, b""),
        }
    })
}

/// Writes, replaces, and leaves alone what another has written.
fn writes(access: &Access, held: &Held, place: &str) {
    let out = at(access, place);
    Upload::check(&out).unwrap();
    let upload = |condition: &Condition, bytes: &[u8], meanwhile: Option<&[u8]>| {
        let mut upload = Upload::begin(&out, condition)?;
        for part in bytes.chunks(100_000) {
            upload.write_all(part).unwrap();
        }
        if let Some(bytes) = meanwhile {
            *held.lock().unwrap() = Some((bytes.to_vec(), 7));
        }
        upload.finish()
    };
    let bytes = noise((9 << 20) + 1);
    upload(&Condition::Absent, &bytes, None).unwrap();
    assert!(held.lock().unwrap().as_ref().unwrap().0 == bytes);
    let error = upload(&Condition::Absent, b"other", None).unwrap_err();
    assert!(matches!(error, LocationError::Exists { .. }), "{error}");
    let version = File::open(&out).unwrap().version().unwrap().to_owned();
    upload(&Condition::Replaces(version.clone()), b"new", None).unwrap();
    assert_eq!(held.lock().unwrap().as_ref().unwrap().0, b"new");
    for condition in [Condition::Absent, Condition::Replaces("\"tag 2\"".to_owned())] {
        if condition == Condition::Absent {
            *held.lock().unwrap() = None;
        } else {
            *held.lock().unwrap() = Some((b"new".to_vec(), 2));
        }
        let error = upload(&condition, b"ours", Some(b"theirs")).unwrap_err();
        assert!(matches!(error, LocationError::Exists { .. }), "{error}");
        assert_eq!(held.lock().unwrap().as_ref().unwrap().0, b"theirs");
    }
    *held.lock().unwrap() = None;
}

#[test]
fn both_clouds_are_written_in_one_request_under_a_condition() {
    let held = Held::default();
    let server = writable(&held);
    let address = server.address();
    let google = [("GOOGLE_BASE_URL", address.as_str()), ("GOOGLE_BEARER_TOKEN", "token")];
    writes(&access(owned(&google)), &held, "gs://bucket/out/labels.parquet");
    let azure = [
        ("AZURE_STORAGE_ENDPOINT", address.as_str()),
        ("AZURE_STORAGE_ACCOUNT_NAME", "account"),
        ("AZURE_STORAGE_ACCOUNT_KEY", "czNjcmV0"),
    ];
    writes(&access(owned(&azure)), &held, "az://container/out/labels.parquet");
    let requests = server.requests();
    let puts = requests.iter().filter(|request| request.method == "PUT");
    assert_eq!(puts.count(), 2 * 4, "one request for each object");
}
