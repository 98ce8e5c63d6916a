//! The serve loop: accept, handshake, connection, drain.
//!
//! A connection ends at the earliest of: its age (GOAWAY, then a grace), the end of the peer's
//! certificate, and the drain of the process (GOAWAY, then force). Handshakes are bounded in number
//! and time and never block the accept loop, so that silent peers cannot keep good ones out.

use crate::{ConnectionTable, MeshMetrics};
use http::{Request, Response};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::ServerConfig;
use std::{convert::Infallible, net::SocketAddr, pin::pin, sync::Arc, time::Duration};
use tars_certs::{
    ClassTable, Identity, IdentityHandle,
    peer::{PeerCertificate, PeerError, PeerInfo},
    tls,
};
use tars_runtime::{clock::Clock, config::Connections};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep_until, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::body::Body;
use tower_service::Service;

#[derive(Debug, Clone)]
pub struct ServeOptions {
    /// The workload that listens, for logs and the admin port.
    pub service: &'static str,
    pub identity: IdentityHandle,
    pub classes: Arc<ClassTable>,
    pub clock: Clock,
    pub limits: Connections,
    pub metrics: MeshMetrics,
    pub table: ConnectionTable,
}

/// Serves until `stop` is cancelled, then drains. Returns when every connection has ended.
pub async fn serve<S, B>(
    listener: TcpListener,
    service: S,
    options: ServeOptions,
    stop: CancellationToken,
) where
    S: Service<Request<Body>, Response = Response<B>, Error = Infallible>
        + Clone
        + Send
        + Sync
        + 'static,
    S::Future: Send,
    B: http_body::Body<Data = bytes::Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let tasks = TaskTracker::new();
    let force = CancellationToken::new();
    let room = Arc::new(Semaphore::new(options.limits.max));
    let handshakes = Arc::new(Semaphore::new(options.limits.max_handshakes));
    let tls = TlsConfigs::new(&options);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => break,
        };
        let (tcp, addr) = match accepted {
            Ok(accepted) => accepted,
            Err(e) => {
                // Out of file descriptors, most likely: give closing connections a moment.
                tracing::warn!(service = options.service, error = %e, "accept failed");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let (Ok(place), Ok(handshake)) = (
            Arc::clone(&room).try_acquire_owned(),
            Arc::clone(&handshakes).try_acquire_owned(),
        ) else {
            options.metrics.refuse("busy");
            continue;
        };
        let config = tls.current(&options);
        let connection = Connection {
            options: options.clone(),
            addr,
            _place: place,
            stop: stop.clone(),
            force: force.clone(),
        };
        tasks.spawn(connection.run(tcp, config, handshake, service.clone()));
    }
    drop(listener);
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

/// The TLS configuration of the current identity, rebuilt when that changes.
struct TlsConfigs {
    built: parking_lot::Mutex<Option<(Arc<Identity>, Arc<ServerConfig>)>>,
}

impl TlsConfigs {
    fn new(options: &ServeOptions) -> Self {
        let configs = Self {
            built: parking_lot::Mutex::new(None),
        };
        configs.current(options);
        configs
    }

    fn current(&self, options: &ServeOptions) -> Option<Arc<ServerConfig>> {
        let identity = options.identity.current();
        let mut built = self.built.lock();
        if let Some((of, config)) = built.as_ref()
            && Arc::ptr_eq(of, &identity)
        {
            return Some(Arc::clone(config));
        }
        match tls::server(&identity, Arc::new(options.clock.clone())) {
            Ok(config) => {
                let config = Arc::new(config);
                *built = Some((identity, Arc::clone(&config)));
                Some(config)
            }
            Err(e) => {
                tracing::error!(service = options.service, error = %e, "the new identity is not usable");
                built.as_ref().map(|(_, config)| Arc::clone(config))
            }
        }
    }
}

struct Connection {
    options: ServeOptions,
    addr: SocketAddr,
    _place: OwnedSemaphorePermit,
    stop: CancellationToken,
    force: CancellationToken,
}

impl Connection {
    async fn run<S, B>(
        self,
        tcp: TcpStream,
        config: Option<Arc<ServerConfig>>,
        slot: OwnedSemaphorePermit,
        service: S,
    ) where
        S: Service<Request<Body>, Response = Response<B>, Error = Infallible>
            + Clone
            + Send
            + Sync
            + 'static,
        S::Future: Send,
        B: http_body::Body<Data = bytes::Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let Some(config) = config else {
            return self.options.metrics.refuse("no_identity");
        };
        let handshake = timeout(
            self.options.limits.handshake_timeout(),
            self.handshake(tcp, config),
        );
        let handshake = tokio::select! {
            done = handshake => done,
            () = self.stop.cancelled() => return,
        };
        drop(slot);
        match handshake {
            Ok(Ok((stream, peer))) => self.serve(stream, peer, service).await,
            Ok(Err(reason)) => {
                tracing::debug!(service = self.options.service, addr = %self.addr, reason, "handshake refused");
                self.options.metrics.refuse(reason);
            }
            Err(_) => self.options.metrics.refuse("timeout"),
        }
    }

    async fn handshake(
        &self,
        tcp: TcpStream,
        config: Arc<ServerConfig>,
    ) -> Result<(TlsStream<TcpStream>, PeerInfo), &'static str> {
        tcp.set_nodelay(true).map_err(|_| "socket")?;
        let stream = TlsAcceptor::from(config)
            .accept(tcp)
            .await
            .map_err(|e| reason(&e))?;
        let (_, session) = stream.get_ref();
        if session.alpn_protocol() != Some(tls::ALPN) {
            return Err("no_h2");
        }
        let leaf = session
            .peer_certificates()
            .and_then(|c| c.first())
            .ok_or("no_certificate")?;
        let certificate = PeerCertificate::parse(leaf).map_err(|e| e.reason())?;
        let class = self.options.classes.classify(&certificate.id);
        Ok((
            stream,
            PeerInfo {
                certificate,
                class,
                addr: self.addr,
            },
        ))
    }

    async fn serve<S, B>(self, stream: TlsStream<TcpStream>, peer: PeerInfo, service: S)
    where
        S: Service<Request<Body>, Response = Response<B>, Error = Infallible>
            + Clone
            + Send
            + Sync
            + 'static,
        S::Future: Send,
        B: http_body::Body<Data = bytes::Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let peer = Arc::new(peer);
        let metrics = &self.options.metrics;
        metrics.accepted.inc();
        metrics.connections.inc();
        let _listed = self
            .options
            .table
            .enter(self.options.service, Arc::clone(&peer));
        let certificate_end = self.expiry(&peer);
        let handler = hyper::service::service_fn(move |request: Request<Incoming>| {
            let mut request = request.map(Body::new);
            request.extensions_mut().insert(Arc::clone(&peer));
            service.clone().call(request)
        });
        let connection = self
            .builder()
            .serve_connection(TokioIo::new(stream), handler);
        let mut connection = pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => Some(ended),
            () = sleep_until(self.age()) => None,
            () = sleep_until(certificate_end) => None,
            () = self.stop.cancelled() => None,
        };
        if ended.is_none() {
            connection.as_mut().graceful_shutdown();
            let grace =
                Instant::now() + Duration::from_secs(self.options.limits.max_age_grace_seconds);
            tokio::select! {
                _ = connection.as_mut() => {}
                () = sleep_until(grace.min(certificate_end + Duration::from_secs(5))) => {}
                () = self.force.cancelled() => {}
            }
        }
        metrics.connections.dec();
    }

    fn builder(&self) -> hyper::server::conn::http2::Builder<TokioExecutor> {
        let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .max_concurrent_streams(self.options.limits.max_streams)
            .max_header_list_size(16 << 10)
            .initial_stream_window_size(1 << 20)
            .initial_connection_window_size(4 << 20)
            .keep_alive_interval(Duration::from_secs(20))
            .keep_alive_timeout(Duration::from_secs(10));
        builder
    }

    /// The connection's age, moved by a tenth so that clients do not come back all at once.
    fn age(&self) -> Instant {
        let age = Duration::from_secs(self.options.limits.max_age_seconds);
        Instant::now() + age.mul_f64(0.9 + 0.2 * jitter(self.addr))
    }

    fn expiry(&self, peer: &PeerInfo) -> Instant {
        Instant::now()
            + peer
                .certificate
                .not_after
                .saturating_sub(self.options.clock.now())
    }
}

/// In 0..1, and the same for the same client: no randomness is needed to spread clients.
fn jitter(addr: SocketAddr) -> f64 {
    use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
    let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(addr);
    (hash >> 11) as f64 / (1u64 << 53) as f64
}

/// A metric label for a refused handshake.
fn reason(error: &std::io::Error) -> &'static str {
    use rustls::{CertificateError, Error};
    let Some(error) = error.get_ref().and_then(|e| e.downcast_ref::<Error>()) else {
        return "io";
    };
    match error {
        Error::NoCertificatesPresented => "no_certificate",
        Error::PeerIncompatible(_) => "incompatible",
        Error::InvalidCertificate(e) => match e {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => "expired",
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                "not_yet_valid"
            }
            CertificateError::UnknownIssuer => "unknown_issuer",
            CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
                "purpose"
            }
            CertificateError::BadSignature => "signature",
            CertificateError::Other(other) => other
                .0
                .downcast_ref::<PeerError>()
                .map_or("certificate", PeerError::reason),
            _ => "certificate",
        },
        _ => "tls",
    }
}
