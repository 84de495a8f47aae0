//! Logs what will be downloaded, and checks beforehand that there is room for it.

use indicatif::HumanBytes;

use crate::{HubError, Repository, Settings};

/// How many files a message names.
const SHOWN_FILES: usize = 12;

/// The files that a command is about to download.
#[derive(Debug, Default)]
pub struct Downloads {
    files: Vec<(String, Option<u64>)>,
    repositories: Vec<String>,
}

impl Downloads {
    /// Adds a file, unless it is in the cache already.
    pub fn add(&mut self, repository: &Repository, file: &str) -> Result<(), HubError> {
        let Some(size) = repository.size_to_download(file)? else { return Ok(()) };
        let shown = repository.shown();
        let name = format!("{shown}/{file}");
        if self.files.iter().any(|(known, _)| *known == name) {
            return Ok(());
        }
        self.files.push((name, size));
        if !self.repositories.contains(&shown) {
            self.repositories.push(shown);
        }
        Ok(())
    }

    /// The bytes to download, without files of unknown size.
    pub fn bytes(&self) -> u64 {
        self.files.iter().filter_map(|(_, size)| *size).sum()
    }

    /// Logs what will be downloaded, if anything. Fails if the cache's disk has no room for it.
    pub fn log(&self) -> Result<(), HubError> {
        if self.files.is_empty() {
            return Ok(());
        }
        let cache = Settings::from_environment()?.cache;
        let (needed, available) = (self.bytes(), runkit::files::free_space(&cache)?);
        let count = match self.files.len() {
            1 => "1 file".to_owned(),
            count => format!("{count} files"),
        };
        if needed > available {
            let repository = self.repositories.join(" and ");
            return Err(HubError::NoSpace { file: count, repository, needed, available, cache });
        }
        tracing::info!("{}", self.sentence(&count));
        Ok(())
    }

    fn sentence(&self, count: &str) -> String {
        let size = |size: Option<u64>| match size {
            Some(bytes) => HumanBytes(bytes).to_string(),
            None => "size unknown".to_owned(),
        };
        let unknown = self.files.iter().any(|(_, size)| size.is_none());
        let mut sentence = format!(
            "downloading {}{} in {count}: ",
            HumanBytes(self.bytes()),
            if unknown { " and more" } else { "" }
        );
        // The largest first: they take the time.
        let mut largest: Vec<&(String, Option<u64>)> = self.files.iter().collect();
        largest.sort_by_key(|(_, size)| std::cmp::Reverse(*size));
        let shown = largest.iter().take(SHOWN_FILES);
        let shown: Vec<String> =
            shown.map(|(name, bytes)| format!("{name} ({})", size(*bytes))).collect();
        sentence += &shown.join(", ");
        if largest.len() > shown.len() {
            sentence += &format!(" and {} smaller ones", largest.len() - shown.len());
        }
        sentence
    }
}
