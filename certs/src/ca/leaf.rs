//! Requests to the authority, and the certificates it issues.

use crate::{CertName, SpiffeId, identity::Parts};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde::{Deserialize, Serialize};
use std::{net::IpAddr, time::Duration};
use zeroize::Zeroizing;

/// Who renews a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ManagedBy {
    /// The process that holds the authority: certificates of its own services, and the operator's
    /// files.
    Authority,
    /// Whoever uses the files that the certificate was written to.
    Files,
}

impl ManagedBy {
    /// The value in the `source` column of issued certificates.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Authority => "authority",
            Self::Files => "files",
        }
    }
}

/// A leaf to issue.
#[derive(Debug, Clone)]
pub struct Request {
    /// The SPIFFE id, which becomes the only URI name.
    pub id: SpiffeId,
    /// DNS names, for clients that verify host names.
    pub dns: Vec<String>,
    /// IP addresses, for clients that verify host names.
    pub ips: Vec<IpAddr>,
    /// The lifetime asked for; it is capped by the issuer's.
    pub life: Duration,
    /// Who renews the certificate, for the list of issued certificates.
    pub managed_by: ManagedBy,
}

impl Request {
    /// A request for a leaf without host names, renewed by whoever uses its files.
    pub fn new(id: SpiffeId, life: Duration) -> Self {
        Self {
            id,
            dns: Vec::new(),
            ips: Vec::new(),
            life,
            managed_by: ManagedBy::Files,
        }
    }

    /// Marks the certificate as renewed by the process that holds the authority.
    #[must_use]
    pub fn managed_by_authority(mut self) -> Self {
        self.managed_by = ManagedBy::Authority;
        self
    }

    /// Adds the names by which ordinary clients on this machine verify a server.
    #[must_use]
    pub fn with_local_names(mut self) -> Self {
        self.dns.push("localhost".to_owned());
        self.ips.extend([
            [127, 0, 0, 1].into(),
            IpAddr::from(std::net::Ipv6Addr::LOCALHOST),
        ]);
        self
    }
}

/// An issued leaf with its chain, and its private key if that was made here.
#[derive(Debug)]
pub struct Issued {
    /// The leaf, then the intermediate.
    pub chain: Vec<CertificateDer<'static>>,
    /// The chain in PEM.
    pub chain_pem: String,
    /// The private key in PEM; `None` when the key is held elsewhere.
    pub key_pem: Option<Zeroizing<String>>,
    /// The issuer and serial of the leaf.
    pub name: CertName,
    /// When the leaf expires, since the Unix epoch.
    pub not_after: Duration,
    pub(super) key: Option<PrivateKeyDer<'static>>,
}

impl Issued {
    /// The parts of an identity. Only for a leaf whose key was made here: otherwise the key is
    /// empty, and the parts do not verify.
    pub fn into_parts(self, roots: Vec<CertificateDer<'static>>) -> Parts {
        Parts {
            chain: self.chain,
            key: self
                .key
                .unwrap_or_else(|| PrivatePkcs8KeyDer::from(Vec::new()).into()),
            roots,
            crls: Vec::new(),
        }
    }
}
