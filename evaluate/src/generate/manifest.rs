//! What the images of a folder depend on. A folder may grow by models, prompts and seeds.
//! Everything else is the same for every image in it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use runkit::manifest::Difference;
use runkit::run_folder::MANIFEST;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::model::{Model, ModelRecord};
use super::{Config, FOLDER, PROGRAM, VERSION, images_folder};
use crate::prompts::Prompt;
use crate::sources::is_name;

/// `manifest.json` of an output folder. No time, no host, no absolute path.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// The program that drew the images.
    pub program: String,
    /// Its version.
    pub version: String,
    /// Denoising steps.
    pub steps: usize,
    /// The negative prompt, or null.
    #[serde(alias = "negative")]
    pub negative_prompt: Option<String>,
    /// The dtype that the networks computed in.
    pub dtype: String,
    /// The kind of device: `cpu` or `cuda`. Their last bits differ.
    pub device: String,
    /// The seeds of each prompt.
    pub seeds: BTreeSet<u64>,
    /// The models, by name.
    pub models: BTreeMap<String, ModelRecord>,
    /// The prompts, by set and id.
    pub prompts: BTreeMap<String, BTreeMap<String, String>>,
}

impl Manifest {
    /// Describes what `config` asks for.
    pub(super) fn new(config: &Config, models: &[Model], prompts: &[Prompt]) -> Self {
        let mut sets = BTreeMap::<String, BTreeMap<String, String>>::new();
        for prompt in prompts {
            let set = sets.entry(prompt.set.clone()).or_default();
            set.insert(prompt.id.clone(), prompt.text.clone());
        }
        Self {
            program: PROGRAM.to_owned(),
            version: VERSION.to_owned(),
            steps: config.steps,
            negative_prompt: config.negative_prompt.clone(),
            dtype: nn::device::dtype_name(config.precision, config.device),
            device: config.device_kind().to_owned(),
            seeds: config.seeds.clone().collect(),
            models: models.iter().map(|model| (model.name.clone(), model.record.clone())).collect(),
            prompts: sets,
        }
    }

    /// The manifest of an output folder, if images were generated there.
    ///
    /// # Errors
    /// If the manifest cannot be read, or another program wrote it.
    pub fn of_folder(out: &Path) -> Result<Option<Self>> {
        let Some(manifest) = FOLDER.at(out).manifest()? else { return Ok(None) };
        let file = out.join(MANIFEST);
        let manifest: Self = serde_json::from_value(manifest).with_context(|| {
            format!(
                "{}: expected the manifest of generated images; hint: choose another --out",
                file.display()
            )
        })?;
        // Names become paths, so they must be of the form that this program gives them.
        let plain = |id: &String| !id.is_empty() && !id.starts_with('.') && !id.contains('/');
        ensure!(
            manifest.models.keys().all(|name| is_name(name))
                && manifest.prompts.values().flat_map(BTreeMap::keys).all(plain),
            "{}: the names in it are not those of this program; hint: choose another --out",
            file.display()
        );
        Ok(Some(manifest))
    }

    /// The images that the folder may hold, by their paths in it.
    pub(super) fn images(&self) -> impl Iterator<Item = PathBuf> {
        let ids: BTreeSet<&String> = self.prompts.values().flat_map(BTreeMap::keys).collect();
        self.models.keys().flat_map(move |model| {
            let folder = images_folder(Path::new("")).join(model);
            ids.clone().into_iter().flat_map(move |id| {
                let folder = folder.join(id);
                self.seeds.iter().map(move |seed| folder.join(format!("{seed}.png")))
            })
        })
    }

    /// This run's manifest together with what the folder holds already, or the fields in which
    /// their recipes differ.
    pub(super) fn joined(mut self, earlier: Self) -> Result<Self, Vec<Difference>> {
        let differences =
            runkit::manifest::differences(&earlier.compared(&self), &self.compared(&earlier));
        if !differences.is_empty() {
            return Err(differences);
        }
        self.seeds.extend(earlier.seeds);
        self.models.extend(earlier.models);
        for (set, prompts) in earlier.prompts {
            self.prompts.entry(set).or_default().extend(prompts);
        }
        Ok(self)
    }

