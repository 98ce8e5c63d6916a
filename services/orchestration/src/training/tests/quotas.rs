//! The steps of runs are counted as far as their stored progress goes, and a run is refused whose steps do not fit.

use super::*;
use tars_interceptors::usage::{Allowance, OverQuota, QuotaRefusal};
use tars_runtime::{
    db::LostCommit,
    usage::{self, Dimension, Item},
};

const DIMENSION: Dimension = Dimension::TrainingSteps;

async fn outbox(service: &Orchestration) -> Vec<Item> {
    let mut db = service.store.db().read("test.outbox");
    usage::peek(&mut db, 10_000).await.unwrap()
}

async fn counted(service: &Orchestration) -> i64 {
    let items = outbox(service).await;
    items
        .iter()
        .map(|item| i64::try_from(item.amount).unwrap())
        .sum()
}

fn limited(agent: &str, steps: u64, limit: u64) -> Start {
    Start {
        allowance: Allowance::unlimited("dev").with(DIMENSION, limit),
        ..Start::of(agent, steps, Some(1))
    }
}

fn over<T: std::fmt::Debug>(refused: Result<T, OrchestrationError>) -> OverQuota {
    match refused {
        Err(OrchestrationError::Quota(QuotaRefusal::Over(over))) => over,
        other => panic!("{other:?}"),
    }
}

/// Starts a run and waits until it has stored a report.
async fn begun(service: &Arc<Orchestration>, start: Start) -> Uuid {
    let id = service.start_training(start).await.unwrap().row.id;
    let row = async || service.run_row(id).await.unwrap();
    eventually(async || row().await.last_report > 0).await;
    id
}

#[tokio::test]
async fn a_run_counts_the_steps_that_it_has_taken() {
    let dir = tempfile::tempdir().unwrap();
    let service = open(dir.path(), "cartpole").await;
    let row = train(&service, Start::of("policy", 500, Some(1))).await.row;
    assert_eq!(row.state, RunState::Completed, "{}", row.error);
    assert_eq!((row.steps_done, counted(&service).await), (500, 500));
    let items = outbox(&service).await;
    let source = format!("run:{}", row.id);
    assert!(
        items
            .iter()
            .all(|i| i.source == source && i.user_id == "dev")
    );
    assert!(items.iter().all(|i| i.dimension == DIMENSION));
    assert_eq!(items.iter().map(|i| i.number).max(), Some(500));
}

#[tokio::test]
async fn what_a_resumed_run_takes_again_is_counted_once() {
    let dir = tempfile::tempdir().unwrap();
    let service = open(dir.path(), "mesh").await;
    let id = begun(&service, joint(&["policy", "resource"], 4000)).await;
    service
        .pause_training("user:dev".to_owned(), id)
        .await
        .unwrap();
    let row = async || service.run_row(id).await.unwrap();
    eventually(async || row().await.state == RunState::Paused).await;
    let taken = row().await.steps_done;
    assert_eq!(counted(&service).await, taken);
    assert!(taken > 0 && taken < 4000);
    service
        .resume_training("user:dev".to_owned(), id)
        .await
        .unwrap();
    let ended = ended(&service, id).await.row;
    assert_eq!(ended.state, RunState::Completed, "{}", ended.error);
    assert_eq!(counted(&service).await, ended.steps_done);
}

#[tokio::test]
async fn a_cancelled_run_counts_what_is_stored_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let service = open(dir.path(), "mesh").await;
    let id = begun(&service, joint(&["policy"], LONG)).await;
    service
        .cancel_training("user:dev".to_owned(), id)
        .await
        .unwrap();
    let ended = ended(&service, id).await.row;
    assert_eq!(ended.state, RunState::Cancelled);
    assert_eq!(counted(&service).await, ended.steps_done);
}

/// Starts a run, and stops it before its first report as the request says. Returns the steps that it had taken
/// before, and the run.
async fn stopped_early(
    service: &Arc<Orchestration>,
    request: impl AsyncFnOnce(Uuid) -> Result<RunView, OrchestrationError>,
) -> (i64, RunRow) {
    let start = joint(&["policy"], LONG);
    let id = service.start_training(start).await.unwrap().row.id;
    eventually(async || service.trainings.reached(id) > 0).await;
    let before = i64::try_from(service.trainings.reached(id)).unwrap();
    request(id).await.unwrap();
    let row = tokio::time::timeout(PATIENCE, service.at_rest(id)).await;
    (before, row.unwrap().unwrap())
}

