//! The reports of a run on their way to the database.
//!
//! They are stored in groups, a few times a second at most, so that a fast run costs few commits. A group
//! that was begun stays as it is until it is stored: should the answer to a commit be lost, the same group
//! is written again and numbers no report twice.

use crate::store::{Group, Report};
use parking_lot::Mutex;
use std::time::Duration;
use tokio::time::{Instant, sleep_until};

/// How long a report waits for others.
const GROUP: Duration = Duration::from_millis(100);
/// Reports that wait. Beyond it none is taken from the learner, which then waits for the database.
const MOST: usize = 1024;

#[derive(Debug, Default)]
pub(crate) struct Journal(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// How many reports are stored.
    stored: usize,
    waiting: Vec<Report>,
    /// How many of those that wait are in the group that was begun.
    begun: usize,
    /// When the first of them is to be stored.
    due: Option<Instant>,
}

impl Journal {
    /// The journal of a run of which so many reports are stored.
    pub(crate) fn after(stored: i64) -> Self {
        Self(Mutex::new(State {
            stored: usize::try_from(stored).unwrap_or_default(),
            ..State::default()
        }))
    }

    pub(crate) fn push(&self, report: Report) {
        let mut state = self.0.lock();
        state.waiting.push(report);
        state.due.get_or_insert_with(|| Instant::now() + GROUP);
    }

    pub(crate) fn is_full(&self) -> bool {
        self.0.lock().waiting.len() >= MOST
    }

    /// Waits until there is a group to store.
    pub(crate) async fn due(&self) {
        let due = self.0.lock().due;
        match due {
            Some(due) => sleep_until(due).await,
            None => std::future::pending().await,
        }
    }

    /// The next group to store, if anything waits.
    pub(crate) fn begin(&self) -> Option<Group> {
        let mut state = self.0.lock();
        if state.begun == 0 {
            state.begun = state.waiting.len();
        }
        let reports = state.waiting[..state.begun].to_vec();
        let last = state.stored + state.begun;
        (!reports.is_empty()).then(|| Group {
            last: i64::try_from(last).unwrap_or(i64::MAX),
            reports,
        })
    }

    /// The group that was begun is stored.
    pub(crate) fn stored(&self) {
        let mut state = self.0.lock();
        let begun = std::mem::take(&mut state.begun);
        state.stored += begun;
        state.waiting.drain(..begun);
        state.due = (!state.waiting.is_empty()).then(Instant::now);
    }

    /// The group could not be stored, and is tried again after a while.
    pub(crate) fn defer(&self, by: Duration) {
        self.0.lock().due = Some(Instant::now() + by);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(step: u64) -> Report {
        Report {
            step,
            episode: 0,
            agents: Vec::new(),
        }
    }

    fn numbers(group: Option<Group>) -> Vec<(i64, u64)> {
        let numbered = group.into_iter().flat_map(Group::numbered);
        numbered.map(|(n, report)| (n, report.step)).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn reports_wait_for_others_and_are_numbered_in_order() {
        let journal = Journal::default();
        let begun = Instant::now();
        assert!(numbers(journal.begin()).is_empty());
        for step in [10, 20, 30] {
            journal.push(report(step));
            tokio::time::advance(GROUP / 4).await;
        }
        journal.due().await;
        assert!(begun.elapsed() >= GROUP && begun.elapsed() < GROUP * 2);
        assert_eq!(numbers(journal.begin()), [(1, 10), (2, 20), (3, 30)]);
        journal.stored();
        assert!(journal.begin().is_none());
        journal.push(report(40));
        assert_eq!(numbers(journal.begin()), [(4, 40)]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_group_that_was_not_stored_is_the_same_when_it_is_tried_again() {
        let journal = Journal::default();
        journal.push(report(10));
        let first = journal.begin();
        journal.defer(GROUP);
        journal.push(report(20));
        assert_eq!(journal.begin(), first, "its answer may have been lost");
        journal.stored();
        let left = tokio::time::timeout(GROUP / 2, journal.due());
        left.await.expect("the rest is due");
        assert_eq!(numbers(journal.begin()), [(2, 20)]);
    }

    #[tokio::test(start_paused = true)]
    async fn the_reports_that_wait_are_bounded() {
        let journal = Journal::default();
        for step in 0..MOST as u64 {
            assert!(!journal.is_full());
            journal.push(report(step));
        }
        assert!(journal.is_full());
        journal.begin();
        journal.stored();
        assert!(!journal.is_full());
        let due = tokio::time::timeout(GROUP * 10, journal.due());
        due.await.unwrap_err();
    }
}
