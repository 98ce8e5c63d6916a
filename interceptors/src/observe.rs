//! A layer that sees a call begin and end. The status of a call is in its trailers, in its headers when
//! there are no trailers, or nowhere when the client went away: an observer receives it exactly once.

use crate::{Call, stream_guard};
use http::{HeaderMap, Request, Response};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use std::{
    pin::Pin,
    task::{Context, Poll},
};
use tars_proto::fault;
use tars_runtime::stream::Stream;
use tonic::{Code, Status};
use tower_layer::Layer;
use tower_service::Service;

/// Begins to watch each call.
pub trait Observe: Clone {
    /// The watch of one call.
    type Watch: Watch;

    /// Called before the inner service.
    ///
    /// # Errors
    ///
    /// The status with which the call is refused.
    fn begin<B>(&self, request: &mut Request<B>) -> Result<Self::Watch, Status>;
}

/// Watches one call.
pub trait Watch {
    /// Called exactly once, when the call has ended. The code is `CANCELLED` when the client went
    /// away.
    fn end(self, code: Code);

    /// Called with the headers of the response before they are sent.
    fn answer(&self, _headers: &mut HeaderMap) {}

    /// Called around every poll of the call and of its body.
    fn enter<T>(&mut self, work: impl FnOnce() -> T) -> T {
        work()
    }
}

/// Applies an [`Observe`] to every call.
#[derive(Debug, Clone)]
pub(crate) struct ObserveLayer<O>(pub O);

impl<S, O: Clone> Layer<S> for ObserveLayer<O> {
    type Service = Observed<S, O>;

    fn layer(&self, inner: S) -> Observed<S, O> {
        Observed {
            inner,
            observer: self.0.clone(),
        }
    }
}

/// A service whose calls are observed.
#[derive(Debug, Clone)]
pub struct Observed<S, O> {
    inner: S,
    observer: O,
}

impl<S, O, A, B> Service<Request<A>> for Observed<S, O>
where
    S: Service<Request<A>, Response = Response<B>>,
    O: Observe,
    B: Body,
{
    type Response = Response<ObservedBody<B, O::Watch>>;
    type Error = S::Error;
    type Future = ObserveFuture<S::Future, O::Watch>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<A>) -> Self::Future {
        match self.observer.begin(&mut request) {
            Ok(mut watch) => {
                let future = watch.enter(|| self.inner.call(request));
                ObserveFuture {
                    state: State::Running { future },
                    guard: Guard(Some(watch)),
                }
            }
            Err(status) => {
                if let Some(call) = Call::in_extensions(request.extensions()) {
                    call.set_refusal(&status);
                }
                ObserveFuture {
                    state: State::Refused {
                        status: Some(status),
                    },
                    guard: Guard(None),
                }
            }
        }
    }
}

/// Ends the watch when the call is dropped before its end.
#[derive(Debug)]
struct Guard<W: Watch>(Option<W>);

impl<W: Watch> Guard<W> {
    fn end(&mut self, code: Code) {
        if let Some(watch) = self.0.take() {
            watch.end(code);
        }
    }

    fn answer(&self, headers: &mut HeaderMap) {
        if let Some(watch) = &self.0 {
            watch.answer(headers);
        }
    }

    fn enter<T>(&mut self, work: impl FnOnce() -> T) -> T {
        match &mut self.0 {
            Some(watch) => watch.enter(work),
            None => work(),
        }
    }
}

impl<W: Watch> Drop for Guard<W> {
    fn drop(&mut self) {
        if self.0.is_some() {
            // Its connection ended it, or the client went away.
            let cut = Stream::cut().map(|why| stream_guard::status_of(why).code());
            self.end(cut.unwrap_or(Code::Cancelled));
        }
    }
}

pin_project! {
    #[project = Projected]
    enum State<F> {
        Running { #[pin] future: F },
        Refused { status: Option<Status> },
    }
}

pin_project! {
    /// The future of [`Observed`].
    pub struct ObserveFuture<F, W: Watch> {
        #[pin]
        state: State<F>,
        guard: Guard<W>,
    }
}

impl<F, W, B, E> Future for ObserveFuture<F, W>
where
    F: Future<Output = Result<Response<B>, E>>,
    W: Watch,
    B: Body,
{
    type Output = Result<Response<ObservedBody<B, W>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let response = match this.state.project() {
            Projected::Refused { status } => {
                let status = status
                    .take()
                    .expect("a future is not polled after it is ready");
                return Poll::Ready(Ok(status
                    .into_http::<Empty>()
                    .map(|_| ObservedBody::empty())));
            }
            Projected::Running { future } => {
                std::task::ready!(this.guard.enter(|| future.poll(cx)))
            }
        };
        match response {
            Ok(mut response) => {
                this.guard.answer(response.headers_mut());
                if let Some(code) = fault::code_in(response.headers()) {
                    this.guard.end(code);
                }
                let guard = Guard(this.guard.0.take());
                Poll::Ready(Ok(response.map(|body| ObservedBody {
                    body: Some(body),
                    guard,
                })))
            }
            Err(e) => {
                this.guard.end(Code::Unavailable);
                Poll::Ready(Err(e))
            }
        }
    }
}

#[derive(Debug, Default)]
struct Empty;

impl Body for Empty {
    type Data = bytes::Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<bytes::Bytes>, Self::Error>>> {
        Poll::Ready(None)
    }
}

pin_project! {
    /// The body of an observed response.
    #[derive(Debug)]
    pub struct ObservedBody<B, W: Watch> {
        #[pin]
        body: Option<B>,
        guard: Guard<W>,
    }
}

impl<B, W: Watch> ObservedBody<B, W> {
    fn empty() -> Self {
        Self {
            body: None,
            guard: Guard(None),
        }
    }
}

impl<B: Body, W: Watch> Body for ObservedBody<B, W> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let this = self.project();
        let Some(body) = this.body.as_pin_mut() else {
            return Poll::Ready(None);
        };
        let frame = std::task::ready!(this.guard.enter(|| body.poll_frame(cx)));
        match &frame {
            Some(Ok(frame)) => {
                if let Some(code) = frame.trailers_ref().and_then(fault::code_in) {
                    this.guard.end(code);
                }
            }
            Some(Err(_)) => this.guard.end(Code::Unavailable),
            None => this.guard.end(Code::Unknown),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body
            .as_ref()
            .map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}
