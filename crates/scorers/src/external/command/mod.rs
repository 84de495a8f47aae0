//! `kind = "command"`: a program of the user's. It gets a JSON object a line, `id`, `image` (the path
//! of a file) and `caption`, and writes one a line, in any order: `id` with `score` or `error`. It is
//! started once a run, when the first score is missing, and kept.

mod config;
mod lines;
mod process;

use std::collections::HashMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use runkit::signals::StopFlag;
use tempfile::NamedTempFile;

pub use self::config::CommandConfig;
pub(crate) use self::config::script_files;
use self::lines::{QuestionLine, Said};
use self::process::{Event, Process};
use super::answers::{Answer, Answers, Key};
use super::{EncodedImage, Question, Workplace, no_score};
use crate::error::ScorerError;
use crate::outcome::{Score, score_of};

/// Questions that are sent together: a program may compute them as a batch.
pub(super) const TOGETHER: usize = 64;
/// How often the stop flag is checked.
const POLL: Duration = Duration::from_millis(100);
/// A program that lets so many time limits in a row pass without a line hangs.
const MOST_SILENT: usize = 2;

/// A program, ready to be asked.
#[derive(Debug)]
pub(super) struct CommandScorer {
    name: String,
    config: CommandConfig,
    folder: PathBuf,
    images: PathBuf,
    answers: Answers,
    stop: StopFlag,
    process: Option<Process>,
    /// Why the program is gone.
    ended: Option<String>,
    has_answered: bool,
    /// Time limits that passed without a line.
    silent: usize,
    next_id: u64,
    warned_of_junk: bool,
}

/// The questions that wait for a line, by id.
type Open = HashMap<String, Key>;

impl CommandScorer {
    /// Looks for the program and reads the answers that there are. Starts nothing.
    pub(super) fn open(
        name: &str,
        config: &CommandConfig,
        folder: &Path,
        workplace: &Workplace,
    ) -> Result<Self, ScorerError> {
        let identity = identity(name, config, folder, &workplace.stop)?;
        let place = workplace.place.as_deref();
        Ok(Self {
            name: name.to_owned(),
            config: config.clone(),
            folder: folder.to_owned(),
            images: workplace.images.clone(),
            answers: Answers::open(&workplace.answers, name, &identity, place)?,
            stop: workplace.stop.clone(),
            process: None,
            ended: None,
            has_answered: false,
            silent: 0,
            next_id: 0,
            warned_of_junk: false,
        })
    }

    /// How many answers there are in a folder. Starts and writes nothing.
    pub(super) fn count(
        name: &str,
        config: &CommandConfig,
        folder: &Path,
        workplace: &Workplace,
    ) -> Result<usize, ScorerError> {
        let identity = identity(name, config, folder, &workplace.stop)?;
        Ok(Answers::count(&workplace.answers, name, &identity)?.0)
    }

