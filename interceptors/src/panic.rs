//! Turns the panic of a handler into INTERNAL; the connection and its other calls are not affected.

use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::Frame;
use pin_project_lite::pin_project;
use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    task::{Context, Poll},
};
use tonic::{Code, Status, body::Body};
use tower_layer::Layer;
use tower_service::Service;

/// Catches the panics of every call.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PanicLayer;

impl<S> Layer<S> for PanicLayer {
    type Service = CatchPanic<S>;

    fn layer(&self, inner: S) -> CatchPanic<S> {
        CatchPanic { inner }
    }
}

/// A service whose panics are caught.
#[derive(Debug, Clone)]
pub struct CatchPanic<S> {
    inner: S,
}

impl<S, A> Service<Request<A>> for CatchPanic<S>
where
    S: Service<Request<A>, Response = Response<Body>>,
{
    type Response = Response<CatchBody>;
    type Error = S::Error;
    type Future = CatchFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<A>) -> Self::Future {
        CatchFuture {
            inner: self.inner.call(request),
        }
    }
}

pin_project! {
    /// The future of [`CatchPanic`].
    pub struct CatchFuture<F> {
        #[pin]
        inner: F,
    }
}

impl<F, E> Future for CatchFuture<F>
where
    F: Future<Output = Result<Response<Body>, E>>,
{
    type Output = Result<Response<CatchBody>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let inner = self.project().inner;
        match catch_unwind(AssertUnwindSafe(|| inner.poll(cx))) {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(result)) => Poll::Ready(result.map(|r| r.map(CatchBody::new))),
            Err(panic) => {
                report(panic.as_ref());
                let response: Response<Body> = Status::internal("the handler failed").into_http();
                Poll::Ready(Ok(response.map(CatchBody::new)))
            }
        }
    }
}

fn report(panic: &(dyn Any + Send)) {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
    let text = text
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_default();
    tracing::error!(panic = text, "a handler panicked");
}

/// A response body whose panics are caught.
#[derive(Debug)]
pub struct CatchBody {
    inner: Option<Body>,
}

impl CatchBody {
    fn new(inner: Body) -> Self {
        Self { inner: Some(inner) }
    }
}

impl http_body::Body for CatchBody {
    type Data = bytes::Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<bytes::Bytes>, Status>>> {
        let Some(inner) = &mut self.inner else {
            return Poll::Ready(None);
        };
        match catch_unwind(AssertUnwindSafe(|| Pin::new(inner).poll_frame(cx))) {
            Ok(frame) => frame,
            Err(panic) => {
                report(panic.as_ref());
                self.inner = None;
                let mut trailers = HeaderMap::new();
                trailers.insert("grpc-status", HeaderValue::from(Code::Internal as i32));
                Poll::Ready(Some(Ok(Frame::trailers(trailers))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner
            .as_ref()
            .is_none_or(http_body::Body::is_end_stream)
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.inner
            .as_ref()
            .map(http_body::Body::size_hint)
            .unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;
    use tars_proto::fault;
    use tower::{ServiceExt, service_fn};

    #[tokio::test]
    async fn a_panic_becomes_an_internal_error() {
        let service = PanicLayer.layer(service_fn(|_: Request<()>| async {
            assert!(std::env::args().count() == 0, "boom");
            Ok::<_, Infallible>(Response::new(Body::empty()))
        }));
        let response = service.oneshot(Request::new(())).await.unwrap();
        assert_eq!(fault::code_in(response.headers()), Some(Code::Internal));
    }
}
