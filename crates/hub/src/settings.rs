//! The cache, the hub and the token, from the environment.

use std::ffi::OsString;
use std::path::PathBuf;

use crate::HubError;
use crate::http::Network;

const PUBLIC_ENDPOINT: &str = "https://huggingface.co";

/// The settings of the hub and its cache.
#[derive(Clone)]
pub struct Settings {
    /// The cache, the folder that holds `models--owner--name`.
    pub cache: PathBuf,
    /// Address of the hub, without a final slash.
    pub endpoint: String,
    /// The user's token, for gated and private repositories.
    pub token: Option<String>,
    /// Whether downloads are forbidden.
    pub offline: bool,
    /// Proxies, certificates and time limits.
    pub network: Network,
}

/// Shows whether there is a token, never the token.
impl std::fmt::Debug for Settings {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Settings")
            .field("cache", &self.cache)
            .field("endpoint", &self.endpoint)
            .field("token", &self.token.as_ref().map(|_| "…"))
            .field("offline", &self.offline)
            .finish_non_exhaustive()
    }
}

impl Settings {
    /// Reads the environment of the process. Fails if no variable leads to a cache folder, or
    /// `HF_ENDPOINT` is not an address.
    pub fn from_environment() -> Result<Self, HubError> {
        Self::from_lookup(|name| std::env::var_os(name))
    }

    /// As [`Settings::from_environment`], with another source of variables.
    pub fn from_lookup(lookup: impl Fn(&str) -> Option<OsString>) -> Result<Self, HubError> {
        let variable = |name: &str| lookup(name).filter(|value| !value.is_empty());
        let folder = |name: &str| variable(name).map(PathBuf::from);
        let home = folder("HF_HOME")
            .or_else(|| folder("XDG_CACHE_HOME").map(|cache| cache.join("huggingface")))
            .or_else(|| folder("HOME").map(|home| home.join(".cache/huggingface")));
        let cache = folder("HF_HUB_CACHE")
            .or_else(|| folder("HUGGINGFACE_HUB_CACHE"))
            .or_else(|| home.as_ref().map(|home| home.join("hub")))
            .ok_or(HubError::NoCache)?;
        let text = |name| variable(name).map(|value| value.to_string_lossy().into_owned());
        let endpoint = text("HF_ENDPOINT").unwrap_or_else(|| PUBLIC_ENDPOINT.to_owned());
        if !(endpoint.starts_with("https://") || endpoint.starts_with("http://")) {
            return Err(HubError::Variable {
                variable: "HF_ENDPOINT",
                value: endpoint,
                expected: "an address that starts with https:// or http://",
            });
        }
        let is_set = |name| {
            text(name).is_some_and(|value| {
                ["1", "ON", "YES", "TRUE"].contains(&value.to_uppercase().as_str())
            })
        };
        let token_file = folder("HF_TOKEN_PATH").or_else(|| home.map(|home| home.join("token")));
        let token = text("HF_TOKEN")
            .or_else(|| token_file.and_then(|file| std::fs::read_to_string(file).ok()))
            .map(|token| token.trim().to_owned())
            .filter(|token| !token.is_empty());
        Ok(Self {
            cache,
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            token,
            offline: is_set("HF_HUB_OFFLINE") || is_set("TRANSFORMERS_OFFLINE"),
            network: Network::from_lookup(&lookup)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::Settings;
    use crate::HubError;
    use std::path::Path;

    fn settings(variables: &[(&str, &str)]) -> Result<Settings, HubError> {
        Settings::from_lookup(|name| {
            let found = variables.iter().find(|(variable, _)| *variable == name);
            found.map(|(_, value)| value.into())
        })
    }

    #[test]
    fn the_cache_is_where_the_python_libraries_have_it() {
        let all = [
            ("HF_HUB_CACHE", "/a"),
            ("HUGGINGFACE_HUB_CACHE", "/b"),
            ("HF_HOME", "/c"),
            ("XDG_CACHE_HOME", "/d"),
            ("HOME", "/e"),
        ];
        let expected = ["/a", "/b", "/c/hub", "/d/huggingface/hub", "/e/.cache/huggingface/hub"];
        for (first, expected) in expected.iter().enumerate() {
            assert_eq!(settings(&all[first..]).unwrap().cache, Path::new(expected));
        }
        assert!(matches!(settings(&[]), Err(HubError::NoCache)));
        assert_eq!(
            settings(&[("HF_HOME", ""), ("HOME", "/e")]).unwrap().cache,
            Path::new(expected[4])
        );
    }

    #[test]
    fn offline_has_the_spellings_of_python() {
        for (value, offline) in
            [("1", true), ("true", true), ("On", true), ("0", false), ("", false)]
        {
            assert_eq!(
                settings(&[("HOME", "/e"), ("HF_HUB_OFFLINE", value)]).unwrap().offline,
                offline
            );
        }
    }

    #[test]
    fn tokens_are_found_and_never_shown() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        #[expect(clippy::disallowed_methods, reason = "a fixture")]
        std::fs::write(&file, "from-file\n").unwrap();
        let home = folder.path().to_str().unwrap();
        let found = settings(&[("HF_HOME", home)]).unwrap();
        assert_eq!(found.token.as_deref(), Some("from-file"));
        assert!(!format!("{found:?}").contains("from-file"));
        let given = settings(&[("HF_HOME", home), ("HF_TOKEN", " given ")]).unwrap();
        assert_eq!(given.token.as_deref(), Some("given"));
    }

    #[test]
    fn an_endpoint_must_be_an_address() {
        let mirror =
            settings(&[("HOME", "/e"), ("HF_ENDPOINT", "http://mirror.example/")]).unwrap();
        assert_eq!(mirror.endpoint, "http://mirror.example");
        let message =
            settings(&[("HOME", "/e"), ("HF_ENDPOINT", "mirror")]).unwrap_err().to_string();
        assert!(message.contains("HF_ENDPOINT=\"mirror\""), "{message}");
    }
}
