//! Tells Orchestration what came of proposals, to which it calibrates how approvals go.
//!
//! That a proposal has ended is noted in the transaction that ends it, until Orchestration has recorded it. Every process
//! tells, when it starts and after each change, since what is recorded twice is recorded once; what could not be
//! recorded is tried again.

use crate::{
    HyperSync, HyperSyncError,
    change::Change,
    store::{Proposal, State},
};
use std::{
    sync::{Arc, Weak},
    time::Duration,
};
use tars_proto::{
    orchestration::v1::{DecidedProposal, ProposalQuality, RecordDecisionsRequest, Vote},
    time::timestamp,
};
use tokio::time::timeout;
use uuid::Uuid;

/// How many proposals are told of at once.
const BATCH: u32 = 100;
/// The delay before what failed is tried again.
const AGAIN: Duration = Duration::from_secs(30);

impl HyperSync {
    /// Reports in the background, as long as the service lives.
    pub(crate) fn start_reporting(self: &Arc<Self>) {
        let mut changed = self.changes.subscribe();
        let service = Arc::downgrade(self);
        tokio::spawn(async move {
            loop {
                changed.borrow_and_update();
                let is_done = report(&service).await;
                let Some(is_done) = is_done else { return };
                let next = changed.changed();
                let ended = match is_done {
                    true => next.await.is_err(),
                    false => matches!(timeout(AGAIN, next).await, Ok(Err(_))),
                };
                if ended {
                    return;
                }
            }
        });
    }

    /// Reports the proposals that have ended and are not recorded yet.
    pub(crate) async fn report_decisions(&self) -> Result<(), HyperSyncError> {
        loop {
            let ended = self.store.unrecorded(i64::from(BATCH)).await?;
            let proposals: Vec<DecidedProposal> = ended.iter().filter_map(decided).collect();
            if !proposals.is_empty() {
                let request = RecordDecisionsRequest { proposals };
                self.peers.agents.record(request).await?;
            }
            let ids: Vec<Uuid> = ended.iter().map(|proposal| proposal.id).collect();
            if !ids.is_empty() {
                self.store.forget_recorded(&ids).await?;
            }
            if ids.len() < BATCH as usize {
                return Ok(());
            }
        }
    }
}

/// Reports once; whether that succeeded, or nothing when the service is gone.
async fn report(service: &Weak<HyperSync>) -> Option<bool> {
    let reporting = service.upgrade()?;
    let done = reporting.report_decisions().await;
    if let Err(error) = &done {
        tracing::info!(%error, "what came of proposals was not recorded");
    }
    Some(done.is_ok())
}

/// A proposal that has ended, with the answer that it got; one person decides. One that its proposer withdrew
/// before says nothing of those who decide.
fn decided(proposal: &Proposal) -> Option<DecidedProposal> {
    let ended_us = proposal.ended_us?;
    if proposal.state == State::Withdrawn && proposal.decided_us.is_none() {
        return None;
    }
    let vote = proposal.decided_us.map(|at_us| Vote {
        approves: proposal.state != State::Rejected,
        at: Some(timestamp(at_us)),
    });
    Some(DecidedProposal {
        proposal_id: proposal.id.to_string(),
        proposed_at: Some(timestamp(proposal.created_us)),
        ended_at: Some(timestamp(ended_us)),
        required: 1,
        votes: vote.into_iter().collect(),
        quality: quality(proposal).into(),
    })
}

/// What a change was, as it proved itself live. Of one that did not become live it is known where the measurement
/// before the decision says so beyond doubt.
fn quality(proposal: &Proposal) -> ProposalQuality {
    match (proposal.state, gain(&proposal.change)) {
        (State::Completed, _) => ProposalQuality::Good,
        (State::RolledBack, _) => ProposalQuality::Bad,
        (_, Some((low, _))) if low > 0.0 => ProposalQuality::Good,
        (_, Some((_, high))) if high <= 0.0 => ProposalQuality::Bad,
        _ => ProposalQuality::Unspecified,
    }
}

/// The interval in which what a change gains is, as it was measured before the decision.
fn gain(change: &Change) -> Option<(f64, f64)> {
    match change {
        Change::Tuning(tuning) => {
            let measured = tuning.assessment.as_ref()?;
            Some((measured.low, measured.high))
        }
        Change::Promotion { promotion } => {
            let against = promotion.comparison.as_ref()?.with_incumbent.as_ref()?;
            Some((against.low, against.high))
        }
    }
}

#[cfg(test)]
mod tests;
