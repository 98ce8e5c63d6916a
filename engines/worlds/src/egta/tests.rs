use super::*;
use crate::{
    MatrixGame, MeshEnv, make_world,
    testing::{Episode, mesh_hold},
};

fn both() -> Vec<Action> {
    [0, 1].map(Action::Discrete).to_vec()
}

fn dilemma() -> Box<dyn World> {
    make_world("prisoners_dilemma").unwrap()
}

fn plan() -> Plan {
    Plan {
        rollouts: 3,
        steps: 4,
        repeat: 4,
        ..Plan::default()
    }
}

/// The game of the dilemma in which both go on with these actions.
fn played_then(then: &[Action], plan: &Plan) -> EmpiricalGame {
    let choices = [both(), both()];
    measure(dilemma().as_mut(), &choices, &mut always(then), plan).unwrap()
}

#[test]
fn the_game_of_a_matrix_game_is_its_own_payoffs() {
    let game = measure(
        dilemma().as_mut(),
        &[both(), both()],
        &mut always(&both()),
        &plan(),
    )
    .unwrap();
    let payoffs = vec![vec![3.0, 0.0, 5.0, 1.0], vec![3.0, 5.0, 0.0, 1.0]];
    assert_eq!((game.shape(), game.payoffs()), (&[2, 2][..], payoffs));
    let pure = |at: usize| vec![f64::from(at == 0), f64::from(at == 1)];
    assert_eq!(game.nash_conv(&[pure(1), pure(1)]), 0.0);
    assert_eq!(game.nash_conv(&[pure(0), pure(0)]), 4.0);
    assert_eq!(game.nash_conv(&[pure(0), pure(1)]), 1.0);
}

#[test]
fn a_mixed_equilibrium_has_no_nash_conv() {
    let mut world = make_world("rock_paper_scissors").unwrap();
    let actions = [0, 1, 2].map(Action::Discrete).to_vec();
    let then = [Action::Discrete(0), Action::Discrete(0)];
    let game = measure(
        world.as_mut(),
        &[actions.clone(), actions],
        &mut always(&then),
        &plan(),
    )
    .unwrap();
    let third = vec![1.0 / 3.0; 3];
    assert!(game.nash_conv(&[third.clone(), third]).abs() < 1e-12);
}

#[test]
fn after_the_repeats_the_agents_go_on_with_something_else() {
    let plan = Plan {
        steps: 4,
        repeat: 1,
        ..plan()
    };
    let then = [0, 0].map(Action::Discrete);
    let game = played_then(&then, &plan);
    assert_eq!(game.payoffs()[0], [3.0, 9.0 / 4.0, 14.0 / 4.0, 10.0 / 4.0]);
    let discounted = Plan {
        discount: 0.5,
        steps: 2,
        ..plan
    };
    let game = played_then(&then, &discounted);
    assert!((game.payoffs()[0][1] - 1.0).abs() < 1e-6);
}

/// In the dilemma an agent sees what both did last; who answers like with like is paid back.
#[test]
fn what_the_agents_go_on_with_follows_from_what_they_observe() {
    let mut world = dilemma();
    let asked = std::cell::RefCell::new(Vec::new());
    let mut then = |seen: &Observations, joint: &mut [Action]| {
        asked.borrow_mut().push(seen.of(0).to_vec());
        joint.clone_from_slice(&[0, 1].map(Action::Discrete));
    };
    let plan = Plan {
        rollouts: 1,
        steps: 3,
        repeat: 1,
        ..plan()
    };
    let choices = [vec![Action::Discrete(1)], vec![Action::Discrete(0)]];
    let game = measure(world.as_mut(), &choices, &mut then, &plan).unwrap();
    assert!((game.payoffs()[0][0] - 5.0 / 3.0).abs() < 1e-6, "{game:?}");
    assert_eq!(asked.borrow().len(), 2, "after the joint action");
    assert_ne!(asked.borrow()[0], asked.borrow()[1], "it is new");
    let first = measure(
        world.as_mut(),
        &choices,
        &mut then,
        &Plan { repeat: 0, ..plan },
    );
    assert_eq!(first.unwrap().payoffs(), [[0.0], [5.0]]);
    assert_eq!(asked.borrow().len(), 5, "in each step");
}

fn mesh_choices() -> Vec<Vec<Action>> {
    let discrete = |all: &[usize]| all.iter().map(|at| Action::Discrete(*at)).collect();
    let shares = [0.1, 0.9].map(|share| Action::Continuous(vec![share]));
    vec![
        discrete(&[0, 8]),
        discrete(&[0, 1]),
        discrete(&[0, 6]),
        shares.to_vec(),
    ]
}

