//! The files of scorers, before any of them is read: checks what is on this machine before the
//! first download, and logs what will be downloaded, with its size.

use std::path::{Path, PathBuf};

use hub::{Downloads, Repository};

use crate::config::{ScorerConfig, ScorersConfig};
use crate::error::ScorerError;
use crate::image_reward;
use crate::model::{self, Model};

/// Checks everything that is on this machine, logs what will be downloaded, and checks that there
/// is room for it.
pub(crate) fn check(config: &ScorersConfig) -> Result<(), ScorerError> {
    let mut found: Vec<Model> = Vec::new();
    for entry in &config.scorer {
        let hub = ScorerError::hub(&entry.name);
        Repository::check_name(entry.model(), &config.folder).map_err(hub)?;
        if !is_on_hub(entry.model()) {
            model::find_model(config, entry, &mut found)?;
        }
        if entry.kind.has_head() {
            check_head(config, entry)?;
        }
        if let Some(vocabulary) = &entry.vocabulary {
            Repository::check_name(vocabulary, &config.folder).map_err(hub)?;
        }
    }
    let mut downloads = Downloads::default();
    for entry in &config.scorer {
        let hub = ScorerError::hub(&entry.name);
        if is_on_hub(entry.model()) {
            let repository = Repository::open(entry.model(), &config.folder).map_err(hub)?;
            count(entry, &repository, &mut downloads)?;
        }
        if let Some(vocabulary) = image_reward::vocabulary_on_hub(entry) {
            let repository = Repository::open(vocabulary, &config.folder).map_err(hub)?;
            for name in image_reward::VOCABULARY_FILES {
                if repository.has(name).map_err(hub)? {
                    downloads.add(&repository, name).map_err(hub)?;
                }
            }
        }
        if let Some((repository, file)) = entry.head.as_deref().and_then(hub::split_file) {
            let repository = Repository::open(&repository, &config.folder).map_err(hub)?;
            downloads.add(&repository, &file).map_err(hub)?;
        }
    }
    let first = config.scorer.first().map_or("", |entry| entry.name.as_str());
    downloads.log().map_err(ScorerError::hub(first))
}

fn count(
    entry: &ScorerConfig,
    repository: &Repository,
    downloads: &mut Downloads,
) -> Result<(), ScorerError> {
    let hub = ScorerError::hub(&entry.name);
    for name in model::weight_names(entry) {
        if !repository.has(name).map_err(hub)? {
            continue;
        }
        downloads.add(repository, name).map_err(hub)?;
        if name.ends_with(".json") {
            let index = repository.file(name).map_err(hub)?;
            for shard in model::shards(entry, &index)? {
                downloads.add(repository, &shard).map_err(hub)?;
            }
        }
        break;
    }
    for name in model::companions(entry.kind) {
        if repository.has(name).map_err(hub)? {
            downloads.add(repository, name).map_err(hub)?;
        }
    }
    Ok(())
}

/// The file of an aesthetic head, downloaded first if it is on the hub. Compares its checksum if
/// the entry names one.
pub(crate) fn head(config: &ScorersConfig, entry: &ScorerConfig) -> Result<PathBuf, ScorerError> {
    check_head(config, entry)?;
    let hub = ScorerError::hub(&entry.name);
    let text = entry.head.as_deref().unwrap_or_default();
    let file = match hub::split_file(text) {
        Some((repository, file)) => Repository::open(&repository, &config.folder)
            .and_then(|repository| repository.file(&file))
            .map_err(hub)?,
        None => runkit::path::resolve(Path::new(text), &config.folder),
    };
    if let Some(expected) = &entry.head_sha256 {
        let found = hub::sha256_file(&file).map_err(hub)?;
        if found != expected.to_lowercase() {
            let problem = format!(
                "its SHA-256 is {found}, but `head_sha256` says {expected}\n\
                 hint: it is another head, or damaged; remove `head_sha256` to use it anyway"
            );
            return Err(ScorerError::File { scorer: entry.name.clone(), file, problem });
        }
    }
    Ok(file)
}

/// Checks of a head that need no hub.
fn check_head(config: &ScorersConfig, entry: &ScorerConfig) -> Result<(), ScorerError> {
    let text = entry.head.as_deref().unwrap_or_default();
    if runkit::path::is_address(Path::new(text)) {
        let Some((repository, _)) = hub::split_file(text) else {
            let problem =
                format!("head `{text}` names no file; expected hf://owner/name[@revision]/file");
            return Err(model::invalid(config, entry, problem));
        };
        return Repository::check_name(&repository, &config.folder)
            .map_err(ScorerError::hub(&entry.name));
    }
    let file = runkit::path::resolve(Path::new(text), &config.folder);
    if file.is_file() {
        return Ok(());
    }
    let hint = match Path::new(text).is_relative() {
        true => "the path is relative to the TOML file; a head on the hub is hf://owner/name/file",
        false => "check the path; a head on the hub is hf://owner/name/file",
    };
    let problem = format!("head {} is not a file; hint: {hint}", file.display());
    Err(model::invalid(config, entry, problem))
}

fn is_on_hub(name: &str) -> bool {
    runkit::path::is_address(Path::new(name))
}
