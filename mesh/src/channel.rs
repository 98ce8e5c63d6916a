//! A client channel to one workload, over connections to all of its addresses. It verifies the server's
//! SPIFFE id, reconnects by itself, and opens new connections when this process's certificate is renewed,
//! leaving the old ones to finish the calls they carry. A connection to a server that is revoked is closed
//! at once.
//!
//! A call goes to the less busy and less slow of two addresses. It goes to another one when it was not sent,
//! or when the server reports that it did not process it. Otherwise it is sent again only when the contract
//! declares it idempotent and its service was unavailable, within a budget. An address that cannot be
//! connected to, or that fails, is left alone for a while, as long as another one can be used.

mod addresses;
mod answer;
mod attempts;
mod balance;
mod body;
mod breaker;
mod call;
mod connect;
mod connected;
mod ejections;
mod ending;
mod endpoint;
mod error;
mod greeting;
mod health;
mod judge;
mod lookups;
mod metrics;
mod options;
mod resolve;
mod retry;
mod sending;
mod slots;
mod slowness;
mod subset;
mod trial;

use addresses::Addresses;
pub use body::ChannelBody;
pub use connected::Server;
pub use error::ChannelError;
use futures_util::future::BoxFuture;
use http::{Request, Response};
pub use metrics::ChannelMetrics;
pub use options::{Audience, ChannelOptions};
use options::{Dialer, Traffic};
pub use resolve::{Resolve, SystemResolver};
use retry::Budget;
use std::{
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tars_proto::{fault, unavailable::Unavailable};
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
    budget: Budget,
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
        let dialer = Dialer::new(options, Traffic::Calls);
        Ok(Self::over(Addresses::new(dialer, targets, resolver)))
    }

    /// Returns a channel for streams to the same workload, with connections of its own: streams that
    /// nobody reads must not take the window that calls need.
    #[must_use]
    pub fn separate(&self) -> Self {
        let addresses = &self.shared.addresses;
        let dialer = Dialer::new(addresses.dialer.options.clone(), Traffic::Streams);
        let (targets, resolver) = (addresses.targets.clone(), Arc::clone(&addresses.resolver));
        Self::over(Addresses::new(dialer, targets, resolver))
    }

    fn over(addresses: Arc<Addresses>) -> Self {
        let warnings = parking_lot::Mutex::default();
        Self {
            shared: Arc::new(Shared {
                addresses,
                budget: Budget::default(),
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

    fn overloaded(&self) -> Status {
        let options = self.options();
        let to = match options.audience {
            Audience::Operator => &options.target,
            Audience::Strangers => options.workload(),
        };
        let message = format!("every stream to {to} is in use");
        fault::overloaded(&message, Duration::from_secs(1))
    }

    fn unreachable(&self, error: &ChannelError) -> Status {
        let why = match error.is_own_revoked() {
            true => Unavailable::OwnCertificateRevoked,
            false => Unavailable::Unreachable,
        };
        self.log_failure(error);
        let message = match self.options().audience {
            Audience::Operator => error.to_string(),
            Audience::Strangers => error.public_message(self.options()),
        };
        fault::unavailable(why, &message, Duration::from_secs(1))
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
