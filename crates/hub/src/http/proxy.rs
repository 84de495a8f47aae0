//! The proxy of an address, by the variables that curl and Python read.

use std::ffi::OsString;
use std::net::IpAddr;

use ureq::http::Uri;
use ureq::{Proxy, ProxyProtocol};

use crate::HubError;

/// The proxies of `HTTPS_PROXY`, `HTTP_PROXY` and `ALL_PROXY` (lower-case names win), and the hosts
/// of `NO_PROXY`, which are reached directly.
#[derive(Debug, Clone, Default)]
pub struct Proxies {
    http: Option<Proxy>,
    https: Option<Proxy>,
    bypass: Vec<String>,
}

impl Proxies {
    pub(super) fn from_lookup(
        lookup: &impl Fn(&str) -> Option<OsString>,
    ) -> Result<Self, HubError> {
        let find = |names: [&'static str; 4]| {
            names.into_iter().find_map(|name| {
                let value = lookup(name)?.to_string_lossy().trim().to_owned();
                (!value.is_empty()).then_some((name, value))
            })
        };
        let proxy = |names| -> Result<Option<Proxy>, HubError> {
            let Some((variable, value)) = find(names) else { return Ok(None) };
            match Proxy::new(&value) {
                Ok(proxy) => Ok(Some(proxy)),
                // The value may hold a password: it is not shown.
                Err(_) => Err(HubError::Variable {
                    variable,
                    value: "…".to_owned(),
                    expected: "the address of a proxy, such as http://proxy.example:3128",
                }),
            }
        };
        let bypass = ["no_proxy", "NO_PROXY"].into_iter().find_map(lookup).unwrap_or_default();
        Ok(Self {
            http: proxy(["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"])?,
            https: proxy(["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"])?,
            bypass: bypass
                .to_string_lossy()
                .split([',', ' '])
                .map(|entry| entry.trim().to_lowercase())
                .filter(|entry| !entry.is_empty())
                .collect(),
        })
    }

    /// The proxy for `address`, if any.
    pub(super) fn of(&self, address: &Uri) -> Option<&Proxy> {
        let is_https = address.scheme_str() == Some("https");
        let proxy = if is_https { self.https.as_ref() } else { self.http.as_ref() }?;
        let host = address.host()?.trim_start_matches('[').trim_end_matches(']').to_lowercase();
        let port = address.port_u16().unwrap_or(if is_https { 443 } else { 80 });
        (!self.bypass.iter().any(|entry| matches(entry, &host, port))).then_some(proxy)
    }
}

/// Whether an entry of `NO_PROXY` names a host: `*`, the host or a domain it belongs to (with or
/// without a leading dot), each with a port or without, an address, or a range as `10.0.0.0/8`.
fn matches(entry: &str, host: &str, port: u16) -> bool {
    let entry = entry.split_once("://").map_or(entry, |(_, rest)| rest);
    if entry == "*" {
        return true;
    }
    if let Ok(address) = host.parse::<IpAddr>()
        && let Some(found) = in_range(entry, address)
    {
        return found;
    }
    let (name, wanted) = match entry.rsplit_once(':') {
        Some((name, digits)) if !name.contains(':') || name.ends_with(']') => {
            (name, digits.parse().ok())
        }
        _ => (entry, None),
    };
    if wanted.is_some_and(|wanted: u16| wanted != port) {
        return false;
    }
    let name = name.trim_start_matches('[').trim_end_matches(']');
    let domain = name.trim_start_matches('*').trim_start_matches('.');
    host == domain
        || host.strip_suffix(domain).is_some_and(|rest| !domain.is_empty() && rest.ends_with('.'))
}

