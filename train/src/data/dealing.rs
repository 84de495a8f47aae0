//! Whether labels mean the same images as the pairs: sets that put the preferred image first are dealt
//! out by a rule ([`schemas::layouts`]).

use schemas::labels::{KEY_MANIFEST, LabelsFile};
use schemas::layouts::{DEALING, Layout};
use schemas::pairs::{InputRecord, PairFile};

use super::{DataError, Source};

/// The part of the manifest of labels that matters here.
#[derive(serde::Deserialize)]
struct Labelled {
    input: InputRecord,
}

/// Refuses labels of pairs that were dealt out by another rule than those of `source`. Labels that
/// name no rule were not made by `relabel score`; their uids are compared with those of the pairs.
///
/// # Errors
/// [`DataError::Dealing`].
pub(super) fn refuse_another(source: &Source, labels: &LabelsFile) -> Result<(), DataError> {
    let is_dealt = |file: &&PairFile| Layout::is_dealt(file.layout());
    let (pairs, dealt) = match source {
        Source::Pairs(files) => match files.iter().find(is_dealt) {
            Some(file) => (file.path(), DEALING),
            None => return Ok(()),
        },
        Source::Cache(cache) => match &cache.manifest().input.dealing {
            Some(dealing) => (cache.folder(), dealing.as_str()),
            None => return Ok(()),
        },
    };
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
