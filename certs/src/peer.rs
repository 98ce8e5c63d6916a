//! What a peer's certificate says, read once per connection.

use crate::{SpiffeError, SpiffeId};
use std::{fmt, time::Duration};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerCertificate {
    pub id: SpiffeId,
    /// Lower-case hex.
    pub serial: String,
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
    #[error("the certificate belongs to the trust domain {0:?}")]
    TrustDomain(String),
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
            Self::TrustDomain(_) => "trust_domain",
        }
    }
}

impl PeerCertificate {
    pub fn parse(der: &[u8]) -> Result<Self, PeerError> {
        let (rest, cert) = X509Certificate::from_der(der).map_err(|_| PeerError::Malformed)?;
        if !rest.is_empty() {
            return Err(PeerError::Malformed);
        }
        let usage = cert
            .extended_key_usage()
            .map_err(|_| PeerError::Malformed)?
            .ok_or(PeerError::NoExtendedKeyUsage)?
            .value;
        let seconds = |t: x509_parser::time::ASN1Time| {
            Duration::from_secs(u64::try_from(t.timestamp()).unwrap_or(0))
        };
        Ok(Self {
            id: only_uri(&cert)?,
            serial: cert
                .raw_serial()
                .iter()
                .map(|b| format!("{b:02x}"))
                .collect(),
            not_before: seconds(cert.validity().not_before),
            not_after: seconds(cert.validity().not_after),
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

/// The other end of a connection, worked out once when it opened.
#[derive(Debug, Clone)]
pub struct PeerInfo {
    pub certificate: PeerCertificate,
    /// `None` when no pattern knows the id: such a peer may do nothing.
    pub class: Option<crate::PeerClass>,
    pub addr: std::net::SocketAddr,
}
