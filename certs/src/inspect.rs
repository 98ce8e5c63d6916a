//! The summary of a certificate that `tars certs inspect` prints.

use crate::{PeerCertificate, trust::key_id};
use x509_parser::prelude::{FromDer, X509Certificate};

/// The fields of one certificate. The serialized names are part of the command's output.
#[derive(Debug, serde::Serialize)]
pub struct Summary {
    /// The distinguished name of the subject.
    pub subject: String,
    /// The distinguished name of the issuer.
    pub issuer: String,
    /// The serial number in hexadecimal.
    pub serial: String,
    /// Whether the CA bit is set.
    pub is_ca: bool,
    /// The SPIFFE id, when the certificate is one of a workload.
    pub spiffe_id: Option<String>,
    /// The SHA-256 hash of its public key.
    pub key_id: String,
    /// Start of the validity period, in seconds since the Unix epoch.
    pub not_before: i64,
    /// End of the validity period, in seconds since the Unix epoch.
    pub not_after: i64,
}

/// Summarises a certificate in DER; `None` when it does not parse.
pub fn summarise(der: &[u8]) -> Option<Summary> {
    let (_, cert) = X509Certificate::from_der(der).ok()?;
    Some(Summary {
        subject: cert.subject().to_string(),
        issuer: cert.issuer().to_string(),
        serial: crate::Serial::from_bytes(cert.raw_serial())
            .map_or_else(|_| cert.raw_serial_as_string(), |s| s.to_string()),
        is_ca: cert.is_ca(),
        spiffe_id: PeerCertificate::parse(der).ok().map(|p| p.id.to_string()),
        key_id: key_id(der).map(|k| k.to_string()).unwrap_or_default(),
        not_before: cert.validity().not_before.timestamp(),
        not_after: cert.validity().not_after.timestamp(),
    })
}
