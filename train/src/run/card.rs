//! The model card of the result: what was trained, how, and the progress on the probe. It has no
//! time and no host, so that equal runs give equal bytes.

use std::fmt::Write as _;
use std::path::Path;

use nn::lora::LoraConfig;
use nn::optimizer::OptimizerKind;
use nn::pipeline::Family;

use super::manifest::Manifest;
use super::probe::ProbeReport;
use crate::config::Config;
use crate::loss::{LossKind, Objective};
use crate::model::BaseModel;
use crate::reference::ReferenceUpdates;
use crate::settings::RunSettings;

const CITATION: &str = "\
## Citation

```bibtex
@article{tamboli2025balanceddpo,
  title={BalancedDPO: Adaptive Multi-Metric Alignment},
  author={Tamboli, Dipesh and Chakraborty, Souradip and Malusare, Aditya and Banerjee, Biplab and
          Bedi, Amrit Singh and Aggarwal, Vaneet},
  journal={arXiv preprint arXiv:2503.12575},
  year={2025}
}
```
";

/// Writes the model card. `probes` are the measurements of the base model and of the result.
pub(super) fn model_card(
    config: &Config,
    base: &BaseModel,
    manifest: &Manifest,
    probes: Option<(&ProbeReport, &ProbeReport)>,
) -> String {
    // The local folder of a model of the hub has the name of its commit.
    let name = match &base.revision {
        Some(_) => base.shown.trim_start_matches("hf://").into(),
        None => Path::new(&base.shown).file_name().unwrap_or_default().to_string_lossy(),
    };
    let mut card = front_matter(base);
    // Writing to a String cannot fail.
    let _ = write!(
        card,
        "# {name}, aligned with preferences\n\n\
         The UNet of `{name}` {}after {} steps of {} on {} labels of {} pairs: β {}, \
         batches of {} pairs at {} pixels, peak learning rate {:e} ({}), {}.{}\n\n",
        match &config.lora {
            None => String::new(),
            Some(LoraConfig { rank, alpha, targets }) =>
                format!("with adapters (LoRA of rank {rank}, alpha {alpha}, on {targets}) "),
        },
        config.settings.steps,
        match config.settings.loss.unwrap_or_default() {
            LossKind::Dpo => "Diffusion-DPO",
            LossKind::Ipo => "Diffusion-DPO with the loss of IPO",
            LossKind::Hinge => "Diffusion-DPO with the hinge loss",
            LossKind::Mapo => "MaPO",
            LossKind::Kto => "Diffusion-KTO",
        },
        config.settings.preference,
        manifest.pairs,
        config.settings.beta,
        config.settings.batch_size,
        base.resolution,
        config.learning_rate.peak(),
        match config.optimizer.kind {
            OptimizerKind::Adamw => "AdamW",
            OptimizerKind::Adamw8bit => "AdamW in 8 bits",
            OptimizerKind::Adafactor => "Adafactor",
        },
        reference(&config.settings),
        match config.exports_ema() {
            true => " The weights are their moving average.",
            false => "",
        },
    );
    let load = match &config.lora_result {
        Some(result) if !result.is_merged => {
            let file = result.files.first().map_or("", |(_, name)| name.as_str());
            format!(
                "DiffusionPipeline.from_pretrained(\"path/to/the/base/model\")\n\
                 pipeline.load_lora_weights(\"path/to/this/folder\", weight_name=\"{file}\")"
            )
        }
        _ => "DiffusionPipeline.from_pretrained(\"path/to/this/folder\")".to_owned(),
    };
    let _ = write!(
        card,
        "```python\nfrom diffusers import DiffusionPipeline\n\npipeline = {load}\n\
         pipeline(\"a prompt\").images[0].save(\"image.png\")\n```\n\n"
    );
    if let Some((first, last)) = probes {
        let _ = write!(
            card,
            "## Progress\n\nOn {} pairs held out of training, with fixed timesteps and noise, \
             against the base model (a loss of ln 2 = 0.6931 and an accuracy of 0.5 are no \
             preference):\n\n\
             | | before | after |\n|---|---|---|\n\
             | loss | {:.4} | {:.4} |\n| implicit accuracy | {:.3} | {:.3} |\n\
             | error on chosen images | {:.5} | {:.5} |\n\
             | error on rejected images | {:.5} | {:.5} |\n\n",
            manifest.probe.len(),
            first.loss,
            last.loss,
            first.accuracy,
            last.accuracy,
            first.errors[0],
            last.errors[0],
            first.errors[1],
            last.errors[1],
        );
    }
    card += "## Settings\n\n| setting | value |\n|---|---|\n";
    let _ = writeln!(card, "| dtype | {} |\n| steps | {} |", manifest.dtype, manifest.steps);
    for (name, value) in manifest.settings.iter().chain(&manifest.numerics) {
        let _ = writeln!(card, "| {name} | {} |", value.to_string().trim_matches('"'));
    }
    let _ = write!(
        card,
        "\n## Provenance\n\nMade by {}. Labels `{}`, data `{}`. Files of the base model \
         (SHA-256):\n\n| file | hash |\n|---|---|\n",
        manifest.program, manifest.labels, manifest.data
    );
    for (file, hash) in &manifest.model {
        let _ = writeln!(card, "| {file} | `{hash}` |");
    }
    card += "\nThe licence of the base model applies. Training on preferences does not remove its faults \
             and biases, and adds those of the labels.\n\n";
    card += CITATION;
    card
}

