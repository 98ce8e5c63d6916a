//! What a service learns about certificates from the authority of its mesh: who is revoked, and
//! which roots are trusted. Each service of a process has a feed of its own, which only its own
//! stream updates: an update that reaches one service late must not undo a revocation that another
//! has received already.

use crate::{KeyId, RevocationSet, Revocations};
use rustls::pki_types::CertificateDer;
use std::sync::Arc;
use tokio::sync::watch;

/// The roots that the authority wants trusted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Bundle {
    /// Increases with each bundle.
    pub version: u64,
    /// The trusted roots in DER.
    pub roots: Vec<CertificateDer<'static>>,
    /// Keys of roots that are being removed: leaves below them must be renewed now.
    pub tainted: Vec<KeyId>,
}

/// One update of the feed.
#[derive(Debug, Clone, Default)]
pub struct TrustUpdate {
    /// Whether this is a complete snapshot, which replaces everything received before.
    pub snapshot: bool,
    /// Revoked certificates and identities, in addition to those known unless `snapshot` is set.
    pub revocations: RevocationSet,
    /// The trusted roots; `None` when they have not changed.
    pub bundle: Option<Bundle>,
}

/// The feed of one service. Cheap to clone; clones share its state.
#[derive(Debug, Clone)]
pub struct TrustFeed {
    /// The deny-list, as it stands after the last update.
    pub revocations: Revocations,
    bundle: watch::Sender<Option<Arc<Bundle>>>,
}

impl Default for TrustFeed {
    fn default() -> Self {
        Self {
            revocations: Revocations::default(),
            bundle: watch::Sender::new(None),
        }
    }
}

impl TrustFeed {
    /// Applies an update. An earlier revocation time of an identity and an older bundle change
    /// nothing, except in a snapshot.
    pub fn apply(&self, update: TrustUpdate) {
        let news = update.revocations;
        if update.snapshot {
            self.revocations.update(|set| set.clone_from(&news));
        } else if !news.is_empty() {
            self.revocations.update(|set| set.extend(&news));
        }
        if let Some(bundle) = update.bundle {
            self.take_bundle(bundle, update.snapshot);
        }
    }

    fn take_bundle(&self, bundle: Bundle, snapshot: bool) {
        self.bundle.send_if_modified(|known| {
            let newer = known.as_ref().is_none_or(|k| match snapshot {
                true => **k != bundle,
                false => bundle.version > k.version,
            });
            if newer {
                *known = Some(Arc::new(bundle));
            }
            newer
        });
    }

    /// Returns a receiver that is notified of each new bundle; `None` until the first one arrived.
    pub fn bundles(&self) -> watch::Receiver<Option<Arc<Bundle>>> {
        self.bundle.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{CertName, SpiffeId};
    use std::time::Duration;

    fn certificate(serial: &str) -> RevocationSet {
        let name = CertName {
            issuer: KeyId::of_spki(b"issuer"),
            serial: serial.parse().unwrap(),
        };
        RevocationSet {
            certificates: [name].into(),
            ..Default::default()
        }
    }

    fn automl() -> SpiffeId {
        "spiffe://tars.local/automl".parse().unwrap()
    }

    fn cut(seconds: u64) -> RevocationSet {
        RevocationSet {
            identities: [(automl(), Duration::from_secs(seconds))].into(),
            ..Default::default()
        }
    }

    fn bundle(version: u64) -> Bundle {
        Bundle {
            version,
            roots: vec![CertificateDer::from(version.to_be_bytes().to_vec())],
            tainted: vec![KeyId::of_spki(b"old")],
        }
    }

    fn revoked(revocations: RevocationSet) -> TrustUpdate {
        TrustUpdate {
            revocations,
            ..Default::default()
        }
    }

    fn snapshot(revocations: RevocationSet) -> TrustUpdate {
        TrustUpdate {
            snapshot: true,
            ..revoked(revocations)
        }
    }

    #[test]
    fn an_update_adds_and_a_snapshot_replaces() {
        let feed = TrustFeed::default();
        feed.apply(snapshot(certificate("11")));
        feed.apply(revoked(certificate("22")));
        feed.apply(revoked(cut(5)));
        assert_eq!(feed.revocations.current().len(), 3);
        feed.apply(TrustUpdate::default());
        assert_eq!(feed.revocations.current().len(), 3, "nothing is new");
        feed.apply(snapshot(certificate("22")));
        assert_eq!(feed.revocations.current().len(), 1);
    }

    #[test]
    fn older_revocation_times_and_bundles_are_ignored() {
        let feed = TrustFeed::default();
        for (received, holds) in [(50, 50), (40, 50), (60, 60)] {
            feed.apply(TrustUpdate {
                bundle: Some(bundle(received)),
                ..revoked(cut(received))
            });
            let identities = feed.revocations.current().identities.clone();
            assert_eq!(identities[&automl()], Duration::from_secs(holds));
            assert_eq!(feed.bundles().borrow().as_ref().unwrap().version, holds);
        }
    }

    #[test]
    fn a_bundle_is_announced_once_and_a_snapshot_may_bring_an_older_one() {
        let feed = TrustFeed::default();
        let mut bundles = feed.bundles();
        let mut announced = |snapshot, version| {
            feed.apply(TrustUpdate {
                snapshot,
                bundle: Some(bundle(version)),
                ..Default::default()
            });
            let changed = bundles.has_changed().unwrap();
            bundles.mark_unchanged();
            changed
        };
        assert!(announced(false, 2));
        assert!(!announced(false, 2) && !announced(true, 2));
        assert!(!announced(false, 1) && announced(true, 1));
    }
}
