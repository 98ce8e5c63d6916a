//! The rows of revocations.

use crate::{AuthError, store::Store};
use tars_runtime::{
    db::{DbError, Fetch, FromRow, Query, Row, Swap, Transaction},
    page::{Page, Size},
};

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

/// A revocation with its place in the list.
#[derive(Debug, Clone)]
pub(crate) struct ListedRevocation {
    pub(crate) position: i64,
    pub(crate) revocation: RevocationRow,
}

const REVOCATIONS: &str = "SELECT position, issuer, serial, spiffe_id, not_before_s, expires_us, reason, \
                           revoked_us, revoked_by FROM revocations WHERE expires_us > $1 AND position < $2 \
                           ORDER BY position DESC LIMIT $3";
const CUT_OF: &str =
    "SELECT MAX(not_before_s) AS cut_s FROM revocations WHERE serial = '' AND spiffe_id = $1";
const INSERT_REVOCATION: &str = "INSERT INTO revocations (position, issuer, serial, spiffe_id, not_before_s, \
                                 expires_us, reason, revoked_us, revoked_by) \
                                 SELECT COALESCE(MAX(position), 0) + 1, $1, $2, $3, $4, $5, $6, $7, $8 \
                                 FROM revocations WHERE TRUE \
                                 ON CONFLICT (issuer, serial, spiffe_id) DO UPDATE SET not_before_s = $4, \
                                 position = (SELECT MAX(position) + 1 FROM revocations), reason = $6, \
                                 revoked_us = $7, revoked_by = $8 WHERE revocations.not_before_s < $4";
/// At least the time in seconds, by which lists were numbered before they were counted.
const NEXT_LIST: &str = "UPDATE revocation_list_number \
                         SET last = CASE WHEN last < $1 THEN $1 ELSE last + 1 END WHERE id = 1 RETURNING last";
const DROP_REVOCATIONS: &str = "DELETE FROM revocations WHERE expires_us < $1";
const DROP_REPORTS: &str = "DELETE FROM trust_reports WHERE not_after_us < $1";

impl FromRow for RevocationRow {
    fn from_row(row: &Row) -> Result<Self, DbError> {
        Ok(Self {
            issuer: row.get("issuer")?,
            serial: row.get("serial")?,
            spiffe_id: row.get("spiffe_id")?,
            not_before_s: row.get("not_before_s")?,
            expires_us: row.get("expires_us")?,
            reason: row.get("reason")?,
            revoked_us: row.get("revoked_us")?,
            revoked_by: row.get("revoked_by")?,
        })
    }
}

impl FromRow for ListedRevocation {
    fn from_row(row: &Row) -> Result<Self, DbError> {
        Ok(Self {
            position: row.get("position")?,
            revocation: RevocationRow::from_row(row)?,
        })
    }
}

impl Store {
    /// Newest first, with their positions.
    pub(crate) async fn revocations(
        &self,
        past_us: i64,
        before: i64,
        size: Size,
    ) -> Result<Page<ListedRevocation>, AuthError> {
        let query = Query::new(REVOCATIONS)
            .bind(past_us)
            .bind(before)
            .bind(size.limit());
        Ok(self.db().read("revocations.list").page(query, size).await?)
    }
}

/// All revocations that expire after a moment.
pub(crate) async fn in_force(
    db: &mut impl Fetch,
    past_us: i64,
) -> Result<Vec<RevocationRow>, AuthError> {
    let query = Query::new(REVOCATIONS)
        .bind(past_us)
        .bind(i64::MAX)
        .bind(i64::MAX);
    Ok(db.all(query).await?)
}

/// The second before which every certificate of an identity is already revoked.
pub(crate) async fn revoked_before(
    tx: &mut Transaction,
    spiffe_id: &str,
) -> Result<Option<i64>, AuthError> {
    Ok(tx
        .value(Query::new(CUT_OF).bind(spiffe_id), "cut_s")
        .await?)
}

/// Adds an entry to the list; lost when it is already there, unless it revokes an identity at a
/// later moment. The transaction must be exclusive, because the position is the next one.
pub(crate) async fn insert_revocation(
    tx: &mut Transaction,
    row: &RevocationRow,
) -> Result<Swap, AuthError> {
    let insert = Query::new(INSERT_REVOCATION)
        .bind(&row.issuer)
        .bind(&row.serial)
        .bind(&row.spiffe_id)
        .bind(row.not_before_s)
        .bind(row.expires_us)
        .bind(&row.reason)
        .bind(row.revoked_us)
        .bind(&row.revoked_by);
    Ok(tx.execute(insert).await?.swap())
}

/// The number of the next signed lists, larger than every one before.
pub(crate) async fn next_list_number(tx: &mut Transaction, now_s: u64) -> Result<u64, AuthError> {
    let now_s = i64::try_from(now_s).unwrap_or(i64::MAX);
    let number: i64 = tx.value(Query::new(NEXT_LIST).bind(now_s), "last").await?;
    Ok(u64::try_from(number).unwrap_or_default())
}

/// Deletes revocations and reports that expired before a moment.
pub(crate) async fn drop_expired(tx: &mut Transaction, past_us: i64) -> Result<(), AuthError> {
    for query in [DROP_REVOCATIONS, DROP_REPORTS] {
        tx.execute(Query::new(query).bind(past_us)).await?.any();
    }
    Ok(())
}
