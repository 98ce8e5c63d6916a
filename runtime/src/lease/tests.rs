//! Holders over one SQLite file, each with connections and clocks of its own. Their keepers' timers do
//! not fire while a test runs; a test renews where it says so.

use super::*;
use crate::db::{Fetch, Isolation, Migration, Query, Write};
use std::path::PathBuf;

mod presence;
mod schedules;

const SCHEMA: &[Migration] = &[
    Migration::new(1, "leases", MIGRATION),
    Migration::new(
        2,
        "work",
        "CREATE TABLE work (number BIGINT PRIMARY KEY, name TEXT NOT NULL, token BIGINT NOT NULL)",
    ),
    Migration::new(3, "replicas", PRESENCE_MIGRATION),
];
const HOUR: Duration = Duration::from_secs(3600);
const START: Duration = Duration::from_secs(1_800_000_000);
const APPEND: &str = "INSERT INTO work (number, name, token) \
                      SELECT COALESCE(MAX(number), 0) + 1, $1, $2 FROM work";
const WORK: &str = "SELECT token FROM work WHERE name = $1 ORDER BY number";

/// Begins a transaction of owned work.
async fn begin_fenced(db: &Db, name: &'static str, fence: &Fence) -> Result<Write, LeaseError> {
    let mut tx = db.write(name, Isolation::Exclusive).await?;
    fence.enforce(&mut tx).await?;
    Ok(tx)
}

/// A process that shares the database with others.
struct Holder {
    path: PathBuf,
    name: String,
    db: Db,
    clock: Clock,
    leases: Leases,
}

impl Holder {
    async fn start(path: PathBuf, name: &str, clock: Clock) -> Self {
        let db = Db::open(&path, SCHEMA).await.unwrap();
        let terms = Terms::Shared {
            holder: name.to_owned(),
            life: HOUR,
        };
        let seeds = Seeds::counted(1);
        let leases = Leases::open(db.clone(), terms, clock.clone(), seeds);
        Self {
            path,
            name: name.to_owned(),
            leases: leases.await.unwrap(),
            db,
            clock,
        }
    }

    /// The next process of the same name, also from a copy of its data. The last one is suspended, not
    /// gone.
    async fn restart(&self) -> Self {
        Self::start(self.path.clone(), &self.name, self.clock.clone()).await
    }

    async fn take(&self, name: &str) -> Lease {
        let taken = self.leases.acquire(name).await.unwrap();
        taken.expect("the lease is free")
    }

    async fn is_refused(&self, name: &str) -> bool {
        self.leases.acquire(name).await.unwrap().is_none()
    }

    /// Sees a lease of another holder that is not renewed for its whole life.
    async fn see_end(&self, name: &str) {
        assert!(self.is_refused(name).await);
        self.clock.advance(HOUR);
    }

    async fn renew(&self) {
        let (book, table) = (Arc::clone(&self.leases.book), self.leases.table.clone());
        Keeper::new(book, table, Seeds::counted(1)).renew().await;
    }

    /// Removes what was given up, as the keeper does by itself.
    async fn tidy(&self) {
        let (book, table) = (Arc::clone(&self.leases.book), self.leases.table.clone());
        Keeper::new(book, table, Seeds::counted(1)).remove().await;
    }

    /// A write of owned work.
    async fn write(&self, name: &str, fence: &Fence) -> Result<(), LeaseError> {
        let mut tx = begin_fenced(&self.db, "test.work", fence).await?;
        let token = fence.grant.claim().token();
        let append = Query::new(APPEND).bind(name).bind(token);
        tx.execute(append).await?.one()?;
        Ok(tx.commit().await?)
    }

    async fn work(&self, name: &str) -> Vec<i64> {
        let query = Query::new(WORK).bind(name);
        let rows = self.db.read("test.work").rows(query).await.unwrap();
        rows.iter().map(|row| row.get("token").unwrap()).collect()
    }
}

struct Rig {
    _dir: tempfile::TempDir,
    one: Holder,
    two: Holder,
}

