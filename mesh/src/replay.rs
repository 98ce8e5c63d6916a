//! A request body that can be sent once more. When a connection is closed, HTTP/2 tells which streams were
//! never processed (RFC 9113, section 6.8), and those are sent again on the next connection. That is not a
//! retry, because nothing has happened yet; retries, of calls that may be repeated, send the body again as
//! well.

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use parking_lot::Mutex;
use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
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
    /// Whether it was read to its end.
    ended: bool,
    /// How often it was begun. Only the last reader goes on: one that was given up must not take what is yet to
    /// come, or the wake-up for it, from the next.
    readers: u32,
}

impl Source {
    fn next_reader(&mut self) -> Option<u32> {
        if self.lost {
            return None;
        }
        self.readers += 1;
        Some(self.readers)
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let polled = ready!(Pin::new(&mut self.inner).poll_frame(cx));
        match &polled {
            Some(Ok(frame)) => self.retain(frame),
            Some(Err(_)) => self.failed = true,
            None => self.ended = true,
        }
        Poll::Ready(polled)
    }

    fn retain(&mut self, frame: &Frame<Bytes>) {
        match frame.data_ref() {
            Some(data) if self.bytes + data.len() <= MOST && !self.lost => {
                self.bytes += data.len();
                self.sent.push(data.clone());
            }
            _ => self.lost = true,
        }
    }
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
            ended: false,
            readers: 0,
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
        let reader = self.0.lock().next_reader()?;
        // `Body::new` polls the body's state, for which the lock must be free.
        Some(Body::new(Again {
            source: Arc::clone(&self.0),
            reader,
            at: 0,
        }))
    }
}

struct Again {
    source: Arc<Mutex<Source>>,
    reader: u32,
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
        if this.reader != source.readers {
            return Poll::Ready(Some(Err(Status::cancelled("it is sent again"))));
        }
        let sent = source.sent.get(this.at).cloned();
        let frame = match sent {
            Some(sent) => Some(Ok(Frame::data(sent))),
            None => ready!(source.poll(cx)),
        };
        this.at += 1;
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        let source = self.source.lock();
        self.at >= source.sent.len() && (source.ended || source.inner.is_end_stream())
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
    use futures_util::poll;
    use http_body_util::{BodyExt, Full, StreamBody};
    use std::time::Duration;
    use tokio::{sync::mpsc, time::timeout};

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
    async fn a_body_that_has_ended_is_not_asked_again() {
        // A stream that panics when it is polled after its end.
        let once = futures_util::stream::unfold(false, async |ended| {
            let frame = Frame::data(Bytes::from_static(b"once"));
            (!ended).then_some((Ok::<_, Status>(frame), true))
        });
        let replay = Replay::new(Body::new(StreamBody::new(Box::pin(once))));
        for _ in 0..2 {
            assert_eq!(read(replay.body().unwrap()).await, b"once");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_was_given_up_takes_nothing_from_the_next() {
        let (sender, mut frames) = mpsc::channel::<Result<Frame<Bytes>, Status>>(1);
        let frames = futures_util::stream::poll_fn(move |cx| frames.poll_recv(cx));
        let replay = Replay::new(Body::new(StreamBody::new(frames)));
        let mut given_up = replay.body().unwrap();
        assert!(poll!(given_up.frame()).is_pending());
        let next = tokio::spawn(read(replay.body().unwrap()));
        tokio::task::yield_now().await;
        // It waits now, and the one before is polled once more before it is dropped.
        let polled = poll!(given_up.frame());
        let late = Frame::data(Bytes::from_static(b"late"));
        sender.send(Ok(late)).await.unwrap();
        drop(sender);
        let read = timeout(Duration::from_secs(1), next).await;
        assert_eq!(read.expect("it is woken").unwrap(), b"late");
        assert!(matches!(polled, Poll::Ready(Some(Err(_)))));
        assert!(replay.is_retained() && !replay.has_failed());
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
