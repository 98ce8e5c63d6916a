//! The rows of users.

use crate::AuthError;
use tars_runtime::{
    db::{DbError, Fetch, FromRow, Query, Row, Transaction, json},
    page::{Page, Size},
};
use uuid::Uuid;

#[derive(Debug, Clone)]
pub(crate) struct UserRow {
    pub(crate) id: Uuid,
    pub(crate) username: String,
    pub(crate) password: String,
    pub(crate) roles: Vec<String>,
    pub(crate) disabled: bool,
    /// Incremented by every change.
    pub(crate) version: i64,
    pub(crate) created_us: i64,
    /// Tokens with a lower version are rejected.
    pub(crate) token_version: i64,
    /// Except those of this session, which changed the password.
    pub(crate) kept_session: Option<Uuid>,
}

impl UserRow {
    /// Ends every session except the kept one.
    pub(crate) fn end_tokens(&mut self, kept: Option<Uuid>) {
        self.token_version += 1;
        self.kept_session = kept;
    }
}

const COUNT: &str = "SELECT COUNT(*) AS users FROM users";
const BY_NAME: &str = "SELECT id, username, password, roles, disabled, version, created_us, token_version, \
                       kept_session FROM users WHERE username = $1";
const BY_ID: &str = "SELECT id, username, password, roles, disabled, version, created_us, token_version, \
                     kept_session FROM users WHERE id = $1";
const USERS: &str = "SELECT id, username, password, roles, disabled, version, created_us, token_version, \
                     kept_session FROM users WHERE username > $1 ORDER BY username LIMIT $2";
const INSERT: &str = "INSERT INTO users (id, username, password, roles, disabled, version, created_us, token_version) \
                      VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT (username) DO NOTHING";
const UPDATE: &str = "UPDATE users SET password = $1, roles = $2, disabled = $3, version = $4, token_version = $5, \
                      kept_session = $6 WHERE id = $7 AND version = $8";
const ENABLED_WITH: &str =
    "SELECT COUNT(*) AS users FROM users WHERE NOT disabled AND roles LIKE $1";

impl FromRow for UserRow {
    fn from_row(row: &Row) -> Result<Self, DbError> {
        let id: Uuid = row.get("id")?;
        let row = row.named("users", id);
        Ok(Self {
            id,
            username: row.get("username")?,
            password: row.get("password")?,
            roles: row.json("roles")?,
            disabled: row.get("disabled")?,
            version: row.get("version")?,
            created_us: row.get("created_us")?,
            token_version: row.get("token_version")?,
            kept_session: row.get("kept_session")?,
        })
    }
}

pub(crate) async fn user_count(db: &mut impl Fetch) -> Result<i64, AuthError> {
    Ok(db.value(Query::new(COUNT), "users").await?)
}

pub(crate) async fn user_by_name(
    db: &mut impl Fetch,
    username: &str,
) -> Result<Option<UserRow>, AuthError> {
    Ok(db.optional(Query::new(BY_NAME).bind(username)).await?)
}

pub(crate) async fn user_by_id(
    db: &mut impl Fetch,
    id: Uuid,
) -> Result<Option<UserRow>, AuthError> {
    Ok(db.optional(Query::new(BY_ID).bind(id)).await?)
}

pub(crate) async fn users(
    db: &mut impl Fetch,
    after: &str,
    size: Size,
) -> Result<Page<UserRow>, AuthError> {
    let query = Query::new(USERS).bind(after).bind(size.limit());
    Ok(db.page(query, size).await?)
}

pub(crate) async fn all_users(db: &mut impl Fetch) -> Result<Vec<UserRow>, AuthError> {
    let query = Query::new(USERS).bind("").bind(i64::MAX);
    Ok(db.all(query).await?)
}

pub(crate) async fn insert_user(tx: &mut Transaction, row: &UserRow) -> Result<(), AuthError> {
    let insert = Query::new(INSERT)
        .bind(row.id)
        .bind(&row.username)
        .bind(&row.password)
        .bind(json(&row.roles)?)
        .bind(row.disabled)
        .bind(row.version)
        .bind(row.created_us)
        .bind(row.token_version);
    let exists = AuthError::UserExists(row.username.clone());
    tx.execute(insert).await?.swap().or(exists)
}

/// Writes a user, whose stored version must be the one before `row.version`.
pub(crate) async fn update_user(tx: &mut Transaction, row: &UserRow) -> Result<(), AuthError> {
    let update = Query::new(UPDATE)
        .bind(&row.password)
        .bind(json(&row.roles)?)
        .bind(row.disabled)
        .bind(row.version)
        .bind(row.token_version)
        .bind(row.kept_session)
        .bind(row.id)
        .bind(row.version - 1);
    tx.execute(update).await?.swap().or(AuthError::Conflict)
}

/// The number of enabled users that have a role, matched in the JSON text. It is meaningful only in
/// an exclusive transaction: two that each disable another administrator would both see one left.
pub(crate) async fn enabled_with_role(db: &mut impl Fetch, role: &str) -> Result<i64, AuthError> {
    let query = Query::new(ENABLED_WITH).bind(format!("%\"{role}\"%"));
    Ok(db.value(query, "users").await?)
}
