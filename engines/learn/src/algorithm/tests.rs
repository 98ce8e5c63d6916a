//! What every algorithm has to do, on a world that fits it.

use super::*;
use crate::policy::Policy;
use crate::{
    hyper::{Kind, Value},
    learner::Step,
    policy::Scratch,
};
use rand::{RngExt, SeedableRng};
use tars_worlds::{Action, Copies, make_world};

const COPIES: usize = 3;

/// A learner at work: everything that determines what follows.
struct Rig {
    copies: Copies,
    learner: Box<dyn Learner>,
    rng: Generator,
    actions: Vec<Action>,
    masks: Vec<bool>,
    next_masks: Vec<bool>,
    seen: Vec<f32>,
}

fn values(pairs: &[(&str, Value)]) -> Values {
    let owned = |(name, value): &(&str, Value)| ((*name).to_owned(), *value);
    pairs.iter().map(owned).collect()
}

/// The worlds that an algorithm is tried on; the first has masks.
fn worlds(algorithm: &Algorithm) -> impl Iterator<Item = &'static str> {
    let all = ["taxi", "cartpole", "pendulum"].into_iter();
    let space = |name: &str| make_world(name).unwrap().spec().agents[0].clone();
    all.filter(move |name| algorithm.fits(&space(name)).is_ok())
}

/// Small buffers and minibatches, and every feature switched on.
fn thorough(algorithm: &Algorithm) -> Values {
    let mut chosen = values(&[]);
    for p in algorithm.spec.parameters {
        if p.kind == Kind::Flag {
            chosen.insert(p.name.to_owned(), Value::Flag(true));
        }
        if p.name == "hidden_dim" {
            chosen.insert(p.name.to_owned(), Value::Number(16.0));
        }
        if p.name == "buffer_size" {
            chosen.insert(p.name.to_owned(), Value::Number(1000.0));
        }
    }
    chosen
}

impl Rig {
    fn new(algorithm: &Algorithm, world: &str, seed: u64) -> Self {
        let copies = Copies::new(|| make_world(world).unwrap(), COPIES, seed);
        let mut rng = Generator::seed_from_u64(seed);
        let space = copies.spec().agents[0].clone();
        let learner = algorithm.create(&space, &thorough(algorithm), COPIES, &mut rng);
        Self::of(copies, learner.unwrap(), rng)
    }

    fn of(copies: Copies, learner: Box<dyn Learner>, rng: Generator) -> Self {
        let space = copies.spec().agents[0].clone();
        let actions = vec![space.action.first(); COPIES];
        let width = match space.action {
            ActionSpace::Discrete(names) => names.len(),
            ActionSpace::Continuous(_) => 0,
        };
        Self {
            copies,
            learner,
            rng,
            actions,
            masks: vec![true; COPIES * width],
            next_masks: vec![true; COPIES * width],
            seen: vec![0.0; COPIES * space.observation.len()],
        }
    }

    fn step(&mut self) -> Option<crate::learner::Update> {
        if !self.masks.is_empty() {
            self.copies.write_masks(0, &mut self.masks);
        }
        self.seen
            .copy_from_slice(&self.copies.agent(0).observations);
        let rng = &mut self.rng;
        self.learner
            .act(&self.seen, &self.masks, rng, &mut self.actions);
        for (action, mask) in self.actions.iter().zip(self.masks.chunks(6)) {
            if let (Action::Discrete(at), 6) = (action, mask.len()) {
                assert!(mask[*at], "a masked action was taken");
            }
        }
        self.copies.step(&self.actions);
        if !self.next_masks.is_empty() {
            self.copies.write_masks(0, &mut self.next_masks);
        }
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
        self.learner.observe(&step, rng);
        self.learner.update(rng, &|| false)
    }

    fn run(&mut self, steps: u32) {
        for _ in 0..steps {
            self.step();
        }
    }

    fn resumed(&self, algorithm: &Algorithm, world: &str) -> Self {
        let mut copies = Copies::new(|| make_world(world).unwrap(), COPIES, 77);
        copies.restore(&self.copies.snapshot().unwrap()).unwrap();
        let space = copies.spec().agents[0].clone();
        let checkpoint = self.learner.checkpoint();
        let learner = algorithm.restore(&space, COPIES, &checkpoint).unwrap();
        Self::of(copies, learner, self.rng.clone())
    }
}

#[test]
fn a_resumed_learner_equals_an_undisturbed_one_to_the_bit() {
    for algorithm in ALGORITHMS {
        for world in worlds(algorithm) {
            let mut rig = Rig::new(algorithm, world, 5);
            for steps in [0, 7, 400] {
                rig.run(steps);
                let mut resumed = rig.resumed(algorithm, world);
                for step in 0..300 {
                    assert_eq!(rig.step(), resumed.step(), "{world} {step}");
                }
                assert_eq!(rig.learner.policy(), resumed.learner.policy());
                assert_eq!(rig.learner.checkpoint(), resumed.learner.checkpoint());
            }
        }
    }
}

