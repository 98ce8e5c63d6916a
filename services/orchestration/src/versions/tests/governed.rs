//! Steps of the ladder that a proposal takes.

use super::{
    ladder::{answers, calibrate, climb, compare_as, reason, stages, try_out, write},
    *,
};
use crate::{
    agents::Asker,
    changes::Governed,
    error::OrchestrationError as E,
    promotions::{Placement, StepBack, StepUp},
    stage::{Attempt, CANARY_STEPS},
    trials::Fall,
};
use tars_runtime::db::Query;

const CHANGE: &str = "a";

/// A mesh whose policy agent is bound to it, and climbs by proposals.
async fn open_governed(dir: &Path) -> Arc<Orchestration> {
    let mut setup = Setup::for_tests(Seeds::counted(41));
    setup.settings.environment = "mesh".to_owned();
    setup.settings.bound_agents = vec!["policy".to_owned()];
    setup.settings.governed_promotion = true;
    let place = tars_test_db::place(dir, "orchestration");
    let terms = |_: &Db| Ok(Terms::Sole);
    let opened = Orchestration::open_at(dir, &place, terms, setup);
    opened.await.unwrap()
}

/// The same, while the rule `aimd` answers as version 1 and a trained one, the second, stands in SHADOW with all
/// the evidence that it needs to climb to CANARY.
async fn in_shadow(dir: &Path) -> Arc<Orchestration> {
    let service = open_governed(dir).await;
    let rule = Target::Rule("aimd".to_owned());
    promote(&service, rule, None).await.unwrap();
    train(&service).await;
    climb(&service, 2, None).await.unwrap();
    calibrate(&service, 1, None).await;
    compare_as(&service, "policy", 2).await;
    service
}

/// The same, with the version in CANARY by a governed change that has ended.
async fn in_canary(dir: &Path) -> Arc<Orchestration> {
    let service = in_shadow(dir).await;
    let placement = up(&service, Stage::Canary).await.unwrap();
    settle(&service, Some(placement)).await.unwrap();
    try_out(&service, 2, CANARY_STEPS).await;
    service
}

fn change(token: i64) -> Governed {
    Governed {
        by: "hypersync".into(),
        on_behalf_of: "user:admin".into(),
        change_id: CHANGE.into(),
        token,
    }
}

fn step(to: Stage) -> StepUp {
    StepUp {
        change: change(1),
        operation_id: format!("to {to}"),
        version: 2,
        to,
        incumbent: 1,
    }
}

async fn up(service: &Arc<Orchestration>, to: Stage) -> Result<Placement, E> {
    service.step_up(agent(service), step(to)).await
}

async fn back(service: &Arc<Orchestration>, from: Stage, to: Stage) -> Result<bool, E> {
    let step = StepBack {
        change: change(1),
        operation_id: format!("to {to}"),
        version: 2,
        from,
        to,
        incumbent: 1,
    };
    service.step_back(agent(service), step).await
}

async fn settle(service: &Arc<Orchestration>, completed: Option<Placement>) -> Result<(), E> {
    let settled = service.settle_promotion(agent(service), change(1), completed);
    settled.await
}

fn is_held(service: &Orchestration) -> bool {
    let hold = agent(service).live().hold.clone();
    hold.is_some_and(|hold| hold.change_id == CHANGE)
}

/// The version falls, as its steps may lead to.
async fn falls(service: &Orchestration, placement: Placement) {
    let fall = Fall {
        stage: placement.stage,
        attempt: Attempt {
            version: placement.version,
            trial: placement.trial,
        },
        why: crate::trials::Reason::NotFinite,
    };
    service.fall_back(&agent(service), &fall).await.unwrap();
}

#[tokio::test]
async fn one_person_takes_no_step_up_that_answers_and_every_way_down() {
    let dir = tempfile::tempdir().unwrap();
    let service = in_shadow(dir.path()).await;
    let refused = climb(&service, 2, None).await.unwrap_err();
    assert!(
        refused.to_string().contains("SyncService.ProposePromotion"),
        "{refused}"
    );
    assert_eq!(reason(Err(refused)), "GOVERNED");
    climb(&service, 2, Some(Stage::Sim)).await.unwrap();
    climb(&service, 2, None).await.unwrap();
    drop(service);

    let dir = tempfile::tempdir().unwrap();
    let service = in_canary(dir.path()).await;
    let active = climb(&service, 2, Some(Stage::Active)).await;
    assert_eq!(reason(active), "GOVERNED");
    let placement = up(&service, Stage::Active).await.unwrap();
    settle(&service, Some(placement)).await.unwrap();
    for (back, version) in [(Target::Before, 4), (Target::Rule("hold".to_owned()), 5)] {
        assert_eq!(promote(&service, back, None).await.unwrap(), version);
    }
}

