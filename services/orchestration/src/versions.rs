//! The versions of an agent's weights: which are retained, and how one is made live again. One of the agent's
//! rules can be made live too, and is a version like any other.
//!
//! `weights_version` counts the changes of what is live, so that a client can order the actions that it was
//! given. Making an earlier version's policy live again is such a change: it gets the next number, and its
//! row names the version whose policy it is. To go back therefore takes nothing away, and can be undone in
//! the same way.
//!
//! A version may be promoted while a run trains the agent: to replace a bad policy must not wait for hours of
//! training. The run goes on from where it was, and what it installs at its end is the next change, which can
//! be rolled back in turn.

use crate::{
    Orchestration, OrchestrationError,
    agents::{Agent, LiveAgent},
    changes::ensure_not_held,
    ladder::{Evidence, Move, way_back},
    rules::Rule,
    serving::{Made, Rollout},
    stage::{Incumbent, Refusal, Stage},
    store::{self, AgentRow, ListedVersion, VersionRow},
    trials::Fall,
    turn::Turn,
};
use std::{sync::Arc, time::Duration};
use tars_runtime::{
    audit::{self, Record, Severity},
    db::Transaction,
    page,
    tasks::to_the_end,
};
use tars_worlds::baseline;

/// How many of the retained versions an error names.
const NAMED: i64 = 20;
/// More versions than are retained of an agent, among which the way back is.
const RETAINED: i64 = 10_000;

/// What is to be live.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    Version(i64),
    /// One of the agent's rules, by its name.
    Rule(String),
    /// The one that was live before.
    Before,
}

/// A request to make an earlier version of the weights live again.
#[derive(Debug, Clone)]
pub(crate) struct Promotion {
    pub(crate) by: String,
    pub(crate) reason: String,
    pub(crate) target: Target,
    /// The version that has to be live.
    pub(crate) expected: Option<i64>,
    /// Of an agent that is bound to the live mesh: where its version is to stand. Without it, one step up.
    pub(crate) stage: Option<Stage>,
}

/// What a target is found to be.
pub(crate) enum Found {
    Version(VersionRow),
    Rule(Rule),
}

impl Found {
    fn is_live(&self, live: &LiveAgent) -> bool {
        match self {
            Self::Version(version) => live.answers_by(version),
            Self::Rule(rule) => live.row.rule.as_deref() == Some(rule.name()),
        }
    }

    /// What the audit trail says of it.
    fn describe(&self, record: Record) -> Record {
        match self {
            Self::Version(version) => record.detail("restored", version.version),
            Self::Rule(rule) => record.detail("rule", rule.name()),
        }
    }
}

impl Target {
    fn event(&self) -> &'static str {
        match self {
            Self::Version(_) | Self::Rule(_) => "agent.promoted",
            Self::Before => "agent.rolled_back",
        }
    }

    /// Finds what is meant.
    pub(crate) async fn find(
        &self,
        tx: &mut Transaction,
        agent: &Agent,
        live: &LiveAgent,
    ) -> Result<Found, OrchestrationError> {
        let (id, version) = (live.row.id.as_str(), live.row.weights_version);
        match self {
            Self::Version(version) => match store::version(tx, id, *version).await? {
                Some(row) => Ok(Found::Version(row)),
                None => Err(not_retained(tx, id, *version).await?),
            },
            Self::Rule(name) => Ok(Found::Rule(agent.definition.rule(name)?)),
            Self::Before => {
                let before = store::versions_before(tx, id, version, RETAINED).await?;
                let answers = |row: &VersionRow| live.answers_by(row);
                match way_back(before, agent.is_bound(), answers) {
                    Some(row) => Ok(Found::Version(row)),
                    None => last_resort(agent, live),
                }
            }
        }
    }
}

/// The default rule of an agent that is bound to the live mesh, unless that answers already: it has no version that
/// one could go back to.
fn last_resort(agent: &Agent, live: &LiveAgent) -> Result<Found, OrchestrationError> {
    if !agent.is_bound() || live.answerer().is_none() {
        return Err(OrchestrationError::NoEarlierVersion);
    }
    let found = Found::Rule(agent.definition.baseline()?);
    match found.is_live(live) {
        true => Err(OrchestrationError::NoEarlierVersion),
        false => Ok(found),
    }
}

