//! The states of a study that the server runs, and of its trials: how each is entered, left, fails and
//! is resumed.

use super::*;
use crate::{
    fake::{Outcome, Rig, STUDIES, busy, refused, seeded, unavailable},
    retries::Pacing,
    store::StudyState,
};
use std::sync::atomic::{AtomicU32, Ordering};
use tars_runtime::db::DbError;
use tokio::sync::Semaphore;
use tonic::Code;

mod resume;

fn states(trials: &[TrialRow]) -> Vec<TrialState> {
    trials.iter().map(|t| t.state).collect()
}

use TrialState::{Complete, Failed, Pruned};

// === Running ===

#[tokio::test]
async fn a_started_study_is_running_and_then_completed() {
    let rig = Rig::start().await;
    let id = rig.begin(seeded(3)).await;
    assert_eq!(rig.row(id).await.state, StudyState::Running);
    let ended = rig.ended(id).await;
    assert_eq!(ended.state, StudyState::Completed);
    assert_eq!(
        (ended.error.as_str(), ended.completed_us),
        ("", Some(rig.clock.now_us()))
    );
    let trials = rig.trials(id).await;
    assert_eq!(states(&trials), [Complete; 3]);
    assert!(
        trials
            .iter()
            .all(|t| t.score == Some(1.0) && t.attempt == 1)
    );
    let view = rig.automl.study_view(id).await.unwrap();
    let tally = view.tally;
    assert_eq!((tally.complete, tally.pruned, tally.failed), (3, 0, 0));
}

#[tokio::test]
async fn a_trial_is_run_as_its_study_says() {
    let rig = Rig::start().await;
    let id = rig.begin(seeded(1)).await;
    rig.ended(id).await;
    let [asked] = &rig.world.asked()[..] else {
        panic!("one run");
    };
    assert_eq!(
        (asked.agent_type.as_str(), asked.environment.as_str()),
        ("dqn", "cartpole")
    );
    assert_eq!((asked.steps, asked.reports), (100, 10));
    assert_eq!(
        (asked.on_behalf_of.as_str(), asked.verification),
        ("dev", false)
    );
    let [trial] = &rig.trials(id).await[..] else {
        panic!("one trial");
    };
    assert_eq!(asked.hyperparameters, hyper::params(&trial.parameters));
}

#[tokio::test]
async fn the_number_of_concurrent_trials_is_bounded() {
    let rig = Rig::start().await;
    for number in 0..2 {
        rig.world.plan(number, Outcome::HangsAfter(vec![]));
    }
    let id = rig.begin(seeded(4)).await;
    rig.until("two run", || rig.world.running() == 2).await;
    assert_eq!(rig.trials(id).await.len(), 2, "no third is asked for");
    rig.automl.cancel(id, "user:dev").await.unwrap();
}

#[tokio::test]
async fn a_study_beyond_the_limit_is_refused_and_leaves_no_row() {
    let rig = Rig::start().await;
    let mut running = Vec::new();
    for _ in 0..STUDIES {
        for number in 0..2 {
            rig.world.plan(number, Outcome::HangsAfter(vec![]));
        }
        running.push(rig.begin(seeded(2)).await);
    }
    assert!(!rig.automl.has_room());
    let refused = rig.automl.start_study(seeded(1)).await;
    assert!(matches!(refused, Err(AutomlError::Busy)), "{refused:?}");
    let (views, _) = rig.automl.list_studies("", 10).await.unwrap();
    assert_eq!(views.len(), running.len());
    for id in running {
        rig.automl.cancel(id, "user:dev").await.unwrap();
        rig.ended(id).await;
    }
    rig.until("there is room again", || rig.automl.has_room())
        .await;
}

// === Completed, with trials of every kind ===

#[tokio::test]
async fn trials_are_counted_by_their_outcome() {
    let rig = Rig::start().await;
    rig.world.plan(1, Outcome::Fails(refused(Code::Aborted)));
    let id = rig.begin(seeded(3)).await;
    rig.ended(id).await;
    let text = rig.metrics.open_metrics().unwrap();
    for line in [
        "trials_ended_total{outcome=\"complete\"} 2",
        "trials_ended_total{outcome=\"failed\"} 1",
        "trial_duration_seconds_count{outcome=\"complete\"} 2",
    ] {
        assert!(text.contains(line), "{line} in {text}");
    }
}

