//! How many addresses of one channel are ejected at once: at most half of them. When all of them fail, the
//! cause is somewhere else, and those that are left would only break under the calls of the others.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

/// The ejected addresses of a channel.
#[derive(Debug)]
pub(super) struct Ejections {
    addresses: AtomicUsize,
    ejected: AtomicUsize,
}

impl Ejections {
    pub(super) fn new(addresses: usize) -> Self {
        Self {
            addresses: AtomicUsize::new(addresses),
            ejected: AtomicUsize::new(0),
        }
    }

    /// Sets the number of addresses.
    pub(super) fn set_addresses(&self, addresses: usize) {
        self.addresses.store(addresses, Ordering::Relaxed);
    }

    /// Returns a place for one more address, if there may be one.
    pub(super) fn place(self: &Arc<Self>) -> Option<Ejection> {
        let most = self.addresses.load(Ordering::Relaxed) / 2;
        let more = |ejected| (ejected < most).then_some(ejected + 1);
        let ejected = (self.ejected).fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        ejected.ok().map(|_| Ejection(Arc::clone(self)))
    }
}

/// The place of an ejected address, free again when it is dropped.
#[derive(Debug)]
pub(super) struct Ejection(Arc<Ejections>);

impl Drop for Ejection {
    fn drop(&mut self) {
        self.0.ejected.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn at_most_half_of_the_addresses_have_a_place_and_the_only_one_has_none() {
        for (addresses, most) in [(0, 0), (1, 0), (2, 1), (3, 1), (4, 2), (7, 3)] {
            let ejections = Arc::new(Ejections::new(addresses));
            let mut places: Vec<_> = std::iter::from_fn(|| ejections.place()).collect();
            assert_eq!(places.len(), most, "{addresses}");
            if places.pop().is_some() {
                assert!(ejections.place().is_some(), "a place that is free again");
            }
        }
    }

    #[test]
    fn addresses_that_appear_make_room() {
        let ejections = Arc::new(Ejections::new(1));
        assert!(ejections.place().is_none());
        ejections.set_addresses(2);
        assert!(ejections.place().is_some());
    }
}
