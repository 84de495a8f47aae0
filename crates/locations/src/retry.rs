//! Attempts: which failures may pass, how long to wait, when to give up. And the runtime that
//! drives them, while the caller waits and looks at the stop flag.

use std::future::Future;
use std::sync::OnceLock;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use crate::LocationError;
use crate::access::Access;
use crate::transport::{Observed, observed};

/// How often a waiting caller looks at the stop flag.
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// Threads that wait for the network at most.
const THREADS: usize = 128;

/// Whether a status means "later": errors of the server other than "not implemented" and "another
/// version of HTTP".
fn is_busy(status: u16) -> bool {
    matches!(status, 408 | 425 | 429 | 500..=599) && !matches!(status, 501 | 505)
}

/// Why an attempt failed.
pub(crate) enum Failure {
    /// What happened last tells the reason ([`Observed`]); the text is for when nothing did.
    Unknown(String),
    /// Something that may pass.
    Transient(String),
    /// Something that no attempt changes.
    Final(LocationError),
}

impl From<LocationError> for Failure {
    fn from(error: LocationError) -> Self {
        Self::Final(error)
    }
}

/// A location for messages, and the variables that matter for it.
#[derive(Clone, Debug)]
pub(crate) struct Named {
    pub(crate) location: String,
    /// What to check if access is refused.
    pub(crate) refused: &'static str,
    /// What to set if there are no credentials.
    pub(crate) credentials: &'static str,
    /// The version that every response must be of, if one is known.
    pub(crate) version: Option<String>,
}

/// Repeats `attempt` until it succeeds, fails for good, or the time is over.
pub(crate) async fn attempts<T, F>(
    access: &Access,
    named: &Named,
    mut attempt: impl FnMut() -> F,
) -> Result<T, LocationError>
where
    F: Future<Output = Result<T, Failure>>,
{
    access.check(&named.location)?;
    let (limits, start) = (access.shared.limits, Instant::now());
    let mut count = 0;
    let mut pause = limits.pause;
    loop {
        count += 1;
        let (result, last) = observed(attempt()).await;
        let problem = match result {
            Ok(value) => return Ok(value),
            Err(Failure::Final(error)) => return Err(error),
            Err(Failure::Transient(problem)) => problem,
            Err(Failure::Unknown(problem)) => explain(named, &last, problem)?,
        };
        let wait = jittered(pause, count).max(last.pause.unwrap_or_default());
        pause = (pause * 2).min(limits.longest_pause);
        let elapsed = start.elapsed();
        if elapsed.saturating_add(wait) > limits.total {
            return Err(LocationError::Unavailable {
                location: named.location.clone(),
                attempts: count,
                seconds: elapsed.as_secs(),
                problem,
            });
        }
        access.shared.retries.fetch_add(1, Ordering::Relaxed);
        let seconds = wait.as_secs_f64();
        // The first two are everyday events of object storage.
        if count > 2 {
            tracing::warn!("{}: {problem}; trying again in {seconds:.1} s", named.location);
        } else {
            tracing::debug!("{}: {problem}; trying again in {seconds:.1} s", named.location);
        }
        tokio::time::sleep(wait).await;
    }
}

