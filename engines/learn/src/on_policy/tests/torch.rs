//! Passes over a rollout against PyTorch: advantages, the gradient of the whole loss, clipping and Adam.

use super::*;
use crate::{
    on_policy::rollout::Acted,
    testing::{assert_all_near, vectors},
};
use serde::Deserialize;
use tars_worlds::{ActionSpace, Component};

/// What single precision may differ by from double precision. Adam divides a gradient by its own size, so
/// that the smallest differ by more after it.
const TOLERANCE: f32 = 2e-6;
const AFTER_ADAM: f32 = 2e-5;

/// The plan is given, whatever the hyperparameters.
static METHOD: Method = Method {
    name: "stored",
    spec: Spec { parameters: &[] },
    plan: |_| unreachable!("nothing is reloaded"),
};

#[derive(Deserialize)]
struct Case {
    algorithm: String,
    continuous: bool,
    hidden: usize,
    steps: usize,
    copies: usize,
    clip: Option<f32>,
    clip_value: bool,
    batch: usize,
    max_norm: f32,
    rate: f32,
    params: Vec<f32>,
    log_std: Vec<f32>,
    observations: Vec<f32>,
    actions: Vec<f32>,
    masks: Vec<bool>,
    log_probabilities: Vec<f32>,
    values: Vec<f32>,
    rewards: Vec<f32>,
    /// 0 for a step within an episode, 1 for a final one, 2 for one that the time limit cut off.
    ends: Vec<u8>,
    /// What episodes ended with that were cut off.
    #[serde(rename = "final")]
    last_observation: Vec<f32>,
    last_values: Vec<f32>,
    advantages: Vec<f32>,
    returns: Vec<f32>,
    /// By all parameters, of the first minibatch, after clipping.
    gradient: Vec<f32>,
    passes: Vec<Pass>,
    after: Vec<f32>,
}

#[derive(Deserialize)]
struct Pass {
    order: Vec<u32>,
    /// Over the minibatches: the losses in the order of [`Losses`], and the norm.
    means: [f32; 7],
}

impl Case {
    fn space(&self) -> AgentSpace {
        let component = |name| Component::computed(name, "1", -1.0, 1.0);
        let action = match self.continuous {
            true => ActionSpace::Continuous(["x", "y"].map(component).to_vec()),
            false => ActionSpace::named(&["left", "stay", "right"]),
        };
        AgentSpace {
            name: "agent".into(),
            observation: ["a", "b", "c"].map(component).to_vec(),
            action,
        }
    }

    fn plan(&self) -> Plan {
        Plan {
            learning_rate: self.rate,
            horizon: Horizon {
                gamma: 0.9,
                lambda: 0.8,
            },
            objective: Objective {
                value_weight: 0.5,
                entropy_weight: 0.02,
                clip: self.clip,
                clip_value: self.clip_value,
                normalize_advantage: true,
            },
            max_grad_norm: self.max_norm,
            steps: self.steps,
            epochs: self.passes.len(),
            batch: Some(self.batch),
            target_kl: None,
            anneal_steps: 0,
            hidden: self.hidden,
        }
    }
}

impl Case {
    fn model(&self) -> ActorCritic {
        let rng = &mut Generator::seed_from_u64(0);
        let mut model = ActorCritic::new(&self.space(), self.hidden, rng);
        model.net.set_params(&self.params).unwrap();
        model.head.params_mut().copy_from_slice(&self.log_std);
        model
    }

    /// The steps of all copies at a point in time.
    fn push(&self, at: usize, model: &ActorCritic, rollout: &mut Rollout) {
        fn part<T>(column: &[T], at: usize, of: usize) -> &[T] {
            let width = column.len() / of;
            &column[at * width..][..width]
        }
        let ends = part(&self.ends, at, self.steps);
        let is = |kind: u8| -> Vec<bool> { ends.iter().map(|end| *end == kind).collect() };
        let step = Step {
            observations: part(&self.observations, at, self.steps),
            actions: &[],
            rewards: part(&self.rewards, at, self.steps),
            next_observations: &[],
            next_masks: &[],
            final_observations: &self.last_observation.repeat(self.copies),
            terminated: &is(1),
            truncated: &is(2),
        };
        let acted = Acted {
            actions: part(&self.actions, at, self.steps),
            log_probabilities: part(&self.log_probabilities, at, self.steps),
            values: part(&self.values, at, self.steps),
            masks: part(&self.masks, at, self.steps),
        };
        let mut scratch = crate::net::Scratch::default();
        rollout.push(&step, &acted, |observation| {
            model.net.forward_one(observation, &mut scratch);
            model.net.output_of(model.critic, &scratch)[0]
        });
    }

    fn learner(&self) -> OnPolicy {
        let (plan, model) = (self.plan(), self.model());
        let mut rollout = Rollout::new(shape(&plan, &model, self.copies));
        (0..self.steps).for_each(|at| self.push(at, &model, &mut rollout));
        rollout.finish(&self.last_values, plan.horizon);
        let state = State {
            values: METHOD.spec.typed(&Values::new()).unwrap(),
            optimiser: Adam::new(model.net.params().len(), ADAM_EPSILON),
            head_optimiser: Adam::new(model.head.params().len(), ADAM_EPSILON),
            rollout,
            steps: 0,
            entropy: 0.0,
        };
        OnPolicy::new(&METHOD, plan, model, state)
    }
}

/// The means of [`Losses`], and of the norms, over the minibatches of a pass.
fn means(sums: &Sums) -> [f32; 7] {
    let l = &sums.losses;
    let all = [
        l.total,
        l.policy,
        l.value,
        l.entropy,
        l.kl,
        l.clip_fraction,
        sums.norm,
    ];
    all.map(|sum| sum / sums.minibatches)
}

fn check(case: &Case) {
    let mut learner = case.learner();
    let name = &format!("{}, continuous: {}", case.algorithm, case.continuous);
    let rollout = &learner.state.rollout;
    assert_all_near(&rollout.advantages, &case.advantages, TOLERANCE, name);
    assert_all_near(&rollout.returns, &case.returns, TOLERANCE, name);
    let (plan, first) = (learner.plan, &case.passes[0].order[..case.batch]);
    learner
        .minibatch
        .differentiate(&learner.model, rollout, first, &plan.objective);
    learner.minibatch.clip(plan.max_grad_norm);
    let by_net = learner.minibatch.batch.gradient().to_vec();
    let gradient = [by_net, learner.minibatch.head_gradient.clone()].concat();
    assert_all_near(&gradient, &case.gradient, TOLERANCE, name);
    for pass in &case.passes {
        let mut sums = Sums::default();
        learner.order.copy_from_slice(&pass.order);
        assert!(learner.pass(&plan.objective, plan.learning_rate, &mut sums, &|| false));
        assert_all_near(&means(&sums), &pass.means, AFTER_ADAM, name);
    }
    let params = [learner.model.net.params(), learner.model.head.params()].concat();
    assert_all_near(&params, &case.after, AFTER_ADAM, name);
}

#[test]
fn passes_over_a_rollout_are_those_of_pytorch() {
    let cases: Vec<Case> = vectors(include_str!("../../../tests/vectors/on_policy.json"));
    let kinds: Vec<_> = cases.iter().map(|c| (c.clip, c.continuous)).collect();
    let clip = Some(0.2);
    let all = [(None, false), (None, true), (clip, false), (clip, true)];
    assert_eq!(kinds, all);
    cases.iter().for_each(check);
}
