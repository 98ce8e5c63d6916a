//! How many processes share a limit, as far as is known.

use super::LimitName;
use std::sync::atomic::{AtomicU32, Ordering};

/// What Redis has told of the processes that are present.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Told {
    /// Those that serve the same as this one.
    pub(super) replicas: u32,
    /// All of them.
    pub(super) processes: u32,
}

/// The most that is believed of what Redis tells, a thousand replicas of each service: whoever could make it more
/// would make everybody's share one call.
const MOST: u32 = 4096;

/// The number of replicas, and of all processes. Until they are told, they are what the configuration says;
/// they are never less than its number of replicas, so that a server which was emptied makes nobody's share the whole.
#[derive(Debug)]
pub(super) struct Present {
    least: u32,
    replicas: AtomicU32,
    processes: AtomicU32,
}

impl Present {
    /// `replicas` of each of `groups` kinds of process.
    pub(super) fn new(replicas: u32, groups: u32) -> Self {
        let least = replicas.max(1);
        Self {
            least,
            replicas: AtomicU32::new(least),
            processes: AtomicU32::new(least.saturating_mul(groups.max(1))),
        }
    }

    pub(super) fn replicas(&self) -> u32 {
        self.replicas.load(Ordering::Relaxed)
    }

    pub(super) fn processes(&self) -> u32 {
        self.processes.load(Ordering::Relaxed)
    }

    /// How many processes count calls against a limit: every service has methods that count as volume, and
    /// one alone, Auth, those of all other limits.
    pub(super) fn sharing(&self, limit: LimitName) -> u32 {
        match limit {
            LimitName::User | LimitName::Internal => self.processes(),
            LimitName::Auth | LimitName::Public | LimitName::Identity | LimitName::KeyChanges => {
                self.replicas()
            }
        }
    }

    /// Adopts what was told. `may_be_less` is false while others may not have had the time to say that they are
    /// present.
    pub(super) fn adopt(&self, told: Told, may_be_less: bool) {
        let adopt = |known: &AtomicU32, told: u32| {
            let told = told.min(MOST).max(self.least);
            match may_be_less {
                true => known.store(told, Ordering::Relaxed),
                false => {
                    known.fetch_max(told, Ordering::Relaxed);
                }
            }
        };
        adopt(&self.replicas, told.replicas);
        adopt(&self.processes, told.processes.max(told.replicas));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract;
    use tars_proto::table::RateClass;

    const fn told(replicas: u32, processes: u32) -> Told {
        Told {
            replicas,
            processes,
        }
    }

    fn known(present: &Present) -> (u32, u32) {
        (present.replicas(), present.processes())
    }

    #[test]
    fn who_has_just_come_back_believes_no_small_number() {
        let present = Present::new(1, 1);
        present.adopt(told(4, 8), true);
        for few in [told(1, 1), told(2, 3)] {
            present.adopt(few, false);
            assert_eq!(known(&present), (4, 8));
        }
        present.adopt(told(5, 9), false);
        assert_eq!(known(&present), (5, 9));
        present.adopt(told(2, 3), true);
        assert_eq!(known(&present), (2, 3));
    }

    #[test]
    fn no_number_is_believed_that_no_mesh_has() {
        let present = Present::new(2, 4);
        present.adopt(told(u32::MAX, u32::MAX), false);
        assert_eq!(known(&present), (MOST, MOST));
        present.adopt(told(2, 8), true);
        assert_eq!(known(&present), (2, 8));
    }

    #[test]
    fn there_are_never_fewer_than_the_configuration_says() {
        let present = Present::new(3, 4);
        assert_eq!(known(&present), (3, 12));
        present.adopt(told(1, 1), true);
        assert_eq!(known(&present), (3, 3));
    }

    #[test]
    fn auth_alone_serves_what_is_shared_among_its_replicas() {
        for method in contract().unwrap().iter() {
            let of_auth = matches!(method.rule.rate, RateClass::Auth | RateClass::Public)
                || method.rule.budget.is_some();
            assert!(
                !of_auth || method.path.starts_with("/tars.auth."),
                "{}",
                method.path
            );
        }
    }
}
