use super::*;
use crate::page;
use std::sync::Arc;

const MIGRATIONS: &[Migration] = &[Migration::new(
    1,
    "first",
    "CREATE TABLE item (id BIGINT PRIMARY KEY, text TEXT NOT NULL, count BIGINT NOT NULL)",
)];
const INSERT: &str = "INSERT INTO item (id, text, count) VALUES ($1, $2, 0)";
const ALL: &str = "SELECT id, text FROM item ORDER BY id";

#[derive(Debug, PartialEq)]
struct Item {
    id: i64,
    text: String,
}

impl FromRow for Item {
    fn from_row(row: &Row) -> Result<Self, DbError> {
        Ok(Self {
            id: row.get("id")?,
            text: row.get("text")?,
        })
    }
}

async fn insert(tx: &mut Transaction, id: i64, text: &str) -> Result<Affected, DbError> {
    tx.execute(Query::new(INSERT).bind(id).bind(text)).await
}

async fn items(db: &Db) -> Vec<Item> {
    let query = Query::new(ALL);
    db.read("test.all").all(query).await.unwrap()
}

async fn begin(db: &Db) -> Write {
    db.write("test.write", Isolation::Exclusive).await.unwrap()
}

#[tokio::test]
async fn a_commit_survives_and_a_dropped_transaction_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.db");
    let db = Db::open(&path, MIGRATIONS).await.unwrap();
    let mut kept = begin(&db).await;
    insert(&mut kept, 1, "kept").await.unwrap().one().unwrap();
    kept.commit().await.unwrap();
    let mut dropped = begin(&db).await;
    let inserted = insert(&mut dropped, 2, "dropped").await.unwrap();
    inserted.one().unwrap();
    drop(dropped);
    db.close().await;

    let db = Db::open(&path, MIGRATIONS).await.unwrap();
    let text = "kept".to_owned();
    assert_eq!(items(&db).await, [Item { id: 1, text }]);
}

#[tokio::test]
async fn a_commit_goes_on_when_its_caller_goes_away() {
    let dir = tempfile::tempdir().unwrap();
    let db = Db::open(&dir.path().join("x.db"), MIGRATIONS)
        .await
        .unwrap();
    let mut tx = begin(&db).await;
    insert(&mut tx, 1, "kept").await.unwrap().one().unwrap();
    let mut commit = Box::pin(tx.commit());
    // Begun, and dropped before it has an answer.
    let pending = futures_util::poll!(&mut commit);
    assert!(pending.is_pending());
    drop(commit);
    // The next writer waits for the commit.
    drop(begin(&db).await);
    assert_eq!(items(&db).await.len(), 1);
}

#[tokio::test]
async fn a_busy_or_closed_database_is_unavailable_and_a_wrong_statement_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.db");
    let db = Db::open(&path, MIGRATIONS).await.unwrap();
    let wrong = Query::new("SELECT nothing FROM item");
    let wrong = db.read("test.wrong").rows(wrong).await.unwrap_err();
    assert!(!wrong.is_transient(), "{wrong}");
    let held = begin(&db).await;
    let other = Db::open(&path, MIGRATIONS).await.unwrap();
    let busy = other.write("test.busy", Isolation::Exclusive).await;
    let busy = busy.unwrap_err();
    assert!(busy.is_transient(), "{busy}");
    // Closing waits for whoever has a connection.
    drop(held);
    db.close().await;
    let closed = db.check().await.unwrap_err();
    assert!(closed.is_transient(), "{closed}");
}

#[tokio::test]
async fn a_unique_value_that_is_taken_is_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let db = Db::open(&dir.path().join("x.db"), MIGRATIONS)
        .await
        .unwrap();
    let mut tx = begin(&db).await;
    insert(&mut tx, 1, "x").await.unwrap().one().unwrap();
    let taken = insert(&mut tx, 1, "x").await.unwrap_err();
    assert!(taken.is_unique_violation(), "{taken}");
}