#[test]
fn checkpoints_that_are_cut_or_changed_are_refused() {
    for algorithm in ALGORITHMS {
        let world = worlds(algorithm).next().unwrap();
        let mut rig = Rig::new(algorithm, world, 5);
        rig.run(40);
        let space = rig.copies.spec().agents[0].clone();
        let bytes = rig.learner.checkpoint();
        let restore = |bytes: &[u8]| algorithm.restore(&space, COPIES, bytes);
        assert!(restore(&bytes).is_ok());
        let rng = &mut Generator::seed_from_u64(1);
        for _ in 0..500 {
            let end = rng.random_range(0..bytes.len());
            assert!(restore(&bytes[..end]).is_err());
            let mut changed = bytes.clone();
            changed[end] ^= rng.random_range(1..=255u8);
            assert!(restore(&changed).is_err(), "changed at {end}");
        }
    }
}

#[test]
fn a_checkpoint_of_another_agent_or_algorithm_is_refused() {
    let space = |name: &str| make_world(name).unwrap().spec().agents[0].clone();
    for algorithm in ALGORITHMS {
        let world = worlds(algorithm).last().unwrap();
        let bytes = Rig::new(algorithm, world, 5).learner.checkpoint();
        for other in ["taxi", "cartpole", "acrobot", "pendulum", "cournot_2"] {
            let restored = algorithm.restore(&space(other), COPIES, &bytes);
            assert_eq!(restored.is_ok(), other == world, "{other}");
        }
        for other in ALGORITHMS.iter().filter(|a| a.name != algorithm.name) {
            assert!(other.restore(&space(world), COPIES, &bytes).is_err());
        }
    }
}

#[test]
fn what_is_learned_is_a_policy_that_fits_and_can_be_continued_from() {
    for algorithm in ALGORITHMS {
        let world = worlds(algorithm).next().unwrap();
        let mut rig = Rig::new(algorithm, world, 5);
        rig.run(200);
        let space = rig.copies.spec().agents[0].clone();
        let policy = rig.learner.policy();
        assert_eq!(
            (policy.fits(&space), policy.algorithm()),
            (Ok(()), algorithm.name)
        );
        assert_eq!(Policy::from_bytes(&policy.to_bytes()).unwrap(), policy);
        let mut fresh = Rig::new(algorithm, world, 6).learner;
        assert_ne!(fresh.policy(), policy);
        fresh.start_from(&policy).unwrap();
        assert_eq!(fresh.policy(), policy);
        let other = worlds(algorithm).last().unwrap();
        if other != world {
            let mut other = Rig::new(algorithm, other, 6).learner;
            assert!(other.start_from(&policy).is_err());
        }
        let seen = &rig.copies.agent(0).observations[..policy.inputs()];
        let decision = policy.act(seen, &[], &mut Scratch::default());
        assert_eq!(space.action.check(&decision.action), Ok(()));
    }
}

#[test]
fn what_an_algorithm_minimises_is_measured_by_its_gradient_steps() {
    for algorithm in ALGORITHMS {
        let world = worlds(algorithm).next().unwrap();
        let mut rig = Rig::new(algorithm, world, 5);
        let update = (0..2000).find_map(|_| rig.step()).unwrap();
        for loss in algorithm.losses {
            assert!((loss.of)(&update).is_some(), "{}", loss.name);
        }
        assert!(!algorithm.losses.is_empty());
    }
}

#[test]
fn reloads_are_checked_and_leave_a_learner_as_it_was_when_refused() {
    for algorithm in ALGORITHMS {
        let world = worlds(algorithm).next().unwrap();
        let mut learner = Rig::new(algorithm, world, 5).learner;
        let before = learner.checkpoint();
        let number = |name: &str, n: f64| values(&[(name, Value::Number(n))]);
        let fixed = algorithm.spec.parameters.iter().find(|p| !p.reloadable);
        let fixed = fixed.expect("widths are fixed").name;
        let mut refused = vec![number("gamma", -7.0), number("nope", 1.0)];
        refused.push(number("gamma", f64::NAN));
        refused.push(number(fixed, 33.0));
        for values in refused {
            let mut mixed = number("gamma", 0.91);
            mixed.extend(values);
            assert!(learner.reload(&mixed).is_err(), "{mixed:?}");
            assert_eq!(learner.checkpoint(), before);
        }
        learner.reload(&number("gamma", 0.93)).unwrap();
        assert_ne!(learner.checkpoint(), before);
    }
}

