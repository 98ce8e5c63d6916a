//! Users and their roles. A change that takes something away ends the user's sessions: tokens from
//! before are rejected. A change without effect ends nothing.
//!
//! [`tars_credentials::grant`] decides who may change whom.

use crate::{
    Auth, AuthError, holder,
    origin::Origin,
    sessions::{UserSummary, session_of},
    snapshot::user_changed,
    store::{self, UserRow},
};
use std::collections::BTreeSet;
use tars_credentials::{Caller, Permissions, grant, permission};
use tars_runtime::{
    audit::{self, Record, Severity},
    network::bucket,
    page,
};
use uuid::Uuid;

/// What a change did to a user.
enum Effect {
    Nothing,
    /// The user's sessions continue.
    Changed,
    /// Every session has ended, except the kept one.
    Ended {
        kept: Option<Uuid>,
    },
}

fn permissions_of<'a>(roles: impl IntoIterator<Item = &'a String>) -> Permissions {
    permission::of_roles(roles.into_iter().map(String::as_str))
}

impl Auth {
    /// Creates a user on behalf of the caller.
    pub(crate) async fn create_user(
        &self,
        caller: &Caller,
        from: &Origin,
        username: &str,
        password: &str,
        roles: Vec<String>,
    ) -> Result<UserSummary, AuthError> {
        let roles = known_roles(roles)?;
        grant::change_user(caller, Permissions::default(), permissions_of(&roles))?;
        let hashed = self.own.passwords.hash(from.network(), password).await?;
        self.insert_user(&caller.label, Some(caller), username, (hashed, roles))
            .await
    }

    /// Creates a user on behalf of the process itself.
    pub(crate) async fn add_user(
        &self,
        by: &str,
        username: &str,
        password: &str,
        roles: Vec<String>,
    ) -> Result<UserSummary, AuthError> {
        let here = bucket(std::net::Ipv4Addr::LOCALHOST.into());
        let hashed = self.own.passwords.hash(here, password).await?;
        self.insert_user(by, None, username, (hashed, roles)).await
    }

    async fn insert_user(
        &self,
        by: &str,
        caller: Option<&Caller>,
        username: &str,
        (password, roles): (String, Vec<String>),
    ) -> Result<UserSummary, AuthError> {
        let row = UserRow {
            id: Uuid::now_v7(),
            username: username.to_owned(),
            password,
            roles,
            disabled: false,
            version: 1,
            created_us: self.clock.now_us(),
            token_version: 1,
            kept_session: None,
        };
        let record = Record::new(&self.clock, "auth", "user.created")
            .caller(by)
            .resource(username)
            .detail("roles", row.roles.join(","));
        let mut tx = self.change("users.create").await?;
        if let Some(caller) = caller {
            // While the password was hashed, the caller may have been disabled or demoted.
            let now = holder::reauthorize(&mut tx, caller, self.clock.now_us()).await?;
            grant::change_user(&now, Permissions::default(), permissions_of(&row.roles))?;
        }
        store::insert_user(&mut tx, &row).await?;
        audit::insert(&mut tx, &record).await?;
        tx.announce(&user_changed(&row)).await?;
        tx.commit().await?;
        Ok(UserSummary::from(&row))
    }

    /// Lists users by name, with the token of the next page.
    pub(crate) async fn list_users(
        &self,
        after: &str,
        page_size: u32,
    ) -> Result<(Vec<UserSummary>, String), AuthError> {
        let size = page::size(page_size);
        let rows = store::users(&mut self.store.read("users.list"), after, size).await?;
        let (rows, next) = rows.cut(|u| u.username.clone());
        Ok((rows.iter().map(UserSummary::from).collect(), next))
    }

    /// Disables or enables a user.
    pub(crate) async fn set_disabled(
        &self,
        caller: &Caller,
        username: &str,
        disabled: bool,
    ) -> Result<UserSummary, AuthError> {
        let kind = if disabled {
            "user.disabled"
        } else {
            "user.enabled"
        };
        let record = Record::new(&self.clock, "auth", kind)
            .caller(&caller.label)
            .resource(username);
        self.change_user(username, record, |user| {
            let held = permissions_of(&user.roles);
            grant::change_user(caller, held, held)?;
            if user.disabled == disabled {
                return Ok(Effect::Nothing);
            }
            user.disabled = disabled;
            Ok(match disabled {
                true => Effect::Ended { kept: None },
                false => Effect::Changed,
            })
        })
        .await
    }

