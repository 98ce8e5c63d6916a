//! Whom an identity trusts: roots, and the revocation lists that came with them; and the one way in
//! which a peer's chain is judged, by both sides of a handshake.
//!
//! webpki follows the chain; what it leaves open is decided here. It never looks at expired roots,
//! at the leaf's own key, at URI names, or at a missing key usage, and takes an expired revocation
//! list for a good one unless told otherwise.

use crate::{
    CertName, KeyId, PeerError, Revocations, Serial,
    peer::{PeerCertificate, Verified, is_strong, since_epoch},
    tls,
};
use rustls::{
    CertificateError, Error, OtherError,
    pki_types::{CertificateDer, CertificateRevocationListDer, TrustAnchor, UnixTime},
};
use std::{sync::Arc, time::Duration};
use webpki::{
    CertRevocationList, EndEntityCert, ExpirationPolicy, KeyUsage, OwnedCertRevocationList,
    RevocationCheckDepth, RevocationOptionsBuilder, UnknownStatusPolicy,
};
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

/// Why a peer's chain is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error(transparent)]
    Peer(#[from] PeerError),
    #[error("the chain: {0}")]
    Chain(webpki::Error),
    #[error("the chain has {0} intermediates; at most {MAX_INTERMEDIATES} are looked at")]
    TooLong(usize),
    #[error("the root has expired")]
    ExpiredRoot,
    #[error("the certificate is revoked")]
    Revoked,
    #[error("the certificate is not for this use")]
    Purpose,
    #[error("another workload answers: {0}")]
    OtherId(String),
}

impl Refusal {
    /// A metric label.
    pub fn reason(&self) -> &'static str {
        use webpki::Error as E;
        match self {
            Self::Peer(e) => e.reason(),
            Self::TooLong(_) => "chain_too_long",
            Self::ExpiredRoot => "expired_root",
            Self::Revoked => "revoked",
            Self::Purpose => "purpose",
            Self::OtherId(_) => "other_id",
            Self::Chain(e) => match e {
                E::CertExpired { .. } => "expired",
                E::CertNotValidYet { .. } => "not_yet_valid",
                E::UnknownIssuer => "unknown_issuer",
                E::CertRevoked => "revoked",
                E::CrlExpired { .. } => "crl_expired",
                E::UnknownRevocationStatus => "crl_missing",
                E::InvalidCrlSignatureForPublicKey => "crl_signature",
                E::InvalidSignatureForPublicKey => "signature",
                E::CaUsedAsEndEntity => "leaf_is_ca",
                E::EndEntityUsedAsCa => "issuer_is_no_ca",
                E::PathLenConstraintViolated => "path_length",
                E::NameConstraintViolation => "name_constraint",
                E::UnsupportedCriticalExtension => "critical_extension",
                E::RequiredEkuNotFoundContext(_) | E::EmptyEkuExtension => "purpose",
                E::MaximumPathBuildCallsExceeded
                | E::MaximumPathDepthExceeded
                | E::MaximumSignatureChecksExceeded => "chain_too_long",
                E::UnsupportedSignatureAlgorithmContext(_)
                | E::UnsupportedSignatureAlgorithmForPublicKeyContext(_) => "weak_signature",
                _ => "chain",
            },
        }
    }

    /// With the alert that says the most.
    pub(crate) fn into_rustls(self) -> Error {
        let kind = match self.reason() {
            "expired" | "expired_root" => CertificateError::Expired,
            "not_yet_valid" => CertificateError::NotValidYet,
            "unknown_issuer" => CertificateError::UnknownIssuer,
            "signature" => CertificateError::BadSignature,
            "revoked" => CertificateError::Revoked,
            "purpose" => CertificateError::InvalidPurpose,
            "crl_missing" | "crl_signature" => CertificateError::UnknownRevocationStatus,
            _ => CertificateError::Other(OtherError(Arc::new(self))),
        };
        Error::InvalidCertificate(kind)
    }
}

#[derive(Debug)]
struct Root {
    anchor: TrustAnchor<'static>,
    key: KeyId,
    not_after: Duration,
}

