//! Who holds how many places.

mod kind;

pub(crate) use kind::{KINDS, Kind};

use parking_lot::Mutex;
use std::{
    collections::HashMap,
    hash::{BuildHasher, Hash, RandomState},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

/// What one peer or caller holds, by kind.
#[derive(Debug)]
pub(crate) struct Holder {
    key: u64,
    held: [AtomicU32; KINDS.len()],
}

impl Holder {
    fn new(key: u64) -> Self {
        Self {
            key,
            held: Default::default(),
        }
    }

    /// The key by which it is found wherever keys are hashed by the same [`RandomState`].
    pub(crate) fn key(&self) -> u64 {
        self.key
    }

    pub(crate) fn enter(&self, kind: Kind, most: usize) -> bool {
        let count = &self.held[kind as usize];
        let free = (count.fetch_add(1, Ordering::Relaxed) as usize) < most;
        if !free {
            count.fetch_sub(1, Ordering::Relaxed);
        }
        free
    }

    pub(crate) fn leave(&self, kind: Kind) {
        self.held[kind as usize].fetch_sub(1, Ordering::Relaxed);
    }
}

const SHARDS: usize = 16;
/// Entries of a shard beyond which it drops those that hold nothing.
const IDLE: usize = 1024;

/// Holders by key. Keys are stored as 64-bit hashes under a secret of the process: nobody outside can
/// make two of them collide, and a lookup allocates nothing.
#[derive(Debug)]
pub(crate) struct Holders {
    shards: Vec<Mutex<HashMap<u64, Arc<Holder>>>>,
    hasher: RandomState,
}

impl Holders {
    pub(crate) fn new(hasher: RandomState) -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            hasher,
        }
    }

    pub(crate) fn get(&self, key: impl Hash) -> Arc<Holder> {
        self.with_key(self.hasher.hash_one(key))
    }

    /// The holder of a key that is hashed already.
    pub(crate) fn with_key(&self, key: u64) -> Arc<Holder> {
        let shard = usize::try_from(key % SHARDS as u64).unwrap_or(0);
        let mut held = self.shards[shard].lock();
        if let Some(holder) = held.get(&key) {
            return Arc::clone(holder);
        }
        if held.len() >= IDLE {
            // Nobody can take another reference while the shard is locked.
            held.retain(|_, holder| Arc::strong_count(holder) > 1);
        }
        let new = held
            .entry(key)
            .or_insert_with(|| Arc::new(Holder::new(key)));
        Arc::clone(new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holders_of_nothing_are_dropped() {
        let holders = Holders::new(RandomState::new());
        let kept = holders.get("kept");
        kept.enter(Kind::Calls, 1);
        for n in 0..4 * IDLE * SHARDS {
            holders.get(n);
        }
        let known: usize = holders.shards.iter().map(|s| s.lock().len()).sum();
        assert!(known <= IDLE * SHARDS + SHARDS, "{known}");
        assert!(Arc::ptr_eq(&kept, &holders.get("kept")));
        assert!(Arc::ptr_eq(&kept, &holders.with_key(kept.key())));
    }
}
