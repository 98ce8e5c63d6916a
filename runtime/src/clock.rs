//! Time as an input: everything that asks what time it is asks a [`Clock`], so that a test can
//! decide the answer.

use parking_lot::Mutex;
use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

#[derive(Clone)]
pub struct Clock(Source);

#[derive(Clone)]
enum Source {
    System,
    Manual(Arc<Mutex<Duration>>),
}

impl Clock {
    pub fn system() -> Self {
        Self(Source::System)
    }

    /// A clock that stands at `start` until it is moved.
    pub fn manual(start: Duration) -> Self {
        Self(Source::Manual(Arc::new(Mutex::new(start))))
    }

    /// Time since the Unix epoch.
    pub fn now(&self) -> Duration {
        match &self.0 {
            Source::System => SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default(),
            Source::Manual(at) => *at.lock(),
        }
    }

    /// Microseconds since the Unix epoch, as stores keep them.
    pub fn now_us(&self) -> i64 {
        i64::try_from(self.now().as_micros()).unwrap_or(i64::MAX)
    }

    /// Seconds since the Unix epoch, as tokens carry them.
    pub fn now_s(&self) -> u64 {
        self.now().as_secs()
    }

    /// Moves a manual clock; the system clock does not move.
    pub fn advance(&self, by: Duration) {
        if let Source::Manual(at) = &self.0 {
            *at.lock() += by;
        }
    }
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
        write!(f, "Clock({:?})", self.now())
    }
}
