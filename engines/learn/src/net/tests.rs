mod torch;

use super::*;
use rand::SeedableRng;
use tars_worlds::Generator;

/// A trunk of two layers and two heads, of which the first has a layer of its own.
fn net(activation: Activation) -> Net {
    let rng = &mut Generator::seed_from_u64(7);
    let mut net = Net::new(3);
    let trunk = net.hidden(None, &[8, 6], activation, Init::Xavier(1.5), rng);
    let hidden = net.add(trunk, 5, Activation::Tanh, Init::He(1.0), rng);
    net.add(trunk, 1, Activation::Identity, Init::Orthogonal(1.0), rng);
    net.add(Some(hidden), 2, Activation::Tanh, Init::Xavier(1.0), rng);
    net
}

fn input() -> Vec<f32> {
    (0..12).map(|i| (i as f32 * 0.37).sin()).collect()
}

/// Half the sum of squares of all heads: its gradient by the outputs is the outputs.
fn loss(net: &Net, input: &[f32]) -> f64 {
    let mut batch = Batch::new(net, 4);
    batch.forward(net, input);
    let outputs = net.heads().flat_map(|head| batch.output(net, head));
    outputs.map(|y| 0.5 * f64::from(*y) * f64::from(*y)).sum()
}

fn pass(net: &Net, batch: &mut Batch, input: &[f32]) {
    batch.forward(net, input);
    for head in net.heads().collect::<Vec<_>>() {
        let (outputs, gradient) = batch.output_and_gradient(net, head);
        gradient.copy_from_slice(outputs);
    }
}

fn assert_close(numeric: f64, exact: f32, what: &str) {
    let exact = f64::from(exact);
    assert!(
        (numeric - exact).abs() < 1e-2 * exact.abs().max(0.05),
        "{what}: {numeric} {exact}"
    );
}

#[test]
fn gradients_agree_with_finite_differences() {
    for activation in [Activation::Tanh, Activation::Relu, Activation::Identity] {
        let net = net(activation);
        let mut batch = Batch::new(&net, 6);
        pass(&net, &mut batch, &input());
        batch.backward(&net, &input());
        let h = 4e-3f32;
        for at in 0..net.params().len() {
            let (mut up, mut down) = (net.clone(), net.clone());
            up.params_mut()[at] += h;
            down.params_mut()[at] -= h;
            let numeric = (loss(&up, &input()) - loss(&down, &input())) / f64::from(2.0 * h);
            assert_close(
                numeric,
                batch.gradient()[at],
                &format!("{activation:?} {at}"),
            );
        }
    }
}

#[test]
fn the_gradient_by_the_input_agrees_with_finite_differences() {
    let net = net(Activation::Tanh);
    let mut batch = Batch::new(&net, 4);
    pass(&net, &mut batch, &input());
    let exact = batch.backward_to_input(&net).to_vec();
    let h = 4e-3f32;
    for at in 0..12 {
        let (mut up, mut down) = (input(), input());
        up[at] += h;
        down[at] -= h;
        let numeric = (loss(&net, &up) - loss(&net, &down)) / f64::from(2.0 * h);
        assert_close(numeric, exact[at], &format!("input {at}"));
    }
    pass(&net, &mut batch, &input());
    batch.backward(&net, &input());
    assert_eq!(batch.input_gradient(&net), exact);
}

#[test]
fn a_single_input_and_a_batch_give_the_same_outputs() {
    let net = net(Activation::Relu);
    let mut batch = Batch::new(&net, 4);
    batch.forward(&net, &input());
    let mut scratch = Scratch::default();
    for (row, one) in input().chunks_exact(3).enumerate() {
        net.forward_one(one, &mut scratch);
        for head in net.heads() {
            let width = net.outputs(head);
            let many = &batch.output(&net, head)[row * width..][..width];
            let pairs = net.output_of(head, &scratch).iter().zip(many);
            assert!(pairs.into_iter().all(|(a, b)| (a - b).abs() < 1e-5));
        }
    }
}

#[test]
fn plain_loops_and_matrix_products_give_the_same_outputs() {
    let net = net(Activation::Tanh);
    let (mut products, mut loops) = (Batch::new(&net, 4), Batch::new(&net, 9));
    for rows in [4, 1] {
        products.forward(&net, &input()[..3 * rows]);
        loops.infer(&net, &input()[..3 * rows]);
        for head in net.heads() {
            let (a, b) = (products.output(&net, head), loops.output(&net, head));
            assert_eq!(a.len(), b.len());
            assert!(a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-6));
        }
    }
}

