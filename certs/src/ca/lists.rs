//! Signed revocation lists, for peers that know no other deny-list.

use super::{Authority, CaError, profile};
use crate::CertName;
use rcgen::{CertificateRevocationListParams, KeyIdMethod, RevokedCertParams, SerialNumber};
use rustls::pki_types::CertificateRevocationListDer;
use std::time::Duration;

impl Authority {
    /// Signs one revocation list for each intermediate whose leaves may still be valid. `revoked`
    /// pairs certificates with the time of their revocation; `life` is how long the lists are
    /// valid. Of two lists a peer uses the one with the larger `number`, which must not be used for
    /// another list (RFC 5280, section 5.2.3).
    ///
    /// # Errors
    ///
    /// When a key does not parse, or a list cannot be signed.
    pub fn revocation_lists(
        &self,
        revoked: &[(CertName, Duration)],
        number: u64,
        now: Duration,
        life: Duration,
    ) -> Result<Vec<CertificateRevocationListDer<'static>>, CaError> {
        let inner = self.inner.read();
        let signers = inner.roots.iter().flat_map(|g| &g.intermediates);
        let at = profile::date;
        signers
            .filter(|s| s.not_after > now)
            .map(|signer| {
                let entries = revoked.iter().filter(|(name, _)| name.issuer == signer.key);
                let params = CertificateRevocationListParams {
                    this_update: at(now.saturating_sub(profile::BACKDATE)),
                    next_update: at(now + life),
                    crl_number: SerialNumber::from(number),
                    issuing_distribution_point: None,
                    revoked_certs: entries
                        .map(|(name, since)| RevokedCertParams {
                            serial_number: SerialNumber::from_slice(&name.serial.bytes()),
                            revocation_time: at(*since),
                            reason_code: None,
                            invalidity_date: None,
                        })
                        .collect(),
                    key_identifier_method: KeyIdMethod::Sha256,
                };
                let list = params.signed_by(&signer.issuer()?)?;
                Ok(list.der().clone())
            })
            .collect()
    }
}
