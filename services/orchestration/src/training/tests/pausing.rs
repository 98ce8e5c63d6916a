//! Runs that are paused and resumed.

use super::*;
use crate::store::Report;
use tars_runtime::{audit, db::Query};

/// The digests of the weights that some agents have.
fn digests(service: &Orchestration, agents: &[&str]) -> Vec<Option<String>> {
    let live = agents
        .iter()
        .map(|id| service.agents.get(id).unwrap().live());
    live.map(|live| live.row.weights.clone()).collect()
}

async fn reports(service: &Orchestration, id: Uuid) -> Vec<(i64, Report)> {
    let groups = service.store.reports(id, 0, 1_000).await.unwrap();
    groups.into_iter().flat_map(|g| g.numbered()).collect()
}

async fn begin(service: &Arc<Orchestration>, start: Start) -> Uuid {
    service.start_training(start).await.unwrap().row.id
}

async fn pause(service: &Arc<Orchestration>, id: Uuid) -> Result<RunState, OrchestrationError> {
    let paused = service.pause_training(by(), id).await?;
    Ok(paused.row.state)
}

async fn resume(service: &Arc<Orchestration>, id: Uuid) -> Result<RunState, OrchestrationError> {
    let resumed = service.resume_training(by(), id).await?;
    Ok(resumed.row.state)
}

/// Who caused an event, and of which agent, as the audit has it.
async fn recorded(service: &Orchestration, event: &str) -> Vec<String> {
    let mut tx = service.store.begin("test.audit").await.unwrap();
    let found = audit::peek(&mut tx, 100).await.unwrap();
    let records = found.into_iter().flat_map(|(_, records)| records);
    let of_event = records.filter(|record| record.event_type == event);
    of_event
        .map(|record| format!("{} {}", record.caller, record.resource))
        .collect()
}

async fn write(service: &Orchestration, query: Query<'_>) {
    let mut tx = service.store.begin("test.write").await.unwrap();
    tx.execute(query).await.unwrap().one().unwrap();
    tx.commit().await.unwrap();
}

async fn state(service: &Orchestration, id: Uuid) -> RunState {
    service.run_row(id).await.unwrap().state
}

/// Pauses a run, and waits until it is.
async fn paused(service: &Arc<Orchestration>, id: Uuid) {
    pause(service, id).await.unwrap();
    eventually(async || state(service, id).await == RunState::Paused).await;
    assert!(service.trainings.is_empty(), "nothing follows it");
}

/// Waits until a run has stored a report after so many.
async fn reported(service: &Orchestration, id: Uuid, more_than: i64) {
    let row = async || service.run_row(id).await.unwrap();
    eventually(async || row().await.last_report > more_than).await;
}

#[tokio::test]
async fn a_paused_run_ends_as_an_undisturbed_one_when_it_is_resumed() {
    const TEAM: [&str; 3] = ["consensus", "policy", "resource"];
    let dir = tempfile::tempdir().unwrap();
    let undisturbed = open(dir.path(), "mesh").await;
    let whole = train(&undisturbed, joint(&TEAM, 8_000)).await.row;

    let dir = tempfile::tempdir().unwrap();
    let service = open(dir.path(), "mesh").await;
    let id = begin(&service, joint(&TEAM, 8_000)).await;
    for more_than in [0, 30] {
        reported(&service, id, more_than).await;
        paused(&service, id).await;
        let row = service.run_row(id).await.unwrap();
        assert!(row.steps_done < row.steps && row.ended_us.is_none());
        // It has gone on for one step of the copies since.
        let saved = row.checkpoint_step.unwrap();
        assert_eq!(saved, row.steps_done - 8);
        assert!(service.learners.is_idle());
        // Its agents are free meanwhile.
        LearnerLeases::acquire(&service.leases, TEAM)
            .await
            .unwrap()
            .release()
            .await;
        assert_eq!(resume(&service, id).await.unwrap(), RunState::Queued);
    }
    let resumed = ended(&service, id).await.row;
    assert_eq!(resumed.state, RunState::Completed, "{}", resumed.error);
    assert_eq!(
        reports(&service, id).await,
        reports(&undisturbed, whole.id).await
    );
    assert_eq!(digests(&service, &TEAM), digests(&undisturbed, &TEAM));
    assert_eq!(resumed.final_return, whole.final_return);
}

/// Waits until a watcher is told this state.
async fn told(watcher: &mut Watcher, state: RunState) {
    let told = async {
        loop {
            match watcher.next().await.unwrap() {
                Some((_, TrainingEvent::State(run))) if run.row.state == state => return,
                Some(_) => {}
                None => panic!("the run has ended"),
            }
        }
    };
    tokio::time::timeout(PATIENCE, told).await.unwrap();
}

