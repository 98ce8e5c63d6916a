//! How many addresses of one channel are ejected at once: at most half of them. When all of them fail, the
//! cause is somewhere else, and those that are left would only break under the calls of the others.

use prometheus_client::metrics::gauge::Gauge;
use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

/// The ejected addresses of a channel.
#[derive(Debug)]
pub(super) struct Ejections {
    addresses: AtomicUsize,
    ejected: AtomicUsize,
    /// The same for all channels to the peer, as a metric.
    shown: Gauge,
}

impl Ejections {
    pub(super) fn new(shown: Gauge) -> Self {
        Self {
            addresses: AtomicUsize::new(0),
            ejected: AtomicUsize::new(0),
            shown,
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
        ejected.ok().map(|_| {
            self.shown.inc();
            Ejection(Arc::clone(self))
        })
    }
}

/// The place of an ejected address, free again when it is dropped.
#[derive(Debug)]
pub(super) struct Ejection(Arc<Ejections>);

impl Drop for Ejection {
    fn drop(&mut self) {
        self.0.ejected.fetch_sub(1, Ordering::Relaxed);
        self.0.shown.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(addresses: usize) -> Arc<Ejections> {
        let ejections = Ejections::new(Gauge::default());
        ejections.set_addresses(addresses);
        Arc::new(ejections)
    }

    #[test]
    fn at_most_half_of_the_addresses_have_a_place_and_the_only_one_has_none() {
        for (addresses, most) in [(0, 0), (1, 0), (2, 1), (3, 1), (4, 2), (7, 3)] {
            let ejections = of(addresses);
            let mut places: Vec<_> = std::iter::from_fn(|| ejections.place()).collect();
            assert_eq!(places.len(), most, "{addresses}");
            assert_eq!(ejections.shown.get(), i64::try_from(most).unwrap());
            if places.pop().is_some() {
                assert!(ejections.place().is_some(), "a place that is free again");
            }
        }
    }

    #[test]
    fn addresses_that_appear_make_room() {
        let ejections = of(1);
        assert!(ejections.place().is_none());
        ejections.set_addresses(2);
        assert!(ejections.place().is_some());
    }
}
