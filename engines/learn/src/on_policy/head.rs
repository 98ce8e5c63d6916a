//! How a stochastic policy draws actions from the outputs of its network, and the gradients of its losses.
//!
//! Discrete actions have a categorical distribution over logits, continuous ones a normal distribution for
//! each component, whose mean is an output and whose standard deviation does not depend on the state, as in
//! Schulman et al., "Trust Region Policy Optimization", 2015. A continuous action is in units in which the
//! bounds are ±1; it is cut to them where the environment is stepped, so that the density stays a normal one.

pub(crate) mod categorical;
pub(crate) mod gaussian;

use gaussian::Gaussian;
use rand::Rng;

/// The distribution of the actions.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Head {
    /// Outputs are logits. An action is its position, as one number.
    Categorical,
    /// Outputs are means. An action has a number for each.
    Gaussian(Gaussian),
}

/// The probability of an action and how random its distribution is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Evaluation {
    /// The logarithm of the probability, or of the density.
    pub log_probability: f32,
    /// The entropy in nats.
    pub entropy: f32,
}

/// How much the log-probability of an action and the entropy weigh in a loss.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Weights {
    pub log_probability: f32,
    pub entropy: f32,
}

impl Head {
    /// How many numbers an action has, when the network has this many outputs.
    pub(crate) fn action_width(&self, outputs: usize) -> usize {
        match self {
            Self::Categorical => 1,
            Self::Gaussian(_) => outputs,
        }
    }

    /// The parameters that are not the network's: the logarithms of standard deviations.
    pub(crate) fn params(&self) -> &[f32] {
        match self {
            Self::Categorical => &[],
            Self::Gaussian(gaussian) => &gaussian.log_std,
        }
    }

    /// As [`params`](Self::params), to be written.
    pub(crate) fn params_mut(&mut self) -> &mut [f32] {
        match self {
            Self::Categorical => &mut [],
            Self::Gaussian(gaussian) => &mut gaussian.log_std,
        }
    }

    /// Turns a row of outputs into what the other methods take: log-probabilities, or means. An empty mask
    /// allows every action.
    pub(crate) fn prepare(&self, row: &mut [f32], mask: &[bool]) {
        if matches!(self, Self::Categorical) {
            crate::distribution::log_softmax(row, mask);
        }
    }

    /// Draws an action from a prepared row.
    pub(crate) fn sample(&self, row: &[f32], rng: &mut impl Rng, action: &mut [f32]) {
        match self {
            Self::Categorical => action[0] = crate::distribution::sample(row, rng) as f32,
            Self::Gaussian(gaussian) => gaussian.sample(row, rng, action),
        }
    }

    /// Evaluates an action by a prepared row.
    pub(crate) fn evaluate(&self, row: &[f32], action: &[f32]) -> Evaluation {
        match self {
            Self::Categorical => categorical::evaluate(row, action[0] as usize),
            Self::Gaussian(gaussian) => gaussian.evaluate(row, action),
        }
    }

    /// Replaces a prepared row by the gradient, by the outputs, of the weighted sum of the action's
    /// log-probability and the entropy, and adds that by [`params`](Self::params) to `params`.
    pub(crate) fn differentiate(
        &self,
        row: &mut [f32],
        action: &[f32],
        entropy: f32,
        weights: Weights,
        params: &mut [f32],
    ) {
        match self {
            Self::Categorical => {
                categorical::differentiate(row, action[0] as usize, entropy, weights);
            }
            Self::Gaussian(gaussian) => gaussian.differentiate(row, action, weights, params),
        }
    }
}
