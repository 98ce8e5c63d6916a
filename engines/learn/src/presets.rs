//! Hyperparameters with which an algorithm is known to learn a built-in world. They replace defaults that are
//! meant for the mesh, and are replaced by what a caller gives.

use crate::hyper::{Value, Values};

type Preset = (&'static str, &'static str, &'static [(&'static str, f64)]);

const PRESETS: &[Preset] = &[
    (
        "dqn",
        "cartpole",
        &[
            ("learning_rate", 2.3e-3),
            ("gamma", 0.99),
            ("epsilon_steps", 10_000.0),
            ("epsilon_end", 0.04),
            ("buffer_size", 100_000.0),
            ("learning_starts", 1_000.0),
            ("train_frequency", 256.0),
            ("gradient_steps", 128.0),
            ("target_steps", 256.0),
            ("tau", 1.0),
        ],
    ),
    (
        "dqn",
        "acrobot",
        &[
            ("learning_rate", 6.3e-4),
            ("gamma", 0.99),
            ("epsilon_steps", 12_000.0),
            ("epsilon_end", 0.05),
            ("buffer_size", 50_000.0),
            ("batch_size", 128.0),
            ("learning_starts", 1_000.0),
            ("train_frequency", 4.0),
            ("gradient_steps", 2.0),
            ("target_steps", 500.0),
            ("tau", 1.0),
        ],
    ),
    (
        "ddpg",
        "pendulum",
        &[
            ("actor_learning_rate", 1e-3),
            ("critic_learning_rate", 1e-3),
            ("gamma", 0.98),
            ("buffer_size", 50_000.0),
            ("warmup_steps", 1_000.0),
            ("critic_weight_decay", 0.0),
            ("max_gradient_norm", 1e3),
            ("noise_kind", 2.0),
            ("noise_sigma", 0.1),
        ],
    ),
    (
        "a2c",
        "cartpole",
        &[("entropy_coef", 0.0), ("hidden_dim", 64.0)],
    ),
    (
        "ppo",
        "cartpole",
        &[
            ("learning_rate", 1e-3),
            ("gamma", 0.98),
            ("gae_lambda", 0.8),
            ("entropy_coef", 0.0),
            ("n_steps", 32.0),
            ("batch_size", 256.0),
            ("n_epochs", 20.0),
            ("target_kl", 1.0),
        ],
    ),
    (
        "ppo",
        "acrobot",
        &[
            ("gae_lambda", 0.94),
            ("entropy_coef", 0.0),
            ("n_steps", 256.0),
            ("n_epochs", 4.0),
            ("target_kl", 1.0),
        ],
    ),
    (
        "ppo",
        "pendulum",
        &[
            ("learning_rate", 1e-3),
            ("gamma", 0.9),
            ("entropy_coef", 0.0),
            ("n_steps", 512.0),
            ("target_kl", 1.0),
        ],
    ),
];

/// What is known for an algorithm and a world; nothing where the defaults do.
pub fn preset(algorithm: &str, world: &str) -> Values {
    let mut known = PRESETS.iter();
    let found = known.find(|(a, w, _)| (*a, *w) == (algorithm, world));
    let pairs = found.map_or(&[][..], |(_, _, pairs)| pairs);
    let owned = |(name, n): &(&str, f64)| ((*name).to_owned(), Value::Number(*n));
    pairs.iter().map(owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::algorithm::find;
    use tars_worlds::make_world;

    #[test]
    fn presets_are_within_the_bounds_and_of_algorithms_that_fit_the_world() {
        for (algorithm, world, _) in PRESETS {
            let found = find(algorithm).unwrap();
            found.spec.check(&preset(algorithm, world)).unwrap();
            let world = make_world(world).unwrap();
            assert!(found.fits(&world.spec().agents[0]).is_ok());
        }
        assert!(preset("dqn", "nowhere").is_empty());
    }
}
