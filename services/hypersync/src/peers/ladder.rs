//! The ladder of Orchestration, as messages and as what they say.

use crate::{
    HyperSyncError,
    change::{Against, Comparison, Incumbent, Placement, Stage, Standing},
};
use std::fmt::Debug;
use tars_interceptors::client::OutgoingService;
use tars_mesh::Channel;
use tars_peers::PeerError;
use tars_proto::orchestration::v1::{
    self as wire, AgentComparison, AgentStage, ApplyPromotionRequest, CheckPromotionRequest,
    CheckPromotionResponse, ComparePromotionRequest, ReadStandingRequest, RevertPromotionRequest,
    SettlePromotionRequest, promotion_service_client::PromotionServiceClient,
};
use tonic::async_trait;

/// A client of the ladder with this workload's identity.
pub(super) type Promotions = PromotionServiceClient<OutgoingService<Channel>>;

/// Steps of versions, with this workload's identity.
#[async_trait]
pub(crate) trait Ladder: Debug + Send + Sync {
    /// Where a version stands.
    async fn standing(&self, agent_id: &str, version: u64) -> Result<wire::Standing, PeerError>;

    /// What would become of a step up.
    async fn check(
        &self,
        request: CheckPromotionRequest,
    ) -> Result<CheckPromotionResponse, PeerError>;

    /// Compares a version with what answers now, unless that was done.
    async fn compare(
        &self,
        request: ComparePromotionRequest,
    ) -> Result<Option<AgentComparison>, PeerError>;

    /// Takes a step up and holds the agent; idempotent by its operation id.
    async fn step_up(
        &self,
        request: ApplyPromotionRequest,
    ) -> Result<Option<wire::Placement>, PeerError>;

    /// Takes a step up back, if the version still stands there.
    async fn step_back(&self, request: RevertPromotionRequest) -> Result<(), PeerError>;

    /// Releases the agent.
    async fn settle(&self, request: SettlePromotionRequest) -> Result<(), PeerError>;
}

#[async_trait]
impl Ladder for Promotions {
    async fn standing(&self, agent_id: &str, version: u64) -> Result<wire::Standing, PeerError> {
        let request = ReadStandingRequest {
            agent_id: agent_id.to_owned(),
            version,
        };
        let answer = self.clone().read_standing(request).await?;
        Ok(answer.into_inner().standing.unwrap_or_default())
    }

    async fn check(
        &self,
        request: CheckPromotionRequest,
    ) -> Result<CheckPromotionResponse, PeerError> {
        Ok(self.clone().check_promotion(request).await?.into_inner())
    }

    async fn compare(
        &self,
        request: ComparePromotionRequest,
    ) -> Result<Option<AgentComparison>, PeerError> {
        let answer = self.clone().compare_promotion(request).await?;
        Ok(answer.into_inner().comparison)
    }

    async fn step_up(
        &self,
        request: ApplyPromotionRequest,
    ) -> Result<Option<wire::Placement>, PeerError> {
        let answer = self.clone().apply_promotion(request).await?;
        Ok(answer.into_inner().placement)
    }

    async fn step_back(&self, request: RevertPromotionRequest) -> Result<(), PeerError> {
        self.clone().revert_promotion(request).await?;
        Ok(())
    }

    async fn settle(&self, request: SettlePromotionRequest) -> Result<(), PeerError> {
        self.clone().settle_promotion(request).await?;
        Ok(())
    }
}

impl Stage {
    /// A stage of the contract, if it names one.
    pub(crate) fn named(from: i32) -> Option<Self> {
        match AgentStage::try_from(from).unwrap_or_default() {
            AgentStage::Unspecified => None,
            AgentStage::Sim => Some(Self::Sim),
            AgentStage::Shadow => Some(Self::Shadow),
            AgentStage::Canary => Some(Self::Canary),
            AgentStage::Active => Some(Self::Active),
            AgentStage::Retired => Some(Self::Retired),
        }
    }

    fn answered(from: i32) -> Result<Self, HyperSyncError> {
        Self::named(from).ok_or(HyperSyncError::IncompleteResponse("the stage"))
    }
}

impl From<Stage> for AgentStage {
    fn from(stage: Stage) -> Self {
        match stage {
            Stage::Sim => Self::Sim,
            Stage::Shadow => Self::Shadow,
            Stage::Canary => Self::Canary,
            Stage::Active => Self::Active,
            Stage::Retired => Self::Retired,
        }
    }
}

impl From<Stage> for i32 {
    fn from(stage: Stage) -> Self {
        AgentStage::from(stage).into()
    }
}

impl TryFrom<wire::Standing> for Standing {
    type Error = HyperSyncError;

    fn try_from(from: wire::Standing) -> Result<Self, HyperSyncError> {
        Ok(Self {
            stage: Stage::answered(from.stage)?,
            trial: from.trial,
            incumbent: Incumbent {
                version: from.incumbent_version,
                rule: from.incumbent_rule,
            },
            steps: from.steps,
            blocked: from.blocked,
            fell: from.fell,
        })
    }
}

impl TryFrom<wire::Placement> for Placement {
    type Error = HyperSyncError;

    fn try_from(from: wire::Placement) -> Result<Self, HyperSyncError> {
        Ok(Self {
            stage: Stage::answered(from.stage)?,
            version: from.version,
            trial: from.trial,
        })
    }
}

impl From<Placement> for wire::Placement {
    fn from(from: Placement) -> Self {
        Self {
            stage: from.stage.into(),
            version: from.version,
            trial: from.trial,
        }
    }
}

impl From<AgentComparison> for Comparison {
    fn from(from: AgentComparison) -> Self {
        Self {
            incumbent: Incumbent {
                version: from.incumbent_version,
                rule: from.incumbent_rule,
            },
            calibration: from.calibration,
            seeds: from.seeds,
            first_seed: from.first_seed,
            mean: from.mean,
            with_incumbent: from.incumbent.map(Against::from),
            with_rules: from.rules.into_iter().map(Against::from).collect(),
        }
    }
}

impl From<wire::Against> for Against {
    fn from(from: wire::Against) -> Self {
        Self {
            name: from.name,
            mean: from.mean,
            difference: from.difference,
            low: from.low,
            high: from.high,
            verdict: from.verdict,
        }
    }
}

impl From<Against> for wire::Against {
    fn from(from: Against) -> Self {
        Self {
            name: from.name,
            mean: from.mean,
            difference: from.difference,
            low: from.low,
            high: from.high,
            verdict: from.verdict,
        }
    }
}
