//! Servers of data: object storage in the language of S3, and data sets of a hub, whose files lie
//! on a second server. A fault can be put before every answer.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

use crate::server::{COMMIT, Reply, Request, Server, decoded};

/// The access key that the servers know.
pub const ACCESS_KEY: &str = "test-key";
/// A secret that must never be shown.
pub const SECRET: &str = "test-secret-5cb8";
/// The token that the hub knows.
pub const TOKEN: &str = "hf_test_token_77aa";
/// How many names a page of a listing has: few, so that every listing has several.
const PAGE: usize = 2;

/// What happens instead of an answer, or to it: it gets the request, how many came before it, and
/// the answer that would be sent.
pub type Fault = dyn Fn(&Request, usize, Reply) -> Reply + Send + Sync;

type Parts = BTreeMap<usize, Vec<u8>>;

/// An object, and its ETag.
#[derive(Clone)]
struct Object {
    bytes: Arc<Vec<u8>>,
    tag: String,
}

impl Object {
    fn new(bytes: Vec<u8>) -> Self {
        Self { tag: etag(&bytes), bytes: Arc::new(bytes) }
    }
}

#[derive(Default)]
struct State {
    /// By `BUCKET/KEY`.
    objects: BTreeMap<String, Object>,
    /// Parts by the number of the upload.
    uploads: BTreeMap<usize, Parts>,
    begun: usize,
    answered: usize,
    fault: Option<Arc<Fault>>,
}

/// Object storage.
pub struct ObjectStore {
    /// The server.
    pub server: Server,
    state: Arc<Mutex<State>>,
}

impl ObjectStore {
    /// An empty store that takes requests signed with [`ACCESS_KEY`].
    pub fn start() -> Self {
        let state = Arc::<Mutex<State>>::default();
        let kept = Arc::clone(&state);
        let server = Server::start(move |request| {
            let (answer, fault, before) = {
                let mut state = kept.lock().unwrap();
                let before = state.answered;
                state.answered += 1;
                (state.answer(request), state.fault.clone(), before)
            };
            // Copies of large ranges need no lock.
            let mut reply = match answer {
                Answer::Done(reply) => reply,
                Answer::Range(object) => part_of(&object, request),
            };
            if let Some(fault) = fault {
                reply = fault(request, before, reply);
            }
            reply
        });
        Self { server, state }
    }

    /// The variables that lead a client here.
    pub fn variables(&self) -> Vec<(String, String)> {
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        vec![
            pair("AWS_ENDPOINT_URL", &self.server.address()),
            pair("AWS_ACCESS_KEY_ID", ACCESS_KEY),
            pair("AWS_SECRET_ACCESS_KEY", SECRET),
            pair("AWS_REGION", "us-east-1"),
        ]
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Puts an object under `BUCKET/KEY`.
    pub fn put(&self, name: &str, bytes: &[u8]) {
        let object = Object::new(bytes.to_vec());
        self.state().objects.insert(name.to_owned(), object);
    }

    /// Removes the object under `BUCKET/KEY`.
    pub fn remove(&self, name: &str) {
        self.state().objects.remove(name);
    }

    /// Puts all files below a folder under `BUCKET/PREFIX`.
    pub fn put_folder(&self, prefix: &str, folder: &Path) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = format!("{prefix}/{}", path.file_name().unwrap().to_str().unwrap());
            if path.is_dir() {
                self.put_folder(&name, &path);
            } else {
                self.put(&name, &std::fs::read(path).unwrap());
            }
        }
    }

    /// The object under `BUCKET/KEY`.
    pub fn object(&self, name: &str) -> Option<Vec<u8>> {
        self.state().objects.get(name).map(|object| object.bytes.to_vec())
    }

    /// The objects below `BUCKET/PREFIX`, by their names there.
    pub fn below(&self, prefix: &str) -> BTreeMap<String, Vec<u8>> {
        let state = self.state();
        let below = state.objects.iter().filter_map(|(name, object)| {
            let name = name.strip_prefix(prefix)?.strip_prefix('/')?;
            Some((name.to_owned(), object.bytes.to_vec()))
        });
        below.collect()
    }

    /// Uploads that were begun, and neither completed nor removed.
    pub fn open_uploads(&self) -> usize {
        self.state().uploads.len()
    }

    /// Does something to every answer from now on; requests are counted from 0 again.
    pub fn set_fault(
        &self,
        fault: impl Fn(&Request, usize, Reply) -> Reply + Send + Sync + 'static,
    ) {
        let mut state = self.state();
        state.fault = Some(Arc::new(fault));
        state.answered = 0;
    }

    /// Answers as usual.
    pub fn clear_fault(&self) {
        self.state().fault = None;
    }
}

fn error(status: u16, code: &str) -> Reply {
    // Real servers repeat what was signed: clients must not.
    let text = format!(
        "<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>no</Message>\
         <StringToSign>{SECRET}</StringToSign></Error>"
    );
    Reply::new(status, text.as_bytes()).with("Content-Type", "application/xml")
}

