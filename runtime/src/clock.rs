//! Time as an input, from two clocks.
//!
//! The *wall* clock is what is written down and compared with what others wrote: times in tokens and
//! certificates, audit records, rows. It can be set at any moment, by hours and in either direction. The
//! *monotonic* clock is what is measured with: limits, delays, ages, windows. It cannot be set, and its
//! readings have a type of their own, so that the two cannot be confused.
//!
//! On Linux the monotonic clock advances while the machine is suspended (`CLOCK_BOOTTIME`): what was
//! received before a night's sleep is a night old. tokio's timers stop with the machine, so that a wait
//! for a wall time is made of short ones, see [`Clock::sleep_until`].
//!
//! `std::time::Instant` and `SystemTime::now` are denied by lints everywhere else.

use parking_lot::Mutex;
use std::{
    fmt,
    ops::Add,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// How often the wall clock is read while something waits for it.
const READ_INTERVAL: Duration = Duration::from_secs(5);

/// A reading of the monotonic clock. It is meaningful only beside another one of the same clock.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Monotonic(Duration);

impl Monotonic {
    /// Creates a reading from the time since an arbitrary start.
    pub const fn from_start(since: Duration) -> Self {
        Self(since)
    }

    /// Returns the time since an earlier reading; zero when that one is later.
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }

    /// Returns the reading `by` earlier; the earliest possible one when there is none.
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

/// A wall clock and a monotonic clock. Clones of one that can be moved are moved together.
#[derive(Clone)]
pub struct Clock(Source);

#[derive(Clone)]
enum Source {
    System,
    /// Stands still until it is moved.
    Manual(Arc<Mutex<Readings>>),
    /// The system's clocks, with an offset to the wall clock.
    Set(Arc<Mutex<Offset>>),
}

#[derive(Debug, Clone, Copy)]
struct Readings {
    wall: Duration,
    monotonic: Monotonic,
}

#[derive(Debug, Clone, Copy, Default)]
struct Offset {
    ahead: Duration,
    behind: Duration,
}

impl Clock {
    /// Returns the system's clocks.
    pub fn system() -> Self {
        Self(Source::System)
    }

    /// Returns clocks that stand still, with the wall clock at `start`, until they are moved.
    pub fn manual(start: Duration) -> Self {
        Self(Source::Manual(Arc::new(Mutex::new(Readings {
            wall: start,
            monotonic: Monotonic::default(),
        }))))
    }

    /// Returns the system's clocks, with a wall clock that can be stepped.
    pub fn settable() -> Self {
        Self(Source::Set(Arc::default()))
    }

    /// Reads the wall clock: the time since the Unix epoch.
    pub fn now(&self) -> Duration {
        match &self.0 {
            Source::System => system_wall(),
            Source::Manual(readings) => readings.lock().wall,
            Source::Set(offset) => {
                let Offset { ahead, behind } = *offset.lock();
                (system_wall() + ahead).saturating_sub(behind)
            }
        }
    }

    /// Reads the wall clock in microseconds since the Unix epoch, as stores keep them.
    pub fn now_us(&self) -> i64 {
        i64::try_from(self.now().as_micros()).unwrap_or(i64::MAX)
    }

    /// Reads the wall clock in seconds since the Unix epoch, as tokens carry them.
    pub fn now_s(&self) -> u64 {
        self.now().as_secs()
    }

    /// Reads the monotonic clock.
    pub fn monotonic(&self) -> Monotonic {
        match &self.0 {
            Source::System | Source::Set(_) => Monotonic(system_monotonic()),
            Source::Manual(readings) => readings.lock().monotonic,
        }
    }

    /// Returns once the wall clock is at `at` or later, whether by waiting, by a step, or because a
    /// suspended machine has woken.
    pub async fn sleep_until(&self, at: Duration) {
        loop {
            let left = at.saturating_sub(self.now());
            if left.is_zero() {
                return;
            }
            tokio::time::sleep(left.min(READ_INTERVAL)).await;
        }
    }

    /// Advances both of a manual clock, as time does. Other clocks are not affected.
    pub fn advance(&self, by: Duration) {
        if let Source::Manual(readings) = &self.0 {
            let mut readings = readings.lock();
            readings.wall += by;
            readings.monotonic = readings.monotonic + by;
        }
    }

    /// Steps the wall clock forward. The system's is not affected.
    pub fn step_forward(&self, by: Duration) {
        match &self.0 {
            Source::System => {}
            Source::Manual(readings) => readings.lock().wall += by,
            Source::Set(offset) => offset.lock().ahead += by,
        }
    }

    /// Steps the wall clock back. The system's is not affected.
    pub fn step_back(&self, by: Duration) {
        match &self.0 {
            Source::System => {}
            Source::Manual(readings) => {
                let mut readings = readings.lock();
                readings.wall = readings.wall.saturating_sub(by);
            }
            Source::Set(offset) => offset.lock().behind += by,
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the one place that reads the system's clock"
)]
fn system_wall() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}

/// The time since the machine booted, suspension included.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn system_monotonic() -> Duration {
    let at = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let seconds = u64::try_from(at.tv_sec).unwrap_or_default();
    Duration::new(seconds, u32::try_from(at.tv_nsec).unwrap_or_default())
}

/// The time since the first call; whether suspension counts is up to the system.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
#[expect(
    clippy::disallowed_types,
    reason = "the one place that reads the system's clock"
)]
fn system_monotonic() -> Duration {
    use std::{sync::LazyLock, time::Instant};
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    START.elapsed()
}

/// Certificates are verified by the same clock as tokens.
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
    fn a_step_moves_the_wall_clock_alone() {
        let clock = Clock::manual(START);
        let before = clock.monotonic();
        clock.step_back(HOUR);
        assert_eq!(clock.now(), START - HOUR);
        clock.step_forward(HOUR * 3);
        assert_eq!(clock.now(), START + HOUR * 2);
        assert_eq!(clock.monotonic(), before);
    }

    #[test]
    fn an_advance_moves_both_clocks() {
        let clock = Clock::manual(START);
        let before = clock.monotonic();
        clock.advance(HOUR);
        assert_eq!(clock.now(), START + HOUR);
        assert_eq!(clock.monotonic().since(before), HOUR);
        assert_eq!(before.since(clock.monotonic()), Duration::ZERO);
    }

    #[test]
    fn the_system_clock_cannot_be_moved_and_a_settable_one_keeps_running() {
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
    async fn a_sleep_ends_when_the_wall_clock_is_stepped_past_its_end() {
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
        assert!(tokio::time::timeout(READ_INTERVAL * 2, sleep).await.is_ok());
    }
}
