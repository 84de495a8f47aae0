//! A small HTTP server on this machine whose responses a test defines, and one that acts as a hub
//! of models.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A received request.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// `GET`, `HEAD`, `PUT`, `POST`, `DELETE` or `CONNECT`.
    pub method: String,
    /// The target in the first line: a path, or a whole address if the server is a proxy.
    pub target: String,
    /// Lower-case names, and values.
    pub headers: Vec<(String, String)>,
    /// The body, if it came with its length.
    pub body: Vec<u8>,
}

impl Request {
    /// The value of a header, by its lower-case name.
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    }

    /// The path, without the query.
    pub fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or_default()
    }

    /// The path with percent signs decoded.
    pub fn decoded_path(&self) -> String {
        decoded(self.path())
    }

    /// The first byte that `Range` requests.
    pub fn range_from(&self) -> Option<usize> {
        self.header("range")?.strip_prefix("bytes=")?.split('-').next()?.parse().ok()
    }

    /// The last byte that `Range` requests, if it names one.
    pub fn range_to(&self) -> Option<usize> {
        self.header("range")?.split('-').nth(1)?.parse().ok()
    }

    /// A value of the query, with percent signs decoded.
    pub fn query(&self, name: &str) -> Option<String> {
        let (_, query) = self.target.split_once('?')?;
        query.split('&').find_map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (key == name).then(|| decoded(value))
        })
    }
}

/// How the body is sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Sending {
    /// With its length.
    #[default]
    Whole,
    /// The connection breaks after so many bytes.
    Breaks(usize),
    /// The connection stalls after so many bytes.
    Stalls(usize),
    /// A byte at a time, with pauses of so many milliseconds.
    Trickles(u64),
    /// In chunks, without a length.
    Chunked,
    /// Until the connection is closed, without a length.
    UntilClosed,
}

/// A response.
#[derive(Debug, Clone, Default)]
pub struct Reply {
    /// The status.
    pub status: u16,
    /// Headers, without those of the body's length.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
    /// How the body is sent.
    pub sending: Sending,
}

impl Reply {
    /// A response with a body and no headers.
    pub fn new(status: u16, body: &[u8]) -> Self {
        Self { status, body: body.to_vec(), ..Self::default() }
    }

    /// Adds a header.
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Changes how the body is sent.
    pub fn sent(mut self, sending: Sending) -> Self {
        self.sending = sending;
        self
    }

    /// A response with the part of `bytes` that the request's range asks for, or with all of them.
    pub fn part_of(bytes: &[u8], request: &Request) -> Self {
        let Some(first) = request.range_from().filter(|first| *first < bytes.len()) else {
            return Self::new(200, bytes).ranged(request);
        };
        let size = bytes.len();
        let end = request.range_to().map_or(size, |last| (last + 1).clamp(first, size));
        let range = format!("bytes {first}-{}/{size}", end - 1);
        Self::new(206, &bytes[first..end]).with("Content-Range", &range)
    }

    /// Keeps the part of the body that the request's range asks for.
    pub fn ranged(mut self, request: &Request) -> Self {
        let Some(first) = request.range_from() else { return self };
        let size = self.body.len();
        if first >= size {
            return Self::new(416, b"").with("Content-Range", &format!("bytes */{size}"));
        }
        let part = Self::part_of(&self.body, request);
        self.headers.extend(part.headers);
        (self.status, self.body) = (part.status, part.body);
        self
    }
}

/// A running server; it runs until the test ends.
#[derive(Debug)]
pub struct Server {
    /// Its port on 127.0.0.1.
    pub port: u16,
    log: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    /// Starts a server that responds to each request, in its own thread, with `answer`.
    pub fn start(answer: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let log = Arc::<Mutex<Vec<Request>>>::default();
        let (kept, answer) = (Arc::clone(&log), Arc::new(answer));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (log, answer) = (Arc::clone(&kept), Arc::clone(&answer));
                std::thread::spawn(move || {
                    let _ = serve(stream.unwrap(), &log, &*answer);
                });
            }
        });
        Self { port, log }
    }

    /// `http://127.0.0.1:PORT`.
    pub fn address(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Every request so far.
    pub fn requests(&self) -> Vec<Request> {
        self.log.lock().unwrap().clone()
    }
}

