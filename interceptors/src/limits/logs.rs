//! The logs of many callers, in bounded memory.
//!
//! Strangers can name any number of callers, and have calls of each admitted. Neither makes another caller's calls
//! forgotten while they count. There is room for so many callers with calls that count; further ones share a few logs
//! by chance until there is room, each with what all who share it have left. And there is room for so many runs of
//! all logs: when it is used up, the longest logs are made coarser. Both refuse more than the limits would, and never
//! less.

use super::{bounded::Hashed, log::Log};
use parking_lot::Mutex;
use std::{
    collections::{HashMap, hash_map::Entry},
    hash::BuildHasherDefault,
    time::Duration,
};
use tars_runtime::clock::Monotonic;

/// Maximum number of callers with a log of their own.
pub(super) const MAX_KEYS: usize = 65_536;
/// Maximum number of runs of all logs: of 24 bytes each.
pub(super) const MAX_RUNS: usize = 524_288;
const SHARDS: usize = 64;
/// How many logs the callers of a shard share who have none of their own.
const CROWD: usize = 16;
/// How often a shard looks for logs that nothing counts of any more, at most.
const PAUSE: Duration = Duration::from_millis(100);

/// Logs by key.
#[derive(Debug)]
pub(super) struct Logs {
    shards: Vec<Mutex<Shard>>,
}

#[derive(Debug, Default)]
struct Shard {
    own: HashMap<u64, Log, BuildHasherDefault<Hashed>>,
    /// The logs of callers for whom there was no room. Empty until there are such.
    crowd: Vec<Log>,
    /// The runs of all of them.
    runs: usize,
    /// Until when it is not looked for room again.
    full_until: Monotonic,
}

/// Which of the logs of its shard a key without one of its own shares.
fn place(key: u64) -> usize {
    (key >> 40) as usize % CROWD
}

impl Logs {
    pub(super) fn new() -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
        }
    }

    /// Runs `work` on the log of a key, which has what counts within `window`.
    pub(super) fn with<T>(
        &self,
        key: u64,
        window: Duration,
        now: Monotonic,
        work: impl FnOnce(&mut Log) -> T,
    ) -> T {
        // A map uses the lowest bits, and the highest.
        let mut shard = self.shards[(key >> 32) as usize % SHARDS].lock();
        if shard.runs >= MAX_RUNS / SHARDS {
            shard.thin(now);
        }
        shard.with(key, window, now, work)
    }

    #[cfg(test)]
    pub(super) fn keys(&self) -> usize {
        self.shards.iter().map(|s| s.lock().own.len()).sum()
    }

    /// Counted anew.
    #[cfg(test)]
    pub(super) fn runs(&self) -> usize {
        let runs = |shard: &Shard| {
            let all = shard.own.values().chain(&shard.crowd);
            let runs = all.map(Log::len).sum::<usize>();
            assert_eq!(runs, shard.runs);
            runs
        };
        self.shards.iter().map(|shard| runs(&shard.lock())).sum()
    }
}

impl Shard {
    fn with<T>(
        &mut self,
        key: u64,
        window: Duration,
        now: Monotonic,
        work: impl FnOnce(&mut Log) -> T,
    ) -> T {
        let is_full = self.own.len() >= MAX_KEYS / SHARDS;
        let log = if is_full && !self.own.contains_key(&key) && !self.make_room(now) {
            self.crowd.resize_with(CROWD, Log::default);
            let log = &mut self.crowd[place(key)];
            self.runs -= log.len();
            log.keep_for_all(window, now);
            log
        } else {
            let log = match self.own.entry(key) {
                Entry::Occupied(own) => {
                    let log = own.into_mut();
                    self.runs -= log.len();
                    log
                }
                // What all have spent who shared a log with it may have been spent by it.
                Entry::Vacant(free) => {
                    let shared = self.crowd.get(place(key)).cloned();
                    free.insert(shared.unwrap_or_default())
                }
            };
            log.keep(window, now);
            log
        };
        let done = work(log);
        self.runs += log.len();
        done
    }

    /// Drops the logs of which nothing counts any more; returns whether there is room for another.
    fn make_room(&mut self, now: Monotonic) -> bool {
        if now < self.full_until {
            return false;
        }
        self.expire(now);
        self.runs = self.all().map(|log| log.len()).sum();
        self.full_until = now + PAUSE;
        if self.own.len() < MAX_KEYS / SHARDS {
            return true;
        }
        let first = self.own.values().map(Log::ends).min();
        self.full_until = first.map_or(self.full_until, |first| first.max(self.full_until));
        false
    }

    /// Makes the longest logs coarser.
    fn thin(&mut self, now: Monotonic) {
        self.expire(now);
        let share = MAX_RUNS / SHARDS / (self.own.len() + CROWD);
        self.runs = self.all().map(|log| log.thin(share)).sum();
    }

    fn expire(&mut self, now: Monotonic) {
        self.all().for_each(|log| log.expire(now));
        self.own.retain(|_, log| !log.is_empty());
    }

    fn all(&mut self) -> impl Iterator<Item = &mut Log> {
        self.own.values_mut().chain(&mut self.crowd)
    }
}

#[cfg(test)]
mod tests;
