//! One object or file: its size and version, and its bytes by the range.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use bytes::Bytes;

use crate::LocationError;
use crate::hub_data::{self, ADDRESS_LIFE, Dataset, Redirected};
use crate::location::{Known, Place, Remote};
use crate::retry::{Failure, Named, attempts};
use crate::store::Bucket;
use crate::web;

/// A remote file whose size and version are known.
pub(crate) struct Object {
    pub(crate) remote: Remote,
    pub(crate) known: Known,
    named: Named,
    source: Source,
}

enum Source {
    Bucket(Arc<Bucket>, String),
    Web(String),
    Hub { dataset: Dataset, path: String, redirected: Mutex<Redirected> },
}

impl std::fmt::Debug for Object {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Object").field("remote", &self.remote).finish_non_exhaustive()
    }
}

impl Remote {
    pub(crate) fn named(&self) -> Named {
        let location = self.shown.display().to_string();
        match &self.place {
            Place::Object { store, .. } => store.named(location),
            Place::Web { .. } => Named {
                location,
                refused: "check the address; a signed one may have run out",
                credentials: "use an address that needs none, or a signed one",
                version: None,
            },
            Place::Hub { .. } => hub_data::named(location),
        }
    }

    pub(crate) fn bucket(&self) -> Result<Option<Arc<Bucket>>, LocationError> {
        let Place::Object { store, .. } = &self.place else { return Ok(None) };
        let location = self.shown.display().to_string();
        let made = self.access.bucket(&store.id(), || Bucket::open(&self.access, store, &location));
        made.map(Some)
    }

    /// Size and version of the object; `None` if nothing has this very name.
    pub(crate) async fn head(&self) -> Result<Option<Known>, LocationError> {
        let named = self.named();
        match &self.place {
            Place::Object { key, .. } => {
                let Some(bucket) = self.bucket()? else { return Ok(None) };
                attempts(&self.access, &named, || bucket.head(key)).await
            }
            Place::Web { url } => {
                let found = attempts(&self.access, &named, || {
                    web::read(&self.access.shared.transport, url, 0..1, None, None)
                });
                match found.await {
                    Ok((_, known, _)) => Ok(Some(known)),
                    Err(LocationError::Missing { .. }) => Ok(None),
                    Err(error) => Err(error),
                }
            }
            Place::Hub { id, revision, path } => {
                let dataset = Dataset::open(&self.access, id, revision, &named).await?;
                let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
                let listed = dataset.list(&self.access, folder, false, &named).await?;
                let mut listed = listed.into_iter().flatten();
                Ok(listed.find(|(name, _)| name == path).map(|(_, known)| known))
            }
        }
    }

    /// Opens the object. A listing that came before saves the question.
    pub(crate) async fn open(self) -> Result<Object, LocationError> {
        let known = match self.access.pinned(&self.shown) {
            Some(known) => known,
            None => {
                let found = self.head().await?.ok_or_else(|| LocationError::Missing {
                    location: self.shown.display().to_string(),
                    detail: String::new(),
                })?;
                self.access.pin(&self.shown, found)
            }
        };
        self.opened(known).await
    }

    /// The object in the version that is known.
    pub(crate) async fn opened(self, known: Known) -> Result<Object, LocationError> {
        let mut named = self.named();
        let source = match &self.place {
            Place::Object { key, .. } => match self.bucket()? {
                Some(bucket) => Source::Bucket(bucket, key.clone()),
                None => Source::Web(String::new()),
            },
            Place::Web { url } => Source::Web(url.clone()),
            Place::Hub { id, revision, path } => Source::Hub {
                dataset: Dataset::open(&self.access, id, revision, &named).await?,
                path: path.clone(),
                redirected: Mutex::default(),
            },
        };
        named.version = known.version.clone();
        Ok(Object { remote: self, known, named, source })
    }
}

impl Object {
    /// The bytes of a range that lies inside the object, of the version it was opened with.
    pub(crate) async fn read(&self, range: Range<u64>) -> Result<Bytes, LocationError> {
        attempts(&self.remote.access, &self.named, || self.read_once(range.clone())).await
    }

    async fn read_once(&self, range: Range<u64>) -> Result<Bytes, Failure> {
        let version = self.known.version.as_deref();
        let transport = &self.remote.access.shared.transport;
        let (bytes, found) = match &self.source {
            Source::Bucket(bucket, key) => bucket.read(key, range.clone(), version).await?,
            Source::Web(url) => {
                let (bytes, known, _) =
                    web::read(transport, url, range.clone(), version, None).await?;
                (bytes, known)
            }
            Source::Hub { dataset, path, redirected } => {
                let bytes = self.read_hub(dataset, path, redirected, range.clone()).await?;
                (bytes, self.known.clone())
            }
        };
        let changed = |expected: String, found: String| {
            Failure::Final(LocationError::Changed {
                location: self.named.location.clone(),
                expected,
                found,
            })
        };
        match (&self.known.version, &found.version) {
            (Some(expected), Some(found)) if expected != found => {
                return Err(changed(expected.clone(), found.clone()));
            }
            _ if found.size != self.known.size => {
                let bytes = |size| format!("{size} bytes");
                return Err(changed(bytes(self.known.size), bytes(found.size)));
            }
            _ => {}
        }
        if bytes.len() as u64 != range.end - range.start {
            return Err(Failure::Transient(format!(
                "{} of {} bytes arrived",
                bytes.len(),
                range.end - range.start
            )));
        }
        Ok(bytes)
    }

    /// Reads through the hub, or from where it redirected to a moment ago. A commit does not
    /// change, so only the size is compared.
    async fn read_hub(
        &self,
        dataset: &Dataset,
        path: &str,
        redirected: &Mutex<Redirected>,
        range: Range<u64>,
    ) -> Result<Bytes, Failure> {
        let transport = &self.remote.access.shared.transport;
        let kept = || redirected.lock().unwrap_or_else(PoisonError::into_inner);
        let recent = kept().clone().filter(|(_, since)| since.elapsed() < ADDRESS_LIFE);
        if let Some((address, _)) = recent {
            // A signature that ran out, or a server that is gone: the hub knows another.
            match web::read(transport, &address, range.clone(), None, None).await {
                Ok((bytes, known, _)) if known.size == self.known.size => return Ok(bytes),
                _ => *kept() = None,
            }
        }
        let token = dataset.token.as_ref();
        let address = dataset.address(path);
        let (bytes, known, from) = web::read(transport, &address, range, None, token).await?;
        if known.size != self.known.size {
            return Err(Failure::Final(LocationError::Changed {
                location: self.named.location.clone(),
                expected: format!("{} bytes", self.known.size),
                found: format!("{} bytes", known.size),
            }));
        }
        if from != address {
            *kept() = Some((from, Instant::now()));
        }
        Ok(bytes)
    }
}
