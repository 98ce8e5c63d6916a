//! Delegation: what a caller may create, renew, widen, hand out or take away. One rule covers every
//! credential.
//!
//! Nobody grants permissions that they do not hold, and nobody changes a credential that holds more
//! than they do. A caller holds the permissions of its roles, restricted to the scopes of its key.
//! A key holds its stored scopes, which do not change with its owner's roles. Without the second
//! half of the rule, taking away would be a way around the first: an administrator who can disable
//! every stronger one is the strongest.
//!
//! A key acts for its owner, and dual approval compares owners. Therefore the secret of another
//! owner's key is never handed out, not even to a caller who holds every permission; revoking it
//! suffices, and has a permission of its own. Identities have no permissions to compare: issuing
//! one requires the permission for its kind, and none of these implies another.

use crate::{Caller, Credential, Permissions};
use tars_certs::PeerClass;

/// Why a caller may not do this.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GrantError {
    /// The credential holds these permissions, which the caller lacks.
    #[error("the caller does not hold these permissions: {}", .0.join(", "))]
    Permissions(Vec<&'static str>),
    /// The requested expiry is later than that of the calling key.
    #[error("the new key would outlive the calling key")]
    Life,
    /// The key to rotate expires later than the calling key.
    #[error("the key to rotate outlives the calling key")]
    OutlivedBy,
    /// The calling secret is being rotated out.
    #[error(
        "the calling secret is being rotated out and expires before its key; use the newest secret"
    )]
    Outgoing,
    /// The key belongs to another owner.
    #[error("the secret of a key is given to its owner only; revoke the key instead")]
    NotOwn,
    /// Only a session may do this.
    #[error("this requires a session; an API key cannot do it for its owner")]
    NeedsSession,
}

/// An existing API key.
#[derive(Debug, Clone)]
pub struct StoredKey {
    /// The id of the key.
    pub id: String,
    /// The id of its owner.
    pub owner_id: String,
    /// As stored, regardless of what the owner holds now.
    pub scopes: Permissions,
    /// When it expires, in seconds since the Unix epoch.
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

fn require(caller: &Caller, what: Permissions) -> Result<(), GrantError> {
    let lacking = what.without(caller.permissions);
    if lacking.is_empty() {
        Ok(())
    } else {
        Err(GrantError::Permissions(lacking.names()))
    }
}

/// Whether something that ends at `ends_s` outlives the calling key. A session does not count: a
/// person can log in again at any time.
fn outlives(caller: &Caller, ends_s: u64) -> bool {
    matches!(caller.credential, Credential::ApiKey { .. }) && ends_s > caller.expires_s
}

/// The scopes of a new key: those requested, or everything that the caller holds.
///
/// # Errors
///
/// [`GrantError::Permissions`] when the caller lacks a requested scope.
pub fn new_key(caller: &Caller, asked: Option<Permissions>) -> Result<Permissions, GrantError> {
    let scopes = asked.unwrap_or(caller.permissions);
    require(caller, scopes).map(|()| scopes)
}

/// When a new key expires, in seconds since the Unix epoch: as requested, or at `usual_s` unless
/// the calling key expires earlier.
///
/// # Errors
///
/// [`GrantError::Life`] when the requested expiry is later than that of the calling key.
pub fn new_key_end(caller: &Caller, asked_s: Option<u64>, usual_s: u64) -> Result<u64, GrantError> {
    match asked_s {
        Some(asked) if outlives(caller, asked) => Err(GrantError::Life),
        Some(asked) => Ok(asked),
        None if outlives(caller, usual_s) => Ok(caller.expires_s),
        None => Ok(usual_s),
    }
}

/// Checks whether the caller may be given a new secret of a key.
///
/// # Errors
///
/// [`GrantError`], with the rule that forbids it.
pub fn rotate_key(caller: &Caller, key: &StoredKey) -> Result<(), GrantError> {
    if !key.is_owned_by(caller) {
        return Err(GrantError::NotOwn);
    }
    // A key may rotate itself even when its owner has lost some of its scopes: it does not gain
    // any. But a caller that has only the outgoing secret cannot reclaim the key.
    if key.authenticated(caller) {
        return match outlives(caller, key.expires_s) {
            true => Err(GrantError::Outgoing),
            false => Ok(()),
        };
    }
    require(caller, key.scopes)?;
    if outlives(caller, key.expires_s) {
        return Err(GrantError::OutlivedBy);
    }
    Ok(())
}

/// Checks whether the caller may revoke a key.
///
/// # Errors
///
/// [`GrantError::Permissions`] with the permissions that are missing.
pub fn revoke_key(caller: &Caller, key: &StoredKey) -> Result<(), GrantError> {
    if caller.permissions.includes(Permissions::REVOKE_ANY_API_KEY) || key.authenticated(caller) {
        return Ok(());
    }
    if key.is_owned_by(caller) {
        return require(caller, key.scopes);
    }
    require(caller, Permissions::REVOKE_ANY_API_KEY)
}

/// Checks whether the caller may turn a user who holds `before` into one who holds `after`. A user
/// who does not exist yet holds nothing.
///
/// # Errors
///
/// [`GrantError::Permissions`] with the permissions that are missing.
pub fn change_user(
    caller: &Caller,
    before: Permissions,
    after: Permissions,
) -> Result<(), GrantError> {
    require(caller, before.union(after))
}

/// Checks that the caller is a session, which changing a password and logging out require.
///
/// # Errors
///
/// [`GrantError::NeedsSession`] for an API key.
pub fn require_session(caller: &Caller) -> Result<(), GrantError> {
    match caller.credential {
        Credential::Session { .. } => Ok(()),
        Credential::ApiKey { .. } => Err(GrantError::NeedsSession),
    }
}

/// Checks whether the caller may issue an identity of a class, with the host names of a server or
/// without.
///
/// # Errors
///
/// [`GrantError::Permissions`] with the permissions that are missing.
pub fn issue_identity(
    caller: &Caller,
    class: PeerClass,
    server_names: bool,
) -> Result<(), GrantError> {
    require(caller, required_to_issue(class, server_names))
}

/// The permissions required to issue an identity of a class.
pub fn required_to_issue(class: PeerClass, server_names: bool) -> Permissions {
    let kind = match class {
        PeerClass::Client => Permissions::ISSUE_CERTIFICATES,
        PeerClass::Operator => Permissions::ISSUE_OPERATOR,
        _ => Permissions::ISSUE_WORKLOAD,
    };
    let needed = Permissions::ISSUE_CERTIFICATES.union(kind);
    match server_names {
        true => needed.union(Permissions::ISSUE_WORKLOAD),
        false => needed,
    }
}

/// Checks whether the caller may revoke an identity of a class. `None` stands for a certificate of
/// unknown identity, which may be that of a workload or an issuer.
///
/// # Errors
///
/// [`GrantError::Permissions`] with the permissions that are missing.
pub fn revoke_identity(caller: &Caller, class: Option<PeerClass>) -> Result<(), GrantError> {
    let needed = match class {
        Some(PeerClass::Client | PeerClass::Operator) => Permissions::REVOKE_CERTIFICATES,
        _ => Permissions::REVOKE_CERTIFICATES.union(Permissions::REVOKE_WORKLOAD),
    };
    require(caller, needed)
}

#[cfg(test)]
mod tests;
