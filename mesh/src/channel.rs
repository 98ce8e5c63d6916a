//! A client channel to one workload, over connections to all of its addresses. It verifies the server's
//! SPIFFE id, reconnects by itself, and opens new connections when this process's certificate is renewed,
//! leaving the old ones to finish the calls they carry. A connection to a server that is revoked is closed
//! at once.
//!
//! A call goes to the less busy of two addresses. It goes to another one when it was not sent, or when the
//! server reports that it did not process it, and is never sent again otherwise. An address that cannot be
//! connected to is left alone for a while, as long as another one can be used.

mod addresses;
mod attempts;
mod balance;
mod connect;
mod connected;
mod endpoint;
mod error;
mod greeting;
mod options;
mod resolve;
mod slots;

use crate::replay::{Replay, never_processed};
use addresses::{Addresses, Lease, LeaseError};
use connected::Connected;
pub use connected::Server;
pub use error::ChannelError;
use futures_util::future::BoxFuture;
use http::{Request, Response, uri::PathAndQuery};
pub use options::{Audience, ChannelOptions};
use options::{Dialer, Traffic};
pub use resolve::{Resolve, SystemResolver};
pub use slots::{ChannelBody, MAX_RESPONSE};
use std::{
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tars_proto::{fault, reason};
use tars_runtime::targets::Targets;
use tokio::time::Instant;
use tonic::{Status, body::Body};
use tower_service::Service;

/// The minimum time between two warnings of one channel.
const WARNING_INTERVAL: Duration = Duration::from_secs(10);

/// A channel to one workload. Clones share its connections.
#[derive(Debug, Clone)]
pub struct Channel {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    addresses: Arc<Addresses>,
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

impl Channel {
    /// Creates a channel for calls. It connects when it is first used.
    ///
    /// # Errors
    ///
    /// [`ChannelError::Target`] when the target is not a list of hosts and ports.
    pub fn new(options: ChannelOptions) -> Result<Self, ChannelError> {
        Self::with_resolver(options, Arc::new(SystemResolver))
    }

    /// Creates a channel that looks names up in its own way.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new).
    pub fn with_resolver(
        options: ChannelOptions,
        resolver: Arc<dyn Resolve>,
    ) -> Result<Self, ChannelError> {
        let targets = Targets::parse(&options.target).map_err(ChannelError::Target)?;
        let traffic = Traffic::Calls;
        Ok(Self::over(Addresses::new(
            Dialer { options, traffic },
            targets,
            resolver,
        )))
    }

    /// Returns a channel for streams to the same workload, with connections of its own: streams that
    /// nobody reads must not take the window that calls need.
    #[must_use]
    pub fn separate(&self) -> Self {
        let addresses = &self.shared.addresses;
        let dialer = Dialer {
            options: addresses.dialer.options.clone(),
            traffic: Traffic::Streams,
        };
        let (targets, resolver) = (addresses.targets.clone(), Arc::clone(&addresses.resolver));
        Self::over(Addresses::new(dialer, targets, resolver))
    }

    fn over(addresses: Arc<Addresses>) -> Self {
        let warnings = parking_lot::Mutex::default();
        Self {
            shared: Arc::new(Shared {
                addresses,
                warnings,
            }),
        }
    }

    /// Connects, if need be, and returns what is known of a server that can be used.
    ///
    /// # Errors
    ///
    /// Why there is no connection.
    pub async fn server(&self) -> Result<Server, ChannelError> {
        Ok(self.shared.addresses.connection().await?.server.clone())
    }
}

impl Shared {
    fn options(&self) -> &ChannelOptions {
        &self.addresses.dialer.options
    }

    async fn send(&self, request: Request<Body>) -> Result<Response<ChannelBody>, Status> {
        let (mut head, body) = request.into_parts();
        let path = head.uri.path_and_query().cloned();
        let path = path.unwrap_or_else(|| PathAndQuery::from_static("/"));
        let replay = Replay::new(body);
        let mut resends = None;
        loop {
            let lease = self.addresses.lease().await;
            let Lease {
                endpoint,
                connected,
                slot,
            } = lease.map_err(|e| self.unleased(&e))?;
            let Some(body) = replay.body() else {
                return Err(self.unreachable(&ChannelError::Moved {
                    target: connected.name.to_string(),
                }));
            };
            let uri = connected.absolute(path.clone());
            head.uri = uri.map_err(|e| Status::internal(e.to_string()))?;
            let request = Request::from_parts(head.clone(), body);
            let mut error = match connected.sender.clone().try_send_request(request).await {
                Ok(response) => {
                    connected.record_response();
                    return Ok(response.map(|body| ChannelBody::new(body, slot)));
                }
                Err(error) => error,
            };
            // It was not sent, or the server reports that it did not process it, because the
            // connection was closing: it is sent again on another one.
            let unsent = error.take_message().is_some() || never_processed(error.error());
            let left = resends.get_or_insert_with(|| self.addresses.connections());
            if unsent {
                endpoint.forget(&connected);
            }
            if !unsent || *left == 0 {
                return Err(self.failed(&connected, error.into_error()));
            }
            *left -= 1;
        }
    }

    fn unleased(&self, error: &LeaseError) -> Status {
        match error {
            LeaseError::Full => self.overloaded(),
            LeaseError::Unreachable(error) => self.unreachable(error),
        }
    }

    fn overloaded(&self) -> Status {
        let options = self.options();
        let to = match options.audience {
            Audience::Operator => &options.target,
            Audience::Strangers => options.workload(),
        };
        let message = format!("every stream to {to} is in use");
        fault::overloaded(&message, Duration::from_secs(1))
    }

    fn failed(&self, connected: &Connected, source: hyper::Error) -> Status {
        let target = connected.name.to_string();
        self.unreachable(&ChannelError::http(target, source))
    }

    fn unreachable(&self, error: &ChannelError) -> Status {
        let reason = match error.is_own_revoked() {
            true => reason::OWN_CERTIFICATE_REVOKED,
            false => reason::UNREACHABLE,
        };
        self.log_failure(error);
        let message = match self.options().audience {
            Audience::Operator => error.to_string(),
            Audience::Strangers => error.public_message(self.options()),
        };
        fault::unavailable(reason, &message, Duration::from_secs(1))
    }

    /// Logs a warning, and further ones within its interval at the debug level.
    fn log_failure(&self, error: &ChannelError) {
        let (workload, service) = (self.options().workload(), self.options().service);
        if self.warnings.lock().is_due(Instant::now()) {
            tracing::warn!(service, workload, %error, "a call to another service failed");
        } else {
            tracing::debug!(service, workload, %error, "a call to another service failed");
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
