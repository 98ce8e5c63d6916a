//! Trainings of several agents at once, in one process.

mod elsewhere;
mod pausing;
mod quotas;
mod sizes;

use super::*;
use crate::{
    Setup,
    changes::{Governed, Settle},
    learners::Class,
    leases::LearnerLeases,
    store::{Others, RunState},
};
use std::path::Path;
use tars_runtime::{lease::Terms, seeds::Seeds};

const FOUR: [&str; 4] = ["policy", "consensus", "ethical", "resource"];
const LONG: u64 = 10_000_000;
const PATIENCE: Duration = Duration::from_secs(60);

/// A service whose new agents live in an environment.
async fn open(dir: &Path, environment: &str) -> Arc<Orchestration> {
    let mut setup = Setup::for_tests(Seeds::counted(1));
    environment.clone_into(&mut setup.settings.environment);
    setup.settings.learners = 2;
    let place = tars_test_db::place(dir, "orchestration");
    let opened = Orchestration::open_at(dir, &place, |_| Ok(Terms::Sole), setup);
    opened.await.unwrap()
}

fn joint(agents: &[&str], steps: u64) -> Start {
    Start {
        agents: agents.iter().map(ToString::to_string).collect(),
        ..Start::of("", steps, Some(1))
    }
}

async fn ended(service: &Arc<Orchestration>, id: Uuid) -> RunView {
    let ended = tokio::time::timeout(PATIENCE, service.at_rest(id)).await;
    let row = ended.expect("in time").unwrap();
    service.view(row).await.unwrap()
}

/// Trains to the end.
async fn train(service: &Arc<Orchestration>, start: Start) -> RunView {
    let id = service.start_training(start).await.unwrap().row.id;
    ended(service, id).await
}

fn weights_versions(service: &Orchestration) -> Vec<i64> {
    let agents = FOUR.iter().map(|id| service.agents.get(id).unwrap());
    agents.map(|a| a.live().row.weights_version).collect()
}

fn held_by(change: &str) -> Governed {
    Governed {
        by: "hypersync".to_owned(),
        on_behalf_of: "user:dev".to_owned(),
        change_id: change.to_owned(),
        token: 1,
    }
}

#[tokio::test]
async fn all_agents_of_an_environment_learn_together_and_become_live_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let service = open(dir.path(), "mesh").await;
    let before = service.changes.last(service.store.db()).await.unwrap();
    let run = train(&service, joint(&[], 400)).await;
    assert_eq!(run.row.state, RunState::Completed, "{}", run.row.error);
    let after = service.changes.last(service.store.db()).await.unwrap();
    assert_eq!(
        (after - before, weights_versions(&service)),
        (1, vec![1; 4])
    );
    assert_eq!(
        (run.row.agent_id.as_str(), &*run.row.environment),
        ("policy", "mesh")
    );
    let members: Vec<&str> = run.members.iter().map(|m| m.agent.as_str()).collect();
    assert_eq!(members, FOUR);
    assert_eq!(run.row.final_return, run.members[0].final_return);
    for member in &run.members {
        let live = service.agents.get(&member.agent).unwrap().live();
        assert_eq!(member.weights_version, Some(1));
        assert_eq!(live.row.last_return, member.final_return);
        assert_eq!(
            (live.row.total_steps, &*member.algorithm),
            (400, &*live.row.algorithm)
        );
        let mut tx = service.store.begin("test.version").await.unwrap();
        let version = store::version(&mut tx, &member.agent, 1).await.unwrap();
        let version = version.unwrap();
        assert_eq!(
            (version.run_id, version.mean_return),
            (Some(run.row.id), member.final_return)
        );
    }
    assert_eq!(service.store.plan(run.row.id).await.unwrap(), None);
    let listed = service.list_trainings("", 10).await.unwrap().0;
    assert_eq!(listed[0].members, run.members);
}

