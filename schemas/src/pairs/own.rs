//! Recognises files of this workspace that lie among pairs but are not pairs: labels, parts,
//! caches, scores.

use std::path::Path;
use std::sync::Arc;

use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions};

use super::PairsError;
use crate::columns::{PAIR_COLUMNS, Presence};
use crate::input::{InputError, ParquetInput};
use crate::{evaluation, labels, latents};

/// The end of the name of the folder that `relabel` keeps beside its output while it works.
const WORK_SUFFIX: &str = ".work";
/// The file in it that says which run it is of.
const WORK_MANIFEST: &str = "manifest.json";

/// What a file is, if this workspace wrote it and it is not a file of pairs. A file that cannot be
/// read counts as pairs: reading it as pairs reports what is wrong.
pub(super) fn kind(path: &Path) -> Option<&'static str> {
    kind_of(path).ok()?
}

/// [`kind`] of a file that may lie elsewhere.
///
/// # Errors
/// When it cannot be reached, which would take as long for every other one.
pub(super) fn kind_of(path: &Path) -> Result<Option<&'static str>, PairsError> {
    match ParquetInput::open(path) {
        Ok(parquet) => Ok(kind_by_footer(&parquet)),
        Err(error @ InputError::Remote(_)) => Err(error.into()),
        Err(_) => Ok(None),
    }
}

fn kind_by_footer(parquet: &ParquetInput) -> Option<&'static str> {
    let stored = parquet
        .contained(|| {
            let plain = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
            ArrowReaderMetadata::try_new(Arc::clone(parquet.metadata()), plain)
        })
        .ok()?;
    // A join of labels with pairs may have kept the metadata; a file with images is pairs all the
    // same.
    let has_column = |name: &str| stored.schema().column_with_name(name).is_some();
    let mut images = PAIR_COLUMNS.iter().filter(|column| column.presence == Presence::WithImages);
    if images.any(|column| has_column(column.name)) {
        return None;
    }
    let keys = parquet.key_values();
    let has = |key: &str| keys.contains_key(key);
    if has(labels::KEY_SCHEMA_VERSION) {
        return Some("labels");
    }
    if has(latents::KEY_SCHEMA_VERSION) {
        return Some("a part of a cache");
    }
    if has(evaluation::KEY_SCHEMA_VERSION) {
        return Some("scores or win rates");
    }
    if has(labels::KEY_FINGERPRINT) {
        return Some("a part of an unfinished run");
    }
    // A file of ours that another tool rewrote has lost the keys, but not the columns.
    let has = |names: &[&str]| names.iter().all(|name| has_column(name));
    if has(&["pair_id", "source_file", "source_row", "consensus"]) {
        return Some("labels");
    }
    if has(&["model", "prompt_set", "metric", "score", "image"])
        || has(&["model_a", "model_b", "metric", "statistic", "win_rate"])
    {
        return Some("scores or win rates");
    }
    None
}

/// Whether a folder is the one in which `relabel` keeps the parts of a run that is not finished.
pub(super) fn is_work_folder(folder: &Path) -> bool {
    let name = folder.file_name().unwrap_or_default().as_encoded_bytes();
    name.ends_with(b".parquet.work")
        || (name.ends_with(WORK_SUFFIX.as_bytes()) && folder.join(WORK_MANIFEST).is_file())
}

/// The work folder, among those of names below a location, that holds the file `name`: one that is
/// known by its name alone, or by this very file.
pub(super) fn work_folder(name: &str) -> Option<&str> {
    let (folder, file) = name.rsplit_once('/')?;
    if folder.ends_with(WORK_SUFFIX) && file == WORK_MANIFEST {
        return Some(folder);
    }
    let end = name.find(".parquet.work/")? + ".parquet.work".len();
    name.get(..end)
}
