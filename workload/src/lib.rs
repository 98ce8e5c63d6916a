//! What a service of the mesh is to the process that runs it.
//!
//! A service implements [`Workload`] in its own crate. The process gives it [`Parts`], and puts the
//! rest around it: identity, listener, the stack of layers, the view of credentials, the audit
//! outbox, health, reflection. So no service is assembled in a way of its own.

#![deny(missing_docs)]

use std::{error::Error, fmt, path::Path, sync::Arc};
use tars_interceptors::usage::Usage;
use tars_mesh::Channel;
use tars_runtime::{
    bus::Bus,
    clock::Clock,
    config::Config,
    db::{Db, Migration, Place},
    health::Check,
    lease::Leases,
    metrics::{Metrics, calls::CallRecorder},
    seeds::Seeds,
    trace::Tracer,
};
use tonic::service::Routes;

/// Why a service could not start. The process reports it beside the service's name and stops.
pub type OpenError = Box<dyn Error + Send + Sync>;

/// A service that is served over mutual TLS and follows Auth.
pub trait Workload: Sized + Send + Sync + 'static {
    /// The migrations of its database's schema, as [`open`](Self::open) applies them.
    const MIGRATIONS: &'static [Migration];

    /// Opens the service's part of the data directory. Nothing is served yet, and no peer needs to
    /// be reachable.
    fn open(parts: Parts<'_>) -> impl Future<Output = Result<Arc<Self>, OpenError>> + Send;

    /// The database, which also holds the outbox of audit records. The service is ready while it
    /// answers.
    fn db(&self) -> &Db;

    /// The leases of the work that the service owns. They are given up once nothing serves any more.
    fn leases(&self) -> &Leases;

    /// What must hold beside the database for the service to be ready, by name.
    fn checks(self: &Arc<Self>) -> Vec<(&'static str, Check)> {
        Vec::new()
    }

    /// The gRPC services to serve, each of which takes messages of at most `max_message_bytes`.
    fn routes(self: Arc<Self>, max_message_bytes: usize) -> Routes;

    /// Continues what the last process left unfinished. Called once everything of this process
    /// serves; work that takes long goes to the background.
    fn resume(self: Arc<Self>) -> impl Future<Output = Result<(), OpenError>> + Send {
        async { Ok(()) }
    }
}

/// Opens channels to other services as one service of the process.
pub trait Dial: Sync {
    /// A channel to the service `to`, by its name in the contract. It connects when it is used.
    ///
    /// # Errors
    ///
    /// The name is no service's, or the configured address cannot be parsed.
    fn dial(&self, to: &str) -> Result<Channel, OpenError>;
}

/// What a process gives to a service.
pub struct Parts<'a> {
    /// The service's own part of the data directory. It may not exist yet.
    pub dir: &'a Path,
    /// The service's own database.
    pub database: Place,
    /// The event bus between the replicas of each service.
    pub bus: Bus,
    /// The configuration of the process.
    pub config: &'a Config,
    /// The time.
    pub clock: Clock,
    /// Seeds of random numbers.
    pub seeds: Seeds,
    /// Starts the spans of the service.
    pub tracer: Tracer,
    /// The registry of the process. A service registers its metrics once, when it is opened.
    pub metrics: &'a Metrics,
    /// The calls that this process serves as the service.
    pub calls: CallRecorder,
    /// What the callers of the service use.
    pub usage: Usage,
    /// Opens channels to other services.
    pub peers: &'a dyn Dial,
}

impl fmt::Debug for Parts<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Parts({})", self.dir.display())
    }
}
