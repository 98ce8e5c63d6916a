//! Who is cut off now: a deny-list that Auth pushes to every process. It names certificates of any
//! issuer, or an identity with the moment before which its certificates count no more.
//!
//! A revocation list of an authority can be hours old and closes no connection. This list is looked
//! at in every handshake, in both directions, and whoever holds a connection is told of each change.

use crate::{CertName, SpiffeId, peer::Verified};
use arc_swap::ArcSwap;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};
use tokio::sync::watch;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RevocationSet {
    pub certificates: BTreeSet<CertName>,
    /// Certificates of an identity that begin before this are refused.
    pub identities: BTreeMap<SpiffeId, Duration>,
}

impl RevocationSet {
    pub fn denies(&self, peer: &Verified) -> bool {
        let leaf = &peer.certificate;
        self.denies_chain(&peer.chain, &leaf.id, leaf.not_before)
    }

    /// The same for a chain that is known by its names alone.
    pub fn denies_chain(&self, chain: &[CertName], id: &SpiffeId, not_before: Duration) -> bool {
        let cut = self.identities.get(id);
        chain.iter().any(|c| self.certificates.contains(c)) || cut.is_some_and(|c| not_before < *c)
    }

    /// Adds what another list says; an earlier cut of an identity takes nothing back.
    pub fn extend(&mut self, other: &Self) {
        self.certificates.extend(other.certificates.iter().cloned());
        for (id, cut) in &other.identities {
            let known = self.identities.entry(id.clone()).or_default();
            *known = (*known).max(*cut);
        }
    }

    pub fn len(&self) -> usize {
        self.certificates.len() + self.identities.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The list of this process. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Revocations {
    current: Arc<ArcSwap<RevocationSet>>,
    changed: watch::Sender<u64>,
}

impl Default for Revocations {
    fn default() -> Self {
        Self {
            current: Arc::default(),
            changed: watch::Sender::new(0),
        }
    }
}

impl Revocations {
    pub fn denies(&self, peer: &Verified) -> bool {
        self.current.load().denies(peer)
    }

    pub fn current(&self) -> Arc<RevocationSet> {
        self.current.load_full()
    }

    /// Changes the list; everybody who watches looks again if it is another one now.
    pub fn update(&self, change: impl Fn(&mut RevocationSet)) {
        let before = self.current.rcu(|old| {
            let mut next = RevocationSet::clone(old);
            change(&mut next);
            next
        });
        if *before != *self.current.load_full() {
            self.changed.send_modify(|n| *n += 1);
        }
    }

    /// Returns once the list denies `peer`. Looks first, so that a change between the handshake and
    /// this call is not missed.
    pub async fn until_denied(&self, peer: &Verified) {
        let mut changes = self.changed.subscribe();
        while !self.denies(peer) {
            if changes.changed().await.is_err() {
                // The sender is in `self`: this cannot be.
                std::future::pending::<()>().await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{KeyId, peer::PeerCertificate};

    fn peer(serial: &str, not_before: u64) -> Verified {
        let issuer = KeyId::of_spki(b"issuer");
        let name = |serial: &str| CertName {
            issuer,
            serial: serial.parse().unwrap(),
        };
        Verified {
            certificate: PeerCertificate {
                id: "spiffe://tars.local/automl".parse().unwrap(),
                serial: serial.parse().unwrap(),
                not_before: Duration::from_secs(not_before),
                not_after: Duration::from_secs(not_before + 100),
                client_auth: true,
                server_auth: true,
            },
            chain: vec![name(serial), name("77")],
            anchor: issuer,
            presented: Arc::default(),
        }
    }

    #[test]
    fn a_certificate_is_denied_by_its_own_name_or_one_above_it() {
        let set = |serial: &str, key: &[u8]| RevocationSet {
            certificates: BTreeSet::from([CertName {
                issuer: KeyId::of_spki(key),
                serial: serial.parse().unwrap(),
            }]),
            ..Default::default()
        };
        assert!(set("11", b"issuer").denies(&peer("11", 0)));
        assert!(
            set("77", b"issuer").denies(&peer("11", 0)),
            "the intermediate"
        );
        assert!(!set("12", b"issuer").denies(&peer("11", 0)));
        assert!(
            !set("11", b"other").denies(&peer("11", 0)),
            "same serial, other issuer"
        );
    }

    #[test]
    fn an_identity_is_denied_up_to_its_cut() {
        let id: SpiffeId = "spiffe://tars.local/automl".parse().unwrap();
        let set = RevocationSet {
            identities: BTreeMap::from([(id, Duration::from_secs(50))]),
            ..Default::default()
        };
        assert!(set.denies(&peer("11", 49)));
        assert!(!set.denies(&peer("11", 50)), "issued after the cut");
    }

    #[tokio::test]
    async fn whoever_waits_is_told_and_a_late_waiter_is_not_left_waiting() {
        let list = Revocations::default();
        let waiting = tokio::spawn({
            let list = list.clone();
            async move { list.until_denied(&peer("11", 0)).await }
        });
        tokio::task::yield_now().await;
        list.update(|set| {
            set.certificates.insert(peer("11", 0).name().clone());
        });
        waiting.await.unwrap();
        list.until_denied(&peer("11", 0)).await;
    }
}
