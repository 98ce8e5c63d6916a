//! Gradient steps against PyTorch, from the targets to Adam.

use super::*;
use crate::testing::{assert_all_near, assert_near, vectors};
use rand::SeedableRng;
use serde::Deserialize;
use tars_worlds::{ActionSpace, Component};

/// What single precision may differ by from double precision. Adam divides a gradient by its own size, so
/// that the smallest differ by more after it.
const TOLERANCE: f32 = 2e-6;
const AFTER_ADAM: f32 = 2e-5;

#[derive(Deserialize)]
struct Case {
    double: bool,
    dueling: bool,
    rows: usize,
    hidden: usize,
    gamma: f32,
    rate: f32,
    max_norm: f32,
    online: Vec<f32>,
    target: Vec<f32>,
    after: Vec<f32>,
    observations: Vec<Vec<f32>>,
    nexts: Vec<Vec<f32>>,
    rewards: Vec<f32>,
    terminated: Vec<bool>,
    actions: Vec<f32>,
    masks: Vec<Vec<bool>>,
    picks: Vec<Vec<usize>>,
    steps: Vec<Expected>,
}

#[derive(Deserialize)]
struct Expected {
    weights: Vec<f32>,
    loss: f32,
    q: f32,
    norm: f32,
    /// After clipping; of the first step only.
    gradient: Option<Vec<f32>>,
}

fn space() -> AgentSpace {
    let component = |name| Component::computed(name, "1", -1.0, 1.0);
    AgentSpace {
        name: "agent".into(),
        observation: ["a", "b", "c"].map(component).to_vec(),
        action: ActionSpace::named(&["left", "stay", "right"]),
    }
}

impl Case {
    fn learner(&self) -> Dqn {
        let params = Params {
            double_dqn: self.double,
            dueling: self.dueling,
            batch_size: self.rows,
            hidden_dim: self.hidden,
            gamma: self.gamma,
            learning_rate: self.rate,
            max_gradient_norm: self.max_norm,
            ..Params::from_values(&Values::new()).unwrap()
        };
        let mut dqn = Dqn::new(&space(), params, &mut Generator::seed_from_u64(0));
        dqn.online.set_params(&self.online).unwrap();
        dqn.target.set_params(&self.target).unwrap();
        for at in 0..self.rewards.len() {
            dqn.replay.push(&Transition {
                observation: &self.observations[at],
                action: &[self.actions[at]],
                reward: self.rewards[at],
                next: &self.nexts[at],
                mask: &self.masks[at],
                terminated: self.terminated[at],
            });
        }
        dqn
    }
}

fn check(case: &Case) {
    let mut dqn = case.learner();
    for (picks, expected) in case.picks.iter().zip(&case.steps) {
        dqn.buffers.picks.copy_from_slice(picks);
        dqn.buffers.weights.copy_from_slice(&expected.weights);
        let update = dqn.descend();
        assert_near(update.loss.unwrap(), expected.loss, AFTER_ADAM, "loss");
        assert_near(update.q.unwrap(), expected.q, AFTER_ADAM, "q");
        let norm = update.gradient_norm.unwrap();
        assert_near(norm, expected.norm, AFTER_ADAM, "norm");
        if let Some(gradient) = &expected.gradient {
            let ours = dqn.buffers.online.gradient();
            assert!(norm > case.max_norm, "the first gradient is clipped");
            assert_all_near(ours, gradient, TOLERANCE, "gradient");
        }
    }
    assert_all_near(dqn.online.params(), &case.after, AFTER_ADAM, "params");
    assert_eq!(dqn.target.params(), case.target);
}

#[test]
fn gradient_steps_are_those_of_pytorch() {
    let cases: Vec<Case> = vectors(include_str!("../../../tests/vectors/dqn.json"));
    let kinds: Vec<_> = cases.iter().map(|c| (c.double, c.dueling)).collect();
    assert_eq!(kinds, [(true, false), (false, true)]);
    cases.iter().for_each(check);
}
