//! What the caller may do: the rule's permission must be in the caller's set.

use crate::{Call, check::Check};
use std::sync::Arc;
use tars_certs::PeerClass;
use tars_proto::{fault, table::Principal};
use tonic::{Code, Status};

#[derive(Debug, Clone, Copy)]
pub struct Authorise;

/// Names the permission that is missing, so that whoever gives permissions can be asked for it; not
/// the caller, their key or their roles.
fn denied(principal: &Principal) -> Status {
    match principal {
        Principal::Permission(needed) => fault::missing_permission(needed),
        _ => fault::status(
            Code::PermissionDenied,
            "PERMISSION_DENIED",
            "only a workload of the mesh may do this",
        ),
    }
}

impl Check for Authorise {
    fn check(&self, call: &Arc<Call>, _: &http::HeaderMap) -> Result<(), Status> {
        let allowed = match call.principal() {
            // The peer policy has let the peer in, and it has a certificate.
            Principal::Peer => call.peer.verified.is_some(),
            Principal::Public => true,
            Principal::Workload => call.peer.class.is_some_and(PeerClass::is_workload),
            Principal::Permission(needed) => call
                .caller()
                .is_some_and(|c| c.permissions.contains(needed)),
        };
        if allowed {
            return Ok(());
        }
        tracing::info!(
            actor = call.actor(),
            method = call.method.path,
            "permission denied"
        );
        Err(denied(call.principal()))
    }
}
