//! Assessment: a proposal that waits for a decision is measured like its later verification, on other
//! seeds, so that the decision rests on a baseline and an improvement with its interval. The search's
//! score is biased upwards: it is the best of many trials, each on one seed.

use crate::{
    HyperSync, HyperSyncError,
    change::{Change, Promotion, Tuning},
    ownership::assessment_lease,
    pauses::Pauses,
    saga::measure::Purpose,
    store::{self, Assessment, Proposal},
};
use std::sync::Arc;
use tars_interceptors::call::with_trace;
use tars_peers::Failure;
use tars_runtime::{
    audit,
    db::DbError,
    lease::Fence,
    trace::{Kind, Parent},
};
use uuid::Uuid;

/// Proposals that one process assesses concurrently.
pub(crate) const AT_ONCE: usize = 2;

impl HyperSync {
    /// Assesses a proposal, until it no longer waits for a decision.
    pub(crate) fn assess_in_background(self: &Arc<Self>, proposal: &Proposal) {
        let Some(entry) = self.in_progress.enter(&assessment_lease(proposal.id)) else {
            return;
        };
        let this = Arc::clone(self);
        let parent = Parent::stored(&proposal.traceparent);
        let mut span = self
            .tracer
            .start("hypersync.assess", Kind::Internal, parent);
        span.set("tars.proposal.id", proposal.id.to_string());
        span.set("tars.agent.id", proposal.agent_id.clone());
        let id = proposal.id;
        tokio::spawn(with_trace(span, async move {
            let _entry = entry;
            tokio::select! {
                () = this.until_not_waiting(id) => {}
                () = this.assess(id) => {}
            }
        }));
    }

    /// Waits until a proposal is being applied, has ended or cannot be read.
    async fn until_not_waiting(&self, id: Uuid) {
        let mut changed = self.subscribe();
        loop {
            changed.borrow_and_update();
            match self.get(id).await {
                Ok(proposal) if !proposal.state.is_waiting() => return,
                Err(HyperSyncError::NotFound(_) | HyperSyncError::Store(DbError::Corrupt(_))) => {
                    return;
                }
                // Checked again at the next change.
                Ok(_) | Err(_) => {}
            }
            if changed.changed().await.is_err() {
                return;
            }
        }
    }

    async fn assess(&self, id: Uuid) {
        let mut pauses = Pauses::new(self.pacing);
        loop {
            let Ok(turn) = self.assessing.acquire().await else {
                return;
            };
            let error = match self.assess_owned(id, &pauses).await {
                Ok(()) | Err(HyperSyncError::NotOwned(_)) => return,
                Err(error) => error,
            };
            // Lets another assessment run during the delay.
            drop(turn);
            tracing::warn!(proposal = %id, ?error, "assessment will be retried");
            tokio::time::sleep(pauses.after(&error)).await;
        }
    }

    /// One attempt, for as long as the assessment's lease is held; none while another process has it.
    async fn assess_owned(&self, id: Uuid, pauses: &Pauses) -> Result<(), HyperSyncError> {
        let name = assessment_lease(id);
        let Some(lease) = self.leases.acquire_next(&name).await? else {
            return Ok(());
        };
        let fence = lease.fence();
        let assessed = lease.run(self.try_assess(id, pauses, &fence)).await;
        assessed.unwrap_or(Ok(()))
    }

    /// One attempt. A retryable failure is returned while there is patience, as is a failure to write
    /// the result; any other failure is the result of the assessment.
    async fn try_assess(
        &self,
        id: Uuid,
        pauses: &Pauses,
        fence: &Fence,
    ) -> Result<(), HyperSyncError> {
        let proposal = self.get(id).await?;
        if proposal.assessed() != Assessment::Pending {
            return Ok(());
        }
        match self.measured(&proposal, fence).await {
            Err(error) if is_retryable(&error) && pauses.is_patient() => Err(error),
            measured => self.assessed(id, measured, fence).await,
        }
    }

    /// The change, with what the person who decides is shown.
    async fn measured(&self, proposal: &Proposal, fence: &Fence) -> Result<Change, HyperSyncError> {
        match proposal.change.clone() {
            Change::Tuning(tuning) => {
                let measured = self.measure(proposal, &tuning, Purpose::Assessment, fence);
                Ok(Change::Tuning(Tuning {
                    assessment: Some(measured.await?),
                    ..tuning
                }))
            }
            Change::Promotion { promotion } => {
                let compared = self.compared(proposal, &promotion).await?;
                let promotion = Promotion {
                    comparison: Some(compared),
                    ..promotion
                };
                Ok(Change::Promotion { promotion })
            }
        }
    }

    async fn assessed(
        &self,
        id: Uuid,
        measured: Result<Change, HyperSyncError>,
        fence: &Fence,
    ) -> Result<(), HyperSyncError> {
        let mut tx = self.store.begin_owned("proposals.assess", fence).await?;
        let mut proposal = store::get_in(&mut tx, id).await?;
        if !proposal.state.is_waiting() {
            return Ok(());
        }
        match measured {
            // Nothing else changes it while it waits.
            Ok(change) => proposal.change = change,
            Err(e) => proposal.assessment_error = e.to_string(),
        }
        proposal.revision += 1;
        store::update(&mut tx, &proposal).await?;
        let record = self.record(&proposal, "hypersync.assessed", "hypersync");
        audit::insert(&mut tx, &record).await?;
        self.commit(tx, &proposal).await
    }
}

fn is_retryable(error: &HyperSyncError) -> bool {
    match error {
        HyperSyncError::Store(error) => error.is_transient(),
        other => other.failure().is_some_and(Failure::is_retryable),
    }
}
