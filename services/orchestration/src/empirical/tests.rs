use super::*;
use crate::{
    Orchestration, Setup,
    versions::{Promotion, Target},
};
use rand::{Rng, SeedableRng};
use std::path::Path;
use tars_runtime::{db::Db, lease::Terms, seeds::Seeds};
use tars_worlds::{Generator, TimeStep};
use tokio::time::Instant;

async fn open(dir: &Path, environment: &str) -> Arc<Orchestration> {
    let mut setup = Setup::for_tests(Seeds::counted(41));
    setup.settings.environment = environment.to_owned();
    let place = tars_test_db::place(dir, "orchestration");
    let terms = |_: &Db| Ok(Terms::Sole);
    let opened = Orchestration::open_at(dir, &place, terms, setup);
    opened.await.unwrap()
}

/// The mesh after some steps, with agents that have no weights.
async fn mesh(dir: &Path) -> Scene {
    let service = open(dir, "mesh").await;
    let mut scene = Scene::new(&service.agents, "mesh").unwrap();
    let mut rng = Generator::seed_from_u64(3);
    scene.world.reset(&mut rng, &mut scene.seen);
    for _ in 0..20 {
        let acted = scene.act().unwrap().into_iter();
        let joint: Vec<Act> = acted.map(|one| one.action).collect();
        let Scene { world, seen, .. } = &mut scene;
        world.step(&joint, &mut rng, seen, &mut [TimeStep::default(); 4]);
    }
    scene
}

fn measure(scene: &mut Scene, seed: u64) -> Result<Empirical, OrchestrationError> {
    let acted = scene.act().unwrap();
    let plan = Plan {
        seed,
        ..Plan::default()
    };
    scene.measure(&acted, &plan, &Clock::system(), &Watch::default())
}

#[tokio::test]
async fn agents_without_weights_play_their_rules() {
    let dir = tempfile::tempdir().unwrap();
    let scene = mesh(dir.path()).await;
    let acted = scene.act().unwrap();
    let seen: Vec<_> = acted.iter().map(|a| (a.agent, a.rule)).collect();
    let rules = [
        ("policy", Some("aimd")),
        ("consensus", Some("majority_quorum")),
        ("ethical", Some("static_quotas")),
        ("resource", Some("target_tracking")),
    ];
    assert_eq!(seen, rules);
    assert!(acted.iter().all(|a| a.weights_version == 0));
    for (space, acted) in scene.world.spec().agents.iter().zip(&acted) {
        space.action.check(&acted.action).unwrap();
    }
    // Their own values of their actions are those of a rule, which knows one.
    let choices = scene.choices(&acted);
    let sum = |at: usize| choices[at].all.iter().map(|c| c.payoff).sum::<f64>();
    assert_eq!((choices[0].all.len(), sum(0), sum(2)), (10, 1.0, 1.0));
    assert_eq!(choices[0].all[choices[0].own].payoff, 1.0);
}

#[tokio::test]
async fn a_measured_game_has_holding_and_what_the_agents_would_do() {
    let dir = tempfile::tempdir().unwrap();
    let mut scene = mesh(dir.path()).await;
    let (before, acted) = (scene.snapshot().unwrap(), scene.act().unwrap());
    let found = measure(&mut scene, 7).unwrap();
    assert_eq!(scene.snapshot().unwrap(), before, "it is left as it was");
    assert_eq!(found.game.shape(), [5, 5, 5, 5]);
    let record = &found.record;
    assert_eq!(
        (record.joint_actions, record.rollouts, record.rollout_steps),
        (625, 8, 30)
    );
    for ((player, choices), acted) in record.players.iter().zip(&found.choices).zip(&acted) {
        assert_eq!(choices.all[choices.own].action, acted.action);
        assert!(player.actions.len() == 5 && player.regret >= 0.0);
        assert!(player.payoff.abs() <= 1.0, "rewards are within 1");
    }
    let regrets: f64 = record.players.iter().map(|player| player.regret).sum();
    assert!((regrets - record.distance).abs() < 1e-9);
    assert!(record.low <= record.distance && record.distance <= record.high);
    // What agents get when all hold is the payoff of that joint action.
    let held = found.game.cell(&[0; 4]);
    assert_eq!(found.holding[2], found.game.payoffs(2)[held]);
    // The same seed measures the same, and another one does not.
    assert_eq!(
        measure(&mut scene, 7).unwrap().record.distance,
        record.distance
    );
    assert_ne!(measure(&mut scene, 8).unwrap().holding, found.holding);
}

