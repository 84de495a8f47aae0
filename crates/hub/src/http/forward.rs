//! Plain http through a proxy: connects to the proxy and writes the whole address in the first line
//! of the request. ureq supports only tunnels, which proxies grant for port 443.

use std::fmt;

use ureq::Proxy;
use ureq::http::Uri;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, DefaultConnector, NextTimeout, Transport,
};

/// Looks up the proxy, whatever the address.
#[derive(Debug)]
pub(super) struct ProxyResolver(Uri);

impl ProxyResolver {
    pub(super) fn new(proxy: &Proxy) -> Self {
        Self(proxy.uri().clone())
    }
}

impl Resolver for ProxyResolver {
    fn resolve(
        &self,
        _address: &Uri,
        config: &ureq::config::Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        DefaultResolver::default().resolve(&self.0, config, timeout)
    }
}

/// Connects to the proxy, whatever the address.
#[derive(Debug)]
pub(super) struct ProxyConnector {
    proxy: Uri,
    inner: DefaultConnector,
}

impl ProxyConnector {
    pub(super) fn new(proxy: &Proxy) -> Self {
        Self { proxy: proxy.uri().clone(), inner: DefaultConnector::new() }
    }
}

impl Connector<()> for ProxyConnector {
    type Out = Forwarded;

    fn connect(
        &self,
        details: &ConnectionDetails<'_>,
        chained: Option<()>,
    ) -> Result<Option<Forwarded>, ureq::Error> {
        let to_proxy = ConnectionDetails {
            uri: &self.proxy,
            addrs: details.addrs.clone(),
            config: details.config,
            request_level: details.request_level,
            resolver: details.resolver,
            now: details.now,
            timeout: details.timeout,
            current_time: details.current_time.clone(),
            run_connector: details.run_connector.clone(),
            register_shutdown: details.register_shutdown.clone(),
        };
        let scheme = details.uri.scheme_str().unwrap_or("http");
        let authority = details.uri.authority().map_or("", |authority| authority.as_str());
        let prefix = format!("{scheme}://{authority}");
        let inner = self.inner.connect(&to_proxy, chained)?;
        Ok(inner.map(|inner| Forwarded { inner, prefix: Some(prefix) }))
    }
}

/// A connection to the proxy that carries one request.
pub(super) struct Forwarded {
    inner: Box<dyn Transport>,
    /// Scheme and host to write before the path; taken when the request is sent.
    prefix: Option<String>,
}

impl fmt::Debug for Forwarded {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Forwarded").finish_non_exhaustive()
    }
}

impl Transport for Forwarded {
    fn buffers(&mut self) -> &mut dyn Buffers {
        self.inner.buffers()
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), ureq::Error> {
        let Some(prefix) = self.prefix.take() else {
            return self.inner.transmit_output(amount, timeout);
        };
        let output = self.inner.buffers().output();
        let longer = amount + prefix.len();
        let path = output.iter().take(amount).position(|&byte| byte == b' ').map(|at| at + 1);
        let Some((path, target)) =
            path.and_then(|path| Some((path, output.get_mut(path..longer)?)))
        else {
            return Err(ureq::Error::BadUri("the address is too long for the proxy".to_owned()));
        };
        target.copy_within(..amount - path, prefix.len());
        if let Some(start) = target.get_mut(..prefix.len()) {
            start.copy_from_slice(prefix.as_bytes());
        }
        self.inner.transmit_output(longer, timeout)
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, ureq::Error> {
        self.inner.await_input(timeout)
    }

    fn is_open(&mut self) -> bool {
        self.inner.is_open()
    }
}
