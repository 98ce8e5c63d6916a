//! The networks of an on-policy learner: an actor, whose outputs determine the distribution of the actions,
//! and a critic, which estimates the value of a state.
//!
//! They share no layers, since the critic's gradient disturbs the actor's features (Andrychowicz et al.,
//! "What Matters In On-Policy Reinforcement Learning?", 2021). Hidden layers are two, with tanh and orthogonal
//! weights; the actor's last layer is a hundred times smaller, so that the first policy is nearly uniform.

use super::head::{Head, gaussian::Gaussian};
use crate::{
    learner::WrongPolicy,
    net::{Activation, Init, LayerId, Net},
    policy::{Bounds, Policy, Readout},
};
use rand::Rng;
use tars_worlds::{Action, AgentSpace};

/// An actor and a critic.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ActorCritic {
    /// Both networks, without a common layer.
    pub net: Net,
    /// The layer whose outputs the head reads.
    pub actor: LayerId,
    /// The layer with the value.
    pub critic: LayerId,
    pub head: Head,
    /// Those of continuous actions.
    bounds: Option<Bounds>,
}

impl ActorCritic {
    pub(crate) fn new(space: &AgentSpace, hidden: usize, rng: &mut impl Rng) -> Self {
        let mut net = Net::new(space.observation.len());
        let outputs = space.action.len();
        let actor = branch(&mut net, hidden, outputs, 0.01, rng);
        let critic = branch(&mut net, hidden, 1, 1.0, rng);
        let bounds = Bounds::of(&space.action);
        let log_std = vec![0.0; outputs];
        let head = match bounds {
            None => Head::Categorical,
            Some(_) => Head::Gaussian(Gaussian { log_std }),
        };
        Self {
            net,
            actor,
            critic,
            head,
            bounds,
        }
    }

    /// The number of actions, or of their components.
    pub(crate) fn outputs(&self) -> usize {
        self.net.outputs(self.actor)
    }

    /// The numbers of an action.
    pub(crate) fn action_width(&self) -> usize {
        self.head.action_width(self.outputs())
    }

    /// The actions that a mask can rule out.
    pub(crate) fn mask_width(&self) -> usize {
        match self.head {
            Head::Categorical => self.outputs(),
            Head::Gaussian(_) => 0,
        }
    }

    /// Writes an action in the form that the environment takes.
    pub(crate) fn write(&self, drawn: &[f32], action: &mut Action) {
        match (&self.bounds, action) {
            (None, action) => *action = Action::Discrete(drawn[0] as usize),
            (Some(bounds), Action::Continuous(components)) => {
                for (at, component) in components.iter_mut().enumerate() {
                    *component = bounds.scale(at, drawn[at]);
                }
            }
            (Some(_), Action::Discrete(_)) => unreachable!("the action is of the agent's space"),
        }
    }

    /// The inverse of [`write`](Self::write). Where the environment was given what was drawn, that stays as
    /// it is: cutting it to the bounds cannot be undone.
    pub(crate) fn read(&self, action: &Action, drawn: &mut [f32]) {
        match (&self.bounds, action) {
            (_, Action::Discrete(at)) => drawn[0] = *at as f32,
            (Some(bounds), Action::Continuous(components)) => {
                for (at, component) in components.iter().enumerate() {
                    if *component != bounds.scale(at, drawn[at]) {
                        drawn[at] = bounds.unscale(at, *component);
                    }
                }
            }
            (None, Action::Continuous(_)) => unreachable!("the action is of the agent's space"),
        }
    }

    /// Whether these are numbers of an action.
    pub(crate) fn is_action(&self, drawn: &[f32]) -> bool {
        let outputs = self.outputs() as f32;
        drawn.iter().all(|number| match self.head {
            Head::Categorical => *number >= 0.0 && *number < outputs,
            Head::Gaussian(_) => number.is_finite(),
        })
    }

    pub(crate) fn policy(&self, algorithm: &str) -> Policy {
        let readout = match &self.bounds {
            None => Readout::Logits,
            Some(bounds) => Readout::Gaussian {
                bounds: bounds.clone(),
                log_std: self.head.params().to_vec(),
            },
        };
        Policy::new(algorithm, self.net.clone(), readout)
    }

    /// Takes over a policy of the same form.
    pub(crate) fn start_from(&mut self, policy: &Policy) -> Result<(), WrongPolicy> {
        let log_std = match (policy.readout(), &self.bounds) {
            (Readout::Logits, None) => &[][..],
            (Readout::Gaussian { bounds, log_std }, Some(own)) if bounds == own => log_std,
            _ => return Err(WrongPolicy),
        };
        if !policy.net().has_shape_of(&self.net) || log_std.len() != self.head.params().len() {
            return Err(WrongPolicy);
        }
        self.net.clone_from(policy.net());
        self.head.params_mut().copy_from_slice(log_std);
        Ok(())
    }
}

/// Adds two hidden layers and an output.
fn branch(net: &mut Net, hidden: usize, outputs: usize, gain: f32, rng: &mut impl Rng) -> LayerId {
    let init = Init::Orthogonal(std::f32::consts::SQRT_2);
    let features = net.hidden(None, &[hidden; 2], Activation::Tanh, init, rng);
    net.add(
        features,
        outputs,
        Activation::Identity,
        Init::Orthogonal(gain),
        rng,
    )
}
