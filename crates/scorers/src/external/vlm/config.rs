//! The settings of `kind = "vlm"`.

use regex::Regex;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use ureq::http::Uri;

/// Where a caption goes in a prompt.
pub(crate) const PLACEHOLDER: &str = "{caption}";
/// Requests at a time.
const CONCURRENCY: usize = 4;
/// More would be refused by every server.
const MOST_CONCURRENT: usize = 256;
/// Seconds for a whole answer: models that think take a minute or two.
const TIMEOUT_S: f64 = 120.0;
/// Attempts after the first.
const RETRIES: u32 = 5;
/// The first number of an answer.
const NUMBER: &str = r"-?\d+(?:\.\d+)?";
/// The end of every endpoint.
const PATH: &str = "/chat/completions";
/// Keys of a request that are ours: another value would change what is read.
const RESERVED: [&str; 6] = ["model", "messages", "logprobs", "top_logprobs", "stream", "n"];

/// A vision-language model behind an OpenAI-compatible endpoint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VlmConfig {
    /// The address of the server, such as `http://localhost:8000/v1`, with or without
    /// `/chat/completions`.
    pub endpoint: String,
    /// The model, as the server calls it.
    pub model: String,
    /// What is asked; `{caption}` stands for the caption.
    pub prompt: String,
    /// How an answer becomes a score.
    pub read: VlmRead,
    /// A regular expression whose first match is the answer: of its first group if it has one. For
    /// `number` it gives the score, for `pair` 1 or 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pattern: Option<String>,
    /// Tokens of an answer at most; 1 for `yes-no`, 16 for `pair` and 1,024 for `number` if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u32>,
    /// Further keys of every request, such as `chat_template_kwargs`, as the `extra_body` of OpenAI's
    /// Python client.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub extra_body: Option<Map<String, Value>>,
    /// Requests at a time; 4 if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<usize>,
    /// Seconds that an answer may take; 120 if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_s: Option<f64>,
    /// Attempts after a first that failed for a reason that may pass; 5 if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retries: Option<u32>,
    /// Requests of a run at most, over all its starts and with all attempts; no limit if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_requests: Option<u64>,
    /// The environment variable that holds the API key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_key_env: Option<String>,
}

/// How an answer becomes a score.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VlmRead {
    /// P(Yes) / (P(Yes) + P(No)) of the first token.
    YesNo,
    /// The number that the pattern finds.
    Number,
    /// Both images are shown, in both orders: a vote where both answers agree, and no score.
    Pair,
}

impl std::fmt::Display for VlmRead {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::YesNo => "yes-no",
            Self::Number => "number",
            Self::Pair => "pair",
        })
    }
}

impl VlmConfig {
    /// What is wrong with the settings, with a hint.
    pub(crate) fn problem(&self) -> Option<String> {
        if let Err(problem) = self.address() {
            return Some(problem);
        }
        for (name, text) in [("model", &self.model), ("prompt", &self.prompt)] {
            if text.trim().is_empty() {
                return Some(format!("`{name}` is empty"));
            }
        }
        if self.pattern.is_some() && self.read == VlmRead::YesNo {
            let problem = "`pattern` has no meaning for read = \"yes-no\", which reads \
                           probabilities; hint: remove it, or use read = \"number\"";
            return Some(problem.to_owned());
        }
        if let Some(pattern) = &self.pattern
            && let Err(error) = Regex::new(pattern)
        {
            let error = error.to_string();
            let line = error.lines().last().unwrap_or_default();
            return Some(format!("`pattern` is not a regular expression: {line}"));
        }
        let ranges = [
            ("max_tokens", self.max_tokens.map(f64::from), 1.0, f64::from(u32::MAX)),
            (
                "concurrency",
                self.concurrency.map(|count| count as f64),
                1.0,
                MOST_CONCURRENT as f64,
            ),
            ("timeout_s", self.timeout_s, 0.001, 86_400.0),
            ("retries", self.retries.map(f64::from), 0.0, 100.0),
        ];
        for (name, value, least, most) in ranges {
            if let Some(value) = value
                && !(least..=most).contains(&value)
            {
                return Some(format!("`{name}` is {value}; expected {least} to {most}"));
            }
        }
        for key in self.extra_body.iter().flat_map(Map::keys) {
            if RESERVED.contains(&key.as_str()) {
                return Some(format!(
                    "`extra_body` cannot have `{key}`, which the other settings decide; hint: \
                     remove it"
                ));
            }
        }
        match &self.api_key_env {
            Some(name) if name.is_empty() || name.contains(['=', '\0']) => Some(format!(
                "`api_key_env` {name:?} is not the name of an environment variable; hint: it is \
                 the name, such as OPENAI_API_KEY, and not the key"
            )),
            _ => None,
        }
    }

