//! Paths as people write them: `~`, addresses of the hub in their place, and names of the hub that
//! were meant as one.

use std::path::{Path, PathBuf};

/// The start of a name of the hub.
pub const HUB_SCHEME: &str = "hf://";
/// Where browsers see the hub.
const HUB_PAGES: [&str; 4] = [
    "https://huggingface.co/",
    "http://huggingface.co/",
    "https://hf.co/",
    "https://www.huggingface.co/",
];

/// Whether `path` is an address such as `hf://owner/name`, and not a path of this machine.
pub fn is_address(path: &Path) -> bool {
    let text = path.to_string_lossy();
    text.split_once("://").is_some_and(|(scheme, _)| {
        !scheme.is_empty() && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric())
    })
}

/// Replaces `~` and `~/…` at the beginning by the user's home. Shells do not expand it after an
/// equals sign, and nobody expands it in a file. Anything else is returned as it is.
pub fn expand_home(path: &Path) -> PathBuf {
    expand(path, std::env::var_os("HOME").filter(|home| !home.is_empty()).map(PathBuf::from))
}

fn expand(path: &Path, home: Option<PathBuf>) -> PathBuf {
    match (path.strip_prefix("~"), home) {
        // A folder that is really called so wins.
        (Ok(rest), Some(home)) if !path.exists() => {
            if rest.as_os_str().is_empty() {
                home
            } else {
                home.join(rest)
            }
        }
        _ => path.to_owned(),
    }
}

/// The path that `path`, relative to `base`, means: addresses stay, `~` is expanded.
pub fn resolve(path: &Path, base: &Path) -> PathBuf {
    if is_address(path) {
        return path.to_owned();
    }
    base.join(expand_home(path))
}

/// Like [`resolve`], in place.
pub fn resolve_in_place(path: &mut PathBuf, base: &Path) {
    *path = resolve(path, base);
}

/// The name of the hub that a path without a file probably means: `hf://owner/name` for
/// `owner/name` and for a page of the hub, with `datasets/` if the page is of a data set or
/// `is_data` is true.
pub fn meant_hub_name(path: &Path, is_data: bool) -> Option<String> {
    let text = path.to_string_lossy();
    let page = HUB_PAGES.iter().find_map(|start| text.strip_prefix(start));
    let is_page = page.is_some();
    let rest = page.unwrap_or(&text).trim_end_matches('/');
    let (is_data_page, rest) = match rest.strip_prefix("datasets/") {
        Some(rest) => (true, rest),
        None => (false, rest),
    };
    let mut parts = rest.split('/');
    let (owner, name) = (parts.next()?, parts.next()?);
    let revision = match (parts.next(), parts.next()) {
        (Some("tree" | "blob" | "resolve"), Some(revision)) if is_page => format!("@{revision}"),
        (None, _) => String::new(),
        _ if is_page => String::new(),
        _ => return None,
    };
    let is_part = |part: &str| {
        !part.is_empty()
            && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
            && !part.starts_with(['.', '-'])
    };
    // `data/mini.toml` is a path that was mistyped, and `data/pairs.parquet` too.
    let extension = Path::new(name).extension().and_then(|extension| extension.to_str());
    const FILES: [&str; 12] = [
        "toml",
        "json",
        "parquet",
        "safetensors",
        "ckpt",
        "pt",
        "pth",
        "bin",
        "txt",
        "csv",
        "tsv",
        "png",
    ];
    let is_file = extension.is_some_and(|extension| FILES.contains(&extension));
    if !is_part(owner) || !is_part(name) || (is_file && !is_page) {
        return None;
    }
    let kind = if is_data || is_data_page { "datasets/" } else { "" };
    Some(format!("{HUB_SCHEME}{kind}{owner}/{name}{revision}"))
}

/// The hint of an error about data that does not exist at `path`; empty if there is no advice.
///
/// ```
/// use runkit::path::hint_for_data;
/// let hint = hint_for_data("me/pickapic".as_ref());
/// assert_eq!(hint, "; hint: for a data set of the hub write hf://datasets/me/pickapic");
/// assert_eq!(hint_for_data("pairs.parquet".as_ref()), "");
/// ```
pub fn hint_for_data(path: &Path) -> String {
    match meant_hub_name(path, true) {
        Some(meant) => format!("; hint: for a data set of the hub write {meant}"),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::{expand, hint_for_data, is_address, meant_hub_name, resolve};
    use std::path::{Path, PathBuf};

    #[test]
    fn the_home_folder_is_put_in_at_the_beginning_only() {
        let of = |path: &str| expand(Path::new(path), Some(PathBuf::from("/home/me")));
        for (path, expected) in [
            ("~/sd15", "/home/me/sd15"),
            ("~", "/home/me"),
            ("~other/sd15", "~other/sd15"),
            ("a/~/b", "a/~/b"),
            ("/a", "/a"),
        ] {
            assert_eq!(of(path), Path::new(expected), "{path}");
        }
        assert_eq!(expand(Path::new("~/x"), None), Path::new("~/x"));
    }

    #[test]
    fn addresses_are_relative_to_nothing() {
        let base = Path::new("/base");
        assert_eq!(resolve(Path::new("hf://a/b"), base), Path::new("hf://a/b"));
        assert_eq!(resolve(Path::new("x"), base), Path::new("/base/x"));
        assert_eq!(resolve(Path::new("/x"), base), Path::new("/x"));
        assert!(!is_address(Path::new("a/b:c")) && !is_address(Path::new("://x")));
    }

    #[test]
    fn data_of_the_hub_has_an_address() {
        for (path, meant) in [
            ("me/pickapic", "hf://datasets/me/pickapic"),
            (
                "https://huggingface.co/datasets/me/pickapic/tree/main/data",
                "hf://datasets/me/pickapic@main",
            ),
        ] {
            let hint = hint_for_data(Path::new(path));
            assert_eq!(hint, format!("; hint: for a data set of the hub write {meant}"), "{path}");
        }
        for path in ["pairs/", "/data/x/y", "a/b/c", "pairs.parquet", "~/pairs"] {
            assert_eq!(hint_for_data(Path::new(path)), "", "{path}");
        }
    }

    #[test]
    fn names_of_the_hub_are_recognised() {
        let of = |text: &str, is_data| meant_hub_name(Path::new(text), is_data);
        for (text, expected) in [
            ("runwayml/stable-diffusion-v1-5", Some("hf://runwayml/stable-diffusion-v1-5")),
            ("https://huggingface.co/a/b/tree/fp16", Some("hf://a/b@fp16")),
            ("https://huggingface.co/datasets/a/b", Some("hf://datasets/a/b")),
            ("a/b/c", None),
            ("./a/b", None),
            ("/a/b", None),
            ("a", None),
            ("a/b.safetensors", None),
            ("a b/c", None),
        ] {
            assert_eq!(of(text, false).as_deref(), expected, "{text}");
        }
        assert_eq!(of("me/pickapic", true).as_deref(), Some("hf://datasets/me/pickapic"));
    }
}