/// Two holders whose clocks agree.
async fn two() -> Rig {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.db");
    let clock = || Clock::manual(START);
    Rig {
        one: Holder::start(path.clone(), "one", clock()).await,
        two: Holder::start(path, "two", clock()).await,
        _dir: dir,
    }
}

fn is_stale(refused: Result<(), LeaseError>) -> bool {
    matches!(refused, Err(LeaseError::Stale { .. }))
}

#[tokio::test]
async fn a_lease_has_one_holder_until_it_ends() {
    let Rig { one, two, _dir } = two().await;
    let lease = one.take("study").await;
    assert!(two.is_refused("study").await);
    assert!(one.is_refused("study").await, "nor twice in one process");
    assert!(!two.leases.is_free("study").await.unwrap());
    two.clock.advance(HOUR - Duration::from_secs(1));
    assert!(two.is_refused("study").await);
    two.clock.advance(Duration::from_secs(1));
    assert!(two.leases.is_free("study").await.unwrap());
    let taken = two.take("study").await;
    assert!(taken.token() > lease.token());
    assert!(one.is_refused("study").await);
}

#[tokio::test]
async fn leases_of_other_names_are_free() {
    let Rig { one, two, _dir } = two().await;
    let (first, second) = (one.take("a").await, two.take("b").await);
    assert_ne!(first.token(), second.token());
}

#[tokio::test]
async fn a_renewed_lease_does_not_end() {
    let Rig { one, two, _dir } = two().await;
    let lease = one.take("study").await;
    for _ in 0..5 {
        for holder in [&one, &two] {
            holder.clock.advance(HOUR / 2);
        }
        one.renew().await;
        assert!(two.is_refused("study").await);
    }
    assert_eq!(lease.loss(), None);
    one.write("study", &lease.fence()).await.unwrap();
}

#[tokio::test]
async fn a_suspended_holder_can_write_nothing_once_another_has_taken_over() {
    let Rig { one, two, _dir } = two().await;
    let frozen = one.take("study").await;
    one.write("study", &frozen.fence()).await.unwrap();
    // The clock of `one` stands still; it cannot know.
    two.see_end("study").await;
    let taken = two.take("study").await;
    two.write("study", &taken.fence()).await.unwrap();
    assert!(!frozen.lost().is_cancelled() && frozen.fence().check().is_ok());
    assert!(is_stale(one.write("study", &frozen.fence()).await));
    assert!(frozen.lost().is_cancelled(), "its work hears of it at once");
    assert_eq!(frozen.loss(), Some(Loss::Superseded));
    assert!(is_stale(frozen.fence().check()));
    two.write("study", &taken.fence()).await.unwrap();
    let (old, new) = (frozen.token(), taken.token());
    assert_eq!(two.work("study").await, [old, new, new]);
    assert_eq!((one.leases.book.refused(), one.leases.book.lost()), (1, 1));
}

#[tokio::test]
async fn a_suspended_holder_that_renews_late_hears_that_it_was_replaced() {
    let Rig { one, two, _dir } = two().await;
    let (frozen, other) = (one.take("study").await, one.take("other").await);
    two.see_end("study").await;
    let taken = two.take("study").await;
    one.renew().await;
    assert_eq!(frozen.loss(), Some(Loss::Superseded));
    assert_eq!(other.loss(), None);
    one.renew().await;
    two.write("study", &taken.fence()).await.unwrap();
}

#[tokio::test]
async fn a_lease_that_ended_unseen_can_still_be_renewed() {
    let Rig { one, two, _dir } = two().await;
    let lease = one.take("study").await;
    two.see_end("study").await;
    one.renew().await;
    assert_eq!(lease.loss(), None);
    assert!(two.is_refused("study").await);
}

