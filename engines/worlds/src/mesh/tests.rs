//! The whole mesh against theory.

use super::*;
use crate::testing::{Episode, assert_restores};
use interval::sum;
use rand::RngExt;

/// Hold, and a share of replicas.
fn hold(share: f32) -> Vec<Action> {
    joint(0, 0, 0, share)
}

fn joint(policy: usize, consensus: usize, ethical: usize, share: f32) -> Vec<Action> {
    let mut actions = [policy, consensus, ethical].map(Action::Discrete).to_vec();
    actions.push(Action::Continuous(vec![share]));
    actions
}

fn random(rng: &mut Generator) -> Vec<Action> {
    joint(
        rng.random_range(0..10),
        rng.random_range(0..5),
        rng.random_range(0..8),
        rng.random(),
    )
}

fn episode(calibration: Calibration, seed: u64) -> Episode<MeshEnv> {
    Episode::start(MeshEnv::new(calibration).unwrap(), seed)
}

#[test]
fn the_agents_have_the_dimensions_of_their_networks() {
    let spec = MeshEnv::shipped().spec().clone();
    let of = |name: &str| {
        let agent = &spec.agents[spec.agent(name).unwrap()];
        (agent.observation.len(), agent.action.len())
    };
    assert_eq!(of("policy"), (32, 10));
    assert_eq!(of("consensus"), (16, 5));
    assert_eq!(of("ethical"), (24, 8));
    assert_eq!(of("resource"), (20, 1));
}

#[test]
fn components_have_unique_names_and_every_number_stays_within_its_bounds() {
    let mut mesh = episode(Calibration::shipped(), 1);
    let mut rng = Generator::seed_from_u64(2);
    for agent in &mesh.world.spec().agents {
        let mut names: Vec<_> = agent.observation.iter().map(|c| c.name.as_ref()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), agent.observation.len());
        assert!(
            agent
                .observation
                .iter()
                .all(|c| !c.unit.is_empty() && !c.source.is_empty())
        );
    }
    for _ in 0..2_000 {
        let actions = random(&mut rng);
        assert!(
            mesh.step(&actions)
                .iter()
                .all(|step| step.reward.abs() <= 1.0)
        );
        for (at, agent) in mesh.world.spec().agents.iter().enumerate() {
            for (seen, c) in mesh.seen.of(at).iter().zip(&agent.observation) {
                assert!(*seen >= c.low && *seen <= c.high, "{} is {seen}", c.name);
            }
        }
    }
}

#[test]
fn the_mean_wait_under_constant_load_is_that_of_erlang_c() {
    for (rate, replicas) in [(5.0, 1), (8.0, 1), (27.0, 3), (90.0, 10)] {
        let mut calibration = Calibration::constant(rate, 0.1, replicas);
        calibration.clients.patient.timeout_s = 1e3;
        let mut mesh = episode(calibration, 1);
        for _ in 0..200 {
            mesh.step(&hold(0.0));
        }
        let spare = f64::from(replicas) / 0.1 - rate;
        let exact = erlang_c(replicas, rate * 0.1) / spare;
        let ours = mesh.world.interval().waits[0];
        assert!(
            (ours / exact - 1.0).abs() < 0.03,
            "{rate}: {ours} against {exact}"
        );
    }
}

#[test]
fn calls_are_conserved_in_random_play() {
    for seed in 0..20 {
        let mut mesh = episode(Calibration::shipped(), seed);
        let mut rng = Generator::seed_from_u64(seed);
        let mut queued = [0.0; MAX_TENANTS];
        for _ in 0..200 {
            let actions = random(&mut rng);
            mesh.step(&actions);
            let i = mesh.world.interval();
            for (at, waiting) in queued.iter().enumerate() {
                let arrived = i.offered[at] + waiting;
                let ended = i.done[at] + i.timed_out[at] + i.failed[at];
                let gone = ended + i.shed[at] + i.dropped[at] + i.queued[at];
                assert!(
                    (arrived - gone).abs() < 1e-6 * (1.0 + arrived),
                    "{arrived} {gone}"
                );
                assert!(i.offered[at] >= i.admitted[at] && ended >= 0.0 && i.queued[at] >= 0.0);
            }
            queued = i.queued;
        }
    }
}

#[test]
fn symmetric_tenants_are_treated_alike() {
    let mut calibration = Calibration::shipped();
    let alike = Tenant {
        entitlement: 0.25,
        rate: 40.0,
        ..calibration.tenants[0].clone()
    };
    calibration.tenants = vec![alike; 4];
    calibration.disorder = 0.0;
    calibration.traffic.burst_factor = 1.0;
    calibration.traffic.dispersion = 1.0;
    for ethical in [3, 4, 5, 6] {
        let mut mesh = episode(calibration.clone(), 3);
        for _ in 0..50 {
            mesh.step(&joint(0, 0, ethical, 0.1));
            assert!((mesh.world.interval().fairness(4) - 1.0).abs() < 1e-12);
        }
        assert!(
            mesh.world.interval().bottleneck() > 1.0,
            "the mesh is overloaded"
        );
    }
}

