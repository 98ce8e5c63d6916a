//! The contents of the certificates that the authority issues.

use super::{CaError, Request};
use crate::Serial;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyUsagePurpose, SanType, SerialNumber,
};
use std::time::Duration;
use time::OffsetDateTime;

/// Leaves begin this long before they are signed, for peers whose clocks are slow; but never before
/// the revocation of their identity.
pub const BACKDATE: Duration = Duration::from_secs(60);

pub(super) fn authority(
    name: &str,
    path_len: u8,
    now: Duration,
    end: Duration,
) -> CertificateParams {
    let mut params = base(name, serial(), now.saturating_sub(BACKDATE), end);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(path_len));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

/// Builds a leaf that does not outlive its issuer. `span` is the earliest start, the current time,
/// and the issuer's end.
pub(super) fn leaf(
    request: &Request,
    serial: Serial,
    span: (Duration, Duration, Duration),
) -> Result<CertificateParams, CaError> {
    let (earliest, now, issuer_end) = span;
    let name = request.id.path().rsplit('/').next().unwrap_or_default();
    let start = now.saturating_sub(BACKDATE).max(earliest);
    let mut params = base(name, serial, start, (now + request.life).min(issuer_end));
    params.subject_alt_names = vec![SanType::URI(request.id.as_str().try_into()?)];
    for dns in &request.dns {
        params
            .subject_alt_names
            .push(SanType::DnsName(dns.as_str().try_into()?));
    }
    params
        .subject_alt_names
        .extend(request.ips.iter().copied().map(SanType::IpAddress));
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    Ok(params)
}

fn base(name: &str, serial: Serial, start: Duration, end: Duration) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = date(start);
    params.not_after = date(end);
    params.serial_number = Some(SerialNumber::from_slice(&serial.bytes()));
    params.use_authority_key_identifier_extension = true;
    params
}

pub(super) fn date(since_epoch: Duration) -> OffsetDateTime {
    OffsetDateTime::UNIX_EPOCH + Duration::from_secs(since_epoch.as_secs())
}

/// 126 random bits with a fixed leading pattern: positive, of constant length, and unique in
/// practice.
pub(super) fn serial() -> Serial {
    let mut bytes = rand::random::<[u8; 16]>();
    bytes[0] = bytes[0] & 0x7f | 0x40;
    Serial::from_bytes(&bytes).expect("16 bytes that do not start with zero are a serial")
}
