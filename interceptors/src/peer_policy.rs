//! Which classes of peer may open a call: the rule's list, and nobody else.

use crate::{Call, check::Check, contract};
use std::sync::Arc;
use tars_certs::PeerClass;
use tars_proto::fault;
use tonic::{Code, Status};

#[derive(Debug, Clone)]
pub struct PeerPolicy {
    /// By method index, a bit a class.
    allowed: Arc<[u16]>,
}

impl PeerPolicy {
    pub fn new() -> Self {
        let sets = contract().map(|table| table.iter().map(|m| set(&m.rule.peers)).collect());
        Self {
            allowed: sets.unwrap_or_default(),
        }
    }
}

impl Default for PeerPolicy {
    fn default() -> Self {
        Self::new()
    }
}

fn set(names: &[String]) -> u16 {
    names
        .iter()
        .filter_map(|n| PeerClass::parse(n))
        .fold(0, |all, class| all | class.bit())
}

impl Check for PeerPolicy {
    fn check(&self, call: &Arc<Call>, _: &http::HeaderMap) -> Result<(), Status> {
        let allowed = self.allowed.get(call.method.index).copied().unwrap_or(0);
        if call
            .peer
            .class
            .is_some_and(|class| allowed & class.bit() != 0)
        {
            return Ok(());
        }
        tracing::info!(peer = %call.peer.certificate.id, method = call.method.path, "peer not allowed");
        Err(fault::status(
            Code::PermissionDenied,
            "PEER_NOT_ALLOWED",
            "this peer may not call this method",
        ))
    }
}
