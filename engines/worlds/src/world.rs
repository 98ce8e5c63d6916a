//! The interface of a world.
//!
//! A [`TimeStep`] tells an episode that the world ended (`terminated`) from one that its time limit ended
//! (`truncated`). A learner bootstraps from the final observation after the second and not after the first
//! (Pardo et al., "Time Limits in Reinforcement Learning", 2018).

use crate::space::{Action, WorldSpec};
use rand::rngs::Xoshiro256PlusPlus;
use serde::{Serialize, de::DeserializeOwned};
use std::ops::Range;

/// The generator of everything that is random here (Blackman and Vigna, "Scrambled Linear Pseudorandom
/// Number Generators", 2021). Its state can be saved, so that what was interrupted goes on with the
/// numbers that it would have drawn. It is not fit for secrets.
pub type Generator = Xoshiro256PlusPlus;

/// What one agent gets for an action. Its next observation is in the [`Observations`].
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct TimeStep {
    /// The reward of the action, not discounted.
    pub reward: f32,
    /// The agent reached a final state, whose value is zero.
    pub terminated: bool,
    /// The time limit cut the episode off; the state would have a value. Never set together with
    /// `terminated`.
    pub truncated: bool,
}

impl TimeStep {
    /// Whether the agent's episode is over, for either reason.
    pub fn is_last(&self) -> bool {
        self.terminated || self.truncated
    }
}

/// The observations of all agents of a world, in one allocation.
#[derive(Debug, Clone, PartialEq)]
pub struct Observations {
    values: Vec<f32>,
    ranges: Vec<Range<usize>>,
}

impl Observations {
    /// Zeros of the shape that a world describes.
    pub fn new(spec: &WorldSpec) -> Self {
        let mut end = 0;
        let range = |agent: &crate::AgentSpace| {
            let start = end;
            end += agent.observation.len();
            start..end
        };
        let ranges: Vec<Range<usize>> = spec.agents.iter().map(range).collect();
        Self {
            values: vec![0.0; end],
            ranges,
        }
    }

    /// The observation of an agent, by its position.
    ///
    /// # Panics
    ///
    /// When the world has no such agent.
    pub fn of(&self, agent: usize) -> &[f32] {
        &self.values[self.ranges[agent].clone()]
    }

    /// The observation of an agent, to be written.
    ///
    /// # Panics
    ///
    /// As [`of`](Self::of).
    pub fn of_mut(&mut self, agent: usize) -> &mut [f32] {
        &mut self.values[self.ranges[agent].clone()]
    }
}

/// Whether the process that runs a world responds. A world that is computed here is always sound.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Soundness {
    /// The last step was taken.
    #[default]
    Sound,
    /// The last step failed, so that the episode was truncated where it was; the next one can begin.
    Interrupted,
    /// Nothing more will come: rewards and observations mean nothing.
    Lost,
    /// Nothing more will come, because the world has taken longer than it may.
    Overdue,
}

/// A stochastic game: several agents act at the same time. With one agent it is a Markov decision process.
///
/// Implementations draw all randomness from the generator that they are given, so that a seed determines an
/// episode, and do not allocate in [`step`](Self::step).
pub trait World: Send {
    /// The agents and their spaces. It never changes.
    fn spec(&self) -> &WorldSpec;

    /// Starts an episode and writes the first observations.
    fn reset(&mut self, rng: &mut Generator, observations: &mut Observations);

    /// Announces the actions that the next [`step`](Self::step) will take. Copies that are stepped together
    /// announce theirs before the first is stepped, so that worlds that run elsewhere can take them in one
    /// exchange. A world that is computed here ignores it.
    fn announce(&mut self, actions: &[Action]) {
        let _ = actions;
    }

    /// Takes one action of each agent, which is in its space; writes the next observations and what each
    /// agent gets. After a step that is the last one for every agent the caller must
    /// [`reset`](Self::reset); the observations that such a step writes are the final ones.
    fn step(
        &mut self,
        actions: &[Action],
        rng: &mut Generator,
        observations: &mut Observations,
        steps: &mut [TimeStep],
    );

    /// Writes what every agent observes in the present state, as the last [`reset`](Self::reset) or
    /// [`step`](Self::step) did: what a caller needs after a [`restore`](Self::restore).
    fn observe(&self, observations: &mut Observations);

    /// Writes which discrete actions an agent may take now. Worlds without invalid actions leave it as it
    /// is: all of them.
    fn write_mask(&self, agent: usize, mask: &mut [bool]) {
        let _ = agent;
        mask.fill(true);
    }

    /// Whether the last step was taken where the world runs.
    fn soundness(&self) -> Soundness {
        Soundness::Sound
    }

    /// The state of the present episode as bytes, from which [`restore`](Self::restore) goes on as if
    /// nothing had happened; `None` when the world runs elsewhere and cannot be copied.
    fn snapshot(&self) -> Option<Vec<u8>>;

    /// Goes on from a snapshot of the same world.
    ///
    /// # Errors
    ///
    /// When the bytes are not such a snapshot. The world then has to be [`reset`](Self::reset).
    fn restore(&mut self, snapshot: &[u8]) -> Result<(), BadSnapshot>;
}

/// Bytes that are not a snapshot of the world.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a snapshot of this world")]
pub struct BadSnapshot;

/// The snapshot of a world whose state is plain data.
pub(crate) fn save<T: Serialize>(state: &T) -> Option<Vec<u8>> {
    postcard::to_allocvec(state).ok()
}

/// Reads a snapshot that [`save`] wrote, to its last byte.
pub(crate) fn load<T: DeserializeOwned>(snapshot: &[u8]) -> Result<T, BadSnapshot> {
    match postcard::take_from_bytes(snapshot) {
        Ok((state, [])) => Ok(state),
        Ok(_) | Err(_) => Err(BadSnapshot),
    }
}
