use super::*;
use crate::on_policy::{
    acting::Acting,
    gae::Horizon,
    rollout::{Rollout, Shape},
};
use rand::{RngExt, SeedableRng};
use tars_worlds::{ActionSpace, AgentSpace, Component, Generator};

const COPIES: usize = 3;
const STEPS: usize = 4;
/// The distance of finite differences: small, so that none crosses the point where clipping begins.
const H: f32 = 5e-4;

fn space(action: ActionSpace) -> AgentSpace {
    let component = |name| Component::computed(name, "1", -1.0, 1.0);
    AgentSpace {
        name: "agent".into(),
        observation: vec![component("a"), component("b")],
        action,
    }
}

fn discrete() -> AgentSpace {
    space(ActionSpace::named(&["left", "stay", "right"]))
}

fn continuous() -> AgentSpace {
    let component = |name| Component::computed(name, "1", -2.0, 2.0);
    space(ActionSpace::Continuous(vec![
        component("x"),
        component("y"),
    ]))
}

/// A rollout with random observations and rewards; the actions are the model's own.
fn rollout(model: &ActorCritic, space: &AgentSpace, masks: bool, rng: &mut Generator) -> Rollout {
    let mut rollout = Rollout::new(Shape {
        steps: STEPS,
        copies: COPIES,
        observation: 2,
        action: model.action_width(),
        mask: model.mask_width(),
    });
    let mut acting = Acting::new(model, COPIES);
    let mut actions = vec![space.action.first(); COPIES];
    let mask: Vec<bool> = if masks {
        [true, false, true].repeat(COPIES)
    } else {
        Vec::new()
    };
    while !rollout.is_full() {
        let numbers: Vec<f32> = (0..2 * COPIES)
            .map(|_| rng.random_range(-1.0..1.0))
            .collect();
        let rewards: Vec<f32> = (0..COPIES).map(|_| rng.random_range(-1.0..1.0)).collect();
        acting.act(model, &numbers, &mask, rng, &mut actions);
        acting.evaluate(model, &actions);
        let step = crate::learner::Step {
            observations: &numbers,
            actions: &actions,
            rewards: &rewards,
            next_observations: &numbers,
            next_masks: &mask,
            final_observations: &numbers,
            terminated: &[false, true, false],
            truncated: &[true, false, false],
        };
        acting.record(model, &step, &mut rollout);
    }
    let values = acting.values_of(model, &[0.5; 2 * COPIES]).to_vec();
    let horizon = Horizon {
        gamma: 0.9,
        lambda: 0.8,
    };
    rollout.finish(&values, horizon);
    rollout
}

/// A model that has moved a little since the rollout, so that some ratios are clipped.
fn moved(model: &ActorCritic, rng: &mut Generator) -> ActorCritic {
    let mut moved = model.clone();
    let params = moved.net.params_mut().iter_mut();
    params.for_each(|p| *p += rng.random_range(-0.1..0.1));
    let params = moved.head.params_mut().iter_mut();
    params.for_each(|p| *p += rng.random_range(-0.1..0.1));
    moved
}

fn objective(clip: Option<f32>) -> Objective {
    Objective {
        value_weight: 0.5,
        entropy_weight: 0.03,
        clip,
        clip_value: true,
        normalize_advantage: true,
    }
}

fn check_gradients(space: &AgentSpace, clip: Option<f32>, masks: bool) {
    let rng = &mut Generator::seed_from_u64(4);
    let model = ActorCritic::new(space, 16, rng);
    let rollout = rollout(&model, space, masks, rng);
    let model = moved(&model, rng);
    let rows: Vec<u32> = (0..rollout.rows() as u32).rev().collect();
    let mut minibatch = Minibatch::new(&model, rows.len());
    let mut loss = |model: &ActorCritic| {
        minibatch
            .differentiate(model, &rollout, &rows, &objective(clip))
            .total
    };
    let mut exact = Minibatch::new(&model, rows.len());
    let losses = exact.differentiate(&model, &rollout, &rows, &objective(clip));
    assert!(losses.kl > 0.0 && losses.entropy.is_finite());
    let params = model.net.params().len();
    for at in (0..params).step_by(7) {
        let mut moved = [model.clone(), model.clone()];
        moved[0].net.params_mut()[at] += H;
        moved[1].net.params_mut()[at] -= H;
        let numeric = (loss(&moved[0]) - loss(&moved[1])) / (2.0 * H);
        let found = exact.batch.gradient()[at];
        assert!((numeric - found).abs() < 2e-3, "{at}: {numeric} {found}");
    }
    for at in 0..model.head.params().len() {
        let mut moved = [model.clone(), model.clone()];
        moved[0].head.params_mut()[at] += H;
        moved[1].head.params_mut()[at] -= H;
        let numeric = (loss(&moved[0]) - loss(&moved[1])) / (2.0 * H);
        let found = exact.head_gradient[at];
        assert!((numeric - found).abs() < 2e-3, "{at}: {numeric} {found}");
    }
}

#[test]
fn gradients_of_the_whole_loss_agree_with_finite_differences() {
    for clip in [None, Some(0.2)] {
        check_gradients(&discrete(), clip, false);
        check_gradients(&discrete(), clip, true);
        check_gradients(&continuous(), clip, false);
    }
}

#[test]
fn a_policy_that_has_not_moved_has_no_divergence_and_nothing_is_clipped() {
    let rng = &mut Generator::seed_from_u64(5);
    for space in [discrete(), continuous()] {
        let model = ActorCritic::new(&space, 16, rng);
        let rollout = rollout(&model, &space, false, rng);
        let mut minibatch = Minibatch::new(&model, 5);
        let losses = minibatch.differentiate(&model, &rollout, &[4, 1, 9], &objective(Some(0.2)));
        assert!(losses.kl < 1e-6, "{losses:?}");
        assert_eq!(losses.clip_fraction, 0.0);
    }
}

#[test]
fn clipping_bounds_the_norm_over_all_parameters() {
    let rng = &mut Generator::seed_from_u64(7);
    let model = ActorCritic::new(&continuous(), 16, rng);
    let mut minibatch = Minibatch::new(&model, 4);
    minibatch.batch.gradient().fill(0.0);
    minibatch.batch.gradient()[0] = 3.0;
    minibatch.head_gradient[1] = 4.0;
    assert!((minibatch.clip(1.0) - 5.0).abs() < 1e-5);
    assert!((minibatch.batch.gradient()[0] - 0.6).abs() < 1e-6);
    assert!((minibatch.head_gradient[1] - 0.8).abs() < 1e-6);
    assert!((minibatch.clip(2.0) - 1.0).abs() < 1e-5);
    assert!((minibatch.head_gradient[1] - 0.8).abs() < 1e-6);
}
