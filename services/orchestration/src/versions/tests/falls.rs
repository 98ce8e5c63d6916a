mod objective;

use super::ladder::{calibrate, compare_as};
use super::*;
use crate::{
    agents::{Action, Asker},
    stage::{Against, Attempt, CANARY_STEPS, Comparison, Counts, Difference, LastFall, MIN_SEEDS},
};

use futures_util::FutureExt;
use rand::SeedableRng;
use tars_runtime::metrics::Metrics;
use tars_worlds::{Generator, Observations, TimeStep, World, baseline};

const RESOURCE: &str = "resource";

fn resource(service: &Orchestration) -> Arc<Agent> {
    Arc::clone(service.agents.get(RESOURCE).unwrap())
}

/// A mesh whose resource agent is bound to it, with versions in CANARY answering this share of callers.
async fn open_with(dir: &Path, percent: u64) -> Arc<Orchestration> {
    open_measured(dir, percent).await.0
}

/// The same, with its metrics.
async fn open_measured(dir: &Path, percent: u64) -> (Arc<Orchestration>, Metrics) {
    let mut setup = Setup::for_tests(Seeds::counted(41));
    setup.settings.environment = "mesh".to_owned();
    setup.settings.bound_agents = vec![RESOURCE.to_owned()];
    setup.settings.canary_percent = percent;
    let place = tars_test_db::place(dir, "orchestration");
    let terms = |_: &Db| Ok(Terms::Sole);
    let metrics = setup.metrics.clone();
    let opened = Orchestration::open_at(dir, &place, terms, setup);
    (opened.await.unwrap(), metrics)
}

/// A service whose resource agent answers by the rule `hold`, and has a trained version, the second one, in a
/// stage.
async fn in_stage(dir: &Path, percent: u64, stage: Stage) -> Arc<Orchestration> {
    let service = open_with(dir, percent).await;
    let rule = to(Target::Rule("hold".to_owned()), None);
    service.promote(resource(&service), rule).await.unwrap();
    train_resource(&service, 200).await;
    calibrate(&service, 1, None).await;
    compare_as(&service, RESOURCE, 2).await;
    climb_to(&service, Stage::Shadow).await.unwrap();
    if stage == Stage::Canary {
        climb_to(&service, Stage::Canary).await.unwrap();
    }
    service
}

async fn train_resource(service: &Arc<Orchestration>, steps: u64) {
    let started = service.start_training(Start::of(RESOURCE, steps, None));
    let id = started.await.unwrap().row.id;
    eventually("it has ended", async || {
        let run = service.training(id).await.unwrap().row;
        run.state == RunState::Completed && service.trainings.is_empty()
    })
    .await;
}

/// Compares the trained version with what answers.
async fn compare_with(service: &Arc<Orchestration>, seeds: u32) -> Comparison {
    let compared = service.compare(resource(service), "user:dev".to_owned(), 2, seeds);
    compared.await.unwrap()
}

async fn climb_to(service: &Arc<Orchestration>, stage: Stage) -> Result<i64, OrchestrationError> {
    let promotion = Promotion {
        stage: Some(stage),
        ..to(Target::Version(2), None)
    };
    let promoted = service.promote(resource(service), promotion).await;
    promoted.map(|(live, _)| live.row.weights_version)
}

/// A step of a caller that observes a share of replicas.
fn step(service: &Orchestration, caller: &str, share: f32) -> Action {
    step_by(
        service,
        Asker {
            name: caller,
            owner: "dev",
            counts: true,
        },
        share,
    )
}

fn step_by(service: &Orchestration, asker: Asker<'_>, share: f32) -> Action {
    let slot = resource(service);
    let space = &slot.definition.space;
    let mut seen = vec![0.0; space.observation.len()];
    seen[space.position("share").unwrap()] = share;
    slot.answer(asker, None, &seen).unwrap()
}

/// A share from which the trained version wants to go too far.
fn too_far(service: &Orchestration) -> f32 {
    match step(service, "user:dev", 0.5).action.number() > 0.5 {
        true => 0.0,
        false => 1.0,
    }
}

async fn counts(service: &Orchestration) -> Counts {
    let (listed, _) = service.versions(&resource(service), "", 0).await.unwrap();
    let second = listed.into_iter().find(|v| v.row.version == 2);
    second.unwrap().counts
}

