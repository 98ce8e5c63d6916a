//! What a peer's certificate says, read once per connection.

use crate::{CertName, KeyId, PeerClass, Serial, SpiffeError, SpiffeId};
use rustls::pki_types::CertificateDer;
use std::{cell::RefCell, fmt, net::SocketAddr, sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;
use x509_parser::{
    prelude::{FromDer, GeneralName, X509Certificate},
    public_key::PublicKey,
    x509::SubjectPublicKeyInfo,
};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerCertificate {
    pub id: SpiffeId,
    pub serial: Serial,
    /// Since the Unix epoch.
    pub not_before: Duration,
    pub not_after: Duration,
    pub client_auth: bool,
    pub server_auth: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    #[error("the certificate does not parse")]
    Malformed,
    #[error("the certificate has no URI name")]
    NoId,
    #[error("the certificate has {0} URI names; exactly one is allowed")]
    SeveralIds(usize),
    #[error("the certificate's URI name: {0}")]
    Id(#[from] SpiffeError),
    #[error("the certificate does not name what its key may be used for")]
    NoExtendedKeyUsage,
    #[error(
        "the certificate's key usage must be there, be critical, and allow digital signatures (digitalSignature)"
    )]
    KeyUsage,
    #[error(
        "the certificate may sign others or revocation lists (keyCertSign, cRLSign): it is an authority's, and no workload's"
    )]
    Signs,
    #[error("the certificate belongs to the trust domain {0:?}")]
    TrustDomain(String),
    #[error(
        "the certificate's key is weak: it takes P-256, P-384, P-521, Ed25519, or RSA of 2048 bits and more"
    )]
    WeakKey,
}

impl PeerError {
    /// A metric label.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::NoId => "no_id",
            Self::SeveralIds(_) => "several_ids",
            Self::Id(_) => "bad_id",
            Self::NoExtendedKeyUsage => "no_eku",
            Self::KeyUsage => "key_usage",
            Self::Signs => "leaf_signs",
            Self::TrustDomain(_) => "trust_domain",
            Self::WeakKey => "weak_key",
        }
    }
}

impl PeerCertificate {
    pub fn parse(der: &[u8]) -> Result<Self, PeerError> {
        let (rest, cert) = X509Certificate::from_der(der).map_err(|_| PeerError::Malformed)?;
        if !rest.is_empty() {
            return Err(PeerError::Malformed);
        }
        if !is_strong(cert.public_key()) {
            return Err(PeerError::WeakKey);
        }
        check_key_usage(&cert)?;
        let usage = cert
            .extended_key_usage()
            .map_err(|_| PeerError::Malformed)?
            .ok_or(PeerError::NoExtendedKeyUsage)?
            .value;
        Ok(Self {
            id: only_uri(&cert)?,
            serial: Serial::from_bytes(cert.raw_serial()).map_err(|_| PeerError::Malformed)?,
            not_before: since_epoch(cert.validity().not_before),
            not_after: since_epoch(cert.validity().not_after),
            client_auth: usage.client_auth,
            server_auth: usage.server_auth,
        })
    }

    /// The same, and of this trust domain.
    pub fn parse_in(der: &[u8], trust_domain: &str) -> Result<Self, PeerError> {
        let cert = Self::parse(der)?;
        if cert.id.trust_domain() == trust_domain {
            Ok(cert)
        } else {
            Err(PeerError::TrustDomain(cert.id.trust_domain().to_owned()))
        }
    }

    pub fn lifetime(&self) -> Duration {
        self.not_after.saturating_sub(self.not_before)
    }
}

/// X509-SVID 4.3 and 5.2. An extension that is there twice says two things.
fn check_key_usage(cert: &X509Certificate<'_>) -> Result<(), PeerError> {
    cert.extensions_map().map_err(|_| PeerError::Malformed)?;
    let usage = cert.key_usage().map_err(|_| PeerError::Malformed)?;
    let usage = usage.ok_or(PeerError::KeyUsage)?;
    if usage.value.key_cert_sign() || usage.value.crl_sign() || cert.is_ca() {
        return Err(PeerError::Signs);
    }
    if !usage.critical || !usage.value.digital_signature() {
        return Err(PeerError::KeyUsage);
    }
    Ok(())
}

