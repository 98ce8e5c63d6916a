//! The watch stream: a snapshot unless the stream can be resumed, then each change, with heartbeats
//! in between.
//!
//! A heartbeat states that no change is missing. None is sent while this process does not know
//! that.

use crate::{Auth, AuthError};
use futures_util::{Stream, stream};
use std::{sync::Arc, time::Duration};
use tars_proto::auth::v1::WatchCredentialsResponse;
use tars_runtime::events::Reader;
use tokio::time::timeout;
use tonic::Status;

/// The maximum time between two items.
const HEARTBEAT: Duration = Duration::from_secs(1);

struct Watch {
    auth: Arc<Auth>,
    reader: Reader<WatchCredentialsResponse>,
    /// Sent before anything from the reader.
    snapshot: Option<WatchCredentialsResponse>,
}

pub(crate) async fn start(
    auth: &Arc<Auth>,
    after: u64,
) -> Result<impl Stream<Item = Result<WatchCredentialsResponse, Status>> + use<>, AuthError> {
    let (auth, resumed) = (Arc::clone(auth), resumable(auth, after));
    let watch = match resumed {
        Some(reader) => Watch {
            auth,
            reader,
            snapshot: None,
        },
        None => Watch::from_snapshot(auth).await?,
    };
    Ok(stream::try_unfold(watch, |mut watch| async move {
        let item = watch.next().await?;
        Ok(Some((item, watch)))
    }))
}

/// A reader of the changes after `after`; `None` when they are no longer in memory, or lie in the
/// future.
fn resumable(auth: &Auth, after: u64) -> Option<Reader<WatchCredentialsResponse>> {
    (after > 0)
        .then(|| auth.publisher.read(after).ok())
        .flatten()
}

impl Watch {
    async fn from_snapshot(auth: Arc<Auth>) -> Result<Self, AuthError> {
        let (snapshot, reader) = auth.publisher.snapshot().await?;
        Ok(Self {
            auth,
            reader,
            snapshot: Some(snapshot),
        })
    }

    async fn next(&mut self) -> Result<WatchCredentialsResponse, AuthError> {
        loop {
            if let Some(snapshot) = self.snapshot.take() {
                return Ok(snapshot);
            }
            match timeout(HEARTBEAT, self.reader.next()).await {
                Ok(Ok(Some((_, item)))) => return Ok(item),
                // The watcher fell behind what is kept in memory.
                Ok(Ok(None) | Err(_)) => {
                    *self = Self::from_snapshot(Arc::clone(&self.auth)).await?;
                }
                Err(_) if self.auth.publisher.is_current() => {
                    return Ok(WatchCredentialsResponse {
                        sequence: self.reader.position(),
                        ..Default::default()
                    });
                }
                Err(_) => {}
            }
        }
    }
}
