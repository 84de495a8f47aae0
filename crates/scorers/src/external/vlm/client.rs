//! Requests to the server: attempts, pauses, time limits, the budget.

use std::io::Read as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use hub::{Connections, Network};
use runkit::text::{excerpt, quoted};
use serde_json::Value;
use ureq::http::header::{AUTHORIZATION, CONTENT_TYPE, RETRY_AFTER};
use ureq::http::{HeaderMap, HeaderValue, Request, Uri};

use super::config::{VlmConfig, VlmRead};
use super::read;
use crate::external::answers::Answer;

/// The pause before the second attempt; it doubles with each further one.
const PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// The longest pause that a server may ask for.
const LONGEST_ASKED: Duration = Duration::from_secs(600);
/// How often a pause looks whether the run ends.
const POLL: Duration = Duration::from_millis(50);
/// The longest body of a response that is read.
const LONGEST_BODY: usize = 16 << 20;

/// Words of errors after which no server was reached.
const UNREACHED: [&str; 6] = [
    "refused",
    "host not found",
    "unreachable",
    "connection failed",
    "timeout: connect",
    "timeout: resolve",
];

/// What came of a question.
#[derive(Debug)]
pub(super) enum Outcome {
    /// An answer, which may say that there is no score.
    Answer(Answer),
    /// No answer, and why; the same question may have one later.
    Failed(String),
    /// The server does not take the request as it is, and why.
    Refused(String),
    /// Nothing that another question would change, such as a wrong key.
    Fatal(String),
    /// The budget is spent.
    OutOfRequests,
    /// The run ends.
    Stopped,
}

/// What one attempt ended with.
enum Attempt {
    Done(Outcome),
    /// A reason that may pass, and the pause that the server asks for. If no server was reached, no
    /// other question will reach it either.
    Later {
        reason: String,
        asked: Option<Duration>,
        is_reached: bool,
    },
}

/// A client of one endpoint, for several threads.
#[derive(Debug)]
pub(super) struct Client {
    connections: Connections,
    address: Uri,
    /// The address in messages.
    shown: String,
    key: Option<String>,
    read: VlmRead,
    timeout: Duration,
    retries: u32,
    /// The pause before the second attempt.
    pause: Duration,
    max_requests: Option<u64>,
    /// Requests of the run so far.
    requests: AtomicU64,
    /// Before this time the server wants no request.
    quiet_until: Mutex<Instant>,
    halted: AtomicBool,
}

impl Client {
    pub(super) fn new(config: &VlmConfig) -> Result<Self, String> {
        let network = Network::from_lookup(&|name| std::env::var_os(name));
        let mut network = network.map_err(|error| error.to_string())?;
        network.limits.idle = config.timeout();
        let address = config.address()?;
        let key = config.key()?;
        if key.is_some() && address.scheme_str() == Some("http") && !config.is_here() {
            tracing::warn!(
                "the API key goes to {} unencrypted; hint: use https, or leave out api_key_env",
                config.host()
            );
        }
        Ok(Self {
            connections: Connections::new(network),
            address,
            shown: config.shown_endpoint(),
            key,
            read: config.read,
            timeout: config.timeout(),
            retries: config.retries(),
            pause: PAUSE,
            max_requests: config.max_requests,
            requests: AtomicU64::new(0),
            quiet_until: Mutex::new(Instant::now()),
            halted: AtomicBool::new(false),
        })
    }

    /// With another pause, for tests.
    #[cfg(test)]
    pub(super) fn pausing(self, pause: Duration) -> Self {
        Self { pause, ..self }
    }

    /// With this key, for tests.
    #[cfg(test)]
    pub(super) fn with_key(self, key: &str) -> Self {
        Self { key: Some(key.to_owned()), ..self }
    }

    /// Counts from so many requests, those of earlier starts.
    pub(super) fn begin_at(&self, requests: u64) {
        self.requests.store(requests, Ordering::SeqCst);
    }

    /// Ends pauses and further attempts, or allows them again.
    pub(super) fn halt(&self, halted: bool) {
        self.halted.store(halted, Ordering::SeqCst);
    }

    pub(super) fn is_halted(&self) -> bool {
        self.halted.load(Ordering::SeqCst)
    }

