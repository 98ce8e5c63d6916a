//! The agents and the live state of each: hyperparameters and weights with their versions, the approved
//! values, and the hold of a governed change.

mod acting;
mod weights;

pub(crate) use acting::{Action, Answerer, Asker};
pub(crate) use weights::Installed;

use acting::Instruments;
use weights::{Loaded, load};

use crate::{
    OrchestrationError,
    learners::{Followed, Live},
    objective::Objective,
    rules::{self, Rule},
    shield::Shield,
    stage::Attempt,
    store::{self, AgentRow, ApprovalRow, HoldRow, Store, VersionRow},
    task,
    trials::{Entries, Tally},
};
use arc_swap::ArcSwap;
use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};
use tars_learn::{
    algorithm::{self, Algorithm},
    hyper::Values,
    policy::Policy,
    presets::MESH_AGENTS,
};
use tars_runtime::{
    blobs::Blobs,
    clock::Clock,
    config,
    db::{Corrupt, DbError, Transaction},
    metrics::Metrics,
};
use tars_worlds::{AgentSpace, baseline};
use tokio::sync::{Mutex, watch};

/// The environment that is the mesh itself.
const MESH: &str = "mesh";

/// The fixed part of an agent; [`LiveAgent`] has the rest.
#[derive(Debug, Clone)]
pub(crate) struct Definition {
    pub(crate) id: &'static str,
    pub(crate) algorithm: &'static Algorithm,
    /// The world that it lives in.
    pub(crate) environment: String,
    pub(crate) space: AgentSpace,
    /// Whether it is bound to the live mesh, so that its versions climb the ladder.
    pub(crate) bound: bool,
    /// The names of the rules that it can answer by.
    pub(crate) rules: Vec<&'static str>,
    /// What it may not do.
    pub(crate) shield: Shield,
    /// What the live mesh is to keep while it answers, if it sees that.
    pub(crate) objective: Option<Objective>,
}

#[derive(Debug)]
pub(crate) struct Agents {
    /// Those whose algorithm fits their environment.
    all: BTreeMap<&'static str, Arc<Agent>>,
    blobs: Blobs,
    clock: Clock,
}

#[derive(Debug)]
pub(crate) struct Agent {
    pub(crate) definition: Definition,
    live: ArcSwap<LiveAgent>,
    /// The values that running learners follow: the live ones, except those that a governed change is
    /// only trying.
    followed: Live,
    held: watch::Sender<bool>,
    changing: Mutex<()>,
    instruments: Instruments,
    /// What the versions on the ladder did here.
    tally: parking_lot::Mutex<Tally>,
    /// Whether the rows may differ from the live state, because a commit is in doubt.
    in_doubt: AtomicBool,
}

/// A version below ACTIVE that is asked.
#[derive(Debug, Clone)]
pub(crate) struct Candidate {
    pub(crate) attempt: Attempt,
    pub(crate) answerer: Answerer,
}

#[derive(Debug, Clone)]
pub(crate) struct LiveAgent {
    pub(crate) row: AgentRow,
    pub(crate) policy: Option<Policy>,
    /// Why there is no policy, though the row names weights: they are damaged or lost.
    pub(crate) unusable: Option<String>,
    /// What answers instead of a policy.
    pub(crate) rule: Option<Rule>,
    pub(crate) shadow: Option<Candidate>,
    pub(crate) canary: Option<Candidate>,
    pub(crate) approved: ApprovalRow,
    pub(crate) hold: Option<HoldRow>,
}

