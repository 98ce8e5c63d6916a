//! Each service put together: its domain, its layers, its listener.

mod auth;
mod follow;
mod gateway;
mod layers;
mod workload;

pub(crate) use layers::log_serving;

use crate::app::{Process, StartError, save_first_admin, service::Service};
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

macro_rules! start {
    ($($variant:ident, $name:ident, $title:literal, $port:literal, $implementation:path;)*) => {
        /// Starts a service of a process. `connect` says where the others are.
        pub(crate) async fn start(
            process: &Process,
            service: Service,
            listeners: Listeners,
            connect: &Connect,
        ) -> Result<(), StartError> {
            let Listeners { main, bootstrap } = listeners;
            match service {
                Service::Auth => {
                    let first = auth::start(process, main, bootstrap).await?;
                    save_first_admin(process, first)
                }
                $(Service::$variant => {
                    workload::start::<$implementation>(process, service, main, connect).await
                })*
                Service::Gateway => gateway::start(process, main, connect),
            }
        }
    };
}
tars_certs::for_each_service!(start);

macro_rules! migrations {
    ($($variant:ident, $name:ident, $title:literal, $port:literal, $implementation:path;)*) => {
        /// The migrations of a service's schema; `None` where it has no database.
        pub(crate) fn migrations(service: Service) -> Option<&'static [Migration]> {
            match service {
                Service::Auth => Some(tars_auth::MIGRATIONS),
                $(Service::$variant => Some(<$implementation as Workload>::MIGRATIONS),)*
                Service::Gateway => None,
            }
        }
    };
}
tars_certs::for_each_service!(migrations);

/// Continues what the last process left unfinished.
pub(crate) async fn resume(process: &Process) -> Result<(), StartError> {
    let unfinished = std::mem::take(&mut *process.unfinished.lock());
    for resume in unfinished {
        resume.await?;
    }
    Ok(())
}

/// Whether a service's database answers.
fn database(db: &Db) -> Check {
    let db = db.clone();
    std::sync::Arc::new(move || {
        let db = db.clone();
        Box::pin(async move { db.check().await.into() })
    })
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
