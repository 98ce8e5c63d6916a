//! Proximal policy optimisation (Schulman et al., "Proximal Policy Optimization Algorithms", 2017) with
//! generalised advantage estimation, several passes over each rollout in minibatches, and an early stop when
//! the policy has moved too far.

use super::{Actions, Algorithm};
use crate::{
    hyper::{Complete, Parameter, Search, Spec, flag, float, int, linear, log, log_int},
    on_policy::{self, Horizon, Method, Objective, Plan},
};

pub(crate) const ALGORITHM: Algorithm = Algorithm {
    name: METHOD.name,
    paper: "Schulman et al., Proximal Policy Optimization Algorithms, 2017, arXiv:1707.06347",
    spec: METHOD.spec,
    copies: 8,
    losses: on_policy::LOSSES,
    exploration: on_policy::EXPLORATION,
    actions: Actions::Any,
    new: |space, values, copies, rng| on_policy::create(&METHOD, space, values, copies, rng),
    restore: |space, copies, checkpoint| on_policy::restore(&METHOD, space, copies, checkpoint),
    size: |space, values, extent| on_policy::size(&plan(values), space, extent),
};

static METHOD: Method = Method {
    name: "ppo",
    spec: Spec {
        parameters: PARAMETERS,
    },
    plan,
};

const PARAMETERS: &[Parameter] = &[
    float("learning_rate", 1e-6, 1e-1, 3e-4, log(1e-5, 1e-2)),
    float("gamma", 0.9, 0.9999, 0.99, linear(0.95, 0.999)),
    float("gae_lambda", 0.8, 0.999, 0.95, linear(0.8, 0.99)),
    float("clip_epsilon", 0.05, 0.5, 0.2, linear(0.1, 0.4)),
    float("value_loss_coef", 0.01, 10.0, 0.5, linear(0.1, 1.0)),
    float("entropy_coef", 0.0, 0.5, 0.01, linear(0.0, 0.1)),
    float("max_grad_norm", 0.01, 100.0, 0.5, log(0.1, 10.0)),
    int("n_epochs", 1, 100, 10, log_int(3, 30)),
    float("target_kl", 0.001, 1.0, 0.015, log(0.01, 0.05)),
    flag("clip_value_loss", false),
    flag("normalize_advantage", true),
    int("anneal_steps", 0, 1_000_000_000, 0, Search::Choices(&[0.0])),
    int(
        "batch_size",
        8,
        2048,
        64,
        Search::Choices(&[16.0, 32.0, 64.0, 128.0, 256.0, 512.0]),
    )
    .fixed(),
    int("n_steps", 1, 10_000, 128, log_int(5, 2048)).fixed(),
    int(
        "hidden_dim",
        16,
        512,
        64,
        Search::Choices(&[32.0, 64.0, 128.0, 256.0]),
    )
    .fixed(),
];

fn plan(values: &Complete) -> Plan {
    Plan {
        learning_rate: values.float("learning_rate"),
        horizon: Horizon {
            gamma: values.float("gamma"),
            lambda: values.float("gae_lambda"),
        },
        objective: Objective {
            value_weight: values.float("value_loss_coef"),
            entropy_weight: values.float("entropy_coef"),
            clip: Some(values.float("clip_epsilon")),
            clip_value: values.flag("clip_value_loss"),
            normalize_advantage: values.flag("normalize_advantage"),
        },
        max_grad_norm: values.float("max_grad_norm"),
        steps: values.count("n_steps"),
        epochs: values.count("n_epochs"),
        batch: Some(values.count("batch_size")),
        target_kl: Some(values.float("target_kl")),
        anneal_steps: values.count("anneal_steps") as u64,
        hidden: values.count("hidden_dim"),
    }
}