/// Takes the steps of a trial, each where the version wants to go, so that the shield blocks nothing, and makes it
/// ACTIVE. Returns its number then, and the share that it has reached.
async fn climb_to_active(service: &Arc<Orchestration>) -> (i64, f32) {
    let mut share = 0.5;
    for _ in 0..CANARY_STEPS + 20 {
        share = step(service, "user:dev", share).action.number();
    }
    eventually("the steps are stored", async || {
        counts(service).await.canary_steps >= CANARY_STEPS
    })
    .await;
    (climb_to(service, Stage::Active).await.unwrap(), share)
}

async fn last_fall(service: &Orchestration, version: i64) -> Option<LastFall> {
    let (listed, _) = service.versions(&resource(service), "", 0).await.unwrap();
    let found = listed.into_iter().find(|v| v.row.version == version);
    found.unwrap().last_fall
}

async fn fell(service: &Orchestration) -> usize {
    let kinds = recorded(service).await;
    kinds
        .iter()
        .filter(|kind| *kind == "agent.fell_back")
        .count()
}

#[tokio::test]
async fn a_version_in_shadow_is_asked_and_does_not_answer() {
    let dir = tempfile::tempdir().unwrap();
    let service = in_stage(dir.path(), 100, Stage::Shadow).await;
    for _ in 0..20 {
        let acted = step(&service, "user:dev", 0.5);
        assert_eq!((acted.rule, acted.stage), (Some("hold"), Stage::Active));
        assert_eq!((acted.weights_version, acted.action.number()), (1, 0.5));
    }
    eventually("the steps are stored", async || {
        counts(&service).await.shadow_steps == 20
    })
    .await;
    let counted = counts(&service).await;
    assert!(counted.agreed == 0 || counted.agreed == 20, "{counted:?}");
    assert_eq!((counted.canary_steps, counted.blocked), (0, 0));
    // The next process goes on asking.
    drop(service);
    let service = open_with(dir.path(), 100).await;
    assert!(resource(&service).live().shadow.is_some());
}

#[tokio::test]
async fn what_somebody_observes_who_may_not_change_an_agent_counts_for_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let service = in_stage(dir.path(), 100, Stage::Canary).await;
    let viewer = Asker {
        name: "user:viewer",
        owner: "dev",
        counts: false,
    };
    let share = too_far(&service);
    for _ in 0..200 {
        let acted = step_by(&service, viewer, share);
        assert!(acted.shielded.is_some() && acted.stage == Stage::Canary);
    }
    assert_eq!(resource(&service).live().row.canary, Some(2));
    assert_eq!(fell(&service).await, 0);
    // The same steps of somebody who may change it take the version out of CANARY.
    for _ in 0..60 {
        step(&service, "user:dev", share);
    }
    eventually("it fell back", async || fell(&service).await == 1).await;
}

#[tokio::test]
async fn a_version_that_a_comparison_finds_as_good_climbs_from_sim_to_active() {
    let dir = tempfile::tempdir().unwrap();
    let service = open_with(dir.path(), 100).await;
    let rule = to(Target::Rule("hold".to_owned()), None);
    service.promote(resource(&service), rule).await.unwrap();
    // What has not begun to learn keeps half of the replicas, which is better than some rules are.
    train_resource(&service, 20).await;
    calibrate(&service, 1, None).await;
    climb_to(&service, Stage::Shadow).await.unwrap();
    let refused = climb_to(&service, Stage::Canary).await.unwrap_err();
    assert!(refused.to_string().contains("CompareAgent"), "{refused}");
    let compared = compare_with(&service, MIN_SEEDS).await;
    assert_eq!(compared.with_incumbent.name, "version 1, the rule hold");
    let names: Vec<&str> = compared.with_rules.iter().map(|one| &*one.name).collect();
    assert_eq!(names, ["hold", "half", "target_tracking", "mpc"]);
    let low = |one: &&Against| one.difference.low;
    let by_low = |a: &&Against, b: &&Against| low(a).total_cmp(&low(b));
    let worst = compared.with_rules.iter().max_by(by_low).unwrap();
    assert!(worst.difference.low > 0.0, "{compared:?}");
    let rule = to(Target::Rule(worst.name.clone()), None);
    service.promote(resource(&service), rule).await.unwrap();
    let refused = climb_to(&service, Stage::Canary).await.unwrap_err();
    assert!(refused.to_string().contains("CompareAgent"), "{refused}");
    let compared = compare_with(&service, MIN_SEEDS).await;
    assert!(compared.with_incumbent.name.ends_with(&worst.name));
    assert_eq!(compared.with_incumbent.difference, worst.difference);
    // Fewer seeds are answered, and do not take the place of more.
    assert_eq!(compare_with(&service, 2).await.seeds, 2);
    climb_to(&service, Stage::Canary).await.unwrap();
    assert_eq!(climb_to_active(&service).await.0, 4);
    // What is ACTIVE now has the rewards that the version had, and cannot be told from it.
    let again = compare_with(&service, 3).await;
    let Difference { mean, low, high } = again.with_incumbent.difference;
    assert_eq!((mean, low, high), (0.0, 0.0, 0.0));
}

