//! Auth's SQL. Portable text; writes that race are compare-and-set.

use crate::AuthError;
use serde::{Deserialize, Serialize};
use sqlx::SqliteConnection;
use tars_runtime::{
    audit,
    db::{Db, Step, Write, is_taken},
};
use uuid::Uuid;

pub(crate) const STEPS: &[Step] = &[
    (1, "initial", include_str!("../migrations/0001_initial.sql")),
    (2, "audit outbox", audit::MIGRATION),
    (
        3,
        "certificates",
        include_str!("../migrations/0003_certificates.sql"),
    ),
];

#[derive(Debug, Clone)]
pub(crate) struct UserRow {
    pub(crate) id: Uuid,
    pub(crate) username: String,
    pub(crate) password: String,
    pub(crate) roles: Vec<String>,
    pub(crate) disabled: bool,
    pub(crate) version: i64,
    pub(crate) created_us: i64,
}

#[derive(Debug, Clone)]
pub(crate) struct SessionRow {
    pub(crate) id: Uuid,
    pub(crate) user_id: Uuid,
    pub(crate) ends_us: i64,
    pub(crate) revoked: bool,
}

#[derive(Debug, Clone)]
pub(crate) struct RefreshRow {
    pub(crate) session_id: Uuid,
    pub(crate) expires_us: i64,
    pub(crate) used_us: Option<i64>,
    pub(crate) used_by: Option<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Secret {
    pub(crate) sha256: String,
    pub(crate) expires_us: Option<i64>,
}

#[derive(Debug, Clone)]
pub(crate) struct KeyRow {
    pub(crate) id: String,
    pub(crate) service_name: String,
    pub(crate) owner_id: Uuid,
    pub(crate) scopes: Vec<String>,
    pub(crate) secrets: Vec<Secret>,
    pub(crate) created_us: i64,
    pub(crate) expires_us: i64,
    pub(crate) revoked_us: Option<i64>,
    pub(crate) version: i64,
}

#[derive(Debug, Clone)]
pub(crate) struct SigningKeyRow {
    pub(crate) kid: String,
    pub(crate) state: String,
    pub(crate) public_x: String,
    pub(crate) private_sealed: Vec<u8>,
    pub(crate) created_us: i64,
    pub(crate) expires_us: Option<i64>,
}

type UserTuple = (Uuid, String, String, String, bool, i64, i64);
type KeyTuple = (
    String,
    String,
    Uuid,
    String,
    String,
    i64,
    i64,
    Option<i64>,
    i64,
);
type SigningTuple = (String, String, String, Vec<u8>, i64, Option<i64>);

const USER: &str = "SELECT id, username, password, roles, disabled, version, created_us FROM users WHERE username = $1";
const USER_BY_ID: &str =
    "SELECT id, username, password, roles, disabled, version, created_us FROM users WHERE id = $1";
const USERS: &str = "SELECT id, username, password, roles, disabled, version, created_us FROM users \
                     WHERE username > $1 ORDER BY username LIMIT $2";
const KEY: &str = "SELECT id, service_name, owner_id, scopes, secrets, created_us, expires_us, revoked_us, version \
                   FROM api_keys WHERE id = $1";
const KEYS: &str = "SELECT id, service_name, owner_id, scopes, secrets, created_us, expires_us, revoked_us, version \
                    FROM api_keys WHERE (created_us, id) < ($1, $2) ORDER BY created_us DESC, id DESC LIMIT $3";
const SIGNING: &str = "SELECT kid, state, public_x, private_sealed, created_us, expires_us FROM signing_keys \
                       ORDER BY created_us DESC";

fn from_json<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, AuthError> {
    serde_json::from_str(text).map_err(|e| sqlx::Error::Decode(Box::new(e)).into())
}

fn to_json<T: Serialize>(value: &T) -> Result<String, AuthError> {
    serde_json::to_string(value).map_err(|e| sqlx::Error::Encode(Box::new(e)).into())
}

fn user(row: UserTuple) -> Result<UserRow, AuthError> {
    let (id, username, password, roles, disabled, version, created_us) = row;
    Ok(UserRow {
        id,
        username,
        password,
        roles: from_json(&roles)?,
        disabled,
        version,
        created_us,
    })
}

fn key(row: KeyTuple) -> Result<KeyRow, AuthError> {
    let (id, service_name, owner_id, scopes, secrets, created_us, expires_us, revoked_us, version) =
        row;
    Ok(KeyRow {
        id,
        service_name,
        owner_id,
        scopes: from_json(&scopes)?,
        secrets: from_json(&secrets)?,
        created_us,
        expires_us,
        revoked_us,
        version,
    })
}

fn signing(row: SigningTuple) -> SigningKeyRow {
    let (kid, state, public_x, private_sealed, created_us, expires_us) = row;
    SigningKeyRow {
        kid,
        state,
        public_x,
        private_sealed,
        created_us,
        expires_us,
    }
}

#[derive(Debug)]
pub(crate) struct Store {
    db: Db,
}

impl Store {
    pub(crate) fn new(db: Db) -> Self {
        Self { db }
    }

