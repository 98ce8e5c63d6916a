//! A coarse guard by address, before anything expensive is done for a call. Workloads of the mesh
//! pass: what they may do is limited by their identity.

use crate::{Call, check::Check, limiter::Gcra};
use std::{net::IpAddr, sync::Arc, time::Duration};
use tars_certs::PeerClass;
use tars_proto::fault;
use tars_runtime::{clock::Monotonic, network::bucket};
use tonic::Status;

#[derive(Debug, Clone)]
pub struct FloodGuard {
    limiter: Arc<Gcra>,
}

impl FloodGuard {
    pub fn new(per_second: u32) -> Self {
        // A burst is a quarter of the limit; over four seconds that is one second's worth.
        let limiter = Gcra::new(per_second.saturating_mul(4), Duration::from_secs(4));
        Self {
            limiter: Arc::new(limiter),
        }
    }

    /// Charges an address for one call.
    pub fn admit(&self, client: IpAddr, now: Monotonic) -> Result<(), Status> {
        let decision = self.limiter.take(bucket(client), now);
        if decision.passed() {
            Ok(())
        } else {
            Err(fault::exhausted("FLOOD", "address", decision.retry))
        }
    }
}

impl Check for FloodGuard {
    fn check(&self, call: &Arc<Call>, _: &http::HeaderMap) -> Result<(), Status> {
        let trusted = call
            .peer
            .class
            .is_some_and(|c| c.is_workload() && c != PeerClass::Gateway);
        if trusted {
            return Ok(());
        }
        self.admit(call.client, call.arrived)
    }
}
