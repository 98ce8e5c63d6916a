//! Watchers of studies, at one replica and at several.

use super::*;
use crate::{
    fake::{Rig, seeded},
    store::{StudyRow, TrialState},
    studies::{NewStudy, TrialEnd},
};
use std::time::Duration;

/// Longer than a replica without hints takes.
const PATIENCE: Duration = Duration::from_secs(20);

/// A study whose trials the caller runs.
async fn study(rig: &Rig, trials: u32) -> StudyRow {
    let new = NewStudy {
        server_run: false,
        ..seeded(trials)
    };
    rig.automl.create_study(new).await.unwrap()
}

/// What a watcher is sent next: the number, and of a trial its number and how many reports it has.
async fn next(watcher: &mut Watcher) -> Option<(u64, Option<(u32, usize)>)> {
    let next = tokio::time::timeout(PATIENCE, watcher.next()).await;
    let (number, event) = next.expect("in time").unwrap()?;
    Some(match event {
        StudyEvent::Trial(row) => (number, Some((row.number, row.intermediate.len()))),
        StudyEvent::Ended(_) => (number, None),
    })
}

async fn tell(rig: &Rig, study: &StudyRow, number: u32) {
    let told = rig.automl.tell(
        study,
        number,
        TrialEnd::of(TrialState::Complete, Some(1.0), ""),
        None,
    );
    told.await.unwrap();
}

#[tokio::test]
async fn changes_arrive_in_order_up_to_the_end() {
    let rig = Rig::start().await;
    let study = study(&rig, 2).await;
    let mut watcher = rig.automl.watch_study(study.id, 0).await.unwrap();
    for number in 0..2 {
        rig.automl.ask(&study, None).await.unwrap();
        let first = u64::from(number) * 3 + 1;
        assert_eq!(next(&mut watcher).await, Some((first, Some((number, 0)))));
        let report = rig.automl.report(&study, number, 1, 0.5, None).await;
        assert!(!report.unwrap());
        let second = next(&mut watcher).await;
        assert_eq!(second, Some((first + 1, Some((number, 1)))));
        tell(&rig, &study, number).await;
        let third = next(&mut watcher).await;
        assert_eq!(third, Some((first + 2, Some((number, 1)))));
    }
    assert_eq!(next(&mut watcher).await, Some((7, None)));
    assert_eq!(next(&mut watcher).await, None);
}

#[tokio::test]
async fn a_watcher_that_reads_late_gets_each_trial_once_as_it_is() {
    let rig = Rig::start().await;
    let study = study(&rig, 2).await;
    for number in 0..2 {
        rig.automl.ask(&study, None).await.unwrap();
        for step in 1..=3 {
            let report = rig.automl.report(&study, number, step, 0.5, None).await;
            report.unwrap();
        }
    }
    tell(&rig, &study, 0).await;
    let mut watcher = rig.automl.watch_study(study.id, 0).await.unwrap();
    assert_eq!(next(&mut watcher).await, Some((8, Some((1, 3)))));
    assert_eq!(next(&mut watcher).await, Some((9, Some((0, 3)))));
}

#[tokio::test]
async fn a_watcher_goes_on_at_another_replica_where_it_was() {
    let one = Rig::replica("one").await;
    let two = one.beside("two").await;
    let study = study(&one, 2).await;
    let mut after = 0;
    let mut seen = Vec::new();
    for (rig, number) in [(&one, 0), (&two, 1)] {
        // Watched at one replica, and changed at the other.
        let mut watcher = rig.automl.watch_study(study.id, after).await.unwrap();
        let other = if number == 0 { &two } else { &one };
        other.automl.ask(&study, None).await.unwrap();
        tell(other, &study, number).await;
        while let Some((at, trial)) = next(&mut watcher).await {
            assert!(at > after, "nothing twice");
            after = at;
            seen.push(trial);
            let trial = other.trials(study.id).await.remove(number as usize);
            if i64::try_from(at) == Ok(trial.event) {
                break;
            }
        }
    }
    let mut watcher = one.automl.watch_study(study.id, after).await.unwrap();
    assert_eq!(next(&mut watcher).await, Some((after + 1, None)));
    for number in 0..2 {
        assert!(seen.contains(&Some((number, 0))), "{seen:?}");
    }
}

#[tokio::test]
async fn a_study_that_has_ended_is_shown_to_late_watchers_and_its_end_once() {
    let rig = Rig::start().await;
    let study = study(&rig, 1).await;
    rig.automl.ask(&study, None).await.unwrap();
    tell(&rig, &study, 0).await;
    let rig = rig.restart().await;
    let mut watcher = rig.automl.watch_study(study.id, 0).await.unwrap();
    assert_eq!(next(&mut watcher).await, Some((2, Some((0, 0)))));
    assert_eq!(next(&mut watcher).await, Some((3, None)));
    assert_eq!(next(&mut watcher).await, None);
    let mut watcher = rig.automl.watch_study(study.id, 3).await.unwrap();
    assert_eq!(next(&mut watcher).await, None, "the end is not repeated");
}

#[tokio::test]
async fn numbers_that_were_never_given_and_studies_that_are_absent_are_refused() {
    let rig = Rig::start().await;
    let study = study(&rig, 1).await;
    rig.automl.ask(&study, None).await.unwrap();
    for after in [2, u64::MAX] {
        let refused = rig.automl.watch_study(study.id, after).await.unwrap_err();
        assert!(matches!(refused, AutomlError::Trimmed(_)), "{refused:?}");
    }
    let absent = rig.automl.watch_study(Uuid::now_v7(), 0).await.unwrap_err();
    assert!(matches!(absent, AutomlError::NotFound("study", _)));
}

#[tokio::test]
async fn what_happens_to_a_trial_after_the_end_is_not_shown() {
    let rig = Rig::start().await;
    let study = study(&rig, 2).await;
    rig.automl.ask(&study, None).await.unwrap();
    rig.automl.cancel(study.id, "user:dev").await.unwrap();
    tell(&rig, &study, 0).await;
    let mut watcher = rig.automl.watch_study(study.id, 0).await.unwrap();
    assert_eq!(next(&mut watcher).await, Some((1, Some((0, 0)))));
    assert_eq!(next(&mut watcher).await, Some((2, None)));
    assert_eq!(next(&mut watcher).await, None);
}
