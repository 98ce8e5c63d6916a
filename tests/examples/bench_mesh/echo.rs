//! The service that every variant serves: a unary call and a stream of the same small message.

use futures_util::stream;
use std::{
    convert::Infallible,
    future::{Future, Ready, ready},
    pin::Pin,
    task::{Context, Poll},
};
use tars_proto::{
    codec::ValidatingCodec,
    orchestration::v1::{GetTrainingSummaryRequest, GetTrainingSummaryResponse},
};
use tonic::{
    Request, Response, Status,
    body::Body,
    codegen::Service,
    server::{Grpc, NamedService, ServerStreamingService, UnaryService},
};

/// The agent that is asked about.
pub(crate) const AGENT: &str = "policy";

/// Messages of a stream.
pub(crate) const MESSAGES: usize = 1000;

/// The path of the unary call. It is counted for its caller and held to the volume limit, and has no further budget.
pub(crate) const UNARY: &str = "/tars.orchestration.v1.TrainingMetricsService/GetTrainingSummary";
/// The path of the stream.
pub(crate) const STREAM: &str = "/tars.orchestration.v1.TrainingService/WatchTraining";

/// What every call and every message of a stream is answered with.
#[derive(Debug, Clone)]
pub(crate) struct Echo(pub(crate) GetTrainingSummaryResponse);

impl Echo {
    /// Answers with a text in the first field, which a string of the well-known types encodes alike.
    pub(crate) fn new(text: &str) -> Self {
        Self(GetTrainingSummaryResponse {
            agent_id: text.to_owned(),
            ..GetTrainingSummaryResponse::default()
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
    const NAME: &'static str = "tars.orchestration.v1.TrainingMetricsService";
}

impl NamedService for Streams {
    const NAME: &'static str = "tars.orchestration.v1.TrainingService";
}

impl UnaryService<GetTrainingSummaryRequest> for Echo {
    type Response = GetTrainingSummaryResponse;
    type Future = Ready<Result<Response<GetTrainingSummaryResponse>, Status>>;

    fn call(&mut self, _: Request<GetTrainingSummaryRequest>) -> Self::Future {
        ready(Ok(Response::new(self.0.clone())))
    }
}

impl ServerStreamingService<GetTrainingSummaryRequest> for Echo {
    type Response = GetTrainingSummaryResponse;
    type ResponseStream =
        stream::Map<stream::Iter<std::ops::Range<usize>>, Box<dyn FnMut(usize) -> Item + Send>>;
    type Future = Ready<Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, _: Request<GetTrainingSummaryRequest>) -> Self::Future {
        use futures_util::StreamExt;
        let answer = self.0.clone();
        let one: Box<dyn FnMut(usize) -> Item + Send> = Box::new(move |_| Ok(answer.clone()));
        ready(Ok(Response::new(stream::iter(0..MESSAGES).map(one))))
    }
}

type Item = Result<GetTrainingSummaryResponse, Status>;
type Answer = Pin<Box<dyn Future<Output = Result<http::Response<Body>, Infallible>> + Send>>;

fn grpc() -> Grpc<ValidatingCodec<GetTrainingSummaryResponse, GetTrainingSummaryRequest>> {
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
