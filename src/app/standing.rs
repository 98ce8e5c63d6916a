//! What a service says of itself by the health protocol: what `/readyz` says of it. Whoever is
//! revoked, stops or is not ready must not be called serving, and whoever asks should hear why.

use crate::app::service::Service;
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

/// The one place that sets what a service's health service answers. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Standing(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    service: Service,
    health: Health,
    revoked: watch::Receiver<bool>,
    stop: CancellationToken,
    /// Whether the last look at the service's checks found it ready. Held while the statuses are
    /// set, so that they are of one moment.
    ready: Mutex<bool>,
}

impl Standing {
    /// Not serving, until a look has found it ready.
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
        this.tell();
        this
    }

    /// Takes what a look at the process's checks has found.
    pub(crate) fn take(&self, report: &Report) {
        *self.0.ready.lock() = is_ready(self.0.service, report);
        self.tell();
    }

    /// Tells at once what no look has to find: a revocation, and the stop.
    pub(crate) async fn follow(self) {
        let mut revoked = self.0.revoked.clone();
        loop {
            self.tell();
            tokio::select! {
                () = self.0.stop.cancelled() => break,
                changed = revoked.changed() => if changed.is_err() {
                    self.0.stop.cancelled().await;
                    break;
                }
            }
        }
        self.tell();
    }

    fn tell(&self) {
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

/// The whole, and each service of the contract.
fn names(service: Service) -> BTreeSet<&'static str> {
    let served = contract().into_iter().flat_map(|t| t.iter());
    let served = served.filter(|m| m.workload() == Some(service.as_str()));
    let names = served.map(|m| m.service.as_str());
    names.chain([""]).collect()
}

/// Whether no check of the service's own fails, nor one of the whole process.
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
        standing: Standing,
        health: Health,
        revoke: watch::Sender<bool>,
        stop: CancellationToken,
    }

    fn world() -> World {
        let (revoke, revoked) = watch::channel(false);
        let (health, stop) = (Health::default(), CancellationToken::new());
        let standing = Standing::new(Service::Automl, health.clone(), revoked, stop.clone());
        World {
            standing,
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
        async fn says(&self, name: &str) -> ServingStatus {
            let service = name.to_owned();
            let asked = tonic::Request::new(HealthCheckRequest { service });
            self.health.check(asked).await.unwrap().get_ref().status()
        }

        /// What all names but the certificate's say.
        async fn serves(&self) -> bool {
            let whole = self.says("").await;
            for name in names(Service::Automl) {
                assert_eq!(self.says(name).await, whole, "{name}");
            }
            whole == ServingStatus::Serving
        }
    }

    #[tokio::test]
    async fn a_service_serves_while_its_own_checks_hold() {
        let w = world();
        assert!(names(Service::Automl).len() > 1);
        assert!(!w.serves().await, "nobody has looked yet");
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
            w.standing.take(&report(&checks));
            assert_eq!(w.serves().await, serves, "{checks:?}");
            assert_eq!(w.says(CERTIFICATE).await, ServingStatus::Serving);
        }
    }

    #[tokio::test]
    async fn no_look_calls_who_is_revoked_or_stops_serving() {
        let well = report(&[("automl.store", State::Ok)]);
        let w = world();
        w.standing.take(&well);
        w.revoke.send_replace(true);
        w.standing.take(&well);
        assert!(!w.serves().await);
        assert_eq!(w.says(CERTIFICATE).await, ServingStatus::NotServing);
        w.revoke.send_replace(false);
        w.standing.take(&well);
        assert!(w.serves().await);
        w.stop.cancel();
        w.standing.clone().follow().await;
        w.standing.take(&well);
        assert!(!w.serves().await);
    }
}
