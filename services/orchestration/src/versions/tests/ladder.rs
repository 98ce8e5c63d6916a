use super::*;
use crate::{
    agents::Asker,
    calibration::Finding,
    error::OrchestrationError as E,
    shield::Limit,
    stage::{Against, CANARY_STEPS, Comparison, Difference, MIN_SEEDS},
};
use tars_runtime::db::{Query, json};

/// A mesh whose policy agent is bound to it.
async fn bound(dir: &Path) -> Arc<Orchestration> {
    let opened = open_bound(dir, "mesh", "policy").await;
    opened.unwrap()
}

async fn open_bound(
    dir: &Path,
    environment: &str,
    agent: &str,
) -> Result<Arc<Orchestration>, OrchestrationError> {
    let mut setup = Setup::for_tests(Seeds::counted(41));
    setup.settings.environment = environment.to_owned();
    setup.settings.bound_agents = vec![agent.to_owned()];
    let place = tars_test_db::place(dir, "orchestration");
    let terms = |_: &Db| Ok(Terms::Sole);
    Orchestration::open_at(dir, &place, terms, setup).await
}

/// Promotes a version one step up, or to a stage; returns the reason of a refusal.
pub(super) async fn climb(
    service: &Arc<Orchestration>,
    version: i64,
    stage: Option<Stage>,
) -> Result<(), OrchestrationError> {
    let promotion = Promotion {
        stage,
        ..to(Target::Version(version), None)
    };
    let promoted = service.promote(agent(service), promotion).await;
    promoted.map(|_| ())
}

pub(super) fn reason(refused: Result<(), OrchestrationError>) -> String {
    let status = tonic::Status::from(refused.unwrap_err());
    tars_proto::fault::reason(&status).unwrap_or_default()
}

/// The stages of the retained versions, the newest first.
pub(super) async fn stages(service: &Orchestration) -> Vec<(i64, Stage)> {
    let (listed, _) = service.versions(&agent(service), "", 0).await.unwrap();
    let stage = |v: &ListedVersion| (v.row.version, Stage::of(&v.row, v.places()));
    listed.iter().map(stage).collect()
}

pub(super) fn answers(
    service: &Orchestration,
) -> Result<crate::agents::Action, OrchestrationError> {
    let slot = agent(service);
    let nothing = vec![0.0; slot.definition.space.observation.len()];
    slot.act(&nothing)
}

pub(super) async fn write(service: &Orchestration, query: Query<'_>) {
    let mut tx = service.store.begin("test.write").await.unwrap();
    tx.execute(query).await.unwrap().one().unwrap();
    tx.commit().await.unwrap();
}

/// Stores a calibration of this moment.
pub(super) async fn calibrate(service: &Orchestration, number: i64, uncalibrated: Option<&str>) {
    let finding = Finding {
        uncalibrated: uncalibrated.map(str::to_owned),
        from_us: 0,
        to_us: 0,
        windows: 1,
        calls: 1_000,
        failed: 0,
        rejected: 0,
        tested_to_us: service.clock.now_us(),
        tested_calls: 1_000,
        errors: None,
        parameters: Vec::new(),
        approvals: None,
    };
    let text = "INSERT INTO calibrations (number, at_us, body) VALUES ($1, $2, $3)";
    let insert = Query::new(text).bind(number).bind(0_i64);
    write(service, insert.bind(json(&finding).unwrap())).await;
}

/// Stores that a version is better than what answers now.
async fn compare(service: &Orchestration, version: i64) {
    compare_as(service, "policy", version).await;
}

pub(super) async fn compare_as(service: &Orchestration, agent: &str, version: i64) {
    let slot = Arc::clone(service.agents.get(agent).unwrap());
    let better = |name: &str| Against {
        name: name.to_owned(),
        mean: 0.0,
        difference: Difference {
            mean: 0.2,
            low: 0.1,
            high: 0.3,
        },
    };
    let comparison = Comparison {
        incumbent: incumbent(&slot, &slot.live()),
        calibration: "shipped".to_owned(),
        seeds: MIN_SEEDS,
        first_seed: 1,
        mean: 0.2,
        with_incumbent: better("incumbent"),
        with_rules: vec![better("hold")],
        at_us: 0,
    };
    let text = "INSERT INTO comparisons (agent_id, version, at_us, body) VALUES ($1, $2, $3, $4)";
    let insert = Query::new(text).bind(agent).bind(version).bind(0_i64);
    write(service, insert.bind(json(&comparison).unwrap())).await;
}

