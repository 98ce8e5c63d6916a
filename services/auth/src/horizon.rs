//! What has certainly ended.
//!
//! The wall clock may be set forward temporarily. A row that is deleted in the meantime, or a
//! snapshot taken without it, would make a revoked credential valid again. Therefore only what has
//! ended both by the wall clock and by the time measured since the start is left out or deleted,
//! and only after a margin, which covers a process that starts while its wall clock is ahead. Each
//! replica measures for itself: what one leaves out, another may still send, which does no harm.

use std::time::Duration;
use tars_runtime::clock::{Clock, Monotonic};

pub(crate) const DAY: Duration = Duration::from_secs(86_400);

#[derive(Debug, Clone)]
pub(crate) struct Horizon {
    clock: Clock,
    wall: Duration,
    at: Monotonic,
}

impl Horizon {
    pub(crate) fn new(clock: Clock) -> Self {
        Self {
            wall: clock.now(),
            at: clock.monotonic(),
            clock,
        }
    }

    /// What ended before this moment, in microseconds since the Unix epoch, ended at least `margin`
    /// ago.
    pub(crate) fn ended_us(&self, margin: Duration) -> i64 {
        let measured = self.wall + self.clock.monotonic().since(self.at);
        let now = self.clock.now().min(measured);
        i64::try_from(now.saturating_sub(margin).as_micros()).unwrap_or(i64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Duration = Duration::from_secs(1_800_000_000);

    fn us(at: Duration) -> i64 {
        i64::try_from(at.as_micros()).unwrap()
    }

    #[test]
    fn only_measured_time_moves_the_horizon() {
        let clock = Clock::manual(START);
        let horizon = Horizon::new(clock.clone());
        clock.step_forward(DAY * 4000);
        assert_eq!(horizon.ended_us(DAY), us(START - DAY));
        clock.advance(DAY);
        assert_eq!(horizon.ended_us(DAY), us(START));
        clock.step_back(DAY * 4001);
        assert_eq!(horizon.ended_us(Duration::ZERO), us(START));
        assert_eq!(horizon.ended_us(START * 2), 0);
    }
}
