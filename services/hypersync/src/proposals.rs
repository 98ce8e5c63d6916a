//! Decisions about proposals under the four-eyes principle, and withdrawals.

use crate::{
    HyperSync, HyperSyncError,
    saga::measure::Purpose,
    store::{self, Assessment, Proposal, State, Which},
};
use std::sync::Arc;
use tars_credentials::{Caller, Permissions};
use tars_runtime::{
    audit::{self, Record, Severity},
    changes::Position,
    db::{DbError, Write},
    lease::Fence,
    page,
    tasks::to_the_end,
    trace,
};
use uuid::Uuid;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Requires an assessment, unless the caller waives it.
    Approve {
        without_assessment: bool,
    },
    Reject,
}

impl HyperSync {
    /// Approves or rejects a proposal of somebody else. Owners are compared, so that an API key of the
    /// proposer counts as the proposer. A stale proposal cannot be approved, and one without an
    /// assessment only if the caller waives it.
    pub(crate) async fn decide(
        self: &Arc<Self>,
        caller: &Caller,
        id: Uuid,
        decision: Decision,
        reason: &str,
    ) -> Result<Proposal, HyperSyncError> {
        let (this, caller, reason) = (Arc::clone(self), caller.clone(), reason.to_owned());
        to_the_end(async move { this.do_decide(&caller, id, decision, reason).await }).await
    }

    async fn do_decide(
        &self,
        caller: &Caller,
        id: Uuid,
        decision: Decision,
        reason: String,
    ) -> Result<Proposal, HyperSyncError> {
        let seen = self.get(id).await?;
        if seen.proposer_owner == caller.owner_id {
            return Err(HyperSyncError::FourEyes);
        }
        require_state(&seen, State::PendingApproval)?;
        if decision != Decision::Reject {
            self.require_current(&seen).await?;
        }
        let mut tx = self.store.begin("proposals.decide").await?;
        let mut proposal = store::get_in(&mut tx, id).await?;
        require_state(&proposal, State::PendingApproval)?;
        proposal.decided_by = caller.label.clone();
        proposal.decided_us = Some(self.clock.now_us());
        proposal.reason = reason;
        let (next, kind) = match decision {
            Decision::Approve { without_assessment } => {
                store::unchanged(&mut tx, &proposal).await?;
                let unassessed = require_assessed(&proposal);
                proposal.approved_without_assessment = unassessed.is_err();
                if !without_assessment {
                    unassessed?;
                }
                (State::Approved, "admin.hypersync.approve")
            }
            Decision::Reject => (State::Rejected, "admin.hypersync.deny"),
        };
        self.write(tx, &mut proposal, next, kind, &caller.label)
            .await?;
        Ok(proposal)
    }

    /// Withdraws a proposal that is not being applied yet.
    pub(crate) async fn withdraw(
        self: &Arc<Self>,
        caller: &Caller,
        id: Uuid,
        reason: &str,
    ) -> Result<Proposal, HyperSyncError> {
        let (this, caller, reason) = (Arc::clone(self), caller.clone(), reason.to_owned());
        to_the_end(async move { this.do_withdraw(&caller, id, reason).await }).await
    }

    async fn do_withdraw(
        &self,
        caller: &Caller,
        id: Uuid,
        reason: String,
    ) -> Result<Proposal, HyperSyncError> {
        let mut tx = self.store.begin("proposals.withdraw").await?;
        let mut proposal = store::get_in(&mut tx, id).await?;
        let own = proposal.proposer_owner == caller.owner_id;
        if !own && !caller.permissions.includes(Permissions::APPROVE_PROPOSALS) {
            return Err(HyperSyncError::NotYours);
        }
        if !proposal.state.is_waiting() {
            return Err(HyperSyncError::NotWithdrawable(proposal.state));
        }
        proposal.give_reason(&caller.label, reason);
        let kind = "hypersync.withdrawn";
        self.write(tx, &mut proposal, State::Withdrawn, kind, &caller.label)
            .await?;
        Ok(proposal)
    }

    /// Starts to apply an approved proposal in the background, where it continues even if the caller
    /// goes away.
    pub(crate) async fn apply_approved(
        self: &Arc<Self>,
        caller: &Caller,
        id: Uuid,
    ) -> Result<Proposal, HyperSyncError> {
        let (this, caller) = (Arc::clone(self), caller.clone());
        to_the_end(async move {
            let proposal = this.begin_apply(&caller, id).await?;
            this.run_in_background(proposal.clone());
            Ok(proposal)
        })
        .await
    }

    async fn begin_apply(&self, caller: &Caller, id: Uuid) -> Result<Proposal, HyperSyncError> {
        let seen = self.get(id).await?;
        require_state(&seen, State::Approved)?;
        self.require_current(&seen).await?;
        let mut tx = self.store.begin("proposals.apply").await?;
        let mut proposal = store::get_in(&mut tx, id).await?;
        require_state(&proposal, State::Approved)?;
        caller.label.clone_into(&mut proposal.applied_by);
        caller.owner_id.clone_into(&mut proposal.applier_owner);
        let allowance = self.usage.allowance(caller);
        self.promise(&mut tx, &proposal, Purpose::Verification, &allowance)
            .await?;
        proposal.traceparent = trace::current().map(|c| c.to_header()).unwrap_or_default();
        let (kind, by) = ("hypersync.applying", &caller.label);
        self.write(tx, &mut proposal, State::Applying, kind, by)
            .await?;
        Ok(proposal)
    }

