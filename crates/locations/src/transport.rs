//! Requests on threads of the runtime, each read whole: no body is longer than a range.
//!
//! `object_store` sends what it signed through this as well, so there is one client, one set of
//! proxies and certificates, one count of requests. What the last request of an attempt ended with
//! is kept beside the task ([`observed`]), because the errors of `object_store` do not tell.

use std::future::Future;
use std::io::Read as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use http_body_util::BodyExt as _;
use hub::{Connections, Fault, Network};
use memmap2::MmapMut;
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService,
};
use ureq::http::header::{ACCEPT_ENCODING, RANGE, RETRY_AFTER};
use ureq::http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response};

use crate::access::Limits;

/// The longest body of a response without a range, such as a page of a listing.
const LONGEST_BODY: usize = 64 << 20;
/// The longest body of an error that is read.
const LONGEST_MESSAGE: usize = 64 << 10;
/// How many bytes one read asks for.
const READ_BYTES: usize = 256 << 10;
/// Bodies of at least so many bytes have memory of their own.
const MAPPED_BYTES: usize = 512 << 10;
/// Where clouds tell a machine of theirs its credentials. Elsewhere nobody answers there.
const METADATA_HOSTS: [&str; 4] =
    ["169.254.169.254", "169.254.170.2", "169.254.170.23", "metadata.google.internal"];
/// How long such a server may take.
const METADATA_WAIT: Duration = Duration::from_secs(2);

/// How the last request of an attempt ended.
#[derive(Clone, Debug, Default)]
pub(crate) struct Observed {
    /// The status, if there was a response.
    pub(crate) status: Option<u16>,
    /// The code in the body of an error, such as `AccessDenied`.
    pub(crate) code: Option<String>,
    /// `Retry-After`, in seconds.
    pub(crate) pause: Option<Duration>,
    /// Why there was no response.
    pub(crate) fault: Option<Fault>,
    /// Whether it was a request for credentials.
    pub(crate) for_credentials: bool,
    /// The ETag of the response.
    pub(crate) etag: Option<String>,
    /// The region of the bucket, as S3 says with an error.
    pub(crate) region: Option<String>,
}

tokio::task_local! {
    static OBSERVED: Arc<Mutex<Observed>>;
}

/// Runs an attempt and returns how its last request ended beside its result.
pub(crate) async fn observed<T>(attempt: impl Future<Output = T>) -> (T, Observed) {
    let kept = Arc::<Mutex<Observed>>::default();
    let result = OBSERVED.scope(Arc::clone(&kept), attempt).await;
    let last = kept.lock().unwrap_or_else(PoisonError::into_inner).clone();
    (result, last)
}

/// Sends requests.
#[derive(Debug)]
pub(crate) struct Transport {
    connections: Connections,
    /// For the servers of [`METADATA_HOSTS`]: without proxies, with a short wait.
    local: Connections,
    limits: Limits,
    requests: AtomicU64,
    bytes: AtomicU64,
}

impl Transport {
    pub(crate) fn new(network: Network, limits: Limits) -> Self {
        let mut local = Network::default();
        (local.limits.connect, local.limits.idle) = (METADATA_WAIT, METADATA_WAIT);
        Self {
            connections: Connections::new(network),
            local: Connections::new(local),
            limits,
            requests: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
        }
    }

