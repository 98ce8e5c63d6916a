//! What a caller may make, renew, widen, hand out or take away: the one rule for every credential.
//!
//! Nobody gives what they do not hold, and nobody touches what holds more than they do. What somebody
//! holds is the role's permissions, narrowed by the scopes of the key that calls; what a key holds is
//! counted by its stored scopes, which stay when its owner's role shrinks and grows. Without the second
//! half, taking away would be a way round: whoever can disable every stronger administrator is the
//! strongest.
//!
//! A key acts for its owner, and four eyes compares owners. So the secret of another's key is never
//! handed out, not even to whoever holds everything; revoking it is enough, and has a permission of its
//! own. Identities have no permissions to compare: what lets a caller make one is a permission for each
//! kind, and none implies another.

use crate::{Caller, Credential, Permissions};
use tars_certs::PeerClass;

/// Why a caller may not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GrantError {
    #[error("this holds more than the caller does, who lacks {}", .0.join(", "))]
    Permissions(Vec<&'static str>),
    #[error("the new key would outlive the key that calls")]
    Life,
    #[error("the key to rotate outlives the key that calls")]
    OutlivedBy,
    #[error(
        "the secret that calls is being rotated out and ends before its key does; use the newest"
    )]
    Outgoing,
    #[error("the secret of another's key is handed to nobody; revoke it instead")]
    NotOwn,
    #[error("this needs a session: an API key cannot do it for its owner")]
    NeedsSession,
}

/// An API key that exists.
#[derive(Debug, Clone)]
pub struct StoredKey {
    pub id: String,
    pub owner_id: String,
    /// As stored, whatever the owner holds now.
    pub scopes: Permissions,
    pub expires_s: u64,
}

impl StoredKey {
    fn is_owned_by(&self, caller: &Caller) -> bool {
        self.owner_id == caller.owner_id
    }

    fn authenticated(&self, caller: &Caller) -> bool {
        matches!(&caller.credential, Credential::ApiKey { id, .. } if *id == self.id)
    }
}

fn holds(caller: &Caller, what: Permissions) -> Result<(), GrantError> {
    let lacking = what.without(caller.permissions);
    if lacking.is_empty() {
        Ok(())
    } else {
        Err(GrantError::Permissions(lacking.names()))
    }
}

/// A session is a person, who can come back any time; a key ends when it ends.
fn outlives(caller: &Caller, ends_s: u64) -> bool {
    matches!(caller.credential, Credential::ApiKey { .. }) && ends_s > caller.expires_s
}

/// The scopes of a new key: what was asked for, or all that the caller holds.
pub fn new_key(caller: &Caller, asked: Option<Permissions>) -> Result<Permissions, GrantError> {
    let scopes = asked.unwrap_or(caller.permissions);
    holds(caller, scopes).map(|()| scopes)
}

/// When a new key ends: as asked, or at `usual` unless the key that makes it ends before.
pub fn new_key_end(caller: &Caller, asked_s: Option<u64>, usual_s: u64) -> Result<u64, GrantError> {
    match asked_s {
        Some(asked) if outlives(caller, asked) => Err(GrantError::Life),
        Some(asked) => Ok(asked),
        None if outlives(caller, usual_s) => Ok(caller.expires_s),
        None => Ok(usual_s),
    }
}

/// Whether the caller may be given a new secret of a key.
pub fn rotate_key(caller: &Caller, key: &StoredKey) -> Result<(), GrantError> {
    if !key.is_owned_by(caller) {
        return Err(GrantError::NotOwn);
    }
    // A key that calls holds its scopes only as far as its owner does: it stays what it is. But whoever
    // has only a secret that was rotated out does not take the key back with it.
    if key.authenticated(caller) {
        return match outlives(caller, key.expires_s) {
            true => Err(GrantError::Outgoing),
            false => Ok(()),
        };
    }
    holds(caller, key.scopes)?;
    if outlives(caller, key.expires_s) {
        return Err(GrantError::OutlivedBy);
    }
    Ok(())
}

/// Whether the caller may end a key.
pub fn revoke_key(caller: &Caller, key: &StoredKey) -> Result<(), GrantError> {
    if caller.permissions.contains("apikeys.revoke_any") || key.authenticated(caller) {
        return Ok(());
    }
    if key.is_owned_by(caller) {
        return holds(caller, key.scopes);
    }
    holds(caller, Permissions::of(["apikeys.revoke_any"]))
}

/// Whether the caller may make of a user who holds `before` one who holds `after`. Nothing, for one
/// who does not exist yet.
pub fn change_user(
    caller: &Caller,
    before: Permissions,
    after: Permissions,
) -> Result<(), GrantError> {
    holds(caller, before.union(after))
}

/// Whether the caller may change the own password or end the own session.
pub fn require_session(caller: &Caller) -> Result<(), GrantError> {
    match caller.credential {
        Credential::Session { .. } => Ok(()),
        Credential::ApiKey { .. } => Err(GrantError::NeedsSession),
    }
}

/// Whether the caller may have an identity of a class made, with names of a server or without.
pub fn issue_identity(
    caller: &Caller,
    class: PeerClass,
    server_names: bool,
) -> Result<(), GrantError> {
    holds(caller, required_to_issue(class, server_names))
}

/// What an identity of a class needs of whoever has it made.
pub fn required_to_issue(class: PeerClass, server_names: bool) -> Permissions {
    let kind = match class {
        PeerClass::Client => "certificates.issue",
        PeerClass::Operator => "certificates.issue_operator",
        _ => "certificates.issue_workload",
    };
    let mut needed = vec!["certificates.issue", kind];
    if server_names {
        needed.push("certificates.issue_workload");
    }
    Permissions::of(needed)
}

/// Whether the caller may cut off an identity of a class; `None` for a certificate of which it is not
/// known whose it is: it may be a workload's, or that of an issuer.
pub fn revoke_identity(caller: &Caller, class: Option<PeerClass>) -> Result<(), GrantError> {
    let needed: &[_] = match class {
        Some(PeerClass::Client | PeerClass::Operator) => &["certificates.revoke"],
        _ => &["certificates.revoke", "certificates.revoke_workload"],
    };
    holds(caller, Permissions::of(needed.iter().copied()))
}

#[cfg(test)]
mod tests;
