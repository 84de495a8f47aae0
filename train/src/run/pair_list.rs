//! A list of pairs for `--skip-pairs`: a text file with one pair id per line.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

/// Pairs by id.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PairList {
    path: PathBuf,
    ids: BTreeSet<String>,
}

impl PairList {
    /// Reads a list. Empty lines, spaces around an id, a byte-order mark and carriage returns do
    /// not matter.
    ///
    /// # Errors
    /// If the file cannot be read, is not text, or names no pair.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read the list of pairs {}", path.display()))?;
        let lines = text.trim_start_matches('\u{feff}').lines().map(str::trim);
        let ids: BTreeSet<String> =
            lines.filter(|line| !line.is_empty()).map(str::to_owned).collect();
        if ids.is_empty() {
            bail!("{}: expected one pair id per line, found none", path.display());
        }
        Ok(Self { path: path.to_owned(), ids })
    }

    /// Whether the list names a pair.
    pub fn contains(&self, pair_id: &str) -> bool {
        self.ids.contains(pair_id)
    }

    /// The ids in their order.
    pub fn ids(&self) -> impl Iterator<Item = &str> {
        self.ids.iter().map(String::as_str)
    }

    /// Whether the list is empty.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// The number of pairs and a checksum of their ids, for the manifest; `None` if the list is
    /// empty.
    pub fn summary(&self) -> Option<String> {
        let mut hasher = blake3::Hasher::new();
        for id in &self.ids {
            hasher.update(&(id.len() as u64).to_le_bytes()).update(id.as_bytes());
        }
        let digest = hasher.finalize().to_hex();
        let count = self.ids.len();
        (count > 0).then(|| format!("{count} pairs, {}", &digest[..16]))
    }

    /// Refuses ids that no row of the labels has: a typo would otherwise have no effect, without a
    /// word.
    ///
    /// # Errors
    /// Naming some of them.
    pub fn refuse_unknown(&self, known: &BTreeSet<String>, labels: &Path) -> Result<()> {
        let unknown: Vec<&str> = self.ids().filter(|id| !known.contains(*id)).collect();
        if unknown.is_empty() {
            return Ok(());
        }
        bail!(
            "{}: {} has no pair {}; hint: the ids are in the column pair_id of the labels",
            self.path.display(),
            labels.display(),
            runkit::text::choices(unknown)
        )
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "fixtures need not be durable")]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_as_people_write_them() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pairs.txt");
        std::fs::write(&path, "\u{feff}12\r\n\r\n  a.parquet:3 \n12\nmit Leerzeichen").unwrap();
        let list = PairList::read(&path).unwrap();
        assert_eq!(list.ids().collect::<Vec<_>>(), ["12", "a.parquet:3", "mit Leerzeichen"]);
        assert!(list.summary().unwrap().starts_with("3 pairs, "));
        let known = BTreeSet::from(["12".to_owned(), "a.parquet:3".to_owned()]);
        let message = list.refuse_unknown(&known, Path::new("l.parquet")).unwrap_err().to_string();
        assert!(message.contains("mit Leerzeichen") && message.contains("hint: "), "{message}");
        std::fs::write(&path, " \n").unwrap();
        assert!(PairList::read(&path).is_err());
        assert_eq!(PairList::default().summary(), None);
    }
}
