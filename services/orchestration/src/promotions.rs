//! Governed promotions: the steps up the ladder that a proposal takes once somebody else has approved it.
//!
//! HyperSync asks for a step, and every gate of the ladder binds it as it binds a person. The step holds the agent
//! like a governed change of hyperparameters, and is idempotent by its operation: the number that is kept of an
//! operation says where it put the version. A step that was taken back, or was given up before it was taken, is
//! void from then on, so that no late attempt takes it.

use crate::{
    Orchestration, OrchestrationError,
    agents::{Agent, LiveAgent},
    changes::{Governed, ensure_not_held},
    ladder::Move,
    serving::Made,
    stage::{Attempt, Comparison, Counts, Incumbent, MIN_SEEDS, Refusal, Stage},
    store::{self, Operation, VersionRow},
    turn::Turn,
    versions::{Found, Promotion, Target, incumbent, not_retained},
};
use std::sync::Arc;
use tars_runtime::{page, tasks::to_the_end};

/// Where a step up has put a version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Placement {
    pub(crate) stage: Stage,
    /// One that becomes ACTIVE gets the next number.
    pub(crate) version: i64,
    /// The trial that a version in CANARY is in; 0 elsewhere.
    pub(crate) trial: i64,
}

/// A step up, idempotent by its operation.
#[derive(Debug, Clone)]
pub(crate) struct StepUp {
    pub(crate) change: Governed,
    pub(crate) operation_id: String,
    pub(crate) version: i64,
    pub(crate) to: Stage,
    /// The version that has to be live.
    pub(crate) incumbent: i64,
}

/// The way back of a step up.
#[derive(Debug, Clone)]
pub(crate) struct StepBack {
    pub(crate) change: Governed,
    /// That of the step up.
    pub(crate) operation_id: String,
    pub(crate) version: i64,
    pub(crate) from: Stage,
    pub(crate) to: Stage,
    /// The version that was live when the step was proposed; 0 where nothing was.
    pub(crate) incumbent: i64,
}

/// Where a version stands, and what is known about it.
#[derive(Debug)]
pub(crate) struct Standing {
    pub(crate) stage: Stage,
    pub(crate) trial: i64,
    pub(crate) incumbent: Incumbent,
    pub(crate) counts: Counts,
    /// Why it fell by itself, if it did since it last climbed.
    pub(crate) fell: Option<String>,
    /// With what answers now, on as many seeds as the ladder asks for.
    pub(crate) comparison: Option<Comparison>,
}

/// What would become of a step up.
#[derive(Debug)]
pub(crate) struct Checked {
    pub(crate) to: Stage,
    /// What a gate says of it now.
    pub(crate) refusal: Option<OrchestrationError>,
}

impl Placement {
    /// Where an operation put a version, by the number that is kept of it.
    fn of(version: i64, stage: Stage, number: i64) -> Self {
        match stage {
            Stage::Active => Self {
                stage,
                version: number,
                trial: 0,
            },
            _ => Self {
                stage,
                version,
                trial: number,
            },
        }
    }

    fn number(self) -> i64 {
        match self.stage {
            Stage::Active => self.version,
            _ => self.trial,
        }
    }

    /// Where a version stands in a state that a step has left.
    fn after(version: i64, stage: Stage, next: &LiveAgent) -> Self {
        let number = match stage {
            Stage::Active => next.row.weights_version,
            _ => trial_in(next, version),
        };
        Self::of(version, stage, number)
    }

    /// Whether the version stands there. One that fell, and was put there anew, does not.
    fn lasts(self, live: &LiveAgent) -> bool {
        match self.stage {
            Stage::Active => live.row.weights_version == self.version,
            Stage::Canary => {
                let Self { version, trial, .. } = self;
                let there = live.canary.as_ref().map(|candidate| candidate.attempt);
                there == Some(Attempt { version, trial })
            }
            Stage::Shadow => live.row.shadow == Some(self.version),
            Stage::Sim | Stage::Retired => false,
        }
    }
}

/// The trial of a version in CANARY; 0 elsewhere.
fn trial_in(live: &LiveAgent, version: i64) -> i64 {
    let canary = live.canary.as_ref().map(|candidate| candidate.attempt);
    let there = canary.filter(|attempt| attempt.version == version);
    there.map_or(0, |attempt| attempt.trial)
}

