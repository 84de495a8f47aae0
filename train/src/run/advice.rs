//! Hints after an error in the middle of a run. Every suggested command works: the run's folder
//! holds what the command names, and the run accepts what it changes.

use std::path::{Path, PathBuf};

use anyhow::Result;
use nn::NetworkError;
use nn::optimizer::OptimizerKind;
use tch::TchError;

use super::checkpoint::{self, CHECKPOINTS};
use super::folder::NOT_FINITE;
use super::ranks;
use crate::config::{Config, largest_divisor};
use crate::trainer::NotFinite;

/// Whether the device was out of memory.
pub(crate) fn lacks_memory(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        let network = cause.downcast_ref::<NetworkError>();
        let text = cause.downcast_ref::<TchError>().map(ToString::to_string);
        network.is_some_and(NetworkError::is_out_of_memory)
            || text
                .is_some_and(|text| text.contains("out of memory") || text.contains("t allocate"))
    })
}

/// A hint for `error`; `None` if the error itself says everything.
///
/// # Errors
/// If the list of pairs that the hint names cannot be written.
pub(crate) fn after(error: &anyhow::Error, config: &Config) -> Result<Option<String>> {
    if ranks::lost_rank(error).is_some() {
        return Ok(config.launch.is_first().then(|| {
            "hint: the same command on all ranks resumes, and torchrun --max-restarts 3 starts it again by \
             itself"
                .to_owned()
        }));
    }
    if let Some(NotFinite { step, pairs, .. }) = error.downcast_ref::<NotFinite>() {
        // All ranks have this error.
        if !config.launch.is_first() {
            return Ok(None);
        }
        let list = write_list(config, *step, pairs)?;
        let elsewhere = elsewhere(config, "a lower --lr or --dtype f32")?;
        return Ok(Some(format!(
            "hint: the same command with --skip-pairs {} skips these pairs; or {elsewhere}",
            list.display()
        )));
    }
    if lacks_memory(error) {
        let hint = match (
            config.settings.micro_batch,
            config.settings.grad_checkpointing,
            config.optimizer.kind,
        ) {
            (2.., _, _) => format!(
                "the same command with --micro-batch {}, which changes the result by rounding only",
                largest_divisor(
                    config.settings.batch_size / config.launch.world.max(1) as u64,
                    config.settings.micro_batch / 2
                )
            ),
            (_, false, _) => "the same command with --grad-checkpointing".to_owned(),
            (_, true, OptimizerKind::Adamw) => {
                elsewhere(config, "--optimizer adamw8bit or a smaller --resolution")?
            }
            (_, true, OptimizerKind::Adamw8bit) => {
                elsewhere(config, "--optimizer adafactor or a smaller --resolution")?
            }
            (_, true, OptimizerKind::Adafactor) => elsewhere(config, "a smaller --resolution")?,
        };
        return Ok(Some(format!(
            "not enough memory for {} pairs at once; hint: {hint}",
            config.settings.micro_batch
        )));
    }
    Ok(None)
}

/// How to start another run: from a checkpoint, if there is one. With two checkpoints, from the one
/// before the newest, since the newest has the weights that led to the error.
fn elsewhere(config: &Config, settings: &str) -> Result<String> {
    let mut complete = checkpoint::complete(&config.out.join(CHECKPOINTS))?;
    let newest = complete.pop();
    Ok(match complete.pop().or(newest).or_else(|| config.settings.from.clone()) {
        Some(folder) => format!(
            "another run that starts before it: --from {} --out OTHER with {settings}",
            folder.display()
        ),
        // Without a checkpoint nothing is lost: other settings replace the run.
        None => settings.to_owned(),
    })
}

/// Writes a list for `--skip-pairs`: these pairs, and those that are already skipped.
fn write_list(config: &Config, step: u64, pairs: &[String]) -> Result<PathBuf> {
    let mut ids: Vec<String> = pairs.to_vec();
    if let Some(path) = &config.settings.skip_pairs {
        ids.extend(crate::run::pair_list::PairList::read(path)?.ids().map(str::to_owned));
    }
    ids.sort_unstable();
    ids.dedup();
    let path: &Path = &config.out.join(format!("{NOT_FINITE}{step:06}.txt"));
    runkit::files::write_atomic(path, |file| ids.iter().try_for_each(|id| writeln!(file, "{id}")))?;
    Ok(path.to_owned())
}
