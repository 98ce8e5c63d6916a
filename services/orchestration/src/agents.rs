//! The agents and the live state of each: hyperparameters and weights with their versions, the approved
//! values, and the hold of a governed change.

use crate::{
    OrchestrationError,
    choices::Choices,
    learners::{Followed, Live},
    rules::{self, Rule},
    shield::{Blocked, Shield},
    store::{self, AgentRow, ApprovalRow, HoldRow, Store, VersionRow},
    task,
};
use arc_swap::ArcSwap;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
};
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
    policy::{Decision, Policy, Scratch},
};
use tars_runtime::{
    blobs::{BlobError, Blobs},
    clock::Clock,
    config,
    db::{Corrupt, DbError, Transaction},
    metrics::Metrics,
};
use tars_worlds::{ActionSpace, AgentSpace};
use tokio::sync::{Mutex, watch};
use uuid::Uuid;

/// The agents by name, each with the algorithm that it learns by.
const AGENTS: &[(&str, &str)] = &[
    ("policy", "dqn"),
    ("consensus", "a2c"),
    ("ethical", "ppo"),
    ("resource", "ddpg"),
];

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
    shield: Shield,
}

/// The actions that the shield replaced, by agent and limit.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BlockedLabels {
    agent: &'static str,
    limit: &'static str,
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
    blocked: Family<BlockedLabels, Counter>,
    /// Whether the rows may differ from the live state, because a commit is in doubt.
    in_doubt: AtomicBool,
}

#[derive(Debug, Clone)]
pub(crate) struct LiveAgent {
    pub(crate) row: AgentRow,
    pub(crate) policy: Option<Policy>,
    /// What answers instead of a policy.
    pub(crate) rule: Option<Rule>,
    pub(crate) approved: ApprovalRow,
    pub(crate) hold: Option<HoldRow>,
}

/// What a training leaves to its agent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Installed<'a> {
    pub(crate) run: Uuid,
    pub(crate) policy: &'a Policy,
    /// The mean return of the evaluation at the end.
    pub(crate) final_return: f64,
    pub(crate) steps: i64,
    pub(crate) episodes: i64,
}

/// What answers for an agent.
#[derive(Debug, Clone)]
pub(crate) enum Answerer {
    Policy(Policy),
    Rule(Rule),
}

#[derive(Debug, Clone)]
pub(crate) struct Action {
    pub(crate) agent: &'static str,
    pub(crate) action: tars_worlds::Action,
    /// The name of a discrete action.
    pub(crate) name: String,
    pub(crate) values: Vec<f32>,
    pub(crate) weights_version: i64,
    /// The rule that answered; absent where a policy did.
    pub(crate) rule: Option<&'static str>,
    /// Why the shield replaced the action that was preferred.
    pub(crate) shielded: Option<Blocked>,
}

impl Agents {
    /// Opens the agents that are stored, and creates those that are not in the environment of the settings.
    pub(crate) async fn open(
        store: &Store,
        blobs: Blobs,
        clock: Clock,
        settings: &config::Orchestration,
        metrics: &Metrics,
    ) -> Result<Self, OrchestrationError> {
        let blocked = metrics.register(
            "agent_actions_blocked",
            "Actions of agents that the action shield replaced, by agent and limit",
            Family::default(),
        );
        let mut all = BTreeMap::new();
        for (id, algorithm) in AGENTS {
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
                let opened = Agent::open(definition, stored, store, &blobs, &clock).await?;
                let blocked = Family::clone(&blocked);
                all.insert(*id, Arc::new(Agent { blocked, ..opened }));
            }
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
        match AGENTS.iter().find(|(known, _)| *known == id) {
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
            rule: live.rule.clone(),
            approved: store::approval(tx, agent.id())
                .await?
                .ok_or_else(|| DbError::from(absent("agent_approvals")))?,
            hold: store::hold(tx, agent.id()).await?,
        };
        if stored.is_stored_as(&live) {
            agent.in_doubt.store(false, Ordering::Release);
            return Ok(());
        }
        let policy = match stored.row.weights == live.row.weights {
            true => stored.policy,
            false => load(&self.blobs, &stored.row).await?,
        };
        let rule = agent.definition.rule_of(&stored.row)?;
        agent.publish(LiveAgent {
            policy,
            rule,
            ..stored
        });
        Ok(())
    }

