//! Requests to the hub: redirects followed by hand, so that the token stays with the hub; time
//! limits on every wait; patience with busy servers and broken connections; and an ear for the
//! request to stop, whatever the network does.
//!
//! A request runs in a thread of its own and hands over what it reads, so that whoever waits for it
//! can look at the stop flag ten times a second, also while a name is looked up or a connection
//! stands still.

mod address;
mod certificates;
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

pub(crate) use self::address::{encode, join, origin};
pub use self::network::{Limits, Network};
pub use self::proxy::Proxies;
use crate::Settings;

/// Bytes of an answer's body handed over at a time, and how many of these may wait.
const PIECE: usize = 128 << 10;
const PIECES: usize = 16;
/// How often the stop flag is looked at.
const GLANCE: Duration = Duration::from_millis(100);
const MAXIMUM_REDIRECTS: usize = 10;
/// Answers that say "later".
const BUSY: [u16; 7] = [408, 425, 429, 500, 502, 503, 504];
const USER_AGENT: &str = concat!("balanced-dpo/", env!("CARGO_PKG_VERSION"));

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Problem {
    /// The program was asked to stop.
    Stopped(Signal),
    /// Another attempt may help: what happened.
    Passing(String),
    /// No attempt will help: what happened.
    Lasting(String),
    /// The server's certificate is not trusted: why.
    Certificate(String),
}

/// What speaks to one hub.
pub(crate) struct Client {
    network: Network,
    token: Option<String>,
    /// Scheme, host and port that the token belongs to.
    home: String,
    tls: OnceLock<TlsConfig>,
}

/// The beginning of an answer; its body is read on demand.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) address: Uri,
    pieces: Pieces,
}

/// Attempts in a row that brought nothing.
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

    /// Asks for `address`, follows redirects, and waits where servers are busy or connections
    /// break. `see` is shown each answer on the way, the last one included.
    pub(crate) fn ask(
        &self,
        method: &Method,
        address: &Uri,
        range_from: Option<u64>,
        attempts: &mut Attempts,
        see: &mut dyn FnMut(&Uri, u16, &HeaderMap),
    ) -> Result<Answer, Problem> {
        let mut address = address.clone();
        for _ in 0..=MAXIMUM_REDIRECTS {
            let answer = self.ask_patiently(method, &address, range_from, attempts)?;
            see(&address, answer.status, &answer.headers);
            let location = answer.headers.get("location").map(|value| value.as_bytes().to_owned());
            match (answer.status, location) {
                (301 | 302 | 303 | 307 | 308, Some(location)) => {
                    address = join(&address, &location).ok_or_else(|| {
                        let location = String::from_utf8_lossy(&location).into_owned();
                        Problem::Lasting(format!(
                            "it redirects to {:?}, which is no address",
                            excerpt(&location)
                        ))
                    })?;
                }
                _ => return Ok(answer),
            }
        }
        Err(Problem::Lasting(format!("it redirects more than {MAXIMUM_REDIRECTS} times")))
    }

    fn ask_patiently(
        &self,
        method: &Method,
        address: &Uri,
        range_from: Option<u64>,
        attempts: &mut Attempts,
    ) -> Result<Answer, Problem> {
        loop {
            let (reason, asked) = match self.ask_once(method, address, range_from) {
                Ok(answer) if BUSY.contains(&answer.status) => {
                    let host = address.host().unwrap_or_default();
                    let reason = format!("{host} answers HTTP {}", answer.status);
                    (reason, wanted_pause(&answer.headers))
                }
                Err(Problem::Passing(reason)) => (reason, None),
                other => return other,
            };
            self.pause(attempts, &reason, asked)?;
        }
    }

    /// Waits before another attempt, or gives up: with `reason` where there were enough.
    pub(crate) fn pause(
        &self,
        attempts: &mut Attempts,
        reason: &str,
        asked: Option<Duration>,
    ) -> Result<(), Problem> {
        let limits = &self.network.limits;
        attempts.failed += 1;
        if attempts.failed >= limits.attempts {
            return Err(Problem::Lasting(format!("{reason} ({} attempts)", attempts.failed)));
        }
        let pause = asked.unwrap_or(limits.pause * 2_u32.saturating_pow(attempts.failed - 1));
        if pause > limits.longest_pause {
            let seconds = pause.as_secs();
            return Err(Problem::Lasting(format!("{reason} and asks to wait {seconds} seconds")));
        }
        tracing::warn!("{reason}; trying again in {:.1} s", pause.as_secs_f64());
        let until = Instant::now() + pause;
        while Instant::now() < until {
            self.check_stop()?;
            std::thread::sleep(GLANCE.min(until.saturating_duration_since(Instant::now())));
        }
        Ok(())
    }

    /// An error where the program was asked to stop.
    pub(crate) fn check_stop(&self) -> Result<(), Problem> {
        self.network.stop.requested().map_or(Ok(()), |signal| Err(Problem::Stopped(signal)))
    }

    pub(crate) fn stop(&self) -> &StopFlag {
        &self.network.stop
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.network.limits
    }

    fn ask_once(
        &self,
        method: &Method,
        address: &Uri,
        range_from: Option<u64>,
    ) -> Result<Answer, Problem> {
        let proxy = self.network.proxies.of(address);
        let mut request = Request::builder()
            .method(method.clone())
            .uri(address)
            // Sizes and ranges are those of the file as it is.
            .header(ACCEPT_ENCODING, "identity");
        // What follows a redirect to another host is no business of the user's token.
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
        let request = request.body(()).map_err(|error| Problem::Lasting(error.to_string()))?;
        let agent = self.agent(address, proxy);
        let (sender, receiver) = sync_channel(PIECES);
        let has_body = method != Method::HEAD;
        std::thread::Builder::new()
            .name("request".to_owned())
            .spawn(move || exchange(&agent, request, has_body, &sender))
            .map_err(|error| Problem::Lasting(format!("cannot start a thread: {error}")))?;
        let (stop, limits) = (self.network.stop.clone(), self.network.limits);
        let mut pieces = Pieces { receiver, stop, limits, since: Instant::now(), bytes: 0 };
        match pieces.receive()? {
            Message::Head(status, headers) => {
                Ok(Answer { status, headers, address: address.clone(), pieces })
            }
            Message::Failed(problem) => Err(problem),
            Message::Piece(_) | Message::End => {
                Err(Problem::Lasting("the answer has no beginning".to_owned()))
            }
        }
    }

    fn agent(&self, address: &Uri, proxy: Option<&Proxy>) -> Agent {
        let limits = &self.network.limits;
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_idle_connections(0)
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
            config = config.tls_config(self.tls().clone());
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

    fn tls(&self) -> &TlsConfig {
        self.tls.get_or_init(|| {
            let roots = certificates::roots(&self.network.certificates);
            TlsConfig::builder().root_certs(roots).build()
        })
    }
}

