//! Networks of dense layers that form a tree: a trunk and one or more heads. All parameters lie in one
//! vector, so that the optimiser, clipping and target updates are plain loops, and the layers are
//! matrices into it.
//!
//! Batches are matrix products into buffers that are reused ([`Batch`]). Single inputs, as serving needs
//! them, are plain loops, which are faster at this size ([`Net::forward_one`]).

mod adam;
mod batch;
mod init;
mod rows;

pub use adam::{Adam, clip, clip_all};
pub use batch::Batch;
pub use init::{Init, standard_normal};

use rand::Rng;
use serde::{Deserialize, Serialize};

/// What a layer applies to each of its outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Activation {
    /// Nothing.
    Identity,
    /// The positive part.
    Relu,
    /// The hyperbolic tangent.
    Tanh,
}

/// The position of a layer in its network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerId(pub(crate) usize);

/// A dense layer: where it reads from, and where its parameters are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dense {
    /// The layer whose outputs are its inputs; `None` for the network's inputs.
    pub parent: Option<usize>,
    /// How many numbers it takes.
    pub inputs: usize,
    /// How many numbers it puts out.
    pub outputs: usize,
    /// What it applies to them.
    pub activation: Activation,
    /// Where its weights begin, a row for each input; its bias follows them.
    at: usize,
    /// Where its outputs begin in a [`Scratch`].
    output_at: usize,
}

/// A network. Equal networks have the same layers and parameters.
#[derive(Debug, Clone, PartialEq)]
pub struct Net {
    inputs: usize,
    layers: Vec<Dense>,
    params: Vec<f32>,
}

/// The outputs of all layers for one input, allocated at the first use.
#[derive(Debug, Clone, Default)]
pub struct Scratch {
    values: Vec<f32>,
}

impl Activation {
    fn apply(self, values: &mut [f32]) {
        match self {
            Self::Identity => {}
            Self::Relu => values.iter_mut().for_each(|v| *v = v.max(0.0)),
            Self::Tanh => values.iter_mut().for_each(|v| *v = tanh(*v)),
        }
    }

    /// Multiplies gradients by the derivative, which the activated outputs determine.
    fn differentiate(self, outputs: &[f32], gradients: &mut [f32]) {
        let each = gradients.iter_mut().zip(outputs);
        match self {
            Self::Identity => {}
            Self::Relu => each.for_each(|(g, y)| *g = if *y > 0.0 { *g } else { 0.0 }),
            Self::Tanh => each.for_each(|(g, y)| *g *= 1.0 - y * y),
        }
    }
}

/// The hyperbolic tangent to within 2e-7, as arithmetic that the compiler vectorises; the standard library's
/// took longer than the matrix products. The first terms of Lambert's continued fraction (1761) give that of
/// half the argument, and its addition theorem, which shrinks their error, that of the whole.
fn tanh(x: f32) -> f32 {
    // Beyond this, single precision has no number between it and one.
    let half = x.clamp(-9.2, 9.2) * 0.5;
    let square = half * half;
    let numerator = half * (135_135.0 + square * (17_325.0 + square * (378.0 + square)));
    let denominator = 135_135.0 + square * (62_370.0 + square * (3_150.0 + square * 28.0));
    let of_half = numerator / denominator;
    2.0 * of_half / (1.0 + of_half * of_half)
}

impl Dense {
    /// How many parameters it has.
    fn len(&self) -> usize {
        (self.inputs + 1) * self.outputs
    }

    /// Its weights, a row for each input, and its bias, in the parameters or gradients of its network.
    pub fn split<'a>(&self, params: &'a [f32]) -> (&'a [f32], &'a [f32]) {
        params[self.at..][..self.len()].split_at(self.inputs * self.outputs)
    }

    fn split_mut<'a>(&self, params: &'a mut [f32]) -> (&'a mut [f32], &'a mut [f32]) {
        params[self.at..][..self.len()].split_at_mut(self.inputs * self.outputs)
    }

    /// The outputs for one input; zeros, which ReLU makes frequent, cost nothing.
    fn forward_one(&self, params: &[f32], input: &[f32], output: &mut [f32]) {
        let (weights, bias) = self.split(params);
        output.copy_from_slice(bias);
        for (x, row) in input.iter().zip(weights.chunks_exact(self.outputs)) {
            if *x != 0.0 {
                output.iter_mut().zip(row).for_each(|(y, w)| *y += x * w);
            }
        }
        self.activation.apply(output);
    }
}

