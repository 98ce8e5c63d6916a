//! Governed promotions as messages.

use super::{
    Api,
    agents::{stage, stage_as},
    comparisons,
    numbers::{signed, unsigned},
};
use crate::{
    Orchestration, OrchestrationError,
    changes::Governed,
    promotions::{self, Checked, StepBack, StepUp},
    stage::Stage,
};
use std::sync::Arc;
use tars_interceptors::Call;
use tars_proto::{fault, orchestration::v1::*};
use tonic::{Request, Response, Status};

fn standing(from: promotions::Standing) -> Standing {
    let promotions::Standing {
        stage,
        trial,
        incumbent,
        counts,
        fell,
        ..
    } = from;
    let (steps, blocked) = match stage {
        Stage::Active => (counts.active_steps, counts.active_blocked),
        _ => (counts.canary_steps, counts.blocked),
    };
    Standing {
        stage: stage_as(stage).into(),
        incumbent_version: unsigned(incumbent.version),
        incumbent_rule: incumbent.rule.unwrap_or_default(),
        trial: unsigned(trial),
        steps,
        blocked,
        fell: fell.unwrap_or_default(),
    }
}

fn refusal(from: OrchestrationError) -> PromotionRefusal {
    let status = Status::from(from);
    PromotionRefusal {
        reason: fault::reason(&status).unwrap_or_default(),
        message: status.message().to_owned(),
    }
}

fn placement(from: promotions::Placement) -> Placement {
    Placement {
        stage: stage_as(from.stage).into(),
        version: unsigned(from.version),
        trial: unsigned(from.trial),
    }
}

/// Where a version has to stand.
fn placed(from: Placement) -> Result<promotions::Placement, OrchestrationError> {
    Ok(promotions::Placement {
        stage: named(from.stage)?,
        version: signed("version", from.version)?,
        trial: signed("trial", from.trial)?,
    })
}

/// A stage that has to be named.
fn named(from: i32) -> Result<Stage, OrchestrationError> {
    stage(from)?.ok_or(OrchestrationError::UnknownStage)
}

#[tonic::async_trait]
impl promotion_service_server::PromotionService for Api {
    async fn read_standing(
        &self,
        request: Request<ReadStandingRequest>,
    ) -> Result<Response<ReadStandingResponse>, Status> {
        let asked = request.into_inner();
        let slot = self.0.agents.get(&asked.agent_id)?;
        let (version, tenure) = (signed("version", asked.version)?, self.0.tenure()?);
        let found = self.0.standing(slot, version).await?;
        Orchestration::confirm(&tenure)?;
        Ok(Response::new(ReadStandingResponse {
            standing: Some(standing(found)),
        }))
    }

    async fn check_promotion(
        &self,
        request: Request<CheckPromotionRequest>,
    ) -> Result<Response<CheckPromotionResponse>, Status> {
        let asked = request.into_inner();
        let slot = self.0.agents.get(&asked.agent_id)?;
        let (version, to) = (signed("version", asked.version)?, stage(asked.to_stage)?);
        let Checked { to, refusal: why } = self.0.check_promotion(slot, version, to).await?;
        let found = self.0.standing(slot, version).await?;
        Ok(Response::new(CheckPromotionResponse {
            standing: Some(standing(found)),
            to_stage: stage_as(to).into(),
            refusal: why.map(refusal),
        }))
    }

    async fn compare_promotion(
        &self,
        request: Request<ComparePromotionRequest>,
    ) -> Result<Response<ComparePromotionResponse>, Status> {
        let asked = request.into_inner();
        let slot = self.0.agents.get(&asked.agent_id)?;
        let version = signed("version", asked.version)?;
        let compared = self
            .0
            .compare_for_promotion(Arc::clone(slot), asked.on_behalf_of, version);
        let comparison = comparisons::comparison(slot.id(), version, compared.await?);
        Ok(Response::new(ComparePromotionResponse {
            comparison: Some(comparison),
        }))
    }

    async fn apply_promotion(
        &self,
        request: Request<ApplyPromotionRequest>,
    ) -> Result<Response<ApplyPromotionResponse>, Status> {
        let by = Call::of(&request)?.actor();
        let asked = request.into_inner();
        let slot = self.0.agents.get(&asked.agent_id)?;
        let step = StepUp {
            change: Governed {
                by,
                on_behalf_of: asked.on_behalf_of,
                change_id: asked.change_id,
                token: signed("fencing_token", asked.fencing_token)?,
            },
            operation_id: asked.operation_id,
            version: signed("version", asked.version)?,
            to: named(asked.to_stage)?,
            incumbent: signed("incumbent_version", asked.incumbent_version)?,
        };
        let taken = self.0.step_up(Arc::clone(slot), step).await?;
        Ok(Response::new(ApplyPromotionResponse {
            placement: Some(placement(taken)),
        }))
    }

    async fn revert_promotion(
        &self,
        request: Request<RevertPromotionRequest>,
    ) -> Result<Response<RevertPromotionResponse>, Status> {
        let by = Call::of(&request)?.actor();
        let asked = request.into_inner();
        let slot = self.0.agents.get(&asked.agent_id)?;
        let step = StepBack {
            change: Governed {
                by,
                on_behalf_of: asked.on_behalf_of,
                change_id: asked.change_id,
                token: signed("fencing_token", asked.fencing_token)?,
            },
            operation_id: asked.operation_id,
            version: signed("version", asked.version)?,
            from: named(asked.from_stage)?,
            to: named(asked.to_stage)?,
            incumbent: signed("incumbent_version", asked.incumbent_version)?,
        };
        self.0.step_back(Arc::clone(slot), step).await?;
        Ok(Response::new(RevertPromotionResponse {}))
    }

    async fn settle_promotion(
        &self,
        request: Request<SettlePromotionRequest>,
    ) -> Result<Response<SettlePromotionResponse>, Status> {
        let by = Call::of(&request)?.actor();
        let asked = request.into_inner();
        let slot = self.0.agents.get(&asked.agent_id)?;
        let change = Governed {
            by,
            on_behalf_of: asked.on_behalf_of,
            change_id: asked.change_id,
            token: signed("fencing_token", asked.fencing_token)?,
        };
        let completed = asked.completed.map(placed).transpose()?;
        let settled = self.0.settle_promotion(Arc::clone(slot), change, completed);
        settled.await?;
        Ok(Response::new(SettlePromotionResponse {}))
    }
}
