//! The process's own two ports: *admin*, loopback only, and *observe*, for probes and Prometheus.

use crate::{health::Readiness, metrics::Metrics};
use axum::{
    Json, Router,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use serde_json::{Value, json};
use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};
use tokio::net::TcpListener;

/// What a page of the admin port shows.
pub type Page = Arc<dyn Fn() -> Value + Send + Sync>;

#[derive(Clone)]
struct Observe {
    metrics: Metrics,
    readiness: Arc<Readiness>,
}

/// `/livez`, `/readyz`, `/metrics`, nothing else.
pub fn observe(metrics: Metrics, readiness: Readiness) -> Router {
    Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(render))
        .with_state(Observe {
            metrics,
            readiness: Arc::new(readiness),
        })
}

async fn readyz(State(state): State<Observe>) -> Response {
    let report = state.readiness.report().await;
    let code = if report.ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (code, Json(report)).into_response()
}

async fn render(State(state): State<Observe>, headers: HeaderMap) -> Response {
    let asked = headers.get_all(header::ACCEPT).iter();
    let asked: Vec<&str> = asked.filter_map(|v| v.to_str().ok()).collect();
    match state.metrics.render(&asked.join(",")) {
        Ok((kind, text)) => ([(header::CONTENT_TYPE, kind)], text).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// One JSON page a name.
pub fn admin(pages: BTreeMap<&'static str, Page>) -> Router {
    let names: Vec<String> = pages.keys().map(|n| format!("/{n}")).collect();
    let index = Router::new().route(
        "/",
        get(move || async move { Json(json!({ "pages": names })) }),
    );
    pages.into_iter().fold(index, |router, (name, page)| {
        router.route(
            &format!("/{name}"),
            get(move || async move { Json(page()) }),
        )
    })
}

/// Serves a router until the process ends or `stop` resolves.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    stop: impl Future<Output = ()> + Send + 'static,
) {
    if let Err(e) = axum::serve(listener, router)
        .with_graceful_shutdown(stop)
        .await
    {
        tracing::error!(error = %e, "a port of the process stopped serving");
    }
}

/// The admin port shows what strangers must not see, so it binds to loopback or not at all.
pub fn is_loopback(addr: &SocketAddr) -> bool {
    addr.ip().is_loopback()
}
