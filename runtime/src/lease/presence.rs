//! Which replicas of a service are present, and how much of its changes each has seen.
//!
//! A replica that serves a copy of rows is present while it holds a lease of its own, whose name begins
//! with `replica/`. Under that lease's token it reports the number of the last [change](crate::changes)
//! that its copy has. So one replica can wait until a change is seen by all: by every replica that is
//! present, since the others know that they are not and refuse to serve until they have caught up.
//!
//! The order makes this safe. A replica takes its lease before it reads the rows, and a change is
//! committed before the leases are read: either the replica reads the change, or it is waited for. A
//! replica that was suspended finds its lease ended by its monotonic clock, from before its last renewal,
//! and serves nothing; the others wait for it until they have seen no renewal for as long, from after
//! it. So that this time has begun when a change is made, every replica [looks](Presence::observe) at the
//! others periodically.
//!
//! Where no other process can open the database there is nothing to wait for: [`Presence`] then has no
//! lease and writes nothing.

use super::{
    Fence, Lease, LeaseError, Leases,
    table::{self, LeaseRow},
};
use crate::db::{DbError, FromRow, Query, Row};
use parking_lot::Mutex;
use std::time::Duration;
use uuid::Uuid;

/// The migration of a service's schema that [`Presence`] needs, beside that of the leases.
pub const MIGRATION: &str = "
CREATE TABLE replicas (
    lease TEXT PRIMARY KEY,
    token BIGINT NOT NULL,
    position BIGINT NOT NULL
);
";

const REPORT: &str = "INSERT INTO replicas (lease, token, position) VALUES ($1, $2, $3) \
                      ON CONFLICT (lease) DO UPDATE SET token = excluded.token, position = excluded.position";
/// A report under another token than the lease's is of an earlier time.
const PRESENT: &str = "SELECT leases.name AS name, leases.token AS token, leases.nonce AS nonce, \
                       leases.renewals AS renewals, COALESCE(replicas.position, -1) AS position \
                       FROM leases LEFT JOIN replicas \
                       ON replicas.lease = leases.name AND replicas.token = leases.token \
                       WHERE leases.name LIKE 'replica/%' ORDER BY leases.name";
/// Reports under leases that were released, that ended, or that a backup leaves out.
const GONE: &str = "SELECT replicas.lease AS lease, replicas.token AS token FROM replicas \
                    LEFT JOIN leases ON leases.name = replicas.lease WHERE leases.name IS NULL";
const FORGET: &str = "DELETE FROM replicas WHERE lease = $1 AND token = $2";

/// A replica as others see it.
struct Seen {
    name: String,
    lease: LeaseRow,
    position: i64,
}

impl FromRow for Seen {
    fn from_row(row: &Row) -> Result<Self, DbError> {
        Ok(Self {
            name: row.get("name")?,
            lease: LeaseRow::from_row(row)?,
            position: row.get("position")?,
        })
    }
}

/// A report under a lease that is gone.
struct Gone {
    lease: String,
    token: i64,
}

impl FromRow for Gone {
    fn from_row(row: &Row) -> Result<Self, DbError> {
        Ok(Self {
            lease: row.get("lease")?,
            token: row.get("token")?,
        })
    }
}

/// The presence of this replica, and what it knows of the others.
#[derive(Debug)]
pub struct Presence {
    leases: Leases,
    name: String,
    fence: Mutex<Option<Fence>>,
}

/// The time for which a replica is present.
#[derive(Debug, Clone)]
#[must_use = "a tenure that is not checked shows nothing"]
pub struct Tenure(Option<Fence>);

impl Tenure {
    /// Whether the replica has been present all the time since it began.
    pub fn lasts(&self) -> bool {
        self.0.as_ref().is_none_or(|fence| fence.check().is_ok())
    }
}

impl Presence {
    /// A replica that is absent, unless it is the only one by its terms. Its lease has a name that no other
    /// process has had, so that one that starts again needs not wait for the end of its last one's.
    pub fn new(leases: Leases) -> Self {
        let name = format!("replica/{}/{}", leases.book.holder(), Uuid::now_v7());
        Self {
            leases,
            name,
            fence: Mutex::default(),
        }
    }

