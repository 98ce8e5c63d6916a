//! The part of Auth's push that is about certificates: who is cut off, and which roots are trusted.
//! One a process, whichever of its streams brings the news.

use rustls::pki_types::CertificateDer;
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tars_certs::{CertName, KeyId, RevocationSet, Revocations, SpiffeId};
use tars_proto::auth::v1::{TrustBundle, WatchCredentialsResponse};
use tokio::sync::watch;

/// The roots that our own authority wants trusted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Bundle {
    pub version: u64,
    pub roots: Vec<CertificateDer<'static>>,
    /// Roots whose leaves must be renewed now.
    pub tainted: Vec<KeyId>,
}

impl From<&TrustBundle> for Bundle {
    fn from(message: &TrustBundle) -> Self {
        let tainted = message.tainted.iter();
        Self {
            version: message.version,
            roots: message
                .roots
                .iter()
                .map(|r| CertificateDer::from(r.clone()))
                .collect(),
            tainted: tainted.filter_map(|k| KeyId::from_bytes(k).ok()).collect(),
        }
    }
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
    /// Applies one item of the watch stream.
    pub fn apply(&self, item: &WatchCredentialsResponse) {
        let news = revocations(item);
        if item.reset {
            self.revocations.update(|set| set.clone_from(&news));
        } else if !news.is_empty() {
            self.revocations.update(|set| {
                set.certificates.extend(news.certificates.iter().cloned());
                for (id, cut) in &news.identities {
                    let known = set.identities.entry(id.clone()).or_default();
                    *known = (*known).max(*cut);
                }
            });
        }
        if let Some(message) = &item.bundle {
            let bundle = Arc::new(Bundle::from(message));
            self.bundle.send_if_modified(|known| {
                let newer = known.as_ref().is_none_or(|k| match item.reset {
                    true => **k != *bundle,
                    false => bundle.version > k.version,
                });
                if newer {
                    *known = Some(bundle);
                }
                newer
            });
        }
    }

    /// Told of each new bundle; `None` until the first was heard.
    pub fn bundles(&self) -> watch::Receiver<Option<Arc<Bundle>>> {
        self.bundle.subscribe()
    }
}

fn revocations(item: &WatchCredentialsResponse) -> RevocationSet {
    let certificates = item.revoked_certificates.iter().filter_map(|r| {
        Some(CertName {
            issuer: KeyId::from_bytes(&r.issuer).ok()?,
            serial: r.serial.parse().ok()?,
        })
    });
    let identities = item.revoked_identities.iter().filter_map(|r| {
        let id: SpiffeId = r.spiffe_id.parse().ok()?;
        let cut = r.not_before.as_ref()?.seconds;
        Some((id, Duration::from_secs(u64::try_from(cut).ok()?)))
    });
    let set = RevocationSet {
        certificates: certificates.collect(),
        identities: identities.collect::<BTreeMap<_, _>>(),
    };
    let sent = item.revoked_certificates.len() + item.revoked_identities.len();
    if set.len() < sent {
        tracing::error!(sent, kept = set.len(), "pushed revocations do not parse");
    }
    set
}

#[cfg(test)]
mod tests {
    use super::*;
    use tars_proto::{
        Timestamp,
        auth::v1::{CertificateRevocation, IdentityRevocation},
    };

    fn certificate(serial: &str) -> CertificateRevocation {
        CertificateRevocation {
            issuer: KeyId::of_spki(b"issuer").as_bytes().to_vec(),
            serial: serial.into(),
        }
    }

    #[test]
    fn deltas_add_and_a_whole_view_replaces() {
        let feed = TrustFeed::default();
        let item = WatchCredentialsResponse {
            reset: true,
            revoked_certificates: vec![certificate("11")],
            ..Default::default()
        };
        feed.apply(&item);
        let id = IdentityRevocation {
            spiffe_id: "spiffe://tars.local/automl".into(),
            not_before: Some(Timestamp {
                seconds: 5,
                nanos: 0,
            }),
        };
        feed.apply(&WatchCredentialsResponse {
            revoked_certificates: vec![certificate("22")],
            revoked_identities: vec![id],
            ..Default::default()
        });
        assert_eq!(feed.revocations.current().len(), 3);
        feed.apply(&WatchCredentialsResponse::default());
        assert_eq!(
            feed.revocations.current().len(),
            3,
            "a heartbeat changes nothing"
        );
        feed.apply(&WatchCredentialsResponse {
            reset: true,
            revoked_certificates: vec![certificate("22")],
            ..Default::default()
        });
        assert_eq!(feed.revocations.current().len(), 1);
    }

    #[test]
    fn an_older_cut_and_an_older_bundle_take_nothing_back() {
        let feed = TrustFeed::default();
        let id: SpiffeId = "spiffe://tars.local/automl".parse().unwrap();
        let push = |seconds, version| {
            let cut = IdentityRevocation {
                spiffe_id: id.to_string(),
                not_before: Some(Timestamp { seconds, nanos: 0 }),
            };
            let bundle = TrustBundle {
                version,
                roots: vec![vec![u8::try_from(version).unwrap()]],
                tainted: vec![],
            };
            feed.apply(&WatchCredentialsResponse {
                revoked_identities: vec![cut],
                bundle: Some(bundle),
                ..Default::default()
            });
        };
        push(50, 2);
        push(40, 1);
        assert_eq!(
            feed.revocations.current().identities[&id],
            Duration::from_secs(50)
        );
        assert_eq!(feed.bundles().borrow().as_ref().unwrap().version, 2);
        push(60, 3);
        assert_eq!(
            feed.revocations.current().identities[&id],
            Duration::from_secs(60)
        );
        assert_eq!(feed.bundles().borrow().as_ref().unwrap().version, 3);
    }

    #[test]
    fn a_bundle_is_told_once() {
        let feed = TrustFeed::default();
        let mut bundles = feed.bundles();
        let item = WatchCredentialsResponse {
            bundle: Some(TrustBundle {
                version: 1,
                roots: vec![vec![1]],
                tainted: vec![vec![7; 32]],
            }),
            ..Default::default()
        };
        feed.apply(&item);
        assert!(bundles.has_changed().unwrap());
        assert_eq!(
            bundles.borrow_and_update().as_ref().unwrap().tainted.len(),
            1
        );
        feed.apply(&item);
        assert!(!bundles.has_changed().unwrap());
    }
}