    pub(crate) fn db(&self) -> &Db {
        &self.db
    }

    pub(crate) async fn check(&self) -> Result<(), AuthError> {
        Ok(self.db.check().await?)
    }

    pub(crate) async fn begin(&self, name: &'static str) -> Result<Write, AuthError> {
        Ok(self.db.write(name).await?)
    }

    pub(crate) async fn user_count(&self) -> Result<i64, AuthError> {
        let db = self.db.read("users.count");
        Ok(sqlx::query_scalar("SELECT COUNT(*) FROM users")
            .fetch_one(&*db)
            .await?)
    }

    pub(crate) async fn user(&self, username: &str) -> Result<Option<UserRow>, AuthError> {
        let db = self.db.read("users.by_name");
        sqlx::query_as(USER)
            .bind(username)
            .fetch_optional(&*db)
            .await?
            .map(user)
            .transpose()
    }

    pub(crate) async fn users(&self, after: &str, limit: i64) -> Result<Vec<UserRow>, AuthError> {
        let db = self.db.read("users.list");
        let rows: Vec<UserTuple> = sqlx::query_as(USERS)
            .bind(after)
            .bind(limit)
            .fetch_all(&*db)
            .await?;
        rows.into_iter().map(user).collect()
    }

    pub(crate) async fn keys(
        &self,
        before: (i64, &str),
        limit: i64,
    ) -> Result<Vec<KeyRow>, AuthError> {
        let db = self.db.read("api_keys.list");
        let query = sqlx::query_as(KEYS)
            .bind(before.0)
            .bind(before.1)
            .bind(limit);
        let rows: Vec<KeyTuple> = query.fetch_all(&*db).await?;
        rows.into_iter().map(key).collect()
    }

    pub(crate) async fn signing_keys(&self) -> Result<Vec<SigningKeyRow>, AuthError> {
        let db = self.db.read("signing_keys.list");
        let rows: Vec<SigningTuple> = sqlx::query_as(SIGNING).fetch_all(&*db).await?;
        Ok(rows.into_iter().map(signing).collect())
    }

    pub(crate) async fn current_signing_key(&self) -> Result<Option<SigningKeyRow>, AuthError> {
        Ok(self
            .signing_keys()
            .await?
            .into_iter()
            .find(|k| k.state == "current"))
    }

    pub(crate) async fn add_signing_key(&self, row: &SigningKeyRow) -> Result<(), AuthError> {
        let mut tx = self.begin("signing_keys.add").await?;
        sqlx::query("INSERT INTO signing_keys VALUES ($1, $2, $3, $4, $5, $6)")
            .bind(&row.kid)
            .bind(&row.state)
            .bind(&row.public_x)
            .bind(&row.private_sealed)
            .bind(row.created_us)
            .bind(row.expires_us)
            .execute(&mut *tx)
            .await?;
        Ok(tx.commit().await?)
    }

