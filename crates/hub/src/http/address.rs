//! Addresses: their parts, and where a redirect leads.

use std::fmt::Write as _;

use ureq::http::Uri;

/// Scheme, host and port in one; `None` if the address has no host.
pub fn origin(address: &Uri) -> Option<String> {
    let scheme = address.scheme_str()?.to_lowercase();
    let port = address.port_u16().unwrap_or(if scheme == "https" { 443 } else { 80 });
    Some(format!("{scheme}://{}:{port}", address.host()?.to_lowercase()))
}

/// Text as one part of an address, with slashes kept if `slashes`
/// (Python's `urllib.parse.quote`).
pub fn encode(text: &str, slashes: bool) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        let is_plain = byte.is_ascii_alphanumeric()
            || matches!(byte, b'-' | b'_' | b'.' | b'~')
            || (slashes && byte == b'/');
        if is_plain {
            encoded.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

/// Where `Location: location` leads from `base` (RFC 3986, 5.2). What an address cannot hold, such
/// as letters beyond ASCII, is written with percent signs.
pub fn join(base: &Uri, location: &[u8]) -> Option<Uri> {
    let mut text = String::with_capacity(location.len());
    for &byte in location.trim_ascii() {
        if byte.is_ascii_graphic() && !matches!(byte, b'<' | b'>' | b'"' | b'\\' | b'^' | b'`') {
            text.push(char::from(byte));
        } else {
            let _ = write!(text, "%{byte:02X}");
        }
    }
    let text = text.split('#').next().unwrap_or_default();
    let (scheme, authority) = (base.scheme_str()?, base.authority()?);
    let scheme_of = |text: &str| {
        let (scheme, _) = text.split_once(':')?;
        scheme.bytes().all(|byte| byte.is_ascii_alphanumeric()).then(|| scheme.to_lowercase())
    };
    let joined = if text.starts_with("//") {
        format!("{scheme}:{text}")
    } else if text.starts_with('/') {
        format!("{scheme}://{authority}{text}")
    } else if let Some(other) = scheme_of(text) {
        if other != "http" && other != "https" {
            return None;
        }
        text.to_owned()
    } else if text.starts_with('?') {
        format!("{scheme}://{authority}{}{text}", base.path())
    } else {
        let folder = base.path().rsplit_once('/').map_or("", |(folder, _)| folder);
        format!("{scheme}://{authority}{folder}/{text}")
    };
    joined.parse().ok().filter(|address: &Uri| address.host().is_some())
}

#[cfg(test)]
mod tests {
    use super::{encode, join, origin};

    #[test]
    fn locations_lead_where_browsers_go() {
        let base = "https://hub.example:8443/a/b?c=d".parse().unwrap();
        for (location, expected) in [
            ("https://cdn.example/x?y=%2F", Some("https://cdn.example/x?y=%2F")),
            ("HTTP://cdn.example/x", Some("http://cdn.example/x")),
            ("//cdn.example/x", Some("https://cdn.example/x")),
            ("/x/y?z", Some("https://hub.example:8443/x/y?z")),
            ("x", Some("https://hub.example:8443/a/x")),
            ("?z=1", Some("https://hub.example:8443/a/b?z=1")),
            ("/ä b#part", Some("https://hub.example:8443/%C3%A4%20b")),
            ("ftp://cdn.example/x", None),
            ("file:///etc/passwd", None),
            ("http://", None),
        ] {
            let found = join(&base, location.as_bytes()).map(|address| address.to_string());
            assert_eq!(found.as_deref(), expected, "{location}");
        }
    }

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        let of = |address: &str| origin(&address.parse().unwrap());
        assert_eq!(of("https://Hub.example/x"), of("https://hub.example:443/y?z"));
        for other in ["http://hub.example/", "https://hub.example:444/", "https://a.hub.example/"] {
            assert_ne!(of("https://hub.example/"), of(other), "{other}");
        }
    }

    #[test]
    fn parts_of_addresses_are_encoded_as_python_does() {
        assert_eq!(encode("a+b c/ä", true), "a%2Bb%20c/%C3%A4");
        assert_eq!(encode("refs/pr/1", false), "refs%2Fpr%2F1");
    }
}
