//! How an agent acts in a scene.

use crate::{
    OrchestrationError,
    agents::{Action, Agent, Answerer},
    rules::{self, Rule},
    stage::Stage,
    task,
};
use std::sync::Arc;
use tars_learn::policy::{Decision, Scratch};
use tars_worlds::{Action as Act, ActionSpace, AgentSpace, baseline};

/// An agent with what was live of it when the scene was made.
pub(super) struct Player {
    pub(super) agent: Arc<Agent>,
    space: AgentSpace,
    by: By,
    scratch: Scratch,
}

/// What an agent acts by.
enum By {
    /// A version of its weights or its rule, or its baseline where it has neither yet.
    Answerer(i64, Answerer),
    /// The first action of its space, where there is no baseline.
    FirstAction,
    /// The version that is live cannot be used. It acts when another one is live.
    Nothing,
}

impl Player {
    pub(super) fn new(agent: Arc<Agent>, space: &AgentSpace) -> Self {
        let baseline = || baseline(&space.name).and_then(|name| Rule::find(space, name));
        let by = match agent.plays() {
            Ok((version, answerer)) => By::Answerer(version, answerer),
            Err(OrchestrationError::Untrained) => match baseline() {
                Some(rule) => By::Answerer(0, Answerer::Rule(rule)),
                None => By::FirstAction,
            },
            Err(_) => By::Nothing,
        };
        Self {
            agent,
            space: space.clone(),
            by,
            scratch: Scratch::default(),
        }
    }

    /// What it would do where this is observed.
    pub(super) fn act(&self, seen: &[f32]) -> Result<Action, OrchestrationError> {
        let (version, answerer) = match &self.by {
            By::Answerer(version, answerer) => (*version, answerer.clone()),
            By::FirstAction => return Ok(self.first_action()),
            By::Nothing => self.agent.plays()?,
        };
        self.agent.act_by(version, answerer, seen)
    }

    /// Writes what it does in a rollout after the joint action, which is what it [would do](Self::act) there. Of
    /// weights that answer with what is no action of the space, it is the first one.
    pub(super) fn go_on(&mut self, seen: &[f32], action: &mut Act) {
        let decides = match &self.by {
            By::Answerer(_, Answerer::Policy(policy)) if !self.agent.is_bound() => {
                policy.act_into(seen, &[], &mut self.scratch, action);
                true
            }
            By::Answerer(_, answerer) => {
                let decided = answerer.decide_with(seen, &mut self.scratch);
                *action = self.agent.permitted(seen, decided);
                true
            }
            By::FirstAction | By::Nothing => false,
        };
        if !decides || self.space.action.check(action).is_err() {
            *action = self.space.action.first();
        }
    }

    fn first_action(&self) -> Action {
        let Decision { action, values } = first(&self.space.action);
        Action {
            agent: self.agent.id(),
            name: match (&self.space.action, &action) {
                (ActionSpace::Discrete(names), Act::Discrete(at)) => names[*at].to_string(),
                _ => String::new(),
            },
            action,
            values,
            weights_version: 0,
            rule: Some(task::FIRST_ACTION),
            stage: Stage::Active,
            shielded: None,
        }
    }
}

/// The first action of a space, as a rule decides.
fn first(space: &ActionSpace) -> Decision {
    let action = space.first();
    Decision {
        values: rules::values(space, &action),
        action,
    }
}
