//! Data sets of the Hugging Face Hub: the commit of a revision, the files of a folder, where a file
//! is (huggingface/huggingface_hub `src/huggingface_hub/hf_api.py`, `list_repo_tree`).

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use hub::{Settings, encode};
use serde::Deserialize;
use ureq::http::HeaderMap;

use crate::LocationError;
use crate::access::Access;
use crate::location::Known;
use crate::retry::{Failure, Named, attempts};
use crate::web::{self, Token};

/// How long the address that the hub redirects to is used; it is signed for an hour.
pub(crate) const ADDRESS_LIFE: Duration = Duration::from_secs(600);
/// The most pages of a listing, of 1000 names each.
const MOST_PAGES: usize = 10_000;

/// A data set at one commit.
#[derive(Clone)]
pub(crate) struct Dataset {
    pub(crate) endpoint: String,
    pub(crate) token: Option<Token>,
    pub(crate) id: String,
    pub(crate) commit: String,
}

/// Where the hub redirected to, and when.
pub(crate) type Redirected = Option<(String, Instant)>;

#[derive(Deserialize)]
struct Revision {
    sha: String,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(rename = "type")]
    kind: String,
    path: String,
    #[serde(default)]
    size: u64,
    oid: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    oid: Option<String>,
    size: Option<u64>,
}

pub(crate) fn named(location: String) -> Named {
    Named {
        location,
        refused: "accept the terms of the data set on its page and set HF_TOKEN to a token that \
                  may read it",
        credentials: "set HF_TOKEN",
        version: None,
    }
}

impl Dataset {
    /// The data set at the commit that `revision` had at its first use in this run.
    pub(crate) async fn open(
        access: &Access,
        id: &str,
        revision: &str,
        named: &Named,
    ) -> Result<Self, LocationError> {
        // The cache of models is not needed here; any folder will do.
        let lookup = |name: &str| match (name, access.variable(name)) {
            ("HOME", None) => Some("/".into()),
            (_, value) => value.map(Into::into),
        };
        let settings = Settings::from_lookup(lookup).map_err(|error| LocationError::Setup {
            location: named.location.clone(),
            problem: error.to_string(),
            variables: "HF_ENDPOINT",
        })?;
        if settings.offline {
            return Err(LocationError::Offline { location: named.location.clone() });
        }
        let endpoint = settings.endpoint;
        let origin = endpoint.parse().ok().and_then(|address| hub::origin(&address));
        let token = settings.token.zip(origin).map(|(text, origin)| Token { origin, text });
        let key = format!("{endpoint} {id} {revision}");
        let pinned = || {
            let commits = access.shared.commits.lock().unwrap_or_else(PoisonError::into_inner);
            commits.get(&key).cloned()
        };
        let mut this = Self { endpoint, token, id: id.to_owned(), commit: String::new() };
        if let Some(commit) = pinned() {
            this.commit = commit;
            return Ok(this);
        }
        let address =
            format!("{}/api/datasets/{id}/revision/{}", this.endpoint, encode(revision, false));
        let found: Revision = attempts(access, named, || async {
            let (body, _) = this.api(access, &address).await?;
            parse(&body)
        })
        .await?;
        let is_commit = found.sha.len() == 40 && found.sha.bytes().all(|b| b.is_ascii_hexdigit());
        if !is_commit {
            return Err(LocationError::Response {
                location: named.location.clone(),
                problem: "expected the commit of the revision, found another answer".to_owned(),
            });
        }
        // Another thread may have been first: its commit holds.
        let mut commits = access.shared.commits.lock().unwrap_or_else(PoisonError::into_inner);
        this.commit = commits.entry(key).or_insert(found.sha).clone();
        Ok(this)
    }

    /// The files below a folder, or right in it; `None` if there is no such folder.
    pub(crate) async fn list(
        &self,
        access: &Access,
        folder: &str,
        recursive: bool,
        named: &Named,
    ) -> Result<Option<Vec<(String, Known)>>, LocationError> {
        let mut address =
            format!("{}/api/datasets/{}/tree/{}", self.endpoint, self.id, self.commit);
        let folder = folder.trim_end_matches('/');
        if !folder.is_empty() {
            address += &format!("/{}", encode(folder, true));
        }
        address += &format!("?recursive={recursive}&expand=false");
        let mut files = Vec::new();
        for _ in 0..MOST_PAGES {
            let page = attempts(access, named, || async {
                let (body, next) = self.api(access, &address).await?;
                Ok((parse::<Vec<Entry>>(&body)?, next))
            });
            let (entries, next) = match page.await {
                Ok(page) => page,
                Err(LocationError::Missing { detail, .. }) if detail.is_empty() => {
                    return Ok(None);
                }
                Err(error) => return Err(error),
            };
            files
                .extend(entries.into_iter().filter(|entry| entry.kind == "file").map(Entry::known));
            match next {
                Some(next) => address = next,
                None => return Ok(Some(files)),
            }
        }
        Err(LocationError::Response {
            location: named.location.clone(),
            problem: format!("its listing has more than {MOST_PAGES} pages"),
        })
    }

    /// Where a file of the commit is.
    pub(crate) fn address(&self, path: &str) -> String {
        let (id, commit) = (&self.id, &self.commit);
        format!("{}/datasets/{id}/resolve/{commit}/{}", self.endpoint, encode(path, true))
    }

    /// A response of the API, and the address of the next page.
    async fn api(
        &self,
        access: &Access,
        address: &str,
    ) -> Result<(Vec<u8>, Option<String>), Failure> {
        let transport = Arc::clone(&access.shared.transport);
        let (response, _) =
            web::get(&transport, address, &HeaderMap::new(), self.token.as_ref()).await?;
        let next = response
            .headers()
            .get_all("link")
            .iter()
            .find_map(|link| next_page(link.to_str().ok()?));
        // A page of another server would be asked with the token's name in vain, and is no page.
        let base = address.parse().ok();
        let next = next.zip(base).and_then(|(next, base)| hub::join(&base, next.as_bytes()));
        let next = next.map(|next| next.to_string());
        Ok((response.into_body().to_vec(), next))
    }
}

impl Entry {
    fn known(self) -> (String, Known) {
        let size = self.lfs.as_ref().and_then(|lfs| lfs.size).unwrap_or(self.size);
        let version = self.lfs.and_then(|lfs| lfs.oid).or(self.oid);
        (self.path, Known { size, version })
    }
}

fn parse<T: serde::de::DeserializeOwned>(body: &[u8]) -> Result<T, Failure> {
    serde_json::from_slice(body).map_err(|error| {
        Failure::Unknown(format!("expected an answer of the hub in JSON, found another ({error})"))
    })
}

/// The address after `rel="next"` of a `Link` header (RFC 8288).
fn next_page(link: &str) -> Option<String> {
    link.split(',').find_map(|part| {
        let (address, rest) = part.trim().strip_prefix('<')?.split_once('>')?;
        let is_next =
            rest.split(';').any(|field| matches!(field.trim(), "rel=\"next\"" | "rel=next"));
        is_next.then(|| address.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::next_page;

    #[test]
    fn the_next_page_is_found_in_its_header() {
        let header = "<https://h/x?cursor=a%3D%3D>; rel=\"next\"";
        assert_eq!(next_page(header).as_deref(), Some("https://h/x?cursor=a%3D%3D"));
        let header = "<https://h/0>; rel=\"prev\", <https://h/2>; rel=\"next\"";
        assert_eq!(next_page(header).as_deref(), Some("https://h/2"));
        assert_eq!(next_page("<https://h/0>; rel=\"prev\""), None);
    }
}