#[tokio::test]
async fn a_refused_trial_fails_and_the_study_continues() {
    let rig = Rig::start().await;
    rig.world.plan(1, Outcome::Fails(refused(Code::Aborted)));
    let id = rig.begin(seeded(3)).await;
    assert_eq!(rig.ended(id).await.state, StudyState::Completed);
    let trials = rig.trials(id).await;
    assert_eq!(states(&trials), [Complete, Failed, Complete]);
    assert_eq!(
        (trials[1].error.as_str(), trials[1].score),
        ("refused by a test", None)
    );
}

#[tokio::test]
async fn an_unpromising_trial_is_pruned_and_its_run_is_stopped() {
    let rig = Rig::start_with(1).await;
    for number in 0..5 {
        rig.world
            .plan(number, Outcome::Reports(vec![(50, 10.0)], 10.0));
    }
    let badly = vec![(50, 1.0), (60, 100.0)];
    rig.world.plan(5, Outcome::Reports(badly, 100.0));
    let id = rig.begin(seeded(6)).await;
    assert_eq!(rig.ended(id).await.state, StudyState::Completed);
    let trials = rig.trials(id).await;
    let last = &trials[5];
    assert_eq!((last.state, last.score), (Pruned, None));
    assert_eq!(last.intermediate, [(50, 1.0)], "not followed any further");
    rig.until("nothing runs", || rig.world.running() == 0).await;
}

#[tokio::test]
async fn a_trial_waits_for_a_learner_without_a_bound() {
    let rig = Rig::start().await;
    for _ in 0..100 {
        rig.world.plan(0, Outcome::Fails(busy()));
    }
    let id = rig.begin(seeded(1)).await;
    assert_eq!(rig.ended(id).await.state, StudyState::Completed);
    assert_eq!(rig.world.asked().len(), 101);
    assert_eq!(rig.trials(id).await[0].attempt, 1, "the same attempt");
}

#[tokio::test]
async fn a_lost_run_is_repeated_with_the_same_request() {
    let rig = Rig::start().await;
    rig.world.plan(0, Outcome::Lost);
    rig.world.plan(0, Outcome::Fails(unavailable()));
    let id = rig.begin(seeded(1)).await;
    assert_eq!(rig.ended(id).await.state, StudyState::Completed);
    let asked = rig.world.asked();
    assert_eq!(asked.len(), 3);
    assert!(asked.iter().all(|a| *a == asked[0]), "{asked:?}");
}

#[tokio::test]
async fn a_trainer_that_stays_unreachable_fails_the_trial() {
    let rig = Rig::start().await;
    for _ in 0..50 {
        rig.world.plan(0, Outcome::Fails(unavailable()));
    }
    let id = rig.begin(seeded(2)).await;
    assert_eq!(rig.ended(id).await.state, StudyState::Completed);
    let trials = rig.trials(id).await;
    assert_eq!(states(&trials), [Failed, Complete]);
    assert_eq!(trials[0].error, "no route");
}

// === Failed ===

#[tokio::test]
async fn a_study_without_a_complete_trial_fails() {
    let rig = Rig::start().await;
    for number in 0..3 {
        rig.world
            .plan(number, Outcome::Fails(refused(Code::Aborted)));
    }
    let id = rig.begin(seeded(3)).await;
    let ended = rig.ended(id).await;
    assert_eq!(
        (ended.state, ended.error.as_str()),
        (StudyState::Failed, "no trial was completed")
    );
}

#[tokio::test]
async fn a_study_with_corrupt_trials_fails_with_the_reason() {
    let rig = Rig::start_with(1).await;
    rig.world.plan(0, Outcome::HangsAfter(vec![]));
    let id = rig.begin(seeded(2)).await;
    rig.until("it runs", || rig.world.running() == 1).await;
    rig.execute("UPDATE trials SET parameters = '['").await;
    let rig = rig.restart().await;
    assert_eq!(rig.resume().await, 1);
    let ended = rig.ended(id).await;
    assert_eq!(ended.state, StudyState::Failed);
    assert!(ended.error.contains("of trials"), "{}", ended.error);
}

