//! How many calls may be in flight, by how much slower they are than usual.
//!
//! The rule is that of Netflix's concurrency-limits (`Gradient2Limit`): the limit is multiplied by the usual
//! time over the present one, within bounds, and has some room added for a queue; what is added while calls are
//! as fast as usual is how it finds out that more would do. Bounds rather than the rule itself decide about the
//! extremes: a floor, below which a process serves no less however slow it is, and a ceiling.

/// How much slower than usual calls may be before the limit falls.
const TOLERANCE: f64 = 1.5;
/// The most by which one window lowers the limit, before smoothing.
const LEAST: f64 = 0.5;
/// The part of a new limit that is adopted after one window.
const SMOOTHING: f64 = 0.2;

/// A limit that follows how slow calls are.
#[derive(Debug)]
pub(super) struct Gradient {
    limit: f64,
    floor: f64,
    ceiling: f64,
}

/// What was measured in one window.
#[derive(Debug, Clone, Copy)]
pub(super) struct Window {
    /// The present duration of calls over the usual one.
    pub(super) slowness: f64,
    /// The most calls that were in flight.
    pub(super) most: u32,
}

impl Gradient {
    /// Begins at the ceiling: a process that has measured nothing refuses nothing.
    pub(super) fn new(floor: u32, ceiling: u32) -> Self {
        let ceiling = f64::from(ceiling.max(floor));
        Self {
            limit: ceiling,
            floor: f64::from(floor),
            ceiling,
        }
    }

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "within bounds that are u32"
    )]
    pub(super) fn limit(&self) -> u32 {
        self.limit as u32
    }

    /// Whether so many calls in flight say something about the limit: with less than half of it, it is not
    /// the limit that decides.
    pub(super) fn is_used(&self, most: u32) -> bool {
        f64::from(most) * 2.0 >= self.limit
    }

    /// Adapts the limit to a window.
    pub(super) fn adapt(&mut self, window: Window) {
        let gradient = (TOLERANCE / window.slowness).clamp(LEAST, 1.0);
        let falls = gradient < 1.0;
        // A limit far above what is in flight would take many windows to be felt.
        if falls {
            self.limit = self.limit.min(f64::from(window.most) * 2.0).max(self.floor);
        } else if !self.is_used(window.most) {
            return;
        }
        let new = self.limit * gradient + self.limit.sqrt();
        let smooth = self.limit * (1.0 - SMOOTHING) + new * SMOOTHING;
        self.limit = smooth.clamp(self.floor, self.ceiling);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLOOR: u32 = 16;
    const CEILING: u32 = 1000;

    fn gradient() -> Gradient {
        Gradient::new(FLOOR, CEILING)
    }

    fn windows(gradient: &mut Gradient, count: usize, slowness: f64, most: u32) -> u32 {
        for _ in 0..count {
            gradient.adapt(Window { slowness, most });
        }
        gradient.limit()
    }

    #[test]
    fn a_process_that_is_as_fast_as_usual_keeps_its_ceiling() {
        let mut gradient = gradient();
        assert_eq!(windows(&mut gradient, 100, 1.0, CEILING), CEILING);
        assert_eq!(windows(&mut gradient, 100, TOLERANCE, 3), CEILING);
    }

    #[test]
    fn slow_calls_lower_the_limit_to_the_floor_and_no_further() {
        let mut gradient = gradient();
        let after_one = windows(&mut gradient, 1, 8.0, CEILING);
        assert!((CEILING / 2..CEILING).contains(&after_one), "{after_one}");
        let mut last = after_one;
        for _ in 0..200 {
            let now = windows(&mut gradient, 1, 8.0, last);
            assert!(now <= last, "{now} after {last}");
            last = now;
        }
        assert_eq!(last, FLOOR);
    }

    #[test]
    fn a_limit_that_nobody_reaches_falls_to_what_is_in_flight_first() {
        let mut gradient = gradient();
        assert!(windows(&mut gradient, 1, 8.0, 40) < 80);
        assert_eq!(windows(&mut gradient, 1, 8.0, 0), FLOOR);
    }

    #[test]
    fn the_limit_rises_again_only_while_it_is_used() {
        let mut gradient = gradient();
        windows(&mut gradient, 200, 8.0, 1);
        assert_eq!(windows(&mut gradient, 100, 1.0, FLOOR / 2 - 1), FLOOR);
        let risen = windows(&mut gradient, 20, 1.0, FLOOR);
        assert!(risen > FLOOR, "{risen}");
        for _ in 0..2000 {
            let most = gradient.limit();
            windows(&mut gradient, 1, 1.0, most);
        }
        assert_eq!(gradient.limit(), CEILING);
    }

    #[test]
    fn the_limit_settles_where_calls_are_as_slow_as_is_tolerated() {
        // A server with room for 100 calls: beyond that they wait for each other.
        let mut gradient = gradient();
        for _ in 0..500 {
            let most = gradient.limit();
            let slowness = (f64::from(most) / 100.0).max(1.0);
            gradient.adapt(Window { slowness, most });
        }
        let settled = gradient.limit();
        assert!((100..200).contains(&settled), "{settled}");
    }

    #[test]
    fn a_floor_above_the_ceiling_wins() {
        let mut gradient = Gradient::new(50, 10);
        assert_eq!(gradient.limit(), 50);
        assert_eq!(windows(&mut gradient, 50, 9.0, 50), 50);
        assert_eq!(windows(&mut gradient, 50, 1.0, 50), 50);
    }
}
