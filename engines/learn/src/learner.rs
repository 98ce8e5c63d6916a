//! The interface of a learning algorithm.
//!
//! A learner trains one agent on several copies of a world at once. Per step of the copies its caller
//! [`act`](Learner::act)s, steps the worlds, lets it [`observe`](Learner::observe) what came of it, and
//! calls [`update`](Learner::update). Rows of all slices belong to copies, in the same order every time.
//!
//! The generator is the caller's, who saves it beside the [`checkpoint`](Learner::checkpoint): together they
//! determine everything that follows.

use crate::{
    checksum::Checksum,
    hyper::{ParamViolation, Values},
    policy::Policy,
};
use serde::{Deserialize, Serialize};
use tars_worlds::{Action, Generator};

/// What came of one step of all copies, for one agent. Slices are row-major with a row, or an element, for
/// each copy.
#[derive(Debug, Clone, Copy)]
pub struct Step<'a> {
    /// What the agent acted on: copies × components.
    pub observations: &'a [f32],
    /// What it did: the actions that [`Learner::act`] wrote, or that replaced them.
    pub actions: &'a [Action],
    /// The rewards.
    pub rewards: &'a [f32],
    /// What to act on next: copies × components. After the end of an episode, the first observation of the
    /// next one.
    pub next_observations: &'a [f32],
    /// Which discrete actions may be taken next: copies × actions; empty when all may, and for continuous
    /// actions.
    pub next_masks: &'a [bool],
    /// What the episode ended with, in the rows of the copies whose episode has ended; other rows mean
    /// nothing.
    pub final_observations: &'a [f32],
    /// Which episodes reached a final state, whose value is zero.
    pub terminated: &'a [bool],
    /// Which episodes the time limit cut off; the value of the final observation counts.
    pub truncated: &'a [bool],
}

impl<'a> Step<'a> {
    /// How many copies there are.
    pub fn copies(&self) -> usize {
        self.rewards.len()
    }

    /// Whether a copy's episode is over, for either reason.
    pub fn is_last(&self, copy: usize) -> bool {
        self.terminated[copy] || self.truncated[copy]
    }

    /// What a copy's agent acted on.
    pub fn observation(&self, copy: usize) -> &'a [f32] {
        row(self.observations, copy, self.copies())
    }

    /// The observation that the action led to, across which a learner bootstraps: the final one of an
    /// episode that is over, else the next.
    pub fn successor(&self, copy: usize) -> &'a [f32] {
        let rows = if self.is_last(copy) {
            self.final_observations
        } else {
            self.next_observations
        };
        row(rows, copy, self.copies())
    }
}

fn row<T>(rows: &[T], at: usize, of: usize) -> &[T] {
    let width = rows.len() / of;
    &rows[at * width..][..width]
}

/// What gradient steps measured, as means over them; `None` where the algorithm has no such quantity.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Update {
    /// The gradient steps.
    pub gradient_steps: u32,
    /// The loss that was minimised; with several terms, their weighted sum.
    pub loss: Option<f32>,
    /// The loss of the policy, or of the actor.
    pub policy_loss: Option<f32>,
    /// The loss of the value function, or of the critic.
    pub value_loss: Option<f32>,
    /// The entropy of the policy, in nats.
    pub entropy: Option<f32>,
    /// An estimate of the divergence between the policies before and after, in nats.
    pub kl: Option<f32>,
    /// The share of samples whose probability ratio was clipped, in 0..=1.
    pub clip_fraction: Option<f32>,
    /// The share of the returns' variance that the value function explains; at most 1.
    pub explained_variance: Option<f32>,
    /// The estimated value of the actions in the minibatch.
    pub q: Option<f32>,
    /// The global norm of the gradient, before it was clipped.
    pub gradient_norm: Option<f32>,
}

impl Update {
    /// Takes in another update: quantities become the means over the gradient steps of both.
    pub fn merge(&mut self, other: &Self) {
        let (mine, theirs) = (self.gradient_steps as f32, other.gradient_steps as f32);
        let mean = |a: &mut Option<f32>, b: Option<f32>| {
            *a = match (*a, b) {
                (Some(a), Some(b)) => Some((a * mine + b * theirs) / (mine + theirs).max(1.0)),
                (a, b) => a.or(b),
            }
        };
        mean(&mut self.loss, other.loss);
        mean(&mut self.policy_loss, other.policy_loss);
        mean(&mut self.value_loss, other.value_loss);
        mean(&mut self.entropy, other.entropy);
        mean(&mut self.kl, other.kl);
        mean(&mut self.clip_fraction, other.clip_fraction);
        mean(&mut self.explained_variance, other.explained_variance);
        mean(&mut self.q, other.q);
        mean(&mut self.gradient_norm, other.gradient_norm);
        self.gradient_steps += other.gradient_steps;
    }

