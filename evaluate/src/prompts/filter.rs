//! Which prompts are safe to show. A text classifier gives each prompt the probability that it is
//! unsafe; prompts below a threshold stay.
//!
//! The paper keeps prompts that `michellejieli/inappropriate_text_classifier` calls SFW. That model
//! was trained on posts of a forum, and drops many harmless prompts.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use hub::Repository;
use media::text::WordPieceTokenizer;
use nn::device::Precision;
use nn::distilbert::{DistilBert, WEIGHT_FILES};
use rayon::prelude::*;
use runkit::progress::Progress;
use serde::{Deserialize, Serialize};
use tch::Device;

use super::{Prompt, PromptSet};

/// The classifier that the paper uses.
pub const SAFETY_CLASSIFIER: &str = "hf://michellejieli/inappropriate_text_classifier";
/// The name of its unsafe class.
pub const UNSAFE_LABEL: &str = "NSFW";

/// Prompts cannot be filtered.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    /// The classifier or one of its files cannot be fetched.
    #[error("the safety classifier: {0}")]
    Hub(#[from] Box<hub::HubError>),
    /// The classifier has no weights under a usual name.
    #[error("the safety classifier {model} has none of {names}; hint: is it the right model?")]
    NoWeights {
        /// The folder or hub name.
        model: String,
        /// What was looked for.
        names: String,
    },
    /// The network cannot be loaded.
    #[error("the safety classifier: {0}")]
    Model(#[from] nn::ModelError),
    /// The tokenizer cannot be read.
    #[error("the safety classifier: {0}")]
    Tokenizer(#[from] media::text::TokenizerError),
    /// The tokenizer makes tokens that the network does not know.
    #[error(
        "the safety classifier {model}: its tokenizer has {tokens} tokens, its network knows \
         {known}; hint: the files are of different models"
    )]
    Vocabulary {
        /// The folder or hub name.
        model: String,
        /// Tokens of the tokenizer.
        tokens: usize,
        /// Tokens of the network.
        known: i64,
    },
    /// The network has no class of this name.
    #[error(
        "the safety classifier {model} has no class {label:?}, it has {known}; hint: \
         --unsafe-label NAME chooses the unsafe one"
    )]
    Label {
        /// The folder or hub name.
        model: String,
        /// The name asked for.
        label: String,
        /// The names there are.
        known: String,
    },
    /// The network could not be run.
    #[error("the safety classifier: {0}")]
    Network(#[from] nn::NetworkError),
    /// The network returns NaN or infinity for a prompt.
    #[error("the safety classifier gives no probability for {0}; hint: its weights are damaged")]
    NotANumber(String),
    /// Results cannot be written.
    #[error(transparent)]
    Write(#[from] runkit::files::FileError),
}

/// The classifier in a manifest. No path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClassifierRecord {
    /// The commit of a hub repository; `None` for a folder.
    pub revision: Option<String>,
    /// The SHA-256 of its configuration and weights, by name.
    pub files: BTreeMap<String, String>,
    /// The fingerprint of its tokenizer.
    pub tokenizer: String,
    /// The unsafe class.
    pub unsafe_label: String,
}

/// A text classifier with an unsafe class.
pub struct SafetyClassifier {
    tokenizer: WordPieceTokenizer,
    network: DistilBert,
    unsafe_class: usize,
    record: ClassifierRecord,
}

/// A prompt with the result of the classifier.
#[derive(Debug, Clone, PartialEq)]
pub struct ClassifiedPrompt {
    /// The prompt.
    pub prompt: Prompt,
    /// The probability that it is unsafe.
    pub unsafe_probability: f32,
}

impl ClassifiedPrompt {
    /// Why a prompt was dropped, in words.
    #[must_use]
    pub fn reason(&self) -> String {
        format!("unsafe with probability {:.3}", self.unsafe_probability)
    }
}

/// A set after filtering.
#[derive(Debug, Clone, PartialEq)]
pub struct FilteredSet {
    /// The prompts that are kept, in the order of the file.
    pub kept: Vec<ClassifiedPrompt>,
    /// The others.
    pub dropped: Vec<ClassifiedPrompt>,
    /// The set without its prompts.
    set: PromptSet,
}

impl FilteredSet {
    /// The name of the set.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.set.name
    }

    /// The set of the kept prompts, with the ids that they have in the whole set and before its
    /// limit ([`super::limited`]).
    #[must_use]
    pub fn into_kept(self) -> PromptSet {
        let prompts = self.kept.into_iter().map(|classified| classified.prompt).collect();
        PromptSet { prompts, ..self.set }
    }
}