/// What happened, if another attempt may help; else the error.
fn explain(named: &Named, last: &Observed, otherwise: String) -> Result<String, LocationError> {
    let location = || named.location.clone();
    let answers = |status: u16| match &last.code {
        Some(code) => format!("the server answers HTTP {status}, {code}"),
        None => format!("the server answers HTTP {status}"),
    };
    let code = last.code.as_deref().unwrap_or_default();
    match (&last.fault, last.status) {
        _ if last.for_credentials => {
            Err(LocationError::NoCredentials { location: location(), hint: named.credentials })
        }
        (Some(fault), _) if fault.certificate => Err(LocationError::Response {
            location: location(),
            problem: format!(
                "the certificate of the server is not trusted: {}; hint: if your network checks \
                 https with its own certificate, set SSL_CERT_FILE=/path/to/certificates.pem",
                fault.problem
            ),
        }),
        (Some(fault), _) if fault.transient => Ok(fault.problem.clone()),
        (Some(fault), _) => {
            Err(LocationError::Response { location: location(), problem: fault.problem.clone() })
        }
        (None, Some(status)) if is_busy(status) => Ok(answers(status)),
        // S3 reports some errors of its own in the body of a success.
        (None, Some(200..=299)) if matches!(code, "InternalError" | "SlowDown") => {
            Ok(format!("the server answers {code}"))
        }
        // A clock that is a little off, or a token that ran out, in the middle of a run.
        (None, Some(400 | 403)) if matches!(code, "RequestTimeout" | "RequestExpired") => {
            Ok(format!("the server answers {code}"))
        }
        (None, Some(status @ (401 | 403))) => Err(LocationError::Refused {
            location: location(),
            status,
            code: if code.is_empty() { String::new() } else { format!(", {code}") },
            hint: named.refused,
        }),
        (None, Some(412 | 416)) if named.version.is_some() => Err(LocationError::Changed {
            location: location(),
            expected: named.version.clone().unwrap_or_default(),
            found: last.etag.clone().unwrap_or_else(|| "another".to_owned()),
        }),
        // Fewer bytes than asked for: the response was shortened on the way.
        (None, Some(206)) => Ok(otherwise),
        (None, Some(404)) => Err(LocationError::Missing {
            location: location(),
            detail: match code {
                "NoSuchBucket" => "; there is no such bucket".to_owned(),
                "RepoNotFound" | "GatedRepo" => {
                    "; hint: check the name; for a gated or private data set accept its terms and \
                     set HF_TOKEN"
                        .to_owned()
                }
                "RevisionNotFound" => "; there is no such revision".to_owned(),
                _ => String::new(),
            },
        }),
        (None, Some(301 | 307 | 400)) if last.region.is_some() => {
            let region = last.region.clone().unwrap_or_default();
            Err(LocationError::Response {
                location: location(),
                problem: format!(
                    "the bucket lies in the region {region}; hint: set AWS_REGION={region}"
                ),
            })
        }
        (None, Some(status @ (301 | 302 | 307 | 308))) => Err(LocationError::Response {
            location: location(),
            problem: format!(
                "expected the object, found a redirect (HTTP {status}); hint: the bucket lies in \
                 another region: set AWS_REGION"
            ),
        }),
        (None, Some(200..=299)) | (None, None) => {
            Err(LocationError::Response { location: location(), problem: otherwise })
        }
        (None, Some(status)) => {
            Err(LocationError::Response { location: location(), problem: answers(status) })
        }
    }
}

/// Half to all of a pause, so that many readers do not come back at once.
fn jittered(pause: Duration, count: u32) -> Duration {
    let noise = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let noise = noise
        .map_or(0, |now| now.subsec_nanos())
        .wrapping_mul(2_654_435_761_u32.wrapping_add(count));
    pause / 2 + pause.mul_f64(f64::from(noise >> 8) / f64::from(1_u32 << 24) / 2.0)
}

fn runtime() -> Result<&'static tokio::runtime::Runtime, LocationError> {
    static RUNTIME: OnceLock<Result<tokio::runtime::Runtime, String>> = OnceLock::new();
    let made = RUNTIME.get_or_init(|| {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .max_blocking_threads(THREADS)
            .thread_name("network")
            .enable_time()
            .build()
            .map_err(|error| error.to_string())
    });
    made.as_ref().map_err(|problem| LocationError::Response {
        location: "network".to_owned(),
        problem: format!("cannot start a thread: {problem}"),
    })
}

/// Work in the background, and its result once it is there.
#[derive(Debug)]
pub(crate) struct Pending<T> {
    receiver: Receiver<Result<T, LocationError>>,
    task: Option<tokio::task::AbortHandle>,
}

impl<T> Drop for Pending<T> {
    /// Nobody waits any more: no further attempt is made.
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

/// Starts work on the runtime.
pub(crate) fn start<T: Send + 'static>(
    work: impl Future<Output = Result<T, LocationError>> + Send + 'static,
) -> Pending<T> {
    let (sender, receiver) = sync_channel(1);
    let task = match runtime() {
        Ok(runtime) => {
            let task = runtime.spawn(async move {
                let _ = sender.send(work.await);
            });
            Some(task.abort_handle())
        }
        Err(error) => {
            let _ = sender.send(Err(error));
            None
        }
    };
    Pending { receiver, task }
}

impl<T> Pending<T> {
    /// Waits for the result, or for a request to stop.
    pub(crate) fn wait(&self, access: &Access) -> Result<T, LocationError> {
        loop {
            access.shared.stop.check().map_err(LocationError::from)?;
            match self.receiver.recv_timeout(POLL_INTERVAL) {
                Ok(result) => return result,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(LocationError::Response {
                        location: "network".to_owned(),
                        problem: "a request ended without a result".to_owned(),
                    });
                }
            }
        }
    }
}

impl<T> Pending<T> {
    /// Waits for the result so long, whatever signals arrive.
    pub(crate) fn wait_for(&self, limit: Duration) -> Result<Option<T>, LocationError> {
        self.receiver.recv_timeout(limit).map_or(Ok(None), |result| result.map(Some))
    }
}

/// Does work on the runtime and waits for it.
pub(crate) fn wait<T: Send + 'static>(
    access: &Access,
    work: impl Future<Output = Result<T, LocationError>> + Send + 'static,
) -> Result<T, LocationError> {
    start(work).wait(access)
}
