//! When a follower reads its table.
//!
//! A hint is a reason to read at once. Without one the table is read periodically: often while the bus
//! is down, and otherwise just often enough that a lost hint delays a change by less than a second. A
//! bus that comes back is a reason too, since hints of the meantime are gone.

use super::{Mailbox, State};
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

/// The interval between two reads without a hint. With the time that a read takes it stays below a
/// second.
const INTERVAL: Duration = Duration::from_millis(900);
/// The same while the server is out of reach, and after a read that failed.
const INTERVAL_WHILE_DOWN: Duration = Duration::from_millis(250);
/// A hint that nothing came of, as from a sender with wrong numbers, defers the next one for this long.
const QUIET: Duration = Duration::from_millis(50);

/// Why a follower reads its table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wake {
    /// A change was published.
    Hint,
    /// The bus is connected again, and hints may have been lost.
    Reconnected,
    /// Nothing was read for an interval.
    Interval,
}

/// Follows the table of a topic. It decides when to read; the caller reads, and keeps the position.
#[derive(Debug)]
pub struct Follower {
    mailbox: Arc<Mailbox>,
    state: watch::Receiver<State>,
    /// The state of the bus when the table was last to be read.
    seen: State,
    /// The position at which the last hint arrived.
    hinted_at: Option<u64>,
}

impl Follower {
    pub(super) fn new(mailbox: Arc<Mailbox>, state: watch::Receiver<State>) -> Self {
        let seen = *state.borrow();
        Self {
            mailbox,
            state,
            seen,
            hinted_at: None,
        }
    }

    /// Waits until the table is to be read again by a caller who has read everything up to `position`.
    /// The caller's first read comes after [`Bus::follow`](super::Bus::follow) and before the first
    /// wait, so that nothing falls in between.
    pub async fn wait(&mut self, position: u64) -> Wake {
        self.wait_for(position, interval).await
    }

    /// As [`wait`](Self::wait), after a read that failed: what the hint was about is still to be read,
    /// so the next read comes soon without one.
    pub async fn wait_after_failure(&mut self, position: u64) -> Wake {
        self.wait_for(position, |_| INTERVAL_WHILE_DOWN).await
    }

    async fn wait_for(&mut self, position: u64, interval: fn(State) -> Duration) -> Wake {
        let wake = self.next(position, Instant::now(), interval).await;
        self.hinted_at = (wake == Wake::Hint).then_some(position);
        wake
    }

    async fn next(
        &mut self,
        position: u64,
        since: Instant,
        interval: fn(State) -> Duration,
    ) -> Wake {
        loop {
            let state = *self.state.borrow_and_update();
            if matches!(state, State::Up(_)) && state != self.seen {
                self.seen = state;
                return Wake::Reconnected;
            }
            tokio::select! {
                biased;
                () = hint(&self.mailbox, self.hinted_at, position, since) => return Wake::Hint,
                () = changed(&mut self.state) => {}
                () = sleep_until(since + interval(state)) => return Wake::Interval,
            }
        }
    }
}

async fn hint(mailbox: &Mailbox, hinted_at: Option<u64>, position: u64, since: Instant) {
    if hinted_at == Some(position) {
        sleep_until(since + QUIET).await;
    }
    mailbox.beyond(position).await;
}

/// Waits for a change of the bus's state; for ever once the bus is gone.
async fn changed(state: &mut watch::Receiver<State>) {
    if state.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

fn interval(state: State) -> Duration {
    match state {
        State::Down => INTERVAL_WHILE_DOWN,
        State::Local | State::Up(_) => INTERVAL,
    }
}
