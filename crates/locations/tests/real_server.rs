//! The same with a server of somebody else's, if there is one:
//!
//! ```text
//! pip install 'moto[server]' && moto_server -p 5000 &
//! AWS_ENDPOINT_URL=http://127.0.0.1:5000 AWS_ACCESS_KEY_ID=x AWS_SECRET_ACCESS_KEY=x \
//!     LOCATIONS_TEST_PLACE=s3://BUCKET/FOLDER cargo test -p balanceddpo-locations --test real_server
//! ```
//!
//! The bucket must exist. The test writes below a new folder and leaves it there.

mod common;

use std::io::{Read as _, Write as _};
use std::path::PathBuf;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use common::noise;
use locations::{Access, Condition, File, Location, LocationError, Upload, find};

#[test]
fn objects_are_written_listed_and_read() {
    let Some(place) = std::env::var_os("LOCATIONS_TEST_PLACE") else { return };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos();
    let folder = Location::parse(&PathBuf::from(place)).unwrap().join(&now.to_string()).unwrap();
    let bytes = noise(50 << 20);
    let write = |name: &str, bytes: &[u8]| {
        let out = folder.join(name).unwrap();
        let mut upload = Upload::begin(&out, &Condition::Absent)?;
        upload.write_all(bytes).unwrap();
        upload.finish()
    };
    write("a/large.bin", &bytes).unwrap();
    write("a b+c/ü.bin", b"small").unwrap();
    write("empty", b"").unwrap();
    let found = find(&folder).unwrap();
    let names: Vec<&str> = found.items.iter().map(|item| item.name.as_str()).collect();
    assert_eq!(names, ["a/large.bin", "a b+c/ü.bin", "empty"]);
    let small = File::open(&found.items[1].location).unwrap();
    assert_eq!(small.bytes(0..small.len()).unwrap().as_ref(), b"small");
    let large = File::open(&found.items[0].location).unwrap();
    assert_eq!(large.len(), 50 << 20);
    let (before, since) = (Access::of_process().traffic(), Instant::now());
    let mut read = Vec::new();
    large.reader(0..large.len()).read_to_end(&mut read).unwrap();
    assert!(read == bytes);
    let seconds = since.elapsed().as_secs_f64();
    let requests = Access::of_process().traffic().requests - before.requests;
    println!("{requests} requests for 50 MiB, {:.0} MiB/s", 50.0 / seconds);
    // What is there stays.
    let error = write("a/large.bin", b"x").unwrap_err();
    assert!(matches!(error, LocationError::Exists { .. }), "{error}");
    let missing = find(&folder.join("none").unwrap()).unwrap_err();
    assert!(matches!(missing, LocationError::Missing { .. }), "{missing}");
    // Another one comes between the first request and the last.
    let out = folder.join("late").unwrap();
    let mut late = Upload::begin(&out, &Condition::Absent).unwrap();
    late.write_all(b"ours").unwrap();
    write("late", b"theirs").unwrap();
    let late = late.finish();
    println!("a late upload ends with {late:?}");
    let kept = File::open(&folder.join("late").unwrap()).unwrap();
    let kept = kept.bytes(0..kept.len()).unwrap();
    match late {
        Err(error) => {
            assert!(matches!(error, LocationError::Exists { .. }), "{error}");
            assert_eq!(kept.as_ref(), b"theirs");
        }
        // Servers that do not know the condition on uploads in parts.
        Ok(()) => assert_eq!(kept.as_ref(), b"ours"),
    }
}
