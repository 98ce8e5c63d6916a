//! Requirements on certificates that sign others: one rule for the roots of a bundle, for
//! intermediates, and for the authority's own files.
//!
//! webpki requires only the CA bit. RFC 5280 (4.2.1.3, 6.1.4 n) and X509-SVID (4.3) require
//! `keyCertSign` as well; that an absent key usage permits everything is a convention of the web
//! PKI, not a rule.

use crate::{
    KeyId,
    peer::{is_strong, since_epoch},
};
use std::time::Duration;
use x509_parser::prelude::{GeneralName, X509Certificate};

/// What a signing certificate permits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SigningCertificate {
    pub(crate) key: KeyId,
    pub(crate) not_before: Duration,
    pub(crate) not_after: Duration,
    /// How many authorities may be below it.
    pub(crate) path_len: Option<u32>,
    /// Whether it may sign revocation lists.
    pub(crate) signs_lists: bool,
}

/// Why a certificate may not sign others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IssuerError {
    /// It does not parse.
    #[error("does not parse")]
    Malformed,
    /// The CA bit is not set.
    #[error("lacks the CA bit")]
    NotCa,
    /// Its key usage does not permit signing certificates.
    #[error("may not sign certificates (keyCertSign)")]
    NoCertSign,
    /// Its key is of a type or size that is not accepted.
    #[error("has a weak key")]
    WeakKey,
    /// It has a critical extension that is not implemented.
    #[error("has an unsupported critical extension")]
    Critical,
    /// It has a SPIFFE id other than that of its trust domain.
    #[error("has a SPIFFE id other than its trust domain's")]
    Id,
}

impl IssuerError {
    /// The value of the `reason` label in metrics.
    pub(crate) fn reason(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::NotCa => "issuer_is_no_ca",
            Self::NoCertSign => "issuer_key_usage",
            Self::WeakKey => "weak_key",
            Self::Critical => "critical_extension",
            Self::Id => "issuer_id",
        }
    }
}

/// The extensions that are implemented: key usage, subject alternative names, basic constraints,
/// name constraints, distribution points, extended key usage.
const UNDERSTOOD: [&str; 6] = [
    "2.5.29.15",
    "2.5.29.17",
    "2.5.29.19",
    "2.5.29.30",
    "2.5.29.31",
    "2.5.29.37",
];

impl SigningCertificate {
    /// Checks a certificate. `trust_domain` is the one it must belong to, when that is known.
    pub(crate) fn of(
        cert: &X509Certificate<'_>,
        trust_domain: Option<&str>,
    ) -> Result<Self, IssuerError> {
        let malformed = |_| IssuerError::Malformed;
        // A duplicated extension is malformed: parsers disagree about which one counts.
        cert.extensions_map().map_err(malformed)?;
        let constraints = cert.basic_constraints().map_err(malformed)?;
        let constraints = constraints
            .map(|c| c.value)
            .filter(|c| c.ca)
            .ok_or(IssuerError::NotCa)?;
        let usage = cert.key_usage().map_err(malformed)?.map(|u| u.value);
        let usage = usage
            .filter(|u| u.key_cert_sign())
            .ok_or(IssuerError::NoCertSign)?;
        if !is_strong(cert.public_key()) {
            return Err(IssuerError::WeakKey);
        }
        if cert
            .iter_extensions()
            .any(|e| e.critical && !UNDERSTOOD.contains(&e.oid.to_id_string().as_str()))
        {
            return Err(IssuerError::Critical);
        }
        if let Some(domain) = trust_domain {
            check_id(cert, domain)?;
        }
        Ok(Self {
            key: KeyId::of_spki(cert.public_key().raw),
            not_before: since_epoch(cert.validity().not_before),
            not_after: since_epoch(cert.validity().not_after),
            path_len: constraints.path_len_constraint,
            signs_lists: usage.crl_sign(),
        })
    }
}

/// An authority needs no SPIFFE id; if it has one, it must be its only one and that of its trust
/// domain.
fn check_id(cert: &X509Certificate<'_>, domain: &str) -> Result<(), IssuerError> {
    let names = cert
        .subject_alternative_name()
        .map_err(|_| IssuerError::Malformed)?;
    let uris: Vec<&str> = names
        .iter()
        .flat_map(|san| &san.value.general_names)
        .filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        })
        .collect();
    let is_spiffe = |uri: &&str| uri.to_ascii_lowercase().starts_with("spiffe:");
    match uris.as_slice() {
        [one] if one.strip_prefix("spiffe://") == Some(domain) => Ok(()),
        uris if uris.iter().any(is_spiffe) => Err(IssuerError::Id),
        _ => Ok(()),
    }
}
