//! Messages in gzip: unpacked before the handler, within the limit for messages, and packed for clients that
//! accept it, where an answer is large enough to gain from it.
//!
//! The length of what is packed tells about its content, and whoever may choose a part of an answer and see
//! its length can guess the rest of it (BREACH). So nothing is packed where the contract marks a field of the
//! request or of the answer as secret (`debug_redact`); such methods accept no packed requests either.
//!
//! tonic can do both, but for whole services only, and it reports a message that grows too large as
//! OUT_OF_RANGE, which the contract reserves for positions in a stream. Here the layer is the innermost one: a
//! call that is refused has cost no unpacking. A message is unpacked once all of it has arrived, so that the
//! memory of an unpacker is never held for a slow client. A call that asks for neither passes untouched.

mod gzip;
mod messages;

use crate::{Call, check::CheckFuture};
use bytes::Bytes;
use gzip::{Fault, Progress, Work};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use http_body::{Body as _, Frame};
use messages::{Message, Messages};
use pin_project_lite::pin_project;
use std::{
    collections::VecDeque,
    pin::Pin,
    task::{Context, Poll, ready},
};
use tars_proto::{fault, reason};
use tonic::{Code, Status, body::Body, metadata::MetadataValue};
use tower_layer::Layer;
use tower_service::Service;

const ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");
const ACCEPTED: &str = "grpc-accept-encoding";
const GZIP: &str = "gzip";
const IDENTITY: &str = "identity";

/// Maximum number of bytes that are packed or unpacked before other calls get their turn.
const TURN: usize = 256 << 10;

/// Unpacks requests and packs answers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CompressLayer {
    /// The limit for messages once they are unpacked.
    pub max: usize,
}

impl<S> Layer<S> for CompressLayer {
    type Service = Compress<S>;

    fn layer(&self, inner: S) -> Compress<S> {
        Compress {
            inner,
            max: self.max,
        }
    }
}

/// A service that exchanges messages in gzip.
#[derive(Debug, Clone)]
pub struct Compress<S> {
    inner: S,
    max: usize,
}

/// How the messages of a request are encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Encoding {
    Identity,
    Gzip,
}

impl Encoding {
    /// Reads the encoding of a request's messages; `may_pack` is what the contract says about the method.
    fn of(headers: &HeaderMap, may_pack: bool) -> Result<Self, Status> {
        let mut values = headers.get_all(ENCODING).iter();
        match (values.next().map(HeaderValue::as_bytes), values.next()) {
            (None | Some(b"identity"), None) => Ok(Self::Identity),
            (Some(b"gzip"), None) if may_pack => Ok(Self::Gzip),
            _ => Err(unsupported(may_pack)),
        }
    }
}

fn unsupported(may_pack: bool) -> Status {
    let (accepted, message) = match may_pack {
        true => ("identity,gzip", "messages may be in gzip or uncompressed"),
        false => (
            IDENTITY,
            "this method accepts only uncompressed messages, as they hold a secret",
        ),
    };
    let mut status = fault::status(Code::Unimplemented, reason::UNKNOWN_ENCODING, message);
    let accepted = MetadataValue::from_static(accepted);
    status.metadata_mut().insert(ACCEPTED, accepted);
    status
}

/// Whether a client accepts gzip.
fn accepts_gzip(headers: &HeaderMap) -> bool {
    let values = headers.get_all(ACCEPTED).iter();
    let mut names = values
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','));
    names.any(|name| name.trim() == GZIP)
}

impl<S> Service<Request<Body>> for Compress<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = CheckFuture<Packing<S::Future>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let call = Call::in_extensions(request.extensions());
        let may_pack = call.is_some_and(|call| !call.method.secret);
        let request = match Encoding::of(request.headers(), may_pack) {
            Err(status) => return CheckFuture::refused(status),
            Ok(Encoding::Identity) => request,
            Ok(Encoding::Gzip) => {
                // What follows sees messages that are not packed.
                request.headers_mut().remove(ENCODING);
                request
                    .map(|body| Body::new(Recoded::new(body, Direction::Unpack { max: self.max })))
            }
        };
        let pack = may_pack && accepts_gzip(request.headers());
        CheckFuture::passed(Packing {
            inner: self.inner.call(request),
            pack,
        })
    }
}

