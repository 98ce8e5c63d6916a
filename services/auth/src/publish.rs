//! Tells every process what is valid: the own view at once, the others by the watch stream.
//!
//! A change is written down under the next number, in its own transaction ([`Change`]); one task reads
//! what was committed, in that order, and passes it on. So racing administrators cannot be announced in
//! another order than the database has, and what a crash or a cancelled call leaves unannounced is
//! found in the table. The reply to whoever changed something waits a while for the task to have come so
//! far.

use crate::{AuthError, snapshot::Snapshots, store};
use parking_lot::Mutex;
use std::{
    ops::{Deref, DerefMut},
    sync::Arc,
    time::Duration,
};
use tars_credentials::Follower;
use tars_proto::{Message, auth::v1::WatchCredentialsResponse};
use tars_runtime::{
    db::{Corrupt, DbError, Transaction, Write},
    events::{EventLog, Reader, Trimmed},
};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, timeout},
};

/// Changes kept in memory for watchers that fall behind; past that they get a whole view again.
const KEPT: usize = 4096;
const BATCH: i64 = 256;
/// The table is looked at this often without a hint: from another process there is none, nor from a
/// commit whose caller went away.
const TICK: Duration = Duration::from_millis(250);
/// How long a reply, or a whole view, waits for a change to be announced.
const PATIENCE: Duration = Duration::from_secs(5);
/// Past this without a look at the table nobody is told that they are up to date.
const BLIND: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub(crate) struct Publisher {
    log: EventLog<WatchCredentialsResponse>,
    /// Fills the view of Auth's own process.
    own: Mutex<Follower>,
    snapshots: Snapshots,
    hint: Notify,
    announced: watch::Sender<u64>,
    looked: Mutex<Instant>,
}

impl Publisher {
    /// Begins with a whole view, as the database has it.
    pub(crate) async fn start(
        snapshots: Snapshots,
        mut own: Follower,
    ) -> Result<Arc<Self>, AuthError> {
        let whole = snapshots.take().await?;
        let last = whole.sequence;
        own.apply(&whole, snapshots.clock().now_s())
            .expect("a whole view leaves no gap");
        Ok(Arc::new(Self {
            log: EventLog::after(last, KEPT),
            own: Mutex::new(own),
            snapshots,
            hint: Notify::new(),
            announced: watch::Sender::new(last),
            looked: Mutex::new(Instant::now()),
        }))
    }

    /// Announces what is committed, for ever.
    pub(crate) async fn run(self: Arc<Self>) {
        loop {
            match self.catch_up().await {
                Ok(()) => *self.looked.lock() = Instant::now(),
                Err(e) => tracing::error!(error = %e, "changes of credentials wait"),
            }
            timeout(TICK, self.hint.notified()).await.ok();
        }
    }

    async fn catch_up(&self) -> Result<(), AuthError> {
        loop {
            let last = self.log.last();
            let rows = {
                let mut db = self.snapshots.store().read("credentials.changes");
                store::changes_after(&mut db, last, BATCH).await?
            };
            let Some(first) = rows.first().map(|row| row.seq) else {
                self.own_is_fresh(last);
                return Ok(());
            };
            if first != last + 1 {
                self.start_anew().await?;
                continue;
            }
            for row in rows {
                let mut item = WatchCredentialsResponse::decode(row.item.as_slice())
                    .map_err(|e| DbError::from(Corrupt::new("credential_changes", row.seq, e)))?;
                item.sequence = row.seq;
                self.announce(item);
            }
        }
    }

    fn announce(&self, item: WatchCredentialsResponse) {
        let sequence = item.sequence;
        self.take(&item);
        self.log.push(item);
        self.announced.send_replace(sequence);
    }

    fn take(&self, item: &WatchCredentialsResponse) {
        let now_s = self.snapshots.clock().now_s();
        // In order: `catch_up` has looked.
        if let Err(gap) = self.own.lock().apply(item, now_s) {
            tracing::error!(%gap, "a change was announced out of order");
        }
    }

    /// The own view hears of everything before anybody; without news it is told so.
    fn own_is_fresh(&self, sequence: u64) {
        self.take(&WatchCredentialsResponse {
            sequence,
            ..Default::default()
        });
    }

    /// The table no longer has what comes next: everybody gets a whole view.
    async fn start_anew(&self) -> Result<(), AuthError> {
        let whole = self.snapshots.take().await?;
        let sequence = whole.sequence;
        tracing::warn!(
            sequence,
            "changes are no longer kept; starting from a whole view"
        );
        self.take(&whole);
        self.log.skip_to(sequence);
        self.announced.send_replace(sequence);
        Ok(())
    }

    /// Everything that is valid now, and the changes that come after.
    pub(crate) async fn whole(
        &self,
    ) -> Result<(WatchCredentialsResponse, Reader<WatchCredentialsResponse>), AuthError> {
        let whole = self.snapshots.take().await?;
        self.reached(whole.sequence).await?;
        let reader = self.log.read(whole.sequence);
        Ok((whole, reader.map_err(|_| AuthError::Unannounced)?))
    }

    /// The changes after a number.
    pub(crate) fn read(&self, after: u64) -> Result<Reader<WatchCredentialsResponse>, Trimmed> {
        self.log.read(after)
    }

    /// Whether nothing that is committed can have gone unannounced for long.
    pub(crate) fn is_current(&self) -> bool {
        self.looked.lock().elapsed() < BLIND
    }

    async fn reached(&self, sequence: u64) -> Result<(), AuthError> {
        let mut announced = self.announced.subscribe();
        let there = timeout(PATIENCE, announced.wait_for(|at| *at >= sequence));
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

    /// Writes down what the others are to be told. Comes last before the commit: from here on other
    /// changes wait.
    pub(crate) async fn announce(
        &mut self,
        item: &WatchCredentialsResponse,
    ) -> Result<(), AuthError> {
        self.last = Some(store::append_change(&mut self.tx, &item.encode_to_vec()).await?);
        Ok(())
    }

    /// Returns once it is durable and the own view has it, or should have had it: what is durable
    /// will be announced, and the answer of whoever changed it (a new key) is not to be had again.
    pub(crate) async fn commit(self) -> Result<(), AuthError> {
        // Also when the caller goes away in the middle.
        let hint = Hint(&self.publisher);
        self.tx.commit().await?;
        drop(hint);
        if let Some(sequence) = self.last
            && self.publisher.reached(sequence).await.is_err()
        {
            tracing::warn!(sequence, "a change is durable, and is announced late");
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

struct Hint<'a>(&'a Publisher);

impl Drop for Hint<'_> {
    fn drop(&mut self) {
        self.0.hint.notify_one();
    }
}

#[cfg(test)]
mod tests;