pub(crate) async fn not_retained(
    tx: &mut Transaction,
    agent: &str,
    version: i64,
) -> Result<OrchestrationError, OrchestrationError> {
    let retained = store::versions_before(tx, agent, i64::MAX, NAMED).await?;
    Ok(OrchestrationError::NotRetained {
        agent: agent.to_owned(),
        version,
        retained: retained.iter().map(|row| row.version).collect(),
    })
}

impl Orchestration {
    /// The retained versions of an agent's weights, the newest first, and the token of the next page.
    pub(crate) async fn versions(
        &self,
        agent: &Agent,
        token: &str,
        page_size: u32,
    ) -> Result<(Vec<ListedVersion>, String), OrchestrationError> {
        let before = page::start(token, i64::MAX)?;
        let size = page::size(page_size);
        let rows = self.store.versions(agent.id(), before, size).await?;
        Ok(rows.cut(|listed| listed.row.version.to_string()))
    }

    /// Makes an earlier version of an agent's weights live again, or one of its rules. Returns the new live
    /// state, and which replicas serve it, as [`reload`](Self::reload) does. Nothing changes where it is live
    /// already.
    pub(crate) async fn promote(
        self: &Arc<Self>,
        agent: Arc<Agent>,
        promotion: Promotion,
    ) -> Result<(Arc<LiveAgent>, Rollout), OrchestrationError> {
        let this = Arc::clone(self);
        let made = to_the_end(async move { this.do_promote(&agent, promotion).await }).await?;
        let rollout = self.rollout(made.position).await?;
        Ok((made.live, rollout))
    }

    async fn do_promote(
        &self,
        agent: &Agent,
        promotion: Promotion,
    ) -> Result<Made, OrchestrationError> {
        let mut tx = self.turn(agent, "agents.promote").await?;
        ensure_not_held(&mut tx, agent.id(), None).await?;
        let live = agent.live();
        expect(promotion.expected, live.row.weights_version)?;
        let found = promotion.target.find(&mut tx, agent, &live).await?;
        match &found {
            Found::Version(version)
                if agent.is_bound() && promotion.climbs() && version.rule.is_none() =>
            {
                let version = version.clone();
                self.climb(tx, agent, promotion, version).await
            }
            _ => {
                promotion.is_to_be_active(agent)?;
                self.make_active(tx, agent, promotion, found).await
            }
        }
    }

    async fn make_active(
        &self,
        mut tx: Turn<'_>,
        agent: &Agent,
        promotion: Promotion,
        found: Found,
    ) -> Result<Made, OrchestrationError> {
        if found.is_live(&agent.live()) {
            return tx.commit_unchanged().await;
        }
        let next = self.activate(&mut tx, agent, &promotion, &found).await?;
        tx.commit(next).await
    }

    /// Makes what was found the next version, which answers. The caller commits.
    pub(crate) async fn activate(
        &self,
        tx: &mut Transaction,
        agent: &Agent,
        promotion: &Promotion,
        found: &Found,
    ) -> Result<LiveAgent, OrchestrationError> {
        let live = agent.live();
        let next = match found {
            Found::Version(version) => self.agents.restore(tx, agent, version).await?,
            Found::Rule(rule) => self.agents.follow(tx, agent, rule.clone()).await?,
        };
        let record = self
            .record(promotion.target.event(), &promotion.by, &next)
            .detail("weights_version", next.row.weights_version)
            .detail("replaced", live.row.weights_version)
            .detail("reason", &promotion.reason);
        audit::insert(tx, &found.describe(record)).await?;
        Ok(next)
    }
}

