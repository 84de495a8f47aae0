//! `evaluate run`: draw, judge, count, report.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use nn::device::DeviceError;
use runkit::exit::ExitStatus;
use runkit::output::refuse_input;
use runkit::program::{self, UsageError, usage_unless};
use runkit::signals::{Signal, StopFlag};
use schemas::evaluation::KEY_MANIFEST;
use schemas::scores::ScoresFile;

use super::{Config as Drawing, say, score as scoring};
use crate::cli::run::{ReportSettings, RunArguments, RunSettings};
use crate::owned;
use crate::present::report::{self, DroppedPrompt, ReportInputs};
use crate::prompts::{self, Prompt, SafetyClassifier};
use crate::tables::{Tables, TablesConfig};
use crate::{generate, score};

const SAFE_THRESHOLD: f32 = 0.5;
const UNSAFE_LABEL: &str = "NSFW";
const NO_FILTER: &str = "none";

pub(super) fn run(arguments: &RunArguments) -> Result<ExitStatus> {
    arguments.resume.explain();
    let settings = settings(arguments)?;
    if arguments.print_config {
        say(&runkit::config::to_toml_string(&settings)?)?;
        return Ok(ExitStatus::Done);
    }
    let given = &settings.generate;
    program::require(&[
        ("--model <NAME=DIR>", given.model.as_ref().is_some_and(|models| !models.is_empty())),
        ("--prompts <FILE>...", given.prompts.as_ref().is_some_and(|prompts| !prompts.is_empty())),
        ("--scorers <FILE.toml>", settings.judges.scorers.is_some()),
        ("--out <DIR>", given.out.is_some()),
    ])?;
    let drawing = super::config(settings.generate.clone(), arguments.fresh)?;
    let judging = judging(&drawing, &settings).map_err(usage_unless(DeviceError::is_absent))?;
    let stop = super::stop_flag()?;
    check_report(&drawing, &judging, &settings.report)?;
    let (prompts, dropped) = safe(&drawing, &settings.report)?;
    let opened = Opened::new(&drawing, &judging, &settings.report, &prompts, &dropped)?;
    if arguments.dry_run {
        say(&opened.rehearse()?)?;
        return Ok(ExitStatus::Done);
    }
    let summary = match opened.run(&stop)? {
        Ok(summary) => summary,
        Err(signal) => {
            tracing::warn!("stopped; what is done is kept, the same command goes on from there");
            return Ok(signal.into());
        }
    };
    report(&drawing, &settings.report, &dropped)?;
    Ok(scoring::status(summary, &settings.judges, &drawing.out))
}

/// The settings from flags, environment and file, complete but for what depends on a model.
fn settings(arguments: &RunArguments) -> Result<RunSettings> {
    let mut settings = match &arguments.config {
        Some(file) => {
            let mut from_file: RunSettings = runkit::config::read_toml(file)?;
            from_file.resolve_paths(file.parent().unwrap_or(Path::new("")));
            runkit::config::merge(&arguments.settings, &from_file)?
        }
        None => arguments.settings.clone(),
    };
    settings.generate = settings.generate.with_defaults();
    let device = settings.generate.device.as_deref().unwrap_or("auto");
    settings.judges = scoring::with_defaults(settings.judges, device);
    settings.report.safe_filter.get_or_insert_with(|| NO_FILTER.to_owned());
    settings.report.safe_threshold.get_or_insert(SAFE_THRESHOLD);
    Ok(settings)
}

/// Looks at everything that only the last parts of a run need, so that hours of work are not lost to
/// a slip in the command line.
fn check_report(
    drawing: &Drawing,
    judging: &score::Config,
    settings: &ReportSettings,
) -> Result<()> {
    crate::output::check_writable(&drawing.out)?;
    scorers::ScorersConfig::read(&judging.scorers)?;
    let mut inputs: Vec<PathBuf> =
        drawing.prompts.iter().map(|source| source.file.clone()).collect();
    inputs.extend(settings.labels.iter().chain([&judging.scorers]).cloned());
    refuse_input("--out", &drawing.out.join(score::SCORES), &inputs)?;
    owned::check_files("--out", &drawing.out, &owned::TABLES, &inputs)?;
    owned::check_files("--out", &drawing.out, &[owned::REPORT], &inputs)?;
    owned::check_figures("--out", &drawing.out, &inputs)?;
    if let Some(labels) = &settings.labels {
        crate::present::figures::check_labels(labels)?;
    }
    let threshold = settings.safe_threshold.unwrap_or(SAFE_THRESHOLD);
    ensure!(
        threshold > 0.0 && threshold <= 1.0,
        UsageError::new(format!(
            "--safe-threshold must be in (0, 1], found {threshold}; hint: 0.5 is usual"
        ))
    );
    crate::present::render::Renderer::new()?;
    Ok(())
}

/// Everything an evaluation needs, opened before its first image.
struct Opened<'run> {
    drawing: &'run Drawing,
    generation: generate::Generation<'run>,
    scoring: score::Scoring<'run>,
}

impl<'run> Opened<'run> {
    fn new(
        drawing: &'run Drawing,
        judging: &'run score::Config,
        settings: &ReportSettings,
        prompts: &'run [Prompt],
        dropped: &[DroppedPrompt],
    ) -> Result<Self> {
        let dropped: Vec<(String, String)> =
            dropped.iter().map(|prompt| (prompt.set.clone(), prompt.id.clone())).collect();
        let mut scoring = score::Scoring::open(judging, prompts, &dropped)?;
        let generation = generate::Generation::open(drawing, prompts)?;
        let config = TablesConfig {
            baselines: settings.baselines.clone().unwrap_or_default(),
            ..TablesConfig::default()
        };
        config.check(&scoring.models(Some(generation.manifest())), &scoring.sets())?;
        scoring.describe()?;
        Ok(Self { drawing, generation, scoring })
    }

