//! The launcher's TCP store.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use runkit::launch::{Launch, StoreAddress};
use serde::{Deserialize, Serialize};
use tch::TchError;

use super::DistributedError;
use crate::shim::TcpStore;

/// How often a rank leaves a sign of life.
const BEAT: Duration = Duration::from_millis(500);

/// A rank without a new sign of life for so long has died or is stopped, if something else fails
/// too. Slow disks and swapping delay a sign by less.
const SILENCE: Duration = Duration::from_secs(4);

/// How long ranks are watched after a failure before no one is named.
const WATCH: Duration = Duration::from_secs(8);

/// The longest that an operation of the store may take, unless the limit is shorter.
const ANSWER: Duration = Duration::from_secs(30);

/// A client of the TCP store in which the processes of a launch meet. Its operations are atomic.
/// Keys belong to one start of the program by one start of the launcher: a restarted world begins
/// with none. A process connects once; [`super::World::join`] connects, too.
#[derive(Debug)]
pub struct Store {
    launch: Launch,
    address: StoreAddress,
    client: Client,
    /// Keys begin with it.
    prefix: String,
    limit: Duration,
    /// How many collective operations this rank has begun.
    pub(super) begun: Arc<AtomicU64>,
    stop_beating: Arc<AtomicBool>,
    /// Whether others already know why this rank ends, or must not learn it from this rank.
    has_words: AtomicBool,
    /// The words of another rank, in case the store ends with rank 0.
    heard: Arc<Mutex<Option<Words>>>,
    watch: Mutex<Watch>,
}

/// The sign of life of a rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Life {
    /// Counts signs.
    beat: u64,
    /// How many collective operations the rank has begun.
    begun: u64,
}

/// Why a rank ends.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Words {
    /// Who says it.
    rank: usize,
    message: String,
    /// The rank that the message is about, if it is lost; then the other ranks need not find it.
    lost: Option<usize>,
}

/// A connection with a thread of its own: a store whose host is stopped by SIGSTOP never answers,
/// and then the caller does not wait for it.
#[derive(Debug)]
struct Client {
    tasks: Option<mpsc::Sender<Task>>,
    thread: Option<JoinHandle<()>>,
}

type Task = Box<dyn FnOnce(&TcpStore) + Send>;

impl Client {
    fn new(store: TcpStore) -> Self {
        let (tasks, list) = mpsc::channel::<Task>();
        let thread = std::thread::spawn(move || {
            for task in list {
                task(&store);
            }
        });
        Self { tasks: Some(tasks), thread: Some(thread) }
    }

    /// What the operation returns; `None` if it does not end within the limit.
    fn ask<T: Send + 'static>(
        &self,
        limit: Duration,
        operation: impl FnOnce(&TcpStore) -> Result<T, TchError> + Send + 'static,
    ) -> Option<Result<T, TchError>> {
        let (answer, answers) = mpsc::channel();
        let task: Task = Box::new(move |store| {
            // Fails if the caller no longer waits.
            let _ = answer.send(operation(store));
        });
        self.tasks.as_ref()?.send(task).ok()?;
        answers.recv_timeout(limit).ok()
    }

    /// Closes the connection, and the store if it is served here.
    fn close(&mut self) {
        self.tasks = None;
        let Some(thread) = self.thread.take() else { return };
        let begin = Instant::now();
        while !thread.is_finished() && begin.elapsed() < Duration::from_secs(2) {
            std::thread::sleep(Duration::from_millis(2));
        }
        if thread.is_finished() {
            let _ = thread.join();
        }
    }
}

impl Store {
    /// Connects to the store of a launch, and waits for the other ranks to do so. Rank 0 serves it
    /// if no agent does, until all others have ended. `None` if the process is alone, or the
    /// launcher gives no address.
    ///
    /// # Errors
    /// If no store answers, or a rank does not come, within `limit`.
    pub fn connect(
        launch: &Launch,
        limit: Duration,
    ) -> Result<Option<Arc<Self>>, DistributedError> {
        if launch.is_alone() { Ok(None) } else { Self::open(launch, limit) }
    }

