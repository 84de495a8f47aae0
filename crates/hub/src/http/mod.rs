//! Requests to the hub. This client follows redirects itself, so that the token stays with the hub;
//! limits every wait; retries busy servers and broken connections; and obeys a request to stop,
//! whatever the network does.
//!
//! Each request runs in its own thread, which sends what it reads. The caller can therefore check
//! the stop flag ten times a second, even during a name lookup or while a connection stalls.

mod address;
mod certificates;
mod connections;
mod forward;
mod network;
mod proxy;

use std::io::Read;
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use runkit::signals::{Signal, StopFlag};
use runkit::text::excerpt;
use ureq::http::header::{ACCEPT_ENCODING, AUTHORIZATION, PROXY_AUTHORIZATION, RETRY_AFTER};
use ureq::http::{HeaderMap, HeaderName, Method, Request, Uri};
use ureq::tls::TlsConfig;
use ureq::{Agent, Proxy};

pub use self::address::{encode, join, origin};
pub use self::connections::{Connections, Fault};
pub use self::network::{Limits, Network};
pub use self::proxy::Proxies;
use crate::Settings;

/// Bytes of a body that the thread sends at a time, and how many such pieces may wait.
const PIECE: usize = 128 << 10;
const PIECES: usize = 16;
/// How often the stop flag is checked.
const POLL_INTERVAL: Duration = Duration::from_millis(100);
const MAXIMUM_REDIRECTS: usize = 10;
/// Statuses that mean "later".
const BUSY: [u16; 7] = [408, 425, 429, 500, 502, 503, 504];
const USER_AGENT: &str = concat!("balanced-dpo/", env!("CARGO_PKG_VERSION"));

/// Why there is no response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Problem {
    /// A request to stop arrived.
    Stopped(Signal),
    /// What happened; another attempt may help.
    Transient(String),
    /// What happened; no attempt will help.
    Permanent(String),
    /// Why the server's certificate is not trusted.
    Certificate(String),
}

/// A client of one hub.
pub(crate) struct Client {
    network: Network,
    token: Option<String>,
    /// Scheme, host and port that the token belongs to.
    home: String,
    tls: OnceLock<TlsConfig>,
}

/// The head of a response; its body is read on demand.
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) address: Uri,
    pieces: Pieces,
}

/// Failed attempts in a row.
#[derive(Debug, Default)]
pub(crate) struct Attempts {
    failed: u32,
}

enum Message {
    Head(u16, HeaderMap),
    Piece(Vec<u8>),
    End,
    Failed(Problem),
}

struct Pieces {
    receiver: Receiver<Message>,
    stop: StopFlag,
    limits: Limits,
    since: Instant,
    bytes: u64,
}

impl Client {
    pub(crate) fn new(settings: &Settings) -> Self {
        let home = settings.endpoint.parse().ok().and_then(|address| origin(&address));
        Self {
            network: settings.network.clone(),
            token: settings.token.clone(),
            home: home.unwrap_or_default(),
            tls: OnceLock::new(),
        }
    }

    /// Requests `address`, follows redirects, and retries if servers are busy or connections break.
    /// Calls `see` with each response on the way, the last one included.
    pub(crate) fn request(
        &self,
        method: &Method,
        address: &Uri,
        range_from: Option<u64>,
        attempts: &mut Attempts,
        see: &mut dyn FnMut(&Uri, u16, &HeaderMap),
    ) -> Result<Response, Problem> {
        let mut address = address.clone();
        for _ in 0..=MAXIMUM_REDIRECTS {
            let response = self.request_with_retries(method, &address, range_from, attempts)?;
            see(&address, response.status, &response.headers);
            let location =
                response.headers.get("location").map(|value| value.as_bytes().to_owned());
            match (response.status, location) {
                (301 | 302 | 303 | 307 | 308, Some(location)) => {
                    address = join(&address, &location).ok_or_else(|| {
                        let location = String::from_utf8_lossy(&location).into_owned();
                        Problem::Permanent(format!(
                            "it redirects to {:?}, which is not an address",
                            excerpt(&location)
                        ))
                    })?;
                }
                _ => return Ok(response),
            }
        }
        Err(Problem::Permanent(format!("it redirects more than {MAXIMUM_REDIRECTS} times")))
    }

    fn request_with_retries(
        &self,
        method: &Method,
        address: &Uri,
        range_from: Option<u64>,
        attempts: &mut Attempts,
    ) -> Result<Response, Problem> {
        loop {
            let (reason, asked) = match self.request_once(method, address, range_from) {
                Ok(response) if BUSY.contains(&response.status) => {
                    let host = address.host().unwrap_or_default();
                    let reason = format!("{host} answers HTTP {}", response.status);
                    (reason, wanted_pause(&response.headers))
                }
                Err(Problem::Transient(reason)) => (reason, None),
                other => return other,
            };
            self.pause(attempts, &reason, asked)?;
        }
    }

