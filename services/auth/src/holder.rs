//! The current permissions of a credential, read from the database. What a call was authorized with
//! may have ended by the time its change is written, or by the time something that it created is
//! used.

use crate::{
    AuthError,
    store::{key_in, session, user_by_id},
};
use tars_credentials::{Caller, Credential, Permissions, permission};
use tars_runtime::db::Transaction;
use uuid::Uuid;

/// A user, and the API key that acts for the user; empty for a session.
#[derive(Debug, Clone)]
pub(crate) struct Holder {
    pub(crate) user: Uuid,
    pub(crate) api_key: String,
}

impl Holder {
    pub(crate) fn of(caller: &Caller) -> Result<Self, AuthError> {
        let user = Uuid::try_parse(&caller.owner_id).map_err(|_| AuthError::InvalidCredentials)?;
        let api_key = match &caller.credential {
            Credential::ApiKey { id, .. } => id.clone(),
            Credential::Session { .. } => String::new(),
        };
        Ok(Self { user, api_key })
    }

    /// The permissions that the user holds, restricted to the scopes of the key; `None` when either
    /// has ended.
    pub(crate) async fn holds(
        &self,
        tx: &mut Transaction,
        now_us: i64,
    ) -> Result<Option<Permissions>, AuthError> {
        let user = user_by_id(tx, self.user).await?;
        let Some(user) = user.filter(|u| !u.disabled) else {
            return Ok(None);
        };
        let held = permission::of_roles(user.roles.iter().map(String::as_str));
        if self.api_key.is_empty() {
            return Ok(Some(held));
        }
        let key = key_in(tx, &self.api_key).await?;
        let key = key.filter(|k| k.revoked_us.is_none() && k.expires_us > now_us);
        Ok(key.map(|k| held.intersect(Permissions::of(k.scopes.iter().map(String::as_str)))))
    }
}

/// Whether the session of a caller is still open; a key has none.
async fn session_is_open(
    tx: &mut Transaction,
    caller: &Caller,
    now_us: i64,
) -> Result<bool, AuthError> {
    let Credential::Session { id } = &caller.credential else {
        return Ok(true);
    };
    let id = Uuid::try_parse(id).map_err(|_| AuthError::InvalidCredentials)?;
    let found = session(tx, id).await?;
    Ok(found.is_some_and(|s| !s.revoked && s.ends_us > now_us))
}

/// The caller with the permissions that it still holds.
///
/// # Errors
///
/// [`AuthError::InvalidCredentials`] when its credential has ended.
pub(crate) async fn reauthorize(
    tx: &mut Transaction,
    caller: &Caller,
    now_us: i64,
) -> Result<Caller, AuthError> {
    if !session_is_open(tx, caller, now_us).await? {
        return Err(AuthError::InvalidCredentials);
    }
    let held = Holder::of(caller)?.holds(tx, now_us).await?;
    let held = held.ok_or(AuthError::InvalidCredentials)?;
    Ok(Caller {
        permissions: caller.permissions.intersect(held),
        ..caller.clone()
    })
}
