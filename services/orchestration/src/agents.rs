//! The agents and what is live of each: hyperparameters with their version, weights with theirs.
//! A change is committed first, then swapped in.

use crate::{
    OrchestrationError,
    learners::Live,
    store::{self, AgentRow, Store},
};
use arc_swap::ArcSwap;
use std::{collections::BTreeMap, sync::Arc};
use tars_learn::{
    dqn,
    hyper::{Spec, Values},
    make_environment,
    nn::{Mlp, Scratch},
    spec_of, weights,
};
use tars_runtime::{
    audit::{self, Record},
    blobs::Blobs,
    clock::Clock,
};
use tokio::sync::Mutex;

/// What an agent is; the live part is in [`LiveAgent`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct Definition {
    pub(crate) id: &'static str,
    pub(crate) algorithm: &'static str,
    pub(crate) environment: &'static str,
}

const BUILT: &[Definition] = &[Definition {
    id: "policy",
    algorithm: "dqn",
    environment: "cartpole",
}];

/// The others of the four, whose algorithms do not exist yet.
const NOT_BUILT: &[&str] = &["consensus", "ethical", "resource"];

#[derive(Debug)]
pub(crate) struct Agents {
    all: BTreeMap<&'static str, Arc<Agent>>,
    blobs: Blobs,
    clock: Clock,
}

#[derive(Debug)]
pub(crate) struct Agent {
    pub(crate) definition: Definition,
    pub(crate) observation_names: &'static [&'static str],
    pub(crate) action_names: &'static [&'static str],
    spec: Spec,
    live: ArcSwap<LiveAgent>,
    /// What running learners follow.
    values: Live,
    changing: Mutex<()>,
}

#[derive(Debug, Clone)]
pub(crate) struct LiveAgent {
    pub(crate) row: AgentRow,
    pub(crate) weights: Option<Arc<Mlp>>,
}

#[derive(Debug, Clone)]
pub(crate) struct Action {
    pub(crate) agent: &'static str,
    pub(crate) action: usize,
    pub(crate) name: &'static str,
    pub(crate) values: Vec<f32>,
    pub(crate) weights_version: i64,
}

/// Who changes an agent, and under which conditions.
#[derive(Debug)]
pub(crate) struct Change<'a> {
    pub(crate) by: &'a str,
    pub(crate) reason: &'a str,
    /// Zero asks for none.
    pub(crate) expected_version: i64,
    /// The same operation is done once.
    pub(crate) operation: Option<&'a str>,
}

