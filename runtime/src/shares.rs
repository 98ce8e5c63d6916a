//! Places that strangers may take, bounded in total and per key, so that no stranger can take all of them.
//!
//! A place is released when its guard is dropped, and a key that holds none is forgotten: the map never has
//! more entries than there are places held, whatever keys strangers invent.

use parking_lot::Mutex;
use std::{
    collections::{HashMap, hash_map::Entry},
    hash::Hash,
    sync::Arc,
};

/// Why there was no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Full {
    /// Every place is taken.
    #[error("every place is taken")]
    All,
    /// The key holds its share; there may be places for others.
    #[error("the share of this key is taken")]
    Share,
}

impl Full {
    /// Returns the value of the metric label.
    pub fn reason(self) -> &'static str {
        match self {
            Self::All => "full",
            Self::Share => "share",
        }
    }
}

/// Returns the share of one key of `total` places while `free` of them are free: all of `share` at first,
/// and less as places run out, in proportion to what is free beyond the reach of one key. It is at least
/// one, so that a newcomer gets the last places.
pub fn shrunk(total: usize, share: usize, free: usize) -> usize {
    match total.checked_sub(share) {
        Some(others) if free < others => share
            .saturating_mul(free)
            .div_ceil(others)
            .clamp(1, share.max(1)),
        _ => share,
    }
}

/// A number of places, shared among keys. Clones share the places.
#[derive(Debug)]
pub struct Shares<K: Hash + Eq>(Arc<Inner<K>>);

#[derive(Debug)]
struct Inner<K> {
    total: usize,
    held: Mutex<Held<K>>,
}

#[derive(Debug)]
struct Held<K> {
    all: usize,
    by_key: HashMap<K, usize>,
}

impl<K: Hash + Eq> Clone for Shares<K> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<K: Hash + Eq + Clone> Shares<K> {
    /// Creates `total` places, all of them free.
    pub fn new(total: usize) -> Self {
        let held = Held {
            all: 0,
            by_key: HashMap::new(),
        };
        Self(Arc::new(Inner {
            total,
            held: Mutex::new(held),
        }))
    }

    /// Takes a place for `key`, which may hold up to `share` of them.
    ///
    /// # Errors
    ///
    /// [`Full::All`] when no place is free, [`Full::Share`] when `key` already holds `share`.
    pub fn take(&self, key: K, share: usize) -> Result<Place<K>, Full> {
        self.take_with(key, |_| share)
    }

    /// Takes a place for `key` as [`take`](Self::take) does, with a share that [`shrunk`] lowers as the
    /// places run out. One key alone gets its whole share; many at once leave some places free for
    /// newcomers, where fixed shares would let `total / share` keys take all of them.
    ///
    /// # Errors
    ///
    /// As [`take`](Self::take).
    pub fn take_fairly(&self, key: K, share: usize) -> Result<Place<K>, Full> {
        self.take_with(key, |free| shrunk(self.0.total, share, free))
    }

    fn take_with(&self, key: K, share: impl Fn(usize) -> usize) -> Result<Place<K>, Full> {
        let mut held = self.0.held.lock();
        let free = self.0.total.saturating_sub(held.all);
        if free == 0 {
            return Err(Full::All);
        }
        let share = share(free);
        match held.by_key.entry(key.clone()) {
            Entry::Occupied(entry) if *entry.get() >= share => return Err(Full::Share),
            Entry::Vacant(_) if share == 0 => return Err(Full::Share),
            entry => *entry.or_default() += 1,
        }
        held.all += 1;
        Ok(Place {
            of: self.clone(),
            key,
        })
    }

    /// Returns how many places are taken.
    pub fn taken(&self) -> usize {
        self.0.held.lock().all
    }

    /// Returns how many places `key` holds.
    pub fn held(&self, key: &K) -> usize {
        self.0.held.lock().by_key.get(key).copied().unwrap_or(0)
    }

    /// Returns how many keys hold a place.
    #[cfg(test)]
    fn keys(&self) -> usize {
        self.0.held.lock().by_key.len()
    }

    fn give_back(&self, key: &K) {
        let mut held = self.0.held.lock();
        held.all -= 1;
        if let Some(count) = held.by_key.get_mut(key) {
            *count -= 1;
            if *count == 0 {
                held.by_key.remove(key);
            }
        }
    }
}

/// A place that is held until it is dropped.
#[derive(Debug)]
#[must_use = "a place is given back when it is dropped"]
pub struct Place<K: Hash + Eq + Clone> {
    of: Shares<K>,
    key: K,
}

impl<K: Hash + Eq + Clone> Drop for Place<K> {
    fn drop(&mut self) {
        self.of.give_back(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_key_cannot_take_every_place() {
        let shares = Shares::new(3);
        let held = [shares.take("a", 2).unwrap(), shares.take("a", 2).unwrap()];
        assert_eq!(shares.take("a", 2).unwrap_err(), Full::Share);
        let other = shares.take("b", 2).unwrap();
        assert_eq!(shares.take("b", 2).unwrap_err(), Full::All);
        drop(held);
        assert!(shares.take("a", 2).is_ok());
        drop(other);
        assert_eq!((shares.taken(), shares.keys()), (0, 0), "nothing is kept");
    }

    #[test]
    fn many_greedy_keys_leave_places_for_a_newcomer() {
        let shares = Shares::new(1024);
        let mut held = Vec::new();
        for key in 0..16 {
            held.extend(std::iter::from_fn(|| shares.take_fairly(key, 128).ok()));
        }
        assert!(shares.taken() < 1024, "{}", shares.taken());
        let newcomer: Vec<_> = std::iter::from_fn(|| shares.take_fairly(99, 128).ok()).collect();
        assert!(newcomer.len() >= 8, "{}", newcomer.len());
        drop((held, newcomer));
        let alone: Vec<_> = std::iter::from_fn(|| shares.take_fairly(1, 128).ok()).collect();
        assert_eq!(alone.len(), 128, "one key alone has its whole share");
    }

    #[test]
    fn a_share_of_all_does_not_shrink() {
        let shares = Shares::new(4);
        let held: Vec<_> = std::iter::from_fn(|| shares.take_fairly("a", 9).ok()).collect();
        assert_eq!(held.len(), 4);
    }

    #[test]
    fn a_share_shrinks_with_what_is_free_and_never_to_nothing() {
        assert_eq!(shrunk(1024, 128, 1024), 128);
        assert_eq!(shrunk(1024, 128, 896), 128, "one key's reach is not missed");
        assert_eq!(shrunk(1024, 128, 448), 64);
        assert_eq!(shrunk(1024, 128, 1), 1);
        assert_eq!(shrunk(1024, 128, 0), 1);
        assert_eq!((shrunk(4, 4, 0), shrunk(4, 9, 1)), (4, 9), "a share of all");
        assert_eq!(shrunk(4, 0, 4), 0, "no share at all");
        assert_eq!(shrunk(usize::MAX, usize::MAX / 2, usize::MAX / 2), 2);
    }

    #[test]
    fn no_share_is_no_place() {
        let shares = Shares::new(3);
        assert_eq!(shares.take("a", 0).unwrap_err(), Full::Share);
        assert_eq!((shares.taken(), shares.keys()), (0, 0));
    }
}