impl Agents {
    /// Opens the agents that are stored, and creates those that are not in the environment of the settings.
    pub(crate) async fn open(
        store: &Store,
        blobs: Blobs,
        clock: Clock,
        settings: &config::Orchestration,
        metrics: &Metrics,
    ) -> Result<(Self, Entries), OrchestrationError> {
        let (instruments, entries) = Instruments::new(metrics, settings.canary_percent);
        let mut all = BTreeMap::new();
        for (id, algorithm) in MESH_AGENTS {
            let stored = store.agent(id).await?;
            let (algorithm, environment) = match &stored {
                Some(row) => (row.algorithm.as_str(), row.environment.as_str()),
                None => (*algorithm, settings.environment.as_str()),
            };
            let mut definition = Definition::new(id, algorithm, environment)?;
            if settings.bound_agents.iter().any(|bound| bound == id) {
                definition.bind()?;
            }
            if definition.algorithm.fits(&definition.space).is_ok() {
                let instruments = instruments.clone();
                let agent = Agent::open(definition, stored, store, &blobs, &clock, instruments);
                let agent = agent.await?;
                agent.fall_if_unusable();
                all.insert(*id, Arc::new(agent));
            }
        }
        let agents = Self { all, blobs, clock };
        Ok((agents, entries))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Agent>> {
        self.all.values()
    }

    pub(crate) fn get(&self, id: &str) -> Result<&Arc<Agent>, OrchestrationError> {
        if let Some(agent) = self.all.get(id) {
            return Ok(agent);
        }
        match MESH_AGENTS.iter().find(|(known, _)| *known == id) {
            Some((known, algorithm)) => Err(OrchestrationError::NotBuilt(known, algorithm)),
            None => Err(OrchestrationError::NotFound("agent", id.to_owned())),
        }
    }

    /// Makes live what is stored, if that differs from what is live. The caller has the turn to change
    /// the agent.
    pub(crate) async fn refresh(
        &self,
        tx: &mut Transaction,
        agent: &Agent,
    ) -> Result<(), OrchestrationError> {
        let live = agent.live();
        let absent = |table| Corrupt::new(table, agent.id(), "is absent");
        let stored = LiveAgent {
            row: store::agent(tx, agent.id())
                .await?
                .ok_or_else(|| DbError::from(absent("agents")))?,
            policy: live.policy.clone(),
            unusable: live.unusable.clone(),
            rule: live.rule.clone(),
            shadow: None,
            canary: None,
            approved: store::approval(tx, agent.id())
                .await?
                .ok_or_else(|| DbError::from(absent("agent_approvals")))?,
            hold: store::hold(tx, agent.id()).await?,
        };
        if stored.is_stored_as(&live) && live.is_arranged(agent) {
            agent.in_doubt.store(false, Ordering::Release);
            return Ok(());
        }
        let mut next = stored;
        if next.row.weights != live.row.weights {
            let loaded = load(&self.blobs, &agent.definition, &next.row).await?;
            (next.policy, next.unusable) = (loaded.policy, loaded.unusable);
        }
        next.rule = agent.definition.rule_of(&next.row)?;
        self.arrange(tx, agent, &mut next).await?;
        agent.publish(next);
        Ok(())
    }
}

impl Definition {
    fn new(
        id: &'static str,
        algorithm: &str,
        environment: &str,
    ) -> Result<Self, OrchestrationError> {
        let unknown = || OrchestrationError::Environment(environment.to_owned());
        let found = algorithm::find(algorithm);
        let space = task::space(environment, id).ok_or_else(unknown)?;
        Ok(Self {
            id,
            algorithm: found.ok_or_else(|| OrchestrationError::Algorithm(algorithm.to_owned()))?,
            environment: environment.to_owned(),
            rules: rules::names(&space),
            shield: match environment {
                MESH => Shield::of_mesh(&space),
                _ => Shield::of_space(&space),
            },
            objective: Objective::of(&space),
            space,
            bound: false,
        })
    }

    /// Binds the agent to the live mesh, which only an agent of the mesh's model can act on, and only under a shield
    /// that knows what it acts on.
    fn bind(&mut self) -> Result<(), OrchestrationError> {
        if self.environment != MESH {
            return Err(OrchestrationError::BoundElsewhere {
                agent: self.id,
                environment: self.environment.clone(),
            });
        }
        if !self.shield.is_guarded() {
            return Err(OrchestrationError::Unguarded(self.id));
        }
        self.bound = true;
        Ok(())
    }

