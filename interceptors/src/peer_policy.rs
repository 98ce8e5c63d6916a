//! Which peers may open a call, as the policy in force says. The peer is not told why not.

use crate::{Call, check::Check, policy::PolicyHandle};
use std::sync::Arc;
use tars_proto::fault;
use tonic::{Code, Status};

#[derive(Debug, Clone)]
pub struct PeerPolicy(pub PolicyHandle);

pub(crate) fn refusal() -> Status {
    fault::status(
        Code::PermissionDenied,
        "PEER_NOT_ALLOWED",
        "this peer may not call this method",
    )
}

impl Check for PeerPolicy {
    fn check(&self, call: &Arc<Call>, _: &http::HeaderMap) -> Result<(), Status> {
        self.0.decide(call).map_err(|why| {
            tracing::info!(peer = call.peer.name(), method = call.method.path, %why, "peer not allowed");
            refusal()
        })
    }
}
