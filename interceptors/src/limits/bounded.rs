//! A map of bounded size, for what strangers can name.

use parking_lot::Mutex;
use std::{
    collections::HashMap,
    hash::{BuildHasher, BuildHasherDefault, Hash, Hasher, RandomState},
};
use tars_runtime::clock::Monotonic;

/// Maximum number of keys. Further ones evict the least recently used of their shard, so that
/// strangers cannot fill the memory. What guards secrets is kept in [`Logs`](super::logs::Logs), which forget nothing early.
pub(super) const MAX_KEYS: usize = 65_536;
const SHARDS: usize = 64;

/// Passes on what is a hash already.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Hashed(u64);

impl Hasher for Hashed {
    fn write(&mut self, _: &[u8]) {
        unreachable!("keys are 64-bit hashes");
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

type Shard<V> = HashMap<u64, (Monotonic, V), BuildHasherDefault<Hashed>>;

/// Makes 64-bit keys under a secret of the process: nobody outside can make two of them collide.
#[derive(Debug, Clone, Default)]
pub(super) struct Keys(RandomState);

impl Keys {
    pub(super) fn key(&self, of: impl Hash) -> u64 {
        self.0.hash_one(of)
    }
}

/// A sharded map of bounded size. A lookup allocates nothing.
#[derive(Debug)]
pub(super) struct Bounded<V> {
    shards: Vec<Mutex<Shard<V>>>,
}

impl<V: Default> Bounded<V> {
    pub(super) fn new() -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
        }
    }

    pub(super) fn with<T>(&self, key: u64, now: Monotonic, work: impl FnOnce(&mut V) -> T) -> T {
        // The map itself uses the lowest bits, and the highest.
        let shard = (key >> 32) as usize % SHARDS;
        let mut map = self.shards[shard].lock();
        if let Some((used, value)) = map.get_mut(&key) {
            *used = now;
            return work(value);
        }
        if map.len() >= MAX_KEYS / SHARDS {
            evict(&mut map);
        }
        let (_, value) = map.entry(key).or_insert((now, V::default()));
        work(value)
    }

    /// Runs `work` on what is there, without making it.
    pub(super) fn peek<T>(&self, key: u64, work: impl FnOnce(&mut V) -> T) -> Option<T> {
        let shard = (key >> 32) as usize % SHARDS;
        let mut map = self.shards[shard].lock();
        map.get_mut(&key).map(|(_, value)| work(value))
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().len()).sum()
    }
}

/// Drops the half that has not been used for longest.
fn evict<V>(map: &mut Shard<V>) {
    let mut ages: Vec<Monotonic> = map.values().map(|(used, _)| *used).collect();
    let middle = ages.len() / 2;
    let (_, median, _) = ages.select_nth_unstable(middle);
    let median = *median;
    map.retain(|_, (used, _)| *used > median);
}