#[tokio::test]
async fn a_step_up_is_taken_once_and_holds_the_agent() {
    let dir = tempfile::tempdir().unwrap();
    let service = in_shadow(dir.path()).await;
    let placement = up(&service, Stage::Canary).await.unwrap();
    let expected = Placement {
        stage: Stage::Canary,
        version: 2,
        trial: 1,
    };
    assert_eq!(placement, expected);
    assert!(is_held(&service));
    let refused = climb(&service, 2, Some(Stage::Sim)).await;
    assert_eq!(reason(refused), "CHANGE_IN_PROGRESS");
    // The next process knows the operation.
    drop(service);
    let service = open_governed(dir.path()).await;
    for _ in 0..2 {
        assert_eq!(up(&service, Stage::Canary).await.unwrap(), placement);
    }
    assert_eq!(stages(&service).await[0], (2, Stage::Canary));
    assert_eq!(answers(&service).unwrap().rule, Some("aimd"));
    // A hold that a person released is taken anew while the version stands there.
    write(&service, Query::new("DELETE FROM agent_holds")).await;
    assert_eq!(up(&service, Stage::Canary).await.unwrap(), placement);
    assert!(is_held(&service));
    let kinds = recorded(&service).await;
    let staged = kinds.iter().filter(|kind| *kind == "agent.staged");
    assert_eq!(staged.count(), 2, "to SHADOW and to CANARY: {kinds:?}");
}

#[tokio::test]
async fn a_gate_that_refuses_leaves_everything_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let service = in_shadow(dir.path()).await;
    let before = stages(&service).await;
    let worse = "UPDATE comparisons SET body = REPLACE(body, '\"low\":0.1', '\"low\":-0.1')";
    let cases = [
        ("STAGE_ORDER", step(Stage::Shadow), None),
        ("STAGE_ORDER", step(Stage::Active), None),
        (
            "VERSION_CHANGED",
            StepUp {
                incumbent: 0,
                ..step(Stage::Canary)
            },
            None,
        ),
        (
            "STAGE_ORDER",
            StepUp {
                version: 1,
                ..step(Stage::Canary)
            },
            None,
        ),
        (
            "NOT_FOUND",
            StepUp {
                version: 9,
                ..step(Stage::Canary)
            },
            None,
        ),
        ("NOT_BETTER", step(Stage::Canary), Some(worse)),
        (
            "NOT_COMPARED",
            step(Stage::Canary),
            Some("DELETE FROM comparisons"),
        ),
        (
            "UNCALIBRATED",
            step(Stage::Canary),
            Some("DELETE FROM calibrations"),
        ),
    ];
    for (why, step, spoil) in cases {
        if let Some(text) = spoil {
            write(&service, Query::new(text)).await;
        }
        let refused = service.step_up(agent(&service), step.clone()).await;
        assert_eq!(reason(refused.map(|_| ())), why, "{step:?}");
        assert_eq!(stages(&service).await, before);
        assert!(!is_held(&service), "{why}");
    }
}

#[tokio::test]
async fn what_is_checked_is_what_a_step_would_meet() {
    let dir = tempfile::tempdir().unwrap();
    let service = in_shadow(dir.path()).await;
    let check = async |to| service.check_promotion(&agent(&service), 2, to).await;
    let free = check(None).await.unwrap();
    assert_eq!(free.to, Stage::Canary);
    assert!(free.refusal.is_none(), "{free:?}");
    for to in [Stage::Sim, Stage::Shadow, Stage::Active] {
        let refused = check(Some(to)).await.map(|_| ());
        assert_eq!(reason(refused), "STAGE_ORDER", "{to}");
    }
    write(&service, Query::new("DELETE FROM comparisons")).await;
    let missing = check(None).await.unwrap().refusal.unwrap();
    assert_eq!(reason(Err(missing)), "NOT_COMPARED");
    compare_as(&service, "policy", 2).await;
    up(&service, Stage::Canary).await.unwrap();
    write(&service, Query::new("DELETE FROM comparisons")).await;
    let unproven = check(None).await.unwrap().refusal.unwrap();
    assert_eq!(
        reason(Err(unproven)),
        "CANARY_UNPROVEN",
        "a comparison would not help"
    );

    let dir = tempfile::tempdir().unwrap();
    let (service, _) = trained(dir.path()).await;
    let refused = service.check_promotion(&agent(&service), 1, None).await;
    assert_eq!(reason(refused.map(|_| ())), "NOT_BOUND");
}

