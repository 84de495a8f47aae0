//! How remote data is reached: the environment, time limits, connections and counters.

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use hub::Network;
use runkit::signals::StopFlag;

use crate::LocationError;
use crate::location::Known;
use crate::store::Bucket;
use crate::transport::Transport;

/// When to try again and when to give up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The wait for a connection.
    pub connect: Duration,
    /// The wait for the first or next byte of a response.
    pub idle: Duration,
    /// A response with fewer than `least_bytes` in this time is given up.
    pub window: Duration,
    /// Bytes that must arrive within `window`.
    pub least_bytes: usize,
    /// The pause before the second attempt; doubles with each further one.
    pub pause: Duration,
    /// The longest pause.
    pub longest_pause: Duration,
    /// No attempt starts later than this after the first.
    pub total: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            idle: Duration::from_secs(15),
            window: Duration::from_secs(20),
            least_bytes: 256 << 10,
            pause: Duration::from_millis(500),
            longest_pause: Duration::from_secs(20),
            total: Duration::from_secs(200),
        }
    }
}

/// What has been requested so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Requests, further attempts and redirects included.
    pub requests: u64,
    /// Bytes of the bodies that arrived.
    pub bytes: u64,
    /// Attempts after the first.
    pub retries: u64,
}

/// How remote data is reached. Clones share connections and counters.
#[derive(Clone)]
pub struct Access {
    pub(crate) shared: Arc<Shared>,
}

pub(crate) struct Shared {
    /// The variables that this crate reads, as they were at the start.
    pub(crate) variables: Vec<(String, String)>,
    pub(crate) limits: Limits,
    pub(crate) transport: Arc<Transport>,
    pub(crate) stop: StopFlag,
    /// Why there is no network, for the first request.
    pub(crate) problem: Option<String>,
    /// Clients of buckets, by scheme and bucket.
    pub(crate) buckets: Mutex<HashMap<String, Arc<Bucket>>>,
    /// The commits of the hub's revisions, which stay the same during a run.
    pub(crate) commits: Mutex<HashMap<String, String>>,
    /// Size and version of every object at its first request: it must stay so during a run.
    pub(crate) known: Mutex<HashMap<PathBuf, Known>>,
    /// Web addresses with their queries, by the address without.
    pub(crate) queries: Mutex<HashMap<String, String>>,
    pub(crate) retries: AtomicU64,
}

/// That of this process, once it is used or set.
static PROCESS: OnceLock<Access> = OnceLock::new();

impl std::fmt::Debug for Access {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Access")
            .field("limits", &self.shared.limits)
            .finish_non_exhaustive()
    }
}

impl Access {
    /// That of this process: its environment, read once, the usual limits, its stop flag.
    pub fn of_process() -> Self {
        let new = || {
            let variables = std::env::vars_os().filter_map(|(name, value)| {
                Some((name.into_string().ok()?, value.into_string().ok()?))
            });
            Self::new(variables.collect(), Limits::default(), runkit::signals::flag_of_process())
        };
        PROCESS.get_or_init(new).clone()
    }

    /// Makes this the access of the process. Returns whether it could: only before the first use.
    pub fn set_for_process(self) -> bool {
        PROCESS.set(self).is_ok()
    }

    /// One with variables, limits and a stop flag of its own.
    pub fn new(variables: Vec<(String, String)>, limits: Limits, stop: StopFlag) -> Self {
        let lookup = |name: &str| -> Option<OsString> {
            let found = variables.iter().find(|(known, _)| known == name);
            found.map(|(_, value)| value.into())
        };
        let (mut network, problem) = match Network::from_lookup(&lookup) {
            Ok(network) => (network, None),
            Err(error) => (Network::default(), Some(error.to_string())),
        };
        network.stop = stop.clone();
        (network.limits.connect, network.limits.idle) = (limits.connect, limits.idle);
        let transport = Arc::new(Transport::new(network, limits));
        let shared = Shared {
            variables,
            limits,
            transport,
            stop,
            problem,
            buckets: Mutex::default(),
            commits: Mutex::default(),
            known: Mutex::default(),
            queries: Mutex::default(),
            retries: AtomicU64::new(0),
        };
        Self { shared: Arc::new(shared) }
    }

    /// The same variables and limits with a stop flag of its own, and without what is known of
    /// objects: for work that continues after a signal, and that writes what it has read before.
    #[must_use]
    pub fn anew(&self, stop: StopFlag) -> Self {
        Self::new(self.shared.variables.clone(), self.shared.limits, stop)
    }

    /// Requests and bytes so far.
    pub fn traffic(&self) -> Traffic {
        let (requests, bytes) = self.shared.transport.counts();
        Traffic { requests, bytes, retries: self.shared.retries.load(Ordering::Relaxed) }
    }
}

/// Says in the log what this process has requested, if anything: how much a command read from
/// elsewhere is then known at its end.
pub fn log_traffic() {
    let Some(Traffic { requests, bytes, retries }) = PROCESS.get().map(Access::traffic) else {
        return;
    };
    if requests > 0 {
        tracing::debug!(requests, bytes, retries, "read from elsewhere");
    }
}

impl Access {
    /// A variable that is set and not empty.
    pub(crate) fn variable(&self, name: &str) -> Option<&str> {
        let found = self.shared.variables.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.trim()).filter(|value| !value.is_empty())
    }

    /// Whether a variable says yes.
    pub(crate) fn is_set(&self, name: &str) -> bool {
        let yes = ["1", "ON", "YES", "TRUE", "Y"];
        self.variable(name).is_some_and(|value| yes.contains(&value.to_uppercase().as_str()))
    }

    /// Fails if the network cannot be used at all.
    pub(crate) fn check(&self, location: &str) -> Result<(), LocationError> {
        match &self.shared.problem {
            None => Ok(()),
            Some(problem) => Err(LocationError::Setup {
                location: location.to_owned(),
                problem: problem.clone(),
                variables: "HTTPS_PROXY, HTTP_PROXY and ALL_PROXY",
            }),
        }
    }

    /// Keeps the first that was known of an object, and returns it.
    pub(crate) fn pin(&self, shown: &Path, known: Known) -> Known {
        let mut all = self.shared.known.lock().unwrap_or_else(PoisonError::into_inner);
        all.entry(shown.to_owned()).or_insert(known).clone()
    }

    /// No longer expects the object that was known: this process has written another one.
    pub(crate) fn unpin(&self, shown: &Path) {
        self.shared.known.lock().unwrap_or_else(PoisonError::into_inner).remove(shown);
    }

    /// What was known of an object at its first request.
    pub(crate) fn pinned(&self, shown: &Path) -> Option<Known> {
        self.shared.known.lock().unwrap_or_else(PoisonError::into_inner).get(shown).cloned()
    }

    /// Remembers the query of a web address, or finds the one that was given before.
    pub(crate) fn whole_address(&self, shown: &str, spelled: &str) -> String {
        let mut all = self.shared.queries.lock().unwrap_or_else(PoisonError::into_inner);
        if shown != spelled {
            all.insert(shown.to_owned(), spelled.to_owned());
        }
        all.get(shown).cloned().unwrap_or_else(|| spelled.to_owned())
    }

    /// The client of a bucket, made once.
    pub(crate) fn bucket(
        &self,
        key: &str,
        make: impl FnOnce() -> Result<Bucket, LocationError>,
    ) -> Result<Arc<Bucket>, LocationError> {
        let mut buckets = self.shared.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = buckets.get(key) {
            return Ok(Arc::clone(known));
        }
        let made = Arc::new(make()?);
        buckets.insert(key.to_owned(), Arc::clone(&made));
        Ok(made)
    }
}