/// Roots and revocation lists, ready for use.
#[derive(Debug)]
pub struct Trust {
    trust_domain: String,
    ders: Vec<CertificateDer<'static>>,
    roots: Vec<Root>,
    anchors: Vec<TrustAnchor<'static>>,
    crls: Vec<CertRevocationList<'static>>,
    crl_ders: Vec<CertificateRevocationListDer<'static>>,
}

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
            crls: Vec::new(),
            crl_ders: Vec::new(),
        };
        for der in ders {
            let root = root(&der)?;
            if root.not_after <= now {
                tracing::warn!(root = %root.key, "an expired root is left out of the bundle");
                continue;
            }
            trust.anchors.push(root.anchor.clone());
            trust.roots.push(root);
            trust.ders.push(der);
        }
        for der in crls {
            let crl = OwnedCertRevocationList::from_der(&der)
                .map_err(|e| TrustError::Crl(e.to_string()))?;
            trust.crls.push(crl.into());
            trust.crl_ders.push(der);
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

    pub fn crls(&self) -> &[CertificateRevocationListDer<'static>] {
        &self.crl_ders
    }

    pub fn root_keys(&self) -> impl Iterator<Item = KeyId> {
        self.roots.iter().map(|r| r.key)
    }

    pub fn trusts(&self, anchor: &KeyId) -> bool {
        self.roots.iter().any(|r| r.key == *anchor)
    }

    /// When the first of the roots ends: someone should be told long before.
    pub fn first_root_end(&self) -> Option<Duration> {
        self.roots.iter().map(|r| r.not_after).min()
    }

    /// Judges a peer's chain.
    pub fn verify(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        side: Side,
        revocations: &Revocations,
    ) -> Result<Verified, Refusal> {
        if intermediates.len() > MAX_INTERMEDIATES {
            return Err(Refusal::TooLong(intermediates.len()));
        }
        let (chain, anchor) = self.follow(end_entity, intermediates, now, side)?;
        let certificate = PeerCertificate::parse_in(end_entity, &self.trust_domain)?;
        let fits = match side {
            Side::Client => certificate.client_auth,
            Side::Server => certificate.server_auth,
        };
        if !fits {
            return Err(Refusal::Purpose);
        }
        let peer = Verified {
            certificate,
            chain,
            anchor,
        };
        if revocations.denies(&peer) {
            return Err(Refusal::Revoked);
        }
        Ok(peer)
    }

    fn follow(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        side: Side,
    ) -> Result<(Vec<CertName>, KeyId), Refusal> {
        let cert = EndEntityCert::try_from(end_entity).map_err(Refusal::Chain)?;
        let usage = match side {
            Side::Client => KeyUsage::client_auth(),
            Side::Server => KeyUsage::server_auth(),
        };
        let crls: Vec<&CertRevocationList<'_>> = self.crls.iter().collect();
        // Where lists are configured, a leaf that none of them speaks for is refused.
        let revocation = RevocationOptionsBuilder::new(&crls).ok().map(|builder| {
            builder
                .with_depth(RevocationCheckDepth::EndEntity)
                .with_status_policy(UnknownStatusPolicy::Deny)
                .with_expiration_policy(ExpirationPolicy::Enforce)
                .build()
        });
        let algorithms = tls::provider().signature_verification_algorithms.all;
        let path = cert
            .verify_for_usage(
                algorithms,
                &self.anchors,
                intermediates,
                now,
                usage,
                revocation,
                None,
            )
            .map_err(Refusal::Chain)?;
        let root = self
            .anchors
            .iter()
            .position(|a| {
                a.subject_public_key_info == path.anchor().subject_public_key_info
                    && a.subject == path.anchor().subject
            })
            .and_then(|at| self.roots.get(at))
            .ok_or(Refusal::Chain(webpki::Error::UnknownIssuer))?;
        if root.not_after.as_secs() <= now.as_secs() {
            return Err(Refusal::ExpiredRoot);
        }
        let mut serials = vec![cert.serial().to_vec()];
        let mut issuers = Vec::new();
        for intermediate in path.intermediate_certificates() {
            issuers.push(KeyId::of_spki(&intermediate.subject_public_key_info()));
            serials.push(intermediate.serial().to_vec());
        }
        issuers.push(root.key);
        let names = serials.iter().zip(issuers).map(|(serial, issuer)| {
            Serial::from_bytes(serial).map(|serial| CertName { issuer, serial })
        });
        let chain = names
            .collect::<Result<Vec<_>, _>>()
            .map_err(|_| PeerError::Malformed)?;
        Ok((chain, root.key))
    }
}

/// The key that stands in a certificate.
pub fn key_id(der: &[u8]) -> Option<KeyId> {
    let (_, cert) = X509Certificate::from_der(der).ok()?;
    Some(KeyId::of_spki(cert.public_key().raw))
}

fn root(der: &CertificateDer<'static>) -> Result<Root, TrustError> {
    let malformed = |problem: &str| TrustError::Root {
        subject: "?".to_owned(),
        problem: problem.to_owned(),
    };
    let (_, cert) =
        X509Certificate::from_der(der).map_err(|_| malformed("is not a certificate"))?;
    let bad = |problem: &str| TrustError::Root {
        subject: cert.subject().to_string(),
        problem: problem.to_owned(),
    };
    if !cert.is_ca() {
        return Err(bad("lacks the CA bit"));
    }
    if !is_strong(cert.public_key()) {
        return Err(bad("has a weak key"));
    }
    let anchor = webpki::anchor_from_trusted_cert(der)
        .map_err(|e| bad(&e.to_string()))?
        .to_owned();
    Ok(Root {
        anchor,
        key: KeyId::of_spki(cert.public_key().raw),
        not_after: since_epoch(cert.validity().not_after),
    })
}