impl SafetyClassifier {
    /// Opens a DistilBERT classifier: a folder, or `hf://owner/name[@revision]`. `unsafe_label` is
    /// its name of the unsafe class; case does not count.
    ///
    /// # Errors
    /// If a file is missing, damaged or of another kind of model, or no class has that name.
    pub fn open(model: &str, unsafe_label: &str, device: Device) -> Result<Self, FilterError> {
        let repository = Repository::open(model, Path::new("")).map_err(Box::new)?;
        let (folder, weights) = fetch(&repository, model)?;
        let network = DistilBert::open(&folder, device, Precision::F32)?;
        let config = network.config();
        let context = usize::try_from(config.context_length).unwrap_or(usize::MAX);
        let tokenizer = WordPieceTokenizer::open(&folder, context)?;
        let tokens = tokenizer.vocabulary_size();
        if i64::try_from(tokens).is_ok_and(|tokens| tokens > config.vocabulary_size) {
            let known = config.vocabulary_size;
            return Err(FilterError::Vocabulary { model: model.to_owned(), tokens, known });
        }
        let labels = &config.labels;
        let class = labels.iter().position(|label| label.eq_ignore_ascii_case(unsafe_label));
        let unsafe_class = class.ok_or_else(|| FilterError::Label {
            model: model.to_owned(),
            label: unsafe_label.to_owned(),
            known: runkit::text::choices(labels),
        })?;
        let mut files = BTreeMap::new();
        for file in [folder.join("config.json"), weights] {
            let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
            files.insert(name, hub::sha256_file(&file).map_err(Box::new)?);
        }
        let record = ClassifierRecord {
            revision: repository.revision().map(str::to_owned),
            files,
            tokenizer: tokenizer.fingerprint().to_owned(),
            unsafe_label: labels.get(unsafe_class).cloned().unwrap_or_default(),
        };
        Ok(Self { tokenizer, network, unsafe_class, record })
    }

    /// Its record in a manifest.
    pub fn record(&self) -> &ClassifierRecord {
        &self.record
    }

    /// The probability of each prompt to be unsafe. The tokenizer truncates long ones.
    fn classify(&self, prompts: &[Prompt], progress: &Progress) -> Result<Vec<f32>, FilterError> {
        let tokenizer = &self.tokenizer;
        let texts: Vec<Vec<i64>> =
            prompts.par_iter().map(|prompt| tokenizer.encode(&prompt.text)).collect();
        let probabilities =
            self.network.probabilities(&texts, |texts| progress.add(texts as u64))?;
        let of_class = |row: Vec<f32>| row.get(self.unsafe_class).copied().unwrap_or(f32::NAN);
        let classified: Vec<f32> = probabilities.into_iter().map(of_class).collect();
        match classified.iter().position(|probability| !probability.is_finite()) {
            Some(place) => Err(FilterError::NotANumber(prompts[place].id.clone())),
            None => Ok(classified),
        }
    }
}

/// Keeps the prompts whose probability to be unsafe is below `threshold`.
///
/// # Errors
/// If the classifier cannot be run.
pub fn filter(
    sets: Vec<PromptSet>,
    classifier: &SafetyClassifier,
    threshold: f32,
) -> Result<Vec<FilteredSet>, FilterError> {
    let all: usize = sets.iter().map(|set| set.prompts.len()).sum();
    let progress = Progress::new("classifying", "prompts", all as u64);
    let filtered = sets
        .into_iter()
        .map(|mut set| {
            let prompts = std::mem::take(&mut set.prompts);
            let probabilities = classifier.classify(&prompts, &progress)?;
            let classified = prompts.into_iter().zip(probabilities);
            let (kept, dropped) = classified
                .map(|(prompt, unsafe_probability)| ClassifiedPrompt { prompt, unsafe_probability })
                .partition(|classified| classified.unsafe_probability < threshold);
            Ok(FilteredSet { kept, dropped, set })
        })
        .collect();
    progress.finish();
    filtered
}

/// A prompt in a file. The reader of JSON Lines finds id and set by these names.
#[derive(Serialize)]
struct Line<'classified> {
    id: &'classified str,
    set: &'classified str,
    prompt: &'classified str,
    category: Option<&'classified str>,
    unsafe_probability: f32,
    kept: bool,
}

/// Writes prompts as JSON Lines for [`super::read`], with their ids and sets.
///
/// # Errors
/// If the file cannot be written.
pub fn write_classified<'classified>(
    path: &Path,
    classified: impl IntoIterator<Item = &'classified ClassifiedPrompt>,
    kept: bool,
) -> Result<(), FilterError> {
    runkit::files::write_atomic(path, |writer| {
        for ClassifiedPrompt { prompt, unsafe_probability } in classified {
            let line = Line {
                id: &prompt.id,
                set: &prompt.set,
                prompt: &prompt.text,
                category: prompt.category.as_deref(),
                unsafe_probability: *unsafe_probability,
                kept,
            };
            serde_json::to_writer(&mut *writer, &line)?;
            writeln!(writer)?;
        }
        Ok(())
    })?;
    Ok(())
}

/// The folder of the model with all files that are read, and the file of its weights.
fn fetch(repository: &Repository, model: &str) -> Result<(PathBuf, PathBuf), FilterError> {
    repository.file("config.json").map_err(Box::new)?;
    let optional = |name: &str| repository.optional_file(name).map_err(Box::new);
    let mut weights = None;
    for name in WEIGHT_FILES {
        weights = optional(name)?;
        if weights.is_some() {
            break;
        }
    }
    if optional("tokenizer.json")?.is_none() {
        repository.file("vocab.txt").map_err(Box::new)?;
        optional("tokenizer_config.json")?;
    }
    let folder = repository.folder();
    // A folder may hold another variant, or only that.
    let weights = match (folder, weights) {
        (Some(folder), None) => {
            nn::weights::find_file(folder, WEIGHT_FILES).map_err(nn::ModelError::from)?
        }
        (_, weights) => weights,
    };
    match (folder, weights) {
        (Some(folder), Some(weights)) => Ok((folder.to_owned(), weights)),
        _ => {
            Err(FilterError::NoWeights { model: model.to_owned(), names: WEIGHT_FILES.join(", ") })
        }
    }
}
