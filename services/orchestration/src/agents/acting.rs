//! How agents act: what answers whom, what the shield lets it do, and what is counted of it.

use super::{Agent, Candidate, LiveAgent};
use crate::{
    OrchestrationError,
    choices::Choices,
    rules::{self, Rule},
    shield::{Blocked, Limit},
    stage::{Attempt, Stage},
    trials::{Due, Entries, Fall, Ledger, Passage, Reason, Step},
};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
};
use tars_learn::policy::{Decision, Policy, Scratch};
use tars_runtime::metrics::Metrics;
use tars_worlds::{ActionSpace, Component};

/// How far two continuous actions may differ and still be the same.
const SAME: f32 = 0.05;

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
    /// Where the version that answered stands.
    pub(crate) stage: Stage,
    /// Why the shield replaced the action that was preferred.
    pub(crate) shielded: Option<Blocked>,
}

/// Who asks for a step of the live mesh.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asker<'a> {
    /// By which a version in CANARY meets a share of the callers.
    pub(crate) name: &'a str,
    /// Whose the conflicts are that their steps meet.
    pub(crate) owner: &'a str,
    /// Whether what a bound agent does for them counts for and against its versions. What they observe is only
    /// what they say, so that it must not count from somebody who may not change the agent.
    pub(crate) counts: bool,
}

/// What an agent's steps are counted by, and where they lead.
#[derive(Debug, Clone)]
pub(super) struct Instruments {
    blocked: Family<BlockedLabels, Counter>,
    shadow: Family<ShadowLabels, Counter>,
    ledger: Ledger,
    /// The share of callers, in percent, that a version in CANARY answers.
    canary_percent: u64,
}

/// The steps that a version in SHADOW was asked in, by whether it would have done the same.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ShadowLabels {
    agent: &'static str,
    agreed: &'static str,
}

/// The actions that the shield replaced, by agent and limit.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BlockedLabels {
    agent: &'static str,
    limit: &'static str,
}

impl Agent {
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

    /// What is ACTIVE, with its version.
    pub(crate) fn plays(&self) -> Result<(i64, Answerer), OrchestrationError> {
        let (_, version, answerer) = self.active(&self.live())?;
        Ok((version, answerer))
    }

    /// The best known action of what is ACTIVE in a simulated state.
    #[cfg(test)]
    pub(crate) fn act(&self, observation: &[f32]) -> Result<Action, OrchestrationError> {
        let (version, answerer) = self.plays()?;
        self.act_by(version, answerer, observation)
    }

    /// The best known action of something that is or was ACTIVE, in a simulated state. Nothing is counted: it is
    /// not a step of the live mesh.
    pub(crate) fn act_by(
        &self,
        version: i64,
        answerer: Answerer,
        observation: &[f32],
    ) -> Result<Action, OrchestrationError> {
        self.decide((Stage::Active, version, answerer), observation)
    }

    /// What the agent does of what was decided in a simulated state. Nothing is told of what its shield replaces.
    pub(crate) fn permitted(&self, observation: &[f32], decided: Decision) -> tars_worlds::Action {
        let Decision { action, values } = decided;
        let blocked = match self.is_bound() {
            true => self.definition.shield.judge(observation, &action, &values),
            false => None,
        };
        blocked.map_or(action, |blocked| blocked.instead)
    }

    /// What the agent does in a state of the live mesh. Of a bound agent, the version in CANARY answers a share of
    /// the callers, and the one in SHADOW is asked too where the step counts.
    pub(crate) fn answer(
        &self,
        asker: Asker<'_>,
        agent_type: Option<&str>,
        observation: &[f32],
    ) -> Result<Action, OrchestrationError> {
        if agent_type.is_some_and(|t| t != self.definition.algorithm.name) {
            return Err(OrchestrationError::AgentType);
        }
        let live = self.live();
        let answering = self.answering(&live, asker.name)?;
        if self.is_bound() {
            self.check_state(observation)?;
        }
        let acted = self.decide(answering, observation)?;
        if self.is_bound() && asker.counts {
            self.count(&live, observation, &acted);
        }
        Ok(acted)
    }

