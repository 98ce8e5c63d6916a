//! The log of changes.

use crate::AuthError;
use tars_runtime::db::{DbError, Fetch, FromRow, Query, Row, Transaction};

/// Changes kept in the table; a follower further behind continues from a snapshot.
const KEPT: i64 = 4096;

const NEXT: &str = "UPDATE credential_position SET last = last + 1 WHERE id = 1 RETURNING last";
const INSERT: &str = "INSERT INTO credential_changes (seq, item) VALUES ($1, $2)";
const DROP_OLD: &str = "DELETE FROM credential_changes WHERE seq <= $1";
const AFTER: &str = "SELECT seq, item FROM credential_changes WHERE seq > $1 ORDER BY seq LIMIT $2";
const LAST: &str = "SELECT last FROM credential_position WHERE id = 1";

/// A change: an encoded item of the watch stream under its number.
#[derive(Debug)]
pub(crate) struct ChangeRow {
    pub(crate) seq: u64,
    pub(crate) item: Vec<u8>,
}

impl FromRow for ChangeRow {
    fn from_row(row: &Row) -> Result<Self, DbError> {
        Ok(Self {
            seq: number(row.get("seq")?),
            item: row.get("item")?,
        })
    }
}

/// Stores a change under the next number, which is returned. The counter is locked until the
/// transaction ends.
pub(crate) async fn append_change(tx: &mut Transaction, item: &[u8]) -> Result<u64, AuthError> {
    let seq: i64 = tx.value(Query::new(NEXT), "last").await?;
    let insert = Query::new(INSERT).bind(seq).bind(item);
    tx.execute(insert).await?.one()?;
    tx.execute(Query::new(DROP_OLD).bind(seq - KEPT))
        .await?
        .any();
    Ok(number(seq))
}

/// The oldest changes after a number.
pub(crate) async fn changes_after(
    db: &mut impl Fetch,
    after: u64,
    limit: i64,
) -> Result<Vec<ChangeRow>, AuthError> {
    let after = i64::try_from(after).unwrap_or(i64::MAX);
    Ok(db.all(Query::new(AFTER).bind(after).bind(limit)).await?)
}

/// The number of the last committed change.
pub(crate) async fn last_change(db: &mut impl Fetch) -> Result<u64, AuthError> {
    Ok(number(db.value(Query::new(LAST), "last").await?))
}

fn number(seq: i64) -> u64 {
    u64::try_from(seq).unwrap_or_default()
}
