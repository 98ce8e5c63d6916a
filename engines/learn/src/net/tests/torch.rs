//! Networks and the optimiser against PyTorch.

use super::*;
use crate::testing::{assert_all_near, assert_near, vectors};
use serde::Deserialize;

/// What single precision may differ by from double precision.
const TOLERANCE: f32 = 2e-6;

#[derive(Deserialize)]
struct Vectors {
    hidden: usize,
    cases: Vec<Case>,
    adam: Optimised,
}

#[derive(Deserialize)]
struct Case {
    activation: String,
    params: Vec<f32>,
    inputs: Vec<f32>,
    outputs: Vec<f32>,
    gradient: Vec<f32>,
}

#[derive(Deserialize)]
struct Optimised {
    params: Vec<f32>,
    rate: f32,
    epsilon: f32,
    weight_decay: f32,
    max_norm: f32,
    steps: Vec<OptimisedStep>,
}

#[derive(Deserialize)]
struct OptimisedStep {
    gradient: Vec<f32>,
    norm: f32,
    params: Vec<f32>,
}

fn stored() -> Vectors {
    vectors(include_str!("../../../tests/vectors/net.json"))
}

fn net_of(case: &Case, hidden: usize) -> Net {
    let activation = match case.activation.as_str() {
        "tanh" => Activation::Tanh,
        _ => Activation::Relu,
    };
    let mut net = Net::new(3);
    let trunk = net.push(None, hidden, activation);
    let trunk = net.push(Some(trunk), hidden, activation);
    net.push(Some(trunk), 3, Activation::Identity);
    net.set_params(&case.params).unwrap();
    net
}

#[test]
fn outputs_and_gradients_are_those_of_pytorch() {
    let stored = stored();
    assert_eq!(stored.cases.len(), 2);
    for case in &stored.cases {
        let net = net_of(case, stored.hidden);
        let head = net.heads().next().unwrap();
        let mut batch = Batch::new(&net, 5);
        batch.infer(&net, &case.inputs);
        assert_all_near(batch.output(&net, head), &case.outputs, TOLERANCE, "infer");
        let mut scratch = Scratch::default();
        let rows = case
            .inputs
            .chunks_exact(3)
            .zip(case.outputs.chunks_exact(3));
        for (input, output) in rows {
            net.forward_one(input, &mut scratch);
            assert_all_near(net.output_of(head, &scratch), output, TOLERANCE, "one");
        }
        pass(&net, &mut batch, &case.inputs);
        assert_all_near(batch.output(&net, head), &case.outputs, TOLERANCE, "batch");
        batch.backward(&net, &case.inputs);
        assert_all_near(batch.gradient(), &case.gradient, TOLERANCE, "gradient");
    }
}

#[test]
fn steps_of_adam_with_clipping_and_weight_decay_are_those_of_pytorch() {
    let stored = stored().adam;
    let mut params = stored.params;
    let adam = Adam::new(params.len(), stored.epsilon);
    let mut adam = adam.with_weight_decay(stored.weight_decay);
    let mut clipped = 0;
    for mut step in stored.steps {
        let norm = clip(&mut step.gradient, stored.max_norm);
        assert_near(norm, step.norm, TOLERANCE, "norm");
        clipped += u32::from(norm > stored.max_norm);
        adam.step(&mut params, &step.gradient, stored.rate);
        assert_all_near(&params, &step.params, TOLERANCE, "params");
    }
    assert!(clipped > 0, "some of the gradients are clipped");
}
