//! The names of repositories, revisions and files inside them.
//!
//! Names come from configuration files and from `*.index.json` files of downloaded models, so they
//! are checked before any path is made of them.

use crate::HubError;

/// The start of a hub name.
const SCHEME: &str = "hf://";
/// The hub's own limit for the name of a repository.
const MAXIMUM_NAME_LENGTH: usize = 96;

/// What kind of collection a hub repository is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Model,
    Dataset,
}

/// A checked `hf://[datasets/]owner/name[@revision]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HubName {
    pub(crate) kind: Kind,
    /// `owner/name`.
    pub(crate) id: String,
    /// A branch, tag or commit; `main` if the name has none.
    pub(crate) revision: String,
}

impl HubName {
    /// `None` if `name` does not start with `hf://`: it is a path.
    pub(crate) fn parse(name: &str) -> Option<Result<Self, HubError>> {
        let rest = name.strip_prefix(SCHEME)?;
        Some(Self::parse_rest(rest).map_err(|problem| HubError::name(name, problem)))
    }

    /// Splits `hf://[datasets/]owner/name[@revision]/file` into the repository and the file. A
    /// revision has no slashes here, unless it begins with `refs/` and has three parts.
    pub(crate) fn split_file(name: &str) -> Option<(String, String)> {
        let rest = name.strip_prefix(SCHEME)?;
        let mut parts: Vec<&str> = rest.split('/').collect();
        let kind = usize::from(matches!(parts.first(), Some(&("datasets" | "models"))));
        let named = parts.get(kind + 1)?;
        let revision = if named.ends_with("@refs") { 2 } else { 0 };
        let count = kind + 2 + revision;
        if parts.len() <= count {
            return None;
        }
        let file = parts.split_off(count).join("/");
        (!file.is_empty()).then(|| (format!("{SCHEME}{}", parts.join("/")), file))
    }

    fn parse_rest(rest: &str) -> Result<Self, &'static str> {
        let (path, revision) = match rest.split_once('@') {
            Some((path, revision)) => (path, revision),
            None => (rest, "main"),
        };
        check_revision(revision)?;
        let (kind, id) = match path.strip_prefix("datasets/") {
            Some(id) => (Kind::Dataset, id),
            None => (Kind::Model, path.strip_prefix("models/").unwrap_or(path)),
        };
        let (owner, repository) = id.split_once('/').ok_or("the owner is missing")?;
        check_part(owner)?;
        check_part(repository)?;
        if id.len() > MAXIMUM_NAME_LENGTH {
            return Err("it is longer than the hub allows");
        }
        Ok(Self { kind, id: id.to_owned(), revision: revision.to_owned() })
    }

    /// The folder of the cache, `models--owner--name`.
    pub(crate) fn cache_folder(&self) -> String {
        let kind = match self.kind {
            Kind::Model => "models",
            Kind::Dataset => "datasets",
        };
        format!("{kind}--{}", self.id.replace('/', "--"))
    }

    /// For messages: `hf://owner/name@revision`.
    pub(crate) fn shown(&self) -> String {
        let kind = match self.kind {
            Kind::Model => "",
            Kind::Dataset => "datasets/",
        };
        format!("{SCHEME}{kind}{}@{}", self.id, self.revision)
    }
}

/// Whether text is a full commit, which names its snapshot folder.
pub(crate) fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// The rules of huggingface/huggingface_hub `src/huggingface_hub/utils/_validators.py`.
fn check_part(part: &str) -> Result<(), &'static str> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if part.is_empty() {
        return Err("the owner or the name is empty");
    }
    if !part.bytes().all(allowed) {
        return Err("owner and name may hold letters, digits, '-', '_' and '.'");
    }
    if part.starts_with(['-', '.']) || part.ends_with(['-', '.']) {
        return Err("owner and name may not start or end with '-' or '.'");
    }
    if part.contains("--") || part.contains("..") {
        return Err("owner and name may not contain '--' or '..'");
    }
    Ok(())
}

fn check_revision(revision: &str) -> Result<(), &'static str> {
    let allowed =
        |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'/' | b'+');
    if revision.is_empty() || revision.len() > 255 {
        return Err("the revision is empty or too long");
    }
    if !revision.bytes().all(allowed) {
        return Err("a revision may hold letters, digits, '-', '_', '.', '+' and '/'");
    }
    if revision
        .split('/')
        .any(|part| part.is_empty() || part.starts_with('.') || part.ends_with('.'))
    {
        return Err("the parts of a revision may not be empty, nor start or end with '.'");
    }
    Ok(())
}