    /// Writes new weights, and the row that refers to them. Of an agent that is bound to the live mesh they
    /// enter the ladder, and do not answer. Returns the number of the version too. The caller commits and publishes.
    pub(crate) async fn install(
        &self,
        tx: &mut Transaction,
        agent: &Agent,
        installed: Installed<'_>,
    ) -> Result<(LiveAgent, i64), OrchestrationError> {
        let blob = self.blobs.put(tx, installed.policy.to_bytes()).await?;
        let mut next = LiveAgent::clone(&agent.live());
        let (number, served) = (next_version(tx, &next.row).await?, !agent.is_bound());
        if served {
            next.row.weights = Some(blob.clone());
            next.row.rule = None;
            next.row.weights_version = number;
            next.row.last_return = Some(installed.final_return);
            (next.policy, next.rule) = (Some(installed.policy.clone()), None);
        }
        next.row.total_steps += installed.steps;
        next.row.total_episodes += installed.episodes;
        next.row.updated_us = self.clock.now_us();
        let version = VersionRow {
            version: number,
            blob: Some(blob),
            rule: None,
            at_us: next.row.updated_us,
            algorithm: installed.policy.algorithm().to_owned(),
            run_id: Some(installed.run),
            mean_return: Some(installed.final_return),
            restored_from: None,
            served,
        };
        store::update_weights(tx, &next.row).await?;
        store::insert_version(tx, agent.id(), &version).await?;
        Ok((next, number))
    }

    /// Makes what a retained version answers by the next version, as [`install`](Self::install) does.
    pub(crate) async fn restore(
        &self,
        tx: &mut Transaction,
        agent: &Agent,
        from: &VersionRow,
    ) -> Result<LiveAgent, OrchestrationError> {
        let answerer = self.answerer_of(agent, from).await?;
        let origin = VersionRow {
            restored_from: Some(from.restored_from.unwrap_or(from.version)),
            ..from.clone()
        };
        self.replace(tx, agent, answerer, origin).await
    }

    /// Makes one of the agent's rules the next version.
    pub(crate) async fn follow(
        &self,
        tx: &mut Transaction,
        agent: &Agent,
        rule: Rule,
    ) -> Result<LiveAgent, OrchestrationError> {
        let origin = VersionRow::of_rule(rule.name());
        self.replace(tx, agent, Answerer::Rule(rule), origin).await
    }

    /// Writes the next version, which answers from now on.
    async fn replace(
        &self,
        tx: &mut Transaction,
        agent: &Agent,
        answerer: Answerer,
        origin: VersionRow,
    ) -> Result<LiveAgent, OrchestrationError> {
        let mut next = LiveAgent::clone(&agent.live());
        next.row.weights = origin.blob.clone();
        next.row.rule = origin.rule.clone();
        next.row.weights_version = next_version(tx, &next.row).await?;
        next.row.last_return = origin.mean_return;
        next.row.updated_us = self.clock.now_us();
        (next.policy, next.rule) = answerer.into_parts();
        next.row.leave(origin.version);
        let version = VersionRow {
            version: next.row.weights_version,
            at_us: next.row.updated_us,
            served: true,
            ..origin
        };
        store::update_weights(tx, &next.row).await?;
        store::insert_version(tx, agent.id(), &version).await?;
        Ok(next)
    }

    /// What a retained version answers by, if the agent can act by it.
    pub(crate) async fn answerer_of(
        &self,
        agent: &Agent,
        version: &VersionRow,
    ) -> Result<Answerer, OrchestrationError> {
        match &version.blob {
            Some(blob) => Ok(Answerer::Policy(
                self.policy_of(agent, version, blob).await?,
            )),
            None => {
                let rule = version.rule.as_deref().unwrap_or_default();
                Ok(Answerer::Rule(agent.definition.rule(rule)?))
            }
        }
    }

