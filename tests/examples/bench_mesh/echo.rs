//! The service that every variant serves: a unary call and a stream of the same small message.

use futures_util::stream;
use std::{
    convert::Infallible,
    future::{Future, Ready, ready},
    pin::Pin,
    task::{Context, Poll},
};
use tars_proto::{
    auth::v1::{GetMeRequest, GetMeResponse},
    codec::ValidatingCodec,
};
use tonic::{
    Request, Response, Status,
    body::Body,
    codegen::Service,
    server::{Grpc, NamedService, ServerStreamingService, UnaryService},
};

/// Messages of a stream.
pub(crate) const MESSAGES: usize = 1000;

/// The path of the unary call, whose permission every role has.
pub(crate) const UNARY: &str = "/tars.auth.v1.AuthService/GetMe";
/// The path of the stream.
pub(crate) const STREAM: &str = "/tars.orchestration.v1.TrainingService/WatchTraining";

/// What every call and every message of a stream is answered with.
#[derive(Debug, Clone)]
pub(crate) struct Echo(pub(crate) GetMeResponse);

impl Echo {
    /// Answers with a text in the first field, which a string of the well-known types encodes alike.
    pub(crate) fn new(text: &str) -> Self {
        Self(GetMeResponse {
            user_id: text.to_owned(),
            ..GetMeResponse::default()
        })
    }
}

/// Answers the unary call.
#[derive(Debug, Clone)]
pub(crate) struct Calls(pub(crate) Echo);

/// Answers the stream.
#[derive(Debug, Clone)]
pub(crate) struct Streams(pub(crate) Echo);

impl NamedService for Calls {
    const NAME: &'static str = "tars.auth.v1.AuthService";
}

impl NamedService for Streams {
    const NAME: &'static str = "tars.orchestration.v1.TrainingService";
}

impl UnaryService<GetMeRequest> for Echo {
    type Response = GetMeResponse;
    type Future = Ready<Result<Response<GetMeResponse>, Status>>;

    fn call(&mut self, _: Request<GetMeRequest>) -> Self::Future {
        ready(Ok(Response::new(self.0.clone())))
    }
}

impl ServerStreamingService<GetMeRequest> for Echo {
    type Response = GetMeResponse;
    type ResponseStream =
        stream::Map<stream::Iter<std::ops::Range<usize>>, Box<dyn FnMut(usize) -> Item + Send>>;
    type Future = Ready<Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, _: Request<GetMeRequest>) -> Self::Future {
        use futures_util::StreamExt;
        let answer = self.0.clone();
        let one: Box<dyn FnMut(usize) -> Item + Send> = Box::new(move |_| Ok(answer.clone()));
        ready(Ok(Response::new(stream::iter(0..MESSAGES).map(one))))
    }
}

type Item = Result<GetMeResponse, Status>;
type Answer = Pin<Box<dyn Future<Output = Result<http::Response<Body>, Infallible>> + Send>>;

fn grpc() -> Grpc<ValidatingCodec<GetMeResponse, GetMeRequest>> {
    Grpc::new(ValidatingCodec::default())
}

impl Service<http::Request<Body>> for Calls {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let echo = self.0.clone();
        Box::pin(async move { Ok(grpc().unary(echo, request).await) })
    }
}

impl Service<http::Request<Body>> for Streams {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let echo = self.0.clone();
        Box::pin(async move { Ok(grpc().server_streaming(echo, request).await) })
    }
}
