//! Addresses of image files as the page names them.

use std::path::{Component, Path, PathBuf};

/// Makes addresses of the files that the scores name.
pub(super) struct Links {
    /// The folder of the page.
    page: PathBuf,
    /// The folder that images are relative to.
    images: PathBuf,
}

impl Links {
    /// For a page in `page` and images relative to `images`; both folders exist.
    pub(super) fn new(page: &Path, images: &Path) -> Self {
        let real = |folder: &Path| {
            let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
            folder.canonicalize().unwrap_or_else(|_| folder.to_owned())
        };
        Self { page: real(page), images: real(images) }
    }

    /// The address of an image relative to the page, percent-encoded.
    pub(super) fn address(&self, image: &str) -> String {
        let parts: Vec<String> = relative(&self.page, &self.images.join(image))
            .components()
            .map(|part| encode(&part.as_os_str().to_string_lossy()))
            .collect();
        parts.join("/")
    }
}

/// The way from a folder to a file, both absolute.
fn relative(from: &Path, to: &Path) -> PathBuf {
    let common = from.components().zip(to.components()).take_while(|(a, b)| a == b).count();
    let up = from.components().skip(common).map(|_| Component::ParentDir);
    up.chain(to.components().skip(common)).collect()
}

/// Percent-encodes all but letters, digits, `-`, `.`, `_` and `~`.
fn encode(part: &str) -> String {
    let encoded = part.bytes().map(|byte| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
            char::from(byte).to_string()
        }
        byte => format!("%{byte:02X}"),
    });
    encoded.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_relative_to_the_page_and_encoded() {
        let folder = tempfile::tempdir().unwrap();
        let [eval, out] = ["eval", "out/a"].map(|name| folder.path().join(name));
        for folder in [&eval, &out] {
            runkit::files::create_folder(folder).unwrap();
        }
        let beside = Links::new(&eval, &eval);
        assert_eq!(beside.address("images/base/1/0.png"), "images/base/1/0.png");
        assert_eq!(beside.address("a b/<é>?#%.png"), "a%20b/%3C%C3%A9%3E%3F%23%25.png");
        assert_eq!(beside.address("javascript:alert(1)"), "javascript%3Aalert%281%29");
        let elsewhere = Links::new(&out, &eval);
        assert_eq!(elsewhere.address("images/0.png"), "../../eval/images/0.png");
        let absolute = folder.path().canonicalize().unwrap().join("out/0.png");
        assert_eq!(elsewhere.address(absolute.to_str().unwrap()), "../0.png");
    }
}