/// The ETag of an object.
pub fn etag(bytes: &[u8]) -> String {
    use std::hash::{DefaultHasher, Hash as _, Hasher as _};
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    format!("\"{:016x}\"", hasher.finish())
}

/// What the store answers.
enum Answer {
    Done(Reply),
    /// The range of this object that the request asks for.
    Range(Object),
}

fn part_of(object: &Object, request: &Request) -> Reply {
    Reply::part_of(&object.bytes, request)
        .with("ETag", &object.tag)
        .with("Last-Modified", "Sat, 28 Nov 2026 10:00:00 GMT")
}

impl State {
    fn answer(&mut self, request: &Request) -> Answer {
        let signed = request.header("authorization").unwrap_or_default();
        if signed.is_empty() {
            return Answer::Done(error(403, "AccessDenied"));
        }
        if !signed.contains(&format!("Credential={ACCESS_KEY}/")) {
            return Answer::Done(error(403, "InvalidAccessKeyId"));
        }
        let path = decoded(request.path());
        let name = path.trim_matches('/').to_owned();
        let upload = request.query("uploadId").and_then(|id| id.parse::<usize>().ok());
        Answer::Done(match (request.method.as_str(), name.contains('/')) {
            ("GET", false) => self.list(&name, request),
            ("GET" | "HEAD", true) => return self.get(&name, request),
            ("POST", true) if request.query("uploads").is_some() => {
                self.begun += 1;
                self.uploads.insert(self.begun, Parts::new());
                let text = format!(
                    "<InitiateMultipartUploadResult><UploadId>{}</UploadId>\
                     </InitiateMultipartUploadResult>",
                    self.begun
                );
                Reply::new(200, text.as_bytes())
            }
            ("PUT", true) => match upload {
                Some(id) => self.put_part(id, request),
                None => {
                    let object = Object::new(request.body.clone());
                    let reply = Reply::new(200, b"").with("ETag", &object.tag);
                    self.objects.insert(name, object);
                    reply
                }
            },
            ("POST", true) => self.complete(&name, upload.unwrap_or(0), request),
            ("DELETE", true) => {
                match upload {
                    Some(id) => drop(self.uploads.remove(&id)),
                    None => drop(self.objects.remove(&name)),
                }
                Reply::new(204, b"")
            }
            _ => error(405, "MethodNotAllowed"),
        })
    }

    fn get(&self, name: &str, request: &Request) -> Answer {
        let Some(object) = self.objects.get(name) else {
            return Answer::Done(error(404, "NoSuchKey"));
        };
        if request.header("if-match").is_some_and(|wanted| wanted != object.tag) {
            return Answer::Done(error(412, "PreconditionFailed"));
        }
        Answer::Range(object.clone())
    }

    fn put_part(&mut self, id: usize, request: &Request) -> Reply {
        let number = request.query("partNumber").unwrap().parse().unwrap();
        let Some(parts) = self.uploads.get_mut(&id) else { return error(404, "NoSuchUpload") };
        parts.insert(number, request.body.clone());
        Reply::new(200, b"").with("ETag", &etag(&request.body))
    }

    fn complete(&mut self, name: &str, id: usize, request: &Request) -> Reply {
        let present = self.objects.get(name).map(|object| object.tag.clone());
        let wanted = request.header("if-match");
        let nothing_wanted = request.header("if-none-match") == Some("*");
        if (nothing_wanted && present.is_some())
            || wanted.is_some_and(|wanted| present.as_deref() != Some(wanted))
        {
            return error(412, "PreconditionFailed");
        }
        let Some(parts) = self.uploads.remove(&id) else { return error(404, "NoSuchUpload") };
        let whole = Object::new(parts.into_values().flatten().collect());
        let text = format!(
            "<CompleteMultipartUploadResult><Location>x</Location><Bucket>b</Bucket><Key>k</Key>\
             <ETag>{}</ETag></CompleteMultipartUploadResult>",
            whole.tag
        );
        self.objects.insert(name.to_owned(), whole);
        Reply::new(200, text.as_bytes())
    }

