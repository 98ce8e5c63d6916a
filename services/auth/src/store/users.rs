//! The rows of users.

use super::{from_json, to_json};
use crate::AuthError;
use sqlx::{SqliteConnection, SqliteExecutor};
use tars_runtime::db::is_taken;
use uuid::Uuid;

#[derive(Debug, Clone)]
pub(crate) struct UserRow {
    pub(crate) id: Uuid,
    pub(crate) username: String,
    pub(crate) password: String,
    pub(crate) roles: Vec<String>,
    pub(crate) disabled: bool,
    /// Counts every change.
    pub(crate) version: i64,
    pub(crate) created_us: i64,
    /// Tokens with a lower one are refused.
    pub(crate) token_version: i64,
    /// But for those of this session, which changed the password.
    pub(crate) kept_session: Option<Uuid>,
}

impl UserRow {
    /// Ends every session but the kept one.
    pub(crate) fn end_tokens(&mut self, kept: Option<Uuid>) {
        self.token_version += 1;
        self.kept_session = kept;
    }
}

type Tuple = (
    Uuid,
    String,
    String,
    String,
    bool,
    i64,
    i64,
    i64,
    Option<Uuid>,
);

macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT id, username, password, roles, disabled, version, created_us, token_version, ",
            "kept_session FROM users ",
            $rest
        )
    };
}

fn user(row: Tuple) -> Result<UserRow, AuthError> {
    let (id, username, password, roles, disabled, version, created_us, token_version, kept_session) =
        row;
    Ok(UserRow {
        id,
        username,
        password,
        roles: from_json(&roles)?,
        disabled,
        version,
        created_us,
        token_version,
        kept_session,
    })
}

pub(crate) async fn user_count(db: impl SqliteExecutor<'_>) -> Result<i64, AuthError> {
    Ok(sqlx::query_scalar("SELECT COUNT(*) FROM users")
        .fetch_one(db)
        .await?)
}

pub(crate) async fn user_by_name(
    db: impl SqliteExecutor<'_>,
    username: &str,
) -> Result<Option<UserRow>, AuthError> {
    sqlx::query_as(select!("WHERE username = $1"))
        .bind(username)
        .fetch_optional(db)
        .await?
        .map(user)
        .transpose()
}

pub(crate) async fn user_by_id(
    db: impl SqliteExecutor<'_>,
    id: Uuid,
) -> Result<Option<UserRow>, AuthError> {
    sqlx::query_as(select!("WHERE id = $1"))
        .bind(id)
        .fetch_optional(db)
        .await?
        .map(user)
        .transpose()
}

pub(crate) async fn users(
    db: impl SqliteExecutor<'_>,
    after: &str,
    limit: i64,
) -> Result<Vec<UserRow>, AuthError> {
    let rows: Vec<Tuple> =
        sqlx::query_as(select!("WHERE username > $1 ORDER BY username LIMIT $2"))
            .bind(after)
            .bind(limit)
            .fetch_all(db)
            .await?;
    rows.into_iter().map(user).collect()
}

pub(crate) async fn all_users(db: impl SqliteExecutor<'_>) -> Result<Vec<UserRow>, AuthError> {
    users(db, "", i64::MAX).await
}

pub(crate) async fn insert_user(tx: &mut SqliteConnection, row: &UserRow) -> Result<(), AuthError> {
    let inserted = sqlx::query(
        "INSERT INTO users (id, username, password, roles, disabled, version, created_us, token_version) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
    )
    .bind(row.id)
    .bind(&row.username)
    .bind(&row.password)
    .bind(to_json(&row.roles)?)
    .bind(row.disabled)
    .bind(row.version)
    .bind(row.created_us)
    .bind(row.token_version)
    .execute(tx)
    .await;
    match inserted {
        Err(e) if is_taken(&e) => Err(AuthError::UserExists(row.username.clone())),
        other => Ok(other.map(drop)?),
    }
}

/// Writes a user whose version must be the one before `row.version`.
pub(crate) async fn update_user(tx: &mut SqliteConnection, row: &UserRow) -> Result<(), AuthError> {
    let done = sqlx::query(
        "UPDATE users SET password = $1, roles = $2, disabled = $3, version = $4, token_version = $5, \
         kept_session = $6 WHERE id = $7 AND version = $8",
    )
    .bind(&row.password)
    .bind(to_json(&row.roles)?)
    .bind(row.disabled)
    .bind(row.version)
    .bind(row.token_version)
    .bind(row.kept_session)
    .bind(row.id)
    .bind(row.version - 1)
    .execute(tx)
    .await?;
    if done.rows_affected() == 1 {
        Ok(())
    } else {
        Err(AuthError::Conflict)
    }
}

/// Enabled users that hold a role, by the roles' JSON text.
pub(crate) async fn enabled_with_role(
    db: impl SqliteExecutor<'_>,
    role: &str,
) -> Result<i64, AuthError> {
    let pattern = format!("%\"{role}\"%");
    let query = "SELECT COUNT(*) FROM users WHERE NOT disabled AND roles LIKE $1";
    Ok(sqlx::query_scalar(query)
        .bind(pattern)
        .fetch_one(db)
        .await?)
}