    /// As [`Store::connect`], also for a launch of one process.
    pub(super) fn open(
        launch: &Launch,
        limit: Duration,
    ) -> Result<Option<Arc<Self>>, DistributedError> {
        let Some(address) = launch.store.clone() else { return Ok(None) };
        let serves = launch.is_first() && !address.is_served_by_agent;
        let begin = Instant::now();
        let open = |serves| {
            let left = limit.saturating_sub(begin.elapsed());
            TcpStore::open(&address.host, address.port, serves, left)
        };
        let opened = open(serves).and_then(|store| Ok((store, open(false)?)));
        let (store, beats) = opened.map_err(|error| {
            let reason = error.to_string();
            if serves {
                let (host, port) = (&address.host, address.port);
                let reason = format!(
                    "cannot serve at {host}:{port}: {reason}\nhint: set MASTER_ADDR to this \
                     machine and MASTER_PORT to a free port of it"
                );
                return DistributedError::Failed { operation: "the store of the ranks", reason };
            }
            no_answer(&address, format!("does not answer within {} s", limit.as_secs()))
        })?;
        let mut new = Self {
            launch: launch.clone(),
            client: Client::new(store),
            prefix: format!("balanceddpo/attempt_{}", address.attempt),
            address,
            limit,
            begun: Arc::default(),
            stop_beating: Arc::default(),
            has_words: AtomicBool::new(false),
            heard: Arc::default(),
            watch: Mutex::new(Watch { seen: vec![(None, begin); launch.world] }),
        };
        // A launcher may run several programs one after another: each rank counts them alike.
        let started = format!("{}/started/{}", new.prefix, launch.rank);
        let start = new.ask(move |store| store.add(&started, 1))?;
        new.prefix = format!("{}/start_{start}", new.prefix);
        new.begin_to_beat(beats)?;
        new.wait_for_all(begin)?;
        Ok(Some(Arc::new(new)))
    }

    /// Adds `amount` to the number under `key`, which starts at 0, and returns the sum.
    ///
    /// # Errors
    /// If the store is gone.
    pub fn add(&self, key: &str, amount: i64) -> Result<i64, DistributedError> {
        let key = self.key("keys", key);
        self.ask(move |store| store.add(&key, amount))
    }

    /// Writes a value.
    ///
    /// # Errors
    /// If the store is gone.
    pub fn set(&self, key: &str, value: &[u8]) -> Result<(), DistributedError> {
        let (key, value) = (self.key("keys", key), value.to_vec());
        self.ask(move |store| store.set(&key, &value))
    }

    /// The value under `key`, if it is there.
    ///
    /// # Errors
    /// If the store is gone.
    pub fn get(&self, key: &str) -> Result<Option<Vec<u8>>, DistributedError> {
        let key = self.key("keys", key);
        self.ask(move |store| store.get(&key))
    }

    /// The value under `key`; polls until it is there, `limit` has passed, or `stop` says so
    /// (then `None`).
    ///
    /// # Errors
    /// If the store is gone, the time is up, or a rank has failed ([`Store::leave_words`]).
    pub fn wait(
        &self,
        key: &str,
        limit: Duration,
        stop: impl Fn() -> bool,
    ) -> Result<Option<Vec<u8>>, DistributedError> {
        let begin = Instant::now();
        let mut pause = Duration::from_millis(5);
        loop {
            if let Some(value) = self.get(key)? {
                return Ok(Some(value));
            }
            if stop() {
                return Ok(None);
            }
            self.hear_words()?;
            if begin.elapsed() > limit {
                return Err(DistributedError::TimedOut {
                    what: format!("the wait for {key}"),
                    limit,
                });
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(200));
        }
    }

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
    pub(super) fn hear_words(&self) -> Result<(), DistributedError> {
        let key = self.key("words", "first");
        let words = self.ask(move |store| read_words(store, &key))?;
        words.and_then(|words| self.error_of(words)).map_or(Ok(()), Err)
    }