/// Stores what a version did in CANARY.
pub(super) async fn try_out(service: &Orchestration, version: i64, steps: u64) {
    let text = "UPDATE trials SET canary_steps = $2 WHERE agent_id = 'policy' AND version = $1";
    let steps = i64::try_from(steps).unwrap();
    write(service, Query::new(text).bind(version).bind(steps)).await;
}

#[tokio::test]
async fn one_does_not_go_back_to_what_was_live_before_the_agent_was_bound() {
    let dir = tempfile::tempdir().unwrap();
    let service = open_in(dir.path(), "mesh").await;
    train(&service).await;
    train(&service).await;
    assert_eq!(
        promote(&service, Target::Before, None).await.unwrap(),
        3,
        "nothing of it climbs"
    );
    drop(service);
    let service = bound(dir.path()).await;
    let default = agent(&service).definition.baseline().unwrap().name();
    assert_eq!(
        promote(&service, Target::Before, None).await.unwrap(),
        4,
        "the default rule"
    );
    assert_eq!(answers(&service).unwrap().rule, Some(default));
    let nothing = promote(&service, Target::Before, None).await;
    assert!(matches!(nothing, Err(E::NoEarlierVersion)), "{nothing:?}");
}

#[tokio::test]
async fn a_state_that_no_live_mesh_can_be_in_is_refused_for_a_bound_agent() {
    let dir = tempfile::tempdir().unwrap();
    let service = bound(dir.path()).await;
    let rule = Target::Rule("aimd".to_owned());
    promote(&service, rule, None).await.unwrap();
    let asker = Asker {
        name: "user:dev",
        owner: "dev",
        counts: true,
    };
    let answer = |id: &str, seen: &[f32]| {
        let slot = service.agents.get(id).unwrap();
        slot.answer(asker, None, seen)
    };
    let space = agent(&service).definition.space.observation.clone();
    let inside = vec![0.0; space.len()];
    answer("policy", &inside).unwrap();
    for (at, component) in space.iter().enumerate() {
        let with = |value: f32| {
            let mut seen = inside.clone();
            seen[at] = value;
            answer("policy", &seen)
        };
        for edge in [component.low, component.high] {
            with(edge).unwrap();
        }
        for wrong in [component.low - 0.01, component.high + 0.01, 1e30, -1e30] {
            let refused = tonic::Status::from(with(wrong).unwrap_err());
            assert_eq!(refused.code(), tonic::Code::InvalidArgument);
            assert!(refused.message().contains(&*component.name), "{refused}");
        }
        let refused = with(f32::NAN).unwrap_err();
        assert!(matches!(refused, E::NotFinite(_)), "{refused}");
    }
    let short = answer("policy", &inside[1..]).unwrap_err();
    assert!(matches!(short, E::Observation { .. }), "{short}");
    // An agent that is not bound counts nothing.
    let free = service.agents.get("resource").unwrap();
    let rule = to(Target::Rule("hold".to_owned()), None);
    service.promote(Arc::clone(free), rule).await.unwrap();
    answer(
        "resource",
        &vec![50.0; free.definition.space.observation.len()],
    )
    .unwrap();
}

#[tokio::test]
async fn what_training_makes_of_a_bound_agent_enters_as_sim_and_answers_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let service = bound(dir.path()).await;
    let run = train(&service).await;
    train(&service).await;
    assert_eq!(stages(&service).await, [(2, Stage::Sim), (1, Stage::Sim)]);
    let first = &list(&service).await[1];
    assert_eq!(first.run_id, Some(run));
    let trained = service.training(run).await.unwrap();
    assert!(trained.row.final_return.is_some(), "of what it learned");
    assert_eq!(trained.row.final_return, first.mean_return);
    assert_eq!(trained.row.final_return, trained.members[0].final_return);
    assert!(matches!(answers(&service), Err(E::Untrained)));
    let live = agent(&service).live();
    assert_eq!((live.row.weights_version, live.row.last_return), (0, None));
    assert_eq!(live.row.total_steps, 400);
    let nothing = promote(&service, Target::Before, None).await;
    assert!(matches!(nothing, Err(E::NoEarlierVersion)), "{nothing:?}");
    // A rule takes the next number, and answers at once.
    let rule = Target::Rule("aimd".to_owned());
    assert_eq!(promote(&service, rule, Some(0)).await.unwrap(), 3);
    assert_eq!(answers(&service).unwrap().rule, Some("aimd"));
    train(&service).await;
    assert_eq!(
        stages(&service).await,
        [
            (4, Stage::Sim),
            (3, Stage::Active),
            (2, Stage::Sim),
            (1, Stage::Sim)
        ]
    );
    assert_eq!(answers(&service).unwrap().weights_version, 3);
}

