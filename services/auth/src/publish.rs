//! Announces what is valid to every process: to Auth's own view directly, to the others over the
//! watch stream.
//!
//! A change is stored under the next number in its own transaction ([`Change`]). One task reads
//! what was committed, in that order, and passes it on. Racing administrators therefore cannot be
//! announced in another order than the database has, and what a crash or a cancelled call left
//! unannounced is found in the table. The reply to a change waits, for a limited time, until the
//! change has been announced.
//!
//! What is in memory here is a copy of the table's end, which each replica has for itself: every replica
//! announces every change, under the number that the change has in the table. A follower that goes on at
//! another replica is therefore sent the changes after its own, or a snapshot of the database, and never
//! what a replica believed earlier.

use crate::{
    AuthError,
    snapshot::Snapshots,
    store::{self, ChangeRow},
};
use parking_lot::Mutex;
use std::{
    ops::{Deref, DerefMut},
    sync::Arc,
    time::Duration,
};
use tars_credentials::Follower;
use tars_proto::{Message, auth::v1::WatchCredentialsResponse};
use tars_runtime::{
    bus::{Bus, Topic},
    db::{Corrupt, DbError, Transaction, Write},
    events::{EventLog, Reader, Trimmed},
};
use tokio::{
    sync::watch,
    time::{Instant, timeout},
};

/// Changes kept in memory for watchers that fall behind; beyond that they receive a snapshot.
const MEMORY: usize = 4096;
const BATCH: i64 = 256;
/// The table of changes, on the bus.
const TOPIC: Topic = "auth.credentials";
/// How long a reply or a snapshot waits for a change to be announced.
const ANNOUNCE_TIMEOUT: Duration = Duration::from_secs(5);
/// Without a successful poll for this long, no heartbeats are sent.
const STALE_AFTER: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub(crate) struct Publisher {
    log: EventLog<WatchCredentialsResponse>,
    /// Feeds the view of Auth's own process.
    own: Mutex<Follower>,
    snapshots: Snapshots,
    bus: Bus,
    announced: watch::Sender<u64>,
    /// The content of the last change that was announced, once the table was seen to have it.
    newest: Mutex<Option<Vec<u8>>>,
    polled: Mutex<Instant>,
}

impl Publisher {
    /// Starts with a snapshot of the database.
    pub(crate) async fn start(
        snapshots: Snapshots,
        mut own: Follower,
        bus: Bus,
    ) -> Result<Arc<Self>, AuthError> {
        let snapshot = snapshots.take().await?;
        let last = snapshot.sequence;
        own.apply(&snapshot, snapshots.clock().now_s())
            .expect("a snapshot cannot leave a gap");
        Ok(Arc::new(Self {
            log: EventLog::after(last, MEMORY),
            own: Mutex::new(own),
            snapshots,
            bus,
            announced: watch::Sender::new(last),
            newest: Mutex::default(),
            polled: Mutex::new(Instant::now()),
        }))
    }

    /// Announces what is committed, until it is dropped.
    pub(crate) async fn run(self: Arc<Self>) {
        let mut table = self.bus.follow(TOPIC);
        let mut is_failing = false;
        loop {
            match self.catch_up().await {
                Ok(()) => {
                    is_failing = false;
                    *self.polled.lock() = Instant::now();
                    table.wait(self.log.last()).await;
                }
                Err(e) => {
                    // It is tried again several times a second, for as long as the database is away.
                    if !std::mem::replace(&mut is_failing, true) {
                        tracing::error!(error = %e, "changes of credentials cannot be announced; retrying");
                    }
                    table.wait_after_failure(self.log.last()).await;
                }
            }
        }
    }

    async fn catch_up(&self) -> Result<(), AuthError> {
        loop {
            let last = self.log.last();
            let mut rows = {
                let mut db = self.snapshots.store().read("credentials.changes");
                store::changes_after(&mut db, last.saturating_sub(1), BATCH).await?
            };
            let known = rows.first().is_some_and(|row| row.seq == last);
            let known = known.then(|| rows.remove(0));
            if self.has_fallen_back(last, known, rows.is_empty()).await? {
                self.resync().await?;
                continue;
            }
            let Some(first) = rows.first().map(|row| row.seq) else {
                self.refresh_own(last);
                return Ok(());
            };
            if first != last + 1 {
                self.resync().await?;
                continue;
            }
            for row in rows {
                let mut item = WatchCredentialsResponse::decode(row.item.as_slice())
                    .map_err(|e| DbError::from(Corrupt::new("credential_changes", row.seq, e)))?;
                item.sequence = row.seq;
                self.prepare(&item).await?;
                self.announce(item);
                *self.newest.lock() = Some(row.item);
            }
        }
    }

    /// Whether the database has lost changes that were announced, with a failover to a standby that lacked
    /// them, or with a backup. Their numbers may have been taken again already, by others.
    async fn has_fallen_back(
        &self,
        last: u64,
        known: Option<ChangeRow>,
        is_last: bool,
    ) -> Result<bool, AuthError> {
        let Some(row) = known else {
            let mut db = self.snapshots.store().read("credentials.position");
            return Ok(is_last && store::last_change(&mut db).await? < last);
        };
        let mut newest = self.newest.lock();
        Ok(*newest.get_or_insert_with(|| row.item.clone()) != row.item)
    }

