//! Users and their roles. What a change takes away ends the user's sessions with it: tokens made before
//! stop working. A change that changes nothing ends nothing.
//!
//! Who may change whom, [`tars_credentials::grant`] says.

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

/// What a change has made of a user.
enum Done {
    Nothing,
    /// Sessions go on.
    Changed,
    /// Every session has ended, but for the kept one.
    Ended {
        kept: Option<Uuid>,
    },
}

fn holdings<'a>(roles: impl IntoIterator<Item = &'a String>) -> Permissions {
    permission::of_roles(roles.into_iter().map(String::as_str))
}

impl Auth {
    pub(crate) async fn create_user(
        &self,
        caller: &Caller,
        from: &Origin,
        username: &str,
        password: &str,
        roles: Vec<String>,
    ) -> Result<UserSummary, AuthError> {
        let roles = known_roles(roles)?;
        grant::change_user(caller, Permissions::default(), holdings(&roles))?;
        let hashed = self.passwords.hash(from.network(), password).await?;
        self.insert_user(&caller.label, Some(caller), username, (hashed, roles))
            .await
    }

    /// A user that nobody in particular makes.
    pub(crate) async fn add_user(
        &self,
        by: &str,
        username: &str,
        password: &str,
        roles: Vec<String>,
    ) -> Result<UserSummary, AuthError> {
        let here = bucket(std::net::Ipv4Addr::LOCALHOST.into());
        let hashed = self.passwords.hash(here, password).await?;
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
            // Hashing takes long enough to be disabled or demoted meanwhile.
            let now = holder::still(&mut tx, caller, self.clock.now_us()).await?;
            grant::change_user(&now, Permissions::default(), holdings(&row.roles))?;
        }
        store::insert_user(&mut tx, &row).await?;
        audit::insert(&mut tx, &record).await?;
        tx.announce(&user_changed(&row)).await?;
        tx.commit().await?;
        Ok(UserSummary::from(&row))
    }

    pub(crate) async fn list_users(
        &self,
        after: &str,
        page_size: u32,
    ) -> Result<(Vec<UserSummary>, String), AuthError> {
        let size = page::size(page_size);
        let rows = store::users(&mut self.store.read("users.list"), after, size + 1).await?;
        let (rows, next) = page::cut(rows, size, |u| u.username.clone());
        Ok((rows.iter().map(UserSummary::from).collect(), next))
    }

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
            let held = holdings(&user.roles);
            grant::change_user(caller, held, held)?;
            if user.disabled == disabled {
                return Ok(Done::Nothing);
            }
            user.disabled = disabled;
            Ok(match disabled {
                true => Done::Ended { kept: None },
                false => Done::Changed,
            })
        })
        .await
    }

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
            grant::change_user(caller, holdings(&user.roles), holdings(&roles))?;
            let same = BTreeSet::from_iter(&user.roles) == BTreeSet::from_iter(&roles);
            if same {
                return Ok(Done::Nothing);
            }
            user.roles = roles;
            Ok(Done::Ended { kept: None })
        })
        .await
    }

    /// Applies a change in one transaction with all that comes of it.
    async fn change_user(
        &self,
        username: &str,
        record: Record,
        change: impl FnOnce(&mut UserRow) -> Result<Done, AuthError>,
    ) -> Result<UserSummary, AuthError> {
        let mut tx = self.change("users.change").await?;
        let found = store::user_by_name(&mut *tx, username).await?;
        let mut user = found.ok_or_else(|| AuthError::NotFound("user", username.to_owned()))?;
        match change(&mut user)? {
            Done::Nothing => return Ok(UserSummary::from(&user)),
            Done::Changed => {}
            Done::Ended { kept } => {
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

    /// Changes the caller's password. The session that does it goes on; all others end.
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
        let hashed = self.passwords.hash(from.network(), new).await?;
        let record =
            Record::new(&self.clock, "auth", "user.password_changed").caller(caller.label.clone());
        self.change_user(&caller.username, record, |user| {
            // Somebody else may have been faster, while the password was looked at.
            if user.version != proven.version {
                return Err(AuthError::Conflict);
            }
            user.password = hashed;
            Ok(Done::Ended { kept: Some(own) })
        })
        .await?;
        Ok(())
    }

    /// The caller's row, if this is their password. Whoever has only a token cannot guess on here.
    async fn prove_password(
        &self,
        caller: &Caller,
        from: &Origin,
        password: &str,
    ) -> Result<UserRow, AuthError> {
        let (name, network) = (&caller.username, from.network());
        if let Some(wait) = self.throttle.wait(name, network, self.clock.monotonic()) {
            return Err(AuthError::Throttled(wait));
        }
        let user = store::user_by_name(&mut self.store.read("users.by_name"), name).await?;
        let user = user.ok_or(AuthError::InvalidCredentials)?;
        let stored = Some(user.password.as_str());
        if !self.passwords.verify(network, password, stored).await? {
            self.record_failed_login(name, from).await?;
            return Err(AuthError::InvalidCredentials);
        }
        self.throttle.succeeded(name, network);
        Ok(user)
    }
}

/// The roles, each once, if all of them exist.
fn known_roles(mut roles: Vec<String>) -> Result<Vec<String>, AuthError> {
    let known = permission::default_roles();
    let unknown = |role: &&String| !known.iter().any(|(name, _)| name == role);
    if let Some(role) = roles.iter().find(unknown) {
        return Err(AuthError::UnknownRole(role.clone()));
    }
    let mut seen = BTreeSet::new();
    roles.retain(|role| seen.insert(role.clone()));
    Ok(roles)
}

#[cfg(test)]
mod tests;
