use super::*;

use crate::db::{LostCommit, Migration};
use std::path::Path;

const MIGRATIONS: &[Migration] = &[Migration::new(
    1,
    "first",
    "CREATE TABLE item (id BIGINT PRIMARY KEY)",
)];

async fn open(dir: &Path) -> Db {
    Db::open(&dir.join("x.db"), MIGRATIONS).await.unwrap()
}

fn proof(id: i64) -> Query<'static> {
    Query::new("SELECT id FROM item WHERE id = $1").bind(id)
}

/// A transaction that inserts an item.
async fn inserting(db: &Db, id: i64) -> Write {
    let mut tx = db.write("test.insert", Isolation::Exclusive).await.unwrap();
    let insert = Query::new("INSERT INTO item (id) VALUES ($1)").bind(id);
    tx.execute(insert).await.unwrap().one().unwrap();
    tx
}

async fn has(db: &Db, id: i64) -> bool {
    let rows = db.read("test.has").rows(proof(id)).await;
    !rows.unwrap().is_empty()
}

#[tokio::test]
async fn a_lost_commit_is_in_doubt_whether_it_was_made_or_not() {
    let dir = tempfile::tempdir().unwrap();
    let db = open(dir.path()).await;
    for (id, lost, made) in [(1, LostCommit::Made, true), (2, LostCommit::Undone, false)] {
        db.lose_commit("test.insert", lost);
        let done = inserting(&db, id).await.commit().await;
        assert!(matches!(done, Err(DbError::InDoubt(_))), "{done:?}");
        drop(db.write("test.next", Isolation::Exclusive).await.unwrap());
        assert_eq!(has(&db, id).await, made);
    }
}

#[tokio::test]
async fn a_proof_tells_what_became_of_a_lost_commit() {
    let dir = tempfile::tempdir().unwrap();
    let db = open(dir.path()).await;
    db.lose_commit("test.insert", LostCommit::Made);
    let tx = inserting(&db, 1).await;
    tx.commit_with_proof(proof(1)).await.unwrap();
    db.lose_commit("test.insert", LostCommit::Undone);
    let tx = inserting(&db, 2).await;
    let undone = tx.commit_with_proof(proof(2)).await;
    assert!(matches!(undone, Err(DbError::Unavailable(_))), "{undone:?}");
    assert!(!has(&db, 2).await);
    let tx = inserting(&db, 2).await;
    tx.commit_with_proof(proof(2)).await.unwrap();
}

#[tokio::test]
async fn a_proof_waits_for_a_database_that_cannot_be_asked() {
    let dir = tempfile::tempdir().unwrap();
    let db = open(dir.path()).await;
    db.cut_off_after("test.insert", LostCommit::Made);
    let tx = inserting(&db, 1).await;
    let mut proven = std::pin::pin!(tx.commit_with_proof(proof(1)));
    let early = tokio::time::timeout(4 * FIRST_PAUSE, &mut proven).await;
    assert!(early.is_err(), "nothing can be known yet: {early:?}");
    assert!(db.write("test", Isolation::Exclusive).await.is_err());
    db.cut_off(false);
    proven.await.unwrap();
}

#[tokio::test]
async fn a_proof_that_cannot_be_read_leaves_the_doubt() {
    let dir = tempfile::tempdir().unwrap();
    let db = open(dir.path()).await;
    db.lose_commit("test.insert", LostCommit::Made);
    let tx = inserting(&db, 1).await;
    let wrong = Query::new("SELECT nothing FROM item");
    let done = tx.commit_with_proof(wrong).await;
    assert!(matches!(done, Err(DbError::InDoubt(_))), "{done:?}");
}

#[tokio::test]
async fn a_slow_commit_of_this_process_is_not_in_doubt() {
    let dir = tempfile::tempdir().unwrap();
    let db = open(dir.path()).await;
    let tx = inserting(&db, 1).await;
    // Time passes at once while the commit waits for the disk.
    tokio::time::pause();
    tx.commit().await.unwrap();
    tokio::time::resume();
    assert!(has(&db, 1).await);
}
