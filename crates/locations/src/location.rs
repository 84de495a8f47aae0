//! What the user wrote: a path of this machine, or an address.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::access::Access;
use crate::spelling::{is_loopback, split_scheme, without_query};
use crate::{LocationError, PATTERN_CHARACTERS};

/// The hub's name of the branch with its own conversion to Parquet.
const CONVERTED: &str = "refs/convert/parquet";
/// Schemes that stand for one of ours, and schemes that mean a path.
const MEANT: [(&str, &str); 8] = [
    ("s3a", "s3://"),
    ("s3n", "s3://"),
    ("gcs", "gs://"),
    ("azure", "az://"),
    ("wasb", "abfs://"),
    ("wasbs", "abfss://"),
    ("huggingface", "hf://datasets/"),
    ("file", "the path alone"),
];
/// Those that are read.
const KNOWN: [&str; 8] = ["s3", "gs", "az", "abfs", "abfss", "https", "http", "hf"];

/// A place where data lies. Its `Display` is what the user wrote, without the query of an address,
/// which may be a signature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// A path of this machine, `~` expanded.
    Local(PathBuf),
    /// An address.
    Remote(Remote),
}

/// An address that is understood, and how it is reached.
#[derive(Clone)]
pub struct Remote {
    pub(crate) access: Access,
    pub(crate) place: Place,
    /// The address for messages, names and output; a path so that it is at home where paths are.
    pub(crate) shown: PathBuf,
}

/// Size and version of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Known {
    pub(crate) size: u64,
    pub(crate) version: Option<String>,
}

/// What an address leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// A key of a bucket; `store` is the scheme and all that names the bucket.
    Object { store: Store, key: String },
    /// A file of a web server, with its query.
    Web { url: String },
    /// A file or folder of a data set of the hub.
    Hub { id: String, revision: String, path: String },
}

/// A bucket or container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Store {
    S3(String),
    Gcs(String),
    /// The part of the address before the key.
    Azure(String),
}

impl PartialEq for Remote {
    fn eq(&self, other: &Self) -> bool {
        self.place == other.place
    }
}

impl Eq for Remote {}

impl fmt::Debug for Remote {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:?}", self.shown)
    }
}

impl fmt::Display for Location {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.path().display().fmt(formatter)
    }
}

impl From<PathBuf> for Location {
    /// A path of this machine, whatever it looks like.
    fn from(path: PathBuf) -> Self {
        Self::Local(path)
    }
}

impl Location {
    /// Understands what the user wrote.
    ///
    /// # Errors
    /// When it has a scheme that is not read, or another form than its scheme asks for.
    pub fn parse(text: &Path) -> Result<Self, LocationError> {
        Self::parse_with(&Access::of_process(), text)
    }

    /// As [`Location::parse`], reached in another way than this process usually does.
    ///
    /// # Errors
    /// As for [`Location::parse`].
    pub fn parse_with(access: &Access, text: &Path) -> Result<Self, LocationError> {
        let local = || Self::Local(runkit::path::expand_home(text));
        let Some(spelled) = text.to_str() else { return Ok(local()) };
        let Some((scheme, rest)) = split_scheme(spelled) else {
            // `s3:/bucket` is a slip, not a folder; unless there is one.
            let slip = spelled.split_once(':').filter(|(name, _)| KNOWN.contains(name));
            return match slip {
                Some((name, _)) if !text.exists() => Err(LocationError::Form {
                    location: spelled.to_owned(),
                    expected: format!("{name}://, with two slashes"),
                }),
                _ => Ok(local()),
            };
        };
        let shown = without_query(spelled);
        let place = match scheme.as_str() {
            "s3" | "gs" | "az" | "abfs" | "abfss" => object(&scheme, rest, &shown)?,
            "https" => Place::Web { url: access.whole_address(&shown, spelled) },
            "http" if is_loopback(rest) => {
                Place::Web { url: access.whole_address(&shown, spelled) }
            }
            "http" => {
                let variable = "AWS_ALLOW_HTTP";
                return Err(LocationError::PlainHttp { location: shown, variable });
            }
            "hf" => hub_place(rest, &shown)?,
            _ => {
                let meant = MEANT.iter().find(|(name, _)| *name == scheme);
                let hint =
                    meant.map_or(String::new(), |(_, meant)| format!("; hint: write {meant}"));
                return Err(LocationError::Scheme { location: shown, scheme, hint });
            }
        };
        if let Place::Web { url } = &place {
            check_web(url, &shown)?;
            let meant = runkit::path::meant_hub_name(Path::new(&shown), true);
            if let Some(meant) = meant.filter(|_| !shown.contains("/resolve/")) {
                return Err(LocationError::Form {
                    location: shown,
                    expected: format!("data, found a page of the hub; hint: write {meant}"),
                });
            }
        }
        Ok(Self::Remote(Remote { access: access.clone(), place, shown: shown.into() }))
    }

