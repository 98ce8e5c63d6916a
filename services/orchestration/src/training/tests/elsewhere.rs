//! Runs in environments that are lent.

use super::*;
use crate::{
    HostTerms,
    hosts::{Conversation, Message, Offer},
};
use tars_runtime::clock::Clock;
use tars_worlds::{ActionSpace, AgentSpace, Component};

const LENT: &str = "external/poles";
const MESSAGE: usize = 1 << 20;

fn agent(name: &'static str, observed: usize, actions: &[&'static str]) -> AgentSpace {
    AgentSpace {
        name: name.into(),
        observation: vec![Component::unbounded("place", "m"); observed],
        action: ActionSpace::named(actions),
    }
}

/// Lends an environment with these agents, as long as the conversation is kept. It answers nothing.
fn lend(service: &Orchestration, owner: &str, agents: Vec<AgentSpace>) -> Conversation {
    let offer = Offer {
        version: 1,
        name: "poles".to_owned(),
        agents,
        max_copies: 4,
        max_steps: None,
    };
    let hello = Some(Message::Hello(offer));
    service.hosts.open(owner, hello, MESSAGE).unwrap().1
}

/// What agents of CartPole observe and do, for one of them.
fn poles() -> Vec<AgentSpace> {
    vec![agent("policy", 4, &["left", "right"])]
}

/// A service that does not wait long for a host that is gone, and uses one no longer than a minute.
async fn open(dir: &Path) -> (Arc<Orchestration>, Clock) {
    let mut setup = Setup::for_tests(Seeds::counted(1));
    setup.hosts = HostTerms {
        patience: Duration::from_millis(50),
        run_within: Duration::from_secs(60),
        ..HostTerms::default()
    };
    let clock = setup.clock.clone();
    let place = tars_test_db::place(dir, "orchestration");
    let opened = Orchestration::open_at(dir, &place, |_| Ok(Terms::Sole), setup);
    (opened.await.unwrap(), clock)
}

fn in_environment(environment: &str, agents: &[&str]) -> Start {
    Start {
        environment: environment.to_owned(),
        ..joint(agents, LONG)
    }
}

#[tokio::test]
async fn what_cannot_be_trained_in_a_lent_environment_is_refused_and_no_learner_is_kept() {
    use OrchestrationError as E;
    let dir = tempfile::tempdir().unwrap();
    let (service, _) = open(dir.path()).await;
    let start = async |environment: &str, agents: &[&str]| {
        let start = in_environment(environment, agents);
        service.start_training(start).await
    };
    let refused = async |environment: &str, agents: &[&str]| {
        let refused = start(environment, agents).await;
        refused.expect_err("it is refused")
    };
    let of_another = lend(&service, "ada", poles());
    for unknown in [LENT, "external/", "poles", "EXTERNAL/poles", "nowhere"] {
        let unknown = refused(unknown, &["policy"]).await;
        assert!(matches!(unknown, E::Environment(_)), "{unknown}");
    }
    drop(of_another);
    let wrong = [
        agent("policy", 5, &["left", "right"]),
        agent("policy", 4, &["left", "stay", "right"]),
        AgentSpace {
            action: ActionSpace::Continuous(vec![Component::computed("push", "N", -1.0, 1.0)]),
            ..agent("policy", 4, &[])
        },
    ];
    for space in wrong {
        let _lent = lend(&service, "dev", vec![space]);
        let other = refused(LENT, &["policy"]).await;
        assert!(matches!(other, E::OtherSpaces { .. }), "{other}");
    }
    let other = refused("gridworld", &["policy"]).await;
    assert!(matches!(other, E::OtherSpaces { .. }), "{other}");
    let lent = lend(&service, "dev", poles());
    let same = refused(LENT, &["policy", "ethical"]).await;
    assert!(matches!(same, E::SamePlace(..)), "{same}");
    drop(lent);
    let gone = refused(LENT, &["policy"]).await;
    assert!(matches!(gone, E::Environment(_)), "{gone}");
    let at_home = start("cartpole", &["policy"]).await.unwrap();
    service.cancel_training(by(), at_home.row.id).await.unwrap();
}

#[tokio::test]
async fn a_run_whose_host_is_gone_fails_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let (service, _) = open(dir.path()).await;
    let lent = lend(&service, "dev", poles());
    let start = in_environment(LENT, &["policy"]);
    let run = service.start_training(start).await.unwrap();
    assert_eq!(run.row.environment, LENT);
    drop(lent);
    let row = ended(&service, run.row.id).await.row;
    assert_eq!(
        (row.state, row.error_reason.as_str()),
        (RunState::Failed, "HOST_GONE"),
        "{}",
        row.error
    );
    assert_eq!(weights_versions_of(&service, "policy"), 0);
}

#[tokio::test]
async fn a_run_that_has_used_its_host_for_as_long_as_one_may_fails_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let (service, clock) = open(dir.path()).await;
    let lent = lend(&service, "dev", poles());
    let start = in_environment(LENT, &["policy"]);
    let run = service.start_training(start).await.unwrap().row.id;
    eventually(async || service.run_row(run).await.unwrap().state == RunState::Running).await;
    // The learner waits for its host, or will.
    eventually(async || service.hosts.external("dev", LENT).unwrap().free_copies < 4).await;
    clock.advance(Duration::from_secs(60));
    drop(lent);
    let _again = lend(&service, "dev", poles());
    let row = ended(&service, run).await.row;
    assert_eq!(
        (row.state, row.error_reason.as_str()),
        (RunState::Failed, "HOST_LATE"),
        "{}",
        row.error
    );
}

#[tokio::test]
async fn a_run_in_a_lent_environment_is_not_paused_and_ends_with_its_process() {
    let dir = tempfile::tempdir().unwrap();
    let (service, _) = open(dir.path()).await;
    let lent = lend(&service, "dev", poles());
    let start = in_environment(LENT, &["policy"]);
    let run = service.start_training(start).await.unwrap().row.id;
    let refused = service.pause_training(by(), run).await.unwrap_err();
    assert!(
        matches!(refused, OrchestrationError::NotSaved(_)),
        "{refused}"
    );
    // The process goes away before the host does.
    service.leases.close().await;
    drop(lent);
    eventually(async || service.trainings.is_empty()).await;
    drop(service);

    let (service, _) = open(dir.path()).await;
    let row = ended(&service, run).await.row;
    assert_eq!(
        (row.state, row.error_reason.as_str()),
        (RunState::Interrupted, "NOT_SAVED"),
        "{}",
        row.error
    );
    let next = service.start_training(Start::of("policy", 100, None)).await;
    let next = ended(&service, next.unwrap().row.id).await.row;
    assert_eq!(
        (next.state, next.error_reason.as_str()),
        (RunState::Completed, "")
    );
}

fn weights_versions_of(service: &Orchestration, agent: &str) -> i64 {
    service
        .agents
        .get(agent)
        .unwrap()
        .live()
        .row
        .weights_version
}
