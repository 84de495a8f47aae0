//! Command lines that are not understood or not complete, and what to type instead.

use std::ffi::OsString;

use clap::error::{ContextKind, ContextValue, ErrorKind};

use crate::config::nearest_name;

/// The command line, or a settings file that stands for it, asks for something that makes no sense.
/// The program ends with [`crate::exit::ExitStatus::Usage`].
#[derive(Debug)]
pub struct UsageError(pub(super) String);

impl UsageError {
    /// With this message.
    pub fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }

    /// With the message of another error.
    pub fn of(error: impl std::fmt::Display) -> Self {
        Self(error.to_string())
    }
}

impl std::error::Error for UsageError {}

/// Makes an error of validated arguments a [`UsageError`], unless it is an `E` that `is_no_usage`
/// finds not to be one, such as a device that is asked for rightly and not there:
/// `validate(arguments).map_err(usage_unless(DeviceError::is_absent))`.
pub fn usage_unless<E>(
    is_no_usage: impl FnOnce(&E) -> bool,
) -> impl FnOnce(anyhow::Error) -> anyhow::Error
where
    E: std::error::Error + Send + Sync + 'static,
{
    |error| match error.downcast_ref::<E>() {
        Some(found) if is_no_usage(found) => error,
        _ => UsageError(super::message_of(&error)).into(),
    }
}

/// Refuses a command that lacks arguments, naming all of them: each is its usage (`--out <FILE>`)
/// and whether it was given.
///
/// # Errors
/// When one is missing.
pub fn require(arguments: &[(&str, bool)]) -> Result<(), UsageError> {
    let missing: Vec<&str> =
        arguments.iter().filter(|(_, given)| !given).map(|(usage, _)| *usage).collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(UsageError(format!(
        "the following required arguments were not provided:\n  {}\n\
         hint: give them as flags, or in a settings file with --config FILE.toml",
        missing.join("\n  ")
    )))
}

/// `--resume`, which users of other programs type. It is accepted and changes nothing.
#[derive(Debug, Clone, Copy, Default, clap::Args)]
pub struct ResumeFlag {
    /// Accepted; resuming is automatic.
    #[arg(long, hide = true)]
    pub resume: bool,
}

impl ResumeFlag {
    /// Says that the flag is not needed, if it was given. Call it once logging is set up.
    pub fn explain(self) {
        if self.resume {
            tracing::info!("{AUTOMATIC}; --resume is not needed");
        }
    }
}

const AUTOMATIC: &str =
    "resuming is automatic: the same command continues where an earlier run stopped";
const NOT_OVERWRITTEN: &str =
    "results of the same command are kept and completed; for others choose another '--out'";

/// Flags that remove something: never suggested to somebody who typed another one.
const DELETING: [&str; 1] = ["fresh"];

/// Flags of other programs: their names, the flag here, and a sentence if there is more to say. A
/// line counts only for a command that has the flag; an empty flag stands for all commands.
const KNOWN_ELSEWHERE: &[(&[&str], &str, &str)] = &[
    (&["resume", "resume-from", "resume-from-checkpoint", "continue", "restart"], "", AUTOMATIC),
    (
        &["force", "overwrite", "overwrite-output-dir", "clobber", "replace", "yes"],
        "out",
        NOT_OVERWRITTEN,
    ),
    (&["dataloader-num-workers"], "data-threads", ""),
    (
        &["threads", "workers", "num-workers", "num-threads", "jobs", "num-proc", "cpus"],
        "data-threads",
        "'--data-threads' sets the threads that decode images; OMP_NUM_THREADS those that compute",
    ),
    (
        &["threads", "workers", "num-workers", "num-threads", "jobs", "num-proc", "cpus"],
        "",
        "all cores are used; RAYON_NUM_THREADS and OMP_NUM_THREADS limit them",
    ),
    (
        &["epochs", "num-epochs", "num-train-epochs", "max-epochs"],
        "steps",
        "training is counted in optimizer steps: '--steps'",
    ),
    (&["max-train-steps", "max-steps", "num-inference-steps", "sampling-steps"], "steps", ""),
    (
        &["mixed-precision", "precision", "fp16", "bf16", "f16", "half", "float16", "bfloat16"],
        "dtype",
        "",
    ),
    (
        &["pretrained-model-name-or-path", "model-path", "model-id", "checkpoint", "ckpt"],
        "model",
        "",
    ),
    (&["train-batch-size", "per-device-train-batch-size", "batch", "bs", "bsz"], "batch-size", ""),
    (
        &["gradient-accumulation-steps", "accumulate-grad-batches"],
        "micro-batch",
        "'--batch-size' is computed in pieces of '--micro-batch'",
    ),
    (&["cfg", "cfg-scale", "guidance-scale", "scale"], "guidance", ""),
    (&["height", "width", "image-size", "resolution"], "size", ""),
    (&["height", "width", "image-size", "size"], "resolution", ""),
    (&["checkpointing-steps", "save-steps", "save-every"], "checkpoint-every", ""),
    (&["checkpoints-total-limit", "save-total-limit"], "keep", ""),
    (&["output", "output-dir", "outdir", "output-file", "save-dir", "o"], "out", ""),
    (&["gpu", "gpus", "cuda", "cpu", "device-id"], "device", ""),
    (&["learning-rate", "learningrate"], "lr", ""),
    (&["gradient-checkpointing"], "grad-checkpointing", ""),
    (&["beta-dpo", "dpo-beta"], "beta", ""),
    (&["lr-scheduler", "lr-scheduler-type"], "lr-schedule", ""),
    (&["lr-warmup-steps", "warmup", "warmup-ratio"], "warmup-steps", ""),
    (&["clip-grad-norm", "gradient-clipping", "grad-clip"], "max-grad-norm", ""),
    (&["proportion-empty-prompts"], "caption-dropout", ""),
    (&["random-flip", "flip", "horizontal-flip"], "hflip", ""),
    (
        &["use-ema", "ema-decay", "sync-ref-model", "ref-model-sync-steps"],
        "reference-every",
        "'--reference-every' sets after how many steps the reference model is updated",
    ),
    (
        &["use-8bit-adam", "adafactor"],
        "optimizer",
        "'--optimizer adafactor' keeps next to no state",
    ),
    (
        &["report-to", "log-with", "logging-dir"],
        "lr",
        "metrics.jsonl and tensorboard/ are always written below '--out'",
    ),
    (&["validation-prompt", "validation-prompts"], "sample-prompts", ""),
    (&["validation-steps", "validation-epochs"], "sample-every", ""),
    (&["dataset-name", "train-data-dir", "dataset", "data", "input", "inputs"], "pairs", ""),
    (&["prompt", "prompts-file", "prompt-file"], "prompts", ""),
    (&["num-images-per-prompt", "num-images", "num-samples"], "seeds", ""),
    (&["seed"], "base-seed", ""),
    (&["sampler", "sampler-name"], "scheduler", ""),
    (&["reward-models", "reward-model", "rewards"], "scorers", ""),
    (&["max-samples", "max-train-samples"], "limit", ""),
    (
        &["dry-run"],
        "ties",
        "'relabel check' and 'train plan' try everything that a run needs and start nothing",
    ),
];