    /// Roots that another replica has changed are adopted before they are announced: a follower that
    /// renews because of them has to receive a certificate below them.
    async fn prepare(&self, item: &WatchCredentialsResponse) -> Result<(), AuthError> {
        match &self.snapshots.shared {
            Some(shared) if item.bundle.is_some() => shared.catch_up().await,
            _ => Ok(()),
        }
    }

    fn announce(&self, item: WatchCredentialsResponse) {
        let sequence = item.sequence;
        self.apply_to_own(&item);
        self.log.push(item);
        self.announced.send_replace(sequence);
    }

    fn apply_to_own(&self, item: &WatchCredentialsResponse) {
        let now_s = self.snapshots.clock().now_s();
        // `catch_up` has checked the order.
        if let Err(gap) = self.own.lock().apply(item, now_s) {
            tracing::error!(%gap, "a change was announced out of order");
        }
    }

    /// A heartbeat for Auth's own view, which receives everything before the others do.
    fn refresh_own(&self, sequence: u64) {
        self.apply_to_own(&WatchCredentialsResponse {
            sequence,
            ..Default::default()
        });
    }

    /// The table no longer has the next change, or others than were announced: every follower receives a
    /// snapshot.
    async fn resync(&self) -> Result<(), AuthError> {
        let snapshot = self.snapshots.take().await?;
        let sequence = snapshot.sequence;
        tracing::warn!(
            sequence,
            "changes are no longer in the table; continuing from a snapshot"
        );
        *self.newest.lock() = None;
        self.apply_to_own(&snapshot);
        self.log.skip_to(sequence);
        self.announced.send_replace(sequence);
        Ok(())
    }

    /// A snapshot, and a reader of the changes after it.
    pub(crate) async fn snapshot(
        &self,
    ) -> Result<(WatchCredentialsResponse, Reader<WatchCredentialsResponse>), AuthError> {
        let snapshot = self.snapshots.take().await?;
        self.reached(snapshot.sequence).await?;
        let reader = self.log.read(snapshot.sequence);
        Ok((snapshot, reader.map_err(|_| AuthError::Unannounced)?))
    }

    /// A reader of the changes after a number.
    pub(crate) fn read(&self, after: u64) -> Result<Reader<WatchCredentialsResponse>, Trimmed> {
        self.log.read(after)
    }

    /// Whether no committed change can have been unannounced for long.
    pub(crate) fn is_current(&self) -> bool {
        self.polled.lock().elapsed() < STALE_AFTER
    }

    #[cfg(test)]
    pub(crate) fn is_at(&self, sequence: u64) -> bool {
        self.log.last() == sequence
    }

    async fn reached(&self, sequence: u64) -> Result<(), AuthError> {
        let mut announced = self.announced.subscribe();
        let there = timeout(ANNOUNCE_TIMEOUT, announced.wait_for(|at| *at >= sequence));
        there
            .await
            .map_err(|_| AuthError::Unannounced)?
            .map_err(|_| AuthError::Unannounced)?;
        Ok(())
    }
}

/// A transaction that may change what is valid.
#[derive(Debug)]
pub(crate) struct Change {
    tx: Write,
    publisher: Arc<Publisher>,
    last: Option<u64>,
}

impl Change {
    pub(crate) fn new(tx: Write, publisher: Arc<Publisher>) -> Self {
        Self {
            tx,
            publisher,
            last: None,
        }
    }

    /// Stores the change for the followers. It comes last before the commit: from here on, other
    /// changes wait.
    pub(crate) async fn announce(
        &mut self,
        item: &WatchCredentialsResponse,
    ) -> Result<(), AuthError> {
        let sequence = store::append_change(&mut self.tx, &item.encode_to_vec()).await?;
        self.last = Some(sequence);
        // Announced it can only be where the database has fallen back. Then that was another change.
        let announced = &self.publisher.announced;
        announced.send_if_modified(|at| {
            let is_other = *at >= sequence;
            *at = (*at).min(sequence - 1);
            is_other
        });
        Ok(())
    }

    /// Commits, and waits for a limited time until Auth's own view has the change. It succeeds even
    /// when that takes longer: the change is durable and will be announced, and its reply (a new
    /// key) cannot be had again.
    pub(crate) async fn commit(self) -> Result<(), AuthError> {
        // Also published when the caller is cancelled in the middle.
        let hint = self.last.map(|last| Hint(&self.publisher.bus, last));
        self.tx.commit().await?;
        drop(hint);
        if let Some(sequence) = self.last
            && self.publisher.reached(sequence).await.is_err()
        {
            tracing::warn!(sequence, "a durable change is announced late");
        }
        Ok(())
    }
}

impl Deref for Change {
    type Target = Transaction;

    fn deref(&self) -> &Self::Target {
        &self.tx
    }
}

impl DerefMut for Change {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.tx
    }
}

/// Publishes a change when it is dropped.
struct Hint<'a>(&'a Bus, u64);

impl Drop for Hint<'_> {
    fn drop(&mut self) {
        self.0.publish(TOPIC, self.1);
    }
}

#[cfg(test)]
mod tests;