    /// The address that requests go to.
    pub(crate) fn address(&self) -> Result<Uri, String> {
        let example = "hint: such as endpoint = \"http://localhost:8000/v1\"";
        let shown = shown(&self.endpoint);
        let wrong = |problem: &str| format!("endpoint {shown:?} {problem}; {example}");
        let address: Uri = self.endpoint.trim().parse().map_err(|_| wrong("is not an address"))?;
        if !matches!(address.scheme_str(), Some("http" | "https")) || address.host().is_none() {
            return Err(wrong("is not an http or https address"));
        }
        if address.authority().is_some_and(|authority| authority.as_str().contains('@')) {
            return Err(format!(
                "endpoint {shown:?} holds a user or password; hint: put the key into an \
                 environment variable and name it with `api_key_env`"
            ));
        }
        let path = match address.path().trim_end_matches('/') {
            "" => format!("/v1{PATH}"),
            path if path.ends_with(PATH) => path.to_owned(),
            path => format!("{path}{PATH}"),
        };
        let query = address.query().map_or(String::new(), |query| format!("?{query}"));
        let (scheme, authority) = (address.scheme_str(), address.authority());
        let (scheme, authority) = scheme.zip(authority).ok_or_else(|| wrong("has no host"))?;
        format!("{scheme}://{authority}{path}{query}")
            .parse()
            .map_err(|_| wrong("is not an address"))
    }

    /// The address without what may be a secret, for manifests and messages.
    pub(crate) fn shown_endpoint(&self) -> String {
        self.address().map_or_else(|_| shown(&self.endpoint), |address| shown(&address.to_string()))
    }

    /// The host and port that requests go to.
    #[must_use]
    pub fn host(&self) -> String {
        let address = self.address().ok();
        address.and_then(|address| Some(address.authority()?.to_string())).unwrap_or_default()
    }

    /// Whether the server is this machine.
    pub(crate) fn is_here(&self) -> bool {
        let address = self.address().ok();
        let host = address.as_ref().and_then(Uri::host).unwrap_or_default();
        matches!(host, "localhost" | "127.0.0.1" | "[::1]")
    }

    /// The prompt of a caption.
    pub(crate) fn prompt_of(&self, caption: &str) -> String {
        self.prompt.replace(PLACEHOLDER, caption)
    }

    pub(crate) fn expression(&self) -> Option<Regex> {
        let pattern = match (&self.pattern, self.read) {
            (Some(pattern), _) => pattern.as_str(),
            (None, VlmRead::Number) => NUMBER,
            (None, _) => return None,
        };
        // Checked when the file was read.
        Regex::new(pattern).ok()
    }

    /// The pattern of the record: the one in use.
    pub(crate) fn pattern_in_use(&self) -> Option<String> {
        self.expression().map(|expression| expression.as_str().to_owned())
    }

    pub(crate) fn tokens(&self) -> u32 {
        self.max_tokens.unwrap_or(match self.read {
            VlmRead::YesNo => 1,
            VlmRead::Pair => 16,
            VlmRead::Number => 1024,
        })
    }

    pub(crate) fn concurrency(&self) -> usize {
        self.concurrency.unwrap_or(CONCURRENCY)
    }