    /// Waits before another attempt, or gives up with `reason` after too many.
    pub(crate) fn pause(
        &self,
        attempts: &mut Attempts,
        reason: &str,
        asked: Option<Duration>,
    ) -> Result<(), Problem> {
        let limits = &self.network.limits;
        attempts.failed += 1;
        if attempts.failed >= limits.attempts {
            return Err(Problem::Permanent(format!("{reason} ({} attempts)", attempts.failed)));
        }
        let pause = asked.unwrap_or(limits.pause * 2_u32.saturating_pow(attempts.failed - 1));
        if pause > limits.longest_pause {
            let seconds = pause.as_secs();
            return Err(Problem::Permanent(format!("{reason} and asks to wait {seconds} seconds")));
        }
        tracing::warn!("{reason}; trying again in {:.1} s", pause.as_secs_f64());
        let until = Instant::now() + pause;
        while Instant::now() < until {
            self.check_stop()?;
            std::thread::sleep(POLL_INTERVAL.min(until.saturating_duration_since(Instant::now())));
        }
        Ok(())
    }

    /// Fails after a request to stop.
    pub(crate) fn check_stop(&self) -> Result<(), Problem> {
        self.network.stop.requested().map_or(Ok(()), |signal| Err(Problem::Stopped(signal)))
    }

    pub(crate) fn stop(&self) -> &StopFlag {
        &self.network.stop
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.network.limits
    }

    fn request_once(
        &self,
        method: &Method,
        address: &Uri,
        range_from: Option<u64>,
    ) -> Result<Response, Problem> {
        let proxy = self.network.proxies.of(address);
        let mut request = Request::builder()
            .method(method.clone())
            .uri(address)
            // Sizes and ranges must be those of the uncompressed file.
            .header(ACCEPT_ENCODING, "identity");
        // A redirect to another host must not receive the user's token.
        if let Some(token) = &self.token
            && origin(address).is_some_and(|origin| origin == self.home)
        {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        if let Some(first) = range_from {
            request = request.header("range", format!("bytes={first}-"));
        }
        if let Some(proxy) = proxy.filter(|proxy| proxy::forwards(proxy, address))
            && let Some(value) = credentials(proxy)
        {
            request = request.header(PROXY_AUTHORIZATION, value);
        }
        let request = request.body(()).map_err(|error| Problem::Permanent(error.to_string()))?;
        let agent = agent(&self.network, &self.tls, address, proxy, 0);
        let (sender, receiver) = sync_channel(PIECES);
        let has_body = method != Method::HEAD;
        std::thread::Builder::new()
            .name("request".to_owned())
            .spawn(move || exchange(&agent, request, has_body, &sender))
            .map_err(|error| Problem::Permanent(format!("cannot start a thread: {error}")))?;
        let (stop, limits) = (self.network.stop.clone(), self.network.limits);
        let mut pieces = Pieces { receiver, stop, limits, since: Instant::now(), bytes: 0 };
        match pieces.receive()? {
            Message::Head(status, headers) => {
                Ok(Response { status, headers, address: address.clone(), pieces })
            }
            Message::Failed(problem) => Err(problem),
            Message::Piece(_) | Message::End => {
                Err(Problem::Permanent("the response has no head".to_owned()))
            }
        }
    }
}

/// A client for the addresses of one scheme behind one proxy, or behind none.
fn agent(
    network: &Network,
    tls: &OnceLock<TlsConfig>,
    address: &Uri,
    proxy: Option<&Proxy>,
    idle_connections: usize,
) -> Agent {
    let limits = &network.limits;
    let mut config = Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        .max_idle_connections(idle_connections)
        .max_idle_connections_per_host(idle_connections)
        .user_agent(USER_AGENT)
        .timeout_resolve(Some(limits.connect))
        .timeout_connect(Some(limits.connect))
        .timeout_recv_response(Some(limits.idle))
        .timeout_per_read(Some(limits.idle))
        .timeout_per_write(Some(limits.idle));
    let forwarded = proxy.filter(|proxy| proxy::forwards(proxy, address));
    let through_tls = address.scheme_str() == Some("https")
        || proxy.is_some_and(|proxy| proxy.protocol() == ureq::ProxyProtocol::Https);
    if through_tls {
        let trusted = tls.get_or_init(|| {
            let roots = certificates::roots(&network.certificates);
            TlsConfig::builder().root_certs(roots).build()
        });
        config = config.tls_config(trusted.clone());
    }
    if let Some(proxy) = forwarded {
        return Agent::with_parts(
            config.proxy(None).build(),
            forward::ProxyConnector::new(proxy),
            forward::ProxyResolver::new(proxy),
        );
    }
    config.proxy(proxy.cloned()).build().new_agent()
}

impl Attempts {
    /// Bytes arrived: start counting anew.
    pub(crate) fn progressed(&mut self) {
        self.failed = 0;
    }
}

impl Response {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        text_of(&self.headers, name)
    }