impl Agents {
    pub(crate) async fn open(
        store: &Store,
        blobs: Blobs,
        clock: Clock,
    ) -> Result<Self, OrchestrationError> {
        let mut all = BTreeMap::new();
        for definition in BUILT {
            all.insert(
                definition.id,
                Arc::new(Agent::open(definition, store, &blobs, &clock).await?),
            );
        }
        Ok(Self { all, blobs, clock })
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Agent>> {
        self.all.values()
    }

    pub(crate) fn get(&self, id: &str) -> Result<&Arc<Agent>, OrchestrationError> {
        if let Some(agent) = self.all.get(id) {
            return Ok(agent);
        }
        match NOT_BUILT.iter().find(|n| **n == id) {
            Some(known) => Err(OrchestrationError::NotBuilt(known)),
            None => Err(OrchestrationError::NotFound("agent", id.to_owned())),
        }
    }

    /// Changes hyperparameters: names that are left out keep their values. Returns what is live
    /// afterwards, read back.
    pub(crate) async fn reload(
        &self,
        store: &Store,
        agent: &Agent,
        change: &Change<'_>,
        values: Values,
    ) -> Result<Arc<LiveAgent>, OrchestrationError> {
        agent
            .spec
            .check(&values)
            .map_err(OrchestrationError::Hyperparameters)?;
        let _one = agent.changing.lock().await;
        let mut tx = store.begin("agents.reload").await?;
        if let Some(id) = change.operation
            && store::operation(&mut tx, id).await?.is_some()
        {
            return Ok(agent.live());
        }
        let mut next = LiveAgent::clone(&agent.live());
        let expected = change.expected_version;
        if expected != 0 && expected != next.row.version {
            return Err(OrchestrationError::Version {
                live: next.row.version,
                expected,
            });
        }
        let changed: Vec<String> = values.keys().cloned().collect();
        next.row.hyperparameters.extend(values);
        next.row.version += 1;
        next.row.updated_us = self.clock.now_us();
        if !store::update_hyperparameters(&mut tx, &next.row).await? {
            return Err(OrchestrationError::Version {
                live: next.row.version,
                expected: next.row.version - 1,
            });
        }
        if let Some(id) = change.operation {
            store::insert_operation(
                &mut tx,
                id,
                &next.row.id,
                next.row.version,
                next.row.updated_us,
            )
            .await?;
        }
        let record = Record::new(&self.clock, "orchestration", "admin.agent.reload")
            .caller(change.by)
            .resource(&next.row.id)
            .detail("version", next.row.version)
            .detail("changed", changed.join(","))
            .detail("reason", change.reason);
        audit::insert(&mut tx, &record).await?;
        tx.commit().await?;
        agent.publish(next);
        Ok(agent.live())
    }

    /// Makes new weights live: the blob first, then the row, then the swap.
    pub(crate) async fn install(
        &self,
        tx: &mut sqlx::SqliteConnection,
        agent: &Agent,
        outcome: &tars_learn::Outcome,
    ) -> Result<LiveAgent, OrchestrationError> {
        let blobs = self.blobs.clone();
        let bytes = weights::save(&outcome.weights);
        let blob = tokio::task::spawn_blocking(move || blobs.put(&bytes))
            .await
            .map_err(|_| OrchestrationError::Worker("storing weights"))??;
        let mut next = LiveAgent::clone(&agent.live());
        next.row.weights = Some(blob);
        next.row.weights_version += 1;
        next.row.last_return = Some(outcome.evaluation.mean());
        next.row.total_steps += i64::try_from(outcome.steps).unwrap_or(i64::MAX);
        next.row.total_episodes += i64::try_from(outcome.episodes).unwrap_or(i64::MAX);
        next.row.updated_us = self.clock.now_us();
        next.weights = Some(Arc::new(outcome.weights.clone()));
        store::update_weights(tx, &next.row).await?;
        Ok(next)
    }
}

impl Agent {
    async fn open(
        definition: &Definition,
        store: &Store,
        blobs: &Blobs,
        clock: &Clock,
    ) -> Result<Self, OrchestrationError> {
        let spec =
            spec_of(definition.algorithm).ok_or(OrchestrationError::NotBuilt(definition.id))?;
        let env = make_environment(definition.environment)
            .ok_or(OrchestrationError::NotBuilt(definition.id))?;
        let row = match store.agent(definition.id).await? {
            Some(row) => row,
            None => first(definition, &spec, store, clock).await?,
        };
        let net = match &row.weights {
            Some(name) => Some(Arc::new(weights::load(&blobs.get(name)?)?)),
            None => None,
        };
        let values = Arc::new(ArcSwap::from_pointee(row.hyperparameters.clone()));
        Ok(Self {
            definition: *definition,
            observation_names: env.observation_names(),
            action_names: env.action_names(),
            spec,
            live: ArcSwap::from_pointee(LiveAgent { row, weights: net }),
            values,
            changing: Mutex::new(()),
        })
    }

    pub(crate) fn live(&self) -> Arc<LiveAgent> {
        self.live.load_full()
    }

    pub(crate) fn values(&self) -> Live {
        Arc::clone(&self.values)
    }

    pub(crate) fn changing(&self) -> &Mutex<()> {
        &self.changing
    }

    pub(crate) fn publish(&self, next: LiveAgent) {
        self.values
            .store(Arc::new(next.row.hyperparameters.clone()));
        self.live.store(Arc::new(next));
    }

    /// The same decision with another of its actions.
    pub(crate) fn instead(&self, acted: &Action, action: usize) -> Action {
        Action {
            action,
            name: self.action_names.get(action).copied().unwrap_or_default(),
            ..acted.clone()
        }
    }

    /// The best known action in a state.
    pub(crate) fn act(
        &self,
        agent_type: &str,
        state: &[f64],
    ) -> Result<Action, OrchestrationError> {
        if !agent_type.is_empty() && agent_type != self.definition.algorithm {
            return Err(OrchestrationError::AgentType);
        }
        let live = self.live();
        let net = live.weights.as_ref().ok_or(OrchestrationError::Untrained)?;
        if state.len() != net.inputs() {
            return Err(OrchestrationError::Observation {
                agent: self.definition.id.to_owned(),
                given: state.len(),
                needed: net.inputs(),
            });
        }
        let input: Vec<f32> = state.iter().map(|v| *v as f32).collect();
        let values = net.forward_one(&input, &mut Scratch::default());
        let action = dqn::best(&values);
        let name = self.action_names.get(action).copied().unwrap_or_default();
        Ok(Action {
            agent: self.definition.id,
            action,
            name,
            values,
            weights_version: live.row.weights_version,
        })
    }
}

async fn first(
    definition: &Definition,
    spec: &Spec,
    store: &Store,
    clock: &Clock,
) -> Result<AgentRow, OrchestrationError> {
    let row = AgentRow {
        id: definition.id.to_owned(),
        hyperparameters: spec.defaults(),
        version: 1,
        weights: None,
        weights_version: 0,
        last_return: None,
        total_steps: 0,
        total_episodes: 0,
        updated_us: clock.now_us(),
    };
    let mut tx = store.begin("agents.first").await?;
    store::insert_agent(&mut tx, &row).await?;
    tx.commit().await?;
    Ok(row)
}
