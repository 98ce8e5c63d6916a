//! Commits whose answer is lost: what is live is what is stored, whatever became of them.

use super::*;
use crate::{
    Setup,
    changes::{ApplyOperation, Governed, Release, Reload, Settle},
    store::{self, RunState},
    training::Start,
    versions::{Promotion, Target},
};
use std::{path::Path, sync::Arc, time::Duration};
use tars_learn::hyper::{Value, Values};
use tars_runtime::{
    db::{Db, LostCommit},
    lease::Terms,
    seeds::Seeds,
};

const FAULTS: [LostCommit; 2] = [LostCommit::Made, LostCommit::Undone];

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

#[derive(Debug, Clone, Copy)]
enum Change {
    Reload,
    Apply,
    Hold,
    Settle,
    Release,
    Promote,
}

impl Change {
    const ALL: [Self; 6] = [
        Self::Reload,
        Self::Apply,
        Self::Hold,
        Self::Settle,
        Self::Release,
        Self::Promote,
    ];

    /// The name of its transaction.
    fn name(self) -> &'static str {
        match self {
            Self::Reload | Self::Apply => "agents.reload",
            Self::Hold => "agents.hold",
            Self::Settle => "agents.settle",
            Self::Release => "agents.release",
            Self::Promote => "agents.promote",
        }
    }

    /// What must have been done before.
    async fn prepare(self, service: &Arc<Orchestration>) {
        match self {
            Self::Settle | Self::Release => Self::Apply.make(service).await.unwrap(),
            Self::Promote => {
                for _ in 0..2 {
                    trained(service).await;
                }
            }
            Self::Reload | Self::Apply | Self::Hold => {}
        }
    }

    async fn make(self, service: &Arc<Orchestration>) -> Result<(), OrchestrationError> {
        let (agent, by) = (policy(service), "user:dev".to_owned());
        let (change_id, on_behalf_of) = ("a".to_owned(), by.clone());
        match self {
            Self::Reload => {
                let change = Reload {
                    by,
                    reason: "test".into(),
                    expected_version: None,
                    values: gamma(0.91),
                };
                service.reload(agent, change).await.map(drop)
            }
            Self::Apply => {
                let change = ApplyOperation {
                    change: Governed {
                        by,
                        on_behalf_of,
                        change_id,
                        token: 1,
                    },
                    operation_id: "a".into(),
                    expected_version: 1,
                    values: gamma(0.97),
                };
                let version = service.apply(agent, change).await?;
                assert_eq!(version, 2);
                Ok(())
            }
            Self::Hold => {
                let change = Governed {
                    by,
                    on_behalf_of,
                    change_id,
                    token: 1,
                };
                service.hold(agent, change).await.map(drop)
            }
            Self::Settle => {
                let change = Settle {
                    by,
                    on_behalf_of,
                    change_id,
                    approved_version: Some(2),
                    void_operation: None,
                    token: Some(1),
                };
                service.settle(agent, change).await.map(drop)
            }
            Self::Release => {
                let change = Release {
                    by,
                    change_id,
                    reason: "test".into(),
                };
                service.release(agent, change).await
            }
            Self::Promote => {
                let change = Promotion {
                    by,
                    reason: "test".into(),
                    target: Target::Version(1),
                    expected: Some(2),
                    stage: None,
                };
                service.promote(agent, change).await.map(drop)
            }
        }
    }
}

/// The live state of an agent and the rows that it must be a copy of.
async fn is_copy(service: &Orchestration) -> bool {
    let (live, agent) = (policy(service).current().unwrap(), policy(service));
    let mut tx = service.store.begin("test.rows").await.unwrap();
    let row = store::agent(&mut *tx, agent.id()).await.unwrap().unwrap();
    let approved = store::approval(&mut tx, agent.id()).await.unwrap().unwrap();
    let hold = store::hold(&mut tx, agent.id()).await.unwrap();
    live.row.hyperparameters == row.hyperparameters
        && (live.row.version, live.row.weights_version) == (row.version, row.weights_version)
        && live.row.weights == row.weights
        && (live.approved.clone(), live.hold.clone()) == (approved, hold)
}

async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let check = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let checked = tokio::time::timeout(Duration::from_secs(30), check).await;
    checked.unwrap_or_else(|_| panic!("never happened: {what}"));
}

#[tokio::test]
async fn a_commit_that_was_made_succeeds_and_is_live_without_its_answer() {
    for change in Change::ALL {
        let dir = tempfile::tempdir().unwrap();
        let service = open(dir.path()).await;
        change.prepare(&service).await;
        service
            .store
            .db()
            .lose_commit(change.name(), LostCommit::Made);
        change.make(&service).await.unwrap();
        assert!(is_copy(&service).await, "{change:?}");
    }
}