impl Governed {
    /// As a promotion of the ladder.
    fn promotion(&self, target: Target) -> Promotion {
        Promotion {
            by: self.by.clone(),
            reason: format!("proposal {}", self.change_id),
            target,
            expected: None,
            stage: None,
        }
    }
}

fn ensure_bound(agent: &Agent) -> Result<(), OrchestrationError> {
    match agent.is_bound() {
        true => Ok(()),
        false => Err(OrchestrationError::NoStage {
            agent: agent.id(),
            why: Refusal::NotBound,
        }),
    }
}

/// Where a step up of a version leads: one stage higher, and nowhere else.
fn upwards(version: &VersionRow, from: Stage, to: Option<Stage>) -> Result<Stage, Refusal> {
    if version.rule.is_some() {
        return Err(Refusal::RuleIsActive);
    }
    match from.promoted(to)? {
        Move::Up(to) => Ok(to),
        Move::Stay => Err(Refusal::NotUp {
            from,
            to: to.unwrap_or(from),
        }),
        Move::Down(to) => Err(Refusal::NotUp { from, to }),
    }
}

impl Orchestration {
    /// Where a version stands.
    pub(crate) async fn standing(
        &self,
        agent: &Agent,
        version: i64,
    ) -> Result<Standing, OrchestrationError> {
        ensure_bound(agent)?;
        let after = version.saturating_add(1);
        let listed = self
            .store
            .versions(agent.id(), after, page::size(1))
            .await?;
        let listed = listed
            .rows
            .into_iter()
            .find(|found| found.row.version == version);
        let listed =
            listed.ok_or_else(|| OrchestrationError::NotFound("version", version.to_string()))?;
        let comparison = self.store.comparison(agent.id(), version).await?;
        // The places and the trial are of one moment.
        let live = agent.current()?;
        let incumbent = incumbent(agent, &live);
        let says_enough = |c: &Comparison| c.incumbent == incumbent && c.seeds >= MIN_SEEDS;
        Ok(Standing {
            stage: Stage::of(&listed.row, live.row.places()),
            trial: trial_in(&live, version),
            comparison: comparison.filter(says_enough),
            incumbent,
            counts: listed.counts,
            fell: listed.fell,
        })
    }

    /// Whether a step up could be taken, and what the gates say of it now.
    pub(crate) async fn check_promotion(
        &self,
        agent: &Agent,
        version: i64,
        to: Option<Stage>,
    ) -> Result<Checked, OrchestrationError> {
        ensure_bound(agent)?;
        let mut tx = self.turn(agent, "promotions.check").await?;
        let (row, from) = self.found(&mut tx, agent, version).await?;
        let refused = refused_in(agent, version, from);
        let to = upwards(&row, from, to).map_err(&refused)?;
        self.agents.answerer_of(agent, &row).await?;
        let mut refusal = self.admits(&mut tx, agent, &row, to).await?.err();
        if let Some(Refusal::NotCompared(_) | Refusal::FewSeeds(_)) = refusal
            && to == Stage::Active
        {
            // That can be made good. What a comparison does not help against comes first.
            let trial = store::trial(&mut tx, agent.id(), version).await?;
            refusal = trial.is_passed().err().or(refusal);
        }
        Ok(Checked {
            to,
            refusal: refusal.map(refused),
        })
    }

    /// A retained version, and its stage.
    async fn found(
        &self,
        tx: &mut Turn<'_>,
        agent: &Agent,
        version: i64,
    ) -> Result<(VersionRow, Stage), OrchestrationError> {
        let Some(row) = store::version(tx, agent.id(), version).await? else {
            return Err(not_retained(tx, agent.id(), version).await?);
        };
        let from = Stage::of(&row, agent.live().row.places());
        Ok((row, from))
    }

    /// Compares a version with what answers now, unless a stored comparison says enough.
    pub(crate) async fn compare_for_promotion(
        self: &Arc<Self>,
        agent: Arc<Agent>,
        caller: String,
        version: i64,
    ) -> Result<Comparison, OrchestrationError> {
        match self.standing(&agent, version).await?.comparison {
            Some(stored) => Ok(stored),
            None => self.compare(agent, caller, version, MIN_SEEDS).await,
        }
    }

