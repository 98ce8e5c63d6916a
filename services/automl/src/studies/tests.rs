//! Committed changes are announced to watchers and to the run of a study, wherever the call that made
//! them is dropped, and whether its answer was heard.

mod pages;
mod quotas;

use super::*;
use crate::fake::{Outcome, Rig, seeded};
use std::{
    future::poll_fn,
    pin::pin,
    task::Poll::{Pending, Ready},
    time::Duration,
};
use tars_runtime::db::{DbError, LostCommit};

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
/// whatever it has committed is announced: a subscriber is woken without a read of the table.
async fn dropped_anywhere(
    call: impl AsyncFn(&Arc<Automl>, &StudyRow),
    is_committed: impl AsyncFn(&Automl, &StudyRow) -> bool,
) {
    let rig = Rig::start().await;
    let service = &rig.automl;
    let (mut committed_unheard, mut polls) = (false, 1);
    for _ in 0..1000 {
        let study = study(&rig, 2).await;
        let before = service.store.progress(study.id).await.unwrap().events;
        let mut changed = service.changes.subscribe();
        changed.borrow_and_update();
        let is_heard = is_ready_within(polls, call(service, &study)).await;
        // The next writer waits for the transaction in progress.
        drop(service.store.begin("test.next").await.unwrap());
        let committed = is_committed(service, &study).await;
        assert!(committed || !is_heard);
        if committed {
            let told = tokio::time::timeout(Duration::from_secs(10), changed.changed()).await;
            told.unwrap_or_else(|_| panic!("not announced when dropped after {polls} polls"))
                .unwrap();
            let after = service.store.progress(study.id).await.unwrap().events;
            assert!(after > before, "it has a number");
        }
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
        async |service, study| drop(service.ask(study, None).await.unwrap()),
        async |service, study| service.store.all_trials(study.id).await.unwrap().len() == 2,
    )
    .await;
}

#[tokio::test]
async fn a_report_is_announced_wherever_the_call_is_dropped() {
    dropped_anywhere(
        async |service, study| assert!(!service.report(study, 0, 1, 0.5, None).await.unwrap()),
        async |service, study| !first_trial(service, study).await.intermediate.is_empty(),
    )
    .await;
}

#[tokio::test]
async fn the_end_of_a_trial_is_announced_wherever_the_call_is_dropped() {
    dropped_anywhere(
        async |service, study| {
            let told = service.tell(
                study,
                0,
                TrialEnd::of(TrialState::Complete, Some(1.0), ""),
                None,
            );
            drop(told.await.unwrap());
        },
        async |service, study| first_trial(service, study).await.state == TrialState::Complete,
    )
    .await;
}

#[tokio::test]
async fn a_cancellation_is_announced_wherever_the_call_is_dropped() {
    dropped_anywhere(
        async |service, study| drop(service.cancel(study.id, "user:dev").await.unwrap()),
        async |service, study| {
            service.store.study(study.id).await.unwrap().state == StudyState::Cancelled
        },
    )
    .await;
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

/// The change that a watcher is sent next.
async fn next(watcher: &mut crate::watch::Watcher) -> crate::watch::StudyEvent {
    let next = tokio::time::timeout(Duration::from_secs(10), watcher.next()).await;
    next.expect("in time").unwrap().expect("a change").1
}

#[tokio::test]
async fn a_trial_whose_end_was_stored_is_announced_without_its_answer() {
    use crate::watch::StudyEvent;
    let rig = Rig::start().await;
    let study = study(&rig, 1).await;
    let mut watcher = rig.automl.watch_study(study.id, 1).await.unwrap();
    let report = rig.automl.report(&study, 0, 1, 0.5, None);
    in_doubt(&rig, ("trials.report", LostCommit::Made), report).await;
    assert!(
        matches!(next(&mut watcher).await, StudyEvent::Trial(row) if row.intermediate.len() == 1)
    );
    let tell = || {
        rig.automl.tell(
            &study,
            0,
            TrialEnd::of(TrialState::Complete, Some(1.0), ""),
            None,
        )
    };
    in_doubt(&rig, ("trials.tell", LostCommit::Undone), tell()).await;
    assert_eq!(rig.row(study.id).await.state, StudyState::Running);
    in_doubt(&rig, ("trials.tell", LostCommit::Made), tell()).await;
    assert!(matches!(next(&mut watcher).await, StudyEvent::Trial(row) if row.score == Some(1.0)));
    assert!(
        matches!(next(&mut watcher).await, StudyEvent::Ended(_)),
        "the last trial ends the study"
    );
    tell().await.unwrap();
}

#[tokio::test]
async fn a_cancellation_in_doubt_stops_a_study_only_if_it_is_stored() {
    let rig = Rig::start().await;
    rig.world.plan(0, Outcome::HangsAfter(vec![]));
    let id = rig.begin(seeded(1)).await;
    rig.until("it runs", || rig.world.running() == 1).await;
    let cancel = || rig.automl.cancel(id, "user:dev");
    in_doubt(&rig, ("studies.cancel", LostCommit::Undone), cancel()).await;
    assert_eq!(rig.row(id).await.state, StudyState::Running);
    assert_eq!(rig.world.running(), 1);
    in_doubt(&rig, ("studies.cancel", LostCommit::Made), cancel()).await;
    rig.until("it is stopped", || rig.world.running() == 0)
        .await;
    assert_eq!(rig.row(id).await.state, StudyState::Cancelled);
}
