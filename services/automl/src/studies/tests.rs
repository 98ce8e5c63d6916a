//! Committed changes are announced to watchers and to the run of a study, wherever the call that made
//! them is dropped.

use super::*;
use crate::fake::{Rig, seeded};
use std::{
    future::poll_fn,
    pin::pin,
    task::Poll::{Pending, Ready},
    time::Duration,
};
use tars_runtime::db::LostCommit;

/// A study whose trials the caller runs, with the first one running.
async fn study(rig: &Rig, trials: u32) -> StudyRow {
    let new = NewStudy {
        server_run: false,
        ..seeded(trials)
    };
    let study = rig.automl.create_study(new).await.unwrap();
    rig.automl.ask(&study, None).await.unwrap();
    study
}

/// Polls a future a bounded number of times, then drops it. Returns whether it completed.
async fn is_ready_within(polls: usize, future: impl Future) -> bool {
    let (mut future, mut left) = (pin!(future), polls);
    poll_fn(|cx| {
        if future.as_mut().poll(cx).is_ready() {
            return Ready(true);
        }
        left -= 1;
        if left == 0 { Ready(false) } else { Pending }
    })
    .await
}

/// Drops a call after its first poll, after its second, and so on until it completes, and checks that
/// whatever it has committed is announced.
async fn dropped_anywhere(
    trials: u32,
    call: impl AsyncFn(&Arc<Automl>, &StudyRow),
    is_committed: impl AsyncFn(&Automl, &StudyRow) -> bool,
    is_told: impl Fn(&Watched) -> bool,
) {
    let rig = Rig::start().await;
    let service = &rig.automl;
    let (mut committed_unheard, mut polls) = (false, 1);
    for _ in 0..1000 {
        let study = study(&rig, trials).await;
        let watched = service.watched(study.id);
        let is_heard = is_ready_within(polls, call(service, &study)).await;
        // The next writer waits for the transaction in progress.
        drop(service.store.begin("test.next").await.unwrap());
        let committed = is_committed(service, &study).await;
        assert!(committed || !is_heard);
        let told = async {
            while committed && !is_told(&watched) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let told = tokio::time::timeout(Duration::from_secs(10), told).await;
        told.unwrap_or_else(|_| panic!("not announced when dropped after {polls} polls"));
        committed_unheard |= committed && !is_heard;
        // The number of polls that a call takes varies.
        polls = if is_heard { 1 } else { polls + 1 };
        if is_heard && committed_unheard {
            return;
        }
    }
    panic!("no commit was on its way");
}

async fn first_trial(service: &Automl, study: &StudyRow) -> TrialRow {
    service.store.all_trials(study.id).await.unwrap().remove(0)
}

#[tokio::test]
async fn a_new_trial_is_announced_wherever_the_call_is_dropped() {
    dropped_anywhere(
        2,
        async |service, study| drop(service.ask(study, None).await.unwrap()),
        async |service, study| service.store.all_trials(study.id).await.unwrap().len() == 2,
        |watched| watched.log.last() == 2,
    )
    .await;
}

#[tokio::test]
async fn a_report_is_announced_wherever_the_call_is_dropped() {
    dropped_anywhere(
        1,
        async |service, study| assert!(!service.report(study, 0, 1, 0.5, None).await.unwrap()),
        async |service, study| !first_trial(service, study).await.intermediate.is_empty(),
        |watched| watched.log.last() == 2,
    )
    .await;
}

#[tokio::test]
async fn the_end_of_the_last_trial_ends_the_log_wherever_the_call_is_dropped() {
    dropped_anywhere(
        1,
        async |service, study| {
            let told = service.tell(study, 0, TrialState::Complete, Some(1.0), "", None);
            drop(told.await.unwrap());
        },
        async |service, study| {
            service.store.study(study.id).await.unwrap().state == StudyState::Completed
        },
        |watched| watched.log.is_closed() && watched.log.last() == 3,
    )
    .await;
}

#[tokio::test]
async fn a_cancelled_study_stops_its_trials_wherever_the_call_is_dropped() {
    dropped_anywhere(
        1,
        async |service, study| drop(service.cancel(study.id, "user:dev").await.unwrap()),
        async |service, study| {
            service.store.study(study.id).await.unwrap().state == StudyState::Cancelled
        },
        |watched| watched.log.is_closed() && watched.is_cancelled(),
    )
    .await;
}

#[tokio::test]
async fn repeating_the_end_of_a_study_closes_a_log_that_was_left_open() {
    let rig = Rig::start().await;
    let service = &rig.automl;
    let study = study(&rig, 1).await;
    let mut tx = service.store.begin("test.end").await.unwrap();
    let mut row = first_trial(service, &study).await;
    (row.state, row.score) = (TrialState::Complete, Some(1.0));
    let updated = store::update_running_trial(&mut tx, &row).await;
    assert!(updated.unwrap().is_done());
    assert!(service.finish_in(&mut tx, study.id).await.unwrap());
    tx.commit().await.unwrap();
    let watched = service.watched(study.id);
    assert!(!watched.log.is_closed());
    let told = service.tell(&study, 0, TrialState::Complete, Some(1.0), "", None);
    told.await.unwrap();
    assert!(watched.log.is_closed());
}

/// A call whose commit loses its answer.
async fn in_doubt<T: std::fmt::Debug>(
    rig: &Rig,
    (name, lost): (&'static str, LostCommit),
    call: impl Future<Output = Result<T, AutomlError>>,
) {
    rig.automl.store.db().lose_commit(name, lost);
    let answer = call.await;
    let in_doubt = matches!(&answer, Err(AutomlError::Store(DbError::InDoubt(_))));
    assert!(in_doubt, "{lost:?}: {answer:?}");
}

#[tokio::test]
async fn a_study_whose_row_was_written_runs_without_its_answer() {
    let rig = Rig::start().await;
    rig.automl
        .store
        .db()
        .lose_commit("studies.create", LostCommit::Made);
    let id = rig.begin(seeded(2)).await;
    assert_eq!(rig.ended(id).await.state, StudyState::Completed);
}

#[tokio::test]
async fn a_study_whose_row_was_not_written_leaves_nothing() {
    let rig = Rig::start().await;
    rig.automl
        .store
        .db()
        .lose_commit("studies.create", LostCommit::Undone);
    let refused = rig.automl.start_study(seeded(2)).await;
    let unchanged = matches!(&refused, Err(AutomlError::Store(DbError::Unavailable(_))));
    assert!(unchanged, "{refused:?}");
    let (studies, _) = rig.automl.list_studies("", 10).await.unwrap();
    assert!(studies.is_empty());
    rig.until_idle().await;
}

#[tokio::test]
async fn a_trial_whose_end_was_stored_is_announced_without_its_answer() {
    let rig = Rig::start().await;
    let study = study(&rig, 1).await;
    let watched = rig.automl.watched(study.id);
    let report = rig.automl.report(&study, 0, 1, 0.5, None);
    in_doubt(&rig, ("trials.report", LostCommit::Made), report).await;
    assert_eq!(watched.log.last(), 2, "the report");
    let tell = || {
        rig.automl
            .tell(&study, 0, TrialState::Complete, Some(1.0), "", None)
    };
    in_doubt(&rig, ("trials.tell", LostCommit::Undone), tell()).await;
    assert!(!watched.log.is_closed(), "it has not ended");
    in_doubt(&rig, ("trials.tell", LostCommit::Made), tell()).await;
    assert!(watched.log.is_closed(), "the last trial ends the study");
    tell().await.unwrap();
}

#[tokio::test]
async fn a_cancellation_in_doubt_stops_a_study_only_if_it_is_stored() {
    let rig = Rig::start().await;
    let study = study(&rig, 1).await;
    let watched = rig.automl.watched(study.id);
    let cancel = || rig.automl.cancel(study.id, "user:dev");
    in_doubt(&rig, ("studies.cancel", LostCommit::Undone), cancel()).await;
    assert!(!watched.is_cancelled() && !watched.log.is_closed());
    in_doubt(&rig, ("studies.cancel", LostCommit::Made), cancel()).await;
    assert!(watched.is_cancelled() && watched.log.is_closed());
}