    async fn policy_of(
        &self,
        agent: &Agent,
        version: &VersionRow,
        blob: &str,
    ) -> Result<Policy, OrchestrationError> {
        let unusable = |why: String| OrchestrationError::UnusableVersion {
            agent: agent.id(),
            version: version.version,
            why,
        };
        let bytes = match self.blobs.get(blob).await {
            Ok(bytes) => bytes,
            Err(e @ (BlobError::Db(_) | BlobError::Io { .. })) => return Err(e.into()),
            Err(e) => return Err(unusable(e.to_string())),
        };
        let policy = Policy::from_bytes(&bytes).map_err(|e| unusable(e.to_string()))?;
        let fits = policy.fits(&agent.definition.space);
        fits.map_err(|e| unusable(e.to_string()))?;
        Ok(policy)
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
            shield: Shield::of(&space, environment == MESH),
            space,
            bound: false,
        })
    }

    /// Binds the agent to the live mesh, which only an agent of the mesh's model can act on.
    fn bind(&mut self) -> Result<(), OrchestrationError> {
        self.bound = self.environment == MESH;
        match self.bound {
            true => Ok(()),
            false => Err(OrchestrationError::BoundElsewhere {
                agent: self.id,
                environment: self.environment.clone(),
            }),
        }
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
    ) -> Result<Self, OrchestrationError> {
        let row = match stored {
            Some(row) => row,
            None => first(&definition, store, clock).await?,
        };
        let (approved, hold) = governance(&row, store, clock).await?;
        let live = LiveAgent {
            policy: load(blobs, &row).await?,
            rule: definition.rule_of(&row)?,
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
            blocked: Family::default(),
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

    /// What the agent could do instead.
    pub(crate) fn choices(&self, acted: &Action) -> Choices {
        Choices::of(&self.definition.space.action, &acted.action, &acted.values)
    }

    /// The names of the discrete actions; none for a continuous one.
    pub(crate) fn action_names(&self) -> Vec<String> {
        match &self.definition.space.action {
            ActionSpace::Discrete(names) => names.iter().map(ToString::to_string).collect(),
            ActionSpace::Continuous(_) => Vec::new(),
        }
    }

    /// The name of a discrete action; empty for a continuous one.
    fn name_of(&self, action: &tars_worlds::Action) -> String {
        match (&self.definition.space.action, action) {
            (ActionSpace::Discrete(names), tars_worlds::Action::Discrete(at)) => {
                names.get(*at).map(ToString::to_string)
            }
            _ => None,
        }
        .unwrap_or_default()
    }

    /// The best known action in a state.
    pub(crate) fn act(
        &self,
        agent_type: Option<&str>,
        state: &[f64],
    ) -> Result<Action, OrchestrationError> {
        if agent_type.is_some_and(|t| t != self.definition.algorithm.name) {
            return Err(OrchestrationError::AgentType);
        }
        let live = self.live();
        let answerer = live.answerer().ok_or(OrchestrationError::Untrained)?;
        let needed = answerer.inputs();
        if state.len() != needed {
            return Err(OrchestrationError::Observation {
                agent: self.definition.id.to_owned(),
                given: state.len(),
                needed,
            });
        }
        if !state.iter().all(|v| (*v as f32).is_finite()) {
            return Err(OrchestrationError::NotFinite(self.id()));
        }
        let observation: Vec<f32> = state.iter().map(|v| *v as f32).collect();
        let Decision { action, values } = answerer.decide(&observation);
        let acted = Action {
            agent: self.definition.id,
            name: self.name_of(&action),
            action,
            values,
            weights_version: live.row.weights_version,
            rule: answerer.rule(),
            shielded: None,
        };
        Ok(match self.is_bound() {
            true => self.shielded(&observation, acted),
            false => acted,
        })
    }

    /// Replaces what the shield does not allow, and counts it.
    pub(crate) fn shielded(&self, observation: &[f32], acted: Action) -> Action {
        let Some(blocked) = self.definition.shield.check(observation, &acted.action) else {
            return acted;
        };
        let labels = BlockedLabels {
            agent: self.id(),
            limit: blocked.limit.name(),
        };
        self.blocked.get_or_create(&labels).inc();
        let space = &self.definition.space.action;
        let is_finite = acted.values.iter().all(|value| value.is_finite());
        Action {
            name: self.name_of(&blocked.instead),
            values: match is_finite {
                true => acted.values,
                false => rules::values(space, &blocked.instead),
            },
            action: blocked.instead.clone(),
            shielded: Some(blocked),
            ..acted
        }
    }

    /// What a bound agent does of what a conflict was resolved to.
    pub(crate) fn allowed(&self, observation: &[f32], resolved: Action) -> Action {
        match self.is_bound() {
            true => self.shielded(observation, resolved),
            false => resolved,
        }
    }
}

impl Answerer {
    fn into_parts(self) -> (Option<Policy>, Option<Rule>) {
        match self {
            Self::Policy(policy) => (Some(policy), None),
            Self::Rule(rule) => (None, Some(rule)),
        }
    }

    /// How many components its observations have.
    pub(crate) fn inputs(&self) -> usize {
        match self {
            Self::Policy(policy) => policy.inputs(),
            Self::Rule(rule) => rule.inputs(),
        }
    }

    /// What it does in a state, with the values that the action was chosen by.
    pub(crate) fn decide(&self, observation: &[f32]) -> Decision {
        match self {
            Self::Policy(policy) => policy.act(observation, &[], &mut Scratch::default()),
            Self::Rule(rule) => rule.decide(observation),
        }
    }

    /// The name of the rule; absent for a policy.
    pub(crate) fn rule(&self) -> Option<&'static str> {
        match self {
            Self::Policy(_) => None,
            Self::Rule(rule) => Some(rule.name()),
        }
    }
}

impl LiveAgent {
    /// What answers; absent while untrained.
    pub(crate) fn answerer(&self) -> Option<Answerer> {
        let rule = self.rule.clone().map(Answerer::Rule);
        rule.or_else(|| self.policy.clone().map(Answerer::Policy))
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

/// The number of the next version. Those on the ladder have larger ones than the live one.
async fn next_version(tx: &mut Transaction, row: &AgentRow) -> Result<i64, OrchestrationError> {
    let newest = store::newest_version(tx, &row.id).await?;
    Ok(newest.max(row.weights_version) + 1)
}

async fn load(blobs: &Blobs, row: &AgentRow) -> Result<Option<Policy>, OrchestrationError> {
    Ok(match &row.weights {
        Some(name) => Some(Policy::from_bytes(&blobs.get(name).await?)?),
        None => None,
    })
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
