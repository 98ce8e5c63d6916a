//! Proposing a step of a version up the ladder.

use super::draft;
use crate::{
    HyperSync, HyperSyncError,
    change::{Change, Comparison, Promotion, Stage, Standing},
    store::Proposal,
};
use std::sync::Arc;
use tars_credentials::Caller;
use tars_proto::{
    orchestration::v1::{CheckPromotionRequest, ComparePromotionRequest},
    reason,
};

/// A version that somebody wants to climb.
#[derive(Debug, Clone)]
pub(crate) struct Climb {
    pub(crate) agent_id: String,
    pub(crate) version: u64,
    /// One step up where none is given.
    pub(crate) to: Option<Stage>,
    pub(crate) note: String,
}

impl HyperSync {
    /// Proposes a step up. What a gate of the ladder would refuse now is refused at once, except for a missing
    /// comparison: the assessment makes it.
    pub(crate) async fn propose_promotion(
        self: &Arc<Self>,
        caller: &Caller,
        climb: Climb,
    ) -> Result<Proposal, HyperSyncError> {
        let agent = self.free_agent(&climb.agent_id).await?;
        let promotion = self.checked(&climb).await?;
        let base_version = promotion.incumbent.version;
        let change = Change::Promotion { promotion };
        let draft = draft(agent, change, caller, self.clock.now_us());
        let proposal = Proposal {
            note: climb.note,
            base_version,
            ..draft
        };
        self.submit(proposal, self.usage.allowance(caller)).await
    }

    async fn checked(&self, climb: &Climb) -> Result<Promotion, HyperSyncError> {
        let request = CheckPromotionRequest {
            agent_id: climb.agent_id.clone(),
            version: climb.version,
            to_stage: climb.to.map(i32::from).unwrap_or_default(),
        };
        let checked = self.peers.ladder.check(request).await?;
        if let Some(refusal) = checked.refusal
            && refusal.reason != reason::NOT_COMPARED
        {
            return Err(HyperSyncError::Gate {
                reason: refusal.reason,
                text: refusal.message,
            });
        }
        let standing = checked
            .standing
            .ok_or(HyperSyncError::IncompleteResponse("the standing"))?;
        let standing = Standing::try_from(standing)?;
        let to = Stage::named(checked.to_stage);
        Ok(Promotion {
            version: climb.version,
            from: standing.stage,
            to: to.ok_or(HyperSyncError::IncompleteResponse("the stage"))?,
            incumbent: standing.incumbent,
            comparison: None,
            placement: None,
            verification: None,
        })
    }

