//! A client channel to one workload. It verifies the server's SPIFFE id, reconnects by itself, and opens a
//! new connection when this process's certificate is renewed, leaving the old one to finish the calls it
//! carries. A connection to a server that is revoked is closed at once.

mod connect;
mod error;
mod slots;

use crate::{
    ConnectionTable,
    replay::{Replay, never_processed},
};
use arc_swap::ArcSwapOption;
pub use error::ChannelError;
use futures_util::future::BoxFuture;
use http::{
    Request, Response, Uri,
    uri::{Authority, PathAndQuery},
};
use hyper::client::conn::http2::SendRequest;
use slots::StreamSlots;
pub use slots::{ChannelBody, MAX_RESPONSE};
use std::{
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tars_certs::{Identity, IdentityHandle, Revocations, SpiffeId, peer::PeerInfo};
use tars_proto::{fault, reason};
use tars_runtime::clock::Clock;
use tokio::{
    sync::Mutex,
    time::{Instant, timeout},
};
use tonic::{Status, body::Body};
use tower_service::Service;

/// The time to connect, TLS and HTTP/2 included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The number of streams assumed until the server has sent its limit.
const INITIAL_STREAMS: usize = 200;
/// The minimum time between two warnings of one channel.
const WARNING_INTERVAL: Duration = Duration::from_secs(10);

/// What a channel is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Traffic {
    /// Short exchanges. Each may fill the connection's window for a moment, and one that finds no
    /// stream free waits for another to end.
    Calls,
    /// Streams that stay open. The connection's window holds all of theirs, so that one that nobody reads
    /// takes nothing from the others; waiting for one to end could take for ever.
    Streams,
}

impl Traffic {
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

/// What a channel needs to connect.
#[derive(Debug, Clone)]
pub struct ChannelOptions {
    /// The server's address, as `host:port`.
    pub target: String,
    /// The only identity that is accepted from the server.
    pub expected: SpiffeId,
    /// The identity of this process.
    pub identity: IdentityHandle,
    /// The certificates and identities that are revoked.
    pub revocations: Revocations,
    /// The clock by which certificates expire.
    pub clock: Clock,
    /// Where the connection is listed, for the admin port.
    pub table: ConnectionTable,
    /// The service that the connection is listed under.
    pub service: &'static str,
    /// Who reads the errors.
    pub audience: Audience,
}

/// Who reads why a call could not be made, and how much they may know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Audience {
    /// The operator of this program: the whole cause, with addresses.
    Operator,
    /// Strangers, through a service that calls another one on their behalf: only which service failed.
    /// Its address and the cause are in the log.
    Strangers,
}

impl ChannelOptions {
    /// Returns the options of a program that is not a service: no revocations are pushed to it.
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

    /// The name of the server's workload.
    fn workload(&self) -> &str {
        let path = self.expected.path();
        path.rsplit('/').next().unwrap_or(path)
    }
}

/// A channel to one workload. Clones share one connection.
#[derive(Debug, Clone)]
pub struct Channel {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    options: ChannelOptions,
    authority: Authority,
    traffic: Traffic,
    current: ArcSwapOption<Connected>,
    connecting: Mutex<()>,
    warnings: parking_lot::Mutex<Warnings>,
}

/// When a failed call was last logged as a warning.
#[derive(Debug, Default)]
struct Warnings(Option<Instant>);

impl Warnings {
    fn is_due(&mut self, now: Instant) -> bool {
        let due = self
            .0
            .is_none_or(|last| now.saturating_duration_since(last) >= WARNING_INTERVAL);
        if due {
            self.0 = Some(now);
        }
        due
    }
}

#[derive(Debug)]
struct Connected {
    sender: SendRequest<Body>,
    /// The identity with which it was opened.
    identity: Arc<Identity>,
    server: Server,
    slots: Arc<StreamSlots>,
}

/// What is known of a server after the handshake.
#[derive(Debug, Clone)]
pub struct Server {
    /// The server's address and verified certificate.
    pub peer: Arc<PeerInfo>,
    /// The key exchange group, as a metric label.
    pub key_exchange: &'static str,
}

impl Channel {
    /// Creates a channel for calls. It connects when it is first used.
    ///
    /// # Errors
    ///
    /// [`ChannelError::Target`] when the target is not a host and port.
    pub fn new(options: ChannelOptions) -> Result<Self, ChannelError> {
        let authority = options
            .target
            .parse()
            .map_err(|_| ChannelError::Target(options.target.clone()))?;
        Ok(Self::with_traffic(Traffic::Calls, options, authority))
    }

