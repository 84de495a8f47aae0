//! Object storage: a client for each bucket, made of the standard variables.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::TryStreamExt as _;
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::path::Path as Key;
use object_store::{
    GetOptions, GetRange, ObjectMeta, ObjectStore, ObjectStoreExt as _, PutMode, PutPayload,
    RetryConfig, UpdateVersion,
};
use ureq::http::{HeaderName, HeaderValue};

use crate::LocationError;
use crate::access::Access;
use crate::location::{Known, Store};
use crate::retry::{Failure, Named};
use crate::spelling::is_loopback;
use crate::transport::Service;

/// Variables that lead to another endpoint, and those that allow plain http there.
const ENDPOINTS: [&str; 8] = [
    "AWS_ENDPOINT_URL_S3",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT",
    "GOOGLE_BASE_URL",
    "AZURE_STORAGE_ENDPOINT",
    "AZURE_ENDPOINT",
    "AZURITE_BLOB_STORAGE_URL",
    "AWS_ENDPOINT_URL_STS",
];
/// What another response is called.
const NOT_UNDERSTOOD: &str = "the response of the server is not that of object storage";

/// A client of one bucket.
#[derive(Debug)]
pub(crate) struct Bucket {
    store: Box<dyn ObjectStore>,
}

impl Store {
    /// The scheme and the bucket: what tells clients apart.
    pub(crate) fn id(&self) -> String {
        match self {
            Self::S3(bucket) => format!("s3://{bucket}"),
            Self::Gcs(bucket) => format!("gs://{bucket}"),
            Self::Azure(base) => base.clone(),
        }
    }

    /// The variables that matter if access fails.
    pub(crate) fn named(&self, location: String) -> Named {
        let (refused, credentials) = match self {
            Self::S3(_) => (
                "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN and AWS_REGION, \
                 and that they may list and read it",
                "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, for a public bucket \
                 AWS_SKIP_SIGNATURE=true; AWS_ENDPOINT_URL names another server than Amazon's",
            ),
            Self::Gcs(_) => (
                "check GOOGLE_APPLICATION_CREDENTIALS or GOOGLE_SERVICE_ACCOUNT, and that it may \
                 list and read the bucket",
                "set GOOGLE_APPLICATION_CREDENTIALS=/path/to/key.json, for a public bucket \
                 GOOGLE_SKIP_SIGNATURE=true",
            ),
            Self::Azure(_) => (
                "check AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY or \
                 AZURE_STORAGE_SAS_KEY, and that they may list and read the container",
                "set AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY, for a public \
                 container AZURE_SKIP_SIGNATURE=true",
            ),
        };
        Named { location, refused, credentials, version: None }
    }
}

/// One attempt each: what is tried again, and for how long, is decided in [`crate::retry`].
fn no_retries() -> RetryConfig {
    RetryConfig { max_retries: 0, ..RetryConfig::default() }
}

/// Refuses plain http to other machines, unless the user allows it.
fn check_endpoints(access: &Access, location: &str) -> Result<(), LocationError> {
    let (variable, allowed) = ("AWS_ALLOW_HTTP", ["AWS_ALLOW_HTTP", "ALLOW_HTTP"]);
    for name in ENDPOINTS {
        let Some(endpoint) = access.variable(name) else { continue };
        if let Some(rest) = endpoint.strip_prefix("http://")
            && !is_loopback(rest)
            && !allowed.into_iter().any(|name| access.is_set(name))
        {
            return Err(LocationError::PlainHttp {
                location: format!("{location} at {name}"),
                variable,
            });
        }
    }
    Ok(())
}

/// The S3 client of a bucket; `condition` goes with the request that completes an upload.
pub(crate) fn s3(
    access: &Access,
    bucket: &str,
    location: &str,
    condition: Option<(HeaderName, HeaderValue)>,
) -> Result<AmazonS3, LocationError> {
    check_endpoints(access, location)?;
    let mut builder = AmazonS3Builder::new();
    for (name, value) in &access.shared.variables {
        if name.starts_with("AWS_")
            && !value.is_empty()
            && let Ok(key) = name.to_ascii_lowercase().parse()
        {
            builder = builder.with_config(key, value);
        }
    }
    let transport = Arc::clone(&access.shared.transport);
    builder
        .with_bucket_name(bucket)
        .with_allow_http(true)
        // One request for each object: servers other than Amazon's may not know the other way.
        .with_disable_bulk_delete(true)
        .with_retry(no_retries())
        .with_http_connector(Service { transport, condition })
        .build()
        .map_err(|error| {
            let variables = "AWS_ENDPOINT_URL, AWS_REGION and the other AWS_* variables";
            setup(location, &error, variables)
        })
}

