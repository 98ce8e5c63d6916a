//! No certificate authorities.
//!
//! The database's driver trusts the public authorities of the crate of this name, and adds the one that the
//! configuration names. Any of some hundred authorities could then name a server. This crate takes the place
//! of that list (`[patch.crates-io]`), so that only the configured authority is trusted.

#![forbid(unsafe_code)]
#![deny(missing_docs)]

use rustls_pki_types::TrustAnchor;

/// The authorities that are trusted without being configured: none.
pub const TLS_SERVER_ROOTS: &[TrustAnchor<'static>] = &[];
