//! A client channel to one workload: it verifies the server's SPIFFE id, reconnects by itself, and
//! moves to a new connection when the own certificate was renewed, leaving the old one to finish
//! the calls it carries. A connection to a server that is revoked ends at once.

mod lanes;

use crate::{
    ConnectionTable,
    connections::Listed,
    replay::{Replay, never_processed},
    serve::key_exchange,
};
use arc_swap::ArcSwapOption;
use futures_util::future::BoxFuture;
use http::{Request, Response, Uri, uri::PathAndQuery};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioIo, TokioTimer};
use lanes::Lanes;
pub use lanes::{ChannelBody, MAX_RESPONSE};
use rustls::pki_types::ServerName;
use std::net::SocketAddr;
use std::{
    future::poll_fn,
    net::{IpAddr, Ipv4Addr},
    pin::pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tars_certs::{
    Identity, IdentityHandle, Revocations, SpiffeId,
    peer::{PeerInfo, observed},
    tls,
    trust::{Refusal, Side},
};
use tars_proto::fault;
use tars_runtime::clock::Clock;
use tokio::{
    net::TcpStream,
    sync::Mutex,
    time::{Instant, timeout},
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{Status, body::Body};
use tower_service::Service;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Assumed of a server until it has said how many streams it takes.
const STREAMS: usize = 200;
/// Between two warnings of one channel.
const QUIET: Duration = Duration::from_secs(10);

/// What a channel carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Carries {
    /// Short exchanges: each may fill the connection's window for a moment, and one that finds no
    /// stream free waits for another to end.
    Calls,
    /// Streams that stay: the connection's window holds all of theirs, so that one that nobody
    /// reads takes nothing from the others, and waiting for one to end would be silence.
    Streams,
}

impl Carries {
    fn stream_window(self) -> u32 {
        match self {
            Self::Calls => 1 << 20,
            Self::Streams => 64 << 10,
        }
    }

    fn connection_window(self) -> u32 {
        match self {
            Self::Calls => 4 << 20,
            Self::Streams => 16 << 20,
        }
    }

    fn patience(self) -> Duration {
        match self {
            Self::Calls => Duration::from_secs(1),
            Self::Streams => Duration::ZERO,
        }
    }
}

#[derive(Debug, Clone)]
pub struct ChannelOptions {
    /// `host:port`.
    pub target: String,
    /// The only identity that may answer.
    pub expected: SpiffeId,
    pub identity: IdentityHandle,
    pub revocations: Revocations,
    pub clock: Clock,
    /// Where the connection is listed, and under whose name.
    pub table: ConnectionTable,
    pub service: &'static str,
    pub audience: Audience,
}

/// Who reads why a call could not be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Audience {
    /// Whoever runs this program: the whole cause, with addresses.
    Operator,
    /// Strangers, through a service that calls another for them: which service it was. Where it is
    /// and what is wrong with it is in the log.
    Strangers,
}

impl ChannelOptions {
    /// For a program that is no service: nothing is pushed to it.
    pub fn alone(target: &str, expected: SpiffeId, identity: Identity, clock: Clock) -> Self {
        Self {
            target: target.to_owned(),
            expected,
            identity: IdentityHandle::new(identity),
            revocations: Revocations::default(),
            clock,
            table: ConnectionTable::default(),
            service: "client",
            audience: Audience::Operator,
        }
    }

    /// The name of the workload at the other end.
    fn workload(&self) -> &str {
        let path = self.expected.path();
        path.rsplit('/').next().unwrap_or(path)
    }
}

/// Runs hyper's own tasks for a connection until it is cut: dropping the futures that hyper hands
/// out leaves the socket to whatever streams are still open.
#[derive(Debug, Clone, Default)]
struct AbortableExecutor {
    cut: CancellationToken,
    tasks: TaskTracker,
}

impl<F> hyper::rt::Executor<F> for AbortableExecutor
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, task: F) {
        let cut = self.cut.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                () = task => {}
                () = cut.cancelled() => {}
            }
        });
    }
}

impl AbortableExecutor {
    /// Cuts the connection when its server is revoked, or when a certificate of it has ended. A root
    /// that is trusted no more ends it from the server's side, in peace.
    async fn watch(
        self,
        end: Duration,
        options: ChannelOptions,
        (own, server): (Arc<Identity>, Arc<PeerInfo>),
        _listed: Listed,
    ) {
        let revoked = async {
            let Some(verified) = &server.verified else {
                return std::future::pending().await;
            };
            let (current, clock) = (&options.identity, &options.clock);
            let by_list = Refusal::is_revocation;
            tokio::select! {
                () = options.revocations.until_denied(verified) => {}
                _ = current.until_refused(&own, verified, Side::Server, clock, by_list) => {}
            }
        };
        self.tasks.close();
        tokio::select! {
            () = self.tasks.wait() => return,
            () = revoked => tracing::warn!(server = server.name(), "the server is revoked; connection cut"),
            () = options.clock.sleep_until(end) => tracing::debug!(server = server.name(), "a certificate of the connection has ended"),
        }
        self.cut.cancel();
    }
}

