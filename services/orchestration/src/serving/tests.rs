//! Replicas of Orchestration on one database: what is live at one is live at all.

use super::*;
use crate::{
    Setup,
    agents::{Agent, Asker},
    changes::{ApplyOperation, Governed, Reload, Settle},
    steps::Observed,
    store::RunState,
    training::Start,
    versions::{Promotion, Target},
};
use std::path::Path;
use tars_learn::hyper::{Value, Values};
use tars_runtime::{bus::Bus, clock::Clock, lease::Terms, seeds::Seeds};
use tempfile::TempDir;

/// Nothing is renewed while a test runs.
const LIFE: Duration = Duration::from_secs(3600);
const PATIENCE: Duration = Duration::from_secs(30);

struct Replica {
    service: Arc<Orchestration>,
    clock: Clock,
}

impl Replica {
    /// A replica with a clock of its own.
    async fn start(dir: &Path, holder: &str, bus: &Bus) -> Self {
        let setup = Setup {
            bus: bus.clone(),
            ..Setup::for_tests(Seeds::counted(1))
        };
        let clock = setup.clock.clone();
        let terms = Terms::Shared {
            holder: holder.to_owned(),
            life: LIFE,
        };
        let place = tars_test_db::place(dir, "orchestration");
        let terms = |_: &_| Ok(terms);
        let service = Orchestration::open_at(dir, &place, terms, setup);
        Self {
            service: service.await.unwrap(),
            clock,
        }
    }

    fn policy(&self) -> Arc<Agent> {
        Arc::clone(self.service.agents.get("policy").unwrap())
    }

    async fn reload(&self, value: f64) -> (i64, Rollout) {
        let reload = Reload {
            by: "user:dev".into(),
            reason: "test".into(),
            expected_version: None,
            values: gamma(value),
        };
        let (live, rollout) = self.service.reload(self.policy(), reload).await.unwrap();
        (live.row.version, rollout)
    }

    fn apply(
        &self,
        operation: &str,
        expected_version: i64,
    ) -> impl Future<Output = Result<i64, OrchestrationError>> {
        let step = ApplyOperation {
            change: Governed {
                by: "hypersync".into(),
                on_behalf_of: "user:admin".into(),
                change_id: "change".into(),
                token: 1,
            },
            operation_id: operation.into(),
            expected_version,
            values: gamma(0.97),
        };
        let (service, agent) = (Arc::clone(&self.service), self.policy());
        async move { service.apply(agent, step).await }
    }