#[tokio::test]
async fn who_asks_for_the_states_of_a_run_is_told_that_it_is_paused_and_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let service = open(dir.path(), "mesh").await;
    let id = begin(&service, joint(&["policy"], LONG)).await;
    let watch = async || {
        let watcher = service.watch_training(id, 0).await.unwrap();
        watcher.with_states()
    };
    let mut watcher = watch().await;
    told(&mut watcher, RunState::Running).await;
    paused(&service, id).await;
    told(&mut watcher, RunState::Paused).await;
    // Whoever comes later is told, too.
    let mut late = watch().await;
    told(&mut late, RunState::Paused).await;
    resume(&service, id).await.unwrap();
    for watcher in [&mut watcher, &mut late] {
        told(watcher, RunState::Running).await;
    }
    service.cancel_training(by(), id).await.unwrap();
    assert_eq!(ended(&service, id).await.row.state, RunState::Cancelled);
}

#[tokio::test]
async fn a_paused_run_stays_paused_over_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let service = open(dir.path(), "mesh").await;
    let id = begin(&service, joint(&["policy", "ethical"], LONG)).await;
    reported(&service, id, 0).await;
    paused(&service, id).await;
    let before = service.store.plan(id).await.unwrap();
    assert!(
        before
            .as_ref()
            .is_some_and(|plan| plan.checkpoint.is_some())
    );
    drop(service);
    let service = open(dir.path(), "mesh").await;
    service.resume_left_runs().await.unwrap();
    assert_eq!(state(&service, id).await, RunState::Paused);
    assert!(service.trainings.is_empty());
    assert_eq!(service.store.plan(id).await.unwrap(), before);
    resume(&service, id).await.unwrap();
    eventually(async || state(&service, id).await == RunState::Running).await;
    service.cancel_training(by(), id).await.unwrap();
    assert_eq!(ended(&service, id).await.row.state, RunState::Cancelled);
}

#[tokio::test]
async fn a_run_is_paused_in_the_queue_and_begins_when_it_is_resumed() {
    let dir = tempfile::tempdir().unwrap();
    let service = open(dir.path(), "mesh").await;
    let waits = busy(&service);
    let id = begin(&service, Start::of("ethical", 400, Some(1))).await;
    assert_eq!(pause(&service, id).await.unwrap(), RunState::Paused);
    assert_eq!(service.training(id).await.unwrap().position, None);
    assert_eq!(resume(&service, id).await.unwrap(), RunState::Queued);
    assert_eq!(service.training(id).await.unwrap().position, Some(1));
    assert_eq!(
        resume(&service, id).await.unwrap(),
        RunState::Queued,
        "already"
    );
    drop(waits);
    let run = ended(&service, id).await.row;
    assert_eq!(run.state, RunState::Completed);
    assert!(run.running_us.is_some());
}

#[tokio::test]
async fn a_run_is_not_resumed_while_another_one_trains_or_a_change_holds_one_of_its_agents() {
    use OrchestrationError as E;
    let dir = tempfile::tempdir().unwrap();
    let service = open(dir.path(), "mesh").await;
    let id = begin(&service, joint(&["policy", "ethical"], LONG)).await;
    paused(&service, id).await;
    let other = begin(&service, Start::of("ethical", LONG, None)).await;
    let refused = resume(&service, id).await.unwrap_err();
    assert!(
        matches!(&refused, E::TrainingRuns(agent) if agent == "ethical"),
        "{refused}"
    );
    service.cancel_training(by(), other).await.unwrap();
    ended(&service, other).await;
    let agent = Arc::clone(service.agents.get("policy").unwrap());
    service.hold(agent, held_by("a")).await.unwrap();
    let refused = resume(&service, id).await.unwrap_err();
    assert!(
        matches!(&refused, E::ChangeInProgress { agent, .. } if agent == "policy"),
        "{refused}"
    );
    assert_eq!(state(&service, id).await, RunState::Paused);
    release(&service, "policy", "a").await;
    // The leases of a refused resumption are given up in the background.
    eventually(async || resume(&service, id).await.is_ok()).await;
    service.cancel_training(by(), id).await.unwrap();
    ended(&service, id).await;
}

#[tokio::test]
async fn a_run_for_which_there_is_no_place_stays_paused() {
    let dir = tempfile::tempdir().unwrap();
    let service = open(dir.path(), "mesh").await;
    let id = begin(&service, Start::of("ethical", LONG, None)).await;
    paused(&service, id).await;
    let _busy = busy(&service);
    let owner = Owner {
        class: Class::Training,
        caller: "dev".to_owned(),
    };
    let fill = || {
        service
            .learners
            .start(owner.clone(), Task::for_tests(LONG), None)
    };
    let filled: Vec<Running> = std::iter::from_fn(|| fill().ok()).collect();
    let refused = resume(&service, id).await.unwrap_err();
    assert!(
        matches!(refused, OrchestrationError::QueueFull),
        "{refused}"
    );
    assert_eq!(state(&service, id).await, RunState::Paused);
    drop(filled);
    eventually(async || resume(&service, id).await.is_ok()).await;
    service.cancel_training(by(), id).await.unwrap();
    ended(&service, id).await;
}

