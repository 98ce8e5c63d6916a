//! Learners do not allocate while they learn, but for one thing: each product of two matrices allocates the
//! buffer into which its library packs them, and frees it before it returns. The library takes no buffer from its
//! caller. For networks of 64 units it is some 30 KiB, and costs about 0.1 µs of the 3 µs of a product; kernels
//! without it would have to be written in unsafe code, or be slower by more than that. Acting and observing
//! compute no such product. The products of a gradient step are counted here, so that nothing else goes unnoticed.

#![allow(clippy::unwrap_used)]

use rand::SeedableRng;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use std::alloc::System;
use tars_learn::{
    Extent, Learner, Step, Update, algorithm,
    hyper::{Value, Values},
};
use tars_worlds::{Action, ActionSpace, Copies, Generator, make_world};

#[global_allocator]
static GLOBAL: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const COPIES: usize = 4;
/// Steps of the copies until replay buffers are full: they grow while they fill.
const FILL: usize = 300;
/// Steps that are measured, among which there are ends of episodes and of rollouts.
const MEASURED: usize = 200;

/// What an algorithm is tried with, and the matrix products of one of its gradient steps. A layer has one in
/// a forward pass, one for the gradient by its weights, and, when it follows another layer, one for the
/// gradient by its inputs.
struct Case {
    algorithm: &'static str,
    world: &'static str,
    values: &'static [(&'static str, Value)],
    products: usize,
}

const SMALL_REPLAY: (&str, Value) = ("buffer_size", Value::Number(1000.0));

/// Without early stops: the minibatch that causes one is computed, and no step is taken.
const SHORT_ROLLOUTS: &[(&str, Value)] = &[
    ("n_steps", Value::Number(16.0)),
    ("target_kl", Value::Number(1.0)),
];

/// A network of three layers passes forward three times, as the online one over the next states, the target
/// one over them, and the online one over the states; and back once.
const DQN: usize = 3 * 3 + (3 + 2);
/// The same with a fourth layer, for the value of the state.
const DUELING: usize = 3 * 4 + (4 + 3);
/// An actor and a critic of three layers each pass forward and back.
const ON_POLICY: usize = 6 + (6 + 4);
/// The target networks pass forward; so does the critic, and back, also to what its first layer puts out;
/// the actor and the critic pass forward; then the critic's last two layers back to the action, and the
/// actor.
const DDPG: usize = 6 + (3 + 3 + 2) + 6 + (2 + 3 + 2);

const fn case(
    algorithm: &'static str,
    world: &'static str,
    values: &'static [(&'static str, Value)],
    products: usize,
) -> Case {
    Case {
        algorithm,
        world,
        values,
        products,
    }
}

const CASES: &[Case] = &[
    case("dqn", "taxi", &[SMALL_REPLAY], DQN),
    case(
        "dqn",
        "cartpole",
        &[
            SMALL_REPLAY,
            ("dueling", Value::Flag(true)),
            ("prioritized_replay", Value::Flag(true)),
        ],
        DUELING,
    ),
    case("a2c", "taxi", &[], ON_POLICY),
    case("a2c", "pendulum", &[], ON_POLICY),
    case("ppo", "cartpole", SHORT_ROLLOUTS, ON_POLICY),
    case("ppo", "pendulum", SHORT_ROLLOUTS, ON_POLICY),
    case("ddpg", "pendulum", &[SMALL_REPLAY], DDPG),
];

fn values(case: &Case) -> Values {
    let owned = |(name, value): &(&str, Value)| ((*name).to_owned(), *value);
    case.values.iter().map(owned).collect()
}

/// A learner at work.
struct Rig {
    copies: Copies,
    learner: Box<dyn Learner>,
    rng: Generator,
    actions: Vec<Action>,
    masks: Vec<bool>,
    next_masks: Vec<bool>,
    seen: Vec<f32>,
}

/// The allocations of the three calls of one step, and the gradient steps that were taken in it.
#[derive(Debug, Clone, Copy)]
struct Counts {
    act: usize,
    observe: usize,
    update: usize,
    /// Whether the update freed all that it allocated.
    freed: bool,
    gradient_steps: usize,
}

/// The result of a call and the allocations of the process meanwhile; also whether all were freed again.
fn counted<T>(call: impl FnOnce() -> T) -> (T, usize, bool) {
    let region = Region::new(GLOBAL);
    let result = call();
    let change = region.change();
    let freed = change.bytes_allocated == change.bytes_deallocated && change.reallocations == 0;
    (result, change.allocations, freed)
}