pub(crate) fn since_epoch(t: x509_parser::time::ASN1Time) -> Duration {
    Duration::from_secs(u64::try_from(t.timestamp()).unwrap_or(0))
}

const RSA_MIN_BITS: usize = 2048;
const EC_CURVES: [&str; 3] = [
    "1.2.840.10045.3.1.7", // P-256
    "1.3.132.0.34",        // P-384
    "1.3.132.0.35",        // P-521
];
const ED25519: &str = "1.3.101.112";

/// Path building checks the keys that sign certificates; nothing else looks at the leaf's own.
pub(crate) fn is_strong(key: &SubjectPublicKeyInfo<'_>) -> bool {
    let curve = || {
        let oid = key.algorithm.parameters.as_ref()?.as_oid().ok()?;
        Some(oid.to_id_string())
    };
    match key.parsed() {
        Ok(PublicKey::RSA(rsa)) => rsa.key_size() >= RSA_MIN_BITS,
        Ok(PublicKey::EC(_)) => curve().is_some_and(|c| EC_CURVES.contains(&c.as_str())),
        _ => key.algorithm.algorithm.to_id_string() == ED25519,
    }
}

fn only_uri(cert: &X509Certificate<'_>) -> Result<SpiffeId, PeerError> {
    let names = cert
        .subject_alternative_name()
        .map_err(|_| PeerError::Malformed)?;
    let uris: Vec<&str> = names
        .iter()
        .flat_map(|san| &san.value.general_names)
        .filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        })
        .collect();
    match uris.as_slice() {
        [] => Err(PeerError::NoId),
        [one] => Ok(one.parse()?),
        many => Err(PeerError::SeveralIds(many.len())),
    }
}

impl fmt::Display for PeerCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (serial {})", self.id, self.serial)
    }
}

/// A certificate whose chain was followed up to a trusted root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    pub certificate: PeerCertificate,
    /// The leaf, then each intermediate that was used.
    pub chain: Vec<CertName>,
    /// The root's key.
    pub anchor: KeyId,
    /// What it showed, to be judged again when roots or lists change.
    pub presented: Arc<[CertificateDer<'static>]>,
}

impl Verified {
    /// The leaf's own name.
    pub fn name(&self) -> &CertName {
        &self.chain[0]
    }
}

/// The other end of a connection, worked out once when it opened.
#[derive(Debug, Clone)]
pub struct PeerInfo {
    /// `None` on the bootstrap listener alone, where nobody has a certificate yet.
    pub verified: Option<Verified>,
    /// `None` when no pattern knows the id: such a peer may do nothing.
    pub class: Option<PeerClass>,
    pub addr: SocketAddr,
    /// Cancelled when the connection is about to close for good: open streams say so and end.
    pub closing: CancellationToken,
}

impl PeerInfo {
    pub fn id(&self) -> Option<&SpiffeId> {
        self.verified.as_ref().map(|v| &v.certificate.id)
    }

    /// For logs, limits and records.
    pub fn name(&self) -> &str {
        self.id().map_or("anonymous", SpiffeId::as_str)
    }
}

/// What the verifier of a handshake found out.
#[derive(Debug, Default)]
pub struct HandshakeObservation {
    pub peer: Option<Verified>,
    /// A metric label: why the peer's certificate was refused.
    pub refusal: Option<&'static str>,
}

tokio::task_local! {
    static SEEN: RefCell<HandshakeObservation>;
}

/// Runs a handshake and hands over what its verifier found: rustls has no way to carry it, and
/// neither parsing nor path building should happen twice.
pub async fn observe_handshake<F: Future>(handshake: F) -> (F::Output, HandshakeObservation) {
    let watched = async {
        let output = handshake.await;
        (output, SEEN.with(RefCell::take))
    };
    SEEN.scope(RefCell::default(), watched).await
}

pub(crate) fn record(result: Result<&Verified, &'static str>) {
    // Outside of `observe_handshake` nobody wants to know.
    let _unobserved = SEEN.try_with(|seen| {
        let mut seen = seen.borrow_mut();
        match result {
            Ok(peer) => seen.peer = Some(peer.clone()),
            Err(reason) => seen.refusal = Some(reason),
        }
    });
}
