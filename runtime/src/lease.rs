//! Leases: which process does a piece of work that exactly one process must do.
//!
//! A lease is a row of the service's own database: a name, its holder, the holder's *fencing token*, a
//! nonce and a count of renewals. Tokens come from one counter, so that each change of holder makes the
//! token larger (Martin Kleppmann, "How to do distributed locking", 2016). The counter can fall back
//! with its database, to a standby or a backup that lacks the last commits, and give a token twice. The
//! nonce, which no other acquisition has, tells the two holders of such a token apart. Another service
//! that remembers tokens (as Orchestration does) has no nonce to compare: for it the counter is never
//! behind the wall clock in microseconds, so that after such a fall, too, later tokens are larger.
//!
//! Safety rests on token and nonce alone. A write of owned work calls [`Fence::enforce`] in its own
//! transaction, which locks the lease's row: either the claim is current until the commit, or the write
//! is refused with [`LeaseError::Stale`]. A process that was suspended for longer than its lease, and has
//! been replaced meanwhile, can therefore write nothing, whatever its clock shows.
//!
//! Clocks decide only how soon work goes on elsewhere, and no wall clock is read for that, since those of
//! other machines may be wrong. A lease has ended when whoever waits for it has seen no renewal for a whole
//! life by its own monotonic clock. A holder counts its own lease's end by its monotonic clock, from
//! before the renewal was sent; past that end it cancels the work, which may have effects outside of the
//! database. A process that was killed and starts again waits like any other: nothing that it finds on
//! its disk proves that no copy of it is alive.
//!
//! A database that only this process can open ([`Terms::Sole`]) has no one to hand work over to: its leases
//! do not end by themselves and need no renewal, and those of an earlier process are removed when it is
//! opened, so that a restart continues at once. The claims are checked all the same.

mod book;
mod claim;
mod in_progress;
mod keeper;
mod presence;
mod state;
mod table;

pub use in_progress::{Entry, InProgress};
pub use presence::{MIGRATION as PRESENCE_MIGRATION, Presence, Tenure};
pub use state::Loss;

use crate::{
    clock::Clock,
    db::{Db, DbError, Isolation, Transaction, Write},
    metrics::Metrics,
    seeds::Seeds,
};
use book::{Book, Grant};
use keeper::Keeper;
use std::{fs, io, path::Path, sync::Arc, time::Duration};
use table::{Rows, Table};
use tars_certs::secret;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use uuid::Uuid;

/// The migration of a service's schema that leases need.
pub const MIGRATION: &str = "
CREATE TABLE leases (
    name TEXT PRIMARY KEY,
    holder TEXT NOT NULL,
    token BIGINT NOT NULL,
    nonce UUID NOT NULL,
    renewals BIGINT NOT NULL
);
CREATE TABLE lease_tokens (id BIGINT PRIMARY KEY, last BIGINT NOT NULL);
INSERT INTO lease_tokens (id, last) VALUES (1, 0);
";

/// How long [`Leases::close`] waits for cancelled work to stop, and then for the database.
const STOP_LIMIT: Duration = Duration::from_secs(2);
/// The file in a service's data directory that names its leases' holder.
const HOLDER_FILE: &str = "replica";

/// Who else may hold leases in the database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Terms {
    /// No other process can open the database.
    Sole,
    /// Other processes use the database too.
    Shared {
        /// This replica of the service, for whoever reads the table. The name outlives the process, and a
        /// copy of the data directory has it too: nothing about a lease is decided by it.
        holder: String,
        /// How long a lease lasts without renewal.
        life: Duration,
    },
}

impl Terms {
    /// The terms for a service's database. A shared one gets the name of its holder from a file in
    /// `dir`, the service's own part of the data directory, which is made when it is absent.
    ///
    /// # Errors
    ///
    /// When the file cannot be read or written.
    pub fn of(db: &Db, dir: &Path) -> io::Result<Self> {
        let Some(life) = db.lease_life() else {
            return Ok(Self::Sole);
        };
        Ok(Self::Shared {
            holder: holder_of(dir)?,
            life,
        })
    }