fn actions(scene: &Scene) -> Vec<Act> {
    let acted = scene.act().unwrap().into_iter();
    acted.map(|one| one.action).collect()
}

#[tokio::test]
async fn what_is_promoted_meanwhile_acts_in_the_next_scene() {
    let dir = tempfile::tempdir().unwrap();
    let service = open(dir.path(), "mesh").await;
    let scene = Scene::new(&service.agents, "mesh").unwrap();
    let resource = Arc::clone(service.agents.get("resource").unwrap());
    let promotion = Promotion {
        by: "user:dev".into(),
        reason: "test".into(),
        target: Target::Rule("half".to_owned()),
        expected: None,
        stage: None,
    };
    service.promote(resource, promotion).await.unwrap();
    let by = |scene: &Scene| scene.act().unwrap()[3].rule;
    assert_eq!(by(&scene), Some("target_tracking"));
    let next = Scene::new(&service.agents, "mesh").unwrap();
    assert_eq!(by(&next), Some("half"));
}

/// In a rollout the agents go on as they act: where each has nothing but that to choose, the game of a state is
/// what the agents get in an episode from it.
#[tokio::test]
async fn after_the_joint_action_the_agents_go_on_as_they_act() {
    let dir = tempfile::tempdir().unwrap();
    let mut scene = mesh(dir.path()).await;
    let (start, acted) = (scene.snapshot().unwrap(), scene.act().unwrap());
    let plan = Plan {
        rollouts: 1,
        steps: 6,
        repeat: 1,
        ..Plan::default()
    };
    let measured = scene.measure(&acted, &plan, &Clock::system(), &Watch::default());
    let measured = measured.unwrap();
    let mut rng = Generator::seed_from_u64(plan.seed);
    let mut rng = Generator::seed_from_u64(rng.next_u64());
    scene.restore(&start).unwrap();
    let mut sums = [0.0; 4];
    for _ in 0..plan.steps {
        let joint = actions(&scene);
        let mut got = [TimeStep::default(); 4];
        let Scene { world, seen, .. } = &mut scene;
        world.step(&joint, &mut rng, seen, &mut got);
        for (sum, got) in sums.iter_mut().zip(got) {
            *sum += f64::from(got.reward);
        }
    }
    let payoffs = measured.record.players.iter().map(|player| player.payoff);
    for (payoff, sum) in payoffs.zip(sums) {
        assert!((payoff - sum / 6.0).abs() < 1e-6, "{payoff} {sum}");
    }
}

#[tokio::test]
async fn a_measurement_ends_with_its_deadline() {
    let dir = tempfile::tempdir().unwrap();
    let mut scene = mesh(dir.path()).await;
    let acted = scene.act().unwrap();
    let over = Watch::until(Some(Instant::now()));
    let late = scene.measure(&acted, &Plan::default(), &Clock::system(), &over);
    assert!(matches!(late, Err(OrchestrationError::TimeLimit)));
}

#[tokio::test]
async fn a_world_where_the_agents_do_not_live_is_no_scene() {
    let dir = tempfile::tempdir().unwrap();
    let service = open(dir.path(), "cartpole").await;
    let scene = |name: &str| Scene::new(&service.agents, name).map(|_| ());
    assert!(matches!(
        scene("nowhere"),
        Err(OrchestrationError::Environment(_))
    ));
    for name in ["mesh", "pendulum", "chicken", "cournot_2"] {
        let refused = scene(name).unwrap_err();
        assert!(refused.to_string().contains("cartpole"), "{refused}");
    }
    // The only agent of a world is one of those that live there.
    let scene = Scene::new(&service.agents, "cartpole").unwrap();
    assert_eq!(scene.observations().count(), 1);
    assert_eq!(
        scene.act().unwrap()[0].rule,
        Some(crate::task::FIRST_ACTION)
    );
}

#[tokio::test]
async fn bytes_that_are_no_snapshot_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut scene = mesh(dir.path()).await;
    let whole = scene.snapshot().unwrap();
    for bytes in [&[][..], &[7; 40], &whole[1..], &whole[..whole.len() - 1]] {
        let refused = scene.restore(bytes);
        assert!(matches!(refused, Err(OrchestrationError::SessionUnusable)));
    }
    scene.restore(&whole).unwrap();
}
