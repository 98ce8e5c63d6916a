//! Does the same whatever it observes: discrete agents hold, and Resource keeps the share of replicas that it
//! found, or half of them. Half is near what a network puts out that has learned nothing, and good for a rule
//! that observes nothing.

use super::{Controller, Gauge, choose, set};
use crate::{
    mesh::Calibration,
    space::{Action, ActionSpace, AgentSpace},
};

struct Hold;

struct Keep {
    share: Gauge,
}

struct Half;

/// Half of the range between the least and the most replicas.
pub(super) fn half(space: &AgentSpace, _: &Calibration) -> Option<Box<dyn Controller>> {
    match &space.action {
        ActionSpace::Discrete(_) => None,
        ActionSpace::Continuous(_) => Some(Box::new(Half)),
    }
}

pub(super) fn hold(space: &AgentSpace, _: &Calibration) -> Option<Box<dyn Controller>> {
    match &space.action {
        ActionSpace::Discrete(_) => Some(Box::new(Hold)),
        ActionSpace::Continuous(_) => {
            let share = Gauge::find(space, "share")?;
            Some(Box::new(Keep { share }))
        }
    }
}

impl Controller for Hold {
    fn act(&mut self, _: &[f32], action: &mut Action) {
        choose(action, 0);
    }
}

impl Controller for Half {
    fn act(&mut self, _: &[f32], action: &mut Action) {
        set(action, 0.5);
    }
}

impl Controller for Keep {
    fn act(&mut self, observation: &[f32], action: &mut Action) {
        set(action, self.share.read(observation));
    }
}
