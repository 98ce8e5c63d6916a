//! The log of changes.

use crate::AuthError;
use sqlx::{SqliteConnection, SqliteExecutor};

/// Changes kept; past that whoever follows starts anew from a whole view.
const KEPT: i64 = 4096;

/// Writes a change down under the next number, which is returned. The counter is locked until the
/// transaction ends.
pub(crate) async fn append_change(
    tx: &mut SqliteConnection,
    item: &[u8],
) -> Result<u64, AuthError> {
    let seq: i64 = sqlx::query_scalar(
        "UPDATE credential_position SET last = last + 1 WHERE id = 1 RETURNING last",
    )
    .fetch_one(&mut *tx)
    .await?;
    sqlx::query("INSERT INTO credential_changes (seq, item) VALUES ($1, $2)")
        .bind(seq)
        .bind(item)
        .execute(&mut *tx)
        .await?;
    sqlx::query("DELETE FROM credential_changes WHERE seq <= $1")
        .bind(seq - KEPT)
        .execute(tx)
        .await?;
    Ok(number(seq))
}

/// The oldest changes after a number.
pub(crate) async fn changes_after(
    db: impl SqliteExecutor<'_>,
    after: u64,
    limit: i64,
) -> Result<Vec<(u64, Vec<u8>)>, AuthError> {
    let query = "SELECT seq, item FROM credential_changes WHERE seq > $1 ORDER BY seq LIMIT $2";
    let rows: Vec<(i64, Vec<u8>)> = sqlx::query_as(query)
        .bind(i64::try_from(after).unwrap_or(i64::MAX))
        .bind(limit)
        .fetch_all(db)
        .await?;
    Ok(rows
        .into_iter()
        .map(|(seq, item)| (number(seq), item))
        .collect())
}

/// The number of the last change that was committed.
pub(crate) async fn last_change(db: impl SqliteExecutor<'_>) -> Result<u64, AuthError> {
    let query = "SELECT last FROM credential_position WHERE id = 1";
    let last: i64 = sqlx::query_scalar(query).fetch_one(db).await?;
    Ok(number(last))
}

fn number(seq: i64) -> u64 {
    u64::try_from(seq).unwrap_or_default()
}
