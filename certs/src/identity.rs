//! A workload's identity: one immutable snapshot, swapped whole when it is renewed.

use crate::{
    Authority, CaError, PeerCertificate, PeerError, SpiffeId,
    ca::{Issued, Request},
    tls::{self, TlsError},
};
use arc_swap::ArcSwap;
use rustls::{
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::danger::ClientCertVerifier,
    time_provider::TimeProvider,
};
use std::{path::Path, sync::Arc, time::Duration};
use tokio::sync::watch;

#[derive(Debug)]
pub struct Identity {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: PrivateKeyDer<'static>,
    pub(crate) roots: Vec<CertificateDer<'static>>,
    leaf: PeerCertificate,
}

#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("no certificate in the chain")]
    Empty,
    #[error(transparent)]
    Leaf(#[from] PeerError),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("peers would refuse the certificate: {0}")]
    Refused(rustls::Error),
    #[error(transparent)]
    Ca(#[from] CaError),
    #[error("{path}: {problem}")]
    File { path: String, problem: String },
}

impl Identity {
    /// Checks a snapshot with the eyes of a peer before anybody may use it.
    pub fn new(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        roots: Vec<CertificateDer<'static>>,
        time: &Arc<dyn TimeProvider>,
    ) -> Result<Self, IdentityError> {
        let leaf = PeerCertificate::parse(chain.first().ok_or(IdentityError::Empty)?)?;
        let identity = Self {
            chain,
            key,
            roots,
            leaf,
        };
        tls::server(&identity, Arc::clone(time))?;
        identity.check_as_peer(time.as_ref())?;
        Ok(identity)
    }

    pub fn from_files(
        files: &crate::ca::IdentityFiles,
        time: &Arc<dyn TimeProvider>,
    ) -> Result<Self, IdentityError> {
        let bad = |path: &Path, problem: String| IdentityError::File {
            path: path.display().to_string(),
            problem,
        };
        let certs = |path: &Path| -> Result<Vec<CertificateDer<'static>>, IdentityError> {
            CertificateDer::pem_file_iter(path)
                .and_then(Iterator::collect)
                .map_err(|e| bad(path, e.to_string()))
        };
        let key = crate::secret::read(&files.key).map_err(|e| bad(&files.key, e.to_string()))?;
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes())
            .map_err(|e| bad(&files.key, e.to_string()))?;
        Self::new(certs(&files.cert)?, key, certs(&files.ca)?, time)
    }

    fn check_as_peer(&self, time: &dyn TimeProvider) -> Result<(), IdentityError> {
        let verifier = crate::verify::ClientVerifier::new(
            tls::roots(self)?,
            tls::provider(),
            self.id().trust_domain(),
        )
        .map_err(TlsError::Verifier)?;
        let now = time.current_time().ok_or(IdentityError::Empty)?;
        let (leaf, rest) = self.chain.split_first().ok_or(IdentityError::Empty)?;
        verifier
            .verify_client_cert(leaf, rest, now)
            .map_err(IdentityError::Refused)?;
        Ok(())
    }

    pub fn id(&self) -> &SpiffeId {
        &self.leaf.id
    }

    pub fn leaf(&self) -> &PeerCertificate {
        &self.leaf
    }
}

/// The current identity of a workload. Cheap to clone.
#[derive(Debug, Clone)]
pub struct IdentityHandle {
    current: Arc<ArcSwap<Identity>>,
    changed: watch::Sender<u64>,
}

impl IdentityHandle {
    pub fn new(identity: Identity) -> Self {
        Self {
            current: Arc::new(ArcSwap::from_pointee(identity)),
            changed: watch::Sender::new(0),
        }
    }

    pub fn current(&self) -> Arc<Identity> {
        self.current.load_full()
    }

    pub fn publish(&self, identity: Identity) {
        self.current.store(Arc::new(identity));
        self.changed.send_modify(|n| *n += 1);
    }

