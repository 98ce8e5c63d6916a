//! The mesh in one process, or one service of it: the same parts, put together in the same order.
//!
//! Identities, then stores, then listeners, then watch streams, then resumed work. Nothing is
//! announced as ready before all of it serves.

mod audit;
mod hold;
mod identity;
pub(crate) mod policy;
mod process;
mod ready;
mod service;
mod services;
mod standing;
pub(crate) mod trouble;
mod watch;

pub(crate) use hold::Hold;
pub use process::{Origin, Process, StartError};
pub(crate) use process::{ca_bundle, ca_dir, open_authority};
pub use ready::Ready;
pub(crate) use standing::CERTIFICATE;

use crate::app::{service::Service, services::Endpoints};
use std::{
    path::{Path, PathBuf},
    time::Duration,
};
use tars_auth::FirstAdmin;
use tars_certs::{IdentityFiles, SpiffeId, secret};
use tars_runtime::{clock::Clock, config::Config, ports};
use tokio::net::TcpListener;

/// A running mesh.
#[derive(Debug)]
pub struct Mesh {
    process: Process,
    pub ready: Ready,
}

/// Where the first administrator's password is.
pub fn password_file(data: &Path) -> PathBuf {
    data.join("admin-password")
}

impl Mesh {
    /// Starts all services. Returns once everything serves.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        Self::start_with(config, Clock::system()).await
    }

    /// The same by another clock.
    pub async fn start_with(config: Config, clock: Clock) -> Result<Self, StartError> {
        let process = Process::new(config, clock, Service::ALL)?;
        let listeners = Listeners::bind(&process).await?;
        let ready = listeners.ready(&process)?;
        let endpoints = Endpoints::from_ready(&ready);
        let Listeners {
            auth,
            orchestration,
            automl,
            hypersync,
            gateway,
            admin,
            observe,
            bootstrap,
        } = listeners;
        let first = services::auth(&process, auth, bootstrap).await?;
        save_first_admin(&process, first)?;
        services::orchestration(&process, orchestration, &endpoints).await?;
        services::automl(&process, automl, &endpoints).await?;
        services::hypersync(&process, hypersync, &endpoints).await?;
        services::gateway(&process, gateway, &endpoints).await?;
        own_ports(&process, admin, observe);
        process.wait_until_ready(Duration::from_secs(30)).await?;
        services::resume(&process).await?;
        Ok(Self { process, ready })
    }

    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Drains: no new calls, then the end of those in flight, then what is queued for disk.
    pub async fn stop(self) {
        self.process.stop().await;
    }
}

/// One service alone.
pub async fn serve_one(
    config: Config,
    service: Service,
    origin: &Origin,
) -> Result<Process, StartError> {
    let endpoints = Endpoints::from_config(&config);
    let process = Process::alone(config, service, origin).await?;
    let listen = process.config().listen.clone();
    let mut binder = Binder::default();
    let main = binder.bind(service.listen(&listen), service.as_str()).await;
    let admin = binder.bind(listen.admin, "admin").await;
    let observe = binder.bind(listen.observe, "observe").await;
    let bootstrap = match listen.bootstrap.filter(|_| service == Service::Auth) {
        Some(addr) => binder.bind(addr, "bootstrap").await,
        None => None,
    };
    binder.finish()?;
    let (Some(main), Some(admin), Some(observe)) = (main, admin, observe) else {
        return Err(StartError::Bind(Vec::new()));
    };
    match service {
        Service::Auth => {
            if process.authority.is_some() {
                operator_identity(&process)?;
            }
            let first = services::auth(&process, main, bootstrap).await?;
            save_first_admin(&process, first)?;
        }
        Service::Orchestration => services::orchestration(&process, main, &endpoints).await?,
        Service::Automl => services::automl(&process, main, &endpoints).await?,
        Service::Hypersync => services::hypersync(&process, main, &endpoints).await?,
        Service::Gateway => services::gateway(&process, main, &endpoints).await?,
    }
    own_ports(&process, admin, observe);
    services::resume(&process).await?;
    Ok(process)
}

pub use service::Service as ServiceName;

fn save_first_admin(process: &Process, first: Option<FirstAdmin>) -> Result<(), StartError> {
    let Some(first) = first else {
        return Ok(());
    };
    let path = password_file(&process.config().data.dir);
    secret::write(&path, first.password.as_bytes()).map_err(|e| StartError::file(&path, e))?;
    tracing::info!(username = first.username, password_file = %path.display(), "first administrator created");
    Ok(())
}

