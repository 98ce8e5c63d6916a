use super::*;
use tars_runtime::page;
use tars_search::Assignment;
use tars_search::{Parameter, Range};
use tonic::{Code, Status};

fn study_row() -> StudyRow {
    let space = Space::new(vec![Parameter {
        name: "x".into(),
        range: Range::Float {
            low: 0.0,
            high: 1.0,
            log: false,
        },
    }]);
    StudyRow {
        id: Uuid::now_v7(),
        agent_id: "policy".into(),
        agent_type: "dqn".into(),
        environment: "cartpole".into(),
        state: StudyState::Running,
        server_run: true,
        sampler: Sampler::Tpe,
        pruner: Pruner::None,
        n_trials: 3,
        space: space.unwrap(),
        seed: u64::MAX,
        steps: 10,
        owner: "user:dev".into(),
        owner_id: "dev".into(),
        error: String::new(),
        traceparent: String::new(),
        started_us: 1,
        completed_us: None,
    }
}

fn trial_row(study_id: Uuid) -> TrialRow {
    TrialRow {
        study_id,
        number: 0,
        state: TrialState::Running,
        parameters: Assignment::new(),
        score: None,
        intermediate: vec![],
        attempt: 1,
        error: String::new(),
        started_us: 1,
        ended_us: None,
        event: 1,
        counted: 0,
    }
}

async fn spoilt(spoil: &'static str) -> (Store, StudyRow, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let place = tars_test_db::place(dir.path(), "automl");
    let store = Store::new(Db::open(place, MIGRATIONS).await.unwrap());
    let row = study_row();
    let mut tx = store.begin("test.insert").await.unwrap();
    insert_study(&mut tx, &row).await.unwrap();
    let inserted = insert_trial(&mut tx, &trial_row(row.id)).await.unwrap();
    assert!(inserted.is_done());
    tx.execute(Query::new(spoil)).await.unwrap().one().unwrap();
    tx.commit().await.unwrap();
    (store, row, dir)
}

fn names_the_row(error: AutomlError, row: &str) {
    let status = Status::from(error);
    assert_eq!(status.code(), Code::DataLoss, "{status}");
    assert!(status.message().contains(row), "{status}");
}

#[tokio::test]
async fn a_corrupt_study_is_an_error_that_names_its_row() {
    for spoil in [
        "UPDATE studies SET state = 'paused'",
        "UPDATE studies SET sampler = 'grid'",
        "UPDATE studies SET pruner = 'hyperband'",
        "UPDATE studies SET space = '['",
        "UPDATE studies SET n_trials = -1",
    ] {
        let (store, row, _dir) = spoilt(spoil).await;
        names_the_row(store.study(row.id).await.unwrap_err(), &row.id.to_string());
        let all = store.studies(Uuid::max(), page::size(10)).await;
        names_the_row(all.unwrap_err(), &row.id.to_string());
        assert!(store.unfinished().await.unwrap().is_empty(), "{spoil}");
    }
    let (store, row, _dir) = spoilt("UPDATE studies SET state = 'paused'").await;
    let mut tx = store.begin("test.state").await.unwrap();
    let state = study_state(&mut tx, row.id).await;
    names_the_row(state.unwrap_err(), &row.id.to_string());
}

#[tokio::test]
async fn a_corrupt_trial_is_an_error_that_names_its_row() {
    for spoil in [
        "UPDATE trials SET state = 'paused'",
        "UPDATE trials SET parameters = '['",
        "UPDATE trials SET intermediate = '{}'",
    ] {
        let (store, row, _dir) = spoilt(spoil).await;
        let name = format!("{}/0", row.id);
        names_the_row(store.all_trials(row.id).await.unwrap_err(), &name);
        let mut tx = store.begin("test.trial").await.unwrap();
        names_the_row(trial_in(&mut tx, row.id, 0).await.unwrap_err(), &name);
    }
    let (store, row, _dir) = spoilt("UPDATE trials SET error = ''").await;
    assert_eq!(store.study(row.id).await.unwrap().seed, u64::MAX);
    assert_eq!(store.all_trials(row.id).await.unwrap().len(), 1);
}
