//! The steps of a change of stage: a version is taken one step up, watched for a while where it answers, and taken
//! back where it does not stay. Orchestration's gates bind each step; a version that fell has gone down already.

use super::token_of;
use crate::{
    HyperSync, HyperSyncError,
    change::{Change, Placement, Promotion, Standing, Watched},
    store::{Proposal, State},
};
use std::time::Duration;
use tars_proto::orchestration::v1::{
    ApplyPromotionRequest, RevertPromotionRequest, SettlePromotionRequest,
};
use tars_runtime::lease::Fence;

/// How long a promoted version is watched.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Watch {
    /// Until it has answered so many steps,
    pub(crate) steps: u64,
    /// or for so long.
    pub(crate) longest: Duration,
}

impl Watch {
    /// Whether a version has been watched for long enough.
    fn is_over(self, promotion: &Promotion, watched: Watched) -> bool {
        !promotion.to.answers()
            || watched.steps >= self.steps
            || Duration::from_micros(watched.micros) >= self.longest
    }
}

impl HyperSync {
    pub(super) async fn step_promotion(
        &self,
        proposal: &mut Proposal,
        promotion: Promotion,
        fence: &Fence,
    ) -> Result<(), HyperSyncError> {
        match (proposal.state, promotion.placement, promotion.verification) {
            (State::Applying, ..) => self.promote(proposal, promotion, fence).await,
            (State::Verifying, _, None) => self.watch(proposal, promotion, fence).await,
            (State::Verifying, Some(placement), Some(_)) => {
                self.settle_promotion(proposal, Some(placement), fence)
                    .await?;
                self.advance(proposal, State::Completed, fence).await
            }
            (State::RollingBack, ..) => self.demote(proposal, &promotion, fence).await,
            _ => Err(HyperSyncError::IncompleteResponse("the placement")),
        }
    }

    async fn promote(
        &self,
        proposal: &mut Proposal,
        promotion: Promotion,
        fence: &Fence,
    ) -> Result<(), HyperSyncError> {
        let placement = self.step_up(proposal, &promotion, fence).await?;
        proposal.applied_version = placement.version;
        proposal.applied_us = Some(self.clock.now_us());
        proposal.change = Change::Promotion {
            promotion: Promotion {
                placement: Some(placement),
                ..promotion
            },
        };
        self.advance(proposal, State::Verifying, fence).await
    }

    /// Looks at the version until it has answered enough steps, or for as long as it is to be watched. Taking the
    /// step again has no effect but to renew a hold that was released.
    async fn watch(
        &self,
        proposal: &mut Proposal,
        promotion: Promotion,
        fence: &Fence,
    ) -> Result<(), HyperSyncError> {
        let placement = self.step_up(proposal, &promotion, fence).await?;
        loop {
            let now = self.standing(&proposal.agent_id, placement.version).await?;
            if !placement.lasts(&now) {
                proposal.error = placement.left(&now);
                return self.advance(proposal, State::RollingBack, fence).await;
            }
            let watched = self.watched(proposal, &now);
            if self.watch.is_over(&promotion, watched) {
                proposal.change = Change::Promotion {
                    promotion: Promotion {
                        verification: Some(watched),
                        ..promotion
                    },
                };
                return self.advance(proposal, State::Verifying, fence).await;
            }
            tokio::time::sleep(self.pacing.look).await;
        }
    }

    fn watched(&self, proposal: &Proposal, now: &Standing) -> Watched {
        let began_us = proposal.applied_us.unwrap_or_default();
        let micros = self.clock.now_us().saturating_sub(began_us);
        Watched {
            steps: now.steps,
            blocked: now.blocked,
            micros: u64::try_from(micros).unwrap_or_default(),
        }
    }

    async fn demote(
        &self,
        proposal: &mut Proposal,
        promotion: &Promotion,
        fence: &Fence,
    ) -> Result<(), HyperSyncError> {
        self.take_back(proposal, promotion, fence).await?;
        self.advance(proposal, State::RolledBack, fence).await
    }

    /// Takes the step back where it was taken, and sees to it that it is not taken any more; releases the agent.
    pub(super) async fn take_back(
        &self,
        proposal: &Proposal,
        promotion: &Promotion,
        fence: &Fence,
    ) -> Result<(), HyperSyncError> {
        let request = RevertPromotionRequest {
            agent_id: proposal.agent_id.clone(),
            version: promotion.version,
            from_stage: promotion.from.into(),
            to_stage: promotion.to.into(),
            operation_id: proposal.id.to_string(),
            on_behalf_of: proposal.applied_by.clone(),
            change_id: proposal.id.to_string(),
            fencing_token: token_of(fence)?,
            incumbent_version: promotion.incumbent.version,
        };
        self.peers.ladder.step_back(request).await?;
        self.settle_promotion(proposal, None, fence).await
    }

    async fn step_up(
        &self,
        proposal: &Proposal,
        promotion: &Promotion,
        fence: &Fence,
    ) -> Result<Placement, HyperSyncError> {
        let request = ApplyPromotionRequest {
            agent_id: proposal.agent_id.clone(),
            version: promotion.version,
            to_stage: promotion.to.into(),
            incumbent_version: promotion.incumbent.version,
            operation_id: proposal.id.to_string(),
            on_behalf_of: proposal.applied_by.clone(),
            change_id: proposal.id.to_string(),
            fencing_token: token_of(fence)?,
        };
        let placement = self.peers.ladder.step_up(request).await?;
        placement
            .ok_or(HyperSyncError::IncompleteResponse("the placement"))?
            .try_into()
    }

    /// Releases the agent. A change that is completed has to stand where it was put.
    async fn settle_promotion(
        &self,
        proposal: &Proposal,
        completed: Option<Placement>,
        fence: &Fence,
    ) -> Result<(), HyperSyncError> {
        let request = SettlePromotionRequest {
            agent_id: proposal.agent_id.clone(),
            change_id: proposal.id.to_string(),
            completed: completed.map(Into::into),
            on_behalf_of: proposal.applied_by.clone(),
            fencing_token: token_of(fence)?,
        };
        Ok(self.peers.ladder.settle(request).await?)
    }

    /// Where a version stands now.
    pub(crate) async fn standing(
        &self,
        agent_id: &str,
        version: u64,
    ) -> Result<Standing, HyperSyncError> {
        let standing = self.peers.ladder.standing(agent_id, version).await?;
        standing.try_into()
    }
}

#[cfg(test)]
mod tests;
