//! What a learner has learned, for serving: immutable, cheap to clone and to share between threads.
//!
//! A policy is a network and a rule that turns its outputs into an action. The rule is all that differs
//! between algorithms here, so that serving knows none of them.

mod codec;

pub use codec::BadPolicy;

use crate::{
    distribution,
    net::{Net, Scratch as NetScratch},
};
use rand::Rng;
use std::sync::Arc;
use tars_worlds::{Action, ActionSpace, AgentSpace};

/// A policy.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy(Arc<Parts>);

#[derive(Debug, PartialEq)]
struct Parts {
    algorithm: String,
    net: Net,
    readout: Readout,
}

/// How the outputs of the network's heads become an action. Other heads, such as a critic's, are kept for
/// learners that continue from the policy.
#[derive(Debug, Clone, PartialEq)]
pub enum Readout {
    /// The first head's outputs are the values of discrete actions.
    Values,
    /// The first head's outputs are the advantages of discrete actions, the second one's the value of the
    /// state.
    Dueling,
    /// The first head's outputs are the logits of discrete actions.
    Logits,
    /// The first head's outputs, within ±1, are scaled to these bounds.
    Bounded(Bounds),
    /// The first head's outputs are the means of normal distributions with these logarithms of their
    /// standard deviations; samples are cut to ±1 and scaled to the bounds.
    Gaussian {
        /// The bounds.
        bounds: Bounds,
        /// For each component.
        log_std: Vec<f32>,
    },
}

/// The lowest and the highest value of each component of a continuous action.
#[derive(Debug, Clone, PartialEq)]
pub struct Bounds {
    /// The lowest.
    pub low: Vec<f32>,
    /// The highest.
    pub high: Vec<f32>,
}

/// The buffers of inference, which grow to the network's size. One serves any number of policies, one after
/// the other.
#[derive(Debug, Clone, Default)]
pub struct Scratch {
    net: NetScratch,
    values: Vec<f32>,
}

impl Scratch {
    /// What the last action was chosen by: the values of discrete actions, the probabilities of a stochastic
    /// policy, or the components of a continuous action.
    pub fn values(&self) -> &[f32] {
        &self.values
    }
}

/// An action and what it was chosen by.
#[derive(Debug, Clone, PartialEq)]
pub struct Decision {
    /// The action, within the agent's space.
    pub action: Action,
    /// As of [`Scratch::values`].
    pub values: Vec<f32>,
}

/// Why a policy, or an algorithm, cannot be an agent's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    /// The number of observation components differs.
    #[error("it takes {takes} observation components, the agent has {has}")]
    Observation {
        /// What the policy takes.
        takes: usize,
        /// What the agent observes.
        has: usize,
    },
    /// The number of actions, or of their components, differs, or their bounds do.
    #[error("its actions are not those of the agent")]
    Actions,
    /// The action is continuous and the algorithm or policy discrete.
    #[error("its actions are discrete, the agent's are continuous")]
    NeedsDiscrete,
    /// The action is discrete and the algorithm or policy continuous.
    #[error("its actions are continuous, the agent's are discrete")]
    NeedsContinuous,
}

impl Bounds {
    /// The bounds of a continuous space; `None` for a discrete one.
    pub fn of(space: &ActionSpace) -> Option<Self> {
        match space {
            ActionSpace::Discrete(_) => None,
            ActionSpace::Continuous(components) => Some(Self {
                low: components.iter().map(|c| c.low).collect(),
                high: components.iter().map(|c| c.high).collect(),
            }),
        }
    }

    /// How many components there are.
    pub fn len(&self) -> usize {
        self.low.len()
    }

    /// Whether there are no components.
    pub fn is_empty(&self) -> bool {
        self.low.is_empty()
    }

    /// Scales a number within ±1, to which it is cut, to the bounds of a component.
    pub fn scale(&self, component: usize, unit: f32) -> f32 {
        let (low, high) = (self.low[component], self.high[component]);
        (low + (unit.clamp(-1.0, 1.0) + 1.0) * 0.5 * (high - low)).clamp(low, high)
    }

    /// The inverse of [`scale`](Self::scale).
    pub fn unscale(&self, component: usize, value: f32) -> f32 {
        let (low, high) = (self.low[component], self.high[component]);
        ((value - low) / (high - low) * 2.0 - 1.0).clamp(-1.0, 1.0)
    }
}

impl Readout {
    fn is_discrete(&self) -> bool {
        self.bounds().is_none()
    }

    fn bounds(&self) -> Option<&Bounds> {
        match self {
            Self::Values | Self::Dueling | Self::Logits => None,
            Self::Bounded(bounds) | Self::Gaussian { bounds, .. } => Some(bounds),
        }
    }

    /// Whether a network has the heads that it reads.
    fn fits(&self, net: &Net) -> bool {
        let mut heads = net.heads().map(|head| net.outputs(head));
        let (first, second) = (heads.next().unwrap_or(0), heads.next());
        first > 0
            && match self {
                Self::Values => second.is_none(),
                Self::Dueling => second == Some(1),
                Self::Logits => true,
                Self::Bounded(bounds) => bounds.len() == first,
                Self::Gaussian { bounds, log_std } => {
                    bounds.len() == first && log_std.len() == first
                }
            }
    }
}

impl Policy {
    /// A policy of an algorithm.
    ///
    /// # Panics
    ///
    /// When the network does not have the heads that the readout needs.
    pub(crate) fn new(algorithm: &str, net: Net, readout: Readout) -> Self {
        assert!(readout.fits(&net), "the network has the heads");
        Self(Arc::new(Parts {
            algorithm: algorithm.to_owned(),
            net,
            readout,
        }))
    }