#[tokio::test]
async fn a_comparison_is_made_and_stored_when_nobody_waits_for_it_any_more() {
    let dir = tempfile::tempdir().unwrap();
    let service = open_with(dir.path(), 0).await;
    train_resource(&service, 20).await;
    let slot = resource(&service);
    let stored = async || service.comparison(&slot, 1).await;
    assert!(matches!(
        stored().await,
        Err(OrchestrationError::NotFound("comparison of version", _))
    ));
    let asked = service.compare_to_the_end(Arc::clone(&slot), "user:dev".to_owned(), 1, 3);
    assert!(
        asked.now_or_never().is_none(),
        "it has begun, and is dropped"
    );
    eventually("it is stored", async || stored().await.is_ok()).await;
    let found = stored().await.unwrap();
    assert_eq!((found.seeds, found.at_us > 0), (3, true));
}

#[tokio::test]
async fn what_is_compared_is_what_answers() {
    let dir = tempfile::tempdir().unwrap();
    let service = open_with(dir.path(), 0).await;
    let rule = to(Target::Rule("target_tracking".to_owned()), None);
    service.promote(resource(&service), rule).await.unwrap();
    train_resource(&service, 200).await;
    let compared = compare_with(&service, 1).await;
    // The same episode, by the steps that the agents of the mesh answer.
    let mesh = tars_worlds::MeshEnv::shipped();
    let mut world: Box<dyn World> = Box::new(mesh);
    let spec = world.spec().clone();
    let mut seen = Observations::new(&spec);
    let mut rng = Generator::seed_from_u64(compared.first_seed);
    let mut got = vec![TimeStep::default(); spec.agents.len()];
    let (mut sum, mut count, mut blocked) = (0.0, 0.0, 0);
    world.reset(&mut rng, &mut seen);
    while count == 0.0 || !got[0].is_last() {
        let mut joint = Vec::new();
        for (at, space) in spec.agents.iter().enumerate() {
            let name = baseline(&space.name).unwrap();
            let rule = crate::rules::Rule::find(space, name).unwrap();
            let decided = rule.decide(seen.of(at));
            let shield = crate::shield::Shield::of_mesh(space);
            let instead = shield.judge(seen.of(at), &decided.action, &decided.values);
            joint.push(instead.map_or(decided.action, |blocked| blocked.instead));
        }
        let acted = resource(&service).answer(
            Asker {
                name: "user:dev",
                owner: "dev",
                counts: true,
            },
            None,
            seen.of(3),
        );
        let acted = acted.unwrap();
        blocked += u32::from(acted.shielded.is_some());
        joint[3] = acted.action;
        world.step(&joint, &mut rng, &mut seen, &mut got);
        sum += f64::from(got[3].reward);
        count += 1.0;
    }
    assert!(blocked > 0, "the shield takes part");
    assert_eq!(compared.with_incumbent.mean, sum / count);
}

