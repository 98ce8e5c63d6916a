//! Who holds how many places.

use super::kind::{KINDS, Kind};
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
#[derive(Debug, Default)]
pub(crate) struct Holder([AtomicU32; KINDS.len()]);

impl Holder {
    pub(super) fn enter(&self, kind: Kind, most: usize) -> bool {
        let count = &self.0[kind as usize];
        let free = (count.fetch_add(1, Ordering::Relaxed) as usize) < most;
        if !free {
            count.fetch_sub(1, Ordering::Relaxed);
        }
        free
    }

    pub(super) fn leave(&self, kind: Kind) {
        self.0[kind as usize].fetch_sub(1, Ordering::Relaxed);
    }
}

const SHARDS: usize = 16;
/// Entries of a shard beyond which it drops those that hold nothing.
const IDLE: usize = 1024;

/// Holders by key. Keys are stored as 64-bit hashes under a secret of the process: nobody outside can
/// make two of them collide, and a lookup allocates nothing.
#[derive(Debug)]
pub(super) struct Holders {
    shards: Vec<Mutex<HashMap<u64, Arc<Holder>>>>,
    hasher: RandomState,
}

impl Holders {
    pub(super) fn new() -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            hasher: RandomState::new(),
        }
    }

    pub(super) fn get(&self, key: impl Hash) -> Arc<Holder> {
        let key = self.hasher.hash_one(key);
        let shard = usize::try_from(key % SHARDS as u64).unwrap_or(0);
        let mut held = self.shards[shard].lock();
        if let Some(holder) = held.get(&key) {
            return Arc::clone(holder);
        }
        if held.len() >= IDLE {
            // Nobody can take another reference while the shard is locked.
            held.retain(|_, holder| Arc::strong_count(holder) > 1);
        }
        Arc::clone(held.entry(key).or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holders_of_nothing_are_dropped() {
        let holders = Holders::new();
        let kept = holders.get("kept");
        kept.enter(Kind::Calls, 1);
        for n in 0..4 * IDLE * SHARDS {
            holders.get(n);
        }
        let known: usize = holders.shards.iter().map(|s| s.lock().len()).sum();
        assert!(known <= IDLE * SHARDS + SHARDS, "{known}");
        assert!(Arc::ptr_eq(&kept, &holders.get("kept")));
    }
}