/// What happens to the reference model.
fn reference(settings: &RunSettings) -> String {
    let ReferenceUpdates { every, amount } = ReferenceUpdates::of(settings);
    match every {
        _ if !Objective::of(settings).uses_reference() => "without a reference model".to_owned(),
        0 => "the reference model is the base model".to_owned(),
        _ if amount < 1.0 => {
            format!("the reference model goes {amount} of the way to the model every {every} steps")
        }
        _ => format!("the reference model is updated every {every} steps"),
    }
}

/// The metadata that the hub reads.
fn front_matter(base: &BaseModel) -> String {
    let mut yaml = "---\nlibrary_name: diffusers\npipeline_tag: text-to-image\n".to_owned();
    if base.revision.is_some() {
        let repository = base.shown.trim_start_matches("hf://").split('@').next();
        let _ = writeln!(yaml, "base_model: {}", repository.unwrap_or_default());
    }
    for line in license(&base.files.folder) {
        let _ = writeln!(yaml, "{line}");
    }
    let family = match base.files.family {
        Family::StableDiffusion => "stable-diffusion",
        Family::StableDiffusionXl => "stable-diffusion-xl",
    };
    let _ = write!(yaml, "tags:\n- {family}\n- dpo\n- balanced-dpo\n---\n\n");
    yaml
}

/// The lines about the licence in the base model's own card, if it has one.
fn license(folder: &Path) -> Vec<String> {
    let card = std::fs::read_to_string(folder.join("README.md")).unwrap_or_default();
    let front_matter = card.strip_prefix("---\n").and_then(|rest| rest.split("\n---").next());
    let lines = front_matter.unwrap_or_default().lines();
    lines.filter(|line| line.starts_with("license")).map(str::to_owned).collect()
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "fixtures need not be durable")]
mod tests {
    use super::*;

    #[test]
    fn the_licence_of_the_base_model_is_copied() {
        let folder = tempfile::tempdir().unwrap();
        assert!(license(folder.path()).is_empty());
        let card = "---\nlicense: other\nlicense_name: x\ntags:\n- y\n---\nlicense: no\n";
        std::fs::write(folder.path().join("README.md"), card).unwrap();
        assert_eq!(license(folder.path()), ["license: other", "license_name: x"]);
    }
}
