//! A pipeline by name: a local folder, or `hf://owner/name[@revision]`. Only the files that are
//! read are downloaded.
//!
//! [`PipelineFiles::open`] itself decides which these are. It looks at a folder with the names of
//! the repository's files, in which the small files are complete and the weights are empty. A
//! download therefore fetches the same variant that it would read from a complete copy of the
//! repository.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use hub::{Downloads, HubError, Repository, Wanted};
use serde::Deserialize;
use serde_json::Value;

use super::PipelineFiles;
use crate::config::{invalid, read_json};
use crate::error::ModelError;
use crate::single_file;
use crate::weights::Weights;

/// Folders of a pipeline whose files are read, or copied next to a trained UNet.
const PARTS: [&str; 8] = [
    "unet",
    "vae",
    "text_encoder",
    "text_encoder_2",
    "tokenizer",
    "tokenizer_2",
    "scheduler",
    "feature_extractor",
];
const INDEX: &str = "model_index.json";
/// The suffix of weights in half precision.
const HALF: &str = ".fp16";

/// Where a pipeline comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PipelineSource {
    /// A folder, or a name on the hub.
    pub model: PathBuf,
    /// A folder or a name on the hub whose UNet replaces the pipeline's.
    pub unet: Option<PathBuf>,
}

/// A pipeline that exists, with the files that are not local yet.
#[derive(Debug)]
pub struct FoundPipeline {
    model: Place,
    unet: Option<Place>,
}

/// A pipeline with all its files on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchedPipeline {
    /// Its files.
    pub files: PipelineFiles,
    /// The name for messages and reports: the folder, or `hf://owner/name@revision`.
    pub shown: String,
    /// The hub's commit of the pipeline; `None` for a folder.
    pub revision: Option<String>,
    /// The hub's commit of the UNet that replaces it; `None` for a folder.
    pub unet_revision: Option<String>,
}

#[derive(Debug)]
enum Place {
    Folder(PathBuf),
    /// A single file, which is unpacked to a folder of the cache.
    Single(PathBuf),
    Hub {
        repository: Box<Repository>,
        /// The files that must exist before the pipeline is opened.
        files: Vec<String>,
    },
}

impl PipelineSource {
    /// Checks what is on this machine. Call it for every model before the first download.
    ///
    /// # Errors If a folder is not a complete pipeline, or a name on the hub is malformed.
    pub fn check_local(&self) -> Result<(), ModelError> {
        let model = is_hub(&self.model);
        let unet = self.unet.as_deref();
        for (path, wanted) in [(Some(self.model.as_path()), Wanted::Pipeline), (unet, Wanted::Unet)]
        {
            let Some(path) = path else { continue };
            if is_hub(path) {
                Repository::check_name(&path.to_string_lossy(), Path::new(""))?;
            } else if wanted == Wanted::Pipeline && is_single(path) {
                single_file::check(path)?;
            } else if !path.is_dir() {
                return Err(no_such(path, wanted));
            }
        }
        let model = model || is_single(&self.model);
        match (model, unet) {
            (false, Some(unet)) if is_hub(unet) => {
                PipelineFiles::open(&self.model, None).map(|_| ())
            }
            (false, unet) => PipelineFiles::open(&self.model, unet).map(|_| ()),
            (true, Some(unet)) if !is_hub(unet) => PipelineFiles::open_unet(unet).map(|_| ()),
            (true, _) => Ok(()),
        }
    }

    /// Finds the pipeline and, on the hub, the files that it needs. Downloads its small files, not
    /// its weights.
    ///
    /// # Errors As [`PipelineSource::check_local`], or if the hub has no such pipeline.
    pub fn find(&self) -> Result<FoundPipeline, ModelError> {
        self.check_local()?;
        let unet = self.unet.as_deref().map(Place::find_unet).transpose()?;
        let model = if is_hub(&self.model) {
            let repository = Repository::open(&self.model.to_string_lossy(), Path::new(""))?;
            Place::pipeline_of_hub(repository, self.unet.is_none())?
        } else if is_single(&self.model) {
            Place::Single(self.model.clone())
        } else {
            Place::Folder(self.model.clone())
        };
        Ok(FoundPipeline { model, unet })
    }

    /// Finds the pipeline, logs what will be downloaded, and downloads it.
    ///
    /// # Errors
    /// As [`PipelineSource::find`] and [`FoundPipeline::fetch`].
    pub fn fetch(&self) -> Result<FetchedPipeline, ModelError> {
        let found = self.find()?;
        let mut downloads = Downloads::default();
        found.count(&mut downloads)?;
        downloads.log()?;
        found.fetch()
    }
}

