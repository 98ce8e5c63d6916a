//! Changes of a service's own tables, as every replica of the service learns of them.
//!
//! Each change takes the next number in its own transaction, from one row for each topic: the numbers
//! are in the order of the commits, on every engine. The change is published on the
//! [bus](crate::bus) after the commit. A replica compares the row's number with the last one that it
//! saw, and wakes its subscribers, who read the rows that they care about: a number says that something
//! changed, and never what.
//!
//! The numbers fall back with their database, to a standby or a backup that lacks the last commits, and
//! may come to where they were by the time they are read. Each change therefore has an identity too, and
//! a row that is not the last that was seen, nor one that follows it, wakes the subscribers like a change.

use crate::{
    bus::{Bus, Follower, Topic},
    db::{Db, DbError, Fetch, FromRow, Query, Row, Transaction, Write},
};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;

/// The migration of a service's schema that its changes need.
pub const MIGRATION: &str = "
CREATE TABLE change_numbers (topic TEXT PRIMARY KEY, last BIGINT NOT NULL, id UUID NOT NULL);
";

const TAKE: &str = "INSERT INTO change_numbers (topic, last, id) VALUES ($1, 1, $2) \
                    ON CONFLICT (topic) DO UPDATE SET last = change_numbers.last + 1, id = excluded.id \
                    RETURNING last, id";
const LAST: &str = "SELECT last, id FROM change_numbers WHERE topic = $1";

/// How far a topic has come: its last change. The default is a topic without changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Position {
    number: u64,
    id: Uuid,
}

impl Position {
    /// The number of the last change; zero before the first. It falls back with its database.
    pub fn number(self) -> u64 {
        self.number
    }

    /// Whether the database, once it was at `seen`, can only have come here by falling back.
    fn precedes(self, seen: Self) -> bool {
        self.number < seen.number || (self.number == seen.number && self.id != seen.id)
    }
}

impl FromRow for Position {
    fn from_row(row: &Row) -> Result<Self, DbError> {
        let number: i64 = row.get("last")?;
        Ok(Self {
            number: u64::try_from(number).unwrap_or_default(),
            id: row.get("id")?,
        })
    }
}

/// A change that is not published yet.
#[derive(Debug)]
#[must_use = "other replicas learn of a change that is not published only by polling"]
pub struct Change(Position);

impl Change {
    /// The number, which replicas that have read the change report.
    pub fn number(&self) -> u64 {
        self.0.number
    }
}

/// The changes of one topic. They are followed until this is dropped.
#[derive(Debug)]
pub struct Changes {
    bus: Bus,
    topic: Topic,
    latest: watch::Sender<Position>,
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
        let latest = watch::Sender::new(position(db, topic).await?);
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
        let take = Query::new(TAKE).bind(self.topic).bind(Uuid::now_v7());
        let taken = tx.optional(take).await?;
        taken
            .map(Change)
            .ok_or_else(|| DbError::Failed(format!("{TAKE}: no row")))
    }

    /// The number of the last committed change; zero before the first.
    ///
    /// # Errors
    ///
    /// [`DbError`] when the database cannot be read.
    pub async fn last(&self, db: &Db) -> Result<u64, DbError> {
        Ok(position(db, self.topic).await?.number)
    }

    /// The number of the last change that a transaction sees.
    ///
    /// # Errors
    ///
    /// [`DbError`] when the database cannot be read.
    pub async fn last_in(&self, tx: &mut Transaction) -> Result<u64, DbError> {
        Ok(position_in(tx, self.topic).await?.number)
    }

    /// Commits a transaction as a change, and publishes it, also where the commit is in doubt: whoever is
    /// woken reads what is stored. To be run on a task of its own.
    ///
    /// # Errors
    ///
    /// As [`Write::commit`].
    pub async fn commit(&self, mut tx: Write) -> Result<(), DbError> {
        let change = self.take(&mut tx).await?;
        match tx.commit().await {
            Ok(()) => self.publish(change),
            Err(doubt @ DbError::InDoubt(_)) => {
                self.publish_in_doubt(change);
                return Err(doubt);
            }
            Err(e) => return Err(e),
        }
        Ok(())
    }

    /// Publishes a change that is committed. Subscribers in this process are woken at once.
    pub fn publish(&self, change: Change) {
        self.latest.send_if_modified(|at| {
            let is_new = change.0.number > at.number;
            *at = if is_new { change.0 } else { *at };
            is_new
        });
        self.bus.publish(self.topic, change.0.number);
    }

    /// Publishes a change whose commit may have failed. Its number may be another change's, so that it
    /// does not count as seen.
    pub fn publish_in_doubt(&self, change: Change) {
        self.wake();
        self.bus.publish(self.topic, change.0.number);
    }

    /// Wakes the subscribers in this process, although nothing was committed.
    pub fn wake(&self) {
        self.latest.send_modify(|_| {});
    }

    /// Returns a receiver that is notified of every change, of any replica.
    pub fn subscribe(&self) -> watch::Receiver<Position> {
        self.latest.subscribe()
    }
}

