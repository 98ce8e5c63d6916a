//! Time as an input, with both hands.
//!
//! The *wall* hand is what is written down and compared with what others wrote: the times of tokens
//! and certificates, audit records, rows. Somebody may set it at any moment, by hours and in either
//! direction. The *monotonic* hand is what is measured with: limits, delays, ages, windows. Nobody
//! can set it, and it has a type of its own, so that the two cannot be mixed up.
//!
//! On Linux the monotonic hand goes on while the machine is suspended (`CLOCK_BOOTTIME`): what was
//! heard before a night's sleep is a night old. Timers are tokio's, which sleep with the machine;
//! whatever waits for a wall time waits in short pieces, see [`Clock::sleep_until`].
//!
//! `std::time::Instant` and `SystemTime::now` are lints everywhere else.

use parking_lot::Mutex;
use std::{
    fmt,
    ops::Add,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// The longest time between two looks at the wall while something waits for it.
const LOOK: Duration = Duration::from_secs(5);

/// A reading of the monotonic hand. It means something only beside another one of the same clock.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Monotonic(Duration);

impl Monotonic {
    /// A reading as the time since an arbitrary beginning.
    pub const fn from_start(since: Duration) -> Self {
        Self(since)
    }

    /// The time since an earlier reading; zero when that one is later.
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }

    #[must_use]
    pub fn saturating_sub(self, by: Duration) -> Self {
        Self(self.0.saturating_sub(by))
    }
}

impl Add<Duration> for Monotonic {
    type Output = Self;

    fn add(self, by: Duration) -> Self {
        Self(self.0.saturating_add(by))
    }
}

#[derive(Clone)]
pub struct Clock(Source);

#[derive(Clone)]
enum Source {
    System,
    /// Stands until it is moved.
    Manual(Arc<Mutex<Hands>>),
    /// The system's, with the wall set to another time.
    Set(Arc<Mutex<Offset>>),
}

#[derive(Debug, Clone, Copy)]
struct Hands {
    wall: Duration,
    monotonic: Monotonic,
}

#[derive(Debug, Clone, Copy, Default)]
struct Offset {
    ahead: Duration,
    behind: Duration,
}

impl Clock {
    pub fn system() -> Self {
        Self(Source::System)
    }

    /// A clock that stands with its wall at `start` until it is moved.
    pub fn manual(start: Duration) -> Self {
        Self(Source::Manual(Arc::new(Mutex::new(Hands {
            wall: start,
            monotonic: Monotonic::default(),
        }))))
    }

    /// A clock that runs as the system's does, and whose wall can be stepped.
    pub fn settable() -> Self {
        Self(Source::Set(Arc::default()))
    }

    /// The wall: time since the Unix epoch.
    pub fn now(&self) -> Duration {
        match &self.0 {
            Source::System => system_wall(),
            Source::Manual(hands) => hands.lock().wall,
            Source::Set(offset) => {
                let Offset { ahead, behind } = *offset.lock();
                (system_wall() + ahead).saturating_sub(behind)
            }
        }
    }

    /// The wall in microseconds since the Unix epoch, as stores keep them.
    pub fn now_us(&self) -> i64 {
        i64::try_from(self.now().as_micros()).unwrap_or(i64::MAX)
    }

    /// The wall in seconds since the Unix epoch, as tokens carry them.
    pub fn now_s(&self) -> u64 {
        self.now().as_secs()
    }

    /// The hand that nobody can set.
    pub fn monotonic(&self) -> Monotonic {
        match &self.0 {
            Source::System | Source::Set(_) => Monotonic(system_monotonic()),
            Source::Manual(hands) => hands.lock().monotonic,
        }
    }

    /// Returns once the wall is at `at` or later, however it gets there: by waiting, by a step, or
    /// by a suspended machine that wakes.
    pub async fn sleep_until(&self, at: Duration) {
        loop {
            let left = at.saturating_sub(self.now());
            if left.is_zero() {
                return;
            }
            tokio::time::sleep(left.min(LOOK)).await;
        }
    }

