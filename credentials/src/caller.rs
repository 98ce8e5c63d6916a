//! Who calls: a person or a key, as opposed to the peer whose certificate opened the connection.

use crate::{Permissions, apikey};

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credential {
    Session {
        id: String,
    },
    ApiKey {
        id: String,
        /// Which of its secrets was shown, by its hash.
        secret: apikey::Hash,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// The user; for a key, its owner. Four eyes compares these, and limits and shares count them.
    pub owner_id: String,
    pub username: String,
    pub roles: Vec<String>,
    /// The roles' permissions, narrowed by the credential's scopes.
    pub permissions: Permissions,
    pub credential: Credential,
    /// As audit records name the caller: `user:ada` or `key:…`.
    pub label: String,
    /// The user's version that the credential was checked against.
    pub version: u64,
    /// The second at which the credential ends by itself.
    pub expires_s: u64,
}