    /// Writes the next state of a proposal that the saga drives.
    pub(crate) async fn advance(
        &self,
        proposal: &mut Proposal,
        next: State,
        fence: &Fence,
    ) -> Result<(), HyperSyncError> {
        let kind = match (proposal.state, next) {
            (State::Verifying, State::Verifying) => "hypersync.measured".to_owned(),
            _ => format!("hypersync.{}", next.as_str()),
        };
        let by = proposal.applied_by.clone();
        let tx = self.store.begin_owned("proposals.advance", fence).await?;
        self.write(tx, proposal, next, &kind, &by).await
    }

    /// Writes a proposal's next state with its audit record.
    pub(crate) async fn write(
        &self,
        mut tx: Write,
        proposal: &mut Proposal,
        next: State,
        kind: &str,
        by: &str,
    ) -> Result<(), HyperSyncError> {
        let from = proposal.state;
        if !from.can_become(next) {
            return Err(HyperSyncError::InvalidTransition { from, to: next });
        }
        proposal.state = next;
        proposal.revision += 1;
        if next.is_final() {
            proposal.ended_us = Some(self.clock.now_us());
        }
        store::update(&mut tx, proposal).await?;
        let record = self
            .record(proposal, kind, by)
            .detail("reason", proposal.last_reason())
            .detail("error", &proposal.error);
        audit::insert(&mut tx, &record).await?;
        self.commit(tx, proposal).await?;
        if next.is_final() {
            let (outcome, began_us) = (next.as_str(), proposal.created_us);
            self.ended.record(outcome, began_us, &self.clock);
        }
        Ok(())
    }

    /// Commits the next revision of a proposal, and announces that there is one. After a commit in
    /// doubt it succeeds if that revision is what is stored.
    pub(crate) async fn commit(
        &self,
        mut tx: Write,
        proposal: &Proposal,
    ) -> Result<(), HyperSyncError> {
        let change = self.changes.take(&mut tx).await?;
        let doubt = match tx.commit().await {
            Ok(()) => {
                self.changes.publish(change);
                return Ok(());
            }
            Err(doubt @ DbError::InDoubt(_)) => doubt,
            Err(e) => return Err(e.into()),
        };
        let read = || async {
            let mut tx = self.store.begin("proposals.reread").await?;
            store::get_in(&mut tx, proposal.id).await
        };
        let is_transient =
            |e: &HyperSyncError| matches!(e, HyperSyncError::Store(e) if e.is_transient());
        let stored = self.store.db().settled(read, is_transient).await;
        // Whatever is stored, those that wait for it read it.
        self.changes.publish_in_doubt(change);
        if stored.is_ok_and(|stored| stored.is_revision_of(proposal)) {
            return Ok(());
        }
        Err(doubt.into())
    }

    pub(crate) async fn get(&self, id: Uuid) -> Result<Proposal, HyperSyncError> {
        self.store.get(id).await
    }

    pub(crate) async fn list(
        &self,
        which: Which,
        token: &str,
        size: u32,
    ) -> Result<(Vec<Proposal>, String), HyperSyncError> {
        let before = page::start(token, Uuid::max())?;
        let size = page::size(size);
        let rows = self.store.list(which, before, size).await?;
        Ok(rows.cut(|p| p.id.to_string()))
    }

    pub(crate) fn record(&self, proposal: &Proposal, kind: &str, by: &str) -> Record {
        let severity = match proposal.state {
            State::Applying
            | State::GivingUp
            | State::RollingBack
            | State::Failed
            | State::NeedsAttention
            | State::Kept => Severity::Critical,
            State::Approved if proposal.approved_without_assessment => Severity::Warning,
            _ => Severity::Info,
        };
        Record::new(&self.clock, "hypersync", kind)
            .severity(severity)
            .caller(by)
            .resource(proposal.id.to_string())
            .detail("agent", &proposal.agent_id)
            .detail("state", proposal.state.as_str())
            .detail("assessment", proposal.assessed().as_str())
    }

    /// A receiver that is notified whenever any proposal changes, at whichever replica.
    pub(crate) fn subscribe(&self) -> tokio::sync::watch::Receiver<Position> {
        self.changes.subscribe()
    }
}

pub(crate) fn require_state(proposal: &Proposal, needed: State) -> Result<(), HyperSyncError> {
    if proposal.state == needed {
        Ok(())
    } else {
        Err(HyperSyncError::State {
            now: proposal.state,
            needed,
        })
    }
}

fn require_assessed(proposal: &Proposal) -> Result<(), HyperSyncError> {
    match proposal.assessed() {
        Assessment::Completed => Ok(()),
        Assessment::Failed => Err(HyperSyncError::AssessmentFailed(
            proposal.assessment_error.clone(),
        )),
        Assessment::Pending | Assessment::NotMade => Err(HyperSyncError::AssessmentPending),
    }
}

#[cfg(test)]
mod tests;