    /// Counts the renewals; a receiver is told of each.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}

/// Issues from an authority in this process.
pub fn issue(
    authority: &Authority,
    request: &Request,
    time: &Arc<dyn TimeProvider>,
) -> Result<Identity, IdentityError> {
    let Issued { chain, key, .. } = authority.issue(request, now(time.as_ref()))?;
    Identity::new(chain, key, authority.roots(), time)
}

fn now(time: &dyn TimeProvider) -> Duration {
    time.current_time()
        .map_or(Duration::ZERO, |t| Duration::from_secs(t.as_secs()))
}

/// When to renew: two thirds into the life, moved by `jitter` in -1..=1 times a twentieth of it.
pub fn renew_at(not_before: Duration, not_after: Duration, jitter: f64) -> Duration {
    let life = not_after.saturating_sub(not_before);
    let offset = life.as_secs_f64() * (2.0 / 3.0 + jitter.clamp(-1.0, 1.0) / 20.0);
    not_before + Duration::from_secs_f64(offset)
}

/// Keeps a handle fresh from an authority in this process; the old identity stays while a renewal
/// fails.
pub async fn keep_fresh(
    handle: IdentityHandle,
    authority: Arc<Authority>,
    request: Request,
    time: Arc<dyn TimeProvider>,
) {
    let mut failures = 0u32;
    loop {
        let leaf = handle.current().leaf().clone();
        let due = renew_at(
            leaf.not_before,
            leaf.not_after,
            rand::random::<f64>() * 2.0 - 1.0,
        );
        let backoff = Duration::from_secs(1 << failures.min(6));
        let wait = due.saturating_sub(now(time.as_ref()));
        tokio::time::sleep(if failures == 0 { wait } else { backoff }).await;
        match issue(&authority, &request, &time) {
            Ok(identity) => {
                tracing::debug!(id = %identity.id(), serial = identity.leaf().serial, "certificate renewed");
                handle.publish(identity);
                failures = 0;
            }
            Err(e) => {
                failures += 1;
                tracing::warn!(id = %request.id, error = %e, failures, "certificate not renewed; the old one stays");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ca::Lives;
    use rustls::pki_types::UnixTime;

    #[derive(Debug)]
    struct At(u64);

    impl TimeProvider for At {
        fn current_time(&self) -> Option<UnixTime> {
            Some(UnixTime::since_unix_epoch(Duration::from_secs(self.0)))
        }
    }

    const NOW: u64 = 1_800_000_000;

    fn request() -> Request {
        let id = SpiffeId::new("tars.local", "/auth").unwrap();
        Request {
            id,
            dns: vec![],
            ips: vec![],
            life: Duration::from_secs(3600),
        }
    }

    fn authority(dir: &Path) -> Authority {
        Authority::init(
            dir,
            "tars.local",
            Lives::default(),
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
        let expired = Identity::new(issued.chain, issued.key, ca.roots(), &late);
        assert!(
            matches!(expired, Err(IdentityError::Refused(_))),
            "{expired:?}"
        );

        let other = tempfile::tempdir().unwrap();
        let stranger = authority(other.path());
        let issued = ca.issue(&request(), Duration::from_secs(NOW)).unwrap();
        let time: Arc<dyn TimeProvider> = Arc::new(At(NOW));
        assert!(matches!(
            Identity::new(issued.chain, issued.key, stranger.roots(), &time),
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
        assert!(matches!(
            Identity::new(one.chain, two.key, ca.roots(), &time),
            Err(IdentityError::Tls(_))
        ));
    }

    #[test]
    fn files_come_back_as_the_same_identity() {
        let dir = tempfile::tempdir().unwrap();
        let ca = authority(&dir.path().join("ca"));
        let files = crate::ca::IdentityFiles::in_dir(&dir.path().join("id"));
        let issued = ca.issue(&request(), Duration::from_secs(NOW)).unwrap();
        files.save(&issued, ca.root_pem()).unwrap();
        let time: Arc<dyn TimeProvider> = Arc::new(At(NOW));
        let identity = Identity::from_files(&files, &time).unwrap();
        assert_eq!(identity.id().as_str(), "spiffe://tars.local/auth");
    }

    #[test]
    fn renewal_comes_at_two_thirds_of_the_life() {
        let (from, to) = (Duration::from_secs(1000), Duration::from_secs(4000));
        assert_eq!(renew_at(from, to, 0.0), Duration::from_secs(3000));
        assert_eq!(renew_at(from, to, 1.0), Duration::from_secs(3150));
        assert_eq!(renew_at(from, to, -9.0), Duration::from_secs(2850));
    }
}
