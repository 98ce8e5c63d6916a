//! The caller: the person or key behind a call, as opposed to the peer whose certificate opened the
//! connection.

use crate::{Permissions, apikey};

/// The credential that authenticated a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credential {
    /// An access token of a session.
    Session {
        /// The id of the session.
        id: String,
    },
    /// An API key.
    ApiKey {
        /// The id of the key.
        id: String,
        /// The hash of the secret that was presented; a key can have two while it is being rotated.
        secret: apikey::Hash,
    },
}

/// An authenticated caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// The id of the user; for a key, of its owner. Dual approval compares owners, and limits count
    /// by them.
    pub owner_id: String,
    /// The name of that user.
    pub username: String,
    /// The roles of that user.
    pub roles: Vec<String>,
    /// The permissions of the roles, restricted to the scopes of the key.
    pub permissions: Permissions,
    /// What the caller presented.
    pub credential: Credential,
    /// The caller in audit records: `user:ada` or `key:<id>`.
    pub label: String,
    /// The user's token version that the credential was checked against.
    pub version: u64,
    /// When the credential expires, in seconds since the Unix epoch; `u64::MAX` for never.
    pub expires_s: u64,
}
