//! `kind = "vlm"`: a vision-language model behind an OpenAI-compatible endpoint, such as vLLM,
//! sglang, llama.cpp or a service.
//!
//! Every request is a question about one image, or two, and a text. Its answer goes to the disk
//! before another one is asked for in its place ([`Answers`]), so no request is paid for twice.

mod client;
mod config;
mod read;
mod request;

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use regex::Regex;
use runkit::signals::StopFlag;

use self::client::{Client, Outcome};
pub use self::config::{VlmConfig, VlmRead};
use self::request::Shape;
use super::answers::{Answer, Answers, Key};
use super::{Comparison, EncodedImage, Question, Vote, Workplace, no_score};
use crate::error::ScorerError;
use crate::outcome::{Score, ScoreFailure};

/// How often the stop flag is checked.
const POLL: Duration = Duration::from_millis(100);
/// How long answers on the way are waited for when the run ends: they are paid for.
const PATIENCE: Duration = Duration::from_secs(3);
/// So many refused requests in a row, with no answer before them, are a fault of the settings.
const MOST_REFUSED: usize = 10;

/// A model, ready to be asked.
#[derive(Debug)]
pub(super) struct Vlm {
    name: String,
    config: VlmConfig,
    pattern: Option<Regex>,
    shape: Arc<Shape>,
    client: Arc<Client>,
    answers: Answers,
    stop: StopFlag,
    /// Refused requests since the last answer.
    refused: usize,
}

/// A request that has no answer yet.
#[derive(Debug)]
struct Ask {
    key: Key,
    images: Vec<EncodedImage>,
    text: String,
}

/// What came of a question.
#[derive(Debug)]
struct Answered {
    key: Key,
    outcome: Outcome,
    requests: u64,
    /// Dropped once the answer is kept.
    kept: Sender<()>,
}

impl Vlm {
    /// Reads the answers that there are, and the API key. Sends nothing.
    pub(super) fn open(
        name: &str,
        config: &VlmConfig,
        workplace: &Workplace,
    ) -> Result<Self, ScorerError> {
        let client = Client::new(config).map_err(|problem| fatal(name, problem))?;
        Self::with_client(name, config, workplace, client)
    }

    fn with_client(
        name: &str,
        config: &VlmConfig,
        workplace: &Workplace,
        client: Client,
    ) -> Result<Self, ScorerError> {
        let shape = Shape::new(config);
        let place = workplace.place.as_deref();
        let answers = Answers::open(&workplace.answers, name, &shape, place)?;
        client.begin_at(answers.requests());
        Ok(Self {
            name: name.to_owned(),
            config: config.clone(),
            pattern: config.expression(),
            shape: Arc::new(shape),
            client: Arc::new(client),
            answers,
            stop: workplace.stop.clone(),
            refused: 0,
        })
    }

