//! How a server is reached: proxies, certificates, time limits and the request to stop.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use runkit::signals::StopFlag;

use super::proxy::Proxies;
use crate::HubError;

/// Variables that name files or folders of certificates, as OpenSSL, requests and curl read them.
const CERTIFICATES: [&str; 4] =
    ["SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"];

/// What the environment says about the network.
#[derive(Debug, Clone, Default)]
pub struct Network {
    /// Files or folders of certificates in PEM format, with the variable that named each.
    pub certificates: Vec<(&'static str, PathBuf)>,
    /// Which addresses are reached through a proxy.
    pub proxies: Proxies,
    /// When to give up.
    pub limits: Limits,
    /// Asks to stop in the middle of a download.
    pub stop: StopFlag,
}

/// When to give up waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Until a connection stands.
    pub connect: Duration,
    /// Until the first or the next byte of an answer comes.
    pub idle: Duration,
    /// An answer that brings fewer than `least_bytes` in this time is given up.
    pub window: Duration,
    /// Bytes that have to come within `window`.
    pub least_bytes: u64,
    /// Attempts in a row that may bring nothing.
    pub attempts: u32,
    /// The pause before the second attempt; it doubles with each one.
    pub pause: Duration,
    /// The longest pause that a server may ask for with `Retry-After`.
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
    pub(crate) fn from_lookup(
        lookup: &impl Fn(&str) -> Option<OsString>,
    ) -> Result<Self, HubError> {
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