    /// The error by which this rank ends if another has said this.
    fn error_of(&self, words: Words) -> Option<DistributedError> {
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

    fn key(&self, kind: &str, key: &str) -> String {
        format!("{}/{kind}/{key}", self.prefix)
    }

    fn keys_of_ranks(&self, kind: &str) -> Vec<String> {
        (0..self.launch.world).map(|rank| self.key(kind, &rank.to_string())).collect()
    }

    fn ask<T: Send + 'static>(
        &self,
        operation: impl FnOnce(&TcpStore) -> Result<T, TchError> + Send + 'static,
    ) -> Result<T, DistributedError> {
        let limit = self.limit.clamp(Duration::from_secs(2), ANSWER);
        match self.client.ask(limit, operation) {
            Some(Ok(value)) => Ok(value),
            Some(Err(_)) => Err(self.host_is_lost("has died".to_owned())),
            None => Err(self.host_is_lost(format!("does not answer for {} s", limit.as_secs()))),
        }
    }

    /// Runs an operation that may take as long as ranks need to find each other.
    pub(super) fn ask_long<T: Send + 'static>(
        &self,
        operation: impl FnOnce(&TcpStore, &str) -> Result<T, TchError> + Send + 'static,
    ) -> Result<Result<T, TchError>, DistributedError> {
        let (limit, prefix) = (self.limit + ANSWER, format!("{}/", self.prefix));
        match self.client.ask(limit, move |store| Ok(operation(store, &prefix))) {
            Some(Ok(value)) => Ok(value),
            Some(Err(_)) | None => {
                Err(self.host_is_lost(format!("does not answer for {} s", limit.as_secs())))
            }
        }
    }

    fn host_is_lost(&self, what: String) -> DistributedError {
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(error) = heard.and_then(|words| self.error_of(words)) {
            return error;
        }
        self.has_words.store(true, Ordering::SeqCst);
        let Launch { rank, world, .. } = self.launch;
        if self.address.is_served_by_agent || rank == 0 {
            return no_answer(&self.address, what);
        }
        DistributedError::LostRank { rank: 0, world, what }
    }

    /// Leaves the first sign of life, and starts the thread that leaves the others.
    fn begin_to_beat(&self, store: TcpStore) -> Result<(), DistributedError> {
        let key = self.key("life", &self.launch.rank.to_string());
        let (begun, stop) = (Arc::clone(&self.begun), Arc::clone(&self.stop_beating));
        let beat = move |store: &TcpStore, beat| {
            let life = Life { beat, begun: begun.load(Ordering::SeqCst) };
            let life = serde_json::to_vec(&life).unwrap_or_default();
            store.set(&key, &life)
        };
        if beat(&store, 0).is_err() {
            return Err(self.host_is_lost("has died".to_owned()));
        }
        let (heard, words) = (Arc::clone(&self.heard), self.key("words", "first"));
        std::thread::spawn(move || {
            for number in 1.. {
                std::thread::sleep(BEAT);
                // Without a store nobody reads it, and the next operation finds out.
                if stop.load(Ordering::SeqCst) || beat(&store, number).is_err() {
                    return;
                }
                if let Ok(Some(words)) = read_words(&store, &words) {
                    heard.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(words);
                }
            }
        });
        Ok(())
    }

    /// Waits for the first sign of life of all ranks.
    fn wait_for_all(&self, begin: Instant) -> Result<(), DistributedError> {
        let keys = Arc::new(self.keys_of_ranks("life"));
        loop {
            let all = Arc::clone(&keys);
            if self.ask(move |store| store.has(&all))? {
                return Ok(());
            }
            self.hear_words()?;
            if begin.elapsed() > self.limit {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let Launch { world, .. } = self.launch;
        let seconds = self.limit.as_secs();
        for (rank, life) in self.lives()?.into_iter().enumerate() {
            if life.is_none() {
                let what = format!("has not started within {seconds} s");
                return Err(self.lost(rank, what));
            }
        }
        let what = format!("the start of {world} ranks");
        Err(DistributedError::TimedOut { what, limit: self.limit })
    }

    /// The newest sign of life by rank.
    fn lives(&self) -> Result<Vec<Option<Life>>, DistributedError> {
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

    fn lost(&self, rank: usize, what: String) -> DistributedError {
        let Launch { rank: own, world, .. } = self.launch;
        if !self.has_words.swap(true, Ordering::SeqCst) {
            self.write_words(&Words { rank: own, message: what.clone(), lost: Some(rank) });
        }
        DistributedError::LostRank { rank, world, what }
    }

    /// Finds the rank that kept `what` from ending well: one that says so, has died, has
    /// ended, or has begun fewer operations than this one.
    pub(super) fn blame(&self, what: &str, failure: &Failure) -> DistributedError {
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
    fn lives_of_others(&self) -> Result<Vec<Option<Life>>, DistributedError> {
        let mut lives = self.lives()?;
        for (life, ended) in lives.iter_mut().zip(self.have_ended()?) {
            *life = life.filter(|_| !ended);
        }
        lives[self.launch.rank] = None;
        Ok(lives)
    }

    /// Whether another rank has ended.
    pub(super) fn has_one_ended(&self) -> Result<bool, DistributedError> {
        let ended = self.have_ended()?;
        Ok(ended.iter().enumerate().any(|(rank, ended)| *ended && rank != self.launch.rank))
    }

    fn watch(&self) -> MutexGuard<'_, Watch> {
        self.watch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The longest that another rank has not given a new sign of life, as far as this one looked.
    pub(super) fn longest_silence(&self) -> Result<Duration, DistributedError> {
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

    /// Says that this rank ends, and waits for the others. If this rank serves the store, they need
    /// it until they end, or until they have heard why this one does. Else the last message of an
    /// operation may be under way.
    fn say_goodbye(&self) {
        self.stop_beating.store(true, Ordering::SeqCst);
        let key = self.key("ended", &self.launch.rank.to_string());
        if self.ask(move |store| store.set(&key, b"1")).is_err() {
            return;
        }
        let serves = self.launch.is_first() && !self.address.is_served_by_agent;
        let longest = match (self.has_words.load(Ordering::SeqCst), serves) {
            (false, true) => Duration::MAX,
            (true, true) => BEAT * 6,
            (false, false) => BEAT * 2,
            (true, false) => Duration::ZERO,
        };
        let begin = Instant::now();
        while begin.elapsed() < longest {
            let Ok(lives) = self.lives_of_others() else { return };
            let newest = self.watch().ages(&lives).map(|(_, age)| age).min();
            if newest.is_none_or(|age| age > SILENCE * 4) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.say_goodbye();
        self.client.close();
    }
}

fn read_words(store: &TcpStore, key: &str) -> Result<Option<Words>, TchError> {
    Ok(store.get(key)?.and_then(|words| serde_json::from_slice(&words).ok()))
}

fn no_answer(address: &StoreAddress, what: String) -> DistributedError {
    let server = if address.is_served_by_agent { "torchrun's agent" } else { "rank 0" };
    DistributedError::NoAnswer { server, host: address.host.clone(), port: address.port, what }
}

/// Why an operation did not end well.
#[derive(Debug)]
pub(super) enum Failure {
    /// An operation failed, with the library's message.
    Error(&'static str, String),
    /// It did not end in time.
    Limit(Duration),
    /// Another rank has ended.
    Ended,
}

/// When each rank last gave a new sign of life, by the clock of this process.
#[derive(Debug)]
struct Watch {
    seen: Vec<(Option<Life>, Instant)>,
}

impl Watch {
    /// The ranks that live, and how long they have given no new sign of life.
    fn ages(&mut self, lives: &[Option<Life>]) -> impl Iterator<Item = (usize, Duration)> {
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
