//! The status that a service reports by the gRPC health protocol, which is what `/readyz` reports of
//! it: a service that is revoked, stopping or not ready is not serving.

use crate::app::Service;
use parking_lot::Mutex;
use std::{collections::BTreeSet, sync::Arc};
use tars_interceptors::contract;
use tars_mesh::Health;
use tars_proto::grpc::health::v1::health_check_response::ServingStatus;
use tars_runtime::health::{Report, State};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// The name under which a service reports whether its own certificate is revoked.
pub(crate) const CERTIFICATE: &str = "tars.certificate";

/// Sets the statuses of a service's health service, and is the only one that does. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct HealthReporter(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    service: Service,
    health: Health,
    revoked: watch::Receiver<bool>,
    stop: CancellationToken,
    /// Whether the service's checks passed when they last ran. Locked while the statuses are set, so
    /// that all of them are of one moment.
    ready: Mutex<bool>,
}

impl HealthReporter {
    /// Reports not serving until the checks have passed once.
    pub(crate) fn new(
        service: Service,
        health: Health,
        revoked: watch::Receiver<bool>,
        stop: CancellationToken,
    ) -> Self {
        let ready = Mutex::new(false);
        let this = Self(Arc::new(Inner {
            service,
            health,
            revoked,
            stop,
            ready,
        }));
        this.publish();
        this
    }

    /// Updates the statuses with the results of the process's checks.
    pub(crate) fn update(&self, report: &Report) {
        *self.0.ready.lock() = is_ready(self.0.service, report);
        self.publish();
    }

    /// Reports a revocation and the stop at once, without waiting for the next run of the checks.
    pub(crate) async fn follow(self) {
        let mut revoked = self.0.revoked.clone();
        loop {
            self.publish();
            tokio::select! {
                () = self.0.stop.cancelled() => break,
                changed = revoked.changed() => if changed.is_err() {
                    self.0.stop.cancelled().await;
                    break;
                }
            }
        }
        self.publish();
    }

    fn publish(&self) {
        let Inner { health, stop, .. } = &*self.0;
        let ready = self.0.ready.lock();
        let (revoked, stops) = (*self.0.revoked.borrow(), stop.is_cancelled());
        let status = serving(*ready && !revoked && !stops);
        for name in names(self.0.service) {
            health.set(name, status);
        }
        health.set(CERTIFICATE, serving(!revoked && !stops));
    }
}

fn serving(serves: bool) -> ServingStatus {
    if serves {
        ServingStatus::Serving
    } else {
        ServingStatus::NotServing
    }
}

/// The names that the statuses are set under: the empty name of the whole, and each gRPC service.
fn names(service: Service) -> BTreeSet<&'static str> {
    let served = contract().into_iter().flat_map(|t| t.iter());
    let served = served.filter(|m| m.workload() == Some(service.as_str()));
    let names = served.map(|m| m.service.as_str());
    names.chain([""]).collect()
}

/// Whether no check of the service or of the whole process fails.
fn is_ready(service: Service, report: &Report) -> bool {
    let concerns = |name: &str| match name.split_once('.') {
        Some((of, _)) => of == service.as_str(),
        None => true,
    };
    let mut own = report.checks.iter().filter(|(name, _)| concerns(name));
    own.all(|(_, state)| !matches!(state, State::Failed(_)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tars_proto::grpc::health::v1::{HealthCheckRequest, health_server::Health as _};

    struct World {
        reporter: HealthReporter,
        health: Health,
        revoke: watch::Sender<bool>,
        stop: CancellationToken,
    }

    fn world() -> World {
        let (revoke, revoked) = watch::channel(false);
        let (health, stop) = (Health::default(), CancellationToken::new());
        let reporter = HealthReporter::new(Service::Automl, health.clone(), revoked, stop.clone());
        World {
            reporter,
            health,
            revoke,
            stop,
        }
    }

    fn report(checks: &[(&str, State)]) -> Report {
        let checks = checks.iter().map(|(n, s)| ((*n).to_owned(), s.clone()));
        Report {
            ready: false,
            checks: checks.collect(),
        }
    }

    fn failed() -> State {
        State::Failed("gone".to_owned())
    }

    impl World {
        async fn status(&self, name: &str) -> ServingStatus {
            let service = name.to_owned();
            let request = tonic::Request::new(HealthCheckRequest { service });
            self.health.check(request).await.unwrap().get_ref().status()
        }

        /// Whether all names but the certificate's are serving. They must agree.
        async fn serves(&self) -> bool {
            let whole = self.status("").await;
            for name in names(Service::Automl) {
                assert_eq!(self.status(name).await, whole, "{name}");
            }
            whole == ServingStatus::Serving
        }
    }

    #[tokio::test]
    async fn a_service_serves_while_its_own_checks_pass() {
        let w = world();
        assert!(names(Service::Automl).len() > 1);
        assert!(!w.serves().await, "no check has run yet");
        let slow = State::Degraded("slow".to_owned());
        for (checks, serves) in [
            (
                vec![("automl.store", State::Ok), ("policy", State::Ok)],
                true,
            ),
            (
                vec![("automl.store", failed()), ("policy", State::Ok)],
                false,
            ),
            (vec![("automl.store", slow), ("auth.store", failed())], true),
            (
                vec![("automl.store", State::Ok), ("policy", failed())],
                false,
            ),
            (vec![("automl.store", State::Ok)], true),
        ] {
            w.reporter.update(&report(&checks));
            assert_eq!(w.serves().await, serves, "{checks:?}");
            assert_eq!(w.status(CERTIFICATE).await, ServingStatus::Serving);
        }
    }

    #[tokio::test]
    async fn a_service_that_is_revoked_or_stops_is_never_serving() {
        let well = report(&[("automl.store", State::Ok)]);
        let w = world();
        w.reporter.update(&well);
        w.revoke.send_replace(true);
        w.reporter.update(&well);
        assert!(!w.serves().await);
        assert_eq!(w.status(CERTIFICATE).await, ServingStatus::NotServing);
        w.revoke.send_replace(false);
        w.reporter.update(&well);
        assert!(w.serves().await);
        w.stop.cancel();
        w.reporter.clone().follow().await;
        w.reporter.update(&well);
        assert!(!w.serves().await);
    }
}
