//! Proposing a study's best trial, or a step of a version, as a change of the live agent.
//!
//! The study and the agent are read with the caller's credential, so that nobody can propose on the
//! basis of something they may not see.

mod promotion;

pub(crate) use promotion::Climb;

use crate::{
    HyperSync, HyperSyncError,
    change::{Change, Tuning},
    saga::measure::Purpose,
    store::{self, Proposal, State},
};
use std::sync::Arc;
use tars_credentials::Caller;
use tars_interceptors::usage::Allowance;
use tars_learn::{
    algorithm,
    hyper::{ParamViolation, Value, Values},
};
use tars_proto::{
    automl::v1::Study,
    orchestration::v1::Agent,
    params::{self, Param, Params},
};
use tars_runtime::{audit, tasks::to_the_end, trace};
use uuid::Uuid;

const DEFAULT_SEEDS: u32 = 8;

/// A study's best trial, and the agent that it is for.
struct Finding {
    study: Study,
    trial_number: u32,
    score: f64,
    steps: u64,
    agent: Agent,
    current: Params,
    new: Params,
}

impl HyperSync {
    /// Proposes a study's best trial.
    pub(crate) async fn propose(
        self: &Arc<Self>,
        caller: &Caller,
        study_id: &str,
        note: &str,
        seeds: Option<u32>,
    ) -> Result<Proposal, HyperSyncError> {
        let finding = self.finding(study_id).await?;
        let (agent, change) = finding.into_change(seeds.unwrap_or(DEFAULT_SEEDS));
        let base_version = agent.version;
        let draft = draft(agent, change, caller, self.clock.now_us());
        let proposal = Proposal {
            note: note.to_owned(),
            base_version,
            ..draft
        };
        self.submit(proposal, self.usage.allowance(caller)).await
    }

    /// Writes a new proposal, whose assessment takes of what its proposer may use. Once written it is assessed even if the caller has gone away.
    pub(crate) async fn submit(
        self: &Arc<Self>,
        proposal: Proposal,
        allowance: Allowance,
    ) -> Result<Proposal, HyperSyncError> {
        let this = Arc::clone(self);
        to_the_end(async move {
            this.write_new(&proposal, &allowance).await?;
            this.assess_in_background(&proposal);
            Ok(proposal)
        })
        .await
    }

    async fn finding(&self, study_id: &str) -> Result<Finding, HyperSyncError> {
        let study = self.peers.for_caller.study(study_id).await?;
        let mut study = study.ok_or(HyperSyncError::IncompleteResponse("the study"))?;
        if study.agent_id.is_empty() {
            return Err(HyperSyncError::NoAgent);
        }
        let best = study.best_trial.take();
        let best = best.ok_or(HyperSyncError::NothingFinished)?;
        let score = best.score.ok_or(HyperSyncError::NothingFinished)?;
        let mut agent = self.free_agent(&study.agent_id).await?;
        let current = params::from_struct(agent.hyperparameters.take().unwrap_or_default())?;
        let new = params::from_struct(best.parameters.unwrap_or_default())?;
        check_change(&agent.agent_type, &current, &new)?;
        Ok(Finding {
            trial_number: best.number,
            score,
            steps: study
                .steps
                .ok_or(HyperSyncError::IncompleteResponse("the study's steps"))?,
            study,
            agent,
            current,
            new,
        })
    }

    /// Reads an agent that no change holds: values that a change is only trying are not a baseline.
    pub(crate) async fn free_agent(&self, agent_id: &str) -> Result<Agent, HyperSyncError> {
        let agent = self.peers.for_caller.agent(agent_id).await?;
        let agent = agent.ok_or(HyperSyncError::IncompleteResponse("the agent"))?;
        match agent.hold {
            Some(hold) => Err(HyperSyncError::ChangeInProgress(hold.change_id)),
            None => Ok(agent),
        }
    }

