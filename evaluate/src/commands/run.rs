//! `evaluate run`: generate, score, compare, report.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use nn::device::DeviceError;
use runkit::exit::ExitStatus;
use runkit::output::refuse_input;
use runkit::program::{self, UsageError, usage_unless};
use runkit::signals::{Signal, StopFlag};
use schemas::evaluation::KEY_MANIFEST;
use schemas::scores::ScoresFile;

use super::{Config as GenerateConfig, say, score as score_command};
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
        ("--scorers <FILE.toml>", settings.scoring.scorers.is_some()),
        ("--out <DIR>", given.out.is_some()),
    ])?;
    let generate_config = super::config(settings.generate.clone(), arguments.fresh)?;
    let score_config =
        score_config(&generate_config, &settings).map_err(usage_unless(DeviceError::is_absent))?;
    let stop = super::stop_flag()?;
    check_report(&generate_config, &score_config, &settings.report)?;
    let (prompts, dropped) = safe(&generate_config, &settings.report)?;
    let opened =
        Opened::new(&generate_config, &score_config, &settings.report, &prompts, &dropped)?;
    if arguments.dry_run {
        say(&opened.dry_run()?)?;
        return Ok(ExitStatus::Done);
    }
    let summary = match opened.run(&stop)? {
        Ok(summary) => summary,
        Err(signal) => {
            tracing::warn!("stopped; what is done is kept, the same command goes on from there");
            return Ok(signal.into());
        }
    };
    report(&generate_config, &settings.report, &dropped)?;
    Ok(score_command::status(summary, &settings.scoring, &generate_config.out))
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
    settings.scoring = score_command::with_defaults(settings.scoring, device);
    settings.report.safe_filter.get_or_insert_with(|| NO_FILTER.to_owned());
    settings.report.safe_threshold.get_or_insert(SAFE_THRESHOLD);
    Ok(settings)
}

/// Looks at everything that only the last parts of a run need, so that hours of work are not lost to
/// a slip in the command line.
fn check_report(
    generate_config: &GenerateConfig,
    score_config: &score::Config,
    settings: &ReportSettings,
) -> Result<()> {
    crate::output::check_writable(&generate_config.out)?;
    scorers::ScorersConfig::read(&score_config.scorers)?;
    let mut inputs: Vec<PathBuf> =
        generate_config.prompts.iter().map(|source| source.file.clone()).collect();
    inputs.extend(settings.labels.iter().chain([&score_config.scorers]).cloned());
    refuse_input("--out", &generate_config.out.join(score::SCORES), &inputs)?;
    owned::check_files("--out", &generate_config.out, &owned::TABLES, &inputs)?;
    owned::check_files("--out", &generate_config.out, &[owned::REPORT], &inputs)?;
    owned::check_figures("--out", &generate_config.out, &inputs)?;
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
    generate_config: &'run GenerateConfig,
    generation: generate::Generation<'run>,
    scoring: score::Scoring<'run>,
}

impl<'run> Opened<'run> {
    fn new(
        generate_config: &'run GenerateConfig,
        score_config: &'run score::Config,
        settings: &ReportSettings,
        prompts: &'run [Prompt],
        dropped: &[DroppedPrompt],
    ) -> Result<Self> {
        let dropped: Vec<(String, String)> =
            dropped.iter().map(|prompt| (prompt.set.clone(), prompt.id.clone())).collect();
        let mut scoring = score::Scoring::open(score_config, prompts, &dropped)?;
        let generation = generate::Generation::open(generate_config, prompts)?;
        let config = TablesConfig {
            baselines: settings.baselines.clone().unwrap_or_default(),
            ..TablesConfig::default()
        };
        config.check(&scoring.models(Some(generation.manifest())), &scoring.sets())?;
        scoring.describe()?;
        Ok(Self { generate_config, generation, scoring })
    }

    /// What [`Opened::run`] would do, in sentences.
    fn dry_run(mut self) -> Result<String> {
        let text = self.generation.dry_run()?;
        let manifest = self.generation.manifest();
        Ok(text + &self.scoring.dry_run(Some(manifest), self.generate_config.fresh)?)
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
            generate::End::Done { images, generated } if generated > 0 => {
                tracing::info!("{images} images, {generated} of them new");
            }
            generate::End::Done { .. } => {}
        }
        Ok(match self.scoring.run(stop)? {
            score::End::Stopped(signal) => Err(signal),
            score::End::Done(summary) => Ok(summary),
        })
    }
}