/// Checks the name of a file inside a repository: relative, with forward slashes, staying inside.
pub(crate) fn check_file(repository: &str, file: &str) -> Result<(), HubError> {
    let problem = if file.is_empty() || file.len() > 1024 {
        "it is empty or too long"
    } else if file.contains(|character: char| character.is_control()) {
        "it holds control characters"
    } else if file.contains('\\') {
        "it holds a backslash"
    } else if file.starts_with('/') {
        "it is absolute"
    } else if file.as_bytes().get(1) == Some(&b':') {
        "it starts with a drive letter"
    } else if file.split('/').any(|part| matches!(part, "" | "." | "..")) {
        "its parts may not be empty, '.' or '..'"
    } else {
        return Ok(());
    };
    Err(HubError::FileName { file: file.to_owned(), repository: repository.to_owned(), problem })
}

#[cfg(test)]
mod tests {
    use super::{HubName, Kind, check_file, is_commit};

    fn parse(name: &str) -> Option<HubName> {
        HubName::parse(name).unwrap().ok()
    }

    #[test]
    fn hub_names_are_read() {
        let plain = parse("hf://laion/CLIP-ViT-H-14").unwrap();
        assert_eq!((plain.id.as_str(), plain.revision.as_str()), ("laion/CLIP-ViT-H-14", "main"));
        assert_eq!(plain.cache_folder(), "models--laion--CLIP-ViT-H-14");
        let pinned = parse("hf://datasets/a/b_c.d@refs/pr/1").unwrap();
        assert_eq!((pinned.kind, pinned.revision.as_str()), (Kind::Dataset, "refs/pr/1"));
        assert_eq!(pinned.cache_folder(), "datasets--a--b_c.d");
        assert_eq!(pinned.shown(), "hf://datasets/a/b_c.d@refs/pr/1");
        assert!(HubName::parse("models/clip").is_none());
    }

    #[test]
    fn a_file_of_a_repository_is_taken_apart() {
        let split = |name| HubName::split_file(name);
        for (name, repository, file) in [
            ("hf://a/b/x+y.pth", "hf://a/b", "x+y.pth"),
            ("hf://a/b@v1/c/d", "hf://a/b@v1", "c/d"),
            (
                "hf://datasets/a/b@refs/convert/parquet/c/d",
                "hf://datasets/a/b@refs/convert/parquet",
                "c/d",
            ),
        ] {
            assert_eq!(split(name), Some((repository.to_owned(), file.to_owned())), "{name}");
        }
        for name in ["hf://a/b", "hf://a/b/", "hf://a", "hf://datasets/a/b", "a/b/c"] {
            assert_eq!(split(name), None, "{name}");
        }
    }

    #[test]
    fn attacks_through_hub_names_are_refused() {
        for name in [
            "hf://",
            "hf://name",
            "hf:///name",
            "hf://owner/",
            "hf://../../etc",
            "hf://owner/..",
            "hf://owner/na..me",
            "hf://own--er/name",
            "hf://owner/name/file",
            "hf://owner/na me",
            "hf://owner/name?x=1",
            "hf://owner/name\0",
            "hf://owner/name@",
            "hf://owner/name@../../x",
            "hf://owner/name@/etc",
            "hf://owner/name@a//b",
            "hf://owner/name@a\\b",
            "hf://owner/name@main@x",
            "hf://owner/name@a%2Fb",
        ] {
            assert!(parse(name).is_none(), "{name:?} was accepted");
        }
        assert!(parse(&format!("hf://owner/{}", "x".repeat(96))).is_none());
    }

    #[test]
    fn attacks_through_file_names_are_refused() {
        for file in [
            "",
            "/etc/passwd",
            "../x",
            "a/../x",
            "a/..",
            ".",
            "./x",
            "a//b",
            "a/",
            "a\\b",
            "C:x",
            "c:/x",
            "a\0b",
            "a\nb",
            "..",
        ] {
            assert!(check_file("r", file).is_err(), "{file:?} was accepted");
        }
        for file in
            ["config.json", "unet/model-00001-of-00002.safetensors", "..x", "x..", ".gitattributes"]
        {
            check_file("r", file).unwrap();
        }
    }

    #[test]
    fn commits_are_forty_lower_case_hexadecimal_digits() {
        assert!(is_commit(&"0a".repeat(20)));
        for text in ["main", &"0A".repeat(20), &"0a".repeat(19), &"0g".repeat(20)] {
            assert!(!is_commit(text));
        }
    }
}
