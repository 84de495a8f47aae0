//! Uploads: whole or not at all, and never over what is not ours.

mod common;

use std::io::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};

use common::{access, at, noise};
use locations::{Condition, File, LocationError, Upload};
use testkit::objects::{ObjectStore, etag};
use testkit::server::{Reply, Request, Sending};

#[test]
fn an_upload_is_there_when_it_is_whole() {
    let store = ObjectStore::start();
    let access = access(store.variables());
    let out = at(&access, "s3://bucket/run/labels.parquet");
    let bytes = noise((20 << 20) + 5);
    let mut upload = Upload::begin(&out, &Condition::Absent).unwrap();
    for part in bytes.chunks(777_777) {
        upload.write_all(part).unwrap();
        assert!(store.object("bucket/run/labels.parquet").is_none());
    }
    // Every kind of trouble that passes.
    store.set_fault(|_, before, reply| match before {
        0 => Reply::new(503, b""),
        1 => reply.sent(Sending::Breaks(0)),
        _ => reply,
    });
    upload.finish().unwrap();
    assert!(store.object("bucket/run/labels.parquet").unwrap() == bytes);
    assert_eq!(store.open_uploads(), 0);
}

/// Whether a request completes an upload.
fn completes(request: &Request) -> bool {
    request.method == "POST" && request.query("uploadId").is_some()
}

#[test]
fn a_lost_answer_is_not_taken_for_another_object() {
    // What was asked for is done, and the answer breaks off or is that of a tired server.
    let faults: [fn(Reply) -> Reply; 3] = [
        |reply| reply.sent(Sending::Breaks(10)),
        |_| Reply::new(500, b""),
        |_| Reply::new(200, b"<?xml version=\"1.0\"?>\n<Error><Code>InternalError</Code></Error>"),
    ];
    for fault in faults {
        let store = ObjectStore::start();
        let access = access(store.variables());
        let out = at(&access, "s3://bucket/labels.parquet");
        let lost = AtomicBool::new(false);
        store.set_fault(move |request, _, reply| {
            match completes(request) && !lost.swap(true, Ordering::Relaxed) {
                true => fault(reply),
                false => reply,
            }
        });
        let bytes = noise((9 << 20) + 3);
        let mut upload = Upload::begin(&out, &Condition::Absent).unwrap();
        upload.write_all(&bytes).unwrap();
        upload.finish().unwrap();
        assert!(store.object("bucket/labels.parquet").unwrap() == bytes);
        // And read by the same process, although it was not there at first.
        let file = File::open(&out).unwrap();
        assert!(file.bytes(0..file.len()).unwrap() == bytes);
    }
    // Another's object of the same length stays, whatever became of the answer.
    let store = ObjectStore::start();
    let access = access(store.variables());
    let out = at(&access, "s3://bucket/labels.parquet");
    let mut upload = Upload::begin(&out, &Condition::Absent).unwrap();
    upload.write_all(b"ours").unwrap();
    store.put("bucket/labels.parquet", b"them");
    let error = upload.finish().unwrap_err();
    assert!(matches!(error, LocationError::Exists { .. }), "{error}");
    assert_eq!(store.object("bucket/labels.parquet").unwrap(), b"them");
}

#[test]
fn an_object_that_we_replaced_is_read_anew() {
    let store = ObjectStore::start();
    let access = access(store.variables());
    let out = at(&access, "s3://bucket/labels.parquet");
    store.put("bucket/labels.parquet", b"old");
    assert_eq!(File::open(&out).unwrap().bytes(0..3).unwrap().as_ref(), b"old");
    let replaces = Condition::Replaces(etag(b"old"));
    let mut upload = Upload::begin(&out, &replaces).unwrap();
    upload.write_all(b"newer").unwrap();
    upload.finish().unwrap();
    assert_eq!(File::open(&out).unwrap().bytes(0..5).unwrap().as_ref(), b"newer");
}

#[test]
fn an_empty_object_can_be_written() {
    let store = ObjectStore::start();
    let access = access(store.variables());
    let out = at(&access, "s3://bucket/empty");
    Upload::begin(&out, &Condition::Absent).unwrap().finish().unwrap();
    assert_eq!(store.object("bucket/empty").unwrap(), b"");
}

#[test]
fn an_upload_that_is_dropped_leaves_nothing() {
    let store = ObjectStore::start();
    let access = access(store.variables());
    let out = at(&access, "s3://bucket/labels.parquet");
    let mut upload = Upload::begin(&out, &Condition::Absent).unwrap();
    upload.write_all(&noise(9 << 20)).unwrap();
    assert_eq!(store.open_uploads(), 1);
    drop(upload);
    assert_eq!((store.open_uploads(), store.object("bucket/labels.parquet")), (0, None));
}

#[test]
fn what_another_has_written_stays() {
    let store = ObjectStore::start();
    let access = access(store.variables());
    let out = at(&access, "s3://bucket/labels.parquet");
    let mut upload = Upload::begin(&out, &Condition::Absent).unwrap();
    upload.write_all(b"ours").unwrap();
    store.put("bucket/labels.parquet", b"theirs");
    let error = upload.finish().unwrap_err();
    assert!(matches!(error, LocationError::Exists { .. }), "{error}");
    assert_eq!(store.object("bucket/labels.parquet").unwrap(), b"theirs");
    assert_eq!(store.open_uploads(), 0);
    // Before the work begins, too.
    let error = Upload::begin(&out, &Condition::Absent).unwrap_err();
    assert!(matches!(error, LocationError::Exists { .. }), "{error}");
}

#[test]
fn our_own_object_is_replaced_if_it_is_still_there() {
    let store = ObjectStore::start();
    let access = access(store.variables());
    let out = at(&access, "s3://bucket/labels.parquet");
    store.put("bucket/labels.parquet", b"old");
    let replaces = Condition::Replaces(etag(b"old"));
    let mut upload = Upload::begin(&out, &replaces).unwrap();
    upload.write_all(b"new").unwrap();
    upload.finish().unwrap();
    assert_eq!(store.object("bucket/labels.parquet").unwrap(), b"new");
    let replaces = Condition::Replaces(etag(b"new"));
    let mut upload = Upload::begin(&out, &replaces).unwrap();
    upload.write_all(b"newer").unwrap();
    store.put("bucket/labels.parquet", b"theirs");
    assert!(matches!(upload.finish().unwrap_err(), LocationError::Exists { .. }));
    assert_eq!(store.object("bucket/labels.parquet").unwrap(), b"theirs");
}

#[test]
fn what_is_no_object_is_not_written_to() {
    let access = access(Vec::new());
    for place in ["https://host/x", "hf://datasets/o/n/x", "s3://bucket/", "gs://bucket/*"] {
        let error = Upload::begin(&at(&access, place), &Condition::Absent).unwrap_err();
        assert!(matches!(error, LocationError::Form { .. }), "{error}");
    }
}
