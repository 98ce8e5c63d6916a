//! Changes of a service's own tables, as every replica of the service learns of them.
//!
//! Each change takes the next number in its own transaction, from one row for each topic: the numbers
//! are in the order of the commits, on every engine. The change is published on the
//! [bus](crate::bus) after the commit. A replica compares the row's number with the last one that it
//! saw, and wakes its subscribers, who read the rows that they care about: a number says that something
//! changed, and never what.

use crate::{
    bus::{Bus, Follower, Topic},
    db::{Db, DbError, Fetch, Query, Transaction},
};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

/// The migration of a service's schema that its changes need.
pub const MIGRATION: &str = "
CREATE TABLE change_numbers (topic TEXT PRIMARY KEY, last BIGINT NOT NULL);
";

const TAKE: &str = "INSERT INTO change_numbers (topic, last) VALUES ($1, 1) \
                    ON CONFLICT (topic) DO UPDATE SET last = change_numbers.last + 1 RETURNING last";
const LAST: &str = "SELECT last FROM change_numbers WHERE topic = $1";

/// A change that is not published yet.
#[derive(Debug)]
#[must_use = "other replicas learn of a change that is not published only by polling"]
pub struct Change(u64);

/// The changes of one topic. They are followed until this is dropped.
#[derive(Debug)]
pub struct Changes {
    bus: Bus,
    topic: Topic,
    latest: watch::Sender<u64>,
    _following: AbortOnDropHandle<()>,
}

impl Changes {
    /// Follows a topic of a database whose schema has [`MIGRATION`].
    ///
    /// # Errors
    ///
    /// [`DbError`] when the database cannot be read.
    pub async fn open(db: &Db, bus: Bus, topic: Topic) -> Result<Self, DbError> {
        let follower = bus.follow(topic);
        let latest = watch::Sender::new(last(db, topic).await?);
        let following = follow(db.clone(), topic, latest.clone(), follower);
        Ok(Self {
            bus,
            topic,
            latest,
            _following: AbortOnDropHandle::new(tokio::spawn(following)),
        })
    }

    /// Takes the number of a change, as the last thing before the commit: from here on, other changes
    /// of the topic wait.
    ///
    /// # Errors
    ///
    /// [`DbError`] when the database cannot be written to.
    pub async fn take(&self, tx: &mut Transaction) -> Result<Change, DbError> {
        let last = tx.value(Query::new(TAKE).bind(self.topic), "last").await?;
        Ok(Change(number(last)))
    }

    /// Publishes a change that is committed. Subscribers in this process are woken at once.
    pub fn publish(&self, change: Change) {
        advance(&self.latest, change.0);
        self.bus.publish(self.topic, change.0);
    }

    /// Publishes a change whose commit may have failed. Its number may be another change's, so that it
    /// does not count as seen.
    pub fn publish_in_doubt(&self, change: Change) {
        self.wake();
        self.bus.publish(self.topic, change.0);
    }

    /// Wakes the subscribers in this process, although nothing was committed.
    pub fn wake(&self) {
        self.latest.send_modify(|_| {});
    }

    /// Returns a receiver that is notified of every change, of any replica.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.latest.subscribe()
    }
}

async fn follow(db: Db, topic: Topic, latest: watch::Sender<u64>, mut follower: Follower) {
    let mut is_failing = false;
    loop {
        let seen = *latest.borrow();
        match last(&db, topic).await {
            Ok(last) => {
                is_failing = false;
                advance(&latest, last);
                follower.wait(last.max(seen)).await;
            }
            Err(error) => {
                if !std::mem::replace(&mut is_failing, true) {
                    tracing::warn!(topic, %error, "changes of other replicas cannot be read; retrying");
                }
                follower.wait_after_failure(seen).await;
            }
        }
    }
}

/// Hints and reads overtake each other; subscribers are woken once for each advance.
fn advance(latest: &watch::Sender<u64>, to: u64) {
    latest.send_if_modified(|at| {
        let is_new = to > *at;
        *at = to.max(*at);
        is_new
    });
}

/// The number of the last committed change; zero before the first.
async fn last(db: &Db, topic: Topic) -> Result<u64, DbError> {
    let query = Query::new(LAST).bind(topic);
    let last = db
        .read("changes.last")
        .optional_value(query, "last")
        .await?;
    Ok(number(last.unwrap_or_default()))
}

