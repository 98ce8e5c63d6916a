//! The gateway's listener: connections, and who is behind each request.

use crate::{
    Gateway,
    client::{Carrier, Client},
    error::{self, Refusal},
    forwarded,
};
use axum::body::Body;
use http::{Request, StatusCode};
use std::{net::SocketAddr, sync::Arc, time::Duration};
use tars_proto::fault;
use tars_runtime::{
    config::{Gateway as Settings, Timeouts},
    listen::{Answers, Farewell, Http1, Peer, PortMetrics},
    network::{NetworkError, Networks},
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};
use tower::ServiceExt;

/// A path with its query; our longest parameters together take a tenth of it.
pub(crate) const MAX_PATH: usize = 8 << 10;
const DRAIN: Duration = Duration::from_secs(10);
/// When to come back to a gateway that is full: shares shrink and grow within a second.
const COME_BACK: Duration = Duration::from_secs(1);

/// How the gateway treats those who connect.
#[derive(Debug, Clone)]
pub struct Listening {
    http: Http1,
    proxies: Arc<Networks>,
}

impl Listening {
    /// # Errors
    ///
    /// What is wrong with the list of proxies; a configuration that was loaded has nothing wrong.
    pub fn new(
        settings: &Settings,
        times: &Timeouts,
        metrics: PortMetrics,
    ) -> Result<Self, Vec<NetworkError>> {
        let proxies = Networks::parse(&settings.trusted_proxies)?;
        let http = Http1 {
            metrics,
            times: times.clone(),
            // Room for what `server` refuses in words: headers somewhat too large, a path too long.
            max_head_bytes: 2 * settings.max_header_bytes + MAX_PATH,
            max: settings.max_connections,
            by_address: settings.max_connections_by_address,
            proxies: proxies.clone(),
            by_proxy: settings.max_connections_by_proxy,
            answers: answers(),
            drain: DRAIN,
        };
        Ok(Self {
            http,
            proxies: Arc::new(proxies),
        })
    }

    /// Serves HTTP/1.1 until `stop`, then lets open requests finish for a while.
    pub async fn serve(self, listener: TcpListener, gateway: Gateway, stop: CancellationToken) {
        let proxies = self.proxies;
        let named = gateway
            .router()
            .map_request(move |mut request: Request<Body>| {
                let peer = request.extensions().get::<Peer>().copied();
                // The listener puts a peer into every request.
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
        "TOO_MANY_CONNECTIONS",
        "there are too many connections, from this address or in all",
        COME_BACK,
    );
    let late = fault::status(
        Code::DeadlineExceeded,
        "REQUEST_TOO_SLOW",
        "the request did not arrive in time",
    );
    let malformed = fault::status(
        Code::InvalidArgument,
        "MALFORMED_REQUEST",
        "this is no HTTP/1.1 request, or one that could be read in two ways",
    );
    let (large, too_large) = Refusal::HeadersTooLarge.status();
    Answers {
        malformed: farewell(StatusCode::BAD_REQUEST, None, &malformed),
        too_large: farewell(large, None, &too_large),
        full: farewell(StatusCode::SERVICE_UNAVAILABLE, Some(COME_BACK), &full),
        late: farewell(StatusCode::REQUEST_TIMEOUT, None, &late),
    }
}

fn farewell(code: StatusCode, retry: Option<Duration>, status: &Status) -> Farewell {
    let body = error::to_json(status).to_string();
    Farewell::new(code, "application/json", retry, body)
}
