//! `relabel check`: everything a long run needs, tried before it.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, ensure};
use indicatif::{HumanBytes, HumanDuration};
use runkit::exit::ExitStatus;
use runkit::logging::{counted, tenths};
use runkit::program::JsonFlag;
use runkit::signals::StopFlag;
use scorers::ScorerRecord;
use serde::Serialize;

use crate::score::{self, Config, Rehearsal, Requests, Reused, Sharing};

/// What `relabel check --json` prints.
#[derive(Serialize)]
struct Summary<'run> {
    pairs: u64,
    files: usize,
    input_bytes: u64,
    images: u64,
    captions: usize,
    scorers: &'run [ScorerRecord],
    device: &'run str,
    dtype: &'run str,
    batch_size: usize,
    loading_seconds: f64,
    images_per_second: Option<f64>,
    images_left: u64,
    seconds_left: Option<f64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    requests: Vec<SentTo<'run>>,
    output: &'run Path,
    output_state: &'run str,
    output_bytes: u64,
    free_bytes: u64,
    work: PathBuf,
    work_bytes: u64,
    free_work_bytes: u64,
    scratch: &'run Path,
    scratch_bytes: u64,
    free_scratch_bytes: u64,
    /// The scores that are taken over from an earlier run.
    #[serde(skip_serializing_if = "Option::is_none")]
    reuse: Option<Reuse<'run>>,
}

/// What is taken over.
#[derive(Serialize)]
struct Reuse<'run> {
    labels: &'run Path,
    units: usize,
    of_units: usize,
    /// The scorers whose scores are taken over.
    taken: Vec<&'run str>,
    /// The others, and why they score anew.
    anew: BTreeMap<&'run str, &'run str>,
}

impl<'run> Reuse<'run> {
    fn new(reused: &'run Reused, units: usize) -> Self {
        let scorers = || reused.anew.iter();
        let why =
            |(name, why): &'run (String, Option<String>)| Some((name.as_str(), why.as_deref()?));
        Self {
            labels: &reused.labels,
            units: reused.units,
            of_units: units,
            taken: scorers().filter(|it| it.1.is_none()).map(|it| it.0.as_str()).collect(),
            anew: scorers().filter_map(why).collect(),
        }
    }
}

/// What a run would send to a scorer outside of this process.
#[derive(Serialize)]
struct SentTo<'run> {
    scorer: &'run str,
    /// Requests at most; lines of a program.
    requests: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    host: Option<&'run str>,
    images_leave_this_machine: bool,
    answered: usize,
    sent: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_requests: Option<u64>,
}

impl<'run> SentTo<'run> {
    fn new(requests: &'run Requests) -> Self {
        let sending = &requests.sending;
        Self {
            scorer: &requests.scorer,
            requests: requests.most,
            host: sending.host.as_deref(),
            images_leave_this_machine: sending.leaves,
            answered: sending.answered,
            sent: sending.sent,
            max_requests: sending.max_requests,
        }
    }
}

/// "up to 1236 requests to api.example.com, with images that leave this machine".
impl fmt::Display for SentTo<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.requests;
        match self.host {
            None => write!(formatter, "{}: up to {count} lines to a program", self.scorer)?,
            Some(host) => {
                write!(formatter, "{}: up to {count} requests to {host}", self.scorer)?;
                formatter.write_str(match self.images_leave_this_machine {
                    true => ", with images and captions that leave this machine",
                    false => " on this machine",
                })?;
            }
        }
        if self.answered > 0 {
            write!(formatter, "; {} are answered", self.answered)?;
        }
        match self.max_requests {
            Some(most) => write!(formatter, "; max_requests {most}, {} of them sent", self.sent),
            None => Ok(()),
        }
    }
}

impl<'run> Summary<'run> {
    fn new(config: &'run Config, rehearsal: &'run Rehearsal) -> Self {
        let manifest = &rehearsal.manifest;
        Self {
            pairs: manifest.input.rows,
            files: manifest.input.files.len(),
            input_bytes: rehearsal.input_bytes,
            images: rehearsal.images,
            captions: rehearsal.captions,
            scorers: &manifest.scorers.scorers,
            device: &manifest.scorers.device,
            dtype: &manifest.scorers.dtype,
            batch_size: config.batch_size,
            loading_seconds: tenths(rehearsal.loading),
            images_per_second: rehearsal.images_per_second,
            images_left: rehearsal.images_left,
            seconds_left: rehearsal.seconds_left(),
            requests: rehearsal.requests.iter().map(SentTo::new).collect(),
            output: &config.out,
            output_state: &rehearsal.output,
            output_bytes: rehearsal.needs().first().map_or(0, |need| need.bytes),
            free_bytes: rehearsal.needs().first().map_or(0, |need| need.free),
            work: config.work_folder(),
            work_bytes: rehearsal.room.work(),
            free_work_bytes: rehearsal.free_work_bytes,
            scratch: &rehearsal.scratch,
            scratch_bytes: rehearsal.room.scratch(),
            free_scratch_bytes: rehearsal.free_scratch_bytes,
            reuse: rehearsal.reused.as_ref().map(|reused| Reuse::new(reused, rehearsal.units)),
        }
    }
}

