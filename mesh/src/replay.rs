//! A request body that can be sent once more. When a connection is closed, HTTP/2 tells which streams were
//! never processed (RFC 9113, section 6.8), and those are sent again on the next connection. That is not a
//! retry, because nothing has happened yet; retries, of calls that may be repeated, send the body again as
//! well.

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use parking_lot::Mutex;
use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};
use tonic::{Status, body::Body};

/// Maximum number of bytes that are retained. A request that has sent more is not sent again.
const MOST: usize = 256 << 10;

#[derive(Debug)]
struct Source {
    inner: Body,
    sent: Vec<Bytes>,
    bytes: usize,
    /// Whether something was sent that is not retained: trailers, or too many bytes.
    lost: bool,
    /// Whether reading it failed.
    failed: bool,
}

/// A body that can be read from its beginning more than once.
#[derive(Debug, Clone)]
pub(crate) struct Replay(Arc<Mutex<Source>>);

impl Replay {
    pub(crate) fn new(inner: Body) -> Self {
        Self(Arc::new(Mutex::new(Source {
            inner,
            sent: Vec::new(),
            bytes: 0,
            lost: false,
            failed: false,
        })))
    }

    /// Whether the body can be read from its beginning.
    pub(crate) fn is_retained(&self) -> bool {
        let source = self.0.lock();
        !source.lost && !source.failed
    }

    /// Whether reading the body failed: the caller's error, and not the server's.
    pub(crate) fn has_failed(&self) -> bool {
        self.0.lock().failed
    }

    /// Returns the body from its beginning; `None` when that is not retained.
    pub(crate) fn body(&self) -> Option<Body> {
        if self.0.lock().lost {
            return None;
        }
        // `Body::new` polls the body's state, for which the lock must be free.
        Some(Body::new(Again {
            source: Arc::clone(&self.0),
            at: 0,
        }))
    }
}

struct Again {
    source: Arc<Mutex<Source>>,
    at: usize,
}

impl http_body::Body for Again {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        let mut source = this.source.lock();
        if let Some(sent) = source.sent.get(this.at) {
            this.at += 1;
            return Poll::Ready(Some(Ok(Frame::data(sent.clone()))));
        }
        let polled = Pin::new(&mut source.inner).poll_frame(cx);
        match &polled {
            Poll::Ready(Some(Ok(frame))) => match frame.data_ref() {
                Some(data) if source.bytes + data.len() <= MOST && !source.lost => {
                    let data = data.clone();
                    source.bytes += data.len();
                    source.sent.push(data);
                    this.at += 1;
                }
                _ => source.lost = true,
            },
            Poll::Ready(Some(Err(_))) => source.failed = true,
            Poll::Ready(None) | Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        let source = self.source.lock();
        self.at >= source.sent.len() && source.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let source = self.source.lock();
        let again: usize = source.sent.iter().skip(self.at).map(Bytes::len).sum();
        let again = u64::try_from(again).unwrap_or(u64::MAX);
        let rest = source.inner.size_hint();
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower() + again);
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper + again);
        }
        hint
    }
}

/// Whether a server certainly did not process a request that failed with `error`.
pub(crate) fn never_processed(error: &hyper::Error) -> bool {
    let source = std::error::Error::source(error);
    let Some(h2) = source.and_then(|e| e.downcast_ref::<h2::Error>()) else {
        return false;
    };
    let away = h2.is_go_away() && h2.is_remote() && h2.reason() == Some(h2::Reason::NO_ERROR);
    away || (h2.is_reset() && h2.reason() == Some(h2::Reason::REFUSED_STREAM))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::{BodyExt, Full, StreamBody};

    async fn read(body: Body) -> Vec<u8> {
        body.collect().await.unwrap().to_bytes().to_vec()
    }

    #[tokio::test]
    async fn a_body_is_the_same_again_however_much_was_read() {
        let replay = Replay::new(Body::new(Full::new(Bytes::from_static(b"hello"))));
        assert_eq!(read(replay.body().unwrap()).await, b"hello");
        assert_eq!(read(replay.body().unwrap()).await, b"hello");

        let frames = [b"one".as_slice(), b"two", b"three"]
            .map(|b| Ok::<_, Status>(Frame::data(Bytes::from_static(b))));
        let replay = Replay::new(Body::new(StreamBody::new(futures_util::stream::iter(
            frames,
        ))));
        let mut first = replay.body().unwrap();
        first.frame().await.unwrap().unwrap();
        drop(first);
        assert_eq!(read(replay.body().unwrap()).await, b"onetwothree");
    }

    #[tokio::test]
    async fn a_body_that_fails_is_not_sent_again() {
        let frames = [
            Ok(Frame::data(Bytes::from_static(b"one"))),
            Err(Status::internal("it broke")),
        ];
        let body = StreamBody::new(futures_util::stream::iter(frames));
        let replay = Replay::new(Body::new(body));
        assert!(replay.is_retained() && !replay.has_failed());
        replay.body().unwrap().collect().await.unwrap_err();
        assert!(!replay.is_retained() && replay.has_failed());
    }

    #[tokio::test]
    async fn a_body_that_is_too_long_to_retain_is_not_sent_again() {
        let long = Bytes::from(vec![7u8; MOST + 1]);
        let replay = Replay::new(Body::new(Full::new(long)));
        assert_eq!(read(replay.body().unwrap()).await.len(), MOST + 1);
        assert!(replay.body().is_none());
    }
}
