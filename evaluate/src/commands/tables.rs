//! `evaluate tables`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use runkit::exit::ExitStatus;
use runkit::program::UsageError;
use schemas::evaluation::{KEY_FINGERPRINT, KEY_MANIFEST};
use schemas::scores::ScoresFile;
use serde_json::json;

use crate::cli::tables::{TablesArguments, TablesPreset};
use crate::owned;
use crate::tables::{Tables, TablesConfig};

/// Makes the tables of one or more files of scores.
pub(super) fn run(arguments: &TablesArguments) -> Result<ExitStatus> {
    let folder = folder(arguments)?;
    crate::output::check_writable(&folder)?;
    owned::check_files("--out", &folder, &owned::TABLES, &arguments.scores)?;
    ensure!(
        arguments.bootstrap > 0,
        UsageError::new("--bootstrap must be at least 1, found 0; hint: 10000 is usual")
    );
    let mut scores = Vec::new();
    let mut fingerprints = Vec::new();
    for path in &arguments.scores {
        let file = ScoresFile::open(path)?;
        scores.extend(file.read()?);
        fingerprints.push(file.fingerprint());
    }
    let config = TablesConfig {
        models: arguments.models.clone(),
        metrics: arguments.metrics.clone(),
        baselines: arguments.baselines.clone(),
        bootstrap: arguments.bootstrap,
        seed: arguments.seed,
        hps_v2: arguments.preset == Some(TablesPreset::HpsV2),
    };
    let tables = Tables::compute(&scores, &config)?;
    let files = tables.write(&folder, &metadata(&fingerprints, &tables))?;
    let names = files.iter().filter_map(|file| file.file_name()).map(|name| name.to_string_lossy());
    let names = names.collect::<Vec<_>>().join(", ");
    let text = || format!("{}\ntables: {names} in {}\n", tables.to_text(), folder.display());
    let value = json!({ "models": tables.models, "metrics": tables.metrics, "files": files });
    arguments.json.say(text, &value)?;
    Ok(ExitStatus::Done)
}

fn folder(arguments: &TablesArguments) -> Result<PathBuf> {
    if let Some(out) = &arguments.out {
        return Ok(out.clone());
    }
    let first = arguments.scores.first().context("no scores given; hint: --scores FILE.parquet")?;
    let folder = first.parent().filter(|folder| !folder.as_os_str().is_empty());
    Ok(folder.unwrap_or(Path::new(".")).to_owned())
}

/// What the win rates were computed from.
pub(super) fn metadata(scores: &[String], tables: &Tables) -> BTreeMap<String, String> {
    let manifest = json!({
        "program": "evaluate",
        "version": env!("CARGO_PKG_VERSION"),
        "scores": scores,
        "models": tables.models,
        "metrics": tables.metrics,
        "baselines": tables.config.baselines,
        "bootstrap": tables.config.bootstrap,
        "seed": tables.config.seed,
    })
    .to_string();
    BTreeMap::from([
        (KEY_FINGERPRINT.to_owned(), blake3::hash(manifest.as_bytes()).to_hex().to_string()),
        (KEY_MANIFEST.to_owned(), manifest),
    ])
}