    /// Trains to the end.
    async fn train(&self) {
        let started = self.service.start_training(Start::of("policy", 200, None));
        let id = started.await.unwrap().row.id;
        let ended = async || {
            let run = self.service.training(id).await.unwrap().row;
            run.state == RunState::Completed && self.service.trainings.is_empty()
        };
        let wait = async {
            while !ended().await {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.unwrap();
    }

    async fn roll_back(&self, expected: i64) -> Result<(i64, Rollout), OrchestrationError> {
        let promotion = Promotion {
            by: "user:dev".into(),
            reason: "test".into(),
            target: Target::Before,
            expected: Some(expected),
            stage: None,
        };
        let promoted = self.service.promote(self.policy(), promotion).await;
        promoted.map(|(live, rollout)| (live.row.weights_version, rollout))
    }

    fn serves(&self) -> bool {
        self.service.tenure().is_ok()
    }

    /// A step, which needs weights that these agents do not have.
    async fn step(&self) -> OrchestrationError {
        let observed = Observed {
            agent: "policy",
            agent_type: None,
            observation: vec![0.0; 4],
        };
        let stepped = self.service.step(
            Asker {
                name: "user:dev",
                owner: "dev",
                counts: true,
            },
            vec![observed],
            vec![],
            Default::default(),
        );
        stepped.await.unwrap_err()
    }

    /// Leaves the replica as it is: its process runs, and reads nothing.
    async fn suspend(&self) -> Vec<tokio::sync::MutexGuard<'_, ()>> {
        let mut held = Vec::new();
        for agent in self.service.agents.iter() {
            held.push(agent.changing().lock().await);
        }
        held
    }
}

fn gamma(value: f64) -> Values {
    Values::from([("gamma".to_owned(), Value::Number(value))])
}

async fn two_on(first: &Bus, second: &Bus) -> (TempDir, Replica, Replica) {
    let dir = tempfile::tempdir().unwrap();
    let one = Replica::start(dir.path(), "one", first).await;
    let two = Replica::start(dir.path(), "two", second).await;
    (dir, one, two)
}

async fn two() -> (TempDir, Replica, Replica) {
    let bus = Bus::local();
    two_on(&bus, &bus).await
}

async fn eventually(what: &str, is_so: impl Fn() -> bool) {
    let wait = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let waited = tokio::time::timeout(PATIENCE, wait).await;
    waited.unwrap_or_else(|_| panic!("never happened: {what}"));
}

#[tokio::test]
async fn replicas_that_make_their_database_at_the_same_time_share_its_agents() {
    let (dir, bus) = (tempfile::tempdir().unwrap(), Bus::local());
    let start = |holder| Replica::start(dir.path(), holder, &bus);
    let (one, two, three) = tokio::join!(start("one"), start("two"), start("three"));
    assert_eq!(three.reload(0.91).await, (2, Rollout::Everywhere));
    for replica in [&one, &two, &three] {
        assert_eq!(replica.policy().live().row.version, 2);
    }
}

#[tokio::test]
async fn a_reload_returns_when_every_replica_serves_it_also_where_hints_are_lost() {
    let (_dir, one, two) = two_on(&Bus::local(), &Bus::local()).await;
    for (version, value) in [(2, 0.91), (3, 0.92), (4, 0.93)] {
        let (by, other) = if version == 3 {
            (&two, &one)
        } else {
            (&one, &two)
        };
        assert_eq!(by.reload(value).await, (version, Rollout::Everywhere));
        let live = other.policy().live();
        assert_eq!(live.row.version, version);
        assert_eq!(live.row.hyperparameters["gamma"], Value::Number(value));
    }
}

#[tokio::test]
async fn a_roll_back_returns_when_every_replica_serves_it_and_one_of_two_racing_ones_wins() {
    let (_dir, one, two) = two_on(&Bus::local(), &Bus::local()).await;
    one.train().await;
    let first = one.policy().live().policy.clone();
    two.train().await;
    let back = one.roll_back(2).await.unwrap();
    assert_eq!(back, (3, Rollout::Everywhere));
    let live = two.policy().live();
    assert_eq!((live.row.weights_version, &live.policy), (3, &first));
    let (here, there) = tokio::join!(one.roll_back(3), two.roll_back(3));
    let (won, lost) = match (here, there) {
        (Ok(won), Err(lost)) | (Err(lost), Ok(won)) => (won, lost),
        both => panic!("{both:?}"),
    };
    assert_eq!(won, (4, Rollout::Everywhere));
    let is_late = matches!(
        lost,
        OrchestrationError::WeightsVersion {
            live: 4,
            expected: 3
        }
    );
    assert!(is_late, "{lost:?}");
    let both = [one.policy().live(), two.policy().live()];
    assert_eq!(both[0].policy, both[1].policy);
    assert_ne!(both[0].policy, first);
}

#[tokio::test]
async fn a_governed_change_is_everywhere_when_each_of_its_steps_returns() {
    let (_dir, one, two) = two().await;
    assert_eq!(one.apply("a", 1).await.unwrap(), 2);
    let live = two.policy().live();
    assert_eq!((live.row.version, live.hold.is_some()), (2, true));
    // The next step is taken at another replica.
    let settle = Settle {
        by: "hypersync".into(),
        on_behalf_of: "user:admin".into(),
        change_id: "change".into(),
        approved_version: Some(2),
        void_operation: None,
        token: Some(1),
    };
    two.service.settle(two.policy(), settle).await.unwrap();
    let live = one.policy().live();
    assert_eq!((live.approved.version, live.hold.clone()), (2, None));
}

#[tokio::test]
async fn a_replica_that_does_not_report_is_named_and_a_governed_change_goes_on_waiting() {
    let (_dir, one, two) = two().await;
    let suspended = two.suspend().await;
    let (version, rollout) = one.reload(0.91).await;
    let Rollout::Pending(pending) = rollout else {
        panic!("not everywhere");
    };
    assert!(pending.len() == 1 && pending[0].starts_with("two/"));
    assert_eq!(version, 2, "it is made");
    assert_eq!(two.policy().live().row.version, 1);
    let applied = one.apply("a", 2).await;
    assert!(
        matches!(&applied, Err(OrchestrationError::RolloutPending(who)) if *who == pending),
        "{applied:?}"
    );
    drop(suspended);
    assert_eq!(one.apply("a", 2).await.unwrap(), 3, "the same operation");
    assert_eq!(two.policy().live().row.version, 3);
}

#[tokio::test]
async fn a_suspended_replica_is_not_waited_for_beyond_its_lease_and_serves_nothing_until_it_has_caught_up()
 {
    let (_dir, one, two) = two().await;
    assert!(two.serves());
    assert!(matches!(two.step().await, OrchestrationError::Untrained));
    let tenure = two.service.tenure().unwrap();
    let suspended = two.suspend().await;
    one.service.presence.observe().await.unwrap();
    one.clock.advance(LIFE);
    // The lease of the first replica has ended too, and it is present again before it serves.
    eventually("the first is present", || {
        one.service.presence.tenure().is_some()
    })
    .await;
    assert_eq!(one.reload(0.91).await, (2, Rollout::Everywhere));
    // It runs again, and the time has gone on.
    two.clock.advance(LIFE);
    assert!(!two.serves() && Orchestration::confirm(&tenure).is_err());
    let refused = tonic::Status::from(two.step().await);
    assert_eq!(refused.code(), tonic::Code::Unavailable);
    assert_eq!(
        tars_proto::fault::reason(&refused).as_deref(),
        Some("REPLICA_BEHIND")
    );
    assert_eq!(
        two.policy().live().row.version,
        1,
        "what it would have served"
    );
    drop(suspended);
    eventually("it has caught up", || two.serves()).await;
    assert_eq!(two.policy().live().row.version, 2);
    assert!(Orchestration::confirm(&tenure).is_err(), "a call of before");
}

#[tokio::test]
async fn a_replica_that_stops_is_not_waited_for() {
    let (_dir, one, two) = two().await;
    let _suspended = two.suspend().await;
    two.service.leases.close().await;
    assert_eq!(one.reload(0.91).await, (2, Rollout::Everywhere));
    assert!(!two.serves());
}

#[tokio::test]
async fn a_replica_that_joins_serves_what_is_stored() {
    let (dir, one, _two) = two().await;
    one.reload(0.91).await;
    let three = Replica::start(dir.path(), "three", &Bus::local()).await;
    assert!(three.serves());
    assert_eq!(three.policy().live().row.version, 2);
    assert_eq!(three.reload(0.92).await, (3, Rollout::Everywhere));
    assert_eq!(one.policy().live().row.version, 3);
}

#[tokio::test]
async fn racing_changes_at_two_replicas_wait_for_each_other_without_a_deadlock() {
    let (_dir, one, two) = two().await;
    for _ in 0..5 {
        let (first, second) = tokio::join!(one.reload(0.91), two.reload(0.92));
        assert_eq!(
            [first.1, second.1],
            [Rollout::Everywhere, Rollout::Everywhere]
        );
        assert_ne!(first.0, second.0);
    }
    assert_eq!(one.policy().live().row.version, 11);
    assert_eq!(two.policy().live().row.version, 11);
}
