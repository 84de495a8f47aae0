//! Copies of the miniature reward models, with changed configurations.

#![allow(dead_code, reason = "each test file uses a part of it")]

use std::path::{Path, PathBuf};

use nn::device::Precision;
use scorers::{Compute, DescribedScorers, ScorerError, ScorersConfig};
use serde_json::{Map, Value};
use tch::Device;

pub(crate) const CPU: Compute = Compute { device: Device::Cpu, precision: Precision::F32 };

/// A file or folder of the repository.
pub(crate) fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
}

/// A folder with copies of models of `data/mini`.
pub(crate) struct Models(tempfile::TempDir);

impl Models {
    /// Copies models, each under a name of its own: (name, model of `data/mini`).
    pub(crate) fn new(models: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for (name, model) in models {
            let target = folder.path().join(name);
            fs_err::create_dir(&target).unwrap();
            for entry in fs_err::read_dir(repository("data/mini").join(model)).unwrap() {
                let entry = entry.unwrap();
                fs_err::copy(entry.path(), target.join(entry.file_name())).unwrap();
            }
        }
        Self(folder)
    }

    pub(crate) fn path(&self, file: &str) -> PathBuf {
        self.0.path().join(file)
    }

    pub(crate) fn read(&self, file: &str) -> Map<String, Value> {
        serde_json::from_slice(&fs_err::read(self.path(file)).unwrap()).unwrap()
    }

    pub(crate) fn write(&self, file: &str, content: &Value) {
        fs_err::write(self.path(file), content.to_string()).unwrap();
    }

    /// Lays keys over the top level of a JSON file.
    pub(crate) fn change(&self, file: &str, keys: &Value) {
        let mut content = self.read(file);
        content.extend(keys.as_object().unwrap().clone());
        self.write(file, &content.into());
    }

    /// Lays keys over an object of a JSON file.
    pub(crate) fn change_in(&self, file: &str, section: &str, keys: &Value) {
        let mut content = self.read(file);
        let part = content.entry(section).or_insert_with(|| Map::new().into());
        part.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
        self.write(file, &content.into());
    }

    pub(crate) fn describe(&self, toml: &str) -> Result<DescribedScorers, ScorerError> {
        let file = self.path("scorers.toml");
        fs_err::write(&file, toml).unwrap();
        DescribedScorers::of(&ScorersConfig::read(&file)?, CPU)
    }
}

/// An entry of `scorers.toml` for a copy of `data/mini/clip`.
pub(crate) fn hf_entry(name: &str, more: &str) -> String {
    format!(
        "[[scorer]]\nname = \"{name}\"\nkind = \"clip\"\nmodel = \"{name}\"\nlayout = \"transformers\"\n\
         preprocess = \"hf\"\n{more}\n"
    )
}

/// An entry of `scorers.toml` for a copy of `data/mini/hps`.
pub(crate) fn open_clip_entry(name: &str, more: &str) -> String {
    format!(
        "[[scorer]]\nname = \"{name}\"\nkind = \"clip\"\nmodel = \"{name}\"\nlayout = \"open_clip\"\n\
         weights = \"open_clip_pytorch_model.pt\"\n{more}\n"
    )
}