#[tokio::test]
async fn reports_of_a_joint_training_are_about_each_agent() {
    let dir = tempfile::tempdir().unwrap();
    let service = open(dir.path(), "mesh").await;
    let run = train(&service, joint(&["resource", "policy"], 800)).await;
    let groups = service.store.reports(run.row.id, 0, 100).await.unwrap();
    let reports: Vec<_> = groups.into_iter().flat_map(|g| g.reports).collect();
    assert_eq!(reports.len(), 100);
    for report in &reports {
        let agents: Vec<&str> = report.agents.iter().map(|a| a.agent.as_str()).collect();
        assert_eq!(
            agents,
            ["policy", "resource"],
            "in the order of the environment"
        );
    }
    let single = train(&service, Start::of("policy", 200, None)).await;
    let groups = service.store.reports(single.row.id, 0, 100).await.unwrap();
    for report in groups.iter().flat_map(|group| &group.reports) {
        let agents: Vec<&str> = report.agents.iter().map(|a| a.agent.as_str()).collect();
        assert_eq!(agents, ["policy"]);
    }
}

#[tokio::test]
async fn agents_that_cannot_learn_together_are_refused_and_no_learner_is_kept() {
    use OrchestrationError as E;
    let dir = tempfile::tempdir().unwrap();
    let service = open(dir.path(), "cartpole").await;
    let refused = async |agents: &[&str]| {
        let refused = service.start_training(joint(agents, LONG)).await;
        refused.unwrap_err()
    };
    let unknown = refused(&["policy", "nobody"]).await;
    assert!(matches!(unknown, E::NotFound("agent", _)), "{unknown}");
    let unbuilt = refused(&["policy", "resource"]).await;
    assert!(matches!(unbuilt, E::NotBuilt("resource", _)), "{unbuilt}");
    let twice = refused(&["policy", "consensus", "policy"]).await;
    assert!(matches!(twice, E::NamedTwice(_)), "{twice}");
    for agents in [&["policy", "ethical"][..], &[]] {
        let same = refused(agents).await;
        assert!(matches!(same, E::SamePlace(..)), "{same}");
    }
    drop(service);
    // The agent that had no place in the first environment lives in the next one.
    let service = open(dir.path(), "mesh").await;
    for agents in [&["policy", "resource"][..], &[]] {
        let apart = service.start_training(joint(agents, LONG)).await;
        let apart = apart.unwrap_err();
        assert!(matches!(apart, E::Apart(..)), "{apart}");
    }
    assert!(service.store.unfinished_runs().await.unwrap().is_empty());
    train(&service, joint(&["resource"], 100)).await;
}

#[tokio::test]
async fn an_agent_in_training_or_held_keeps_the_others_from_being_trained_with_it() {
    use OrchestrationError as E;
    let dir = tempfile::tempdir().unwrap();
    let service = open(dir.path(), "mesh").await;
    let start = Start::of("ethical", LONG, Some(1));
    let running = service.start_training(start).await.unwrap().row.id;
    for agents in [&["ethical", "policy"][..], &["ethical"], &[]] {
        let refused = service.start_training(joint(agents, LONG)).await;
        let refused = refused.unwrap_err();
        assert!(
            matches!(&refused, E::TrainingRuns(agent) if agent == "ethical"),
            "{refused}"
        );
    }
    // The leases that were taken before the refusal are free again.
    let rest = joint(&["policy", "consensus", "resource"], LONG);
    let rest = service.start_training(rest).await.unwrap().row.id;
    for agent in FOUR {
        let refused = service.start_training(Start::of(agent, LONG, None)).await;
        assert!(matches!(refused, Err(E::TrainingRuns(_))), "{agent}");
    }
    for run in [running, rest] {
        service.cancel_training(by(), run).await.unwrap();
        assert_eq!(ended(&service, run).await.row.state, RunState::Cancelled);
    }
    let agent = Arc::clone(service.agents.get("consensus").unwrap());
    service.hold(agent, held_by("a")).await.unwrap();
    let refused = service.start_training(joint(&[], LONG)).await.unwrap_err();
    assert!(
        matches!(&refused, E::ChangeInProgress { agent, .. } if agent == "consensus"),
        "{refused}"
    );
    let others = joint(&["policy", "ethical", "resource"], 100);
    assert_eq!(train(&service, others).await.row.state, RunState::Completed);
}

