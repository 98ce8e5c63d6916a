//! Gradient steps against PyTorch: the critic, the actor through it, and the target networks.

use super::*;
use crate::{
    hyper::Value,
    testing::{assert_all_near, assert_near, vectors},
};
use rand::SeedableRng;
use serde::Deserialize;
use tars_worlds::{ActionSpace, Component};

/// What single precision may differ by from double precision. Adam divides a gradient by its own size, so
/// that the smallest differ by more after it.
const TOLERANCE: f32 = 2e-6;
const AFTER_ADAM: f32 = 2e-5;

#[derive(Deserialize)]
struct Case {
    rows: usize,
    hidden: usize,
    width: usize,
    gamma: f32,
    tau: f32,
    max_norm: f32,
    weight_decay: f32,
    /// Of the actor and of the critic.
    rates: [f32; 2],
    #[serde(flatten)]
    before: AllParams,
    after: AllParams,
    observations: Vec<Vec<f32>>,
    nexts: Vec<Vec<f32>>,
    rewards: Vec<f32>,
    terminated: Vec<bool>,
    actions: Vec<Vec<f32>>,
    picks: Vec<Vec<usize>>,
    steps: Vec<Expected>,
}

/// The parameters of all networks.
#[derive(Deserialize)]
struct AllParams {
    actor: Vec<f32>,
    critic: Vec<f32>,
    target_actor: Vec<f32>,
    target_critic: Vec<f32>,
}

#[derive(Deserialize)]
struct Expected {
    value_loss: f32,
    policy_loss: f32,
    /// Of the critic.
    norm: f32,
    /// The actor's, after clipping; of the first step only.
    gradient: Option<Vec<f32>>,
}

fn space(width: usize) -> AgentSpace {
    let component = |name| Component::computed(name, "1", -1.0, 1.0);
    AgentSpace {
        name: "agent".into(),
        observation: ["a", "b", "c"].map(component).to_vec(),
        action: ActionSpace::Continuous(vec![component("x"); width]),
    }
}

impl Case {
    fn learner(&self) -> Ddpg {
        let params = Params {
            batch_size: self.rows,
            hidden_dim: self.hidden,
            gamma: self.gamma,
            tau: self.tau,
            max_gradient_norm: self.max_norm,
            critic_weight_decay: self.weight_decay,
            actor_learning_rate: self.rates[0],
            critic_learning_rate: self.rates[1],
            ..Params::from_values(&Values::new()).unwrap()
        };
        let rng = &mut Generator::seed_from_u64(0);
        let mut ddpg = Ddpg::new(&space(self.width), params, 1, rng);
        let before = &self.before;
        ddpg.actor.set_params(&before.actor).unwrap();
        ddpg.target_actor.set_params(&before.target_actor).unwrap();
        ddpg.critic.set_params(&before.critic);
        ddpg.target_critic.set_params(&before.target_critic);
        for at in 0..self.rewards.len() {
            ddpg.replay.push(&Transition {
                observation: &self.observations[at],
                action: &self.actions[at],
                reward: self.rewards[at],
                next: &self.nexts[at],
                mask: &[],
                terminated: self.terminated[at],
            });
        }
        ddpg
    }
}

#[test]
fn gradient_steps_are_those_of_pytorch() {
    let case: Case = vectors(include_str!("../../../tests/vectors/ddpg.json"));
    let mut ddpg = case.learner();
    assert_eq!(case.steps.len(), 4);
    for (picks, expected) in case.picks.iter().zip(&case.steps) {
        ddpg.buffers.picks.copy_from_slice(picks);
        let update = ddpg.descend();
        let losses = (update.value_loss.unwrap(), update.policy_loss.unwrap());
        assert_near(losses.0, expected.value_loss, AFTER_ADAM, "value loss");
        assert_near(losses.1, expected.policy_loss, AFTER_ADAM, "policy loss");
        let norm = update.gradient_norm.unwrap();
        assert_near(norm, expected.norm, AFTER_ADAM, "norm");
        if let Some(gradient) = &expected.gradient {
            // The critic, through which it passes, has taken a step.
            let ours = ddpg.buffers.actor.gradient();
            assert_all_near(ours, gradient, AFTER_ADAM, "gradient");
            assert!(norm > case.max_norm, "the first gradient is clipped");
        }
    }
    let after = &case.after;
    assert_all_near(ddpg.actor.params(), &after.actor, AFTER_ADAM, "actor");
    assert_all_near(&ddpg.critic.params(), &after.critic, AFTER_ADAM, "critic");
    let targets = (ddpg.target_actor.params(), ddpg.target_critic.params());
    assert_all_near(targets.0, &after.target_actor, TOLERANCE, "target actor");
    assert_all_near(
        &targets.1,
        &after.target_critic,
        AFTER_ADAM,
        "target critic",
    );
}

#[test]
fn the_critics_slope_is_taken_around_the_actors_choice_and_within_the_bounds() {
    let smoothed = |sigma: f32| {
        let values = [("actor_smoothing", sigma), ("batch_size", 512.0)];
        let values = values.map(|(name, n)| (name.to_owned(), Value::Number(n.into())));
        let rng = &mut Generator::seed_from_u64(1);
        let params = Params::from_values(&Values::from(values)).unwrap();
        let mut ddpg = Ddpg::new(&space(1), params, 1, rng);
        ddpg.replay.push(&Transition {
            observation: &[0.1, 0.2, 0.3],
            action: &[0.4],
            reward: 0.0,
            next: &[0.0; 3],
            mask: &[],
            terminated: false,
        });
        ddpg.learn(rng);
        let own = actions_of(&ddpg.actor, &ddpg.buffers.actor)[0];
        let probes = ddpg.buffers.actions.iter().map(move |probe| probe - own);
        probes.collect::<Vec<f32>>()
    };
    assert!(smoothed(0.0).iter().all(|distance| *distance == 0.0));
    let distances = smoothed(0.2);
    let variance = distances.iter().map(|d| d * d).sum::<f32>() / distances.len() as f32;
    assert_near(variance.sqrt(), 0.2, 0.02, "standard deviation");
    let farthest = smoothed(2.0).into_iter().map(f32::abs).fold(0.0, f32::max);
    assert_near(farthest, 1.0, 0.02, "the bound");
}