impl Net {
    /// A network without layers, which are [`add`](Self::add)ed.
    pub fn new(inputs: usize) -> Self {
        Self {
            inputs,
            layers: Vec::new(),
            params: Vec::new(),
        }
    }

    /// Adds a layer after `parent`, or after the inputs. Layers that nothing follows are the heads.
    pub fn add(
        &mut self,
        parent: Option<LayerId>,
        outputs: usize,
        activation: Activation,
        init: Init,
        rng: &mut impl Rng,
    ) -> LayerId {
        let id = self.push(parent, outputs, activation);
        let layer = self.layers[id.0];
        let (weights, _) = layer.split_mut(&mut self.params);
        init.fill(weights, layer.inputs, layer.outputs, rng);
        id
    }

    /// Adds a layer of zeros.
    pub fn push(
        &mut self,
        parent: Option<LayerId>,
        outputs: usize,
        activation: Activation,
    ) -> LayerId {
        let inputs = parent.map_or(self.inputs, |p| self.layers[p.0].outputs);
        let output_at = self.layers.last().map_or(0, |l| l.output_at + l.outputs);
        let layer = Dense {
            parent: parent.map(|p| p.0),
            inputs,
            outputs,
            activation,
            at: self.params.len(),
            output_at,
        };
        self.params.resize(layer.at + layer.len(), 0.0);
        self.layers.push(layer);
        LayerId(self.layers.len() - 1)
    }

    /// Adds hidden layers of these widths one after the other; the last one is what heads follow.
    pub fn hidden(
        &mut self,
        mut parent: Option<LayerId>,
        widths: &[usize],
        activation: Activation,
        init: Init,
        rng: &mut impl Rng,
    ) -> Option<LayerId> {
        for width in widths {
            parent = Some(self.add(parent, *width, activation, init, rng));
        }
        parent
    }

    /// The length of an input.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// The layers, parents before children.
    pub fn layers(&self) -> &[Dense] {
        &self.layers
    }

    /// The layers that nothing follows, in order.
    pub fn heads(&self) -> impl Iterator<Item = LayerId> {
        let is_head = |at: &usize| self.layers.iter().all(|l| l.parent != Some(*at));
        (0..self.layers.len()).filter(is_head).map(LayerId)
    }

    /// How many outputs a layer has.
    pub fn outputs(&self, layer: LayerId) -> usize {
        self.layers[layer.0].outputs
    }

    /// All parameters.
    pub fn params(&self) -> &[f32] {
        &self.params
    }

    /// All parameters, to be written.
    pub fn params_mut(&mut self) -> &mut [f32] {
        &mut self.params
    }

    /// Whether the layers are the same; parameters may differ.
    pub fn has_shape_of(&self, other: &Self) -> bool {
        self.inputs == other.inputs && self.layers == other.layers
    }

    /// Takes over parameters of a network of the same shape; `None`, and nothing has changed, when there are
    /// not as many or one is not finite.
    pub fn set_params(&mut self, params: &[f32]) -> Option<()> {
        let fits = params.len() == self.params.len() && params.iter().all(|p| p.is_finite());
        fits.then(|| self.params.copy_from_slice(params))
    }

    /// Moves towards another network of the same shape: `self = (1 - rate) self + rate other`.
    pub fn blend(&mut self, other: &Self, rate: f32) {
        for (mine, theirs) in self.params.iter_mut().zip(&other.params) {
            *mine += rate * (theirs - *mine);
        }
    }

    /// Computes all layers for one input; `scratch` may come from a network of another size.
    pub fn forward_one(&self, input: &[f32], scratch: &mut Scratch) {
        let width = self.layers.last().map_or(0, |l| l.output_at + l.outputs);
        scratch.values.resize(width, 0.0);
        for layer in &self.layers {
            let (before, rest) = scratch.values.split_at_mut(layer.output_at);
            let input = layer.parent.map_or(input, |p| {
                let parent = &self.layers[p];
                &before[parent.output_at..][..parent.outputs]
            });
            layer.forward_one(&self.params, input, &mut rest[..layer.outputs]);
        }
    }

    /// What a layer put out in the last [`forward_one`](Self::forward_one).
    pub fn output_of<'a>(&self, layer: LayerId, scratch: &'a Scratch) -> &'a [f32] {
        let layer = &self.layers[layer.0];
        &scratch.values[layer.output_at..][..layer.outputs]
    }
}

#[cfg(test)]
mod tests;
