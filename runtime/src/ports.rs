//! The process's own two ports: *admin*, loopback only, and *observe*, for probes and Prometheus.

use crate::metrics::Metrics;
use axum::{
    Json, Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use futures_util::future::BoxFuture;
use serde_json::{Value, json};
use std::{collections::BTreeMap, fmt, net::SocketAddr, sync::Arc};
use tokio::net::TcpListener;

/// One thing that must hold for the process to be ready.
pub type Check = Arc<dyn Fn() -> BoxFuture<'static, Result<(), String>> + Send + Sync>;

/// What a page of the admin port shows.
pub type Page = Arc<dyn Fn() -> Value + Send + Sync>;

#[derive(Clone, Default)]
pub struct Readiness {
    checks: BTreeMap<String, Check>,
}

impl Readiness {
    pub fn add(&mut self, name: &str, check: Check) {
        self.checks.insert(name.to_owned(), check);
    }

    /// Every check with what it found.
    pub async fn report(&self) -> (bool, Value) {
        let mut all = true;
        let mut found = serde_json::Map::new();
        for (name, check) in &self.checks {
            let result = check().await;
            all &= result.is_ok();
            found.insert(
                name.clone(),
                result.map_or_else(Value::String, |()| json!("ok")),
            );
        }
        (all, json!({ "ready": all, "checks": found }))
    }
}

impl fmt::Debug for Readiness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.checks.keys()).finish()
    }
}

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
    let (ready, report) = state.readiness.report().await;
    let code = if ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (code, Json(report)).into_response()
}

async fn render(State(state): State<Observe>) -> Response {
    match state.metrics.render() {
        Ok(text) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, kind)], text).into_response()
        }
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