/// Whether an address lies in `range`, an `ADDRESS/BITS`; `None` if `range` is not one.
fn in_range(range: &str, address: IpAddr) -> Option<bool> {
    let (base, bits) = range.split_once('/')?;
    let bits: u32 = bits.parse().ok()?;
    Some(match (base.parse().ok()?, address) {
        (IpAddr::V4(base), IpAddr::V4(address)) => {
            let shift = 32_u32.checked_sub(bits)?;
            let prefix = |value: u32| value.checked_shr(shift).unwrap_or(0);
            prefix(base.to_bits()) == prefix(address.to_bits())
        }
        (IpAddr::V6(base), IpAddr::V6(address)) => {
            let shift = 128_u32.checked_sub(bits)?;
            let prefix = |value: u128| value.checked_shr(shift).unwrap_or(0);
            prefix(base.to_bits()) == prefix(address.to_bits())
        }
        _ => false,
    })
}

/// Whether requests for plain http go to the proxy itself, with the whole address in the first line
/// (RFC 9112, 3.2.2), as curl and Python do it. https and SOCKS use a tunnel.
pub(super) fn forwards(proxy: &Proxy, address: &Uri) -> bool {
    address.scheme_str() == Some("http")
        && matches!(proxy.protocol(), ProxyProtocol::Http | ProxyProtocol::Https)
}

#[cfg(test)]
mod tests {
    use super::Proxies;

    fn proxies(variables: &[(&str, &str)]) -> Proxies {
        Proxies::from_lookup(&|name: &str| {
            let found = variables.iter().find(|(variable, _)| *variable == name);
            found.map(|(_, value)| value.into())
        })
        .unwrap()
    }

    fn of(variables: &[(&str, &str)], address: &str) -> Option<String> {
        let proxies = proxies(variables);
        proxies.of(&address.parse().unwrap()).map(|proxy| proxy.host().to_owned())
    }

    #[test]
    fn the_scheme_of_the_address_chooses_the_proxy() {
        let both = [("HTTP_PROXY", "http://plain:1"), ("https_proxy", "http://tls:2")];
        assert_eq!(of(&both, "http://a/").as_deref(), Some("plain"));
        assert_eq!(of(&both, "https://a/").as_deref(), Some("tls"));
        assert_eq!(of(&both[..1], "https://a/"), None);
        let all = [("ALL_PROXY", "socks5://all:1"), ("HTTPS_PROXY", "tls:2")];
        assert_eq!(of(&all, "http://a/").as_deref(), Some("all"));
        assert_eq!(of(&all, "https://a/").as_deref(), Some("tls"));
        assert_eq!(of(&[("HTTPS_PROXY", " ")], "https://a/"), None);
    }

    #[test]
    fn no_proxy_has_the_forms_of_curl_and_python() {
        for (entries, address, bypassed) in [
            ("a.example", "https://a.example/", true),
            ("a.example", "https://b.a.example/", true),
            ("a.example", "https://ba.example/", false),
            (".example", "https://a.example/", true),
            ("*.example, other", "https://A.EXAMPLE/", true),
            ("x,*", "https://a.example/", true),
            ("a.example:444", "https://a.example/", false),
            ("a.example:443", "https://a.example/", true),
            ("127.0.0.1", "https://127.0.0.1:8000/", true),
            ("10.0.0.0/8", "https://10.1.2.3/", true),
            ("10.0.0.0/8", "https://11.1.2.3/", false),
            ("0.0.0.0/0", "https://11.1.2.3/", true),
            ("::1", "https://[::1]/", true),
            ("", "https://a.example/", false),
        ] {
            let variables = [("HTTPS_PROXY", "http://proxy:1"), ("NO_PROXY", entries)];
            assert_eq!(of(&variables, address).is_none(), bypassed, "{entries:?} {address}");
        }
    }

    #[test]
    fn a_password_is_not_shown() {
        let lookup = |name: &str| (name == "HTTPS_PROXY").then(|| "gopher://u:secret@h".into());
        let message = Proxies::from_lookup(&lookup).unwrap_err().to_string();
        assert!(message.contains("HTTPS_PROXY") && !message.contains("secret"), "{message}");
        let shown = format!("{:?}", proxies(&[("HTTPS_PROXY", "http://u:secret@h:1")]));
        assert!(!shown.contains("secret"), "{shown}");
    }
}
