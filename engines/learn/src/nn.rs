//! A multi-layer perceptron with ReLU between its layers, trained by Adam (Kingma and Ba, "Adam: A
//! Method for Stochastic Optimization", 2015).
//!
//! Batches are matrix products into buffers that are reused. Single inputs, as serving and acting
//! need them, are plain loops, which are faster at this size.

use ndarray::{Array1, Array2, ArrayView2, Axis, Zip, linalg::general_mat_mul};
use rand::{RngExt, rngs::StdRng};

/// An affine map, or the gradient of one.
#[derive(Debug, Clone, PartialEq)]
pub struct Layer {
    /// A row for each input, a column for each output.
    pub weights: Array2<f32>,
    /// One number for each output.
    pub bias: Array1<f32>,
}

/// The network: layers with ReLU between them, none after the last.
#[derive(Debug, Clone, PartialEq)]
pub struct Mlp {
    /// The layers in order; the outputs of each are the inputs of the next.
    pub layers: Vec<Layer>,
}

impl Mlp {
    /// A network of these widths, inputs first, with He's uniform initialisation (He et al.,
    /// "Delving Deep into Rectifiers", 2015). The last layer is scaled down by ten, so that the
    /// first estimates are near zero.
    pub fn new(sizes: &[usize], rng: &mut StdRng) -> Self {
        let last = sizes.len().saturating_sub(2);
        let layers = sizes.windows(2).enumerate().map(|(i, pair)| {
            let gain = if i == last { 0.1 } else { 1.0 };
            let scale = gain * (6.0 / pair[0] as f32).sqrt();
            Layer {
                weights: Array2::from_shape_fn((pair[0], pair[1]), |_| {
                    rng.random_range(-scale..scale)
                }),
                bias: Array1::zeros(pair[1]),
            }
        });
        Self {
            layers: layers.collect(),
        }
    }

    /// The length of an input; 0 for a network without layers.
    pub fn inputs(&self) -> usize {
        self.layers.first().map_or(0, |l| l.weights.nrows())
    }

    /// The length of an output; 0 for a network without layers.
    pub fn outputs(&self) -> usize {
        self.layers.last().map_or(0, |l| l.weights.ncols())
    }

    /// The outputs for one input. `scratch` may come from a network of another size.
    pub fn forward_one(&self, input: &[f32], scratch: &mut Scratch) -> Vec<f32> {
        scratch.current.clear();
        scratch.current.extend_from_slice(input);
        for (i, layer) in self.layers.iter().enumerate() {
            layer.apply(&scratch.current, &mut scratch.next);
            if i + 1 < self.layers.len() {
                scratch.next.iter_mut().for_each(|v| *v = v.max(0.0));
            }
            std::mem::swap(&mut scratch.current, &mut scratch.next);
        }
        scratch.current.clone()
    }

    /// Moves towards another network of the same shape: `self = (1 - rate) self + rate other`.
    pub fn blend(&mut self, other: &Self, rate: f32) {
        for (mine, theirs) in self.layers.iter_mut().zip(&other.layers) {
            Zip::from(&mut mine.weights)
                .and(&theirs.weights)
                .for_each(|m, t| *m += rate * (t - *m));
            Zip::from(&mut mine.bias)
                .and(&theirs.bias)
                .for_each(|m, t| *m += rate * (t - *m));
        }
    }
}

impl Layer {
    fn apply(&self, input: &[f32], output: &mut Vec<f32>) {
        output.clear();
        output.extend(self.bias.iter());
        for (x, row) in input.iter().zip(self.weights.rows()) {
            if *x != 0.0 {
                output
                    .iter_mut()
                    .zip(row)
                    .for_each(|(out, w)| *out += x * w);
            }
        }
    }
}

/// The buffers of [`Mlp::forward_one`], which grow to the network's width.
#[derive(Debug, Clone, Default)]
pub struct Scratch {
    current: Vec<f32>,
    next: Vec<f32>,
}

/// The buffers of a batch: the activations of each layer, and the gradients of one backward pass.
#[derive(Debug, Clone)]
pub struct Batch {
    activations: Vec<Array2<f32>>,
    deltas: Vec<Array2<f32>>,
    gradients: Vec<Layer>,
}

