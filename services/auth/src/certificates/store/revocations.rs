//! The rows of revocations.

use crate::{AuthError, store::Store};
use sqlx::{SqliteConnection, SqliteExecutor};

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RevocationRow {
    pub(crate) issuer: String,
    /// Empty for an identity.
    pub(crate) serial: String,
    pub(crate) spiffe_id: String,
    pub(crate) not_before_s: i64,
    pub(crate) expires_us: i64,
    pub(crate) reason: String,
    pub(crate) revoked_us: i64,
    pub(crate) revoked_by: String,
}

type RevocationTuple = (i64, String, String, String, i64, i64, String, i64, String);

fn revocation(row: RevocationTuple) -> (i64, RevocationRow) {
    let (position, issuer, serial, spiffe_id, not_before_s, expires_us, reason, at, by) = row;
    let row = RevocationRow {
        issuer,
        serial,
        spiffe_id,
        not_before_s,
        expires_us,
        reason,
        revoked_us: at,
        revoked_by: by,
    };
    (position, row)
}

const REVOCATIONS: &str = "SELECT position, issuer, serial, spiffe_id, not_before_s, expires_us, reason, \
                           revoked_us, revoked_by FROM revocations WHERE expires_us > $1 AND position < $2 \
                           ORDER BY position DESC LIMIT $3";

impl Store {
    /// Newest first, with their positions.
    pub(crate) async fn revocations(
        &self,
        past_us: i64,
        before: i64,
        limit: i64,
    ) -> Result<Vec<(i64, RevocationRow)>, AuthError> {
        let db = self.db().read("revocations.list");
        let rows: Vec<RevocationTuple> = sqlx::query_as(REVOCATIONS)
            .bind(past_us)
            .bind(before)
            .bind(limit)
            .fetch_all(&*db)
            .await?;
        Ok(rows.into_iter().map(revocation).collect())
    }
}

/// All that was in force past a moment.
pub(crate) async fn in_force(
    db: impl SqliteExecutor<'_>,
    past_us: i64,
) -> Result<Vec<RevocationRow>, AuthError> {
    let rows: Vec<RevocationTuple> = sqlx::query_as(REVOCATIONS)
        .bind(past_us)
        .bind(i64::MAX)
        .bind(i64::MAX)
        .fetch_all(db)
        .await?;
    Ok(rows.into_iter().map(|r| revocation(r).1).collect())
}

/// The second before which every certificate of an identity is cut off already.
pub(crate) async fn cut_of(
    tx: &mut SqliteConnection,
    spiffe_id: &str,
) -> Result<Option<i64>, AuthError> {
    let query = "SELECT MAX(not_before_s) FROM revocations WHERE serial = '' AND spiffe_id = $1";
    Ok(sqlx::query_scalar(query)
        .bind(spiffe_id)
        .fetch_one(tx)
        .await?)
}

/// Puts an entry on the list; what is there already stays, but for an identity's later cut. Tells
/// whether anything changed.
pub(crate) async fn insert_revocation(
    tx: &mut SqliteConnection,
    row: &RevocationRow,
) -> Result<bool, AuthError> {
    let done = sqlx::query(
        "INSERT INTO revocations SELECT COALESCE(MAX(position), 0) + 1, $1, $2, $3, $4, $5, $6, $7, $8 \
         FROM revocations WHERE TRUE ON CONFLICT (issuer, serial, spiffe_id) DO UPDATE \
         SET not_before_s = $4, position = (SELECT MAX(position) + 1 FROM revocations), reason = $6, \
         revoked_us = $7, revoked_by = $8 WHERE revocations.not_before_s < $4",
    )
    .bind(&row.issuer)
    .bind(&row.serial)
    .bind(&row.spiffe_id)
    .bind(row.not_before_s)
    .bind(row.expires_us)
    .bind(&row.reason)
    .bind(row.revoked_us)
    .bind(&row.revoked_by)
    .execute(tx)
    .await?;
    Ok(done.rows_affected() == 1)
}

pub(crate) async fn drop_expired(tx: &mut SqliteConnection, past_us: i64) -> Result<(), AuthError> {
    for query in [
        "DELETE FROM revocations WHERE expires_us < $1",
        "DELETE FROM trust_reports WHERE not_after_us < $1",
    ] {
        sqlx::query(query).bind(past_us).execute(&mut *tx).await?;
    }
    Ok(())
}
