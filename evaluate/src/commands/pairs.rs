//! `evaluate pairs`: scores and images in, pairs and labels out.

use anyhow::Result;
use runkit::exit::ExitStatus;
use schemas::layouts::Sizes;

use crate::cli::pairs::PairsArguments;
use crate::pairs::{self, Config};

/// Runs the command.
pub(super) fn run(arguments: &PairsArguments) -> Result<ExitStatus> {
    arguments.resume.explain();
    let _stop = super::stop_flag()?;
    let config = Config {
        scores: arguments.scores.clone(),
        out: arguments.out.clone(),
        choose: arguments.choose,
        by: arguments.by.clone(),
        models: arguments.models.clone(),
        voters: arguments.voters.clone(),
        sets: arguments.sets.clone(),
        fresh: arguments.fresh,
        sizes: Sizes::default(),
    };
    let summary = pairs::run(&config)?;
    arguments.json.say(|| summary.to_string(), &summary)?;
    Ok(ExitStatus::Done)
}