    /// The score of each question.
    pub(super) fn score(&mut self, questions: &[Question<'_>]) -> Result<Vec<Score>, ScorerError> {
        self.answers.refresh()?;
        let key = |question: &Question<'_>| Key::new(&[question.image.digest()], question.caption);
        let keys: Vec<Key> = questions.iter().map(key).collect();
        let mut failed = HashMap::new();
        let mut open: Vec<(Key, &Question<'_>)> = Vec::new();
        for (key, question) in keys.iter().zip(questions) {
            if !self.answers.has(key) && open.iter().all(|(other, _)| other != key) {
                open.push((*key, question));
            }
        }
        if !open.is_empty() {
            self.stop.check()?;
            failed = self.ask(&open)?;
            self.answers.sync()?;
        }
        keys.iter()
            .map(|key| {
                Ok(match self.answers.get(key)? {
                    // f32 is what labels hold.
                    Some(Answer::Score(score)) => score_of(score as f32),
                    Some(Answer::None(reason)) => Err(no_score(&reason)),
                    Some(_) => Err(no_score("the answer is not a number")),
                    None => Err(no_score(failed.get(key).map_or("not asked", String::as_str))),
                })
            })
            .collect()
    }

    /// Sends the questions, waits for their lines, and returns why questions have none.
    fn ask(
        &mut self,
        questions: &[(Key, &Question<'_>)],
    ) -> Result<HashMap<Key, String>, ScorerError> {
        if let Some(ended) = &self.ended {
            return Ok(questions.iter().map(|(key, _)| (*key, ended.clone())).collect());
        }
        if self.process.is_none() {
            let started = Process::start(&self.name, &self.config, &self.folder);
            self.process = Some(started.map_err(|problem| self.problem(problem))?);
        }
        let (mut files, mut open, mut lines) = (HashMap::new(), Open::new(), Vec::new());
        for (key, question) in questions {
            let id = self.next_id.to_string();
            self.next_id += 1;
            let path = self.path_of(question.image, &mut files)?;
            let Some(image) = path.to_str() else {
                let problem = format!("{}: not a path in UTF-8", path.display());
                return Err(self.problem(problem));
            };
            let line = QuestionLine { id: id.clone(), image, caption: question.caption };
            lines.extend(serde_json::to_vec(&line).unwrap_or_default());
            lines.push(b'\n');
            open.insert(id, *key);
        }
        let Some(process) = &self.process else { return Ok(HashMap::new()) };
        process.send(lines);
        self.wait_for(open)
    }

    fn wait_for(&mut self, mut open: Open) -> Result<HashMap<Key, String>, ScorerError> {
        let (mut since, mut junk) = (Instant::now(), None);
        while !open.is_empty() {
            if let Err(stopped) = self.stop.check() {
                self.answers.sync()?;
                if let Some(process) = self.process.take() {
                    process.kill();
                }
                return Err(stopped.into());
            }
            let Some(process) = &mut self.process else { break };
            let limit = match self.has_answered {
                true => self.config.timeout(),
                false => self.config.first_timeout(),
            };
            let left = limit.saturating_sub(since.elapsed());
            match process.next(left.min(POLL)) {
                Some(Event::Said(Said::Score { id, score })) => {
                    // A line for a question whose time has passed is late, and not junk.
                    let Some(key) = open.remove(&id) else { continue };
                    (since, self.has_answered, self.silent) = (Instant::now(), true, 0);
                    let answer = match score {
                        Ok(score) => Answer::Score(score),
                        Err(reason) => Answer::None(reason),
                    };
                    self.answers.add(&key, 1, Some(answer))?;
                }
                Some(Event::Said(Said::Junk(text))) => {
                    if !self.warned_of_junk {
                        self.warned_of_junk = true;
                        tracing::warn!(
                            "scorer `{}`: the program writes what is not a JSON object with an id: \
                             {text}; hint: print such lines to stderr",
                            self.name
                        );
                    }
                    junk = Some(text);
                }
                Some(Event::End) => {
                    let ended = process.ending();
                    tracing::warn!("scorer `{}`: {ended}", self.name);
                    self.process = None;
                    self.ended = Some(ended.clone());
                    return Ok(open.into_values().map(|key| (key, ended.clone())).collect());
                }
                None if left.is_zero() => {
                    self.silent += 1;
                    let mut reason = format!(
                        "the program wrote no line for it within {} s",
                        limit.as_secs_f64()
                    );
                    if let Some(junk) = junk {
                        reason += &format!("; it wrote {junk}");
                    }
                    if self.silent >= MOST_SILENT {
                        process.kill();
                        self.process = None;
                        let ended = format!("the program was ended, as it hangs: {reason}");
                        tracing::warn!("scorer `{}`: {ended}", self.name);
                        self.ended = Some(ended);
                    }
                    return Ok(open.into_values().map(|key| (key, reason.clone())).collect());
                }
                None => {}
            }
        }
        Ok(HashMap::new())
    }

    /// The path of an image: its own, or that of a file which is removed with `files`.
    fn path_of(
        &self,
        image: &EncodedImage,
        files: &mut HashMap<blake3::Hash, NamedTempFile>,
    ) -> Result<PathBuf, ScorerError> {
        if let Some(path) = image.path() {
            return Ok(std::path::absolute(path).unwrap_or_else(|_| path.clone()));
        }
        if let Some(file) = files.get(&image.digest()) {
            return Ok(file.path().to_owned());
        }
        runkit::files::create_folder(&self.images)?;
        let folder = std::path::absolute(&self.images).unwrap_or_else(|_| self.images.clone());
        let suffix = format!(".{}", image.format().1);
        let failed = |error: std::io::Error| ScorerError::File {
            scorer: self.name.clone(),
            file: folder.clone(),
            problem: format!("an image cannot be written: {error}"),
        };
        let mut file = tempfile::Builder::new()
            .prefix("image-")
            .suffix(&suffix)
            .tempfile_in(&folder)
            .map_err(failed)?;
        file.write_all(image.bytes()).map_err(failed)?;
        let path = file.path().to_owned();
        files.insert(image.digest(), file);
        Ok(path)
    }

    fn problem(&self, problem: String) -> ScorerError {
        ScorerError::External { scorer: self.name.clone(), problem }
    }
}

/// What answers are kept by, besides image and caption: the arguments and the files among them.
fn identity(
    name: &str,
    config: &CommandConfig,
    folder: &Path,
    stop: &StopFlag,
) -> Result<(Vec<String>, Vec<(String, String)>), ScorerError> {
    let fail = |problem| ScorerError::External { scorer: name.to_owned(), problem };
    config.program(folder).map_err(fail)?;
    let mut sums = Vec::new();
    for (argument, path) in script_files(config, folder) {
        sums.push((argument, runkit::files::blake3_of(&path, stop)?));
    }
    Ok((config.command.clone(), sums))
}

#[cfg(test)]
mod tests;
