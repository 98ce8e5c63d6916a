//! What a watcher gets: a whole view unless it can be resumed, each change, and heartbeats between.
//!
//! A heartbeat says that nothing is missing; it is not sent when nobody here knows that.

use crate::{Auth, AuthError};
use futures_util::{Stream, stream};
use std::{sync::Arc, time::Duration};
use tars_proto::auth::v1::WatchCredentialsResponse;
use tars_runtime::events::Reader;
use tokio::time::timeout;
use tonic::Status;

/// A heartbeat at least this often.
const HEARTBEAT: Duration = Duration::from_secs(1);

struct Watch {
    auth: Arc<Auth>,
    reader: Reader<WatchCredentialsResponse>,
    /// To be sent before what the reader has.
    whole: Option<WatchCredentialsResponse>,
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
            whole: None,
        },
        None => Watch::anew(auth).await?,
    };
    Ok(stream::try_unfold(watch, |mut watch| async move {
        let item = watch.next().await?;
        Ok(Some((item, watch)))
    }))
}

/// A reader of what came after; `None` when that is not kept, or not reached.
fn resumable(auth: &Auth, after: u64) -> Option<Reader<WatchCredentialsResponse>> {
    (after > 0)
        .then(|| auth.publisher.read(after).ok())
        .flatten()
}

impl Watch {
    async fn anew(auth: Arc<Auth>) -> Result<Self, AuthError> {
        let (whole, reader) = auth.publisher.whole().await?;
        Ok(Self {
            auth,
            reader,
            whole: Some(whole),
        })
    }

    async fn next(&mut self) -> Result<WatchCredentialsResponse, AuthError> {
        loop {
            if let Some(whole) = self.whole.take() {
                return Ok(whole);
            }
            match timeout(HEARTBEAT, self.reader.next()).await {
                Ok(Ok(Some((_, item)))) => return Ok(item),
                // Too slow for what is kept.
                Ok(Ok(None) | Err(_)) => *self = Self::anew(Arc::clone(&self.auth)).await?,
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