/// The ladder of an agent that is bound to the live mesh.
impl Orchestration {
    /// Moves a version to the stage that a promotion asks for.
    async fn climb(
        &self,
        mut tx: Turn<'_>,
        agent: &Agent,
        promotion: Promotion,
        version: VersionRow,
    ) -> Result<Made, OrchestrationError> {
        let live = agent.live();
        let from = Stage::of(&version, live.row.places());
        let refused = |why| OrchestrationError::Ladder {
            agent: agent.id(),
            version: version.version,
            stage: from,
            why,
        };
        let to = match from.promoted(promotion.stage).map_err(refused)? {
            Move::Stay => return tx.commit_unchanged().await,
            Move::Down(to) => to,
            Move::Up(to) => {
                self.admits_directly(to).map_err(refused)?;
                // That it fits and its numbers are finite.
                self.agents.answerer_of(agent, &version).await?;
                let admitted = self.admits(&mut tx, agent, &version, to).await?;
                admitted.map_err(refused)?;
                to
            }
        };
        if to == Stage::Active && live.answers_by(&version) {
            return tx.commit_unchanged().await;
        }
        let next = self.stage(&mut tx, agent, &promotion, version, to).await?;
        tx.commit(next).await
    }

    /// Whether one person may put a version into a stage.
    fn admits_directly(&self, to: Stage) -> Result<(), Refusal> {
        match to {
            Stage::Canary | Stage::Active if self.governed => Err(Refusal::Governed(to)),
            _ => Ok(()),
        }
    }

    /// Puts a version that may stand there into a stage. The caller commits.
    pub(crate) async fn stage(
        &self,
        tx: &mut Transaction,
        agent: &Agent,
        promotion: &Promotion,
        version: VersionRow,
        to: Stage,
    ) -> Result<LiveAgent, OrchestrationError> {
        if to == Stage::Active {
            let found = Found::Version(VersionRow {
                climbed: true,
                ..version
            });
            return self.activate(tx, agent, promotion, &found).await;
        }
        let live = agent.live();
        let from = Stage::of(&version, live.row.places());
        let mut next = LiveAgent::clone(&live);
        let displaced = next.row.place(version.version, to);
        next.row.updated_us = self.clock.now_us();
        if to == Stage::Canary {
            store::begin_trial(tx, agent.id(), version.version).await?;
        }
        self.agents.arrange(tx, agent, &mut next).await?;
        store::update_weights(tx, &next.row).await?;
        let mut record = self
            .record("agent.staged", &promotion.by, &next)
            .detail("weights_version", version.version)
            .detail("from", from)
            .detail("to", to)
            .detail("reason", &promotion.reason);
        if let Some(displaced) = displaced {
            record = record.detail("displaced", displaced);
        }
        audit::insert(tx, &record).await?;
        Ok(next)
    }

    /// Loads what stands on the ladder, before anything is served.
    pub(crate) async fn load_ladder(&self) -> Result<(), OrchestrationError> {
        for agent in self.agents.iter().filter(|agent| agent.is_bound()) {
            // A turn begins with what is stored.
            drop(self.turn(agent, "agents.load").await?);
        }
        Ok(())
    }

    /// Takes a version of a bound agent out of where it answers: from CANARY to SHADOW, and from ACTIVE to the
    /// agent's default rule, which is the end of the fall. A governed change that holds the agent does not
    /// prevent it. Nothing changes where the version stands elsewhere by now.
    pub(crate) async fn fall_back(
        &self,
        agent: &Agent,
        fall: &Fall,
    ) -> Result<(), OrchestrationError> {
        let mut tx = self.turn(agent, "agents.fall_back").await?;
        let live = agent.live();
        let default = agent.definition.baseline()?;
        let next = match fall.stage {
            Stage::Canary
                if live.canary.as_ref().map(|there| there.attempt) == Some(fall.attempt) =>
            {
                let mut next = LiveAgent::clone(&live);
                next.row.place(fall.attempt.version, Stage::Shadow);
                next.row.updated_us = self.clock.now_us();
                self.agents.arrange(&mut tx, agent, &mut next).await?;
                store::update_weights(&mut tx, &next.row).await?;
                next
            }
            Stage::Active
                if live.row.weights_version == fall.attempt.version
                    && live.row.rule.as_deref() != Some(default.name()) =>
            {
                store::take_down(&mut tx, agent.id(), fall.attempt.version).await?;
                self.agents.follow(&mut tx, agent, default).await?
            }
            _ => return Ok(()),
        };
        let why = fall.why.to_string();
        let fallen = (fall.attempt, fall.stage);
        store::put_fall(&mut tx, agent.id(), fallen, &why, self.clock.now_us()).await?;
        let record = self
            .record("agent.fell_back", "orchestration", &next)
            .severity(Severity::Critical)
            .detail("weights_version", fall.attempt.version)
            .detail("from", fall.stage)
            .detail("live", next.row.weights_version)
            .detail("reason", fall.why.as_str())
            .detail("why", &why);
        audit::insert(&mut tx, &record).await?;
        tx.commit(next).await?;
        tracing::warn!(agent = agent.id(), version = fall.attempt.version, stage = %fall.stage, reason = fall.why.as_str(), why, "a version fell back");
        Ok(())
    }

