//! Writes an object of S3 in parts, whole or not at all.
//!
//! Nothing is under the name before the last part has arrived, and then only if nobody else has
//! written there meanwhile: the request that completes the upload carries `If-None-Match: *`, or
//! `If-Match` with the ETag of the object that may be replaced.

use std::io::{self, Write};
use std::sync::Arc;

use bytes::Bytes;
use object_store::PutPayload;
use object_store::aws::AmazonS3;
use object_store::multipart::{MultipartStore as _, PartId};
use object_store::path::Path as Key;
use ureq::http::HeaderValue;
use ureq::http::header::{IF_MATCH, IF_NONE_MATCH};

use crate::ahead::PIECE_BYTES;
use crate::location::{Location, Place, Remote, Store};
use crate::retry::{Failure, Named, Pending, attempts, start, wait};
use crate::store::{parse_key, s3};
use crate::{Access, LocationError};

/// The size of the first parts; S3 asks for at least 5 MiB.
const PART_BYTES: usize = 8 << 20;
/// After so many parts they are twice as large, so that 10,000 of them hold the largest object.
const PARTS_OF_A_SIZE: usize = 1000;
/// Parts that are sent at the same time.
const PARALLEL: usize = 4;

/// What may stand under the name when an upload is completed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// Nothing.
    Absent,
    /// The object with this ETag, which the caller knows to be its own.
    Replaces(String),
}

/// An object that is being written. Dropped without [`Upload::finish`], it leaves nothing.
#[derive(Debug)]
pub struct Upload {
    access: Access,
    remote: Remote,
    named: Named,
    store: Arc<AmazonS3>,
    key: Key,
    id: String,
    buffer: Vec<u8>,
    sending: Vec<Pending<PartId>>,
    parts: Vec<PartId>,
    /// Of all bytes so far.
    hasher: blake3::Hasher,
    length: u64,
    finished: bool,
}

impl Upload {
    /// Whether an object can be written there by its name alone: asks nobody.
    ///
    /// # Errors
    /// When the location is no key of S3.
    pub fn check(location: &Location) -> Result<(), LocationError> {
        writable(location).map(|_| ())
    }

    /// Begins to write an object.
    ///
    /// # Errors
    /// When the location is no key of S3, something stands there that the condition does not allow,
    /// or the upload cannot begin.
    pub fn begin(location: &Location, condition: &Condition) -> Result<Self, LocationError> {
        let (remote, bucket, key) = writable(location)?;
        refuse_present(remote, condition)?;
        let header = match condition {
            Condition::Absent => (IF_NONE_MATCH, HeaderValue::from_static("*")),
            Condition::Replaces(etag) => {
                let value = etag.parse().map_err(|_| LocationError::Form {
                    location: location.to_string(),
                    expected: "the ETag of an object".to_owned(),
                })?;
                (IF_MATCH, value)
            }
        };
        let access = remote.access.clone();
        let store = Arc::new(s3(&access, bucket, &location.to_string(), Some(header))?);
        let key = match parse_key(key) {
            Ok(key) => key,
            Err(Failure::Final(error)) => return Err(error),
            Err(Failure::Unknown(_) | Failure::Transient(_)) => return Err(not_s3(location)),
        };
        let named = Named {
            refused: "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_REGION, and that they \
                      may write there",
            ..remote.named()
        };
        let task = (access.clone(), named.clone(), Arc::clone(&store), key.clone());
        let id = wait(&access, async move {
            let (access, named, store, key) = task;
            attempts(&access, &named, || async {
                store.create_multipart(&key).await.map_err(|_| unknown())
            })
            .await
        })?;
        Ok(Self {
            access,
            remote: remote.clone(),
            named,
            store,
            key,
            id,
            buffer: Vec::new(),
            sending: Vec::new(),
            parts: Vec::new(),
            hasher: blake3::Hasher::new(),
            length: 0,
            finished: false,
        })
    }

    /// Sends what is left and puts the object under its name.
    ///
    /// # Errors
    /// When a part cannot be sent, or something else has come under the name meanwhile, which
    /// stays: [`LocationError::Exists`].
    pub fn finish(mut self) -> Result<(), LocationError> {
        if !self.buffer.is_empty() || (self.parts.is_empty() && self.sending.is_empty()) {
            self.send()?;
        }
        while !self.sending.is_empty() {
            self.arrive()?;
        }
        let (access, named, store) =
            (self.access.clone(), self.named.clone(), Arc::clone(&self.store));
        let (key, id, parts) = (self.key.clone(), self.id.clone(), self.parts.clone());
        let location = named.location.clone();
        let done = wait(&self.access, async move {
            attempts(&access, &named, || async {
                store.complete_multipart(&key, &id, parts.clone()).await.map_err(
                    |error| match error {
                        object_store::Error::Precondition { .. }
                        | object_store::Error::AlreadyExists { .. } => {
                            let location = named.location.clone();
                            Failure::Final(LocationError::Exists { location })
                        }
                        _ => unknown(),
                    },
                )
            })
            .await
        });
        let error = match done {
            Ok(_) => {
                self.finished = true;
                self.access.unpin(&self.remote.shown);
                return Ok(());
            }
            // The answer to 412, in the words of an upload.
            Err(LocationError::Changed { .. }) => LocationError::Exists { location },
            Err(LocationError::Response { problem, .. }) if problem.contains("HTTP 412") => {
                LocationError::Exists { location }
            }
            Err(error) => error,
        };
        // The answer to an attempt that succeeded may have been lost; then the next one finds the
        // object, or no upload.
        if matches!(error, LocationError::Exists { .. } | LocationError::Missing { .. })
            && self.is_there()?
        {
            self.access.unpin(&self.remote.shown);
            return Ok(());
        }
        Err(error)
    }

