//! Signs of life and last words: which rank is to blame when an operation does not end well.

use std::sync::atomic::Ordering;
use std::sync::{MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use runkit::launch::Launch;
use serde::{Deserialize, Serialize};
use tch::TchError;

use super::super::DistributedError;
use super::{BEAT, SILENCE, Store, WATCH};
use crate::shim::TcpStore;

/// The sign of life of a rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Life {
    /// Counts signs.
    pub(super) beat: u64,
    /// How many collective operations the rank has begun.
    pub(super) begun: u64,
}

/// Why a rank ends.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Words {
    /// Who says it.
    rank: usize,
    message: String,
    /// The rank that the message is about, if it is lost; then the other ranks need not find it.
    lost: Option<usize>,
}

/// Why an operation did not end well.
#[derive(Debug)]
pub(in super::super) enum Failure {
    /// An operation failed, with the library's message.
    Error(&'static str, String),
    /// It did not end in time.
    Limit(Duration),
    /// Another rank has ended.
    Ended,
}

/// When each rank last gave a new sign of life, by the clock of this process.
#[derive(Debug)]
pub(super) struct Watch {
    pub(super) seen: Vec<(Option<Life>, Instant)>,
}

impl Watch {
    /// The ranks that live, and how long they have given no new sign of life.
    pub(super) fn ages(
        &mut self,
        lives: &[Option<Life>],
    ) -> impl Iterator<Item = (usize, Duration)> {
        let now = Instant::now();
        let pairs = lives.iter().zip(&mut self.seen).enumerate();
        pairs.filter_map(move |(rank, (life, seen))| {
            if *life != seen.0 {
                *seen = (*life, now);
            }
            life.is_some().then(|| (rank, now - seen.1))
        })
    }

    /// The rank whose last new sign of life is the oldest, and its age.
    fn silent(&mut self, lives: &[Option<Life>]) -> Option<(usize, Duration)> {
        self.ages(lives).max_by_key(|(_, age)| *age)
    }
}

impl Store {
    /// Tells the other ranks why this one ends. The first to say so is heard; an error that another
    /// rank is to blame for changes nothing.
    pub fn leave_words(&self, message: &str) {
        if !self.has_words.swap(true, Ordering::SeqCst) {
            let rank = self.launch.rank;
            self.write_words(&Words { rank, message: message.to_owned(), lost: None });
        }
    }

    fn write_words(&self, words: &Words) {
        let Ok(words) = serde_json::to_vec(words) else { return };
        let (count, key) = (self.key("words", "count"), self.key("words", "first"));
        // They are lost if the store is gone, which the others notice.
        let _ = self.ask(move |store| match store.add(&count, 1)? {
            1 => store.set(&key, &words),
            _ => Ok(()),
        });
    }

    /// The error of the first rank that said why it ends.
    pub(in super::super) fn hear_words(&self) -> Result<(), DistributedError> {
        let key = self.key("words", "first");
        let words = self.ask(move |store| read_words(store, &key))?;
        words.and_then(|words| self.error_of(words)).map_or(Ok(()), Err)
    }

    /// The error by which this rank ends if another has said this.
    pub(super) fn error_of(&self, words: Words) -> Option<DistributedError> {
        let Words { rank, message, lost } = words;
        let Launch { rank: own, world, .. } = self.launch;
        if rank == own {
            return None;
        }
        self.has_words.store(true, Ordering::SeqCst);
        Some(match lost {
            Some(lost) if lost != own => {
                DistributedError::LostRank { rank: lost, world, what: message }
            }
            Some(lost) => DistributedError::OtherRank {
                rank,
                message: format!("this rank, {lost} of {world}, {message}"),
            },
            None => DistributedError::OtherRank { rank, message },
        })
    }

    /// The newest sign of life by rank.
    pub(super) fn lives(&self) -> Result<Vec<Option<Life>>, DistributedError> {
        let keys = self.keys_of_ranks("life");
        self.ask(move |store| {
            let read = |key: &String| {
                let life = store.get(key)?;
                Ok(life.and_then(|life| serde_json::from_slice(&life).ok()))
            };
            keys.iter().map(read).collect()
        })
    }

    /// Whether each rank has said that it ends.
    fn have_ended(&self) -> Result<Vec<bool>, DistributedError> {
        let keys = self.keys_of_ranks("ended");
        self.ask(move |store| keys.iter().map(|key| store.has(&[key])).collect())
    }

