//! A client channel to one workload: it verifies the server's SPIFFE id, reconnects by itself, and
//! moves to a new connection when the own certificate was renewed, leaving the old one to finish
//! the calls it carries. A connection to a server that is revoked ends at once.

mod connect;
mod error;
mod lanes;

use crate::{
    ConnectionTable,
    replay::{Replay, never_processed},
};
use arc_swap::ArcSwapOption;
pub use error::{ChannelError, OWN_CERTIFICATE_REVOKED};
use futures_util::future::BoxFuture;
use http::{
    Request, Response, Uri,
    uri::{Authority, PathAndQuery},
};
use hyper::client::conn::http2::SendRequest;
use lanes::Lanes;
pub use lanes::{ChannelBody, MAX_RESPONSE};
use std::{
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tars_certs::{Identity, IdentityHandle, Revocations, SpiffeId, peer::PeerInfo};
use tars_proto::fault;
use tars_runtime::clock::Clock;
use tokio::{
    sync::Mutex,
    time::{Instant, timeout},
};
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

/// Cheap to clone; clones share one connection.
#[derive(Debug, Clone)]
pub struct Channel {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    options: ChannelOptions,
    authority: Authority,
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

impl Channel {
    pub fn new(options: ChannelOptions) -> Result<Self, ChannelError> {
        let authority = options
            .target
            .parse()
            .map_err(|_| ChannelError::Target(options.target.clone()))?;
        Ok(Self::carrying(Carries::Calls, options, authority))
    }

    /// Another channel to the same workload for streams, with a connection of its own: those that
    /// nobody reads must not take the window that calls need.
    #[must_use]
    pub fn separate(&self) -> Self {
        let Shared {
            options, authority, ..
        } = &*self.shared;
        Self::carrying(Carries::Streams, options.clone(), authority.clone())
    }

    fn carrying(carries: Carries, options: ChannelOptions, authority: Authority) -> Self {
        let shared = Shared {
            options,
            authority,
            carries,
            live: ArcSwapOption::empty(),
            connecting: Mutex::new(()),
            complaints: parking_lot::Mutex::default(),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

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
        self.unreachable(&ChannelError::http(target, source))
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
