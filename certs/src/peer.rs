//! What a peer's certificate asserts, parsed once per connection.

use crate::{CertName, KeyId, PeerClass, Serial, SpiffeError, SpiffeId};
use rustls::pki_types::CertificateDer;
use std::{cell::RefCell, fmt, net::SocketAddr, sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;
use x509_parser::{
    prelude::{FromDer, GeneralName, X509Certificate},
    public_key::PublicKey,
    x509::SubjectPublicKeyInfo,
};

/// The parts of a workload certificate that decisions depend on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerCertificate {
    /// The SPIFFE id, from the only URI name.
    pub id: SpiffeId,
    /// The serial number.
    pub serial: Serial,
    /// Start of the validity period, since the Unix epoch.
    pub not_before: Duration,
    /// End of the validity period, since the Unix epoch.
    pub not_after: Duration,
    /// Whether the extended key usage allows TLS clients.
    pub client_auth: bool,
    /// Whether the extended key usage allows TLS servers.
    pub server_auth: bool,
}

/// Why a certificate is not one of a workload (X509-SVID).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// The DER, or an extension, does not parse.
    #[error("the certificate does not parse")]
    Malformed,
    /// There is no URI name, and so no SPIFFE id.
    #[error("the certificate has no URI name")]
    NoId,
    /// There are this many URI names.
    #[error("the certificate has {0} URI names; exactly one is allowed")]
    SeveralIds(usize),
    /// The URI name is not a SPIFFE id.
    #[error("the certificate's URI name: {0}")]
    Id(#[from] SpiffeError),
    /// The extended key usage extension is missing.
    #[error("the certificate has no extended key usage")]
    NoExtendedKeyUsage,
    /// The key usage extension is missing, not critical, or does not allow signatures.
    #[error("the certificate's key usage must be present, critical, and include digitalSignature")]
    KeyUsage,
    /// It is the certificate of an authority.
    #[error(
        "the certificate is an authority's, not a workload's: it may sign certificates or revocation lists (keyCertSign, cRLSign)"
    )]
    Signs,
    /// It belongs to this other trust domain.
    #[error("the certificate belongs to the trust domain {0:?}")]
    TrustDomain(String),
    /// Its key is of a type or size that is not accepted.
    #[error(
        "the certificate's key is weak: accepted are P-256, P-384, P-521, Ed25519, and RSA of at least 2048 bits"
    )]
    WeakKey,
}

impl PeerError {
    /// The value of the `reason` label in metrics.
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
    /// Parses a workload certificate in DER. Signature, issuer and time are not checked here.
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

    /// Like [`parse`](Self::parse), and requires the certificate to belong to `trust_domain`.
    pub fn parse_in(der: &[u8], trust_domain: &str) -> Result<Self, PeerError> {
        let cert = Self::parse(der)?;
        if cert.id.trust_domain() == trust_domain {
            Ok(cert)
        } else {
            Err(PeerError::TrustDomain(cert.id.trust_domain().to_owned()))
        }
    }

    /// The length of the validity period.
    pub fn lifetime(&self) -> Duration {
        self.not_after.saturating_sub(self.not_before)
    }
}

/// X509-SVID 4.3 and 5.2. A duplicated extension is malformed: parsers disagree about which one
/// counts.
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

/// Path building checks the keys that sign certificates; nothing else checks the leaf's own.
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

/// A certificate whose chain was verified up to a trusted root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// The leaf.
    pub certificate: PeerCertificate,
    /// The names of the leaf and then of each intermediate on the path.
    pub chain: Vec<CertName>,
    /// The key of the root.
    pub anchor: KeyId,
    /// The certificates as presented, to be verified again when roots or lists change.
    pub presented: Arc<[CertificateDer<'static>]>,
}

impl Verified {
    /// The name of the leaf.
    pub fn name(&self) -> &CertName {
        &self.chain[0]
    }
}

/// The other end of a connection, determined once when it is accepted.
#[derive(Debug, Clone)]
pub struct PeerInfo {
    /// The verified certificate; `None` only on the bootstrap listener, where clients have none
    /// yet.
    pub verified: Option<Verified>,
    /// The class of the peer; `None` when no pattern matches its id, and then it may call nothing.
    pub class: Option<PeerClass>,
    /// The remote address of the TCP connection.
    pub addr: SocketAddr,
    /// Cancelled when the connection is about to close: open streams report that and end.
    pub closing: CancellationToken,
}

impl PeerInfo {
    /// The SPIFFE id, if the peer has a certificate.
    pub fn id(&self) -> Option<&SpiffeId> {
        self.verified.as_ref().map(|v| &v.certificate.id)
    }

    /// The id as a label for logs, limits and records; `anonymous` without a certificate.
    pub fn name(&self) -> &str {
        self.id().map_or("anonymous", SpiffeId::as_str)
    }
}

/// What the certificate verifier of a handshake concluded.
#[derive(Debug, Default)]
pub struct HandshakeObservation {
    /// The peer, when its certificate was accepted.
    pub peer: Option<Verified>,
    /// Why the peer's certificate was rejected, as the value of the `reason` metric label.
    pub refusal: Option<&'static str>,
}

tokio::task_local! {
    static SEEN: RefCell<HandshakeObservation>;
}

/// Runs a handshake and returns what its verifier concluded along with the output. rustls offers no
/// way to pass that on, and neither parsing nor path building should happen twice.
pub async fn observe_handshake<F: Future>(handshake: F) -> (F::Output, HandshakeObservation) {
    let watched = async {
        let output = handshake.await;
        (output, SEEN.with(RefCell::take))
    };
    SEEN.scope(RefCell::default(), watched).await
}

pub(crate) fn record(result: Result<&Verified, &'static str>) {
    // Outside of `observe_handshake` there is nobody to report to.
    let _unobserved = SEEN.try_with(|seen| {
        let mut seen = seen.borrow_mut();
        match result {
            Ok(peer) => seen.peer = Some(peer.clone()),
            Err(reason) => seen.refusal = Some(reason),
        }
    });
}