#[tokio::test]
async fn a_commit_that_was_not_made_fails_changes_nothing_and_can_be_repeated() {
    for change in Change::ALL {
        let dir = tempfile::tempdir().unwrap();
        let service = open(dir.path()).await;
        change.prepare(&service).await;
        let before = policy(&service).live();
        service
            .store
            .db()
            .lose_commit(change.name(), LostCommit::Undone);
        let lost = change.make(&service).await;
        let in_doubt = matches!(lost, Err(OrchestrationError::Store(DbError::InDoubt(_))));
        assert!(in_doubt, "{change:?}: {lost:?}");
        assert!(policy(&service).live().is_stored_as(&before), "{change:?}");
        assert!(is_copy(&service).await, "{change:?}");
        change.make(&service).await.unwrap();
        assert!(is_copy(&service).await, "{change:?}");
    }
}

#[tokio::test]
async fn nothing_acts_upon_an_agent_in_doubt_until_its_rows_are_read() {
    for (lost, version) in [(LostCommit::Made, 2), (LostCommit::Undone, 1)] {
        let dir = tempfile::tempdir().unwrap();
        let service = open(dir.path()).await;
        service.store.db().cut_off_after(Change::Apply.name(), lost);
        let asked = Arc::clone(&service);
        let asked = tokio::spawn(async move { Change::Apply.make(&asked).await });
        eventually("it is in doubt", async || {
            policy(&service).current().is_err()
        })
        .await;
        // The caller is out of time; the task that commits goes on.
        asked.abort();
        assert_eq!(policy(&service).live().row.version, 1);
        service.store.db().cut_off(false);
        eventually("the rows are read", async || {
            policy(&service).current().is_ok()
        })
        .await;
        let live = policy(&service).current().unwrap();
        assert_eq!(live.row.version, version);
        assert!(is_copy(&service).await);
        // The operation is as idempotent as after a commit that was answered.
        Change::Apply.make(&service).await.unwrap();
        assert_eq!(policy(&service).live().row.version, 2);
        assert!(is_copy(&service).await);
    }
}

#[tokio::test]
async fn what_is_stored_is_live_before_the_next_change() {
    let dir = tempfile::tempdir().unwrap();
    let service = open(dir.path()).await;
    // Written past the service, as by another replica.
    let agent = policy(&service);
    let mut tx = service.store.begin("test.past").await.unwrap();
    let mut row = agent.live().row.clone();
    row.version += 1;
    row.hyperparameters.extend(gamma(0.93));
    let written = store::update_hyperparameters(&mut tx, &row).await.unwrap();
    assert!(written.is_done());
    tx.commit().await.unwrap();
    Change::Reload.make(&service).await.unwrap();
    assert_eq!(agent.live().row.version, 3);
    assert!(is_copy(&service).await);
}

async fn train(service: &Arc<Orchestration>) -> Result<uuid::Uuid, OrchestrationError> {
    let started = service.start_training(Start::of("policy", 200, None));
    Ok(started.await?.row.id)
}

/// Trains to the end.
async fn trained(service: &Arc<Orchestration>) {
    let id = train(service).await.unwrap();
    eventually("it has ended", async || {
        let run = service.training(id).await.unwrap().row;
        run.state == RunState::Completed && service.trainings.is_empty()
    })
    .await;
}

#[tokio::test]
async fn a_training_whose_row_was_written_runs_and_another_leaves_nothing() {
    for lost in FAULTS {
        let dir = tempfile::tempdir().unwrap();
        let service = open(dir.path()).await;
        let db = service.store.db();
        db.lose_commit("training_runs.start", lost);
        let started = train(&service).await;
        let id = match lost {
            LostCommit::Made => started.unwrap(),
            LostCommit::Undone => {
                let unchanged = matches!(
                    &started,
                    Err(OrchestrationError::Store(DbError::Unavailable(_)))
                );
                assert!(unchanged, "{started:?}");
                let (rows, _) = service.list_trainings("", 10).await.unwrap();
                assert!(rows.is_empty());
                train(&service).await.unwrap()
            }
        };
        eventually("it has ended", async || {
            service.training(id).await.unwrap().row.state == RunState::Completed
        })
        .await;
    }
}

#[tokio::test]
async fn the_weights_of_a_run_are_installed_once_whatever_its_last_commit_does() {
    for lost in FAULTS {
        let dir = tempfile::tempdir().unwrap();
        let service = open(dir.path()).await;
        service.store.db().lose_commit("training_runs.end", lost);
        let id = train(&service).await.unwrap();
        // The row may say so before this process knows.
        eventually("it is over here", async || service.trainings.is_empty()).await;
        let ended = service.training(id).await.unwrap().row;
        assert_eq!(ended.state, RunState::Completed);
        assert_eq!(policy(&service).live().row.weights_version, 1);
        assert!(is_copy(&service).await);
    }
}