    /// Requests and bytes so far.
    pub(crate) fn counts(&self) -> (u64, u64) {
        (self.requests.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed))
    }

    /// Sends a request and reads its response, in a thread of the runtime.
    pub(crate) async fn send(
        self: &Arc<Self>,
        request: Request<Bytes>,
    ) -> Result<Response<Bytes>, Fault> {
        let is_metadata = request.uri().host().is_some_and(|host| METADATA_HOSTS.contains(&host));
        let this = Arc::clone(self);
        let result = tokio::task::spawn_blocking(move || this.exchange(request, is_metadata)).await;
        let result = result.unwrap_or_else(|_| Err(permanent("a thread of the network ended")));
        let mut seen = Observed { for_credentials: is_metadata, ..Observed::default() };
        match &result {
            Err(fault) => seen.fault = Some(fault.clone()),
            Ok(response) => {
                seen.status = Some(response.status().as_u16());
                let text = |name| response.headers().get(name)?.to_str().ok();
                seen.pause = text(RETRY_AFTER.as_str())
                    .and_then(|value| value.trim().parse().ok())
                    .map(Duration::from_secs);
                seen.etag = text("etag").map(str::to_owned);
                seen.region = text("x-amz-bucket-region").map(str::to_owned).filter(|region| {
                    region.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
                });
                if !response.status().is_success() || is_error(response.body()) {
                    seen.code = text("x-error-code")
                        .or_else(|| text("x-ms-error-code"))
                        .map(str::to_owned)
                        .or_else(|| code_in(response.body()));
                }
            }
        }
        let _ = OBSERVED.try_with(|kept| {
            *kept.lock().unwrap_or_else(PoisonError::into_inner) = seen;
        });
        result
    }

    fn exchange(
        &self,
        request: Request<Bytes>,
        is_metadata: bool,
    ) -> Result<Response<Bytes>, Fault> {
        let (mut parts, body) = request.into_parts();
        // Sizes and ranges must be those of the object as it is stored.
        parts.headers.entry(ACCEPT_ENCODING).or_insert(HeaderValue::from_static("identity"));
        let has_body = parts.method != Method::HEAD;
        let wanted = wanted(&parts.headers);
        self.requests.fetch_add(1, Ordering::Relaxed);
        let connections = if is_metadata { &self.local } else { &self.connections };
        let response = connections.run(Request::from_parts(parts, &body[..]))?;
        let (head, body) = response.into_parts();
        if !has_body {
            return Ok(Response::from_parts(head, Bytes::new()));
        }
        let most = match (head.status.as_u16(), wanted) {
            (206, Some(wanted)) => wanted,
            (200..=299, _) => LONGEST_BODY,
            _ => LONGEST_MESSAGE,
        };
        let is_error = !head.status.is_success();
        let promised = head.headers.get("content-length");
        let promised = promised.and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
        let bytes = match (wanted, head.status.as_u16()) {
            // A server without ranges sends everything: the head says enough.
            (Some(_), 200) => Bytes::new(),
            _ => self.read(body, most, is_error, promised)?,
        };
        self.bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(Response::from_parts(head, bytes))
    }

    fn read(
        &self,
        body: ureq::Body,
        most: usize,
        may_cut: bool,
        promised: Option<usize>,
    ) -> Result<Bytes, Fault> {
        let mut reader = body.into_reader();
        let mut space = Space::of(promised.filter(|promised| *promised <= most));
        let mut filled = 0;
        let (mut since, mut before) = (Instant::now(), 0);
        loop {
            if filled > most {
                if may_cut {
                    filled = most;
                    break;
                }
                return Err(permanent(format!("the response is longer than {most} bytes")));
            }
            let count = match reader.read(space.room(filled)) {
                Ok(count) => count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    let mut fault = Fault::of_body(error);
                    // A body that breaks off says nothing of the next one.
                    fault.transient = true;
                    fault.problem = format!("the response broke off: {}", fault.problem);
                    return Err(fault);
                }
            };
            filled += count;
            if count == 0 {
                break;
            }
            if since.elapsed() >= self.limits.window {
                let arrived = filled - before;
                if arrived < self.limits.least_bytes {
                    let window = self.limits.window.as_secs_f64();
                    return Err(Fault {
                        problem: format!("only {arrived} bytes arrived in {window:.0} s"),
                        transient: true,
                        certificate: false,
                    });
                }
                (since, before) = (Instant::now(), filled);
            }
        }
        let bytes = space.into_bytes(filled);
        match promised {
            Some(promised) if bytes.len() < promised && !may_cut => Err(Fault {
                problem: format!(
                    "the response broke off after {} of {promised} bytes",
                    bytes.len()
                ),
                transient: true,
                certificate: false,
            }),
            _ => Ok(bytes),
        }
    }
}

