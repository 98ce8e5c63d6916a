//! Exponential backoff: how long to wait before something that failed is tried again.
//!
//! The delay is `base` after the first failure and doubles with each one that follows, up to `cap`.
//! Where many processes may fail at the same moment, *equal jitter* spreads them: each waits between
//! half of the delay and all of it (Marc Brooker, "Exponential Backoff And Jitter", AWS Architecture
//! Blog, 2015). Full jitter spreads better, but may retry almost at once, which an overloaded server
//! does not need.

use crate::seeds::Seeds;
use std::time::Duration;

/// Doublings beyond this exceed any cap.
const MAX_DOUBLINGS: u32 = 31;

/// The delays between the attempts of one task.
#[derive(Debug, Clone)]
pub struct Backoff {
    base: Duration,
    cap: Duration,
    jitter: Option<Seeds>,
    failures: u32,
}

impl Backoff {
    /// Creates a backoff without jitter that starts at `base` and never exceeds `cap`.
    pub const fn new(base: Duration, cap: Duration) -> Self {
        Self {
            base,
            cap,
            jitter: None,
            failures: 0,
        }
    }

    /// Shortens each delay by up to a half, at random.
    #[must_use]
    pub fn with_jitter(mut self, seeds: Seeds) -> Self {
        self.jitter = Some(seeds);
        self
    }

    /// Records a failure and returns the delay before the next attempt.
    pub fn next_delay(&mut self) -> Duration {
        self.failures = self.failures.saturating_add(1);
        self.after(self.failures)
    }

    /// Starts over: the last attempt succeeded.
    pub fn reset(&mut self) {
        self.failures = 0;
    }

    /// Returns the delay after this many failures in a row, for callers that count them elsewhere;
    /// zero after none.
    pub fn after(&self, failures: u32) -> Duration {
        let Some(doublings) = failures.checked_sub(1) else {
            return Duration::ZERO;
        };
        let factor = 1u32 << doublings.min(MAX_DOUBLINGS);
        let delay = self.base.saturating_mul(factor).min(self.cap);
        match &self.jitter {
            Some(seeds) => spread(delay, seeds),
            None => delay,
        }
    }
}

/// The delays between the attempts of something that is given up after a while: once the sum of its delays
/// has reached a bound. Time that the attempts themselves take does not count.
#[derive(Debug, Clone)]
pub struct Patience {
    backoff: Backoff,
    bound: Duration,
    waited: Duration,
}

impl Patience {
    /// Waits by `backoff`, `bound` in all.
    pub const fn new(backoff: Backoff, bound: Duration) -> Self {
        Self {
            backoff,
            bound,
            waited: Duration::ZERO,
        }
    }

    /// Records a failure and returns the delay before the next attempt, also beyond the bound.
    pub fn next_delay(&mut self) -> Duration {
        let delay = self.backoff.next_delay();
        self.waited = self.waited.saturating_add(delay);
        delay
    }

    /// Whether there is time for another attempt.
    pub fn is_left(&self) -> bool {
        self.waited < self.bound
    }

    /// Gives the whole time again, after a failure that shows that the other side is there. The delays
    /// keep growing.
    pub fn renew(&mut self) {
        self.waited = Duration::ZERO;
    }

    /// Starts over after a success.
    pub fn reset(&mut self) {
        self.backoff.reset();
        self.renew();
    }
}

/// Returns a delay between half of `delay` and all of it, for periodic work that many processes do.
pub fn spread(delay: Duration, seeds: &Seeds) -> Duration {
    delay.mul_f64(0.5 + seeds.fraction() / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: Duration = Duration::from_millis(100);
    const CAP: Duration = Duration::from_secs(1);

    #[test]
    fn delays_double_up_to_the_cap_and_start_over_after_a_reset() {
        let mut backoff = Backoff::new(BASE, CAP);
        let mut next = || backoff.next_delay().as_millis();
        assert_eq!([next(), next(), next(), next()], [100, 200, 400, 800]);
        assert_eq!([next(), next()], [1000, 1000]);
        backoff.reset();
        assert_eq!(backoff.next_delay(), BASE);
    }

    #[test]
    fn patience_ends_with_the_sum_of_the_delays_and_can_be_renewed() {
        let mut patience = Patience::new(Backoff::new(BASE, CAP), BASE * 6);
        for expected in [1, 2, 4] {
            assert!(patience.is_left());
            assert_eq!(patience.next_delay(), BASE * expected);
        }
        assert!(!patience.is_left());
        patience.renew();
        assert!(patience.is_left());
        assert_eq!(patience.next_delay(), BASE * 8, "the delays keep growing");
        assert!(!patience.is_left());
        patience.reset();
        assert!(patience.is_left());
        assert_eq!(patience.next_delay(), BASE);
    }

    #[test]
    fn a_delay_follows_from_the_number_of_failures() {
        let backoff = Backoff::new(BASE, CAP);
        assert_eq!(backoff.after(0), Duration::ZERO);
        assert_eq!(backoff.after(1), BASE);
        assert_eq!(backoff.after(3), BASE * 4);
        assert_eq!(backoff.after(u32::MAX), CAP);
    }

    #[test]
    fn no_delay_exceeds_the_cap() {
        let capped = Backoff::new(CAP, BASE);
        assert_eq!(capped.after(1), BASE);
        let long = Backoff::new(Duration::MAX, Duration::MAX);
        assert_eq!(long.after(u32::MAX), Duration::MAX);
    }

    #[test]
    fn jitter_shortens_a_delay_by_up_to_a_half() {
        let backoff = Backoff::new(BASE, CAP).with_jitter(Seeds::system());
        let delays: Vec<Duration> = (0..1000).map(|_| backoff.after(2)).collect();
        assert!(delays.iter().all(|d| (BASE..=BASE * 2).contains(d)));
        assert!(delays.iter().any(|d| *d < BASE * 3 / 2));
        assert!(delays.iter().any(|d| *d > BASE * 3 / 2));
    }

    #[test]
    fn jitter_follows_from_the_seeds() {
        let spread_with = |first| spread(CAP, &Seeds::counted(first));
        assert_eq!(spread_with(0), CAP / 2);
        assert_eq!(spread_with(1 << 52), CAP * 3 / 4);
    }
}