#[test]
fn fewer_rows_than_the_buffers_hold_give_the_same_gradient() {
    let net = net(Activation::Relu);
    let (mut exact, mut larger) = (Batch::new(&net, 2), Batch::new(&net, 9));
    let two = &input()[..6];
    pass(&net, &mut larger, &input());
    larger.backward(&net, &input());
    for batch in [&mut exact, &mut larger] {
        pass(&net, batch, two);
        batch.backward(&net, two);
    }
    assert_eq!(exact.gradient(), larger.gradient());
}

#[test]
fn adam_takes_the_steps_that_its_definition_gives() {
    let mut adam = Adam::new(1, 1e-8).with_weight_decay(0.1);
    let mut params = [1.0f32];
    let (mut m, mut v, mut p) = (0.0f64, 0.0f64, 1.0f64);
    for t in 1..=5 {
        let gradient = 0.3 * t as f64;
        let g = gradient + 0.1 * p;
        m = 0.9 * m + 0.1 * g;
        v = 0.999 * v + 0.001 * g * g;
        p -= 0.01 * (m / (1.0 - 0.9f64.powi(t))) / ((v / (1.0 - 0.999f64.powi(t))).sqrt() + 1e-8);
        adam.step(&mut params, &[gradient as f32], 0.01);
        assert!(
            (f64::from(params[0]) - p).abs() < 1e-5,
            "{t}: {params:?} {p}"
        );
    }
}

#[test]
fn a_parameter_that_gets_no_gradient_any_more_comes_to_rest() {
    let mut adam = Adam::new(2, 1e-8);
    let mut params = [1.0f32; 2];
    adam.step(&mut params, &[1.0, 1e-20], 0.01);
    for _ in 0..1_000 {
        adam.step(&mut params, &[0.0; 2], 0.01);
    }
    let rested = params;
    assert!(rested[0] < 1.0 && rested[1] == 1.0, "{rested:?}");
    let state = serde_json::to_value(&adam).unwrap();
    let moments = ["mean", "square"].map(|name| state[name].as_array().unwrap().clone());
    let subnormal = |m: &serde_json::Value| (m.as_f64().unwrap() as f32).is_subnormal();
    assert!(!moments.iter().flatten().any(subnormal), "{state}");
    assert_eq!(state["mean"], serde_json::json!([0.0, 0.0]));
    adam.step(&mut params, &[0.0; 2], 0.01);
    assert_eq!(params, rested);
}

#[test]
fn a_gradient_is_clipped_to_its_norm() {
    let mut gradient = vec![3.0; 100];
    assert!((clip(&mut gradient, 3.0) - 30.0).abs() < 1e-4);
    assert!((gradient[0] - 0.3).abs() < 1e-6);
    assert!((clip(&mut gradient, 3.1) - 3.0).abs() < 1e-4);
    assert!((gradient[0] - 0.3).abs() < 1e-6);
}

#[test]
fn orthogonal_rows_or_columns_are_orthonormal() {
    for (inputs, outputs) in [(4, 7), (7, 4)] {
        let rng = &mut Generator::seed_from_u64(1);
        let mut weights = vec![0.0; 28];
        Init::Orthogonal(2.0).fill(&mut weights, inputs, outputs, rng);
        let w = |i: usize, j: usize| {
            let (row, column) = if inputs < outputs { (i, j) } else { (j, i) };
            weights[row * outputs + column]
        };
        for (a, b) in (0..4).flat_map(|a| (0..4).map(move |b| (a, b))) {
            let product: f32 = (0..7).map(|j| w(a, j) * w(b, j)).sum();
            let expected = if a == b { 4.0 } else { 0.0 };
            assert!((product - expected).abs() < 1e-4, "{a} {b}: {product}");
        }
    }
}

#[test]
fn the_hyperbolic_tangent_is_as_precise_as_single_precision_allows() {
    for step in -120_000..=120_000 {
        let x = step as f32 * 1e-4;
        let exact = f64::from(x).tanh();
        let error = (f64::from(super::tanh(x)) - exact).abs();
        assert!(error < 2e-7, "{x}: {error}");
    }
    assert_eq!(super::tanh(0.0), 0.0);
    assert!(super::tanh(f32::INFINITY) <= 1.0 && super::tanh(f32::NEG_INFINITY) >= -1.0);
    assert!(super::tanh(f32::NAN).is_nan());
}
