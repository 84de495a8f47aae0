//! `evaluate run`: generate, score, compare, report.

use std::fmt;
use std::ops::ControlFlow::{Break, Continue};
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use nn::device::DeviceError;
use runkit::exit::ExitStatus;
use runkit::output::refuse_input;
use runkit::program::{self, JsonFlag, UsageError, say, usage_unless};
use runkit::settings::Settings as _;
use runkit::signals::{StopFlag, Stoppable};
use schemas::evaluation::KEY_MANIFEST;
use schemas::scores::ScoresFile;
use serde::Serialize;
use serde_json::json;

use super::{generate as generate_command, score as score_command};
use crate::cli::run::{ReportSettings, RunArguments, RunSettings};
use crate::generate::{self, Config as GenerateConfig, GenerationPlan};
use crate::owned;
use crate::present::report::{self, DroppedPrompt, ReportInputs};
use crate::prompts::{self, Preset, Prompt, SafetyClassifier, UNSAFE_LABEL};
use crate::score::{self, ScoringPlan};
use crate::scores_index::{ScoresIndex, Selection};
use crate::sharing::Sharing;
use crate::tables::{Tables, TablesConfig};

const NO_FILTER: &str = "none";

pub(super) fn run(arguments: &RunArguments) -> Result<ExitStatus> {
    arguments.start.resume.explain();
    let file = arguments.file.config.as_deref();
    let mut settings = arguments.settings.over_file(file)?.with_defaults()?;
    let given = &settings.generate;
    score_command::set_batch_size(&mut settings.scoring, given.device.as_deref());
    if arguments.file.print_config {
        say(&settings.to_toml()?)?;
        return Ok(ExitStatus::Done);
    }
    program::require(&[
        ("--model <NAME=DIR>", given.model.iter().flatten().next().is_some()),
        ("--prompts <FILE>...", given.prompts.iter().flatten().next().is_some()),
        ("--scorers <FILE.toml>", settings.scoring.scorers.is_some()),
        ("--out <DIR>", given.out.is_some()),
    ])?;
    let generate_config = generate_command::config(given, arguments.start.fresh)?;
    let score_config =
        score_config(&generate_config, &settings).map_err(usage_unless(DeviceError::is_absent))?;
    let out = generate_config.out.as_path();
    super::refuse_fresh(&arguments.start, out)?;
    let stop = super::stop_flag()?;
    check_report(&generate_config, &score_config, &settings.report)?;
    if arguments.start.dry_run {
        if !super::rehearses(arguments.start.share)? {
            return Ok(ExitStatus::Done);
        }
        let (prompts, dropped) = safe(&generate_config, &settings.report)?;
        let opened =
            Opened::new(&generate_config, &score_config, &settings.report, &prompts, &dropped)?;
        let plan = opened.dry_run()?;
        arguments.start.json.say(|| plan.to_string(), &plan)?;
        return Ok(ExitStatus::Done);
    }
    let (is_first, end) = super::shared(arguments.start.share, &stop, |sharing| {
        let (prompts, dropped) = sharing.by_first(|| safe(&generate_config, &settings.report))?;
        let opened =
            Opened::new(&generate_config, &score_config, &settings.report, &prompts, &dropped)?;
        let end = opened.run(sharing, &stop, &mut |summary| {
            let tables = report(&generate_config, &settings.report, &dropped)?;
            say_summary(arguments.start.json, out, summary, &tables)
        })?;
        Ok(end.map_continue(|end| (sharing.is_first(), end)))
    })?;
    score_command::ended(end, is_first, arguments.start.json, &settings.scoring, out)
}

/// Prints what the run made.
fn say_summary(
    json: JsonFlag,
    out: &Path,
    summary: &score::Summary,
    tables: &Tables,
) -> Result<()> {
    let path = |name: &str| out.join(name);
    let [scores, markdown, page] = [score::SCORES, "tables.md", "report.html"].map(path);
    let text = || {
        format!(
            "{}scores: {}\ntables: {}\nreport: {}\n",
            tables.to_text(),
            scores.display(),
            markdown.display(),
            page.display()
        )
    };
    let score::Summary { images, scored, failed } = summary;
    let value = json!({
        "images": images, "scored": scored, "failed": failed, "models": tables.models,
        "metrics": tables.metrics, "scores": scores, "tables": markdown, "report": page,
        "summary": path("summary.json"),
    });
    json.say(text, &value)
}