impl FoundPipeline {
    /// Counts the files that are not local yet.
    ///
    /// # Errors
    /// When the program is asked to stop.
    pub fn count(&self, downloads: &mut Downloads) -> Result<(), ModelError> {
        for place in [Some(&self.model), self.unet.as_ref()].into_iter().flatten() {
            if let Place::Hub { repository, files } = place {
                for file in files {
                    downloads.add(repository, file)?;
                }
            }
        }
        Ok(())
    }

    /// Downloads the missing files and opens the pipeline.
    ///
    /// # Errors
    /// If a file cannot be downloaded, or the pipeline is not complete.
    pub fn fetch(&self) -> Result<FetchedPipeline, ModelError> {
        let folder = self.model.fetch()?;
        let unet = self.unet.as_ref().map(Place::fetch).transpose()?;
        let revision = |place: &Place| match place {
            Place::Folder(_) | Place::Single(_) => None,
            Place::Hub { repository, .. } => repository.revision().map(str::to_owned),
        };
        Ok(FetchedPipeline {
            files: PipelineFiles::open(&folder, unet.as_deref())?,
            shown: match &self.model {
                Place::Folder(path) | Place::Single(path) => path.display().to_string(),
                Place::Hub { repository, .. } => repository.shown(),
            },
            revision: revision(&self.model),
            unet_revision: self.unet.as_ref().and_then(revision),
        })
    }
}

impl Place {
    fn find_unet(unet: &Path) -> Result<Self, ModelError> {
        if !is_hub(unet) {
            return Ok(Self::Folder(unet.to_owned()));
        }
        let repository = Repository::open(&unet.to_string_lossy(), Path::new(""))?;
        let is_complete = |folder: &Path| PipelineFiles::open_unet(folder).map(|unet| vec![unet]);
        Self::of_hub(repository, is_complete, |name| {
            // The files are in the repository itself, or in its folder `unet`.
            matches!(name.split('/').collect::<Vec<_>>()[..], [_] | ["unet", _])
        })
    }

    fn pipeline_of_hub(repository: Repository, with_unet: bool) -> Result<Self, ModelError> {
        if !repository.has(INDEX)? {
            let reason = no_pipeline(&repository)?;
            return Err(ModelError::Folder { folder: repository.shown().into(), reason });
        }
        let networks = |folder: &Path| {
            let files = PipelineFiles::open(folder, None)?;
            let mut networks = vec![files.vae];
            networks.extend(files.text_encoders);
            if with_unet {
                networks.push(files.unet);
            }
            Ok(networks)
        };
        Self::of_hub(repository, networks, |name| {
            name == INDEX
                || matches!(name.split('/').collect::<Vec<_>>()[..], [part, _] if PARTS.contains(&part))
        })
    }

    fn of_hub(
        repository: Repository,
        networks: impl Fn(&Path) -> Result<Vec<super::NetworkFiles>, ModelError>,
        is_part: impl Fn(&str) -> bool,
    ) -> Result<Self, ModelError> {
        // A complete copy in the cache is used without asking the hub. If the copy is only in half
        // precision, the hub is asked for a better one.
        if let Some(folder) = repository.folder()
            && let Ok(found) = networks(folder)
            && found.iter().all(|network| {
                let name = network.weights.file_name().unwrap_or_default().to_string_lossy();
                !name.contains(HALF) && shards_are_there(&network.weights)
            })
        {
            return Ok(Self::Hub { repository: Box::new(repository), files: Vec::new() });
        }
        let names: Vec<String> =
            repository.names()?.into_iter().filter(|name| is_part(name)).collect();
        let skeleton = tempfile::tempdir().map_err(|cause| no_scratch(&cause))?;
        for name in &names {
            let place = skeleton.path().join(name);
            let made = place.parent().map_or(Ok(()), std::fs::create_dir_all);
            made.map_err(|cause| no_scratch(&cause))?;
            if is_small(name) {
                let file = std::path::absolute(repository.file(name)?);
                file.and_then(|file| std::os::unix::fs::symlink(file, &place))
                    .map_err(|cause| no_scratch(&cause))?;
            } else {
                let made = std::fs::OpenOptions::new().write(true).create_new(true).open(&place);
                made.map_err(|cause| no_scratch(&cause))?;
            }
        }
        let found = networks(skeleton.path())
            .map_err(|error| renamed(error, skeleton.path(), &repository))?;
        let mut files = BTreeSet::new();
        for network in found {
            for file in with_shards(&network.weights)? {
                let name = file.strip_prefix(skeleton.path()).unwrap_or(&file);
                files.insert(name.to_string_lossy().into_owned());
            }
        }
        Ok(Self::Hub { repository: Box::new(repository), files: files.into_iter().collect() })
    }

    /// The folder, with all files that are needed.
    fn fetch(&self) -> Result<PathBuf, ModelError> {
        match self {
            Self::Folder(folder) => Ok(folder.clone()),
            Self::Single(file) => unpacked(file),
            Self::Hub { repository, files } => {
                for file in files {
                    repository.file(file)?;
                }
                Ok(repository.folder().map(Path::to_path_buf).unwrap_or_default())
            }
        }
    }
}