    /// The path, or the address without its query: for messages, and where a name is kept. Within a
    /// process it leads back to the same location ([`Location::parse`]), query and all.
    pub fn path(&self) -> &Path {
        match self {
            Self::Local(path) => path,
            Self::Remote(remote) => &remote.shown,
        }
    }

    /// The path, if it is one of this machine.
    pub fn as_local(&self) -> Option<&Path> {
        match self {
            Self::Local(path) => Some(path),
            Self::Remote(_) => None,
        }
    }

    /// Lets the next reader of an object take the version that is there then, and not the one that
    /// this process knows: for objects that others may write.
    pub fn refresh(&self) {
        if let Self::Remote(remote) = self {
            remote.access.unpin(&remote.shown);
        }
    }

    /// Whether it is an address.
    pub fn is_remote(&self) -> bool {
        matches!(self, Self::Remote(_))
    }

    /// The last part of the name; empty for a bucket.
    pub fn name(&self) -> &str {
        match self {
            Self::Local(path) => path.file_name().and_then(|name| name.to_str()).unwrap_or(""),
            Self::Remote(remote) => last_part(remote.key()),
        }
    }

    /// The file `relative` (parts separated by `/`) in this folder.
    ///
    /// # Errors
    /// When the name has parts such as `..`, which could lead outside.
    pub fn join(&self, relative: &str) -> Result<Self, LocationError> {
        let is_part = |part: &str| !matches!(part, "" | "." | "..") && !part.contains('\\');
        if !relative.split('/').all(is_part) {
            return Err(LocationError::Form {
                location: format!("{self}"),
                expected: format!("a file name that stays inside the folder, found {relative:?}"),
            });
        }
        Ok(match self {
            Self::Local(path) => Self::Local(path.join(relative)),
            Self::Remote(remote) => Self::Remote(remote.join(relative)),
        })
    }

    /// The folder that it lies in.
    pub fn parent(&self) -> Self {
        match self {
            Self::Local(path) => {
                Self::Local(path.parent().unwrap_or_else(|| Path::new("")).to_owned())
            }
            Self::Remote(remote) => Self::Remote(remote.parent()),
        }
    }

    /// The same place, reached in another way.
    #[must_use]
    pub fn with_access(self, access: &Access) -> Self {
        match self {
            Self::Local(path) => Self::Local(path),
            Self::Remote(remote) => Self::Remote(Remote { access: access.clone(), ..remote }),
        }
    }

    /// Whether the name holds a character of patterns.
    pub fn is_pattern(&self) -> bool {
        match self {
            Self::Local(path) => path.to_string_lossy().contains(PATTERN_CHARACTERS),
            Self::Remote(remote) => match &remote.place {
                Place::Web { .. } => false,
                _ => remote.key().contains(PATTERN_CHARACTERS),
            },
        }
    }
}

impl Remote {
    /// The key, the path in a repository, or the path of a web address.
    pub(crate) fn key(&self) -> &str {
        match &self.place {
            Place::Object { key, .. } => key,
            Place::Hub { path, .. } => path,
            Place::Web { url } => {
                let (_, rest) = url.split_once("://").unwrap_or_default();
                let rest = rest.split(['?', '#']).next().unwrap_or_default();
                rest.split_once('/').map_or("", |(_, path)| path)
            }
        }
    }

    /// The same store with another key.
    pub(crate) fn at(&self, key: &str) -> Self {
        let mut shown = self.root_shown();
        if !key.is_empty() {
            shown.push('/');
            shown += key;
        }
        let place = match &self.place {
            Place::Object { store, .. } => {
                Place::Object { store: store.clone(), key: key.to_owned() }
            }
            Place::Hub { id, revision, .. } => {
                Place::Hub { id: id.clone(), revision: revision.clone(), path: key.to_owned() }
            }
            Place::Web { .. } => Place::Web { url: shown.clone() },
        };
        Self { access: self.access.clone(), place, shown: shown.into() }
    }

