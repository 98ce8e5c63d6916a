//! Places for open connections: a total, and a share for each address and each identity.
//!
//! An address is not an identity: behind one there may be a person, an office, or the whole mesh. So it
//! bounds only peers that are not workloads; a workload is bounded by its SPIFFE id alone, and clients that
//! share its address cannot keep it out.

use std::{net::IpAddr, sync::Arc};
use tars_certs::{PeerClass, peer::PeerInfo};
use tars_runtime::{
    config::Connections,
    network::bucket,
    shares::{Full, Place, Shares},
};

#[derive(Debug, Clone)]
pub(super) struct Places {
    by_address: Shares<u64>,
    by_identity: Shares<Arc<str>>,
    limits: Arc<Connections>,
}

/// The places of one connection.
#[derive(Debug)]
pub(super) struct Held {
    _address: Option<Place<u64>>,
    _identity: Option<Place<Arc<str>>>,
}

impl Places {
    pub(super) fn new(limits: &Connections) -> Self {
        Self {
            by_address: Shares::new(limits.max),
            by_identity: Shares::new(limits.max),
            limits: Arc::new(limits.clone()),
        }
    }

    /// Takes the places of a connection of `peer`, or returns which share is full, as a metric label.
    pub(super) fn take(&self, peer: &PeerInfo) -> Result<Held, &'static str> {
        let id = peer.verified.as_ref().map(|v| v.certificate.id.as_str());
        if peer.class.is_some_and(PeerClass::is_workload) {
            self.workload(id)
        } else {
            self.client(peer.addr.ip(), id)
        }
    }

    fn workload(&self, id: Option<&str>) -> Result<Held, &'static str> {
        Ok(Held {
            _address: None,
            _identity: self.identity(id, self.limits.max_by_workload)?,
        })
    }

    fn client(&self, addr: IpAddr, id: Option<&str>) -> Result<Held, &'static str> {
        let share = self.limits.max_by_address;
        let address = self.by_address.take_fairly(bucket(addr), share);
        Ok(Held {
            _address: Some(address.map_err(|full| label(full, "address"))?),
            _identity: self.identity(id, self.limits.max_by_identity)?,
        })
    }

    /// Joiners have no identity yet.
    fn identity(
        &self,
        id: Option<&str>,
        share: usize,
    ) -> Result<Option<Place<Arc<str>>>, &'static str> {
        let place = id.map(|id| self.by_identity.take_fairly(Arc::from(id), share));
        place.transpose().map_err(|full| label(full, "identity"))
    }
}

fn label(full: Full, share: &'static str) -> &'static str {
    match full {
        Full::All => "full",
        Full::Share => share,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places() -> Places {
        Places::new(&Connections {
            max: 64,
            max_by_address: 16,
            max_by_identity: 8,
            max_by_workload: 32,
            ..Connections::default()
        })
    }

    fn host(n: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, n])
    }

    fn all(mut take: impl FnMut() -> Result<Held, &'static str>) -> Vec<Held> {
        std::iter::from_fn(|| take().ok()).collect()
    }

    #[test]
    fn an_identity_has_one_share_over_all_addresses() {
        let places = places();
        let mut at = 0;
        let held = all(|| {
            at += 1;
            places.client(host(at), Some("spiffe://t/client/greedy"))
        });
        assert_eq!(held.len(), 8);
        let refused = places.client(host(99), Some("spiffe://t/client/greedy"));
        assert_eq!(refused.unwrap_err(), "identity");
        assert!(
            places
                .client(host(1), Some("spiffe://t/client/honest"))
                .is_ok()
        );
    }

    #[test]
    fn an_address_has_one_share_over_all_identities() {
        let places = places();
        let mut n = 0;
        let held = all(|| {
            n += 1;
            places.client(host(1), Some(&format!("spiffe://t/client/{n}")))
        });
        assert_eq!(held.len(), 16);
        let refused = places.client(host(1), Some("spiffe://t/client/more"));
        assert_eq!(refused.unwrap_err(), "address");
        let gateway = Some("spiffe://t/gateway");
        assert!(
            places.workload(gateway).is_ok(),
            "a workload of the same address"
        );
        assert!(
            places
                .client(host(2), Some("spiffe://t/client/more"))
                .is_ok()
        );
    }

    #[test]
    fn greedy_peers_leave_places_for_a_newcomer() {
        let places = places();
        let mut held = Vec::new();
        for n in 0..100u8 {
            let id = format!("spiffe://t/client/{n}");
            held.extend(all(|| places.client(host(n % 20), Some(&id))));
        }
        assert!(held.len() < 64, "{}", held.len());
        assert!(
            places
                .client(host(200), Some("spiffe://t/client/new"))
                .is_ok()
        );
        assert!(places.workload(Some("spiffe://t/gateway")).is_ok());
    }

    #[test]
    fn joiners_are_bounded_by_their_address() {
        let places = places();
        let held = all(|| places.client(host(1), None));
        assert_eq!(held.len(), 16);
        assert_eq!(places.client(host(1), None).unwrap_err(), "address");
    }

    #[test]
    fn a_refusal_by_identity_releases_the_place_of_its_address() {
        let places = places();
        let id = Some("spiffe://t/client/a");
        let held = all(|| places.client(host(1), id));
        assert!(places.client(host(2), id).is_err());
        drop(held);
        assert_eq!(
            (places.by_address.taken(), places.by_identity.taken()),
            (0, 0)
        );
    }
}
