//! `evaluate filter-prompts`: keeps the prompts that are safe to show.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use nn::device::DeviceChoice;
use runkit::exit::ExitStatus;
use runkit::program::UsageError;
use serde_json::json;

use crate::cli::filter_prompts::FilterPromptsArguments;
use crate::owned;
use crate::prompts::{self, ClassifiedPrompt, FilteredSet, SafetyClassifier};

/// How many dropped prompts of each set the summary lists.
const SHOWN: usize = 5;

pub(super) fn run(arguments: &FilterPromptsArguments) -> Result<ExitStatus> {
    let threshold = arguments.safe_threshold;
    super::check_safe_threshold(threshold).map_err(UsageError::of)?;
    let dropped_path = dropped_path(&arguments.out).map_err(UsageError::of)?;
    if let Some(source) = arguments.prompts.iter().find(|source| source.limit.is_some()) {
        bail!(UsageError::new(format!(
            "--prompts {source}: limit= counts kept prompts; hint: give it to evaluate generate, \
             with the file that this command writes"
        )));
    }
    let folder = arguments.out.parent().unwrap_or(Path::new(""));
    crate::output::check_writable(folder)?;
    let inputs: Vec<PathBuf> = arguments.prompts.iter().map(|source| source.file.clone()).collect();
    for path in [&dropped_path, &arguments.out] {
        owned::check_list(path, &inputs)?;
    }
    let sources = prompts::with_split(arguments.prompts.clone(), arguments.split.as_deref())
        .map_err(UsageError::of)?;
    let sets = prompts::read(&sources)?;
    let choice: DeviceChoice = arguments.device.parse().map_err(UsageError::of)?;
    let device = choice.resolve()?;
    let classifier =
        SafetyClassifier::open(&arguments.classifier, &arguments.unsafe_label, device)?;
    let filtered = prompts::filter(sets, &classifier, threshold)?;
    runkit::files::create_folder(folder)?;
    // --out comes last: if it is there, so is the other.
    prompts::write_classified(&dropped_path, filtered.iter().flat_map(|set| &set.dropped), false)?;
    prompts::write_classified(&arguments.out, filtered.iter().flat_map(|set| &set.kept), true)?;
    let counts =
        |set: &FilteredSet| json!({ "kept": set.kept.len(), "dropped": set.dropped.len() });
    let sets = filtered.iter().map(|set| (set.name().to_owned(), counts(set)));
    let sets: serde_json::Map<_, _> = sets.collect();
    let value = json!({ "sets": sets, "kept": arguments.out, "dropped": dropped_path });
    let text = || {
        let sets: String = filtered.iter().map(describe).collect();
        let [kept, dropped] = [&arguments.out, &dropped_path].map(|path| path.display());
        format!("{sets}kept: {kept}\ndropped: {dropped}\n")
    };
    arguments.json.say(text, &value)?;
    Ok(ExitStatus::Done)
}

/// `FILE.dropped.jsonl` for `FILE.jsonl`.
fn dropped_path(out: &Path) -> Result<PathBuf> {
    let stem = out
        .file_name()
        .and_then(|name| name.to_str())
        .and_then(|name| name.strip_suffix(".jsonl").filter(|stem| !stem.is_empty()));
    let stem = stem.with_context(|| {
        format!("--out {} is not the name of a .jsonl file; hint: --out safe.jsonl", out.display())
    })?;
    Ok(out.with_file_name(format!("{stem}.dropped.jsonl")))
}

/// The numbers of a set, and its first dropped prompts.
fn describe(set: &FilteredSet) -> String {
    let (kept, dropped) = (set.kept.len(), set.dropped.len());
    let rate = 100.0 * kept as f64 / (kept + dropped) as f64;
    let mut text = format!(
        "{}: {} prompts read, {kept} kept ({rate:.1} %), {dropped} dropped\n",
        set.name(),
        kept + dropped
    );
    for ClassifiedPrompt { prompt, unsafe_probability } in set.dropped.iter().take(SHOWN) {
        let _ = writeln!(text, "  dropped {} ({unsafe_probability:.3})", prompt.id);
    }
    if dropped > SHOWN {
        let _ = writeln!(text, "  and {} more", dropped - SHOWN);
    }
    text
}
