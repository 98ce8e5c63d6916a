//! Verification of certificate chains: the roots and revocation lists of an identity, and the one
//! procedure by which chains are verified, on both sides of a handshake, when an identity is
//! loaded, and again on open connections after roots or lists have changed.
//!
//! webpki builds and verifies the path. What it leaves open is checked here for each path that it
//! proposes: it does not look at a root's validity, path length or key usage, at the leaf's own
//! key, at URI names, or at a missing key usage.

mod error;
mod issuer;
mod lists;

pub use error::VerifyError;
pub use issuer::IssuerError;
pub(crate) use issuer::SigningCertificate;
pub(crate) use lists::RevocationList;

use crate::{
    CertName, KeyId, PeerError, Revocations, Serial,
    crypto::provider,
    peer::{PeerCertificate, Verified},
};
use lists::{Issuer, Lists, Subject};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, TrustAnchor, UnixTime};
use std::{cell::RefCell, time::Duration};
use webpki::{EndEntityCert, KeyUsage, VerifiedPath};
use x509_parser::prelude::{FromDer, X509Certificate};

/// More intermediates than any workload needs; longer chains only cost time.
const MAX_INTERMEDIATES: usize = 6;

/// The role of the peer whose chain is verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The peer is the TLS client.
    Client,
    /// The peer is the TLS server.
    Server,
}

/// Why roots and revocation lists are not usable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TrustError {
    /// There is no root, or every root has expired.
    #[error("there are no root certificates that are still valid")]
    NoRoots,
    /// A root is not one that may sign certificates of this mesh.
    #[error("root {subject}: {problem}")]
    Root {
        /// The distinguished name of the root, or `?`.
        subject: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A revocation list does not parse.
    #[error("a revocation list does not parse: {0}")]
    Crl(String),
}

#[derive(Debug)]
struct Root {
    anchor: TrustAnchor<'static>,
    is: SigningCertificate,
    /// Its SubjectPublicKeyInfo.
    spki: Vec<u8>,
}

/// Roots and revocation lists, parsed and ready for use.
#[derive(Debug)]
pub struct Trust {
    trust_domain: String,
    ders: Vec<CertificateDer<'static>>,
    roots: Vec<Root>,
    anchors: Vec<TrustAnchor<'static>>,
    lists: Lists,
}

/// The names along a verified path, leaf first, and the key of the root.
type VerifiedNames = (Vec<CertName>, KeyId);

impl Trust {
    /// Parses the roots and lists. Every root has to be valid, because a root that was skipped
    /// silently would only be missed when it is needed. Expired roots are the exception: bundles
    /// keep them for long, and they are left out with a warning.
    pub fn new(
        trust_domain: &str,
        ders: Vec<CertificateDer<'static>>,
        crls: Vec<CertificateRevocationListDer<'static>>,
        now: Duration,
    ) -> Result<Self, TrustError> {
        let mut trust = Self {
            trust_domain: trust_domain.to_owned(),
            ders: Vec::new(),
            roots: Vec::new(),
            anchors: Vec::new(),
            lists: Lists::new(crls).map_err(|e| TrustError::Crl(e.to_string()))?,
        };
        for der in ders {
            let root = root(&der, trust_domain)?;
            if root.is.not_after <= now {
                tracing::warn!(root = %root.is.key, "ignoring an expired root in the bundle");
                continue;
            }
            trust.anchors.push(root.anchor.clone());
            trust.roots.push(root);
            trust.ders.push(der);
        }
        if trust.roots.is_empty() {
            return Err(TrustError::NoRoots);
        }
        Ok(trust)
    }

    /// The trust domain that peers must belong to.
    pub fn trust_domain(&self) -> &str {
        &self.trust_domain
    }