    /// Takes a version one step up for a governed change, and holds the agent.
    pub(crate) async fn step_up(
        self: &Arc<Self>,
        agent: Arc<Agent>,
        step: StepUp,
    ) -> Result<Placement, OrchestrationError> {
        ensure_bound(&agent)?;
        let this = Arc::clone(self);
        let taken = to_the_end(async move { this.do_step_up(&agent, step).await });
        let (placement, made) = taken.await?;
        self.served_everywhere(made.position).await?;
        Ok(placement)
    }

    async fn do_step_up(
        &self,
        agent: &Agent,
        step: StepUp,
    ) -> Result<(Placement, Made), OrchestrationError> {
        let mut tx = self.turn(agent, "promotions.apply").await?;
        let held = step.change.admit(&mut tx, agent).await?;
        let done = store::operation(&mut tx, &step.operation_id).await?;
        let (next, placement) = match done {
            Some(Operation::Void) => {
                return Err(OrchestrationError::Superseded(step.change.change_id));
            }
            Some(Operation::Done(number)) => {
                let placement = Placement::of(step.version, step.to, number);
                let live = agent.live();
                // Done before. The hold is renewed if it was released and the version still stands there.
                if held || !placement.lasts(&live) {
                    return Ok((placement, tx.commit_unchanged().await?));
                }
                (LiveAgent::clone(&live), placement)
            }
            None => self.climb_governed(&mut tx, agent, &step).await?,
        };
        let operation = &step.operation_id;
        let made = self.commit_applied(tx, next, &step.change, operation);
        Ok((placement, made.await?))
    }

    /// Takes the step for the first time, if every gate lets the version pass.
    async fn climb_governed(
        &self,
        tx: &mut Turn<'_>,
        agent: &Agent,
        step: &StepUp,
    ) -> Result<(LiveAgent, Placement), OrchestrationError> {
        let live = agent.live().row.weights_version;
        if live != step.incumbent {
            let expected = step.incumbent;
            return Err(OrchestrationError::WeightsVersion { live, expected });
        }
        let (row, from) = self.found(tx, agent, step.version).await?;
        let refused = refused_in(agent, step.version, from);
        let to = upwards(&row, from, Some(step.to)).map_err(&refused)?;
        self.agents.answerer_of(agent, &row).await?;
        let admitted = self.admits(tx, agent, &row, to).await?;
        admitted.map_err(refused)?;
        let promotion = step.change.promotion(Target::Version(step.version));
        let next = self.stage(tx, agent, &promotion, row, to).await?;
        let placement = Placement::after(step.version, to, &next);
        let (id, done) = (&step.operation_id, Operation::Done(placement.number()));
        store::insert_operation(tx, id, agent.id(), done, next.row.updated_us).await?;
        Ok((next, placement))
    }

    /// Takes a step up back, where it was taken and the version still stands there. Returns whether it did.
    pub(crate) async fn step_back(
        self: &Arc<Self>,
        agent: Arc<Agent>,
        step: StepBack,
    ) -> Result<bool, OrchestrationError> {
        ensure_bound(&agent)?;
        let this = Arc::clone(self);
        let taken = to_the_end(async move { this.do_step_back(&agent, step).await });
        let (taken_down, made) = taken.await?;
        self.served_everywhere(made.position).await?;
        Ok(taken_down)
    }

    async fn do_step_back(
        &self,
        agent: &Agent,
        step: StepBack,
    ) -> Result<(bool, Made), OrchestrationError> {
        let mut tx = self.turn(agent, "promotions.revert").await?;
        store::admit(&mut tx, &step.change.work()).await?;
        let live = agent.live();
        let stands = match store::operation(&mut tx, &step.operation_id).await? {
            None => {
                let (id, now_us) = (&step.operation_id, self.clock.now_us());
                let (agent, void) = (agent.id(), Operation::Void);
                store::insert_operation(&mut tx, id, agent, void, now_us).await?;
                false
            }
            Some(Operation::Void) => false,
            Some(Operation::Done(number)) => {
                Placement::of(step.version, step.to, number).lasts(&live)
            }
        };
        if !stands {
            return Ok((false, tx.commit_unchanged().await?));
        }
        ensure_not_held(&mut tx, agent.id(), Some(&step.change.change_id)).await?;
        let next = self.lower(&mut tx, agent, &step, &live).await?;
        Ok((true, tx.commit(next).await?))
    }

