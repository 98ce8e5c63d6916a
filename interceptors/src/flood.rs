//! A coarse guard against floods, before anything is decided about a call: what is refused counts as well. Peers that prove an
//! identity are counted by it, whatever their address, so that nobody uses up the budget of a
//! neighbour behind the same address; all others are counted by address, and some times as much by the site of
//! an IPv6 address: whoever has a `/48` has 65,536 addresses, as they are counted. Workloads of the mesh pass,
//! as they are limited by identity later. The gateway is the exception, because it carries strangers.

use crate::{Call, check::Check, limits::Gcra};
use std::{net::IpAddr, sync::Arc, time::Duration};
use tars_certs::PeerClass;
use tars_proto::{fault, reason};
use tars_runtime::{
    clock::Monotonic,
    config::Limits,
    network::{Sites, bucket},
};
use tonic::Status;

/// The flood guard of one listener. Clones share its budgets.
#[derive(Debug, Clone)]
pub struct FloodGuard {
    budgets: Arc<Budgets>,
    sites: Sites,
}

/// What is left of each kind: strangers, however many, leave what is known of identities alone.
#[derive(Debug)]
struct Budgets {
    identities: Gcra,
    addresses: Gcra,
    sites: Gcra,
}

/// The party to which a call is charged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Subject<'a> {
    Identity(&'a str),
    Address(IpAddr),
}

impl<'a> Subject<'a> {
    /// Returns `None` for workloads that call on their own behalf.
    fn of(call: &'a Call) -> Option<Self> {
        let peer = &call.peer;
        match (peer.class, peer.id()) {
            (Some(PeerClass::Gateway), _) | (_, None) => Some(Self::Address(call.client)),
            (Some(class), _) if class.is_workload() => None,
            (_, Some(id)) => Some(Self::Identity(id.as_str())),
        }
    }
}

impl FloodGuard {
    /// Creates a guard that admits `flood_per_second` calls of each identity or address.
    pub fn new(limits: &Limits) -> Self {
        // The burst is a quarter of the limit, which over four seconds is one second's worth.
        let of = |per_second: u32| Gcra::new(per_second.saturating_mul(4), Duration::from_secs(4));
        let (per_second, sites) = (limits.flood_per_second, limits.sites());
        Self {
            budgets: Arc::new(Budgets {
                identities: of(per_second),
                addresses: of(per_second),
                sites: of(sites.times(per_second)),
            }),
            sites,
        }
    }

    /// Charges one call to an address, and to its site where it has one. What the address is refused is not
    /// charged to the site, and the addresses of a site that has used up its budget leave no trace.
    ///
    /// # Errors
    ///
    /// `RESOURCE_EXHAUSTED` with [`reason::FLOOD`] when one of them has used up its budget.
    pub fn admit(&self, client: IpAddr, now: Monotonic) -> Result<(), Status> {
        let (budgets, site) = (&self.budgets, self.sites.of(client));
        let taken = site.map_or(Ok(()), |site| budgets.sites.take(site, now));
        taken.map_err(exhausted("address"))?;
        let taken = budgets.addresses.take(bucket(client), now);
        taken.map_err(|retry| {
            if let Some(site) = site {
                budgets.sites.give_back(site);
            }
            exhausted("address")(retry)
        })
    }
}

fn exhausted(subject: &'static str) -> impl Fn(Duration) -> Status {
    move |retry| fault::exhausted(reason::FLOOD, subject, retry)
}

impl Check for FloodGuard {
    fn check(&self, call: &Arc<Call>, _: &http::HeaderMap) -> Result<(), Status> {
        match Subject::of(call) {
            Some(Subject::Address(client)) => self.admit(client, call.arrived),
            Some(Subject::Identity(id)) => {
                let taken = self.budgets.identities.take(id, call.arrived);
                taken.map_err(exhausted("identity"))
            }
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::call;

    const METHOD: &str = "/grpc.health.v1.Health/Check";
    const HERE: [u8; 4] = [127, 0, 0, 1];

    /// Returns how many consecutive calls are admitted.
    fn passed(guard: &FloodGuard, class: PeerClass, path: &str, client: [u8; 4]) -> usize {
        let call = call(METHOD, class, path, client);
        let check = || guard.check(&call, &http::HeaderMap::new());
        (0..1000).take_while(|_| check().is_ok()).count()
    }

    fn guard() -> FloodGuard {
        FloodGuard::new(&Limits {
            flood_per_second: 10,
            ..Limits::default()
        })
    }

    #[test]
    fn an_identity_cannot_spend_the_budget_of_another_behind_its_address() {
        let guard = guard();
        assert_eq!(passed(&guard, PeerClass::Client, "/client/a", HERE), 10);
        assert_eq!(passed(&guard, PeerClass::Client, "/client/a", HERE), 0);
        assert_eq!(passed(&guard, PeerClass::Client, "/client/b", HERE), 10);
        assert_eq!(passed(&guard, PeerClass::Operator, "/user/c", HERE), 10);
    }

    #[test]
    fn an_identity_has_one_budget_over_all_addresses() {
        let guard = guard();
        assert_eq!(passed(&guard, PeerClass::Client, "/client/a", HERE), 10);
        let elsewhere = [192, 0, 2, 1];
        assert_eq!(passed(&guard, PeerClass::Client, "/client/a", elsewhere), 0);
    }

    #[test]
    fn strangers_behind_the_gateway_are_counted_by_address() {
        let guard = guard();
        let (one, other) = ([192, 0, 2, 1], [192, 0, 2, 2]);
        assert_eq!(passed(&guard, PeerClass::Gateway, "/gateway", one), 10);
        assert_eq!(passed(&guard, PeerClass::Gateway, "/gateway", one), 0);
        assert_eq!(passed(&guard, PeerClass::Gateway, "/gateway", other), 10);
    }

    #[test]
    fn a_site_has_ten_times_the_budget_of_an_address_however_many_it_uses() {
        let guard = guard();
        let passed = |n: u16| {
            let client = IpAddr::from([0x2001, 0xdb8, 1, n, 0, 0, 0, n]);
            let admit = || guard.admit(client, Monotonic::default());
            (0..1000).take_while(|_| admit().is_ok()).count()
        };
        let of_each: Vec<usize> = (0..40).map(passed).collect();
        assert_eq!(of_each[..10], [10; 10]);
        assert_eq!(of_each[10..], [0; 30]);
        let known = guard.budgets.addresses.len();
        assert_eq!(known, 10, "addresses that were refused leave no trace");
        let other = IpAddr::from([0x2001, 0xdb8, 2, 0, 0, 0, 0, 1]);
        assert!(guard.admit(other, Monotonic::default()).is_ok());
    }

    #[test]
    fn other_workloads_are_not_limited() {
        let guard = guard();
        let path = "/orchestration";
        assert_eq!(passed(&guard, PeerClass::Orchestration, path, HERE), 1000);
    }
}