#[tokio::test]
async fn a_failure_that_cannot_be_written_is_written_once_the_database_accepts_it() {
    let rig = Rig::start_with(1).await;
    rig.world.plan(0, Outcome::HangsAfter(vec![]));
    let id = rig.begin(seeded(2)).await;
    rig.until("it runs", || rig.world.running() == 1).await;
    rig.execute("UPDATE trials SET parameters = '['").await;
    for text in tars_test_db::refuse_updates("studies") {
        rig.execute(text).await;
    }
    let rig = rig.restart().await;
    rig.resume().await;
    let lease = rig.automl.leases.acquire("test").await.unwrap().unwrap();
    let (fence, error) = (lease.fence(), "refused by the trigger");
    let refused = rig.automl.fail_study(id, error, &fence).await;
    assert!(matches!(refused, Err(AutomlError::Store(_))), "{refused:?}");
    assert_eq!(rig.row(id).await.state, StudyState::Running);
    for text in tars_test_db::accept_updates("studies") {
        rig.execute(text).await;
    }
    let ended = rig.ended(id).await;
    assert_eq!(ended.state, StudyState::Failed);
    assert!(ended.error.contains("of trials"), "{}", ended.error);
}

// === Cancelled ===

#[tokio::test]
async fn a_cancelled_study_stops_its_runs_and_stays_cancelled() {
    let rig = Rig::start().await;
    rig.world.plan(1, Outcome::HangsAfter(vec![]));
    rig.world.plan(2, Outcome::HangsAfter(vec![]));
    let id = rig.begin(seeded(5)).await;
    rig.until("the last two run", || rig.world.asked().len() == 3)
        .await;
    let view = rig.automl.cancel(id, "user:dev").await.unwrap();
    assert_eq!(view.row.state, StudyState::Cancelled);
    rig.until("nothing runs", || rig.world.running() == 0).await;
    let trials = rig.settled_trials(id).await;
    assert_eq!(states(&trials), [Complete, Failed, Failed]);
    assert_eq!(trials[1].error, "cancelled");
    assert_eq!(rig.row(id).await.state, StudyState::Cancelled);
    let again = rig.automl.cancel(id, "user:dev").await.unwrap();
    assert_eq!(again.row.completed_us, view.row.completed_us);
}

#[tokio::test]
async fn a_study_that_waits_for_the_trainer_can_be_cancelled() {
    let rig = Rig::start_pausing(std::time::Duration::from_secs(3600)).await;
    rig.world.plan(0, Outcome::Fails(busy()));
    let id = rig.begin(seeded(1)).await;
    rig.until("it was asked", || rig.world.asked().len() == 1)
        .await;
    rig.automl.cancel(id, "user:dev").await.unwrap();
    assert_eq!(states(&rig.settled_trials(id).await), [Failed]);
}

#[tokio::test]
async fn a_study_that_has_ended_is_not_cancelled() {
    for (outcome, state) in [
        (Outcome::Reports(vec![], 1.0), StudyState::Completed),
        (Outcome::Fails(refused(Code::Aborted)), StudyState::Failed),
    ] {
        let rig = Rig::start().await;
        rig.world.plan(0, outcome);
        let id = rig.begin(seeded(1)).await;
        let ended = rig.ended(id).await;
        let view = rig.automl.cancel(id, "user:dev").await.unwrap();
        assert_eq!(view.row.state, state);
        assert_eq!(view.row.completed_us, ended.completed_us);
    }
}

// === A study whose caller runs the trials ===

