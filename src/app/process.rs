//! What all services of one process share: configuration, clock, telemetry, identities, readiness,
//! and the way to stop.

mod authority;
mod members;
mod pages;
mod work;

pub(crate) use authority::{ca_bundle, ca_dir, open_authority, workload_id};
pub use members::Origin;

use crate::app::{
    Service, StartError,
    dir_lock::DirLock,
    files::RuleFiles,
    identity::{IdentityManager, IdentityMetrics},
    limits::Limiting,
    policy::PolicyFile,
    quotas::QuotaFile,
    serving::HealthReporter,
};
use members::Member;
use parking_lot::Mutex;
use std::{collections::HashMap, path::PathBuf, sync::Arc, time::Duration};
use tars_auth::Vault;
use tars_certs::{Authority, ClassTable};
use tars_credentials::View;
use tars_interceptors::{
    authenticate::Failures,
    contract,
    limits::RateLimiter,
    metrics::CallMetrics,
    overload::Overload,
    usage::{Usage, UsageMetrics},
};
use tars_mesh::{
    Channel, ChannelMetrics, ChannelOptions, ConnectionTable, MeshMetrics, channel::Audience,
};
use tars_runtime::{
    audit::Record,
    bus::{self, Bus},
    clock::{Clock, Monotonic},
    config::{Config, Connect},
    db::{DbError, Place},
    health::{self, Check, Condition, Readiness, Report, State},
    listen::ListenerMetrics,
    metrics::Metrics,
    seeds::Seeds,
    trace::{ExporterError, SpanMetrics, Tracer},
};
use tokio::sync::{mpsc, watch};
use work::{Pace, Resume, Work};

/// How long a stop waits until Auth knows of it. Auth may be gone itself.
const LEAVE_LIMIT: Duration = Duration::from_secs(1);
/// The same where Auth is in this process. It stops afterwards, and answers even on a busy machine.
const LEAVE_LIMIT_BESIDE_AUTH: Duration = Duration::from_secs(10);

/// Where a configuration puts the database of a service.
pub(crate) fn place_of(config: &Config, service: Service) -> Result<Place, DbError> {
    let name = service.as_str();
    let file = config.data.dir.join(name).join(format!("{name}.db"));
    Place::of(&config.database, name, file)
}

/// The tasks of the runtime that the process was started in.
fn count_tasks(metrics: &Metrics) {
    let runtime = tokio::runtime::Handle::current();
    metrics.measure(
        "runtime_tasks",
        "Tasks of the runtime that are alive",
        "process",
        move || Some(runtime.metrics().num_alive_tasks() as f64),
    );
}

/// The Redis server that a configuration names.
fn redis(config: &Config) -> Result<Option<bus::Server>, StartError> {
    let password = std::env::var(bus::PASSWORD_VARIABLE).ok();
    Ok(bus::Server::of(&config.redis, password)?)
}

/// A process of the mesh.
pub struct Process {
    config: Config,
    clock: Clock,
    metrics: Metrics,
    span_metrics: SpanMetrics,
    /// Whether the collector of traces takes them.
    collector: Condition,
    bus: Bus,
    pub(crate) call_metrics: CallMetrics,
    pub(crate) failures: Failures,
    pub(crate) mesh_metrics: MeshMetrics,
    pub(crate) channel_metrics: ChannelMetrics,
    pub(crate) listener_metrics: ListenerMetrics,
    pub(crate) connections: ConnectionTable,
    pub(crate) classes: Arc<ClassTable>,
    pub(crate) policy: PolicyFile,
    /// What every service of this process charges calls to.
    pub(crate) limiter: RateLimiter,
    /// What every service of this process counts its calls in flight by.
    pub(crate) overload: Overload,
    quotas: QuotaFile,
    usage_metrics: UsageMetrics,
    pub(crate) authority: Option<Arc<Authority>>,
    /// Auth's database, in a process that has Auth.
    vault: Option<Vault>,
    identities: IdentityManager,
    members: HashMap<Service, Member>,
    readiness: Mutex<Readiness>,
    /// Report to each service's peers whether it serves.
    reporters: Mutex<Vec<HealthReporter>>,
    /// Whether the process was ready when its checks last ran.
    ready: watch::Sender<bool>,
    /// What each service continues once everything serves.
    pub(crate) unfinished: Mutex<Vec<Resume>>,
    /// The queues of the audit writers, which end with their last sender.
    pub(crate) audit_queues: Mutex<Vec<mpsc::Sender<Record>>>,
    pub(crate) work: Work,
    _lock: DirLock,
}

impl std::fmt::Debug for Process {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Process({})", self.config.data.dir.display())
    }
}