#[tokio::test]
async fn a_page_ends_with_its_bytes_and_the_transaction_goes_on() {
    const PAGE: &str = "SELECT id, text FROM item WHERE id > $1 ORDER BY id LIMIT $2";
    let dir = tempfile::tempdir().unwrap();
    let db = Db::open(&dir.path().join("x.db"), MIGRATIONS)
        .await
        .unwrap();
    let mut tx = begin(&db).await;
    let long = "x".repeat(page::MAX_BYTES * 2 / 5);
    for id in 1..=90 {
        let text = if id <= 5 { &*long } else { "short" };
        insert(&mut tx, id, text).await.unwrap().one().unwrap();
    }
    let ids = async |fetch: &mut Transaction, after: i64, size: u32| {
        let size = page::size(size);
        let query = Query::new(PAGE).bind(after).bind(size.limit());
        let page: Page<Item> = fetch.page(query, size).await.unwrap();
        let ids: Vec<i64> = page.rows.iter().map(|item| item.id).collect();
        (ids, page.more)
    };
    assert_eq!(ids(&mut tx, 0, 500).await, (vec![1, 2], true));
    assert_eq!(ids(&mut tx, 2, 1).await, (vec![3], true));
    assert_eq!(ids(&mut tx, 4, 500).await, ((5..=90).collect(), false));
    assert_eq!(ids(&mut tx, 80, 10).await, ((81..=90).collect(), false));
    tx.commit().await.unwrap();
    let size = page::size(500);
    let query = Query::new(PAGE).bind(0_i64).bind(size.limit());
    let read: Page<Item> = db.read("test.page").page(query, size).await.unwrap();
    assert_eq!((read.rows.len(), read.more), (2, true));
}

#[tokio::test]
async fn a_compare_and_set_has_one_winner() {
    const SWAP: &str = "UPDATE item SET count = count + 1 WHERE id = $1 AND count = $2";
    let dir = tempfile::tempdir().unwrap();
    let db = Arc::new(
        Db::open(&dir.path().join("x.db"), MIGRATIONS)
            .await
            .unwrap(),
    );
    let mut tx = begin(&db).await;
    insert(&mut tx, 1, "x").await.unwrap().one().unwrap();
    tx.commit().await.unwrap();
    let tasks = (0..8).map(|_| {
        let db = Arc::clone(&db);
        tokio::spawn(async move {
            let mut tx = begin(&db).await;
            let swap = Query::new(SWAP).bind(1_i64).bind(0_i64);
            let swap = tx.execute(swap).await.unwrap().swap();
            tx.commit().await.unwrap();
            swap
        })
    });
    let swaps = futures_util::future::join_all(tasks).await;
    let done = swaps
        .into_iter()
        .filter(|s| *s.as_ref().unwrap() == Swap::Done);
    assert_eq!(done.count(), 1);
}

#[tokio::test]
async fn a_snapshot_sees_one_state() {
    let dir = tempfile::tempdir().unwrap();
    let db = Db::open(&dir.path().join("x.db"), MIGRATIONS)
        .await
        .unwrap();
    let mut snapshot = db.snapshot("test.snapshot").await.unwrap();
    let before: Vec<Item> = snapshot.all(Query::new(ALL)).await.unwrap();
    let mut tx = begin(&db).await;
    insert(&mut tx, 1, "x").await.unwrap().one().unwrap();
    tx.commit().await.unwrap();
    let after: Vec<Item> = snapshot.all(Query::new(ALL)).await.unwrap();
    assert_eq!((before.len(), after.len()), (0, 0));
    assert_eq!(items(&db).await.len(), 1);
}

#[tokio::test]
async fn a_caller_that_goes_away_gives_up_its_turn() {
    let dir = tempfile::tempdir().unwrap();
    let db = Db::open(&dir.path().join("x.db"), MIGRATIONS)
        .await
        .unwrap();
    let held = begin(&db).await;
    let tasks = || {
        tokio::runtime::Handle::current()
            .metrics()
            .num_alive_tasks()
    };
    let before = tasks();
    for _ in 0..20 {
        let mut waits = Box::pin(begin(&db));
        assert!(futures_util::poll!(&mut waits).is_pending());
    }
    assert_eq!(tasks(), before, "nothing waits for the writer any more");
    drop(held);
    drop(begin(&db).await);
}
