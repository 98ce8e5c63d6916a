//! The first lookup of a server's names: one attempt at a time, whose result all callers share. It goes on when
//! they go away. After a failure nothing is looked up for a while, and that failure is the answer: a resolver
//! that hangs costs each caller one attempt at most, however many there are.

use super::error::ChannelError;
use std::time::Duration;
use tars_runtime::{backoff::Backoff, seeds::Seeds};
use tokio::{sync::watch, time::Instant};
use tokio_util::task::AbortOnDropHandle;

/// How long nothing is looked up after the first failure.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The same after many of them.
const MAX_PAUSE: Duration = Duration::from_secs(2);

pub(super) type Outcome = Result<(), ChannelError>;
type Report = watch::Sender<Option<Outcome>>;
type Attempt = watch::Receiver<Option<Outcome>>;

/// The lookups of a server's names.
#[derive(Debug)]
pub(super) struct Lookups {
    state: State,
    /// The task that looks them up again, once they are known.
    _again: Option<AbortOnDropHandle<()>>,
    failures: u32,
    backoff: Backoff,
}

#[derive(Debug)]
enum State {
    Never,
    Running(Attempt),
    Failed { error: ChannelError, until: Instant },
    Done,
}

/// What a caller does who needs the names.
#[derive(Debug)]
pub(super) enum Turn {
    /// It takes what came of the last attempt.
    Take(Outcome),
    /// It waits for the attempt that is running.
    Wait(Attempt),
    /// It starts an attempt, and waits for it.
    Start(Report, Attempt),
}

impl Lookups {
    pub(super) fn new() -> Self {
        Self {
            state: State::Never,
            _again: None,
            failures: 0,
            backoff: Backoff::new(FIRST_PAUSE, MAX_PAUSE).with_jitter(Seeds::system()),
        }
    }

    pub(super) fn turn(&mut self, now: Instant) -> Turn {
        match &self.state {
            State::Done => return Turn::Take(Ok(())),
            State::Failed { error, until } if now < *until => {
                return Turn::Take(Err(error.clone()));
            }
            // A runtime that is shut down drops attempts.
            State::Running(attempt) if attempt.has_changed().is_ok() => {
                return Turn::Wait(attempt.clone());
            }
            State::Never | State::Failed { .. } | State::Running(_) => {}
        }
        let (report, attempt) = watch::channel(None);
        self.state = State::Running(attempt.clone());
        Turn::Start(report, attempt)
    }

    /// Records that the names are known, and are looked up again by a task.
    pub(super) fn succeed(&mut self, again: AbortOnDropHandle<()>) {
        (self.state, self._again) = (State::Done, Some(again));
    }

    pub(super) fn fail(&mut self, error: ChannelError, now: Instant) {
        self.failures = self.failures.saturating_add(1);
        let until = now + self.backoff.after(self.failures);
        self.state = State::Failed { error, until };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::advance;

    fn away() -> ChannelError {
        ChannelError::Timeout {
            target: "door.example:8093".to_owned(),
        }
    }

    fn now(lookups: &mut Lookups) -> Turn {
        lookups.turn(Instant::now())
    }

    #[tokio::test(start_paused = true)]
    async fn one_attempt_is_shared_and_after_a_failure_there_is_none_for_a_while() {
        let mut lookups = Lookups::new();
        for failures in 1..=10 {
            let Turn::Start(report, _) = now(&mut lookups) else {
                panic!("{lookups:?}");
            };
            // Whoever has started it has gone away.
            let Turn::Wait(mut shared) = now(&mut lookups) else {
                panic!("{lookups:?}");
            };
            lookups.fail(away(), Instant::now());
            report.send_replace(Some(Err(away())));
            let told = shared.wait_for(Option::is_some).await.unwrap().clone();
            assert!(matches!(told, Some(Err(_))), "{failures}");
            let told = now(&mut lookups);
            assert!(matches!(told, Turn::Take(Err(_))), "{told:?}");
            advance(MAX_PAUSE).await;
        }
        let Turn::Start(..) = now(&mut lookups) else {
            panic!("{lookups:?}");
        };
        lookups.succeed(AbortOnDropHandle::new(tokio::spawn(async {})));
        assert!(matches!(now(&mut lookups), Turn::Take(Ok(()))));
    }

    #[tokio::test(start_paused = true)]
    async fn an_attempt_that_is_dropped_is_started_again() {
        let mut lookups = Lookups::new();
        drop(now(&mut lookups));
        assert!(matches!(now(&mut lookups), Turn::Start(..)));
    }
}
