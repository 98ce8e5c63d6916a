//! The SQL of leases. A row that is absent is a lease that is free.

use super::claim::Claim;
use crate::db::{Db, DbError, Fetch, FromRow, Isolation, Query, Row, Swap, Transaction, Write};
use uuid::Uuid;

const FIND: &str = "SELECT token, nonce, renewals FROM leases WHERE name = $1";
/// Locks the counter, so that one holder after the other takes a lease.
const NEXT_TOKEN: &str = "UPDATE lease_tokens SET last = CASE WHEN last < $1 THEN $1 ELSE last + 1 END \
                          WHERE id = 1 RETURNING last";
/// Takes a lease that is free, or still is as it was when it was found dead.
const TAKE: &str = "INSERT INTO leases (name, holder, token, nonce, renewals) VALUES ($1, $2, $3, $4, 0) \
                    ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, token = excluded.token, \
                    nonce = excluded.nonce, renewals = 0 WHERE leases.nonce = $5 AND leases.renewals = $6";
/// Changes nothing, but fails to find the row when the claim is not the current one, and locks it
/// otherwise.
const LOCK: &str = "UPDATE leases SET token = token WHERE name = $1 AND token = $2 AND nonce = $3";
const RENEW: &str =
    "UPDATE leases SET renewals = renewals + 1 WHERE name = $1 AND token = $2 AND nonce = $3";
const REMOVE: &str = "DELETE FROM leases WHERE name = $1 AND token = $2 AND nonce = $3";
/// Removes a lease that still is as it was when it was found dead.
const REMOVE_DEAD: &str = "DELETE FROM leases WHERE name = $1 AND nonce = $2 AND renewals = $3";
const CLEAR: &str = "DELETE FROM leases";

/// A lease as others see it. Each renewal changes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LeaseRow {
    token: i64,
    nonce: Uuid,
    renewals: i64,
}

impl LeaseRow {
    /// The claim that the row is of.
    pub(super) fn claim(&self, name: &str) -> Claim {
        Claim::new(name, self.token, self.nonce)
    }
}

impl FromRow for LeaseRow {
    fn from_row(row: &Row) -> Result<Self, DbError> {
        Ok(Self {
            token: row.get("token")?,
            nonce: row.get("nonce")?,
            renewals: row.get("renewals")?,
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

    /// All rows of a query without parameters.
    pub(super) async fn all<T: FromRow>(
        &self,
        name: &'static str,
        text: &'static str,
    ) -> Result<Vec<T>, DbError> {
        self.db.read(name).all(Query::new(text)).await
    }

    /// Removes all leases.
    pub(super) async fn clear(&self) -> Result<(), DbError> {
        let mut tx = self.begin("leases.clear").await?;
        tx.execute(Query::new(CLEAR)).await?.any();
        tx.commit().await
    }
}

/// The rows of leases, as the keeper writes them.
pub(super) trait Rows: Send + Sync + 'static {
    /// Renews leases; of each, whether its claim is still the current one.
    fn renew(&self, claims: &[Claim]) -> impl Future<Output = Result<Vec<Swap>, DbError>> + Send;

    /// Removes the rows of claims that are current.
    fn remove(&self, claims: &[Claim]) -> impl Future<Output = Result<(), DbError>> + Send;
}

impl Rows for Table {
    async fn renew(&self, claims: &[Claim]) -> Result<Vec<Swap>, DbError> {
        let mut tx = self.begin("leases.renew").await?;
        let mut renewed = Vec::with_capacity(claims.len());
        for claim in claims {
            renewed.push(tx.execute(of(RENEW, claim)).await?.swap());
        }
        tx.commit().await?;
        Ok(renewed)
    }

    async fn remove(&self, claims: &[Claim]) -> Result<(), DbError> {
        if claims.is_empty() {
            return Ok(());
        }
        let mut tx = self.begin("leases.remove").await?;
        for claim in claims {
            tx.execute(of(REMOVE, claim)).await?.any();
        }
        tx.commit().await
    }
}

/// A statement about the row of a claim, if it is the current one.
fn of<'c>(text: &'static str, claim: &'c Claim) -> Query<'c> {
    Query::new(text)
        .bind(claim.name())
        .bind(claim.token())
        .bind(claim.nonce())
}

/// Takes a lease that is free, or whose row is the one that was found dead; `None` when another holder
/// has it.
pub(super) async fn take(
    tx: &mut Transaction,
    name: &str,
    holder: &str,
    dead: Option<LeaseRow>,
    now_us: i64,
) -> Result<Option<Claim>, DbError> {
    let next = Query::new(NEXT_TOKEN).bind(now_us);
    let token: i64 = tx.value(next, "last").await?;
    let claim = Claim::new(name, token, Uuid::now_v7());
    let take = Query::new(TAKE)
        .bind(name)
        .bind(holder)
        .bind(token)
        .bind(claim.nonce())
        .bind(dead.map(|row| row.nonce))
        .bind(dead.map(|row| row.renewals));
    let taken = tx.execute(take).await?.swap();
    Ok(taken.is_done().then_some(claim))
}

/// Locks a lease until the transaction ends; lost when the claim is not the current one.
pub(super) async fn lock(tx: &mut Transaction, claim: &Claim) -> Result<Swap, DbError> {
    Ok(tx.execute(of(LOCK, claim)).await?.swap())
}

/// Removes a lease; lost when the claim is not the current one.
pub(super) async fn release(tx: &mut Transaction, claim: &Claim) -> Result<Swap, DbError> {
    Ok(tx.execute(of(REMOVE, claim)).await?.swap())
}

/// Removes a lease that was found dead; lost when it was renewed or taken since.
pub(super) async fn remove_dead(
    tx: &mut Transaction,
    name: &str,
    dead: &LeaseRow,
) -> Result<Swap, DbError> {
    let remove = Query::new(REMOVE_DEAD)
        .bind(name)
        .bind(dead.nonce)
        .bind(dead.renewals);
    Ok(tx.execute(remove).await?.swap())
}
