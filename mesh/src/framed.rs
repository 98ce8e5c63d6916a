//! Looks at the length of each gRPC message as its first bytes arrive: one that is larger than its
//! receiver takes ends the call with RESOURCE_EXHAUSTED before any of it is buffered. tonic has a
//! limit of its own and answers OUT_OF_RANGE, which the contract keeps for positions in a stream.

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use std::{
    error::Error,
    pin::Pin,
    task::{Context, Poll, ready},
};
use tars_proto::fault;
use tonic::{Code, Status};

type BoxError = Box<dyn Error + Send + Sync>;

/// One byte of flags and four of length.
const HEADER: usize = 5;

pin_project! {
    /// A body of gRPC messages, none of which is larger than it may be.
    #[derive(Debug)]
    pub struct Framed<B> {
        #[pin]
        body: B,
        messages: Messages,
    }
}

impl<B> Framed<B> {
    pub(crate) fn new(body: B, most: usize) -> Self {
        Self {
            body,
            messages: Messages::new(most),
        }
    }
}

/// Where a body is among its messages.
#[derive(Debug)]
struct Messages {
    most: usize,
    header: [u8; HEADER],
    have: usize,
    /// Bytes of the current message that have not come yet.
    left: usize,
}

impl Messages {
    fn new(most: usize) -> Self {
        Self {
            most,
            header: [0; HEADER],
            have: 0,
            left: 0,
        }
    }

    fn read(&mut self, mut data: &[u8]) -> Result<(), Status> {
        while !data.is_empty() {
            let inside = self.left.min(data.len());
            self.left -= inside;
            data = &data[inside..];
            let wanted = (HEADER - self.have).min(data.len());
            self.header[self.have..self.have + wanted].copy_from_slice(&data[..wanted]);
            self.have += wanted;
            data = &data[wanted..];
            if self.have == HEADER {
                self.begin()?;
            }
        }
        Ok(())
    }

    fn begin(&mut self) -> Result<(), Status> {
        let [_, length @ ..] = self.header;
        let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
        if length > self.most {
            return Err(too_large(length, self.most));
        }
        self.have = 0;
        self.left = length;
        Ok(())
    }
}

fn too_large(length: usize, most: usize) -> Status {
    fault::status(
        Code::ResourceExhausted,
        fault::MESSAGE_TOO_LARGE,
        &format!("the message has {length} bytes; at most {most} are taken"),
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
        let frame = match ready!(this.body.poll_frame(cx)) {
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
    fn a_message_over_the_limit_is_refused_however_it_arrives() {
        let good = [message(10), message(0), message(3)].concat();
        let bad = [message(10), message(11)].concat();
        for pieces in 1..=good.len() {
            assert_eq!(read(&good, pieces), Ok(()), "{pieces}");
            assert_eq!(read(&bad, pieces), Err(Code::ResourceExhausted), "{pieces}");
        }
    }

    #[test]
    fn the_header_alone_is_enough_to_refuse() {
        assert_eq!(
            read(&[0, 0xff, 0xff, 0xff, 0xff], 1),
            Err(Code::ResourceExhausted)
        );
        assert_eq!(read(&[0, 0xff, 0xff, 0xff], 1), Ok(()), "not known yet");
    }
}