#[tokio::test]
async fn an_open_write_and_a_take_over_exclude_each_other() {
    let Rig { one, two, _dir } = two().await;
    let lease = one.take("study").await;
    let mut tx = begin_fenced(&one.db, "test.work", &lease.fence())
        .await
        .unwrap();
    let append = Query::new(APPEND).bind("study").bind(lease.token());
    tx.execute(append).await.unwrap().one().unwrap();
    two.see_end("study").await;
    let mut taking = Box::pin(two.leases.acquire("study"));
    let early = tokio::time::timeout(Duration::from_millis(50), &mut taking).await;
    assert!(early.is_err(), "it waits for the write");
    tx.commit().await.unwrap();
    let taken = taking.await.unwrap().unwrap();
    assert_eq!(two.work("study").await, [lease.token()]);
    assert!(is_stale(one.write("study", &lease.fence()).await));
    drop(taken);
}

#[tokio::test]
async fn a_released_lease_is_free_at_once_and_its_token_is_stale() {
    let Rig { one, two, _dir } = two().await;
    let lease = one.take("study").await;
    let (fence, token) = (lease.fence(), lease.token());
    lease.release().await.unwrap();
    assert!(is_stale(one.write("study", &fence).await));
    let taken = two.take("study").await;
    assert!(taken.token() > token, "tokens are not reused");
    assert!(is_stale(one.write("study", &fence).await));
}

#[tokio::test]
async fn a_lease_is_given_up_with_the_last_write_of_its_work_or_not_at_all() {
    let Rig { one, two, _dir } = two().await;
    let lease = one.take("study").await;
    let fence = lease.fence();
    let mut tx = one.db.write("test.last", Isolation::Exclusive).await;
    fence.release(tx.as_mut().unwrap()).await.unwrap();
    drop(tx);
    assert!(two.is_refused("study").await, "nothing was committed");
    one.write("study", &fence).await.unwrap();
    let mut tx = one.db.write("test.last", Isolation::Exclusive).await;
    fence.release(tx.as_mut().unwrap()).await.unwrap();
    tx.unwrap().commit().await.unwrap();
    let _taken = two.take("study").await;
    let mut tx = one.db.write("test.last", Isolation::Exclusive).await;
    assert!(is_stale(fence.release(tx.as_mut().unwrap()).await));
}

#[tokio::test]
async fn tokens_of_a_restored_database_are_larger_than_those_before() {
    let Rig { one, two, _dir } = two().await;
    let before = one.take("study").await.token();
    assert!(before >= one.clock.now_us());
    // Restored from a backup that was made before the token was given.
    let mut tx = one
        .db
        .write("test.restore", Isolation::Exclusive)
        .await
        .unwrap();
    let restore = Query::new("UPDATE lease_tokens SET last = 0");
    tx.execute(restore).await.unwrap().one().unwrap();
    tx.commit().await.unwrap();
    two.clock.advance(Duration::from_secs(1));
    assert!(two.take("other").await.token() > before);
    one.clock.step_back(HOUR);
    let (first, second) = (one.take("a").await.token(), one.take("b").await.token());
    assert!(second > first && first > before, "whatever the clock says");
}

#[tokio::test]
async fn the_next_step_waits_for_the_last_one_of_its_process_and_for_no_other() {
    let Rig { one, two, _dir } = two().await;
    let last = one.take("study").await;
    let mut next = Box::pin(one.leases.acquire_next("study"));
    assert!(futures_util::poll!(&mut next).is_pending());
    let others = two.leases.acquire_next("study").await.unwrap();
    assert!(others.is_none(), "another process is not waited for");
    drop(last);
    let next = next.await.unwrap();
    assert!(next.is_some());
}

#[tokio::test]
async fn a_row_that_is_removed_while_it_is_read_keeps_nobody_out() {
    let Rig { one, two, _dir } = two().await;
    drop(one.take("study").await);
    let before = one.leases.book.given_up_of("study");
    let row = one.leases.table.find("study").await.unwrap().unwrap();
    one.tidy().await;
    assert!(!one.leases.book.is_live("study", &row, &before));
    assert!(
        two.leases.book.is_live("study", &row, &[]),
        "it cannot know"
    );
}