impl Batch {
    /// Buffers for `rows` inputs to a network of this shape.
    pub fn new(net: &Mlp, rows: usize) -> Self {
        let space = |columns| Array2::zeros((rows, columns));
        Self {
            activations: net
                .layers
                .iter()
                .map(|l| space(l.weights.ncols()))
                .collect(),
            deltas: net
                .layers
                .iter()
                .map(|l| space(l.weights.ncols()))
                .collect(),
            gradients: net
                .layers
                .iter()
                .map(|l| Layer {
                    weights: Array2::zeros(l.weights.dim()),
                    bias: Array1::zeros(l.bias.dim()),
                })
                .collect(),
        }
    }

    /// The outputs for a batch of inputs, one in each row.
    pub fn forward(&mut self, net: &Mlp, input: &ArrayView2<'_, f32>) -> ArrayView2<'_, f32> {
        let last = net.layers.len() - 1;
        for (i, layer) in net.layers.iter().enumerate() {
            let (before, from) = self.activations.split_at_mut(i);
            let source = before.last().map_or_else(|| input.view(), |a| a.view());
            let output = &mut from[0];
            for mut row in output.rows_mut() {
                row.assign(&layer.bias);
            }
            general_mat_mul(1.0, &source, &layer.weights, 1.0, output);
            if i < last {
                output.mapv_inplace(|v| v.max(0.0));
            }
        }
        self.activations[last].view()
    }

    /// Back-propagates through the last forward pass, whose input this must be: the gradients of
    /// all layers, given the gradient of the loss by the outputs.
    pub fn backward(
        &mut self,
        net: &Mlp,
        input: &ArrayView2<'_, f32>,
        output_gradient: &Array2<f32>,
    ) -> &[Layer] {
        let last = net.layers.len() - 1;
        self.deltas[last].assign(output_gradient);
        for i in (0..=last).rev() {
            if i < last {
                let (below, above) = self.deltas.split_at_mut(i + 1);
                general_mat_mul(
                    1.0,
                    &above[0],
                    &net.layers[i + 1].weights.t(),
                    0.0,
                    &mut below[i],
                );
                Zip::from(&mut below[i])
                    .and(&self.activations[i])
                    .for_each(|d, a| {
                        if *a <= 0.0 {
                            *d = 0.0;
                        }
                    });
            }
            let source = if i == 0 {
                input.view()
            } else {
                self.activations[i - 1].view()
            };
            let gradient = &mut self.gradients[i];
            general_mat_mul(
                1.0,
                &source.t(),
                &self.deltas[i],
                0.0,
                &mut gradient.weights,
            );
            gradient.bias.assign(&self.deltas[i].sum_axis(Axis(0)));
        }
        &self.gradients
    }

    /// Scales all gradients so that their global norm is at most `max_norm` (Pascanu, Mikolov and
    /// Bengio, 2013). Returns the norm before.
    pub fn clip(&mut self, max_norm: f32) -> f32 {
        let square = |l: &Layer| l.weights.iter().chain(&l.bias).map(|g| g * g).sum::<f32>();
        let norm = self.gradients.iter().map(square).sum::<f32>().sqrt();
        if norm > max_norm {
            let scale = max_norm / norm;
            for layer in &mut self.gradients {
                layer.weights.mapv_inplace(|g| g * scale);
                layer.bias.mapv_inplace(|g| g * scale);
            }
        }
        norm
    }
}

// The constants that the paper recommends.
const BETA1: f32 = 0.9;
const BETA2: f32 = 0.999;
const EPSILON: f32 = 1e-8;

/// The optimiser's state: the number of steps and the moments of each weight's gradient.
#[derive(Debug, Clone)]
pub struct Adam {
    steps: i32,
    mean: Vec<Layer>,
    square: Vec<Layer>,
}

impl Adam {
    /// The state before the first step, for a network of this shape.
    pub fn new(net: &Mlp) -> Self {
        let zero = |l: &Layer| Layer {
            weights: Array2::zeros(l.weights.dim()),
            bias: Array1::zeros(l.bias.dim()),
        };
        Self {
            steps: 0,
            mean: net.layers.iter().map(zero).collect(),
            square: net.layers.iter().map(zero).collect(),
        }
    }