    pub(super) fn lost(&self, rank: usize, what: String) -> DistributedError {
        let Launch { rank: own, world, .. } = self.launch;
        if !self.has_words.swap(true, Ordering::SeqCst) {
            self.write_words(&Words { rank: own, message: what.clone(), lost: Some(rank) });
        }
        DistributedError::LostRank { rank, world, what }
    }

    /// Finds the rank that kept `what` from ending well: one that says so, has died, has
    /// ended, or has begun fewer operations than this one.
    pub(in super::super) fn blame(&self, what: &str, failure: &Failure) -> DistributedError {
        match self.try_to_blame(what, failure) {
            Ok(error) | Err(error) => error,
        }
    }

    fn try_to_blame(
        &self,
        what: &str,
        failure: &Failure,
    ) -> Result<DistributedError, DistributedError> {
        let begin = Instant::now();
        let long = match failure {
            Failure::Error(..) => WATCH,
            Failure::Limit(_) | Failure::Ended => SILENCE + BEAT,
        };
        let lives = loop {
            self.hear_words()?;
            let lives = self.lives_of_others()?;
            let silent = self.watch().silent(&lives);
            if let Some((rank, silence)) = silent.filter(|(_, age)| *age >= SILENCE) {
                let what = format!(
                    "has died or is stopped: it gave no sign of life for {} s\nhint: its own \
                     output may say why; a process that the system ends for want of memory \
                     leaves a line in dmesg",
                    silence.as_secs()
                );
                return Ok(self.lost(rank, what));
            }
            if begin.elapsed() >= long {
                break lives;
            }
            std::thread::sleep(BEAT / 2);
        };
        for (rank, life) in lives.iter().enumerate() {
            if life.is_none() && rank != self.launch.rank {
                return Ok(self.lost(rank, format!("has ended before {what}")));
            }
        }
        let limit = match failure {
            Failure::Error(operation, reason) => {
                let reason = reason.clone();
                return Ok(DistributedError::Failed { operation, reason });
            }
            Failure::Limit(limit) => *limit,
            Failure::Ended => self.limit,
        };
        let own = self.begun.load(Ordering::SeqCst);
        let begun =
            lives.iter().enumerate().filter_map(|(rank, life)| Some((rank, (*life)?.begun)));
        match begun.min_by_key(|(_, begun)| *begun) {
            Some((rank, begun)) if begun < own => {
                let seconds = limit.as_secs();
                let what = format!("hangs: it lives and has not come to {what} in {seconds} s");
                Ok(self.lost(rank, what))
            }
            _ => Ok(DistributedError::TimedOut { what: what.to_owned(), limit }),
        }
    }

    /// The newest sign of life of the ranks that have not ended, without that of this one.
    pub(super) fn lives_of_others(&self) -> Result<Vec<Option<Life>>, DistributedError> {
        let mut lives = self.lives()?;
        for (life, ended) in lives.iter_mut().zip(self.have_ended()?) {
            *life = life.filter(|_| !ended);
        }
        lives[self.launch.rank] = None;
        Ok(lives)
    }

    /// Whether another rank has ended, asked by one that has not.
    pub(in super::super) fn has_one_ended(&self) -> Result<bool, DistributedError> {
        let key = self.key("ended", "count");
        Ok(self.ask(move |store| store.add(&key, 0))? > 0)
    }

    pub(super) fn watch(&self) -> MutexGuard<'_, Watch> {
        self.watch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The longest that another rank has not given a new sign of life, as far as this one looked.
    pub(in super::super) fn longest_silence(&self) -> Result<Duration, DistributedError> {
        let lives = self.lives_of_others()?;
        Ok(self.watch().silent(&lives).map_or(Duration::ZERO, |(_, age)| age))
    }

    /// The ranks that have not ended, and have given no new sign of life for `silence` (at least
    /// 4 s): they have died or are stopped. Signs are those that this process saw when it called
    /// this before, so call it again and again.
    ///
    /// # Errors
    /// If the store is gone.
    pub fn lost_ranks(&self, silence: Duration) -> Result<Vec<usize>, DistributedError> {
        let lives = self.lives_of_others()?;
        let (mut watch, least) = (self.watch(), silence.max(SILENCE));
        Ok(watch.ages(&lives).filter(|(_, age)| *age >= least).map(|(rank, _)| rank).collect())
    }
}

pub(super) fn read_words(store: &TcpStore, key: &str) -> Result<Option<Words>, TchError> {
    Ok(store.get(key)?.and_then(|words| serde_json::from_slice(&words).ok()))
}