#[test]
fn the_seed_determines_an_episode_and_actions_do_not_change_what_is_drawn() {
    let play = |seed, share| {
        let mut mesh = episode(Calibration::shipped(), seed);
        let demand: Vec<_> = (0..100)
            .map(|_| {
                mesh.step(&hold(share));
                mesh.world.interval().demand
            })
            .collect();
        (demand, mesh.world.state)
    };
    assert_eq!(play(1, 0.5), play(1, 0.5));
    assert_eq!(play(1, 0.5).0, play(1, 0.1).0);
    assert_ne!(play(1, 0.5).0, play(2, 0.5).0);
}

#[test]
fn a_restored_mesh_goes_on_where_it_was_and_an_impossible_one_is_refused() {
    let mut rng = Generator::seed_from_u64(5);
    let plays: Vec<_> = (0..20).map(|_| random(&mut rng)).collect();
    let mesh = episode(Calibration::shipped(), 6);
    assert_restores(mesh, MeshEnv::shipped(), |at| plays[at].clone());

    let spoils: [fn(&mut State); 5] = [
        |s| s.last.quantiles[0] = f64::NAN,
        |s| s.controls.quorum = 0,
        |s| s.controls.limit = f64::NAN,
        |s| s.fleet[0].ready = 1_000,
        |s| s.fleet[1].ready = 0,
    ];
    for spoil in spoils {
        let mut mesh = MeshEnv::shipped();
        spoil(&mut mesh.state);
        let spoiled = mesh.snapshot().unwrap();
        assert_eq!(MeshEnv::shipped().restore(&spoiled), Err(BadSnapshot));
    }
}

#[test]
fn an_episode_is_truncated_after_its_steps() {
    let mut mesh = episode(Calibration::shipped(), 1);
    for n in 1..=200 {
        for step in mesh.step(&hold(0.5)) {
            assert_eq!((step.terminated, step.truncated), (false, n == 200));
        }
    }
}

/// A service at 80 % of its capacity that a burst of a minute overloads.
fn after_a_burst(limit: f64, strict: bool) -> f64 {
    let mut calibration = Calibration::constant(80.0, 0.1, 10);
    calibration.services[0].queue_s = 10.0;
    let mut mesh = episode(calibration.clone(), 1);
    mesh.world.state.controls.limit = limit;
    mesh.world.state.controls.strict = strict;
    let mut burst = calibration.clone();
    burst.tenants[0].rate = 160.0;
    mesh.world.calibration = Arc::new(burst);
    for _ in 0..12 {
        mesh.step(&hold(0.0));
    }
    mesh.world.calibration = Arc::new(calibration);
    for _ in 0..120 {
        mesh.step(&hold(0.0));
    }
    let last = mesh.world.interval();
    sum(&last.done) / sum(&last.demand)
}

#[test]
fn retries_keep_an_overload_alive_unless_admission_or_a_budget_ends_it() {
    // Ten minutes after the burst the mesh still does nothing but calls that were given up.
    assert!(after_a_burst(1e6, false) < 0.05);
    assert!(after_a_burst(90.0, false) > 0.99);
    assert!(after_a_burst(1e6, true) > 0.99);
}

#[test]
fn new_replicas_help_after_their_start_up_only() {
    let mut calibration = Calibration::constant(300.0, 0.1, 10);
    calibration.services[0].max_replicas = 50;
    calibration.services[0].start_up_s = 20.0;
    let mut mesh = episode(calibration, 1);
    for _ in 0..5 {
        mesh.step(&hold(0.0));
    }
    let utilisation = |mesh: &Episode<MeshEnv>| mesh.world.interval().utilisation[0];
    for _ in 0..4 {
        mesh.step(&hold(1.0));
        assert!(utilisation(&mesh) > 1.0);
    }
    mesh.step(&hold(1.0));
    assert!(utilisation(&mesh) < 1.0);
}

/// Each agent's mean reward when one of them takes a constant action and the others hold, over the same
/// episodes.
fn rewards_of(at: usize, action: &Action) -> [f64; 4] {
    let mut sums = [0.0; 4];
    for seed in 0..20 {
        let mut mesh = episode(Calibration::shipped(), seed);
        let mut joint = hold(mesh.world.controls().share as f32);
        joint[at] = action.clone();
        for _ in 0..200 {
            for (sum, step) in sums.iter_mut().zip(mesh.step(&joint)) {
                *sum += f64::from(step.reward) / 4_000.0;
            }
        }
    }
    sums
}

#[test]
fn what_each_agent_does_matters_to_itself_and_to_another_one() {
    let cases = [
        (0, Action::Discrete(2), Action::Discrete(8)),
        (1, Action::Discrete(1), Action::Discrete(2)),
        (2, Action::Discrete(3), Action::Discrete(2)),
        (
            3,
            Action::Continuous(vec![0.1]),
            Action::Continuous(vec![0.5]),
        ),
    ];
    for (at, one, other) in cases {
        let (one, other) = (rewards_of(at, &one), rewards_of(at, &other));
        let differences: [f64; 4] = std::array::from_fn(|n| (one[n] - other[n]).abs());
        assert!(differences[at] > 0.01, "{at}: {differences:?}");
        let others = (0..4).filter(|n| *n != at).map(|n| differences[n]);
        assert!(others.fold(0.0, f64::max) > 0.005, "{at}: {differences:?}");
    }
}
