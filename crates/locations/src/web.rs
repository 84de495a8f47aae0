//! Ranges of files on web servers, and the redirects on the way. A token stays with its server.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use ureq::http::header::{AUTHORIZATION, IF_MATCH, LOCATION, RANGE};
use ureq::http::{HeaderMap, Method, Request, Response, Uri};

use crate::location::Known;
use crate::retry::Failure;
use crate::transport::Transport;

const MAXIMUM_REDIRECTS: usize = 10;

/// A token, and the server it belongs to.
#[derive(Clone)]
pub(crate) struct Token {
    pub(crate) origin: String,
    pub(crate) text: String,
}

/// Requests `address` and follows redirects. Returns the last response and where it came from.
pub(crate) async fn get(
    transport: &Arc<Transport>,
    address: &str,
    headers: &HeaderMap,
    token: Option<&Token>,
) -> Result<(Response<Bytes>, String), Failure> {
    let parse = |text: &str| {
        text.parse::<Uri>().map_err(|_| Failure::Unknown("the address is not one".to_owned()))
    };
    let mut address = parse(address)?;
    for _ in 0..=MAXIMUM_REDIRECTS {
        let mut request = Request::new(Bytes::new());
        *request.method_mut() = Method::GET;
        *request.uri_mut() = address.clone();
        *request.headers_mut() = headers.clone();
        if let Some(token) = token
            && hub::origin(&address).is_some_and(|origin| origin == token.origin)
            && let Ok(mut value) =
                format!("Bearer {}", token.text).parse::<ureq::http::HeaderValue>()
        {
            value.set_sensitive(true);
            request.headers_mut().insert(AUTHORIZATION, value);
        }
        let sent = transport.send(request).await;
        let response = sent.map_err(|_| Failure::Unknown("no response".to_owned()))?;
        let target = response.headers().get(LOCATION).map(|value| value.as_bytes().to_owned());
        match (response.status().as_u16(), target) {
            (301 | 302 | 303 | 307 | 308, Some(target)) => {
                let next = hub::join(&address, &target);
                let secure = address.scheme_str() == Some("https");
                // The bytes would no longer be protected.
                let next = next.filter(|next| !secure || next.scheme_str() == Some("https"));
                address = next.ok_or_else(|| {
                    Failure::Unknown("it redirects to what is not an address of https".to_owned())
                })?;
            }
            (200..=299, _) => return Ok((response, address.to_string())),
            // What was observed of the response tells the rest.
            _ => return Err(Failure::Unknown("another response".to_owned())),
        }
    }
    Err(Failure::Unknown(format!("it redirects more than {MAXIMUM_REDIRECTS} times")))
}

/// The bytes of a range, what the response says of the file, and where it came from.
pub(crate) async fn read(
    transport: &Arc<Transport>,
    address: &str,
    range: Range<u64>,
    version: Option<&str>,
    token: Option<&Token>,
) -> Result<(Bytes, Known, String), Failure> {
    let mut headers = HeaderMap::new();
    let value = format!("bytes={}-{}", range.start, range.end.saturating_sub(1));
    let unknown = |what: &str| Failure::Unknown(what.to_owned());
    headers.insert(RANGE, value.parse().map_err(|_| unknown("a range that is none"))?);
    let strong = version.filter(|tag| tag.starts_with('"'));
    if let Some(tag) = strong.and_then(|tag| tag.parse().ok()) {
        headers.insert(IF_MATCH, tag);
    }
    let (response, from) = get(transport, address, &headers, token).await?;
    if response.status().as_u16() != 206 {
        return Err(unknown(
            "expected the bytes of a range (HTTP 206), found the whole file; the server must know \
             ranges; hint: download it",
        ));
    }
    let text = |name: &str| response.headers().get(name)?.to_str().ok();
    let stated = text("content-range").and_then(content_range);
    let Some((sent, size)) = stated else {
        return Err(unknown("expected a range and a size in Content-Range, found none"));
    };
    let version = text("etag").or_else(|| text("last-modified")).map(str::to_owned);
    let expected = range.start..range.end.min(size);
    if sent != expected || response.body().len() as u64 != expected.end - expected.start {
        return Err(Failure::Transient(format!(
            "the server sent {} bytes from {} on, not bytes {} to {}",
            response.body().len(),
            sent.start,
            expected.start,
            expected.end
        )));
    }
    Ok((response.into_body(), Known { size, version }, from))
}

/// `bytes FIRST-LAST/SIZE`.
fn content_range(text: &str) -> Option<(Range<u64>, u64)> {
    let (range, size) = text.trim().strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last) = (first.parse::<u64>().ok()?, last.parse::<u64>().ok()?);
    Some((first..last.checked_add(1)?, size.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::content_range;

    #[test]
    fn ranges_are_read_of_their_header() {
        assert_eq!(content_range("bytes 0-0/7"), Some((0..1, 7)));
        assert_eq!(content_range("bytes 5-9/10"), Some((5..10, 10)));
        for other in ["bytes */7", "bytes 0-0/*", "0-0/7", ""] {
            assert_eq!(content_range(other), None, "{other}");
        }
    }
}