/// Checks everything that only the last parts of a run need, so that a typo does not cost hours of
/// work.
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
    super::check_safe_threshold(settings.safe_threshold.unwrap_or_default())
        .map_err(UsageError::of)?;
    crate::present::render::Renderer::new()?;
    Ok(())
}

/// What a run would do.
#[derive(Debug, Serialize)]
struct Plan {
    generate: GenerationPlan,
    score: ScoringPlan,
}

impl fmt::Display for Plan {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}{}", self.generate, self.score)
    }
}

/// Everything an evaluation needs, opened before its first image.
struct Opened<'run> {
    generate_config: &'run GenerateConfig,
    /// Images per forward pass of a reward model.
    score_batch: usize,
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
            hps_v2: generate_config.limits.preset == Some(Preset::HpsV2),
            ..TablesConfig::default()
        };
        config.check(&scoring.models(Some(generation.manifest())), &scoring.sets())?;
        scoring.describe()?;
        Ok(Self { generate_config, score_batch: score_config.batch_size, generation, scoring })
    }

    /// What [`Opened::run`] would do.
    fn dry_run(mut self) -> Result<Plan> {
        let manifest = self.generation.manifest();
        Ok(Plan {
            generate: self.generation.dry_run()?,
            score: self.scoring.dry_run(Some(manifest), self.generate_config.fresh)?,
        })
    }

    /// Generates and scores; the last process calls `finish`.
    fn run(
        mut self,
        sharing: &Sharing,
        stop: &StopFlag,
        finish: &mut dyn FnMut(&score::Summary) -> Result<()>,
    ) -> Result<Stoppable<score::End>> {
        let command = json!({
            "command": "run",
            "images": self.generation.command()?,
            "scores": self.scoring.command()?,
        });
        if self.generation.missing() > 0 {
            if let Break(signal) = self.generation.try_others(stop)? {
                return Ok(Break(signal));
            }
            self.scoring.try_networks()?;
            if let Break(signal) = stop.flow() {
                return Ok(Break(signal));
            }
        }
        self.generation.score_together(self.score_batch);
        let images_of_unit = self.generation.images_of_unit();
        let held = sharing.enter(&self.generate_config.out, &command)?;
        match self.generation.run(&held, stop)? {
            Break(signal) => return Ok(Break(signal)),
            Continue(generate::Summary { images, generated, .. }) if generated > 0 => {
                tracing::info!("{images} images, {generated} of them new");
            }
            Continue(_) => {}
        }
        self.scoring.run(&held, Some(&images_of_unit), stop, finish)
    }
}

/// Scoring of what is generated: same folder, same device, same dtype.
fn score_config(generate_config: &GenerateConfig, settings: &RunSettings) -> Result<score::Config> {
    let compute =
        scorers::Compute { device: generate_config.device, precision: generate_config.precision };
    let (scorers, batch_size) = score_command::scorers_and_batch_size(&settings.scoring)?;
    // A run that starts over has nothing to keep.
    let keep = !settings.scoring.only_named.unwrap_or_default() && !generate_config.fresh;
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
    let threshold = settings.safe_threshold.unwrap_or_default();
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
) -> Result<Tables> {
    let file = ScoresFile::open(generate_config.out.join(score::SCORES))?;
    let manifest = file.metadata().get(KEY_MANIFEST);
    let manifest = manifest.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    let scores = file.read()?;
    let first = scores.first().map(|row| row.model.clone());
    let config = TablesConfig {
        baselines: settings.baselines.clone().unwrap_or_else(|| first.into_iter().collect()),
        hps_v2: generate_config.limits.preset == Some(Preset::HpsV2),
        ..TablesConfig::default()
    };
    let tables = Tables::compute(&scores, &config)?;
    tables.write(&generate_config.out, &super::tables::metadata(&[file.fingerprint()], &tables))?;
    let inputs = ReportInputs {
        folder: &generate_config.out,
        index: &ScoresIndex::new(&scores, Selection::default())?,
        win_rates: &tables.win_rates,
        means: &tables.means,
        agreement: &tables.agreement,
        notes: &tables.notes,
        labels: settings.labels.as_deref(),
        manifest: &manifest,
        dropped,
    };
    report::write(&inputs, &generate_config.out)?;
    Ok(tables)
}