    /// Whether the object under the name has the bytes of this upload.
    fn is_there(&self) -> Result<bool, LocationError> {
        let (task, length) = (self.remote.clone(), self.length);
        let found = wait(&self.access, async move {
            let found = task.head().await?.filter(|found| found.size == length);
            let Some(found) = found else { return Ok(None) };
            let object = task.opened(found).await?;
            let (mut hasher, mut start) = (blake3::Hasher::new(), 0);
            while start < length {
                let end = length.min(start + PIECE_BYTES);
                hasher.update(&object.read(start..end).await?);
                start = end;
            }
            Ok(Some(hasher.finalize()))
        });
        Ok(found?.is_some_and(|found| found == self.hasher.finalize()))
    }

    fn part_bytes(&self) -> usize {
        let sent = self.parts.len() + self.sending.len();
        PART_BYTES << (sent / PARTS_OF_A_SIZE).min(6)
    }

    /// Begins to send the buffer as the next part.
    fn send(&mut self) -> Result<(), LocationError> {
        while self.sending.len() >= PARALLEL {
            self.arrive()?;
        }
        let number = self.parts.len() + self.sending.len();
        let bytes = Bytes::from(std::mem::take(&mut self.buffer));
        let (access, named, store) =
            (self.access.clone(), self.named.clone(), Arc::clone(&self.store));
        let (key, id) = (self.key.clone(), self.id.clone());
        self.sending.push(start(async move {
            attempts(&access, &named, || async {
                let payload = PutPayload::from(bytes.clone());
                store.put_part(&key, &id, number, payload).await.map_err(|_| unknown())
            })
            .await
        }));
        Ok(())
    }

    /// Waits for the oldest part on its way.
    fn arrive(&mut self) -> Result<(), LocationError> {
        if self.sending.is_empty() {
            return Ok(());
        }
        let oldest = self.sending.remove(0);
        self.parts.push(oldest.wait(&self.access)?);
        Ok(())
    }
}

impl Write for Upload {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = self.part_bytes().saturating_sub(self.buffer.len());
        let now = bytes.len().min(room);
        self.buffer.extend_from_slice(&bytes[..now]);
        self.hasher.update(&bytes[..now]);
        self.length += now as u64;
        if self.buffer.len() >= self.part_bytes() {
            self.send()?;
        }
        Ok(now)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Upload {
    /// Removes the parts of an upload that was not completed. If even that fails, the bucket's rule
    /// for unfinished uploads removes them.
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        self.sending.clear();
        let (store, key, id) = (Arc::clone(&self.store), self.key.clone(), self.id.clone());
        let aborted = start(async move {
            match store.abort_multipart(&key, &id).await {
                // It was completed, and the answer lost.
                Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
                Err(_) => Err(LocationError::Response {
                    location: key.to_string(),
                    problem: "its unfinished parts could not be removed".to_owned(),
                }),
            }
        });
        // Also after a request to stop, so not with the flag of this process.
        if let Err(error) = aborted.wait_for(self.access.shared.limits.idle) {
            tracing::warn!("{error}");
        }
    }
}

/// The bucket and key of a location that can be written.
fn writable(location: &Location) -> Result<(&Remote, &str, &str), LocationError> {
    let Location::Remote(remote) = location else { return Err(not_s3(location)) };
    let Place::Object { store: Store::S3(bucket), key } = &remote.place else {
        return Err(not_s3(location));
    };
    if key.is_empty() || key.ends_with('/') || location.is_pattern() {
        return Err(LocationError::Form {
            location: location.to_string(),
            expected: "the name of one object, such as s3://BUCKET/labels.parquet".to_owned(),
        });
    }
    Ok((remote, bucket, key))
}

/// Fails early if the condition is already broken.
fn refuse_present(remote: &Remote, condition: &Condition) -> Result<(), LocationError> {
    let task = remote.clone();
    let found = wait(&remote.access, async move { task.head().await })?;
    let allowed = match (condition, found) {
        (_, None) => true,
        (Condition::Absent, Some(_)) => false,
        (Condition::Replaces(etag), Some(found)) => found.version.as_ref() == Some(etag),
    };
    if allowed {
        return Ok(());
    }
    Err(LocationError::Exists { location: remote.shown.display().to_string() })
}

fn not_s3(location: &Location) -> LocationError {
    LocationError::Form {
        location: location.to_string(),
        expected: "a path, or s3://BUCKET/NAME, which are the places that can be written"
            .to_owned(),
    }
}

fn unknown() -> Failure {
    Failure::Unknown("the answer to the upload is not that of S3".to_owned())
}