    /// Moves both hands of a manual clock, as time does. No other clock moves by this.
    pub fn advance(&self, by: Duration) {
        if let Source::Manual(hands) = &self.0 {
            let mut hands = hands.lock();
            hands.wall += by;
            hands.monotonic = hands.monotonic + by;
        }
    }

    /// Steps the wall alone, forward. The system's does not move by this.
    pub fn step_forward(&self, by: Duration) {
        match &self.0 {
            Source::System => {}
            Source::Manual(hands) => hands.lock().wall += by,
            Source::Set(offset) => offset.lock().ahead += by,
        }
    }

    /// Steps the wall alone, back. The system's does not move by this.
    pub fn step_back(&self, by: Duration) {
        match &self.0 {
            Source::System => {}
            Source::Manual(hands) => {
                let mut hands = hands.lock();
                hands.wall = hands.wall.saturating_sub(by);
            }
            Source::Set(offset) => offset.lock().behind += by,
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the one place that asks the system"
)]
fn system_wall() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}

/// Time since the machine was started, its sleep included.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn system_monotonic() -> Duration {
    let at = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let seconds = u64::try_from(at.tv_sec).unwrap_or_default();
    Duration::new(seconds, u32::try_from(at.tv_nsec).unwrap_or_default())
}

/// Time since this was first asked; whether a sleep counts is up to the system.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
#[expect(
    clippy::disallowed_types,
    reason = "the one place that asks the system"
)]
fn system_monotonic() -> Duration {
    use std::{sync::LazyLock, time::Instant};
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    START.elapsed()
}

/// Certificates are judged by the same clock as tokens.
impl rustls::time_provider::TimeProvider for Clock {
    fn current_time(&self) -> Option<rustls::pki_types::UnixTime> {
        Some(rustls::pki_types::UnixTime::since_unix_epoch(self.now()))
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::system()
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Clock({:?}, {:?})", self.now(), self.monotonic())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);
    const START: Duration = Duration::from_secs(1_800_000_000);

    #[test]
    fn a_step_moves_the_wall_and_nothing_else() {
        let clock = Clock::manual(START);
        let before = clock.monotonic();
        clock.step_back(HOUR);
        assert_eq!(clock.now(), START - HOUR);
        clock.step_forward(HOUR * 3);
        assert_eq!(clock.now(), START + HOUR * 2);
        assert_eq!(clock.monotonic(), before);
    }

    #[test]
    fn time_moves_both_hands() {
        let clock = Clock::manual(START);
        let before = clock.monotonic();
        clock.advance(HOUR);
        assert_eq!(clock.now(), START + HOUR);
        assert_eq!(clock.monotonic().since(before), HOUR);
        assert_eq!(before.since(clock.monotonic()), Duration::ZERO);
    }

    #[test]
    fn the_system_cannot_be_moved_and_a_settable_clock_runs_on() {
        let (system, set) = (Clock::system(), Clock::settable());
        for clock in [&system, &set] {
            clock.step_back(HOUR);
            clock.advance(HOUR);
        }
        let behind = set.now();
        let apart = system.now() - behind;
        assert!((HOUR..HOUR * 2).contains(&apart), "{apart:?}");
        let (before, after) = (set.monotonic(), set.monotonic());
        assert!(after >= before && after.since(before) < HOUR);
    }

    #[tokio::test(start_paused = true)]
    async fn a_sleep_ends_when_the_wall_is_stepped_over_its_end() {
        let clock = Clock::manual(START);
        let sleeper = clock.clone();
        let mut sleep = std::pin::pin!(sleeper.sleep_until(START + HOUR));
        assert!(
            tokio::time::timeout(HOUR * 2, sleep.as_mut())
                .await
                .is_err(),
            "the wall stands"
        );
        clock.step_forward(HOUR);
        assert!(tokio::time::timeout(LOOK * 2, sleep).await.is_ok());
    }
}