    fn holder(&self) -> &str {
        match self {
            Self::Sole => "",
            Self::Shared { holder, .. } => holder,
        }
    }

    fn life(&self) -> Option<Duration> {
        match self {
            Self::Sole => None,
            Self::Shared { life, .. } => Some(*life),
        }
    }
}

/// Whether a service's part of a data directory was used with a database that other processes use too.
pub fn was_shared(dir: &Path) -> bool {
    dir.join(HOLDER_FILE).is_file()
}

/// Reads the name of a directory's holder, or makes one. A file without one counts as absent.
fn holder_of(dir: &Path) -> io::Result<String> {
    let path = dir.join(HOLDER_FILE);
    match fs::read_to_string(&path) {
        Ok(text) => {
            if let Ok(id) = Uuid::try_parse(text.trim()) {
                return Ok(id.to_string());
            }
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(e),
    }
    let id = Uuid::now_v7().to_string();
    secret::create_dir(dir)?;
    secret::write(&path, id.as_bytes())?;
    Ok(id)
}

/// A lease could not be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LeaseError {
    /// The token is not the current one: the work belongs to another holder, or to none.
    #[error("the lease {name:?} is no longer held under token {token}")]
    Stale {
        /// The lease.
        name: String,
        /// The token that was current once.
        token: i64,
    },
    /// The database failed.
    #[error(transparent)]
    Db(#[from] DbError),
}

/// The leases of one service, as one holder. Clones share them. Renewal ends with the last clone.
#[derive(Debug, Clone)]
pub struct Leases {
    book: Arc<Book>,
    table: Table,
    jitter: Seeds,
    _keeper: Arc<AbortOnDropHandle<()>>,
}

impl Leases {
    /// Starts to keep leases. Where no other process can open the database, those that an earlier one
    /// left behind are removed.
    ///
    /// # Errors
    ///
    /// [`DbError`] when the database cannot be written.
    pub async fn open(db: Db, terms: Terms, clock: Clock, jitter: Seeds) -> Result<Self, DbError> {
        let table = Table::new(db);
        if terms == Terms::Sole {
            table.clear().await?;
        }
        let book = Arc::new(Book::new(terms, clock));
        let keeper = Keeper::new(Arc::clone(&book), table.clone(), jitter.clone());
        Ok(Self {
            book,
            table,
            jitter,
            _keeper: Arc::new(AbortOnDropHandle::new(tokio::spawn(keeper.run()))),
        })
    }

    /// Takes a lease that is free or has ended. `None` while another holder has it, also one in this
    /// process, and once [`close`](Self::close) was called.
    ///
    /// # Errors
    ///
    /// [`DbError`] when the database fails. The lease may have been taken nevertheless; it is then given
    /// up in the background.
    pub async fn acquire(&self, name: &str) -> Result<Option<Lease>, DbError> {
        if self.book.is_closed() {
            return Ok(None);
        }
        // Looking costs no write while another holder has the lease, which is the common case.
        let before = self.book.given_up_of(name);
        let found = self.table.find(name).await?;
        if found.is_some_and(|row| self.book.is_live(name, &row, &before)) {
            return Ok(None);
        }
        let asked = self.book.clock().monotonic();
        let mut tx = self.table.begin("leases.acquire").await?;
        let now_us = self.book.clock().now_us();
        let taken = table::take(&mut tx, name, self.book.holder(), found, now_us).await?;
        let Some(claim) = taken else {
            return Ok(None);
        };
        // From here on the claim is given up unless it becomes a lease, also when this future is dropped.
        let lease = Lease {
            grant: self.book.grant(claim, asked),
            book: Arc::clone(&self.book),
            table: self.table.clone(),
        };
        tx.commit().await?;
        self.book.committed(&lease.grant);
        Ok(Some(lease))
    }

    /// Takes a lease like [`acquire`](Self::acquire), once this process does not have it any more: the
    /// next step of some work, where the one before it may not have ended yet.
    ///
    /// # Errors
    ///
    /// As [`acquire`](Self::acquire).
    pub async fn acquire_next(&self, name: &str) -> Result<Option<Lease>, DbError> {
        self.book.without(name).await;
        self.acquire(name).await
    }

    /// Looks for work of other holders that has become free, as long as the service exists: every half
    /// of a lease's life at the latest, and as soon as a lease that was seen may have ended. Does nothing
    /// where there are no other holders. `what` names the work in the log.
    pub fn look_for_free<S, F, E>(
        &self,
        what: &'static str,
        service: &Arc<S>,
        look: impl Fn(Arc<S>) -> F + Send + Sync + 'static,
    ) where
        S: Send + Sync + 'static,
        F: Future<Output = Result<(), E>> + Send,
        E: std::fmt::Debug,
    {
        let (book, jitter) = (Arc::clone(&self.book), self.jitter.clone());
        let service = Arc::downgrade(service);
        tokio::spawn(async move {
            while let Some(pause) = book.until_next_poll(&jitter) {
                tokio::time::sleep(pause).await;
                let Some(service) = service.upgrade() else {
                    return;
                };
                if let Err(error) = look(service).await {
                    tracing::warn!(?error, "{what} without an owner could not be looked for");
                }
            }
        });
    }

    /// Whether nobody holds a lease any more, so that [`acquire`](Self::acquire) would take it.
    ///
    /// # Errors
    ///
    /// [`DbError`] when the database fails.
    pub async fn is_free(&self, name: &str) -> Result<bool, DbError> {
        let before = self.book.given_up_of(name);
        let found = self.table.find(name).await?;
        Ok(found.is_none_or(|row| !self.book.is_live(name, &row, &before)))
    }

    /// How long until a lease that another holder was found to have ends, unless it is renewed. Zero where
    /// none was found, or it may have ended.
    pub fn until_end(&self, name: &str) -> Duration {
        self.book.until_end(name)
    }

    /// Cancels all owned work and gives up its leases, so that others need not wait until they end. No
    /// lease is taken afterwards.
    pub async fn close(&self) {
        self.book.close();
        if tokio::time::timeout(STOP_LIMIT, self.book.emptied())
            .await
            .is_err()
        {
            tracing::warn!("owned work did not stop in time; its leases are given up");
        }
        let claims = self.book.all_claims();
        let removed = tokio::time::timeout(STOP_LIMIT, self.table.remove(&claims)).await;
        if !matches!(removed, Ok(Ok(()))) {
            tracing::warn!(
                ?removed,
                "leases could not be given up; they end by themselves"
            );
        }
    }

    /// Registers the metrics of a service's leases.
    pub fn register(&self, metrics: &Metrics, service: &'static str) {
        let book = Arc::clone(&self.book);
        let held = move || Some(book.held() as f64);
        metrics.measure("leases_held", "Leases that are held", service, held);
        let book = Arc::clone(&self.book);
        metrics.count(
            "leases_lost",
            "Leases that were lost while their work was under way",
            service,
            move || book.lost(),
        );
        let book = Arc::clone(&self.book);
        metrics.count(
            "stale_writes_refused",
            "Writes of owned work that were refused because their lease was no longer held",
            service,
            move || book.refused(),
        );
    }
}

/// A lease that this process holds, or held: see [`Lease::lost`]. Dropping it gives it up in the
/// background.
#[derive(Debug)]
#[must_use = "a lease that is dropped is given up"]
pub struct Lease {
    grant: Arc<Grant>,
    book: Arc<Book>,
    table: Table,
}

impl Lease {
    /// What writes of the owned work are refused by once the lease is not held any more.
    pub fn fence(&self) -> Fence {
        Fence {
            grant: Arc::clone(&self.grant),
            book: Arc::clone(&self.book),
        }
    }

    /// The fencing token.
    pub fn token(&self) -> i64 {
        self.grant.claim().token()
    }

    /// Cancelled when the lease is lost. The work has to stop.
    pub fn lost(&self) -> CancellationToken {
        self.grant.lost().clone()
    }

    /// Why the lease was lost; `None` while it is held.
    pub fn loss(&self) -> Option<Loss> {
        self.grant.loss()
    }

    /// Runs work until it is done, or the lease is lost and the work is dropped: `None`.
    pub async fn run<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            () = self.grant.lost().cancelled() => None,
            done = work => Some(done),
        }
    }

    /// Gives the lease up, so that another holder can take it at once.
    ///
    /// # Errors
    ///
    /// [`DbError`] when the database fails. The lease is then given up in the background.
    pub async fn release(self) -> Result<(), DbError> {
        let claim = self.grant.claim().clone();
        self.table.remove(&[claim]).await?;
        self.released();
        Ok(())
    }

    /// The lease was given up by a transaction that is committed: see [`Fence::release`].
    pub fn released(self) {
        self.book.settle(&self.grant);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.book.give_up(&self.grant);
    }
}

