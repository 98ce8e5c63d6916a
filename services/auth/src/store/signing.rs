//! The rows of signing keys.

use crate::AuthError;
use sqlx::{SqliteConnection, SqliteExecutor};

#[derive(Debug, Clone)]
pub(crate) struct SigningKeyRow {
    pub(crate) kid: String,
    pub(crate) state: String,
    pub(crate) public_x: String,
    pub(crate) private_sealed: Vec<u8>,
    pub(crate) created_us: i64,
    pub(crate) expires_us: Option<i64>,
}

type Tuple = (String, String, String, Vec<u8>, i64, Option<i64>);

const ALL: &str = "SELECT kid, state, public_x, private_sealed, created_us, expires_us FROM signing_keys \
     ORDER BY created_us DESC";

fn signing(row: Tuple) -> SigningKeyRow {
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

/// Newest first.
pub(crate) async fn signing_keys(
    db: impl SqliteExecutor<'_>,
) -> Result<Vec<SigningKeyRow>, AuthError> {
    let rows: Vec<Tuple> = sqlx::query_as(ALL).fetch_all(db).await?;
    Ok(rows.into_iter().map(signing).collect())
}

pub(crate) async fn insert_signing_key(
    tx: &mut SqliteConnection,
    row: &SigningKeyRow,
) -> Result<(), AuthError> {
    sqlx::query("INSERT INTO signing_keys VALUES ($1, $2, $3, $4, $5, $6)")
        .bind(&row.kid)
        .bind(&row.state)
        .bind(&row.public_x)
        .bind(&row.private_sealed)
        .bind(row.created_us)
        .bind(row.expires_us)
        .execute(tx)
        .await?;
    Ok(())
}
