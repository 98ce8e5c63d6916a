//! The mesh in one process, or one service of it: the same parts, assembled in the same order.
//!
//! Identities, then stores, then listeners, then watch streams, then resumed work. Nothing is
//! announced as ready before all of it serves.

mod audit;
pub(crate) mod backup;
mod bound;
pub(crate) mod connect_failure;
mod data_dir;
mod dir_lock;
mod error;
pub(crate) mod files;
mod identity;
mod limits;
pub(crate) mod policy;
mod process;
mod quotas;
mod ready;
mod reload;
mod replicas;
mod services;
mod serving;
mod usage;
mod watch;

pub(crate) use dir_lock::DirLock;
pub use error::{DataDirError, StartError};
pub use process::{Origin, Process};
pub(crate) use process::{ca_bundle, ca_dir, open_authority, place_of};
pub use ready::{Ready, Replica};
pub(crate) use replicas::Replicas;
pub(crate) use services::migrations;
pub(crate) use serving::CERTIFICATE;
pub use tars_certs::Service;

use bound::Bound;
use services::Listeners;
use std::{
    path::{Path, PathBuf},
    time::Duration,
};
use tars_auth::FirstAdmin;
use tars_certs::{IdentityFiles, SpiffeId, secret};
use tars_runtime::{
    clock::Clock,
    config::{Config, Connect},
    ports,
};
use tokio::net::TcpListener;

/// How long a mesh may take until everything in it is ready.
const READY_LIMIT: Duration = Duration::from_secs(30);

/// A running mesh.
#[derive(Debug)]
pub struct Mesh {
    process: Process,
    /// Where it is, and what a client needs to reach it.
    pub ready: Ready,
}

/// The file with the first administrator's password.
pub fn password_file(data: &Path) -> PathBuf {
    data.join("admin-password")
}

impl Mesh {
    /// Starts all services. Returns once everything serves.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        Self::start_with(config, Clock::system()).await
    }

    /// Starts all services by another clock.
    pub async fn start_with(config: Config, clock: Clock) -> Result<Self, StartError> {
        Self::assemble(config, clock, |_, bound| bound.connect()).await
    }

    /// Starts all services as one replica of several: they call the services of all replicas, which are
    /// where the configuration says.
    pub async fn start_replica(config: Config, clock: Clock) -> Result<Self, StartError> {
        Self::assemble(config, clock, |config, _| Ok(config.connect.clone())).await
    }

    async fn assemble(
        config: Config,
        clock: Clock,
        connect: impl Fn(&Config, &Bound) -> Result<Connect, StartError>,
    ) -> Result<Self, StartError> {
        let process = Process::new(config, clock, Service::ALL).await?;
        let bound = Bound::bind(&process.config().listen, Service::ALL).await?;
        let ready = Ready::new(&bound, &process)?;
        let connect = connect(process.config(), &bound)?;
        run(&process, bound, &connect).await?;
        process.wait_until_ready(READY_LIMIT).await?;
        services::resume(&process).await?;
        Ok(Self { process, ready })
    }

    /// The process that the mesh runs in.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Drains: no new calls, then the end of those in flight, then what is queued for disk.
    pub async fn stop(self) {
        self.process.stop().await;
    }
}

/// Starts one service alone. It finds the others where the configuration says.
pub async fn serve_one(
    config: Config,
    service: Service,
    origin: &Origin,
) -> Result<Process, StartError> {
    let process = Process::alone(config, service, origin).await?;
    let bound = Bound::bind(&process.config().listen, &[service]).await?;
    if process.authority.is_some() {
        operator_identity(&process)?;
    }
    let connect = process.config().connect.clone();
    run(&process, bound, &connect).await?;
    services::resume(&process).await?;
    Ok(process)
}

/// Serves what is bound, Auth first.
async fn run(process: &Process, bound: Bound, connect: &Connect) -> Result<(), StartError> {
    let Bound {
        services,
        admin,
        observe,
        mut bootstrap,
    } = bound;
    for (service, main) in services {
        let bootstrap = bootstrap.take_if(|_| service == Service::Auth);
        let listeners = Listeners { main, bootstrap };
        services::start(process, service, listeners, connect).await?;
    }
    own_ports(process, admin, observe);
    Ok(())
}

fn save_first_admin(process: &Process, first: Option<FirstAdmin>) -> Result<(), StartError> {
    let Some(first) = first else {
        return Ok(());
    };
    let path = password_file(&process.config().data.dir);
    secret::write(&path, first.password.as_bytes()).map_err(|e| StartError::file(&path, e))?;
    tracing::info!(username = first.username, password_file = %path.display(), "first administrator created");
    Ok(())
}

/// Probes and scrapers are answered until everything else has ended.
fn own_ports(process: &Process, admin: TcpListener, observe: TcpListener) {
    let stop = process.work.background_token();
    let pages = process.pages();
    let (readiness, metrics) = (process.readiness(), process.metrics().clone());
    process.watch_checks();
    services::log_serving("admin", &admin);
    services::log_serving("observe", &observe);
    let options = ports::PortOptions {
        metrics: process.listener_metrics.clone(),
        times: process.config().timeouts.clone(),
        places: process.config().ports.clone(),
    };
    let (admin_page, observe_page) = (ports::admin(pages), ports::observe(metrics, readiness));
    process.work.last(ports::serve(
        "admin",
        admin,
        admin_page,
        options.clone(),
        stop.clone(),
    ));
    process.work.last(ports::serve(
        "observe",
        observe,
        observe_page,
        options,
        stop,
    ));
}

/// The SPIFFE path of the identity that a mesh issues to whoever runs it.
pub(crate) const OPERATOR: &str = "/user/operator";

fn operator_identity(process: &Process) -> Result<IdentityFiles, StartError> {
    let config = process.config();
    let files = IdentityFiles::in_dir(&config.data.dir.join("operator"));
    let id = SpiffeId::new(&config.trust.domain, OPERATOR).map_err(StartError::TrustDomain)?;
    let life = Duration::from_secs(config.certificates.operator_life_days * 86_400);
    let request = tars_certs::ca::Request::new(id, life).managed_by_authority();
    process.keep_files(request, &files)?;
    Ok(files)
}
