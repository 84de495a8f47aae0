//! Metrics outside of this process: models behind an endpoint and programs.

use std::path::Path;

use anyhow::{Result, bail};
use runkit::signals::StopFlag;
use scorers::{
    EncodedImage, ExternalScorer, Question, Score, ScorerConfig, ScorersConfig, Sending, Workplace,
};
use serde::Serialize;

use super::STORE;

/// Where the metrics of a folder keep their answers, beside the computed scores.
fn workplace(out: &Path, place: Option<String>, stop: &StopFlag) -> Workplace {
    let store = out.join(STORE);
    Workplace {
        answers: store.join("answers"),
        images: store.join("images"),
        place,
        stop: stop.clone(),
    }
}

fn external(scorers: &ScorersConfig) -> impl Iterator<Item = &ScorerConfig> {
    scorers.scorer.iter().filter(|entry| entry.kind.is_external())
}

/// Refuses scorers that have no score for one image.
pub(super) fn refuse_comparing(scorers: &ScorersConfig) -> Result<()> {
    match scorers.scorer.iter().find(|entry| entry.compares()) {
        Some(entry) => bail!(
            "{}: scorer `{}`: expected a score for each image, found read = \"pair\", which only \
             votes on two; hint: read = \"yes-no\" or \"number\", or leave it to relabel",
            scorers.file.display(),
            entry.name
        ),
        None => Ok(()),
    }
}

/// What a run sends to a metric outside of this process.
#[derive(Debug, Clone, Serialize)]
pub struct RequestsPlan {
    /// The name of the metric.
    pub scorer: String,
    /// Requests, or lines of a program, at most.
    pub requests: usize,
    /// Where they go; absent for a program.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// Whether images leave this machine.
    pub images_leave_this_machine: bool,
}

/// Checks the metrics outside of this process, and says what each would get for so many images.
/// Sends and writes nothing.
pub(super) fn rehearse(
    scorers: &ScorersConfig,
    out: &Path,
    images: usize,
) -> Result<Vec<RequestsPlan>> {
    let workplace = workplace(out, None, &runkit::signals::flag_of_process());
    let plan = |entry: &ScorerConfig| {
        let Sending { host, leaves, .. } = ExternalScorer::rehearse(scorers, entry, &workplace)?;
        let scorer = entry.name.clone();
        Ok(RequestsPlan { scorer, requests: images, host, images_leave_this_machine: leaves })
    };
    external(scorers).map(plan).collect()
}

impl std::fmt::Display for RequestsPlan {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { scorer, requests, host, images_leave_this_machine } = self;
        match (host, images_leave_this_machine) {
            (None, _) => write!(formatter, "{scorer}: up to {requests} lines to a program"),
            (Some(host), false) => {
                write!(formatter, "{scorer}: up to {requests} requests to {host} on this machine")
            }
            (Some(host), true) => write!(
                formatter,
                "{scorer}: up to {requests} requests to {host}, with images and captions that \
                 leave this machine"
            ),
        }
    }
}

/// The scorers of a pass. Some are outside of this process.
pub(super) struct Externals {
    /// For each scorer, the one outside that it is.
    scorers: Vec<Option<ExternalScorer>>,
}

impl Externals {
    /// Opens those of `scorers`, with the answers that are in the folder.
    pub(super) fn open(
        scorers: &ScorersConfig,
        out: &Path,
        place: Option<String>,
        stop: &StopFlag,
    ) -> Result<Self> {
        let workplace = workplace(out, place, stop);
        let open = |entry: &ScorerConfig| match entry.kind.is_external() {
            true => ExternalScorer::open(scorers, entry, &workplace).map(Some),
            false => Ok(None),
        };
        Ok(Self { scorers: scorers.scorer.iter().map(open).collect::<Result<_, _>>()? })
    }

    /// Whether there are any.
    pub(super) fn are_there(&self) -> bool {
        self.scorers.iter().any(Option::is_some)
    }

    /// The scores of all scorers, with those of the networks, `local`, in their places.
    pub(super) fn score(
        &mut self,
        images: &[&EncodedImage],
        texts: &[&str],
        local: Vec<Vec<Score>>,
    ) -> Result<Vec<Vec<Score>>> {
        let questions: Vec<Question<'_>> = images
            .iter()
            .zip(texts)
            .map(|(&image, &caption)| Question { image, caption })
            .collect();
        let mut local = local.into_iter();
        let mut all = Vec::with_capacity(self.scorers.len());
        for scorer in &mut self.scorers {
            all.push(match scorer {
                Some(scorer) => scorer.score(&questions)?,
                None => local.next().unwrap_or_default(),
            });
        }
        Ok(all)
    }
}
