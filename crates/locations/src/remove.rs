//! Removes an object.

use crate::LocationError;
use crate::location::{Location, Place};
use crate::retry::{attempts, wait};

/// Removes an object. One that is not there counts as removed.
///
/// # Errors
/// When the location is not in object storage, or the server refuses or cannot be reached.
pub fn remove(location: &Location) -> Result<(), LocationError> {
    let Location::Remote(remote) = location else { return Err(not_an_object(location)) };
    let Place::Object { key, .. } = &remote.place else { return Err(not_an_object(location)) };
    if key.is_empty() || key.ends_with('/') || location.is_pattern() {
        return Err(not_an_object(location));
    }
    let (task, key) = (remote.clone(), key.clone());
    wait(&remote.access, async move {
        let named = task.named();
        let Some(bucket) = task.bucket()? else { return Ok(()) };
        attempts(&task.access, &named, || bucket.remove(&key)).await
    })
}

fn not_an_object(location: &Location) -> LocationError {
    LocationError::Form {
        location: location.to_string(),
        expected: "the name of one object, such as s3://BUCKET/NAME".to_owned(),
    }
}
