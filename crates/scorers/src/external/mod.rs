//! Scorers outside of this process: a model behind an endpoint ([`VlmConfig`]) and a program of the
//! user's ([`CommandConfig`]).
//!
//! They get an image in its original encoding and a caption, and give a score, or a reason why
//! it has none: one bad answer costs one score. A [`Comparison`] asks which of two images is
//! preferred, for scorers that have no score for one image. Answers are kept in a folder of the run
//! as they come, by image and text, so that a killed run asks nothing twice.
//!
//! Knows nothing of libtorch.

mod answers;
mod command;
mod image;
mod vlm;

use std::path::PathBuf;

use runkit::signals::StopFlag;

pub use self::command::CommandConfig;
use self::command::CommandScorer;
pub(crate) use self::command::script_files;
pub use self::image::EncodedImage;
use self::vlm::Vlm;
pub use self::vlm::{VlmConfig, VlmRead};
use crate::config::{ScorerConfig, ScorersConfig};
use crate::error::ScorerError;
use crate::outcome::{Score, ScoreFailure};

/// An image with a caption.
#[derive(Debug, Clone, Copy)]
pub struct Question<'run> {
    /// The image.
    pub image: &'run EncodedImage,
    /// The caption.
    pub caption: &'run str,
}

/// Two images with a caption.
#[derive(Debug, Clone, Copy)]
pub struct Comparison<'run> {
    /// The images, in the order of the pair.
    pub images: [&'run EncodedImage; 2],
    /// The caption.
    pub caption: &'run str,
}

/// The vote on a pair: +1 for the first image, -1 for the second; or why the scorer has no vote.
pub type Vote = Result<i8, ScoreFailure>;

/// Where external scorers of a run keep what they need.
#[derive(Debug, Clone)]
pub struct Workplace {
    /// The folder of answers.
    pub answers: PathBuf,
    /// The folder of images for programs that read files; made when it is needed.
    pub images: PathBuf,
    /// What names this process among several of the run.
    pub place: Option<String>,
    /// Ends waits.
    pub stop: StopFlag,
}

/// What a run would send to an external scorer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sending {
    /// The host and port of a server, or `None` for a program of this machine.
    pub host: Option<String>,
    /// Whether images leave this machine.
    pub leaves: bool,
    /// Answers that an earlier start has kept.
    pub answered: usize,
    /// Requests that an earlier start has sent.
    pub sent: u64,
    /// The budget.
    pub max_requests: Option<u64>,
}

/// What an external scorer is.
#[derive(Debug)]
enum ExternalConfig {
    Vlm(VlmConfig),
    Command(CommandConfig),
}

impl ExternalConfig {
    fn of(config: &ScorersConfig, entry: &ScorerConfig) -> Result<Self, ScorerError> {
        let vlm = entry.vlm().map(Self::Vlm);
        vlm.or_else(|| entry.program().map(Self::Command)).ok_or_else(|| ScorerError::Invalid {
            file: config.file.clone(),
            scorer: entry.name.clone(),
            problem: format!("kind = \"{}\" scores inside of this process", entry.kind.name()),
        })
    }
}

/// The failure of a score, in the words of [`ScoreFailure`].
fn no_score(reason: &str) -> ScoreFailure {
    ScoreFailure::new(format!("gave no score: {reason}"))
}

/// An external scorer, ready to be asked.
#[derive(Debug)]
pub struct ExternalScorer {
    name: String,
    asked: Asked,
    compares: bool,
}

#[derive(Debug)]
enum Asked {
    Vlm(Box<Vlm>),
    Command(Box<CommandScorer>),
}

impl ExternalScorer {
    /// Opens the scorer of an entry, with the answers that there are. Sends nothing and starts
    /// nothing.
    ///
    /// # Errors
    /// If the entry is of another kind, if the answers cannot be read, or if there is no API key or
    /// program.
    pub fn open(
        config: &ScorersConfig,
        entry: &ScorerConfig,
        workplace: &Workplace,
    ) -> Result<Self, ScorerError> {
        let name = entry.name.clone();
        let asked = match ExternalConfig::of(config, entry)? {
            ExternalConfig::Vlm(vlm) => Asked::Vlm(Box::new(Vlm::open(&name, &vlm, workplace)?)),
            ExternalConfig::Command(program) => {
                let folder = config.folder.as_path();
                Asked::Command(Box::new(CommandScorer::open(&name, &program, folder, workplace)?))
            }
        };
        Ok(Self { name, asked, compares: entry.compares() })
    }

    /// What a run would send to the scorer of an entry. Sends, starts and writes nothing.
    ///
    /// # Errors
    /// As [`ExternalScorer::open`].
    pub fn rehearse(
        config: &ScorersConfig,
        entry: &ScorerConfig,
        workplace: &Workplace,
    ) -> Result<Sending, ScorerError> {
        let name = &entry.name;
        match ExternalConfig::of(config, entry)? {
            ExternalConfig::Vlm(vlm) => {
                let (answered, sent) = Vlm::count(name, &vlm, &workplace.answers)?;
                Ok(Sending {
                    host: Some(vlm.host()),
                    leaves: !vlm.is_here(),
                    answered,
                    sent,
                    max_requests: vlm.max_requests,
                })
            }
            ExternalConfig::Command(program) => {
                let answered = CommandScorer::count(name, &program, &config.folder, workplace)?;
                Ok(Sending { host: None, leaves: false, answered, sent: 0, max_requests: None })
            }
        }
    }

    /// Whether it votes on pairs ([`ExternalScorer::compare`]) and has no score for one image.
    #[must_use]
    pub fn compares(&self) -> bool {
        self.compares
    }

    /// How many questions are worth asking together: enough for all requests at a time.
    #[must_use]
    pub fn together(&self) -> usize {
        match &self.asked {
            Asked::Vlm(vlm) => vlm.together(),
            Asked::Command(_) => command::TOGETHER,
        }
    }

    /// The name of the scorer.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The score of each question, in order.
    ///
    /// # Errors
    /// If no further question has an answer (a wrong key, no server), if the budget is spent
    /// ([`ScorerError::OutOfRequests`]), or after a request to stop. Answers that came stay.
    pub fn score(&mut self, questions: &[Question<'_>]) -> Result<Vec<Score>, ScorerError> {
        match &mut self.asked {
            Asked::Vlm(vlm) => vlm.score(questions),
            Asked::Command(command) => command.score(questions),
        }
    }

    /// The vote on each pair, in order.
    ///
    /// # Errors
    /// As [`ExternalScorer::score`]; and if the scorer compares nothing.
    pub fn compare(&mut self, pairs: &[Comparison<'_>]) -> Result<Vec<Vote>, ScorerError> {
        match &mut self.asked {
            Asked::Vlm(vlm) => vlm.compare(pairs),
            Asked::Command(_) => Err(ScorerError::External {
                scorer: self.name.clone(),
                problem: "a program scores images one by one and compares none".to_owned(),
            }),
        }
    }
}
