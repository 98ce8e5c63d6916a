//! What stands around a service's routes: the stack of layers, health and reflection, the audit
//! queue, and the listener.

use crate::app::{Process, Service, StartError, audit, serving::HealthReporter};
use std::{sync::Arc, time::Duration};
use tars_certs::PeerClass;
use tars_credentials::View;
use tars_interceptors::{Stack, StackOptions, contract, served::Served, usage::Usage};
use tars_mesh::{Admission, Health, ServeOptions};
use tars_proto::{DESCRIPTOR_SET, table::Method};
use tars_runtime::{
    audit::Record,
    config::Connections,
    db::Db,
    health::{self, Check, State},
};
use tokio::{net::TcpListener, sync::mpsc};
use tonic::service::Routes;
use tower_layer::Layer;

/// Audit records that wait for the database, of one listener.
const AUDIT_QUEUE: usize = 4096;
/// The largest message from a peer without a certificate, in bytes: a token and a certificate
/// request, with their bounds.
const MAX_FROM_JOINERS: usize = 16 << 10;

/// Serves routes behind the full stack of layers.
pub(super) async fn serve(
    process: &Process,
    service: Service,
    listener: TcpListener,
    routes: Routes,
    view: View,
    usage: Usage,
    db: Db,
) -> Result<(), StartError> {
    let served =
        Served::new(|m| m.workload().is_none_or(|w| w == service.as_str()) && !for_joiners(m));
    let (name, audit) = (service.as_str(), audit_queue(process, service.as_str(), db));
    let stack = stack(process, service, name, served, (view, usage), audit)?;
    let routes = with_infrastructure(process, service, routes).await?;
    listen(process, service, Admission::Mutual, listener, stack, routes)
}

/// The queue of the audit layer's records, with a writer behind it that outlives the serving.
fn audit_queue(process: &Process, listener: &str, db: Db) -> mpsc::Sender<Record> {
    let (queue, records) = mpsc::channel(AUDIT_QUEUE);
    process.audit_queues.lock().push(queue.clone());
    let stored = process.condition();
    let check = stored.check("audit records wait for the database", Duration::ZERO);
    process.add_check(&format!("{listener}.audit_store"), check);
    process.add_check(&format!("{listener}.audit_queue"), room_in(&queue));
    process.work.last(audit::write(db, records, stored));
    queue
}

/// Degraded while the queue is full. The check holds no sender, since the queue ends with its last one.
fn room_in(queue: &mpsc::Sender<Record>) -> Check {
    let queue = queue.downgrade();
    health::check(move || match queue.upgrade() {
        Some(queue) if queue.capacity() == 0 => {
            State::Degraded("the queue is full; calls that must be recorded are refused".to_owned())
        }
        _ => State::Ok,
    })
}

/// Whether a method is served on the bootstrap listener, which serves no other.
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
    (view, usage): (View, Usage),
    audit: mpsc::Sender<Record>,
) -> Result<Stack, StartError> {
    Ok(Stack::new(StackOptions {
        service: service.as_str(),
        listener,
        config: process.config(),
        view,
        clock: process.clock().clone(),
        tracer: process.tracer(service)?,
        call_metrics: process.call_metrics.clone(),
        failures: process.failures.clone(),
        audit,
        policy: process.policy.handle.clone(),
        limiter: process.limiter.clone(),
        overload: process.overload.clone(),
        usage,
        served,
        stop: process.work.stop_token(),
        end_streams: process.work.end_streams_token(),
    }))
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
    let stop = process.work.stop_token();
    let name = match admission {
        Admission::Mutual => service.as_str(),
        Admission::Joiners => "bootstrap",
    };
    log_serving(name, &listener);
    process.work.serve(tars_mesh::serve(
        listener,
        stack.layer(routes.prepare()),
        options,
        stop,
    ));
    Ok(())
}

/// The limits of a listener. The bootstrap listener is open to anybody and takes small messages only.
pub(super) fn limits(process: &Process, admission: Admission) -> Connections {
    let mut limits = process.config().connections.clone();
    if matches!(admission, Admission::Joiners) {
        limits.max_message_bytes = limits.max_message_bytes.min(MAX_FROM_JOINERS);
    }
    limits
}

/// Logs what a listener serves, and where.
pub(crate) fn log_serving(service: &str, listener: &TcpListener) {
    match listener.local_addr() {
        Ok(addr) => tracing::info!(service, %addr, "serving"),
        Err(e) => tracing::warn!(service, error = %e, "serving at an unknown address"),
    }
}

/// Serves the listener for peers that have no certificate yet.
pub(super) fn bootstrap(
    process: &Process,
    listener: TcpListener,
    routes: Routes,
    (view, usage): (View, Usage),
    db: Db,
) -> Result<(), StartError> {
    let (served, audit) = (
        Served::new(for_joiners),
        audit_queue(process, "bootstrap", db),
    );
    let known = (view, usage);
    let stack = stack(process, Service::Auth, "bootstrap", served, known, audit)?;
    let admission = Admission::Joiners;
    listen(process, Service::Auth, admission, listener, stack, routes)
}

/// Adds health, and reflection in both versions that clients use.
async fn with_infrastructure(
    process: &Process,
    service: Service,
    routes: Routes,
) -> Result<Routes, StartError> {
    let health = Health::default();
    let revoked = process.member(service)?.identity.subscribe_revoked();
    let leaves = process.work.leave_token();
    let reporter = HealthReporter::new(service, health.clone(), revoked, leaves);
    process.work.serve(reporter.clone().follow());
    process.add_reporter(reporter);
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