/// Replaces the suggestions of clap about an unknown flag: they go by letters alone, and may name
/// the one flag that removes what the user wants to keep.
pub(super) fn with_sensible_tips(mut error: clap::Error, root: &clap::Command) -> clap::Error {
    if error.kind() != ErrorKind::UnknownArgument {
        return error;
    }
    let Some(ContextValue::String(typed)) = error.get(ContextKind::InvalidArg).cloned() else {
        return error;
    };
    let Some(name) = typed.strip_prefix("--").filter(|name| !name.is_empty()) else {
        return error;
    };
    let name = name.split('=').next().unwrap_or(name).replace('_', "-").to_lowercase();
    let words: Vec<OsString> = std::env::args_os().skip(1).collect();
    let flags = flags_of(root, &words);
    error.remove(ContextKind::SuggestedArg);
    error.remove(ContextKind::Suggested);
    // It shows the flag that clap would have suggested.
    error.remove(ContextKind::Usage);
    match tip(&name, &flags) {
        Some(Tip::Flag(flag)) => {
            error.insert(ContextKind::SuggestedArg, ContextValue::String(format!("--{flag}")));
        }
        Some(Tip::Sentence(text)) => {
            error.insert(
                ContextKind::Suggested,
                ContextValue::StyledStrs(vec![text.to_owned().into()]),
            );
        }
        None => {}
    }
    error
}

#[derive(Debug, PartialEq)]
enum Tip {
    Flag(String),
    Sentence(&'static str),
}

fn tip(name: &str, flags: &[String]) -> Option<Tip> {
    let has = |flag: &str| flags.iter().any(|known| known == flag);
    if has(name) && !DELETING.contains(&name) {
        return Some(Tip::Flag(name.to_owned()));
    }
    let known = KNOWN_ELSEWHERE
        .iter()
        .find(|(words, flag, _)| words.contains(&name) && (flag.is_empty() || has(flag)));
    if let Some((_, flag, text)) = known {
        return Some(match text.is_empty() {
            true => Tip::Flag((*flag).to_owned()),
            false => Tip::Sentence(text),
        });
    }
    // In a typo at least half of the letters are right.
    let near = |candidate: &&str| {
        let distance = strsim::damerau_levenshtein(name, candidate);
        distance * 2 <= name.chars().count() || candidate.starts_with(name)
    };
    let candidates = flags.iter().map(String::as_str).filter(|flag| !DELETING.contains(flag));
    let candidates: Vec<&str> = candidates.filter(near).collect();
    nearest_name(name, candidates.iter().copied())
        .or_else(|| candidates.first().copied())
        .map(|flag| Tip::Flag(flag.to_owned()))
}

/// The long flags, without dashes, of the command that these words name.
fn flags_of(root: &clap::Command, words: &[OsString]) -> Vec<String> {
    let visible = |command: &clap::Command| -> Vec<String> {
        let arguments = command.get_arguments().filter(|argument| !argument.is_hide_set());
        arguments.filter_map(|argument| argument.get_long().map(str::to_owned)).collect()
    };
    let mut command = root;
    let mut flags = visible(root);
    for word in words {
        if let Some(found) = word.to_str().and_then(|word| command.find_subcommand(word)) {
            command = found;
            flags.extend(visible(found));
        }
    }
    flags
}

/// Whether the log was to be JSON, for a command line that was not understood.
pub(super) fn asks_for_json(words: impl IntoIterator<Item = OsString>) -> bool {
    let words: Vec<OsString> = words.into_iter().collect();
    words.iter().any(|word| word == "--log-format=json")
        || words.windows(2).any(|pair| pair[0] == "--log-format" && pair[1] == "json")
}

#[cfg(test)]
mod tests {
    use super::{Tip, asks_for_json, require, tip};