#[tokio::test]
async fn a_version_climbs_one_step_at_a_time_and_falls_any_number() {
    let dir = tempfile::tempdir().unwrap();
    let service = bound(dir.path()).await;
    train(&service).await;
    train(&service).await;
    for stage in [Stage::Canary, Stage::Active] {
        assert_eq!(reason(climb(&service, 1, Some(stage)).await), "STAGE_ORDER");
    }
    let refused = reason(climb(&service, 1, Some(Stage::Retired)).await);
    assert_eq!(refused, "INVALID_FIELD");
    for _ in 0..2 {
        climb(&service, 1, Some(Stage::Shadow)).await.unwrap();
    }
    // There is one in each stage.
    climb(&service, 2, None).await.unwrap();
    assert_eq!(
        stages(&service).await,
        [(2, Stage::Shadow), (1, Stage::Sim)]
    );
    assert!(matches!(answers(&service), Err(E::Untrained)));
    drop(service);
    let service = bound(dir.path()).await;
    assert_eq!(agent(&service).live().row.shadow, Some(2));
    climb(&service, 2, Some(Stage::Sim)).await.unwrap();
    assert_eq!(stages(&service).await, [(2, Stage::Sim), (1, Stage::Sim)]);
    assert_eq!(recorded(&service).await, ["agent.staged"; 3]);
}

#[tokio::test]
async fn nothing_climbs_to_canary_without_a_calibration_and_a_comparison() {
    let dir = tempfile::tempdir().unwrap();
    let service = bound(dir.path()).await;
    train(&service).await;
    climb(&service, 1, None).await.unwrap();
    assert_eq!(reason(climb(&service, 1, None).await), "UNCALIBRATED");
    calibrate(&service, 1, Some("too few calls: 3")).await;
    let refused = climb(&service, 1, None).await.unwrap_err();
    assert_eq!(
        refused.to_string(),
        "version 1 of policy stays in SHADOW: the mesh's model is UNCALIBRATED: too few calls: 3"
    );
    calibrate(&service, 2, None).await;
    assert_eq!(reason(climb(&service, 1, None).await), "NOT_COMPARED");
    compare(&service, 1).await;
    // What it was compared with answers no more.
    let rule = Target::Rule("hold".to_owned());
    promote(&service, rule, None).await.unwrap();
    assert_eq!(reason(climb(&service, 1, None).await), "NOT_COMPARED");
    service.clock.advance(service.calibrations.life());
    service.clock.advance(Duration::from_secs(1));
    assert_eq!(reason(climb(&service, 1, None).await), "UNCALIBRATED");
    assert_eq!(stages(&service).await[1], (1, Stage::Shadow));
}

#[tokio::test]
async fn a_version_with_all_evidence_becomes_active_under_the_next_number_and_is_rolled_back() {
    let dir = tempfile::tempdir().unwrap();
    let service = bound(dir.path()).await;
    let rule = Target::Rule("aimd".to_owned());
    promote(&service, rule, None).await.unwrap();
    train(&service).await;
    calibrate(&service, 1, None).await;
    compare(&service, 2).await;
    climb(&service, 2, None).await.unwrap();
    climb(&service, 2, None).await.unwrap();
    assert_eq!(stages(&service).await[0], (2, Stage::Canary));
    assert_eq!(reason(climb(&service, 2, None).await), "CANARY_UNPROVEN");
    try_out(&service, 2, CANARY_STEPS).await;
    climb(&service, 2, None).await.unwrap();
    let expected = [(3, Stage::Active), (2, Stage::Sim), (1, Stage::Retired)];
    assert_eq!(stages(&service).await, expected);
    let acted = answers(&service).unwrap();
    assert_eq!((acted.rule, acted.weights_version), (None, 3));
    assert_eq!(numbers(&service).await[0], (3, Some(2)));
    // An ACTIVE version is replaced, not taken down.
    let refused = reason(climb(&service, 3, Some(Stage::Sim)).await);
    assert_eq!(refused, "STAGE_ORDER");
    // The way back takes no evidence.
    assert_eq!(promote(&service, Target::Before, None).await.unwrap(), 4);
    assert_eq!(answers(&service).unwrap().rule, Some("aimd"));
    // One that was ACTIVE begins anew.
    let refused = reason(climb(&service, 3, Some(Stage::Active)).await);
    assert_eq!(refused, "STAGE_ORDER");
    climb(&service, 3, None).await.unwrap();
    assert_eq!(stages(&service).await[1], (3, Stage::Shadow));
}

