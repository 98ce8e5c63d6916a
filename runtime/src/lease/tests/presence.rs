//! Replicas that see each other's presence and reports.

use super::*;
use crate::lease::Presence;

/// A replica that is present, having reported a position.
async fn present(holder: &Holder, position: u64) -> (Presence, Lease) {
    let presence = Presence::new(holder.leases.clone());
    let lease = presence.acquire().await.unwrap().expect("it is free");
    presence.report(&lease, position).await.unwrap();
    (presence, lease)
}

/// The holders of the replicas that have not reported a change.
async fn behind(presence: &Presence, position: u64) -> Vec<String> {
    let behind = presence.behind(position).await.unwrap();
    let holder = |name: String| name.split_once('/').unwrap().0.to_owned();
    behind.into_iter().map(holder).collect()
}

#[tokio::test]
async fn a_replica_is_present_from_its_first_report_on() {
    let Rig { one, two, _dir } = two().await;
    let presence = Presence::new(one.leases.clone());
    assert!(presence.tenure().is_none());
    let lease = presence.acquire().await.unwrap().unwrap();
    assert!(presence.tenure().is_none(), "its copy may be behind");
    let other = Presence::new(two.leases.clone());
    assert_eq!(behind(&other, 0).await, ["one"], "but is waited for");
    presence.report(&lease, 0).await.unwrap();
    assert!(presence.tenure().unwrap().lasts());
    assert!(behind(&other, 0).await.is_empty());
}

#[tokio::test]
async fn a_change_is_waited_for_until_every_other_present_replica_has_reported_it() {
    let Rig { one, two, _dir } = two().await;
    let (first, _lease) = present(&one, 7).await;
    let (second, lease) = present(&two, 6).await;
    assert_eq!(behind(&first, 7).await, ["two"]);
    assert!(behind(&second, 7).await.is_empty());
    second.report(&lease, 7).await.unwrap();
    assert!(behind(&first, 7).await.is_empty());
    assert!(behind(&first, 6).await.is_empty());
    assert_eq!(behind(&first, 8).await, ["two"]);
}

#[tokio::test]
async fn a_suspended_replica_is_not_waited_for_and_finds_its_tenure_ended() {
    let Rig { one, two, _dir } = two().await;
    let (frozen, lease) = present(&one, 1).await;
    let tenure = frozen.tenure().unwrap();
    let (other, _lease) = present(&two, 1).await;
    other.observe().await.unwrap();
    two.clock.advance(HOUR - Duration::from_secs(1));
    assert_eq!(behind(&other, 2).await, ["one"], "it may still serve");
    two.clock.advance(Duration::from_secs(1));
    assert!(behind(&other, 2).await.is_empty());
    // It runs again, and the time has gone on.
    one.clock.advance(HOUR);
    assert!(!tenure.lasts() && frozen.tenure().is_none());
    drop(lease);
    let again = frozen.acquire().await.unwrap().unwrap();
    assert!(frozen.tenure().is_none(), "it has not caught up");
    assert_eq!(behind(&other, 2).await, ["one"]);
    frozen.report(&again, 2).await.unwrap();
    assert!(frozen.tenure().unwrap().lasts() && !tenure.lasts());
    assert!(behind(&other, 2).await.is_empty());
}

#[tokio::test]
async fn a_process_that_starts_again_waits_for_no_lease_of_its_last_one() {
    let Rig { one, two, _dir } = two().await;
    let (_killed, _lease) = present(&one, 1).await;
    let next = one.restart().await;
    let (next, _lease) = present(&next, 5).await;
    assert!(next.tenure().unwrap().lasts());
    let other = Presence::new(two.leases.clone());
    assert_eq!(
        behind(&other, 5).await,
        ["one"],
        "the last one may be alive"
    );
    two.clock.advance(HOUR);
    // By now the lease of the next one has ended too, for whoever saw no renewal.
    assert!(behind(&other, 6).await.is_empty());
}

#[tokio::test]
async fn what_replicas_that_are_gone_have_left_is_removed_and_a_report_of_theirs_refused() {
    let Rig { one, two, _dir } = two().await;
    let (gone, lease) = present(&one, 1).await;
    let (other, own) = present(&two, 1).await;
    let count = async || {
        let rows = Query::new("SELECT lease FROM replicas");
        two.db.read("test.rows").rows(rows).await.unwrap().len()
    };
    other.observe().await.unwrap();
    assert_eq!(count().await, 2);
    two.clock.advance(HOUR);
    other.observe().await.unwrap();
    assert_eq!(count().await, 1);
    assert!(is_stale(gone.report(&lease, 9).await));
    assert!(gone.tenure().is_none());
    other.report(&own, 2).await.unwrap();
    // One that stops releases its lease.
    let (_stopped, lease_of_it) = present(&one, 3).await;
    assert_eq!(count().await, 2);
    lease_of_it.release().await.unwrap();
    other.observe().await.unwrap();
    assert_eq!(count().await, 1);
    assert!(behind(&other, 9).await.is_empty());
    drop(lease);
}

#[tokio::test]
async fn a_sole_process_is_always_present_and_writes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let db = Db::open(&dir.path().join("x.db"), SCHEMA).await.unwrap();
    let clock = Clock::manual(START);
    let leases = Leases::open(db.clone(), Terms::Sole, clock.clone(), Seeds::counted(1));
    let presence = Presence::new(leases.await.unwrap());
    let tenure = presence.tenure().unwrap();
    clock.advance(HOUR * 1000);
    assert!(!presence.is_shared() && tenure.lasts() && presence.tenure().is_some());
    assert!(presence.behind(u64::MAX).await.unwrap().is_empty());
}
