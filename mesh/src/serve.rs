//! The serve loop: accept, handshake, connection, drain.
//!
//! A connection ends at the earliest of: its age, the end of either certificate, a root that is
//! trusted no more, and the drain of the process (each with GOAWAY, then a grace, then an end); and
//! at once when its peer is revoked. Handshakes are bounded in number and time, in all and by
//! address, and never block the accept loop, so that silent peers cannot keep good ones out. So are
//! connections, by address and by identity; a peer that does not begin to speak HTTP/2, does not
//! read, does not answer when it is asked whether it lives, or says and asks more than anybody needs,
//! is cut.

mod allowance;
mod answer;
mod calm;
mod connection;
mod frames;
mod handshake;
mod places;
mod streams;
mod wire;

use crate::{ConnectionTable, MeshMetrics};
use calm::Refusals;
use connection::Connection;
use handshake::TlsConfigs;
pub(crate) use handshake::key_exchange;
use http::{Request, Response};
use places::Places;
use std::{convert::Infallible, sync::Arc, time::Duration};
use tars_certs::{ClassTable, IdentityHandle, Revocations};
use tars_runtime::{
    clock::Clock,
    config::{Connections, Timeouts},
    listen::{Acceptor, Gate},
};
use tokio::{net::TcpListener, time::timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::body::Body;
use tower_service::Service;

/// Who may connect at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// Whoever holds a certificate of the trust domain.
    Mutual,
    /// Whoever comes, as the class `joiner`: only the server proves itself.
    Joiners,
}

#[derive(Debug, Clone)]
pub struct ServeOptions {
    /// The workload that listens, for logs and the admin port.
    pub service: &'static str,
    pub admission: Admission,
    pub identity: IdentityHandle,
    pub revocations: Revocations,
    pub classes: Arc<ClassTable>,
    pub clock: Clock,
    pub limits: Connections,
    pub times: Timeouts,
    pub metrics: MeshMetrics,
    pub table: ConnectionTable,
}

/// What answers calls.
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

/// Serves until `stop` is cancelled, then drains. Returns when every connection has ended.
pub async fn serve<S, B>(
    listener: TcpListener,
    service: S,
    options: ServeOptions,
    stop: CancellationToken,
) where
    S: Handler<B>,
    B: Reply,
{
    let tasks = TaskTracker::new();
    let force = CancellationToken::new();
    let handshakes = Gate::new(options.limits.max_handshakes);
    let places = Places::new(&options.limits);
    let refusals = Refusals::new(options.clock.clone());
    let tls = TlsConfigs::new(&options);
    let metrics = options.metrics.clone();
    let refuse = move |reason| metrics.refuse(reason);
    let mut acceptor = Acceptor::new(listener, options.service, refuse, stop.clone());
    while let Some((tcp, addr)) = acceptor.next().await {
        let share = options.limits.max_handshakes_by_address;
        let Ok(slot) = handshakes.enter(addr.ip(), share) else {
            options.metrics.refuse("busy");
            continue;
        };
        let Some(own) = tls.current(&options) else {
            options.metrics.refuse("no_identity");
            continue;
        };
        let connection = Connection {
            options: options.clone(),
            addr,
            own,
            places: places.clone(),
            refusals: refusals.clone(),
            stop: stop.clone(),
            force: force.clone(),
        };
        tasks.spawn(connection.run(tcp, slot, service.clone()));
    }
    drop(acceptor);
    tasks.close();
    let drain = Duration::from_secs(options.limits.drain_seconds);
    if timeout(drain, tasks.wait()).await.is_err() {
        tracing::warn!(
            service = options.service,
            connections = tasks.len(),
            "drain took too long; connections are cut"
        );
        force.cancel();
        tasks.wait().await;
    }
}
