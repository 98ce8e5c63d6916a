//! What is asked of the authority, and what it gives.

use super::journal::ManagedBy;
use crate::{CertName, SpiffeId, identity::Parts};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use std::{net::IpAddr, time::Duration};
use zeroize::Zeroizing;

/// A leaf to issue.
#[derive(Debug, Clone)]
pub struct Request {
    pub id: SpiffeId,
    pub dns: Vec<String>,
    pub ips: Vec<IpAddr>,
    pub life: Duration,
    /// Who keeps it fresh, for the list of what was issued.
    pub managed_by: ManagedBy,
}

impl Request {
    pub fn new(id: SpiffeId, life: Duration) -> Self {
        Self {
            id,
            dns: Vec::new(),
            ips: Vec::new(),
            life,
            managed_by: ManagedBy::Files,
        }
    }

    /// Kept fresh by the process that has the authority.
    #[must_use]
    pub fn managed_by_authority(mut self) -> Self {
        self.managed_by = ManagedBy::Authority;
        self
    }

    /// Names by which ordinary clients on this machine verify a server.
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

/// A leaf with its chain, and its private key when it was made here.
#[derive(Debug)]
pub struct Issued {
    /// The leaf, then the intermediate.
    pub chain: Vec<CertificateDer<'static>>,
    pub chain_pem: String,
    pub key_pem: Option<Zeroizing<String>>,
    pub name: CertName,
    pub not_after: Duration,
    pub(super) key: Option<PrivateKeyDer<'static>>,
}

impl Issued {
    /// For a leaf whose key was made here.
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
