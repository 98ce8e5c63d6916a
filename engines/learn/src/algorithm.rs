//! The algorithms by name. A new one is its file and a line in [`ALGORITHMS`].
//!
//! Each has the hyperparameters, bounds and defaults that the mesh's agents were specified with, but for these:
//!
//! | | specified | here | because |
//! |---|---|---|---|
//! | names | `actor_lr`, `critic_lr`, `weight_decay`, `noise_type`, `priority_beta_start` | `actor_learning_rate`, `critic_learning_rate`, `critic_weight_decay`, `noise_kind`, `priority_beta` | a name says what it is of, and values are numbers or flags |
//! | `prioritized_replay` (DQN) | on | off; on in the preset of `mesh`, with `dueling` | the other worlds' gates are reached without, and a gradient step costs less; the peers that speed is measured against have none |
//! | `gamma` (DDPG) | 0.9 and more | 0 and more | the firms of a Cournot market learn one round |
//! | `target_kl` (PPO) | up to 0.1 | up to 1 | presets in which no pass ends early |
//! | `hidden_dim` (DDPG) | 256 | 64 | it learns as well for a tenth of the work |
//! | layers of A2C and PPO | shared by actor and critic; PPO with heads of 32 | two networks of two hidden layers | the critic's gradient disturbs the actor's features |
//! | hidden units of A2C and PPO | not said | tanh | as in the experiments that the choice of layers is from |

mod a2c;
mod ddpg;
pub(crate) mod dqn;
mod ppo;
mod priorities;
mod replay;

use crate::{
    hyper::{Complete, ParamViolation, Spec, Values},
    learner::{BadCheckpoint, Learner, Loss},
    policy::{Mismatch, Policy},
    size::{Extent, Size},
};
use rand::SeedableRng;
use tars_worlds::{ActionSpace, AgentSpace, Generator};

/// Creates a learner for an agent, with hyperparameters and a number of copies.
type New = fn(
    &AgentSpace,
    &Values,
    usize,
    &mut Generator,
) -> Result<Box<dyn Learner>, Vec<ParamViolation>>;

/// Restores a learner for an agent and a number of copies from a checkpoint.
type Restore = fn(&AgentSpace, usize, &[u8]) -> Result<Box<dyn Learner>, BadCheckpoint>;

/// What a learner for an agent may come to, with hyperparameters that are complete and within their bounds.
type Measure = fn(&AgentSpace, &Complete, Extent) -> Size;

/// A learning algorithm.
#[derive(Debug, Clone, Copy)]
pub struct Algorithm {
    /// The name, such as `dqn`.
    pub name: &'static str,
    /// Where it was published.
    pub paper: &'static str,
    /// Its hyperparameters.
    pub spec: Spec,
    /// How many copies of a world it is meant to learn from at once, unless told otherwise.
    pub copies: usize,
    /// The losses that it minimises.
    pub losses: &'static [Loss],
    /// What [`Learner::exploration`] is of it, such as `epsilon`.
    pub exploration: &'static str,
    /// Which actions it can take.
    pub(crate) actions: Actions,
    pub(crate) new: New,
    pub(crate) restore: Restore,
    pub(crate) size: Measure,
}

/// The form of actions that an algorithm can take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Actions {
    /// Discrete ones only.
    Discrete,
    /// Continuous ones only.
    Continuous,
    /// Both.
    Any,
}

/// Why there is no learner.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoLearner {
    /// The algorithm cannot act for the agent.
    #[error(transparent)]
    Mismatch(#[from] Mismatch),
    /// Some hyperparameters are unknown or out of bounds.
    #[error("hyperparameters out of bounds")]
    Hyperparameters(Vec<ParamViolation>),
    /// The checkpoint is damaged, or another algorithm's or agent's.
    #[error(transparent)]
    Checkpoint(#[from] BadCheckpoint),
}

/// All algorithms.
pub const ALGORITHMS: &[Algorithm] = &[
    a2c::ALGORITHM,
    ddpg::ALGORITHM,
    dqn::ALGORITHM,
    ppo::ALGORITHM,
];

/// The algorithm with this name.
pub fn find(name: &str) -> Option<&'static Algorithm> {
    ALGORITHMS.iter().find(|algorithm| algorithm.name == name)
}

impl Algorithm {
    /// Checks that it can learn for an agent.
    ///
    /// # Errors
    ///
    /// When the agent's actions are of a form that it cannot take, or there is nothing to observe or do.
    pub fn fits(&self, space: &AgentSpace) -> Result<(), Mismatch> {
        if space.observation.is_empty() {
            return Err(Mismatch::Observation { takes: 1, has: 0 });
        }
        match (self.actions, &space.action) {
            (_, action) if action.is_empty() => Err(Mismatch::Actions),
            (Actions::Discrete, ActionSpace::Continuous(_)) => Err(Mismatch::NeedsDiscrete),
            (Actions::Continuous, ActionSpace::Discrete(_)) => Err(Mismatch::NeedsContinuous),
            _ => Ok(()),
        }
    }

    /// A learner for an agent of so many copies of a world, at least one. Missing hyperparameters have their
    /// defaults.
    ///
    /// # Errors
    ///
    /// See [`NoLearner`].
    pub fn create(
        &self,
        space: &AgentSpace,
        values: &Values,
        copies: usize,
        rng: &mut Generator,
    ) -> Result<Box<dyn Learner>, NoLearner> {
        self.fits(space)?;
        (self.new)(space, values, copies.max(1), rng).map_err(NoLearner::Hyperparameters)
    }

    /// How many bytes the state of a learner may come to in a training of this extent. No learner is made.
    ///
    /// # Errors
    ///
    /// Every hyperparameter that is unknown or out of bounds.
    pub fn size(
        &self,
        space: &AgentSpace,
        values: &Values,
        extent: Extent,
    ) -> Result<Size, Vec<ParamViolation>> {
        let values = self.spec.typed(values)?;
        Ok((self.size)(space, &values, extent))
    }

    /// Whether a learner with these hyperparameters can [start](Learner::start_from) from a policy.
    pub fn continues(&self, space: &AgentSpace, values: &Values, policy: &Policy) -> bool {
        let mut rng = Generator::seed_from_u64(0);
        let learner = self.create(space, values, 1, &mut rng);
        learner.is_ok_and(|mut learner| learner.start_from(policy).is_ok())
    }

    /// The learner that a [`checkpoint`](Learner::checkpoint) was taken of, for the same agent and as many
    /// copies.
    ///
    /// # Errors
    ///
    /// See [`NoLearner`].
    pub fn restore(
        &self,
        space: &AgentSpace,
        copies: usize,
        checkpoint: &[u8],
    ) -> Result<Box<dyn Learner>, NoLearner> {
        self.fits(space)?;
        Ok((self.restore)(space, copies.max(1), checkpoint)?)
    }
}

#[cfg(test)]
mod tests;