impl Process {
    /// A tracer of its own for one name of this process. The caller shuts it down.
    pub(crate) fn exporting(&self, name: &str) -> Result<Tracer, ExporterError> {
        let settings = &self.config.telemetry;
        let Some(endpoint) = settings.endpoint() else {
            return Ok(Tracer::disabled());
        };
        let (metrics, collector) = (&self.span_metrics, self.collector.clone());
        Tracer::exporting(name, endpoint, settings, metrics, collector)
    }

    /// Starts the checks and the work of the process itself.
    fn watch_own_work(&self) {
        for why in &self.config.telemetry.ignored {
            tracing::warn!(why, "a variable of OpenTelemetry is ignored");
        }
        if self.config.telemetry.endpoint().is_some() {
            let what = "the collector takes no traces";
            self.add_check("telemetry", self.collector.check(what, Duration::ZERO));
        }
        self.add_check("policy", self.policy.check());
        self.add_check("stop", self.stopping());
        self.work.background(self.policy.clone().follow());
        self.add_check("quotas", self.quotas.check());
        self.work.background(self.quotas.clone().follow());
    }

    fn assemble(
        config: Config,
        clock: Clock,
        lock: DirLock,
        services: &[Service],
        files: RuleFiles,
    ) -> Result<Self, StartError> {
        contract().map_err(|e| StartError::Contract(e.to_string()))?;
        let classes = Arc::new(config.certificates.class_table()?);
        let metrics = Metrics::default();
        count_tasks(&metrics);
        let path = config.policy.file.as_deref();
        let policy = PolicyFile::new(path, files.policy, &metrics);
        let quotas = QuotaFile::new(&config.quotas, files.quotas, &metrics);
        let server = redis(&config)?;
        let group = services
            .iter()
            .map(|s| s.as_str())
            .collect::<Vec<_>>()
            .join("+");
        // The gateway charges nothing: whom it calls does.
        let charging = |s: &&Service| **s != Service::Gateway;
        let counts = services.iter().any(|s| charging(&s));
        // Each service that is not here may be a process of its own.
        let elsewhere = Service::ALL.iter().filter(charging);
        let elsewhere = elsewhere.filter(|s| !services.contains(s)).count();
        let groups = u32::try_from(1 + elsewhere).unwrap_or(u32::MAX);
        let limiting = Limiting::new(
            &config.limits,
            files.limits,
            Arc::clone(&classes),
            counts.then(|| server.clone()).flatten(),
            (group, groups),
            &clock,
            &metrics,
        );
        let mut process = Self {
            span_metrics: SpanMetrics::new(&metrics),
            collector: Condition::new(clock.clone()),
            bus: Bus::local(),
            call_metrics: CallMetrics::new(&metrics),
            failures: Failures::new(&metrics),
            mesh_metrics: MeshMetrics::new(&metrics),
            channel_metrics: ChannelMetrics::new(&metrics),
            listener_metrics: ListenerMetrics::new(&metrics),
            connections: ConnectionTable::default(),
            classes,
            policy,
            limiter: limiting.limiter.clone(),
            overload: Overload::new(&config.overload, &metrics),
            quotas,
            usage_metrics: UsageMetrics::new(&metrics),
            authority: None,
            vault: None,
            identities: IdentityManager {
                clock: clock.clone(),
                metrics: IdentityMetrics::new(&metrics),
            },
            members: HashMap::new(),
            readiness: Mutex::default(),
            reporters: Mutex::default(),
            ready: watch::Sender::new(false),
            unfinished: Mutex::default(),
            audit_queues: Mutex::default(),
            work: Work::default(),
            _lock: lock,
            config,
            clock,
            metrics,
        };
        process.connect_bus(server);
        process.keep_limits(limiting);
        process.watch_own_work();
        Ok(process)
    }

    /// Keeps the rate limiter up to date.
    fn keep_limits(&self, limiting: Limiting) {
        let (checks, work) = limiting.parts();
        for (name, check) in checks {
            self.add_check(name, check);
        }
        for work in work {
            self.work.background(work);
        }
    }

    /// Connects the bus to the server that the configuration names. A server that is out of reach
    /// delays no start, and does not make the process unready.
    fn connect_bus(&mut self, server: Option<bus::Server>) {
        let Some(server) = server else {
            return;
        };
        let condition = self.condition();
        let what = "changes are polled every 250 ms, as Redis is out of reach";
        self.add_check("redis", condition.check(what, Duration::ZERO));
        let (bus, link) = Bus::over(server, condition, Seeds::system());
        self.bus = bus;
        self.work.background(link);
    }

    pub(crate) fn bus(&self) -> &Bus {
        &self.bus
    }

    /// The configuration after it was fitted to the machine's limits.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The clock that everything in this process reads.
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// The tracer of a service of this process.
    pub(crate) fn tracer(&self, service: Service) -> Result<Tracer, StartError> {
        self.member(service).map(|member| member.tracer.clone())
    }

