//! Ends server streams when the process stops: a stream has no end of its own that a shutdown
//! could wait for. Clients are told UNAVAILABLE and resume elsewhere by sequence number.

use crate::Call;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::Frame;
use pin_project_lite::pin_project;
use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::{Code, Status, body::Body};
use tower_layer::Layer;
use tower_service::Service;

#[derive(Debug, Clone)]
pub struct DrainLayer(pub CancellationToken);

impl<S> Layer<S> for DrainLayer {
    type Service = Drain<S>;

    fn layer(&self, inner: S) -> Drain<S> {
        Drain {
            inner,
            stop: self.0.clone(),
        }
    }
}

#[derive(Debug, Clone)]
pub struct Drain<S> {
    inner: S,
    stop: CancellationToken,
}

impl<S, A> Service<Request<A>> for Drain<S>
where
    S: Service<Request<A>, Response = Response<Body>>,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = DrainFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<A>) -> Self::Future {
        let streams =
            Call::in_extensions(request.extensions()).is_some_and(|c| c.method.server_streaming);
        DrainFuture {
            inner: self.inner.call(request),
            stop: streams.then(|| self.stop.clone()),
        }
    }
}

pin_project! {
    pub struct DrainFuture<F> {
        #[pin]
        inner: F,
        stop: Option<CancellationToken>,
    }
}

impl<F, E> Future for DrainFuture<F>
where
    F: Future<Output = Result<Response<Body>, E>>,
{
    type Output = Result<Response<Body>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let result = ready!(this.inner.poll(cx));
        Poll::Ready(match this.stop.take() {
            Some(stop) => result.map(|r| r.map(|body| Body::new(DrainBody::new(body, stop)))),
            None => result,
        })
    }
}

struct DrainBody {
    inner: Option<Body>,
    stopped: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl DrainBody {
    fn new(inner: Body, stop: CancellationToken) -> Self {
        Self {
            inner: Some(inner),
            stopped: Box::pin(stop.cancelled_owned()),
        }
    }
}

impl http_body::Body for DrainBody {
    type Data = bytes::Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<bytes::Bytes>, Status>>> {
        let this = &mut *self;
        let Some(inner) = &mut this.inner else {
            return Poll::Ready(None);
        };
        if let Poll::Ready(frame) = Pin::new(inner).poll_frame(cx) {
            return Poll::Ready(frame);
        }
        ready!(this.stopped.as_mut().poll(cx));
        this.inner = None;
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from(Code::Unavailable as i32));
        trailers.insert(
            "grpc-message",
            HeaderValue::from_static("the server is stopping"),
        );
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;

    #[tokio::test]
    async fn a_quiet_stream_ends_when_the_process_stops() {
        let stop = CancellationToken::new();
        let silent = Body::new(http_body_util::StreamBody::new(
            futures_util::stream::pending::<Result<Frame<bytes::Bytes>, Status>>(),
        ));
        let mut body = DrainBody::new(silent, stop.clone());
        stop.cancel();
        let trailers = body
            .frame()
            .await
            .unwrap()
            .unwrap()
            .into_trailers()
            .unwrap();
        assert_eq!(
            Code::from_bytes(trailers["grpc-status"].as_bytes()),
            Code::Unavailable
        );
        assert!(body.frame().await.is_none());
    }
}
