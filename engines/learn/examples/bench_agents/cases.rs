//! What is measured: for each algorithm the same hyperparameters in the names of both sides.

use serde_json::json;
use tars_learn::hyper::{Value, Values};

/// An algorithm in an environment.
pub(crate) struct Case {
    pub(crate) algorithm: &'static str,
    /// The environment's name here and in Gymnasium.
    pub(crate) world: &'static str,
    environment: &'static str,
    pub(crate) copies: usize,
    numbers: &'static [(&'static str, f64)],
    /// The peer's arguments, as JSON.
    arguments: &'static str,
}

/// The units of each of the two hidden layers.
const HIDDEN: usize = 64;

/// Early stops are off, since the number of gradient steps would depend on them.
pub(crate) const CASES: &[Case] = &[
    Case {
        algorithm: "dqn",
        world: "cartpole",
        environment: "CartPole-v1",
        copies: 1,
        numbers: &[("learning_starts", 100.0), ("batch_size", 64.0)],
        arguments: r#"{"learning_rate": 1e-3, "gamma": 0.95, "buffer_size": 10000, "batch_size": 64,
            "learning_starts": 100, "train_freq": 1, "gradient_steps": 1, "max_grad_norm": 10,
            "tau": 0.005, "target_update_interval": 100}"#,
    },
    Case {
        algorithm: "a2c",
        world: "cartpole",
        environment: "CartPole-v1",
        copies: 8,
        numbers: &[],
        arguments: r#"{"learning_rate": 7e-4, "gamma": 0.99, "gae_lambda": 0.95, "n_steps": 5,
            "vf_coef": 0.5, "ent_coef": 0.01, "max_grad_norm": 0.5, "normalize_advantage": true,
            "use_rms_prop": false}"#,
    },
    Case {
        algorithm: "ppo",
        world: "cartpole",
        environment: "CartPole-v1",
        copies: 8,
        numbers: &[("n_steps", 128.0), ("target_kl", 1.0)],
        arguments: r#"{"learning_rate": 3e-4, "gamma": 0.99, "gae_lambda": 0.95, "n_steps": 128,
            "batch_size": 64, "n_epochs": 10, "clip_range": 0.2, "vf_coef": 0.5, "ent_coef": 0.01,
            "max_grad_norm": 0.5, "normalize_advantage": true}"#,
    },
    Case {
        algorithm: "ddpg",
        world: "pendulum",
        environment: "Pendulum-v1",
        copies: 1,
        numbers: &[("warmup_steps", 100.0), ("batch_size", 64.0)],
        arguments: r#"{"learning_rate": 1e-3, "gamma": 0.99, "buffer_size": 100000, "batch_size": 64,
            "learning_starts": 100, "train_freq": 1, "gradient_steps": 1, "tau": 0.005, "noise": 0.2}"#,
    },
];

impl Case {
    /// The hyperparameters here; those that are not given have their defaults.
    pub(crate) fn values(&self) -> Values {
        let hidden = [("hidden_dim", HIDDEN as f64)];
        let all = self.numbers.iter().chain(&hidden);
        all.map(|(name, n)| ((*name).to_owned(), Value::Number(*n)))
            .collect()
    }

    /// The request to the peer.
    pub(crate) fn for_peer(&self, steps: usize, seed: u64) -> serde_json::Value {
        let arguments: serde_json::Value =
            serde_json::from_str(self.arguments).expect("the arguments are JSON");
        json!({
            "algorithm": self.algorithm,
            "environment": self.environment,
            "steps": steps,
            "seed": seed,
            "copies": self.copies,
            "hidden": [HIDDEN, HIDDEN],
            "arguments": arguments,
        })
    }
}