/// Runs the command.
pub(super) fn run(config: &Config, json: JsonFlag, stop: &StopFlag) -> Result<ExitStatus> {
    let rehearsal = score::rehearse(config, stop)?;
    let text = describe(config, &rehearsal)?;
    json.say(|| text, &Summary::new(config, &rehearsal))?;
    refuse_too_little_room(config, &rehearsal)?;
    Ok(ExitStatus::Done)
}

fn describe(config: &Config, rehearsal: &Rehearsal) -> Result<String> {
    let mut text = String::new();
    let manifest = &rehearsal.manifest;
    // Writing to a String cannot fail.
    let _ = writeln!(
        text,
        "pairs      {} in {} ({})",
        manifest.input.rows,
        counted(manifest.input.files.len() as u64, "files"),
        HumanBytes(rehearsal.input_bytes)
    );
    let positions = 2.0 * manifest.input.rows as f64;
    let _ = writeln!(
        text,
        "images     {} distinct uids, each in {:.2} positions on average",
        rehearsal.images,
        positions / rehearsal.images.max(1) as f64
    );
    let _ = writeln!(text, "captions   {} distinct", rehearsal.captions);
    for record in &manifest.scorers.scorers {
        let files = record
            .files()
            .map(|file| format!(", {} {}", file.file, file.sha256.get(..12).unwrap_or_default()));
        let files: String = files.collect();
        let _ = writeln!(text, "scorer     {}: {}{files}", record.name, record.description());
    }
    let _ = writeln!(
        text,
        "networks   loaded in {:.1} s, {} on {}, {} images per forward pass",
        rehearsal.loading.as_secs_f64(),
        manifest.scorers.dtype,
        manifest.scorers.device,
        config.batch_size
    );
    if let (Some(rate), Some(seconds)) = (rehearsal.images_per_second, rehearsal.seconds_left()) {
        let left = counted(rehearsal.images_left, "images");
        let what = match &config.sharing {
            Sharing::Shard(shard) => format!("the {left} of shard {shard}"),
            Sharing::Alone | Sharing::Rank(_) => left,
        };
        let time = HumanDuration(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX));
        let _ = writeln!(text, "time       {rate:.2} images/s, about {time} for {what}");
    }
    if let Some(reused) = &rehearsal.reused {
        for (name, anew) in &reused.anew {
            let labels = reused.labels.display();
            let what = match anew {
                None => format!(
                    "{name}: the scores of {} of {} units are taken over from {labels}",
                    reused.units, rehearsal.units
                ),
                Some(why) => format!("{name}: scored anew, {labels} has others: {why}"),
            };
            let _ = writeln!(text, "reuse      {what}");
        }
    }
    for requests in &rehearsal.requests {
        let _ = writeln!(text, "sends      {}", SentTo::new(requests));
    }
    for need in rehearsal.needs() {
        let of = need.of.replace("{}", &HumanBytes(need.bytes).to_string());
        let (what, folder, free) = (need.what, need.folder.display(), HumanBytes(need.free));
        let _ = writeln!(text, "{what:<10} {of} in {folder}, {free} free");
    }
    let _ = writeln!(text, "output     {}: {}", config.out.display(), rehearsal.output);
    Ok(text)
}

/// Folders may share a disk, which then needs room for all of them.
fn refuse_too_little_room(config: &Config, rehearsal: &Rehearsal) -> Result<()> {
    let needs = rehearsal.needs();
    for (index, need) in needs.iter().enumerate() {
        let others = needs.iter().skip(index + 1);
        let sharing: Vec<_> = others.filter(|other| same_disk(need.folder, other.folder)).collect();
        let bytes = need.bytes + sharing.iter().map(|other| other.bytes).sum::<u64>();
        let is_output = index == 0 && config.address.is_none();
        let place = if is_output { config.out.as_path() } else { need.folder };
        let hints: Vec<&str> =
            [need.hint].into_iter().chain(sharing.iter().map(|it| it.hint)).collect();
        ensure!(
            bytes <= need.free,
            "{}: the run takes about {} there, only {} are free; hint: {}",
            place.display(),
            HumanBytes(bytes),
            HumanBytes(need.free),
            hints.join(", or ")
        );
    }
    Ok(())
}

/// Whether two paths, which need not exist yet, are on one disk.
fn same_disk(one: &Path, other: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    let disk = |path: &Path| {
        let path = std::path::absolute(path).ok()?;
        path.ancestors().find_map(|folder| folder.metadata().ok()).map(|found| found.dev())
    };
    disk(one).is_some_and(|found| Some(found) == disk(other))
}
