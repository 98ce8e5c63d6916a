//! When a server is no longer asked: after five failures within a second (ten budgets, where that is more), or at
//! once when the connection is lost. It is asked again over another connection, once that has been made and
//! settled; no call probes. A key that holds something else is no failure of the server: whoever it counts
//! is decided here, and nobody else.

use parking_lot::Mutex;
use std::{
    collections::VecDeque,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};
use tars_runtime::{
    clock::Monotonic,
    scripts::{ScriptError, Scripts},
};

const FAILURES: usize = 5;
const WITHIN: Duration = Duration::from_secs(1);

/// A connection, for as long as it is of use.
#[derive(Debug)]
pub(super) struct Guarded {
    pub(super) scripts: Scripts,
    breaker: Mutex<Breaker>,
    within: Duration,
    is_open: AtomicBool,
}

impl Guarded {
    /// A connection on which a decision is late after `budget`.
    pub(super) fn new(scripts: Scripts, budget: Duration) -> Self {
        Self {
            scripts,
            breaker: Mutex::new(Breaker::closed()),
            within: WITHIN.max(budget * 10),
            is_open: AtomicBool::new(false),
        }
    }

    /// Whether the server is asked.
    pub(super) fn is_usable(&self) -> bool {
        !self.is_open.load(Ordering::Relaxed)
    }

    /// Records that a script had no result; `None` for one that was late.
    pub(super) fn record_failure(&self, error: Option<&ScriptError>, now: Monotonic) {
        let mut breaker = self.breaker.lock();
        let opens = match error {
            Some(ScriptError::Lost(_) | ScriptError::NotRun(_)) => breaker.trip(),
            Some(ScriptError::WrongType(_)) => false,
            Some(ScriptError::Failed(_)) | None => breaker.record_failure(now, self.within),
        };
        if opens {
            self.is_open.store(true, Ordering::Relaxed);
            self.scripts.close();
        }
    }
}

/// Whether a server is asked.
#[derive(Debug)]
enum Breaker {
    /// It is, with the times of the last failures.
    Closed(VecDeque<Monotonic>),
    /// It is not.
    Open,
}

impl Breaker {
    fn closed() -> Self {
        Self::Closed(VecDeque::with_capacity(FAILURES))
    }

    /// Records a failure, and returns whether it opened the breaker.
    fn record_failure(&mut self, now: Monotonic, within: Duration) -> bool {
        let Self::Closed(failures) = self else {
            return false;
        };
        while failures.front().is_some_and(|at| *at + within <= now) {
            failures.pop_front();
        }
        failures.push_back(now);
        let opens = failures.len() >= FAILURES;
        if opens {
            *self = Self::Open;
        }
        opens
    }

    /// Opens the breaker, and returns whether it was closed.
    fn trip(&mut self) -> bool {
        matches!(std::mem::replace(self, Self::Open), Self::Closed(_))
    }

    #[cfg(test)]
    fn is_closed(&self) -> bool {
        matches!(self, Self::Closed(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const T: Monotonic = Monotonic::from_start(Duration::from_secs(9));

    #[test]
    fn five_failures_within_a_second_open_it_once() {
        let mut breaker = Breaker::closed();
        for n in 0..4 {
            assert!(!breaker.record_failure(T + Duration::from_millis(n), WITHIN));
        }
        assert!(breaker.record_failure(T + Duration::from_millis(999), WITHIN));
        assert!(!breaker.record_failure(T + Duration::from_millis(999), WITHIN));
        assert!(!breaker.trip() && !breaker.is_closed());
    }

    #[test]
    fn failures_that_are_further_apart_do_not_open_it() {
        let mut breaker = Breaker::closed();
        for n in 0..100 {
            assert!(!breaker.record_failure(T + Duration::from_millis(250 * n), WITHIN));
        }
        assert!(breaker.is_closed());
    }

    #[test]
    fn a_lost_connection_opens_it_at_once() {
        let mut breaker = Breaker::closed();
        assert!(breaker.trip());
        assert!(!breaker.trip());
    }
}
