//! What `tars certs inspect` shows of one certificate.

use crate::{PeerCertificate, trust::key_id};
use x509_parser::prelude::{FromDer, X509Certificate};

#[derive(Debug, serde::Serialize)]
pub struct Summary {
    pub subject: String,
    pub issuer: String,
    pub serial: String,
    pub is_ca: bool,
    pub spiffe_id: Option<String>,
    /// SHA-256 of its public key.
    pub key_id: String,
    /// Seconds since the Unix epoch.
    pub not_before: i64,
    pub not_after: i64,
}

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
