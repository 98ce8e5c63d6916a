//! The rows of signing keys.

use crate::AuthError;
use tars_runtime::db::{DbError, Fetch, FromRow, Query, Row, Transaction};

#[derive(Debug, Clone)]
pub(crate) struct SigningKeyRow {
    pub(crate) kid: String,
    pub(crate) state: String,
    pub(crate) public_x: String,
    pub(crate) private_sealed: Vec<u8>,
    pub(crate) created_us: i64,
    pub(crate) expires_us: Option<i64>,
}

const ALL: &str = "SELECT kid, state, public_x, private_sealed, created_us, expires_us FROM signing_keys \
                   ORDER BY created_us DESC";
const INSERT: &str = "INSERT INTO signing_keys (kid, state, public_x, private_sealed, created_us, expires_us) \
                      VALUES ($1, $2, $3, $4, $5, $6)";

impl FromRow for SigningKeyRow {
    fn from_row(row: &Row) -> Result<Self, DbError> {
        Ok(Self {
            kid: row.get("kid")?,
            state: row.get("state")?,
            public_x: row.get("public_x")?,
            private_sealed: row.get("private_sealed")?,
            created_us: row.get("created_us")?,
            expires_us: row.get("expires_us")?,
        })
    }
}

/// Newest first.
pub(crate) async fn signing_keys(db: &mut impl Fetch) -> Result<Vec<SigningKeyRow>, AuthError> {
    Ok(db.all(Query::new(ALL)).await?)
}

pub(crate) async fn insert_signing_key(
    tx: &mut Transaction,
    row: &SigningKeyRow,
) -> Result<(), AuthError> {
    let insert = Query::new(INSERT)
        .bind(&row.kid)
        .bind(&row.state)
        .bind(&row.public_x)
        .bind(&row.private_sealed)
        .bind(row.created_us)
        .bind(row.expires_us);
    Ok(tx.execute(insert).await?.one()?)
}
