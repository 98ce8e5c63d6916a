//! Which failed calls are sent again, and when.
//!
//! Only a call that the contract declares idempotent, only when its service was unavailable, the connection to it
//! was lost or a probe of it was silent, and only before the first message of a response. A budget bounds the retries to a share of all
//! calls: when a service fails for everybody, retries must not multiply what it gets. What a server asks
//! for with `grpc-retry-pushback-ms` holds (gRFC A6, "client retries").

use http::HeaderMap;
use std::{
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};
use tars_proto::fault;
use tars_runtime::{backoff::Backoff, seeds::Seeds};

/// Maximum number of times that a call is sent.
const MAX_ATTEMPTS: u32 = 3;
/// A server that asks for more patience than this gets it from the caller.
const MAX_PUSHBACK: Duration = Duration::from_secs(5);
/// The pause before a call is sent to the same address again; it doubles.
const PAUSE: Duration = Duration::from_millis(50);

/// What one call adds to the budget, in the unit of [`RETRY`].
const CALL: u32 = 1;
/// What one retry takes from the budget: in the long run, one retry for five calls.
const RETRY: u32 = 5;
/// The most that is saved: a hundred retries at once.
const MAX_SAVED: u32 = 100 * RETRY;

/// The retries that the calls of a channel have saved.
#[derive(Debug)]
pub(super) struct Budget(AtomicU32);

impl Default for Budget {
    fn default() -> Self {
        Self(AtomicU32::new(MAX_SAVED))
    }
}

impl Budget {
    /// Records a call.
    pub(super) fn record_call(&self) {
        let more = |saved| (saved < MAX_SAVED).then_some(saved + CALL);
        // Reading first keeps the cache line shared while the budget is full, which it most often is.
        if self.0.load(Ordering::Relaxed) < MAX_SAVED {
            let saved = self
                .0
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
            saved.ok();
        }
    }

    /// Whether there is a retry now.
    pub(super) fn has_one(&self) -> bool {
        self.0.load(Ordering::Relaxed) >= RETRY
    }

    /// Takes a retry, if there is one.
    pub(super) fn take(&self) -> bool {
        let less = |saved: u32| saved.checked_sub(RETRY);
        let taken = self
            .0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        taken.is_ok()
    }
}

/// What a server says about sending a call again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pushback {
    /// Nothing.
    Unsaid,
    /// Not before this time has passed.
    After(Duration),
    /// Never.
    Never,
}

impl Pushback {
    /// Reads the header. A value that is no time means never, as a negative one does.
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let Some(value) = headers.get(fault::PUSHBACK) else {
            return Self::Unsaid;
        };
        let millis = value.to_str().ok().and_then(|text| text.parse().ok());
        millis.map_or(Self::Never, |ms| Self::After(Duration::from_millis(ms)))
    }
}

/// Why a call that failed, and may be repeated, is not sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoRetry {
    /// It was sent as often as a call may be.
    Attempts,
    /// The server asks not to be asked again, or not for long.
    Pushback,
    /// Its deadline would have passed.
    Deadline,
    /// What the channel may spend on retries is spent.
    Budget,
    /// Its body is too long to be retained, or could not be read.
    Body,
}

impl NoRetry {
    /// The reason as a metric label.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Attempts => "attempts",
            Self::Pushback => "pushback",
            Self::Deadline => "deadline",
            Self::Budget => "budget",
            Self::Body => "body",
        }
    }
}

/// The retries of one call.
#[derive(Debug, Default)]
pub(super) struct Retries {
    /// How often it was sent again.
    done: u32,
}

impl Retries {
    /// Whether the call may be sent once more.
    pub(super) fn has_one(&self) -> bool {
        self.done + 1 < MAX_ATTEMPTS
    }