    /// Whether the evidence lets a version climb.
    pub(crate) async fn admits(
        &self,
        tx: &mut Transaction,
        agent: &Agent,
        version: &VersionRow,
        to: Stage,
    ) -> Result<Result<(), Refusal>, OrchestrationError> {
        let calibration = store::latest_calibration(tx).await?;
        let age_of = |at_us: i64| {
            let age = self.clock.now_us().saturating_sub(at_us);
            Duration::from_micros(u64::try_from(age).unwrap_or(0))
        };
        let comparison = store::comparison(tx, agent.id(), version.version).await?;
        let evidence = Evidence {
            agent: agent.id(),
            incumbent: incumbent(agent, &agent.live()),
            calibration: calibration
                .as_ref()
                .map(|row| (&row.finding, age_of(row.finding.tested_to_us))),
            calibration_life: self.calibrations.life(),
            comparison: comparison.as_ref(),
            trial: store::trial(tx, agent.id(), version.version).await?,
        };
        Ok(evidence.admits(to))
    }
}

/// What a version replaces when it becomes ACTIVE.
pub(crate) fn incumbent(agent: &Agent, live: &LiveAgent) -> Incumbent {
    let untrained = live.row.weights.is_none() && live.row.rule.is_none();
    let default = baseline(agent.id()).filter(|_| untrained);
    Incumbent {
        version: live.row.weights_version,
        rule: live.row.rule.clone().or(default.map(str::to_owned)),
    }
}

impl Promotion {
    /// Whether a bound agent's version climbs by it. The way back is always open, to what climbed once and did not
    /// fall, else to a rule.
    fn climbs(&self) -> bool {
        self.target != Target::Before
    }

    /// Refuses a stage that what is promoted cannot take.
    fn is_to_be_active(&self, agent: &Agent) -> Result<(), OrchestrationError> {
        let why = match self.stage {
            None | Some(Stage::Active) => return Ok(()),
            Some(_) if agent.is_bound() => Refusal::RuleIsActive,
            Some(_) => Refusal::NotBound,
        };
        let agent = agent.id();
        Err(OrchestrationError::NoStage { agent, why })
    }
}

impl AgentRow {
    /// Puts a version into a stage below ACTIVE, and returns the one that was there.
    fn place(&mut self, version: i64, stage: Stage) -> Option<i64> {
        self.leave(version);
        match stage {
            Stage::Shadow => self.shadow.replace(version),
            Stage::Canary => self.canary.replace(version),
            Stage::Sim | Stage::Active | Stage::Retired => None,
        }
    }

    /// Takes a version out of its stage.
    pub(crate) fn leave(&mut self, version: i64) {
        for place in [&mut self.shadow, &mut self.canary] {
            place.take_if(|there| *there == version);
        }
    }
}

fn expect(expected: Option<i64>, live: i64) -> Result<(), OrchestrationError> {
    match expected {
        Some(expected) if expected != live => {
            Err(OrchestrationError::WeightsVersion { live, expected })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
