//! What the labels depend on: equal manifests mean equal labels, and a run is only continued by one
//! whose manifest is equal.

use std::collections::BTreeMap;

use anyhow::Result;
use schemas::labels::{KEY_FINGERPRINT, KEY_MANIFEST, KEY_SCHEMA_VERSION, SCHEMA_VERSION};
use schemas::layouts::Layout;
use schemas::pairs::{FileRecord, InputRecord};
use scorers::{ScorerRecord, ScorersManifest};
use serde::{Deserialize, Serialize};

use super::Config;
use super::part::ScorerKey;
use super::plan::{Plan, UNIT_PAIRS};
use crate::vote::{Missing, TiePolicy};

/// The metadata key of how many rows a forward pass had after the device ran out of memory; absent
/// if it did not.
pub const KEY_MEMORY: &str = "relabel.memory";

/// The manifest of a labels file. No time, no host, no absolute path.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// The version of this program.
    pub crate_version: String,
    /// The version of the labels' columns.
    pub schema_version: u32,
    /// The scorers with their checkpoints, recipes, dtype and kind of device.
    #[serde(flatten)]
    pub scorers: ScorersManifest,
    /// Images per forward pass; the last bits of a score depend on it.
    pub batch_size: usize,
    /// The scorers that vote: all that have columns.
    pub voters: Vec<String>,
    /// What a tie becomes.
    pub ties: TiePolicy,
    /// What becomes of a pair for which a scorer failed; absent if it is dropped.
    #[serde(default, skip_serializing_if = "Missing::is_default")]
    pub missing: Missing,
    /// At most this many rows were taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
    /// Pairs of a unit, if the user chose. A batch ends with its unit, so the last bits of a score
    /// depend on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit_pairs: Option<u64>,
    /// The inputs.
    pub input: InputRecord,
}

impl Manifest {
    /// Describes a run.
    #[must_use]
    pub fn new(config: &Config, scorers: &ScorersManifest, plan: &Plan) -> Self {
        Self {
            crate_version: env!("CARGO_PKG_VERSION").to_owned(),
            schema_version: SCHEMA_VERSION,
            voters: scorers.scorers.iter().map(|scorer| scorer.name.clone()).collect(),
            scorers: scorers.clone(),
            batch_size: config.batch_size,
            ties: config.ties,
            missing: config.missing,
            limit: config.limit,
            unit_pairs: Some(config.unit_pairs).filter(|&pairs| pairs != UNIT_PAIRS),
            input: InputRecord::new(
                plan.pairs(),
                Some(plan.content.clone()),
                plan.files
                    .iter()
                    .map(|file| FileRecord {
                        source_file: file.input.source_file.clone(),
                        layout: Some(file.layout).filter(|it| *it != Layout::PickAPic),
                        rows: file.rows,
                        fingerprint: file.fingerprint.clone(),
                    })
                    .collect(),
            ),
        }
    }

    /// Of each scorer a checksum of all that its scores depend on: its full record, dtype, device.
    pub(super) fn scorer_keys(&self) -> Result<Vec<ScorerKey>> {
        let ScorersManifest { scorers, dtype, device } = &self.scorers;
        let key = |record: &ScorerRecord| {
            let key = runkit::manifest::fingerprint(&(record, dtype, device))?;
            Ok(ScorerKey { name: record.name.clone(), key })
        };
        scorers.iter().map(key).collect()
    }

    /// A checksum of the whole.
    pub fn fingerprint(&self) -> Result<String> {
        Ok(runkit::manifest::fingerprint(self)?)
    }

    /// The key-value metadata of the labels file.
    pub fn metadata(&self) -> Result<BTreeMap<String, String>> {
        Ok(BTreeMap::from([
            (KEY_SCHEMA_VERSION.to_owned(), SCHEMA_VERSION.to_string()),
            (KEY_FINGERPRINT.to_owned(), self.fingerprint()?),
            (KEY_MANIFEST.to_owned(), runkit::manifest::canonical_json(self)?),
        ]))
    }
}
