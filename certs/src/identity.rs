//! A workload's identity: an immutable snapshot that is replaced as a whole when it is renewed.

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

/// A certificate chain, its private key, and what they are verified against.
#[derive(Debug)]
pub struct Identity {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: PrivateKeyDer<'static>,
    pub(crate) trust: Arc<Trust>,
    verified: Verified,
}

/// Why a certificate, key and roots do not make a usable identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The chain has no certificate.
    #[error("no certificate in the chain")]
    Empty,
    /// A service needs a certificate that allows TLS servers.
    #[error("the certificate does not allow TLS servers (serverAuth), which a service needs")]
    NotForServers,
    /// The leaf is not a workload certificate.
    #[error(transparent)]
    Leaf(#[from] PeerError),
    /// The roots or revocation lists are not usable.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// The private key does not match, or its type is not supported.
    #[error("the private key is not usable with the certificate: {0}")]
    Key(#[from] rustls::Error),
    /// Verification as a peer would do it failed.
    #[error("peers would reject the certificate: {0}")]
    Refused(#[from] VerifyError),
    /// The authority did not issue a certificate.
    #[error(transparent)]
    Ca(#[from] CaError),
    /// A file could not be read or parsed.
    #[error("{path}: {problem}")]
    File {
        /// The path, or what was read in place of a file.
        path: String,
        /// What is wrong with it.
        problem: String,
    },
}

/// The unverified parts of an identity, as a source provides them.
#[derive(Debug)]
pub struct Parts {
    /// The leaf, then its intermediates.
    pub chain: Vec<CertificateDer<'static>>,
    /// The private key of the leaf.
    pub key: PrivateKeyDer<'static>,
    /// The roots to trust.
    pub roots: Vec<CertificateDer<'static>>,
    /// Revocation lists to enforce. With any list present, every certificate of a path needs one.
    pub crls: Vec<rustls::pki_types::CertificateRevocationListDer<'static>>,
}

impl Identity {
    /// Verifies the parts as a peer would, on each side of a connection that the certificate
    /// allows, before anything can use them.
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
        // This checks that the key belongs to the certificate.
        CertifiedKey::from_der(parts.chain.clone(), parts.key.clone_key(), &provider())?;
        Ok(Self {
            chain: parts.chain,
            key: parts.key,
            trust: Arc::new(trust),
            verified,
        })
    }

    /// The same certificate and key with other roots.
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

    /// Returns the identity if its certificate allows TLS servers.
    ///
    /// # Errors
    ///
    /// [`IdentityError::NotForServers`] otherwise.
    pub fn require_server_auth(self) -> Result<Self, IdentityError> {
        if self.leaf().server_auth {
            Ok(self)
        } else {
            Err(IdentityError::NotForServers)
        }
    }

    /// The SPIFFE id.
    pub fn id(&self) -> &SpiffeId {
        &self.leaf().id
    }

    /// The parsed leaf.
    pub fn leaf(&self) -> &PeerCertificate {
        &self.verified.certificate
    }

    /// The leaf with its verified path.
    pub fn verified(&self) -> &Verified {
        &self.verified
    }

    /// What peers are verified against.
    pub fn trust(&self) -> &Trust {
        &self.trust
    }

    /// The leaf, then its intermediates, in DER.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// The private key.
    pub fn key(&self) -> &PrivateKeyDer<'static> {
        &self.key
    }

    /// The root that this identity's own chain ends in.
    pub(crate) fn own_root(&self) -> Option<&CertificateDer<'static>> {
        let anchor = self.verified.anchor;
        let mut roots = self.trust.roots().iter();
        roots.find(|r| key_id(r) == Some(anchor))
    }
}

impl IdentityError {
    /// Whether the error means that the certificate is revoked.
    pub(crate) fn is_revocation(&self) -> bool {
        match self {
            Self::Refused(refusal) => refusal.is_revocation(),
            Self::Ca(CaError::Revoked(_)) => true,
            _ => false,
        }
    }
}

/// The state of an identity's renewal, for readiness checks and diagnostics.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Health {
    /// Failed attempts since the last success.
    pub failures: u32,
    /// The error of the last attempt, if it failed.
    pub last_error: Option<String>,
    /// Whether the certificate is revoked and renewal has stopped.
    pub revoked: bool,
}

