//! Forward and backward passes of several inputs at once.

use super::{Dense, LayerId, Net, rows};
use ndarray::{ArrayView2, ArrayViewMut2, linalg::general_mat_mul};

/// The buffers of a batch: the activations of each layer, the gradients by them, and the gradient by the
/// parameters. They are allocated for a network and a largest number of rows.
#[derive(Debug, Clone)]
pub struct Batch {
    capacity: usize,
    activations: Vec<Vec<f32>>,
    deltas: Vec<Vec<f32>>,
    gradient: Vec<f32>,
    input_gradient: Vec<f32>,
    rows: usize,
}

fn matrix(values: &[f32], rows: usize, columns: usize) -> ArrayView2<'_, f32> {
    ArrayView2::from_shape((rows, columns), &values[..rows * columns]).expect("as many numbers")
}

fn matrix_mut(values: &mut [f32], rows: usize, columns: usize) -> ArrayViewMut2<'_, f32> {
    ArrayViewMut2::from_shape((rows, columns), &mut values[..rows * columns])
        .expect("as many numbers")
}

impl Batch {
    /// Buffers for at most `rows` inputs to a network of this shape.
    pub fn new(net: &Net, rows: usize) -> Self {
        let space = || net.layers().iter().map(|l| vec![0.0; rows * l.outputs]);
        Self {
            capacity: rows,
            activations: space().collect(),
            deltas: space().collect(),
            gradient: vec![0.0; net.params().len()],
            input_gradient: vec![0.0; rows * net.inputs()],
            rows: 0,
        }
    }

    /// The most rows.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Computes all layers for a batch of inputs, row-major. The number of rows follows from its length.
    pub fn forward(&mut self, net: &Net, input: &[f32]) {
        self.rows = input.len() / net.inputs().max(1);
        for (at, layer) in net.layers().iter().enumerate() {
            let (before, from) = self.activations.split_at_mut(at);
            let source = layer.parent.map_or(input, |p| &before[p]);
            let output = &mut from[0][..self.rows * layer.outputs];
            let (weights, bias) = layer.split(net.params());
            for row in output.chunks_exact_mut(layer.outputs) {
                row.copy_from_slice(bias);
            }
            general_mat_mul(
                1.0,
                &matrix(source, self.rows, layer.inputs),
                &matrix(weights, layer.inputs, layer.outputs),
                1.0,
                &mut matrix_mut(output, self.rows, layer.outputs),
            );
            layer.activation.apply(output);
        }
    }

    /// As [`forward`](Self::forward), by plain loops instead of matrix products, which allocate. It is the
    /// faster one for up to a dozen rows, as acting has.
    pub fn infer(&mut self, net: &Net, input: &[f32]) {
        self.rows = input.len() / net.inputs().max(1);
        for (at, layer) in net.layers().iter().enumerate() {
            let (before, from) = self.activations.split_at_mut(at);
            let source = layer.parent.map_or(input, |p| &before[p]);
            let output = &mut from[0][..self.rows * layer.outputs];
            rows::affine(layer.split(net.params()), source, output);
            layer.activation.apply(output);
        }
    }

    /// What a layer put out in the last [`forward`](Self::forward) or [`infer`](Self::infer), row-major.
    pub fn output(&self, net: &Net, layer: LayerId) -> &[f32] {
        &self.activations[layer.0][..self.rows * net.outputs(layer)]
    }

    /// The gradient of the loss by a head's outputs, to be written for every head before a backward pass.
    pub fn output_gradient(&mut self, net: &Net, head: LayerId) -> &mut [f32] {
        &mut self.deltas[head.0][..self.rows * net.outputs(head)]
    }

    /// A head's outputs and the gradient by them, as of [`output`](Self::output) and
    /// [`output_gradient`](Self::output_gradient).
    pub fn output_and_gradient(&mut self, net: &Net, head: LayerId) -> (&[f32], &mut [f32]) {
        let length = self.rows * net.outputs(head);
        (
            &self.activations[head.0][..length],
            &mut self.deltas[head.0][..length],
        )
    }

