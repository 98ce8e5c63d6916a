//! The tasks of a process, and the order in which a stop ends them.
//!
//! First the process reports that it is not ready, and everything still serves while whoever spreads calls
//! notices, and while it takes leave of Auth. Then the edge takes no more requests: what it has begun needs
//! the services behind it. Then the services take no more calls, and finish those in flight. Streams that do
//! not finish by themselves are told to resume elsewhere. Last ends the background that must outlive all this:
//! the observe port, audit writers, watch streams, renewal.

use crate::app::StartError;
use std::{pin::Pin, time::Duration};
use tokio::time::Instant;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// How long a stop waits for the background once nothing serves any more.
const BACKGROUND_LIMIT: Duration = Duration::from_secs(10);

/// What a service continues once everything in its process serves.
pub(crate) type Resume = Pin<Box<dyn Future<Output = Result<(), StartError>> + Send>>;

/// How long each step of a stop takes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pace {
    /// For others to notice that the process is not ready.
    pub(crate) notice: Duration,
    /// For Auth to be told.
    pub(crate) leave: Duration,
    /// For streams to finish by themselves.
    pub(crate) streams: Duration,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Work {
    leave: CancellationToken,
    leaving: TaskTracker,
    stop_edge: CancellationToken,
    edge: TaskTracker,
    stop: CancellationToken,
    serving: TaskTracker,
    end_streams: CancellationToken,
    stop_background: CancellationToken,
    background: TaskTracker,
}

impl Work {
    /// Cancelled when the process is about to stop, before anything has ended.
    pub(crate) fn leave_token(&self) -> CancellationToken {
        self.leave.clone()
    }

    /// Cancelled when the edge takes no more requests.
    pub(crate) fn stop_edge_token(&self) -> CancellationToken {
        self.stop_edge.clone()
    }

    /// Cancelled when the services take no more calls.
    pub(crate) fn stop_token(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Cancelled when streams that have not finished by themselves are told to resume elsewhere.
    pub(crate) fn end_streams_token(&self) -> CancellationToken {
        self.end_streams.clone()
    }

    /// Cancelled when the background ends.
    pub(crate) fn background_token(&self) -> CancellationToken {
        self.stop_background.clone()
    }

    /// Runs a task that serves requests from outside, which need the services behind it. It ends by itself
    /// once the edge stops, and is waited for.
    pub(crate) fn serve_edge(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.edge.spawn(task);
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

    /// Reports that the process is about to stop, and gives others the time to notice.
    pub(crate) async fn take_leave(&self, pace: Pace) {
        self.leave.cancel();
        self.leaving.close();
        let told = tokio::time::timeout(pace.leave, self.leaving.wait());
        let (told, ()) = tokio::join!(told, tokio::time::sleep(pace.notice));
        if told.is_err() {
            tracing::debug!("Auth was not told in time that this process stops");
        }
    }

    /// Ends the serving once what is in flight has ended. Each listener bounds for itself how long that
    /// takes.
    pub(crate) async fn end_serving(&self, pace: Pace) {
        let streams_end = Instant::now() + pace.streams;
        self.stop_edge.cancel();
        self.edge.close();
        // Whatever of the edge is left then is streams.
        tokio::time::timeout_at(streams_end, self.edge.wait())
            .await
            .ok();
        self.stop.cancel();
        self.serving.close();
        tokio::time::timeout_at(streams_end, self.serving.wait())
            .await
            .ok();
        self.end_streams.cancel();
        tokio::join!(self.edge.wait(), self.serving.wait());
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

    const PACE: Pace = Pace {
        notice: Duration::from_secs(3),
        leave: Duration::from_secs(60),
        streams: Duration::from_secs(5),
    };

    #[tokio::test(start_paused = true)]
    async fn a_stop_ends_leaving_then_the_edge_then_serving_then_the_background() {
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
        work.serve_edge(note("edge", work.stop_edge_token()));
        work.leaving(note("leaving", work.leave_token()));
        let begun = Instant::now();
        work.take_leave(PACE).await;
        assert_eq!(*ended.lock(), ["leaving"]);
        assert_eq!(begun.elapsed(), PACE.notice, "others have time to notice");
        work.end_serving(PACE).await;
        assert_eq!(*ended.lock(), ["leaving", "edge", "serving"]);
        assert_eq!(begun.elapsed(), PACE.notice, "nothing else is waited for");
        work.end_background().await;
        assert_eq!(*ended.lock(), ["leaving", "edge", "serving", "background"]);
    }

    #[tokio::test(start_paused = true)]
    async fn services_serve_until_the_edge_is_done_and_streams_are_told_after_their_time() {
        let work = Work::default();
        let (begun, told) = (Instant::now(), Arc::new(Mutex::new(Vec::new())));
        let note = |name, token: CancellationToken, more: Duration| {
            let told = Arc::clone(&told);
            async move {
                token.cancelled().await;
                told.lock().push((name, begun.elapsed().as_secs()));
                tokio::time::sleep(more).await;
            }
        };
        work.serve_edge(note("edge", work.stop_edge_token(), Duration::from_secs(2)));
        work.serve(note("services", work.stop_token(), Duration::ZERO));
        work.serve(note("streams", work.end_streams_token(), Duration::ZERO));
        work.end_serving(PACE).await;
        assert_eq!(*told.lock(), [("edge", 0), ("services", 2), ("streams", 5)]);
    }

    #[tokio::test(start_paused = true)]
    async fn streams_at_the_edge_do_not_keep_the_services_from_stopping() {
        let work = Work::default();
        let (begun, end) = (Instant::now(), work.end_streams_token());
        work.serve_edge(async move { end.cancelled().await });
        let stop = work.stop_token();
        work.serve(async move {
            stop.cancelled().await;
            assert_eq!(begun.elapsed(), PACE.streams);
        });
        work.end_serving(PACE).await;
        assert_eq!(begun.elapsed(), PACE.streams);
    }

    #[tokio::test(start_paused = true)]
    async fn tasks_that_never_end_do_not_hold_a_stop() {
        let work = Work::default();
        work.background(pending());
        work.leaving(pending());
        work.last(pending());
        work.take_leave(PACE).await;
        work.end_serving(PACE).await;
        work.end_background().await;
    }
}
