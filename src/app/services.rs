//! Each service put together: its domain, its layers, its listener.

mod auth;
mod follow;
mod gateway;
mod layers;
mod workload;

pub(crate) use layers::log_serving;

use crate::app::{Process, Service, StartError, save_first_admin};
use tars_runtime::{
    config::Connect,
    db::{Db, Migration},
    health::Check,
    lease::Leases,
};
use tars_workload::Workload;
use tokio::net::TcpListener;

/// Where a service listens.
pub(crate) struct Listeners {
    pub(crate) main: TcpListener,
    /// Auth's listener for peers without a certificate, where it is on.
    pub(crate) bootstrap: Option<TcpListener>,
}

/// How a service that follows Auth is assembled.
struct Assembly {
    start: for<'a> fn(&'a Process, Service, TcpListener, &'a Connect) -> Starting<'a>,
    migrations: &'static [Migration],
}

type Starting<'a> = futures_util::future::BoxFuture<'a, Result<(), StartError>>;

impl Assembly {
    fn of<W: Workload>() -> Self {
        Self {
            start: |process, service, listener, connect| {
                Box::pin(workload::start::<W>(process, service, listener, connect))
            },
            migrations: W::MIGRATIONS,
        }
    }
}

macro_rules! assemblies {
    ($($variant:ident, $name:ident, $title:literal, $port:literal, $implementation:path;)*) => {
        /// The assembly of a service; `None` for those that have one of their own.
        fn assembly(service: Service) -> Option<Assembly> {
            match service {
                $(Service::$variant => Some(Assembly::of::<$implementation>()),)*
                Service::Auth | Service::Gateway => None,
            }
        }
    };
}
tars_certs::for_each_service!(assemblies);

/// Starts a service of a process. `connect` says where the others are.
pub(crate) async fn start(
    process: &Process,
    service: Service,
    listeners: Listeners,
    connect: &Connect,
) -> Result<(), StartError> {
    let Listeners { main, bootstrap } = listeners;
    match (service, assembly(service)) {
        (_, Some(assembly)) => (assembly.start)(process, service, main, connect).await,
        (Service::Auth, _) => {
            let first = auth::start(process, main, bootstrap).await?;
            save_first_admin(process, first)
        }
        _ => gateway::start(process, main, connect),
    }
}

/// The migrations of a service's schema; `None` where it has no database.
pub(crate) fn migrations(service: Service) -> Option<&'static [Migration]> {
    match service {
        Service::Auth => Some(tars_auth::MIGRATIONS),
        other => assembly(other).map(|assembly| assembly.migrations),
    }
}

/// Continues what the last process left unfinished.
pub(crate) async fn resume(process: &Process) -> Result<(), StartError> {
    let unfinished = std::mem::take(&mut *process.unfinished.lock());
    for resume in unfinished {
        resume.await?;
    }
    Ok(())
}

/// Shows whether a service's database answers, and counts the connections to it.
fn observe_database(process: &Process, service: Service, db: &Db) {
    db.register(process.metrics(), service.as_str());
    let db = db.clone();
    let check: Check = std::sync::Arc::new(move || {
        let db = db.clone();
        Box::pin(async move { db.check().await.into() })
    });
    process.add_check(&format!("{}.store", service.as_str()), check);
}

/// Counts a service's leases, and gives them up once nothing serves any more.
fn keep_leases(process: &Process, service: Service, leases: &Leases) {
    leases.register(process.metrics(), service.as_str());
    let (leases, stop) = (leases.clone(), process.work.background_token());
    process.work.last(async move {
        stop.cancelled().await;
        leases.close().await;
    });
}
