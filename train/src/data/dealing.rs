//! Whether labels mean the same images as the pairs: sets that put the preferred image first are dealt
//! out by a rule ([`schemas::layouts`]).

use std::path::Path;

use schemas::labels::{KEY_MANIFEST, LabelsFile};
use schemas::layouts::DEALING;
use schemas::pairs::InputRecord;

use super::{DataError, Source};

/// The part of the manifest of labels that matters here.
#[derive(serde::Deserialize)]
struct Labelled {
    input: InputRecord,
}

/// How winner-first pairs of `source` are dealt out, and where they lie; `None` if it has no such.
pub(super) fn of(source: &Source) -> Option<(&Path, &str)> {
    match source {
        Source::Pairs(files) => {
            let dealt = files.iter().find(|file| file.layout().is_dealt())?;
            Some((dealt.path(), DEALING))
        }
        Source::Cache(cache) => Some((cache.folder(), cache.manifest().input.dealing.as_deref()?)),
    }
}

/// Refuses labels of pairs that were dealt out by another rule than those of `source`. Labels that
/// name no rule were not made by `relabel score`; their uids are compared with those of the pairs.
///
/// # Errors
/// [`DataError::Dealing`].
pub(super) fn refuse_another(source: &Source, labels: &LabelsFile) -> Result<(), DataError> {
    let Some((pairs, dealt)) = of(source) else { return Ok(()) };
    let manifest = labels.metadata().get(KEY_MANIFEST);
    let manifest = manifest.and_then(|text| serde_json::from_str::<Labelled>(text).ok());
    match manifest.and_then(|manifest| manifest.input.dealing) {
        Some(labelled) if labelled != dealt => Err(DataError::Dealing {
            labels: labels.path().to_owned(),
            labelled,
            pairs: pairs.to_owned(),
            dealt: dealt.to_owned(),
        }),
        _ => Ok(()),
    }
}