    pub(crate) async fn revoked_sessions(&self, since_us: i64) -> Result<Vec<Uuid>, AuthError> {
        let db = self.db.read("sessions.revoked");
        let query = "SELECT id FROM sessions WHERE revoked AND ends_us > $1";
        Ok(sqlx::query_scalar(query)
            .bind(since_us)
            .fetch_all(&*db)
            .await?)
    }
}

pub(crate) async fn insert_user(tx: &mut SqliteConnection, row: &UserRow) -> Result<(), AuthError> {
    let inserted = sqlx::query("INSERT INTO users VALUES ($1, $2, $3, $4, $5, $6, $7)")
        .bind(row.id)
        .bind(&row.username)
        .bind(&row.password)
        .bind(to_json(&row.roles)?)
        .bind(row.disabled)
        .bind(row.version)
        .bind(row.created_us)
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
        "UPDATE users SET password = $1, roles = $2, disabled = $3, version = $4 WHERE id = $5 AND version = $6",
    )
    .bind(&row.password)
    .bind(to_json(&row.roles)?)
    .bind(row.disabled)
    .bind(row.version)
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

pub(crate) async fn user_in(
    tx: &mut SqliteConnection,
    username: &str,
) -> Result<Option<UserRow>, AuthError> {
    sqlx::query_as(USER)
        .bind(username)
        .fetch_optional(tx)
        .await?
        .map(user)
        .transpose()
}

pub(crate) async fn user_by_id(
    tx: &mut SqliteConnection,
    id: Uuid,
) -> Result<Option<UserRow>, AuthError> {
    sqlx::query_as(USER_BY_ID)
        .bind(id)
        .fetch_optional(tx)
        .await?
        .map(user)
        .transpose()
}

/// Enabled users that hold a role, by the roles' JSON text.
pub(crate) async fn enabled_with_role(
    tx: &mut SqliteConnection,
    role: &str,
) -> Result<i64, AuthError> {
    let pattern = format!("%\"{role}\"%");
    let query = "SELECT COUNT(*) FROM users WHERE NOT disabled AND roles LIKE $1";
    Ok(sqlx::query_scalar(query)
        .bind(pattern)
        .fetch_one(tx)
        .await?)
}

pub(crate) async fn insert_session(
    tx: &mut SqliteConnection,
    session: &SessionRow,
    now_us: i64,
) -> Result<(), AuthError> {
    sqlx::query("INSERT INTO sessions (id, user_id, created_us, ends_us, revoked) VALUES ($1, $2, $3, $4, $5)")
        .bind(session.id)
        .bind(session.user_id)
        .bind(now_us)
        .bind(session.ends_us)
        .bind(session.revoked)
        .execute(tx)
        .await?;
    Ok(())
}

pub(crate) async fn session(
    tx: &mut SqliteConnection,
    id: Uuid,
) -> Result<Option<SessionRow>, AuthError> {
    let row: Option<(Uuid, Uuid, i64, bool)> =
        sqlx::query_as("SELECT id, user_id, ends_us, revoked FROM sessions WHERE id = $1")
            .bind(id)
            .fetch_optional(tx)
            .await?;
    Ok(row.map(|(id, user_id, ends_us, revoked)| SessionRow {
        id,
        user_id,
        ends_us,
        revoked,
    }))
}

pub(crate) async fn revoke_session(tx: &mut SqliteConnection, id: Uuid) -> Result<(), AuthError> {
    sqlx::query("UPDATE sessions SET revoked = TRUE WHERE id = $1")
        .bind(id)
        .execute(tx)
        .await?;
    Ok(())
}

pub(crate) async fn revoke_sessions_of(
    tx: &mut SqliteConnection,
    user_id: Uuid,
) -> Result<(), AuthError> {
    sqlx::query("UPDATE sessions SET revoked = TRUE WHERE user_id = $1 AND NOT revoked")
        .bind(user_id)
        .execute(tx)
        .await?;
    Ok(())
}

/// Adds a refresh token; one that is there already stays as it is.
pub(crate) async fn insert_refresh(
    tx: &mut SqliteConnection,
    hash: &[u8],
    session_id: Uuid,
    expires_us: i64,
) -> Result<(), AuthError> {
    sqlx::query(
        "INSERT INTO refresh_tokens (hash, session_id, expires_us) VALUES ($1, $2, $3) ON CONFLICT (hash) DO NOTHING",
    )
    .bind(hash)
    .bind(session_id)
    .bind(expires_us)
    .execute(tx)
    .await?;
    Ok(())
}

pub(crate) async fn refresh(
    tx: &mut SqliteConnection,
    hash: &[u8],
) -> Result<Option<RefreshRow>, AuthError> {
    let row: Option<(Uuid, i64, Option<i64>, Option<String>)> = sqlx::query_as(
        "SELECT session_id, expires_us, used_us, used_by FROM refresh_tokens WHERE hash = $1",
    )
    .bind(hash)
    .fetch_optional(tx)
    .await?;
    Ok(
        row.map(|(session_id, expires_us, used_us, used_by)| RefreshRow {
            session_id,
            expires_us,
            used_us,
            used_by,
        }),
    )
}

/// Uses a token up; false when it was used already.
pub(crate) async fn use_refresh(
    tx: &mut SqliteConnection,
    hash: &[u8],
    now_us: i64,
    by: &str,
) -> Result<bool, AuthError> {
    let done = sqlx::query(
        "UPDATE refresh_tokens SET used_us = $1, used_by = $2 WHERE hash = $3 AND used_us IS NULL",
    )
    .bind(now_us)
    .bind(by)
    .bind(hash)
    .execute(tx)
    .await?;
    Ok(done.rows_affected() == 1)
}

pub(crate) async fn insert_key(tx: &mut SqliteConnection, row: &KeyRow) -> Result<(), AuthError> {
    sqlx::query("INSERT INTO api_keys VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)")
        .bind(&row.id)
        .bind(&row.service_name)
        .bind(row.owner_id)
        .bind(to_json(&row.scopes)?)
        .bind(to_json(&row.secrets)?)
        .bind(row.created_us)
        .bind(row.expires_us)
        .bind(row.revoked_us)
        .bind(row.version)
        .execute(tx)
        .await?;
    Ok(())
}

pub(crate) async fn key_in(
    tx: &mut SqliteConnection,
    id: &str,
) -> Result<Option<KeyRow>, AuthError> {
    sqlx::query_as(KEY)
        .bind(id)
        .fetch_optional(tx)
        .await?
        .map(key)
        .transpose()
}

/// Writes a key whose version must be the one before `row.version`.
pub(crate) async fn update_key(tx: &mut SqliteConnection, row: &KeyRow) -> Result<(), AuthError> {
    let done =
        sqlx::query("UPDATE api_keys SET secrets = $1, revoked_us = $2, version = $3 WHERE id = $4 AND version = $5")
            .bind(to_json(&row.secrets)?)
            .bind(row.revoked_us)
            .bind(row.version)
            .bind(&row.id)
            .bind(row.version - 1)
            .execute(tx)
            .await?;
    if done.rows_affected() == 1 {
        Ok(())
    } else {
        Err(AuthError::Conflict)
    }
}