/// Past this time of the wall, one side has no identity any more.
fn certificates_end(own: &Identity, peer: &PeerInfo) -> Duration {
    let own = own.leaf().not_after;
    let theirs = peer.verified.as_ref().map(|v| v.certificate.not_after);
    theirs.map_or(own, |t| t.min(own))
}

/// Cheap to clone; clones share one connection.
#[derive(Debug, Clone)]
pub struct Channel {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    options: ChannelOptions,
    authority: http::uri::Authority,
    carries: Carries,
    live: ArcSwapOption<Live>,
    connecting: Mutex<()>,
    complaints: parking_lot::Mutex<Complaints>,
}

/// When the log was last told that calls fail.
#[derive(Debug, Default)]
struct Complaints(Option<Instant>);

impl Complaints {
    fn is_due(&mut self, now: Instant) -> bool {
        let due = self
            .0
            .is_none_or(|last| now.saturating_duration_since(last) >= QUIET);
        if due {
            self.0 = Some(now);
        }
        due
    }
}

#[derive(Debug)]
struct Live {
    sender: SendRequest<Body>,
    /// The identity that opened it.
    identity: Arc<Identity>,
    server: Server,
    lanes: Arc<Lanes>,
}

/// What a server has proven.
#[derive(Debug, Clone)]
pub struct Server {
    pub peer: Arc<PeerInfo>,
    pub key_exchange: &'static str,
}

#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    #[error("cannot reach {target}: {source}")]
    Connect {
        target: String,
        source: std::io::Error,
    },
    #[error("cannot reach {target}: no answer in {CONNECT_TIMEOUT:?}")]
    Timeout { target: String },
    #[error("{target} does not speak HTTP/2")]
    NoH2 { target: String },
    #[error("cannot trust {target}: {why}")]
    Refused { target: String, why: String },
    #[error("{0}")]
    Own(String),
    #[error("{target} refuses the own certificate: it is revoked")]
    OwnRevoked { target: String },
    #[error("the own identity is not usable: {0}")]
    Identity(#[from] tls::TlsError),
    #[error("{target}: {}", with_causes(source))]
    Http {
        target: String,
        source: hyper::Error,
    },
    #[error("{target}: the connection went away in the middle of a long request")]
    Moved { target: String },
    #[error("{0:?} is not a host and port")]
    Target(String),
}

impl ChannelError {
    /// What may be said to anybody: which service, and no address, certificate or cause.
    fn to_strangers(&self, options: &ChannelOptions) -> String {
        let (to, from) = (options.workload(), options.service);
        match self {
            Self::Connect { .. } | Self::Timeout { .. } | Self::Target(_) => {
                format!("{to} cannot be reached")
            }
            Self::NoH2 { .. } => format!("{to} does not speak HTTP/2"),
            Self::Refused { .. } => format!("{to} cannot be trusted"),
            Self::Own(_) => format!("the certificate of {from} has expired or is revoked"),
            Self::OwnRevoked { .. } => format!("{to} refuses the certificate of {from}"),
            Self::Identity(_) => format!("the identity of {from} is not usable"),
            Self::Http { .. } | Self::Moved { .. } => format!("the connection to {to} was lost"),
        }
    }
}

impl Channel {
    pub fn new(options: ChannelOptions) -> Result<Self, ChannelError> {
        let authority = options
            .target
            .parse()
            .map_err(|_| ChannelError::Target(options.target.clone()))?;
        let shared = Shared {
            options,
            authority,
            carries: Carries::Calls,
            live: ArcSwapOption::empty(),
            connecting: Mutex::new(()),
            complaints: parking_lot::Mutex::default(),
        };
        Ok(Self {
            shared: Arc::new(shared),
        })
    }

    /// Another channel to the same workload for streams, with a connection of its own: those that
    /// nobody reads must not take the window that calls need.
    #[must_use]
    pub fn separate(&self) -> Self {
        let shared = Shared {
            options: self.shared.options.clone(),
            authority: self.shared.authority.clone(),
            carries: Carries::Streams,
            live: ArcSwapOption::empty(),
            connecting: Mutex::new(()),
            complaints: parking_lot::Mutex::default(),
        };
        Self {
            shared: Arc::new(shared),
        }
    }
}