    async fn write_new(
        &self,
        proposal: &Proposal,
        allowance: &Allowance,
    ) -> Result<(), HyperSyncError> {
        let record = self.record(proposal, "hypersync.proposed", &proposal.proposed_by);
        let mut tx = self.store.begin("proposals.propose").await?;
        store::insert(&mut tx, proposal).await?;
        self.promise(&mut tx, proposal, Purpose::Assessment, allowance)
            .await?;
        audit::insert(&mut tx, &record).await?;
        let change = self.changes.take(&mut tx).await?;
        tx.commit_with_proof(store::proof_of(proposal.id)).await?;
        self.changes.publish(change);
        Ok(())
    }
}

impl Finding {
    fn into_change(self, verification_seeds: u32) -> (Agent, Change) {
        let tuning = Tuning {
            study_id: self.study.study_id,
            trial_number: self.trial_number,
            current_params: self.current,
            new_params: self.new,
            new_score: self.score,
            verification_seeds,
            steps: self.steps,
            assessment: None,
            verification: None,
        };
        // The study may have searched elsewhere; what counts is how the values do where they are to be live.
        let agent = Agent {
            agent_id: self.study.agent_id,
            ..self.agent
        };
        (agent, Change::Tuning(tuning))
    }
}

/// A new proposal of a change of an agent, which waits for a decision.
pub(crate) fn draft(agent: Agent, change: Change, caller: &Caller, now_us: i64) -> Proposal {
    Proposal {
        id: Uuid::now_v7(),
        agent_id: agent.agent_id,
        agent_type: agent.agent_type,
        environment: agent.environment,
        change,
        state: State::PendingApproval,
        proposed_by: caller.label.clone(),
        proposer_owner: caller.owner_id.clone(),
        decided_by: String::new(),
        applied_by: String::new(),
        applier_owner: String::new(),
        note: String::new(),
        reason: String::new(),
        base_version: 0,
        applied_version: 0,
        assessment_error: String::new(),
        approved_without_assessment: false,
        error: String::new(),
        attention: String::new(),
        resolved_by: String::new(),
        resolution_reason: String::new(),
        forced: false,
        traceparent: trace::current().map(|c| c.to_header()).unwrap_or_default(),
        revision: 1,
        created_us: now_us,
        decided_us: None,
        applied_us: None,
        ended_us: None,
    }
}

/// Refuses values that are out of bounds, and a change to values that are already live.
fn check_change(agent_type: &str, current: &Params, new: &Params) -> Result<(), HyperSyncError> {
    check_bounds(agent_type, new)?;
    let is_live = |(name, value): (&String, &Param)| current.get(name) == Some(value);
    if new.iter().all(is_live) {
        return Err(HyperSyncError::NoChange);
    }
    Ok(())
}

fn check_bounds(agent_type: &str, new: &Params) -> Result<(), HyperSyncError> {
    let wrong = |name: &str, problem: &str| {
        HyperSyncError::OutOfBounds(vec![ParamViolation {
            name: name.to_owned(),
            problem: problem.to_owned(),
        }])
    };
    let algorithm = algorithm::find(agent_type);
    let spec = algorithm
        .ok_or_else(|| wrong("agent_type", "has no bounds"))?
        .spec;
    let mut values = Values::new();
    for (name, param) in new {
        let value = match param {
            Param::Flag(b) => Value::Flag(*b),
            Param::Number(n) => Value::Number(*n),
            Param::Text(_) => return Err(wrong(name, "must be a number or a boolean")),
        };
        values.insert(name.clone(), value);
    }
    spec.check(&values).map_err(HyperSyncError::OutOfBounds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_every_type_are_checked_against_the_bounds() {
        let one = |name: &str, param| Params::from([(name.to_owned(), param)]);
        assert!(check_bounds("dqn", &one("gamma", Param::Number(0.99))).is_ok());
        for bad in [
            one("gamma", Param::Number(7.0)),
            one("learning_rate", Param::Text("99999".into())),
            one("double_dqn", Param::Number(1.0)),
            one("nothing", Param::Flag(true)),
        ] {
            assert!(
                matches!(
                    check_bounds("dqn", &bad),
                    Err(HyperSyncError::OutOfBounds(_))
                ),
                "{bad:?}"
            );
        }
        assert!(check_bounds("other", &Params::new()).is_err());
    }
}
