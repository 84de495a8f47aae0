//! Writes an object, whole or not at all.
//!
//! S3 gets it in parts. Nothing is under the name before the last part has arrived, and then only
//! if nobody else has written there meanwhile: the request that completes the upload carries
//! `If-None-Match: *`, or `If-Match` with the ETag of the object that may be replaced. Google's and
//! Azure's requests that put parts together take no such condition from us (Google has none, Azure
//! signs it), so these two get the object in one request, which does, and it is held in memory.

use std::io::{self, Write};
use std::sync::Arc;

use bytes::Bytes;
use object_store::aws::AmazonS3;
use object_store::multipart::{MultipartStore as _, PartId};
use object_store::path::Path as Key;
use object_store::{PutMode, PutPayload};
use ureq::http::HeaderValue;
use ureq::http::header::{IF_MATCH, IF_NONE_MATCH};

use crate::ahead::PIECE_BYTES;
use crate::location::{Location, Place, Remote, Store};
use crate::retry::{Failure, Named, Pending, attempts, start, wait};
use crate::store::{Bucket, parse_key, s3};
use crate::{Access, LocationError};

/// The size of the first parts; S3 asks for at least 5 MiB.
const PART_BYTES: usize = 8 << 20;
/// After so many parts they are twice as large, so that 10,000 of them hold the largest object.
const PARTS_OF_A_SIZE: usize = 1000;
/// Parts that are sent at the same time.
const PARALLEL: usize = 4;

/// The largest object that is sent in one request; Azure takes 5000 MiB.
const MAX_WHOLE_BYTES: usize = 4 << 30;

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
    key: Key,
    buffer: Vec<u8>,
    way: Way,
    /// Of all bytes so far.
    hasher: blake3::Hasher,
    length: u64,
    finished: bool,
}

/// How the bytes get there.
#[derive(Debug)]
enum Way {
    /// In parts, which one request puts together.
    Parts(Parts),
    /// In one request, under a condition.
    Whole(Arc<Bucket>, PutMode),
}

/// An upload in parts.
#[derive(Debug)]
struct Parts {
    store: Arc<AmazonS3>,
    id: String,
    sending: Vec<Pending<PartId>>,
    done: Vec<PartId>,
}

impl Upload {
    /// Whether an object can be written there by its name alone: asks nobody.
    ///
    /// # Errors
    /// When the location is no key of object storage.
    pub fn check(location: &Location) -> Result<(), LocationError> {
        writable(location).map(|_| ())
    }