async fn follow(db: Db, topic: Topic, latest: watch::Sender<Position>, mut follower: Follower) {
    let mut is_failing = false;
    loop {
        let before = *latest.borrow();
        match position(&db, topic).await {
            Ok(read) => {
                is_failing = false;
                observe(&latest, before, read);
                follower.wait(read.number).await;
            }
            Err(error) => {
                if !std::mem::replace(&mut is_failing, true) {
                    tracing::warn!(topic, %error, "changes of other replicas cannot be read; retrying");
                }
                follower.wait_after_failure(before.number).await;
            }
        }
    }
}

/// Takes over what was read. Publications and reads overtake each other: what was published since
/// `before`, when the read began, may not have been there yet. Subscribers are woken once for each
/// advance.
fn observe(latest: &watch::Sender<Position>, before: Position, read: Position) {
    latest.send_if_modified(|at| {
        let fell_back = read.precedes(before);
        if fell_back {
            tracing::warn!(
                from = before.number,
                to = read.number,
                "changes were lost with their database"
            );
        }
        let is_new = fell_back || read.number > at.number;
        *at = if is_new { read } else { *at };
        is_new
    });
}

async fn position(db: &Db, topic: Topic) -> Result<Position, DbError> {
    position_in(&mut db.read("changes.last"), topic).await
}

async fn position_in(db: &mut impl Fetch, topic: Topic) -> Result<Position, DbError> {
    let last = db.optional(Query::new(LAST).bind(topic)).await?;
    Ok(last.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        bus::Wake,
        db::{Isolation, LostCommit, Migration},
    };
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
                let reached = subscriber.wait_for(|latest| latest.number >= expected);
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
        assert_eq!(subscriber.borrow().number, 1);
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
        let after = changes.subscribe().borrow().number;
        assert_eq!((dropped.number, after), (2, 1));
        assert_eq!(commit(&db, &changes).await.0.number, 2);
    }

    /// As after a failover to a standby that lacks the last commits; then come so many changes.
    async fn fall_back(db: &Db, changes: &Changes, to: Position, then: usize) {
        const SET: &str = "UPDATE change_numbers SET last = $1, id = $2";
        let mut tx = db
            .write("test.fall_back", Isolation::Exclusive)
            .await
            .unwrap();
        let number = i64::try_from(to.number).unwrap();
        let set = Query::new(SET).bind(number).bind(to.id);
        tx.execute(set).await.unwrap().one().unwrap();
        for _ in 0..then {
            let Change(_) = changes.take(&mut tx).await.unwrap();
        }
        tx.commit().await.unwrap();
    }

    #[tokio::test]
    async fn numbers_that_fall_back_wake_also_where_they_have_come_up_again() {
        let dir = tempfile::tempdir().unwrap();
        let (db, changes) = open(&dir, &Bus::local()).await;
        let mut subscriber = changes.subscribe();
        let mut first = Position::default();
        for number in 1..=3 {
            changes.publish(commit(&db, &changes).await);
            let seen = *subscriber.borrow_and_update();
            assert_eq!(seen.number, number);
            first = if number == 1 { seen } else { first };
        }
        for (then, number) in [(0, 1), (0, 1), (2, 3), (2, 3)] {
            let before = *subscriber.borrow();
            fall_back(&db, &changes, first, then).await;
            if then == 0 && before == first {
                // Nothing is other than what was seen.
                continue;
            }
            let woken = timeout(PATIENCE, subscriber.changed());
            woken.await.unwrap().unwrap();
            let after = *subscriber.borrow_and_update();
            assert_eq!(after.number, number);
            assert_ne!(after, before);
        }
        // A change that takes a number which an earlier one had wakes too.
        fall_back(&db, &changes, first, 0).await;
        changes.publish(commit(&db, &changes).await);
        let again = subscriber.wait_for(|latest| latest.number == 2);
        timeout(PATIENCE, again).await.unwrap().unwrap();
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
                    taken.push(change.0.number);
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
        assert_eq!(changes.subscribe().borrow().number, 80);
    }

    #[tokio::test]
    async fn a_change_in_doubt_wakes_at_once_and_does_not_count_as_seen() {
        let dir = tempfile::tempdir().unwrap();
        let bus = Bus::local();
        let (db, changes) = open(&dir, &bus).await;
        let mut subscriber = changes.subscribe();
        let mut hinted = bus.follow(TOPIC);
        for lost in [LostCommit::Undone, LostCommit::Made] {
            db.lose_commit("test.change", lost);
            let tx = db.write("test.change", Isolation::Committed).await.unwrap();
            let doubt = changes.commit(tx).await.unwrap_err();
            assert!(matches!(doubt, DbError::InDoubt(_)), "{doubt:?}");
            assert!(subscriber.has_changed().unwrap());
            // Its number may be that of another change, which a subscriber must not miss. The follower
            // may have read a change that was made.
            let number = subscriber.borrow_and_update().number;
            assert!(number <= u64::from(lost == LostCommit::Made), "{number}");
            assert_eq!(hinted.wait(0).await, Wake::Hint);
        }
        let made = subscriber.wait_for(|latest| latest.number == 1);
        timeout(PATIENCE, made).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_wake_notifies_without_a_change() {
        let dir = tempfile::tempdir().unwrap();
        let (_, changes) = open(&dir, &Bus::local()).await;
        let mut subscriber = changes.subscribe();
        changes.wake();
        assert!(subscriber.has_changed().unwrap());
        assert_eq!(subscriber.borrow_and_update().number, 0);
    }
}
