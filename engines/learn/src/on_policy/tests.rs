mod torch;

use super::*;
use crate::{algorithm, hyper::Value};
use rand::SeedableRng;
use tars_worlds::{Copies, make_world};

const COPIES: usize = 4;

/// A learner, the worlds it learns in, and their generator.
struct Training {
    learner: Box<dyn Learner>,
    worlds: Copies,
    rng: Generator,
    actions: Vec<Action>,
}

fn values(pairs: &[(&str, f64)]) -> Values {
    let named = |(name, number): &(&str, f64)| ((*name).to_owned(), Value::Number(*number));
    pairs.iter().map(named).collect()
}

impl Training {
    fn new(algorithm: &str, world: &'static str, pairs: &[(&str, f64)]) -> Self {
        let worlds = Copies::new(|| make_world(world).unwrap(), COPIES, 1);
        let mut rng = Generator::seed_from_u64(2);
        let space = worlds.spec().agents[0].clone();
        let found = algorithm::find(algorithm).unwrap();
        let learner = found
            .create(&space, &values(pairs), COPIES, &mut rng)
            .unwrap();
        Self {
            learner,
            actions: vec![space.action.first(); COPIES],
            worlds,
            rng,
        }
    }

    fn space(&self) -> AgentSpace {
        self.worlds.spec().agents[0].clone()
    }

    /// Steps all copies, each with its own observations; returns what was learned.
    fn step(&mut self) -> Option<Update> {
        let observations = self.worlds.agent(0).observations.clone();
        self.learner
            .act(&observations, &[], &mut self.rng, &mut self.actions);
        self.worlds.step(&self.actions);
        let seen = self.worlds.agent(0);
        let step = Step {
            observations: &observations,
            actions: &self.actions,
            rewards: &seen.rewards,
            next_observations: &seen.observations,
            next_masks: &[],
            final_observations: &seen.final_observations,
            terminated: &seen.terminated,
            truncated: &seen.truncated,
        };
        self.learner.observe(&step, &mut self.rng);
        self.learner.update(&mut self.rng, &|| false)
    }
}

#[test]
fn a_restored_learner_continues_to_the_bit() {
    for (name, world) in [
        ("ppo", "cartpole"),
        ("ppo", "pendulum"),
        ("a2c", "cartpole"),
        ("a2c", "pendulum"),
    ] {
        let pairs = &[("n_steps", 16.0)];
        let mut first = Training::new(name, world, pairs);
        for _ in 0..40 {
            first.step();
        }
        let found = algorithm::find(name).unwrap();
        let checkpoint = first.learner.checkpoint();
        let mut second = Training::new(name, world, pairs);
        second.learner = found.restore(&first.space(), COPIES, &checkpoint).unwrap();
        second.rng = first.rng.clone();
        second
            .worlds
            .restore(&first.worlds.snapshot().unwrap())
            .unwrap();
        for _ in 0..40 {
            assert_eq!(first.step(), second.step());
        }
        assert_eq!(first.learner.checkpoint(), second.learner.checkpoint());
        assert_eq!(first.learner.policy(), second.learner.policy());
    }
}

#[test]
fn a_checkpoint_of_other_copies_or_another_agent_or_that_was_cut_is_refused() {
    let mut training = Training::new("ppo", "cartpole", &[("n_steps", 8.0)]);
    training.step();
    let (space, bytes) = (training.space(), training.learner.checkpoint());
    let ppo = algorithm::find("ppo").unwrap();
    assert!(ppo.restore(&space, COPIES, &bytes).is_ok());
    assert!(ppo.restore(&space, COPIES + 1, &bytes).is_err());
    let other = Training::new("ppo", "acrobot", &[]).space();
    assert!(ppo.restore(&other, COPIES, &bytes).is_err());
    assert!(
        algorithm::find("a2c")
            .unwrap()
            .restore(&space, COPIES, &bytes)
            .is_err()
    );
    for cut in [0, 1, bytes.len() / 2, bytes.len() - 1] {
        assert!(ppo.restore(&space, COPIES, &bytes[..cut]).is_err(), "{cut}");
    }
}