    /// Whether there may be other replicas.
    pub fn is_shared(&self) -> bool {
        self.leases.book.life().is_some()
    }

    /// Takes the lease of this replica, before its copy is read. `None` when the process stops.
    ///
    /// # Errors
    ///
    /// [`DbError`] when the database fails.
    pub async fn acquire(&self) -> Result<Option<Lease>, DbError> {
        self.leases.acquire(&self.name).await
    }

    /// Reports that this replica has seen every change up to `position`. With its first report under a
    /// lease it is present.
    ///
    /// # Errors
    ///
    /// [`LeaseError::Stale`] when the lease was lost.
    pub async fn report(&self, lease: &Lease, position: u64) -> Result<(), LeaseError> {
        let fence = lease.fence();
        let mut tx = self.leases.table.begin("replicas.report").await?;
        fence.enforce(&mut tx).await?;
        let report = Query::new(REPORT)
            .bind(&self.name)
            .bind(fence.token())
            .bind(i64::try_from(position).unwrap_or(i64::MAX));
        tx.execute(report).await?.one()?;
        tx.commit().await?;
        *self.fence.lock() = Some(fence);
        Ok(())
    }

    /// How long to wait before the next [look](Self::observe).
    pub fn until_next_poll(&self) -> Option<Duration> {
        self.leases.book.until_next_poll(&self.leases.jitter)
    }

    /// Looks at the other replicas, so that one that is gone is not waited for as soon as its lease has
    /// ended, and removes what those have left behind that are gone.
    ///
    /// # Errors
    ///
    /// [`DbError`] when the database fails.
    pub async fn observe(&self) -> Result<(), DbError> {
        for gone in self
            .others()
            .await?
            .into_iter()
            .filter(|o| !self.is_live(o))
        {
            let mut tx = self.leases.table.begin("replicas.remove").await?;
            if table::remove_dead(&mut tx, &gone.name, &gone.lease)
                .await?
                .is_done()
            {
                tx.commit().await?;
            }
        }
        self.forget_gone().await
    }

    async fn forget_gone(&self) -> Result<(), DbError> {
        let gone: Vec<Gone> = self.leases.table.all("replicas.gone", GONE).await?;
        if gone.is_empty() {
            return Ok(());
        }
        let mut tx = self.leases.table.begin("replicas.forget").await?;
        for report in gone {
            let forget = Query::new(FORGET).bind(report.lease).bind(report.token);
            tx.execute(forget).await?.any();
        }
        tx.commit().await
    }

    async fn others(&self) -> Result<Vec<Seen>, DbError> {
        let mut all: Vec<Seen> = self.leases.table.all("replicas.present", PRESENT).await?;
        all.retain(|seen| seen.name != self.name);
        Ok(all)
    }

    fn is_live(&self, seen: &Seen) -> bool {
        self.leases.book.is_live(&seen.name, &seen.lease, &[])
    }

    /// The present tenure; `None` while this replica is absent, and must not serve its copy.
    pub fn tenure(&self) -> Option<Tenure> {
        if !self.is_shared() {
            return Some(Tenure(None));
        }
        let tenure = Tenure(Some(self.fence.lock().clone()?));
        tenure.lasts().then_some(tenure)
    }

    /// The other replicas that are present and have not reported to have seen a change.
    ///
    /// # Errors
    ///
    /// [`DbError`] when the database fails.
    pub async fn behind(&self, position: u64) -> Result<Vec<String>, DbError> {
        if !self.is_shared() {
            return Ok(Vec::new());
        }
        let position = i64::try_from(position).unwrap_or(i64::MAX);
        let others = self.others().await?.into_iter();
        // Each is looked at, whatever it has reported: the time of its lease begins with that.
        let present = others.filter(|seen| self.is_live(seen));
        let behind = present.filter(|seen| seen.position < position);
        let name = |seen: Seen| seen.name.trim_start_matches("replica/").to_owned();
        Ok(behind.map(name).collect())
    }
}