    /// What [`Opened::run`] would do, in sentences.
    fn rehearse(mut self) -> Result<String> {
        let text = self.generation.rehearse()?;
        let manifest = self.generation.manifest();
        Ok(text + &self.scoring.rehearse(Some(manifest), self.drawing.fresh)?)
    }

    /// Generates and scores.
    fn run(mut self, stop: &StopFlag) -> Result<Result<score::Summary, Signal>> {
        if self.generation.missing() > 0 {
            if let Some(signal) = self.generation.try_others(stop)? {
                return Ok(Err(signal));
            }
            self.scoring.try_networks()?;
            if let Some(signal) = stop.requested() {
                return Ok(Err(signal));
            }
        }
        match self.generation.run(stop)? {
            generate::End::Stopped(signal) => return Ok(Err(signal)),
            generate::End::Done { images, drawn } if drawn > 0 => {
                tracing::info!("{images} images, {drawn} of them new");
            }
            generate::End::Done { .. } => {}
        }
        Ok(match self.scoring.run(stop)? {
            score::End::Stopped(signal) => Err(signal),
            score::End::Done(summary) => Ok(summary),
        })
    }
}

/// The reward models at work on what is drawn: same folder, same device, same type.
fn judging(drawing: &Drawing, settings: &RunSettings) -> Result<score::Config> {
    let compute = scorers::Compute { device: drawing.device, precision: drawing.precision };
    let (scorers, batch_size) = scoring::judges(&settings.judges, compute)?;
    // What starts over has nothing to keep.
    let keep = !settings.judges.only_named.unwrap_or(false) && !drawing.fresh;
    Ok(score::Config {
        out: drawing.out.clone(),
        prompts: drawing.prompts.clone(),
        models: drawing.models.iter().map(|model| model.name.clone()).collect(),
        keep: score::Keep { models: keep, others: keep },
        images: Vec::new(),
        seeds: Some(drawing.seeds.clone()),
        limits: drawing.limits,
        scorers,
        batch_size,
        compute,
    })
}

/// The prompts that are drawn, and those that the safety filter drops.
fn safe(drawing: &Drawing, settings: &ReportSettings) -> Result<(Vec<Prompt>, Vec<DroppedPrompt>)> {
    let Some(model) = settings.safe_filter.as_deref().filter(|model| *model != NO_FILTER) else {
        return Ok((prompts::read_limited(&drawing.prompts, drawing.limits)?, Vec::new()));
    };
    let threshold = settings.safe_threshold.unwrap_or(SAFE_THRESHOLD);
    let sets = prompts::read(&drawing.prompts)?;
    let classifier = SafetyClassifier::open(model, UNSAFE_LABEL, drawing.device)?;
    let filtered = prompts::filter(sets, &classifier, threshold)?;
    let mut dropped = Vec::new();
    let mut kept = Vec::new();
    for set in filtered {
        tracing::info!(
            "{}: {} prompts kept, {} dropped as unsafe",
            set.name(),
            set.kept.len(),
            set.dropped.len()
        );
        dropped.extend(set.dropped.iter().map(|judged| DroppedPrompt {
            set: set.name().to_owned(),
            id: judged.prompt.id.clone(),
            prompt: judged.prompt.text.clone(),
            reason: judged.reason(),
        }));
        kept.push(set.into_kept());
    }
    let kept = prompts::limited(kept, drawing.limits)?;
    let kept: Vec<Prompt> = kept.into_iter().flat_map(|set| set.prompts).collect();
    ensure!(
        !kept.is_empty(),
        "all {} prompts are unsafe to {model}; hint: a higher --safe-threshold",
        dropped.len()
    );
    Ok((kept, dropped))
}

/// Tables, figures and the report of the scores in the folder.
fn report(drawing: &Drawing, settings: &ReportSettings, dropped: &[DroppedPrompt]) -> Result<()> {
    let file = ScoresFile::open(drawing.out.join(score::SCORES))?;
    let manifest = file.metadata().get(KEY_MANIFEST);
    let manifest = manifest.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    let scores = file.read()?;
    let first = scores.first().map(|row| row.model.clone());
    let config = TablesConfig {
        baselines: settings.baselines.clone().unwrap_or_else(|| first.into_iter().collect()),
        ..TablesConfig::default()
    };
    let tables = Tables::compute(&scores, &config)?;
    tables.write(&drawing.out, &super::tables::metadata(&[file.fingerprint()], &tables))?;
    let inputs = ReportInputs {
        folder: &drawing.out,
        scores: &scores,
        win_rates: &tables.win_rates,
        means: &tables.means,
        notes: &tables.notes,
        labels: settings.labels.as_deref(),
        manifest: &manifest,
        dropped,
    };
    report::write(&inputs, &drawing.out)?;
    say(&tables.to_text())?;
    for (what, name) in
        [("scores", score::SCORES), ("tables", "tables.md"), ("report", "report.html")]
    {
        say(&format!("{what}: {}\n", drawing.out.join(name).display()))?;
    }
    Ok(())
}

impl RunSettings {
    /// Paths of a settings file are relative to it.
    fn resolve_paths(&mut self, folder: &Path) {
        self.generate.resolve_paths(folder);
        let others = self.judges.scorers.iter_mut().chain(&mut self.report.labels);
        others.for_each(|path| runkit::path::resolve_in_place(path, folder));
    }
}
