//! The rows of API keys.

use crate::AuthError;
use serde::{Deserialize, Serialize};
use tars_runtime::{
    db::{DbError, Fetch, FromRow, Query, Row, Transaction, json},
    page::{Page, Size},
};
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

const KEYS: &str = "SELECT id, service_name, owner_id, scopes, secrets, created_us, expires_us, revoked_us, version \
                    FROM api_keys WHERE (created_us, id) < ($1, $2) ORDER BY created_us DESC, id DESC LIMIT $3";
const LIVE: &str = "SELECT id, service_name, owner_id, scopes, secrets, created_us, expires_us, revoked_us, version \
                    FROM api_keys WHERE revoked_us IS NULL AND expires_us > $1";
const KEY: &str = "SELECT id, service_name, owner_id, scopes, secrets, created_us, expires_us, revoked_us, version \
                   FROM api_keys WHERE id = $1";
const INSERT: &str = "INSERT INTO api_keys (id, service_name, owner_id, scopes, secrets, created_us, expires_us, \
                      revoked_us, version) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)";
const UPDATE: &str = "UPDATE api_keys SET secrets = $1, revoked_us = $2, version = $3 WHERE id = $4 AND version = $5";

impl FromRow for KeyRow {
    fn from_row(row: &Row) -> Result<Self, DbError> {
        let id: String = row.get("id")?;
        let row = row.named("api_keys", &id);
        Ok(Self {
            id,
            service_name: row.get("service_name")?,
            owner_id: row.get("owner_id")?,
            scopes: row.json("scopes")?,
            secrets: row.json("secrets")?,
            created_us: row.get("created_us")?,
            expires_us: row.get("expires_us")?,
            revoked_us: row.get("revoked_us")?,
            version: row.get("version")?,
        })
    }
}

/// Newest first.
pub(crate) async fn keys(
    db: &mut impl Fetch,
    before: (i64, &str),
    size: Size,
) -> Result<Page<KeyRow>, AuthError> {
    let query = Query::new(KEYS).bind(before.0).bind(before.1);
    Ok(db.page(query.bind(size.limit()), size).await?)
}

/// The keys that are not revoked and expire after a moment.
pub(crate) async fn live_keys(db: &mut impl Fetch, past_us: i64) -> Result<Vec<KeyRow>, AuthError> {
    Ok(db.all(Query::new(LIVE).bind(past_us)).await?)
}

pub(crate) async fn key_in(db: &mut impl Fetch, id: &str) -> Result<Option<KeyRow>, AuthError> {
    Ok(db.optional(Query::new(KEY).bind(id)).await?)
}

pub(crate) async fn insert_key(tx: &mut Transaction, row: &KeyRow) -> Result<(), AuthError> {
    let insert = Query::new(INSERT)
        .bind(&row.id)
        .bind(&row.service_name)
        .bind(row.owner_id)
        .bind(json(&row.scopes)?)
        .bind(json(&row.secrets)?)
        .bind(row.created_us)
        .bind(row.expires_us)
        .bind(row.revoked_us)
        .bind(row.version);
    Ok(tx.execute(insert).await?.one()?)
}

/// Writes a key, whose stored version must be the one before `row.version`.
pub(crate) async fn update_key(tx: &mut Transaction, row: &KeyRow) -> Result<(), AuthError> {
    let update = Query::new(UPDATE)
        .bind(json(&row.secrets)?)
        .bind(row.revoked_us)
        .bind(row.version)
        .bind(&row.id)
        .bind(row.version - 1);
    tx.execute(update).await?.swap().or(AuthError::Conflict)
}