    /// One step of size `rate` against the gradients in `batch`.
    pub fn step(&mut self, net: &mut Mlp, batch: &Batch, rate: f32) {
        self.steps = self.steps.saturating_add(1);
        let rate = rate * (1.0 - BETA2.powi(self.steps)).sqrt() / (1.0 - BETA1.powi(self.steps));
        let update = |w: &mut f32, g: &f32, m: &mut f32, s: &mut f32| {
            *m += (1.0 - BETA1) * (g - *m);
            *s += (1.0 - BETA2) * (g * g - *s);
            *w -= rate * *m / (s.sqrt() + EPSILON);
        };
        for (i, layer) in net.layers.iter_mut().enumerate() {
            let (g, m, s) = (&batch.gradients[i], &mut self.mean[i], &mut self.square[i]);
            Zip::from(&mut layer.weights)
                .and(&g.weights)
                .and(&mut m.weights)
                .and(&mut s.weights)
                .for_each(update);
            Zip::from(&mut layer.bias)
                .and(&g.bias)
                .and(&mut m.bias)
                .and(&mut s.bias)
                .for_each(update);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    fn net() -> Mlp {
        Mlp::new(&[3, 8, 8, 2], &mut StdRng::seed_from_u64(7))
    }

    fn input() -> Array2<f32> {
        Array2::from_shape_fn((4, 3), |(r, c)| ((r * 3 + c) as f32 * 0.37).sin())
    }

    /// Half the sum of squares of the outputs: its gradient by the outputs is the outputs.
    fn loss(net: &Mlp) -> f64 {
        let mut batch = Batch::new(net, 4);
        batch
            .forward(net, &input().view())
            .iter()
            .map(|v| 0.5 * f64::from(v * v))
            .sum()
    }

    #[test]
    fn gradients_agree_with_finite_differences() {
        let mut net = net();
        for layer in &mut net.layers {
            layer.weights.mapv_inplace(|w| w * 3.0);
        }
        let mut batch = Batch::new(&net, 4);
        let outputs = batch.forward(&net, &input().view()).to_owned();
        let gradients = batch.backward(&net, &input().view(), &outputs).to_vec();
        let h = 1e-2f32;
        for (i, gradient) in gradients.iter().enumerate() {
            for at in [(0, 0), (1, 1), (2, 1)] {
                let (mut up, mut down) = (net.clone(), net.clone());
                up.layers[i].weights[at] += h;
                down.layers[i].weights[at] -= h;
                let numeric = (loss(&up) - loss(&down)) / f64::from(2.0 * h);
                let exact = f64::from(gradient.weights[at]);
                assert!(
                    (numeric - exact).abs() < 2e-2 * exact.abs().max(0.1),
                    "layer {i} {at:?}: {numeric} {exact}"
                );
            }
            let (mut up, mut down) = (net.clone(), net.clone());
            up.layers[i].bias[1] += h;
            down.layers[i].bias[1] -= h;
            let numeric = (loss(&up) - loss(&down)) / f64::from(2.0 * h);
            let exact = f64::from(gradient.bias[1]);
            assert!(
                (numeric - exact).abs() < 2e-2 * exact.abs().max(0.1),
                "bias {i}: {numeric} {exact}"
            );
        }
    }

    #[test]
    fn a_single_input_and_a_batch_give_the_same_outputs() {
        let net = net();
        let many = Batch::new(&net, 4)
            .forward(&net, &input().view())
            .to_owned();
        let mut scratch = Scratch::default();
        for (row, out) in input().rows().into_iter().zip(many.rows()) {
            let one = net.forward_one(row.as_slice().unwrap(), &mut scratch);
            assert!(one.iter().zip(out).all(|(a, b)| (a - b).abs() < 1e-5));
        }
    }

    #[test]
    fn adam_reduces_the_loss_a_hundredfold() {
        let mut net = net();
        let before = loss(&net);
        let (mut adam, mut batch) = (Adam::new(&net), Batch::new(&net, 4));
        for _ in 0..200 {
            let outputs = batch.forward(&net, &input().view()).to_owned();
            batch.backward(&net, &input().view(), &outputs);
            batch.clip(10.0);
            adam.step(&mut net, &batch, 1e-2);
        }
        assert!(loss(&net) < before * 1e-2);
    }
}