#[tokio::test]
async fn weights_of_all_agents_wait_until_none_of_them_is_held() {
    let dir = tempfile::tempdir().unwrap();
    let service = open(dir.path(), "mesh").await;
    let id = service
        .start_training(joint(&[], 3_000))
        .await
        .unwrap()
        .row
        .id;
    for (agent, change) in [("resource", "a"), ("ethical", "b")] {
        let agent = Arc::clone(service.agents.get(agent).unwrap());
        service.hold(agent, held_by(change)).await.unwrap();
    }
    let learned = async || service.learners.is_idle();
    eventually(learned).await;
    assert_eq!(weights_versions(&service), [0; 4]);
    release(&service, "resource", "a").await;
    tokio::task::yield_now().await;
    assert_eq!(
        service.training(id).await.unwrap().row.state,
        RunState::Running
    );
    assert_eq!(weights_versions(&service), [0; 4], "another one is held");
    release(&service, "ethical", "b").await;
    assert_eq!(ended(&service, id).await.row.state, RunState::Completed);
    assert_eq!(weights_versions(&service), [1; 4]);
}

/// Ends the change that holds an agent.
async fn release(service: &Arc<Orchestration>, agent: &str, change: &str) {
    let agent = Arc::clone(service.agents.get(agent).unwrap());
    let settle = Settle {
        by: "hypersync".to_owned(),
        on_behalf_of: "user:dev".to_owned(),
        change_id: change.to_owned(),
        approved_version: None,
        void_operation: None,
        token: Some(1),
    };
    service.settle(agent, settle).await.unwrap();
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

#[tokio::test]
async fn one_agent_learns_against_the_frozen_policies_of_the_others() {
    let dir = tempfile::tempdir().unwrap();
    let service = open(dir.path(), "mesh").await;
    train(&service, joint(&["consensus", "resource"], 400)).await;
    let mut returns = Vec::new();
    for others in [Others::Rules, Others::Live, Others::Live] {
        let start = Start {
            others,
            ..Start::of("ethical", 400, Some(5))
        };
        let waits = busy(&service);
        let run = service.start_training(start).await.unwrap();
        let plan = service.store.plan(run.row.id).await.unwrap().unwrap();
        let frozen: Vec<&str> = plan.policies.keys().map(String::as_str).collect();
        let expected: &[&str] = match others {
            Others::Live => &["consensus", "resource"],
            Others::Rules => &[],
        };
        assert_eq!(&frozen[..], expected, "policy has none, and plays its rule");
        drop(waits);
        let run = ended(&service, run.row.id).await;
        assert_eq!(
            (run.row.state, run.row.others),
            (RunState::Completed, others)
        );
        returns.push(run.row.final_return.unwrap());
        forget(&service, "ethical").await;
    }
    assert_ne!(returns[0], returns[1], "others act otherwise");
    assert_eq!(returns[1], returns[2], "and do not change");
    assert_eq!(weights_versions(&service)[1..2], [1], "they did not learn");
}

/// Occupies the threads that train, so that a run waits.
fn busy(service: &Orchestration) -> [Running; 2] {
    let start = || {
        let owner = Owner {
            class: Class::Training,
            caller: "other".to_owned(),
        };
        let started = service.learners.start(owner, Task::for_tests(LONG), None);
        started.unwrap()
    };
    [start(), start()]
}

/// Takes an agent's weights away, in memory and in the database.
async fn forget(service: &Orchestration, agent: &str) {
    let agent = service.agents.get(agent).unwrap();
    let turn = service.turn(agent, "test.forget").await;
    let mut turn = turn.unwrap();
    let mut next = agent.live().as_ref().clone();
    (next.policy, next.row.weights) = (None, None);
    store::update_weights(&mut turn, &next.row).await.unwrap();
    turn.commit(next).await.unwrap();
}
