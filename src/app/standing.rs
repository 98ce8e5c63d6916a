//! What a service says of its own certificate by the health protocol: whoever is revoked must not be
//! called serving, and whoever asks should hear why.

use crate::app::services::Service;
use tars_interceptors::contract;
use tars_mesh::Health;
use tars_proto::grpc::health::v1::health_check_response::ServingStatus;
use tokio::sync::watch;

/// The name under which a service reports its own certificate.
pub(crate) const CERTIFICATE: &str = "tars.certificate";

/// Reports what the own certificate allows, until it is dropped.
pub(crate) async fn follow_certificate(
    service: Service,
    health: Health,
    mut revoked: watch::Receiver<bool>,
) {
    let served = contract().into_iter().flat_map(|t| t.iter());
    let served = served.filter(|m| m.workload() == Some(service.as_str()));
    let mut names: Vec<&str> = served.map(|m| m.service.as_str()).collect();
    names.dedup();
    names.extend(["", CERTIFICATE]);
    loop {
        let status = match *revoked.borrow_and_update() {
            true => ServingStatus::NotServing,
            false => ServingStatus::Serving,
        };
        for name in &names {
            health.set(name, status);
        }
        if revoked.changed().await.is_err() {
            return;
        }
    }
}
