//! How fast a run is.

use parking_lot::Mutex;
use tars_runtime::clock::{Clock, Monotonic};

/// The pace of a run in this process, from its first report to its last.
#[derive(Debug, Default)]
pub(super) struct Pace(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    first: Option<(u64, Monotonic)>,
    rate: Option<f64>,
}

impl Pace {
    /// Takes in how far the run is by now.
    pub(super) fn record(&self, step: u64, clock: &Clock) {
        let (now, mut state) = (clock.monotonic(), self.0.lock());
        let (first, begun) = *state.first.get_or_insert((step, now));
        let seconds = now.since(begun).as_secs_f64();
        if step > first && seconds > 0.0 {
            state.rate = Some((step - first) as f64 / seconds);
        }
    }

    /// Steps a second.
    pub(super) fn rate(&self) -> Option<f64> {
        self.0.lock().rate
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn the_rate_is_measured_from_the_first_report_on() {
        let clock = Clock::manual(Duration::from_secs(1_700_000_000));
        let pace = Pace::default();
        assert_eq!(pace.rate(), None);
        pace.record(5_000, &clock);
        assert_eq!(pace.rate(), None, "one report is no interval");
        pace.record(6_000, &clock);
        assert_eq!(pace.rate(), None, "no time has passed");
        clock.advance(Duration::from_secs(2));
        pace.record(7_000, &clock);
        assert_eq!(pace.rate(), Some(1_000.0));
        clock.advance(Duration::from_secs(8));
        pace.record(8_000, &clock);
        assert_eq!(pace.rate(), Some(300.0));
    }
}
