//! The rows of sealed secrets.

use crate::AuthError;
use aws_lc_rs::aead::NONCE_LEN;
use tars_runtime::db::{DbError, Fetch, FromRow, Query, Row, Swap, Transaction};

/// What tells a stored secret from any other one that was stored under its name. Versions fall back with
/// their database and are taken again; the nonce of a sealed secret is random.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Edition {
    /// Incremented by every change.
    pub(crate) version: u64,
    nonce: Vec<u8>,
}

impl Edition {
    pub(crate) fn new(version: u64, sealed: &[u8]) -> Self {
        let nonce = sealed.get(..NONCE_LEN).unwrap_or(sealed);
        Self {
            version,
            nonce: nonce.to_vec(),
        }
    }
}

impl FromRow for Edition {
    fn from_row(row: &Row) -> Result<Self, DbError> {
        let name: String = row.get("name")?;
        Ok(Self {
            version: row.named("sealed_secrets", name).number("version")?,
            nonce: row.get("nonce")?,
        })
    }
}

/// A secret, as it is stored.
#[derive(Debug)]
pub(crate) struct SealedRow {
    pub(crate) edition: Edition,
    pub(crate) sealed: Vec<u8>,
}

const GET: &str = "SELECT name, version, sealed FROM sealed_secrets WHERE name = $1";
/// The nonce comes first in what is sealed, and has 12 bytes.
const EDITION: &str =
    "SELECT name, version, substr(sealed, 1, 12) AS nonce FROM sealed_secrets WHERE name = $1";
const COUNT: &str = "SELECT COUNT(*) AS secrets FROM sealed_secrets";
const INSERT: &str = "INSERT INTO sealed_secrets (name, version, sealed) VALUES ($1, 1, $2)";
const DELETE: &str = "DELETE FROM sealed_secrets WHERE name = $1";
const SWAP: &str = "UPDATE sealed_secrets SET version = version + 1, sealed = $1 \
                    WHERE name = $2 AND version = $3";

impl FromRow for SealedRow {
    fn from_row(row: &Row) -> Result<Self, DbError> {
        let name: String = row.get("name")?;
        let version = row.named("sealed_secrets", name).number("version")?;
        let sealed: Vec<u8> = row.get("sealed")?;
        Ok(Self {
            edition: Edition::new(version, &sealed),
            sealed,
        })
    }
}

pub(crate) async fn sealed(
    db: &mut impl Fetch,
    name: &str,
) -> Result<Option<SealedRow>, AuthError> {
    Ok(db.optional(Query::new(GET).bind(name)).await?)
}

/// Which secret is stored under a name; `None` when there is none.
pub(crate) async fn sealed_edition(
    db: &mut impl Fetch,
    name: &str,
) -> Result<Option<Edition>, AuthError> {
    Ok(db.optional(Query::new(EDITION).bind(name)).await?)
}

pub(crate) async fn sealed_count(db: &mut impl Fetch) -> Result<i64, AuthError> {
    Ok(db.value(Query::new(COUNT), "secrets").await?)
}

/// Adds a secret, whose version is 1. The transaction must be exclusive, and have found none.
pub(crate) async fn insert_sealed(
    tx: &mut Transaction,
    name: &str,
    sealed: &[u8],
) -> Result<(), AuthError> {
    let insert = Query::new(INSERT).bind(name).bind(sealed);
    Ok(tx.execute(insert).await?.one()?)
}

/// Replaces a secret; lost when its version is another one.
pub(crate) async fn swap_sealed(
    tx: &mut Transaction,
    name: &str,
    version: u64,
    sealed: &[u8],
) -> Result<Swap, AuthError> {
    let version = i64::try_from(version).unwrap_or(i64::MAX);
    let swap = Query::new(SWAP).bind(sealed).bind(name).bind(version);
    Ok(tx.execute(swap).await?.swap())
}

pub(crate) async fn delete_sealed(tx: &mut Transaction, name: &str) -> Result<(), AuthError> {
    Ok(tx.execute(Query::new(DELETE).bind(name)).await?.one()?)
}
