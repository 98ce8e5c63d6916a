//! What the gateway answers by itself: `/health`, `/ready`, `/openapi.json`.
//!
//! No service counts these calls, so they are counted here: against the limit of their address, and
//! by document. Nothing is made anew for a call.

use crate::{error, listen::Client, openapi};
use axum::{
    Router,
    extract::{Extension, State},
    response::{IntoResponse, Response},
    routing::{MethodRouter, get},
};
use bytes::Bytes;
use http::{StatusCode, header};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
};
use tars_interceptors::flood::FloodGuard;
use tars_proto::table::MethodTable;
use tars_runtime::{clock::Clock, health::Readiness, metrics::Metrics, ports::ReadyPage};
use tonic::Status;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Document {
    document: &'static str,
}

/// What the documents are made of, and who may have how many.
#[derive(Debug, Clone)]
pub struct Documents {
    ready: ReadyPage,
    guard: FloodGuard,
    served: Family<Document, Counter>,
}

impl Documents {
    /// `per_second` calls of one address are answered.
    pub fn new(readiness: Readiness, per_second: u32, clock: Clock, metrics: &Metrics) -> Self {
        Self {
            ready: ReadyPage::new(readiness),
            guard: FloodGuard::new(per_second, clock),
            served: metrics.register(
                "gateway_documents",
                "Calls that the gateway answered by itself, by document",
                Family::default(),
            ),
        }
    }

    pub(crate) fn router<S: Clone + Send + Sync + 'static>(self, table: &MethodTable) -> Router<S> {
        let openapi = Bytes::from(openapi::document(table).to_string());
        let health = Bytes::from_static(br#"{"status":"ok"}"#);
        Router::new()
            .route("/health", fixed("health", health))
            .route("/openapi.json", fixed("openapi", openapi))
            .route("/ready", get(ready))
            .with_state(self)
    }

    fn admit(&self, document: &'static str, Client(client): Client) -> Result<(), Status> {
        self.guard.admit(client)?;
        self.served.get_or_create(&Document { document }).inc();
        Ok(())
    }
}

fn fixed(name: &'static str, page: Bytes) -> MethodRouter<Documents> {
    get(
        async move |State(documents): State<Documents>, Extension(client): Extension<Client>| {
            match documents.admit(name, client) {
                Ok(()) => json(StatusCode::OK, page),
                Err(status) => error::from_status(&status),
            }
        },
    )
}

async fn ready(
    State(documents): State<Documents>,
    Extension(client): Extension<Client>,
) -> Response {
    if let Err(status) = documents.admit("ready", client) {
        return error::from_status(&status);
    }
    let (code, page) = documents.ready.render().await;
    json(code, page)
}

fn json(code: StatusCode, page: Bytes) -> Response {
    (code, [(header::CONTENT_TYPE, "application/json")], page).into_response()
}
