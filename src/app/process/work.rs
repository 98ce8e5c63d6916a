//! The tasks of a process, and the order in which a stop ends them.
//!
//! First what takes leave of Auth, while everything still serves; then the serving, which drains;
//! last the background that must outlive it: audit writers, watch streams, renewal.

use crate::app::StartError;
use std::{pin::Pin, time::Duration};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// How long a stop waits for the background once nothing serves any more.
const BACKGROUND_LIMIT: Duration = Duration::from_secs(10);

/// What a service continues once everything in its process serves.
pub(crate) type Resume = Pin<Box<dyn Future<Output = Result<(), StartError>> + Send>>;

#[derive(Debug, Clone, Default)]
pub(crate) struct Work {
    leave: CancellationToken,
    leaving: TaskTracker,
    stop: CancellationToken,
    serving: TaskTracker,
    stop_background: CancellationToken,
    background: TaskTracker,
}

impl Work {
    /// Cancelled when the process is about to stop, before anything has ended.
    pub(crate) fn leave_token(&self) -> CancellationToken {
        self.leave.clone()
    }

    /// Cancelled when the serving ends.
    pub(crate) fn stop_token(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Cancelled when the background ends.
    pub(crate) fn background_token(&self) -> CancellationToken {
        self.stop_background.clone()
    }

    /// Runs a task that ends by itself once the serving stops, and is waited for.
    pub(crate) fn serve(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.serving.spawn(task);
    }

    /// Runs a task until the serving has ended, and then drops it.
    pub(crate) fn background(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.background.spawn(until(self.background_token(), task));
    }

    /// Runs a task that ends by itself once the background stops, and is waited for.
    pub(crate) fn last(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.background.spawn(task);
    }

    /// Runs a task that tells Auth when the process stops. It may go on until the serving has
    /// ended.
    pub(crate) fn leaving(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.leaving.spawn(until(self.background_token(), task));
    }

    /// Lets the leaving tasks end, for at most `limit`.
    pub(crate) async fn take_leave(&self, limit: Duration) {
        self.leave.cancel();
        self.leaving.close();
        if tokio::time::timeout(limit, self.leaving.wait())
            .await
            .is_err()
        {
            tracing::debug!("Auth was not told in time that this process stops");
        }
    }

    /// Ends the serving once the calls in flight have ended.
    pub(crate) async fn end_serving(&self) {
        self.stop.cancel();
        self.serving.close();
        self.serving.wait().await;
    }

    /// Ends the background.
    pub(crate) async fn end_background(&self) {
        self.stop_background.cancel();
        self.background.close();
        if tokio::time::timeout(BACKGROUND_LIMIT, self.background.wait())
            .await
            .is_err()
        {
            tracing::warn!("background work did not end in time");
        }
    }
}

async fn until(stop: CancellationToken, task: impl Future<Output = ()>) {
    tokio::select! {
        () = task => {}
        () = stop.cancelled() => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parking_lot::Mutex;
    use std::{future::pending, sync::Arc};

    #[tokio::test]
    async fn a_stop_ends_leaving_then_serving_then_the_background() {
        let (work, ended) = (Work::default(), Arc::new(Mutex::new(Vec::new())));
        let note = |name, token: CancellationToken| {
            let ended = Arc::clone(&ended);
            async move {
                token.cancelled().await;
                ended.lock().push(name);
            }
        };
        work.last(note("background", work.background_token()));
        work.serve(note("serving", work.stop_token()));
        work.leaving(note("leaving", work.leave_token()));
        work.take_leave(Duration::from_secs(60)).await;
        assert_eq!(*ended.lock(), ["leaving"]);
        work.end_serving().await;
        assert_eq!(*ended.lock(), ["leaving", "serving"]);
        work.end_background().await;
        assert_eq!(*ended.lock(), ["leaving", "serving", "background"]);
    }

    #[tokio::test(start_paused = true)]
    async fn tasks_that_never_end_do_not_hold_a_stop() {
        let work = Work::default();
        work.background(pending());
        work.leaving(pending());
        work.last(pending());
        work.take_leave(Duration::from_secs(1)).await;
        work.end_serving().await;
        work.end_background().await;
    }
}
