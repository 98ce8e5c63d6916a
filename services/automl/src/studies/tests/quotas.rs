//! The steps of trials are counted once, and a study is refused whose steps do not fit.

use super::*;
use crate::fake::{Outcome, Rig};
use tars_interceptors::usage::{OverQuota, QuotaRefusal};
use tars_runtime::usage::{self, Dimension, Item};
use tonic::Status;

const DIMENSION: Dimension = Dimension::TrainingSteps;

async fn outbox(rig: &Rig) -> Vec<Item> {
    let mut db = rig.automl.store.db().read("test.outbox");
    usage::peek(&mut db, 1000).await.unwrap()
}

async fn counted(rig: &Rig) -> u64 {
    outbox(rig).await.iter().map(|item| item.amount).sum()
}

fn of(trials: u32, limit: u64) -> NewStudy {
    NewStudy {
        allowance: Allowance::unlimited("dev").with(DIMENSION, limit),
        ..seeded(trials)
    }
}

fn over<T: std::fmt::Debug>(refused: Result<T, AutomlError>) -> OverQuota {
    match refused {
        Err(AutomlError::Quota(QuotaRefusal::Over(over))) => over,
        other => panic!("{other:?}"),
    }
}

/// A study that the server runs, but for which nothing runs.
async fn idle(rig: &Rig) -> (StudyRow, TrialRow) {
    let study = rig.automl.create_study(seeded(3)).await.unwrap();
    let trial = rig.automl.ask(&study, None).await.unwrap();
    (study, trial)
}

#[tokio::test]
async fn a_trial_that_completes_has_taken_all_of_its_steps() {
    let rig = Rig::start().await;
    let id = rig.begin(seeded(3)).await;
    assert_eq!(rig.ended(id).await.state, StudyState::Completed);
    let items = outbox(&rig).await;
    assert_eq!(counted(&rig).await, 300);
    assert!(
        items
            .iter()
            .all(|i| i.user_id == "dev" && i.dimension == DIMENSION)
    );
}

#[tokio::test]
async fn what_a_trial_that_is_run_again_repeats_is_counted_once() {
    let rig = Rig::start().await;
    let (study, trial) = idle(&rig).await;
    let report = |step| rig.automl.report(&study, 0, step, 0.5, None);
    for step in [20, 40, 40] {
        report(step).await.unwrap();
    }
    assert_eq!(counted(&rig).await, 40);
    let lease = rig.automl.leases.acquire("test").await.unwrap().unwrap();
    rig.automl
        .restart_trial(trial, &lease.fence())
        .await
        .unwrap();
    for step in [20, 60] {
        report(step).await.unwrap();
    }
    assert_eq!(counted(&rig).await, 60);
    let ended = rig.automl.tell(
        &study,
        0,
        TrialEnd::of(TrialState::Complete, Some(1.0), ""),
        None,
    );
    assert_eq!(ended.await.unwrap().counted, 100);
    assert_eq!(counted(&rig).await, 100);
}

#[tokio::test]
async fn a_trial_whose_commit_is_lost_is_counted_with_it() {
    let rig = Rig::start().await;
    let (study, _) = idle(&rig).await;
    rig.automl
        .store
        .db()
        .lose_commit("trials.report", LostCommit::Undone);
    assert!(rig.automl.report(&study, 0, 20, 0.5, None).await.is_err());
    assert_eq!(counted(&rig).await, 0);
    rig.automl
        .store
        .db()
        .lose_commit("trials.report", LostCommit::Made);
    assert!(rig.automl.report(&study, 0, 20, 0.5, None).await.is_err());
    rig.automl.report(&study, 0, 20, 0.5, None).await.unwrap();
    assert_eq!(counted(&rig).await, 20);
}

