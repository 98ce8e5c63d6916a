//! The cancellation of a running study, as its run learns of it.
//!
//! Whoever cancels a study writes that, at any replica. The run reads the study's state whenever a study
//! has changed.

use crate::{Automl, store::StudyState};
use std::{
    convert::Infallible,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};
use tokio::sync::{Notify, futures::Notified};
use uuid::Uuid;

/// The delay before a read that failed is repeated.
const RETRY: Duration = Duration::from_millis(500);

/// Whether a run is to stop because its study was cancelled.
#[derive(Debug, Default)]
pub(crate) struct Cancellation {
    cancelled: AtomicBool,
    stop: Notify,
}

impl Cancellation {
    pub(crate) fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
        self.stop.notify_waiters();
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    /// Completes when the study is cancelled from now on. Create it before checking
    /// [`is_cancelled`](Self::is_cancelled), so that no cancellation is missed in between.
    pub(crate) fn stopped(&self) -> Notified<'_> {
        self.stop.notified()
    }

    /// Waits, and returns whether the study was cancelled before or meanwhile.
    pub(crate) async fn is_cancelled_within(&self, pause: Duration) -> bool {
        let stopped = self.stopped();
        self.is_cancelled() || tokio::time::timeout(pause, stopped).await.is_ok()
    }
}

impl Automl {
    /// Cancels a run once its study is stored as cancelled.
    pub(crate) async fn follow_cancellation(&self, study: Uuid, run: &Cancellation) -> Infallible {
        let mut changed = self.changes.subscribe();
        loop {
            changed.borrow_and_update();
            match self.store.progress(study).await {
                Ok(seen) if seen.state == StudyState::Cancelled => break run.cancel(),
                Ok(_) if changed.changed().await.is_ok() => {}
                Ok(_) => break,
                Err(_) => tokio::time::sleep(RETRY).await,
            }
        }
        std::future::pending().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_waiting_trial_is_notified_of_its_cancellation() {
        let run = Cancellation::default();
        assert!(!run.is_cancelled_within(Duration::from_secs(1)).await);
        let day = Duration::from_secs(86_400);
        let begun = tokio::time::Instant::now();
        let cancel = async {
            tokio::task::yield_now().await;
            run.cancel();
        };
        let (cancelled, ()) = tokio::join!(run.is_cancelled_within(day), cancel);
        assert!(cancelled && begun.elapsed() < day);
        assert!(run.is_cancelled_within(day).await);
    }
}