fn serve(
    mut stream: TcpStream,
    log: &Mutex<Vec<Request>>,
    answer: &dyn Fn(&Request) -> Reply,
) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let mut words = line.split(' ').map(str::to_owned);
    let mut request = Request {
        method: words.next().unwrap_or_default(),
        target: words.next().unwrap_or_default(),
        ..Request::default()
    };
    loop {
        let mut header = String::new();
        if reader.read_line(&mut header)? == 0 || header.trim().is_empty() {
            break;
        }
        let (name, value) = header.trim().split_once(": ").unwrap_or_default();
        request.headers.push((name.to_lowercase(), value.to_owned()));
    }
    let length = request.header("content-length").and_then(|length| length.parse().ok());
    if let Some(length) = length {
        request.body.resize(length, 0);
        reader.read_exact(&mut request.body)?;
    }
    let reply = answer(&request);
    let is_head = request.method == "HEAD";
    log.lock().unwrap().push(request);
    write!(stream, "HTTP/1.1 {} Anything\r\nConnection: close\r\n", reply.status)?;
    for (name, value) in &reply.headers {
        write!(stream, "{name}: {value}\r\n")?;
    }
    match reply.sending {
        Sending::Chunked => write!(stream, "Transfer-Encoding: chunked\r\n\r\n")?,
        Sending::UntilClosed => write!(stream, "\r\n")?,
        _ => write!(stream, "Content-Length: {}\r\n\r\n", reply.body.len())?,
    }
    if is_head {
        return Ok(());
    }
    match reply.sending {
        Sending::Breaks(count) => stream.write_all(&reply.body[..count]),
        Sending::Stalls(count) => {
            stream.write_all(&reply.body[..count])?;
            stream.flush()?;
            std::thread::sleep(Duration::from_secs(60));
            Ok(())
        }
        Sending::Trickles(pause) => {
            for byte in reply.body {
                stream.write_all(&[byte])?;
                std::thread::sleep(Duration::from_millis(pause));
            }
            Ok(())
        }
        Sending::Chunked => {
            for chunk in reply.body.chunks(2) {
                write!(stream, "{:x}\r\n", chunk.len())?;
                stream.write_all(chunk)?;
                write!(stream, "\r\n")?;
            }
            write!(stream, "0\r\n\r\n")
        }
        Sending::Whole | Sending::UntilClosed => stream.write_all(&reply.body),
    }
}

/// Text with its percent signs decoded.
pub(crate) fn decoded(text: &str) -> String {
    let (bytes, mut decoded, mut at) = (text.as_bytes(), Vec::new(), 0);
    while at < bytes.len() {
        let digits = text.get(at + 1..at + 3).filter(|_| bytes[at] == b'%');
        match digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => {
                decoded.push(byte);
                at += 3;
            }
            None => {
                decoded.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8(decoded).unwrap()
}

/// The commit of every repository of [`hub`].
pub const COMMIT: &str = "cccccccccccccccccccccccccccccccccccccccc";

/// A hub that serves folders of this machine as repositories `owner/name`, and lists further files
/// that it does not have.
pub fn hub(repositories: &[(&str, &Path)], only_listed: &[&str]) -> Server {
    let repositories: Vec<(String, PathBuf)> = repositories
        .iter()
        .map(|(name, folder)| ((*name).to_owned(), folder.to_path_buf()))
        .collect();
    let only_listed: Vec<String> = only_listed.iter().map(|name| (*name).to_owned()).collect();
    Server::start(move |request| {
        for (name, folder) in &repositories {
            if request.path().starts_with(&format!("/api/models/{name}/revision/")) {
                let mut files = Vec::new();
                list(folder, "", &mut files);
                files.extend(only_listed.iter().map(|name| (name.clone(), 1 << 30)));
                let files: Vec<String> = files
                    .iter()
                    .map(|(file, size)| format!("{{\"rfilename\": \"{file}\", \"size\": {size}}}"))
                    .collect();
                let body =
                    format!("{{\"sha\": \"{COMMIT}\", \"siblings\": [{}]}}", files.join(", "));
                return Reply::new(200, body.as_bytes());
            }
            if let Some(file) = request.path().strip_prefix(&format!("/{name}/resolve/{COMMIT}/"))
                && let Ok(contents) = std::fs::read(folder.join(file))
            {
                return Reply::new(200, &contents).ranged(request).with("X-Repo-Commit", COMMIT);
            }
        }
        Reply::new(404, b"").with("X-Error-Code", "EntryNotFound")
    })
}

fn list(folder: &Path, prefix: &str, files: &mut Vec<(String, u64)>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let name = format!("{prefix}{}", entry.file_name().to_str().unwrap());
        if entry.path().is_dir() {
            list(&entry.path(), &format!("{name}/"), files);
        } else {
            files.push((name, entry.path().metadata().unwrap().len()));
        }
    }
}