    /// How the version compares with what answers now, which Orchestration finds out where it does not know.
    pub(crate) async fn compared(
        &self,
        proposal: &Proposal,
        promotion: &Promotion,
    ) -> Result<Comparison, HyperSyncError> {
        let request = ComparePromotionRequest {
            agent_id: proposal.agent_id.clone(),
            version: promotion.version,
            on_behalf_of: proposal.proposer_owner.clone(),
        };
        let comparison = self.peers.ladder.compare(request).await?;
        let comparison = comparison.ok_or(HyperSyncError::IncompleteResponse("the comparison"))?;
        Ok(comparison.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        HyperSyncError as E,
        fake::{Call, Rig, caller, gamma, reason, unavailable},
        proposals::Decision,
        store::{State, Which},
    };
    use uuid::Uuid;

    const APPROVE: Decision = Decision::Approve {
        without_assessment: false,
    };

    async fn propose(rig: &Rig, to: Option<Stage>) -> Result<Proposal, E> {
        let climb = Climb {
            agent_id: "policy".to_owned(),
            version: 2,
            to,
            note: "it is better".to_owned(),
        };
        rig.service
            .propose_promotion(&caller("dev", &[]), climb)
            .await
    }

    fn of(proposal: &Proposal) -> &Promotion {
        match &proposal.change {
            Change::Promotion { promotion } => promotion,
            Change::Tuning(_) => panic!("it is a promotion"),
        }
    }

    async fn assessed(rig: &Rig, id: Uuid) -> Proposal {
        rig.until(id, |p| p.change.is_assessed()).await
    }

    #[tokio::test]
    async fn a_step_up_is_proposed_compared_approved_by_another_and_applied() {
        let rig = Rig::start().await;
        let made = propose(&rig, None).await.unwrap();
        let promotion = of(&made);
        assert_eq!(
            (promotion.from, promotion.to),
            (Stage::Shadow, Stage::Canary)
        );
        assert_eq!((promotion.incumbent.version, made.base_version), (1, 1));
        assert_eq!(made.state, State::PendingApproval);
        let shown = assessed(&rig, made.id).await;
        assert_eq!(of(&shown).comparison.as_ref().map(|c| c.seeds), Some(30));
        let dev = caller("dev", &["proposals.approve"]);
        let own = rig.service.decide(&dev, made.id, APPROVE, "").await;
        assert_eq!(reason(own), "FOUR_EYES");
        let ada = caller("ada", &[]);
        let approved = rig.service.decide(&ada, made.id, APPROVE, "").await;
        assert_eq!(approved.unwrap().state, State::Approved);
        rig.service.apply_approved(&ada, made.id).await.unwrap();
        rig.until_state(made.id, State::Completed).await;
        let agent = rig.world.agent();
        assert_eq!(agent.ladder.stage, Stage::Canary);
        assert_eq!(
            (agent.live, agent.version),
            (gamma(0.95), 1),
            "as they were"
        );
    }

    #[tokio::test]
    async fn what_would_surely_be_refused_is_refused_at_once() {
        for why in ["UNCALIBRATED", "NOT_BETTER", "CANARY_UNPROVEN"] {
            let rig = Rig::start().await;
            rig.world.stored.lock().ladder.refusal = Some(why);
            assert_eq!(reason(propose(&rig, None).await), why);
            let (rows, _) = rig.service.list(Which::All, "", 10).await.unwrap();
            assert!(rows.is_empty(), "{why}");
        }
        let rig = Rig::start().await;
        let skips = propose(&rig, Some(Stage::Active)).await;
        assert_eq!(reason(skips), "STAGE_ORDER");
        rig.world.stored.lock().hold = Some(("another".into(), false));
        assert_eq!(reason(propose(&rig, None).await), "CHANGE_IN_PROGRESS");
    }

    #[tokio::test]
    async fn a_missing_comparison_is_made_as_the_assessment() {
        let rig = Rig::start().await;
        rig.world.stored.lock().ladder.refusal = Some("NOT_COMPARED");
        rig.world.fail(2, Call::Compare, &unavailable());
        let id = propose(&rig, None).await.unwrap().id;
        assessed(&rig, id).await;
        assert_eq!(rig.world.count(Call::Compare), 3);
    }

    #[tokio::test]
    async fn a_version_has_one_open_proposal_beside_those_of_trials() {
        let rig = Rig::start().await;
        rig.put(State::PendingApproval).await;
        let first = propose(&rig, None).await.unwrap();
        let second = propose(&rig, None).await;
        assert!(matches!(second, Err(E::AlreadyOpen(open)) if open == first.id));
        let dev = caller("dev", &[]);
        rig.service.withdraw(&dev, first.id, "").await.unwrap();
        propose(&rig, None).await.unwrap();
    }

    #[tokio::test]
    async fn a_stored_promotion_is_read_as_one() {
        let rig = Rig::start().await;
        let made = propose(&rig, None).await.unwrap();
        let id = made.id;
        let read = assessed(&rig, id).await;
        let text = serde_json::to_value(&read).unwrap();
        assert!(text["promotion"].is_object() && text["study_id"].is_null());
        let again: Proposal = serde_json::from_value(text).unwrap();
        assert_eq!(again, read);
    }
}
