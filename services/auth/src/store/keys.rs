//! The rows of API keys.

use super::{from_json, to_json};
use crate::AuthError;
use serde::{Deserialize, Serialize};
use sqlx::{SqliteConnection, SqliteExecutor};
use uuid::Uuid;

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
    /// Never empty.
    pub(crate) scopes: Vec<String>,
    pub(crate) secrets: Vec<Secret>,
    pub(crate) created_us: i64,
    pub(crate) expires_us: i64,
    pub(crate) revoked_us: Option<i64>,
    pub(crate) version: i64,
}

type Tuple = (
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

macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT id, service_name, owner_id, scopes, secrets, created_us, expires_us, revoked_us, ",
            "version FROM api_keys ",
            $rest
        )
    };
}

fn key(row: Tuple) -> Result<KeyRow, AuthError> {
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

/// Newest first.
pub(crate) async fn keys(
    db: impl SqliteExecutor<'_>,
    before: (i64, &str),
    limit: i64,
) -> Result<Vec<KeyRow>, AuthError> {
    let query =
        select!("WHERE (created_us, id) < ($1, $2) ORDER BY created_us DESC, id DESC LIMIT $3");
    let rows: Vec<Tuple> = sqlx::query_as(query)
        .bind(before.0)
        .bind(before.1)
        .bind(limit)
        .fetch_all(db)
        .await?;
    rows.into_iter().map(key).collect()
}

/// All that are not revoked and end past a moment.
pub(crate) async fn live_keys(
    db: impl SqliteExecutor<'_>,
    past_us: i64,
) -> Result<Vec<KeyRow>, AuthError> {
    let rows: Vec<Tuple> = sqlx::query_as(select!("WHERE revoked_us IS NULL AND expires_us > $1"))
        .bind(past_us)
        .fetch_all(db)
        .await?;
    rows.into_iter().map(key).collect()
}

pub(crate) async fn key_in(
    tx: &mut SqliteConnection,
    id: &str,
) -> Result<Option<KeyRow>, AuthError> {
    sqlx::query_as(select!("WHERE id = $1"))
        .bind(id)
        .fetch_optional(tx)
        .await?
        .map(key)
        .transpose()
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