    /// A view of credentials, whose age counts the time that the machine slept.
    pub(crate) fn view(&self) -> View {
        let clock = self.clock.clone();
        View::with_elapsed(move || clock.monotonic().since(Monotonic::default()))
    }

    /// What one service of this process counts.
    pub(crate) fn usage(&self) -> Usage {
        let (quotas, metrics) = (self.quotas.handle.clone(), self.usage_metrics.clone());
        Usage::new(self.clock.clone(), quotas, metrics)
    }

    pub(crate) fn condition(&self) -> Condition {
        Condition::new(self.clock.clone())
    }

    /// Auth's database.
    pub(crate) fn vault(&self) -> Result<Vault, StartError> {
        let missing = StartError::NoIdentity(Service::Auth.as_str());
        self.vault.clone().ok_or(missing)
    }

    pub(crate) fn member(&self, service: Service) -> Result<&Member, StartError> {
        let missing = StartError::NoIdentity(service.as_str());
        self.members.get(&service).ok_or(missing)
    }

    /// A channel from one service of this process to another, which is where `connect` says.
    pub(crate) fn dial(
        &self,
        from: Service,
        to: Service,
        connect: &Connect,
    ) -> Result<Channel, StartError> {
        let nowhere = StartError::NoTarget(to.as_str());
        let target = connect.of(to).ok_or(nowhere)?;
        self.channel(from, to, target)
    }

    /// A channel from one service of this process to another at `target`, as `host:port`.
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
            metrics: self.channel_metrics.clone(),
            service: from.as_str(),
            audience: Audience::Strangers,
        };
        Ok(Channel::new(options)?)
    }

    pub(crate) fn service_dir(&self, service: Service) -> PathBuf {
        self.config.data.dir.join(service.as_str())
    }

    /// Where the database of a service is.
    pub(crate) fn database(&self, service: Service) -> Result<Place, StartError> {
        Ok(place_of(&self.config, service)?)
    }

    pub(crate) fn add_check(&self, name: &str, check: Check) {
        self.readiness.lock().add(name, check);
    }

    pub(crate) fn readiness(&self) -> Readiness {
        self.readiness.lock().clone()
    }

    pub(crate) fn add_reporter(&self, reporter: HealthReporter) {
        self.reporters.lock().push(reporter);
    }

    /// Runs every check from now on, and reports the results to the services' peers.
    pub(crate) fn watch_checks(&self) {
        let (reporters, ready) = (self.reporters.lock().clone(), self.ready.clone());
        let report_all = move |report: &Report| {
            for reporter in &reporters {
                reporter.update(report);
            }
            ready.send_replace(report.ready);
        };
        let (metrics, clock) = (self.metrics.clone(), self.clock.clone());
        self.work
            .background(self.readiness().watch(metrics, clock, report_all));
    }

    /// Waits until the checks have passed, and the services report that they serve.
    pub(crate) async fn wait_until_ready(&self, most: Duration) -> Result<(), StartError> {
        let mut ready = self.ready.subscribe();
        let became_ready = ready.wait_for(|ready| *ready);
        if let Ok(Ok(_)) = tokio::time::timeout(most, became_ready).await {
            return Ok(());
        }
        let report = self.readiness().report().await;
        Err(StartError::NotReady(format!("{:?}", report.checks)))
    }

    fn pace(&self) -> Pace {
        let limits = &self.config.connections;
        Pace {
            notice: Duration::from_secs(limits.notice_seconds),
            leave: match self.members.contains_key(&Service::Auth) {
                true => LEAVE_LIMIT_BESIDE_AUTH,
                false => LEAVE_LIMIT,
            },
            streams: Duration::from_secs(limits.drain_streams_seconds),
        }
    }

    /// Whether the process is about to stop, which makes it unready.
    fn stopping(&self) -> Check {
        let leaves = self.work.leave_token();
        health::check(move || match leaves.is_cancelled() {
            true => State::Failed("the process is stopping".to_owned()),
            false => State::Ok,
        })
    }

    /// Drains: not ready, then no new calls, then the end of those in flight, then what is queued for disk.
    pub async fn stop(self) {
        let pace = self.pace();
        self.work.take_leave(pace).await;
        self.work.end_serving(pace).await;
        self.audit_queues.lock().clear();
        self.work.end_background().await;
        let tracers = self.members.into_values().map(|member| member.tracer);
        let ending = tracers.map(|t| tokio::task::spawn_blocking(move || t.shutdown()));
        for ended in ending.collect::<Vec<_>>() {
            if ended.await.is_err() {
                tracing::warn!("a tracer's shutdown failed");
            }
        }
    }
}