#[tokio::test]
async fn a_step_to_canary_is_taken_back_to_shadow() {
    let dir = tempfile::tempdir().unwrap();
    let service = in_shadow(dir.path()).await;
    up(&service, Stage::Canary).await.unwrap();
    assert!(back(&service, Stage::Shadow, Stage::Canary).await.unwrap());
    assert_eq!(stages(&service).await[0], (2, Stage::Shadow));
    assert!(is_held(&service), "until it is settled");
    let again = back(&service, Stage::Shadow, Stage::Canary).await;
    assert!(!again.unwrap(), "it is done");
    settle(&service, None).await.unwrap();
    assert!(!is_held(&service));
    settle(&service, None).await.unwrap();
}

#[tokio::test]
async fn a_step_to_active_is_taken_back_to_what_answered_before() {
    let dir = tempfile::tempdir().unwrap();
    let service = in_canary(dir.path()).await;
    let placement = up(&service, Stage::Active).await.unwrap();
    assert_eq!((placement.version, placement.trial), (3, 0));
    assert_eq!(answers(&service).unwrap().weights_version, 3);
    assert!(back(&service, Stage::Canary, Stage::Active).await.unwrap());
    let acted = answers(&service).unwrap();
    assert_eq!((acted.rule, acted.weights_version), (Some("aimd"), 4));
    assert!(!back(&service, Stage::Canary, Stage::Active).await.unwrap());
    settle(&service, None).await.unwrap();
    promote(&service, Target::Before, None).await.ok();
    let acted = answers(&service).unwrap();
    assert!(acted.rule.is_some(), "one person does not bring it back");
}

#[tokio::test]
async fn a_step_to_active_is_taken_back_to_what_it_was_proposed_against() {
    let answered_after = async |spoil: &'static str| {
        let dir = tempfile::tempdir().unwrap();
        let service = open_governed(dir.path()).await;
        promote(&service, Target::Rule("aimd".to_owned()), None)
            .await
            .unwrap();
        promote(&service, Target::Rule("hold".to_owned()), None)
            .await
            .unwrap();
        train(&service).await;
        climb(&service, 3, None).await.unwrap();
        calibrate(&service, 1, None).await;
        compare_as(&service, "policy", 3).await;
        let of = |to| StepUp {
            version: 3,
            incumbent: 2,
            ..step(to)
        };
        let slot = agent(&service);
        service
            .step_up(Arc::clone(&slot), of(Stage::Canary))
            .await
            .unwrap();
        try_out(&service, 3, CANARY_STEPS).await;
        service
            .step_up(Arc::clone(&slot), of(Stage::Active))
            .await
            .unwrap();
        write(&service, Query::new(spoil)).await;
        let back = StepBack {
            change: change(1),
            operation_id: format!("to {}", Stage::Active),
            version: 3,
            from: Stage::Canary,
            to: Stage::Active,
            incumbent: 1,
        };
        assert!(service.step_back(slot, back).await.unwrap());
        answers(&service).unwrap().rule
    };
    let nothing =
        "UPDATE checkpoints SET taken_down = FALSE WHERE agent_id = 'policy' AND version = 1";
    assert_eq!(answered_after(nothing).await, Some("aimd"));
    let fell = "UPDATE checkpoints SET taken_down = TRUE WHERE agent_id = 'policy' AND version = 1";
    assert_eq!(
        answered_after(fell).await,
        Some("hold"),
        "the newest way back"
    );
    let gone = "DELETE FROM checkpoints WHERE agent_id = 'policy' AND version = 1";
    assert_eq!(answered_after(gone).await, Some("hold"));
}

#[tokio::test]
async fn a_first_active_version_is_taken_back_to_the_default_rule() {
    let dir = tempfile::tempdir().unwrap();
    let service = open_governed(dir.path()).await;
    train(&service).await;
    climb(&service, 1, None).await.unwrap();
    calibrate(&service, 1, None).await;
    compare_as(&service, "policy", 1).await;
    let first = |to| StepUp {
        version: 1,
        incumbent: 0,
        ..step(to)
    };
    let slot = agent(&service);
    let canary = first(Stage::Canary);
    service.step_up(Arc::clone(&slot), canary).await.unwrap();
    try_out(&service, 1, CANARY_STEPS).await;
    let active = first(Stage::Active);
    let placement = service.step_up(Arc::clone(&slot), active).await.unwrap();
    assert_eq!(placement.version, 2);
    let step = StepBack {
        change: change(1),
        operation_id: "to ACTIVE".to_owned(),
        version: 1,
        from: Stage::Canary,
        to: Stage::Active,
        incumbent: 0,
    };
    assert!(service.step_back(slot, step).await.unwrap());
    let default = tars_worlds::baseline("policy");
    assert_eq!(answers(&service).unwrap().rule, default);
}

