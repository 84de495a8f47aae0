//! Trusted certificates: those that the environment names, else the system's, else the built-in
//! ones of the Mozilla programme.

use std::path::PathBuf;

use ureq::tls::{Certificate, RootCerts};

/// The trusted certificates. `SSL_CERT_FILE` and `SSL_CERT_DIR` replace the system's store, as for
/// OpenSSL; `REQUESTS_CA_BUNDLE` and `CURL_CA_BUNDLE` add to it. Warns of files that cannot be
/// read.
pub(super) fn roots(named: &[(&'static str, PathBuf)]) -> RootCerts {
    let mut found = Vec::new();
    if !named.iter().any(|(variable, _)| variable.starts_with("SSL_CERT_")) {
        let system = rustls_native_certs::load_native_certs();
        for error in &system.errors {
            tracing::debug!("certificates of the system: {error}");
        }
        found = system.certs;
    }
    for (variable, path) in named {
        let (file, folder) =
            if path.is_dir() { (None, Some(path.as_path())) } else { (Some(path.as_path()), None) };
        let loaded = rustls_native_certs::load_certs_from_paths(file, folder);
        if loaded.certs.is_empty() {
            let reason = loaded.errors.first().map(ToString::to_string);
            let reason = reason.unwrap_or_else(|| "it holds none in PEM format".to_owned());
            tracing::warn!("{variable}={}: no certificates: {reason}", path.display());
        }
        found.extend(loaded.certs);
    }
    if found.is_empty() {
        return RootCerts::WebPki;
    }
    let owned = found.iter().map(|certificate| Certificate::from_der(certificate).to_owned());
    RootCerts::new_with_certs(&owned.collect::<Vec<_>>())
}