#[tokio::test]
async fn only_steps_of_the_live_mesh_are_counted() {
    let dir = tempfile::tempdir().unwrap();
    let (service, metrics) = open_measured(dir.path(), 100).await;
    let blocked = || {
        let all = metrics.open_metrics().unwrap();
        let is_count = |line: &&str| line.starts_with("agent_actions_blocked_total{");
        let counts = all.lines().filter(is_count).map(str::to_owned);
        counts.collect::<Vec<_>>()
    };
    let slot = resource(&service);
    let rule = to(Target::Rule("target_tracking".to_owned()), None);
    service.promote(Arc::clone(&slot), rule).await.unwrap();
    // A busy mesh, for which the share has to rise further than it may at once.
    let space = &slot.definition.space;
    let mut seen = vec![0.0; space.observation.len()];
    for (name, value) in [("automl_utilisation", 1.05), ("automl_ready", 0.5)] {
        seen[space.position(name).unwrap()] = value;
    }
    let simulated = slot.act(&seen).unwrap();
    assert!(simulated.shielded.is_some());
    let raw = Action {
        action: tars_worlds::Action::Continuous(vec![1.0]),
        shielded: None,
        ..simulated
    };
    let simulated = slot.allowed(&seen, raw.clone());
    assert!(simulated.shielded.is_some());
    assert_eq!(blocked(), [""; 0]);
    let observed = crate::steps::Observed {
        agent: RESOURCE,
        agent_type: None,
        observation: seen.clone(),
    };
    let stepped = service.step(
        Asker {
            name: "user:dev",
            owner: "dev",
            counts: true,
        },
        vec![observed],
        vec![],
        Default::default(),
    );
    assert!(stepped.await.unwrap().resolved[0].shielded.is_some());
    let counted = |n| {
        let labels = r#"agent="resource",limit="share_step""#;
        vec![format!("agent_actions_blocked_total{{{labels}}} {n}")]
    };
    assert_eq!(blocked(), counted(1));
    // So is what a conflict is resolved to, if that is not what was blocked before.
    let resolved = slot.settle_for(&seen, raw);
    assert_eq!(blocked(), counted(2));
    slot.settle_for(&seen, resolved);
    assert_eq!(blocked(), counted(2));
}

#[tokio::test]
async fn a_version_in_canary_answers_a_share_of_the_callers_and_always_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let service = in_stage(dir.path(), 30, Stage::Canary).await;
    let mut met = 0;
    for n in 0..200 {
        let caller = format!("user:{n}");
        let first = step(&service, &caller, 0.5);
        let is_canary = first.stage == Stage::Canary;
        assert_eq!(first.rule.is_none(), is_canary);
        assert_eq!(first.weights_version == 2, is_canary);
        assert_eq!(step(&service, &caller, 0.5).stage, first.stage);
        met += u32::from(is_canary);
    }
    assert!((30..=90).contains(&met), "{met} of 200");
    drop(service);
    let service = open_with(dir.path(), 0).await;
    let mut everybody = (0..200).map(|n| step(&service, &format!("user:{n}"), 0.5).stage);
    assert!(everybody.all(|stage| stage == Stage::Active));
}

#[tokio::test]
async fn a_version_becomes_active_after_its_steps_in_canary() {
    let dir = tempfile::tempdir().unwrap();
    let service = in_stage(dir.path(), 100, Stage::Canary).await;
    let refused = climb_to(&service, Stage::Active).await;
    assert!(matches!(refused, Err(OrchestrationError::Ladder { .. })));
    let (version, share) = climb_to_active(&service).await;
    assert_eq!(version, 3);
    let acted = step(&service, "user:dev", share);
    assert_eq!((acted.stage, acted.weights_version), (Stage::Active, 3));
}

#[tokio::test]
async fn a_canary_that_the_shield_blocks_falls_to_shadow_once() {
    let dir = tempfile::tempdir().unwrap();
    let service = in_stage(dir.path(), 100, Stage::Canary).await;
    let share = too_far(&service);
    eventually("it has fallen", async || {
        for _ in 0..10 {
            step(&service, "user:dev", share);
        }
        resource(&service).live().row.canary.is_none()
    })
    .await;
    let live = resource(&service).live();
    assert_eq!((live.row.shadow, live.row.weights_version), (Some(2), 1));
    for _ in 0..100 {
        assert_eq!(step(&service, "user:dev", share).stage, Stage::Active);
    }
    assert_eq!(fell(&service).await, 1);
}

