//! The replicas of a service. A new one serves only after its start-up; one that is no longer wanted stops at
//! once, those that still start first.

use super::calibration::Service;
use serde::{Deserialize, Serialize};

/// The longest start-up, in intervals; a longer one counts as this.
pub(crate) const MAX_START_UP: usize = 12;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Replicas {
    pub(crate) ready: u32,
    /// By the number of intervals that are left, less one.
    starting: [u32; MAX_START_UP],
}

impl Replicas {
    pub(crate) fn ready(count: u32) -> Self {
        Self {
            ready: count,
            starting: [0; MAX_START_UP],
        }
    }

    pub(crate) fn starting(&self) -> u32 {
        self.starting.iter().sum()
    }

    /// Whether a service can have these.
    pub(crate) fn is_sound(&self, service: &Service) -> bool {
        let most = service.max_replicas;
        let starting = self
            .starting
            .iter()
            .try_fold(0u32, |sum, n| sum.checked_add(*n));
        let all = starting.and_then(|starting| starting.checked_add(self.ready));
        self.ready >= 1 && all.is_some_and(|all| all <= most)
    }

    /// Begins an interval: starts go on, and then as many replicas start or stop as `wanted` requires.
    pub(crate) fn advance(&mut self, wanted: u32, start_up: usize) {
        self.ready += self.starting[0];
        self.starting.rotate_left(1);
        self.starting[MAX_START_UP - 1] = 0;
        let have = self.ready + self.starting();
        if wanted >= have {
            self.start(wanted - have, start_up);
        } else {
            self.stop(have - wanted);
        }
    }

    fn start(&mut self, count: u32, start_up: usize) {
        match start_up.min(MAX_START_UP) {
            0 => self.ready += count,
            intervals => self.starting[intervals - 1] += count,
        }
    }

    fn stop(&mut self, mut count: u32) {
        for starting in self.starting.iter_mut().rev() {
            let stopped = count.min(*starting);
            *starting -= stopped;
            count -= stopped;
        }
        self.ready -= count;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_replica_serves_after_its_start_up() {
        let mut replicas = Replicas::ready(2);
        replicas.advance(5, 3);
        for _ in 0..2 {
            replicas.advance(5, 3);
            assert_eq!((replicas.ready, replicas.starting()), (2, 3));
        }
        replicas.advance(5, 3);
        assert_eq!((replicas.ready, replicas.starting()), (5, 0));
    }

    #[test]
    fn a_service_without_start_up_follows_at_once() {
        let mut replicas = Replicas::ready(1);
        replicas.advance(4, 0);
        assert_eq!(replicas.ready, 4);
    }

    #[test]
    fn those_that_start_last_stop_first() {
        let mut replicas = Replicas::ready(2);
        replicas.advance(4, 3);
        replicas.advance(6, 3);
        replicas.advance(3, 3);
        assert_eq!((replicas.ready, replicas.starting()), (2, 1));
        replicas.advance(1, 3);
        assert_eq!((replicas.ready, replicas.starting()), (1, 0));
    }
}