pin_project! {
    /// Packs the response that a future resolves to, where the client accepts that.
    pub struct Packing<F> {
        #[pin]
        inner: F,
        pack: bool,
    }
}

impl<F, E> Future for Packing<F>
where
    F: Future<Output = Result<Response<Body>, E>>,
{
    type Output = Result<Response<Body>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let response = ready!(this.inner.poll(cx))?;
        Poll::Ready(Ok(if *this.pack {
            packed(response)
        } else {
            response
        }))
    }
}

/// Packs the large messages of a response. A status without a message stays as it is.
fn packed(response: Response<Body>) -> Response<Body> {
    if response.body().is_end_stream() {
        return response;
    }
    let (mut head, body) = response.into_parts();
    head.headers
        .insert(ENCODING, HeaderValue::from_static(GZIP));
    Response::from_parts(head, Body::new(Recoded::new(body, Direction::Pack)))
}

fn unreadable(fault: Fault, max: usize) -> Status {
    match fault {
        Fault::TooLarge => fault::status(
            Code::ResourceExhausted,
            reason::MESSAGE_TOO_LARGE,
            &format!("the message has more than {max} bytes once it is unpacked"),
        ),
        // The code that gRPC prescribes for what cannot be unpacked.
        Fault::Corrupt => fault::status(
            Code::Internal,
            reason::MALFORMED_MESSAGE,
            "the message cannot be unpacked",
        ),
    }
}

/// What is done to the messages of a body.
#[derive(Debug, Clone, Copy)]
enum Direction {
    /// Packed ones are unpacked, to so many bytes at most.
    Unpack { max: usize },
    /// Large ones are packed.
    Pack,
}

impl Direction {
    /// Returns the work on a message, or the message where there is none.
    fn begin(self, message: Message) -> Result<Work, Message> {
        match self {
            Self::Unpack { max } if message.packed => Ok(Work::unpack(message.payload, max)),
            Self::Pack if message.is_worth_packing() => Ok(Work::pack(message.payload)),
            _ => Err(message),
        }
    }

    fn failed(self, fault: Fault) -> Status {
        match self {
            Self::Unpack { max } => unreadable(fault, max),
            Self::Pack => fault::internal(),
        }
    }
}

pin_project! {
    /// A body whose messages are packed or unpacked.
    struct Recoded {
        #[pin]
        body: Body,
        direction: Direction,
        messages: Messages,
        work: Option<Work>,
        ready: VecDeque<Bytes>,
    }
}

impl Recoded {
    fn new(body: Body, direction: Direction) -> Self {
        Self {
            body,
            direction,
            messages: Messages::default(),
            work: None,
            ready: VecDeque::new(),
        }
    }
}

impl http_body::Body for Recoded {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let mut this = self.project();
        loop {
            if let Some(data) = this.ready.pop_front() {
                return Poll::Ready(Some(Ok(Frame::data(data))));
            }
            if let Some(work) = this.work {
                match work.run(TURN) {
                    Ok(Progress::Done) => this.ready.extend(work.take_frames()),
                    Ok(Progress::More) => {
                        cx.waker().wake_by_ref();
                        return Poll::Pending;
                    }
                    Err(fault) => return Poll::Ready(Some(Err(this.direction.failed(fault)))),
                }
                *this.work = None;
                continue;
            }
            if let Some(message) = this.messages.next() {
                match this.direction.begin(message) {
                    Ok(work) => *this.work = Some(work),
                    Err(message) => this.ready.extend(message.into_frames()),
                }
                continue;
            }
            match ready!(this.body.as_mut().poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => this.messages.add(&data),
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                // What is left of a message is passed on, so that its reader reports it.
                None => match this.messages.rest() {
                    Some(rest) => this.ready.push_back(rest),
                    None => return Poll::Ready(None),
                },
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
            }
        }
    }
}

#[cfg(test)]
mod tests;