#[tokio::test]
async fn each_trial_of_a_version_is_judged_by_itself() {
    let dir = tempfile::tempdir().unwrap();
    let service = in_stage(dir.path(), 100, Stage::Canary).await;
    let share = too_far(&service);
    for falls in 1..=2 {
        let begun = counts(&service).await;
        assert_eq!((begun.canary_steps, begun.blocked), (0, 0));
        // Fewer steps than a window, with the one that was taken to see where it wants to go.
        for _ in 0..48 {
            assert_eq!(step(&service, "user:dev", share).stage, Stage::Canary);
        }
        assert_eq!(fell(&service).await, falls - 1);
        eventually("it has fallen", async || {
            step(&service, "user:dev", share);
            resource(&service).live().row.canary.is_none()
        })
        .await;
        assert_eq!(fell(&service).await, falls);
        climb_to(&service, Stage::Canary).await.unwrap();
    }
    // It stands in CANARY again, and the fall before is still told.
    let last = last_fall(&service, 2).await.unwrap();
    assert_eq!(last.from, Some(Stage::Canary));
    assert!(last.why.contains("the shield blocked"), "{last:?}");
    assert!(last.at_us.is_some_and(|at| at > 0), "{last:?}");
    assert_eq!(last_fall(&service, 1).await, None);
    // What is left of the earlier trials is not counted in this one, and their falls are late.
    let earlier = Attempt {
        version: 2,
        trial: 2,
    };
    let late = crate::trials::Fall {
        stage: Stage::Canary,
        attempt: earlier,
        why: crate::trials::Reason::NotFinite,
    };
    service.fall_back(&resource(&service), &late).await.unwrap();
    assert_eq!(resource(&service).live().row.canary, Some(2));
    let left = Counts {
        canary_steps: 19,
        blocked: 19,
        shadow_steps: 1,
        ..Counts::default()
    };
    let before = counts(&service).await;
    let mut tx = service.store.begin("test.late").await.unwrap();
    store::add_counts(&mut tx, RESOURCE, earlier, left)
        .await
        .unwrap();
    tx.commit().await.unwrap();
    let after = counts(&service).await;
    assert_eq!(after.shadow_steps, before.shadow_steps + 1);
    assert_eq!((after.canary_steps, after.blocked), (0, 0));
}

#[tokio::test]
async fn what_is_active_and_blocked_falls_to_the_default_rule_and_no_further() {
    let dir = tempfile::tempdir().unwrap();
    let service = in_stage(dir.path(), 100, Stage::Canary).await;
    climb_to_active(&service).await;
    let share = too_far(&service);
    eventually("it has fallen", async || {
        for _ in 0..10 {
            step(&service, "user:dev", share);
        }
        resource(&service).live().rule.is_some()
    })
    .await;
    let live = resource(&service).live();
    assert_eq!(live.row.rule.as_deref(), Some("target_tracking"));
    assert_eq!(live.row.weights_version, 4);
    assert_eq!(fell(&service).await, 1);
    let last = last_fall(&service, 3).await.unwrap();
    assert_eq!(last.from, Some(Stage::Active));
    // A decision of another replica that comes late changes nothing.
    let late = crate::trials::Fall {
        stage: Stage::Active,
        attempt: Attempt {
            version: 3,
            trial: 0,
        },
        why: crate::trials::Reason::NotFinite,
    };
    service.fall_back(&resource(&service), &late).await.unwrap();
    let attempt = Attempt {
        version: 4,
        trial: 0,
    };
    let again = crate::trials::Fall { attempt, ..late };
    service
        .fall_back(&resource(&service), &again)
        .await
        .unwrap();
    assert_eq!(resource(&service).live().row.weights_version, 4);
    assert_eq!(fell(&service).await, 1);
    // A person goes back to what answered before, and not to what fell.
    let back = async || {
        let back = to(Target::Before, None);
        let (live, _) = service.promote(resource(&service), back).await.unwrap();
        (live.row.weights_version, live.row.rule.clone())
    };
    assert_eq!(back().await, (5, Some("hold".to_owned())));
    assert_eq!(back().await, (6, Some("target_tracking".to_owned())));
    // It may climb again, with evidence of its own.
    let refused = climb_to(&service, Stage::Active).await;
    assert!(matches!(refused, Err(OrchestrationError::Ladder { .. })));
}
