//! The serve loop: accept, handshake, connection, drain.
//!
//! A connection ends at the earliest of its maximum age, the expiry of either certificate, the removal of its
//! root from the trusted ones, and the drain of the process, each with GOAWAY, then a grace, then an end. It
//! ends at once when its peer is revoked. Handshakes are bounded in number and time, in total and by
//! address, and never block the accept loop, so that silent peers cannot keep honest ones out. Connections
//! are bounded by address and by identity. A peer is cut when it does not begin to speak HTTP/2, does not
//! read, does not answer pings, or sends more control frames or refused requests than any client needs.

mod allowance;
mod answer;
mod calls;
mod connection;
mod excess;
mod frames;
mod handshake;
mod lingering;
mod places;
mod streams;
mod wire;

use crate::{ConnectionTable, MeshMetrics};
use connection::Connection;
use excess::Refusals;
use handshake::TlsConfigs;
pub(crate) use handshake::key_exchange;
use http::{Request, Response};
use places::Places;
use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};
use tars_certs::{ClassTable, IdentityHandle, Revocations};
use tars_runtime::{
    clock::Clock,
    config::{Connections, Timeouts},
    listen::{Acceptor, Gate, Seat},
};
use tokio::{net::TcpListener, time::timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::body::Body;
use tower_service::Service;

/// Who may connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// Peers with a certificate of the trust domain.
    Mutual,
    /// Anybody, with the class `joiner`: only the server proves an identity.
    Joiners,
}

/// What a listener needs to serve.
#[derive(Debug, Clone)]
pub struct ServeOptions {
    /// The workload that listens, for logs and the admin port.
    pub service: &'static str,
    /// Who may connect.
    pub admission: Admission,
    /// The identity of this process.
    pub identity: IdentityHandle,
    /// The certificates and identities that are revoked.
    pub revocations: Revocations,
    /// The patterns that assign classes to peers.
    pub classes: Arc<ClassTable>,
    /// The clock by which certificates expire.
    pub clock: Clock,
    /// Limits on connections.
    pub limits: Connections,
    /// How long peers are waited for.
    pub times: Timeouts,
    /// The connection metrics of the process.
    pub metrics: MeshMetrics,
    /// The table that lists the connections.
    pub table: ConnectionTable,
}

/// A service that answers calls.
pub trait Handler<B>:
    Service<Request<Body>, Response = Response<B>, Error = Infallible, Future: Send>
    + Clone
    + Send
    + Sync
    + 'static
{
}

impl<B, S> Handler<B> for S where
    S: Service<Request<Body>, Response = Response<B>, Error = Infallible, Future: Send>
        + Clone
        + Send
        + Sync
        + 'static
{
}

/// The body of a response.
pub trait Reply:
    http_body::Body<Data = bytes::Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>>
    + Send
    + 'static
{
}

impl<B> Reply for B where
    B: http_body::Body<Data = bytes::Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>>
        + Send
        + 'static
{
}

/// Serves until `stop` is cancelled, then drains. Returns once every connection has ended.
pub async fn serve<S, B>(
    listener: TcpListener,
    service: S,
    options: ServeOptions,
    stop: CancellationToken,
) where
    S: Handler<B>,
    B: Reply,
{
    let metrics = options.metrics.clone();
    let refuse = move |reason| metrics.refuse(reason);
    let mut acceptor = Acceptor::new(listener, options.service, refuse, stop.clone());
    let server = Server::new(options, stop);
    while let Some((tcp, addr)) = acceptor.next().await {
        match server.enter(addr) {
            Ok((connection, slot)) => {
                let running = connection.run(tcp, slot, service.clone());
                server.tasks.spawn(running);
            }
            Err(reason) => server.options.metrics.refuse(reason),
        }
    }
    drop(acceptor);
    server.drain().await;
}

/// What all connections of a listener share.
struct Server {
    options: ServeOptions,
    tls: TlsConfigs,
    handshakes: Gate,
    places: Places,
    refusals: Refusals,
    tasks: TaskTracker,
    stop: CancellationToken,
    force: CancellationToken,
}

impl Server {
    fn new(options: ServeOptions, stop: CancellationToken) -> Self {
        Self {
            tls: TlsConfigs::new(&options),
            handshakes: Gate::new(options.limits.max_handshakes),
            places: Places::new(&options.limits),
            refusals: Refusals::new(options.clock.clone()),
            tasks: TaskTracker::new(),
            stop,
            force: CancellationToken::new(),
            options,
        }
    }

    /// Takes a place for a newcomer's handshake, or returns why there is none.
    fn enter(&self, addr: SocketAddr) -> Result<(Connection, Seat), &'static str> {
        let share = self.options.limits.max_handshakes_by_address;
        let entered = self.handshakes.enter(addr.ip(), share);
        let slot = entered.map_err(|_| "busy")?;
        let own = self.tls.current(&self.options).ok_or("no_identity")?;
        let connection = Connection {
            options: self.options.clone(),
            addr,
            own,
            places: self.places.clone(),
            refusals: self.refusals.clone(),
            stop: self.stop.clone(),
            force: self.force.clone(),
        };
        Ok((connection, slot))
    }

    /// Waits for the connections to end, and cuts those that take too long.
    async fn drain(self) {
        self.tasks.close();
        let drain = Duration::from_secs(self.options.limits.drain_seconds);
        if timeout(drain, self.tasks.wait()).await.is_err() {
            tracing::warn!(
                service = self.options.service,
                connections = self.tasks.len(),
                "the drain took too long; open connections are cut"
            );
            self.force.cancel();
            self.tasks.wait().await;
        }
    }
}