fn own_ports(process: &Process, admin: TcpListener, observe: TcpListener) {
    let stop = process.stop_token();
    let pages = process.pages();
    let (readiness, metrics) = (process.readiness(), process.metrics().clone());
    process.watch_checks();
    services::say_serving("admin", &admin);
    services::say_serving("observe", &observe);
    let options = ports::PortOptions {
        metrics: process.listener_metrics.clone(),
        times: process.config().timeouts.clone(),
        places: process.config().ports.clone(),
    };
    let (admin_page, observe_page) = (ports::admin(pages), ports::observe(metrics, readiness));
    process.spawn(ports::serve(
        "admin",
        admin,
        admin_page,
        options.clone(),
        stop.clone(),
    ));
    process.spawn(ports::serve(
        "observe",
        observe,
        observe_page,
        options,
        stop,
    ));
}

/// Binds ports and remembers what went wrong, so that all of it is told at once.
#[derive(Default)]
struct Binder {
    failed: Vec<String>,
}

impl Binder {
    async fn bind(&mut self, addr: std::net::SocketAddr, what: &str) -> Option<TcpListener> {
        match TcpListener::bind(addr).await {
            Ok(listener) => Some(listener),
            Err(e) => {
                self.failed.push(format!("{what}: {addr}: {e}"));
                None
            }
        }
    }

    fn finish(self) -> Result<(), StartError> {
        if self.failed.is_empty() {
            Ok(())
        } else {
            Err(StartError::Bind(self.failed))
        }
    }
}

struct Listeners {
    auth: TcpListener,
    orchestration: TcpListener,
    automl: TcpListener,
    hypersync: TcpListener,
    gateway: TcpListener,
    admin: TcpListener,
    observe: TcpListener,
    bootstrap: Option<TcpListener>,
}

impl Listeners {
    async fn bind(process: &Process) -> Result<Self, StartError> {
        let listen = &process.config().listen;
        let mut binder = Binder::default();
        let auth = binder.bind(listen.auth, "auth").await;
        let orchestration = binder.bind(listen.orchestration, "orchestration").await;
        let automl = binder.bind(listen.automl, "automl").await;
        let hypersync = binder.bind(listen.hypersync, "hypersync").await;
        let gateway = binder.bind(listen.gateway, "gateway").await;
        let admin = binder.bind(listen.admin, "admin").await;
        let observe = binder.bind(listen.observe, "observe").await;
        let bootstrap = match listen.bootstrap {
            Some(addr) => binder.bind(addr, "bootstrap").await,
            None => None,
        };
        binder.finish()?;
        let all = (
            auth,
            orchestration,
            automl,
            hypersync,
            gateway,
            admin,
            observe,
        );
        let (
            Some(auth),
            Some(orchestration),
            Some(automl),
            Some(hypersync),
            Some(gateway),
            Some(admin),
            Some(observe),
        ) = all
        else {
            return Err(StartError::Bind(Vec::new()));
        };
        Ok(Self {
            auth,
            orchestration,
            automl,
            hypersync,
            gateway,
            admin,
            observe,
            bootstrap,
        })
    }

    /// What a user needs to reach the mesh, with an operator identity made for it.
    fn ready(&self, process: &Process) -> Result<Ready, StartError> {
        let files = operator_identity(process)?;
        let at = |listener: &TcpListener, scheme: &str| -> Result<String, StartError> {
            let addr = listener
                .local_addr()
                .map_err(|e| StartError::Bind(vec![e.to_string()]))?;
            Ok(format!("{scheme}://{addr}"))
        };
        Ok(Ready {
            auth: at(&self.auth, "https")?,
            orchestration: at(&self.orchestration, "https")?,
            automl: at(&self.automl, "https")?,
            hypersync: at(&self.hypersync, "https")?,
            gateway: at(&self.gateway, "http")?,
            admin: at(&self.admin, "http")?,
            observe: at(&self.observe, "http")?,
            bootstrap: self
                .bootstrap
                .as_ref()
                .map(|l| at(l, "https"))
                .transpose()?,
            ca: files.ca,
            client_cert: files.cert,
            client_key: files.key,
            admin_user: "admin".to_owned(),
            admin_password_file: password_file(&process.config().data.dir),
            trust_domain: process.config().trust.domain.clone(),
        })
    }
}

/// Whoever runs the mesh: the identity that it writes itself.
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
