//! Checks the length of each gRPC message as soon as its header arrives: a message that is larger than the
//! receiver allows ends the call with RESOURCE_EXHAUSTED before any of it is buffered. tonic has a limit of
//! its own, but answers OUT_OF_RANGE, which the contract reserves for positions in a stream.

use crate::prefixed::Prefixed;
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use std::{
    error::Error,
    pin::Pin,
    task::{Context, Poll},
};
use tars_proto::{fault, reason};
use tars_runtime::stream::Stream;
use tonic::{Code, Status};

type BoxError = Box<dyn Error + Send + Sync>;

/// The length of a message header: one byte of flags and four of length.
const HEADER: usize = 5;

pin_project! {
    /// A body of gRPC messages of bounded size.
    #[derive(Debug)]
    pub struct Framed<B> {
        #[pin]
        body: B,
        direction: Direction,
        messages: Messages,
    }
}

/// Which way the messages of a body go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    /// To the process. Its stream knows when it waits for them.
    Request,
    /// From another process, which the one that calls it waits for: that is no wait for its own client.
    Response,
}

impl<B> Framed<B> {
    /// The body of a request that this process serves.
    pub(crate) fn request(body: B, max: usize) -> Self {
        Self::new(body, max, Direction::Request)
    }

    /// The body of a response to this process.
    pub(crate) fn response(body: B, max: usize) -> Self {
        Self::new(body, max, Direction::Response)
    }

    fn new(body: B, max: usize, direction: Direction) -> Self {
        Self {
            body,
            direction,
            messages: Messages::new(max),
        }
    }
}

impl Direction {
    fn awaited(self) {
        if self == Self::Request {
            Stream::request_awaited();
        }
    }

    fn arrived(self) -> Result<(), BoxError> {
        match self {
            Self::Request => Stream::request_arrived(),
            Self::Response => Ok(()),
        }
    }
}

/// The position of a body in its messages.
#[derive(Debug)]
struct Messages {
    max: usize,
    prefixed: Prefixed<HEADER>,
}

impl Messages {
    fn new(max: usize) -> Self {
        Self {
            max,
            prefixed: Prefixed::default(),
        }
    }

    fn read(&mut self, data: &[u8]) -> Result<(), Status> {
        let max = self.max;
        self.prefixed.read(data, |[_, length @ ..]| {
            let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
            if length > max {
                return Err(too_large(length, max));
            }
            Ok(length)
        })
    }
}

fn too_large(length: usize, max: usize) -> Status {
    fault::status(
        Code::ResourceExhausted,
        reason::MESSAGE_TOO_LARGE,
        &format!("the message has {length} bytes; at most {max} are accepted"),
    )
}

impl<B> Body for Framed<B>
where
    B: Body<Data = Bytes, Error: Into<BoxError>>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.project();
        let Poll::Ready(frame) = this.body.poll_frame(cx) else {
            this.direction.awaited();
            return Poll::Pending;
        };
        if let Err(refused) = this.direction.arrived() {
            return Poll::Ready(Some(Err(refused)));
        }
        let frame = match frame {
            Some(Ok(frame)) => frame,
            Some(Err(e)) => return Poll::Ready(Some(Err(e.into()))),
            None => return Poll::Ready(None),
        };
        let fits = frame.data_ref().map_or(Ok(()), |d| this.messages.read(d));
        Poll::Ready(Some(fits.map(|()| frame).map_err(Into::into)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::{poll, stream::pending};
    use http_body_util::{BodyExt, StreamBody};

    fn message(length: u32) -> Vec<u8> {
        let mut bytes = vec![0];
        bytes.extend(length.to_be_bytes());
        bytes.resize(HEADER + length as usize, 7);
        bytes
    }

    fn read(bytes: &[u8], pieces: usize) -> Result<(), Code> {
        let mut messages = Messages::new(10);
        for piece in bytes.chunks(pieces) {
            messages.read(piece).map_err(|s| s.code())?;
        }
        Ok(())
    }

    #[test]
    fn a_message_over_the_limit_is_refused_however_it_is_split() {
        let good = [message(10), message(0), message(3)].concat();
        let bad = [message(10), message(11)].concat();
        for pieces in 1..=good.len() {
            assert_eq!(read(&good, pieces), Ok(()), "{pieces}");
            assert_eq!(read(&bad, pieces), Err(Code::ResourceExhausted), "{pieces}");
        }
    }

    #[tokio::test]
    async fn only_a_request_is_waited_for_as_one() {
        Stream::scope(async {
            let silent = || StreamBody::new(pending::<Result<Frame<Bytes>, BoxError>>());
            let mut response = Framed::response(silent(), 10);
            assert!(poll!(response.frame()).is_pending());
            assert!(
                !Stream::is_request_awaited(),
                "another process is waited for"
            );
            let mut request = Framed::request(silent(), 10);
            assert!(poll!(request.frame()).is_pending());
            assert!(Stream::is_request_awaited());
        })
        .await;
    }

    #[test]
    fn the_header_is_enough_to_refuse_a_message() {
        assert_eq!(
            read(&[0, 0xff, 0xff, 0xff, 0xff], 1),
            Err(Code::ResourceExhausted)
        );
        assert_eq!(read(&[0, 0xff, 0xff, 0xff], 1), Ok(()), "not known yet");
    }
}