#[test]
fn the_mesh_is_rolled_out_with_common_random_numbers_and_left_as_it_was() {
    let mut mesh = Episode::start(MeshEnv::shipped(), 4);
    mesh.step(&mesh_hold(0.5));
    let before = mesh.world.snapshot();
    let mut measure = |plan: &Plan| {
        measure(
            &mut mesh.world,
            &mesh_choices(),
            &mut always(&mesh_hold(0.5)),
            plan,
        )
        .unwrap()
    };
    let game = measure(&Plan::default());
    assert_eq!(game, measure(&Plan::default()));
    assert_ne!(
        game,
        measure(&Plan {
            seed: 1,
            ..Plan::default()
        })
    );
    assert_eq!(mesh.world.snapshot(), before);
}

#[test]
fn a_measurement_that_is_stopped_leaves_the_world_as_it_was() {
    let mut mesh = Episode::start(MeshEnv::shipped(), 4);
    let before = mesh.world.snapshot();
    let asked = std::cell::Cell::new(0);
    let is_stopped = || asked.replace(asked.get() + 1) == 3;
    let hold = mesh_hold(0.5);
    let (mut then, plan) = (always(&hold), Plan::default());
    let stopped = measure_until(
        &mut mesh.world,
        &mesh_choices(),
        &mut then,
        &plan,
        &is_stopped,
    );
    assert_eq!(stopped, Err(NoGame::Stopped));
    assert_eq!((asked.get(), mesh.world.snapshot()), (4, before));
}

/// With the same random numbers, the difference of two joint actions varies less than with others.
#[test]
fn common_random_numbers_make_differences_sharper() {
    let mut mesh = Episode::start(MeshEnv::shipped(), 4);
    let plan = Plan {
        rollouts: 64,
        ..Plan::default()
    };
    let game = measure(
        &mut mesh.world,
        &mesh_choices(),
        &mut always(&mesh_hold(0.5)),
        &plan,
    )
    .unwrap();
    let of = |joint: usize| &game.samples[0][joint * 64..][..64];
    let spread = |numbers: &mut dyn Iterator<Item = f32>| {
        let all: Vec<f32> = numbers.collect();
        let mean = all.iter().sum::<f32>() / 64.0;
        all.iter()
            .map(|number| (number - mean).powi(2))
            .sum::<f32>()
    };
    // Two joint actions that differ in what Ethical does.
    let (one, other) = (of(1), of(3));
    let paired = spread(&mut one.iter().zip(other).map(|(a, b)| a - b));
    let unpaired = spread(&mut one.iter().copied()) + spread(&mut other.iter().copied());
    assert!(paired < unpaired / 4.0, "{paired} {unpaired}");
}

#[test]
fn the_interval_contains_the_value_and_shrinks_with_rollouts() {
    let mut mesh = Episode::start(MeshEnv::shipped(), 4);
    let mixes = vec![vec![0.5, 0.5]; 4];
    let mut interval = |rollouts| {
        let plan = Plan {
            rollouts,
            ..Plan::default()
        };
        let game = measure(
            &mut mesh.world,
            &mesh_choices(),
            &mut always(&mesh_hold(0.5)),
            &plan,
        )
        .unwrap();
        game.nash_conv_interval(&mixes, 200, 0.95, 1)
    };
    let (few, many) = (interval(8), interval(128));
    for Interval { value, low, high } in [few, many] {
        assert!(
            low <= value && value <= high && low < high,
            "{low} {value} {high}"
        );
    }
    assert!(many.high - many.low < (few.high - few.low) / 2.0);
}

#[test]
fn what_cannot_be_measured_is_refused() {
    let refused = |choices: &[Vec<Action>], plan: Plan| {
        measure(dilemma().as_mut(), choices, &mut always(&both()), &plan).unwrap_err()
    };
    assert_eq!(refused(&[both()], plan()), NoGame::Actions);
    assert_eq!(refused(&[both(), vec![]], plan()), NoGame::Actions);
    let empty = Plan { steps: 0, ..plan() };
    assert_eq!(refused(&[both(), both()], empty), NoGame::Empty);
    let wild = [both(), vec![Action::Discrete(2)]];
    let not_in_space = NoGame::NotInSpace {
        agent: 1,
        action: 0,
    };
    assert_eq!(refused(&wild, plan()), not_in_space);
    let many = vec![Action::Discrete(0); 101];
    assert_eq!(refused(&[many.clone(), many], plan()), NoGame::TooLarge);
}

#[test]
fn three_players_are_indexed_with_the_last_one_fastest() {
    let actions: Vec<Vec<crate::space::Text>> = vec![
        vec!["a".into(), "b".into()],
        vec!["c".into()],
        vec!["d".into(), "e".into()],
    ];
    let payoffs = (0..12u8).map(f32::from).collect();
    let mut world = MatrixGame::new("three".into(), &actions, payoffs).unwrap();
    let choices = [both(), vec![Action::Discrete(0)], both()];
    let then = [0, 0, 0].map(Action::Discrete);
    let game = measure(&mut world, &choices, &mut always(&then), &plan()).unwrap();
    assert_eq!(game.payoffs()[1], [1.0, 4.0, 7.0, 10.0]);
}