impl Rig {
    fn new(case: &Case) -> Self {
        let copies = Copies::new(|| make_world(case.world).unwrap(), COPIES, 1);
        let space = copies.spec().agents[0].clone();
        let mut rng = Generator::seed_from_u64(1);
        let values = values(case);
        let algorithm = algorithm::find(case.algorithm).unwrap();
        let masked = match &space.action {
            ActionSpace::Discrete(names) => names.len(),
            ActionSpace::Continuous(_) => 0,
        };
        Self {
            learner: algorithm.create(&space, &values, COPIES, &mut rng).unwrap(),
            rng,
            actions: vec![space.action.first(); COPIES],
            masks: vec![true; COPIES * masked],
            next_masks: vec![true; COPIES * masked],
            seen: vec![0.0; COPIES * space.observation.len()],
            copies,
        }
    }

    fn write_masks(&mut self) {
        if !self.next_masks.is_empty() {
            self.copies.write_masks(0, &mut self.next_masks);
        }
    }

    fn step(&mut self) -> Counts {
        self.write_masks();
        self.masks.copy_from_slice(&self.next_masks);
        let batch = self.copies.agent(0);
        self.seen.copy_from_slice(&batch.observations);
        let (learner, rng) = (&mut self.learner, &mut self.rng);
        let ((), act, _) = counted(|| learner.act(&self.seen, &self.masks, rng, &mut self.actions));
        self.copies.step(&self.actions);
        self.write_masks();
        let ((), observe, _) = counted(|| self.observe());
        let (update, count, freed) = counted(|| self.update());
        Counts {
            act,
            observe,
            update: count,
            freed,
            gradient_steps: update.map_or(0, |u| u.gradient_steps as usize),
        }
    }

    fn observe(&mut self) {
        let batch = self.copies.agent(0);
        let step = Step {
            observations: &self.seen,
            actions: &self.actions,
            rewards: &batch.rewards,
            next_observations: &batch.observations,
            next_masks: &self.next_masks,
            final_observations: &batch.final_observations,
            terminated: &batch.terminated,
            truncated: &batch.truncated,
        };
        self.learner.observe(&step, &mut self.rng);
    }

    fn update(&mut self) -> Option<Update> {
        self.learner.update(&mut self.rng, &|| false)
    }
}

/// The counts of each measured step. A run with the same seed repeats them.
fn measure(case: &Case) -> Vec<Counts> {
    let mut rig = Rig::new(case);
    for _ in 0..FILL {
        rig.step();
    }
    (0..MEASURED).map(|_| rig.step()).collect()
}

/// What a learner holds once its replay buffer is full, in bytes. Vectors that grow have room for twice as much.
fn held(case: &Case) -> u64 {
    let mut rig = Rig::new(case);
    let space = rig.copies.spec().agents[0].clone();
    let region = Region::new(GLOBAL);
    let algorithm = algorithm::find(case.algorithm).unwrap();
    let learner = algorithm.create(&space, &values(case), COPIES, &mut rig.rng);
    let before = std::mem::replace(&mut rig.learner, learner.unwrap());
    for _ in 0..FILL {
        rig.step();
    }
    let change = region.change();
    drop(before);
    (change.bytes_allocated - change.bytes_deallocated) as u64
}

/// Within the only test, whose allocations are counted for the whole process.
fn a_learner_holds_no_more_than_its_size_says(case: &Case) {
    let space = make_world(case.world).unwrap().spec().agents[0].clone();
    let extent = Extent {
        copies: COPIES,
        steps: (COPIES * FILL) as u64,
    };
    let algorithm = algorithm::find(case.algorithm).unwrap();
    let size = algorithm.size(&space, &values(case), extent).unwrap();
    let (held, most) = (held(case), 2 * size.checkpoint() + size.buffers.bytes);
    assert!(
        held <= most,
        "{} in {}: {held} {most}",
        case.algorithm,
        case.world
    );
}

#[test]
fn learners_allocate_for_matrix_products_only() {
    for case in CASES {
        a_learner_holds_no_more_than_its_size_says(case);
        // The test harness has a thread of its own, which allocates now and then: the least of some runs
        // counts.
        let runs: Vec<Vec<Counts>> = (0..3).map(|_| measure(case)).collect();
        let least = |at: usize, of: fn(&Counts) -> usize| runs.iter().map(|r| of(&r[at])).min();
        let name = format!("{} in {}", case.algorithm, case.world);
        for (at, counts) in runs[0].iter().enumerate() {
            let products = counts.gradient_steps * case.products;
            assert_eq!(least(at, |c| c.act), Some(0), "act: {name}, {at}");
            assert_eq!(least(at, |c| c.observe), Some(0), "observe: {name}, {at}");
            assert_eq!(least(at, |c| c.update), Some(products), "update: {name}");
            assert!(runs.iter().any(|run| run[at].freed), "kept: {name}, {at}");
        }
        let learned = runs[0].iter().filter(|c| c.gradient_steps > 0).count();
        assert!(learned >= 10, "{name} learned in {learned} steps");
    }
}
