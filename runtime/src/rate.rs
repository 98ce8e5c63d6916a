//! The generic cell rate algorithm (ITU-T I.371): a number of calls per period, of which some may come at
//! once.
//!
//! A [`Cell`] is the state of one caller, a single reading of the monotonic clock; the [`Rate`] is shared by
//! all callers of a kind and passed to each call. Where cells are stored is up to their users.

use crate::clock::Monotonic;
use std::time::Duration;

/// How fast a cell refills, and how much it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    interval: Duration,
    burst: u32,
}

impl Rate {
    /// Creates a rate of one call per `interval`, of which `burst` may come at once.
    pub const fn every(interval: Duration, burst: u32) -> Self {
        Self { interval, burst }
    }

    /// Returns the time in which one more call becomes free.
    pub fn interval(&self) -> Duration {
        self.interval
    }

    /// Returns how many calls may come at once.
    pub fn burst(&self) -> u32 {
        self.burst
    }
}

/// What one caller has used. A new cell is full.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cell {
    full: Monotonic,
}

impl Cell {
    /// Takes one call.
    ///
    /// # Errors
    ///
    /// The time until the next one, if there is none. The cell is not changed then.
    pub fn take(&mut self, rate: &Rate, now: Monotonic) -> Result<(), Duration> {
        let ahead = self.full_in(now) + rate.interval;
        let most = rate.interval * rate.burst;
        if ahead > most {
            return Err(ahead - most);
        }
        self.full = now + ahead;
        Ok(())
    }

    /// Gives back a call that was taken.
    pub fn give_back(&mut self, rate: &Rate) {
        self.full = self.full.saturating_sub(rate.interval);
    }

    /// Returns how many calls may come at once now.
    pub fn left(&self, rate: &Rate, now: Monotonic) -> u32 {
        let room = (rate.interval * rate.burst).saturating_sub(self.full_in(now));
        let left = room.as_nanos() / rate.interval.as_nanos().max(1);
        u32::try_from(left).unwrap_or(u32::MAX)
    }

    /// Returns the time until the cell is full again.
    pub fn full_in(&self, now: Monotonic) -> Duration {
        self.full.since(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate::every(Duration::from_millis(100), 5);
    const NOW: Monotonic = Monotonic::from_start(Duration::from_secs(7));

    fn taken(cell: &mut Cell, now: Monotonic) -> u32 {
        let takes = std::iter::repeat_with(|| cell.take(&RATE, now));
        u32::try_from(takes.take_while(Result::is_ok).count()).unwrap()
    }

    #[test]
    fn a_cell_admits_its_burst_and_then_its_rate() {
        let mut cell = Cell::default();
        assert_eq!(cell.left(&RATE, NOW), 5);
        assert_eq!(taken(&mut cell, NOW), 5);
        assert_eq!(cell.left(&RATE, NOW), 0);
        assert_eq!(taken(&mut cell, NOW + Duration::from_millis(350)), 3);
        assert_eq!(taken(&mut cell, NOW + Duration::from_secs(3600)), 5);
    }

    #[test]
    fn a_refusal_takes_nothing_and_returns_the_retry_time() {
        let mut cell = Cell::default();
        taken(&mut cell, NOW);
        for _ in 0..10 {
            assert_eq!(cell.take(&RATE, NOW), Err(Duration::from_millis(100)));
        }
        let early = NOW + Duration::from_millis(99);
        assert_eq!(cell.take(&RATE, early), Err(Duration::from_millis(1)));
        assert!(cell.take(&RATE, NOW + Duration::from_millis(100)).is_ok());
    }

    #[test]
    fn a_call_that_is_given_back_can_be_taken_again() {
        let mut cell = Cell::default();
        taken(&mut cell, NOW);
        cell.give_back(&RATE);
        assert_eq!(taken(&mut cell, NOW), 1);
    }

    #[test]
    fn a_cell_is_full_again_after_all_intervals() {
        let mut cell = Cell::default();
        assert_eq!(cell.full_in(NOW), Duration::ZERO);
        taken(&mut cell, NOW);
        assert_eq!(cell.full_in(NOW), Duration::from_millis(500));
        assert_eq!(
            cell.full_in(NOW + Duration::from_millis(500)),
            Duration::ZERO
        );
    }

    #[test]
    fn without_a_burst_nothing_passes() {
        let none = Rate::every(Duration::from_millis(1), 0);
        assert!(Cell::default().take(&none, NOW).is_err());
    }
}
