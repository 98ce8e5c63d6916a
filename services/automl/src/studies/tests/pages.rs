//! Pages of studies and trials are bounded by their bytes, and the studies of one owner by their number.

use super::*;
use crate::{fake::OWN_STUDIES, store::Tally};
use tars_runtime::{db::Query, page::MAX_BYTES};
use tars_search::{Assignment, Value};
use tonic::{Code, Status};

fn text(bytes: usize) -> Value {
    Value::Text("x".repeat(bytes))
}

/// A study whose space has about so many bytes, as it may have been stored before spaces were bounded.
fn large(bytes: usize) -> NewStudy {
    let parameter = tars_search::Parameter {
        name: "x".into(),
        range: tars_search::Range::Categorical {
            values: vec![text(bytes)],
        },
    };
    NewStudy {
        server_run: false,
        space: Space::new(vec![parameter]).unwrap(),
        ..seeded(500)
    }
}

/// Adds trials with a parameter of about so many bytes; they have the scores.
async fn add_trials(rig: &Rig, study: &StudyRow, bytes: usize, scores: &[f64]) {
    let mut tx = rig.automl.store.begin("test.trials").await.unwrap();
    for (number, score) in (0..).zip(scores) {
        let row = TrialRow {
            study_id: study.id,
            number,
            state: TrialState::Complete,
            parameters: Assignment::from([("x".to_owned(), text(bytes))]),
            score: Some(*score),
            intermediate: Vec::new(),
            attempt: 1,
            error: String::new(),
            started_us: 1,
            ended_us: Some(2),
            event: 0,
            counted: 0,
        };
        let inserted = store::insert_trial(&mut tx, &row).await.unwrap();
        assert!(inserted.is_done());
    }
    tx.commit().await.unwrap();
}

/// The pages of all studies, as many studies a page as may be.
async fn study_pages(rig: &Rig) -> Vec<Vec<StudyView>> {
    let (mut pages, mut token) = (Vec::new(), String::new());
    loop {
        let (page, next) = rig.automl.list_studies(&token, 500).await.unwrap();
        pages.push(page);
        if next.is_empty() {
            return pages;
        }
        token = next;
    }
}

fn lengths<T>(pages: &[Vec<T>]) -> Vec<usize> {
    pages.iter().map(Vec::len).collect()
}

#[tokio::test]
async fn a_page_of_large_studies_ends_before_all_of_them_are_read() {
    let rig = Rig::start().await;
    let mut ids = Vec::new();
    for _ in 0..40 {
        let study = rig.automl.create_study(large(900 << 10)).await.unwrap();
        ids.insert(0, study.id);
    }
    let pages = study_pages(&rig).await;
    assert_eq!(lengths(&pages), [1; 40]);
    let listed: Vec<_> = pages.iter().flatten().map(|view| view.row.id).collect();
    assert_eq!(listed, ids);
    // What follows a page is not looked at.
    const SPOIL: &str = "UPDATE studies SET space = '[' WHERE id = $1";
    let mut tx = rig.automl.store.begin("test.spoil").await.unwrap();
    let spoil = Query::new(SPOIL).bind(ids[2]);
    tx.execute(spoil).await.unwrap().one().unwrap();
    tx.commit().await.unwrap();
    let (page, next) = rig.automl.list_studies("", 500).await.unwrap();
    assert_eq!((page[0].row.id, &next), (ids[0], &ids[0].to_string()));
    let damaged = rig.automl.list_studies(&ids[1].to_string(), 500).await;
    assert_eq!(Status::from(damaged.unwrap_err()).code(), Code::DataLoss);
}

#[tokio::test]
async fn the_best_trials_of_a_page_of_studies_are_bounded_as_well() {
    let rig = Rig::start().await;
    for _ in 0..5 {
        let study = rig.automl.create_study(large(1)).await.unwrap();
        add_trials(&rig, &study, MAX_BYTES * 2 / 5, &[1.0]).await;
    }
    let pages = study_pages(&rig).await;
    assert_eq!(lengths(&pages), [2, 2, 1]);
    assert!(pages.iter().flatten().all(|view| view.best.is_some()));
}