#[tokio::test]
async fn a_paused_run_is_cancelled_at_once_and_goes_on_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let service = open(dir.path(), "mesh").await;
    let id = begin(&service, joint(&["policy", "resource"], LONG)).await;
    paused(&service, id).await;
    assert_eq!(
        pause(&service, id).await.unwrap(),
        RunState::Paused,
        "already"
    );
    let cancelled = service.cancel_training(by(), id).await.unwrap().row;
    assert_eq!(cancelled.state, RunState::Cancelled);
    assert!(cancelled.ended_us.is_some());
    assert_eq!(service.store.plan(id).await.unwrap(), None);
    service.cancel_training(by(), id).await.unwrap();
    let cancelled = recorded(&service, "training.cancelled").await;
    assert_eq!(cancelled, ["user:dev policy", "user:dev resource"], "once");
    for refused in [pause(&service, id).await, resume(&service, id).await] {
        let refused = refused.unwrap_err();
        assert!(
            matches!(refused, OrchestrationError::WrongState("cancelled", _)),
            "{refused}"
        );
    }
    let nobody = Uuid::nil();
    for refused in [
        pause(&service, nobody).await,
        resume(&service, nobody).await,
    ] {
        assert!(matches!(refused, Err(OrchestrationError::NotFound(..))));
    }
    assert_eq!(weights_versions(&service), [0; 4]);
}

#[tokio::test]
async fn a_run_with_weights_that_wait_for_a_change_is_paused_and_installs_them_later() {
    let dir = tempfile::tempdir().unwrap();
    let service = open(dir.path(), "mesh").await;
    let id = begin(&service, joint(&["consensus", "resource"], 2_000)).await;
    let agent = Arc::clone(service.agents.get("resource").unwrap());
    service.hold(agent, held_by("a")).await.unwrap();
    eventually(async || service.learners.is_idle()).await;
    paused(&service, id).await;
    assert_eq!(weights_versions(&service), [0; 4]);
    release(&service, "resource", "a").await;
    resume(&service, id).await.unwrap();
    assert_eq!(ended(&service, id).await.row.state, RunState::Completed);
    assert_eq!(weights_versions(&service), [0, 1, 0, 1]);
}

#[tokio::test]
async fn a_run_goes_on_from_what_is_stored_when_its_turn_has_come() {
    let dir = tempfile::tempdir().unwrap();
    let service = open(dir.path(), "mesh").await;
    let id = begin(&service, Start::of("ethical", LONG, None)).await;
    paused(&service, id).await;
    let agent = Arc::clone(service.agents.get("ethical").unwrap());
    let turn = agent.changing().lock().await;
    let mut resumed = Box::pin(resume(&service, id));
    let waited = tokio::time::timeout(Duration::from_millis(200), &mut resumed).await;
    waited.expect_err("it waits for its turn");
    // Meanwhile it was resumed and paused at another replica, which has left another checkpoint.
    let mut tx = service.store.begin("test.later").await.unwrap();
    let later = "0".repeat(64);
    let put = store::put_checkpoint(&mut tx, id, &later, 1, &[1]).await;
    put.unwrap();
    tx.commit().await.unwrap();
    drop(turn);
    let refused = resumed.await.unwrap_err();
    assert!(
        matches!(refused, OrchestrationError::Blob(_)),
        "there are no such bytes: {refused}"
    );
    assert_eq!(state(&service, id).await, RunState::Paused);
}

#[tokio::test]
async fn one_caller_does_not_take_the_places_of_all_paused_runs() {
    let dir = tempfile::tempdir().unwrap();
    let service = open(dir.path(), "mesh").await;
    let _busy = busy(&service);
    let of = |owner: &str| Start {
        owner: owner.to_owned(),
        ..Start::of("ethical", LONG, None)
    };
    let mut last = Uuid::nil();
    for _ in 0..16 {
        last = begin(&service, of("ada")).await;
        paused(&service, last).await;
    }
    // One that is about to be paused takes a place too.
    let set = |state| {
        let text = "UPDATE training_runs SET state = $1 WHERE id = $2";
        Query::new(text).bind(state).bind(last)
    };
    write(&service, set("pausing")).await;
    let own = begin(&service, of("ada")).await;
    let refused = pause(&service, own).await.unwrap_err();
    assert!(
        matches!(refused, OrchestrationError::TooManyPausedOfCaller(16)),
        "{refused}"
    );
    assert_eq!(state(&service, own).await, RunState::Queued);
    service.cancel_training(by(), own).await.unwrap();
    ended(&service, own).await;
    write(&service, set("paused")).await;
    let other = begin(&service, of("bob")).await;
    paused(&service, other).await;
    service.cancel_training(by(), last).await.unwrap();
    let own = begin(&service, of("ada")).await;
    paused(&service, own).await;
}
