use super::*;
use crate::{
    Orchestration, Setup,
    learners::{Class, Owner},
    store::{self, RunState},
    task::Task,
    training::{RunView, Start},
};
use std::{path::Path, time::Duration};
use tars_proto::fault;
use tars_runtime::{
    db::{Db, Isolation, Query},
    lease::Terms,
    seeds::Seeds,
};
use tonic::Status;
use uuid::Uuid;

mod trainings;

async fn open(dir: &Path) -> Arc<Orchestration> {
    let setup = Setup::for_tests(Seeds::counted(41));
    let place = tars_test_db::place(dir, "orchestration");
    // The next process on a folder continues at once, on every engine.
    let terms = |_: &Db| Ok(Terms::Sole);
    let opened = Orchestration::open_at(dir, &place, terms, setup);
    opened.await.unwrap()
}

fn policy(service: &Orchestration) -> Arc<Agent> {
    Arc::clone(service.agents.get("policy").unwrap())
}

fn gamma(value: f64) -> Values {
    Values::from([("gamma".to_owned(), Value::Number(value))])
}

async fn reload(service: &Arc<Orchestration>, value: f64) -> Result<i64, OrchestrationError> {
    let reload = Reload {
        by: "user:dev".into(),
        reason: "test".into(),
        expected_version: None,
        values: gamma(value),
    };
    let (live, rollout) = service.reload(policy(service), reload).await?;
    assert_eq!(rollout, Rollout::Everywhere);
    Ok(live.row.version)
}

fn step(change: &str, operation: &str, expected_version: i64, value: f64) -> ApplyOperation {
    ApplyOperation {
        change: Governed {
            by: "hypersync".into(),
            on_behalf_of: "user:admin".into(),
            change_id: change.into(),
            token: 1,
        },
        operation_id: operation.into(),
        expected_version,
        values: gamma(value),
    }
}

fn with_token(token: i64, mut step: ApplyOperation) -> ApplyOperation {
    step.change.token = token;
    step
}

async fn apply(
    service: &Arc<Orchestration>,
    step: ApplyOperation,
) -> Result<i64, OrchestrationError> {
    service.apply(policy(service), step).await
}

async fn settle(
    service: &Arc<Orchestration>,
    change: &str,
    approved_version: Option<i64>,
) -> Result<i64, OrchestrationError> {
    let settle = Settle {
        by: "hypersync".into(),
        on_behalf_of: "user:admin".into(),
        change_id: change.into(),
        approved_version,
        void_operation: None,
        token: Some(1),
    };
    service.settle(policy(service), settle).await
}

async fn release(service: &Arc<Orchestration>, change: &str) -> Result<(), OrchestrationError> {
    let release = Release {
        by: "user:admin".into(),
        change_id: change.into(),
        reason: "the saga is gone".into(),
    };
    service.release(policy(service), release).await
}

async fn train(
    service: &Arc<Orchestration>,
    steps: u64,
    seed: Option<u64>,
) -> Result<RunView, OrchestrationError> {
    service
        .start_training(Start::of("policy", steps, seed))
        .await
}

fn held_by<T: std::fmt::Debug>(result: Result<T, OrchestrationError>) -> String {
    match result {
        Err(OrchestrationError::ChangeInProgress { change, .. }) => change,
        other => panic!("not held: {other:?}"),
    }
}

fn by() -> String {
    "user:dev".to_owned()
}

