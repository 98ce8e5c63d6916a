//! The admin port, which is loopback only, and the observe port, for probes and Prometheus.

use crate::{
    config::{Ports, Timeouts},
    health::Readiness,
    listen::{Answers, FinalResponse, Http1, ListenerMetrics},
    metrics::Metrics,
    network::Networks,
};
use axum::{
    Json, Router,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use bytes::Bytes;
use serde_json::{Value, json};
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::{net::TcpListener, time::Instant};
use tokio_util::sync::CancellationToken;

/// Produces the JSON of one page of the admin port.
pub type Page = Arc<dyn Fn() -> Value + Send + Sync>;

/// The age up to which a readiness report is served again.
const FRESH: Duration = Duration::from_millis(200);

/// The readiness report as a page, rendered once for all requests at the same time, so that frequent
/// requests cost the databases nothing.
#[derive(Debug, Clone)]
pub struct ReadyPage(Arc<Cached>);

#[derive(Debug)]
struct Cached {
    readiness: Readiness,
    last: tokio::sync::Mutex<Option<(Instant, StatusCode, Bytes)>>,
}

impl ReadyPage {
    /// Creates the page of these checks.
    pub fn new(readiness: Readiness) -> Self {
        let last = tokio::sync::Mutex::new(None);
        Self(Arc::new(Cached { readiness, last }))
    }

    /// Returns 200 or 503, and the report as JSON.
    pub async fn render(&self) -> (StatusCode, Bytes) {
        let mut last = self.0.last.lock().await;
        if let Some((at, code, page)) = &*last
            && at.elapsed() < FRESH
        {
            return (*code, page.clone());
        }
        let report = self.0.readiness.report().await;
        let code = if report.ready {
            StatusCode::OK
        } else {
            StatusCode::SERVICE_UNAVAILABLE
        };
        let page = Bytes::from(json!(report).to_string());
        *last = Some((Instant::now(), code, page.clone()));
        (code, page)
    }
}

#[derive(Clone)]
struct Observe {
    metrics: Metrics,
    ready: ReadyPage,
}

/// Returns the router of the observe port: `/livez`, `/readyz` and `/metrics`.
pub fn observe(metrics: Metrics, readiness: Readiness) -> Router {
    Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(render))
        .with_state(Observe {
            metrics,
            ready: ReadyPage::new(readiness),
        })
}

async fn readyz(State(state): State<Observe>) -> Response {
    let (code, page) = state.ready.render().await;
    (code, [(header::CONTENT_TYPE, "application/json")], page).into_response()
}

async fn render(State(state): State<Observe>, headers: HeaderMap) -> Response {
    let asked = headers.get_all(header::ACCEPT).iter();
    let asked: Vec<&str> = asked.filter_map(|v| v.to_str().ok()).collect();
    match state.metrics.render(&asked.join(",")) {
        Ok((kind, text)) => ([(header::CONTENT_TYPE, kind)], text).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// Returns the router of the admin port: one JSON page per name, and their list at `/`.
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

/// What both ports need.
#[derive(Debug, Clone)]
pub struct PortOptions {
    /// The listener metrics of the process.
    pub metrics: ListenerMetrics,
    /// How long peers are waited for.
    pub times: Timeouts,
    /// Limits on connections.
    pub places: Ports,
}

/// Maximum of every timeout, in seconds: probes and scrapers are quick, and others must not keep them out.
const SLOWEST: u64 = 5;
/// Probes are answered until the end, but a stop does not wait for them.
const DRAIN: Duration = Duration::from_secs(1);
const HEAD_BYTES: usize = 8 << 10;

/// Serves a router on the port called `name` until `stop` is cancelled.
pub async fn serve(
    name: &'static str,
    listener: TcpListener,
    router: Router,
    options: PortOptions,
    stop: CancellationToken,
) {
    let plain =
        |status, text: &str| FinalResponse::new(status, "text/plain", None, text.to_owned());
    let listening = Http1 {
        metrics: options.metrics.of(name),
        times: options.times.at_most(SLOWEST),
        max_head_bytes: HEAD_BYTES,
        max: options.places.max_connections,
        by_address: options.places.max_connections_by_address,
        proxies: Networks::default(),
        by_proxy: 0,
        answers: Answers {
            full: plain(StatusCode::SERVICE_UNAVAILABLE, "too many connections\n"),
            late: plain(StatusCode::REQUEST_TIMEOUT, "the request came too slowly\n"),
            malformed: plain(StatusCode::BAD_REQUEST, "not a valid HTTP/1.1 request\n"),
            too_large: plain(
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
                "the request's head is too large\n",
            ),
        },
        drain: DRAIN,
    };
    listening.serve(listener, router, stop).await;
}
