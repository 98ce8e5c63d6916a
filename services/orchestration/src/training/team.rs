//! The agents of a run: those that learn together, and the others of their environment.

use crate::{
    OrchestrationError,
    agents::{Agent, Agents},
    hosts::{External, Hosts},
    task,
};
use std::sync::Arc;
use tars_worlds::{AgentSpace, WorldSpec, make_world};

/// Where a run trains.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) spec: WorldSpec,
    /// The environment, when the caller lends it.
    pub(super) external: Option<External>,
}

/// Agents that learn together.
#[derive(Debug)]
pub(super) struct Team {
    pub(super) place: Place,
    /// In the order of the environment.
    pub(super) learners: Vec<Arc<Agent>>,
    /// The agents that have a place in the environment and do not learn.
    pub(super) others: Vec<Arc<Agent>>,
}

impl Place {
    /// An environment by its name: one that a caller lends, or a built-in one.
    ///
    /// # Errors
    ///
    /// When there is none that the caller may use.
    pub(super) fn named(
        hosts: &Hosts,
        caller: &str,
        environment: &str,
    ) -> Result<Self, OrchestrationError> {
        if let Some(external) = hosts.external(caller, environment) {
            return Ok(Self {
                spec: external.spec.clone(),
                external: Some(external),
            });
        }
        let unknown = || OrchestrationError::Environment(environment.to_owned());
        let world = make_world(environment).ok_or_else(unknown)?;
        Ok(Self {
            spec: world.spec().clone(),
            external: None,
        })
    }

    /// Where an agent learns here: its own place, or the first one.
    fn space(&self, agent: &Agent) -> &AgentSpace {
        &self.spec.agents[task::position(&self.spec, agent.id())]
    }

    /// Whether what is learned here by the agent fits it where it lives.
    fn suits(&self, agent: &Agent) -> bool {
        self.space(agent).is_alike(&agent.definition.space)
    }

    fn check(&self, agent: &Agent) -> Result<(), OrchestrationError> {
        if self.suits(agent) {
            return Ok(());
        }
        Err(OrchestrationError::OtherSpaces {
            agent: agent.id(),
            environment: self.spec.name.to_string(),
            there: self.space(agent).shape(),
            here: agent.definition.space.shape(),
        })
    }

    /// Whether an agent has a place of its own here that it can act in.
    fn has(&self, agent: &Agent) -> bool {
        self.spec.agent(agent.id()).is_some() && self.suits(agent)
    }
}

impl Team {
    /// The team of the agents of these names, or of all agents, where they live or in another place.
    ///
    /// # Errors
    ///
    /// When an agent is unknown or named twice, or when they live in different environments, do not fit the other
    /// one, or have the same place in it.
    pub(super) fn of(
        agents: &Agents,
        names: &[String],
        elsewhere: Option<Place>,
    ) -> Result<Self, OrchestrationError> {
        let named = find(agents, names)?;
        let place = match elsewhere {
            Some(place) => place,
            None => own(&named)?,
        };
        named.iter().try_for_each(|agent| place.check(agent))?;
        let learners = placed(named, &place.spec)?;
        let learns = |agent: &Agent| learners.iter().any(|learner| learner.id() == agent.id());
        let others = agents.iter().filter(|a| place.has(a) && !learns(a));
        Ok(Self {
            others: others.cloned().collect(),
            place,
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

/// Where some agents live together.
fn own(agents: &[Arc<Agent>]) -> Result<Place, OrchestrationError> {
    let first = agents.first().ok_or(OrchestrationError::NoAgents)?;
    let environment = &first.definition.environment;
    let lives_here = |agent: &&Arc<Agent>| agent.definition.environment == *environment;
    if let Some(other) = agents.iter().find(|agent| !lives_here(agent)) {
        return Err(OrchestrationError::Apart(first.id(), other.id()));
    }
    let unknown = || OrchestrationError::Environment(environment.clone());
    let world = make_world(environment).ok_or_else(unknown)?;
    Ok(Place {
        spec: world.spec().clone(),
        external: None,
    })
}

/// Agents in the order of an environment, where each has a place of its own.
fn placed(
    mut agents: Vec<Arc<Agent>>,
    spec: &WorldSpec,
) -> Result<Vec<Arc<Agent>>, OrchestrationError> {
    let place = |agent: &Arc<Agent>| task::position(spec, agent.id());
    agents.sort_by_key(place);
    for pair in agents.windows(2) {
        if place(&pair[0]) == place(&pair[1]) {
            let (one, other) = (pair[0].id(), pair[1].id());
            let environment = spec.name.to_string();
            return Err(OrchestrationError::SamePlace(one, other, environment));
        }
    }
    Ok(agents)
}