#[tokio::test]
async fn what_a_run_took_since_its_last_report_is_counted_when_it_is_cancelled() {
    let dir = tempfile::tempdir().unwrap();
    let service = open(dir.path(), "mesh").await;
    let cancel = async |id| service.cancel_training("user:dev".to_owned(), id).await;
    let (before, row) = stopped_early(&service, cancel).await;
    assert_eq!(row.state, RunState::Cancelled);
    assert!(row.steps_done >= before && before > 0, "{row:?}");
    assert_eq!(counted(&service).await, row.steps_done);
}

#[tokio::test]
async fn what_a_run_took_since_its_last_report_is_counted_when_it_is_paused() {
    let dir = tempfile::tempdir().unwrap();
    let service = open(dir.path(), "mesh").await;
    let pause = async |id| service.pause_training("user:dev".to_owned(), id).await;
    let (before, row) = stopped_early(&service, pause).await;
    assert_eq!(row.state, RunState::Paused);
    assert!(row.steps_done >= before && before > 0, "{row:?}");
    assert_eq!(counted(&service).await, row.steps_done);
    let cancelled = service.cancel_training("user:dev".to_owned(), row.id).await;
    let cancelled = cancelled.unwrap().row;
    assert_eq!(cancelled.steps_done, row.steps_done);
    assert_eq!(counted(&service).await, row.steps_done);
}

#[tokio::test]
async fn a_group_whose_commit_is_in_doubt_is_counted_once() {
    for lost in [LostCommit::Made, LostCommit::Undone] {
        let dir = tempfile::tempdir().unwrap();
        let service = open(dir.path(), "cartpole").await;
        service.store.db().lose_commit("training_runs.report", lost);
        let row = train(&service, Start::of("policy", 500, Some(1))).await.row;
        assert_eq!(row.state, RunState::Completed, "{}", row.error);
        assert_eq!(counted(&service).await, 500);
    }
}

#[tokio::test]
async fn a_run_is_refused_before_it_starts_when_its_steps_do_not_fit() {
    let dir = tempfile::tempdir().unwrap();
    let service = open(dir.path(), "cartpole").await;
    let refused = over(service.start_training(limited("policy", 501, 500)).await);
    assert_eq!(
        (refused.limit, refused.left(), refused.asked),
        (500, 500, 501)
    );
    let (runs, _) = service.list_trainings("", 0).await.unwrap();
    assert!(runs.is_empty() && service.learners.is_idle());
    let row = train(&service, limited("policy", 500, 500)).await.row;
    assert_eq!(row.state, RunState::Completed, "{}", row.error);
    // It waits in the outbox, and Auth has not counted it.
    let refused = over(service.start_training(limited("policy", 1, 500)).await);
    assert_eq!((refused.used, refused.left()), (500, 0));
    let other = Start {
        owner: "bob".to_owned(),
        allowance: Allowance::unlimited("bob").with(DIMENSION, 500),
        ..limited("policy", 500, 0)
    };
    train(&service, other).await;
}

#[tokio::test]
async fn what_runs_and_paused_runs_may_still_take_is_promised_to_them() {
    let dir = tempfile::tempdir().unwrap();
    let service = open(dir.path(), "mesh").await;
    let id = begun(&service, limited("policy", LONG, LONG + 10)).await;
    let used = async || {
        over(
            service
                .start_training(limited("ethical", 11, LONG + 10))
                .await,
        )
        .used
    };
    assert_eq!(used().await, LONG);
    service
        .pause_training("user:dev".to_owned(), id)
        .await
        .unwrap();
    let row = async || service.run_row(id).await.unwrap();
    eventually(async || row().await.state == RunState::Paused).await;
    assert_eq!(used().await, LONG);
    service
        .cancel_training("user:dev".to_owned(), id)
        .await
        .unwrap();
    let taken = u64::try_from(ended(&service, id).await.row.steps_done).unwrap();
    assert_eq!(
        over(service.start_training(limited("ethical", LONG, LONG)).await).used,
        taken
    );
}
