//! The hub's description of a repository: its commit, and each file's name, size and checksum.

use runkit::signals::Stopped;
use runkit::text::excerpt;
use serde::Deserialize;
use ureq::http::{HeaderMap, Method, Uri};

use crate::checksum::Expected;
use crate::http::{Attempts, Client, Problem, Response, encode, origin, text_of};
use crate::name::{HubName, Kind, is_commit};
use crate::{HubError, Settings};

/// A description of a repository of many files has some megabytes.
const LONGEST_DESCRIPTION: usize = 256 << 20;
/// How much of a response is read to find its error message.
const LONGEST_MESSAGE: usize = 1 << 16;

/// A repository on the hub.
pub(crate) struct Remote<'a> {
    pub(crate) settings: &'a Settings,
    pub(crate) name: &'a HubName,
    pub(crate) client: &'a Client,
}

/// A file of a repository, as the hub lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ListedFile {
    pub(crate) name: String,
    pub(crate) size: Option<u64>,
    /// Its SHA-256 or git's checksum.
    pub(crate) checksum: Option<String>,
}

/// The hub's description of a commit.
#[derive(Debug, Clone)]
pub(crate) struct Description {
    pub(crate) commit: String,
    /// Its files; `None` if a mirror does not list them.
    pub(crate) files: Option<Vec<ListedFile>>,
}

/// What the headers of all responses on the way to a file state.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Facts {
    /// The name that its contents have in the cache.
    pub(crate) tag: Option<String>,
    pub(crate) size: Option<u64>,
    pub(crate) commit: Option<String>,
    /// Whether the hub itself says that the commit has no such file.
    pub(crate) is_absent: bool,
}

#[derive(Deserialize)]
struct Information {
    sha: Option<String>,
    siblings: Option<Vec<Sibling>>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    #[serde(rename = "blobId")]
    blob_id: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    sha256: Option<String>,
    size: Option<u64>,
}

