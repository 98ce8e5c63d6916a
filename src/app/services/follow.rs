//! How a service follows Auth: the watch stream that fills its view of credentials, the report of
//! what it trusts, and the outbox that carries its audit records.

use crate::app::{
    Process, Service, StartError, audit,
    usage::{self, Counter},
    watch,
};
use std::{sync::Arc, time::Duration};
use tars_credentials::View;
use tars_interceptors::{
    client::{Credentials, outgoing},
    usage::Usage,
};
use tars_mesh::Channel;
use tars_proto::{
    MAX_RESPONSE,
    auth::v1::{
        audit_service_client::AuditServiceClient,
        credential_service_client::CredentialServiceClient,
        usage_service_client::UsageServiceClient,
    },
};
use tars_runtime::{
    config::Connect,
    db::Db,
    health::{self, Check, State},
};

/// How long Auth may be out of reach before readiness shows it: a restart of Auth takes less.
pub(super) const SHIPPING_GRACE: Duration = Duration::from_secs(10);

/// Follows Auth, and carries the outboxes of audit records and of usage to it. Returns the view that Auth fills.
pub(super) fn follow_auth(
    process: &Process,
    service: Service,
    connect: &Connect,
    usage: &Usage,
    db: Db,
) -> Result<View, StartError> {
    let (view, channel) = watch_auth(process, service, connect)?;
    let counter = UsageServiceClient::new(outgoing(channel.clone(), Credentials::Own))
        .max_decoding_message_size(MAX_RESPONSE);
    keep_usage(process, service, usage, &db, counter);
    watch_strangers(process, service, usage, &view);
    let client = AuditServiceClient::new(outgoing(channel, Credentials::Own))
        .max_decoding_message_size(MAX_RESPONSE);
    let (stop, shipped) = (process.work.background_token(), process.condition());
    let check = shipped.check("audit records wait for Auth", SHIPPING_GRACE);
    process.add_check(&format!("{}.audit_shipping", service.as_str()), check);
    process.work.last(audit::ship(db, client, stop, shipped));
    Ok(view)
}

/// Writes what a service counts into its outbox, and carries that to Auth.
pub(super) fn keep_usage(
    process: &Process,
    service: Service,
    usage: &Usage,
    db: &Db,
    counter: impl Counter,
) {
    let (name, stop) = (service.as_str(), process.work.background_token());
    let (stored, shipped) = (process.condition(), process.condition());
    let check = stored.check("usage waits for the database", SHIPPING_GRACE);
    process.add_check(&format!("{name}.usage_store"), check);
    let check = shipped.check("usage waits for Auth", SHIPPING_GRACE);
    process.add_check(&format!("{name}.usage_shipping"), check);
    let counted = usage.clone();
    let known = health::check(move || known(&counted));
    process.add_check(&format!("{name}.usage"), known);
    let written = Arc::default();
    process.work.last(usage::write(
        db.clone(),
        usage.clone(),
        Arc::clone(&written),
        stop.clone(),
        stored,
    ));
    let (db, usage) = (db.clone(), usage.clone());
    let ship = usage::ship(db, usage, counter, written, stop, shipped);
    process.work.last(ship);
}

/// Whether what callers have used is known, where that is limited.
fn known(usage: &Usage) -> State {
    match usage.is_ready() {
        true => State::Ok,
        false => State::Failed("Auth has not told yet what callers have used".to_owned()),
    }
}

/// Shows quotas and limits that are nobody's: a name that is misspelt limits nothing.
pub(super) fn watch_strangers(process: &Process, service: Service, usage: &Usage, view: &View) {
    let (usage, limiter) = (usage.clone(), process.limiter.clone());
    let of_quotas = nobodys(view, "a quota", move |view| usage.strangers(view));
    let of_limits = nobodys(view, "a limit of their own", move |view| {
        limiter.plan().strangers(view)
    });
    let name = service.as_str();
    process.add_check(&format!("{name}.quotas"), of_quotas);
    process.add_check(&format!("{name}.limits"), of_limits);
}

/// Degraded while there are users or keys which have `what`, and do not exist.
fn nobodys(
    view: &View,
    what: &'static str,
    strangers: impl Fn(&View) -> Vec<String> + Send + Sync + 'static,
) -> Check {
    let view = view.clone();
    health::check(move || {
        // Before that nobody is known.
        let strangers = match view.age() {
            Some(_) => strangers(&view),
            None => Vec::new(),
        };
        match strangers.is_empty() {
            true => State::Ok,
            false => State::Degraded(format!(
                "there is no {}, who has {what}",
                strangers.join(", ")
            )),
        }
    })
}

/// Follows what Auth pushes, and reports to Auth what this service trusts.
pub(super) fn watch_auth(
    process: &Process,
    service: Service,
    connect: &Connect,
) -> Result<(View, Channel), StartError> {
    let view = process.view();
    let channel = process.channel(service, Service::Auth, &connect.auth)?;
    let client = |channel: Channel| {
        CredentialServiceClient::new(outgoing(channel, Credentials::Own))
            .max_decoding_message_size(MAX_RESPONSE)
    };
    let member = process.member(service)?;
    process.work.background(watch::credentials(
        client(channel.separate()),
        view.clone(),
        member.feed.clone(),
        process.clock().clone(),
        member.identity.clone(),
        service.as_str(),
    ));
    let reported = process.condition();
    let check = reported.check(
        "Auth does not know what this service trusts",
        SHIPPING_GRACE,
    );
    process.add_check(&format!("{}.trust_report", service.as_str()), check);
    let patience = process.config().certificates.departed_after_seconds;
    process.work.leaving(watch::report_trust(
        client(channel.clone()),
        member.identity.clone(),
        Duration::from_secs(patience) / 3,
        reported,
        process.work.leave_token(),
    ));
    watch_freshness(process, service, &view);
    Ok((view, channel))
}

/// Adds the check and the metric of the view's age.
pub(super) fn watch_freshness(process: &Process, service: Service, view: &View) {
    let stale_after = Duration::from_secs(process.config().credentials.stale_after_seconds);
    let consequence = match service {
        Service::Gateway => "revocations are not received",
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
        "Time since the view of credentials was last known to be current",
        service.as_str(),
        move || seen.age().map(|age| age.as_secs_f64()),
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use tars_interceptors::usage::{QuotaHandle, Quotas, UsageMetrics};
    use tars_runtime::{clock::Clock, config, metrics::Metrics, usage::Answer};

    fn limited_to(calls: u64) -> Usage {
        let handle = QuotaHandle::default();
        handle.replace(Quotas::new(&config::Quotas {
            calls,
            ..config::Quotas::default()
        }));
        Usage::new(
            Clock::system(),
            handle,
            UsageMetrics::new(&Metrics::default()),
        )
    }

    #[test]
    fn a_service_that_limits_is_ready_once_auth_has_told_all_of_what_is_used() {
        let usage = limited_to(5);
        assert!(matches!(known(&usage), State::Failed(_)));
        let told = |more| Answer {
            more,
            ..Answer::default()
        };
        usage.learn(&told(true));
        assert!(matches!(known(&usage), State::Failed(_)), "there is more");
        usage.learn(&told(false));
        assert!(matches!(known(&usage), State::Ok));
    }

    #[test]
    fn a_service_that_limits_nothing_waits_for_no_count() {
        assert!(matches!(known(&limited_to(0)), State::Ok));
    }
}
