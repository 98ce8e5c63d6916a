//! Proposals: made from a study's best trial, decided by somebody else.

use crate::{
    HyperSync, HyperSyncError,
    store::{self, Proposal, State},
};
use tars_credentials::Caller;
use tars_learn::{
    hyper::{Value, Values, Wrong},
    spec_of,
};
use tars_proto::{
    automl::v1::GetStudyRequest,
    orchestration::v1::GetAgentRequest,
    params::{self, Param, Params},
};
use tars_runtime::{
    audit::{self, Record, Severity},
    page, trace,
};
use uuid::Uuid;

const DEFAULT_SEEDS: u32 = 8;
/// Fewer make no interval.
const MIN_SEEDS: u32 = 2;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decision {
    Approve,
    Reject,
}

impl HyperSync {
    /// Proposes a study's best trial. Study and agent are read with the caller's own credential,
    /// the live parameters from the agent itself.
    pub(crate) async fn propose(
        &self,
        caller: &Caller,
        study_id: &str,
        note: &str,
        seeds: u32,
    ) -> Result<Proposal, HyperSyncError> {
        let request = GetStudyRequest {
            study_id: study_id.to_owned(),
        };
        let study = self
            .peers
            .studies_for_caller
            .clone()
            .get_study(request)
            .await?
            .into_inner()
            .study;
        let study = study.ok_or(HyperSyncError::Answer("the study"))?;
        if study.agent_id.is_empty() {
            return Err(HyperSyncError::NoAgent);
        }
        let best = study.best_trial.ok_or(HyperSyncError::NothingFinished)?;
        let score = best.score.ok_or(HyperSyncError::NothingFinished)?;
        let request = GetAgentRequest {
            agent_id: study.agent_id.clone(),
        };
        let agent = self
            .peers
            .agents_for_caller
            .clone()
            .get_agent(request)
            .await?
            .into_inner()
            .agent;
        let agent = agent.ok_or(HyperSyncError::Answer("the agent"))?;
        let current = params::from_struct(agent.hyperparameters.unwrap_or_default())?;
        let new = params::from_struct(best.parameters.unwrap_or_default())?;
        check_bounds(&agent.agent_type, &new)?;
        if new
            .iter()
            .all(|(name, value)| current.get(name) == Some(value))
        {
            return Err(HyperSyncError::NoChange);
        }
        let proposal = Proposal {
            id: Uuid::now_v7(),
            agent_id: study.agent_id,
            agent_type: agent.agent_type,
            environment: study.environment,
            study_id: study_id.to_owned(),
            trial_number: best.number,
            current_params: current,
            new_params: new,
            new_score: score,
            state: State::PendingApproval,
            proposed_by: caller.label.clone(),
            proposer_owner: caller.owner_id.clone(),
            decided_by: String::new(),
            applied_by: String::new(),
            reason: note.to_owned(),
            base_version: agent.version,
            applied_version: 0,
            verification_seeds: if seeds == 0 {
                DEFAULT_SEEDS
            } else {
                seeds.max(MIN_SEEDS)
            },
            steps: study.steps,
            verification: None,
            error: String::new(),
            traceparent: trace::current().map(|c| c.to_header()).unwrap_or_default(),
            revision: 1,
            created_us: self.clock.now_us(),
            decided_us: None,
            applied_us: None,
            ended_us: None,
        };
        let record = self.record(&proposal, "hypersync.proposed", &proposal.proposed_by);
        let mut tx = self.store.begin("proposals.propose").await?;
        store::insert(&mut tx, &proposal).await?;
        audit::insert(&mut tx, &record).await?;
        tx.commit().await?;
        self.announce();
        Ok(proposal)
    }

    /// Approves or rejects under four eyes: owners are compared, so that a key of the proposer
    /// counts as the proposer.
    pub(crate) async fn decide(
        &self,
        caller: &Caller,
        id: Uuid,
        decision: Decision,
        reason: &str,
    ) -> Result<Proposal, HyperSyncError> {
        let mut tx = self.store.begin("proposals.decide").await?;
        let mut proposal = store::get_in(&mut tx, id).await?;
        if proposal.proposer_owner == caller.owner_id {
            return Err(HyperSyncError::FourEyes);
        }
        expect(&proposal, State::PendingApproval)?;
        let now = self.clock.now_us();
        proposal.decided_by = caller.label.clone();
        proposal.decided_us = Some(now);
        if !reason.is_empty() {
            reason.clone_into(&mut proposal.reason);
        }
        let kind = match decision {
            Decision::Approve => {
                proposal.state = State::Approved;
                "admin.hypersync.approve"
            }
            Decision::Reject => {
                proposal.state = State::Rejected;
                proposal.ended_us = Some(now);
                "admin.hypersync.deny"
            }
        };
        proposal.revision += 1;
        store::update(&mut tx, &proposal).await?;
        let record = self.record(&proposal, kind, &proposal.decided_by);
        audit::insert(&mut tx, &record).await?;
        tx.commit().await?;
        self.announce();
        Ok(proposal)
    }

