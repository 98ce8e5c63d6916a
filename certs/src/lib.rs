//! Workload identity: SPIFFE ids, the certificate authority, identities that renew themselves, and
//! the TLS configurations built from them.
//!
//! TLS 1.3 only, through aws-lc-rs, with X25519MLKEM768 preferred. Session resumption is disabled:
//! a resumed handshake does not present the client certificate again, so an expired or revoked
//! certificate would keep its access.

#![deny(missing_docs)]

mod blocks;
pub mod ca;
pub mod class;
pub mod crypto;
pub mod feed;
pub mod files;
pub mod identity;
pub mod inspect;
pub mod join;
pub mod name;
pub mod peer;
pub mod renew;
pub mod revocation;
pub mod secret;
mod services;
pub mod spiffe;
pub mod tls;
pub mod trust;
mod verify;

pub use ca::{Authority, CaError};
pub use class::{ClassTable, PEER_CLASSES, PeerClass};
pub use feed::{Bundle, TrustFeed, TrustUpdate};
pub use files::IdentityFiles;
pub use identity::{Identity, IdentityError, IdentityHandle};
pub use name::{CertName, KeyId, Serial};
pub use peer::{PeerCertificate, PeerError};
pub use revocation::{RevocationSet, Revocations};
pub use services::{SERVICES, Service};
pub use spiffe::{SpiffeError, SpiffeId};
pub use trust::Trust;
