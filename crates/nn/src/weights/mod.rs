//! From checkpoint files to tensors, without running code from them and without a second copy.
//!
//! The formats are safetensors, in one file or in shards with an `*.index.json`, and the zip
//! pickles that `torch.save` writes since PyTorch 1.6 (`.pt`, `.bin`, `.pth`). The content decides
//! the format, not the name. Files are memory-mapped: a tensor whose dtype and layout already fit
//! uses the pages of the file, and any other is converted when a network reads it.
//!
//! A file is untrusted input. Every offset, size and stride is checked before memory is touched, a
//! machine that can only build plain data reads the pickles ([`WeightsError::RefusedGlobal`]), and
//! the size of the file bounds the memory. A mapped file must not shrink while the program runs:
//! the operating system ends a program that reads beyond its end.

mod archive;
mod copies;
mod delta;
mod error;
mod f16_born;
mod folder;
mod frozen;
mod loader;
mod mapped;
mod pickle;
mod safetensors;
mod text;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tch::{Kind, Tensor};

pub(crate) use copies::WeightCopies;
pub(crate) use delta::{Delta, StoredTensor};
pub use error::WeightsError;
pub use folder::find_file;
pub(crate) use folder::other_weights;
pub(crate) use frozen::{AdapterPlan, AdapterStart, Frozen};
pub use loader::Loader;
pub(crate) use loader::Purpose;
use mapped::MappedFile;
pub(crate) use safetensors::{Entry, write_each, write_while};
pub use safetensors::{
    Written, write as write_safetensors, write_with_metadata as write_safetensors_with_metadata,
};
pub(crate) use text::name_text;

/// Where one tensor lies.
#[derive(Debug, Clone)]
struct Stored {
    file: Arc<MappedFile>,
    /// First byte in the file.
    offset: usize,
    kind: Kind,
    shape: Vec<i64>,
    /// In elements, as PyTorch counts.
    strides: Vec<i64>,
    /// Products that are added to the tensor when it is read.
    deltas: Vec<Delta>,
}

/// The named tensors of a checkpoint. Opening reads headers only.
#[derive(Debug, Default, Clone)]
pub struct Weights {
    files: Vec<PathBuf>,
    tensors: BTreeMap<String, Stored>,
}

impl Weights {
    /// Opens a checkpoint: a weights file, an `*.index.json`, or a folder that holds one under a
    /// usual name (those of `transformers` before those of `open_clip`).
    pub fn open(path: impl AsRef<Path>) -> Result<Self, WeightsError> {
        let path = path.as_ref();
        if path.is_dir() {
            Self::open_folder(path, folder::USUAL_NAMES)
        } else {
            folder::open_path(path)
        }
    }

    /// Opens the weights in `folder` that [`find_file`] finds; an `*.index.json` opens its shards.
    pub fn open_folder(folder: impl AsRef<Path>, names: &[&str]) -> Result<Self, WeightsError> {
        let folder = folder.as_ref();
        match find_file(folder, names)? {
            Some(path) => folder::open_path(&path),
            None => Err(Self::none_of(folder, names)),
        }
    }

    /// The error for a folder without weights, with the files that it holds instead.
    pub(crate) fn none_of(folder: &Path, names: &[&str]) -> WeightsError {
        let others = other_weights(folder);
        let found = match others.len() {
            0 => String::new(),
            _ => format!("\nhint: it holds {}", others.join(", ")),
        };
        WeightsError::NoWeights { folder: folder.to_owned(), names: names.join(", "), found }
    }

    /// The same tensors without a prefix that all their names share, if it hides all of the
    /// `anchors`. Wrappers leave such prefixes when a network is saved: `_orig_mod.` if it is
    /// compiled, `module.` if it is distributed, `model.`, or the name of the part.
    pub(crate) fn rooted(&self, anchors: &[&str]) -> Cow<'_, Self> {
        if anchors.iter().any(|anchor| self.contains(anchor)) {
            return Cow::Borrowed(self);
        }
        let beginnings = anchors.iter().filter_map(|anchor| {
            let name = self.names().find(|name| {
                name.strip_suffix(anchor).is_some_and(|before| before.ends_with('.'))
            })?;
            name.strip_suffix(anchor)
        });
        let all = |before: &&str| {
            self.names().all(|name| name.starts_with(*before) || loader::is_ignorable(name))
        };
        let Some(before) = beginnings.into_iter().find(all) else { return Cow::Borrowed(self) };
        tracing::info!(
            "{}: all names begin with {}, which is taken off",
            self.describe().display(),
            before.escape_debug()
        );
        let bare = |name: &String| name.strip_prefix(before).unwrap_or(name).to_owned();
        let tensors = self.tensors.iter().map(|(name, stored)| (bare(name), stored.clone()));
        Cow::Owned(Self { files: self.files.clone(), tensors: tensors.collect() })
    }

    /// The same tensors without those whose name `is_elsewhere`.
    #[must_use]
    pub fn without(&self, is_elsewhere: impl Fn(&str) -> bool) -> Self {
        let kept = self.tensors.iter().filter(|(name, _)| !is_elsewhere(name));
        let tensors = kept.map(|(name, stored)| (name.clone(), stored.clone())).collect();
        Self { files: self.files.clone(), tensors }
    }

    /// Opens several files as one checkpoint. A name in two of them is an error.
    pub fn open_files(paths: &[impl AsRef<Path>]) -> Result<Self, WeightsError> {
        let mut all = Self::default();
        for path in paths {
            let one = folder::open_path(path.as_ref())?;
            all.merge(one)?;
        }
        Ok(all)
    }

    /// The files that were opened, an index before its shards. A checksum of the weights covers all
    /// of them.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// All names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// True if there is a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The shape of a tensor.
    pub fn shape(&self, name: &str) -> Option<&[i64]> {
        self.tensors.get(name).map(|stored| stored.shape.as_slice())
    }

    /// The dtype of a tensor; f32 if adapters are added to it.
    pub fn kind(&self, name: &str) -> Option<Kind> {
        let kind = |stored: &Stored| match stored.deltas.is_empty() {
            true => stored.kind,
            false => Kind::Float,
        };
        self.tensors.get(name).map(kind)
    }

    /// A tensor as it is stored: over the mapped file, with the file's dtype and strides. Writing
    /// into it changes a private copy of the page, never the file. A tensor with adapters is
    /// computed, f32.
    pub fn tensor(&self, name: &str) -> Result<Tensor, WeightsError> {
        let stored = self.tensors.get(name).ok_or_else(|| WeightsError::NoTensor {
            file: self.describe(),
            name: name.to_owned(),
        })?;
        stored.tensor()
    }

    /// Releases the memory of the pages of the mapped file that hold a tensor. Whatever was written
    /// into the tensor is lost.
    pub(crate) fn release_pages(&self, name: &str) {
        if let Some(stored) = self.tensors.get(name) {
            let elements = mapped::span(&stored.shape, &stored.strides).unwrap_or(0);
            stored.file.release(stored.offset, elements * stored.kind.elt_size_in_bytes());
        }
    }

    /// The path for messages.
    pub(crate) fn describe(&self) -> PathBuf {
        self.files.first().cloned().unwrap_or_default()
    }

    fn merge(&mut self, other: Self) -> Result<(), WeightsError> {
        let file = other.describe();
        for (name, stored) in other.tensors {
            if self.tensors.contains_key(&name) {
                return Err(WeightsError::Invalid {
                    file,
                    reason: format!("tensor {name:?} stands in another file as well"),
                });
            }
            self.tensors.insert(name, stored);
        }
        self.files.extend(other.files);
        Ok(())
    }
}