impl Attempts {
    /// Something came: from here on it is counted anew.
    pub(crate) fn progressed(&mut self) {
        self.failed = 0;
    }
}

impl Answer {
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
                return Err(Problem::Lasting(format!("its answer is longer than {most} bytes")));
            }
        }
        Ok(all)
    }
}

impl Pieces {
    fn receive(&mut self) -> Result<Message, Problem> {
        let asked = Instant::now();
        // The thread has time limits of its own; this one is for what they do not cover.
        let last = self.limits.connect * 2 + self.limits.idle * 2;
        loop {
            if let Some(signal) = self.stop.requested() {
                return Err(Problem::Stopped(signal));
            }
            match self.receiver.recv_timeout(GLANCE) {
                Ok(message) => {
                    if let Message::Piece(bytes) = &message {
                        self.bytes += bytes.len() as u64;
                    }
                    self.check_rate(&message)?;
                    return Ok(message);
                }
                Err(RecvTimeoutError::Timeout) if asked.elapsed() < last => {}
                Err(RecvTimeoutError::Timeout) => {
                    return Err(Problem::Passing("no answer came".to_owned()));
                }
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(Problem::Passing("the connection was lost".to_owned()));
                }
            }
        }
    }

    /// A connection that gives a byte now and then would else last for ever.
    fn check_rate(&mut self, message: &Message) -> Result<(), Problem> {
        if self.since.elapsed() < self.limits.window || matches!(message, Message::End) {
            return Ok(());
        }
        if self.bytes < self.limits.least_bytes {
            let (bytes, window) = (self.bytes, self.limits.window.as_secs_f64());
            return Err(Problem::Passing(format!("only {bytes} bytes came in {window:.0} s")));
        }
        (self.since, self.bytes) = (Instant::now(), 0);
        Ok(())
    }
}

/// One request in its own thread. A receiver that is gone ends it.
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
            Problem::Lasting(text)
        }
        ureq::Error::ConnectProxyFailed(_) => {
            Problem::Lasting(format!("the proxy refuses: {text}"))
        }
        _ => Problem::Passing(text),
    }
}

/// What a busy server asks for: `Retry-After` in seconds, or the time until the quota of the hub's
/// `RateLimit` header is renewed (huggingface/huggingface_hub
/// `src/huggingface_hub/utils/_http.py`).
fn wanted_pause(headers: &HeaderMap) -> Option<Duration> {
    let after = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse().ok());
    let renewed = || {
        let quota = text_of(headers, "ratelimit")?;
        quota.split(';').find_map(|part| part.trim().strip_prefix("t=")?.parse().ok())
    };
    after.or_else(renewed).map(Duration::from_secs)
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