#[tokio::test]
async fn a_page_of_large_trials_ends_before_all_of_them_are_read() {
    let rig = Rig::start().await;
    let study = rig.automl.create_study(large(1)).await.unwrap();
    add_trials(&rig, &study, MAX_BYTES * 2 / 5, &[0.0; 5]).await;
    let (mut pages, mut token) = (Vec::new(), String::new());
    loop {
        let (page, next) = rig.automl.list_trials(study.id, &token, 500).await.unwrap();
        pages.push(page);
        if next.is_empty() {
            break;
        }
        token = next;
    }
    assert_eq!(lengths(&pages), [2, 2, 1]);
    let numbers: Vec<_> = pages.iter().flatten().map(|trial| trial.number).collect();
    assert_eq!(numbers, [0, 1, 2, 3, 4]);
}

#[tokio::test]
async fn a_study_shows_its_counts_and_of_the_best_trials_the_last() {
    let rig = Rig::start().await;
    let study = study(&rig, 9).await;
    let empty = rig.automl.study_view(study.id).await.unwrap();
    assert!(empty.best.is_none());
    assert_eq!(empty.tally, Tally::default());
    for (number, state, score) in [
        (0, TrialState::Complete, Some(-1.0)),
        (1, TrialState::Complete, Some(2.5)),
        (2, TrialState::Complete, Some(2.5)),
        (3, TrialState::Complete, Some(2.0)),
        (4, TrialState::Pruned, None),
        (5, TrialState::Failed, None),
        (6, TrialState::Failed, None),
    ] {
        let end = TrialEnd::of(state, score, "");
        rig.automl.tell(&study, number, end, None).await.unwrap();
        rig.automl.ask(&study, None).await.unwrap();
    }
    let view = rig.automl.study_view(study.id).await.unwrap();
    let tally = Tally {
        complete: 4,
        pruned: 1,
        failed: 2,
    };
    assert_eq!(view.tally, tally);
    assert_eq!(view.best.unwrap().number, 2);
}

/// Adds rows of studies of an owner.
async fn add_studies(rig: &Rig, like: &StudyRow, owner_id: &str, state: StudyState, count: u64) {
    let mut tx = rig.automl.store.begin("test.studies").await.unwrap();
    for _ in 0..count {
        let row = StudyRow {
            id: Uuid::now_v7(),
            owner_id: owner_id.to_owned(),
            state,
            ..like.clone()
        };
        store::insert_study(&mut tx, &row).await.unwrap();
    }
    tx.commit().await.unwrap();
}

#[tokio::test]
async fn an_owner_has_no_more_studies_than_one_may_have() {
    let rig = Rig::start().await;
    let new = || large(1);
    let first = rig.automl.create_study(new()).await.unwrap();
    add_studies(&rig, &first, "dev", StudyState::Running, OWN_STUDIES - 2).await;
    rig.automl.create_study(new()).await.unwrap();
    let refused = rig.automl.create_study(new()).await.unwrap_err();
    assert!(matches!(refused, AutomlError::RunningFull(n) if n == 1_000));
    let status = Status::from(refused);
    assert_eq!(status.code(), Code::ResourceExhausted);
    let reason = tars_proto::fault::reason(&status).unwrap();
    assert_eq!(reason, tars_proto::reason::STUDIES_FULL);
    let of_another = NewStudy {
        owner_id: "ada".into(),
        ..new()
    };
    rig.automl.create_study(of_another).await.unwrap();

    // One that ends makes room, until there are too many in all.
    rig.automl.cancel(first.id, "user:dev").await.unwrap();
    let last = rig.automl.create_study(new()).await.unwrap();
    rig.automl.cancel(last.id, "user:dev").await.unwrap();
    let refused = rig.automl.create_study(new()).await.unwrap_err();
    assert!(matches!(refused, AutomlError::StudiesFull(n) if n == 1_001));
}
