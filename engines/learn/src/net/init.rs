//! Initial weights. Biases are zero.

use rand::{Rng, RngExt};

/// How the weights of a layer are drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Init {
    /// Uniform, with the variance that keeps ReLU's outputs alike (He et al., "Delving Deep into
    /// Rectifiers", 2015), times a gain.
    He(f32),
    /// Uniform, with the variance between those for the forward and the backward pass (Glorot and Bengio,
    /// "Understanding the difficulty of training deep feedforward neural networks", 2010), times a gain.
    Xavier(f32),
    /// Orthonormal rows or columns (Saxe, McClelland and Ganguli, "Exact solutions to the nonlinear dynamics
    /// of learning in deep linear neural networks", 2014), times a gain.
    Orthogonal(f32),
    /// Uniform within ± this.
    Uniform(f32),
}

impl Init {
    /// Fills a row for each input.
    pub(super) fn fill(
        self,
        weights: &mut [f32],
        inputs: usize,
        outputs: usize,
        rng: &mut impl Rng,
    ) {
        let bound = match self {
            Self::He(gain) => gain * (6.0 / inputs as f32).sqrt(),
            Self::Xavier(gain) => gain * (6.0 / (inputs + outputs) as f32).sqrt(),
            Self::Uniform(bound) => bound,
            Self::Orthogonal(gain) => return orthogonal(weights, inputs, outputs, gain, rng),
        };
        weights.fill_with(|| bound * (2.0 * rng.random::<f32>() - 1.0));
    }
}

/// A number of the standard normal distribution, by Box and Muller (1958).
pub fn standard_normal(rng: &mut impl Rng) -> f32 {
    let radius = (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt();
    (radius * (std::f64::consts::TAU * rng.random::<f64>()).cos()) as f32
}

/// Orthonormalises normally distributed vectors by the modified Gram-Schmidt process: the rows, or the
/// columns where they are fewer.
fn orthogonal(weights: &mut [f32], inputs: usize, outputs: usize, gain: f32, rng: &mut impl Rng) {
    let (count, width) = (inputs.min(outputs), inputs.max(outputs));
    let mut basis: Vec<Vec<f32>> = Vec::with_capacity(count);
    for _ in 0..count {
        let mut vector: Vec<f32> = (0..width).map(|_| standard_normal(rng)).collect();
        for other in &basis {
            let along = dot(other, &vector);
            vector
                .iter_mut()
                .zip(other)
                .for_each(|(v, o)| *v -= along * o);
        }
        let norm = dot(&vector, &vector).sqrt();
        vector.iter_mut().for_each(|v| *v /= norm);
        basis.push(vector);
    }
    for (at, weight) in weights.iter_mut().enumerate() {
        let (row, column) = (at / outputs, at % outputs);
        let (vector, component) = if inputs <= outputs {
            (row, column)
        } else {
            (column, row)
        };
        *weight = gain * basis[vector][component];
    }
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}