    /// Asks until there is an answer or no further attempt helps; and how many requests it took.
    pub(super) fn ask(&self, body: &[u8]) -> (Outcome, u64) {
        let (mut sent, mut pause) = (0, self.pause);
        loop {
            if !self.wait_until_welcome() {
                return (Outcome::Stopped, sent);
            }
            if !self.take_request() {
                return (Outcome::OutOfRequests, sent);
            }
            sent += 1;
            let (reason, asked, is_reached) = match self.attempt(body) {
                Attempt::Done(outcome) => return (outcome, sent),
                Attempt::Later { reason, asked, is_reached } => (reason, asked, is_reached),
            };
            let wait = asked.unwrap_or(pause);
            pause = (pause * 2).min(LONGEST_PAUSE);
            if sent > u64::from(self.retries) || wait > LONGEST_ASKED {
                let attempts = if sent == 1 { "attempt" } else { "attempts" };
                let mut reason = format!("{reason} ({sent} {attempts})");
                if wait > LONGEST_ASKED {
                    reason += &format!("; the server asks to wait {} s", wait.as_secs());
                }
                return match is_reached {
                    true => (Outcome::Failed(reason), sent),
                    false => (Outcome::Fatal(reason), sent),
                };
            }
            tracing::debug!(
                "{}: {reason}; trying again in {:.1} s",
                self.shown,
                wait.as_secs_f64()
            );
            let until = Instant::now() + wait;
            // A server that asks for a pause means all requests.
            if asked.is_some() {
                let mut quiet = self.quiet_until.lock().unwrap_or_else(PoisonError::into_inner);
                *quiet = (*quiet).max(until);
            }
            if !self.sleep_until(until) {
                return (Outcome::Stopped, sent);
            }
        }
    }

    /// Takes a request from the budget.
    fn take_request(&self) -> bool {
        let most = self.max_requests.unwrap_or(u64::MAX);
        let take = |count: u64| (count < most).then_some(count + 1);
        self.requests.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take).is_ok()
    }

    fn wait_until_welcome(&self) -> bool {
        let until = *self.quiet_until.lock().unwrap_or_else(PoisonError::into_inner);
        self.sleep_until(until)
    }

    /// False if the run ends meanwhile.
    fn sleep_until(&self, until: Instant) -> bool {
        loop {
            if self.is_halted() {
                return false;
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return true;
            }
            std::thread::sleep(left.min(POLL));
        }
    }

    fn attempt(&self, body: &[u8]) -> Attempt {
        let mut request = Request::builder()
            .method("POST")
            .uri(&self.address)
            .header(CONTENT_TYPE, "application/json");
        if let Some(key) = &self.key {
            let Ok(mut value) = HeaderValue::from_str(&format!("Bearer {key}")) else {
                let problem = "the API key has characters that a header cannot hold";
                return Attempt::Done(Outcome::Fatal(problem.to_owned()));
            };
            value.set_sensitive(true);
            request = request.header(AUTHORIZATION, value);
        }
        let request = match request.body(body) {
            Ok(request) => request,
            Err(error) => return Attempt::Done(Outcome::Fatal(error.to_string())),
        };
        let started = Instant::now();
        let response = match self.connections.run(request) {
            Ok(response) => response,
            Err(fault) if fault.transient => {
                let is_reached = !UNREACHED.iter().any(|word| fault.problem.contains(word));
                let reason = match is_reached && started.elapsed() >= self.timeout {
                    true => format!("no answer within {} s", self.timeout.as_secs_f64()),
                    false => self.without_key(&fault.problem),
                };
                return Attempt::Later { reason, asked: None, is_reached };
            }
            Err(fault) => {
                let mut problem = self.without_key(&fault.problem);
                if fault.certificate {
                    problem += "; hint: set SSL_CERT_FILE=/path/to/certificates.pem";
                }
                return Attempt::Done(Outcome::Fatal(problem));
            }
        };
        let (head, body) = response.into_parts();
        match self.read_body(body, started) {
            Ok(body) => {
                let body = self.body_without_key(body);
                self.read_response(head.status.as_u16(), &head.headers, &body)
            }
            Err(reason) => Attempt::Later { reason, asked: None, is_reached: true },
        }
    }

    fn read_body(&self, body: ureq::Body, started: Instant) -> Result<Vec<u8>, String> {
        let (mut reader, mut text) = (body.into_reader(), Vec::new());
        let mut piece = vec![0; 64 << 10];
        loop {
            match reader.read(&mut piece) {
                Ok(0) => return Ok(text),
                Ok(count) => text.extend_from_slice(&piece[..count]),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => {
                    let problem = hub::Fault::of_body(error).problem;
                    return Err(format!("the answer breaks off: {}", self.without_key(&problem)));
                }
            }
            if started.elapsed() > self.timeout {
                return Err(format!("no whole answer within {} s", self.timeout.as_secs_f64()));
            }
            if text.len() > LONGEST_BODY {
                return Err(format!("the answer is longer than {LONGEST_BODY} bytes"));
            }
        }
    }

    fn read_response(&self, status: u16, headers: &HeaderMap, body: &[u8]) -> Attempt {
        let error = serde_json::from_slice::<Value>(body).ok().and_then(|mut body| {
            (body.get("choices").is_none()).then(|| body.get_mut("error").map(Value::take))?
        });
        // Routers of several providers report their errors in the body of a success.
        let status = match (status, &error) {
            (200, Some(error)) => error["code"].as_u64().and_then(|code| code.try_into().ok()),
            _ => Some(status),
        };
        let says = || message_of(error.as_ref(), body);
        let is_out_of_money = error.as_ref().is_some_and(|error| {
            let of = |name: &str| error[name].as_str() == Some("insufficient_quota");
            of("code") || of("type")
        });
        match status {
            Some(200..=299) => Attempt::Done(Outcome::Answer(read::answer(body, self.read))),
            None => Attempt::Done(Outcome::Refused(format!("the server answers {}", says()))),
            Some(status) => {
                let reason = format!("the server answers HTTP {status}: {}", says());
                match status {
                    _ if is_out_of_money => Attempt::Done(Outcome::Fatal(reason)),
                    408 | 409 | 425 | 429 | 500..=599 => {
                        Attempt::Later { reason, asked: asked_pause(headers), is_reached: true }
                    }
                    401 | 402 | 404 | 405 | 407 | 300..=399 => {
                        Attempt::Done(Outcome::Fatal(reason))
                    }
                    _ => Attempt::Done(Outcome::Refused(reason)),
                }
            }
        }
    }

    /// A response of a server that may repeat the key. Before anything of it is quoted in part.
    fn body_without_key(&self, body: Vec<u8>) -> Vec<u8> {
        match &self.key {
            Some(key) if body.windows(key.len()).any(|part| part == key.as_bytes()) => {
                self.without_key(&String::from_utf8_lossy(&body)).into_bytes()
            }
            _ => body,
        }
    }

    /// A text of the server that may repeat the key.
    fn without_key(&self, text: &str) -> String {
        match &self.key {
            Some(key) => text.replace(key.as_str(), "…"),
            None => text.to_owned(),
        }
    }
}