#[tokio::test]
async fn what_a_caller_trains_is_not_counted() {
    let rig = Rig::start().await;
    let study = study(&rig, 1).await;
    rig.automl.report(&study, 0, 50, 0.5, None).await.unwrap();
    let ended = rig.automl.tell(
        &study,
        0,
        TrialEnd::of(TrialState::Complete, Some(1.0), ""),
        None,
    );
    ended.await.unwrap();
    assert_eq!(counted(&rig).await, 0);
    let own = NewStudy {
        server_run: false,
        ..of(1000, 1)
    };
    rig.automl.create_study(own).await.unwrap();
}

#[tokio::test]
async fn a_study_is_refused_before_it_starts_when_its_steps_do_not_fit() {
    let rig = Rig::start().await;
    let refused = over(rig.automl.create_study(of(3, 299)).await);
    assert_eq!((refused.limit, refused.used, refused.asked), (299, 0, 300));
    assert!(rig.automl.list_studies("", 0).await.unwrap().0.is_empty());
    rig.automl.create_study(of(3, 300)).await.unwrap();
    let refused = over(rig.automl.create_study(of(1, 399)).await);
    assert_eq!(refused.used, 300, "promised to the other study");
}

#[tokio::test]
async fn what_ended_trials_did_not_take_is_free_again() {
    let rig = Rig::start().await;
    let (study, _) = idle(&rig).await;
    rig.automl.report(&study, 0, 30, 0.5, None).await.unwrap();
    let used = async || over(rig.automl.create_study(of(1, 1)).await).used;
    assert_eq!(used().await, 300);
    let pruned = rig
        .automl
        .tell(&study, 0, TrialEnd::of(TrialState::Pruned, None, ""), None);
    pruned.await.unwrap();
    assert_eq!(used().await, 230, "30 taken, and two trials to come");
    rig.automl.cancel(study.id, "user:dev").await.unwrap();
    assert_eq!(used().await, 30);
}

/// What a study has counted once it was cancelled while its first trial did this.
async fn counted_of_cancelled(outcome: Outcome, reports: usize) -> u64 {
    let rig = Rig::start_with(1).await;
    rig.world.plan(0, outcome);
    let id = rig.begin(seeded(2)).await;
    rig.until("the first trial runs", || rig.world.running() == 1)
        .await;
    rig.until_reported(id, reports).await;
    rig.automl.cancel(id, "user:dev").await.unwrap();
    rig.until_idle().await;
    counted(&rig).await
}

#[tokio::test]
async fn a_trial_that_is_cancelled_between_two_reports_is_charged_up_to_the_second_one() {
    // It reports after every tenth of its steps.
    let hangs = |reports: &[(u64, f64)]| Outcome::HangsAfter(reports.to_vec());
    assert_eq!(counted_of_cancelled(hangs(&[(20, 0.5)]), 1).await, 30);
    assert_eq!(counted_of_cancelled(hangs(&[(95, 0.5)]), 1).await, 100);
    assert_eq!(
        counted_of_cancelled(Outcome::Queued, 0).await,
        0,
        "a trial that waits takes no steps"
    );
}

#[tokio::test]
async fn a_trial_that_fails_between_two_reports_is_charged_up_to_the_second_one() {
    let rig = Rig::start_with(1).await;
    let gone = Status::aborted("its host went away");
    rig.world
        .plan(0, Outcome::FailsAfter(vec![(20, 0.5)], gone));
    let id = rig.begin(seeded(1)).await;
    rig.ended(id).await;
    assert_eq!(counted(&rig).await, 30);
}

#[tokio::test]
async fn long_trials_report_more_often() {
    let rig = Rig::start_with(1).await;
    for (steps, reports) in [(100, 10), (20_000, 10), (90_000, 45), (10_000_000, 100)] {
        let new = NewStudy {
            steps: Some(steps),
            ..seeded(1)
        };
        let id = rig.begin(new).await;
        rig.ended(id).await;
        assert_eq!(rig.world.asked().last().unwrap().reports, reports);
    }
}
