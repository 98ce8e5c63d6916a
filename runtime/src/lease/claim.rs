//! A lease by name and fencing token.

use std::sync::Arc;

/// A lease and the token that it was taken under.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Claim {
    name: Arc<str>,
    token: i64,
}

impl Claim {
    pub(super) fn new(name: &str, token: i64) -> Self {
        Self {
            name: name.into(),
            token,
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn token(&self) -> i64 {
        self.token
    }
}
