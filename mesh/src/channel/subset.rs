//! Which addresses of a server a client uses, where there are more than it uses of one server.
//!
//! Each client has a subset of its own, so that all addresses are used by some. It follows from a number that the
//! client draws once, and changes by as little as the addresses do.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    net::SocketAddr,
    sync::atomic::{AtomicBool, Ordering},
};
use tars_runtime::{seeds::Seeds, targets::MAX_TARGETS};

#[derive(Debug)]
pub(super) struct Subset {
    seed: u64,
    /// Whether the log says that there are too many.
    is_told: AtomicBool,
}

impl Subset {
    pub(super) fn new(seeds: &Seeds) -> Self {
        Self {
            seed: seeds.draw(),
            is_told: AtomicBool::new(false),
        }
    }

    /// Leaves as many addresses as are used, in their order.
    pub(super) fn cut<T>(&self, workload: &str, found: &mut Vec<T>, addr: fn(&T) -> SocketAddr) {
        let is_cut = found.len() > MAX_TARGETS;
        let was_told = self.is_told.swap(is_cut, Ordering::Relaxed);
        if !is_cut {
            return;
        }
        if !was_told {
            let (found, used) = (found.len(), MAX_TARGETS);
            tracing::warn!(
                workload,
                found,
                used,
                "a server has more addresses than are used"
            );
        }
        let mut ranks: Vec<_> = found.iter().map(|one| self.rank(addr(one))).collect();
        ranks.sort_unstable();
        let most = ranks[MAX_TARGETS - 1];
        found.retain(|one| self.rank(addr(one)) <= most);
        found.truncate(MAX_TARGETS);
    }

    fn rank(&self, addr: SocketAddr) -> u64 {
        let mut hasher = DefaultHasher::new();
        (self.seed, addr).hash(&mut hasher);
        hasher.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn used(subset: &Subset, count: u16) -> Vec<SocketAddr> {
        let mut found: Vec<_> = (1..=count)
            .map(|port| ([192, 0, 2, 1], port).into())
            .collect();
        subset.cut("auth", &mut found, |addr| *addr);
        found
    }

    #[test]
    fn each_client_uses_a_subset_of_its_own_and_together_they_use_all() {
        let seeds = Seeds::counted(1);
        let mut all = BTreeSet::new();
        for _ in 0..40 {
            let used = used(&Subset::new(&seeds), 96);
            assert_eq!(used.len(), MAX_TARGETS);
            assert!(used.is_sorted(), "{used:?}");
            all.extend(used);
        }
        assert_eq!(all.len(), 96);
    }

    #[test]
    fn a_subset_changes_by_as_little_as_the_addresses_do() {
        let subset = Subset::new(&Seeds::counted(1));
        let before: BTreeSet<_> = used(&subset, 96).into_iter().collect();
        let after: BTreeSet<_> = used(&subset, 97).into_iter().collect();
        assert!(before.difference(&after).count() <= 1);
        assert_eq!(used(&subset, 96), before.into_iter().collect::<Vec<_>>());
    }

    #[test]
    fn what_is_used_whole_is_left_as_it_is() {
        let subset = Subset::new(&Seeds::counted(1));
        for count in [0, 1, 64] {
            assert_eq!(used(&subset, count).len(), usize::from(count));
        }
    }
}