/// Whether a path is a single file of A1111 or ComfyUI.
fn is_single(path: &Path) -> bool {
    let is_safetensors = path.extension().is_some_and(|extension| extension == "safetensors");
    let is_whole = |weights: Weights| {
        let mut names = weights.names();
        names.any(|name| name.starts_with(single_file::UNET))
    };
    is_safetensors && path.is_file() && Weights::open(path).is_ok_and(is_whole)
}

/// The folder that a single file is unpacked to, once, beside the hub's cache.
fn unpacked(file: &Path) -> Result<PathBuf, ModelError> {
    let settings = hub::Settings::from_environment()?;
    let cache = settings.cache.parent().unwrap_or(&settings.cache).join("balanceddpo");
    let folder = single_file::unpacked(file, &cache).map_err(|cause| ModelError::Folder {
        folder: file.to_owned(),
        reason: format!("cannot be read: {cause}"),
    })?;
    if !folder.join(INDEX).is_file() {
        tracing::info!("unpacking {} to {}", file.display(), folder.display());
        single_file::unpack(file, &folder, &|| Ok(runkit::signals::check_at("unpack")?))?;
    }
    Ok(folder)
}

/// Whether a path is a name on the hub.
fn is_hub(path: &Path) -> bool {
    runkit::path::is_address(path)
}

/// Configurations, vocabularies and indexes of shards, which are read before the weights.
fn is_small(name: &str) -> bool {
    [".json", ".txt", ".model"].iter().any(|end| name.ends_with(end))
}

#[derive(Deserialize)]
struct ShardIndex {
    weight_map: std::collections::BTreeMap<String, String>,
}

/// A file of weights, or an index with the shards it names.
fn with_shards(weights: &Path) -> Result<Vec<PathBuf>, ModelError> {
    if weights.extension().is_none_or(|extension| extension != "json") {
        return Ok(vec![weights.to_owned()]);
    }
    let index: Value = read_json(weights)?;
    let index =
        ShardIndex::deserialize(&index).map_err(|error| invalid(weights, error.to_string()))?;
    let shards: BTreeSet<&String> = index.weight_map.values().collect();
    let mut files = vec![weights.to_owned()];
    files.extend(shards.into_iter().map(|shard| weights.with_file_name(shard)));
    Ok(files)
}

fn shards_are_there(weights: &Path) -> bool {
    with_shards(weights).is_ok_and(|files| files.iter().all(|file| file.is_file()))
}

/// Describes a path that is not a folder.
fn no_such(path: &Path, wanted: Wanted) -> ModelError {
    ModelError::Folder { folder: path.to_owned(), reason: hub::describe(path, wanted) }
}

/// Describes a repository of the hub without a `model_index.json`.
fn no_pipeline(repository: &Repository) -> Result<String, HubError> {
    let names = repository.names()?;
    let has = |end: &str| names.iter().any(|name| name.ends_with(end));
    let is_single = |name: &&String| {
        !name.contains('/') && (name.ends_with(".safetensors") || name.ends_with(".ckpt"))
    };
    Ok(if has("pytorch_lora_weights.safetensors") || has("adapter_config.json") {
        "it holds LoRA weights, no whole model; expected a pipeline in the layout of diffusers\n\
         hint: download the file and name it beside its base model: NAME=BASE,lora=FILE in evaluate, \
         or train merge --model BASE --lora FILE --out FOLDER"
            .to_owned()
    } else if names.iter().any(|name| name == "unet/config.json" || name == "config.json") {
        "it holds one network, no whole pipeline; expected model_index.json\n\
         hint: a UNet stands in for that of its base model: NAME=BASE,unet=hf://owner/name"
            .to_owned()
    } else if let Some(single) = names.iter().find(is_single) {
        format!(
            "it holds single checkpoint files such as {single}, no pipeline in the layout of \
             diffusers\nhint: download that file and name it"
        )
    } else {
        "expected a pipeline in the layout of diffusers, found no model_index.json in it".to_owned()
    })
}

fn no_scratch(cause: &std::io::Error) -> ModelError {
    ModelError::Folder {
        folder: std::env::temp_dir(),
        reason: format!("cannot be written: {cause}\nhint: point TMPDIR to another folder"),
    }
}

/// Turns an error about the folder of names into one about the repository.
fn renamed(error: ModelError, skeleton: &Path, repository: &Repository) -> ModelError {
    match error {
        ModelError::Folder { folder, reason } => {
            let inner = folder.strip_prefix(skeleton).unwrap_or(&folder);
            ModelError::Folder { folder: Path::new(&repository.shown()).join(inner), reason }
        }
        other => other,
    }
}
