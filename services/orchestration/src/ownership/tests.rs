//! Two replicas of Orchestration on one database.

mod ends;

use super::*;
use crate::{
    Setup,
    learners::{Class, Owner, Running},
    store::{RunState, WorkToken},
    task::Task,
    training::{RunView, Start, TrainingEvent},
};
use std::{future::Future, time::Duration};
use tars_runtime::{clock::Clock, lease::Terms, metrics::Metrics, seeds::Seeds};
use uuid::Uuid;

/// Nothing is renewed while a test runs.
const LIFE: Duration = Duration::from_secs(3600);
const LONG: u64 = 10_000_000;
const PATIENCE: Duration = Duration::from_secs(60);

struct Replica {
    service: Arc<Orchestration>,
    clock: Clock,
    metrics: Metrics,
}

impl Replica {
    async fn start(dir: &tempfile::TempDir, holder: &str) -> Self {
        Self::with_checkpoints(dir, holder, 10).await
    }

    /// A replica that takes checkpoints so many seconds apart.
    async fn with_checkpoints(dir: &tempfile::TempDir, holder: &str, seconds: u64) -> Self {
        Self::open(dir, holder, seconds, "cartpole").await
    }

    async fn open(dir: &tempfile::TempDir, holder: &str, seconds: u64, environment: &str) -> Self {
        let mut setup = Setup::for_tests(Seeds::counted(1));
        environment.clone_into(&mut setup.settings.environment);
        setup.settings.checkpoint_seconds = seconds;
        let (clock, metrics) = (setup.clock.clone(), setup.metrics.clone());
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
            metrics,
        }
    }

    async fn train(&self, steps: u64) -> Result<RunView, OrchestrationError> {
        let start = Start::of("policy", steps, Some(1));
        self.service.start_training(start).await
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
        let task = Task::for_tests(LONG);
        self.service.learners.start(owner, task, None).unwrap()
    }

    /// Waits until the replica follows no run any more.
    async fn until_idle(&self) {
        let is_idle =
            || async { self.service.trainings.is_empty() && self.service.learners.is_idle() };
        eventually(is_idle).await;
    }

    /// Waits for a run's events after a number: the numbers of its reports, and its end.
    async fn watch(&self, run: Uuid, after: u64) -> (Vec<u64>, Option<(u64, RunState)>) {
        let mut watcher = self.service.watch_training(run, after).await.unwrap();
        let mut reports = Vec::new();
        loop {
            let next = tokio::time::timeout(PATIENCE, watcher.next()).await;
            match next.expect("in time").unwrap() {
                None => return (reports, None),
                Some((number, TrainingEvent::Progress(..))) => reports.push(number),
                Some((_, TrainingEvent::State(run))) => panic!("nobody asked: {:?}", run.row.state),
                Some((number, TrainingEvent::Ended(run))) => {
                    assert!(watcher.next().await.unwrap().is_none());
                    return (reports, Some((number, run.row.state)));
                }
            }
        }
    }
}