    /// Back-propagates through the last forward pass, whose input this must be, to the parameters.
    pub fn backward(&mut self, net: &Net, input: &[f32]) {
        for (at, layer) in net.layers().iter().enumerate().rev() {
            self.differentiate(layer, at);
            self.add_parameters(layer, at, input);
            self.propagate(net, layer, at);
        }
    }

    /// Back-propagates through the last forward pass to its input, and not to the parameters. Returns the
    /// gradient by the input, row-major.
    pub fn backward_to_input(&mut self, net: &Net) -> &[f32] {
        self.input_gradient.fill(0.0);
        for (at, layer) in net.layers().iter().enumerate().rev() {
            self.differentiate(layer, at);
            self.propagate(net, layer, at);
            if layer.parent.is_none() {
                self.propagate_to_input(net, layer, at);
            }
        }
        &self.input_gradient[..self.rows * net.inputs()]
    }

    /// As [`backward_to_input`](Self::backward_to_input), after a [`backward`](Self::backward): the gradient
    /// by its input.
    pub fn input_gradient(&mut self, net: &Net) -> &[f32] {
        self.input_gradient.fill(0.0);
        for (at, layer) in net.layers().iter().enumerate() {
            if layer.parent.is_none() {
                self.propagate_to_input(net, layer, at);
            }
        }
        &self.input_gradient[..self.rows * net.inputs()]
    }

    /// The gradient by the parameters, of the last backward pass.
    pub fn gradient(&mut self) -> &mut [f32] {
        &mut self.gradient
    }

    fn differentiate(&mut self, layer: &Dense, at: usize) {
        let length = self.rows * layer.outputs;
        let outputs = &self.activations[at][..length];
        layer
            .activation
            .differentiate(outputs, &mut self.deltas[at][..length]);
    }

    fn add_parameters(&mut self, layer: &Dense, at: usize, input: &[f32]) {
        let source = layer.parent.map_or(input, |p| &self.activations[p]);
        let delta = matrix(&self.deltas[at], self.rows, layer.outputs);
        let (weights, bias) = layer.split_mut(&mut self.gradient);
        general_mat_mul(
            1.0,
            &matrix(source, self.rows, layer.inputs).t(),
            &delta,
            0.0,
            &mut matrix_mut(weights, layer.inputs, layer.outputs),
        );
        bias.fill(0.0);
        for row in self.deltas[at][..self.rows * layer.outputs].chunks_exact(layer.outputs) {
            bias.iter_mut().zip(row).for_each(|(b, d)| *b += d);
        }
    }

    /// Passes a gradient on to the parent: its last child overwrites, the others add.
    fn propagate(&mut self, net: &Net, layer: &Dense, at: usize) {
        let Some(parent) = layer.parent else {
            return;
        };
        let is_first = net.layers()[at + 1..]
            .iter()
            .all(|l| l.parent != Some(parent));
        let (before, from) = self.deltas.split_at_mut(at);
        let (weights, _) = layer.split(net.params());
        general_mat_mul(
            1.0,
            &matrix(&from[0], self.rows, layer.outputs),
            &matrix(weights, layer.inputs, layer.outputs).t(),
            if is_first { 0.0 } else { 1.0 },
            &mut matrix_mut(&mut before[parent], self.rows, layer.inputs),
        );
    }

    fn propagate_to_input(&mut self, net: &Net, layer: &Dense, at: usize) {
        let (weights, _) = layer.split(net.params());
        general_mat_mul(
            1.0,
            &matrix(&self.deltas[at], self.rows, layer.outputs),
            &matrix(weights, layer.inputs, layer.outputs).t(),
            1.0,
            &mut matrix_mut(&mut self.input_gradient, self.rows, layer.inputs),
        );
    }
}
