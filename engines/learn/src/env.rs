//! Environments with discrete actions, behind one interface.
//!
//! A [`TimeStep`] tells an episode that the environment ended (`terminated`) from one that its time
//! limit ended (`truncated`). A learner bootstraps from the next state after the second and not
//! after the first (Pardo et al., "Time Limits in Reinforcement Learning", 2018).

mod cartpole;
mod gridworld;

pub use cartpole::CartPole;
pub use gridworld::GridWorld;

use rand::rngs::StdRng;

/// The outcome of one action. The next observation is written to the buffer that
/// [`Environment::step`] is given.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TimeStep {
    /// The reward of the action, not discounted.
    pub reward: f32,
    /// The environment reached a final state, whose value is zero.
    pub terminated: bool,
    /// The time limit cut the episode off; the state would have a value. Never set together with
    /// `terminated`.
    pub truncated: bool,
}

impl TimeStep {
    /// Whether the episode is over, for either reason.
    pub fn is_last(&self) -> bool {
        self.terminated || self.truncated
    }
}

/// A Markov decision process with a vector of observations and a finite number of actions.
///
/// Implementations draw all randomness from the generator they are given, so that a seed determines
/// an episode.
pub trait Environment: Send {
    /// The names of the observation's components. Their number is the length of every observation.
    fn observation_names(&self) -> &'static [&'static str];

    /// The names of the actions, which are numbered by their position.
    fn action_names(&self) -> &'static [&'static str];

    /// Starts an episode and writes its first observation.
    fn reset(&mut self, rng: &mut StdRng, observation: &mut [f32]);

    /// Takes an action and writes the next observation. After the last time step of an episode the
    /// caller must [`reset`](Self::reset) the environment before it steps again.
    fn step(&mut self, action: usize, rng: &mut StdRng, observation: &mut [f32]) -> TimeStep;
}

/// Creates an environment in its initial state.
type Make = fn() -> Box<dyn Environment>;

/// The environments by name.
const ENVIRONMENTS: &[(&str, Make)] = &[
    ("cartpole", || Box::new(CartPole::default())),
    ("gridworld", || Box::new(GridWorld::default())),
];

/// Creates an environment by its name, such as `cartpole`; `None` for an unknown name.
pub fn make_environment(name: &str) -> Option<Box<dyn Environment>> {
    let mut known = ENVIRONMENTS.iter();
    known.find(|(n, _)| *n == name).map(|(_, make)| make())
}
