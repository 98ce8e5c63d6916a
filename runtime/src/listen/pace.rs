//! How long a peer is waited for, by the progress that it makes meanwhile.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};
use tokio::time::{Instant, Sleep, sleep_until};

/// The minimum progress of a peer that is being waited for: `grace` may pass without any, and beyond
/// that `rate` bytes per second must be transferred.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// The longest time without progress.
    pub grace: Duration,
    /// The minimum rate in bytes per second.
    pub rate: u32,
}

/// What remains of the grace. Waiting uses it up, and transferred bytes restore it, never beyond the
/// whole. A peer at the minimum rate or above keeps it for ever; time in which nobody waits for the
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

    /// Accounts for transferred bytes.
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
    async fn a_peer_without_progress_has_the_grace() {
        let mut patience = Patience::new(PACE);
        assert!(lasts(&mut patience, Duration::from_secs(9)).await);
        assert!(!lasts(&mut patience, Duration::from_secs(2)).await);
    }

    #[tokio::test(start_paused = true)]
    async fn an_occasional_byte_is_not_enough() {
        let mut patience = Patience::new(PACE);
        let mut seconds = 0;
        while lasts(&mut patience, Duration::from_secs(1)).await {
            patience.moved(1);
            seconds += 1;
        }
        assert!((9..=11).contains(&seconds), "{seconds}");
    }

    #[tokio::test(start_paused = true)]
    async fn the_minimum_rate_lasts_for_ever() {
        let mut patience = Patience::new(PACE);
        for _ in 0..1000 {
            assert!(lasts(&mut patience, Duration::from_secs(5)).await);
            patience.moved(500);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn earlier_progress_buys_no_more_than_the_grace() {
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