impl Channel {
    /// Connects, if need be, and tells who answers.
    pub async fn server(&self) -> Result<Server, ChannelError> {
        Ok(self.shared.connection().await?.server.clone())
    }
}

impl Shared {
    fn usable(&self) -> Option<Arc<Live>> {
        let live = self.live.load_full()?;
        let current = Arc::ptr_eq(&live.identity, &self.options.identity.current());
        (current && !live.sender.is_closed()).then_some(live)
    }

    /// One connection attempt at a time; who waited uses its result.
    async fn connection(&self) -> Result<Arc<Live>, ChannelError> {
        if let Some(live) = self.usable() {
            return Ok(live);
        }
        let _one = self.connecting.lock().await;
        if let Some(live) = self.usable() {
            return Ok(live);
        }
        let attempt = timeout(CONNECT_TIMEOUT, self.connect()).await;
        let live = Arc::new(attempt.map_err(|_| ChannelError::Timeout {
            target: self.target(),
        })??);
        self.live.store(Some(Arc::clone(&live)));
        Ok(live)
    }

    fn target(&self) -> String {
        self.options.target.clone()
    }

    async fn connect(&self) -> Result<Live, ChannelError> {
        let options = &self.options;
        if let Some(problem) = options.identity.problem(options.clock.now()) {
            return Err(ChannelError::Own(problem));
        }
        let identity = options.identity.current();
        let (stream, server) = self.handshake(&identity).await?;
        let tasks = AbortableExecutor::default();
        let (sender, dispatch) = hyper::client::conn::http2::Builder::new(tasks.clone())
            .timer(TokioTimer::new())
            .keep_alive_interval(Duration::from_secs(20))
            .keep_alive_timeout(Duration::from_secs(10))
            .initial_stream_window_size(self.carries.stream_window())
            .initial_connection_window_size(self.carries.connection_window())
            .initial_max_send_streams(STREAMS)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|source| match says_revoked(&source) {
                true => ChannelError::OwnRevoked {
                    target: self.target(),
                },
                false => ChannelError::Http {
                    target: self.target(),
                    source,
                },
            })?;
        let target = self.target();
        let lanes = Lanes::new(STREAMS);
        let told = Arc::clone(&lanes);
        hyper::rt::Executor::execute(&tasks, async move {
            let mut dispatch = pin!(dispatch);
            let ended = poll_fn(|cx| {
                let polled = dispatch.as_mut().poll(cx);
                told.set_most(dispatch.current_max_send_streams());
                polled
            });
            if let Err(e) = ended.await {
                tracing::debug!(target, error = %e, "connection ended");
            }
        });
        tokio::spawn(tasks.watch(
            certificates_end(&identity, &server.peer),
            options.clone(),
            (Arc::clone(&identity), Arc::clone(&server.peer)),
            options.table.enter(options.service, "out", &server.peer),
        ));
        Ok(Live {
            sender,
            identity,
            server,
            lanes,
        })
    }

    async fn handshake(
        &self,
        identity: &Identity,
    ) -> Result<(TlsStream<TcpStream>, Server), ChannelError> {
        let options = &self.options;
        let failed = |source| ChannelError::Connect {
            target: self.target(),
            source,
        };
        let config = tls::client(
            identity,
            options.expected.clone(),
            &options.revocations,
            Arc::new(options.clock.clone()),
        )?;
        let tcp = TcpStream::connect(&options.target).await.map_err(failed)?;
        tcp.set_nodelay(true).map_err(failed)?;
        let addr = tcp.peer_addr().map_err(failed)?;
        // The verifier looks at the SPIFFE id, never at a host name.
        let name = ServerName::from(IpAddr::V4(Ipv4Addr::LOCALHOST));
        let connecting = TlsConnector::from(Arc::new(config)).connect(name, tcp);
        let (connected, seen) = observed(connecting).await;
        let stream = match (connected, seen.refusal) {
            (Ok(stream), _) => stream,
            (Err(e), Some(reason)) => {
                return Err(ChannelError::Refused {
                    target: self.target(),
                    why: format!("{e} ({reason})"),
                });
            }
            (Err(e), None) => return Err(failed(e)),
        };
        let session = stream.get_ref().1;
        if session.alpn_protocol() != Some(tls::ALPN) {
            return Err(ChannelError::NoH2 {
                target: self.target(),
            });
        }
        let key_exchange = key_exchange(session.negotiated_key_exchange_group());
        let peer = server_info(seen.peer, addr);
        Ok((stream, Server { peer, key_exchange }))
    }

    /// tonic's generated clients give a path; HTTP/2 wants scheme and authority as well.
    fn absolute(&self, path: &Uri) -> Result<Uri, http::Error> {
        let path = path
            .path_and_query()
            .cloned()
            .unwrap_or_else(|| PathAndQuery::from_static("/"));
        Uri::builder()
            .scheme("https")
            .authority(self.authority.clone())
            .path_and_query(path)
            .build()
    }

    async fn send(&self, mut request: Request<Body>) -> Result<Response<ChannelBody>, Status> {
        let uri = self
            .absolute(request.uri())
            .map_err(|e| Status::internal(e.to_string()))?;
        *request.uri_mut() = uri;
        let (head, body) = request.into_parts();
        let replay = Replay::new(body);
        for again in [true, false] {
            let live = self.connection().await.map_err(|e| self.unreachable(&e))?;
            let Some(lane) = live.lanes.take(self.carries.patience()).await else {
                return Err(self.overloaded());
            };
            let Some(body) = replay.body() else {
                break;
            };
            let request = Request::from_parts(head.clone(), body);
            let mut error = match live.sender.clone().try_send_request(request).await {
                Ok(response) => return Ok(response.map(|body| ChannelBody::new(body, lane))),
                Err(error) => error,
            };
            // It never left, or the server says that it did not look at it: the connection was
            // going away. It belongs on the next one.
            let unsent = error.take_message().is_some();
            if !(again && (unsent || never_processed(error.error()))) {
                return Err(self.failed(error.into_error()));
            }
            self.forget(&live);
        }
        Err(self.unreachable(&ChannelError::Moved {
            target: self.target(),
        }))
    }

    fn overloaded(&self) -> Status {
        let to = match self.options.audience {
            Audience::Operator => &self.options.target,
            Audience::Strangers => self.options.workload(),
        };
        let message = format!("every stream to {to} is taken");
        fault::overloaded(&message, Duration::from_secs(1))
    }

    fn failed(&self, source: hyper::Error) -> Status {
        let target = self.target();
        self.unreachable(&match says_revoked(&source) {
            true => ChannelError::OwnRevoked { target },
            false => ChannelError::Http { target, source },
        })
    }

    fn unreachable(&self, error: &ChannelError) -> Status {
        let reason = match error {
            ChannelError::OwnRevoked { .. } => OWN_CERTIFICATE_REVOKED,
            _ => "UNREACHABLE",
        };
        self.complain(error);
        let message = match self.options.audience {
            Audience::Operator => error.to_string(),
            Audience::Strangers => error.to_strangers(&self.options),
        };
        fault::unavailable(reason, &message, Duration::from_secs(1))
    }

    /// Tells the log, which is not told of every call.
    fn complain(&self, error: &ChannelError) {
        let (workload, service) = (self.options.workload(), self.options.service);
        if self.complaints.lock().is_due(Instant::now()) {
            tracing::warn!(service, workload, %error, "a call to another service failed");
        } else {
            tracing::debug!(service, workload, %error, "a call to another service failed");
        }
    }

    /// The next call opens another connection, unless somebody has already.
    fn forget(&self, gone: &Arc<Live>) {
        let current = self.live.load();
        if current.as_ref().is_some_and(|live| Arc::ptr_eq(live, gone)) {
            self.live.compare_and_swap(&current, None);
        }
    }
}

