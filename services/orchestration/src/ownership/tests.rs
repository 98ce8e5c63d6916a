//! Two replicas of Orchestration on one database.

use super::*;
use crate::{
    Setup,
    learners::{Class, Owner, Running},
    store::RunState,
    training::RunView,
};
use std::{future::Future, time::Duration};
use tars_learn::{Run, hyper::Values};
use tars_runtime::{clock::Clock, lease::Terms, seeds::Seeds};
use uuid::Uuid;

/// Nothing is renewed while a test runs.
const LIFE: Duration = Duration::from_secs(3600);
const LONG: u64 = 10_000_000;

struct Replica {
    service: Arc<Orchestration>,
    clock: Clock,
}

impl Replica {
    async fn start(dir: &tempfile::TempDir, holder: &str) -> Self {
        let setup = Setup::for_tests(Seeds::counted(1));
        let clock = setup.clock.clone();
        let place = tars_test_db::place(dir.path(), "orchestration");
        let terms = Terms::Shared {
            holder: holder.to_owned(),
            life: LIFE,
        };
        let terms = |_: &_| Ok(terms);
        let service = Orchestration::open_at(dir.path(), &place, terms, setup);
        Self {
            service: service.await.unwrap(),
            clock,
        }
    }

    async fn train(&self, steps: u64) -> Result<RunView, OrchestrationError> {
        let (by, owner) = ("user:dev".to_owned(), "dev".to_owned());
        let start = self
            .service
            .start_training(by, owner, "policy", Some(steps), Some(1));
        start.await
    }

    async fn state(&self, run: Uuid) -> RunState {
        self.service.training(run).await.unwrap().row.state
    }

    /// Occupies the thread that trains, so that a run waits.
    fn busy(&self) -> Running {
        let owner = Owner {
            class: Class::Training,
            caller: "user:other".into(),
        };
        let run = Run {
            algorithm: "dqn".into(),
            environment: "gridworld".into(),
            values: Values::new(),
            seed: 1,
            steps: LONG,
            reports: 1,
            eval_episodes: 1,
            start: None,
        };
        self.service.learners.start(owner, run, None).unwrap()
    }

    /// Waits until the run's watchers are told of its end.
    async fn ended(&self, run: Uuid) -> RunState {
        let training = self.service.trainings.get(run).unwrap();
        let closed = || async { training.log.is_closed() };
        eventually(closed).await;
        self.state(run).await
    }
}

async fn eventually<F: Future<Output = bool>>(is_so: impl Fn() -> F) {
    for _ in 0..6000 {
        if is_so().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("it did not come about");
}

async fn two() -> (tempfile::TempDir, Replica, Replica) {
    let dir = tempfile::tempdir().unwrap();
    let one = Replica::start(&dir, "one").await;
    let two = Replica::start(&dir, "two").await;
    (dir, one, two)
}

#[tokio::test]
async fn an_agent_that_another_replica_trains_is_left_alone() {
    let (dir, one, two) = two().await;
    let run = one.train(LONG).await.unwrap().row.id;
    two.service.interrupt_left_runs().await.unwrap();
    let three = Replica::start(&dir, "three").await;
    for other in [&two, &three] {
        assert!(!other.state(run).await.has_ended());
        let refused = other.train(10).await;
        assert!(matches!(refused, Err(OrchestrationError::TrainingRuns)));
    }
    one.service.cancel_training(run).await.unwrap();
    let next = two.train(LONG).await.unwrap().row.id;
    two.service.cancel_training(next).await.unwrap();
}

#[tokio::test]
async fn a_suspended_replica_installs_no_weights_once_another_has_taken_over() {
    let (_dir, one, two) = two().await;
    let other = one.busy();
    let run = one.train(500).await.unwrap().row.id;
    // The clock of the first stands still: it does not know that its lease has ended.
    two.service.interrupt_left_runs().await.unwrap();
    two.clock.advance(LIFE);
    two.service.interrupt_left_runs().await.unwrap();
    assert_eq!(two.state(run).await, RunState::Interrupted);
    let before = two.service.training(run).await.unwrap().row;
    drop(other);
    assert_eq!(one.ended(run).await, RunState::Interrupted);
    let after = two.service.training(run).await.unwrap().row;
    assert_eq!(
        (before.steps_done, before.ended_us, before.running_us),
        (after.steps_done, after.ended_us, after.running_us)
    );
    for replica in [&one, &two] {
        let agent = replica.service.agents.get("policy").unwrap();
        assert_eq!(agent.live().row.weights_version, 0);
        let stored = replica.service.store.agent("policy").await.unwrap();
        assert_eq!(stored.unwrap().weights, None);
    }
}

#[tokio::test]
async fn an_agent_of_a_replica_that_stops_can_be_trained_by_another_at_once() {
    let (_dir, one, two) = two().await;
    let run = one.train(LONG).await.unwrap().row.id;
    one.service.leases.close().await;
    assert!(
        !one.ended(run).await.has_ended(),
        "that is for the next to say"
    );
    two.service.interrupt_left_runs().await.unwrap();
    assert_eq!(two.state(run).await, RunState::Interrupted);
    let next = two.train(LONG).await.unwrap().row.id;
    two.service.cancel_training(next).await.unwrap();
    eventually(|| async { one.service.learners.is_idle() }).await;
}
