//! The SQL of leases. A row that is absent is a lease that is free.

use super::claim::Claim;
use crate::db::{Db, DbError, Fetch, FromRow, Isolation, Query, Row, Swap, Transaction, Write};

const FIND: &str = "SELECT token, expires_us FROM leases WHERE name = $1";
/// Locks the counter, so that one holder after the other takes a lease.
const NEXT_TOKEN: &str = "UPDATE lease_tokens SET last = last + 1 WHERE id = 1 RETURNING last";
/// Takes a lease that is free, has ended by the wall clock, or still is as it was when it was found dead.
const TAKE: &str = "INSERT INTO leases (name, holder, token, expires_us) VALUES ($1, $2, $3, $4) \
                    ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, token = excluded.token, \
                    expires_us = excluded.expires_us WHERE leases.expires_us <= $5 \
                    OR (leases.token = $6 AND leases.expires_us = $7)";
/// Changes nothing, but fails to find the row when the token is not current, and locks it otherwise.
const LOCK: &str = "UPDATE leases SET token = token WHERE name = $1 AND token = $2";
const RENEW: &str = "UPDATE leases SET expires_us = $1 WHERE name = $2 AND token = $3";
const REMOVE: &str = "DELETE FROM leases WHERE name = $1 AND token = $2";
const RECLAIM: &str = "DELETE FROM leases WHERE holder = $1 OR $2";

/// A lease as others see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LeaseRow {
    pub(super) token: i64,
    pub(super) expires_us: i64,
}

impl FromRow for LeaseRow {
    fn from_row(row: &Row) -> Result<Self, DbError> {
        Ok(Self {
            token: row.get("token")?,
            expires_us: row.get("expires_us")?,
        })
    }
}

#[derive(Debug, Clone)]
pub(super) struct Table {
    db: Db,
}

impl Table {
    pub(super) fn new(db: Db) -> Self {
        Self { db }
    }

    /// Rows and conditions decide; nothing here needs an exclusive transaction.
    pub(super) async fn begin(&self, name: &'static str) -> Result<Write, DbError> {
        self.db.write(name, Isolation::Committed).await
    }

    pub(super) async fn find(&self, name: &str) -> Result<Option<LeaseRow>, DbError> {
        let query = Query::new(FIND).bind(name);
        self.db.read("leases.find").optional(query).await
    }

    /// Removes the leases of a holder, or all of them.
    pub(super) async fn reclaim(&self, holder: &str, all: bool) -> Result<(), DbError> {
        let mut tx = self.begin("leases.reclaim").await?;
        let reclaim = Query::new(RECLAIM).bind(holder).bind(all);
        tx.execute(reclaim).await?.any();
        tx.commit().await
    }

    pub(super) async fn remove_rows(&self, claims: &[Claim]) -> Result<(), DbError> {
        if claims.is_empty() {
            return Ok(());
        }
        let mut tx = self.begin("leases.remove").await?;
        for claim in claims {
            let remove = Query::new(REMOVE).bind(claim.name()).bind(claim.token());
            tx.execute(remove).await?.any();
        }
        tx.commit().await
    }

    /// Renews leases; of each, whether its token is still the current one.
    pub(super) async fn renew_rows(
        &self,
        claims: &[Claim],
        expires_us: i64,
    ) -> Result<Vec<Swap>, DbError> {
        let mut tx = self.begin("leases.renew").await?;
        let mut renewed = Vec::with_capacity(claims.len());
        for claim in claims {
            let renew = Query::new(RENEW)
                .bind(expires_us)
                .bind(claim.name())
                .bind(claim.token());
            renewed.push(tx.execute(renew).await?.swap());
        }
        tx.commit().await?;
        Ok(renewed)
    }
}

/// Takes a lease, and returns its token; `None` when another holder has it.
pub(super) async fn take(
    tx: &mut Transaction,
    name: &str,
    holder: &str,
    expires_us: i64,
    now_us: i64,
    dead: Option<(i64, i64)>,
) -> Result<Option<i64>, DbError> {
    let token: i64 = tx.value(Query::new(NEXT_TOKEN), "last").await?;
    let (dead_token, dead_expires_us) = dead.unwrap_or((0, 0));
    let take = Query::new(TAKE)
        .bind(name)
        .bind(holder)
        .bind(token)
        .bind(expires_us)
        .bind(now_us)
        .bind(dead_token)
        .bind(dead_expires_us);
    let taken = tx.execute(take).await?.swap();
    Ok(taken.is_done().then_some(token))
}

/// Locks a lease until the transaction ends; lost when the token is not current.
pub(super) async fn lock(tx: &mut Transaction, claim: &Claim) -> Result<Swap, DbError> {
    let lock = Query::new(LOCK).bind(claim.name()).bind(claim.token());
    Ok(tx.execute(lock).await?.swap())
}
