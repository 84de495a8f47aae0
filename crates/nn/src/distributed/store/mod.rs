//! The launcher's TCP store.

mod client;
mod lives;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use runkit::launch::{Launch, StoreAddress};
use tch::TchError;

use self::client::Client;
pub(super) use self::lives::Failure;
use self::lives::{Life, Watch, Words, read_words};
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

    /// Says that this rank ends. First it waits a moment for the others to come here, since the last
    /// message of an operation may be under way. Last, if it serves the store, it waits until the
    /// others have ended, or have heard why this one does. The others ask the store nothing after
    /// they have ended.
    fn say_goodbye(&self) {
        self.stop_beating.store(true, Ordering::SeqCst);
        let failed = self.has_words.load(Ordering::SeqCst);
        if !failed && self.all_come_to("leaving", BEAT * 2).is_err() {
            return;
        }
        let key = self.key("ended", &self.launch.rank.to_string());
        if self.ask(move |store| store.set(&key, b"1")).is_err() {
            return;
        }
        let serves = self.launch.is_first() && !self.address.is_served_by_agent;
        let longest = match (serves, failed) {
            (false, _) => Duration::ZERO,
            (true, true) => BEAT * 6,
            (true, false) => Duration::MAX,
        };
        // An error is that of a store that has ended.
        let _ = self.all_come_to("ended", longest);
    }

    /// Counts this rank at a place, and waits until all are counted or no other one lives, at most
    /// so long.
    fn all_come_to(&self, place: &str, longest: Duration) -> Result<(), DistributedError> {
        let (begin, mut looked) = (Instant::now(), Instant::now());
        let world = i64::try_from(self.launch.world).unwrap_or(i64::MAX);
        let mut own = 1;
        loop {
            let (key, amount) = (self.key(place, "count"), std::mem::take(&mut own));
            let here = self.ask(move |store| store.add(&key, amount))?;
            if here >= world || begin.elapsed() >= longest {
                return Ok(());
            }
            // This asks for the signs of all ranks.
            if looked.elapsed() > BEAT {
                looked = Instant::now();
                let lives = self.lives_of_others()?;
                let newest = self.watch().ages(&lives).map(|(_, age)| age).min();
                if newest.is_none_or(|age| age > SILENCE * 4) {
                    return Ok(());
                }
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

fn no_answer(address: &StoreAddress, what: String) -> DistributedError {
    let server = if address.is_served_by_agent { "torchrun's agent" } else { "rank 0" };
    DistributedError::NoAnswer { server, host: address.host.clone(), port: address.port, what }
}