    /// One of the agent's rules.
    pub(crate) fn rule(&self, name: &str) -> Result<Rule, OrchestrationError> {
        let found = Rule::find(&self.space, name);
        found.ok_or_else(|| OrchestrationError::UnknownRule {
            agent: self.id,
            rule: name.to_owned(),
            known: self.rules.clone(),
        })
    }

    /// The name of the rule that plays for the agent while nothing is ACTIVE, and that it falls back to; empty where
    /// it has none.
    pub(crate) fn default_rule(&self) -> &'static str {
        let default = baseline(self.id).filter(|name| self.rules.contains(name));
        default.unwrap_or_default()
    }

    /// That rule.
    pub(crate) fn baseline(&self) -> Result<Rule, OrchestrationError> {
        self.rule(self.default_rule())
    }

    /// The rule that an agent with this row answers by.
    fn rule_of(&self, row: &AgentRow) -> Result<Option<Rule>, OrchestrationError> {
        row.rule.as_deref().map(|name| self.rule(name)).transpose()
    }
}

impl Agent {
    async fn open(
        definition: Definition,
        stored: Option<AgentRow>,
        store: &Store,
        blobs: &Blobs,
        clock: &Clock,
        instruments: Instruments,
    ) -> Result<Self, OrchestrationError> {
        let row = match stored {
            Some(row) => row,
            None => first(&definition, store, clock).await?,
        };
        let (approved, hold) = governance(&row, store, clock).await?;
        let Loaded { policy, unusable } = load(blobs, &definition, &row).await?;
        let live = LiveAgent {
            policy,
            unusable,
            rule: definition.rule_of(&row)?,
            shadow: None,
            canary: None,
            row,
            approved,
            hold,
        };
        Ok(Self {
            definition,
            followed: Arc::new(ArcSwap::from_pointee(live.followed())),
            held: watch::Sender::new(live.hold.is_some()),
            live: ArcSwap::from_pointee(live),
            changing: Mutex::new(()),
            instruments,
            tally: parking_lot::Mutex::default(),
            in_doubt: AtomicBool::new(false),
        })
    }

    pub(crate) fn live(&self) -> Arc<LiveAgent> {
        self.live.load_full()
    }

    /// The live state as others may act upon it: not while a commit is in doubt.
    pub(crate) fn current(&self) -> Result<Arc<LiveAgent>, OrchestrationError> {
        if self.in_doubt.load(Ordering::Acquire) {
            let text = format!("the last change of {} is in doubt", self.id());
            return Err(DbError::Unavailable(text).into());
        }
        Ok(self.live())
    }

    /// A commit is in doubt: until its rows are read again, the live state may be behind.
    pub(crate) fn doubt(&self) {
        self.in_doubt.store(true, Ordering::Release);
    }

    pub(crate) fn id(&self) -> &'static str {
        self.definition.id
    }

    /// Whether its versions climb the ladder.
    pub(crate) fn is_bound(&self) -> bool {
        self.definition.bound
    }

    pub(crate) fn check(&self, values: &Values) -> Result<(), OrchestrationError> {
        let checked = self.definition.algorithm.spec.check(values);
        checked.map_err(OrchestrationError::Hyperparameters)
    }

    /// Whether a learner with these hyperparameters can continue from a policy.
    pub(crate) fn continues_from(&self, policy: &Policy, values: &Values) -> bool {
        self.definition
            .algorithm
            .continues(&self.definition.space, values, policy)
    }

    pub(crate) fn followed(&self) -> Live {
        Arc::clone(&self.followed)
    }

    /// Waits until no governed change holds the agent.
    pub(crate) async fn until_released(&self) {
        // The sender lives as long as the agent.
        self.held.subscribe().wait_for(|held| !held).await.ok();
    }

    pub(crate) fn changing(&self) -> &Mutex<()> {
        &self.changing
    }

    /// Makes a committed state live. Learners do not follow the values of a change that is not settled
    /// yet, because what they learn could not be rolled back.
    pub(crate) fn publish(&self, next: LiveAgent) -> Arc<LiveAgent> {
        let next = Arc::new(next);
        self.live.store(Arc::clone(&next));
        let (held, followed) = (next.hold.is_some(), next.followed());
        if !held && **self.followed.load() != followed {
            self.followed.store(Arc::new(followed));
        }
        self.held.send_replace(held);
        self.in_doubt.store(false, Ordering::Release);
        next
    }
}

