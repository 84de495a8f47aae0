//! `evaluate pairs`: pairs of one's own, of images that were generated and scored.
//!
//! `rank` ranks the images of a prompt and chooses pairs of them, `plan` does it for all prompts from
//! the scores alone, `images` reads the files and checks that they are the ones that were scored,
//! `write` makes files of pairs and their labels. Memory holds the scores, the images of one prompt
//! (up to 256 MiB) and one row group.

mod error;
mod images;
mod plan;
mod rank;
mod write;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use runkit::output::refuse_input;
use schemas::evaluation::KEY_MANIFEST;
use schemas::labels::LabelsFile;
use schemas::layouts::Sizes;
use schemas::scores::ScoresFile;
use serde::Serialize;
use serde_json::{Value, json};

pub use self::error::PairsError;
use self::images::Images;
pub use self::plan::LeftOut;
use self::plan::Plan;
pub use self::rank::{By, Choose};
use self::write::{FOLDER, Output};
use crate::score::{ScoredBytes, scorers_of};

/// The labels in the folder of pairs.
pub const LABELS: &str = "labels.parquet";

/// A validated run.
#[derive(Debug, Clone)]
pub struct Config {
    /// The scores of the images.
    pub scores: PathBuf,
    /// The folder to write.
    pub out: PathBuf,
    /// Which images of a prompt become pairs.
    pub choose: Choose,
    /// What images are ranked by.
    pub by: By,
    /// The models whose images are taken; all if it is `None`.
    pub models: Option<Vec<String>>,
    /// The metrics that vote, in the order of the labels' columns; all if it is `None`.
    pub voters: Option<Vec<String>>,
    /// The sets whose prompts are taken; all if it is `None`.
    pub sets: Option<Vec<String>>,
    /// Whether pairs of another run of this command are replaced.
    pub fresh: bool,
    /// How large files and row groups are.
    pub sizes: Sizes,
}

/// What is in the folder.
#[derive(Debug, Clone, Serialize)]
pub struct Summary {
    /// Prompts with pairs.
    pub prompts: u64,
    /// Pairs.
    pub pairs: u64,
    /// Pairs that this start wrote.
    pub new: u64,
    /// The metrics that voted.
    pub voters: Vec<String>,
    /// Pairs whose consensus is image 0, image 1, and neither.
    pub consensus: [u64; 3],
    /// Pairs that all voters order alike, by different scores.
    pub unanimous: u64,
    /// What gave no pair.
    pub left_out: LeftOut,
    /// The folder.
    pub folder: PathBuf,
    /// The labels.
    pub labels: PathBuf,
}

/// Makes the pairs, or the rest of them.
///
/// # Errors
/// [`PairsError`]; nothing that is not ours is changed.
pub fn run(config: &Config) -> Result<Summary, PairsError> {
    let file = ScoresFile::open(&config.scores)?;
    let of_scores = file.metadata().get(KEY_MANIFEST);
    let of_scores: Value =
        of_scores.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    let plan = Plan::new(&mut file.read()?, config)?;
    let manifest = write::manifest(json!({
        "voters": plan.voters,
        // No consensus is changed where it is a tie: `relabel vote` reads and changes this.
        "ties": "zero",
        "scorers": scorers_of(&of_scores, &plan.voters),
        "choose": clap::ValueEnum::to_possible_value(&config.choose)
            .map(|value| value.get_name().to_owned()),
        "by": config.by.to_string(),
        "pairs": plan.num_pairs(),
        "content": plan.content(),
    }));
    crate::output::check_writable(&config.out)?;
    refuse_input("--out", &config.out.join(LABELS), std::slice::from_ref(&config.scores))?;
    let folder = FOLDER.at(&config.out);
    folder.refuse_foreign()?;
    let _lock = folder.lock()?;
    folder.refuse_foreign()?;
    let fingerprint = runkit::manifest::fingerprint(&manifest)?;
    let output = Output {
        folder: &folder,
        plan: &plan,
        manifest: &manifest,
        fingerprint,
        sizes: config.sizes,
    };
    if config.fresh && folder.manifest()?.is_some() {
        output.clear()?;
    } else {
        folder.refuse_another(&manifest)?;
    }
    let mut new = 0;
    if output.is_complete()? {
        tracing::info!(pairs = plan.num_pairs(), "already complete");
    } else {
        folder.begin(&manifest)?;
        new = output.write(&mut images_of(config, &of_scores, &plan)?)?;
    }
    Summary::of(config, &plan, new)
}

/// The images of the scores, with what is known of their bytes.
fn images_of<'run>(
    config: &'run Config,
    of_scores: &Value,
    plan: &Plan,
) -> Result<Images<'run>, PairsError> {
    let folder = config.scores.parent().unwrap_or(Path::new(""));
    let scored = ScoredBytes::open(folder, of_scores, &plan.voters)
        .map_err(|error| PairsError::Store { detail: format!("{error:#}") })?;
    if scored.is_none() {
        tracing::warn!(
            "{}: no computed scores beside it, so nothing shows whether an image has changed since \
             it was scored",
            config.scores.display()
        );
    }
    Ok(Images::new(folder, scored))
}

impl Summary {
    fn of(config: &Config, plan: &Plan, new: u64) -> Result<Self, PairsError> {
        let labels = config.out.join(LABELS);
        let mut counts = BTreeMap::<i8, u64>::new();
        for batch in LabelsFile::open(&labels)?.batches()? {
            for consensus in batch?.consensus().iter().flatten() {
                *counts.entry(consensus).or_default() += 1;
            }
        }
        let agree = |(prompt, pair): &(&plan::PlannedPrompt, &rank::RankedPair)| {
            let [one, other] = pair.images.map(|image| &prompt.images[image].scores);
            rank::agree(one, other)
        };
        Ok(Self {
            prompts: plan.prompts.len() as u64,
            pairs: plan.num_pairs(),
            new,
            voters: plan.voters.clone(),
            consensus: [1, -1, 0].map(|sign| counts.get(&sign).copied().unwrap_or_default()),
            unanimous: plan.pairs().filter(agree).count() as u64,
            left_out: plan.left_out,
            folder: config.out.clone(),
            labels,
        })
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { prompts, pairs, new, voters, consensus, unanimous, left_out, .. } = self;
        let [first, second, ties] = consensus;
        writeln!(formatter, "{pairs} pairs of {prompts} prompts, {new} of them new")?;
        writeln!(
            formatter,
            "consensus of {}: image 0 {first}, image 1 {second}, ties {ties}; unanimous {unanimous}",
            voters.join(", ")
        )?;
        if *left_out != LeftOut::default() {
            writeln!(formatter, "left out: {left_out}")?;
        }
        writeln!(formatter, "pairs: {}", self.folder.display())?;
        writeln!(formatter, "labels: {}", self.labels.display())
    }
}

impl fmt::Display for LeftOut {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let prompts = |count: usize| if count == 1 { "prompt" } else { "prompts" };
        let counted = [
            (self.too_few_images, "with fewer than two scored images"),
            (self.undecided, "without two images of different rank, or that voters agree on"),
            (self.repeated, "with the text of an earlier one"),
            (self.not_captions, "whose text is blank or too long for a caption"),
        ];
        let counted = counted.into_iter().filter(|(count, _)| *count > 0);
        let mut parts: Vec<String> =
            counted.map(|(count, why)| format!("{count} {} {why}", prompts(count))).collect();
        if self.images_without_score > 0 {
            parts.push(format!("{} images without a score", self.images_without_score));
        }
        if parts.is_empty() {
            parts.push("nothing".to_owned());
        }
        formatter.write_str(&parts.join(", "))
    }
}
