//! Each service put together: its domain, its layers, its listener.

use crate::app::{Process, Ready, StartError, audit, service::Service, standing::Standing, watch};
use std::{sync::Arc, time::Duration};
use tars_auth::{Auth, Certificates, FirstAdmin};
use tars_automl::Automl;
use tars_certs::PeerClass;
use tars_credentials::View;
use tars_gateway::{Backends, Documents, Gateway, Listening};
use tars_hypersync::HyperSync;
use tars_interceptors::{
    Stack, StackOptions,
    client::{Credentials, OutgoingService, outgoing},
    contract,
    served::Served,
};
use tars_mesh::{Admission, Channel, Health, MAX_RESPONSE, ServeOptions};
use tars_orchestration::Orchestration;
use tars_proto::{
    DESCRIPTOR_SET,
    auth::v1::{
        audit_service_client::AuditServiceClient,
        credential_service_client::CredentialServiceClient,
    },
    automl::v1::study_service_client::StudyServiceClient,
    orchestration::v1::{
        orchestration_service_client::OrchestrationServiceClient,
        training_service_client::TrainingServiceClient,
    },
    table::Method,
};
use tars_runtime::{
    audit::Record,
    config::{Config, Connections},
    db::Db,
    health::{self, Check, State},
    seeds::Seeds,
};
use tokio::{net::TcpListener, sync::mpsc};
use tonic::service::Routes;
use tower_layer::Layer;

const AUDIT_QUEUE: usize = 4096;
/// A token and a certificate request, with their bounds.
const MAX_FROM_JOINERS: usize = 16 << 10;
/// What Auth was not told for this long is worth a word: a restart of it is not.
const SHIPPING_GRACE: Duration = Duration::from_secs(10);

/// Where the services are, as `host:port`.
#[derive(Debug, Clone)]
pub(crate) struct Endpoints {
    auth: String,
    orchestration: String,
    automl: String,
    hypersync: String,
}

impl Endpoints {
    pub(crate) fn from_ready(ready: &Ready) -> Self {
        let host = |url: &str| url.trim_start_matches("https://").to_owned();
        Self {
            auth: host(&ready.auth),
            orchestration: host(&ready.orchestration),
            automl: host(&ready.automl),
            hypersync: host(&ready.hypersync),
        }
    }

    pub(crate) fn from_config(config: &Config) -> Self {
        let connect = config.connect.clone();
        Self {
            auth: connect.auth,
            orchestration: connect.orchestration,
            automl: connect.automl,
            hypersync: connect.hypersync,
        }
    }
}

/// What goes on behind the services: resumed work, and queues to close at the end.
#[derive(Debug, Default)]
pub(crate) struct Background {
    automl: Option<Arc<Automl>>,
    hypersync: Option<Arc<HyperSync>>,
    audit: Vec<mpsc::Sender<Record>>,
}

impl Background {
    /// Lets the audit writers end: the layers' own senders went with the serving.
    pub(crate) fn drop_queues(&mut self) {
        self.audit.clear();
    }
}