impl LiveAgent {
    /// From now on this answers.
    fn answer_by(&mut self, answerer: Answerer) {
        (self.policy, self.rule) = answerer.into_parts();
        self.unusable = None;
    }

    /// What answers; absent while untrained, and while its weights cannot be used.
    pub(crate) fn answerer(&self) -> Option<Answerer> {
        let rule = self.rule.clone().map(Answerer::Rule);
        rule.or_else(|| self.policy.clone().map(Answerer::Policy))
    }

    /// Whether the versions on the ladder are loaded that the row names.
    fn is_arranged(&self, agent: &Agent) -> bool {
        let is_loaded = |candidate: &Option<Candidate>, version: Option<i64>| {
            candidate
                .as_ref()
                .map(|candidate| candidate.attempt.version)
                == version
        };
        !agent.is_bound()
            || (is_loaded(&self.shadow, self.row.shadow)
                && is_loaded(&self.canary, self.row.canary))
    }

    /// Whether a version answers already.
    pub(crate) fn answers_by(&self, version: &VersionRow) -> bool {
        let row = &self.row;
        row.weights == version.blob && row.rule == version.rule && row.weights_version > 0
    }

    /// Whether both have the same rows. Each change of a row sets its version or its time.
    pub(crate) fn is_stored_as(&self, other: &Self) -> bool {
        let versions = |live: &Self| {
            let (row, approved) = (&live.row, &live.approved);
            (
                row.version,
                row.weights_version,
                row.updated_us,
                approved.version,
            )
        };
        versions(self) == versions(other)
            && self.row.weights == other.row.weights
            && self.row.rule == other.row.rule
            && self.row.places() == other.row.places()
            && self.approved.change_id == other.approved.change_id
            && self.hold == other.hold
    }

    fn followed(&self) -> Followed {
        Followed {
            version: self.row.version,
            values: self.row.hyperparameters.clone(),
        }
    }
}

/// The approved values of an agent and its hold. If nothing was approved yet, the live values are
/// recorded as the first approved ones.
async fn governance(
    row: &AgentRow,
    store: &Store,
    clock: &Clock,
) -> Result<(ApprovalRow, Option<HoldRow>), OrchestrationError> {
    let mut tx = store.begin("agents.governance").await?;
    let hold = store::hold(&mut tx, &row.id).await?;
    if let Some(approved) = store::approval(&mut tx, &row.id).await? {
        return Ok((approved, hold));
    }
    let approved = ApprovalRow {
        hyperparameters: row.hyperparameters.clone(),
        version: row.version,
        change_id: String::new(),
    };
    store::put_approval(&mut tx, &row.id, &approved, clock.now_us()).await?;
    tx.commit().await?;
    Ok((approved, hold))
}

/// The row of an agent that has none yet.
async fn first(
    definition: &Definition,
    store: &Store,
    clock: &Clock,
) -> Result<AgentRow, OrchestrationError> {
    // Exclusive: another replica that was started at the same time may have been first.
    let mut tx = store.begin("agents.first").await?;
    if let Some(row) = store::agent(&mut tx, definition.id).await? {
        return Ok(row);
    }
    let row = AgentRow {
        id: definition.id.to_owned(),
        algorithm: definition.algorithm.name.to_owned(),
        environment: definition.environment.clone(),
        hyperparameters: definition.algorithm.spec.defaults(),
        version: 1,
        weights: None,
        rule: None,
        weights_version: 0,
        shadow: None,
        canary: None,
        last_return: None,
        total_steps: 0,
        total_episodes: 0,
        updated_us: clock.now_us(),
    };
    store::insert_agent(&mut tx, &row).await?;
    tx.commit().await?;
    Ok(row)
}
