//! The progress of the measurements that this process makes.
//!
//! It is a sign of life for watchers and kept in memory alone: after a restart, and at another
//! replica, there is none until a measurement begins there.

use crate::{
    saga::measure::Purpose,
    store::{Proposal, State},
};
use parking_lot::Mutex;
use std::collections::HashMap;
use uuid::Uuid;

/// How many of a measurement's training runs have ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Progress {
    pub(crate) ended: u32,
    pub(crate) runs: u32,
}

type Key = (Uuid, Purpose);

/// The measurements in progress. There are as many as are made at once.
#[derive(Debug, Default)]
pub(crate) struct Measurements(Mutex<HashMap<Key, Progress>>);

impl Measurements {
    /// The progress of the measurement that a proposal waits for in its present state.
    pub(crate) fn of(&self, proposal: &Proposal) -> Option<Progress> {
        let purpose = match proposal.state {
            State::PendingApproval | State::Approved => Purpose::Assessment,
            State::Verifying => Purpose::Verification,
            _ => return None,
        };
        self.0.lock().get(&(proposal.id, purpose)).copied()
    }

    /// Shows a measurement of this many training runs until the result is dropped.
    pub(crate) fn begin(&self, proposal: Uuid, purpose: Purpose, runs: usize) -> Measurement<'_> {
        let key = (proposal, purpose);
        let runs = u32::try_from(runs).unwrap_or(u32::MAX);
        self.0.lock().insert(key, Progress { ended: 0, runs });
        Measurement { all: self, key }
    }
}

/// A measurement that is shown until this is dropped.
pub(crate) struct Measurement<'a> {
    all: &'a Measurements,
    key: Key,
}

impl Measurement<'_> {
    pub(crate) fn run_ended(&self) {
        if let Some(progress) = self.all.0.lock().get_mut(&self.key) {
            progress.ended += 1;
        }
    }
}

impl Drop for Measurement<'_> {
    fn drop(&mut self) {
        self.all.0.lock().remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tests::proposal;

    #[test]
    fn a_proposal_shows_the_measurement_of_its_state_while_it_is_made() {
        let all = Measurements::default();
        let (pending, verifying) = (proposal(State::PendingApproval), proposal(State::Verifying));
        let verifying = Proposal {
            id: pending.id,
            ..verifying
        };
        let begun = all.begin(pending.id, Purpose::Assessment, 4);
        begun.run_ended();
        assert_eq!(all.of(&pending), Some(Progress { ended: 1, runs: 4 }));
        assert_eq!(all.of(&verifying), None, "it is another measurement");
        let other = all.begin(pending.id, Purpose::Verification, 2);
        drop(begun);
        assert_eq!(all.of(&pending), None);
        assert_eq!(all.of(&verifying), Some(Progress { ended: 0, runs: 2 }));
        drop(other);
        assert_eq!(all.of(&verifying), None);
    }
}