    /// Returns how long to wait before the call is sent again, if it may be. `elsewhere` tells whether there
    /// is an address that has not failed it, and `asks_to_wait` whether the server has said when a call may
    /// come back: asking the same one sooner is of no use.
    pub(super) fn next(
        &self,
        pushback: Pushback,
        elsewhere: bool,
        asks_to_wait: bool,
    ) -> Result<Duration, NoRetry> {
        if !self.has_one() {
            return Err(NoRetry::Attempts);
        }
        match pushback {
            Pushback::After(delay) if delay <= MAX_PUSHBACK => Ok(delay),
            Pushback::After(_) | Pushback::Never => Err(NoRetry::Pushback),
            Pushback::Unsaid if elsewhere => Ok(Duration::ZERO),
            Pushback::Unsaid if asks_to_wait => Err(NoRetry::Pushback),
            Pushback::Unsaid => Ok(self.pause()),
        }
    }

    /// How often the call was sent again.
    pub(super) fn done(&self) -> u32 {
        self.done
    }

    /// Records that the call is sent again.
    pub(super) fn record(&mut self) {
        self.done += 1;
    }

    fn pause(&self) -> Duration {
        let backoff = Backoff::new(PAUSE, MAX_PUSHBACK).with_jitter(Seeds::system());
        backoff.after(self.done + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next(retries: &Retries, pushback: Pushback) -> Result<Duration, NoRetry> {
        retries.next(pushback, true, false)
    }

    #[test]
    fn a_call_is_sent_three_times_at_most() {
        let mut retries = Retries::default();
        for _ in 0..2 {
            // What is only asked for is not used up.
            for _ in 0..5 {
                assert_eq!(next(&retries, Pushback::Unsaid), Ok(Duration::ZERO));
            }
            assert!(retries.has_one());
            retries.record();
        }
        assert!(!retries.has_one());
        let last = next(&retries, Pushback::Unsaid);
        assert_eq!(last, Err(NoRetry::Attempts));
    }

    #[test]
    fn a_server_says_when_and_whether() {
        let second = Duration::from_secs(1);
        for (pushback, expected) in [
            (Pushback::After(second), Ok(second)),
            (Pushback::After(Duration::ZERO), Ok(Duration::ZERO)),
            (Pushback::After(second * 3600), Err(NoRetry::Pushback)),
            (Pushback::Never, Err(NoRetry::Pushback)),
        ] {
            assert_eq!(next(&Retries::default(), pushback), expected);
        }
    }

    #[test]
    fn the_same_address_is_asked_after_a_pause_unless_it_wants_a_longer_one() {
        let next = |waits| Retries::default().next(Pushback::Unsaid, false, waits);
        let pause = next(false).unwrap();
        assert!((PAUSE / 2..=PAUSE).contains(&pause), "{pause:?}");
        assert_eq!(next(true), Err(NoRetry::Pushback));
    }

    #[test]
    fn the_header_is_read_strictly() {
        for (text, expected) in [
            ("0", Pushback::After(Duration::ZERO)),
            ("250", Pushback::After(Duration::from_millis(250))),
            ("-1", Pushback::Never),
            ("soon", Pushback::Never),
            ("", Pushback::Never),
            ("1.5", Pushback::Never),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(fault::PUSHBACK, text.parse().unwrap());
            assert_eq!(Pushback::of(&headers), expected, "{text:?}");
        }
        assert_eq!(Pushback::of(&HeaderMap::new()), Pushback::Unsaid);
    }

    #[test]
    fn retries_are_a_share_of_the_calls() {
        let budget = Budget::default();
        let spend = || std::iter::from_fn(|| budget.take().then_some(())).count();
        assert!(budget.has_one());
        assert_eq!(spend(), 100);
        assert!(!budget.has_one());
        for _ in 0..50 {
            budget.record_call();
        }
        assert_eq!(spend(), 10);
        for _ in 0..10_000 {
            budget.record_call();
        }
        assert_eq!(spend(), 100, "what is saved is bounded");
    }
}