impl Bucket {
    /// The client that the environment describes.
    pub(crate) fn open(
        access: &Access,
        store: &Store,
        location: &str,
    ) -> Result<Self, LocationError> {
        let service = Service { transport: Arc::clone(&access.shared.transport), condition: None };
        let of = |prefix: &'static str| {
            access
                .shared
                .variables
                .iter()
                .filter(move |(name, value)| name.starts_with(prefix) && !value.is_empty())
        };
        let store: Box<dyn ObjectStore> = match store {
            Store::S3(bucket) => Box::new(s3(access, bucket, location, None)?),
            Store::Gcs(bucket) => {
                check_endpoints(access, location)?;
                let mut builder = GoogleCloudStorageBuilder::new();
                for (name, value) in of("GOOGLE_") {
                    if let Ok(key) = name.to_ascii_lowercase().parse() {
                        builder = builder.with_config(key, value);
                    }
                }
                let built = builder
                    .with_bucket_name(bucket)
                    .with_retry(no_retries())
                    .with_http_connector(service)
                    .build();
                Box::new(built.map_err(|error| {
                    setup(location, &error, "GOOGLE_APPLICATION_CREDENTIALS and GOOGLE_*")
                })?)
            }
            Store::Azure(base) => {
                check_endpoints(access, location)?;
                let mut builder = MicrosoftAzureBuilder::new();
                for (name, value) in of("AZURE_") {
                    if let Ok(key) = name.to_ascii_lowercase().parse() {
                        builder = builder.with_config(key, value);
                    }
                }
                let built = builder
                    .with_url(format!("{base}/"))
                    .with_allow_http(true)
                    .with_retry(no_retries())
                    .with_http_connector(service)
                    .build();
                Box::new(built.map_err(|error| {
                    setup(location, &error, "AZURE_STORAGE_ACCOUNT_NAME and AZURE_*")
                })?)
            }
        };
        Ok(Self { store })
    }

    /// Size and ETag of an object; `None` if nothing has the key.
    pub(crate) async fn head(&self, key: &str) -> Result<Option<Known>, Failure> {
        let options = GetOptions { head: true, ..GetOptions::default() };
        match self.store.get_opts(&parse_key(key)?, options).await {
            Ok(found) => Ok(Some(known(found.meta))),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(_) => Err(Failure::Unknown(NOT_UNDERSTOOD.to_owned())),
        }
    }

    /// The bytes of a range, and the ETag they are of.
    pub(crate) async fn read(
        &self,
        key: &str,
        range: Range<u64>,
        version: Option<&str>,
    ) -> Result<(Bytes, Known), Failure> {
        let options = GetOptions {
            range: Some(GetRange::Bounded(range)),
            // Weak ETags never match (RFC 9110, 13.1.1); they are compared afterwards.
            if_match: version.filter(|tag| !tag.starts_with("W/")).map(str::to_owned),
            ..GetOptions::default()
        };
        let unknown = |_| {
            Failure::Unknown(
                "expected the bytes of a range (HTTP 206), found another \
                              response; the server must know ranges"
                    .to_owned(),
            )
        };
        let found = self.store.get_opts(&parse_key(key)?, options).await.map_err(unknown)?;
        let known = known(found.meta.clone());
        let bytes = found.bytes().await.map_err(unknown)?;
        Ok((bytes, known))
    }

    /// Removes an object; one that is not there counts as removed.
    pub(crate) async fn remove(&self, key: &str) -> Result<(), Failure> {
        match self.store.delete(&parse_key(key)?).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(_) => Err(Failure::Unknown(NOT_UNDERSTOOD.to_owned())),
        }
    }

    /// Puts an object under its key in one request.
    pub(crate) async fn put(
        &self,
        key: &Key,
        payload: PutPayload,
        mode: PutMode,
    ) -> object_store::Result<()> {
        self.store.put_opts(key, payload, mode.into()).await.map(|_| ())
    }

    /// All that tells the version of an object; `None` if nothing has the key.
    pub(crate) async fn version(&self, key: &Key) -> Result<Option<UpdateVersion>, Failure> {
        let options = GetOptions { head: true, ..GetOptions::default() };
        match self.store.get_opts(key, options).await {
            Ok(found) => {
                let version = found.meta.version.clone();
                Ok(Some(UpdateVersion { e_tag: known(found.meta).version, version }))
            }
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(_) => Err(Failure::Unknown(NOT_UNDERSTOOD.to_owned())),
        }
    }

    /// Keys below a folder, with sizes and ETags.
    pub(crate) async fn list(&self, folder: &str) -> Result<Vec<(String, Known)>, Failure> {
        let folder = parse_key(folder)?;
        let prefix = Some(&folder).filter(|key| !key.as_ref().is_empty());
        let listed = self.store.list(prefix).map_ok(|found| {
            let key = found.location.to_string();
            (key, known(found))
        });
        listed.try_collect().await.map_err(|_| Failure::Unknown(NOT_UNDERSTOOD.to_owned()))
    }
}

/// Size and version. Listings of Azure give ETags without their quotation marks, which the
/// responses to reads have.
fn known(meta: ObjectMeta) -> Known {
    let quoted = |tag: String| match tag.ends_with('"') {
        true => tag,
        false => format!("\"{tag}\""),
    };
    Known { size: meta.size, version: meta.e_tag.map(quoted) }
}

pub(crate) fn parse_key(key: &str) -> Result<Key, Failure> {
    Key::parse(key).map_err(|_| {
        Failure::Final(LocationError::Form {
            location: key.to_owned(),
            expected: "a key without control characters and empty parts".to_owned(),
        })
    })
}

/// A client that cannot be made. The text of `object_store` may name values, so only its first
/// sentence is shown, without anything that follows a question mark.
fn setup(location: &str, error: &object_store::Error, variables: &'static str) -> LocationError {
    let problem = error.to_string();
    let problem = problem.split('?').next().unwrap_or_default();
    LocationError::Setup {
        location: location.to_owned(),
        problem: runkit::text::excerpt(problem),
        variables,
    }
}
