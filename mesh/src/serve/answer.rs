//! Responses: a plain HTTP refusal for a request that is not a gRPC call, or the response of the layers, in
//! pieces that show when the peer has room for it.
//!
//! hyper hands a piece to h2 as soon as the peer's window has room for one byte of it, and forgets the stream
//! once the last piece is handed over; what the window did not cover stays in h2's buffer, where no deadline
//! reaches it. So pieces are no longer than a frame, and the last byte of a longer response is a piece of its
//! own: a response is over only when the peer has room for nearly all of it.
//!
//! A refused request is answered once its body has arrived, or a moment later. Many clients take RST_STREAM
//! for an error, even with the code NO_ERROR that RFC 9113 defines for this (section 8.1). And curl stops
//! sending when it sees an error status, so that its body is shorter than announced, for which h2 must reset
//! the stream.

use super::excess::RefusalBudget;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use pin_project_lite::pin_project;
use std::{
    mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};
use tars_proto::{binary, fault, reason, timeout};
use tars_runtime::{
    stream::Stream,
    trace::{Parent, TRACE_ID, fresh_trace_id, id_header},
};
use tokio::time::{Sleep, sleep};
use tonic::Code;

/// The default maximum length of a DATA frame.
const PIECE: usize = 16 << 10;
/// Maximum number of bytes of a response in h2's buffer when its stream is over.
const TAIL: usize = 1 << 10;

/// Maximum number of bytes that are read of the body of a refused request.
const UNWANTED: usize = 4 << 20;
/// Maximum time for which they are read.
const UNWANTED_FOR: Duration = Duration::from_secs(1);

/// Maximum size of the headers of a call, as HTTP/2 counts it.
const MAX_HEADERS: usize = 16 << 10;
/// The limit at which h2 itself answers a bare 431, which a gRPC client cannot interpret.
pub(super) const READ_HEADERS: u32 = 2 * MAX_HEADERS as u32;
/// What HTTP/2 adds per header to the lengths of its name and value.
const HEADER_OVERHEAD: usize = 32;

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC: &str = "application/grpc";
const GRPC_PROTO: &str = "application/grpc+proto";

/// Returns the refusal of a request that is not a gRPC call, with its reason as a metric label.
pub(super) fn refusal<B>(request: &Request<B>) -> Option<(&'static str, Response<()>)> {
    let headers = request.headers();
    if request.method() != Method::POST {
        let allow = (header::ALLOW, HeaderValue::from_static("POST"));
        let refused = answer(StatusCode::METHOD_NOT_ALLOWED, allow, headers);
        return Some(("method", refused));
    }
    if !is_grpc(headers) {
        let accept = (header::ACCEPT, HeaderValue::from_static(GRPC));
        let refused = answer(StatusCode::UNSUPPORTED_MEDIA_TYPE, accept, headers);
        return Some(("content_type", refused));
    }
    let size = size_of(headers);
    if size > MAX_HEADERS {
        return Some(("headers", too_large(size, headers)));
    }
    binary::unreadable(headers).map(|name| ("binary", unreadable(name, headers)))
}

/// Also where nothing would have read it: a proxy or a later version may.
fn unreadable(name: &HeaderName, asked: &HeaderMap) -> Response<()> {
    let message = format!("the header {name} is not base64");
    let status = fault::status(Code::InvalidArgument, reason::MALFORMED_HEADER, &message);
    with_trace(status.into_http(), asked)
}

fn size_of(headers: &HeaderMap) -> usize {
    let of = |(name, value): (&HeaderName, &HeaderValue)| {
        name.as_str().len() + value.len() + HEADER_OVERHEAD
    };
    headers.iter().map(of).sum()
}

/// As a gRPC status, since it is a call.
fn too_large(size: usize, asked: &HeaderMap) -> Response<()> {
    let message = format!("the headers have {size} bytes; at most {MAX_HEADERS} are accepted");
    let status = fault::status(Code::ResourceExhausted, reason::HEADERS_TOO_LARGE, &message);
    with_trace(status.into_http(), asked)
}

/// Adds the trace id of the request, or a new one, as every response has it.
fn answer(
    status: StatusCode,
    (name, value): (HeaderName, HeaderValue),
    asked: &HeaderMap,
) -> Response<()> {
    let mut response = Response::new(());
    *response.status_mut() = status;
    response.headers_mut().insert(name, value);
    with_trace(response, asked)
}

fn with_trace(mut response: Response<()>, asked: &HeaderMap) -> Response<()> {
    let trace = Parent::read(asked).map(|parent| parent.context.trace_id);
    let id = id_header(trace.unwrap_or_else(fresh_trace_id));
    response.headers_mut().insert(TRACE_ID, id);
    response
}

