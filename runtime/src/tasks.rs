//! Work that is not left half done when its caller goes away.
//!
//! The handler of a call is dropped when its client resets the stream or its deadline passes. A commit in
//! progress may succeed nevertheless, so whatever must follow it runs on a task of its own, together with
//! the commit.

use crate::trace::Scope;

/// The task panicked, or the process is stopping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a task ended without a result")]
pub struct Lost;

/// Runs work to its end in the caller's trace, even when the returned future is dropped. Work whose future
/// is dropped before its first poll is not started.
pub async fn to_the_end<T, E>(
    work: impl Future<Output = Result<T, E>> + Send + 'static,
) -> Result<T, E>
where
    T: Send + 'static,
    E: From<Lost> + Send + 'static,
{
    let task = match Scope::current() {
        Some(scope) => tokio::spawn(scope.run(work)),
        None => tokio::spawn(work),
    };
    task.await.map_err(|_| Lost)?
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;
    use std::sync::Arc;
    use tokio::sync::{Notify, oneshot};

    #[tokio::test]
    async fn work_continues_when_nobody_waits_for_it() {
        let (go_on, (done, is_done)) = (Arc::new(Notify::new()), oneshot::channel());
        let wait = Arc::clone(&go_on);
        let asked = to_the_end(async move {
            wait.notified().await;
            done.send(()).map_err(|()| Lost)
        });
        assert_eq!(asked.now_or_never(), None, "under way, and dropped");
        go_on.notify_one();
        is_done.await.expect("the work is done");
    }

    #[tokio::test]
    async fn a_panic_is_an_error() {
        let work = async { panic!("a bug") };
        assert_eq!(to_the_end::<(), Lost>(work).await, Err(Lost));
    }
}