    /// Returns a channel for streams to the same workload, with a connection of its own: streams that
    /// nobody reads must not take the window that calls need.
    #[must_use]
    pub fn separate(&self) -> Self {
        let Shared {
            options, authority, ..
        } = &*self.shared;
        Self::with_traffic(Traffic::Streams, options.clone(), authority.clone())
    }

    fn with_traffic(traffic: Traffic, options: ChannelOptions, authority: Authority) -> Self {
        let shared = Shared {
            options,
            authority,
            traffic,
            current: ArcSwapOption::empty(),
            connecting: Mutex::new(()),
            warnings: parking_lot::Mutex::default(),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// Connects, if need be, and returns what is known of the server.
    ///
    /// # Errors
    ///
    /// Why there is no connection.
    pub async fn server(&self) -> Result<Server, ChannelError> {
        Ok(self.shared.connection().await?.server.clone())
    }
}

impl Shared {
    fn usable(&self) -> Option<Arc<Connected>> {
        let connected = self.current.load_full()?;
        let current = Arc::ptr_eq(&connected.identity, &self.options.identity.current());
        (current && !connected.sender.is_closed()).then_some(connected)
    }

    /// Returns the connection, or opens one: one attempt at a time, whose result all callers share.
    async fn connection(&self) -> Result<Arc<Connected>, ChannelError> {
        if let Some(connected) = self.usable() {
            return Ok(connected);
        }
        let _one = self.connecting.lock().await;
        if let Some(connected) = self.usable() {
            return Ok(connected);
        }
        let attempt = timeout(CONNECT_TIMEOUT, self.connect()).await;
        let connected = Arc::new(attempt.map_err(|_| ChannelError::Timeout {
            target: self.target(),
        })??);
        self.current.store(Some(Arc::clone(&connected)));
        Ok(connected)
    }

    fn target(&self) -> String {
        self.options.target.clone()
    }

    /// Adds scheme and authority, which HTTP/2 requires, to the path that tonic's clients give.
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
            let connected = self.connection().await.map_err(|e| self.unreachable(&e))?;
            let Some(slot) = connected.slots.take(self.traffic.patience()).await else {
                return Err(self.overloaded());
            };
            let Some(body) = replay.body() else {
                break;
            };
            let request = Request::from_parts(head.clone(), body);
            let mut error = match connected.sender.clone().try_send_request(request).await {
                Ok(response) => return Ok(response.map(|body| ChannelBody::new(body, slot))),
                Err(error) => error,
            };
            // It was not sent, or the server reports that it did not process it, because the
            // connection was closing: it is sent again on the next one.
            let unsent = error.take_message().is_some();
            if !(again && (unsent || never_processed(error.error()))) {
                return Err(self.failed(error.into_error()));
            }
            self.forget(&connected);
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
        let message = format!("every stream to {to} is in use");
        fault::overloaded(&message, Duration::from_secs(1))
    }

    fn failed(&self, source: hyper::Error) -> Status {
        let target = self.target();
        self.unreachable(&ChannelError::http(target, source))
    }

    fn unreachable(&self, error: &ChannelError) -> Status {
        let reason = match error {
            ChannelError::OwnRevoked { .. } => reason::OWN_CERTIFICATE_REVOKED,
            _ => reason::UNREACHABLE,
        };
        self.log_failure(error);
        let message = match self.options.audience {
            Audience::Operator => error.to_string(),
            Audience::Strangers => error.public_message(&self.options),
        };
        fault::unavailable(reason, &message, Duration::from_secs(1))
    }

    /// Logs a warning, and further ones within its interval at the debug level.
    fn log_failure(&self, error: &ChannelError) {
        let (workload, service) = (self.options.workload(), self.options.service);
        if self.warnings.lock().is_due(Instant::now()) {
            tracing::warn!(service, workload, %error, "a call to another service failed");
        } else {
            tracing::debug!(service, workload, %error, "a call to another service failed");
        }
    }

    /// Drops a connection, unless it has been replaced, so that the next call opens another one.
    fn forget(&self, gone: &Arc<Connected>) {
        let current = self.current.load();
        if current
            .as_ref()
            .is_some_and(|connected| Arc::ptr_eq(connected, gone))
        {
            self.current.compare_and_swap(&current, None);
        }
    }
}

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
