//! Refresh tokens that were used recently, and may be presented again by a client that lost the
//! reply.
//!
//! The window is measured rather than computed from rows: a wall clock that is set back would keep
//! it open for as long, and one that is set forward would make a second tab look like a thief.
//! After a restart, or on another replica, there is only the row. Its time may be a little ahead, by
//! the clock of the replica that wrote it, but no further than the window is long.

use parking_lot::Mutex;
use std::{collections::HashMap, time::Duration};
use tars_runtime::clock::{Clock, Monotonic};

/// Within this time a repeat receives the same successor.
const WINDOW: Duration = Duration::from_secs(10);
/// The number of remembered uses at which old ones are removed.
const SWEEP_AT: usize = 4096;

#[derive(Debug, Default)]
pub(crate) struct Repeats {
    used: Mutex<HashMap<[u8; 32], Monotonic>>,
}

impl Repeats {
    /// Records the use of a token, by its hash.
    pub(crate) fn used(&self, token: [u8; 32], clock: &Clock) {
        let now = clock.monotonic();
        let mut used = self.used.lock();
        if used.len() >= SWEEP_AT {
            used.retain(|_, at| now.since(*at) <= WINDOW);
        }
        used.insert(token, now);
    }

    /// Whether a token was used within the window. `used_us` is the time of use in its row.
    pub(crate) fn is_recent(&self, token: &[u8; 32], used_us: Option<i64>, clock: &Clock) -> bool {
        if let Some(at) = self.used.lock().get(token) {
            return clock.monotonic().since(*at) <= WINDOW;
        }
        let off_us = used_us.map(|at| clock.now_us().abs_diff(at));
        off_us.is_some_and(|us| Duration::from_micros(us) <= WINDOW)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: [u8; 32] = [7; 32];
    const HOUR: Duration = Duration::from_secs(3600);

    fn clock() -> Clock {
        Clock::manual(Duration::from_secs(1_800_000_000))
    }

    #[test]
    fn steps_of_the_wall_clock_do_not_move_the_window() {
        let (clock, repeats) = (clock(), Repeats::default());
        let row = Some(clock.now_us());
        repeats.used(TOKEN, &clock);
        clock.step_forward(HOUR);
        assert!(repeats.is_recent(&TOKEN, row, &clock));
        clock.step_back(HOUR * 2);
        assert!(repeats.is_recent(&TOKEN, row, &clock));
        clock.advance(WINDOW + Duration::from_secs(1));
        assert!(!repeats.is_recent(&TOKEN, row, &clock), "still set back");
    }

    #[test]
    fn a_row_counts_only_when_its_time_is_near() {
        let (clock, repeats) = (clock(), Repeats::default());
        let row = Some(clock.now_us());
        assert!(repeats.is_recent(&TOKEN, row, &clock));
        assert!(!repeats.is_recent(&TOKEN, None, &clock));
        clock.step_back(WINDOW / 2);
        assert!(repeats.is_recent(&TOKEN, row, &clock), "by another clock");
        clock.step_back(HOUR);
        assert!(!repeats.is_recent(&TOKEN, row, &clock), "in the future");
        clock.step_forward(HOUR * 2);
        assert!(!repeats.is_recent(&TOKEN, row, &clock), "long ago");
    }

    #[test]
    fn old_uses_are_removed() {
        let (clock, repeats) = (clock(), Repeats::default());
        for n in 0..10 * SWEEP_AT {
            let mut token = TOKEN;
            token[..8].copy_from_slice(&n.to_be_bytes());
            repeats.used(token, &clock);
            clock.advance(Duration::from_millis(10));
        }
        assert!(repeats.used.lock().len() <= SWEEP_AT);
    }
}
