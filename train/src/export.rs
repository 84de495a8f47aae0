//! The result: `pipeline/`, the base model's folder with the trained UNet, which
//! `DiffusionPipeline.from_pretrained` loads, and a model card in it.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use nn::pipeline::NetworkFiles;
use nn::weights::Weights;
use serde_json::Value;

use crate::cli::OptimizerKind;
use crate::config::Config;
use crate::manifest::Manifest;
use crate::model::{BaseModel, Networks};
use crate::probe::ProbeReport;

/// The folder of the result.
pub const FOLDER: &str = "pipeline";
/// Written last: a folder that has it is whole.
const INDEX: &str = "model_index.json";
/// Weights in other formats than the one that is read.
const WEIGHT_EXTENSIONS: [&str; 7] = ["safetensors", "bin", "msgpack", "h5", "ckpt", "pth", "onnx"];
/// The suffix of weights in half precision, which diffusers looks for only when asked to.
const HALF: &str = ".fp16";

/// Whether the run's result is there.
pub fn is_complete(run: &Path) -> bool {
    run.join(FOLDER).join(INDEX).is_file()
}

/// Writes the result.
///
/// # Errors
/// Where a file cannot be read or written.
pub fn write(run: &Path, base: &BaseModel, networks: &Networks, card: &str) -> Result<PathBuf> {
    let (from, to) = (&base.files.folder, run.join(FOLDER));
    let index = std::fs::read(from.join(INDEX))
        .with_context(|| format!("cannot read {}", from.join(INDEX).display()))?;
    let parts: Value = serde_json::from_slice(&index)
        .with_context(|| format!("{}: not JSON", from.join(INDEX).display()))?;
    let unet = to.join("unet");
    runkit::files::create_folder(&unet)?;
    networks.pipeline.unet.save(&unet)?;
    let names = parts.as_object().into_iter().flatten().map(|(name, _)| name.as_str());
    for part in names.filter(|name| *name != "unet" && !name.starts_with('_')) {
        let folder = from.join(part);
        if folder.is_dir() {
            copy_part(&folder, &to.join(part), &networks_of(base, part))?;
        }
    }
    runkit::files::write_atomic(to.join("README.md"), |file| file.write_all(card.as_bytes()))?;
    runkit::files::write_atomic(to.join(INDEX), |file| file.write_all(&index))?;
    Ok(to)
}

/// The network of a part, if it is one whose weights are read here.
fn networks_of<'base>(base: &'base BaseModel, part: &str) -> Option<&'base NetworkFiles> {
    match part {
        "vae" => Some(&base.files.vae),
        "text_encoder" => base.files.text_encoders.first(),
        "text_encoder_2" => base.files.text_encoders.get(1),
        _ => None,
    }
}

/// Copies a part of the pipeline; of a network only the weights that are read. Those in half
/// precision lose the mark in their name, or diffusers would not find them.
fn copy_part(from: &Path, to: &Path, network: &Option<&NetworkFiles>) -> Result<()> {
    let read = match network {
        Some(network) => Some(Weights::open(&network.weights)?.files().to_vec()),
        None => None,
    };
    runkit::files::create_folder(to)?;
    let list = || format!("cannot list {}", from.display());
    for entry in std::fs::read_dir(from).with_context(list)? {
        let path = entry.with_context(list)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() {
            if !name.starts_with('.') {
                copy_part(&path, &to.join(&name), &None)?;
            }
            continue;
        }
        let mut target = name.clone();
        if let Some(read) = &read {
            let extension = path.extension().and_then(|extension| extension.to_str());
            let holds_weights = name.ends_with(".json") && name.contains(".index.")
                || extension.is_some_and(|extension| WEIGHT_EXTENSIONS.contains(&extension));
            if holds_weights && !read.contains(&path) {
                continue;
            }
            if read.len() == 1 && read.contains(&path) {
                target = name.replace(HALF, "");
            }
        }
        let copied = std::fs::File::open(&path).and_then(|mut source| {
            runkit::files::write_atomic(to.join(target), |file| {
                std::io::copy(&mut source, file).map(|_| ())
            })
            .map_err(std::io::Error::other)
        });
        copied.with_context(|| format!("copying {}", path.display()))?;
    }
    Ok(())
}

/// The model card: what was done, with what, and how far it came. No time and no host, so that
/// equal runs give equal bytes.
pub fn model_card(
    config: &Config,
    base: &BaseModel,
    manifest: &Manifest,
    probes: Option<(&ProbeReport, &ProbeReport)>,
) -> String {
    let name = base.files.folder.file_name().unwrap_or_default().to_string_lossy();
    let mut card = String::new();
    // Writing to a String cannot fail.
    let _ = write!(
        card,
        "---\nlibrary_name: diffusers\npipeline_tag: text-to-image\ntags:\n- {}\n- dpo\n---\n\n\
         # {name}, aligned with preferences\n\n\
         The UNet of `{name}` after {} steps of Diffusion-DPO on {} labels of {} pairs: β {}, \
         batches of {} pairs at {} pixels, learning rate {:e} at its height ({}), {}.\n\n",
        match base.files.family {
            nn::pipeline::Family::StableDiffusion => "stable-diffusion",
            nn::pipeline::Family::StableDiffusionXl => "stable-diffusion-xl",
        },
        config.steps,
        config.preference,
        manifest.pairs,
        config.beta,
        config.batch_size,
        base.resolution,
        config.learning_rate.peak(),
        match config.optimizer {
            OptimizerKind::Adamw => "AdamW",
            OptimizerKind::Adafactor => "Adafactor",
        },
        match config.reference_every {
            0 => "the reference is the base model".to_owned(),
            every => format!("the reference is renewed after every {every} steps"),
        },
    );
    card += "```python\nfrom diffusers import DiffusionPipeline\n\npipeline = \
             DiffusionPipeline.from_pretrained(\"path/to/this/folder\")\n\
             pipeline(\"a prompt\").images[0].save(\"picture.png\")\n```\n\n";
    if let Some((first, last)) = probes {
        let _ = write!(
            card,
            "## How far it came\n\nOn {} pairs of the training set with fixed timesteps and noise, \
             against the base model (a loss of ln 2 = 0.6931 and an accuracy of 0.5 are no \
             preference):\n\n\
             | | before | after |\n|---|---|---|\n\
             | loss | {:.4} | {:.4} |\n| implicit accuracy | {:.3} | {:.3} |\n\
             | error on the better images | {:.5} | {:.5} |\n\
             | error on the others | {:.5} | {:.5} |\n\n",
            config.probe_pairs.min(manifest.pairs),
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
    let _ = writeln!(card, "| dtype | {} |", manifest.dtype);
    for (name, value) in &manifest.settings {
        let _ = writeln!(card, "| {name} | {} |", value.to_string().trim_matches('"'));
    }
    let _ = write!(
        card,
        "\n## Provenance\n\nMade by {} {}. Labels `{}`, data `{}`. Files of the base model \
         (SHA-256):\n\n| file | hash |\n|---|---|\n",
        manifest.program, manifest.version, manifest.labels, manifest.data
    );
    for (file, hash) in &manifest.model {
        let _ = writeln!(card, "| {file} | `{hash}` |");
    }
    card += "\nThe licence of the base model applies. Its faults and biases are not removed by \
             training on preferences, and those of the labels are added.\n";
    card
}