    pub(crate) fn timeout(&self) -> std::time::Duration {
        std::time::Duration::from_secs_f64(self.timeout_s.unwrap_or(TIMEOUT_S))
    }

    pub(crate) fn retries(&self) -> u32 {
        self.retries.unwrap_or(RETRIES)
    }

    /// The API key, from the variable that the settings name.
    pub(crate) fn key(&self) -> Result<Option<String>, String> {
        let Some(name) = &self.api_key_env else { return Ok(None) };
        match std::env::var(name) {
            Ok(key) if !key.trim().is_empty() => Ok(Some(key.trim().to_owned())),
            _ => Err(format!(
                "the environment variable {name}, which `api_key_env` names, holds no API key; \
                 hint: export {name}=... before the run"
            )),
        }
    }
}

/// An address without user and query.
fn shown(address: &str) -> String {
    let address = address.trim().split(['?', '#']).next().unwrap_or_default();
    let Some((scheme, rest)) = address.split_once("://") else { return address.to_owned() };
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let host = authority.rsplit('@').next().unwrap_or_default();
    format!("{scheme}://{host}{path}")
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Settings with these lines of TOML.
    pub(in super::super) fn config(lines: &str) -> VlmConfig {
        let text = format!(
            "endpoint = \"http://localhost:8000/v1\"\nmodel = \"m\"\nprompt = \"Is it {{caption}}?\"\n{lines}"
        );
        runkit::config::parse_toml(std::path::Path::new("scorers.toml"), &text).unwrap()
    }

    #[test]
    fn an_endpoint_is_completed_and_shown_without_secrets() {
        for (endpoint, address) in [
            ("http://localhost:8000", "http://localhost:8000/v1/chat/completions"),
            ("http://localhost:8000/v1/", "http://localhost:8000/v1/chat/completions"),
            ("https://x.example/a/v1", "https://x.example/a/v1/chat/completions"),
            ("https://x.example/v1/chat/completions", "https://x.example/v1/chat/completions"),
            (
                "https://x.example/v1?api-version=2",
                "https://x.example/v1/chat/completions?api-version=2",
            ),
        ] {
            let config = VlmConfig { endpoint: endpoint.to_owned(), ..config("read = \"yes-no\"") };
            assert_eq!(config.problem(), None);
            assert_eq!(config.address().unwrap().to_string(), address);
            assert!(!config.shown_endpoint().contains('?'));
        }
        let secret = VlmConfig {
            endpoint: "https://user:hunter2@x.example/v1".to_owned(),
            ..config("read = \"yes-no\"")
        };
        let problem = secret.problem().unwrap();
        assert!(problem.contains("api_key_env") && !problem.contains("hunter2"), "{problem}");
        assert_eq!(secret.shown_endpoint(), "https://x.example/v1");
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        for (lines, expected) in [
            ("read = \"yes-no\"\npattern = \"x\"", "`pattern` has no meaning"),
            ("read = \"number\"\npattern = \"(\"", "`pattern` is not a regular expression"),
            ("read = \"pair\"\nconcurrency = 0", "`concurrency` is 0"),
            ("read = \"pair\"\ntimeout_s = 0", "`timeout_s` is 0"),
            ("read = \"pair\"\ntimeout_s = nan", "`timeout_s` is NaN"),
            ("read = \"pair\"\nmax_tokens = 0", "`max_tokens` is 0"),
            ("read = \"pair\"\nextra_body = { n = 2 }", "cannot have `n`"),
            ("read = \"pair\"\napi_key_env = \"\"", "not the name of an environment variable"),
        ] {
            let problem = config(lines).problem().unwrap();
            assert!(problem.contains(expected), "{problem}");
        }
        let mut unnamed = config("read = \"pair\"");
        unnamed.model = " ".to_owned();
        assert_eq!(unnamed.problem().unwrap(), "`model` is empty");
        unnamed.endpoint = "localhost:8000".to_owned();
        assert!(unnamed.problem().unwrap().contains("not an http or https address"));
    }
}
