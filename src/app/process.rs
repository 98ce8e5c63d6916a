//! What all services of one process share: configuration, clock, telemetry, identities, readiness,
//! and the way to stop.

use crate::app::{
    hold::Hold,
    identity::{IdentityManager, IdentityMetrics, JoinSource, Joining, ManagedIdentity},
    policy::PolicyFile,
    service::Service,
    services::Background,
    standing::Standing,
};
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, HashMap},
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tars_certs::{
    Authority, CaError, ClassTable, IdentityError, IdentityFiles, IdentityHandle, SpiffeError,
    SpiffeId, TrustFeed,
    ca::{Lifetimes, Request},
    class::ClassError,
};
use tars_credentials::View;
use tars_interceptors::{authenticate::Failures, contract, metrics::CallMetrics};
use tars_mesh::{
    Channel, ChannelOptions, ConnectionTable, MeshMetrics,
    channel::{Audience, ChannelError},
};
use tars_runtime::{
    clock::{Clock, Monotonic},
    config::Config,
    descriptors,
    health::{Check, Condition, Readiness, Report, State, check},
    listen::ListenerMetrics,
    metrics::Metrics,
    ports::Page,
    trace::{ExporterError, SpanMetrics, Tracer},
};
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// How long a stop waits for Auth to hear of it: Auth may be gone itself.
const LEAVE_LIMIT: Duration = Duration::from_secs(1);
/// The same where Auth is in this process: it stops after that, and answers however busy the machine is.
const LEAVE_LIMIT_BESIDE_AUTH: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("{0}")]
    Contract(String),
    #[error(
        "the data directory {dir} is used by another process: {why}, or name another with --data-dir"
    )]
    Locked { dir: PathBuf, why: &'static str },
    #[error("this process has no identity for {0}")]
    NoIdentity(&'static str),
    #[error("this process has no certificate authority to issue {0} with")]
    NoAuthority(SpiffeId),
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
    Tracer(#[from] ExporterError),
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
    #[error("policy: {0}")]
    Policy(String),
    #[error("cannot join the mesh: {0}")]
    Join(String),
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

/// What a service of this process is to its peers.
pub(crate) struct Member {
    pub(crate) identity: IdentityHandle,
    pub(crate) source: &'static str,
    /// What Auth pushes to this service. Services of one process each have their own: a push that
    /// comes late to one must not take back what another has heard.
    pub(crate) feed: TrustFeed,
}

pub struct Process {
    config: Config,
    clock: Clock,
    metrics: Metrics,
    /// Each service of the process is one in traces.
    tracers: HashMap<Service, Tracer>,
    span_metrics: SpanMetrics,
    /// How the collector of traces is.
    collector: Condition,
    pub(crate) call_metrics: CallMetrics,
    pub(crate) failures: Failures,
    pub(crate) mesh_metrics: MeshMetrics,
    pub(crate) listener_metrics: ListenerMetrics,
    pub(crate) connections: ConnectionTable,
    pub(crate) classes: Arc<ClassTable>,
    pub(crate) policy: PolicyFile,
    pub(crate) authority: Option<Arc<Authority>>,
    identities: IdentityManager,
    members: HashMap<Service, Member>,
    readiness: Mutex<Readiness>,
    /// What the services say of themselves to their peers.
    standings: Mutex<Vec<Standing>>,
    /// Whether the last look at the checks found the process ready.
    ready: watch::Sender<bool>,
    pub(crate) background: Mutex<Background>,
    /// Told to Auth before anything stops serving: nobody is to wait for this process.
    leave: CancellationToken,
    leaving: TaskTracker,
    /// Ends the serving.
    stop: CancellationToken,
    serving: TaskTracker,
    /// Ends what must outlive the serving: audit, watch streams, renewal.
    stop_background: CancellationToken,
    later: TaskTracker,
    _hold: Hold,
}

/// Where the identity of a lone service comes from.
#[derive(Debug)]
pub enum Origin {
    /// The own authority in the data directory; for Auth.
    Authority,
    Files(IdentityFiles),
    /// Auth, for a join token first.
    Join,
}

impl std::fmt::Debug for Process {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Process({})", self.config.data.dir.display())
    }
}

impl Process {
    /// All services, below the built-in authority in the data directory.
    pub(crate) fn new(
        config: Config,
        clock: Clock,
        services: &[Service],
    ) -> Result<Self, StartError> {
        let config = fit_descriptors(config, services);
        let hold = Hold::whole(&config.data.dir)?;
        let mut process = Self::assemble(config, clock, hold)?;
        let authority = Arc::new(open_authority(&process.config, &process.clock)?);
        process.authority = Some(Arc::clone(&authority));
        for service in services {
            let request = workload_request(&process.config, *service)?;
            let feed = TrustFeed::default();
            let revocations = feed.revocations.clone();
            let kept =
                process
                    .identities
                    .by_authority(*service, &authority, request, revocations)?;
            process.admit(*service, kept, feed)?;
        }
        // Auth's own list is the first to know.
        authority.enforce(process.member(Service::Auth)?.feed.revocations.clone());
        Ok(process)
    }

    /// One service.
    pub(crate) async fn alone(
        config: Config,
        service: Service,
        origin: &Origin,
    ) -> Result<Self, StartError> {
        let config = fit_descriptors(config, &[service]);
        let hold = Hold::part(&config.data.dir, service.as_str())?;
        let mut process = Self::assemble(config, Clock::system(), hold)?;
        let own_authority = service == Service::Auth
            && (matches!(origin, Origin::Authority) || Authority::exists(&process.ca_dir()));
        if own_authority {
            let authority = open_authority(&process.config, &process.clock)?;
            process.authority = Some(Arc::new(authority));
        }
        let feed = TrustFeed::default();
        let revocations = feed.revocations.clone();
        if let Some(authority) = &process.authority {
            authority.enforce(revocations.clone());
        }
        let kept = match (origin, &process.authority) {
            (Origin::Files(files), _) => {
                process.identities.by_files(service, files, revocations)?
            }
            (Origin::Authority, Some(authority)) => {
                let request = workload_request(&process.config, service)?;
                process
                    .identities
                    .by_authority(service, authority, request, revocations)?
            }
            _ => process.join(service, &feed).await?,
        };
        process.admit(service, kept, feed)?;
        Ok(process)
    }

    async fn join(
        &self,
        service: Service,
        feed: &TrustFeed,
    ) -> Result<ManagedIdentity, StartError> {
        let joining = Joining {
            file: self.service_dir(service).join("identity.json"),
            bootstrap: self.config.connect.bootstrap.clone(),
            auth: workload_id(&self.config, Service::Auth)?,
            token_file: self.config.certificates.join_token_file.clone(),
            own: workload_id(&self.config, service)?,
            clock: self.clock.clone(),
        };
        let first = joining.start().await?;
        let handle = IdentityHandle::new(first);
        let to_auth = Channel::new(ChannelOptions {
            target: self.config.connect.auth.clone(),
            expected: joining.auth.clone(),
            identity: handle.clone(),
            revocations: feed.revocations.clone(),
            clock: self.clock.clone(),
            table: self.connections.clone(),
            service: service.as_str(),
            audience: Audience::Strangers,
        })?;
        let source = JoinSource::new(joining, &handle.current(), to_auth, feed);
        let revocations = feed.revocations.clone();
        Ok(self
            .identities
            .keep(service.as_str(), handle, source, revocations, |_| {}))
    }

    fn admit(
        &mut self,
        service: Service,
        kept: ManagedIdentity,
        feed: TrustFeed,
    ) -> Result<(), StartError> {
        self.watch_own_leaf(service, &kept.handle);
        let tracer = self.exporting(service.as_str())?;
        self.tracers.insert(service, tracer);
        let member = Member {
            identity: kept.handle,
            source: kept.source,
            feed,
        };
        self.members.insert(service, member);
        self.spawn_background(kept.work);
        Ok(())
    }

    /// A tracer of its own for one name of this process; whoever asks for it ends it.
    pub(crate) fn exporting(&self, name: &str) -> Result<Tracer, ExporterError> {
        let settings = &self.config.telemetry;
        let Some(endpoint) = settings.endpoint() else {
            return Ok(Tracer::disabled());
        };
        let (metrics, collector) = (&self.span_metrics, self.collector.clone());
        Tracer::exporting(name, endpoint, settings, metrics, collector)
    }

    /// What concerns the whole process.
    fn watch_own_work(&self) {
        for why in &self.config.telemetry.ignored {
            tracing::warn!(why, "a variable of OpenTelemetry is ignored");
        }
        if self.config.telemetry.endpoint().is_some() {
            let what = "the collector takes no traces";
            self.add_check("telemetry", self.collector.check(what, Duration::ZERO));
        }
        self.add_check("policy", self.policy.check());
        self.spawn_background(self.policy.clone().follow());
    }

    fn assemble(config: Config, clock: Clock, hold: Hold) -> Result<Self, StartError> {
        contract().map_err(|e| StartError::Contract(e.to_string()))?;
        let rules = config
            .certificates
            .classes
            .iter()
            .map(|r| (r.pattern.as_str(), r.class.as_str()));
        let classes = Arc::new(ClassTable::new(rules)?);
        let metrics = Metrics::default();
        let policy = PolicyFile::open(config.policy.file.as_deref(), &metrics)?;
        let process = Self {
            tracers: HashMap::new(),
            span_metrics: SpanMetrics::new(&metrics),
            collector: Condition::new(clock.clone()),
            call_metrics: CallMetrics::new(&metrics),
            failures: Failures::new(&metrics),
            mesh_metrics: MeshMetrics::new(&metrics),
            listener_metrics: ListenerMetrics::new(&metrics),
            connections: ConnectionTable::default(),
            classes,
            policy,
            authority: None,
            identities: IdentityManager {
                clock: clock.clone(),
                metrics: IdentityMetrics::new(&metrics),
            },
            members: HashMap::new(),
            readiness: Mutex::default(),
            standings: Mutex::default(),
            ready: watch::Sender::new(false),
            background: Mutex::default(),
            leave: CancellationToken::new(),
            leaving: TaskTracker::new(),
            stop: CancellationToken::new(),
            serving: TaskTracker::new(),
            stop_background: CancellationToken::new(),
            later: TaskTracker::new(),
            _hold: hold,
            config,
            clock,
            metrics,
        };
        process.watch_own_work();
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

    pub(crate) fn tracer(&self, service: Service) -> Tracer {
        let known = self.tracers.get(&service).cloned();
        known.unwrap_or_else(Tracer::disabled)
    }

    /// A view of credentials that is as old as the clock says, a machine's sleep included.
    pub(crate) fn view(&self) -> View {
        let clock = self.clock.clone();
        View::with_elapsed(move || clock.monotonic().since(Monotonic::default()))
    }

    pub(crate) fn condition(&self) -> Condition {
        Condition::new(self.clock.clone())
    }

    pub(crate) fn member(&self, service: Service) -> Result<&Member, StartError> {
        let missing = StartError::NoIdentity(service.as_str());
        self.members.get(&service).ok_or(missing)
    }

    /// A channel from one service of this process to another.
    pub(crate) fn channel(
        &self,
        from: Service,
        to: Service,
        target: &str,
    ) -> Result<Channel, StartError> {
        let member = self.member(from)?;
        let options = ChannelOptions {
            target: target.to_owned(),
            expected: workload_id(&self.config, to)?,
            identity: member.identity.clone(),
            revocations: member.feed.revocations.clone(),
            clock: self.clock.clone(),
            table: self.connections.clone(),
            service: from.as_str(),
            audience: Audience::Strangers,
        };
        Ok(Channel::new(options)?)
    }

    pub(crate) fn service_dir(&self, service: Service) -> PathBuf {
        self.config.data.dir.join(service.as_str())
    }

    fn ca_dir(&self) -> PathBuf {
        ca_dir(&self.config)
    }

    /// Writes an identity as files, and keeps them fresh.
    pub(crate) fn keep_files(
        &self,
        request: Request,
        files: &IdentityFiles,
    ) -> Result<(), StartError> {
        let Some(authority) = &self.authority else {
            return Err(StartError::NoAuthority(request.id));
        };
        let revocations = self.member(Service::Auth)?.feed.revocations.clone();
        let kept = self
            .identities
            .written_out(authority, request, files.clone(), revocations)?;
        self.spawn_background(kept.work);
        Ok(())
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

    pub(crate) fn leave_token(&self) -> CancellationToken {
        self.leave.clone()
    }

    /// Work that takes leave of Auth when the process stops, and may go on until the serving has ended.
    pub(crate) fn spawn_leaving(&self, work: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop_background.clone();
        self.leaving.spawn(async move {
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

    pub(crate) fn add_standing(&self, standing: Standing) {
        self.standings.lock().push(standing);
    }

    /// Looks at every check from now on. What a look finds is what the services tell their peers.
    pub(crate) fn watch_checks(&self) {
        let (standings, ready) = (self.standings.lock().clone(), self.ready.clone());
        let tell = move |report: &Report| {
            for standing in &standings {
                standing.take(report);
            }
            ready.send_replace(report.ready);
        };
        let (metrics, clock) = (self.metrics.clone(), self.clock.clone());
        self.spawn_background(self.readiness().watch(metrics, clock, tell));
    }

    fn watch_own_leaf(&self, service: Service, handle: &IdentityHandle) {
        let (handle, clock) = (handle.clone(), self.clock.clone());
        let look = move || match (handle.problem(clock.now()), handle.health().last_error) {
            (Some(problem), _) => State::Failed(problem),
            (None, Some(why)) => State::Degraded(format!("renewal fails: {why}")),
            (None, None) => State::Ok,
        };
        self.add_check(&format!("{}.certificate", service.as_str()), check(look));
    }

    /// The admin port's pages.
    pub(crate) fn pages(&self) -> BTreeMap<&'static str, Page> {
        let config = self.config.clone();
        let (connections, policy) = (self.connections.clone(), self.policy.clone());
        let members: Vec<_> = self
            .members
            .iter()
            .map(|(s, m)| (*s, m.source, m.identity.clone(), m.feed.clone()))
            .collect();
        let certs: Page = Arc::new(move || {
            let rows: Vec<_> = members
                .iter()
                .map(|(service, source, handle, feed)| describe(*service, source, handle, feed))
                .collect();
            json!({ "certificates": rows })
        });
        BTreeMap::from([
            ("certs", certs),
            ("policy", Arc::new(move || policy.report()) as Page),
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

    /// One page of the admin port.
    pub fn admin_page(&self, name: &str) -> Option<Value> {
        self.pages().get(name).map(|page| page())
    }

    /// The open connections of this process, as the admin port shows them.
    pub fn connections(&self) -> Value {
        self.connections.report()
    }

    /// Waits until a look finds the process ready, and the services have been told.
    pub(crate) async fn wait_until_ready(&self, most: Duration) -> Result<(), StartError> {
        let mut ready = self.ready.subscribe();
        let told = ready.wait_for(|ready| *ready);
        if let Ok(Ok(_)) = tokio::time::timeout(most, told).await {
            return Ok(());
        }
        let report = self.readiness().report().await;
        Err(StartError::NotReady(format!("{:?}", report.checks)))
    }

    fn leave_limit(&self) -> Duration {
        match self.members.contains_key(&Service::Auth) {
            true => LEAVE_LIMIT_BESIDE_AUTH,
            false => LEAVE_LIMIT,
        }
    }

    /// Nothing stops before what takes leave of Auth has ended, or its time.
    async fn take_leave(&self) {
        self.leave.cancel();
        self.leaving.close();
        if tokio::time::timeout(self.leave_limit(), self.leaving.wait())
            .await
            .is_err()
        {
            tracing::debug!("Auth was not told in time that this process stops");
        }
    }

    pub async fn stop(self) {
        self.take_leave().await;
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
        let tracers = self.tracers.into_values();
        let ending = tracers.map(|t| tokio::task::spawn_blocking(move || t.shutdown()));
        for ended in ending.collect::<Vec<_>>() {
            if ended.await.is_err() {
                tracing::warn!("a tracer's shutdown failed");
            }
        }
    }
}

/// Gives the listeners no more connections than the process can have files open.
fn fit_descriptors(mut config: Config, services: &[Service]) -> Config {
    let gateway = services.contains(&Service::Gateway);
    let bootstrap = services.contains(&Service::Auth) && config.listen.bootstrap.is_some();
    let listeners = descriptors::Listeners {
        mesh: services.len() - usize::from(gateway) + usize::from(bootstrap),
        gateway,
    };
    let lowered = descriptors::fit(&mut config, listeners, descriptors::raise_limit());
    if let Some(lowered) = lowered {
        tracing::warn!("{lowered}");
    }
    config
}

/// One line of the admin port's `/certs`.
fn describe(service: Service, source: &str, handle: &IdentityHandle, feed: &TrustFeed) -> Value {
    let (identity, health) = (handle.current(), handle.health());
    let leaf = identity.leaf();
    let roots: Vec<String> = identity
        .trust()
        .root_keys()
        .map(|k| k.to_string())
        .collect();
    json!({
        "service": service.as_str(),
        "source": source,
        "spiffe_id": leaf.id.to_string(),
        "serial": leaf.serial.as_str(),
        "issuer": identity.verified().name().issuer.to_string(),
        "root": identity.verified().anchor.to_string(),
        "not_before": leaf.not_before.as_secs(),
        "not_after": leaf.not_after.as_secs(),
        "trusted_roots": roots,
        "revocations": feed.revocations.current().len(),
        "revoked": health.revoked,
        "failures": health.failures,
        "last_error": health.last_error,
    })
}

pub(crate) fn ca_dir(config: &Config) -> PathBuf {
    config.data.dir.join("ca")
}

/// What the authority of a data directory trusts, as PEM.
pub(crate) fn ca_bundle(data: &Path) -> PathBuf {
    Authority::bundle_in(&data.join("ca"))
}

pub(crate) fn open_authority(config: &Config, clock: &Clock) -> Result<Authority, CaError> {
    let day = Duration::from_secs(86_400);
    let days = |n: u64| day * u32::try_from(n).unwrap_or(u32::MAX);
    let lives = Lifetimes {
        root: days(config.certificates.root_life_days),
        intermediate: days(config.certificates.intermediate_life_days),
    };
    Authority::open_or_init(&ca_dir(config), &config.trust.domain, lives, clock.now())
}

pub(crate) fn workload_id(config: &Config, service: Service) -> Result<SpiffeId, StartError> {
    let path = config.trust.path_of(service.as_str());
    SpiffeId::new(&config.trust.domain, &path).map_err(StartError::TrustDomain)
}

fn workload_request(config: &Config, service: Service) -> Result<Request, StartError> {
    let life = Duration::from_secs(config.certificates.leaf_life_seconds);
    let name = service.as_str();
    let mut request = Request::new(workload_id(config, service)?, life)
        .with_local_names()
        .managed_by_authority();
    request.dns.push(name.to_owned());
    let suffixes = &config.certificates.dns_suffixes;
    request
        .dns
        .extend(suffixes.iter().map(|s| format!("{name}{s}")));
    Ok(request)
}