    /// Replaces the roles of a user.
    pub(crate) async fn set_roles(
        &self,
        caller: &Caller,
        username: &str,
        roles: Vec<String>,
    ) -> Result<UserSummary, AuthError> {
        let roles = known_roles(roles)?;
        let record = Record::new(&self.clock, "auth", "user.roles_changed")
            .severity(Severity::Critical)
            .caller(&caller.label)
            .resource(username)
            .detail("roles", roles.join(","));
        self.change_user(username, record, |user| {
            grant::change_user(caller, permissions_of(&user.roles), permissions_of(&roles))?;
            let same = BTreeSet::from_iter(&user.roles) == BTreeSet::from_iter(&roles);
            if same {
                return Ok(Effect::Nothing);
            }
            user.roles = roles;
            Ok(Effect::Ended { kept: None })
        })
        .await
    }

    /// Applies a change with its audit record and announcement in one transaction.
    async fn change_user(
        &self,
        username: &str,
        record: Record,
        change: impl FnOnce(&mut UserRow) -> Result<Effect, AuthError>,
    ) -> Result<UserSummary, AuthError> {
        let mut tx = self.change("users.change").await?;
        let found = store::user_by_name(&mut *tx, username).await?;
        let mut user = found.ok_or_else(|| AuthError::NotFound("user", username.to_owned()))?;
        match change(&mut user)? {
            Effect::Nothing => return Ok(UserSummary::from(&user)),
            Effect::Changed => {}
            Effect::Ended { kept } => {
                user.end_tokens(kept);
                store::revoke_sessions_of(&mut tx, user.id, kept, self.clock.now_us()).await?;
            }
        }
        user.version += 1;
        store::update_user(&mut tx, &user).await?;
        if store::enabled_with_role(&mut *tx, "admin").await? == 0 {
            return Err(AuthError::LastAdmin);
        }
        audit::insert(&mut tx, &record).await?;
        tx.announce(&user_changed(&user)).await?;
        tx.commit().await?;
        Ok(UserSummary::from(&user))
    }

    /// Changes the caller's password. The calling session continues; all others end.
    pub(crate) async fn change_password(
        &self,
        caller: &Caller,
        from: &Origin,
        current: &str,
        new: &str,
    ) -> Result<(), AuthError> {
        let own = session_of(caller)?;
        let proven = self.prove_password(caller, from, current).await?;
        if current == new {
            return Err(AuthError::SamePassword);
        }
        let hashed = self.own.passwords.hash(from.network(), new).await?;
        let record =
            Record::new(&self.clock, "auth", "user.password_changed").caller(caller.label.clone());
        self.change_user(&caller.username, record, |user| {
            // The user may have been changed while the password was verified.
            if user.version != proven.version {
                return Err(AuthError::Conflict);
            }
            user.password = hashed;
            Ok(Effect::Ended { kept: Some(own) })
        })
        .await?;
        Ok(())
    }

    /// The caller's row, if this is their password. Failures are throttled, so that a stolen token
    /// does not help to guess it.
    async fn prove_password(
        &self,
        caller: &Caller,
        from: &Origin,
        password: &str,
    ) -> Result<UserRow, AuthError> {
        let (name, network) = (&caller.username, from.network());
        if let Some(wait) = self
            .own
            .throttle
            .wait(name, network, self.clock.monotonic())
        {
            return Err(AuthError::Throttled(wait));
        }
        let user = store::user_by_name(&mut self.store.read("users.by_name"), name).await?;
        let user = user.ok_or(AuthError::InvalidCredentials)?;
        let stored = Some(user.password.as_str());
        if !self.own.passwords.verify(network, password, stored).await? {
            self.record_failed_login(name, from).await?;
            return Err(AuthError::InvalidCredentials);
        }
        self.own.throttle.succeeded(name, network);
        Ok(user)
    }
}

/// The roles without duplicates, if all of them exist.
fn known_roles(mut roles: Vec<String>) -> Result<Vec<String>, AuthError> {
    let unknown = |role: &&String| !permission::role_names().any(|name| name == *role);
    if let Some(role) = roles.iter().find(unknown) {
        return Err(AuthError::UnknownRole(role.clone()));
    }
    let mut seen = BTreeSet::new();
    roles.retain(|role| seen.insert(role.clone()));
    Ok(roles)
}

#[cfg(test)]
mod tests;
