//! Worlds: environments in which one agent, or several at the same time, act and are rewarded. There is no
//! I/O and no async code, and a seed determines every episode.
//!
//! A world has the semantics of PettingZoo's parallel API (Terry et al., "PettingZoo: Gym for Multi-Agent
//! Reinforcement Learning", 2021): all agents act at once, and each receives its own observation and
//! reward. Unlike there, no agent leaves an episode before the others. A world with one agent is an environment of
//! Gymnasium.

#![deny(missing_docs)]

pub mod controller;
pub mod egta;
pub mod mesh;
pub mod space;
pub mod world;

mod acrobot;
mod cartpole;
mod congestion;
mod copies;
mod cournot;
mod gridworld;
mod matrix_game;
mod pendulum;
mod taxi;
#[cfg(test)]
mod testing;

pub use acrobot::Acrobot;
pub use cartpole::CartPole;
pub use congestion::Congestion;
pub use controller::{Controller, Gauge, baseline, controller_names, find_action, make_controller};
pub use copies::{AgentBatch, Copies};
pub use cournot::Cournot;
pub use gridworld::GridWorld;
pub use matrix_game::{BadGame, MatrixGame};
pub use mesh::MeshEnv;
pub use pendulum::Pendulum;
pub use space::{Action, ActionSpace, AgentSpace, Component, WorldSpec};
pub use taxi::Taxi;
pub use world::{Generator, Observations, Soundness, TimeStep, World};

use std::sync::LazyLock;

/// Creates a world in its initial state.
type Make = fn() -> Box<dyn World>;

fn two_player(game: &matrix_game::TwoPlayer) -> Box<dyn World> {
    Box::new(MatrixGame::two_player(game))
}

/// The built-in worlds by name. A new one is its file and a line here.
const WORLDS: &[(&str, Make)] = &[
    ("mesh", || Box::new(MeshEnv::shipped())),
    ("cartpole", || Box::new(CartPole::default())),
    ("pendulum", || Box::new(Pendulum::default())),
    ("acrobot", || Box::new(Acrobot::default())),
    ("gridworld", || Box::new(GridWorld::default())),
    ("taxi", || Box::new(Taxi::default())),
    ("rock_paper_scissors", || {
        two_player(&matrix_game::ROCK_PAPER_SCISSORS)
    }),
    ("prisoners_dilemma", || {
        two_player(&matrix_game::PRISONERS_DILEMMA)
    }),
    ("stag_hunt", || two_player(&matrix_game::STAG_HUNT)),
    ("battle_of_the_sexes", || {
        two_player(&matrix_game::BATTLE_OF_THE_SEXES)
    }),
    ("chicken", || two_player(&matrix_game::CHICKEN)),
    ("cournot_2", || Box::new(Cournot::new(2))),
    ("cournot_3", || Box::new(Cournot::new(3))),
    ("congestion", || Box::new(Congestion::default())),
];

/// Creates a built-in world by its name, such as `cartpole`; `None` for an unknown name.
pub fn make_world(name: &str) -> Option<Box<dyn World>> {
    let mut known = WORLDS.iter();
    known.find(|(n, _)| *n == name).map(|(_, make)| make())
}

/// The name of the calibration that a built-in world is simulated with, which is named wherever a figure from that
/// world is shown; `None` for a world without one, and for an unknown name.
pub fn calibration_of(name: &str) -> Option<&'static str> {
    static NAMES: LazyLock<Vec<(&str, Option<space::Text>)>> = LazyLock::new(|| {
        let worlds = WORLDS.iter();
        worlds
            .map(|(name, make)| (*name, make().spec().calibration.clone()))
            .collect()
    });
    let found = NAMES.iter().find(|(known, _)| *known == name);
    found?.1.as_deref()
}

/// The names of the built-in worlds.
pub fn world_names() -> impl Iterator<Item = &'static str> {
    WORLDS.iter().map(|(name, _)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mesh_alone_is_simulated_with_a_calibration() {
        let shipped = mesh::Calibration::shipped().name;
        for name in world_names() {
            let expected = (name == "mesh").then_some(shipped.as_str());
            assert_eq!(calibration_of(name), expected, "{name}");
            let world = make_world(name).unwrap();
            assert_eq!(world.spec().calibration.as_deref(), expected, "{name}");
        }
        assert_eq!(calibration_of("nowhere"), None);
    }
}
