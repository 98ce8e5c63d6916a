//! The steps of a change of hyperparameters: the new values are made live and read back, verified by training,
//! and set back where they do not improve.

use super::{
    Settled,
    measure::Purpose,
    plan::{self, Rollback},
    token_of,
};
use crate::{
    HyperSync, HyperSyncError,
    change::{Change, Tuning},
    store::{Proposal, State},
};
use tars_proto::{
    orchestration::v1::ApplyHyperparametersRequest,
    params::{self, Params},
};
use tars_runtime::lease::Fence;

impl HyperSync {
    pub(super) async fn step_tuning(
        &self,
        proposal: &mut Proposal,
        tuning: Tuning,
        fence: &Fence,
    ) -> Result<(), HyperSyncError> {
        match proposal.state {
            State::Applying => self.apply(proposal, &tuning, fence).await,
            State::Verifying if tuning.verification.is_none() => {
                self.verify(proposal, tuning, fence).await
            }
            State::Verifying => self.judge(proposal, &tuning, fence).await,
            State::RollingBack => self.roll_back(proposal, &tuning, fence).await,
            _ => Ok(()),
        }
    }

    async fn apply(
        &self,
        proposal: &mut Proposal,
        tuning: &Tuning,
        fence: &Fence,
    ) -> Result<(), HyperSyncError> {
        proposal.applied_version = self.set_proposed(proposal, tuning, fence).await?;
        proposal.applied_us = Some(self.clock.now_us());
        self.advance(proposal, State::Verifying, fence).await
    }

    /// Checks that the change is live, then measures it. Applying it again has no effect but to renew
    /// a hold that was released.
    async fn verify(
        &self,
        proposal: &mut Proposal,
        tuning: Tuning,
        fence: &Fence,
    ) -> Result<(), HyperSyncError> {
        proposal.applied_version = self.set_proposed(proposal, &tuning, fence).await?;
        let (live, version) = self.read_back(&proposal.agent_id).await?;
        if version != proposal.applied_version || !plan::holds(&live, &tuning.new_params) {
            proposal.error = format!(
                "version {version} is live instead of version {}, which was applied",
                proposal.applied_version
            );
            return self.advance(proposal, State::RollingBack, fence).await;
        }
        let measured = self.measure(proposal, &tuning, Purpose::Verification, fence);
        proposal.change = Change::Tuning(Tuning {
            verification: Some(measured.await?),
            ..tuning
        });
        self.advance(proposal, State::Verifying, fence).await
    }

    async fn judge(
        &self,
        proposal: &mut Proposal,
        tuning: &Tuning,
        fence: &Fence,
    ) -> Result<(), HyperSyncError> {
        if tuning
            .verification
            .as_ref()
            .is_some_and(plan::is_improvement)
        {
            let verified = proposal.applied_version;
            self.settle(proposal, Settled::Approved(verified), fence)
                .await?;
            return self.advance(proposal, State::Completed, fence).await;
        }
        proposal.error = "the confidence interval of the improvement is not above zero".to_owned();
        self.advance(proposal, State::RollingBack, fence).await
    }

    async fn roll_back(
        &self,
        proposal: &mut Proposal,
        tuning: &Tuning,
        fence: &Fence,
    ) -> Result<(), HyperSyncError> {
        let (live, version) = self.read_back(&proposal.agent_id).await?;
        match plan::rollback(proposal, tuning, &live, version) {
            Rollback::AlreadyDone => {
                self.settle(proposal, Settled::Undone, fence).await?;
                self.advance(proposal, State::RolledBack, fence).await
            }
            // Read back before it counts as done.
            Rollback::Set { values, expected } => {
                let operation = format!("{}:back:{expected}", proposal.id);
                self.set(proposal, &values, expected, &operation, fence)
                    .await?;
                let (live, _) = self.read_back(&proposal.agent_id).await?;
                if plan::holds(&live, &values) {
                    self.settle(proposal, Settled::Undone, fence).await?;
                    return self.advance(proposal, State::RolledBack, fence).await;
                }
                Err(HyperSyncError::IncompleteResponse("the restored values"))
            }
            Rollback::AskPerson(what) => {
                self.hold(proposal, fence).await?;
                proposal.attention = what;
                self.advance(proposal, State::NeedsAttention, fence).await
            }
        }
    }

    async fn set_proposed(
        &self,
        proposal: &Proposal,
        tuning: &Tuning,
        fence: &Fence,
    ) -> Result<u64, HyperSyncError> {
        let (values, base) = (&tuning.new_params, proposal.base_version);
        let operation = proposal.id.to_string();
        self.set(proposal, values, base, &operation, fence).await
    }

    async fn set(
        &self,
        proposal: &Proposal,
        values: &Params,
        expected_version: u64,
        operation: &str,
        fence: &Fence,
    ) -> Result<u64, HyperSyncError> {
        let request = ApplyHyperparametersRequest {
            agent_id: proposal.agent_id.clone(),
            hyperparameters: Some(params::to_struct(values)),
            expected_version,
            operation_id: operation.to_owned(),
            on_behalf_of: proposal.applied_by.clone(),
            change_id: proposal.id.to_string(),
            fencing_token: token_of(fence)?,
        };
        Ok(self.peers.agents.apply(request).await?)
    }

    /// The live hyperparameters of an agent and their version.
    pub(crate) async fn read_back(&self, agent_id: &str) -> Result<(Params, u64), HyperSyncError> {
        let answer = self.peers.agents.read(agent_id).await?;
        Ok((
            params::from_struct(answer.hyperparameters.unwrap_or_default())?,
            answer.version,
        ))
    }
}