#[test]
fn a_divergence_is_measured_only_where_steps_are_learned_from_again() {
    let mut training = Training::new("a2c", "cartpole", &[]);
    let update = (0..64).find_map(|_| training.step()).unwrap();
    assert!(update.entropy.is_some(), "{update:?}");
    assert_eq!(update.kl, None);
}

#[test]
fn an_update_measures_what_it_did() {
    let mut training = Training::new("ppo", "cartpole", &[("n_steps", 32.0), ("target_kl", 1.0)]);
    let updates: Vec<Update> = (0..64).filter_map(|_| training.step()).collect();
    assert_eq!(updates.len(), 2);
    for update in &updates {
        assert!(update.is_finite(), "{update:?}");
        assert_eq!(update.gradient_steps, 10 * 2);
        assert!(update.kl.is_some_and(|kl| kl >= 0.0));
        assert!(
            update
                .entropy
                .is_some_and(|h| h > 0.5 && h <= 2f32.ln() + 1e-5)
        );
        assert!(update.explained_variance.is_some_and(|ev| ev <= 1.0));
        assert!(
            update
                .clip_fraction
                .is_some_and(|c| (0.0..=1.0).contains(&c))
        );
    }
    assert_eq!(training.learner.exploration(), updates[1].entropy.unwrap());
}

#[test]
fn an_update_ends_early_when_the_policy_has_moved_far_enough() {
    let pairs = [
        ("n_steps", 32.0),
        ("learning_rate", 0.1),
        ("target_kl", 0.001),
    ];
    let mut training = Training::new("ppo", "cartpole", &pairs);
    let update = (0..32).find_map(|_| training.step()).unwrap();
    assert!(update.gradient_steps < 20, "{update:?}");
}

#[test]
fn annealing_ends_with_a_policy_that_no_longer_moves() {
    let pairs = [("n_steps", 8.0), ("anneal_steps", 64.0)];
    let mut training = Training::new("ppo", "cartpole", &pairs);
    let first = training.learner.policy();
    for _ in 0..8 {
        training.step();
    }
    let middle = training.learner.policy();
    assert_ne!(first, middle);
    for _ in 0..8 {
        training.step();
    }
    assert_eq!(
        training.learner.policy(),
        middle,
        "64 steps are over before the second update"
    );
}

#[test]
fn reloadable_parameters_change_and_fixed_ones_do_not() {
    let mut training = Training::new("ppo", "cartpole", &[("n_steps", 8.0)]);
    let learner = &mut training.learner;
    learner
        .reload(&values(&[("learning_rate", 0.01), ("clip_epsilon", 0.1)]))
        .unwrap();
    learner.reload(&values(&[("n_steps", 8.0)])).unwrap();
    let before = learner.checkpoint();
    for refused in [
        ("n_steps", 9.0),
        ("hidden_dim", 32.0),
        ("gamma", 2.0),
        ("epsilon", 0.1),
    ] {
        let both = values(&[("entropy_coef", 0.0), refused]);
        let violations = learner.reload(&both).unwrap_err();
        assert_eq!(violations[0].name, refused.0);
    }
    assert_eq!(learner.checkpoint(), before);
}

#[test]
fn a_policy_is_continued_from_by_its_own_algorithm_only() {
    let mut training = Training::new("ppo", "pendulum", &[("n_steps", 8.0)]);
    for _ in 0..8 {
        training.step();
    }
    let policy = training.learner.policy();
    let mut fresh = Training::new("ppo", "pendulum", &[]);
    fresh.learner.start_from(&policy).unwrap();
    assert_eq!(fresh.learner.policy(), policy);
    for other in [
        Training::new("a2c", "pendulum", &[]),
        Training::new("ppo", "cartpole", &[]),
        Training::new("ppo", "pendulum", &[("hidden_dim", 32.0)]),
    ] {
        let mut learner = other.learner;
        assert_eq!(learner.start_from(&policy), Err(WrongPolicy));
    }
}