    /// What must be equal in two manifests of one folder. Of the models and prompts, these are the
    /// ones that both have; prompts count by row, since an edited line has another id.
    fn compared(&self, other: &Self) -> Value {
        // Equal files are one model, whether they came from a folder or from a commit of the hub.
        let nameless = |record: &ModelRecord| ModelRecord {
            revision: None,
            unet_revision: None,
            ..record.clone()
        };
        let both = self.models.iter().filter(|(name, _)| other.models.contains_key(*name));
        let models: BTreeMap<_, _> = both.map(|(name, record)| (name, nameless(record))).collect();
        let mut prompts = BTreeMap::new();
        for (set, ours) in &self.prompts {
            let rows: BTreeSet<&str> =
                other.prompts.get(set).into_iter().flatten().map(|(id, _)| row(id)).collect();
            let both = ours.iter().filter(|(id, _)| rows.contains(row(id)));
            prompts.insert(set, both.map(|(id, text)| (row(id), text)).collect::<BTreeMap<_, _>>());
        }
        prompts.retain(|set, _| other.prompts.contains_key(*set));
        serde_json::json!({
            "version": self.version,
            "steps": self.steps,
            "negative_prompt": self.negative_prompt,
            "dtype": self.dtype,
            "device": self.device,
            "models": models,
            "prompts": prompts,
        })
    }
}

/// The row in a prompt's id.
fn row(id: &str) -> &str {
    id.split_once('-').map_or(id, |(row, _)| row)
}

#[cfg(test)]
mod tests {
    use nn::schedule::SamplerKind;

    use super::*;
    use crate::sources::Size;

    fn model(checkpoint: &str) -> ModelRecord {
        ModelRecord {
            pipeline: "StableDiffusionPipeline".to_owned(),
            checkpoint: checkpoint.to_owned(),
            parts: BTreeMap::from([("unet/config.json".to_owned(), checkpoint.to_owned())]),
            scheduler: SamplerKind::Ddim,
            guidance: 7.5,
            size: Size { height: 64, width: 64 },
            revision: None,
            unet_revision: None,
        }
    }

    fn manifest(models: &[(&str, &str)], prompts: &[(&str, &str, &str)], seeds: u64) -> Manifest {
        let mut sets = BTreeMap::<String, BTreeMap<String, String>>::new();
        for (set, id, text) in prompts {
            let set = sets.entry((*set).to_owned()).or_default();
            set.insert((*id).to_owned(), (*text).to_owned());
        }
        Manifest {
            program: PROGRAM.to_owned(),
            version: VERSION.to_owned(),
            steps: 50,
            negative_prompt: None,
            dtype: "f32".to_owned(),
            device: "cpu".to_owned(),
            seeds: (0..seeds).collect(),
            models: models
                .iter()
                .map(|(name, checkpoint)| ((*name).to_owned(), model(checkpoint)))
                .collect(),
            prompts: sets,
        }
    }

    fn differences(now: Manifest, earlier: Manifest) -> Vec<String> {
        let found = now.joined(earlier).unwrap_err();
        found.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_folder_grows_by_models_prompts_and_seeds() {
        let first = manifest(&[("a", "x")], &[("one", "00001-aa", "fox")], 2);
        assert_eq!(first.clone().joined(first.clone()).unwrap(), first);
        let second = manifest(
            &[("a", "x"), ("b", "y")],
            &[("one", "00002-bb", "cat"), ("two", "00001-cc", "dog")],
            3,
        );
        let both = second.joined(first).unwrap();
        assert_eq!(both.models.keys().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!((both.prompts["one"].len(), both.prompts["two"].len()), (2, 1));
        assert_eq!(both.seeds.len(), 3);
    }

    #[test]
    fn other_recipes_are_named() {
        let first = manifest(&[("a", "x")], &[("one", "00001-aa", "fox")], 2);
        let now = Manifest { steps: 20, negative_prompt: Some("blur".to_owned()), ..first.clone() };
        assert_eq!(
            differences(now, first.clone()),
            ["steps: was 50, now 20", "negative_prompt: was null, now \"blur\""]
        );
        let now = manifest(&[("a", "z")], &[], 2);
        assert_eq!(
            differences(now, first.clone()),
            [
                "models.a.checkpoint: was \"x\", now \"z\"",
                "models.a.parts[\"unet/config.json\"]: was \"x\", now \"z\"",
            ]
        );
        let edited = manifest(&[("b", "z")], &[("one", "00001-bb", "box")], 2);
        assert_eq!(differences(edited, first), ["prompts.one.00001: was \"fox\", now \"box\""]);
    }
}