/// Whether the content type is gRPC with protobuf, which is also the default; parameters are ignored.
fn is_grpc(headers: &HeaderMap) -> bool {
    let mut values = headers.get_all(header::CONTENT_TYPE).iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return false;
    };
    if value == GRPC {
        return true;
    }
    let kind = value.to_str().ok().and_then(|v| v.split(';').next());
    kind.map(str::trim_ascii).is_some_and(|kind| {
        kind.eq_ignore_ascii_case(GRPC) || kind.eq_ignore_ascii_case(GRPC_PROTO)
    })
}

pin_project! {
    #[project = Projected]
    pub(super) enum Answering<F> {
        Passed { #[pin] future: F, refusals: Option<Arc<RefusalBudget>> },
        Refused { response: Option<Response<()>>, unwanted: Option<Box<Unwanted>> },
    }
}

impl<F> Answering<F> {
    /// Passes on the response of the layers; one that reports a spent limit, or an impossible timeout, counts as a
    /// refusal.
    pub(super) fn passed(future: F, refusals: Option<Arc<RefusalBudget>>) -> Self {
        Self::Passed { future, refusals }
    }

    pub(super) fn refused(response: Response<()>, body: Incoming) -> Self {
        // A gRPC status is sent at once: its clients do not wait for anything else.
        let waits = !response.headers().contains_key(GRPC_STATUS) && !body.is_end_stream();
        Self::Refused {
            response: Some(response),
            unwanted: waits.then(|| Box::new(Unwanted::new(body))),
        }
    }
}

/// Whether a response reports a spent limit and nothing else. One that says when to come back is about the load of the
/// process, which the peer may be right to try again.
fn is_exhausted<B: Body>(response: &Response<B>) -> bool {
    let spent = Code::ResourceExhausted as i32;
    let status = || {
        response
            .headers()
            .get(GRPC_STATUS)?
            .to_str()
            .ok()?
            .parse()
            .ok()
    };
    let comes_back = response.headers().contains_key(fault::PUSHBACK);
    response.body().is_end_stream() && status() == Some(spent) && !comes_back
}

/// Whether a call was refused for the timeout that it asked for, which a peer can do at no cost.
fn is_untimely<B>(response: &Response<B>) -> bool {
    response.extensions().get::<timeout::Refused>().is_some()
}

impl<F, B, E> Future for Answering<F>
where
    F: Future<Output = Result<Response<B>, E>>,
    B: Body,
{
    type Output = Result<Response<Answer<B>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project() {
            Projected::Passed { future, refusals } => {
                let response = ready!(future.poll(cx))?;
                if let Some(refusals) = refusals
                    && (is_exhausted(&response) || is_untimely(&response))
                {
                    refusals.charge();
                }
                Poll::Ready(Ok(response.map(|body| Answer::new(Some(body)))))
            }
            Projected::Refused { response, unwanted } => {
                if let Some(unwanted) = unwanted {
                    ready!(unwanted.poll(cx));
                }
                let response = response
                    .take()
                    .expect("a future is not polled after it is ready");
                Poll::Ready(Ok(response.map(|()| Answer::new(None))))
            }
        }
    }
}

pin_project! {
    /// A body in pieces, or no body for a refusal.
    #[derive(Debug)]
    pub(super) struct Answer<B> {
        #[pin]
        body: Option<B>,
        rest: Bytes,
    }
}

impl<B> Answer<B> {
    fn new(body: Option<B>) -> Self {
        Self {
            body,
            rest: Bytes::new(),
        }
    }
}

/// The body of a refused request, which is read and discarded within bounds.
#[derive(Debug)]
pub(super) struct Unwanted {
    body: Incoming,
    left: usize,
    until: Pin<Box<Sleep>>,
}

impl Unwanted {
    fn new(body: Incoming) -> Self {
        Self {
            body,
            left: UNWANTED,
            until: Box::pin(sleep(UNWANTED_FOR)),
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) {
            let Some(Ok(frame)) = frame else {
                return Poll::Ready(());
            };
            let length = frame.data_ref().map_or(0, Bytes::len);
            let Some(left) = self.left.checked_sub(length) else {
                return Poll::Ready(());
            };
            self.left = left;
        }
        self.until.as_mut().poll(cx)
    }
}

/// Returns the length of the next piece, when `length` bytes are left.
fn piece(length: usize) -> usize {
    match length {
        0..=TAIL => length,
        _ => PIECE.min(length - 1),
    }
}