#[tokio::test]
async fn a_step_that_was_given_up_is_never_taken() {
    let dir = tempfile::tempdir().unwrap();
    let service = in_shadow(dir.path()).await;
    for _ in 0..2 {
        let nothing = back(&service, Stage::Shadow, Stage::Canary).await;
        assert!(!nothing.unwrap());
    }
    let late = up(&service, Stage::Canary).await.map(|_| ());
    assert_eq!(reason(late), "SUPERSEDED");
    assert_eq!(stages(&service).await[0], (2, Stage::Shadow));
    assert!(!is_held(&service));
}

#[tokio::test]
async fn a_version_that_fell_is_not_taken_down_again_nor_completed() {
    for to in [Stage::Canary, Stage::Active] {
        let dir = tempfile::tempdir().unwrap();
        let (service, from) = match to {
            Stage::Canary => (in_shadow(dir.path()).await, Stage::Shadow),
            _ => (in_canary(dir.path()).await, Stage::Canary),
        };
        let placement = up(&service, to).await.unwrap();
        falls(&service, placement).await;
        let slot = agent(&service);
        let standing = service.standing(&slot, placement.version).await.unwrap();
        assert_ne!(standing.stage, to);
        assert_eq!(standing.fell.as_deref(), Some("an action was not finite"));
        let live = slot.live().row.weights_version;
        let completed = settle(&service, Some(placement)).await;
        assert_eq!(reason(completed), "VERSION_CHANGED");
        assert!(!back(&service, from, to).await.unwrap());
        assert_eq!(slot.live().row.weights_version, live);
        settle(&service, None).await.unwrap();
        assert!(!is_held(&service));
    }
}

#[tokio::test]
async fn a_version_that_fell_and_climbed_again_is_in_another_trial() {
    let dir = tempfile::tempdir().unwrap();
    let service = in_shadow(dir.path()).await;
    let placement = up(&service, Stage::Canary).await.unwrap();
    falls(&service, placement).await;
    let anew = StepUp {
        operation_id: "another".to_owned(),
        ..step(Stage::Canary)
    };
    let anew = service.step_up(agent(&service), anew).await.unwrap();
    assert_eq!(anew.trial, placement.trial + 1);
    let standing = service.standing(&agent(&service), 2).await.unwrap();
    assert_eq!((standing.trial, standing.fell), (anew.trial, None));
    assert!(!back(&service, Stage::Shadow, Stage::Canary).await.unwrap());
    assert_eq!(stages(&service).await[0], (2, Stage::Canary));
}

#[tokio::test]
async fn only_the_process_that_works_on_a_change_takes_its_steps() {
    let dir = tempfile::tempdir().unwrap();
    let service = in_shadow(dir.path()).await;
    let later = StepUp {
        change: change(2),
        ..step(Stage::Canary)
    };
    let placement = service.step_up(agent(&service), later).await.unwrap();
    let late = [
        up(&service, Stage::Canary).await.map(|_| ()),
        back(&service, Stage::Shadow, Stage::Canary)
            .await
            .map(|_| ()),
        settle(&service, Some(placement)).await,
    ];
    for refused in late {
        assert_eq!(reason(refused), "SUPERSEDED");
    }
    let other = Governed {
        change_id: "b".into(),
        ..change(9)
    };
    let settled = service.settle_promotion(agent(&service), other, None);
    settled.await.unwrap();
    assert!(is_held(&service), "it is not the other's");
}

#[tokio::test]
async fn steps_of_the_active_version_are_counted_while_its_promotion_is_verified() {
    let dir = tempfile::tempdir().unwrap();
    let service = in_canary(dir.path()).await;
    let placement = up(&service, Stage::Active).await.unwrap();
    let slot = agent(&service);
    let nothing = vec![0.0; slot.definition.space.observation.len()];
    let asker = Asker {
        name: "user:dev",
        owner: "dev",
        counts: true,
    };
    let answer = || slot.answer(asker, None, &nothing).unwrap();
    let counted = async || {
        let standing = service.standing(&slot, placement.version).await.unwrap();
        standing.counts.active_steps
    };
    for _ in 0..20 {
        assert_eq!(answer().weights_version, placement.version);
    }
    eventually("they are stored", async || counted().await == 20).await;
    settle(&service, Some(placement)).await.unwrap();
    for _ in 0..40 {
        answer();
    }
    // What is stored goes through one task, in order.
    climb(&service, 2, None).await.unwrap();
    for _ in 0..20 {
        answer();
    }
    eventually("the next ones are stored", async || {
        let standing = service.standing(&slot, 2).await.unwrap();
        standing.counts.shadow_steps == 20
    })
    .await;
    assert_eq!(counted().await, 20);
}
