//! The deny-list that Auth pushes to every process. An entry names a certificate of any issuer, or
//! an identity together with the moment before which its certificates are revoked.
//!
//! An authority's revocation list can be hours old and closes no connection. This list is checked
//! in every handshake, in both directions, and tasks that hold connections are notified of each
//! change.

use crate::{CertName, SpiffeId, peer::Verified};
use arc_swap::ArcSwap;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};
use tokio::sync::watch;

/// The entries of the deny-list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RevocationSet {
    /// Revoked certificates.
    pub certificates: BTreeSet<CertName>,
    /// Certificates of an identity that begin before this moment (since the Unix epoch) are
    /// revoked.
    pub identities: BTreeMap<SpiffeId, Duration>,
}

impl RevocationSet {
    /// Whether the peer, or a certificate on its path, is revoked.
    pub fn denies(&self, peer: &Verified) -> bool {
        let leaf = &peer.certificate;
        self.denies_chain(&peer.chain, &leaf.id, leaf.not_before)
    }

    /// Like [`denies`](Self::denies), for a chain of which only the names are known.
    pub fn denies_chain(&self, chain: &[CertName], id: &SpiffeId, not_before: Duration) -> bool {
        let cut = self.identities.get(id);
        chain.iter().any(|c| self.certificates.contains(c)) || cut.is_some_and(|c| not_before < *c)
    }

    /// Adds the entries of another list. An identity's later moment replaces an earlier one, never
    /// the reverse.
    pub fn extend(&mut self, other: &Self) {
        self.certificates.extend(other.certificates.iter().cloned());
        for (id, cut) in &other.identities {
            let known = self.identities.entry(id.clone()).or_default();
            *known = (*known).max(*cut);
        }
    }

    /// The number of entries.
    pub fn len(&self) -> usize {
        self.certificates.len() + self.identities.len()
    }

    /// Whether nothing is revoked.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The deny-list of this process. Cheap to clone; clones share the list.
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
    /// Whether the current list revokes the peer.
    pub fn denies(&self, peer: &Verified) -> bool {
        self.current.load().denies(peer)
    }

    /// The current list.
    pub fn current(&self) -> Arc<RevocationSet> {
        self.current.load_full()
    }

    /// Changes the list, and wakes every waiter if it differs from before.
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

    /// Completes once the list revokes `peer`. It checks before waiting, so a change between the
    /// handshake and this call is not missed.
    pub async fn until_denied(&self, peer: &Verified) {
        let mut changes = self.changed.subscribe();
        while !self.denies(peer) {
            if changes.changed().await.is_err() {
                // The sender is owned by `self`, so it cannot have been dropped.
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
    fn a_certificate_is_denied_by_its_own_name_or_its_issuers() {
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
    fn an_identity_is_denied_before_its_revocation_time() {
        let id: SpiffeId = "spiffe://tars.local/automl".parse().unwrap();
        let set = RevocationSet {
            identities: BTreeMap::from([(id, Duration::from_secs(50))]),
            ..Default::default()
        };
        assert!(set.denies(&peer("11", 49)));
        assert!(!set.denies(&peer("11", 50)), "issued after the revocation");
    }

    #[tokio::test]
    async fn a_revocation_wakes_waiters_and_is_seen_by_later_ones() {
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
