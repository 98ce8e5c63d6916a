//! The optimiser, Adam (Kingma and Ba, "Adam: A Method for Stochastic Optimization", 2015), and gradient
//! clipping.

use serde::{Deserialize, Serialize};

// The constants that the paper recommends.
const BETA1: f32 = 0.9;
const BETA2: f32 = 0.999;

/// Moments below this are 0: they move no parameter, and those of a unit that gets no gradient any more would
/// otherwise become denormal numbers, with which a processor calculates many times slower.
const NEGLIGIBLE: f32 = 1e-30;

/// The optimiser's state: the number of steps and the moments of each parameter's gradient.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Adam {
    steps: u32,
    epsilon: f32,
    weight_decay: f32,
    mean: Vec<f32>,
    square: Vec<f32>,
}

impl Adam {
    /// The state before the first step, for so many parameters; `epsilon` keeps the quotient finite.
    pub fn new(params: usize, epsilon: f32) -> Self {
        Self {
            steps: 0,
            epsilon,
            weight_decay: 0.0,
            mean: vec![0.0; params],
            square: vec![0.0; params],
        }
    }

    /// Adds an L2 penalty of this weight to the loss.
    pub fn with_weight_decay(self, weight_decay: f32) -> Self {
        Self {
            weight_decay,
            ..self
        }
    }

    /// Changes the weight of the L2 penalty.
    pub fn set_weight_decay(&mut self, weight_decay: f32) {
        self.weight_decay = weight_decay;
    }

    /// Whether the state is one for so many parameters, and can be continued from.
    pub fn fits(&self, params: usize) -> bool {
        let finite = |moments: &[f32]| moments.iter().all(|m| m.is_finite());
        self.mean.len() == params
            && self.square.len() == params
            && finite(&self.mean)
            && self.square.iter().all(|s| s.is_finite() && *s >= 0.0)
            && self.epsilon > 0.0
            && self.weight_decay >= 0.0
    }

    /// One step of size `rate` against the gradient.
    pub fn step(&mut self, params: &mut [f32], gradient: &[f32], rate: f32) {
        self.steps = self.steps.saturating_add(1);
        let steps = i32::try_from(self.steps).unwrap_or(i32::MAX);
        let rate = rate / (1.0 - BETA1.powi(steps));
        let correction = 1.0 / (1.0 - BETA2.powi(steps)).sqrt();
        let (epsilon, decay) = (self.epsilon, self.weight_decay);
        let moments = self.mean.iter_mut().zip(&mut self.square);
        for ((p, g), (m, s)) in params.iter_mut().zip(gradient).zip(moments) {
            let g = g + decay * *p;
            *m = significant(*m + (1.0 - BETA1) * (g - *m));
            *s = significant(*s + (1.0 - BETA2) * (g * g - *s));
            *p -= rate * *m / (s.sqrt() * correction + epsilon);
        }
    }
}

fn significant(moment: f32) -> f32 {
    if moment.abs() < NEGLIGIBLE {
        0.0
    } else {
        moment
    }
}

/// Scales a gradient so that its norm is at most `max_norm` (Pascanu, Mikolov and Bengio, "On the difficulty
/// of training recurrent neural networks", 2013). Returns the norm before.
pub fn clip(gradient: &mut [f32], max_norm: f32) -> f32 {
    clip_all([gradient], max_norm)
}

/// As [`clip`], for a gradient in several parts.
pub fn clip_all<const N: usize>(parts: [&mut [f32]; N], max_norm: f32) -> f32 {
    let norm = parts.iter().map(|part| squares(part)).sum::<f32>().sqrt();
    if norm > max_norm {
        let scale = max_norm / norm;
        for part in parts {
            part.iter_mut().for_each(|g| *g *= scale);
        }
    }
    norm
}

/// The sum of squares, in lanes so that it can be vectorised.
fn squares(values: &[f32]) -> f32 {
    let mut lanes = [0.0f32; 16];
    let chunks = values.chunks_exact(16);
    let rest: f32 = chunks.remainder().iter().map(|v| v * v).sum();
    for chunk in chunks {
        lanes.iter_mut().zip(chunk).for_each(|(l, v)| *l += v * v);
    }
    rest + lanes.iter().sum::<f32>()
}