impl Remote<'_> {
    /// Requests the commit of a revision, and the names, sizes and checksums of its files.
    pub(crate) fn describe(&self, revision: &str) -> Result<Description, HubError> {
        const WHAT: &str = "the description";
        let kind = match self.name.kind {
            Kind::Model => "models",
            Kind::Dataset => "datasets",
        };
        let plain = format!(
            "{}/api/{kind}/{}/revision/{}",
            self.settings.endpoint,
            self.name.id,
            encode(revision, false)
        );
        let mut response = self.get(WHAT, &format!("{plain}?blobs=true"))?;
        if matches!(response.status, 400 | 404 | 405 | 422) && !is_from_hub(&response.headers) {
            // A mirror that rejects the query string.
            response = self.get(WHAT, &plain)?;
        }
        if response.status != 200 {
            return Err(self.refused(WHAT, response));
        }
        let text = response.read_all(LONGEST_DESCRIPTION).map_err(self.explain(WHAT))?;
        let found: Information = serde_json::from_slice(&text).map_err(|error| {
            let begins = excerpt(String::from_utf8_lossy(&text).trim_start());
            let problem = format!("expected JSON ({error}), the response begins with {begins:?}");
            self.failed(WHAT, problem)
        })?;
        let commit = found
            .sha
            .filter(|sha| is_commit(sha))
            .ok_or_else(|| self.failed(WHAT, "the response names no commit".to_owned()))?;
        let files = found.siblings.map(|all| all.into_iter().map(ListedFile::from).collect());
        Ok(Description { commit, files })
    }

    /// Requests a file of a commit from byte `first` on, and collects its facts on the way.
    pub(crate) fn open(
        &self,
        method: &Method,
        commit: &str,
        file: &str,
        first: Option<u64>,
        attempts: &mut Attempts,
    ) -> Result<(Facts, Response), Problem> {
        let kind = match self.name.kind {
            Kind::Model => "",
            Kind::Dataset => "datasets/",
        };
        let address = format!(
            "{}/{kind}{}/resolve/{commit}/{}",
            self.settings.endpoint,
            self.name.id,
            encode(file, true)
        );
        let address = parse(&address)?;
        let home = origin(&address);
        let mut facts = Facts::default();
        let response = self.client.request(
            method,
            &address,
            first,
            attempts,
            &mut |at, status, headers| {
                facts.take(origin(at) == home, status, headers);
            },
        )?;
        Ok((facts, response))
    }

    /// The size of a file in bytes, if a server states it without sending the file.
    pub(crate) fn size(&self, commit: &str, file: &str) -> Result<Option<u64>, HubError> {
        let mut attempts = Attempts::default();
        match self.open(&Method::HEAD, commit, file, None, &mut attempts) {
            Ok((facts, response)) if response.status == 200 => Ok(facts.size),
            Err(Problem::Stopped(signal)) => Err(HubError::Stopped(Stopped(signal))),
            _ => Ok(None),
        }
    }

    fn get(&self, what: &str, address: &str) -> Result<Response, HubError> {
        let address = parse(address).map_err(self.explain(what))?;
        let mut attempts = Attempts::default();
        let asked =
            self.client.request(&Method::GET, &address, None, &mut attempts, &mut |_, _, _| {});
        asked.map_err(self.explain(what))
    }

    /// The error for an unsuccessful response.
    pub(crate) fn refused(&self, what: &str, mut response: Response) -> HubError {
        let status = response.status;
        if !matches!(status, 401 | 403 | 404) {
            return self.failed(what, format!("HTTP {status} of {}", host(&response.address)));
        }
        let said = response.header("x-error-message").map(excerpt).filter(|text| !text.is_empty());
        let said = said.or_else(|| {
            let text = response.read_all(LONGEST_MESSAGE).ok()?;
            let value: serde_json::Value = serde_json::from_slice(&text).ok()?;
            value.get("error")?.as_str().map(excerpt)
        });
        HubError::Refused {
            endpoint: self.settings.endpoint.clone(),
            repository: self.name.shown(),
            status,
            said: said.map(|text| format!(": {text}")).unwrap_or_default(),
        }
    }

    pub(crate) fn failed(&self, what: &str, problem: String) -> HubError {
        HubError::Download {
            endpoint: self.settings.endpoint.clone(),
            repository: self.name.shown(),
            what: what.to_owned(),
            problem,
        }
    }

    pub(crate) fn explain<'s>(&'s self, what: &'s str) -> impl FnOnce(Problem) -> HubError + 's {
        move |problem| match problem {
            Problem::Stopped(signal) => HubError::Stopped(Stopped(signal)),
            Problem::Transient(problem) | Problem::Permanent(problem) => self.failed(what, problem),
            Problem::Certificate(problem) => HubError::Certificate {
                endpoint: self.settings.endpoint.clone(),
                repository: self.name.shown(),
                problem,
            },
        }
    }
}

impl Facts {
    /// Adds the headers of one response. The hub's own count; those of a server that it redirects
    /// to count only for the size, as its entity tags mean something else.
    fn take(&mut self, is_home: bool, status: u16, headers: &HeaderMap) {
        let commit = text_of(headers, "x-repo-commit");
        let speaks_for_hub = commit.is_some() || (is_home && matches!(status, 200 | 206));
        if self.commit.is_none() {
            self.commit = commit.map(str::to_owned);
        }
        if self.tag.is_none() {
            let linked = text_of(headers, "x-linked-etag");
            let own = text_of(headers, "etag").filter(|_| speaks_for_hub);
            self.tag = linked.or(own).and_then(plain_tag);
        }
        if self.size.is_none() {
            let number = |name| text_of(headers, name).and_then(|text| text.parse().ok());
            let whole = text_of(headers, "content-range")
                .and_then(|range| range.rsplit_once('/')?.1.parse().ok());
            self.size = number("x-linked-size").or(match status {
                200 => number("content-length"),
                206 => whole,
                _ => None,
            });
        }
        self.is_absent = status == 404
            && match text_of(headers, "x-error-code") {
                Some(code) => code == "EntryNotFound",
                None => true,
            };
    }
}

