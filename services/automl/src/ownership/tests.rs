//! Two replicas of AutoML on one database, each with a trainer of its own.

use super::*;
use crate::{
    fake::{LIFE, Outcome, Rig, seeded},
    store::{StudyState, TrialState},
    studies::TrialEnd,
};
use tokio::sync::Notify;

/// A study whose second trial waits for `go_on` at the first replica, and a second replica.
async fn waiting(go_on: &Arc<Notify>) -> (Rig, Rig, Uuid) {
    let one = Rig::replica("one").await;
    let waits = Outcome::Waits(Arc::clone(go_on), vec![(10, 0.5)], 0.25);
    one.world.plan(1, waits);
    let id = one.begin(seeded(3)).await;
    one.until("the second trial runs", || one.world.asked().len() == 2)
        .await;
    let two = one.beside("two").await;
    (one, two, id)
}

async fn hanging() -> (Rig, Rig, Uuid) {
    waiting(&Arc::default()).await
}

async fn take_over(rig: &Rig) {
    rig.automl.take_over().await.unwrap();
}

#[tokio::test]
async fn a_study_that_another_replica_runs_is_left_alone() {
    let (one, two, id) = hanging().await;
    assert_eq!(two.resume().await, 1, "it has not ended");
    two.until_idle().await;
    take_over(&two).await;
    two.until_idle().await;
    assert!(two.world.asked().is_empty());
    assert_eq!((one.world.running(), two.trials(id).await.len()), (1, 2));
}

#[tokio::test]
async fn a_study_whose_replica_is_suspended_is_taken_over_and_nothing_of_the_old_one_is_written() {
    let go_on = Arc::default();
    let (one, two, id) = waiting(&go_on).await;
    // The clock of the first stands still: it does not know that its lease has ended.
    take_over(&two).await;
    two.clock.advance(LIFE);
    take_over(&two).await;
    assert_eq!(two.ended(id).await.state, StudyState::Completed);
    let trials = two.trials(id).await;
    let attempts: Vec<u32> = trials.iter().map(|t| t.attempt).collect();
    assert_eq!(attempts, [1, 2, 1], "what had ended is not run again");
    assert!(trials.iter().all(|t| t.state == TrialState::Complete));
    // Its run goes on, and has something to write.
    go_on.notify_one();
    one.until("its run is stopped", || one.world.running() == 0)
        .await;
    one.until_idle().await;
    for (before, after) in trials.iter().zip(two.trials(id).await) {
        assert_eq!(before.intermediate, after.intermediate);
        assert_eq!(
            (before.score, before.ended_us),
            (after.score, after.ended_us)
        );
    }
    assert_eq!(two.row(id).await.state, StudyState::Completed);
}

#[tokio::test]
async fn a_replica_that_was_replaced_writes_nothing_of_a_study_that_goes_on() {
    let one = Rig::replica("one").await;
    let study = one.automl.create_study(seeded(2)).await.unwrap();
    let lease = one.automl.leases.acquire(&lease_of(study.id)).await;
    let lease = lease.unwrap().expect("the lease is free");
    let fence = lease.fence();
    let trial = one.automl.ask(&study, Some(&fence)).await.unwrap();
    let two = one.beside("two").await;
    take_over(&two).await;
    two.clock.advance(LIFE);
    two.world.plan(0, Outcome::HangsAfter(vec![(10, 0.5)]));
    take_over(&two).await;
    two.until_reported(study.id, 1).await;
    let before = format!("{:?}", two.trials(study.id).await);

    // The clock of the first stands still. The study and its trial go on, so that only the token tells.
    assert!(fence.check().is_ok());
    let (automl, fence) = (&one.automl, Some(&fence));
    let ended = automl.tell(
        &study,
        0,
        TrialEnd::of(TrialState::Complete, Some(0.9), ""),
        fence,
    );
    let refused = [
        automl.ask(&study, fence).await.err(),
        automl.report(&study, 0, 20, 0.9, fence).await.err(),
        ended.await.err(),
        automl.restart_trial(trial, &lease.fence()).await.err(),
        automl.finish(study.id, &lease.fence()).await.err(),
        automl
            .fail_study(study.id, "late", &lease.fence())
            .await
            .err(),
    ];
    for refused in refused {
        assert!(
            matches!(refused, Some(AutomlError::NotOwned(_))),
            "{refused:?}"
        );
    }
    assert_eq!(format!("{:?}", two.trials(study.id).await), before);
    assert_eq!(two.row(study.id).await.state, StudyState::Running);
}

#[tokio::test]
async fn a_study_of_a_replica_that_stops_is_resumed_by_another_at_once() {
    let (one, two, id) = hanging().await;
    one.automl.leases.close().await;
    one.until("its run is stopped", || one.world.running() == 0)
        .await;
    take_over(&two).await;
    assert_eq!(two.ended(id).await.state, StudyState::Completed);
}

#[tokio::test]
async fn a_study_is_run_once_where_several_replicas_look_for_it() {
    let (one, two, id) = hanging().await;
    let three = one.beside("three").await;
    one.automl.leases.close().await;
    one.until_idle().await;
    for _ in 0..5 {
        tokio::join!(take_over(&two), take_over(&three));
    }
    let ended = async {
        while two.row(id).await.state == StudyState::Running {
            tokio::task::yield_now().await;
        }
    };
    let ended = tokio::time::timeout(std::time::Duration::from_secs(20), ended).await;
    ended.expect("the study ends");
    let asked = [two.world.asked().len(), three.world.asked().len()];
    assert!(asked == [2, 0] || asked == [0, 2], "{asked:?}");
}
