//! Why a peer's chain is rejected.

use super::{MAX_INTERMEDIATES, issuer::IssuerError};
use crate::PeerError;
use rustls::{CertificateError, Error, OtherError};
use std::sync::Arc;

/// Why a chain is rejected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// The leaf is not a workload certificate of this trust domain.
    #[error(transparent)]
    Peer(#[from] PeerError),
    /// There is no valid path to a root.
    #[error("the chain: {}", describe(.0))]
    Chain(webpki::Error),
    /// An intermediate may not sign certificates.
    #[error("an issuer in the chain {0}")]
    Issuer(#[from] IssuerError),
    /// There are this many intermediates, which is too many.
    #[error("the chain has {0} intermediates; at most {MAX_INTERMEDIATES} are accepted")]
    TooLong(usize),
    /// The root expired after the identity was loaded.
    #[error("the root has expired")]
    ExpiredRoot,
    /// The validity of the root has not started.
    #[error("the root is not valid yet")]
    EarlyRoot,
    /// A revocation list or the deny-list names a certificate of the chain.
    #[error("a certificate of the chain is revoked")]
    Revoked,
    /// The leaf does not allow the side of TLS it is used for.
    #[error("the certificate does not allow this use")]
    Purpose,
    /// The server is this other workload than the expected one.
    #[error("the server is another workload: {0}")]
    OtherId(String),
}

impl VerifyError {
    /// The value of the `reason` label in metrics.
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
            Self::Chain(e) => chain_reason(e),
        }
    }

    /// Whether a revocation list or the deny-list is the reason.
    pub fn is_revocation(&self) -> bool {
        self.reason() == "revoked"
    }

    /// The rustls error that sends the most specific TLS alert.
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

/// webpki's text, except for errors about revocation lists, which are described in this mesh's
/// terms.
fn describe(error: &webpki::Error) -> String {
    use webpki::Error as E;
    let text = match error {
        E::CrlExpired { .. } => "a revocation list is not current",
        E::UnknownRevocationStatus => "no revocation list covers one of its certificates",
        E::InvalidCrlSignatureForPublicKey => "a revocation list is not signed by its issuer",
        E::IssuerNotCrlSigner => "an issuer may not sign revocation lists (cRLSign)",
        other => return other.to_string(),
    };
    text.to_owned()
}

fn chain_reason(error: &webpki::Error) -> &'static str {
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