fn by() -> String {
    "user:dev".to_owned()
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

/// The first takes checkpoints as often as it can.
async fn two_with_checkpoints() -> (tempfile::TempDir, Replica, Replica) {
    let dir = tempfile::tempdir().unwrap();
    let one = Replica::with_checkpoints(&dir, "one", 0).await;
    let two = Replica::start(&dir, "two").await;
    (dir, one, two)
}

#[tokio::test]
async fn an_agent_that_another_replica_trains_is_left_alone() {
    let (dir, one, two) = two().await;
    let run = one.train(LONG).await.unwrap().row.id;
    two.service.resume_left_runs().await.unwrap();
    let three = Replica::start(&dir, "three").await;
    for other in [&two, &three] {
        assert!(!other.state(run).await.has_ended());
        let refused = other.train(10).await;
        assert!(matches!(refused, Err(OrchestrationError::TrainingRuns(_))));
    }
    one.service.cancel_training(by(), run).await.unwrap();
    let next = two.train(LONG).await.unwrap().row.id;
    two.service.cancel_training(by(), next).await.unwrap();
}

#[tokio::test]
async fn a_suspended_replica_installs_no_weights_once_another_has_taken_over() {
    let (_dir, one, two) = two().await;
    let (other, elsewhere) = (one.busy(), two.busy());
    let run = one.train(500).await.unwrap().row.id;
    // The clock of the first stands still: it does not know that its lease has ended.
    two.service.resume_left_runs().await.unwrap();
    two.clock.advance(LIFE);
    two.service.resume_left_runs().await.unwrap();
    let waits = || async { two.service.training(run).await.unwrap().position == Some(1) };
    eventually(waits).await;
    drop(other);
    one.until_idle().await;
    assert_eq!(two.state(run).await, RunState::Queued);
    for replica in [&one, &two] {
        let agent = replica.service.agents.get("policy").unwrap();
        assert_eq!(agent.live().row.weights_version, 0);
        let stored = replica.service.store.agent("policy").await.unwrap();
        assert_eq!(stored.unwrap().weights, None);
    }
    drop(elsewhere);
    eventually(|| async { one.state(run).await == RunState::Completed }).await;
    let stored = one.service.store.agent("policy").await.unwrap();
    assert_eq!(stored.unwrap().weights_version, 1);
}

#[tokio::test]
async fn an_agent_of_a_replica_that_stops_is_trained_on_by_another_at_once() {
    let (_dir, one, two) = two().await;
    let run = one.train(LONG).await.unwrap().row.id;
    one.service.leases.close().await;
    one.until_idle().await;
    assert!(
        !one.state(run).await.has_ended(),
        "that is for the next to say"
    );
    two.service.resume_left_runs().await.unwrap();
    eventually(|| async { two.state(run).await == RunState::Running }).await;
    two.service.cancel_training(by(), run).await.unwrap();
    let next = two.train(LONG).await.unwrap().row.id;
    two.service.cancel_training(by(), next).await.unwrap();
    eventually(|| async { one.service.learners.is_idle() }).await;
}

/// The weights that an agent has after a run, by their digest.
async fn weights(replica: &Replica) -> Option<String> {
    let stored = replica.service.store.agent("policy").await.unwrap();
    stored.unwrap().weights
}

#[tokio::test]
async fn a_run_that_is_resumed_ends_as_an_undisturbed_one_and_reports_nothing_twice() {
    const STEPS: u64 = 60_000;
    let (_dir, undisturbed, _) = two().await;
    let run = undisturbed.train(STEPS).await.unwrap().row.id;
    let (all, end) = undisturbed.watch(run, 0).await;
    assert_eq!(end, Some((101, RunState::Completed)));

    let (_dir, one, two) = two_with_checkpoints().await;
    let run = one.train(STEPS).await.unwrap().row.id;
    let has_checkpoint = || async {
        let left = one.service.store.plan(run).await.unwrap();
        left.is_some_and(|left| left.checkpoint.is_some() && left.reported > 1)
    };
    eventually(has_checkpoint).await;
    one.service.leases.close().await;
    one.until_idle().await;
    let left = one.service.store.unfinished_runs().await.unwrap();
    assert_eq!(left.len(), 1);
    assert_eq!(left[0].id, run);
    two.service.resume_left_runs().await.unwrap();
    let (reports, end) = two.watch(run, 0).await;
    assert_eq!((reports, end), (all, Some((101, RunState::Completed))));
    assert_eq!(weights(&two).await, weights(&undisturbed).await);
    let plan = two.service.store.plan(run).await.unwrap();
    assert_eq!(plan, None, "nothing is left of it");
}

/// Two replicas on one database, whose new agents live in the environment of the mesh.
async fn two_in_the_mesh() -> (tempfile::TempDir, Replica, Replica) {
    let dir = tempfile::tempdir().unwrap();
    let one = Replica::open(&dir, "one", 0, "mesh").await;
    let two = Replica::open(&dir, "two", 10, "mesh").await;
    (dir, one, two)
}

/// The weights of the agents, by their digests.
async fn weights_of(replica: &Replica, agents: &[&str]) -> Vec<Option<String>> {
    let mut weights = Vec::new();
    for agent in agents {
        let stored = replica.service.store.agent(agent).await.unwrap();
        weights.push(stored.unwrap().weights);
    }
    weights
}

#[tokio::test]
async fn a_joint_training_that_is_resumed_ends_as_an_undisturbed_one() {
    const TEAM: [&str; 3] = ["resource", "policy", "ethical"];
    let start = || Start {
        agents: TEAM.iter().map(ToString::to_string).collect(),
        ..Start::of("", 8_000, Some(3))
    };
    let (_dir, undisturbed, _) = two_in_the_mesh().await;
    let run = undisturbed.service.start_training(start()).await;
    let run = run.unwrap().row.id;
    let (all, end) = undisturbed.watch(run, 0).await;
    assert_eq!(end, Some((101, RunState::Completed)));

    let (_dir, one, two) = two_in_the_mesh().await;
    let run = one.service.start_training(start()).await.unwrap().row.id;
    let has_checkpoint = || async {
        let left = one.service.store.plan(run).await.unwrap();
        left.is_some_and(|left| left.checkpoint.is_some() && left.reported > 1)
    };
    eventually(has_checkpoint).await;
    one.service.leases.close().await;
    one.until_idle().await;
    // Not while another process trains one of its agents.
    let other = LearnerLeases::acquire(&two.service.leases, ["policy"]).await;
    let other = other.unwrap();
    two.service.resume_left_runs().await.unwrap();
    assert!(two.service.trainings.is_empty());
    other.release().await;
    two.service.resume_left_runs().await.unwrap();
    for agent in TEAM {
        let refused = two.service.start_training(Start::of(agent, 10, None)).await;
        assert!(matches!(refused, Err(OrchestrationError::TrainingRuns(_))));
    }
    let (reports, end) = two.watch(run, 0).await;
    assert_eq!((reports, end), (all, Some((101, RunState::Completed))));
    let expected = weights_of(&undisturbed, &TEAM).await;
    assert_eq!(weights_of(&two, &TEAM).await, expected);
    assert!(expected.iter().all(Option::is_some));
}

#[tokio::test]
async fn a_run_that_was_to_be_paused_is_paused_by_whoever_finds_it() {
    let (_dir, one, two) = two_with_checkpoints().await;
    let run = one.train(LONG).await.unwrap().row.id;
    one.service.leases.close().await;
    one.until_idle().await;
    // Nobody follows the run who could pause it.
    let pausing = two.service.pause_training(by(), run).await.unwrap();
    assert_eq!(pausing.row.state, RunState::Pausing);
    let refused = two.service.resume_training(by(), run).await;
    assert!(matches!(
        refused,
        Err(OrchestrationError::WrongState("pausing", _))
    ));
    two.service.resume_left_runs().await.unwrap();
    assert_eq!(two.state(run).await, RunState::Paused);
    assert!(two.service.store.plan(run).await.unwrap().is_some());
    two.service.resume_left_runs().await.unwrap();
    assert_eq!(
        two.state(run).await,
        RunState::Paused,
        "until it is resumed"
    );
    two.service.resume_training(by(), run).await.unwrap();
    eventually(|| async { two.state(run).await == RunState::Running }).await;
    two.service.cancel_training(by(), run).await.unwrap();
}

#[tokio::test]
async fn a_run_is_paused_at_a_replica_that_does_not_own_it_and_resumed_at_another() {
    let (_dir, one, two) = two().await;
    let run = one.train(LONG).await.unwrap().row.id;
    two.service.pause_training(by(), run).await.unwrap();
    eventually(|| async { two.state(run).await == RunState::Paused }).await;
    one.until_idle().await;
    two.service.resume_training(by(), run).await.unwrap();
    assert!(!two.service.trainings.is_empty());
    one.service.cancel_training(by(), run).await.unwrap();
    eventually(|| async { one.state(run).await == RunState::Cancelled }).await;
}

#[tokio::test]
async fn a_run_whose_checkpoint_is_gone_ends_as_interrupted() {
    let (_dir, one, two) = two_with_checkpoints().await;
    let run = one.train(LONG).await.unwrap().row.id;
    let has_checkpoint = || async {
        let left = one.service.store.plan(run).await.unwrap();
        left.is_some_and(|left| left.checkpoint.is_some())
    };
    eventually(has_checkpoint).await;
    one.service.leases.close().await;
    one.until_idle().await;
    let mut tx = two.service.store.begin("test.spoil").await.unwrap();
    let gone = "0".repeat(64);
    let put = crate::store::put_checkpoint(&mut tx, run, &gone, 1, &[1]);
    put.await.unwrap();
    tx.commit().await.unwrap();
    two.service.resume_left_runs().await.unwrap();
    assert_eq!(two.state(run).await, RunState::Interrupted);
    let next = two.train(LONG).await.unwrap().row.id;
    two.service.cancel_training(by(), next).await.unwrap();
}

#[tokio::test]
async fn a_run_whose_checkpoint_was_cut_or_changed_ends_and_leaves_its_agent_as_it_was() {
    for is_cut in [true, false] {
        let (_dir, one, two) = two_with_checkpoints().await;
        let run = one.train(LONG).await.unwrap().row.id;
        let plan = || async { one.service.store.plan(run).await.unwrap() };
        let has_checkpoint =
            || async { plan().await.is_some_and(|left| left.checkpoint.is_some()) };
        eventually(has_checkpoint).await;
        one.service.leases.close().await;
        one.until_idle().await;
        let blobs = two.service.checkpoints.blobs();
        let left = two.service.store.plan(run).await.unwrap().unwrap();
        let mut bytes = blobs.get(&left.checkpoint.unwrap()).await.unwrap();
        match is_cut {
            true => bytes.truncate(bytes.len() / 2),
            false => *bytes.last_mut().unwrap() ^= 1,
        }
        let mut tx = two.service.store.begin("test.spoil").await.unwrap();
        let spoiled = blobs.put(&mut tx, bytes).await.unwrap();
        let put = crate::store::put_checkpoint(&mut tx, run, &spoiled, 1, &[1]);
        put.await.unwrap();
        tx.commit().await.unwrap();
        two.service.resume_left_runs().await.unwrap();
        let ended = || async { two.state(run).await.has_ended() };
        eventually(ended).await;
        assert_ne!(two.state(run).await, RunState::Completed, "cut: {is_cut}");
        let agent = two.service.agents.get("policy").unwrap().live();
        assert_eq!((agent.row.weights_version, &agent.row.weights), (0, &None));
        let next = two.train(LONG).await.unwrap().row.id;
        two.service.cancel_training(by(), next).await.unwrap();
    }
}

#[tokio::test]
async fn a_run_is_watched_at_any_replica_and_nothing_is_sent_twice() {
    let (_dir, one, two) = two().await;
    let run = one.train(2_000).await.unwrap().row.id;
    let (reports, end) = two.watch(run, 0).await;
    let all: Vec<u64> = (1..=100).collect();
    assert_eq!((&reports, end), (&all, Some((101, RunState::Completed))));
    for (replica, after) in [(&one, 0), (&two, 37), (&one, 99), (&two, 100)] {
        let (reports, end) = replica.watch(run, after).await;
        assert_eq!(reports, all[after as usize..]);
        assert_eq!(end, Some((101, RunState::Completed)));
    }
    assert_eq!(
        two.watch(run, 101).await,
        (vec![], None),
        "the end was sent"
    );
    for beyond in [102, u64::MAX] {
        let refused = two.service.watch_training(run, beyond).await.unwrap_err();
        assert!(matches!(refused, OrchestrationError::Trimmed(_)));
    }
    let row = two.service.training(run).await.unwrap().row;
    let agent = two.service.agents.get("policy").unwrap();
    let served = agent.live().row.weights_version;
    assert_eq!((row.steps_done, served), (2_000, 1), "completed, so served");
}

#[tokio::test]
async fn a_fast_run_takes_few_commits() {
    let (_dir, one, _two) = two().await;
    let before = one.service.runs.last(one.service.store.db()).await.unwrap();
    let run = one.train(500).await.unwrap().row.id;
    let (reports, _) = one.watch(run, 0).await;
    let commits = one.service.runs.last(one.service.store.db()).await.unwrap() - before;
    assert_eq!(reports.len(), 100);
    assert!(
        commits < 50,
        "{commits} commits for 100 reports and the end"
    );
}

#[tokio::test]
async fn a_run_is_cancelled_at_a_replica_that_does_not_own_it() {
    let (_dir, one, two) = two().await;
    let waits = one.busy();
    let queued = one.train(LONG).await.unwrap();
    assert!(queued.position.is_some());
    let id = queued.row.id;
    assert_eq!(two.service.training(id).await.unwrap().position, None);
    two.service.cancel_training(by(), id).await.unwrap();
    eventually(|| async { two.state(id).await == RunState::Cancelled }).await;
    drop(waits);
    let running = one.train(LONG).await.unwrap().row.id;
    eventually(|| async { two.state(running).await == RunState::Running }).await;
    two.service.cancel_training(by(), running).await.unwrap();
    eventually(|| async { two.state(running).await == RunState::Cancelled }).await;
    one.until_idle().await;
    // Its end is the release of the learner.
    let next = two.train(LONG).await.unwrap().row.id;
    one.service.cancel_training(by(), next).await.unwrap();
    eventually(|| async { one.state(next).await == RunState::Cancelled }).await;
}

/// A part of a piece of work, for whoever has this token.
async fn evaluate(
    replica: &Replica,
    work: &str,
    token: i64,
) -> Result<Running, OrchestrationError> {
    let owner = Owner {
        class: Class::Search,
        caller: "dev".into(),
    };
    let task = Task::for_tests(LONG);
    replica
        .service
        .evaluate(owner, task, given(work, token))
        .await
}

fn given(work: &str, token: i64) -> WorkToken {
    WorkToken {
        work: work.to_owned(),
        token,
    }
}

#[tokio::test]
async fn an_evaluation_stops_when_its_work_is_taken_over_at_whichever_replica() {
    let (_dir, one, two) = two().await;
    let first = evaluate(&one, "study/a", 5).await.unwrap();
    let other = evaluate(&one, "study/b", 1).await.unwrap();
    let (work, others) = (given("study/a", 5), given("study/b", 1));
    let superseded = one.service.superseded(&work);
    let not_superseded = one.service.superseded(&others);
    let taken = async {
        evaluate(&two, "study/a", 9).await.unwrap();
    };
    let waited = tokio::time::timeout(PATIENCE, async {
        tokio::select! {
            (error, ()) = async { tokio::join!(superseded, taken) } => error,
            _ = not_superseded => panic!("nobody took the other"),
        }
    });
    let error = waited.await.expect("it is told");
    assert!(matches!(error, OrchestrationError::Superseded(_)));
    drop((first, other));
    for replica in [&one, &two] {
        for stale in [1, 5, 8] {
            let refused = evaluate(replica, "study/a", stale).await;
            assert!(matches!(refused, Err(OrchestrationError::Superseded(_))));
        }
        let current = evaluate(replica, "study/a", 9).await;
        assert!(current.is_ok(), "several parts of the same work");
    }
}

#[tokio::test]
async fn a_run_is_completed_once_every_replica_serves_its_weights() {
    let (_dir, one, two) = two().await;
    let run = one.train(200).await.unwrap().row.id;
    eventually(async || one.state(run).await == RunState::Completed).await;
    // No hint of the first reaches the second, which reads the change when it next looks.
    let version = |replica: &Replica| {
        let agent = replica.service.agents.get("policy").unwrap();
        agent.live().row.weights_version
    };
    assert_eq!((version(&one), version(&two)), (1, 1));
}
