//! A service that follows Auth. All of them are assembled here, and nowhere else.

use super::{follow::follow_auth, keep_leases, layers::serve, observe_database};
use crate::app::{Process, Service, StartError};
use std::sync::Arc;
use tars_interceptors::usage::Usage;
use tars_mesh::Channel;
use tars_runtime::{config::Connect, seeds::Seeds};
use tars_workload::{Dial, OpenError, Parts, Workload};
use tokio::net::TcpListener;

/// Opens a service, serves it, and keeps what it continues for later.
pub(super) async fn start<W: Workload>(
    process: &Process,
    service: Service,
    listener: TcpListener,
    connect: &Connect,
) -> Result<(), StartError> {
    let usage = process.usage();
    let workload = open::<W>(process, service, connect, usage.clone()).await?;
    let (name, db) = (service.as_str(), workload.db().clone());
    observe_database(process, service, &db);
    for (what, check) in workload.checks() {
        process.add_check(&format!("{name}.{what}"), check);
    }
    keep_leases(process, service, workload.leases());
    let view = follow_auth(process, service, connect, &usage, db.clone())?;
    let resume = Arc::clone(&workload).resume();
    process.unfinished.lock().push(Box::pin(async move {
        resume.await.map_err(|source| failed(service, source))
    }));
    let max_message_bytes = process.config().connections.max_message_bytes;
    let routes = workload.routes(max_message_bytes);
    serve(process, service, listener, routes, view, usage, db).await
}

async fn open<W: Workload>(
    process: &Process,
    service: Service,
    connect: &Connect,
    usage: Usage,
) -> Result<Arc<W>, StartError> {
    let peers = Peers {
        process,
        from: service,
        connect,
    };
    let parts = Parts {
        dir: &process.service_dir(service),
        database: process.database(service)?,
        bus: process.bus().clone(),
        config: process.config(),
        clock: process.clock().clone(),
        seeds: Seeds::system(),
        tracer: process.tracer(service)?,
        metrics: process.metrics(),
        calls: process.call_metrics.recorder(service.as_str()),
        usage,
        peers: &peers,
    };
    W::open(parts)
        .await
        .map_err(|source| failed(service, source))
}

fn failed(service: Service, source: OpenError) -> StartError {
    StartError::Service {
        service: service.as_str(),
        source,
    }
}

/// Channels from one service of the process to the others.
struct Peers<'a> {
    process: &'a Process,
    from: Service,
    connect: &'a Connect,
}

impl Dial for Peers<'_> {
    fn dial(&self, to: &str) -> Result<Channel, OpenError> {
        let to = Service::parse(to).ok_or_else(|| format!("the mesh has no service {to:?}"))?;
        Ok(self.process.dial(self.from, to, self.connect)?)
    }
}
