//! Writes a checkpoint, at all ranks.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use nn::average::WeightAverage;
use nn::distributed::World;
use nn::unet::UNet;
use nn::weights::{Written, write_safetensors};

use super::{
    EMA, FILES, FileRecord, MARKER, OPTIMIZER, REFERENCE, Records, STATE, State, UNET, equal,
    folder, list, read, record, remove, shards,
};
use crate::model::Networks;
use crate::optimizer::RankOptimizer;
use crate::run::ranks;

/// Writes the checkpoint of `state.step`, unless the run already has one of that step. All ranks
/// call it: with sharded states each writes its own, rank 0 writes the rest, and all wait until
/// `DONE` is there. Alone in `world`, as after the loss of a rank, rank 0 writes what it holds.
///
/// # Errors
/// If a file cannot be written at any rank, or the ranks hold different weights. The next start
/// deletes what is there without `DONE`.
pub fn save(
    checkpoints: &Path,
    state: &State,
    networks: &Networks,
    optimizer: &RankOptimizer,
    world: &World,
) -> Result<PathBuf> {
    let folder = folder(checkpoints, state.step);
    let shard = optimizer.shard();
    if let Some((_, count)) = shard.filter(|(_, count)| *count != world.size()) {
        bail!(
            "{}: the optimizer's states are sharded over {count} ranks, so it cannot be written \
             without all of them",
            folder.display()
        );
    }
    equal::check(state.step, networks, world)?;
    let context = || format!("writing the checkpoint {}", folder.display());
    if ranks::first(world, || begin(&folder, state).with_context(context))? {
        return Ok(folder);
    }
    let shards = match shard {
        None => Records::new(),
        Some(_) => write_shards(&folder, optimizer, world).with_context(context)?,
    };
    ranks::first(world, || {
        finish(checkpoints, &folder, state, networks, optimizer, shards).with_context(context)
    })?;
    runkit::fault::point("checkpoint");
    Ok(folder)
}

/// Makes an empty folder; true if the run already has this checkpoint.
fn begin(folder: &Path, state: &State) -> Result<bool> {
    let is_this = |there: State| there.run == state.run && there.step == state.step;
    if folder.join(MARKER).exists() && read(folder).is_ok_and(is_this) {
        return Ok(true);
    }
    remove(folder)?;
    runkit::files::create_folder(folder)?;
    Ok(false)
}

/// Writes this rank's shard of the optimizer's state, and returns the records of all.
fn write_shards(folder: &Path, optimizer: &RankOptimizer, world: &World) -> Result<Records> {
    let name = shards::name(optimizer.shard());
    let written = write_safetensors(&folder.join(&name), &optimizer.state());
    let told = written.map(|written| (name, FileRecord::from(written)));
    Ok(ranks::gather(world, told.map_err(Into::into))?.into_iter().collect())
}

/// Writes everything but the shards, and `DONE`.
fn finish(
    checkpoints: &Path,
    folder: &Path,
    state: &State,
    networks: &Networks,
    optimizer: &RankOptimizer,
    shards: Records,
) -> Result<()> {
    for (name, record) in &shards {
        let found = folder.join(name).metadata().map(|found| found.len());
        ensure!(
            found.is_ok_and(|found| found == record.bytes),
            "another rank has written {name}, which rank 0 does not see; hint: --out must be a \
             folder that all machines share"
        );
    }
    let mut records = write_network(folder, UNET, &networks.pipeline.unet)?;
    if let Some(reference) = &networks.reference {
        runkit::files::create_folder(folder.join(REFERENCE))?;
        records.extend(match link_reference(checkpoints, folder, state) {
            Some(linked) => linked,
            None => match &networks.reference_f32 {
                None => write_network(folder, REFERENCE, reference)?,
                Some(whole) => write_average(folder, REFERENCE, networks, whole)?,
            },
        });
    }
    if let Some(ema) = &networks.ema {
        records.extend(write_average(folder, EMA, networks, ema)?);
    }
    if shards.is_empty() {
        let written = write_safetensors(&folder.join(OPTIMIZER), &optimizer.state())?;
        records.insert(OPTIMIZER.to_owned(), written.into());
    }
    records.extend(shards);
    runkit::files::write_json_atomic(folder.join(STATE), state)?;
    records.insert(STATE.to_owned(), record(&folder.join(STATE), || Ok(()))?);
    runkit::files::write_json_atomic(folder.join(MARKER), &records)?;
    Ok(())
}

/// Writes a network to a part of a checkpoint.
fn write_network(folder: &Path, part: &str, network: &UNet) -> Result<Records> {
    let place = folder.join(part);
    runkit::files::create_folder(&place)?;
    let written = network.save(&place)?;
    records_of(&place, part, network, written)
}

/// The records of what a network has written to a part of a checkpoint.
fn records_of(place: &Path, part: &str, network: &UNet, written: Written) -> Result<Records> {
    let mut records = Records::from([(format!("{part}/{}", network.saved_file()), written.into())]);
    if network.lora().is_none() {
        let config = record(&place.join("config.json"), || Ok(()))?;
        records.insert(format!("{part}/config.json"), config);
    }
    Ok(records)
}

/// Writes f32 weights beside those of the model, in the layout of a network.
fn write_average(
    folder: &Path,
    part: &str,
    networks: &Networks,
    average: &WeightAverage,
) -> Result<Records> {
    let place = folder.join(part);
    runkit::files::create_folder(&place)?;
    let network = &networks.pipeline.unet;
    let written = network.save_tensors(&place, average.parameters(), &|| Ok(()))?;
    records_of(&place, part, network, written)
}

/// Links the reference model's files of an earlier checkpoint of the run, if the reference model is
/// still the same. `None` if there is no such checkpoint, or no hard links; writing the files gives
/// the same bytes.
pub(super) fn link_reference(checkpoints: &Path, folder: &Path, state: &State) -> Option<Records> {
    let earlier = list(checkpoints).ok()?.into_values().rev().find(|earlier| {
        let is_same =
            |there: State| there.run == state.run && there.reference_step == state.reference_step;
        earlier != folder && earlier.join(MARKER).exists() && read(earlier).is_ok_and(is_same)
    })?;
    let records: Records =
        serde_json::from_slice(&std::fs::read(earlier.join(MARKER)).ok()?).ok()?;
    let of_reference = |name: &str| name.starts_with(REFERENCE) && FILES.contains(&name);
    let records: Records = records.into_iter().filter(|(name, _)| of_reference(name)).collect();
    let link = |name: &String| {
        runkit::fault::error_at("link")?;
        std::fs::hard_link(earlier.join(name), folder.join(name))
    };
    let linked = records.keys().try_for_each(link);
    let synced = linked.and_then(|()| std::fs::File::open(folder.join(REFERENCE))?.sync_all());
    match synced {
        Ok(()) if !records.is_empty() => Some(records),
        Ok(()) => None,
        Err(error) => {
            tracing::debug!("the reference model is written again: {error}");
            None
        }
    }
}