/// Where a body is put. A large one of a known length has memory of its own, which goes back to the
/// system with it: allocators keep it, for each of the threads that read.
enum Space {
    Heap(Vec<u8>),
    Mapped(MmapMut),
}

impl Space {
    fn of(length: Option<usize>) -> Self {
        let length = length.filter(|length| *length >= MAPPED_BYTES);
        // One more byte, to see the end.
        match length.and_then(|length| MmapMut::map_anon(length + 1).ok()) {
            Some(mapped) => Self::Mapped(mapped),
            None => Self::Heap(Vec::new()),
        }
    }

    /// Room for more after the first `filled` bytes.
    fn room(&mut self, filled: usize) -> &mut [u8] {
        match self {
            Self::Heap(bytes) => {
                bytes.resize(filled + READ_BYTES, 0);
                &mut bytes[filled..]
            }
            Self::Mapped(bytes) => &mut bytes[filled..],
        }
    }

    fn into_bytes(self, filled: usize) -> Bytes {
        match self {
            Self::Heap(mut bytes) => {
                bytes.truncate(filled);
                bytes.shrink_to_fit();
                bytes.into()
            }
            Self::Mapped(bytes) => Bytes::from_owner(bytes).slice(..filled),
        }
    }
}

fn permanent(problem: impl Into<String>) -> Fault {
    Fault { problem: problem.into(), transient: false, certificate: false }
}

/// How many bytes the range of a request asks for.
fn wanted(headers: &HeaderMap) -> Option<usize> {
    let range = headers.get(RANGE)?.to_str().ok()?.strip_prefix("bytes=")?;
    let (first, last) = range.split_once('-')?;
    if first.is_empty() {
        return last.parse().ok();
    }
    let (first, last) = (first.parse::<u64>().ok()?, last.parse::<u64>().ok()?);
    usize::try_from(last.checked_sub(first)?.checked_add(1)?).ok()
}

/// Whether a body is an error although its status says success, as S3 answers when it had to begin
/// its answer before it knew.
fn is_error(body: &[u8]) -> bool {
    let start = String::from_utf8_lossy(body.get(..256).unwrap_or(body));
    start.starts_with("<Error>") || (start.starts_with("<?xml") && start.contains("<Error>"))
}

/// The `<Code>` of an error of object storage. Nothing else of such a body is shown: it may hold
/// what was signed.
fn code_in(body: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(body).ok()?;
    let (_, rest) = text.split_once("<Code>")?;
    let (code, _) = rest.split_once("</Code>")?;
    let is_name = code.len() <= 64 && code.bytes().all(|byte| byte.is_ascii_alphanumeric());
    (is_name && !code.is_empty()).then(|| code.to_owned())
}

/// The transport as `object_store` uses it.
#[derive(Clone, Debug)]
pub(crate) struct Service {
    pub(crate) transport: Arc<Transport>,
    /// A header for the request that completes an upload.
    pub(crate) condition: Option<(HeaderName, HeaderValue)>,
}

impl HttpConnector for Service {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.clone()))
    }
}

#[async_trait]
impl HttpService for Service {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let (mut parts, body) = request.into_parts();
        let body = match body.as_bytes() {
            Some(bytes) => bytes.clone(),
            None => body.collect().await?.to_bytes(),
        };
        let query = parts.uri.query().unwrap_or_default();
        let completes = parts.method == Method::POST
            && query.split('&').any(|pair| pair.starts_with("uploadId="));
        if let Some((name, value)) = self.condition.clone().filter(|_| completes) {
            parts.headers.insert(name, value);
        }
        match self.transport.send(Request::from_parts(parts, body)).await {
            Ok(response) => Ok(response.map(Into::into)),
            // Attempts are counted elsewhere ([`crate::retry`]).
            Err(fault) => {
                Err(HttpError::new(HttpErrorKind::Unknown, std::io::Error::other(fault.problem)))
            }
        }
    }
}