fn server_info(verified: Option<tars_certs::peer::Verified>, addr: SocketAddr) -> Arc<PeerInfo> {
    Arc::new(PeerInfo {
        verified,
        class: None,
        addr,
        closing: CancellationToken::new(),
    })
}

/// An error with what stands behind it: an alert of the peer's TLS, most often.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let more = next.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = next.source();
    }
    text
}

/// Whether the other side ended the handshake because the own certificate is revoked. In TLS 1.3 the
/// alert comes after the own side is done with it, behind the proof of who sends it; h2 keeps of it
/// what it says, and not what it is.
fn says_revoked(error: &hyper::Error) -> bool {
    let alert = rustls::Error::AlertReceived(rustls::AlertDescription::CertificateRevoked);
    with_causes(error).contains(&alert.to_string())
}

/// The reason of a call that failed because the server refuses the own certificate as revoked.
pub const OWN_CERTIFICATE_REVOKED: &str = "OWN_CERTIFICATE_REVOKED";

impl Service<Request<Body>> for Channel {
    type Response = Response<ChannelBody>;
    type Error = Status;
    type Future = BoxFuture<'static, Result<Response<ChannelBody>, Status>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let shared = Arc::clone(&self.shared);
        Box::pin(async move { shared.send(request).await })
    }
}
