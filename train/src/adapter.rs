//! Adapters (LoRA) in place of all weights: which, and what the run leaves of them.

use std::path::Path;

use anyhow::{Result, ensure};
use clap::ValueEnum;
use nn::lora::{DIFFUSERS_FILE, LoraConfig, Targets};
use serde::{Deserialize, Serialize};

use crate::settings::RunSettings;

/// The largest rank: more is no longer a small product.
const LARGEST_RANK: i64 = 1024;
/// The rank of the published trainers.
pub const DEFAULT_RANK: i64 = 8;

/// What is trained beside the frozen weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum AdapterKind {
    /// Nothing: all weights of the UNet are trained
    None,
    /// Low-rank adapters of some layers
    Lora,
}

/// A form of the file of adapters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum LoraFormat {
    /// For load_lora_weights of diffusers
    Diffusers,
    /// For A1111, ComfyUI and sd-scripts
    Kohya,
}

/// The files of adapters that a run leaves in `lora/`, and whether it leaves a merged pipeline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoraResult {
    /// The name of each file, with its form.
    pub files: Vec<(LoraFormat, String)>,
    /// Whether `pipeline/` is written, with the adapters merged into its UNet.
    pub is_merged: bool,
}

impl RunSettings {
    /// The adapters of the run, if it trains adapters.
    ///
    /// # Errors
    /// If a number is not possible, or a setting of adapters is given without them.
    pub fn lora(&self) -> Result<Option<LoraConfig>> {
        if self.adapter != Some(AdapterKind::Lora) {
            for (flag, is_given) in [
                ("--rank", self.rank.is_some()),
                ("--alpha", self.alpha.is_some()),
                ("--targets", self.targets.is_some()),
                ("--lora-format", self.lora_format.is_some()),
                ("--lora-name", self.lora_name.is_some()),
                ("--no-merge", self.no_merge == Some(true)),
            ] {
                ensure!(!is_given, "{flag} goes with adapters; hint: --adapter lora {flag} …");
            }
            return Ok(None);
        }
        let rank = self.rank.unwrap_or(DEFAULT_RANK);
        ensure!(
            (1..=LARGEST_RANK).contains(&rank),
            "--rank {rank} is not possible; expected 1 to {LARGEST_RANK}"
        );
        let alpha = self.alpha.unwrap_or(rank as f64);
        ensure!(
            (f64::MIN_POSITIVE..f64::INFINITY).contains(&alpha),
            "--alpha {alpha} is not possible; expected a positive number"
        );
        let targets = self.targets.clone().unwrap_or(Targets::Attention);
        Ok(Some(LoraConfig { rank, alpha, targets }))
    }

    /// What the run leaves of its adapters; `None` if it trains none. The file of sd-scripts is
    /// called as the folder `out`, unless `--lora-name` says otherwise.
    ///
    /// # Errors
    /// If the name is not one of a file.
    pub fn lora_result(&self, out: &Path) -> Result<Option<LoraResult>> {
        if self.adapter != Some(AdapterKind::Lora) {
            return Ok(None);
        }
        let mut formats = self.lora_format.clone().unwrap_or_default();
        formats.dedup();
        if formats.is_empty() {
            formats.push(LoraFormat::Diffusers);
        }
        let is_kohya = formats.contains(&LoraFormat::Kohya);
        ensure!(
            is_kohya || self.lora_name.is_none(),
            "--lora-name goes with --lora-format kohya; the file of diffusers is always {DIFFUSERS_FILE}"
        );
        let own = out.file_name().map(|name| name.to_string_lossy().into_owned());
        let name = self.lora_name.clone().or(own).unwrap_or_else(|| "lora".to_owned());
        let name = name.strip_suffix(".safetensors").unwrap_or(&name);
        let is_plain = |c: char| !c.is_control() && !"/\\:*?\"<>|".contains(c);
        ensure!(
            !name.is_empty() && !name.starts_with('.') && name.chars().all(is_plain),
            "--lora-name {name:?} is not the name of a file; hint: --lora-name my-style"
        );
        let mut files = Vec::new();
        for format in [LoraFormat::Diffusers, LoraFormat::Kohya] {
            let name = match format {
                LoraFormat::Diffusers => DIFFUSERS_FILE.to_owned(),
                LoraFormat::Kohya => format!("{name}.safetensors"),
            };
            if formats.contains(&format) && !files.iter().any(|(_, other)| *other == name) {
                files.push((format, name));
            }
        }
        ensure!(
            !is_kohya || files.iter().any(|(format, _)| *format == LoraFormat::Kohya),
            "--lora-name {name:?} is the name of the file of diffusers; hint: another name"
        );
        Ok(Some(LoraResult { files, is_merged: self.no_merge != Some(true) }))
    }
}
