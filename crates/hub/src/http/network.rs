//! Proxies, certificates, time limits and the request to stop.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use runkit::signals::StopFlag;

use super::proxy::Proxies;
use crate::HubError;

/// Variables that name files or folders of certificates, as OpenSSL, requests and curl read them.
const CERTIFICATES: [&str; 4] =
    ["SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"];

/// How to reach servers.
#[derive(Debug, Clone, Default)]
pub struct Network {
    /// Files or folders of certificates in PEM format, with the variable that named each.
    pub certificates: Vec<(&'static str, PathBuf)>,
    /// The proxies, and the hosts reached without one.
    pub proxies: Proxies,
    /// When to give up.
    pub limits: Limits,
    /// Requests to stop, even in the middle of a download.
    pub stop: StopFlag,
}

/// When to give up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The wait for a connection.
    pub connect: Duration,
    /// The wait for the first or next byte of a response.
    pub idle: Duration,
    /// A response with fewer than `least_bytes` in this time is given up.
    pub window: Duration,
    /// Bytes that must arrive within `window`.
    pub least_bytes: u64,
    /// Attempts in a row without progress.
    pub attempts: u32,
    /// The pause before the second attempt; doubles with each further one.
    pub pause: Duration,
    /// The longest pause that a server may request with `Retry-After`.
    pub longest_pause: Duration,
    /// How long another process may hold the same download without writing to it.
    pub other_process: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            idle: Duration::from_secs(15),
            window: Duration::from_secs(60),
            least_bytes: 64 << 10,
            attempts: 4,
            pause: Duration::from_secs(1),
            longest_pause: Duration::from_secs(60),
            other_process: Duration::from_secs(60),
        }
    }
}

impl Network {
    /// Reads the variables of certificates and proxies from `lookup`.
    ///
    /// # Errors
    /// When a variable does not hold the address of a proxy.
    pub fn from_lookup(lookup: &impl Fn(&str) -> Option<OsString>) -> Result<Self, HubError> {
        let named = CERTIFICATES.iter().filter_map(|&name| {
            let value = lookup(name).filter(|value| !value.is_empty())?;
            Some(match name {
                "SSL_CERT_DIR" => {
                    std::env::split_paths(&value).map(|path| (name, path)).collect::<Vec<_>>()
                }
                _ => vec![(name, PathBuf::from(value))],
            })
        });
        Ok(Self {
            certificates: named.flatten().collect(),
            proxies: Proxies::from_lookup(lookup)?,
            limits: Limits::default(),
            stop: runkit::signals::flag_of_process(),
        })
    }
}
