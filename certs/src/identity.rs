//! A workload's identity: one immutable snapshot, swapped whole when it is renewed.

use crate::{
    CaError, Revocations, Serial, SpiffeId,
    crypto::provider,
    peer::{PeerCertificate, PeerError, Verified},
    trust::{Side, Trust, TrustError, VerifyError, key_id},
};
use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rustls::{
    pki_types::{CertificateDer, PrivateKeyDer},
    sign::CertifiedKey,
    time_provider::TimeProvider,
};
use std::{sync::Arc, time::Duration};
use tokio::sync::watch;

#[derive(Debug)]
pub struct Identity {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: PrivateKeyDer<'static>,
    pub(crate) trust: Arc<Trust>,
    verified: Verified,
}

#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("no certificate in the chain")]
    Empty,
    #[error("the certificate is for clients only, and a service needs one for servers, too")]
    NotForServers,
    #[error(transparent)]
    Leaf(#[from] PeerError),
    #[error(transparent)]
    Trust(#[from] TrustError),
    #[error("the private key is not usable with the certificate: {0}")]
    Key(#[from] rustls::Error),
    #[error("peers would refuse the certificate: {0}")]
    Refused(#[from] VerifyError),
    #[error(transparent)]
    Ca(#[from] CaError),
    #[error("{path}: {problem}")]
    File { path: String, problem: String },
}

/// The parts of a snapshot, as they come from a source.
#[derive(Debug)]
pub struct Parts {
    /// The leaf, then its intermediates.
    pub chain: Vec<CertificateDer<'static>>,
    pub key: PrivateKeyDer<'static>,
    pub roots: Vec<CertificateDer<'static>>,
    pub crls: Vec<rustls::pki_types::CertificateRevocationListDer<'static>>,
}

impl Identity {
    /// Checks a snapshot with the eyes of a peer, on each side of a connection that it is for, before
    /// anybody may use it.
    pub fn new(parts: Parts, time: &Arc<dyn TimeProvider>) -> Result<Self, IdentityError> {
        let (leaf, rest) = parts.chain.split_first().ok_or(IdentityError::Empty)?;
        let domain = PeerCertificate::parse(leaf)?.id.trust_domain().to_owned();
        let now = time.current_time().ok_or(IdentityError::Empty)?;
        let trust = Trust::new(
            &domain,
            parts.roots,
            parts.crls,
            Duration::from_secs(now.as_secs()),
        )?;
        let none = Revocations::default();
        let verified = trust.verify(leaf, rest, now, Side::Client, &none)?;
        if verified.certificate.server_auth {
            trust.verify(leaf, rest, now, Side::Server, &none)?;
        }
        // Compares the key with the certificate.
        CertifiedKey::from_der(parts.chain.clone(), parts.key.clone_key(), &provider())?;
        Ok(Self {
            chain: parts.chain,
            key: parts.key,
            trust: Arc::new(trust),
            verified,
        })
    }

    /// The same leaf and key under other roots.
    pub fn with_roots(
        &self,
        roots: Vec<CertificateDer<'static>>,
        time: &Arc<dyn TimeProvider>,
    ) -> Result<Self, IdentityError> {
        let parts = Parts {
            chain: self.chain.clone(),
            key: self.key.clone_key(),
            roots,
            crls: self.trust.crls(),
        };
        Self::new(parts, time)
    }

    /// Whether a service can be served with it.
    pub fn require_server_auth(self) -> Result<Self, IdentityError> {
        if self.leaf().server_auth {
            Ok(self)
        } else {
            Err(IdentityError::NotForServers)
        }
    }

    pub fn id(&self) -> &SpiffeId {
        &self.leaf().id
    }

    pub fn leaf(&self) -> &PeerCertificate {
        &self.verified.certificate
    }

    pub fn verified(&self) -> &Verified {
        &self.verified
    }

    pub fn trust(&self) -> &Trust {
        &self.trust
    }

    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    pub fn key(&self) -> &PrivateKeyDer<'static> {
        &self.key
    }

    /// The root that the own chain ends in.
    pub(crate) fn own_root(&self) -> Option<&CertificateDer<'static>> {
        let anchor = self.verified.anchor;
        let mut roots = self.trust.roots().iter();
        roots.find(|r| key_id(r) == Some(anchor))
    }
}

impl IdentityError {
    /// Whether a list that came with the identity revokes it.
    pub(crate) fn is_revocation(&self) -> bool {
        match self {
            Self::Refused(refusal) => refusal.is_revocation(),
            Self::Ca(CaError::Revoked(_)) => true,
            _ => false,
        }
    }
}

/// How the renewal of an identity fares, for readiness and for whoever asks why.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Health {
    /// Since the last success.
    pub failures: u32,
    pub last_error: Option<String>,
    pub revoked: bool,
}

/// What a revoked workload says of itself.
pub const REVOKED: &str = "the own certificate is revoked";

/// The current identity of a workload. Cheap to clone.
#[derive(Debug, Clone)]
pub struct IdentityHandle {
    current: Arc<ArcSwap<Identity>>,
    changed: watch::Sender<u64>,
    health: Arc<Mutex<Health>>,
    /// The serial of an own certificate that a peer calls revoked.
    reported: watch::Sender<Option<Serial>>,
    revoked: watch::Sender<bool>,
}

impl IdentityHandle {
    pub fn new(identity: Identity) -> Self {
        Self {
            current: Arc::new(ArcSwap::from_pointee(identity)),
            changed: watch::Sender::new(0),
            health: Arc::default(),
            reported: watch::Sender::new(None),
            revoked: watch::Sender::new(false),
        }
    }

    pub fn current(&self) -> Arc<Identity> {
        self.current.load_full()
    }

    pub fn publish(&self, identity: Identity) {
        self.current.store(Arc::new(identity));
        *self.health.lock() = Health::default();
        self.revoked.send_replace(false);
        self.changed.send_modify(|n| *n += 1);
    }

    /// Counts the renewals; a receiver is told of each.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    pub fn health(&self) -> Health {
        self.health.lock().clone()
    }

    pub(crate) fn failed(&self, error: &str) -> u32 {
        let mut health = self.health.lock();
        health.failures += 1;
        health.last_error = Some(error.to_owned());
        health.failures
    }

    pub(crate) fn revoked(&self) {
        self.health.lock().revoked = true;
        self.revoked.send_replace(true);
    }

    /// Whether the identity is revoked, for whoever must tell others.
    pub fn subscribe_revoked(&self) -> watch::Receiver<bool> {
        self.revoked.subscribe()
    }

    /// Returns once this identity refuses a peer whom `then`, the identity of the handshake, has let
    /// in, for a reason that `counts`: its root is gone, or a list revokes a certificate of its chain.
    pub async fn until_refused(
        &self,
        then: &Identity,
        peer: &Verified,
        side: Side,
        time: &dyn TimeProvider,
        counts: impl Fn(&VerifyError) -> bool,
    ) -> VerifyError {
        let mut changes = self.changed.subscribe();
        let mut judged = Arc::clone(&then.trust);
        loop {
            let current = Arc::clone(&self.current().trust);
            let now = time.current_time();
            if let Some(now) = now.filter(|_| !current.is_equivalent(&judged)) {
                match current.verify_again(peer, now, side) {
                    Err(refusal) if counts(&refusal) => return refusal,
                    _ => judged = current,
                }
            }
            if changes.changed().await.is_err() {
                // The sender is in `self`: this cannot be.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Somebody who would know says that this certificate is revoked.
    pub fn report_revoked(&self, serial: &Serial) {
        self.reported.send_replace(Some(serial.clone()));
    }

    pub(crate) async fn until_reported(&self, serial: &Serial) {
        let mut reports = self.reported.subscribe();
        let same = |r: &Option<Serial>| r.as_ref() == Some(serial);
        if reports.wait_for(same).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Why this identity cannot be used now, if so.
    pub fn problem(&self, now: Duration) -> Option<String> {
        let health = self.health();
        let leaf = self.current();
        let why = health
            .last_error
            .map(|e| format!("; renewal fails: {e}"))
            .unwrap_or_default();
        if health.revoked {
            return Some(REVOKED.to_owned());
        }
        let end = leaf.leaf().not_after;
        (end <= now).then(|| {
            format!(
                "the own certificate expired {} s ago{why}",
                (now - end).as_secs()
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Authority, IdentityFiles,
        ca::{Lifetimes, Request},
    };
    use rustls::pki_types::UnixTime;
    use std::path::Path;

    #[derive(Debug)]
    struct At(u64);

    impl TimeProvider for At {
        fn current_time(&self) -> Option<UnixTime> {
            Some(UnixTime::since_unix_epoch(Duration::from_secs(self.0)))
        }
    }

    const NOW: u64 = 1_800_000_000;

    fn request() -> Request {
        Request::new(
            SpiffeId::new("tars.local", "/auth").unwrap(),
            Duration::from_secs(3600),
        )
    }

    fn authority(dir: &Path) -> Authority {
        Authority::init(
            dir,
            "tars.local",
            Lifetimes::default(),
            Duration::from_secs(NOW),
        )
        .unwrap()
    }

    #[test]
    fn a_snapshot_that_peers_would_refuse_is_not_made() {
        let dir = tempfile::tempdir().unwrap();
        let ca = authority(dir.path());
        let issued = ca.issue(&request(), Duration::from_secs(NOW)).unwrap();
        let late: Arc<dyn TimeProvider> = Arc::new(At(NOW + 7200));
        let expired = Identity::new(issued.into_parts(ca.roots()), &late);
        let Err(IdentityError::Refused(refusal)) = expired else {
            panic!("{expired:?}");
        };
        assert_eq!(refusal.reason(), "expired");

        let other = tempfile::tempdir().unwrap();
        let stranger = authority(other.path());
        let issued = ca.issue(&request(), Duration::from_secs(NOW)).unwrap();
        let time: Arc<dyn TimeProvider> = Arc::new(At(NOW));
        assert!(matches!(
            Identity::new(issued.into_parts(stranger.roots()), &time),
            Err(IdentityError::Refused(_))
        ));
    }

    #[test]
    fn a_key_of_another_certificate_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let ca = authority(dir.path());
        let time: Arc<dyn TimeProvider> = Arc::new(At(NOW));
        let one = ca.issue(&request(), Duration::from_secs(NOW)).unwrap();
        let two = ca.issue(&request(), Duration::from_secs(NOW)).unwrap();
        let mut parts = one.into_parts(ca.roots());
        parts.key = two.into_parts(ca.roots()).key;
        assert!(matches!(
            Identity::new(parts, &time),
            Err(IdentityError::Key(_))
        ));
    }

    #[test]
    fn files_come_back_as_the_same_identity() {
        let dir = tempfile::tempdir().unwrap();
        let ca = authority(&dir.path().join("ca"));
        let files = IdentityFiles::in_dir(&dir.path().join("id"));
        let issued = ca.issue(&request(), Duration::from_secs(NOW)).unwrap();
        files.save(&issued, &ca.bundle_pem()).unwrap();
        let time: Arc<dyn TimeProvider> = Arc::new(At(NOW));
        let identity = files.load(&time).unwrap();
        assert_eq!(identity.id().as_str(), "spiffe://tars.local/auth");
        let again = IdentityFiles::in_dir(&dir.path().join("again"));
        again.save_identity(&identity).unwrap();
        let copy = again.load(&time).unwrap();
        assert_eq!(copy.leaf(), identity.leaf());
    }

    #[test]
    fn a_handle_says_why_it_cannot_be_used() {
        let dir = tempfile::tempdir().unwrap();
        let ca = authority(dir.path());
        let time: Arc<dyn TimeProvider> = Arc::new(At(NOW));
        let issued = ca.issue(&request(), Duration::from_secs(NOW)).unwrap();
        let handle =
            IdentityHandle::new(Identity::new(issued.into_parts(ca.roots()), &time).unwrap());
        assert_eq!(handle.problem(Duration::from_secs(NOW)), None);
        handle.failed("auth is away");
        assert_eq!(handle.problem(Duration::from_secs(NOW)), None, "still good");
        let late = handle.problem(Duration::from_secs(NOW + 3605)).unwrap();
        assert!(
            late.contains("expired 5 s ago") && late.contains("auth is away"),
            "{late}"
        );
        handle.revoked();
        assert!(
            handle
                .problem(Duration::from_secs(NOW))
                .unwrap()
                .contains("revoked")
        );
    }
}