#[tokio::test]
async fn a_dropped_lease_is_given_up_by_the_keeper() {
    let Rig { one, two, _dir } = two().await;
    let fence = one.take("study").await.fence();
    let fence_of_another = one.take("other").await.fence();
    let _again = one.take("other").await;
    assert!(is_stale(one.write("other", &fence_of_another).await));
    one.tidy().await;
    let _taken = two.take("study").await;
    assert!(is_stale(one.write("study", &fence).await));
}

#[tokio::test]
async fn a_process_of_the_same_name_takes_nothing_that_is_renewed() {
    let Rig { one, two: _, _dir } = two().await;
    let lease = one.take("study").await;
    let copy = one.restart().await;
    for _ in 0..3 {
        assert!(copy.is_refused("study").await);
        copy.clock.advance(HOUR - Duration::from_secs(1));
        one.renew().await;
    }
    one.write("study", &lease.fence()).await.unwrap();
    copy.see_end("study").await;
    let taken = copy.take("study").await;
    assert!(is_stale(one.write("study", &lease.fence()).await));
    copy.write("study", &taken.fence()).await.unwrap();
}

/// As after a failover to a standby that lacks the last commits.
async fn fall_back(db: &Db, last: i64) {
    const TOKENS: &str = "UPDATE lease_tokens SET last = $1";
    let mut tx = db
        .write("test.fall_back", Isolation::Exclusive)
        .await
        .unwrap();
    let removed = tx.execute(Query::new("DELETE FROM leases")).await;
    removed.unwrap().one().unwrap();
    let counter = tx.execute(Query::new(TOKENS).bind(last)).await;
    counter.unwrap().one().unwrap();
    tx.commit().await.unwrap();
}

#[tokio::test]
async fn of_two_owners_with_one_token_only_the_current_one_is_accepted() {
    let Rig { one, two, _dir } = two().await;
    let before = one.take("study").await;
    fall_back(&two.db, before.token() - 1).await;
    let after = two.take("study").await;
    assert_eq!(before.token(), after.token());
    assert!(is_stale(one.write("study", &before.fence()).await));
    two.write("study", &after.fence()).await.unwrap();
    // Neither renews nor removes the row of the other.
    one.renew().await;
    assert_eq!(before.loss(), Some(Loss::Superseded));
    before.release().await.unwrap();
    two.write("study", &after.fence()).await.unwrap();
    // Nor are two owners of one process mistaken for each other.
    fall_back(&two.db, after.token() - 1).await;
    two.leases.book.give_up(&after.grant);
    let next = two.take("study").await;
    assert_eq!(next.token(), after.token());
    assert!(is_stale(two.write("study", &after.fence()).await));
    two.tidy().await;
    two.write("study", &next.fence()).await.unwrap();
}

#[tokio::test]
async fn a_sole_process_takes_everything_back_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let (path, clock) = (dir.path().join("x.db"), Clock::manual(START));
    let open = || async {
        let db = Db::open(&path, SCHEMA).await.unwrap();
        assert_eq!(Terms::of(&db, dir.path()).unwrap(), Terms::Sole);
        Leases::open(db, Terms::Sole, clock.clone(), Seeds::counted(1))
            .await
            .unwrap()
    };
    let last = open().await;
    let left = last.acquire("study").await.unwrap().unwrap();
    clock.advance(HOUR * 24 * 365);
    assert!(last.acquire("study").await.unwrap().is_none(), "for ever");
    let next = open().await;
    let taken = next.acquire("study").await.unwrap().unwrap();
    assert!(taken.token() > left.token());
    assert!(!dir.path().join(HOLDER_FILE).exists(), "no name is needed");
}