#[tokio::test]
async fn agents_that_are_not_bound_have_no_ladder() {
    let dir = tempfile::tempdir().unwrap();
    let (service, _) = trained(dir.path()).await;
    assert_eq!(
        stages(&service).await,
        [(2, Stage::Active), (1, Stage::Retired)]
    );
    for stage in [Stage::Sim, Stage::Shadow, Stage::Canary] {
        assert_eq!(reason(climb(&service, 1, Some(stage)).await), "NOT_BOUND");
    }
    climb(&service, 1, Some(Stage::Active)).await.unwrap();
    assert_eq!(stages(&service).await[0], (3, Stage::Active));
}

#[tokio::test]
async fn a_rule_takes_no_stage_but_active_and_climbs_nowhere() {
    let dir = tempfile::tempdir().unwrap();
    let service = bound(dir.path()).await;
    for stage in [Stage::Sim, Stage::Shadow, Stage::Canary] {
        let promotion = Promotion {
            stage: Some(stage),
            ..to(Target::Rule("aimd".to_owned()), None)
        };
        let refused = service.promote(agent(&service), promotion).await;
        assert_eq!(reason(refused.map(|_| ())), "STAGE_ORDER");
    }
    assert!(list(&service).await.is_empty());
}

#[tokio::test]
async fn an_agent_outside_of_the_mesh_cannot_be_bound_to_it() {
    let dir = tempfile::tempdir().unwrap();
    let refused = open_bound(dir.path(), "cartpole", "policy").await;
    assert!(
        matches!(refused, Err(E::BoundElsewhere { .. })),
        "{refused:?}"
    );
}

#[tokio::test]
async fn versions_that_climb_are_retained_and_those_that_do_not_are_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let service = bound(dir.path()).await;
    let rule = Target::Rule("aimd".to_owned());
    promote(&service, rule, None).await.unwrap();
    let policy = {
        train(&service).await;
        let row = list(&service).await.remove(0);
        let slot = agent(&service);
        let answerer = service.agents.answerer_of(&slot, &row).await.unwrap();
        match answerer {
            crate::agents::Answerer::Policy(policy) => policy,
            other => panic!("{other:?}"),
        }
    };
    climb(&service, 2, None).await.unwrap();
    for _ in 0..5 {
        install(&service, &policy).await;
    }
    let mut tx = service.store.begin("test.drop").await.unwrap();
    store::drop_old_checkpoints(&mut tx, 2).await.unwrap();
    tx.commit().await.unwrap();
    let expected = [
        (7, Stage::Sim),
        (6, Stage::Sim),
        (2, Stage::Shadow),
        (1, Stage::Active),
    ];
    assert_eq!(stages(&service).await, expected);
}

#[tokio::test]
async fn the_shield_guards_what_a_bound_agent_does() {
    // A busy mesh in which half of the replicas of a service would need half as many more.
    let act = |service: &Orchestration| {
        let slot = Arc::clone(service.agents.get("resource").unwrap());
        let space = &slot.definition.space;
        let mut seen = vec![0.0; space.observation.len()];
        for (name, value) in [("automl_utilisation", 1.05), ("automl_ready", 0.5)] {
            seen[space.position(name).unwrap()] = value;
        }
        slot.act(&seen).unwrap()
    };
    for is_bound in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let service = match is_bound {
            true => open_bound(dir.path(), "mesh", "resource").await.unwrap(),
            false => open_in(dir.path(), "mesh").await,
        };
        let promotion = to(Target::Rule("target_tracking".to_owned()), None);
        let slot = Arc::clone(service.agents.get("resource").unwrap());
        service.promote(slot, promotion).await.unwrap();
        let acted = act(&service);
        let share = acted.action.number();
        assert_eq!(acted.shielded.is_some(), is_bound);
        match acted.shielded {
            Some(blocked) => {
                assert_eq!((blocked.limit, share), (Limit::ShareStep, 0.25));
            }
            None => assert!(share > 0.7, "{share}"),
        }
    }
}
