//! Hyperparameters with which an algorithm is known to learn a built-in world. They replace defaults that are
//! meant for the mesh, and are replaced by what a caller gives.

use crate::{
    algorithm::{ALGORITHMS, Algorithm},
    hyper::{Value, Values},
};
use tars_worlds::AgentSpace;

type Preset = (&'static str, &'static str, &'static [(&'static str, Value)]);

type GroupPreset = (
    &'static str,
    &'static [&'static str],
    &'static [(&'static str, Value)],
);

const ON: Value = Value::Flag(true);

const fn n(number: f64) -> Value {
    Value::Number(number)
}

/// The worlds whose players learn for themselves from what the others did last. Strong discounting keeps them
/// at the equilibria of one round, which need no trust in later ones.
const GAMES: &[&str] = &[
    "rock_paper_scissors",
    "prisoners_dilemma",
    "stag_hunt",
    "battle_of_the_sexes",
    "chicken",
    "congestion",
];

/// Markets, in which each firm's best quantity depends on those of the others.
const MARKETS: &[&str] = &["cournot_2", "cournot_3"];

/// What is known of an algorithm for several worlds.
const GROUP_PRESETS: &[GroupPreset] = &[
    (
        "dqn",
        GAMES,
        &[
            ("gamma", n(0.9)),
            ("epsilon_steps", n(10_000.0)),
            ("epsilon_end", n(0.05)),
            ("target_steps", n(200.0)),
            ("tau", n(1.0)),
        ],
    ),
    ("a2c", GAMES, &[("gamma", n(0.9)), ("gae_lambda", n(0.8))]),
    ("ppo", GAMES, &[("gamma", n(0.9)), ("gae_lambda", n(0.8))]),
    // A firm's profit is flat near its best quantity, and moves with the others' noise. The critic's slope there
    // has to be right: a critic without edges, averaged over the actions that were tried, and a replay buffer
    // that forgets what the others did before they learned.
    (
        "ddpg",
        MARKETS,
        &[
            ("actor_learning_rate", n(1e-3)),
            ("critic_learning_rate", n(3e-3)),
            ("gamma", n(0.0)),
            ("buffer_size", n(10_000.0)),
            ("warmup_steps", n(1_000.0)),
            ("critic_weight_decay", n(0.0)),
            ("max_gradient_norm", n(1e3)),
            ("critic_tanh", ON),
            ("actor_smoothing", n(0.2)),
            ("noise_kind", n(2.0)),
            ("noise_sigma", n(0.2)),
        ],
    ),
];

const PRESETS: &[Preset] = &[
    (
        "dqn",
        "mesh",
        &[
            ("learning_rate", n(5e-4)),
            ("epsilon_steps", n(50_000.0)),
            ("epsilon_end", n(0.02)),
            ("buffer_size", n(100_000.0)),
            ("learning_starts", n(1_000.0)),
            ("train_frequency", n(8.0)),
            ("gradient_steps", n(2.0)),
            ("target_steps", n(1_000.0)),
            ("tau", n(1.0)),
            ("dueling", ON),
            ("prioritized_replay", ON),
        ],
    ),
    (
        "a2c",
        "mesh",
        &[
            ("learning_rate", n(2e-3)),
            ("n_steps", n(16.0)),
            ("hidden_dim", n(64.0)),
        ],
    ),
    (
        "ppo",
        "mesh",
        &[
            ("learning_rate", n(1e-3)),
            ("gamma", n(0.9)),
            ("gae_lambda", n(0.9)),
            ("entropy_coef", n(0.0)),
            ("n_steps", n(256.0)),
            ("batch_size", n(256.0)),
            ("target_kl", n(0.1)),
        ],
    ),
    (
        "ddpg",
        "mesh",
        &[
            ("actor_learning_rate", n(3e-4)),
            ("gamma", n(0.95)),
            ("warmup_steps", n(2_000.0)),
            ("train_frequency", n(8.0)),
            ("gradient_steps", n(2.0)),
            ("critic_weight_decay", n(0.0)),
            ("max_gradient_norm", n(1e3)),
            ("noise_kind", n(2.0)),
            ("noise_sigma", n(0.15)),
        ],
    ),
    (
        "dqn",
        "gridworld",
        &[
            ("gamma", n(0.99)),
            ("epsilon_steps", n(5_000.0)),
            ("epsilon_end", n(0.02)),
            ("learning_starts", n(500.0)),
            ("target_steps", n(250.0)),
            ("tau", n(1.0)),
        ],
    ),
    (
        "dqn",
        "taxi",
        &[
            ("gamma", n(0.99)),
            ("epsilon_steps", n(60_000.0)),
            ("epsilon_end", n(0.02)),
            ("buffer_size", n(100_000.0)),
            ("learning_starts", n(2_000.0)),
            ("train_frequency", n(2.0)),
            ("target_steps", n(1_000.0)),
            ("tau", n(1.0)),
        ],
    ),
    (
        "dqn",
        "cartpole",
        &[
            ("learning_rate", n(2.3e-3)),
            ("gamma", n(0.99)),
            ("epsilon_steps", n(10_000.0)),
            ("epsilon_end", n(0.04)),
            ("buffer_size", n(100_000.0)),
            ("learning_starts", n(1_000.0)),
            ("train_frequency", n(256.0)),
            ("gradient_steps", n(128.0)),
            ("target_steps", n(256.0)),
            ("tau", n(1.0)),
        ],
    ),
    (
        "dqn",
        "acrobot",
        &[
            ("learning_rate", n(6.3e-4)),
            ("gamma", n(0.99)),
            ("epsilon_steps", n(12_000.0)),
            ("epsilon_end", n(0.05)),
            ("buffer_size", n(50_000.0)),
            ("batch_size", n(128.0)),
            ("learning_starts", n(1_000.0)),
            ("train_frequency", n(4.0)),
            ("gradient_steps", n(2.0)),
            ("target_steps", n(500.0)),
            ("tau", n(1.0)),
        ],
    ),
    (
        "ddpg",
        "pendulum",
        &[
            ("actor_learning_rate", n(1e-3)),
            ("critic_learning_rate", n(1e-3)),
            ("gamma", n(0.98)),
            ("buffer_size", n(50_000.0)),
            ("warmup_steps", n(1_000.0)),
            ("critic_weight_decay", n(0.0)),
            ("max_gradient_norm", n(1e3)),
            ("noise_kind", n(2.0)),
            ("noise_sigma", n(0.1)),
        ],
    ),
    (
        "a2c",
        "cartpole",
        &[("entropy_coef", n(0.0)), ("hidden_dim", n(64.0))],
    ),
    (
        "ppo",
        "cartpole",
        &[
            ("learning_rate", n(1e-3)),
            ("gamma", n(0.98)),
            ("gae_lambda", n(0.8)),
            ("entropy_coef", n(0.0)),
            ("n_steps", n(32.0)),
            ("batch_size", n(256.0)),
            ("n_epochs", n(20.0)),
            ("target_kl", n(1.0)),
        ],
    ),
    (
        "ppo",
        "acrobot",
        &[
            ("gae_lambda", n(0.94)),
            ("entropy_coef", n(0.0)),
            ("n_steps", n(256.0)),
            ("n_epochs", n(4.0)),
            ("target_kl", n(1.0)),
        ],
    ),
    (
        "ppo",
        "pendulum",
        &[
            ("learning_rate", n(1e-3)),
            ("gamma", n(0.9)),
            ("entropy_coef", n(0.0)),
            ("n_steps", n(512.0)),
            ("target_kl", n(1.0)),
        ],
    ),
];