/// The problem reported by a workload whose certificate is revoked.
pub const REVOKED: &str = "this process's certificate is revoked";

/// The current identity of a workload. Cheap to clone; clones share it.
#[derive(Debug, Clone)]
pub struct IdentityHandle {
    current: Arc<ArcSwap<Identity>>,
    changed: watch::Sender<u64>,
    health: Arc<Mutex<Health>>,
    /// The serial of this workload's certificate, when a peer reported it as revoked.
    reported: watch::Sender<Option<Serial>>,
    revoked: watch::Sender<bool>,
}

impl IdentityHandle {
    /// A handle to an identity that has just been verified.
    pub fn new(identity: Identity) -> Self {
        Self {
            current: Arc::new(ArcSwap::from_pointee(identity)),
            changed: watch::Sender::new(0),
            health: Arc::default(),
            reported: watch::Sender::new(None),
            revoked: watch::Sender::new(false),
        }
    }

    /// The current snapshot.
    pub fn current(&self) -> Arc<Identity> {
        self.current.load_full()
    }

    /// Replaces the identity, resets its health, and notifies subscribers.
    pub fn publish(&self, identity: Identity) {
        self.current.store(Arc::new(identity));
        *self.health.lock() = Health::default();
        self.revoked.send_replace(false);
        self.changed.send_modify(|n| *n += 1);
    }

    /// Returns a receiver that counts renewals.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// The state of the renewal.
    pub fn health(&self) -> Health {
        self.health.lock().clone()
    }

    pub(crate) fn record_failure(&self, error: &str) -> u32 {
        let mut health = self.health.lock();
        health.failures += 1;
        health.last_error = Some(error.to_owned());
        health.failures
    }

    pub(crate) fn mark_revoked(&self) {
        self.health.lock().revoked = true;
        self.revoked.send_replace(true);
    }

    /// Returns a receiver that holds whether the identity is revoked.
    pub fn subscribe_revoked(&self) -> watch::Receiver<bool> {
        self.revoked.subscribe()
    }

    /// Completes once this identity rejects a peer that was accepted by `then`, the identity at the
    /// time of the handshake, for a reason that `counts`: the peer's root was removed, or a list
    /// revokes a certificate of its chain.
    pub async fn until_refused(
        &self,
        then: &Identity,
        peer: &Verified,
        side: Side,
        time: &dyn TimeProvider,
        counts: impl Fn(&VerifyError) -> bool,
    ) -> VerifyError {
        let mut changes = self.changed.subscribe();
        let mut verified_with = Arc::clone(&then.trust);
        loop {
            let current = Arc::clone(&self.current().trust);
            let now = time.current_time();
            if let Some(now) = now.filter(|_| !current.is_equivalent(&verified_with)) {
                match current.verify_again(peer, now, side) {
                    Err(refusal) if counts(&refusal) => return refusal,
                    _ => verified_with = current,
                }
            }
            if changes.changed().await.is_err() {
                // The sender is owned by `self`, so it cannot have been dropped.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Reports that the certificate with this serial is revoked, on behalf of a peer that would
    /// know.
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

    /// Why this identity cannot be used at `now` (since the Unix epoch); `None` when it can.
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
                "this process's certificate expired {} s ago{why}",
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
    fn an_identity_that_peers_would_refuse_is_not_created() {
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
    fn a_saved_identity_loads_unchanged() {
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
    fn a_handle_reports_why_it_cannot_be_used() {
        let dir = tempfile::tempdir().unwrap();
        let ca = authority(dir.path());
        let time: Arc<dyn TimeProvider> = Arc::new(At(NOW));
        let issued = ca.issue(&request(), Duration::from_secs(NOW)).unwrap();
        let handle =
            IdentityHandle::new(Identity::new(issued.into_parts(ca.roots()), &time).unwrap());
        assert_eq!(handle.problem(Duration::from_secs(NOW)), None);
        handle.record_failure("auth is unreachable");
        assert_eq!(handle.problem(Duration::from_secs(NOW)), None, "still good");
        let late = handle.problem(Duration::from_secs(NOW + 3605)).unwrap();
        assert!(
            late.contains("expired 5 s ago") && late.contains("auth is unreachable"),
            "{late}"
        );
        handle.mark_revoked();
        assert!(
            handle
                .problem(Duration::from_secs(NOW))
                .unwrap()
                .contains("revoked")
        );
    }
}
