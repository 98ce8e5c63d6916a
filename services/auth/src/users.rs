//! Users and their roles. Every change raises the user's version: tokens made before stop working.

use crate::{
    Auth, AuthError,
    sessions::UserSummary,
    store::{self, UserRow},
};
use tars_credentials::{Caller, Credential};
use tars_runtime::{
    audit::{self, Record, Severity},
    page,
};
use uuid::Uuid;

impl Auth {
    pub async fn create_user(
        &self,
        by: &str,
        username: &str,
        password: &str,
        roles: Vec<String>,
    ) -> Result<UserSummary, AuthError> {
        check_roles(&roles)?;
        let row = UserRow {
            id: Uuid::now_v7(),
            username: username.to_owned(),
            password: self.passwords.hash(password).await?,
            roles,
            disabled: false,
            version: 1,
            created_us: self.clock.now_us(),
        };
        let record = Record::new(&self.clock, "auth", "user.created")
            .caller(by)
            .resource(username)
            .detail("roles", row.roles.join(","));
        let mut tx = self.store.begin("users.create").await?;
        store::insert_user(&mut tx, &row).await?;
        audit::insert(&mut tx, &record).await?;
        tx.commit().await?;
        self.publish_user(&row);
        Ok(UserSummary::from(&row))
    }

    pub async fn list_users(
        &self,
        after: &str,
        page_size: u32,
    ) -> Result<(Vec<UserSummary>, String), AuthError> {
        let size = page::size(page_size);
        let rows = self.store.users(after, size + 1).await?;
        let (rows, next) = page::cut(rows, size, |u| u.username.clone());
        Ok((rows.iter().map(UserSummary::from).collect(), next))
    }

    pub async fn set_disabled(
        &self,
        by: &str,
        username: &str,
        disabled: bool,
    ) -> Result<UserSummary, AuthError> {
        let kind = if disabled {
            "user.disabled"
        } else {
            "user.enabled"
        };
        let record = Record::new(&self.clock, "auth", kind)
            .caller(by)
            .resource(username);
        self.change_user(username, record, |user| user.disabled = disabled)
            .await
    }

    pub async fn set_roles(
        &self,
        by: &str,
        username: &str,
        roles: Vec<String>,
    ) -> Result<UserSummary, AuthError> {
        check_roles(&roles)?;
        let record = Record::new(&self.clock, "auth", "user.roles_changed")
            .severity(Severity::Critical)
            .caller(by)
            .resource(username)
            .detail("roles", roles.join(","));
        self.change_user(username, record, |user| user.roles = roles)
            .await
    }

    /// Applies a change and ends the user's sessions, in one transaction.
    async fn change_user(
        &self,
        username: &str,
        record: Record,
        change: impl FnOnce(&mut UserRow),
    ) -> Result<UserSummary, AuthError> {
        let mut tx = self.store.begin("users.change").await?;
        let found = store::user_in(&mut tx, username).await?;
        let mut user = found.ok_or_else(|| AuthError::NotFound("user", username.to_owned()))?;
        change(&mut user);
        user.version += 1;
        store::update_user(&mut tx, &user).await?;
        if store::enabled_with_role(&mut tx, "admin").await? == 0 {
            return Err(AuthError::LastAdmin);
        }
        store::revoke_sessions_of(&mut tx, user.id).await?;
        audit::insert(&mut tx, &record).await?;
        tx.commit().await?;
        self.publish_user(&user);
        Ok(UserSummary::from(&user))
    }

    pub async fn change_password(
        &self,
        caller: &Caller,
        current: &str,
        new: &str,
    ) -> Result<(), AuthError> {
        if matches!(caller.credential, Credential::ApiKey { .. }) {
            return Err(AuthError::InvalidCredentials);
        }
        let user = self
            .store
            .user(&caller.username)
            .await?
            .ok_or(AuthError::InvalidCredentials)?;
        if !self.passwords.verify(current, Some(&user.password)).await? {
            return Err(AuthError::InvalidCredentials);
        }
        if current == new {
            return Err(AuthError::SamePassword);
        }
        let hashed = self.passwords.hash(new).await?;
        let record =
            Record::new(&self.clock, "auth", "user.password_changed").caller(caller.label.clone());
        self.change_user(&caller.username, record, |u| u.password = hashed)
            .await?;
        Ok(())
    }
}

fn check_roles(roles: &[String]) -> Result<(), AuthError> {
    let known = tars_credentials::permission::default_roles();
    match roles
        .iter()
        .find(|r| !known.iter().any(|(name, _)| name == r))
    {
        Some(unknown) => Err(AuthError::UnknownRole(unknown.clone())),
        None => Ok(()),
    }
}
