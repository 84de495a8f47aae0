//! What can be wrong with a location. Messages name it without its query and never hold a secret.

use std::path::PathBuf;

use runkit::signals::Stopped;

/// Why a location could not be understood, listed, read or written.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LocationError {
    /// The scheme is not one of those that are read.
    #[error(
        "{location}: expected a path or an address of {}, found the scheme {scheme:?}{hint}",
        crate::SCHEMES
    )]
    Scheme {
        /// The address as it was given, without its query.
        location: String,
        /// Its scheme.
        scheme: String,
        /// What was probably meant, or nothing.
        hint: String,
    },
    /// The address has another form than its scheme asks for.
    #[error("{location}: expected {expected}")]
    Form {
        /// The address.
        location: String,
        /// The form.
        expected: String,
    },
    /// Plain http to another machine.
    #[error(
        "{location}: expected https://, found http://, which anybody on the way can read and change; \
         hint: http:// is for this machine only; for object storage inside your own network set \
         {variable}=true"
    )]
    PlainHttp {
        /// The location.
        location: String,
        /// The variable that allows it.
        variable: &'static str,
    },
    /// A variable of the environment, or several of them, make no client.
    #[error("{location}: cannot be set up: {problem}; hint: check {variables}")]
    Setup {
        /// The location.
        location: String,
        /// What the client says.
        problem: String,
        /// The variables to check.
        variables: &'static str,
    },
    /// No credentials were found.
    #[error("{location}: no credentials for it; hint: {hint}")]
    NoCredentials {
        /// The location.
        location: String,
        /// The variables to set.
        hint: &'static str,
    },
    /// The server does not allow the request.
    #[error("{location}: access refused (HTTP {status}{code}); hint: {hint}")]
    Refused {
        /// The location.
        location: String,
        /// The status of the response.
        status: u16,
        /// The server's name for the reason, after a comma and a space, or nothing.
        code: String,
        /// The variables to check.
        hint: &'static str,
    },
    /// The server has no such object, bucket or repository.
    #[error("{location}: not found{detail}")]
    Missing {
        /// The location.
        location: String,
        /// What exactly is missing, and a hint, or nothing.
        detail: String,
    },
    /// The object is another than at the start of the run.
    #[error(
        "{location}: changed while it was read (expected the version {expected}, found \
         {found}); hint: run again once nobody writes there"
    )]
    Changed {
        /// The location.
        location: String,
        /// The ETag, or the size, of the first request.
        expected: String,
        /// That of the last response.
        found: String,
    },
    /// The server did not answer in time, or answered with errors, after several attempts.
    #[error(
        "{location}: gave up after {attempts} attempts in {seconds} s: {problem}; hint: run the \
         same command again; what is finished is kept"
    )]
    Unavailable {
        /// The location.
        location: String,
        /// Attempts.
        attempts: u32,
        /// Seconds since the first of them.
        seconds: u64,
        /// What happened last.
        problem: String,
    },
    /// A response that makes no sense, which no further attempt will change.
    #[error("{location}: {problem}")]
    Response {
        /// The location.
        location: String,
        /// What was expected, and what was found.
        problem: String,
    },
    /// Data that is not on this machine, while the network may not be used.
    #[error("{location}: HF_HUB_OFFLINE forbids the network; hint: unset it, or name a local copy")]
    Offline {
        /// The location.
        location: String,
    },
    /// Another object has come where one was to be written.
    #[error(
        "{location}: another object has come there meanwhile, and stays; hint: name another \
         place for the output, or remove it"
    )]
    Exists {
        /// The location.
        location: String,
    },
    /// A local file or folder cannot be read.
    #[error("cannot read {}: {cause}", path.display())]
    Local {
        /// The path.
        path: PathBuf,
        /// The kind of the system's error.
        kind: std::io::ErrorKind,
        /// What the system reported.
        cause: String,
    },
    /// A request to stop arrived.
    #[error("{0}")]
    Stopped(#[from] Stopped),
}

impl LocationError {
    pub(crate) fn local(path: &std::path::Path, error: &std::io::Error) -> Self {
        Self::Local { path: path.to_owned(), kind: error.kind(), cause: error.to_string() }
    }

    /// The error inside an error of the system, if there is one: how it passes through readers.
    pub fn behind<'error>(
        mut error: &'error (dyn std::error::Error + 'static),
    ) -> Option<&'error Self> {
        loop {
            if let Some(found) = error.downcast_ref::<Self>() {
                return Some(found);
            }
            // The source of an error of the system is that of the error inside it.
            let inner = error
                .downcast_ref::<std::io::Error>()
                .and_then(std::io::Error::get_ref)
                .map(|inner| inner as &(dyn std::error::Error + 'static));
            error = inner.or_else(|| error.source())?;
        }
    }
}

impl From<LocationError> for std::io::Error {
    fn from(error: LocationError) -> Self {
        let kind = match &error {
            LocationError::Missing { .. } => std::io::ErrorKind::NotFound,
            LocationError::Refused { .. } | LocationError::NoCredentials { .. } => {
                std::io::ErrorKind::PermissionDenied
            }
            LocationError::Local { kind, .. } => *kind,
            _ => std::io::ErrorKind::Other,
        };
        Self::new(kind, error)
    }
}