fn number(last: i64) -> u64 {
    u64::try_from(last).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::{Isolation, Migration};
    use std::{collections::BTreeSet, sync::Arc, time::Duration};
    use tokio::time::timeout;

    const MIGRATIONS: &[Migration] = &[Migration::new(1, "changes", MIGRATION)];
    const TOPIC: Topic = "test.changes";
    const PATIENCE: Duration = Duration::from_secs(20);

    async fn open(dir: &tempfile::TempDir, bus: &Bus) -> (Db, Changes) {
        let path = dir.path().join("x.db");
        let db = Db::open(&path, MIGRATIONS).await.unwrap();
        let changes = Changes::open(&db, bus.clone(), TOPIC).await.unwrap();
        (db, changes)
    }

    async fn commit(db: &Db, changes: &Changes) -> Change {
        let mut tx = db.write("test.change", Isolation::Committed).await.unwrap();
        let change = changes.take(&mut tx).await.unwrap();
        tx.commit().await.unwrap();
        change
    }

    #[tokio::test]
    async fn a_change_wakes_the_subscribers_of_every_replica() {
        let dir = tempfile::tempdir().unwrap();
        let bus = Bus::local();
        let (db, one) = open(&dir, &bus).await;
        let (_, hinted) = open(&dir, &bus).await;
        // Has a bus of its own, as when hints are lost.
        let (_, unhinted) = open(&dir, &Bus::local()).await;
        let mut subscribers = [&one, &hinted, &unhinted].map(Changes::subscribe);
        for expected in 1..=3 {
            one.publish(commit(&db, &one).await);
            for subscriber in &mut subscribers {
                let reached = subscriber.wait_for(|latest| *latest >= expected);
                timeout(PATIENCE, reached).await.unwrap().unwrap();
            }
        }
    }

    #[tokio::test]
    async fn a_change_that_is_never_published_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let (db, changes) = open(&dir, &Bus::local()).await;
        let mut subscriber = changes.subscribe();
        let Change(_) = commit(&db, &changes).await;
        let found = timeout(PATIENCE, subscriber.changed());
        found.await.unwrap().unwrap();
        assert_eq!(*subscriber.borrow(), 1);
    }

    #[tokio::test]
    async fn numbers_continue_after_a_restart_and_of_a_rollback_none_is_used() {
        let dir = tempfile::tempdir().unwrap();
        let (db, changes) = open(&dir, &Bus::local()).await;
        changes.publish(commit(&db, &changes).await);
        let mut tx = db.write("test.change", Isolation::Committed).await.unwrap();
        let Change(dropped) = changes.take(&mut tx).await.unwrap();
        drop(tx);
        db.close().await;
        let (db, changes) = open(&dir, &Bus::local()).await;
        assert_eq!((dropped, *changes.subscribe().borrow()), (2, 1));
        assert_eq!(commit(&db, &changes).await.0, 2);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn concurrent_changes_have_numbers_of_their_own() {
        let dir = tempfile::tempdir().unwrap();
        let (db, changes) = open(&dir, &Bus::local()).await;
        let changes = Arc::new(changes);
        let committing = (0..8).map(|_| {
            let (db, changes) = (db.clone(), Arc::clone(&changes));
            tokio::spawn(async move {
                let mut taken = Vec::new();
                for _ in 0..10 {
                    let change = commit(&db, &changes).await;
                    taken.push(change.0);
                    changes.publish(change);
                }
                taken
            })
        });
        let mut taken = BTreeSet::new();
        for task in committing.collect::<Vec<_>>() {
            taken.extend(task.await.unwrap());
        }
        assert_eq!(taken, (1..=80).collect());
        assert_eq!(*changes.subscribe().borrow(), 80);
    }

    #[tokio::test]
    async fn a_wake_notifies_without_a_change() {
        let dir = tempfile::tempdir().unwrap();
        let (_, changes) = open(&dir, &Bus::local()).await;
        let mut subscriber = changes.subscribe();
        changes.wake();
        assert!(subscriber.has_changed().unwrap());
        assert_eq!(*subscriber.borrow_and_update(), 0);
    }
}
