//! The agents of a run: those that learn together, and the others of their environment.

use crate::{
    OrchestrationError,
    agents::{Agent, Agents},
    task,
};
use std::sync::Arc;
use tars_worlds::make_world;

/// Agents that learn together.
#[derive(Debug)]
pub(super) struct Team {
    pub(super) environment: String,
    /// In the order of their environment.
    pub(super) learners: Vec<Arc<Agent>>,
    /// The agents that live in the environment and do not learn.
    pub(super) others: Vec<Arc<Agent>>,
}

impl Team {
    /// The team of the agents of these names, or of all agents.
    ///
    /// # Errors
    ///
    /// When an agent is unknown or named twice, or when they live in different environments or have the
    /// same place in one.
    pub(super) fn of(agents: &Agents, names: &[String]) -> Result<Self, OrchestrationError> {
        let named = find(agents, names)?;
        let first = named.first().ok_or(OrchestrationError::NoAgents)?;
        let environment = first.definition.environment.clone();
        let lives_here = |agent: &Agent| agent.definition.environment == environment;
        if let Some(other) = named.iter().find(|agent| !lives_here(agent)) {
            return Err(OrchestrationError::Apart(first.id(), other.id()));
        }
        let learners = placed(named, &environment)?;
        let learns = |agent: &Agent| learners.iter().any(|learner| learner.id() == agent.id());
        let others = agents.iter().filter(|a| lives_here(a) && !learns(a));
        Ok(Self {
            others: others.cloned().collect(),
            environment,
            learners,
        })
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &'static str> {
        self.learners.iter().map(|agent| agent.id())
    }
}

fn find(agents: &Agents, names: &[String]) -> Result<Vec<Arc<Agent>>, OrchestrationError> {
    if names.is_empty() {
        return Ok(agents.iter().cloned().collect());
    }
    let mut found: Vec<Arc<Agent>> = Vec::with_capacity(names.len());
    for name in names {
        let agent = agents.get(name)?;
        if found.iter().any(|other| other.id() == agent.id()) {
            return Err(OrchestrationError::NamedTwice(name.clone()));
        }
        found.push(Arc::clone(agent));
    }
    Ok(found)
}

/// Agents in the order of their environment, where each has a place of its own.
fn placed(
    agents: Vec<Arc<Agent>>,
    environment: &str,
) -> Result<Vec<Arc<Agent>>, OrchestrationError> {
    let unknown = || OrchestrationError::Environment(environment.to_owned());
    let world = make_world(environment).ok_or_else(unknown)?;
    let place = |agent: &Arc<Agent>| task::position(world.spec(), agent.id());
    let mut agents = agents;
    agents.sort_by_key(place);
    for pair in agents.windows(2) {
        if place(&pair[0]) == place(&pair[1]) {
            let (one, other) = (pair[0].id(), pair[1].id());
            let environment = environment.to_owned();
            return Err(OrchestrationError::SamePlace(one, other, environment));
        }
    }
    Ok(agents)
}
