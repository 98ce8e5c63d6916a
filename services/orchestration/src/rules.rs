//! The rules that an agent of the mesh can answer by instead of weights: the controllers that do not learn
//! (`tars_worlds::controller`), with the shipped calibration.
//!
//! A rule answers from what is observed and from nothing else, because nobody says where an episode of a live
//! mesh begins, and the next step may be another caller's or be answered by another replica. What a rule remembers
//! in the episodes of a training it therefore does without ([`Controller::act_once`]): `target_tracking` scales down
//! at once, and the quotas are set where they are observed not to be. Comparisons play it as it answers.

use parking_lot::Mutex;
use std::{
    fmt,
    sync::{Arc, LazyLock},
};
use tars_learn::policy::Decision;
use tars_worlds::{
    Action, ActionSpace, AgentSpace, Controller, MeshEnv, controller_names, make_controller,
    mesh::Calibration,
};

static CALIBRATION: LazyLock<Calibration> =
    LazyLock::new(|| MeshEnv::shipped().calibration().clone());

/// A rule of an agent.
#[derive(Clone)]
pub(crate) struct Rule(Arc<Parts>);

struct Parts {
    name: &'static str,
    space: AgentSpace,
    /// Answers steps, one at a time.
    controller: Mutex<Box<dyn Controller>>,
}

impl fmt::Debug for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Rule").field(&self.0.name).finish()
    }
}

/// The names of the rules that an agent with this space has; none outside of a mesh.
pub(crate) fn names(space: &AgentSpace) -> Vec<&'static str> {
    let all = controller_names(&space.name);
    all.filter(|name| make_controller(name, space, &CALIBRATION).is_some())
        .collect()
}

impl Rule {
    /// A rule by its name, if an agent with this space has it.
    pub(crate) fn find(space: &AgentSpace, name: &str) -> Option<Self> {
        let name = controller_names(&space.name).find(|known| *known == name)?;
        let controller = make_controller(name, space, &CALIBRATION)?;
        Some(Self(Arc::new(Parts {
            name,
            space: space.clone(),
            controller: Mutex::new(controller),
        })))
    }

    pub(crate) fn name(&self) -> &'static str {
        self.0.name
    }

    /// How many components its observations have.
    pub(crate) fn inputs(&self) -> usize {
        self.0.space.observation.len()
    }

    fn controller(&self) -> Box<dyn Controller> {
        let Parts { name, space, .. } = &*self.0;
        make_controller(name, space, &CALIBRATION).expect("it was made before")
    }

    /// What the rule does where this is observed. The values are 1 for the action that it says and 0 for others, or
    /// the components of a continuous action.
    pub(crate) fn decide(&self, observation: &[f32]) -> Decision {
        let space = &self.0.space.action;
        let mut action = space.first();
        match self.0.controller.try_lock() {
            Some(mut idle) => idle.act_once(observation, &mut action),
            None => self.controller().act_once(observation, &mut action),
        }
        let values = values(space, &action);
        Decision { action, values }
    }
}

/// Values that prefer an action: 1 for it and 0 for others, or its components.
pub(crate) fn values(space: &ActionSpace, action: &Action) -> Vec<f32> {
    match action {
        Action::Discrete(at) => {
            let all = 0..space.len();
            all.map(|other| f32::from(u8::from(other == *at))).collect()
        }
        Action::Continuous(components) => components.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task;

    fn space(agent: &str) -> AgentSpace {
        task::space("mesh", agent).unwrap()
    }

    #[test]
    fn each_agent_of_the_mesh_has_its_rules_and_others_have_none() {
        assert_eq!(names(&space("policy")), ["hold", "aimd", "mpc"]);
        assert_eq!(
            names(&space("resource")),
            ["hold", "half", "target_tracking", "mpc"]
        );
        assert!(names(&task::space("cartpole", "policy").unwrap()).is_empty());
        for (agent, rule) in [
            ("policy", "target_tracking"),
            ("policy", ""),
            ("policy", "AIMD"),
            ("resource", "aimd"),
        ] {
            assert!(Rule::find(&space(agent), rule).is_none(), "{agent} {rule}");
        }
    }

    #[test]
    fn a_rule_answers_with_an_action_of_the_space_and_values_that_prefer_it() {
        for agent in ["policy", "consensus", "ethical", "resource"] {
            let space = space(agent);
            let observation = vec![0.25; space.observation.len()];
            for name in names(&space) {
                let rule = Rule::find(&space, name).unwrap();
                let Decision { action, values } = rule.decide(&observation);
                assert_eq!(space.action.check(&action), Ok(()), "{agent} {name}");
                assert_eq!(values.len(), space.action.len());
                if let Action::Discrete(at) = action {
                    let best = values.iter().position(|v| *v == 1.0);
                    assert_eq!((best, values.iter().sum::<f32>()), (Some(at), 1.0));
                }
            }
        }
    }

    #[test]
    fn a_rule_answers_the_same_whatever_it_was_asked_before() {
        let space = space("ethical");
        let quotas = Rule::find(&space, "static_quotas").unwrap();
        let unset = vec![0.0; space.observation.len()];
        let first = quotas.decide(&unset).action;
        assert_ne!(first, Action::Discrete(0));
        assert_eq!(quotas.decide(&unset).action, first);
        // A busy controller does not make an answer wait.
        let busy = quotas.0.controller.lock();
        let meanwhile = quotas.decide(&unset).action;
        drop(busy);
        assert_eq!(meanwhile, first);
    }
}