    /// The ladder's way down: from ACTIVE to what answered when the step was proposed, else as a roll-back goes or,
    /// where nothing answered before, to the agent's default rule; from the others to where the version came from.
    async fn lower(
        &self,
        tx: &mut Turn<'_>,
        agent: &Agent,
        step: &StepBack,
        live: &LiveAgent,
    ) -> Result<LiveAgent, OrchestrationError> {
        if step.to != Stage::Active {
            let (row, _) = self.found(tx, agent, step.version).await?;
            let promotion = step.change.promotion(Target::Version(step.version));
            return self.stage(tx, agent, &promotion, row, step.from).await;
        }
        // Nobody brings it back alone by a roll-back.
        store::take_down(tx, agent.id(), live.row.weights_version).await?;
        let found = match self.stored_incumbent(tx, agent, step, live).await? {
            Some(incumbent) => Found::Version(incumbent),
            None => match Target::Before.find(tx, agent, live).await {
                Err(OrchestrationError::NoEarlierVersion) => {
                    Found::Rule(agent.definition.baseline()?)
                }
                found => found?,
            },
        };
        let promotion = step.change.promotion(Target::Before);
        self.activate(tx, agent, &promotion, &found).await
    }

    /// What answered when a step was proposed, unless it fell since, is not retained, or cannot act any more.
    async fn stored_incumbent(
        &self,
        tx: &mut Turn<'_>,
        agent: &Agent,
        step: &StepBack,
        live: &LiveAgent,
    ) -> Result<Option<VersionRow>, OrchestrationError> {
        let found = store::version(tx, agent.id(), step.incumbent).await?;
        let Some(row) = found.filter(|row| row.served && !row.fell && !live.answers_by(row)) else {
            return Ok(None);
        };
        match self.agents.answerer_of(agent, &row).await {
            Ok(_) => Ok(Some(row)),
            Err(
                OrchestrationError::UnusableVersion { .. } | OrchestrationError::UnknownRule { .. },
            ) => Ok(None),
            // Whether it can act is not known: another version must not take its place for that.
            Err(e) => Err(e),
        }
    }

    /// Ends a governed promotion. One that is completed has to stand where it was put.
    pub(crate) async fn settle_promotion(
        self: &Arc<Self>,
        agent: Arc<Agent>,
        change: Governed,
        completed: Option<Placement>,
    ) -> Result<(), OrchestrationError> {
        ensure_bound(&agent)?;
        let this = Arc::clone(self);
        let settled = async move { this.do_settle_promotion(&agent, change, completed).await };
        let made = to_the_end(settled).await?;
        self.shown_everywhere(made.position).await;
        Ok(())
    }

    async fn do_settle_promotion(
        &self,
        agent: &Agent,
        change: Governed,
        completed: Option<Placement>,
    ) -> Result<Made, OrchestrationError> {
        let mut tx = self.turn(agent, "promotions.settle").await?;
        store::admit(&mut tx, &change.work()).await?;
        let live = agent.live();
        if let Some(placement) = completed.filter(|placement| !placement.lasts(&live)) {
            return Err(OrchestrationError::Moved {
                agent: agent.id(),
                version: placement.version,
                stage: placement.stage,
            });
        }
        let id = &change.change_id;
        if !store::delete_hold(&mut tx, agent.id(), id).await?.is_done() {
            return tx.commit_unchanged().await;
        }
        let mut next = LiveAgent::clone(&live);
        next.hold = None;
        let by = (change.by.as_str(), change.on_behalf_of.as_str());
        let settled = self.commit_settled(tx, next, id, by, completed.is_some());
        settled.await
    }
}

/// A refusal of a step of a version.
fn refused_in(agent: &Agent, version: i64, stage: Stage) -> impl Fn(Refusal) -> OrchestrationError {
    let agent = agent.id();
    move |why| OrchestrationError::Ladder {
        agent,
        version,
        stage,
        why,
    }
}
