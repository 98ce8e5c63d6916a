//! Auth, which the other services follow: it has the authority, a listener for those without a
//! certificate, and a view of credentials that it fills itself.

use super::{
    follow::{SHIPPING_GRACE, keep_usage, watch_freshness, watch_strangers},
    keep_leases,
    layers::{bootstrap, limits, serve},
    observe_database,
};
use crate::app::{Process, Service, StartError};
use std::sync::Arc;
use tars_auth::{Auth, Certificates, FirstAdmin};
use tars_mesh::Admission;
use tokio::net::TcpListener;

pub(crate) async fn start(
    process: &Process,
    listener: TcpListener,
    joiners: Option<TcpListener>,
) -> Result<Option<FirstAdmin>, StartError> {
    let view = process.view();
    let settings = process.config().credentials.clone();
    let member = process.member(Service::Auth)?;
    let certificates = Certificates {
        authority: process.authority.clone(),
        own: member.identity.clone(),
        classes: Arc::clone(&process.classes),
        feed: member.feed.clone(),
        trust_domain: process.config().trust.domain.clone(),
        settings: process.config().certificates.clone(),
    };
    let (vault, clock) = (process.vault()?, process.clock().clone());
    let (bus, own) = (process.bus().clone(), view.clone());
    let opened = Auth::open(vault, settings, clock, own, certificates, bus);
    let (auth, first) = opened.await?;
    observe_database(process, Service::Auth, auth.db());
    keep_leases(process, Service::Auth, auth.leases());
    let listed = auth
        .sequencing()
        .check("audit records wait", SHIPPING_GRACE);
    process.add_check("auth.audit_sequence", listed);
    if let Some(adopting) = auth.adopting() {
        let what = "the authority is not as it is in the database";
        process.add_check("auth.authority", adopting.check(what, SHIPPING_GRACE));
        process.work.leaving(leave(process, &auth));
    }
    watch_freshness(process, Service::Auth, &view);
    process.work.background(Arc::clone(&auth).run());
    let db = auth.db().clone();
    let usage = process.usage();
    keep_usage(process, Service::Auth, &usage, &db, Arc::clone(&auth));
    watch_strangers(process, Service::Auth, &usage, &view);
    if let Some(joiners) = joiners {
        let most = limits(process, Admission::Joiners).max_message_bytes;
        let routes = tars_auth::bootstrap_routes(Arc::clone(&auth), most);
        let known = (view.clone(), usage.clone());
        bootstrap(process, joiners, routes, known, db.clone())?;
    }
    let most = process.config().connections.max_message_bytes;
    let routes = tars_auth::routes(auth, usage.clone(), most);
    serve(process, Service::Auth, listener, routes, view, usage, db).await?;
    Ok(first)
}

/// Takes leave of the other replicas once this process is about to stop.
fn leave(process: &Process, auth: &Arc<Auth>) -> impl Future<Output = ()> + use<> {
    let (stops, auth) = (process.work.leave_token(), Arc::clone(auth));
    async move {
        stops.cancelled().await;
        auth.take_leave().await;
    }
}