/// What the body of an error says.
fn message_of(error: Option<&Value>, body: &[u8]) -> String {
    match error {
        Some(Value::String(text)) => excerpt(text),
        Some(error) if error["message"].is_string() => {
            excerpt(error["message"].as_str().unwrap_or_default())
        }
        _ if body.is_empty() => "nothing".to_owned(),
        _ => quoted(&String::from_utf8_lossy(body)),
    }
}

/// `Retry-After`, in seconds or as a date, or the milliseconds that OpenAI sends beside it.
fn asked_pause(headers: &HeaderMap) -> Option<Duration> {
    let text = |name: &str| headers.get(name)?.to_str().ok().map(str::trim);
    let number = |text: &str| text.parse::<f64>().ok().filter(|it| (0.0..1e9).contains(it));
    if let Some(milliseconds) = text("retry-after-ms").and_then(number) {
        return Some(Duration::from_secs_f64(milliseconds / 1e3));
    }
    let after = text(RETRY_AFTER.as_str())?;
    if let Some(seconds) = number(after) {
        return Some(Duration::from_secs_f64(seconds));
    }
    let date = chrono::DateTime::parse_from_rfc2822(after).ok()?;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).ok()?;
    let until = Duration::from_secs(u64::try_from(date.timestamp()).ok()?);
    Some(until.saturating_sub(now))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_asks_for_a_pause_in_three_ways() {
        let asked = |name: &'static str, value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(name, value.parse().unwrap());
            asked_pause(&headers)
        };
        assert_eq!(asked("retry-after", "2"), Some(Duration::from_secs(2)));
        assert_eq!(asked("retry-after", " 0.5 "), Some(Duration::from_millis(500)));
        assert_eq!(asked("retry-after-ms", "250"), Some(Duration::from_millis(250)));
        assert_eq!(asked("retry-after", "Wed, 21 Oct 2015 07:28:00 GMT"), Some(Duration::ZERO));
        let later = asked("retry-after", "Thu, 21 Oct 2100 07:28:00 GMT").unwrap();
        assert!(later > LONGEST_ASKED);
        for nonsense in ["soon", "-1", "nan", "inf"] {
            assert_eq!(asked("retry-after", nonsense), None, "{nonsense}");
        }
    }
}
