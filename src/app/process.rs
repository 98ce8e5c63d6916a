//! What all services of one process share: configuration, clock, telemetry, identities, readiness,
//! and the way to stop.

use crate::app::services::{Background, Service};
use parking_lot::Mutex;
use serde_json::json;
use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tars_certs::{
    Authority, CaError, ClassTable, Identity, IdentityError, IdentityHandle, SpiffeError, SpiffeId,
    ca::{IdentityFiles, Lives, Request},
    class::ClassError,
    identity, secret,
};
use tars_interceptors::{authenticate::Failures, contract, metrics::CallMetrics};
use tars_mesh::{Channel, ChannelOptions, ConnectionTable, MeshMetrics, channel::ChannelError};
use tars_runtime::{
    clock::Clock,
    config::Config,
    metrics::Metrics,
    ports::{Check, Page, Readiness},
    trace::Tracer,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("{0}")]
    Contract(String),
    #[error("the data directory {0} is used by another process")]
    Locked(PathBuf),
    #[error("{path}: {source}")]
    File { path: PathBuf, source: io::Error },
    #[error("certificates: {0}")]
    Ca(#[from] CaError),
    #[error("identity: {0}")]
    Identity(#[from] IdentityError),
    #[error("trust domain: {0}")]
    TrustDomain(SpiffeError),
    #[error("certificates.classes: {0}")]
    Classes(#[from] ClassError),
    #[error("traces: {0}")]
    Tracer(#[from] tars_runtime::trace::ExporterError),
    #[error("cannot listen:\n  - {}", .0.join("\n  - "))]
    Bind(Vec<String>),
    #[error("auth: {0}")]
    Auth(#[from] tars_auth::AuthError),
    #[error("orchestration: {0}")]
    Orchestration(#[from] tars_orchestration::OrchestrationError),
    #[error("automl: {0}")]
    Automl(#[from] tars_automl::AutomlError),
    #[error("hypersync: {0}")]
    Hypersync(#[from] tars_hypersync::HyperSyncError),
    #[error("gateway: {0}")]
    Gateway(String),
    #[error(transparent)]
    Channel(#[from] ChannelError),
    #[error("reflection: {0}")]
    Reflection(String),
    #[error("not ready in time: {0}")]
    NotReady(String),
}

impl StartError {
    pub(crate) fn file(path: &Path, source: io::Error) -> Self {
        Self::File {
            path: path.to_owned(),
            source,
        }
    }
}

pub struct Process {
    config: Config,
    clock: Clock,
    metrics: Metrics,
    tracer: Tracer,
    pub(crate) call_metrics: CallMetrics,
    pub(crate) failures: Failures,
    pub(crate) mesh_metrics: MeshMetrics,
    pub(crate) connections: ConnectionTable,
    pub(crate) classes: Arc<ClassTable>,
    authority: Option<Arc<Authority>>,
    identities: HashMap<Service, IdentityHandle>,
    readiness: Mutex<Readiness>,
    pub(crate) background: Mutex<Background>,
    /// Ends the serving.
    stop: CancellationToken,
    serving: TaskTracker,
    /// Ends what must outlive the serving: audit, watch streams, renewal.
    stop_background: CancellationToken,
    later: TaskTracker,
    _lock: File,
}

impl std::fmt::Debug for Process {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Process({})", self.config.data.dir.display())
    }
}

impl Process {
    /// With the built-in authority in the data directory.
    pub(crate) fn new(config: Config, services: &[Service]) -> Result<Self, StartError> {
        let lock = lock(&config.data.dir)?;
        let clock = Clock::system();
        let authority = Arc::new(open_authority(&config, &clock)?);
        let time: Arc<dyn rustls::time_provider::TimeProvider> = Arc::new(clock.clone());
        let mut identities = HashMap::new();
        let mut renewals = Vec::new();
        for service in services {
            let request = workload_request(&config, *service)?;
            let handle = IdentityHandle::new(identity::issue(&authority, &request, &time)?);
            renewals.push((handle.clone(), request));
            identities.insert(*service, handle);
        }
        let process = Self::assemble(
            config,
            clock,
            Some(Arc::clone(&authority)),
            identities,
            lock,
        )?;
        for (handle, request) in renewals {
            let work =
                identity::keep_fresh(handle, Arc::clone(&authority), request, Arc::clone(&time));
            process.spawn_background(work);
        }
        Ok(process)
    }

    /// With one identity from files.
    pub(crate) fn with_identity(
        config: Config,
        service: Service,
        files: &IdentityFiles,
    ) -> Result<Self, StartError> {
        let dir = config.data.dir.join(service.as_str());
        let lock = lock(&dir)?;
        let clock = Clock::system();
        let time: Arc<dyn rustls::time_provider::TimeProvider> = Arc::new(clock.clone());
        let identity = Identity::from_files(files, &time)?;
        let identities = HashMap::from([(service, IdentityHandle::new(identity))]);
        Self::assemble(config, clock, None, identities, lock)
    }

    fn assemble(
        config: Config,
        clock: Clock,
        authority: Option<Arc<Authority>>,
        identities: HashMap<Service, IdentityHandle>,
        lock: File,
    ) -> Result<Self, StartError> {
        contract().map_err(|e| StartError::Contract(e.to_string()))?;
        let rules = config
            .certificates
            .classes
            .iter()
            .map(|r| (r.pattern.as_str(), r.class.as_str()));
        let classes = Arc::new(ClassTable::new(rules)?);
        let tracer = match &config.telemetry.otlp_endpoint {
            Some(endpoint) => Tracer::exporting("tars", endpoint, config.telemetry.sample_ratio)?,
            None => Tracer::disabled(),
        };
        let metrics = Metrics::default();
        let process = Self {
            call_metrics: CallMetrics::new(&metrics),
            failures: Failures::new(&metrics),
            mesh_metrics: MeshMetrics::new(&metrics),
            connections: ConnectionTable::default(),
            classes,
            authority,
            identities,
            readiness: Mutex::default(),
            background: Mutex::default(),
            stop: CancellationToken::new(),
            serving: TaskTracker::new(),
            stop_background: CancellationToken::new(),
            later: TaskTracker::new(),
            _lock: lock,
            config,
            clock,
            metrics,
            tracer,
        };
        process.watch_own_leaves();
        Ok(process)
    }

    pub fn config(&self) -> &Config {
        &self.config
    }

    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    pub(crate) fn tracer(&self) -> &Tracer {
        &self.tracer
    }

    pub(crate) fn identity(&self, service: Service) -> Result<IdentityHandle, StartError> {
        let missing = || {
            StartError::Gateway(format!(
                "this process has no identity for {}",
                service.as_str()
            ))
        };
        self.identities.get(&service).cloned().ok_or_else(missing)
    }

    /// A channel from one service of this process to another.
    pub(crate) fn channel(
        &self,
        from: Service,
        to: Service,
        target: &str,
    ) -> Result<Channel, StartError> {
        let options = ChannelOptions {
            target: target.to_owned(),
            expected: workload_id(&self.config, to)?,
            identity: self.identity(from)?,
            clock: self.clock.clone(),
        };
        Ok(Channel::new(options)?)
    }

    pub(crate) fn service_dir(&self, service: Service) -> PathBuf {
        self.config.data.dir.join(service.as_str())
    }

    pub(crate) fn issue_files(
        &self,
        request: &Request,
        files: &IdentityFiles,
    ) -> Result<(), StartError> {
        let Some(authority) = &self.authority else {
            return Err(StartError::Gateway(
                "this process has no certificate authority".to_owned(),
            ));
        };
        let issued = authority.issue(request, self.clock.now())?;
        Ok(files.save(&issued, authority.root_pem())?)
    }

    pub(crate) fn stop_token(&self) -> CancellationToken {
        self.stop.clone()
    }

    pub(crate) fn background_token(&self) -> CancellationToken {
        self.stop_background.clone()
    }

    /// Work that a stop waits for.
    pub(crate) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.serving.spawn(work);
    }

    /// Work that goes on until the serving has ended, and is then dropped.
    pub(crate) fn spawn_background(&self, work: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop_background.clone();
        self.later.spawn(async move {
            tokio::select! {
                () = work => {}
                () = stop.cancelled() => {}
            }
        });
    }

    /// Work that ends by itself once the background stops, and is waited for.
    pub(crate) fn spawn_last(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.later.spawn(work);
    }

    pub(crate) fn add_check(&self, name: &str, check: Check) {
        self.readiness.lock().add(name, check);
    }

    pub(crate) fn readiness(&self) -> Readiness {
        self.readiness.lock().clone()
    }

    fn watch_own_leaves(&self) {
        for (service, handle) in &self.identities {
            let (handle, clock) = (handle.clone(), self.clock.clone());
            let check: Check = Arc::new(move || {
                let left = handle
                    .current()
                    .leaf()
                    .not_after
                    .saturating_sub(clock.now());
                let fresh = if left.is_zero() {
                    Err("the own certificate has expired".to_owned())
                } else {
                    Ok(())
                };
                Box::pin(async move { fresh })
            });
            self.add_check(&format!("{}.certificate", service.as_str()), check);
        }
    }

    /// The admin port's pages.
    pub(crate) fn pages(&self) -> BTreeMap<&'static str, Page> {
        let config = self.config.clone();
        let connections = self.connections.clone();
        let identities: Vec<(Service, IdentityHandle)> = self
            .identities
            .iter()
            .map(|(s, h)| (*s, h.clone()))
            .collect();
        let certs: Page = Arc::new(move || {
            let rows: Vec<_> = identities
                .iter()
                .map(|(service, handle)| {
                    let leaf = handle.current().leaf().clone();
                    json!({
                        "service": service.as_str(),
                        "spiffe_id": leaf.id.to_string(),
                        "serial": leaf.serial,
                        "not_before": leaf.not_before.as_secs(),
                        "not_after": leaf.not_after.as_secs(),
                    })
                })
                .collect();
            json!({ "certificates": rows })
        });
        let policy: Page = Arc::new(|| {
            let rows: Vec<_> = contract()
                .into_iter()
                .flat_map(|table| table.iter())
                .map(|m| json!({ "method": m.path, "peers": m.rule.peers, "principal": format!("{:?}", m.rule.principal) }))
                .collect();
            json!({ "methods": rows })
        });
        BTreeMap::from([
            ("certs", certs),
            ("policy", policy),
            (
                "connections",
                Arc::new(move || connections.report()) as Page,
            ),
            (
                "config",
                Arc::new(move || serde_json::to_value(&config).unwrap_or_default()) as Page,
            ),
        ])
    }

    /// Looks at readiness until it holds.
    pub(crate) async fn wait_until_ready(&self, most: Duration) -> Result<(), StartError> {
        let readiness = self.readiness();
        let deadline = tokio::time::Instant::now() + most;
        loop {
            let (ready, report) = readiness.report().await;
            if ready {
                return Ok(());
            }
            if tokio::time::Instant::now() > deadline {
                return Err(StartError::NotReady(report.to_string()));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub async fn stop(self) {
        self.stop.cancel();
        self.serving.close();
        self.serving.wait().await;
        self.background.lock().drop_queues();
        self.stop_background.cancel();
        self.later.close();
        if tokio::time::timeout(Duration::from_secs(10), self.later.wait())
            .await
            .is_err()
        {
            tracing::warn!("background work did not end in time");
        }
        let tracer = self.tracer.clone();
        if tokio::task::spawn_blocking(move || tracer.shutdown())
            .await
            .is_err()
        {
            tracing::warn!("the tracer's shutdown failed");
        }
    }
}

/// One process a data directory.
fn lock(dir: &Path) -> Result<File, StartError> {
    secret::create_dir(dir).map_err(|e| StartError::file(dir, e))?;
    let path = dir.join("lock");
    let file = File::create(&path).map_err(|e| StartError::file(&path, e))?;
    file.try_lock()
        .map_err(|_| StartError::Locked(dir.to_owned()))?;
    Ok(file)
}

pub(crate) fn open_authority(config: &Config, clock: &Clock) -> Result<Authority, CaError> {
    let day = Duration::from_secs(86_400);
    let days = |n: u64| day * u32::try_from(n).unwrap_or(u32::MAX);
    let lives = Lives {
        root: days(config.certificates.root_life_days),
        intermediate: days(config.certificates.intermediate_life_days),
    };
    Authority::open_or_init(
        &config.data.dir.join("ca"),
        &config.trust.domain,
        lives,
        clock.now(),
    )
}

pub(crate) fn workload_id(config: &Config, service: Service) -> Result<SpiffeId, StartError> {
    SpiffeId::new(&config.trust.domain, &format!("/{}", service.as_str()))
        .map_err(StartError::TrustDomain)
}

fn workload_request(config: &Config, service: Service) -> Result<Request, StartError> {
    Ok(Request {
        id: workload_id(config, service)?,
        dns: vec!["localhost".to_owned(), service.as_str().to_owned()],
        ips: vec![[127, 0, 0, 1].into(), std::net::Ipv6Addr::LOCALHOST.into()],
        life: Duration::from_secs(config.certificates.leaf_life_seconds),
    })
}