    /// The next bytes of the body; `None` at its end.
    pub(crate) fn next(&mut self) -> Result<Option<Vec<u8>>, Problem> {
        match self.pieces.receive()? {
            Message::Piece(bytes) => Ok(Some(bytes)),
            Message::Failed(problem) => Err(problem),
            Message::End | Message::Head(..) => Ok(None),
        }
    }

    /// The whole body, if it has at most `most` bytes.
    pub(crate) fn read_all(&mut self, most: usize) -> Result<Vec<u8>, Problem> {
        let mut all = Vec::new();
        while let Some(bytes) = self.next()? {
            all.extend_from_slice(&bytes);
            if all.len() > most {
                return Err(Problem::Permanent(format!(
                    "its response is longer than {most} bytes"
                )));
            }
        }
        Ok(all)
    }
}

impl Pieces {
    fn receive(&mut self) -> Result<Message, Problem> {
        let asked = Instant::now();
        // A last limit, for what the thread's own time limits do not cover.
        let last = self.limits.connect * 2 + self.limits.idle * 2;
        loop {
            if let Some(signal) = self.stop.requested() {
                return Err(Problem::Stopped(signal));
            }
            match self.receiver.recv_timeout(POLL_INTERVAL) {
                Ok(message) => {
                    if let Message::Piece(bytes) = &message {
                        self.bytes += bytes.len() as u64;
                    }
                    self.check_rate(&message)?;
                    return Ok(message);
                }
                Err(RecvTimeoutError::Timeout) if asked.elapsed() < last => {}
                Err(RecvTimeoutError::Timeout) => {
                    return Err(Problem::Transient("no response arrived".to_owned()));
                }
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(Problem::Transient("the connection was lost".to_owned()));
                }
            }
        }
    }

    /// Fails for a connection that trickles: a byte now and then would last for ever.
    fn check_rate(&mut self, message: &Message) -> Result<(), Problem> {
        if self.since.elapsed() < self.limits.window || matches!(message, Message::End) {
            return Ok(());
        }
        if self.bytes < self.limits.least_bytes {
            let (bytes, window) = (self.bytes, self.limits.window.as_secs_f64());
            return Err(Problem::Transient(format!("only {bytes} bytes arrived in {window:.0} s")));
        }
        (self.since, self.bytes) = (Instant::now(), 0);
        Ok(())
    }
}

/// One request, in its own thread. Ends once the receiver is dropped.
fn exchange(agent: &Agent, request: Request<()>, has_body: bool, to: &SyncSender<Message>) {
    let (parts, body) = match agent.run(request) {
        Ok(response) => response.into_parts(),
        Err(error) => {
            let _ = to.send(Message::Failed(explain(&error)));
            return;
        }
    };
    if to.send(Message::Head(parts.status.as_u16(), parts.headers)).is_err() {
        return;
    }
    let mut reader = body.into_reader();
    loop {
        let mut piece = vec![0; PIECE];
        let message = match if has_body { reader.read(&mut piece) } else { Ok(0) } {
            Ok(0) => Message::End,
            Ok(count) => {
                piece.truncate(count);
                Message::Piece(piece)
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => Message::Failed(explain(&ureq::Error::from(error))),
        };
        let is_last = !matches!(message, Message::Piece(_));
        if to.send(message).is_err() || is_last {
            return;
        }
    }
}

fn explain(error: &ureq::Error) -> Problem {
    let text = excerpt(&error.to_string());
    match error {
        _ if text.contains("certificate") => Problem::Certificate(text),
        ureq::Error::BadUri(_) | ureq::Error::InvalidProxyUrl | ureq::Error::Tls(_) => {
            Problem::Permanent(text)
        }
        ureq::Error::ConnectProxyFailed(_) => {
            Problem::Permanent(format!("the proxy refuses: {text}"))
        }
        _ => Problem::Transient(text),
    }
}

/// The pause that a busy server requests: `Retry-After` in seconds, or the time until the quota of
/// the hub's `RateLimit` header is refilled (huggingface/huggingface_hub
/// `src/huggingface_hub/utils/_http.py`).
fn wanted_pause(headers: &HeaderMap) -> Option<Duration> {
    let after = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse().ok());
    let refilled = || {
        let quota = text_of(headers, "ratelimit")?;
        quota.split(';').find_map(|part| part.trim().strip_prefix("t=")?.parse().ok())
    };
    after.or_else(refilled).map(Duration::from_secs)
}

/// A header as text, if it is one.
pub(crate) fn text_of<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
    headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim)
}

fn credentials(proxy: &Proxy) -> Option<String> {
    let (user, password) = (proxy.username()?, proxy.password().unwrap_or_default());
    Some(format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:{password}"))))
}