    /// The name of the algorithm that learned it.
    pub fn algorithm(&self) -> &str {
        &self.0.algorithm
    }

    /// How many components its observations have.
    pub fn inputs(&self) -> usize {
        self.0.net.inputs()
    }

    /// How many actions, or components of an action, it chooses from.
    pub fn outputs(&self) -> usize {
        let net = &self.0.net;
        net.heads().next().map_or(0, |head| net.outputs(head))
    }

    pub(crate) fn net(&self) -> &Net {
        &self.0.net
    }

    pub(crate) fn readout(&self) -> &Readout {
        &self.0.readout
    }

    /// Checks that it can act for an agent.
    ///
    /// # Errors
    ///
    /// When the observation has other components, or the actions are others.
    pub fn fits(&self, space: &AgentSpace) -> Result<(), Mismatch> {
        let (takes, has) = (self.inputs(), space.observation.len());
        if takes != has {
            return Err(Mismatch::Observation { takes, has });
        }
        let bounds = Bounds::of(&space.action);
        match (self.0.readout.is_discrete(), &bounds) {
            (true, Some(_)) => Err(Mismatch::NeedsDiscrete),
            (false, None) => Err(Mismatch::NeedsContinuous),
            (true, None) if self.outputs() != space.action.len() => Err(Mismatch::Actions),
            (false, Some(_)) if bounds.as_ref() != self.0.readout.bounds() => {
                Err(Mismatch::Actions)
            }
            _ => Ok(()),
        }
    }

    /// The best known action. The observation has [`inputs`](Self::inputs) components; an empty mask allows
    /// every action.
    pub fn act(&self, observation: &[f32], mask: &[bool], scratch: &mut Scratch) -> Decision {
        let mut action = self.blank();
        self.act_into(observation, mask, scratch, &mut action);
        self.decision(action, scratch)
    }

    /// An action of a stochastic policy; the best known one of a deterministic policy.
    pub fn sample(
        &self,
        observation: &[f32],
        mask: &[bool],
        rng: &mut impl Rng,
        scratch: &mut Scratch,
    ) -> Decision {
        let mut action = self.blank();
        self.sample_into(observation, mask, rng, scratch, &mut action);
        self.decision(action, scratch)
    }

    /// As [`act`](Self::act), into an action of the right form and without allocating.
    pub fn act_into(
        &self,
        observation: &[f32],
        mask: &[bool],
        scratch: &mut Scratch,
        action: &mut Action,
    ) {
        self.evaluate(observation, mask, scratch);
        self.write(action, scratch, mask);
    }

    /// As [`sample`](Self::sample), into an action of the right form and without allocating.
    pub fn sample_into(
        &self,
        observation: &[f32],
        mask: &[bool],
        rng: &mut impl Rng,
        scratch: &mut Scratch,
        action: &mut Action,
    ) {
        self.evaluate(observation, mask, scratch);
        match (&self.0.readout, &mut *action) {
            (Readout::Logits, Action::Discrete(at)) => {
                scratch.values.iter_mut().for_each(|p| *p = p.ln());
                *at = distribution::sample(&scratch.values, rng);
                scratch.values.iter_mut().for_each(|p| *p = p.exp());
            }
            (Readout::Gaussian { bounds, log_std }, _) => {
                for (at, value) in scratch.values.iter_mut().enumerate() {
                    let noise = log_std[at].exp() * crate::net::standard_normal(rng);
                    *value = bounds.scale(at, bounds.unscale(at, *value) + noise);
                }
                self.write(action, scratch, mask);
            }
            _ => self.write(action, scratch, mask),
        }
    }

    /// An action of the right form.
    fn blank(&self) -> Action {
        if self.0.readout.is_discrete() {
            Action::Discrete(0)
        } else {
            Action::Continuous(vec![0.0; self.outputs()])
        }
    }

    fn decision(&self, action: Action, scratch: &Scratch) -> Decision {
        Decision {
            action,
            values: scratch.values.clone(),
        }
    }

    /// Computes what the action is chosen by.
    fn evaluate(&self, observation: &[f32], mask: &[bool], scratch: &mut Scratch) {
        let Parts { net, readout, .. } = &*self.0;
        net.forward_one(observation, &mut scratch.net);
        let mut heads = net.heads().map(|head| net.output_of(head, &scratch.net));
        let values = &mut scratch.values;
        values.clear();
        values.extend_from_slice(heads.next().unwrap_or_default());
        match readout {
            Readout::Values => {}
            Readout::Dueling => {
                let state = heads.next().map_or(0.0, |value| value[0]);
                let mean = values.iter().sum::<f32>() / values.len() as f32;
                values.iter_mut().for_each(|v| *v += state - mean);
            }
            Readout::Logits => {
                distribution::log_softmax(values, mask);
                values.iter_mut().for_each(|v| *v = v.exp());
            }
            Readout::Bounded(bounds) | Readout::Gaussian { bounds, .. } => {
                for (at, value) in values.iter_mut().enumerate() {
                    *value = bounds.scale(at, *value);
                }
            }
        }
    }

    /// The action of the highest value, or the values themselves.
    fn write(&self, action: &mut Action, scratch: &Scratch, mask: &[bool]) {
        match action {
            Action::Discrete(at) => *at = distribution::argmax(&scratch.values, mask),
            Action::Continuous(components) => components.clone_from(&scratch.values),
        }
    }
}

#[cfg(test)]
mod tests;