/// A lease's token, for the writes of the work that it owns.
#[derive(Debug, Clone)]
pub struct Fence {
    grant: Arc<Grant>,
    book: Arc<Book>,
}

impl Fence {
    /// The fencing token, for services that check it themselves.
    pub fn token(&self) -> i64 {
        self.grant.claim().token()
    }

    /// Begins a transaction of the work that the lease owns, which nobody else can have taken over until it
    /// ends.
    ///
    /// # Errors
    ///
    /// As [`enforce`](Self::enforce).
    pub async fn begin(
        &self,
        db: &Db,
        name: &'static str,
        isolation: Isolation,
    ) -> Result<Write, LeaseError> {
        let mut tx = db.write(name, isolation).await?;
        self.enforce(&mut tx).await?;
        Ok(tx)
    }

    /// Locks the lease's row until the transaction ends, if the claim is current. Comes before the writes
    /// that it protects.
    ///
    /// # Errors
    ///
    /// [`LeaseError::Stale`] when the claim is not the current one. The transaction has to be dropped.
    pub async fn enforce(&self, tx: &mut Transaction) -> Result<(), LeaseError> {
        if table::lock(tx, self.grant.claim()).await?.is_done() {
            return Ok(());
        }
        Err(self.refused())
    }

    /// Gives the lease up together with the transaction, whose writes are the last of the work: whoever
    /// sees them finds the lease free. [`Lease::released`] follows the commit.
    ///
    /// # Errors
    ///
    /// As [`enforce`](Self::enforce).
    pub async fn release(&self, tx: &mut Transaction) -> Result<(), LeaseError> {
        if table::release(tx, self.grant.claim()).await?.is_done() {
            return Ok(());
        }
        Err(self.refused())
    }

    fn refused(&self) -> LeaseError {
        self.book.record_refused();
        self.book.supersede(&self.grant);
        self.stale()
    }

    /// Whether the lease has not ended by this process's monotonic clock, for effects outside of the
    /// database. It narrows the time in which a suspended holder still acts, and cannot exclude it.
    ///
    /// # Errors
    ///
    /// [`LeaseError::Stale`] when the lease has ended or is known to be lost.
    pub fn check(&self) -> Result<(), LeaseError> {
        if self.book.is_current(&self.grant) {
            Ok(())
        } else {
            Err(self.stale())
        }
    }

    fn stale(&self) -> LeaseError {
        let claim = self.grant.claim();
        LeaseError::Stale {
            name: claim.name().to_owned(),
            token: claim.token(),
        }
    }
}

#[cfg(test)]
mod tests;
