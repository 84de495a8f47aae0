//! Everything that can go wrong between a name and a file.

use std::io;
use std::path::PathBuf;

/// A name did not lead to a file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubError {
    /// The name is neither a usable path nor `hf://owner/name[@revision]`.
    #[error("{name:?} is not a repository: {problem}\nhint: {hint}")]
    Name {
        /// The name given.
        name: String,
        /// What is wrong with it.
        problem: &'static str,
        /// What to write instead.
        hint: String,
    },
    /// A file name would lead out of its repository, or cannot be one.
    #[error("{file:?} is not a file name inside {repository}: {problem}")]
    FileName {
        /// The file name given.
        file: String,
        /// The repository.
        repository: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The folder does not exist.
    #[error("{} {what}", path.display())]
    Folder {
        /// The folder looked for.
        path: PathBuf,
        /// What is there instead, and what to do ([`crate::describe()`]).
        what: String,
    },
    /// A folder does not hold a file.
    #[error("{} has no file {file}: it holds {}", folder.display(), listing(holds))]
    Missing {
        /// The folder.
        folder: PathBuf,
        /// The file looked for.
        file: String,
        /// What the folder holds instead.
        holds: Vec<String>,
    },
    /// A file is not in the cache, and downloads are switched off.
    #[error(
        "{what} of {repository} is not in the cache, and HF_HUB_OFFLINE forbids the download; looked \
         in {}\n\
         hint: download it on a machine with network access, or point HF_HOME or HF_HUB_CACHE to a cache \
         that holds it",
        looked_in.display()
    )]
    Offline {
        /// The repository with its revision.
        repository: String,
        /// The file or revision that is missing.
        what: String,
        /// The expected path in the cache.
        looked_in: PathBuf,
    },
    /// The hub knows no such repository or revision, or does not show it to this user.
    #[error(
        "{endpoint} has no {repository}, or does not show it to you (HTTP {status}){said}\n\
         hint: check the name and the revision; for a gated or private one accept its terms and \
         set HF_TOKEN"
    )]
    Refused {
        /// The hub's address.
        endpoint: String,
        /// The repository with its revision.
        repository: String,
        /// The status of the response.
        status: u16,
        /// The hub's message after a colon, if any.
        said: String,
    },
    /// The repository has no such file.
    #[error("{repository} has no file {file} on {endpoint}")]
    NotOnHub {
        /// The hub's address.
        endpoint: String,
        /// The repository with its revision.
        repository: String,
        /// The file looked for.
        file: String,
    },
    /// The download failed.
    #[error(
        "cannot download {what} of {repository} from {endpoint}: {problem}\nhint: run the same command again; finished files are kept"
    )]
    Download {
        /// The hub's address.
        endpoint: String,
        /// The repository with its revision.
        repository: String,
        /// The file, or what else was requested.
        what: String,
        /// What happened.
        problem: String,
    },
    /// The certificate of the hub, or of a proxy on the way, is not trusted.
    #[error(
        "cannot reach {repository}: the certificate of {endpoint} is not trusted: {problem}\n\
         hint: if your network checks https with its own certificate, name it: \
         SSL_CERT_FILE=/path/to/certificates.pem"
    )]
    Certificate {
        /// The hub's address.
        endpoint: String,
        /// The repository with its revision.
        repository: String,
        /// Why it is not trusted.
        problem: String,
    },
    /// A request to stop arrived during a download or a checksum.
    #[error("{0}")]
    Stopped(#[from] runkit::signals::Stopped),
    /// The disk of the cache has no room for the file.
    #[error(
        "no room for {file} of {repository}: {needed} bytes needed, {available} available in {}\n\
         hint: free some space or point HF_HUB_CACHE to another disk",
        cache.display()
    )]
    NoSpace {
        /// The file.
        file: String,
        /// The repository with its revision.
        repository: String,
        /// Bytes still to download.
        needed: u64,
        /// Bytes free.
        available: u64,
        /// The cache folder.
        cache: PathBuf,
    },
    /// A download differs from what the hub announced; it was removed.
    #[error(
        "{file} of {repository} arrived damaged and was removed: expected {expected}, found {found}\n\
         hint: run the same command again"
    )]
    Damaged {
        /// The file.
        file: String,
        /// The repository with its revision.
        repository: String,
        /// Announced SHA-256 or size.
        expected: String,
        /// SHA-256 or size of what arrived.
        found: String,
    },
    /// A cached file is a link to somewhere outside the cache.
    #[error("{} leads outside the cache, to {}", path.display(), target.display())]
    Outside {
        /// The cached path.
        path: PathBuf,
        /// Where it leads.
        target: PathBuf,
    },
    /// No environment variable leads to a cache folder.
    #[error(
        "no cache folder: HF_HUB_CACHE, HF_HOME and HOME are all unset\nhint: set HF_HUB_CACHE to a folder"
    )]
    NoCache,
    /// An environment variable does not hold what it should.
    #[error("{variable}={value:?} is not understood: expected {expected}")]
    Variable {
        /// Its name.
        variable: &'static str,
        /// What it holds.
        value: String,
        /// What it should hold.
        expected: &'static str,
    },
    /// A file or folder cannot be read.
    #[error("cannot read {}: {cause}", path.display())]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// Why not.
        cause: io::Error,
    },
    /// A file cannot be written.
    #[error(transparent)]
    Write(#[from] runkit::files::FileError),
}

impl HubError {
    pub(crate) fn name(name: &str, problem: &'static str) -> Self {
        let meant = runkit::path::meant_hub_name(std::path::Path::new(name), false);
        let hint = match meant {
            Some(meant) => format!("write {meant}"),
            None => "expected a folder or hf://owner/name[@revision]".to_owned(),
        };
        Self::Name { name: name.to_owned(), problem, hint }
    }

    pub(crate) fn read(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |cause| Self::Read { path, cause }
    }
}

/// How many names an error lists.
const SHOWN_NAMES: usize = 20;

fn listing(names: &[String]) -> String {
    if names.is_empty() {
        return "nothing".to_owned();
    }
    let shown = names.get(..SHOWN_NAMES).unwrap_or(names);
    let rest = names.len() - shown.len();
    let mut text = runkit::text::escape_for_terminal(&shown.join(", ")).into_owned();
    if rest > 0 {
        text += &format!(" and {rest} more");
    }
    text
}