    /// The roots in DER.
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.ders
    }

    /// The revocation lists in DER.
    pub fn crls(&self) -> Vec<CertificateRevocationListDer<'static>> {
        self.lists.ders().cloned().collect()
    }

    /// The offered lists, where one that is older than the list in use is replaced by that.
    pub(crate) fn newest_lists(
        &self,
        offered: Vec<CertificateRevocationListDer<'static>>,
        now: Duration,
    ) -> Vec<CertificateRevocationListDer<'static>> {
        self.lists.newest(offered, now)
    }

    /// The keys of the roots.
    pub fn root_keys(&self) -> impl Iterator<Item = KeyId> {
        self.roots.iter().map(|r| r.is.key)
    }

    /// Whether every chain is judged the same way by both.
    pub(crate) fn is_equivalent(&self, other: &Self) -> bool {
        self.trust_domain == other.trust_domain
            && self.ders == other.ders
            && self.lists.ders().eq(other.lists.ders())
    }

    /// When the first root expires, since the Unix epoch; operators need to know long before.
    pub fn first_root_end(&self) -> Option<Duration> {
        self.roots.iter().map(|r| r.is.not_after).min()
    }

    /// Verifies a peer's chain: path, usage, trust domain, revocation lists, and the deny-list.
    ///
    /// # Errors
    ///
    /// The first rule that the chain breaks.
    pub fn verify(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        side: Side,
        revocations: &Revocations,
    ) -> Result<Verified, VerifyError> {
        if intermediates.len() > MAX_INTERMEDIATES {
            return Err(VerifyError::TooLong(intermediates.len()));
        }
        let (chain, anchor) = self.follow(end_entity, intermediates, now, side)?;
        let certificate = PeerCertificate::parse_in(end_entity, &self.trust_domain)?;
        let fits = match side {
            Side::Client => certificate.client_auth,
            Side::Server => certificate.server_auth,
        };
        if !fits {
            return Err(VerifyError::Purpose);
        }
        let shown = std::iter::once(end_entity).chain(intermediates);
        let peer = Verified {
            certificate,
            chain,
            anchor,
            presented: shown.map(|c| c.clone().into_owned()).collect(),
        };
        if revocations.denies(&peer) {
            return Err(VerifyError::Revoked);
        }
        Ok(peer)
    }

    /// Verifies a peer again that was accepted with other roots or lists.
    pub(crate) fn verify_again(
        &self,
        peer: &Verified,
        now: UnixTime,
        side: Side,
    ) -> Result<(), VerifyError> {
        let Some((leaf, rest)) = peer.presented.split_first() else {
            return Ok(());
        };
        self.verify(leaf, rest, now, side, &Revocations::default())
            .map(drop)
    }

    /// Finds a path that both webpki and this module accept.
    fn follow(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        side: Side,
    ) -> Result<VerifiedNames, VerifyError> {
        let leaf = EndEntityCert::try_from(end_entity).map_err(VerifyError::Chain)?;
        let usage = match side {
            Side::Client => KeyUsage::client_auth(),
            Side::Server => KeyUsage::server_auth(),
        };
        let verdict = RefCell::new(None);
        let check = |path: &VerifiedPath<'_>| {
            let checked = self.check_path(path, now);
            let good = checked.is_ok();
            verdict.replace(Some(checked));
            good.then_some(()).ok_or(webpki::Error::UnknownIssuer)
        };
        let algorithms = provider().signature_verification_algorithms.all;
        let found = leaf.verify_for_usage(
            algorithms,
            &self.anchors,
            intermediates,
            now,
            usage,
            None,
            Some(&check),
        );
        // A path that was checked here reached a root, so its error is the most specific one.
        let found = found.map(drop).map_err(VerifyError::Chain);
        let checked = verdict.into_inner();
        checked.unwrap_or_else(|| {
            Err(found
                .err()
                .unwrap_or(VerifyError::Chain(webpki::Error::UnknownIssuer)))
        })
    }

    /// Checks what webpki leaves open, for a path whose signatures, times and names are valid.
    fn check_path(
        &self,
        path: &VerifiedPath<'_>,
        now: UnixTime,
    ) -> Result<VerifiedNames, VerifyError> {
        let root = self.root_of(path)?;
        let at = Duration::from_secs(now.as_secs());
        if root.is.not_after <= at {
            return Err(VerifyError::ExpiredRoot);
        }
        if root.is.not_before > at {
            return Err(VerifyError::EarlyRoot);
        }
        let (mut names, mut below) = (Vec::new(), 0u32);
        let mut issuer = Issuer {
            is: root.is,
            spki: &root.spki,
        };
        // From the root down, so that each issuer is checked before what it signed.
        let ders: Vec<CertificateDer<'_>> = path
            .intermediate_certificates()
            .rev()
            .map(|c| c.der())
            .collect();
        for (cert, der) in path.intermediate_certificates().rev().zip(&ders) {
            let subject = Subject {
                serial: cert.serial(),
                issuer_name: cert.issuer(),
                is_authority: true,
                der,
            };
            names.push(self.unrevoked_name(&subject, &issuer, now)?);
            issuer = self.intermediate(der)?;
            below += 1;
        }
        if root.is.path_len.is_some_and(|most| below > most) {
            return Err(VerifyError::Chain(webpki::Error::PathLenConstraintViolated));
        }
        let (leaf, der) = (path.end_entity(), path.end_entity().der());
        let subject = Subject {
            serial: leaf.serial(),
            issuer_name: leaf.issuer(),
            is_authority: false,
            der: &der,
        };
        names.push(self.unrevoked_name(&subject, &issuer, now)?);
        names.reverse();
        Ok((names, root.is.key))
    }

    fn root_of(&self, path: &VerifiedPath<'_>) -> Result<&Root, VerifyError> {
        let anchor = path.anchor();
        let same = |r: &&Root| {
            r.anchor.subject_public_key_info == anchor.subject_public_key_info
                && r.anchor.subject == anchor.subject
        };
        let found = self.roots.iter().find(same);
        found.ok_or(VerifyError::Chain(webpki::Error::UnknownIssuer))
    }

    fn intermediate<'a>(&self, der: &'a CertificateDer<'_>) -> Result<Issuer<'a>, VerifyError> {
        let (_, cert) = X509Certificate::from_der(der).map_err(|_| IssuerError::Malformed)?;
        Ok(Issuer {
            is: SigningCertificate::of(&cert, Some(&self.trust_domain))?,
            spki: cert.tbs_certificate.subject_pki.raw,
        })
    }

    /// The name of a certificate that no list revokes.
    fn unrevoked_name(
        &self,
        subject: &Subject<'_>,
        issuer: &Issuer<'_>,
        now: UnixTime,
    ) -> Result<CertName, VerifyError> {
        self.lists.check(subject, issuer, now)?;
        let serial = Serial::from_bytes(subject.serial).map_err(|_| PeerError::Malformed)?;
        Ok(CertName {
            issuer: issuer.is.key,
            serial,
        })
    }
}

/// The hash of the public key in a certificate in DER; `None` when it does not parse.
pub fn key_id(der: &[u8]) -> Option<KeyId> {
    let (_, cert) = X509Certificate::from_der(der).ok()?;
    Some(KeyId::of_spki(cert.public_key().raw))
}

fn root(der: &CertificateDer<'static>, trust_domain: &str) -> Result<Root, TrustError> {
    let bad = |subject: String, problem: String| TrustError::Root { subject, problem };
    let (_, cert) = X509Certificate::from_der(der)
        .map_err(|_| bad("?".to_owned(), "is not a certificate".to_owned()))?;
    let subject = || cert.subject().to_string();
    let is = SigningCertificate::of(&cert, Some(trust_domain))
        .map_err(|e| bad(subject(), e.to_string()))?;
    let anchor = webpki::anchor_from_trusted_cert(der)
        .map_err(|e| bad(subject(), e.to_string()))?
        .to_owned();
    Ok(Root {
        anchor,
        is,
        spki: cert.public_key().raw.to_vec(),
    })
}
