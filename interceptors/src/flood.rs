//! A coarse guard by address, before anything expensive is done for a call. Workloads of the mesh
//! pass: what they may do is limited by their identity.

use crate::{Call, check::Check, limiter::Gcra};
use std::{net::IpAddr, sync::Arc, time::Duration};
use tars_certs::PeerClass;
use tars_proto::fault;
use tars_runtime::clock::Clock;
use tonic::Status;

#[derive(Debug, Clone)]
pub struct FloodGuard {
    limiter: Arc<Gcra>,
    clock: Clock,
}

impl FloodGuard {
    pub fn new(per_second: u32, clock: Clock) -> Self {
        // A burst is a quarter of the limit; over four seconds that is one second's worth.
        let limiter = Gcra::new(per_second.saturating_mul(4), Duration::from_secs(4));
        Self {
            limiter: Arc::new(limiter),
            clock,
        }
    }
}

/// One bucket an IPv4 address, or an IPv6 network: a host can pick any address of its /64.
pub(crate) fn bucket(addr: IpAddr) -> u64 {
    match addr.to_canonical() {
        IpAddr::V4(v4) => u64::from(v4.to_bits()),
        // The top half; no network of real hosts has the first 32 bits zero.
        IpAddr::V6(v6) => (v6.to_bits() >> 64) as u64,
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
        let decision = self
            .limiter
            .take(bucket(call.client), self.clock.monotonic());
        if decision.passed() {
            Ok(())
        } else {
            Err(fault::exhausted("FLOOD", "address", decision.retry))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::bucket;

    #[test]
    fn addresses_of_one_host_share_a_bucket() {
        let of = |text: &str| bucket(text.parse().unwrap());
        assert_eq!(of("2001:db8:1:2::1"), of("2001:db8:1:2:ffff::9"));
        assert_ne!(of("2001:db8:1:2::1"), of("2001:db8:1:3::1"));
        assert_eq!(of("::ffff:10.0.0.1"), of("10.0.0.1"));
    }
}
