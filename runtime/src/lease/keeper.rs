//! The task that renews a holder's leases, cancels the work of those that end, and removes the rows of
//! those that are given up.

use super::{book::Book, claim::Claim, table::Rows};
use crate::{
    backoff::{Backoff, spread},
    db::{DbError, Swap},
    seeds::Seeds,
};
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;

/// Leases are renewed after a third of their life at the latest: two renewals may fail.
const RENEWALS: u32 = 3;
/// The clock is read that often while leases are held, since tokio's timers do not count the time that
/// the machine is suspended.
const READ_INTERVAL: Duration = Duration::from_secs(1);
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub(super) struct Keeper<R> {
    book: Arc<Book>,
    rows: R,
    seeds: Seeds,
    /// When to renew next.
    renewal: Instant,
    renewing: Backoff,
    /// When to try next to remove what is given up; at once where nothing has failed.
    removal: Option<Instant>,
    removing: Backoff,
}

impl<R: Rows> Keeper<R> {
    pub(super) fn new(book: Arc<Book>, rows: R, seeds: Seeds) -> Self {
        let backoff = |cap| Backoff::new(FIRST_PAUSE.min(cap), cap).with_jitter(seeds.clone());
        let between = book.life().map_or(LONGEST_PAUSE, |life| life / RENEWALS);
        let mut keeper = Self {
            renewal: Instant::now(),
            renewing: backoff(between),
            removal: None,
            removing: backoff(LONGEST_PAUSE),
            book,
            rows,
            seeds,
        };
        keeper.renewal += keeper.until_renewal();
        keeper
    }

    /// Keeps the leases until it is dropped.
    pub(super) async fn run(mut self) {
        loop {
            let round = self.next_round();
            tokio::select! {
                () = tokio::time::sleep_until(round) => {}
                () = self.book.changed() => {}
            }
            self.round().await;
        }
    }

    /// When there is something to do by the time alone.
    fn next_round(&self) -> Instant {
        let now = Instant::now();
        let removal = self.removal.unwrap_or(now + LONGEST_PAUSE);
        match self.left() {
            None => removal,
            Some(left) => removal.min(self.renewal).min(now + left.min(READ_INTERVAL)),
        }
    }

    /// How long the lease that ends first has left by the monotonic clock.
    fn left(&self) -> Option<Duration> {
        let now = self.book.clock().monotonic();
        self.book.first_end().map(|ends| ends.since(now))
    }

    async fn round(&mut self) {
        self.book.expire();
        if Instant::now() >= self.renewal {
            self.renew().await;
        }
        if self.removal.is_none_or(|at| Instant::now() >= at) {
            self.remove().await;
        }
    }

    /// Renews every lease that is held. One attempt takes no more than half of the time that the first of
    /// them has left, so that one that hangs leaves time for another, on another connection.
    pub(super) async fn renew(&mut self) {
        let (claims, left) = (self.book.held_claims(), self.left());
        let Some(left) = left.filter(|_| !claims.is_empty()) else {
            self.renewal = Instant::now() + self.until_renewal();
            return;
        };
        let asked = self.book.clock().monotonic();
        let renewed = tokio::time::timeout(left / 2, self.rows.renew(&claims)).await;
        // An answer that came after the end is too late.
        self.book.expire();
        let late = || Err(DbError::Unavailable("no answer in time".to_owned()));
        let pause = match renewed.unwrap_or_else(|_| late()) {
            Ok(renewed) => {
                self.record(&claims, &renewed, asked);
                self.renewing.reset();
                self.until_renewal()
            }
            Err(e) => {
                tracing::warn!(error = %e, "leases could not be renewed yet");
                self.renewing.next_delay()
            }
        };
        self.renewal = Instant::now() + pause;
    }

    fn record(&self, claims: &[Claim], renewed: &[Swap], asked: crate::clock::Monotonic) {
        for (claim, renewed) in claims.iter().zip(renewed) {
            match renewed {
                Swap::Done => self.book.renewed(claim, asked),
                Swap::Lost => self.book.superseded(claim),
            }
        }
    }

    /// Removes the rows of leases that are given up.
    pub(super) async fn remove(&mut self) {
        let claims = self.book.given_up();
        if claims.is_empty() {
            return;
        }
        match self.rows.remove(&claims).await {
            Ok(()) => {
                self.book.removed(&claims);
                self.removing.reset();
                self.removal = None;
            }
            Err(e) => {
                tracing::warn!(error = %e, "leases could not be given up yet");
                self.removal = Some(Instant::now() + self.removing.next_delay());
            }
        }
    }

    /// Between a sixth and a third of a lease's life.
    fn until_renewal(&self) -> Duration {
        let life = self.book.life().unwrap_or(LONGEST_PAUSE);
        spread(life / RENEWALS, &self.seeds)
    }
}

#[cfg(test)]
mod tests;