#[tokio::test]
async fn a_study_run_by_its_caller_ends_with_its_last_trial() {
    let rig = Rig::start().await;
    let own = crate::studies::NewStudy {
        server_run: false,
        ..seeded(2)
    };
    let study = rig.automl.create_study(own).await.unwrap();
    for number in 0..2 {
        let asked = rig.automl.ask(&study, None).await.unwrap();
        assert_eq!((asked.number, asked.state), (number, TrialState::Running));
        let told = rig
            .automl
            .tell(&study, number, TrialEnd::of(Complete, Some(1.0), ""), None)
            .await;
        assert_eq!(told.unwrap().state, Complete);
    }
    assert_eq!(rig.ended(study.id).await.state, StudyState::Completed);
    let full = rig.automl.ask(&study, None).await;
    assert!(matches!(full, Err(AutomlError::StudyFull)), "{full:?}");
    let same = rig
        .automl
        .tell(&study, 1, TrialEnd::of(Complete, Some(1.0), ""), None)
        .await;
    assert!(same.is_ok(), "the same end twice");
    let other = rig
        .automl
        .tell(&study, 1, TrialEnd::of(Failed, None, ""), None)
        .await;
    assert!(matches!(other, Err(AutomlError::TrialEnded(_))));
    assert_eq!(rig.resume().await, 0, "the server does not run it");
}

#[tokio::test]
async fn an_ended_trial_takes_neither_a_report_nor_another_end() {
    for (state, score) in [(Complete, Some(1.0)), (Pruned, None), (Failed, None)] {
        let rig = Rig::start().await;
        let own = crate::studies::NewStudy {
            server_run: false,
            ..seeded(2)
        };
        let study = rig.automl.create_study(own).await.unwrap();
        let number = rig.automl.ask(&study, None).await.unwrap().number;
        let tell = |state, score| {
            rig.automl
                .tell(&study, number, TrialEnd::of(state, score, ""), None)
        };
        let ended = tell(state, score).await.unwrap();
        let repeated = tell(state, score).await.unwrap();
        assert_eq!((repeated.state, repeated.ended_us), (state, ended.ended_us));
        for (other, score) in [(Complete, Some(2.0)), (Pruned, None), (Failed, None)] {
            if other != state || score == Some(2.0) {
                let refused = tell(other, score).await;
                assert!(
                    matches!(refused, Err(AutomlError::TrialEnded(_))),
                    "{state:?} to {other:?}: {refused:?}"
                );
            }
        }
        let report = rig.automl.report(&study, number, 10, 0.5, None).await;
        assert!(matches!(report, Err(AutomlError::TrialEnded(_))));
        assert_eq!(rig.trials(study.id).await[0].state, state);
    }
}

#[tokio::test]
async fn a_cancelled_study_gives_no_trials() {
    let rig = Rig::start().await;
    let study = rig.automl.create_study(seeded(2)).await.unwrap();
    rig.automl.cancel(study.id, "user:dev").await.unwrap();
    let refused = rig.automl.ask(&study, None).await;
    assert!(matches!(refused, Err(AutomlError::StudyEnded("cancelled"))));
    assert!(rig.trials(study.id).await.is_empty());
}

// === Retries of database accesses ===

#[tokio::test(start_paused = true)]
async fn a_database_access_is_retried_while_it_is_busy() {
    let (run, tries) = (Cancellation::default(), AtomicU32::new(0));
    let busy_at_first = || async {
        match tries.fetch_add(1, Ordering::Relaxed) {
            0..5 => Err(AutomlError::Store(DbError::Unavailable("busy".to_owned()))),
            n => Ok(n),
        }
    };
    assert_eq!(
        retry_access(&run, AccessRetries::new(Pacing::default()), busy_at_first)
            .await
            .unwrap(),
        5
    );
    let broken =
        || async { Err::<(), _>(AutomlError::Store(DbError::Failed("no row".to_owned()))) };
    assert!(
        retry_access(&run, AccessRetries::new(Pacing::default()), broken)
            .await
            .is_err()
    );
}

#[tokio::test(start_paused = true)]
async fn a_study_that_waits_for_the_database_can_be_cancelled() {
    let (run, tries) = (Cancellation::default(), AtomicU32::new(0));
    let busy = || async {
        if tries.fetch_add(1, Ordering::Relaxed) == 3 {
            run.cancel();
        }
        Err::<(), _>(AutomlError::Store(DbError::Unavailable("busy".to_owned())))
    };
    assert!(
        retry_access(&run, AccessRetries::new(Pacing::default()), busy)
            .await
            .is_err()
    );
    assert_eq!(tries.load(Ordering::Relaxed), 4, "not tried again");
}
