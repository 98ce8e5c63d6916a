//! The sources of a process's identities (its own authority, mounted files, Auth over gRPC), and
//! their metrics.

mod join;

pub(crate) use join::{JoinSource, Joining};

use crate::app::{Service, StartError};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
};
use std::{sync::Arc, time::Duration};
use tars_certs::{
    Authority, Identity, IdentityFiles, IdentityHandle, Revocations,
    ca::Request,
    renew::{AuthoritySource, Event, FileSource, IdentitySource, Renewal},
};
use tars_runtime::{backoff::Backoff, clock::Clock, metrics::Metrics, seeds::Seeds};

type Time = Arc<dyn rustls::time_provider::TimeProvider>;

const FIRST_RETRY: Duration = Duration::from_millis(500);
const MAX_RETRY: Duration = Duration::from_secs(60);

/// The backoff of a certificate with this life: a tenth of a short one at most, so that it does not
/// expire between two attempts.
fn retry(life: Duration) -> Backoff {
    let cap = (life / 10).clamp(FIRST_RETRY, MAX_RETRY);
    Backoff::new(FIRST_RETRY, cap).with_jitter(Seeds::system())
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Of {
    service: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    service: &'static str,
    result: &'static str,
}

#[derive(Debug, Clone)]
pub(crate) struct IdentityMetrics {
    not_after: Family<Of, Gauge>,
    root_not_after: Family<Of, Gauge>,
    renewals: Family<Outcome, Counter>,
}

impl IdentityMetrics {
    pub(crate) fn new(metrics: &Metrics) -> Self {
        Self {
            not_after: metrics.register(
                "certificate_not_after_seconds",
                "When this process's certificate expires, in seconds since the Unix epoch",
                Family::default(),
            ),
            root_not_after: metrics.register(
                "root_not_after_seconds",
                "When the first trusted root expires, in seconds since the Unix epoch",
                Family::default(),
            ),
            renewals: metrics.register(
                "certificate_renewals",
                "Renewals of this process's certificate by result",
                Family::default(),
            ),
        }
    }

    fn observe(&self, service: &'static str, identity: &Identity) {
        let seconds = |t: std::time::Duration| i64::try_from(t.as_secs()).unwrap_or(i64::MAX);
        let of = Of { service };
        let end = identity.leaf().not_after;
        self.not_after.get_or_create(&of).set(seconds(end));
        if let Some(end) = identity.trust().first_root_end() {
            self.root_not_after.get_or_create(&of).set(seconds(end));
        }
    }

    fn count(&self, service: &'static str, event: &Event) {
        let result = match event {
            Event::Renewed => "renewed",
            Event::Failed => "failed",
            Event::Revoked => "revoked",
        };
        let outcome = Outcome { service, result };
        self.renewals.get_or_create(&outcome).inc();
    }
}

/// An identity with the task that renews it.
pub(crate) struct ManagedIdentity {
    pub(crate) handle: IdentityHandle,
    pub(crate) source: &'static str,
    pub(crate) work: futures_util::future::BoxFuture<'static, ()>,
}

/// Makes managed identities from each kind of source.
#[derive(Clone)]
pub(crate) struct IdentityManager {
    pub(crate) clock: Clock,
    pub(crate) metrics: IdentityMetrics,
}

impl IdentityManager {
    pub(crate) fn time(&self) -> Time {
        Arc::new(self.clock.clone())
    }

    pub(crate) fn by_authority(
        &self,
        service: Service,
        authority: &Arc<Authority>,
        request: Request,
        revocations: Revocations,
    ) -> Result<ManagedIdentity, StartError> {
        let source = AuthoritySource::new(Arc::clone(authority), request, self.time());
        let handle = IdentityHandle::new(source.issue()?);
        Ok(self.keep(service.as_str(), handle, source, revocations, |_| {}))
    }

    pub(crate) fn by_files(
        &self,
        service: Service,
        files: &IdentityFiles,
        revocations: Revocations,
    ) -> Result<ManagedIdentity, StartError> {
        let handle = IdentityHandle::new(files.load(&self.time())?.require_server_auth()?);
        let source = FileSource::new(files.clone(), self.time());
        Ok(self.keep(service.as_str(), handle, source, revocations, |_| {}))
    }

    /// An identity that is written to files for another program to use: the operator's.
    pub(crate) fn written_out(
        &self,
        authority: &Arc<Authority>,
        request: Request,
        files: IdentityFiles,
        revocations: Revocations,
    ) -> Result<ManagedIdentity, StartError> {
        let source = AuthoritySource::new(Arc::clone(authority), request, self.time());
        let identity = source.issue()?;
        files.save_identity(&identity)?;
        let write = move |identity: &Identity| {
            if let Err(e) = files.save_identity(identity) {
                tracing::error!(error = %e, "the operator's identity was not written");
            }
        };
        let handle = IdentityHandle::new(identity);
        Ok(self.keep("operator", handle, source, revocations, write))
    }

    pub(crate) fn keep(
        &self,
        name: &'static str,
        handle: IdentityHandle,
        source: impl IdentitySource,
        revocations: Revocations,
        on_renewal: impl Fn(&Identity) + Send + Sync + 'static,
    ) -> ManagedIdentity {
        let metrics = self.metrics.clone();
        metrics.observe(name, &handle.current());
        let renewal = Renewal {
            handle: handle.clone(),
            revocations,
            time: self.time(),
            on_event: Arc::new(move |event, identity| {
                metrics.count(name, event);
                metrics.observe(name, identity);
                if matches!(event, Event::Renewed) {
                    on_renewal(identity);
                }
            }),
            delay: Arc::new(|failures, life| retry(life).after(failures)),
        };
        ManagedIdentity {
            source: source.name(),
            work: Box::pin(renewal.run(source)),
            handle,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_does_not_expire_between_two_attempts() {
        for (life, cap) in [
            (3600, MAX_RETRY),
            (20, Duration::from_secs(2)),
            (3, FIRST_RETRY),
        ] {
            let delay = retry(Duration::from_secs(life)).after(u32::MAX);
            assert!((cap / 2..=cap).contains(&delay), "{life}: {delay:?}");
        }
    }
}
