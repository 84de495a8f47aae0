//! Connections that are kept and used again, for callers with many small requests.

use std::io;
use std::sync::{Mutex, OnceLock, PoisonError};

use ureq::Agent;
use ureq::http::{Request, Response, Uri};
use ureq::tls::TlsConfig;

use super::{Network, Problem, agent, explain};

/// How many connections wait for another request, for each host.
const IDLE_CONNECTIONS: usize = 32;

/// Why a request has no response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// What happened, without the address.
    pub problem: String,
    /// Whether another attempt may help.
    pub transient: bool,
    /// Whether the certificate of the server is not trusted.
    pub certificate: bool,
}

/// A scheme, and the address of the proxy on the way.
type Way = (String, Option<String>);

/// A client that keeps its connections, with the proxies, certificates and waits of a [`Network`].
/// It follows no redirect and retries nothing.
#[derive(Debug)]
pub struct Connections {
    network: Network,
    tls: OnceLock<TlsConfig>,
    agents: Mutex<Vec<(Way, Agent)>>,
}

impl Connections {
    /// No connection yet.
    pub fn new(network: Network) -> Self {
        Self { network, tls: OnceLock::new(), agents: Mutex::default() }
    }

    /// Sends a request and waits for the head of its response. Every status is a response.
    ///
    /// # Errors
    /// When no response arrives in time.
    pub fn run(&self, request: Request<&[u8]>) -> Result<Response<ureq::Body>, Fault> {
        let agent = self.agent(request.uri());
        let takes_body = matches!(request.method().as_str(), "PUT" | "POST" | "PATCH");
        let result = match takes_body {
            true => agent.run(request),
            false => agent.run(request.map(|_| ())),
        };
        result.map_err(|error| Fault::from(explain(&error)))
    }

    fn agent(&self, address: &Uri) -> Agent {
        let proxy = self.network.proxies.of(address);
        let scheme = address.scheme_str().unwrap_or_default().to_owned();
        let key = (scheme, proxy.map(|proxy| proxy.uri().to_string()));
        let mut agents = self.agents.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, agent)) = agents.iter().find(|(known, _)| *known == key) {
            return agent.clone();
        }
        let agent = agent(&self.network, &self.tls, address, proxy, IDLE_CONNECTIONS);
        agents.push((key, agent.clone()));
        agent
    }
}

impl Fault {
    /// Why the body of a response could not be read.
    pub fn of_body(error: io::Error) -> Self {
        explain(&ureq::Error::from(error)).into()
    }
}

impl From<Problem> for Fault {
    fn from(problem: Problem) -> Self {
        let (transient, certificate) =
            (matches!(problem, Problem::Transient(_)), matches!(problem, Problem::Certificate(_)));
        let problem = match problem {
            Problem::Transient(text) | Problem::Permanent(text) | Problem::Certificate(text) => {
                text
            }
            Problem::Stopped(signal) => format!("stopped by {signal}"),
        };
        Self { problem, transient, certificate }
    }
}
