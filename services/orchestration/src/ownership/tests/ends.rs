//! The ends of runs: each is counted once, by the replica that stores it.

use super::*;

/// How many runs a replica has counted, by their outcomes.
fn counted(replica: &Replica) -> [u32; 4] {
    let text = replica.metrics.render("").unwrap().1;
    ["completed", "cancelled", "failed", "interrupted"].map(|outcome| {
        let name = format!("training_runs_ended_total{{outcome=\"{outcome}\"}} ");
        let count = text.lines().find_map(|line| line.strip_prefix(&*name));
        count.map_or(0, |count| count.parse().unwrap())
    })
}

#[tokio::test]
async fn a_run_that_another_replica_goes_on_with_has_not_ended() {
    let (_dir, one, two) = two_with_checkpoints().await;
    let run = one.train(LONG).await.unwrap().row.id;
    one.service.leases.close().await;
    one.until_idle().await;
    two.service.resume_left_runs().await.unwrap();
    two.service.cancel_training(by(), run).await.unwrap();
    eventually(|| async { two.state(run).await == RunState::Cancelled }).await;
    two.until_idle().await;
    assert_eq!((counted(&one), counted(&two)), ([0; 4], [0, 1, 0, 0]));
    let done = two.train(100).await.unwrap().row.id;
    two.watch(done, 0).await;
    two.until_idle().await;
    assert_eq!((counted(&one), counted(&two)), ([0; 4], [1, 1, 0, 0]));
}

#[tokio::test]
async fn runs_that_end_without_a_learner_are_counted() {
    let (_dir, one, two) = two().await;
    let paused = one.train(LONG).await.unwrap().row.id;
    two.service.pause_training(by(), paused).await.unwrap();
    eventually(|| async { two.state(paused).await == RunState::Paused }).await;
    one.until_idle().await;
    assert_eq!((counted(&one), counted(&two)), ([0; 4], [0; 4]));
    for _ in 0..2 {
        two.service.cancel_training(by(), paused).await.unwrap();
        assert_eq!((counted(&one), counted(&two)), ([0; 4], [0, 1, 0, 0]));
    }
    let unplanned = one.train(LONG).await.unwrap().row.id;
    one.service.leases.close().await;
    one.until_idle().await;
    let mut tx = two.service.store.begin("test.spoil").await.unwrap();
    store::delete_plan(&mut tx, unplanned).await.unwrap();
    tx.commit().await.unwrap();
    two.service.resume_left_runs().await.unwrap();
    assert_eq!(two.state(unplanned).await, RunState::Interrupted);
    assert_eq!((counted(&one), counted(&two)), ([0; 4], [0, 1, 0, 1]));
}

#[tokio::test]
async fn of_two_left_runs_of_an_agent_the_newer_goes_on_and_the_older_is_left() {
    for is_pausing in [true, false] {
        let (_dir, one, two) = two_with_checkpoints().await;
        let older = one.train(LONG).await.unwrap();
        one.service.leases.close().await;
        one.until_idle().await;
        let newer = copy(&two, &older).await;
        let older = older.row.id;
        if is_pausing {
            two.service.pause_training(by(), older).await.unwrap();
        }
        two.service.resume_left_runs().await.unwrap();
        let left = match is_pausing {
            true => (RunState::Paused, [0; 4]),
            false => (RunState::Interrupted, [0, 0, 0, 1]),
        };
        assert_eq!((two.state(older).await, counted(&two)), left);
        two.service.cancel_training(by(), newer).await.unwrap();
        eventually(|| async { two.state(newer).await == RunState::Cancelled }).await;
        two.until_idle().await;
        let resumed = two.service.resume_training(by(), older).await;
        assert_eq!(resumed.is_ok(), is_pausing, "{resumed:?}");
    }
}

/// A newer run like one that exists, which no process follows.
async fn copy(replica: &Replica, like: &RunView) -> Uuid {
    let store = &replica.service.store;
    let RunView {
        mut row, members, ..
    } = like.clone();
    let mut plan = store.plan(row.id).await.unwrap().unwrap();
    (row.id, row.state) = (Uuid::now_v7(), RunState::Queued);
    plan.run_id = row.id;
    let mut tx = store.begin("test.copy").await.unwrap();
    store::insert_run(&mut tx, &row).await.unwrap();
    let inserted = store::insert_members(&mut tx, row.id, &members).await;
    inserted.unwrap();
    store::insert_plan(&mut tx, &plan).await.unwrap();
    tx.commit().await.unwrap();
    row.id
}