    /// Refuses what a live mesh cannot be in, which would count for or against a version as if it had been.
    fn check_state(&self, observation: &[f32]) -> Result<(), OrchestrationError> {
        let space = &self.definition.space.observation;
        let is_outside = |(component, value): &(&Component, &f32)| {
            value.is_finite() && !(component.low..=component.high).contains(*value)
        };
        match space.iter().zip(observation).find(is_outside) {
            None => Ok(()),
            Some((component, value)) => Err(OrchestrationError::OutsideSpace {
                agent: self.id(),
                component: component.name.to_string(),
                value: *value,
                low: component.low,
                high: component.high,
            }),
        }
    }

    fn decide(
        &self,
        (stage, version, answerer): (Stage, i64, Answerer),
        observation: &[f32],
    ) -> Result<Action, OrchestrationError> {
        let needed = answerer.inputs();
        if observation.len() != needed {
            return Err(OrchestrationError::Observation {
                agent: self.definition.id.to_owned(),
                given: observation.len(),
                needed,
            });
        }
        if !observation.iter().all(|v| v.is_finite()) {
            return Err(OrchestrationError::NotFinite(self.id()));
        }
        let Decision { action, values } = answerer.decide(observation);
        let acted = Action {
            agent: self.definition.id,
            name: self.name_of(&action),
            action,
            values,
            weights_version: version,
            rule: answerer.rule(),
            stage,
            shielded: None,
        };
        Ok(self.allowed(observation, acted))
    }

    /// What answers a caller: the version in CANARY for some, always the same ones.
    fn answering(
        &self,
        live: &LiveAgent,
        caller: &str,
    ) -> Result<(Stage, i64, Answerer), OrchestrationError> {
        let percent = self.instruments.canary_percent;
        let canary = live.canary.as_ref().filter(|_| self.is_bound());
        match canary.filter(|canary| share_of(caller, canary.attempt.version) < percent) {
            Some(Candidate { attempt, answerer }) => {
                Ok((Stage::Canary, attempt.version, answerer.clone()))
            }
            None => self.active(live),
        }
    }

    /// Counts what the shield let a version do, and whether the one in SHADOW would have done the same.
    fn count(&self, live: &LiveAgent, observation: &[f32], acted: &Action) {
        self.count_blocked(acted);
        let how = match &acted.shielded {
            None => Passage::Allowed,
            Some(blocked) if blocked.limit == Limit::Finite => Passage::NotFinite,
            Some(_) => Passage::Blocked,
        };
        let objective = &self.definition.objective;
        let breached = objective.is_some_and(|objective| objective.is_breached(observation));
        let shadow = live
            .shadow
            .as_ref()
            .filter(|shadow| shadow.answerer.inputs() == observation.len());
        let shadow = shadow.map(|Candidate { attempt, answerer }| {
            let decided = answerer.decide(observation);
            let shield = &self.definition.shield;
            let blocked = shield.judge(observation, &decided.action, &decided.values);
            let would = blocked.map_or(decided.action, |blocked| blocked.instead);
            (*attempt, agree(&would, &acted.action))
        });
        let mut due = Vec::new();
        {
            let mut tally = self.tally.lock();
            let attempt = attempted(live, acted);
            due.extend(tally.answered(acted.stage, attempt, Step { how, breached }));
            if live.hold.is_some() && acted.stage == Stage::Active && acted.rule.is_none() {
                due.extend(tally.watched(attempt, how));
            }
            due.extend(shadow.and_then(|(attempt, agreed)| tally.shadowed(attempt, agreed)));
        }
        if let Some((_, agreed)) = shadow {
            let labels = ShadowLabels {
                agent: self.id(),
                agreed: if agreed { "yes" } else { "no" },
            };
            self.instruments.shadow.get_or_create(&labels).inc();
        }
        for due in due {
            if let Err(due) = self.instruments.ledger.enter(self.id(), due) {
                self.undone(due);
            }
        }
    }

    /// What steps led to could not be done, and is led to again.
    pub(crate) fn undone(&self, due: Due) {
        self.tally.lock().undone(due);
    }

    fn count_blocked(&self, acted: &Action) {
        if let Some(blocked) = &acted.shielded {
            let labels = BlockedLabels {
                agent: self.id(),
                limit: blocked.limit.name(),
            };
            self.instruments.blocked.get_or_create(&labels).inc();
        }
    }

