//! The check that counts every call that is admitted. It is the last one: what another check refuses is not
//! counted, and what exceeds a quota is charged to the rate limits.

use super::Usage;
use crate::{Call, check::Check};
use http::HeaderMap;
use std::sync::Arc;
use tars_certs::PeerClass;
use tonic::Status;

/// Whether a call is one that its caller makes, as opposed to a workload on behalf of a caller whose call is
/// counted already.
fn enters_the_mesh(call: &Call) -> bool {
    let class = call.peer_class();
    !class.is_some_and(|c| c.is_workload() && c != PeerClass::Gateway)
}

impl Check for Usage {
    fn check(&self, call: &Arc<Call>, _: &HeaderMap) -> Result<(), Status> {
        match call.caller() {
            Some(caller) if !call.method.rule.unmetered && enters_the_mesh(call) => {
                self.count_call(caller).map_err(|refusal| refusal.status())
            }
            _ => Ok(()),
        }
    }
}
