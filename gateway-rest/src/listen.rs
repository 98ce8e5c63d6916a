//! The gateway's listener: its connections, and the client behind each request.

use crate::{
    Gateway,
    client::{Carrier, Client},
    error::{self, Refusal},
    forwarded,
    server::MAX_PATH,
};
use axum::body::Body;
use http::{Request, StatusCode};
use std::{net::SocketAddr, sync::Arc, time::Duration};
use tars_proto::{fault, reason, unavailable::Unavailable};
use tars_runtime::{
    config::{Gateway as Settings, Timeouts},
    listen::{Answers, FinalResponse, Http1, Peer, PortMetrics},
    network::{NetworkError, Networks},
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};
use tower::ServiceExt;

/// The retry delay of a gateway that is full: shares shrink and grow within a second.
const RETRY: Duration = Duration::from_secs(1);

/// The gateway's listener with its limits.
#[derive(Debug, Clone)]
pub struct Listening {
    http: Http1,
    proxies: Arc<Networks>,
}

impl Listening {
    /// Creates the listener, which lets open requests take up to `drain` to finish after a stop.
    ///
    /// # Errors
    ///
    /// Every mistake in the list of proxies; a loaded configuration has none.
    pub fn new(
        settings: &Settings,
        times: &Timeouts,
        drain: Duration,
        metrics: PortMetrics,
    ) -> Result<Self, Vec<NetworkError>> {
        let proxies = Networks::parse(&settings.trusted_proxies)?;
        let http = Http1 {
            metrics,
            times: times.clone(),
            // Leaves room for what `server` refuses with a reason: headers or a path that are slightly too
            // large.
            max_head_bytes: 2 * settings.max_header_bytes + MAX_PATH,
            max: settings.max_connections,
            by_address: settings.max_connections_by_address,
            proxies: proxies.clone(),
            by_proxy: settings.max_connections_by_proxy,
            answers: answers(),
            drain,
        };
        Ok(Self {
            http,
            proxies: Arc::new(proxies),
        })
    }

    /// Serves HTTP/1.1 until `stop` is cancelled, then lets open requests finish for a while.
    pub async fn serve(self, listener: TcpListener, gateway: Gateway, stop: CancellationToken) {
        let proxies = self.proxies;
        let named = gateway
            .router()
            .map_request(move |mut request: Request<Body>| {
                let peer = request.extensions().get::<Peer>().copied();
                // The listener adds a peer to every request.
                let peer = peer.map_or(SocketAddr::from(([0, 0, 0, 0], 0)), |Peer(addr)| addr);
                let client = forwarded::client(peer.ip(), request.headers(), &proxies);
                let carrier = Carrier::of(peer.ip(), &proxies);
                let extensions = request.extensions_mut();
                extensions.insert(Client(client));
                extensions.insert(carrier);
                request
            });
        self.http.serve(listener, named, stop).await;
    }
}

fn answers() -> Answers {
    let full = fault::unavailable(
        Unavailable::TooManyConnections,
        "too many connections, from this address or in total",
        RETRY,
    );
    let late = fault::status(
        Code::DeadlineExceeded,
        reason::REQUEST_TOO_SLOW,
        "the request did not arrive in time",
    );
    let malformed = fault::status(
        Code::InvalidArgument,
        reason::MALFORMED_REQUEST,
        "not a valid HTTP/1.1 request, or one that could be parsed in two ways",
    );
    let (large, too_large) = Refusal::HeadersTooLarge.status();
    Answers {
        malformed: final_response(StatusCode::BAD_REQUEST, None, &malformed),
        too_large: final_response(large, None, &too_large),
        full: final_response(StatusCode::SERVICE_UNAVAILABLE, Some(RETRY), &full),
        late: final_response(StatusCode::REQUEST_TIMEOUT, None, &late),
    }
}

fn final_response(code: StatusCode, retry: Option<Duration>, status: &Status) -> FinalResponse {
    let body = error::to_json(status).to_string();
    FinalResponse::new(code, "application/json", retry, body)
}
