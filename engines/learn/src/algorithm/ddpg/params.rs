//! The hyperparameters of DDPG.

use super::noise::{Constants, Kind};
use crate::hyper::{
    Complete, ParamViolation, Parameter, Search, Spec, Values, flag, float, int, linear, log,
    log_int,
};
use crate::net::Activation;

/// The parameters, their bounds, defaults and search ranges. The default networks have 64 units, which learn
/// as well as the 256 of larger problems and cost a tenth.
pub(super) const SPEC: Spec = Spec {
    parameters: PARAMETERS,
};

const PARAMETERS: &[Parameter] = &[
    float("actor_learning_rate", 1e-7, 1e-1, 1e-4, log(1e-5, 1e-2)),
    float("critic_learning_rate", 1e-6, 1e-1, 1e-3, log(1e-5, 1e-2)),
    // Firms of a Cournot market learn with 0.
    float("gamma", 0.0, 0.9999, 0.99, linear(0.95, 0.999)),
    float("tau", 1e-4, 0.1, 0.005, log(0.001, 0.1)),
    int(
        "buffer_size",
        1_000,
        10_000_000,
        100_000,
        log_int(10_000, 100_000),
    )
    .fixed(),
    int(
        "batch_size",
        8,
        1024,
        64,
        Search::Choices(&[32.0, 64.0, 128.0]),
    ),
    int(
        "warmup_steps",
        0,
        1_000_000,
        0,
        Search::Choices(&[0.0, 1_000.0]),
    ),
    int("train_frequency", 1, 10_000, 1, log_int(1, 16)),
    int("gradient_steps", 1, 1_000, 1, log_int(1, 8)),
    float("critic_weight_decay", 0.0, 0.1, 1e-2, linear(0.0, 1e-2)),
    float("max_gradient_norm", 1e-3, 1e6, 1.0, log(0.5, 20.0)),
    int(
        "hidden_dim",
        16,
        1024,
        64,
        Search::Choices(&[32.0, 64.0, 128.0]),
    )
    .fixed(),
    flag("critic_tanh", false).fixed().unsearched(),
    float("actor_smoothing", 0.0, 2.0, 0.0, linear(0.0, 0.5)).unsearched(),
    // 0: Ornstein-Uhlenbeck, 1: the same with a falling sigma, 2: Gaussian.
    int("noise_kind", 0, 2, 0, Search::Choices(&[0.0, 1.0, 2.0])),
    float("noise_sigma", 0.01, 1.0, 0.2, linear(0.05, 0.5)),
    float("noise_sigma_end", 0.01, 1.0, 0.05, linear(0.01, 0.1)),
    float("noise_decay", 0.5, 1.0, 0.9995, linear(0.99, 1.0)),
    float("noise_theta", 0.01, 0.5, 0.15, linear(0.05, 0.5)),
    float("noise_dt", 1e-4, 1.0, 0.01, log(0.01, 1.0)),
];

/// The typed form, within the bounds.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Params {
    /// The untyped form.
    pub complete: Complete,
    pub actor_learning_rate: f32,
    pub critic_learning_rate: f32,
    pub gamma: f32,
    /// The share by which the target networks move towards the trained ones.
    pub tau: f32,
    pub buffer_size: usize,
    pub batch_size: usize,
    /// Steps at the start in which any action is taken with the same probability, and nothing is learned.
    pub warmup_steps: u64,
    /// Steps between two rounds of gradient steps.
    pub train_frequency: u64,
    /// Gradient steps of a round.
    pub gradient_steps: u64,
    pub critic_weight_decay: f32,
    pub max_gradient_norm: f32,
    pub hidden_dim: usize,
    /// Whether the critic's hidden units are hyperbolic tangents. A critic of ReLUs consists of planes: its best
    /// action is at one of their edges, which may be far apart.
    pub critic_tanh: bool,
    /// The standard deviation of the noise over which the actor averages the critic's slope, in units of half
    /// the range of an action (Nachum et al., "Smoothed Action Value Functions for Learning Gaussian Policies",
    /// 2018). With the sigma of independent noise it follows the slope of what the noisy actions earn.
    pub actor_smoothing: f32,
    pub noise: Constants,
}

impl Params {
    pub(super) fn from_values(values: &Values) -> Result<Self, Vec<ParamViolation>> {
        Ok(Self::new(SPEC.typed(values)?))
    }

    /// What the critic's hidden units apply.
    pub(super) fn critic_activation(&self) -> Activation {
        match self.critic_tanh {
            true => Activation::Tanh,
            false => Activation::Relu,
        }
    }

    /// The parameters after a reload.
    pub(super) fn reload(&self, values: &Values) -> Result<Self, Vec<ParamViolation>> {
        Ok(Self::new(SPEC.reload(&self.complete, values)?))
    }

    fn new(all: Complete) -> Self {
        let noise = Constants {
            kind: match all.count("noise_kind") {
                0 => Kind::Correlated,
                1 => Kind::Adaptive,
                _ => Kind::Independent,
            },
            sigma: all.float("noise_sigma"),
            sigma_end: all.float("noise_sigma_end"),
            decay: all.float("noise_decay"),
            theta: all.float("noise_theta"),
            dt: all.float("noise_dt"),
        };
        Self {
            actor_learning_rate: all.float("actor_learning_rate"),
            critic_learning_rate: all.float("critic_learning_rate"),
            gamma: all.float("gamma"),
            tau: all.float("tau"),
            buffer_size: all.count("buffer_size"),
            batch_size: all.count("batch_size"),
            warmup_steps: all.count("warmup_steps") as u64,
            train_frequency: all.count("train_frequency") as u64,
            gradient_steps: all.count("gradient_steps") as u64,
            critic_weight_decay: all.float("critic_weight_decay"),
            max_gradient_norm: all.float("max_gradient_norm"),
            hidden_dim: all.count("hidden_dim"),
            critic_tanh: all.flag("critic_tanh"),
            actor_smoothing: all.float("actor_smoothing"),
            noise,
            complete: all,
        }
    }
}
