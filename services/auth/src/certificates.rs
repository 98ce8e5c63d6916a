//! Certificates: who may obtain one and for how long, what is revoked, and when the roots may
//! change.
//!
//! Without an authority of its own (certificates come from elsewhere) Auth issues nothing;
//! revocation covers certificates of any issuer.

mod issue;
mod journal;
mod reports;
mod revoke;
mod roots;
mod shared;
pub(crate) mod store;
mod tokens;

pub(crate) use issue::NewIdentity;
pub(crate) use reports::{LastSeen, OwnReport};
pub(crate) use revoke::{SignedLists, Target};
pub(crate) use roots::named;
pub(crate) use shared::SharedAuthority;

use crate::{Auth, AuthError, horizon::DAY};
use std::{sync::Arc, time::Duration};
use tars_certs::{Authority, ClassTable, IdentityHandle, PeerClass, SpiffeId, TrustFeed};
use tars_proto::{
    Timestamp,
    auth::v1::{CertificateRevocation, IdentityRevocation, TrustBundle},
};
use tars_runtime::config;

/// How long rows outlive what they are about.
pub(crate) const RETENTION: Duration = DAY.saturating_mul(90);

/// What Auth needs to manage certificates.
#[derive(Debug, Clone)]
pub struct Certificates {
    /// The built-in authority; `None` when certificates come from elsewhere.
    pub authority: Option<Arc<Authority>>,
    /// Auth's own identity, which is below the same roots as every other.
    pub own: IdentityHandle,
    /// The classes of SPIFFE ids.
    pub classes: Arc<ClassTable>,
    /// The deny-list and trusted roots of Auth's own process.
    pub feed: TrustFeed,
    /// The trust domain of the mesh.
    pub trust_domain: String,
    /// The `[certificates]` section of the configuration.
    pub settings: config::Certificates,
}

impl Certificates {
    pub(crate) fn authority(&self) -> Result<&Arc<Authority>, AuthError> {
        self.authority.as_ref().ok_or(AuthError::NoAuthority)
    }

    fn id(&self, path: &str) -> Result<SpiffeId, AuthError> {
        SpiffeId::new(&self.trust_domain, path).map_err(|e| AuthError::Field("path", e.to_string()))
    }

    /// The class of an identity. An id without a class could do nothing, so asking for one is an
    /// error.
    pub(crate) fn class(&self, id: &SpiffeId) -> Result<PeerClass, AuthError> {
        let unknown = || AuthError::Field("path", format!("no class pattern matches {id}"));
        self.classes.classify(id).ok_or_else(unknown)
    }

    fn life(&self, class: PeerClass) -> Duration {
        if class.is_workload() {
            Duration::from_secs(self.settings.leaf_life_seconds)
        } else {
            days(self.settings.operator_life_days)
        }
    }

    /// How long a process may be silent before it counts as departed.
    fn departed_after(&self) -> Duration {
        Duration::from_secs(self.settings.departed_after_seconds)
    }

    fn lineage_life(&self) -> Duration {
        days(self.settings.lineage_life_days)
    }

    pub(crate) fn bundle(&self) -> Option<TrustBundle> {
        let authority = self.authority.as_ref()?;
        let (version, roots) = authority.versioned_roots();
        let tainted = roots
            .iter()
            .filter(|r| r.state == tars_certs::ca::rotation::RootState::Tainted);
        Some(TrustBundle {
            version,
            tainted: tainted.map(|r| r.key.as_bytes().to_vec()).collect(),
            roots: roots.iter().map(|r| r.der.to_vec()).collect(),
        })
    }
}

fn days(n: u64) -> Duration {
    Duration::from_secs(n.saturating_mul(86_400))
}

fn micros(at: Duration) -> i64 {
    i64::try_from(at.as_micros()).unwrap_or(i64::MAX)
}

/// Revocations as they are pushed.
pub(crate) fn pushed(
    rows: &[store::RevocationRow],
) -> (Vec<CertificateRevocation>, Vec<IdentityRevocation>) {
    let (identities, certificates): (Vec<_>, Vec<_>) =
        rows.iter().partition(|r| r.serial.is_empty());
    let certificates = certificates.into_iter().map(|r| CertificateRevocation {
        issuer: tars_certs::name::unhex(&r.issuer).unwrap_or_default(),
        serial: r.serial.clone(),
    });
    let identities = identities.into_iter().map(|r| IdentityRevocation {
        spiffe_id: r.spiffe_id.clone(),
        not_before: Some(Timestamp {
            seconds: r.not_before_s,
            nanos: 0,
        }),
    });
    (certificates.collect(), identities.collect())
}

impl Auth {
    pub(crate) fn certificates(&self) -> &Certificates {
        &self.certificates
    }
}

#[cfg(test)]
pub(crate) mod tests;