#[test]
fn algorithms_refuse_agents_that_they_cannot_act_for() {
    let space = |name: &str| make_world(name).unwrap().spec().agents[0].clone();
    for algorithm in ALGORITHMS {
        let (discrete, continuous) = (space("cartpole"), space("pendulum"));
        let fits = (
            algorithm.fits(&discrete).is_ok(),
            algorithm.fits(&continuous).is_ok(),
        );
        let expected = match algorithm.actions {
            Actions::Discrete => (true, false),
            Actions::Continuous => (false, true),
            Actions::Any => (true, true),
        };
        assert_eq!(fits, expected, "{}", algorithm.name);
        let blind = AgentSpace {
            observation: vec![],
            ..discrete
        };
        assert!(algorithm.fits(&blind).is_err());
    }
}

/// What an agent of a world may come to with some values, in as many steps.
fn size(algorithm: &Algorithm, world: &str, values: &Values, steps: u64) -> Size {
    let space = make_world(world).unwrap().spec().agents[0].clone();
    let extent = Extent {
        copies: COPIES,
        steps,
    };
    algorithm.size(&space, values, extent).unwrap()
}

#[test]
fn the_size_bounds_the_checkpoint_of_a_learner_that_is_full() {
    // A thousand transitions, and several rollouts.
    const FULL: u32 = 400;
    for algorithm in ALGORITHMS {
        for world in worlds(algorithm) {
            let mut rig = Rig::new(algorithm, world, 5);
            rig.run(FULL);
            let size = size(algorithm, world, &thorough(algorithm), u64::from(FULL) * 3);
            let (most, policy) = (size.checkpoint(), rig.learner.policy().to_bytes());
            let saved = (rig.learner.checkpoint().len() + policy.len()) as u64;
            assert!(
                saved <= most,
                "{} in {world}: {saved} {most}",
                algorithm.name
            );
            // It is no more than that, apart from the descriptions and the ends of episodes.
            let least = most - (17 << 10) - 4 * u64::from(FULL) * 3;
            assert!(
                saved > least,
                "{} in {world}: {saved} {most}",
                algorithm.name
            );
        }
    }
}

#[test]
fn a_size_is_that_of_what_is_learned_from_and_grows_with_its_parameters() {
    for algorithm in ALGORITHMS {
        let world = worlds(algorithm).next().unwrap();
        let of = |name: &str, n: f64, steps: u64| {
            let values = values(&[(name, Value::Number(n))]);
            size(algorithm, world, &values, steps)
        };
        let wide = of("hidden_dim", 512.0, 1_000);
        assert_eq!(wide.largest_saved().parameter, "hidden_dim");
        let narrow = of("hidden_dim", 16.0, 1_000);
        assert!(narrow.checkpoint() < wide.checkpoint());
        let memory = narrow.saved[1].parameter;
        let long = of(memory, 10_000.0, 10_000_000);
        assert_eq!(long.largest_saved().parameter, memory, "{}", algorithm.name);
        assert!(long.saved[1].bytes > 5 * of(memory, 1_000.0, 10_000_000).saved[1].bytes);
        if memory == "buffer_size" {
            // A buffer does not become larger than what is put into it.
            let few = of(memory, 1e7, 5_000).saved[1].bytes;
            assert_eq!(few, of(memory, 5_003.0, 5_000).saved[1].bytes);
            assert!(few < of(memory, 1e7, 1_000_000_000).saved[1].bytes / 1_000);
        }
    }
}

#[test]
fn values_out_of_bounds_have_no_size() {
    let space = make_world("cartpole").unwrap().spec().agents[0].clone();
    let extent = Extent {
        copies: 1,
        steps: 1,
    };
    let dqn = find("dqn").unwrap();
    for (name, number) in [("buffer_size", 1e9), ("hidden_dim", 0.0), ("n_steps", 5.0)] {
        let wrong = values(&[(name, Value::Number(number))]);
        let refused = dqn.size(&space, &wrong, extent).unwrap_err();
        assert_eq!(refused[0].name, name);
    }
}

#[test]
fn ddpg_refuses_what_its_agent_was_not_specified_with() {
    let spec = find("ddpg").unwrap().spec;
    let takes = |name: &str, value: f64| {
        let given = values(&[(name, Value::Number(value))]);
        spec.typed(&given).is_ok()
    };
    for (name, least, most) in [
        ("actor_learning_rate", 1e-7, 1e-1),
        ("critic_learning_rate", 1e-6, 1e-1),
        ("tau", 1e-4, 0.1),
        ("critic_weight_decay", 0.0, 0.1),
        ("noise_sigma", 0.01, 1.0),
        ("noise_theta", 0.01, 0.5),
        ("gamma", 0.0, 0.9999),
    ] {
        assert!(takes(name, least) && takes(name, most), "{name}");
        assert!(!takes(name, least - 1e-8), "{name} below {least}");
        assert!(!takes(name, most * 1.001), "{name} above {most}");
    }
}
