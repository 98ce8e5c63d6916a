//! Trainings of an agent that changes meanwhile.

use super::*;

#[tokio::test]
async fn learners_follow_a_change_only_once_it_is_settled() {
    let dir = tempfile::tempdir().unwrap();
    let service = open(dir.path()).await;
    let followed = || policy(&service).followed().load_full();
    apply(&service, step("a", "a", 1, 0.97)).await.unwrap();
    assert_eq!(followed().version, 1);
    apply(&service, step("a", "a:back:2", 2, 0.95))
        .await
        .unwrap();
    settle(&service, "a", None).await.unwrap();
    assert_eq!(followed().version, 3);
    reload(&service, 0.91).await.unwrap();
    assert_eq!(followed().values["gamma"], Value::Number(0.91));
}

#[tokio::test]
async fn weights_trained_during_a_change_are_installed_after_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let service = open(dir.path()).await;
    let run = train(&service, 2_000, None).await.unwrap().row.id;
    apply(&service, step("a", "a", 1, 0.97)).await.unwrap();
    eventually(async || service.learners.is_idle()).await;
    assert_eq!(policy(&service).live().row.weights_version, 0);
    assert_eq!(
        service.training(run).await.unwrap().row.state,
        RunState::Running
    );
    settle(&service, "a", Some(2)).await.unwrap();
    eventually(async || service.training(run).await.unwrap().row.state == RunState::Completed)
        .await;
    eventually(async || policy(&service).live().row.weights_version == 1).await;
    assert_eq!(policy(&service).live().row.version, 2);
}

#[tokio::test]
async fn a_completed_run_that_waits_for_a_change_can_be_cancelled() {
    let dir = tempfile::tempdir().unwrap();
    let service = open(dir.path()).await;
    let run = train(&service, 500, None).await.unwrap().row.id;
    apply(&service, step("a", "a", 1, 0.97)).await.unwrap();
    eventually(async || service.training(run).await.unwrap().row.steps_done == 500).await;
    let cancelled = service.cancel_training(by(), run).await.unwrap();
    assert_eq!(cancelled.row.state, RunState::Cancelled);
    assert_eq!(policy(&service).live().row.weights_version, 0);
}

/// Occupies all threads that trainings may use.
fn busy(service: &Orchestration) -> crate::learners::Running {
    let owner = Owner {
        class: Class::Training,
        caller: "user:other".into(),
    };
    let task = Task::for_tests(LONG);
    service.learners.start(owner, task, None).unwrap()
}

#[tokio::test]
async fn a_queued_training_shows_its_position_and_is_cancelled_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let service = open(dir.path()).await;
    let other = busy(&service);
    let queued = train(&service, LONG, None).await.unwrap();
    assert_eq!(
        (queued.row.state, queued.position),
        (RunState::Queued, Some(1))
    );
    assert_eq!(queued.row.running_us, None);
    let id = queued.row.id;
    assert_eq!(service.training(id).await.unwrap().position, Some(1));
    let cancelled = service.cancel_training(by(), id).await.unwrap();
    assert_eq!(
        (
            cancelled.row.state,
            cancelled.position,
            cancelled.row.running_us
        ),
        (RunState::Cancelled, None, None),
        "no learner was needed"
    );
    let again = service.cancel_training(by(), id).await.unwrap();
    assert_eq!(again.row.state, RunState::Cancelled, "what has ended stays");
    // It starts when the other one ends.
    let id = train(&service, LONG, None).await.unwrap().row.id;
    drop(other);
    eventually(async || service.training(id).await.unwrap().row.state == RunState::Running).await;
    assert!(service.training(id).await.unwrap().row.running_us.is_some());
    let cancelled = service.cancel_training(by(), id).await.unwrap();
    assert_eq!(cancelled.row.state, RunState::Cancelled);
}

#[tokio::test]
async fn a_training_goes_on_after_a_restart_and_a_cancelled_one_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let service = open(dir.path()).await;
    let _other = busy(&service);
    let id = train(&service, LONG, None).await.unwrap().row.id;
    let [cancelled, unplanned] = [Uuid::now_v7(), Uuid::now_v7()];
    let mut tx = service.store.begin("test.copy").await.unwrap();
    let RunView {
        mut row, members, ..
    } = service.training(id).await.unwrap();
    for copy in [cancelled, unplanned] {
        row.id = copy;
        store::insert_run(&mut tx, &row).await.unwrap();
        let inserted = store::insert_members(&mut tx, copy, &members).await;
        inserted.unwrap();
    }
    row.id = cancelled;
    let cancel = store::set_state(&mut tx, &row, RunState::Cancelling);
    cancel.await.unwrap();
    tx.commit().await.unwrap();
    let service = open(dir.path()).await;
    let state = async |id| service.training(id).await.unwrap().row.state;
    eventually(async || state(id).await == RunState::Running).await;
    assert_eq!(
        state(cancelled).await,
        RunState::Cancelled,
        "as it was requested"
    );
    let by_an_older_version = state(unplanned).await;
    assert_eq!(by_an_older_version, RunState::Interrupted);
    assert!(kinds(&service).await.contains(&"training.resumed".into()));
    let cancelled = service.cancel_training(by(), id).await.unwrap();
    assert_eq!(cancelled.row.state, RunState::Cancelled);
}

#[tokio::test]
async fn a_missing_seed_is_drawn_and_zero_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let service = open(dir.path()).await;
    let mut seeds = Vec::new();
    for seed in [None, Some(0), None, Some(u64::MAX)] {
        let run = train(&service, LONG, seed).await.unwrap().row;
        seeds.push(run.seed as u64);
        service.cancel_training(by(), run.id).await.unwrap();
    }
    assert_eq!(seeds, [41, 0, 42, u64::MAX]);
}