    /// Replaces what the shield does not allow.
    fn shielded(&self, observation: &[f32], acted: Action) -> Action {
        let shield = &self.definition.shield;
        let Some(blocked) = shield.judge(observation, &acted.action, &acted.values) else {
            return acted;
        };
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

    /// An action, or what a bound agent does instead of it. Nothing is counted.
    pub(crate) fn allowed(&self, observation: &[f32], action: Action) -> Action {
        match self.is_bound() {
            true => self.shielded(observation, action),
            false => action,
        }
    }

    /// What the agent does on the live mesh of what a conflict was resolved to.
    pub(crate) fn settle_for(&self, observation: &[f32], resolved: Action) -> Action {
        let is_new = resolved.shielded.is_none();
        let allowed = self.allowed(observation, resolved);
        if is_new {
            self.count_blocked(&allowed);
        }
        allowed
    }

    /// What is ACTIVE.
    fn active(&self, live: &LiveAgent) -> Result<(Stage, i64, Answerer), OrchestrationError> {
        let version = live.row.weights_version;
        match (live.answerer(), &live.unusable) {
            (Some(answerer), _) => Ok((Stage::Active, version, answerer)),
            (None, None) => Err(OrchestrationError::Untrained),
            (None, Some(why)) => Err(OrchestrationError::UnusableVersion {
                agent: self.id(),
                version,
                why: why.clone(),
            }),
        }
    }

    /// An agent that is bound to the live mesh falls to its rule when its weights turn out to be damaged or lost.
    pub(super) fn fall_if_unusable(&self) {
        let live = self.live();
        let Some(why) = live.unusable.clone().filter(|_| self.is_bound()) else {
            return;
        };
        let due = Due::Fall(Fall {
            stage: Stage::Active,
            attempt: Attempt {
                version: live.row.weights_version,
                trial: 0,
            },
            why: Reason::Unusable(why),
        });
        if let Err(due) = self.instruments.ledger.enter(self.id(), due) {
            tracing::error!(agent = self.id(), ?due, "too much waits for the fall");
        }
    }
}

/// The place of a caller among a hundred, for a version: a caller meets one version only (FNV-1a, 64 bits).
fn share_of(caller: &str, version: i64) -> u64 {
    let bytes = version.to_le_bytes().into_iter().chain(caller.bytes());
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    // The lower bits of the hash of a short text are the least mixed ones.
    (hash >> 32) % 100
}

/// The version that answered, in its trial. The ACTIVE one is in none.
fn attempted(live: &LiveAgent, acted: &Action) -> Attempt {
    let canary = live.canary.as_ref().map(|there| there.attempt);
    let canary = canary.filter(|_| acted.stage == Stage::Canary);
    canary.unwrap_or(Attempt {
        version: acted.weights_version,
        trial: 0,
    })
}

/// Whether two versions do the same.
fn agree(one: &tars_worlds::Action, other: &tars_worlds::Action) -> bool {
    use tars_worlds::Action::Continuous;
    match (one, other) {
        (Continuous(one), Continuous(other)) => {
            one.len() == other.len() && one.iter().zip(other).all(|(a, b)| (a - b).abs() <= SAME)
        }
        (one, other) => one == other,
    }
}

impl Instruments {
    pub(super) fn new(metrics: &Metrics, canary_percent: u64) -> (Self, Entries) {
        let (ledger, entries) = Ledger::new();
        let instruments = Self {
            blocked: metrics.register(
                "agent_actions_blocked",
                "Actions of agents that the action shield replaced, by agent and limit",
                Family::default(),
            ),
            shadow: metrics.register(
                "agent_shadow_steps",
                "Steps that a version in SHADOW was asked in, by agent and whether it agreed",
                Family::default(),
            ),
            ledger,
            canary_percent,
        };
        (instruments, entries)
    }
}

impl Answerer {
    pub(super) fn into_parts(self) -> (Option<Policy>, Option<Rule>) {
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
        self.decide_with(observation, &mut Scratch::default())
    }

    /// As [`decide`](Self::decide), with the buffers of earlier decisions.
    pub(crate) fn decide_with(&self, observation: &[f32], scratch: &mut Scratch) -> Decision {
        match self {
            Self::Policy(policy) => policy.act(observation, &[], scratch),
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
