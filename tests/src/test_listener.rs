//! A listener of the mesh with nothing behind it but a health service: for tests of who gets in,
//! under any authority, with any lists.

use std::{net::SocketAddr, sync::Arc};
use tars_certs::{Identity, IdentityHandle, Revocations, SpiffeId, identity::Parts};
use tars_mesh::{
    Admission, Channel, ChannelMetrics, ChannelOptions, ConnectionTable, Handler, Health,
    MeshMetrics, Reply, ServeOptions,
};
use tars_runtime::{
    clock::Clock,
    config::{Config, Connections, Timeouts},
    metrics::Metrics,
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

/// A mesh listener with the default configuration, which stops when this is dropped.
pub struct TestListener {
    /// Where it listens, on loopback.
    pub addr: SocketAddr,
    /// The identity that it shows; swapping it is a renewal.
    pub identity: IdentityHandle,
    /// Its deny-list.
    pub revocations: Revocations,
    /// Its open connections.
    pub table: ConnectionTable,
    /// The health service behind it.
    pub health: Health,
    metrics: Metrics,
    stop: CancellationToken,
}

impl TestListener {
    /// Opens one with the default limits and timeouts.
    pub async fn open(parts: Parts) -> Self {
        Self::with(parts, Config::default().connections).await
    }

    /// Opens one with other limits on connections.
    pub async fn with(parts: Parts, limits: Connections) -> Self {
        Self::with_times(parts, limits, Timeouts::default()).await
    }

    /// Opens one with other limits and timeouts.
    pub async fn with_times(parts: Parts, limits: Connections, times: Timeouts) -> Self {
        let health = Health::default();
        let mut routes = Routes::builder();
        routes.add_service(health.server());
        let service = routes.routes().prepare();
        Self::before(service, health, parts, (limits, times)).await
    }

    /// With a service of a test's own behind it.
    pub async fn serving<B: Reply>(
        parts: Parts,
        times: Timeouts,
        service: impl Handler<B>,
    ) -> Self {
        let limits = (Config::default().connections, times);
        Self::before(service, Health::default(), parts, limits).await
    }

    /// Opens one at an address, such as that of one that is gone.
    pub async fn open_at(addr: SocketAddr, parts: Parts) -> Self {
        let health = Health::default();
        let mut routes = Routes::builder();
        routes.add_service(health.server());
        let service = routes.routes().prepare();
        let limits = (Config::default().connections, Timeouts::default());
        Self::at(addr, service, health, parts, limits).await
    }

    async fn before<B: Reply>(
        service: impl Handler<B>,
        health: Health,
        parts: Parts,
        limits: (Connections, Timeouts),
    ) -> Self {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        Self::at(any, service, health, parts, limits).await
    }

    async fn at<B: Reply>(
        addr: SocketAddr,
        service: impl Handler<B>,
        health: Health,
        parts: Parts,
        (limits, times): (Connections, Timeouts),
    ) -> Self {
        let clock = Clock::system();
        let time: Arc<dyn rustls::time_provider::TimeProvider> = Arc::new(clock.clone());
        let identity = IdentityHandle::new(Identity::new(parts, &time).expect("an identity"));
        let classes = Config::default().certificates.class_table();
        let (metrics, stop) = (Metrics::default(), CancellationToken::new());
        let options = ServeOptions {
            service: "door",
            admission: Admission::Mutual,
            identity: identity.clone(),
            revocations: Revocations::default(),
            classes: Arc::new(classes.expect("classes")),
            clock,
            limits,
            times,
            metrics: MeshMetrics::new(&metrics),
            table: ConnectionTable::default(),
        };
        let listener = TcpListener::bind(addr).await.expect("a port");
        let addr = listener.local_addr().expect("an address");
        let (revocations, table) = (options.revocations.clone(), options.table.clone());
        tokio::spawn(tars_mesh::serve(listener, service, options, stop.clone()));
        Self {
            addr,
            identity,
            revocations,
            table,
            health,
            metrics,
            stop,
        }
    }

    /// How often handshakes were refused for a reason.
    pub fn refused(&self, reason: &str) -> u64 {
        self.count(&format!(
            "mesh_handshakes_refused_total{{reason=\"{reason}\"}} "
        ))
    }

    /// The value of the sample whose line begins so; 0 where there is none.
    pub fn count(&self, line: &str) -> u64 {
        let text = self.metrics.open_metrics().expect("metrics");
        text.lines()
            .find_map(|l| l.strip_prefix(line))
            .map_or(0, |n| n.parse().expect("a number"))
    }

    /// All of its metrics, as OpenMetrics text.
    pub fn metrics(&self) -> String {
        self.metrics.open_metrics().expect("metrics")
    }

    /// A channel that holds `identity`, to this listener.
    pub fn channel(&self, identity: IdentityHandle, revocations: Revocations) -> Channel {
        let expected: SpiffeId = self.identity.current().id().clone();
        let options = ChannelOptions {
            target: self.addr.to_string(),
            expected,
            identity,
            revocations,
            clock: Clock::system(),
            table: ConnectionTable::default(),
            metrics: ChannelMetrics::default(),
            service: "test",
            audience: tars_mesh::channel::Audience::Strangers,
        };
        Channel::new(options).expect("a channel")
    }

    /// Begins to drain it.
    pub fn stop(&self) {
        self.stop.cancel();
    }
}

impl Drop for TestListener {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}
