//! What a process hears about certificates from the authority of its mesh: who is cut off, and which
//! roots are trusted. One a process, whichever of its streams brings the news.

use crate::{KeyId, RevocationSet, Revocations};
use rustls::pki_types::CertificateDer;
use std::sync::Arc;
use tokio::sync::watch;

/// The roots that the authority wants trusted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Bundle {
    /// A later bundle has a higher one.
    pub version: u64,
    pub roots: Vec<CertificateDer<'static>>,
    /// Roots whose leaves must be renewed now.
    pub tainted: Vec<KeyId>,
}

/// One piece of news.
#[derive(Debug, Clone, Default)]
pub struct TrustUpdate {
    /// It is all that there is, and takes the place of what was heard before.
    pub whole: bool,
    pub revocations: RevocationSet,
    /// `None` when there is nothing new about roots.
    pub bundle: Option<Bundle>,
}

/// Cheap to clone; clones share what was heard.
#[derive(Debug, Clone)]
pub struct TrustFeed {
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
    /// Takes a piece of news. An older cut of an identity and an older bundle take nothing back.
    pub fn apply(&self, update: TrustUpdate) {
        let news = update.revocations;
        if update.whole {
            self.revocations.update(|set| set.clone_from(&news));
        } else if !news.is_empty() {
            self.revocations.update(|set| set.extend(&news));
        }
        if let Some(bundle) = update.bundle {
            self.take_bundle(bundle, update.whole);
        }
    }

    fn take_bundle(&self, bundle: Bundle, whole: bool) {
        self.bundle.send_if_modified(|known| {
            let newer = known.as_ref().is_none_or(|k| match whole {
                true => **k != bundle,
                false => bundle.version > k.version,
            });
            if newer {
                *known = Some(Arc::new(bundle));
            }
            newer
        });
    }

    /// Told of each new bundle; `None` until the first was heard.
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

    fn whole(revocations: RevocationSet) -> TrustUpdate {
        TrustUpdate {
            whole: true,
            ..revoked(revocations)
        }
    }

    #[test]
    fn deltas_add_and_a_whole_view_replaces() {
        let feed = TrustFeed::default();
        feed.apply(whole(certificate("11")));
        feed.apply(revoked(certificate("22")));
        feed.apply(revoked(cut(5)));
        assert_eq!(feed.revocations.current().len(), 3);
        feed.apply(TrustUpdate::default());
        assert_eq!(feed.revocations.current().len(), 3, "nothing is new");
        feed.apply(whole(certificate("22")));
        assert_eq!(feed.revocations.current().len(), 1);
    }

    #[test]
    fn an_older_cut_and_an_older_bundle_take_nothing_back() {
        let feed = TrustFeed::default();
        for (heard, holds) in [(50, 50), (40, 50), (60, 60)] {
            feed.apply(TrustUpdate {
                bundle: Some(bundle(heard)),
                ..revoked(cut(heard))
            });
            let identities = feed.revocations.current().identities.clone();
            assert_eq!(identities[&automl()], Duration::from_secs(holds));
            assert_eq!(feed.bundles().borrow().as_ref().unwrap().version, holds);
        }
    }

    #[test]
    fn a_bundle_is_told_once_and_a_whole_view_may_bring_an_older_one() {
        let feed = TrustFeed::default();
        let mut bundles = feed.bundles();
        let mut told = |whole, version| {
            feed.apply(TrustUpdate {
                whole,
                bundle: Some(bundle(version)),
                ..Default::default()
            });
            let told = bundles.has_changed().unwrap();
            bundles.mark_unchanged();
            told
        };
        assert!(told(false, 2));
        assert!(!told(false, 2) && !told(true, 2));
        assert!(!told(false, 1) && told(true, 1));
    }
}