    /// Begins to write an object.
    ///
    /// # Errors
    /// When the location is no key of object storage, something stands there that the condition
    /// does not allow, or the upload cannot begin.
    pub fn begin(location: &Location, condition: &Condition) -> Result<Self, LocationError> {
        let (remote, store, key) = writable(location)?;
        refuse_present(remote, condition)?;
        let key = match parse_key(key) {
            Ok(key) => key,
            Err(Failure::Final(error)) => return Err(error),
            Err(Failure::Unknown(_) | Failure::Transient(_)) => return Err(not_written(location)),
        };
        let access = remote.access.clone();
        let (way, named) = match (store, remote.bucket()?) {
            (Store::S3(bucket), _) => {
                let named = Named {
                    refused: "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_REGION, and \
                              that they may write there",
                    ..remote.named()
                };
                let parts = Parts::begin(&access, bucket, &key, &named, condition)?;
                (Way::Parts(parts), named)
            }
            (_, Some(bucket)) => {
                let named = remote.named();
                let mode = mode_of(&access, &bucket, &key, &named, condition)?;
                (Way::Whole(bucket, mode), named)
            }
            (_, None) => return Err(not_written(location)),
        };
        Ok(Self {
            access,
            remote: remote.clone(),
            named,
            key,
            buffer: Vec::new(),
            way,
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
        let is_empty = match &self.way {
            Way::Parts(parts) => parts.done.is_empty() && parts.sending.is_empty(),
            Way::Whole(..) => false,
        };
        if !self.buffer.is_empty() || is_empty {
            self.send()?;
        }
        while matches!(&self.way, Way::Parts(parts) if !parts.sending.is_empty()) {
            self.arrive()?;
        }
        let location = self.named.location.clone();
        let done = self.complete();
        let error = match done {
            Ok(()) => {
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

    /// The request that puts the object under its name.
    fn complete(&mut self) -> Result<(), LocationError> {
        let (access, named, key) = (self.access.clone(), self.named.clone(), self.key.clone());
        let failed = {
            let location = named.location.clone();
            move |error: object_store::Error| match error {
                object_store::Error::Precondition { .. }
                | object_store::Error::AlreadyExists { .. } => {
                    Failure::Final(LocationError::Exists { location: location.clone() })
                }
                _ => unknown(),
            }
        };
        match &self.way {
            Way::Parts(parts) => {
                let (store, id) = (Arc::clone(&parts.store), parts.id.clone());
                let parts = parts.done.clone();
                wait(&self.access, async move {
                    attempts(&access, &named, || async {
                        let done = store.complete_multipart(&key, &id, parts.clone()).await;
                        done.map(|_| ()).map_err(&failed)
                    })
                    .await
                })
            }
            Way::Whole(bucket, mode) => {
                let (bucket, mode) = (Arc::clone(bucket), mode.clone());
                let bytes = Bytes::from(std::mem::take(&mut self.buffer));
                wait(&self.access, async move {
                    attempts(&access, &named, || async {
                        let payload = PutPayload::from(bytes.clone());
                        bucket.put(&key, payload, mode.clone()).await.map_err(&failed)
                    })
                    .await
                })
            }
        }
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

    /// How many bytes the buffer may hold.
    fn part_bytes(&self) -> usize {
        match &self.way {
            Way::Parts(parts) => {
                let sent = parts.done.len() + parts.sending.len();
                PART_BYTES << (sent / PARTS_OF_A_SIZE).min(6)
            }
            Way::Whole(..) => MAX_WHOLE_BYTES,
        }
    }

    /// Begins to send the buffer as the next part. What is sent whole waits for the end.
    fn send(&mut self) -> Result<(), LocationError> {
        while matches!(&self.way, Way::Parts(parts) if parts.sending.len() >= PARALLEL) {
            self.arrive()?;
        }
        let Way::Parts(parts) = &mut self.way else { return Ok(()) };
        let number = parts.done.len() + parts.sending.len();
        let bytes = Bytes::from(std::mem::take(&mut self.buffer));
        let (access, named, store) =
            (self.access.clone(), self.named.clone(), Arc::clone(&parts.store));
        let (key, id) = (self.key.clone(), parts.id.clone());
        parts.sending.push(start(async move {
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
        if let Way::Parts(parts) = &mut self.way
            && !parts.sending.is_empty()
        {
            let oldest = parts.sending.remove(0);
            parts.done.push(oldest.wait(&self.access)?);
        }
        Ok(())
    }
}

impl Parts {
    fn begin(
        access: &Access,
        bucket: &str,
        key: &Key,
        named: &Named,
        condition: &Condition,
    ) -> Result<Self, LocationError> {
        let header = match condition {
            Condition::Absent => (IF_NONE_MATCH, HeaderValue::from_static("*")),
            Condition::Replaces(etag) => {
                let value = etag.parse().map_err(|_| LocationError::Form {
                    location: named.location.clone(),
                    expected: "the ETag of an object".to_owned(),
                })?;
                (IF_MATCH, value)
            }
        };
        let store = Arc::new(s3(access, bucket, &named.location, Some(header))?);
        let task = (access.clone(), named.clone(), Arc::clone(&store), key.clone());
        let id = wait(access, async move {
            let (access, named, store, key) = task;
            attempts(&access, &named, || async {
                store.create_multipart(&key).await.map_err(|_| unknown())
            })
            .await
        })?;
        Ok(Self { store, id, sending: Vec::new(), done: Vec::new() })
    }
}

/// The condition of a request that sends the whole object. Google tells versions by a number that
/// only an answer has.
fn mode_of(
    access: &Access,
    bucket: &Arc<Bucket>,
    key: &Key,
    named: &Named,
    condition: &Condition,
) -> Result<PutMode, LocationError> {
    let Condition::Replaces(etag) = condition else { return Ok(PutMode::Create) };
    let task = (access.clone(), named.clone(), Arc::clone(bucket), key.clone());
    let found = wait(access, async move {
        let (access, named, bucket, key) = task;
        attempts(&access, &named, || bucket.version(&key)).await
    })?;
    match found {
        Some(found) if found.e_tag.as_ref() == Some(etag) => Ok(PutMode::Update(found)),
        _ => Err(LocationError::Exists { location: named.location.clone() }),
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
        if now == 0 && !bytes.is_empty() {
            return Err(io::Error::from(LocationError::Response {
                location: self.named.location.clone(),
                problem: format!(
                    "expected at most {MAX_WHOLE_BYTES} bytes, which one request can send there; \
                     hint: name a path or an address of s3://"
                ),
            }));
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
        let Way::Parts(parts) = &mut self.way else { return };
        if self.finished {
            return;
        }
        parts.sending.clear();
        let (store, key, id) = (Arc::clone(&parts.store), self.key.clone(), parts.id.clone());
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
fn writable(location: &Location) -> Result<(&Remote, &Store, &str), LocationError> {
    let Location::Remote(remote) = location else { return Err(not_written(location)) };
    let Place::Object { store, key } = &remote.place else {
        return Err(not_written(location));
    };
    if key.is_empty() || key.ends_with('/') || location.is_pattern() {
        return Err(LocationError::Form {
            location: location.to_string(),
            expected: "the name of one object, such as s3://BUCKET/labels.parquet".to_owned(),
        });
    }
    Ok((remote, store, key))
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

fn not_written(location: &Location) -> LocationError {
    LocationError::Form {
        location: location.to_string(),
        expected: "a path, or an object of s3://, gs:// or az://, which are the places that can \
                   be written"
            .to_owned(),
    }
}

fn unknown() -> Failure {
    Failure::Unknown("the answer to the upload is not that of object storage".to_owned())
}
