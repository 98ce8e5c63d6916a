//! How long a peer is waited for, by what it moves meanwhile.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};
use tokio::time::{Instant, Sleep, sleep_until};

/// The least that a peer must do while it is waited for: `grace` may pass with nothing, and beyond
/// that `rate` bytes a second must come or go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    pub grace: Duration,
    pub rate: u32,
}

/// What is left of the grace: waiting uses it up, and bytes restore it, never beyond its whole.
/// A peer that is at the least rate or above keeps it for ever; time in which nobody waits for the
/// peer costs nothing.
#[derive(Debug)]
pub(super) struct Patience {
    pace: Pace,
    left: Duration,
    since: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Patience {
    pub(super) fn new(pace: Pace) -> Self {
        Self {
            pace,
            left: pace.grace,
            since: None,
            timer: None,
        }
    }

    /// Accounts for bytes that came or went.
    pub(super) fn moved(&mut self, bytes: usize) {
        if let Some(since) = self.since.take() {
            self.left = self.left.saturating_sub(since.elapsed());
            let earned = bytes as f64 / f64::from(self.pace.rate.max(1));
            let earned = Duration::try_from_secs_f64(earned).unwrap_or(self.pace.grace);
            self.left = self.left.saturating_add(earned).min(self.pace.grace);
        }
    }

    /// Waits for the peer: ready once it has been waited for too long.
    pub(super) fn poll_over(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let timer = if self.since.is_some() {
            self.timer.as_mut()
        } else {
            let now = Instant::now();
            self.since = Some(now);
            let end = now + self.left;
            let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(end)));
            timer.as_mut().reset(end);
            Some(timer)
        };
        timer.map_or(Poll::Pending, |timer| timer.as_mut().poll(cx))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;
    use tokio::time::{advance, timeout};

    const PACE: Pace = Pace {
        grace: Duration::from_secs(10),
        rate: 100,
    };

    async fn lasts(patience: &mut Patience, time: Duration) -> bool {
        timeout(time, poll_fn(|cx| patience.poll_over(cx)))
            .await
            .is_err()
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_moves_nothing_has_the_grace() {
        let mut patience = Patience::new(PACE);
        assert!(lasts(&mut patience, Duration::from_secs(9)).await);
        assert!(!lasts(&mut patience, Duration::from_secs(2)).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_byte_now_and_then_is_not_enough() {
        let mut patience = Patience::new(PACE);
        let mut seconds = 0;
        while lasts(&mut patience, Duration::from_secs(1)).await {
            patience.moved(1);
            seconds += 1;
        }
        assert!((9..=11).contains(&seconds), "{seconds}");
    }

    #[tokio::test(start_paused = true)]
    async fn the_least_rate_lasts_for_ever() {
        let mut patience = Patience::new(PACE);
        for _ in 0..1000 {
            assert!(lasts(&mut patience, Duration::from_secs(5)).await);
            patience.moved(500);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_moved_before_buys_no_more_than_the_grace() {
        let mut patience = Patience::new(PACE);
        assert!(lasts(&mut patience, Duration::from_secs(1)).await);
        patience.moved(1 << 30);
        assert!(!lasts(&mut patience, Duration::from_secs(11)).await);
    }

    #[tokio::test(start_paused = true)]
    async fn time_in_which_nobody_waits_is_free() {
        let mut patience = Patience::new(PACE);
        assert!(lasts(&mut patience, Duration::from_secs(1)).await);
        patience.moved(100);
        advance(Duration::from_secs(3600)).await;
        assert!(lasts(&mut patience, Duration::from_secs(9)).await);
    }
}
