//! One acquisition of a lease.

use std::sync::Arc;
use uuid::Uuid;

/// A lease, the token that it was taken under, and the nonce that no other acquisition has.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Claim {
    name: Arc<str>,
    token: i64,
    nonce: Uuid,
}

impl Claim {
    pub(super) fn new(name: &str, token: i64, nonce: Uuid) -> Self {
        Self {
            name: name.into(),
            token,
            nonce,
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn token(&self) -> i64 {
        self.token
    }

    pub(super) fn nonce(&self) -> Uuid {
        self.nonce
    }
}
