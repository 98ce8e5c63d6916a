//! What the gateway itself serves: `/health`, `/ready`, `/openapi.json`.
//!
//! No service limits or counts these requests, so the gateway does: by address, and by document. None of them
//! is computed per request. What else is asked of the gateway has a budget of its own.

use crate::client::Client;
use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use http::{StatusCode, header};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
};
use std::net::IpAddr;
use tars_interceptors::flood::FloodGuard;
use tars_runtime::{
    clock::Clock, config::Limits, health::Readiness, metrics::Metrics, ports::ReadyPage,
};
use tonic::Status;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Document {
    Health,
    OpenApi,
    Ready,
}

impl Document {
    pub(crate) const ALL: [Self; 3] = [Self::Health, Self::OpenApi, Self::Ready];

    pub(crate) fn path(self) -> &'static str {
        match self {
            Self::Health => "/health",
            Self::OpenApi => "/openapi.json",
            Self::Ready => "/ready",
        }
    }

    fn label(self) -> Label {
        Label {
            document: match self {
                Self::Health => "health",
                Self::OpenApi => "openapi",
                Self::Ready => "ready",
            },
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Label {
    document: &'static str,
}

/// How many requests of one address are looked at. Clones share it.
#[derive(Debug, Clone)]
pub struct Flood {
    guard: FloodGuard,
    clock: Clock,
}

impl Flood {
    /// Looks at `flood_per_second` requests of one address.
    pub fn new(limits: &Limits, clock: Clock) -> Self {
        Self {
            guard: FloodGuard::new(limits),
            clock,
        }
    }

    pub(crate) fn admit(&self, client: IpAddr) -> Result<(), Status> {
        self.guard.admit(client, self.clock.monotonic())
    }
}

/// The documents of the gateway, with their limit and their counter.
#[derive(Debug, Clone)]
pub struct Documents {
    ready: ReadyPage,
    flood: Flood,
    served: Family<Label, Counter>,
}

impl Documents {
    /// Creates the documents; `flood_per_second` requests of one address are served.
    pub fn new(readiness: Readiness, limits: &Limits, clock: Clock, metrics: &Metrics) -> Self {
        Self {
            ready: ReadyPage::new(readiness),
            flood: Flood::new(limits, clock),
            served: metrics.register(
                "gateway_documents",
                "Calls that the gateway answered by itself, by document",
                Family::default(),
            ),
        }
    }

    /// Returns a document; `openapi` is the description of the routes.
    pub(crate) async fn show(
        &self,
        document: Document,
        Client(client): Client,
        openapi: &Bytes,
    ) -> Result<Response, Status> {
        self.flood.admit(client)?;
        self.served.get_or_create(&document.label()).inc();
        let (code, page) = match document {
            Document::Health => (StatusCode::OK, Bytes::from_static(br#"{"status":"ok"}"#)),
            Document::OpenApi => (StatusCode::OK, openapi.clone()),
            Document::Ready => self.ready.render().await,
        };
        Ok(json(code, Body::from(page)))
    }
}

/// Returns a JSON response.
pub(crate) fn json(code: StatusCode, page: Body) -> Response {
    (code, [(header::CONTENT_TYPE, "application/json")], page).into_response()
}
