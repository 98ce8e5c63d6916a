//! Why a peer's chain is refused.

use super::{MAX_INTERMEDIATES, issuer::IssuerError};
use crate::PeerError;
use rustls::{CertificateError, Error, OtherError};
use std::sync::Arc;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    #[error(transparent)]
    Peer(#[from] PeerError),
    #[error("the chain: {}", said(.0))]
    Chain(webpki::Error),
    #[error("an issuer in the chain {0}")]
    Issuer(#[from] IssuerError),
    #[error("the chain has {0} intermediates; at most {MAX_INTERMEDIATES} are looked at")]
    TooLong(usize),
    #[error("the root has expired")]
    ExpiredRoot,
    #[error("the root is not valid yet")]
    EarlyRoot,
    #[error("a certificate of the chain is revoked")]
    Revoked,
    #[error("the certificate is not for this use")]
    Purpose,
    #[error("another workload answers: {0}")]
    OtherId(String),
}

impl VerifyError {
    /// A metric label.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Peer(e) => e.reason(),
            Self::Issuer(e) => e.reason(),
            Self::TooLong(_) => "chain_too_long",
            Self::ExpiredRoot => "expired_root",
            Self::EarlyRoot => "not_yet_valid",
            Self::Revoked => "revoked",
            Self::Purpose => "purpose",
            Self::OtherId(_) => "other_id",
            Self::Chain(e) => of_chain(e),
        }
    }

    /// Whether somebody said so, on a list that is mounted or one that was pushed.
    pub fn is_revocation(&self) -> bool {
        self.reason() == "revoked"
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

/// What webpki says for programmers, for people, where it is about lists of ours.
fn said(error: &webpki::Error) -> String {
    use webpki::Error as E;
    let text = match error {
        E::CrlExpired { .. } => "a revocation list is out of time",
        E::UnknownRevocationStatus => "no revocation list speaks for one of its certificates",
        E::InvalidCrlSignatureForPublicKey => "a revocation list is not signed by its issuer",
        E::IssuerNotCrlSigner => "an issuer may not sign revocation lists (cRLSign)",
        other => return other.to_string(),
    };
    text.to_owned()
}

fn of_chain(error: &webpki::Error) -> &'static str {
    use webpki::Error as E;
    match error {
        E::CertExpired { .. } => "expired",
        E::CertNotValidYet { .. } => "not_yet_valid",
        E::UnknownIssuer => "unknown_issuer",
        E::CertRevoked => "revoked",
        E::CrlExpired { .. } => "crl_expired",
        E::UnknownRevocationStatus => "crl_missing",
        E::InvalidCrlSignatureForPublicKey => "crl_signature",
        E::IssuerNotCrlSigner => "crl_signer",
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
    }
}