    /// The score of each question.
    pub(super) fn score(&mut self, questions: &[Question<'_>]) -> Result<Vec<Score>, ScorerError> {
        let asks = questions
            .iter()
            .map(|question| self.ask_of(std::slice::from_ref(question.image), question.caption));
        let asks: Vec<Ask> = asks.collect();
        let keys: Vec<Key> = asks.iter().map(|ask| ask.key).collect();
        let failed = self.ask(asks)?;
        let read = |answer: &Answer| read::score(answer, self.pattern.as_ref());
        let score = |key| Ok(self.read(key, &failed, read)?.map_err(|reason| no_score(&reason)));
        keys.iter().map(score).collect()
    }

    /// The vote on each pair: both images are shown in both orders, and both answers must agree.
    pub(super) fn compare(&mut self, pairs: &[Comparison<'_>]) -> Result<Vec<Vote>, ScorerError> {
        let (mut asks, mut keys) = (Vec::new(), Vec::new());
        for Comparison { images: [first, second], caption } in pairs {
            let orders = [[*first, *second], [*second, *first]];
            let both = orders.map(|images| self.ask_of(&images.map(Clone::clone), caption));
            keys.push([both[0].key, both[1].key]);
            asks.extend(both);
        }
        let failed = self.ask(asks)?;
        let read = |answer: &Answer| read::preferred(answer, self.pattern.as_ref());
        let mut votes = Vec::with_capacity(pairs.len());
        for [straight, swapped] in keys {
            let (straight, swapped) =
                (self.read(&straight, &failed, read)?, self.read(&swapped, &failed, read)?);
            let none = |reason: &str| Err(ScoreFailure::new(format!("gave no vote: {reason}")));
            votes.push(match (straight, swapped) {
                (Ok(1), Ok(2)) => Ok(1),
                (Ok(2), Ok(1)) => Ok(-1),
                (Ok(place), Ok(_)) => {
                    let place = if place == 1 { "first" } else { "second" };
                    none(&format!("it prefers the {place} image in both orders"))
                }
                (Err(reason), _) | (_, Err(reason)) => none(&reason),
            });
        }
        Ok(votes)
    }

    /// How many answers there are in a folder, and how many requests they took. Sends and writes
    /// nothing.
    pub(super) fn count(
        name: &str,
        config: &VlmConfig,
        answers: &std::path::Path,
    ) -> Result<(usize, u64), ScorerError> {
        Client::new(config).map_err(|problem| fatal(name, problem))?;
        Answers::count(answers, name, &Shape::new(config))
    }

    /// Enough questions that slow answers keep no connection idle for long.
    pub(super) fn together(&self) -> usize {
        4 * self.config.concurrency()
    }

    fn ask_of(&self, images: &[EncodedImage], caption: &str) -> Ask {
        let text = self.config.prompt_of(caption);
        let digests: Vec<blake3::Hash> = images.iter().map(EncodedImage::digest).collect();
        Ask { key: Key::new(&digests, &text), images: images.to_vec(), text }
    }

    fn read<T>(
        &self,
        key: &Key,
        failed: &HashMap<Key, String>,
        read: impl Fn(&Answer) -> Result<T, String>,
    ) -> Result<Result<T, String>, ScorerError> {
        Ok(match self.answers.get(key)? {
            Some(answer) => read(&answer),
            None => Err(failed.get(key).cloned().unwrap_or_else(|| "not asked".to_owned())),
        })
    }

    /// Asks what has no answer yet, several at a time, and keeps each answer as it comes. Returns
    /// why questions have none.
    fn ask(&mut self, asks: Vec<Ask>) -> Result<HashMap<Key, String>, ScorerError> {
        self.answers.refresh()?;
        let mut known = HashSet::new();
        let open: VecDeque<Ask> = asks
            .into_iter()
            .filter(|ask| !self.answers.has(&ask.key) && known.insert(ask.key))
            .collect();
        let mut failed = HashMap::new();
        if open.is_empty() {
            return Ok(failed);
        }
        self.stop.check()?;
        self.client.halt(false);
        let (sender, receiver) = channel();
        let threads = self.config.concurrency().min(open.len());
        let open = Arc::new(Mutex::new(open));
        for _ in 0..threads {
            let (client, shape) = (Arc::clone(&self.client), Arc::clone(&self.shape));
            let (open, sender) = (Arc::clone(&open), sender.clone());
            std::thread::Builder::new()
                .name("vlm".to_owned())
                .spawn(move || work(&client, &shape, &open, &sender))
                .map_err(|error| fatal(&self.name, format!("cannot start a thread: {error}")))?;
        }
        drop(sender);
        // What ends the run; answers on the way are still taken.
        let mut end: Option<ScorerError> = None;
        let mut ends_at: Option<Instant> = None;
        loop {
            if end.is_none() {
                end = self.stop.check().err().map(ScorerError::from);
            }
            if end.is_some() && ends_at.is_none() {
                self.client.halt(true);
                ends_at = Some(Instant::now() + PATIENCE);
            }
            // A budget that is spent is no hurry.
            let is_hurried = self.stop.requested().is_some()
                || !matches!(end, None | Some(ScorerError::OutOfRequests { .. }));
            if is_hurried && ends_at.is_some_and(|at| Instant::now() >= at) {
                break;
            }
            let Answered { key, outcome, requests, kept } = match receiver.recv_timeout(POLL) {
                Ok(result) => result,
                Err(RecvTimeoutError::Timeout) => continue,
                Err(RecvTimeoutError::Disconnected) => break,
            };
            let problem = self.take(&key, outcome, requests, &mut failed);
            // The thread asks on once the answer is on the disk.
            drop(kept);
            match problem {
                Ok(problem) => end = end.or(problem),
                Err(error) => {
                    self.client.halt(true);
                    return Err(error);
                }
            }
        }
        match end {
            Some(end) => Err(end),
            None => Ok(failed),
        }
    }

    /// Keeps what came of a question. Returns what ends the run.
    fn take(
        &mut self,
        key: &Key,
        outcome: Outcome,
        requests: u64,
        failed: &mut HashMap<Key, String>,
    ) -> Result<Option<ScorerError>, ScorerError> {
        let (answer, end) = match outcome {
            Outcome::Answer(answer) => {
                self.refused = 0;
                (Some(answer), None)
            }
            Outcome::Failed(reason) => {
                failed.insert(*key, reason);
                (None, None)
            }
            Outcome::Refused(reason) => {
                self.refused += 1;
                let is_wrong = self.refused >= MOST_REFUSED && self.answers.len() == 0;
                let problem = format!(
                    "{}: none of the first {MOST_REFUSED} requests has an answer: {reason}; hint: \
                     check model and settings",
                    self.config.shown_endpoint()
                );
                failed.insert(*key, reason);
                (None, is_wrong.then(|| fatal(&self.name, problem)))
            }
            Outcome::Fatal(reason) => {
                let problem = format!(
                    "{}: {reason}; hint: check endpoint, model and api_key_env, then run the same \
                     command again",
                    self.config.shown_endpoint()
                );
                (None, Some(fatal(&self.name, problem)))
            }
            Outcome::OutOfRequests => {
                let limit = self.config.max_requests.unwrap_or_default();
                (None, Some(ScorerError::OutOfRequests { scorer: self.name.clone(), limit }))
            }
            Outcome::Stopped => (None, None),
        };
        if requests > 0 {
            self.answers.add(key, requests, answer)?;
            self.answers.sync()?;
        }
        Ok(end)
    }
}

/// Asks until nothing is left, the budget is spent or the run ends.
fn work(client: &Client, shape: &Shape, open: &Mutex<VecDeque<Ask>>, results: &Sender<Answered>) {
    while !client.is_halted() {
        let next = open.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        let Some(Ask { key, images, text }) = next else { return };
        let body = shape.body(&images, &text);
        drop(images);
        let (outcome, requests) = client.ask(&body);
        let is_last = matches!(outcome, Outcome::OutOfRequests | Outcome::Stopped);
        let (kept, waits) = channel();
        if results.send(Answered { key, outcome, requests, kept }).is_err() || is_last {
            return;
        }
        // An error is what is waited for: nothing is sent, and the other end goes away.
        let _ = waits.recv();
    }
}

fn fatal(scorer: &str, problem: String) -> ScorerError {
    ScorerError::External { scorer: scorer.to_owned(), problem }
}

#[cfg(test)]
mod tests;