fn check<S, F, E>(service: &Arc<S>, look: impl Fn(Arc<S>) -> F + Send + Sync + 'static) -> Check
where
    S: Send + Sync + 'static,
    F: Future<Output = Result<(), E>> + Send + 'static,
    E: std::fmt::Display,
{
    let service = Arc::clone(service);
    Arc::new(move || {
        let looking = look(Arc::clone(&service));
        Box::pin(async move { looking.await.into() })
    })
}

/// Serves routes behind the full stack of layers.
async fn serve(
    process: &Process,
    service: Service,
    listener: TcpListener,
    routes: Routes,
    view: View,
    db: Db,
) -> Result<(), StartError> {
    let served =
        Served::new(|m| m.workload().is_none_or(|w| w == service.as_str()) && !for_joiners(m));
    let (name, audit) = (service.as_str(), audit_queue(process, service.as_str(), db));
    let stack = stack(process, service, name, served, view, audit);
    let routes = with_infrastructure(process, service, routes).await?;
    listen(process, service, Admission::Mutual, listener, stack, routes)
}

/// Where the audit layer puts its records, with a writer behind it that outlives the serving.
fn audit_queue(process: &Process, listener: &str, db: Db) -> mpsc::Sender<Record> {
    let (queue, records) = mpsc::channel(AUDIT_QUEUE);
    process.background.lock().audit.push(queue.clone());
    let stored = process.condition();
    let check = stored.check("audit records wait for the database", Duration::ZERO);
    process.add_check(&format!("{listener}.audit_store"), check);
    process.add_check(&format!("{listener}.audit_queue"), room_in(&queue));
    process.spawn_last(audit::write(db, records, stored));
    queue
}

/// Holds no place in the queue itself, which ends with its senders.
fn room_in(queue: &mpsc::Sender<Record>) -> Check {
    let queue = queue.downgrade();
    health::check(move || match queue.upgrade() {
        Some(queue) if queue.capacity() == 0 => {
            State::Degraded("the queue is full; calls that must be recorded are refused".to_owned())
        }
        _ => State::Ok,
    })
}

/// Of the bootstrap listener, which serves nothing else.
fn for_joiners(method: &Method) -> bool {
    method
        .rule
        .peers
        .iter()
        .any(|p| p == PeerClass::Joiner.as_str())
}

fn stack(
    process: &Process,
    service: Service,
    listener: &str,
    served: Served,
    view: View,
    audit: mpsc::Sender<Record>,
) -> Stack {
    Stack::new(StackOptions {
        service: service.as_str(),
        listener,
        config: process.config(),
        view,
        clock: process.clock().clone(),
        tracer: process.tracer(service),
        call_metrics: process.call_metrics.clone(),
        failures: process.failures.clone(),
        audit,
        policy: process.policy.handle.clone(),
        served,
        stop: process.stop_token(),
    })
}

fn listen(
    process: &Process,
    service: Service,
    admission: Admission,
    listener: TcpListener,
    stack: Stack,
    routes: Routes,
) -> Result<(), StartError> {
    let member = process.member(service)?;
    let options = ServeOptions {
        service: service.as_str(),
        admission,
        identity: member.identity.clone(),
        revocations: member.feed.revocations.clone(),
        classes: Arc::clone(&process.classes),
        clock: process.clock().clone(),
        limits: limits(process, admission),
        times: process.config().timeouts.clone(),
        metrics: process.mesh_metrics.clone(),
        table: process.connections.clone(),
    };
    let stop = process.stop_token();
    let name = match admission {
        Admission::Mutual => service.as_str(),
        Admission::Joiners => "bootstrap",
    };
    say_serving(name, &listener);
    process.spawn(tars_mesh::serve(
        listener,
        stack.layer(routes.prepare()),
        options,
        stop,
    ));
    Ok(())
}

/// Anybody may send to the bootstrap listener: it takes small messages alone.
fn limits(process: &Process, admission: Admission) -> Connections {
    let mut limits = process.config().connections.clone();
    if matches!(admission, Admission::Joiners) {
        limits.max_message_bytes = limits.max_message_bytes.min(MAX_FROM_JOINERS);
    }
    limits
}

/// One line a listener: what it is, and where.
pub(crate) fn say_serving(service: &str, listener: &TcpListener) {
    match listener.local_addr() {
        Ok(addr) => tracing::info!(service, %addr, "serving"),
        Err(e) => tracing::warn!(service, error = %e, "serving, and the address is not known"),
    }
}

/// The listener for those who have no certificate yet.
fn bootstrap(
    process: &Process,
    listener: TcpListener,
    routes: Routes,
    view: View,
    db: Db,
) -> Result<(), StartError> {
    let (served, audit) = (
        Served::new(for_joiners),
        audit_queue(process, "bootstrap", db),
    );
    let stack = stack(process, Service::Auth, "bootstrap", served, view, audit);
    let admission = Admission::Joiners;
    listen(process, Service::Auth, admission, listener, stack, routes)
}

/// Health, and reflection in both versions that clients speak.
async fn with_infrastructure(
    process: &Process,
    service: Service,
    routes: Routes,
) -> Result<Routes, StartError> {
    let health = Health::default();
    let revoked = process.member(service)?.identity.subscribe_revoked();
    let standing = Standing::new(service, health.clone(), revoked, process.stop_token());
    process.spawn(standing.clone().follow());
    process.add_standing(standing);
    let served: std::collections::BTreeSet<&str> = contract()
        .into_iter()
        .flat_map(|t| t.iter())
        .filter(|m| m.workload() == Some(service.as_str()))
        .map(|m| m.service.as_str())
        .collect();
    // All descriptors are known, so that types resolve; only what is served here is listed.
    let reflection = || {
        served.iter().fold(
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(DESCRIPTOR_SET)
                .with_service_name("grpc.health.v1.Health"),
            |builder, name| builder.with_service_name(*name),
        )
    };
    let failed = |e: tonic_reflection::server::Error| StartError::Reflection(e.to_string());
    let routes = routes
        .add_service(health.server())
        .add_service(reflection().build_v1().map_err(failed)?)
        .add_service(reflection().build_v1alpha().map_err(failed)?);
    Ok(routes)
}

/// A view that Auth's stream fills, and an outbox that is carried to Auth.
fn follow_auth(
    process: &Process,
    service: Service,
    endpoints: &Endpoints,
    db: Db,
) -> Result<View, StartError> {
    let (view, channel) = watch_auth(process, service, endpoints)?;
    let client = AuditServiceClient::new(outgoing(channel, Credentials::Own))
        .max_decoding_message_size(MAX_RESPONSE);
    let (stop, shipped) = (process.background_token(), process.condition());
    let check = shipped.check("audit records wait for Auth", SHIPPING_GRACE);
    process.add_check(&format!("{}.audit_shipping", service.as_str()), check);
    process.spawn_last(audit::ship(db, client, stop, shipped));
    Ok(view)
}

/// Follows what Auth pushes, and tells Auth what is trusted here.
fn watch_auth(
    process: &Process,
    service: Service,
    endpoints: &Endpoints,
) -> Result<(View, Channel), StartError> {
    let view = process.view();
    let channel = process.channel(service, Service::Auth, &endpoints.auth)?;
    let client = |channel: Channel| {
        CredentialServiceClient::new(outgoing(channel, Credentials::Own))
            .max_decoding_message_size(MAX_RESPONSE)
    };
    let member = process.member(service)?;
    process.spawn_background(watch::credentials(
        client(channel.separate()),
        view.clone(),
        member.feed.clone(),
        process.clock().clone(),
        member.identity.clone(),
        service.as_str(),
    ));
    let reported = process.condition();
    let check = reported.check("Auth is not told what is trusted here", SHIPPING_GRACE);
    process.add_check(&format!("{}.trust_report", service.as_str()), check);
    let patience = process.config().certificates.departed_after_seconds;
    process.spawn_leaving(watch::report_trust(
        client(channel.clone()),
        member.identity.clone(),
        Duration::from_secs(patience) / 3,
        reported,
        process.leave_token(),
    ));
    watch_freshness(process, service, &view);
    Ok((view, channel))
}

/// Shows how old the view of credentials is, and says so when it is too old.
fn watch_freshness(process: &Process, service: Service, view: &View) {
    let stale_after = Duration::from_secs(process.config().credentials.stale_after_seconds);
    let consequence = match service {
        Service::Gateway => "revocations are not heard of",
        _ => "calls that change something are refused",
    };
    let seen = view.clone();
    let look = move || match seen.age() {
        None => State::Failed("no view of credentials yet".to_owned()),
        Some(age) if age > stale_after => {
            State::Degraded(format!("stale for {} s; {consequence}", age.as_secs()))
        }
        Some(_) => State::Ok,
    };
    process.add_check(
        &format!("{}.credentials", service.as_str()),
        health::check(look),
    );
    let seen = view.clone();
    process.metrics().measure(
        "credentials_age_seconds",
        "Time since the view of credentials was last heard to be right",
        service.as_str(),
        move || seen.age().map(|age| age.as_secs_f64()),
    );
}

pub(crate) async fn auth(
    process: &Process,
    listener: TcpListener,
    joiners: Option<TcpListener>,
) -> Result<Option<FirstAdmin>, StartError> {
    let view = process.view();
    let settings = process.config().credentials.clone();
    let dir = process.service_dir(Service::Auth);
    let member = process.member(Service::Auth)?;
    let certificates = Certificates {
        authority: process.authority.clone(),
        own: member.identity.clone(),
        classes: Arc::clone(&process.classes),
        feed: member.feed.clone(),
        trust_domain: process.config().trust.domain.clone(),
        settings: process.config().certificates.clone(),
    };
    let clock = process.clock().clone();
    let (auth, first) = Auth::open(&dir, settings, clock, view.clone(), certificates).await?;
    process.add_check(
        "auth.store",
        check(&auth, async |a: Arc<Auth>| a.check().await),
    );
    let listed = auth
        .sequencing()
        .check("audit records wait", SHIPPING_GRACE);
    process.add_check("auth.audit_sequence", listed);
    watch_freshness(process, Service::Auth, &view);
    process.spawn_background(Arc::clone(&auth).run());
    let db = auth.db().clone();
    if let Some(joiners) = joiners {
        let most = limits(process, Admission::Joiners).max_message_bytes;
        let routes = tars_auth::bootstrap_routes(Arc::clone(&auth), most);
        bootstrap(process, joiners, routes, view.clone(), db.clone())?;
    }
    let routes = tars_auth::routes(auth, process.config().connections.max_message_bytes);
    serve(process, Service::Auth, listener, routes, view, db).await?;
    Ok(first)
}

pub(crate) async fn orchestration(
    process: &Process,
    listener: TcpListener,
    endpoints: &Endpoints,
) -> Result<(), StartError> {
    let settings = process.config().orchestration.clone();
    let dir = process.service_dir(Service::Orchestration);
    let (clock, seeds) = (process.clock().clone(), Seeds::system());
    let service = Orchestration::open(&dir, settings, clock, seeds).await?;
    process.add_check(
        "orchestration.store",
        check(&service, async |s: Arc<Orchestration>| s.check().await),
    );
    let db = service.db().clone();
    let view = follow_auth(process, Service::Orchestration, endpoints, db.clone())?;
    let routes =
        tars_orchestration::routes(service, process.config().connections.max_message_bytes);
    serve(process, Service::Orchestration, listener, routes, view, db).await
}

type Agents = OrchestrationServiceClient<OutgoingService<Channel>>;
type Training = TrainingServiceClient<OutgoingService<Channel>>;

fn trainers(
    process: &Process,
    from: Service,
    endpoints: &Endpoints,
) -> Result<(Agents, Training), StartError> {
    let channel = process.channel(from, Service::Orchestration, &endpoints.orchestration)?;
    let training = TrainingServiceClient::new(outgoing(channel.separate(), Credentials::Own))
        .max_decoding_message_size(MAX_RESPONSE);
    Ok((
        OrchestrationServiceClient::new(outgoing(channel, Credentials::Own))
            .max_decoding_message_size(MAX_RESPONSE),
        training,
    ))
}

pub(crate) async fn automl(
    process: &Process,
    listener: TcpListener,
    endpoints: &Endpoints,
) -> Result<(), StartError> {
    let (agents, training) = trainers(process, Service::Automl, endpoints)?;
    let settings = process.config().automl.clone();
    let dir = process.service_dir(Service::Automl);
    let service = Automl::open(
        &dir,
        settings,
        tars_automl::Peers::new(agents, training),
        process.clock().clone(),
        Seeds::system(),
    )
    .await?;
    process.add_check(
        "automl.store",
        check(&service, async |s: Arc<Automl>| s.check().await),
    );
    let db = service.db().clone();
    let view = follow_auth(process, Service::Automl, endpoints, db.clone())?;
    process.background.lock().automl = Some(Arc::clone(&service));
    let max = process.config().connections.max_message_bytes;
    let routes = tars_automl::routes(service, process.tracer(Service::Automl), max);
    serve(process, Service::Automl, listener, routes, view, db).await
}

pub(crate) async fn hypersync(
    process: &Process,
    listener: TcpListener,
    endpoints: &Endpoints,
) -> Result<(), StartError> {
    let from = Service::Hypersync;
    let (agents, training) = trainers(process, from, endpoints)?;
    let to_agents = process.channel(from, Service::Orchestration, &endpoints.orchestration)?;
    let to_studies = process.channel(from, Service::Automl, &endpoints.automl)?;
    let peers = tars_hypersync::Peers::new(
        StudyServiceClient::new(outgoing(to_studies, Credentials::Forward))
            .max_decoding_message_size(MAX_RESPONSE),
        OrchestrationServiceClient::new(outgoing(to_agents, Credentials::Forward))
            .max_decoding_message_size(MAX_RESPONSE),
        agents,
        training,
    );
    let dir = process.service_dir(from);
    let service = HyperSync::open(&dir, peers, process.clock().clone()).await?;
    process.add_check(
        "hypersync.store",
        check(&service, async |s: Arc<HyperSync>| s.check().await),
    );
    let db = service.db().clone();
    let view = follow_auth(process, from, endpoints, db.clone())?;
    process.background.lock().hypersync = Some(Arc::clone(&service));
    let max = process.config().connections.max_message_bytes;
    let routes = tars_hypersync::routes(service, process.tracer(from), max);
    serve(process, from, listener, routes, view, db).await
}

pub(crate) async fn gateway(
    process: &Process,
    listener: TcpListener,
    endpoints: &Endpoints,
) -> Result<(), StartError> {
    watch_auth(process, Service::Gateway, endpoints)?;
    let mut backends = Backends::default();
    for (to, target) in [
        (Service::Auth, &endpoints.auth),
        (Service::Orchestration, &endpoints.orchestration),
        (Service::Automl, &endpoints.automl),
        (Service::Hypersync, &endpoints.hypersync),
    ] {
        backends.add(to.as_str(), process.channel(Service::Gateway, to, target)?);
    }
    let config = process.config();
    let documents = Documents::new(
        process.readiness(),
        config.limits.flood_per_second,
        process.clock().clone(),
        process.metrics(),
    );
    let settings = config.gateway.clone();
    let tracer = process.tracer(Service::Gateway);
    let gateway = Gateway::new(backends, settings, tracer, documents);
    let gateway = gateway.map_err(StartError::Gateway)?;
    let metrics = process.listener_metrics.of(Service::Gateway.as_str());
    let listening = Listening::new(&config.gateway, &config.timeouts, metrics);
    let listening = listening.map_err(|wrong| {
        let wrong: Vec<String> = wrong.iter().map(ToString::to_string).collect();
        StartError::Gateway(wrong.join("; "))
    })?;
    say_serving(Service::Gateway.as_str(), &listener);
    process.spawn(listening.serve(listener, gateway, process.stop_token()));
    Ok(())
}

/// Goes on with what the last process left unfinished.
pub(crate) async fn resume(process: &Process) -> Result<(), StartError> {
    let (automl, hypersync) = {
        let background = process.background.lock();
        (background.automl.clone(), background.hypersync.clone())
    };
    if let Some(automl) = automl {
        automl.resume(&process.tracer(Service::Automl)).await?;
    }
    if let Some(hypersync) = hypersync {
        hypersync
            .resume(&process.tracer(Service::Hypersync))
            .await?;
    }
    Ok(())
}
