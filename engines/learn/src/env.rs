//! Environments with discrete actions, behind one interface. The end of an episode says whether
//! the world ended it (`terminated`) or the clock did (`truncated`): a learner must not treat the
//! second as the first.

mod cartpole;
mod gridworld;

pub use cartpole::CartPole;
pub use gridworld::GridWorld;

use rand::rngs::StdRng;

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TimeStep {
    pub reward: f32,
    pub terminated: bool,
    pub truncated: bool,
}

impl TimeStep {
    pub fn is_last(&self) -> bool {
        self.terminated || self.truncated
    }
}

pub trait Environment: Send {
    fn observation_names(&self) -> &'static [&'static str];
    fn action_names(&self) -> &'static [&'static str];
    /// Starts an episode and writes its first observation.
    fn reset(&mut self, rng: &mut StdRng, observation: &mut [f32]);
    /// Acts, and writes the next observation.
    fn step(&mut self, action: usize, rng: &mut StdRng, observation: &mut [f32]) -> TimeStep;
}

/// The environments that exist, by name.
pub const ENVIRONMENTS: &[&str] = &["cartpole", "gridworld"];

pub fn make_environment(name: &str) -> Option<Box<dyn Environment>> {
    match name {
        "cartpole" => Some(Box::new(CartPole::default())),
        "gridworld" => Some(Box::new(GridWorld::default())),
        _ => None,
    }
}