    const RELABEL: [&str; 9] = [
        "pairs",
        "scorers",
        "out",
        "batch-size",
        "device",
        "dtype",
        "shard",
        "max-failed",
        "fresh",
    ];
    const TRAIN: [&str; 8] =
        ["steps", "out", "resolution", "micro-batch", "batch-size", "data-threads", "lr", "fresh"];

    fn tip_of(name: &str, flags: &[&str]) -> Option<Tip> {
        tip(name, &flags.iter().map(|flag| (*flag).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn no_tip_names_a_flag_that_deletes() {
        for flags in [RELABEL.as_slice(), &TRAIN] {
            for name in [
                "fresh",
                "fres",
                "refresh",
                "fresh-start",
                "resume",
                "resume-from-checkpoint",
                "force",
                "reset",
                "frech",
                "no-fresh",
                "restart",
                "overwrite",
            ] {
                match tip_of(name, flags) {
                    Some(Tip::Flag(flag)) => assert_ne!(flag, "fresh", "{name}"),
                    Some(Tip::Sentence(text)) => assert!(!text.contains("fresh"), "{name}"),
                    None => {}
                }
            }
        }
    }

    #[test]
    fn flags_of_other_programs_are_translated() {
        let flag = |name: &str| Some(Tip::Flag(name.to_owned()));
        assert_eq!(tip_of("mixed-precision", &RELABEL), flag("dtype"));
        assert_eq!(tip_of("max-train-steps", &TRAIN), flag("steps"));
        assert_eq!(tip_of("output-dir", &TRAIN), flag("out"));
        assert_eq!(tip_of("height", &TRAIN), flag("resolution"));
        assert!(
            matches!(tip_of("epochs", &TRAIN), Some(Tip::Sentence(text)) if text.contains("--steps"))
        );
        assert_eq!(tip_of("epochs", &RELABEL), None);
        assert_eq!(tip_of("dataset-name", &RELABEL), flag("pairs"));
        assert_eq!(tip_of("num-inference-steps", &["steps", "seeds"]), flag("steps"));
        assert_eq!(tip_of("cfg", &["guidance"]), flag("guidance"));
        assert_eq!(tip_of("pretrained-model-name-or-path", &["model"]), flag("model"));
        assert_eq!(tip_of("seed", &["seeds", "base-seed"]), flag("base-seed"));
        assert!(
            matches!(tip_of("threads", &RELABEL), Some(Tip::Sentence(text)) if text.contains("OMP_NUM_THREADS"))
        );
        assert!(
            matches!(tip_of("workers", &TRAIN), Some(Tip::Sentence(text)) if text.contains("--data-threads"))
        );
        assert!(matches!(tip_of("force", &RELABEL), Some(Tip::Sentence(_))));
    }

    #[test]
    fn slips_are_mended_and_other_words_are_not_guessed() {
        let flag = |name: &str| Some(Tip::Flag(name.to_owned()));
        assert_eq!(tip_of("scorer", &RELABEL), flag("scorers"));
        assert_eq!(tip_of("bacth-size", &RELABEL), flag("batch-size"));
        assert_eq!(tip_of("max", &RELABEL), flag("max-failed"));
        assert_eq!(tip_of("zzz", &RELABEL), None);
        assert_eq!(tip_of("pears", &RELABEL), flag("pairs"));
        assert_eq!(tip_of("refresh", &RELABEL), None);
    }

    #[test]
    fn all_missing_arguments_are_named() {
        let error = require(&[("--pairs <PATH>", false), ("--out <F>", true), ("--x", false)]);
        let message = error.unwrap_err().to_string();
        assert!(message.contains("--pairs <PATH>\n  --x\n"), "{message}");
        require(&[("--pairs <PATH>", true)]).unwrap();
    }

    #[test]
    fn the_format_of_the_log_is_found_without_parsing() {
        let asks = |words: &[&str]| asks_for_json(words.iter().map(Into::into));
        assert!(asks(&["relabel", "--log-format", "json", "--nope"]));
        assert!(asks(&["relabel", "--nope", "--log-format=json"]));
        assert!(!asks(&["relabel", "json", "--log-format"]));
    }
}