impl<B> Body for Answer<B>
where
    B: Body<Data = Bytes>,
{
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = self.project();
        Stream::next_requested();
        if this.rest.is_empty() {
            let Some(body) = this.body.as_pin_mut() else {
                return Poll::Ready(None);
            };
            let frame = match ready!(body.poll_frame(cx)) {
                Some(Ok(frame)) => frame,
                other => return Poll::Ready(other),
            };
            match frame.into_data() {
                Ok(data) => *this.rest = data,
                Err(other) => return Poll::Ready(Some(Ok(other))),
            }
        }
        Stream::handed_over();
        let next = match piece(this.rest.len()) {
            all if all == this.rest.len() => mem::take(this.rest),
            some => this.rest.split_to(some),
        };
        Poll::Ready(Some(Ok(Frame::data(next))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        let rest = self.rest.len() as u64;
        let inner = self
            .body
            .as_ref()
            .map_or_else(|| SizeHint::with_exact(0), Body::size_hint);
        let mut hint = SizeHint::new();
        hint.set_lower(inner.lower() + rest);
        if let Some(upper) = inner.upper() {
            hint.set_upper(upper + rest);
        }
        hint
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::{BodyExt, Full};

    fn status(method: Method, content_types: &[&str]) -> Option<u16> {
        let mut request = Request::builder().method(method).uri("/no.Such/Method");
        for value in content_types {
            request = request.header(header::CONTENT_TYPE, *value);
        }
        refusal(&request.body(()).unwrap()).map(|(_, r)| r.status().as_u16())
    }

    #[test]
    fn a_request_that_is_not_a_grpc_call_is_refused_with_an_http_status() {
        for good in [
            "application/grpc",
            "application/grpc+proto",
            "application/grpc;charset=utf-8",
            "Application/gRPC",
        ] {
            assert_eq!(status(Method::POST, &[good]), None, "{good}");
        }
        for bad in [
            "application/json",
            "application/grpc-web",
            "application/grpc-web+proto",
            "application/grpc+json",
            "application/grpcx",
            "",
        ] {
            assert_eq!(status(Method::POST, &[bad]), Some(415), "{bad}");
        }
        assert_eq!(status(Method::POST, &[]), Some(415));
        assert_eq!(status(Method::POST, &[GRPC, GRPC]), Some(415));
        for method in [Method::GET, Method::HEAD, Method::OPTIONS, Method::CONNECT] {
            assert_eq!(status(method, &[GRPC]), Some(405));
        }
        let get = Request::get("/").body(()).unwrap();
        assert_eq!(refusal(&get).unwrap().1.headers()[header::ALLOW], "POST");
    }

    #[test]
    fn a_refusal_carries_the_trace_id_of_its_request_or_a_new_one() {
        let id = |request: http::request::Builder| {
            let (_, response) = refusal(&request.body(()).unwrap()).unwrap();
            let id = response.headers()[TRACE_ID].to_str().unwrap().to_owned();
            assert!(id.len() == 32 && id.bytes().any(|b| b != b'0'), "{id}");
            id
        };
        let trace = "0af7651916cd43dd8448eb211c80319c";
        let position = format!("00-{trace}-b7ad6b7169203331-01");
        for method in [Method::GET, Method::POST] {
            let asked = || Request::builder().method(&method).uri("/");
            assert_eq!(id(asked().header("traceparent", &position)), trace);
            assert_ne!(id(asked()), id(asked()));
            assert_ne!(id(asked().header("traceparent", "broken")), trace);
        }
    }

    #[tokio::test]
    async fn a_long_response_is_sent_in_frames_and_its_last_byte_alone() {
        let long = Bytes::from(vec![7u8; 2 * PIECE + 100]);
        let mut answer = Answer::new(Some(Full::new(long.clone())));
        assert_eq!(answer.size_hint().exact(), Some(long.len() as u64));
        let mut pieces = Vec::new();
        while let Some(frame) = answer.frame().await {
            pieces.push(frame.unwrap().into_data().unwrap());
        }
        let lengths: Vec<usize> = pieces.iter().map(Bytes::len).collect();
        assert_eq!(lengths, [PIECE, PIECE, 100]);
        assert_eq!(pieces.concat(), long);
        assert!(answer.is_end_stream());

        let mut answer = Answer::new(Some(Full::new(Bytes::from(vec![7u8; PIECE]))));
        let mut lengths = Vec::new();
        while let Some(frame) = answer.frame().await {
            lengths.push(frame.unwrap().into_data().unwrap().len());
        }
        assert_eq!(lengths, [PIECE - 1, 1]);
    }
}
