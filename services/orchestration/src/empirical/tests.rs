use super::*;
use crate::{Orchestration, Setup};
use rand::SeedableRng;
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
    assert_eq!(scene.act().unwrap()[0].rule, Some(task::FIRST_ACTION));
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