    /// The address of the bucket, repository or server.
    fn root_shown(&self) -> String {
        let shown = self.shown.to_string_lossy();
        let shown = shown.trim_end_matches('/');
        let key = self.key().trim_end_matches('/');
        shown.strip_suffix(key).unwrap_or(shown).trim_end_matches('/').to_owned()
    }

    fn join(&self, relative: &str) -> Self {
        match self.key().trim_end_matches('/') {
            "" => self.at(relative),
            key => self.at(&format!("{key}/{relative}")),
        }
    }

    fn parent(&self) -> Self {
        let key = self.key().trim_end_matches('/');
        self.at(key.rsplit_once('/').map_or("", |(folder, _)| folder))
    }
}

fn last_part(key: &str) -> &str {
    key.trim_end_matches('/').rsplit('/').next().unwrap_or_default()
}

fn check_web(url: &str, shown: &str) -> Result<(), LocationError> {
    let form = |expected: &str| LocationError::Form {
        location: shown.to_owned(),
        expected: expected.to_owned(),
    };
    let (_, rest) = shown.split_once("://").unwrap_or_default();
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    if host.is_empty() || url.parse::<ureq::http::Uri>().is_err() {
        return Err(form("an address such as https://host/pairs.parquet, with %20 for a space"));
    }
    if path.is_empty() || path.ends_with('/') || path.contains('*') {
        return Err(form(
            "the address of one file, because web servers do not list theirs; hint: name each file",
        ));
    }
    Ok(())
}

fn object(scheme: &str, rest: &str, shown: &str) -> Result<Place, LocationError> {
    let (bucket, key) = rest.split_once('/').unwrap_or((rest, ""));
    let form = |expected: &str| LocationError::Form {
        location: shown.to_owned(),
        expected: expected.to_owned(),
    };
    if bucket.is_empty() || bucket.contains(PATTERN_CHARACTERS) {
        return Err(form(&format!("{scheme}://BUCKET/PATH, found no name of a bucket")));
    }
    let parts = key.strip_suffix('/').unwrap_or(key);
    if !parts.is_empty() && parts.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return Err(form("a key without empty parts and without . or .. as a part"));
    }
    let store = match scheme {
        "s3" => Store::S3(bucket.to_owned()),
        "gs" => Store::Gcs(bucket.to_owned()),
        _ => Store::Azure(format!("{scheme}://{bucket}")),
    };
    Ok(Place::Object { store, key: key.to_owned() })
}

