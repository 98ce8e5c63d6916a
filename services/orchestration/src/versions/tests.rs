use super::*;
use crate::{
    Setup,
    agents::Installed,
    changes::{Governed, Settle},
    learners::{Class, Event, Owner},
    store::RunState,
    task::{self, Task},
    training::Start,
};
use std::{path::Path, time::Duration};
use tars_learn::policy::Policy;
use tars_runtime::{
    db::{Db, DbError, LostCommit},
    lease::Terms,
    seeds::Seeds,
};
use uuid::Uuid;

mod falls;
mod governed;
mod ladder;
mod rules;
mod unusable;

async fn open(dir: &Path) -> Arc<Orchestration> {
    open_in(dir, "cartpole").await
}

async fn open_in(dir: &Path, environment: &str) -> Arc<Orchestration> {
    let mut setup = Setup::for_tests(Seeds::counted(41));
    setup.settings.environment = environment.to_owned();
    let place = tars_test_db::place(dir, "orchestration");
    // The next process on a folder continues at once, on every engine.
    let terms = |_: &Db| Ok(Terms::Sole);
    let opened = Orchestration::open_at(dir, &place, terms, setup);
    opened.await.unwrap()
}

fn agent(service: &Orchestration) -> Arc<Agent> {
    Arc::clone(service.agents.get("policy").unwrap())
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

async fn start(service: &Arc<Orchestration>, steps: u64) -> Uuid {
    let started = service.start_training(Start::of("policy", steps, None));
    started.await.unwrap().row.id
}

/// Trains once, which makes a version.
async fn train(service: &Arc<Orchestration>) -> Uuid {
    let id = start(service, 200).await;
    eventually("it has ended", async || {
        let run = service.training(id).await.unwrap().row;
        run.state == RunState::Completed && service.trainings.is_empty()
    })
    .await;
    id
}

/// A service whose agent has two versions, and the runs that made them.
async fn trained(dir: &Path) -> (Arc<Orchestration>, [Uuid; 2]) {
    let service = open(dir).await;
    let runs = [train(&service).await, train(&service).await];
    (service, runs)
}

fn to(target: Target, expected: Option<i64>) -> Promotion {
    Promotion {
        by: "user:dev".into(),
        reason: "test".into(),
        target,
        expected,
        stage: None,
    }
}

async fn promote(
    service: &Arc<Orchestration>,
    target: Target,
    expected: Option<i64>,
) -> Result<i64, OrchestrationError> {
    let promoted = service.promote(agent(service), to(target, expected)).await;
    let (live, rollout) = promoted?;
    assert_eq!(rollout, Rollout::Everywhere);
    Ok(live.row.weights_version)
}

async fn list(service: &Orchestration) -> Vec<VersionRow> {
    let (listed, next) = service.versions(&agent(service), "", 0).await.unwrap();
    assert_eq!(next, "");
    listed.into_iter().map(|listed| listed.row).collect()
}

/// The numbers of the retained versions, and what each was restored from.
async fn numbers(service: &Orchestration) -> Vec<(i64, Option<i64>)> {
    let rows = list(service).await.into_iter();
    rows.map(|row| (row.version, row.restored_from)).collect()
}

async fn recorded(service: &Orchestration) -> Vec<String> {
    let mut tx = service.store.begin("test.audit").await.unwrap();
    let found = audit::peek(&mut tx, 100).await.unwrap();
    let records = found.into_iter().flat_map(|(_, records)| records);
    let kinds = records.map(|r| r.event_type);
    kinds.filter(|kind| kind.starts_with("agent.")).collect()
}

#[tokio::test]
async fn a_promoted_version_is_live_under_the_next_number_and_keeps_its_origin() {
    let dir = tempfile::tempdir().unwrap();
    let service = open(dir.path()).await;
    let mut made = Vec::new();
    for _ in 0..2 {
        let run = train(&service).await;
        made.push((run, agent(&service).live()));
    }
    assert_ne!(made[0].1.policy, made[1].1.policy);
    assert_eq!(
        promote(&service, Target::Version(1), Some(2))
            .await
            .unwrap(),
        3
    );
    let live = agent(&service).live();
    let (run, first) = &made[0];
    assert_eq!(live.policy, first.policy);
    assert_eq!(live.row.last_return, first.row.last_return);
    assert_eq!(
        live.row.version, first.row.version,
        "of the hyperparameters"
    );
    let listed = list(&service).await;
    assert_eq!(listed[0].run_id, Some(*run));
    assert_eq!(listed[1].run_id, Some(made[1].0));
    assert_eq!(
        (&listed[0].blob, listed[0].mean_return),
        (&listed[2].blob, listed[2].mean_return)
    );
    assert!(listed.iter().all(|row| row.algorithm == "dqn"));
    // What was made live again is restored from where its policy comes from.
    assert_eq!(
        promote(&service, Target::Version(2), None).await.unwrap(),
        4
    );
    assert_eq!(
        promote(&service, Target::Version(3), None).await.unwrap(),
        5
    );
    let expected = [
        (5, Some(1)),
        (4, Some(2)),
        (3, Some(1)),
        (2, None),
        (1, None),
    ];
    assert_eq!(numbers(&service).await, expected);
    assert_eq!(recorded(&service).await, ["agent.promoted"; 3]);
    drop(service);
    let service = open(dir.path()).await;
    let live = agent(&service).live();
    assert_eq!((live.row.weights_version, &live.policy), (5, &first.policy));
}

#[tokio::test]
async fn a_roll_back_restores_what_was_live_before_and_a_second_one_undoes_it() {
    let dir = tempfile::tempdir().unwrap();
    let (service, _) = trained(dir.path()).await;
    let second = agent(&service).live();
    for version in [3, 4, 5] {
        let back = promote(&service, Target::Before, Some(version - 1)).await;
        assert_eq!(back.unwrap(), version);
        let is_second = agent(&service).live().policy == second.policy;
        assert_eq!(is_second, version == 4);
    }
    assert_eq!(recorded(&service).await, ["agent.rolled_back"; 3]);
}

#[tokio::test]
async fn the_list_is_paged_and_marks_the_live_version() {
    let dir = tempfile::tempdir().unwrap();
    let (service, _) = trained(dir.path()).await;
    promote(&service, Target::Version(1), None).await.unwrap();
    let slot = agent(&service);
    let (mut token, mut seen) = (String::new(), Vec::new());
    loop {
        let (page, next) = service.versions(&slot, &token, 2).await.unwrap();
        seen.extend(
            page.iter()
                .map(|v| (v.row.version, v.row.version == v.live)),
        );
        token = next;
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(seen, [(3, true), (2, false), (1, false)]);
    let wrong = service.versions(&slot, "x", 2).await;
    assert!(matches!(wrong, Err(OrchestrationError::PageToken(_))));
}

#[tokio::test]
async fn nothing_changes_where_the_policy_is_live_already() {
    let dir = tempfile::tempdir().unwrap();
    let (service, _) = trained(dir.path()).await;
    assert_eq!(
        promote(&service, Target::Version(2), Some(2))
            .await
            .unwrap(),
        2
    );
    for _ in 0..3 {
        assert_eq!(
            promote(&service, Target::Version(1), None).await.unwrap(),
            3
        );
    }
    assert_eq!(
        promote(&service, Target::Version(3), None).await.unwrap(),
        3
    );
    assert_eq!(list(&service).await.len(), 3);
    assert_eq!(recorded(&service).await, ["agent.promoted"]);
}

#[tokio::test]
async fn another_live_version_than_the_expected_one_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (service, _) = trained(dir.path()).await;
    for target in [Target::Version(1), Target::Version(2), Target::Before] {
        for wrong in [0, 1, 3] {
            let refused = promote(&service, target.clone(), Some(wrong)).await;
            let is_version = matches!(
                refused,
                Err(OrchestrationError::WeightsVersion { live: 2, expected }) if expected == wrong
            );
            assert!(is_version, "{refused:?}");
        }
    }
    assert_eq!(numbers(&service).await, [(2, None), (1, None)]);
}

#[tokio::test]
async fn a_version_that_is_not_retained_is_refused_with_those_that_are() {
    let dir = tempfile::tempdir().unwrap();
    let service = open(dir.path()).await;
    let refused = promote(&service, Target::Version(1), Some(0)).await;
    let text = refused.unwrap_err().to_string();
    assert_eq!(
        text,
        "the weights of policy have no version 1; retained are none"
    );
    let refused = promote(&service, Target::Before, None).await;
    assert!(matches!(refused, Err(OrchestrationError::NoEarlierVersion)));
    train(&service).await;
    let refused = promote(&service, Target::Before, None).await;
    assert!(matches!(refused, Err(OrchestrationError::NoEarlierVersion)));
    train(&service).await;
    for wrong in [0, -1, 3, i64::MAX] {
        match promote(&service, Target::Version(wrong), None).await {
            Err(OrchestrationError::NotRetained { retained, .. }) => assert_eq!(retained, [2, 1]),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(agent(&service).live().row.weights_version, 2);
}

#[tokio::test]
async fn weights_do_not_change_while_a_governed_change_holds_the_agent() {
    let dir = tempfile::tempdir().unwrap();
    let (service, _) = trained(dir.path()).await;
    let waiting = Governed {
        by: "hypersync".into(),
        on_behalf_of: "user:admin".into(),
        change_id: "a".into(),
        token: 1,
    };
    service.hold(agent(&service), waiting).await.unwrap();
    for target in [Target::Version(1), Target::Version(2), Target::Before] {
        let refused = promote(&service, target, Some(2)).await;
        let Err(OrchestrationError::ChangeInProgress { change, .. }) = refused else {
            panic!("{refused:?}");
        };
        assert_eq!(change, "a");
    }
    let settle = Settle {
        by: "hypersync".into(),
        on_behalf_of: "user:admin".into(),
        change_id: "a".into(),
        approved_version: None,
        void_operation: None,
        token: Some(1),
    };
    service.settle(agent(&service), settle).await.unwrap();
    assert_eq!(promote(&service, Target::Before, Some(2)).await.unwrap(), 3);
}

#[tokio::test]
async fn one_of_two_racing_promotions_wins() {
    let dir = tempfile::tempdir().unwrap();
    let (service, _) = trained(dir.path()).await;
    let race = [Target::Version(1), Target::Before].map(|target| {
        let service = Arc::clone(&service);
        tokio::spawn(async move { promote(&service, target, Some(2)).await })
    });
    let [first, second] = race;
    let ended = [first.await.unwrap(), second.await.unwrap()];
    let won = ended.iter().filter(|ended| matches!(ended, Ok(3)));
    assert_eq!(won.count(), 1, "{ended:?}");
    let is_late = |ended: &&Result<i64, OrchestrationError>| {
        let late = OrchestrationError::WeightsVersion {
            live: 3,
            expected: 2,
        };
        matches!(ended, Err(e) if e.to_string() == late.to_string())
    };
    assert_eq!(ended.iter().filter(is_late).count(), 1, "{ended:?}");
    assert_eq!(list(&service).await.len(), 3);
}

#[tokio::test]
async fn the_policy_is_the_stored_one_whatever_the_commit_does() {
    for lost in [LostCommit::Made, LostCommit::Undone] {
        let dir = tempfile::tempdir().unwrap();
        let service = open(dir.path()).await;
        let mut policies = Vec::new();
        for _ in 0..2 {
            train(&service).await;
            policies.push(agent(&service).live().policy.clone());
        }
        service.store.db().lose_commit("agents.promote", lost);
        let promoted = promote(&service, Target::Version(1), Some(2)).await;
        let at = match lost {
            LostCommit::Made => {
                assert_eq!(promoted.unwrap(), 3);
                0
            }
            LostCommit::Undone => {
                let in_doubt = matches!(
                    promoted,
                    Err(OrchestrationError::Store(DbError::InDoubt(_)))
                );
                assert!(in_doubt, "{promoted:?}");
                1
            }
        };
        let live = agent(&service).current().unwrap();
        assert_eq!(live.policy, policies[at]);
        assert_eq!(live.row.weights_version, numbers(&service).await[0].0);
    }
}

/// Writes weights past the service's checks.
async fn install(service: &Orchestration, policy: &Policy) {
    install_of(service, policy, false).await;
}

/// The same, of a training in an environment that was lent, or not.
async fn install_of(service: &Orchestration, policy: &Policy, is_lent: bool) {
    let installed = Installed {
        run: Uuid::nil(),
        policy,
        final_return: 1.0,
        steps: 1,
        episodes: 1,
        is_lent,
    };
    let slot = agent(service);
    let mut turn = service.turn(&slot, "test.install").await.unwrap();
    let next = service.agents.install(&mut turn, &slot, installed).await;
    turn.commit(next.unwrap().0).await.unwrap();
}

/// The policy of an agent in another environment.
async fn foreign(service: &Orchestration) -> Policy {
    let task = Task {
        environment: "acrobot".to_owned(),
        ..Task::for_tests(100)
    };
    let owner = Owner {
        class: Class::Search,
        caller: "dev".to_owned(),
    };
    let mut running = service.learners.start(owner, task, None).unwrap();
    while let Some(event) = running.next().await {
        if let Event::Ended(ended) = event {
            let outcome = ended.unwrap().unwrap();
            return task::result(&outcome).unwrap().0.policy.clone();
        }
    }
    panic!("the learner has no result")
}

#[tokio::test]
async fn what_was_learned_in_a_lent_environment_answers_once_a_person_promotes_it() {
    let dir = tempfile::tempdir().unwrap();
    let service = open(dir.path()).await;
    train(&service).await;
    let own = agent(&service).live().policy.clone().unwrap();
    train(&service).await;
    let before = agent(&service).live().row.clone();
    install_of(&service, &own, true).await;
    let after = agent(&service).live().row.clone();
    assert_eq!(
        (after.weights_version, after.last_return),
        (before.weights_version, before.last_return)
    );
    let newest = list(&service).await.remove(0);
    assert_eq!((newest.version, newest.served), (3, false));
    let promoted = promote(&service, Target::Version(3), None).await;
    assert_eq!(promoted.unwrap(), 4);
}

#[tokio::test]
async fn weights_that_do_not_fit_the_agent_or_are_gone_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (service, _) = trained(dir.path()).await;
    let own = agent(&service).live().policy.clone().unwrap();
    install(&service, &foreign(&service).await).await;
    install(&service, &own).await;
    let mut tx = service.store.begin("test.gone").await.unwrap();
    let gone = VersionRow {
        version: 0,
        blob: Some("0".repeat(64)),
        ..list(&service).await.remove(0)
    };
    store::insert_version(&mut tx, "policy", &gone)
        .await
        .unwrap();
    tx.commit().await.unwrap();
    for (version, part) in [(3, "observation components"), (0, "there is no blob")] {
        let refused = promote(&service, Target::Version(version), None).await;
        let error = refused.unwrap_err();
        assert!(error.to_string().contains(part), "{error}");
        let status = tonic::Status::from(error);
        let reason = tars_proto::fault::reason(&status);
        assert_eq!(reason.as_deref(), Some("UNUSABLE_VERSION"));
    }
    let refused = promote(&service, Target::Before, None).await;
    assert!(matches!(
        refused,
        Err(OrchestrationError::UnusableVersion { version: 3, .. })
    ));
    let live = agent(&service).live();
    assert_eq!(
        (live.row.weights_version, live.policy.as_ref()),
        (4, Some(&own))
    );
    assert!(recorded(&service).await.is_empty());
}

#[tokio::test]
async fn a_run_that_ends_after_a_promotion_makes_the_next_version() {
    let dir = tempfile::tempdir().unwrap();
    let (service, _) = trained(dir.path()).await;
    let id = start(&service, 20_000).await;
    assert_eq!(
        promote(&service, Target::Version(1), Some(2))
            .await
            .unwrap(),
        3
    );
    eventually("the run has ended", async || {
        let run = service.training(id).await.unwrap().row;
        run.state == RunState::Completed && service.trainings.is_empty()
    })
    .await;
    assert_eq!(numbers(&service).await[..2], [(4, None), (3, Some(1))]);
    assert_eq!(promote(&service, Target::Before, Some(4)).await.unwrap(), 5);
    assert_eq!(numbers(&service).await[0], (5, Some(1)));
}