/// An entity tag as a file name, without `W/` and quotes; `None` if it cannot be a file name.
fn plain_tag(tag: &str) -> Option<String> {
    let tag = tag.strip_prefix("W/").unwrap_or(tag).trim_matches('"');
    let is_plain = !tag.is_empty()
        && tag.len() <= 128
        && tag.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
    is_plain.then(|| tag.to_owned())
}

/// Whether a response comes from the hub itself, not from a server in between.
pub(crate) fn is_from_hub(headers: &HeaderMap) -> bool {
    ["x-error-code", "x-repo-commit"].iter().any(|name| headers.contains_key(*name))
}

impl From<Sibling> for ListedFile {
    fn from(sibling: Sibling) -> Self {
        let (lfs_sum, lfs_size) = sibling.lfs.map_or((None, None), |lfs| (lfs.sha256, lfs.size));
        let checksum = lfs_sum.or(sibling.blob_id);
        Self {
            name: sibling.rfilename,
            size: lfs_size.or(sibling.size),
            checksum: checksum.filter(|sum| Expected::of(sum).is_some()),
        }
    }
}

fn parse(address: &str) -> Result<Uri, Problem> {
    address
        .parse()
        .map_err(|error| Problem::Permanent(format!("{address} is not an address: {error}")))
}

pub(crate) fn host(address: &Uri) -> String {
    address.host().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::{Facts, plain_tag};
    use ureq::http::HeaderMap;

    /// Whether the hub itself gave it, its status, and its headers.
    type Response<'a> = (bool, u16, &'a [(&'static str, &'a str)]);

    fn facts(answers: &[Response<'_>]) -> Facts {
        let mut facts = Facts::default();
        for (is_home, status, headers) in answers {
            let mut map = HeaderMap::new();
            for (name, value) in *headers {
                map.insert(*name, value.parse().unwrap());
            }
            facts.take(*is_home, *status, &map);
        }
        facts
    }

    #[test]
    fn the_hub_speaks_for_a_file_and_not_the_server_it_leads_to() {
        let hub: &[_] =
            &[("x-linked-etag", "\"aa\""), ("x-linked-size", "7"), ("x-repo-commit", "c")];
        let cdn: &[_] = &[("etag", "\"bb\""), ("content-length", "9")];
        let found = facts(&[(true, 302, hub), (false, 200, cdn)]);
        assert_eq!((found.tag.as_deref(), found.size), (Some("aa"), Some(7)));
        // A mirror that leads to the hub itself: its response has a commit.
        let found = facts(&[
            (true, 308, &[]),
            (false, 200, &[("etag", "W/\"cc\""), ("x-repo-commit", "c")]),
        ]);
        assert_eq!(found.tag.as_deref(), Some("cc"));
        // A server of files alone.
        let found = facts(&[(true, 302, &[]), (false, 200, cdn)]);
        assert_eq!((found.tag, found.size), (None, Some(9)));
        let range: &[_] = &[("content-range", "bytes 3-8/9"), ("content-length", "6")];
        assert_eq!(facts(&[(true, 206, range)]).size, Some(9));
        assert!(facts(&[(true, 404, &[("x-error-code", "EntryNotFound")])]).is_absent);
        assert!(!facts(&[(true, 404, &[("x-error-code", "RepoNotFound")])]).is_absent);
    }

    #[test]
    fn tags_become_file_names_or_nothing() {
        for (tag, expected) in [
            ("\"abc\"", Some("abc")),
            ("W/\"abc\"", Some("abc")),
            ("abc-1", Some("abc-1")),
            ("\"\"", None),
            ("\"../../x\"", None),
            ("\"a b\"", None),
        ] {
            assert_eq!(plain_tag(tag).as_deref(), expected, "{tag}");
        }
        assert_eq!(plain_tag(&"a".repeat(129)), None);
    }
}
