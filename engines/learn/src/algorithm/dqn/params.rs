//! The hyperparameters of DQN.

use crate::hyper::{
    Complete, ParamViolation, Parameter, Search, Spec, Values, flag, float, int, linear, log,
    log_int,
};

/// The parameters, their bounds, defaults and search ranges.
pub(crate) const SPEC: Spec = Spec {
    parameters: PARAMETERS,
};

const PARAMETERS: &[Parameter] = &[
    float("learning_rate", 1e-6, 1e-1, 1e-3, log(1e-5, 1e-2)),
    float("gamma", 0.9, 0.9999, 0.95, linear(0.95, 0.999)),
    float("epsilon_start", 0.5, 1.0, 1.0, linear(0.9, 1.0)),
    float("epsilon_end", 0.001, 0.2, 0.01, log(0.01, 0.1)),
    float("epsilon_decay", 0.9, 0.99999, 0.995, linear(0.9, 0.9999)),
    int("epsilon_steps", 0, 100_000_000, 0, Search::Choices(&[0.0])).unsearched(),
    int(
        "buffer_size",
        1_000,
        10_000_000,
        10_000,
        log_int(5_000, 100_000),
    )
    .fixed(),
    int(
        "batch_size",
        8,
        1024,
        64,
        Search::Choices(&[16.0, 32.0, 64.0, 128.0]),
    ),
    int(
        "learning_starts",
        0,
        1_000_000,
        0,
        Search::Choices(&[0.0, 1_000.0]),
    )
    .unsearched(),
    int("train_frequency", 1, 10_000, 1, log_int(1, 16)).unsearched(),
    int("gradient_steps", 1, 1_000, 1, log_int(1, 8)).unsearched(),
    int("target_update", 1, 10_000, 10, log_int(1, 50)),
    int("target_steps", 0, 1_000_000, 0, Search::Choices(&[0.0])).unsearched(),
    float("tau", 1e-4, 1.0, 0.005, log(0.005, 1.0)),
    float("max_gradient_norm", 1e-3, 1e6, 10.0, log(0.5, 20.0)).unsearched(),
    int(
        "hidden_dim",
        16,
        1024,
        64,
        Search::Choices(&[32.0, 64.0, 128.0]),
    )
    .fixed(),
    flag("double_dqn", true),
    // Off, as the agents of worlds other than the mesh learn without: see the differences in `algorithm`.
    flag("dueling", false).fixed().unsearched(),
    flag("prioritized_replay", false).fixed().unsearched(),
    float("priority_alpha", 0.0, 1.0, 0.6, linear(0.4, 0.8)).unsearched(),
    float("priority_beta", 0.0, 1.0, 0.4, linear(0.3, 0.6)).unsearched(),
    float("priority_beta_step", 0.0, 1.0, 0.001, log(1e-6, 1e-2)).unsearched(),
];

/// The typed form, within the bounds.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Params {
    /// The untyped form.
    pub complete: Complete,
    pub learning_rate: f32,
    pub gamma: f32,
    pub epsilon_start: f64,
    pub epsilon_end: f64,
    /// The factor of epsilon after each episode.
    pub epsilon_decay: f64,
    /// The steps over which epsilon falls linearly instead; 0 for decay with the episodes.
    pub epsilon_steps: u64,
    pub buffer_size: usize,
    pub batch_size: usize,
    /// The transitions before the first gradient step; at least a minibatch.
    pub learning_starts: usize,
    /// Steps between two rounds of gradient steps.
    pub train_frequency: u64,
    /// Gradient steps of a round.
    pub gradient_steps: u64,
    /// Episodes between two updates of the target network.
    pub target_update: u64,
    /// The steps between them instead; 0 to count episodes.
    pub target_steps: u64,
    /// The share by which the target network moves towards the online one, 1 being a copy.
    pub tau: f32,
    pub max_gradient_norm: f32,
    /// The units of each of the two hidden layers.
    pub hidden_dim: usize,
    pub double_dqn: bool,
    pub dueling: bool,
    pub prioritized_replay: bool,
    /// The power of the error that a transition is drawn by.
    pub priority_alpha: f64,
    /// The exponent of the weights at the start.
    pub priority_beta: f64,
    /// What is added to it with each minibatch, up to 1.
    pub priority_beta_step: f64,
}

impl Params {
    pub(super) fn from_values(values: &Values) -> Result<Self, Vec<ParamViolation>> {
        Ok(Self::new(SPEC.typed(values)?))
    }

    /// The parameters after a reload.
    pub(super) fn reload(&self, values: &Values) -> Result<Self, Vec<ParamViolation>> {
        Ok(Self::new(SPEC.reload(&self.complete, values)?))
    }

    fn new(all: Complete) -> Self {
        Self {
            learning_rate: all.float("learning_rate"),
            gamma: all.float("gamma"),
            epsilon_start: all.number("epsilon_start"),
            epsilon_end: all.number("epsilon_end"),
            epsilon_decay: all.number("epsilon_decay"),
            epsilon_steps: all.count("epsilon_steps") as u64,
            buffer_size: all.count("buffer_size"),
            batch_size: all.count("batch_size"),
            learning_starts: all.count("learning_starts").min(all.count("buffer_size")),
            train_frequency: all.count("train_frequency") as u64,
            gradient_steps: all.count("gradient_steps") as u64,
            target_update: all.count("target_update") as u64,
            target_steps: all.count("target_steps") as u64,
            tau: all.float("tau"),
            max_gradient_norm: all.float("max_gradient_norm"),
            hidden_dim: all.count("hidden_dim"),
            double_dqn: all.flag("double_dqn"),
            dueling: all.flag("dueling"),
            prioritized_replay: all.flag("prioritized_replay"),
            priority_alpha: all.number("priority_alpha"),
            priority_beta: all.number("priority_beta"),
            priority_beta_step: all.number("priority_beta_step"),
            complete: all,
        }
    }
}