#[tokio::test]
async fn a_wall_clock_that_is_wrong_neither_takes_nor_loses_a_lease() {
    let Rig { one, two, _dir } = two().await;
    let lease = one.take("study").await;
    two.clock.step_forward(HOUR * 1000);
    assert!(two.is_refused("study").await);
    assert!(!two.leases.is_free("study").await.unwrap());
    one.clock.step_back(HOUR * 1000);
    one.renew().await;
    assert!(two.is_refused("study").await);
    two.clock.advance(HOUR - Duration::from_secs(1));
    assert!(two.is_refused("study").await);
    assert_eq!(lease.loss(), None);
    two.clock.advance(Duration::from_secs(1));
    let _taken = two.take("study").await;
}

#[tokio::test]
async fn the_next_look_comes_when_a_lease_that_was_seen_ends() {
    let Rig { one, two, _dir } = two().await;
    let _lease = one.take("study").await;
    let pause = two.leases.book.until_next_poll(&two.leases.jitter).unwrap();
    assert!((HOUR / 4..=HOUR / 2).contains(&pause), "{pause:?}");
    assert!(two.is_refused("study").await);
    two.clock.advance(HOUR - Duration::from_secs(1));
    let pause = two.leases.book.until_next_poll(&two.leases.jitter).unwrap();
    assert_eq!(pause, Duration::from_secs(1));
    two.clock.advance(Duration::from_secs(2));
    let pause = two.leases.book.until_next_poll(&two.leases.jitter).unwrap();
    assert!(pause >= HOUR / 4, "{pause:?}: nothing is left to wait for");
}

#[tokio::test]
async fn a_process_that_closes_leaves_everything_to_the_others() {
    let Rig { one, two, _dir } = two().await;
    let lease = one.take("study").await;
    let fence = lease.fence();
    let work = tokio::spawn(async move { lease.run(std::future::pending::<()>()).await });
    one.leases.close().await;
    assert_eq!(work.await.unwrap(), None, "the work was cancelled");
    let _taken = two.take("study").await;
    assert!(is_stale(one.write("study", &fence).await));
    assert!(one.is_refused("another").await, "nothing is begun any more");
    assert_eq!(one.leases.book.lost(), 0);
}

#[tokio::test]
async fn a_database_that_is_away_gives_no_lease() {
    let Rig { one, two, _dir } = two().await;
    let lease = two.take("study").await;
    two.db.close().await;
    assert!(two.leases.acquire("other").await.is_err());
    let refused = two.write("study", &lease.fence()).await;
    assert!(matches!(refused, Err(LeaseError::Db(_))), "{refused:?}");
    assert_eq!(two.leases.book.refused(), 0, "that is not a stale write");
    drop(one);
}

#[test]
fn a_directory_keeps_the_name_of_its_holder() {
    let dir = tempfile::tempdir().unwrap();
    let name = holder_of(dir.path()).unwrap();
    assert_eq!(holder_of(dir.path()).unwrap(), name);
    fs::write(dir.path().join(HOLDER_FILE), "").unwrap();
    let next = holder_of(dir.path()).unwrap();
    assert_ne!(next, name);
    let other = dir.path().join("other");
    assert_ne!(
        holder_of(&other).unwrap(),
        next,
        "it is made when it is absent"
    );
    let unreadable = dir.path().join("unreadable");
    fs::create_dir_all(unreadable.join(HOLDER_FILE)).unwrap();
    assert!(holder_of(&unreadable).is_err());
}

#[tokio::test]
async fn leases_are_counted_for_each_service() {
    let Rig { one, two, _dir } = two().await;
    let metrics = Metrics::default();
    one.leases.register(&metrics, "automl");
    two.leases.register(&metrics, "hypersync");
    let lease = one.take("study").await;
    two.see_end("study").await;
    let _taken = two.take("study").await;
    assert!(is_stale(one.write("study", &lease.fence()).await));
    let text = metrics.open_metrics().unwrap();
    for line in [
        "leases_held{service=\"automl\"} 0",
        "leases_held{service=\"hypersync\"} 1",
        "leases_lost_total{service=\"automl\"} 1",
        "leases_lost_total{service=\"hypersync\"} 0",
        "stale_writes_refused_total{service=\"automl\"} 1",
    ] {
        assert!(text.contains(line), "{line} in {text}");
    }
}