    /// Takes an approved proposal over for applying; the rest happens in the background.
    pub(crate) async fn begin_apply(
        &self,
        caller: &Caller,
        id: Uuid,
    ) -> Result<Proposal, HyperSyncError> {
        let mut tx = self.store.begin("proposals.apply").await?;
        let mut proposal = store::get_in(&mut tx, id).await?;
        expect(&proposal, State::Approved)?;
        proposal.state = State::Applying;
        proposal.applied_by = caller.label.clone();
        proposal.traceparent = trace::current().map(|c| c.to_header()).unwrap_or_default();
        proposal.revision += 1;
        store::update(&mut tx, &proposal).await?;
        let record = self.record(&proposal, "hypersync.applying", &proposal.applied_by);
        audit::insert(&mut tx, &record).await?;
        tx.commit().await?;
        self.announce();
        Ok(proposal)
    }

    /// Writes the next state of a proposal that this process is applying.
    pub(crate) async fn advance(
        &self,
        proposal: &mut Proposal,
        next: State,
    ) -> Result<(), HyperSyncError> {
        proposal.state = next;
        proposal.revision += 1;
        if next.is_final() {
            proposal.ended_us = Some(self.clock.now_us());
        }
        let kind = format!("hypersync.{}", next.as_str());
        let record = self
            .record(proposal, &kind, &proposal.applied_by)
            .detail("error", &proposal.error);
        let mut tx = self.store.begin("proposals.advance").await?;
        store::update(&mut tx, proposal).await?;
        audit::insert(&mut tx, &record).await?;
        tx.commit().await?;
        self.announce();
        Ok(())
    }

    pub(crate) async fn get(&self, id: Uuid) -> Result<Proposal, HyperSyncError> {
        self.store.get(id).await
    }

    pub(crate) async fn list(
        &self,
        pending: bool,
        token: &str,
        size: u32,
    ) -> Result<(Vec<Proposal>, String), HyperSyncError> {
        let before = if token.is_empty() {
            Ok(Uuid::max())
        } else {
            Uuid::try_parse(token)
        };
        let before = before.map_err(|_| HyperSyncError::PageToken("page_token"))?;
        let size = page::size(size);
        let state = if pending {
            State::PendingApproval.as_str()
        } else {
            ""
        };
        let rows = self.store.list(state, before, size + 1).await?;
        Ok(page::cut(rows, size, |p| p.id.to_string()))
    }

    fn record(&self, proposal: &Proposal, kind: &str, by: &str) -> Record {
        let severity = match proposal.state {
            State::Applying | State::RollingBack | State::Failed => Severity::Critical,
            _ => Severity::Info,
        };
        Record::new(&self.clock, "hypersync", kind)
            .severity(severity)
            .caller(by)
            .resource(proposal.id.to_string())
            .detail("agent", &proposal.agent_id)
            .detail("state", proposal.state.as_str())
    }

    fn announce(&self) {
        self.changed.send_modify(|n| *n += 1);
    }

    /// Told whenever any proposal changes.
    pub(crate) fn subscribe(&self) -> tokio::sync::watch::Receiver<u64> {
        self.changed.subscribe()
    }
}

fn expect(proposal: &Proposal, needed: State) -> Result<(), HyperSyncError> {
    if proposal.state == needed {
        Ok(())
    } else {
        Err(HyperSyncError::State {
            now: proposal.state,
            needed,
        })
    }
}

fn check_bounds(agent_type: &str, new: &Params) -> Result<(), HyperSyncError> {
    let wrong = |name: &str, problem: &str| {
        HyperSyncError::OutOfBounds(vec![Wrong {
            name: name.to_owned(),
            problem: problem.to_owned(),
        }])
    };
    let spec = spec_of(agent_type).ok_or_else(|| wrong("agent_type", "has no bounds"))?;
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
    fn bounds_hold_for_every_kind_of_value() {
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