    fn list(&self, bucket: &str, request: &Request) -> Reply {
        let prefix = format!("{bucket}/{}", request.query("prefix").unwrap_or_default());
        let after = request.query("continuation-token").unwrap_or_default();
        let mut below = self
            .objects
            .iter()
            .filter(|(name, _)| name.starts_with(&prefix) && **name > after)
            .peekable();
        let mut text = String::from("<?xml version=\"1.0\"?><ListBucketResult>");
        let mut last = String::new();
        for (name, object) in below.by_ref().take(PAGE) {
            let key = name.split_once('/').unwrap().1;
            let (tag, size) = (object.tag.replace('"', "&quot;"), object.bytes.len());
            let _ = write!(
                text,
                "<Contents><Key>{key}</Key><LastModified>2026-11-28T10:00:00.000Z</LastModified>\
                 <ETag>{tag}</ETag><Size>{size}</Size></Contents>"
            );
            last.clone_from(name);
        }
        match below.peek() {
            None => text += "<IsTruncated>false</IsTruncated>",
            Some(_) => {
                let _ = write!(
                    text,
                    "<IsTruncated>true</IsTruncated>\
                     <NextContinuationToken>{last}</NextContinuationToken>"
                );
            }
        }
        text += "</ListBucketResult>";
        Reply::new(200, text.as_bytes())
    }
}

/// A hub with one data set, and the second server that holds its files.
pub struct DatasetHub {
    /// The hub.
    pub hub: Server,
    /// Where it redirects to.
    pub files: Server,
}

impl DatasetHub {
    /// Serves a folder as the data set `owner/name`, to bearers of [`TOKEN`] only if `gated`.
    pub fn start(name: &str, folder: &Path, gated: bool) -> Self {
        let mut contents = BTreeMap::new();
        collect(folder, "", &mut contents);
        let contents = Arc::new(contents);
        let held = Arc::clone(&contents);
        let files = Server::start(move |request| {
            // A token that comes here has left its server.
            if request.header("authorization").is_some() || request.query("Signature").is_none() {
                return Reply::new(400, b"");
            }
            match held.get(decoded(request.path()).trim_start_matches('/')) {
                Some(object) => Reply::part_of(&object.bytes, request).with("ETag", &object.tag),
                None => Reply::new(404, b""),
            }
        });
        let (second, name) = (files.address(), name.to_owned());
        let hub = Server::start(move |request| {
            let bearer = format!("Bearer {TOKEN}");
            if gated && request.header("authorization") != Some(&bearer) {
                return Reply::new(401, b"").with("X-Error-Code", "GatedRepo");
            }
            let path = decoded(request.path());
            let api = format!("/api/datasets/{name}/");
            if path.starts_with(&format!("{api}revision/")) {
                return Reply::new(200, format!("{{\"sha\": \"{COMMIT}\"}}").as_bytes());
            }
            if let Some(rest) = path.strip_prefix(&format!("{api}tree/{COMMIT}")) {
                return tree(rest.trim_matches('/'), request, &contents);
            }
            if let Some(file) = path.strip_prefix(&format!("/datasets/{name}/resolve/{COMMIT}/")) {
                return Reply::new(302, b"")
                    .with("Location", &format!("{second}/{file}?Signature={SECRET}"))
                    .with("X-Repo-Commit", COMMIT);
            }
            Reply::new(404, b"").with("X-Error-Code", "RepoNotFound")
        });
        Self { hub, files }
    }

    /// The variables that lead a client here.
    pub fn variables(&self) -> Vec<(String, String)> {
        vec![
            ("HF_ENDPOINT".to_owned(), self.hub.address()),
            ("HF_TOKEN".to_owned(), TOKEN.to_owned()),
        ]
    }
}

fn collect(folder: &Path, prefix: &str, into: &mut BTreeMap<String, Object>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = format!("{prefix}{}", path.file_name().unwrap().to_str().unwrap());
        if path.is_dir() {
            collect(&path, &format!("{name}/"), into);
        } else {
            into.insert(name, Object::new(std::fs::read(path).unwrap()));
        }
    }
}

/// A page of the files below a folder, as the hub lists them.
fn tree(folder: &str, request: &Request, contents: &BTreeMap<String, Object>) -> Reply {
    let prefix = if folder.is_empty() { String::new() } else { format!("{folder}/") };
    let is_deep = request.query("recursive").as_deref() == Some("true");
    let below: Vec<(&String, &Object)> = contents
        .iter()
        .filter(|(name, _)| {
            name.strip_prefix(&prefix).is_some_and(|rest| is_deep || !rest.contains('/'))
        })
        .collect();
    if below.is_empty() {
        return Reply::new(404, b"").with("X-Error-Code", "EntryNotFound");
    }
    let first: usize = request.query("cursor").map_or(0, |cursor| cursor.parse().unwrap());
    let page = below.iter().skip(first).take(PAGE).map(|(name, object)| {
        let (size, oid) = (object.bytes.len(), object.tag.replace('"', ""));
        format!(
            "{{\"type\": \"file\", \"path\": \"{name}\", \"size\": {size}, \"oid\": \"{oid}\"}}"
        )
    });
    let body = format!("[{}]", page.collect::<Vec<_>>().join(", "));
    let reply = Reply::new(200, body.as_bytes());
    if first + PAGE >= below.len() {
        return reply;
    }
    let path = request.path();
    let next = format!("<{path}?recursive={is_deep}&cursor={}>; rel=\"next\"", first + PAGE);
    reply.with("Link", &next)
}