    /// Whether everything that was measured is finite; learning has diverged otherwise.
    pub fn is_finite(&self) -> bool {
        let measured = [
            self.loss,
            self.policy_loss,
            self.value_loss,
            self.entropy,
            self.kl,
            self.clip_fraction,
            self.explained_variance,
            self.q,
            self.gradient_norm,
        ];
        measured.into_iter().flatten().all(f32::is_finite)
    }
}

/// A loss, under the name that it has in the literature on its algorithm.
#[derive(Debug, Clone, Copy)]
pub struct Loss {
    /// The name, such as `td_loss`.
    pub name: &'static str,
    /// Its mean over gradient steps; `None` where none was taken.
    pub of: fn(&Update) -> Option<f32>,
}

/// Whether an update is to end before its last gradient step.
pub type Stopped<'a> = &'a dyn Fn() -> bool;

/// An algorithm that learns to act, for one agent.
pub trait Learner: Send {
    /// Chooses an action for each copy, exploring; overwrites `actions`, which have the form of the agent's
    /// space, and does not allocate. `masks` are as in [`Step::next_masks`].
    fn act(
        &mut self,
        observations: &[f32],
        masks: &[bool],
        rng: &mut Generator,
        actions: &mut [Action],
    );

    /// Takes in what came of the last actions.
    fn observe(&mut self, step: &Step<'_>, rng: &mut Generator);

    /// Does the gradient steps that are due; `None` when there are none. Before each it asks whether it is
    /// `stopped`: then the rest is left undone, and so the learner is of no more use.
    ///
    /// A gradient step allocates one buffer for each product of two matrices, in which the product packs its
    /// operands, and nothing else.
    fn update(&mut self, rng: &mut Generator, stopped: Stopped<'_>) -> Option<Update>;

    /// How much it explores at present: the probability of a random action, the noise's standard deviation,
    /// or the policy's entropy in nats.
    fn exploration(&self) -> f32;

    /// How many transitions its replay buffer holds; `None` of an algorithm that has none.
    fn buffered(&self) -> Option<usize> {
        None
    }

    /// Changes hyperparameters of the running learner; those that are missing keep their values.
    ///
    /// # Errors
    ///
    /// Every value that is unknown, out of bounds, or of a parameter that is fixed at the start and differs
    /// from what it is. Nothing has changed then.
    fn reload(&mut self, values: &Values) -> Result<(), Vec<ParamViolation>>;

    /// What has been learned so far.
    fn policy(&self) -> Policy;

    /// Continues from what was learned before.
    ///
    /// # Errors
    ///
    /// When the policy is of another algorithm, or its network of another shape. Nothing has changed then.
    fn start_from(&mut self, policy: &Policy) -> Result<(), WrongPolicy>;

    /// The whole state as bytes: hyperparameters, networks, optimisers, replay, counters and exploration.
    /// A learner that is restored from them continues as if nothing had happened.
    fn checkpoint(&self) -> Vec<u8>;
}

/// A policy that a learner cannot continue from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the policy is of another algorithm, or its network of another shape")]
pub struct WrongPolicy;

/// Bytes from which a learner cannot be restored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a checkpoint of this algorithm for this agent")]
pub struct BadCheckpoint;

/// Encodes the state of an algorithm's learner, with a checksum.
pub(crate) fn save<T: Serialize>(algorithm: &str, state: &T) -> Vec<u8> {
    let mut bytes = vec![0; SUM];
    bytes = postcard::to_extend(&(algorithm, state), bytes)
        .expect("the state of a learner is plain data");
    let sum = sum(&bytes[SUM..]);
    bytes[..SUM].copy_from_slice(&sum);
    bytes
}

/// Reads what [`save`] wrote, to its last byte. It allocates no more than in proportion to the bytes.
pub(crate) fn load<'a, T: Deserialize<'a>>(
    algorithm: &str,
    bytes: &'a [u8],
) -> Result<T, BadCheckpoint> {
    let (expected, rest) = bytes.split_first_chunk::<SUM>().ok_or(BadCheckpoint)?;
    if sum(rest) != *expected {
        return Err(BadCheckpoint);
    }
    match postcard::take_from_bytes::<(&str, T)>(rest) {
        Ok(((name, state), [])) if name == algorithm => Ok(state),
        Ok(_) | Err(_) => Err(BadCheckpoint),
    }
}

/// The length of the checksum that precedes a checkpoint.
const SUM: usize = 8;

fn sum(bytes: &[u8]) -> [u8; SUM] {
    let mut sum = Checksum::default();
    sum.add(bytes);
    sum.finish().to_le_bytes()
}