async fn eventually<F: Future<Output = bool>>(mut look: impl FnMut() -> F) {
    for _ in 0..6000 {
        if look().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("it did not come about");
}

async fn kinds(service: &Orchestration) -> Vec<String> {
    let mut tx = service.store.begin("test.audit").await.unwrap();
    let found = audit::peek(&mut tx, 100).await.unwrap();
    let records = found.into_iter().flat_map(|(_, records)| records);
    records.map(|r| r.event_type).collect()
}

const LONG: u64 = 10_000_000;

#[tokio::test]
async fn a_held_agent_refuses_every_other_change() {
    let dir = tempfile::tempdir().unwrap();
    let service = open(dir.path()).await;
    assert_eq!(apply(&service, step("a", "a", 1, 0.97)).await.unwrap(), 2);
    let before = policy(&service).live();
    assert_eq!(held_by(reload(&service, 0.91).await), "a");
    assert_eq!(
        held_by(reload(&service, 0.97).await),
        "a",
        "even for the same values"
    );
    assert_eq!(held_by(apply(&service, step("b", "b", 2, 0.91)).await), "a");
    assert_eq!(held_by(train(&service, 100, None).await), "a");
    assert_eq!(held_by(settle(&service, "b", Some(2)).await), "a");
    assert_eq!(
        settle(&service, "b", None).await.unwrap(),
        2,
        "another change's hold is not released"
    );
    assert_eq!(held_by(reload(&service, 0.91).await), "a");
    assert_eq!(policy(&service).live().row.version, before.row.version);

    settle(&service, "a", None).await.unwrap();
    assert_eq!(reload(&service, 0.91).await.unwrap(), 3);
    assert!(train(&service, 100, None).await.is_ok());
}

#[tokio::test]
async fn a_hold_survives_a_restart_and_can_be_released() {
    let dir = tempfile::tempdir().unwrap();
    apply(&open(dir.path()).await, step("a", "a", 1, 0.97))
        .await
        .unwrap();
    let service = open(dir.path()).await;
    assert_eq!(held_by(reload(&service, 0.91).await), "a");
    let wrong = release(&service, "b").await;
    assert!(matches!(wrong, Err(OrchestrationError::NotHeld(_))));
    release(&service, "a").await.unwrap();
    let again = release(&service, "a").await;
    assert!(matches!(again, Err(OrchestrationError::NotHeld(_))));
    assert_eq!(reload(&service, 0.91).await.unwrap(), 3);
    assert!(
        kinds(&service)
            .await
            .contains(&"admin.agent.release".to_owned())
    );
}

#[tokio::test]
async fn an_operation_is_idempotent_and_renews_its_hold() {
    let dir = tempfile::tempdir().unwrap();
    let service = open(dir.path()).await;
    let first = step("a", "a", 1, 0.97);
    assert_eq!(apply(&service, first.clone()).await.unwrap(), 2);
    assert_eq!(apply(&service, first.clone()).await.unwrap(), 2);
    release(&service, "a").await.unwrap();
    assert_eq!(apply(&service, first.clone()).await.unwrap(), 2);
    assert_eq!(held_by(reload(&service, 0.91).await), "a");
    release(&service, "a").await.unwrap();
    reload(&service, 0.91).await.unwrap();
    assert_eq!(
        apply(&service, first).await.unwrap(),
        2,
        "the version that the operation made, not the live one"
    );
    assert_eq!(
        reload(&service, 0.92).await.unwrap(),
        4,
        "the repeated operation takes no hold"
    );
}

#[tokio::test]
async fn a_change_that_waits_for_a_person_holds_the_agent_until_it_is_settled() {
    let dir = tempfile::tempdir().unwrap();
    let service = open(dir.path()).await;
    apply(&service, step("a", "a", 1, 0.97)).await.unwrap();
    release(&service, "a").await.unwrap();
    assert_eq!(reload(&service, 0.91).await.unwrap(), 3);
    let waiting = |change: &str| Governed {
        by: "hypersync".into(),
        on_behalf_of: "user:admin".into(),
        change_id: change.into(),
        token: 1,
    };
    for _ in 0..2 {
        assert_eq!(
            service.hold(policy(&service), waiting("a")).await.unwrap(),
            3
        );
    }
    drop(service);

    let service = open(dir.path()).await;
    assert_eq!(held_by(reload(&service, 0.92).await), "a");
    assert_eq!(held_by(train(&service, 100, None).await), "a");
    assert_eq!(held_by(apply(&service, step("b", "b", 3, 0.99)).await), "a");
    assert_eq!(
        held_by(service.hold(policy(&service), waiting("b")).await),
        "a"
    );
    let released = release(&service, "a").await;
    assert!(matches!(released, Err(OrchestrationError::AwaitsPerson(_))));
    apply(&service, step("a", "a:back", 3, 0.95)).await.unwrap();
    let goes_on = policy(&service).live().hold.clone().unwrap();
    assert!(!goes_on.awaits_person && goes_on.change_id == "a");
    settle(&service, "a", None).await.unwrap();
    assert_eq!(reload(&service, 0.92).await.unwrap(), 5);
}

#[tokio::test]
async fn weights_are_not_lost_while_the_database_is_busy() {
    let dir = tempfile::tempdir().unwrap();
    let service = open(dir.path()).await;
    let place = tars_test_db::place(dir.path(), "orchestration");
    let other = Db::open(place, store::MIGRATIONS).await.unwrap();
    let run = train(&service, 4000, Some(1)).await.unwrap().row.id;
    let busy = other.write("test.busy", Isolation::Exclusive).await;
    let busy = tars_test_db::Lock::of(busy.unwrap());
    // Changes of an agent are serialised, so after the second one the run has waited too.
    for _ in 0..2 {
        let refused = reload(&service, 0.97).await;
        assert!(
            matches!(refused, Err(OrchestrationError::Store(_))),
            "{refused:?}"
        );
    }
    eventually(async || service.learners.is_idle()).await;
    let waits = service.training(run).await.unwrap().row;
    assert!(!waits.state.has_ended(), "its end waits: {:?}", waits.state);
    drop(busy);
    eventually(|| async { service.training(run).await.unwrap().row.state.has_ended() }).await;
    let ended = service.training(run).await.unwrap().row;
    assert_eq!(
        (ended.state, ended.error.as_str()),
        (RunState::Completed, "")
    );
    // The row may say so before this process knows.
    eventually(async || policy(&service).live().row.weights_version == 1).await;
}

#[tokio::test]
async fn only_the_verified_version_is_approved() {
    let dir = tempfile::tempdir().unwrap();
    let service = open(dir.path()).await;
    apply(&service, step("a", "a", 1, 0.97)).await.unwrap();
    let lost = settle(&service, "a", Some(7)).await;
    assert!(matches!(
        lost,
        Err(OrchestrationError::Version {
            live: 2,
            expected: 7
        })
    ));
    assert_eq!(
        held_by(reload(&service, 0.91).await),
        "a",
        "a refusal releases no hold"
    );
    assert_eq!(policy(&service).live().drift().len(), 1);
    settle(&service, "a", Some(2)).await.unwrap();
    settle(&service, "a", Some(2)).await.expect("twice is once");
    let service = open(dir.path()).await;
    let live = policy(&service).live();
    assert_eq!((live.approved.version, live.drift()), (2, vec![]));
    assert_eq!(live.hold, None);
}

#[tokio::test]
async fn a_direct_reload_is_recorded_as_drift() {
    let dir = tempfile::tempdir().unwrap();
    let service = open(dir.path()).await;
    assert_eq!(policy(&service).live().drift(), []);
    reload(&service, 0.91).await.unwrap();
    let service = open(dir.path()).await;
    let drifted = policy(&service).live().drift();
    assert_eq!(drifted.len(), 1);
    assert_eq!(
        (
            drifted[0].name.as_str(),
            drifted[0].approved,
            drifted[0].live
        ),
        (
            "gamma",
            Some(Value::Number(0.95)),
            Some(Value::Number(0.91))
        )
    );
    assert!(kinds(&service).await.contains(&"agent.drift".to_owned()));
    let before = kinds(&service).await.len();
    reload(&service, 0.95).await.unwrap();
    assert_eq!(policy(&service).live().drift(), []);
    assert_eq!(
        kinds(&service).await.len(),
        before + 1,
        "without drift there is no record of it"
    );
}

#[tokio::test]
async fn an_unknown_state_is_an_error_that_names_its_row() {
    let dir = tempfile::tempdir().unwrap();
    let service = open(dir.path()).await;
    let run = train(&service, LONG, None).await.unwrap().row;
    service.cancel_training(by(), run.id).await.unwrap();
    let mut tx = service.store.begin("test.spoil").await.unwrap();
    let spoil = Query::new("UPDATE training_runs SET state = 'lost'");
    tx.execute(spoil).await.unwrap().one().unwrap();
    tx.commit().await.unwrap();
    for error in [
        service.training(run.id).await.unwrap_err(),
        service.list_trainings("", 10).await.unwrap_err(),
    ] {
        let status = tonic::Status::from(error);
        assert_eq!(status.code(), tonic::Code::DataLoss);
        assert!(status.message().contains(&run.id.to_string()), "{status}");
        assert!(status.message().contains("lost"), "{status}");
    }
}

#[tokio::test]
async fn a_step_of_a_change_that_was_taken_over_is_refused_durably() {
    let dir = tempfile::tempdir().unwrap();
    let service = open(dir.path()).await;
    let first = step("a", "a", 1, 0.97);
    assert_eq!(
        apply(&service, with_token(5, first.clone())).await.unwrap(),
        2
    );
    // Its successor repeats the step, which changes nothing but who may go on.
    assert_eq!(
        apply(&service, with_token(9, first.clone())).await.unwrap(),
        2
    );
    let service = open(dir.path()).await;
    let before = policy(&service).live();
    let superseded = |refused| matches!(refused, Err(OrchestrationError::Superseded(_)));
    let back = step("a", "a:back", 2, 0.95);
    assert!(superseded(
        apply(&service, with_token(5, back)).await.map(drop)
    ));
    assert!(superseded(
        apply(&service, with_token(8, first)).await.map(drop)
    ));
    assert!(superseded(settle(&service, "a", Some(2)).await.map(drop)));
    let waiting = Governed {
        by: "hypersync".into(),
        on_behalf_of: "user:admin".into(),
        change_id: "a".into(),
        token: 8,
    };
    assert!(superseded(
        service.hold(policy(&service), waiting).await.map(drop)
    ));
    assert!(policy(&service).live().is_stored_as(&before));
    let released = Settle {
        by: "hypersync".into(),
        on_behalf_of: "user:admin".into(),
        change_id: "a".into(),
        approved_version: Some(2),
        void_operation: None,
        token: Some(9),
    };
    service.settle(policy(&service), released).await.unwrap();
    assert_eq!(policy(&service).live().approved.version, 2);
    assert!(
        superseded(settle(&service, "a", None).await.map(drop)),
        "also after its end"
    );
    let other = apply(&service, with_token(1, step("b", "b", 2, 0.91))).await;
    assert_eq!(other.unwrap(), 3, "another change has tokens of its own");
}

#[tokio::test]
async fn a_change_that_is_lost_is_settled_without_a_token() {
    let dir = tempfile::tempdir().unwrap();
    let service = open(dir.path()).await;
    let applied = with_token(1 << 50, step("a", "a", 1, 0.97));
    apply(&service, applied).await.unwrap();
    let lost = Settle {
        by: "hypersync".into(),
        on_behalf_of: "user:admin".into(),
        change_id: "a".into(),
        approved_version: None,
        void_operation: None,
        token: None,
    };
    service.settle(policy(&service), lost).await.unwrap();
    assert_eq!(policy(&service).live().hold, None);
}

async fn make_void(
    service: &Arc<Orchestration>,
    change: &str,
    operation: &str,
) -> Result<i64, OrchestrationError> {
    let settle = Settle {
        by: "hypersync".into(),
        on_behalf_of: "user:admin".into(),
        change_id: change.into(),
        approved_version: None,
        void_operation: Some(operation.into()),
        token: Some(1),
    };
    service.settle(policy(service), settle).await
}

#[tokio::test]
async fn a_late_attempt_of_a_change_that_was_given_up_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let service = open(dir.path()).await;
    for _ in 0..2 {
        assert_eq!(make_void(&service, "a", "a").await.unwrap(), 1);
    }
    drop(service);
    let service = open(dir.path()).await;
    let late = apply(&service, step("a", "a", 1, 0.97)).await;
    assert!(
        matches!(late, Err(OrchestrationError::Superseded(_))),
        "{late:?}"
    );
    let live = policy(&service).live();
    assert_eq!((live.row.version, live.hold.clone()), (1, None));
}

#[tokio::test]
async fn a_change_that_is_live_is_not_given_up_and_one_that_was_taken_back_is() {
    let dir = tempfile::tempdir().unwrap();
    let service = open(dir.path()).await;
    apply(&service, step("a", "a", 1, 0.97)).await.unwrap();
    let refused = make_void(&service, "a", "a").await.unwrap_err();
    let told = refused.to_string();
    let status = Status::from(refused);
    let reason = fault::reason(&status);
    assert_eq!(reason.as_deref(), Some("VERSION_CHANGED"));
    assert!(
        told.starts_with("version 2 is live, which the operation a made"),
        "{told}"
    );
    assert!(policy(&service).live().hold.is_some(), "it is held still");
    apply(&service, step("a", "a:back:2", 2, 0.95))
        .await
        .unwrap();
    make_void(&service, "a", "a").await.unwrap();
    assert_eq!(policy(&service).live().hold, None);
}
