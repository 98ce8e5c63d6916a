//! Turns the panic of a handler, or of a layer around it, into INTERNAL; the connection and its other calls are not affected.

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

    /// What decides about a call works here already, within the task of the connection: a panic would end its other
    /// calls as well.
    fn call(&mut self, request: Request<A>) -> Self::Future {
        let begun = catch_unwind(AssertUnwindSafe(|| self.inner.call(request)));
        CatchFuture {
            state: match begun {
                Ok(inner) => State::Running { inner },
                Err(panic) => {
                    report(panic.as_ref());
                    State::Panicked
                }
            },
        }
    }
}

pin_project! {
    #[project = Projected]
    enum State<F> {
        Running { #[pin] inner: F },
        Panicked,
    }
}

pin_project! {
    /// The future of [`CatchPanic`].
    pub struct CatchFuture<F> {
        #[pin]
        state: State<F>,
    }
}

impl<F, E> Future for CatchFuture<F>
where
    F: Future<Output = Result<Response<Body>, E>>,
{
    type Output = Result<Response<CatchBody>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let inner = match self.project().state.project() {
            Projected::Running { inner } => inner,
            Projected::Panicked => return Poll::Ready(Ok(failed())),
        };
        match catch_unwind(AssertUnwindSafe(|| inner.poll(cx))) {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(result)) => Poll::Ready(result.map(|r| r.map(CatchBody::new))),
            Err(panic) => {
                report(panic.as_ref());
                Poll::Ready(Ok(failed()))
            }
        }
    }
}

fn failed() -> Response<CatchBody> {
    let response: Response<Body> = Status::internal("the handler failed").into_http();
    response.map(CatchBody::new)
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
    use http_body::Body as _;
    use http_body_util::{BodyExt, StreamBody};
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

    #[derive(Debug, Clone)]
    struct Deciding;

    impl Service<Request<()>> for Deciding {
        type Response = Response<Body>;
        type Error = Infallible;
        type Future = std::future::Ready<Result<Self::Response, Infallible>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, _: Request<()>) -> Self::Future {
            panic!("before there is a future");
        }
    }

    #[tokio::test]
    async fn a_panic_of_what_decides_about_a_call_is_an_internal_error_as_well() {
        let service = PanicLayer.layer(Deciding);
        let response = service.oneshot(Request::new(())).await.unwrap();
        assert_eq!(fault::code_in(response.headers()), Some(Code::Internal));
    }

    #[tokio::test]
    async fn a_panic_of_a_body_ends_it_with_an_internal_error() {
        let service = PanicLayer.layer(service_fn(|_: Request<()>| async {
            let mut pieces = 0;
            let body = futures_util::stream::poll_fn(move |_| {
                pieces += 1;
                assert!(pieces < 3, "boom");
                let piece = Frame::data(bytes::Bytes::from_static(b"x"));
                Poll::Ready(Some(Ok::<_, Status>(piece)))
            });
            Ok::<_, Infallible>(Response::new(Body::new(StreamBody::new(body))))
        }));
        let response = service.oneshot(Request::new(())).await.unwrap();
        let mut body = response.into_body();
        for _ in 0..2 {
            assert!(body.frame().await.unwrap().unwrap().is_data());
        }
        let last = body.frame().await.unwrap().unwrap();
        let code = fault::code_in(last.trailers_ref().unwrap());
        assert_eq!(code, Some(Code::Internal));
        assert!(body.frame().await.is_none() && body.is_end_stream());
    }
}
