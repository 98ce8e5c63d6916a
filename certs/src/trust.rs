//! Whom an identity trusts: roots, and the revocation lists that came with them; and the one way in
//! which a peer's chain is judged, by both sides of a handshake, when an own identity is loaded, and
//! again on open connections when roots or lists have changed.
//!
//! webpki follows the chain; what it leaves open is decided here, for each path that it proposes. It
//! never looks at a root's validity, path length or key usage, at the leaf's own key, at URI names,
//! or at a missing key usage.

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
use lists::{Asked, Issuer, Lists};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, TrustAnchor, UnixTime};
use std::{cell::RefCell, time::Duration};
use webpki::{EndEntityCert, KeyUsage, VerifiedPath};
use x509_parser::prelude::{FromDer, X509Certificate};

/// A chain of more is no workload's: deep chains only cost time.
const MAX_INTERMEDIATES: usize = 6;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Client,
    Server,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TrustError {
    #[error("there are no root certificates that are still valid")]
    NoRoots,
    #[error("root {subject}: {problem}")]
    Root { subject: String, problem: String },
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

/// Roots and revocation lists, ready for use.
#[derive(Debug)]
pub struct Trust {
    trust_domain: String,
    ders: Vec<CertificateDer<'static>>,
    roots: Vec<Root>,
    anchors: Vec<TrustAnchor<'static>>,
    lists: Lists,
}

/// The names along a path, leaf first, and the root's key.
type Followed = (Vec<CertName>, KeyId);

impl Trust {
    /// Every root must be good: one that is skipped silently is found out when it is needed. Only
    /// expired ones are left out, with a warning, as bundles keep them for long.
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
                tracing::warn!(root = %root.is.key, "an expired root is left out of the bundle");
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

    pub fn trust_domain(&self) -> &str {
        &self.trust_domain
    }

    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.ders
    }

    pub fn crls(&self) -> Vec<CertificateRevocationListDer<'static>> {
        self.lists.ders().cloned().collect()
    }

    /// What is offered, but for lists that go back to before one that is in use here.
    pub(crate) fn newest_lists(
        &self,
        offered: Vec<CertificateRevocationListDer<'static>>,
        now: Duration,
    ) -> Vec<CertificateRevocationListDer<'static>> {
        self.lists.newest(offered, now)
    }

    pub fn root_keys(&self) -> impl Iterator<Item = KeyId> {
        self.roots.iter().map(|r| r.is.key)
    }

    /// Whether every chain has the same verdict here as there.
    pub(crate) fn is_equivalent(&self, other: &Self) -> bool {
        self.trust_domain == other.trust_domain
            && self.ders == other.ders
            && self.lists.ders().eq(other.lists.ders())
    }

    /// When the first of the roots ends: someone should be told long before.
    pub fn first_root_end(&self) -> Option<Duration> {
        self.roots.iter().map(|r| r.is.not_after).min()
    }

    /// Judges a peer's chain.
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

    /// Judges a peer once more, who was let in under other roots or lists.
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

    /// Finds a path that webpki and this file both take.
    fn follow(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        side: Side,
    ) -> Result<Followed, VerifyError> {
        let leaf = EndEntityCert::try_from(end_entity).map_err(VerifyError::Chain)?;
        let usage = match side {
            Side::Client => KeyUsage::client_auth(),
            Side::Server => KeyUsage::server_auth(),
        };
        let verdict = RefCell::new(None);
        let judge = |path: &VerifiedPath<'_>| {
            let judged = self.judge(path, now);
            let good = judged.is_ok();
            verdict.replace(Some(judged));
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
            Some(&judge),
        );
        // What was judged here went all the way up to a root: its refusal says the most.
        let found = found.map(drop).map_err(VerifyError::Chain);
        let judged = verdict.into_inner();
        judged.unwrap_or_else(|| {
            Err(found
                .err()
                .unwrap_or(VerifyError::Chain(webpki::Error::UnknownIssuer)))
        })
    }

    /// What webpki leaves open of a path whose signatures, times and names are good.
    fn judge(&self, path: &VerifiedPath<'_>, now: UnixTime) -> Result<Followed, VerifyError> {
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
        // From the root down: each issuer is judged before what it signed.
        let ders: Vec<CertificateDer<'_>> = path
            .intermediate_certificates()
            .rev()
            .map(|c| c.der())
            .collect();
        for (cert, der) in path.intermediate_certificates().rev().zip(&ders) {
            let asked = Asked {
                serial: cert.serial(),
                issuer_name: cert.issuer(),
                is_authority: true,
                der,
            };
            names.push(self.standing(&asked, &issuer, now)?);
            issuer = self.intermediate(der)?;
            below += 1;
        }
        if root.is.path_len.is_some_and(|most| below > most) {
            return Err(VerifyError::Chain(webpki::Error::PathLenConstraintViolated));
        }
        let (leaf, der) = (path.end_entity(), path.end_entity().der());
        let asked = Asked {
            serial: leaf.serial(),
            issuer_name: leaf.issuer(),
            is_authority: false,
            der: &der,
        };
        names.push(self.standing(&asked, &issuer, now)?);
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
    fn standing(
        &self,
        asked: &Asked<'_>,
        issuer: &Issuer<'_>,
        now: UnixTime,
    ) -> Result<CertName, VerifyError> {
        self.lists.check(asked, issuer, now)?;
        let serial = Serial::from_bytes(asked.serial).map_err(|_| PeerError::Malformed)?;
        Ok(CertName {
            issuer: issuer.is.key,
            serial,
        })
    }
}

/// The key that stands in a certificate.
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