/// The agents of the mesh by name, each with the algorithm that it learns by.
pub const MESH_AGENTS: &[(&str, &str)] = &[
    ("policy", "dqn"),
    ("consensus", "a2c"),
    ("ethical", "ppo"),
    ("resource", "ddpg"),
];

/// What an agent of a world learns by unless told otherwise: its own algorithm in the mesh, elsewhere the first that
/// is known to learn there, or else the first that can act for it. `None` where none can.
pub fn usual(world: &str, space: &AgentSpace) -> Option<&'static Algorithm> {
    let mut own = MESH_AGENTS.iter();
    let own = own.find(|(name, _)| world == "mesh" && *name == space.name);
    let fitting = || ALGORITHMS.iter().filter(|one| one.fits(space).is_ok());
    let is_own = |one: &&Algorithm| own.is_some_and(|(_, name)| *name == one.name);
    let is_known = |one: &&Algorithm| !preset(one.name, world).is_empty();
    let found = fitting().find(is_own);
    let found = found.or_else(|| fitting().find(is_known));
    found.or_else(|| fitting().next())
}

/// What is known for an algorithm and a world; nothing where the defaults do.
pub fn preset(algorithm: &str, world: &str) -> Values {
    let mut known = PRESETS.iter();
    let found = known.find(|(a, w, _)| (*a, *w) == (algorithm, world));
    let mut groups = GROUP_PRESETS.iter();
    let mut in_group = || groups.find(|(a, worlds, _)| *a == algorithm && worlds.contains(&world));
    let of_group = || in_group().map(|(.., pairs)| pairs);
    let pairs = found.map(|(.., pairs)| pairs).or_else(of_group);
    let pairs = pairs.map_or(&[][..], |pairs| pairs);
    let owned = |(name, value): &(&str, Value)| ((*name).to_owned(), *value);
    pairs.iter().map(owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::algorithm::find;
    use tars_worlds::make_world;

    #[test]
    fn presets_are_within_the_bounds_and_of_algorithms_that_fit_the_world() {
        let groups = GROUP_PRESETS
            .iter()
            .flat_map(|(algorithm, worlds, _)| worlds.iter().map(move |world| (algorithm, world)));
        for (algorithm, world) in PRESETS.iter().map(|(a, w, _)| (a, w)).chain(groups) {
            assert!(!preset(algorithm, world).is_empty());
            let found = find(algorithm).unwrap();
            found.spec.check(&preset(algorithm, world)).unwrap();
            let world = make_world(world).unwrap();
            let mut agents = world.spec().agents.iter();
            assert!(agents.any(|agent| found.fits(agent).is_ok()));
        }
        assert!(preset("dqn", "nowhere").is_empty());
    }
}