fn hub_place(rest: &str, shown: &str) -> Result<Place, LocationError> {
    let form = |found: &str| LocationError::Form {
        location: shown.to_owned(),
        expected: format!("hf://datasets/OWNER/NAME[@REVISION]/PATH, found {found}"),
    };
    let rest = rest.strip_prefix("datasets/").ok_or_else(|| {
        form("no datasets/ after hf://; hint: pairs come from data sets, not from models")
    })?;
    let (owner, rest) = rest.split_once('/').ok_or_else(|| form("no name"))?;
    let (named, path) = rest.split_once('/').unwrap_or((rest, ""));
    let (name, revision) = named.split_once('@').unwrap_or((named, "main"));
    let (revision, path) = match revision {
        "~parquet" => (CONVERTED.to_owned(), path.to_owned()),
        // A reference has three parts: refs/pr/1.
        "refs" => {
            let mut parts = path.splitn(3, '/');
            let (kind, number) = (parts.next(), parts.next());
            let (Some(kind), Some(number)) = (kind, number) else {
                return Err(form("a revision that is not whole, such as refs/pr/1"));
            };
            (format!("refs/{kind}/{number}"), parts.next().unwrap_or_default().to_owned())
        }
        other => (other.replace("%2F", "/").replace("%2f", "/"), path.to_owned()),
    };
    let is_part = |part: &str| {
        !part.is_empty()
            && !part.starts_with(['.', '-'])
            && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
    };
    let is_revision = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./+".contains(&byte);
    if !is_part(owner) || !is_part(name) {
        return Err(form("another owner or name"));
    }
    if revision.is_empty() || revision.contains("..") || !revision.bytes().all(is_revision) {
        return Err(form("another revision"));
    }
    let parts = path.strip_suffix('/').unwrap_or(&path);
    if !parts.is_empty() && parts.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return Err(form("a path with empty parts, . or .."));
    }
    Ok(Place::Hub { id: format!("{owner}/{name}"), revision, path })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Location, LocationError> {
        let access = Access::new(Vec::new(), crate::Limits::default(), Default::default());
        Location::parse_with(&access, Path::new(text))
    }

    #[test]
    fn addresses_are_shown_as_spelled_but_for_secrets() {
        for (spelled, shown) in [
            ("s3://bucket/pairs/*.parquet", "s3://bucket/pairs/*.parquet"),
            ("gs://bucket", "gs://bucket"),
            ("abfss://c@a.dfs.core.windows.net/x", "abfss://c@a.dfs.core.windows.net/x"),
            ("https://h/a.parquet?X-Amz-Signature=secret#x", "https://h/a.parquet"),
            ("https://me:secret@h/a.parquet", "https://h/a.parquet"),
            ("http://127.0.0.1:9/a.parquet", "http://127.0.0.1:9/a.parquet"),
            ("hf://datasets/o/n@~parquet/default/", "hf://datasets/o/n@~parquet/default/"),
            ("data/pairs", "data/pairs"),
            ("a:b", "a:b"),
        ] {
            let found = parse(spelled).unwrap();
            assert_eq!(found.to_string(), shown);
            assert!(!format!("{found:?}").contains("secret"));
        }
    }

    #[test]
    fn what_is_no_location_is_refused_with_the_schemes_that_are() {
        for (spelled, part) in [
            ("ftp://host/x.parquet", "s3://, gs://, az://"),
            ("s3a://bucket/x", "hint: write s3://"),
            ("file:///data", "the path alone"),
            ("s3:/bucket/x", "two slashes"),
            ("s3://", "no name of a bucket"),
            ("s3://bucket/a//b", "empty parts"),
            ("http://host/x.parquet", "expected https://"),
            ("https://host/folder/", "one file"),
            ("https://host", "one file"),
            ("https://huggingface.co/datasets/o/n/tree/main/data", "write hf://datasets/o/n@main"),
            ("hf://owner/name/x.parquet", "datasets/"),
            ("hf://datasets/owner", "no name"),
            ("hf://datasets/o/n@../x", "revision"),
        ] {
            let message = parse(spelled).unwrap_err().to_string();
            assert!(message.contains(part) && message.starts_with(spelled), "{message}");
            assert!(!message.contains('\n'), "{message}");
        }
    }

    #[test]
    fn names_of_the_hub_have_a_revision_and_a_path() {
        let of = |text: &str| match parse(text).unwrap() {
            Location::Remote(Remote { place: Place::Hub { id, revision, path }, .. }) => {
                (id, revision, path)
            }
            other => panic!("{other:?}"),
        };
        let expected = |id: &str, revision: &str, path: &str| {
            (id.to_owned(), revision.to_owned(), path.to_owned())
        };
        assert_eq!(of("hf://datasets/o/n"), expected("o/n", "main", ""));
        assert_eq!(of("hf://datasets/o/n@v1.0/a/*.x"), expected("o/n", "v1.0", "a/*.x"));
        let converted = expected("o/n", "refs/convert/parquet", "default/train");
        for spelled in ["@~parquet", "@refs/convert/parquet", "@refs%2Fconvert%2Fparquet"] {
            assert_eq!(of(&format!("hf://datasets/o/n{spelled}/default/train")), converted);
        }
    }

    #[test]
    fn folders_and_names_of_addresses() {
        for base in ["s3://b/a/pairs.parquet", "hf://datasets/o/n@v/a/pairs.parquet"] {
            let file = parse(base).unwrap();
            assert_eq!(file.name(), "pairs.parquet");
            let folder = file.parent();
            assert_eq!(folder.name(), "a");
            assert_eq!(folder.join("pairs.parquet").unwrap(), file);
            assert_eq!(folder.join("x/y.png").unwrap().name(), "y.png");
            for outside in ["../x", "/etc/passwd", "a/../../x", "", "a//b"] {
                assert!(folder.join(outside).is_err(), "{outside}");
            }
        }
        assert_eq!(parse("s3://b").unwrap().join("x").unwrap().to_string(), "s3://b/x");
        assert_eq!(parse("s3://b/a/").unwrap().join("x").unwrap().to_string(), "s3://b/a/x");
    }
}
