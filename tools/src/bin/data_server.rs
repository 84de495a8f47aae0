//! Object storage and a hub of data sets on this machine, for scripts that measure and kill the
//! programs: `data_server [--faults] NAME=FOLDER...`.
//!
//! Every folder is below `s3://data/NAME`, the first one is also the data set `hf://datasets/o/NAME`.
//! All of it is held in memory. The first line on stdout is JSON: `s3` and `hf`, the variables that
//! lead a program here, and `control`, an address with
//!
//! - `/traffic`: requests to the object storage so far, the bytes of its answers, open uploads;
//! - `/object/data/KEY`: the bytes of an object.
//!
//! With `--faults`, some answers of the object storage are 503 and some break off in the middle. What
//! the request did is done nevertheless. The program ends when its stdin is closed.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context as _, ensure};
use testkit::objects::{DatasetHub, ObjectStore};
use testkit::server::{Reply, Sending, Server};

fn main() -> anyhow::Result<()> {
    let (mut faults, mut folders) = (false, Vec::new());
    for word in std::env::args().skip(1) {
        match word.split_once('=') {
            Some((name, folder)) => folders.push((name.to_owned(), folder.to_owned())),
            None if word == "--faults" => faults = true,
            None => anyhow::bail!("expected --faults or NAME=FOLDER, found {word:?}"),
        }
    }
    let store = Arc::new(ObjectStore::start());
    for (name, folder) in &folders {
        let folder = Path::new(folder);
        ensure!(folder.is_dir(), "{}: expected a folder", folder.display());
        store.put_folder(&format!("data/{name}"), folder);
    }
    let (name, folder) = folders.first().context("expected NAME=FOLDER")?;
    let hub = DatasetHub::start(&format!("o/{name}"), Path::new(folder), true);
    let (requests, bytes) = (Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default());
    let counted = (Arc::clone(&requests), Arc::clone(&bytes));
    store.set_fault(move |request, before, reply| {
        let reply = if faults { spoiled(before, reply) } else { reply };
        let sent = if request.method == "HEAD" { 0 } else { reply.body.len() };
        counted.0.fetch_add(1, Ordering::Relaxed);
        counted.1.fetch_add(sent as u64, Ordering::Relaxed);
        reply
    });
    let held = Arc::clone(&store);
    let control = Server::start(move |request| {
        if request.path() == "/traffic" {
            let traffic = serde_json::json!({
                "requests": requests.load(Ordering::Relaxed),
                "bytes": bytes.load(Ordering::Relaxed),
                "open_uploads": held.open_uploads(),
            });
            return Reply::new(200, traffic.to_string().as_bytes());
        }
        let object = request.path().strip_prefix("/object/").and_then(|name| held.object(name));
        object.map_or_else(|| Reply::new(404, b""), |bytes| Reply::new(200, &bytes))
    });
    let variables = |pairs: Vec<(String, String)>| pairs.into_iter().collect::<BTreeMap<_, _>>();
    let said = serde_json::json!({
        "s3": variables(store.variables()),
        "hf": variables(hub.variables()),
        "control": control.address(),
    });
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{said}")?;
    stdout.flush()?;
    // Until whoever started this is gone.
    std::io::stdin().lock().read_to_end(&mut Vec::new())?;
    Ok(())
}

/// An answer of every 13th request is 503, one of every 17th breaks off.
fn spoiled(before: usize, reply: Reply) -> Reply {
    match before {
        number if number % 13 == 5 => Reply::new(503, b""),
        number if number % 17 == 7 => {
            let half = reply.body.len() / 2;
            reply.sent(Sending::Breaks(half))
        }
        _ => reply,
    }
}