/// The reward models at work on what is generated: same folder, same device, same type.
fn score_config(generate_config: &GenerateConfig, settings: &RunSettings) -> Result<score::Config> {
    let compute =
        scorers::Compute { device: generate_config.device, precision: generate_config.precision };
    let (scorers, batch_size) = score_command::scorers_and_batch_size(&settings.scoring, compute)?;
    // What starts over has nothing to keep.
    let keep = !settings.scoring.only_named.unwrap_or(false) && !generate_config.fresh;
    Ok(score::Config {
        out: generate_config.out.clone(),
        prompts: generate_config.prompts.clone(),
        models: generate_config.models.iter().map(|model| model.name.clone()).collect(),
        keep: score::Keep { models: keep, others: keep },
        images: Vec::new(),
        seeds: Some(generate_config.seeds.clone()),
        limits: generate_config.limits,
        scorers,
        batch_size,
        compute,
    })
}

/// The prompts that are generated, and those that the safety filter drops.
fn safe(
    generate_config: &GenerateConfig,
    settings: &ReportSettings,
) -> Result<(Vec<Prompt>, Vec<DroppedPrompt>)> {
    let Some(model) = settings.safe_filter.as_deref().filter(|model| *model != NO_FILTER) else {
        return Ok((
            prompts::read_limited(&generate_config.prompts, generate_config.limits)?,
            Vec::new(),
        ));
    };
    let threshold = settings.safe_threshold.unwrap_or(SAFE_THRESHOLD);
    let sets = prompts::read(&generate_config.prompts)?;
    let classifier = SafetyClassifier::open(model, UNSAFE_LABEL, generate_config.device)?;
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
        dropped.extend(set.dropped.iter().map(|classified| DroppedPrompt {
            set: set.name().to_owned(),
            id: classified.prompt.id.clone(),
            prompt: classified.prompt.text.clone(),
            reason: classified.reason(),
        }));
        kept.push(set.into_kept());
    }
    let kept = prompts::limited(kept, generate_config.limits)?;
    let kept: Vec<Prompt> = kept.into_iter().flat_map(|set| set.prompts).collect();
    ensure!(
        !kept.is_empty(),
        "all {} prompts are unsafe to {model}; hint: a higher --safe-threshold",
        dropped.len()
    );
    Ok((kept, dropped))
}

/// Tables, figures and the report of the scores in the folder.
fn report(
    generate_config: &GenerateConfig,
    settings: &ReportSettings,
    dropped: &[DroppedPrompt],
) -> Result<()> {
    let file = ScoresFile::open(generate_config.out.join(score::SCORES))?;
    let manifest = file.metadata().get(KEY_MANIFEST);
    let manifest = manifest.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    let scores = file.read()?;
    let first = scores.first().map(|row| row.model.clone());
    let config = TablesConfig {
        baselines: settings.baselines.clone().unwrap_or_else(|| first.into_iter().collect()),
        ..TablesConfig::default()
    };
    let tables = Tables::compute(&scores, &config)?;
    tables.write(&generate_config.out, &super::tables::metadata(&[file.fingerprint()], &tables))?;
    let inputs = ReportInputs {
        folder: &generate_config.out,
        scores: &scores,
        win_rates: &tables.win_rates,
        means: &tables.means,
        notes: &tables.notes,
        labels: settings.labels.as_deref(),
        manifest: &manifest,
        dropped,
    };
    report::write(&inputs, &generate_config.out)?;
    say(&tables.to_text())?;
    for (what, name) in
        [("scores", score::SCORES), ("tables", "tables.md"), ("report", "report.html")]
    {
        say(&format!("{what}: {}\n", generate_config.out.join(name).display()))?;
    }
    Ok(())
}

impl RunSettings {
    /// Paths of a settings file are relative to it.
    fn resolve_paths(&mut self, folder: &Path) {
        self.generate.resolve_paths(folder);
        let others = self.scoring.scorers.iter_mut().chain(&mut self.report.labels);
        others.for_each(|path| runkit::path::resolve_in_place(path, folder));
    }
}
