//! The services that HyperSync calls, as traits over messages, and the clients that implement them.
//!
//! Nothing but this file knows that a call goes over the mesh.

use std::{fmt::Debug, sync::Arc};
use tars_interceptors::client::OutgoingService;
use tars_mesh::Channel;
use tars_peers::{PeerError, Trainer};
use tars_proto::{
    automl::v1::{GetStudyRequest, Study, study_service_client::StudyServiceClient},
    orchestration::v1::{
        Agent, ApplyHyperparametersRequest, GetAgentRequest, HoldAgentRequest,
        ReadHyperparametersRequest, ReadHyperparametersResponse, SettleHyperparametersRequest,
        orchestration_service_client::OrchestrationServiceClient,
        training_service_client::TrainingServiceClient,
    },
};
use tonic::async_trait;

type Studies = StudyServiceClient<OutgoingService<Channel>>;
type Agents = OrchestrationServiceClient<OutgoingService<Channel>>;
type Training = TrainingServiceClient<OutgoingService<Channel>>;

/// What is read for a caller, with the caller's own credential.
#[async_trait]
pub(crate) trait ReadForCaller: Debug + Send + Sync {
    async fn study(&self, study_id: &str) -> Result<Option<Study>, PeerError>;
    async fn agent(&self, agent_id: &str) -> Result<Option<Agent>, PeerError>;
}

/// Agents as this workload changes them.
#[async_trait]
pub(crate) trait ChangeAgents: Debug + Send + Sync {
    /// What is live of an agent, read from the agent itself.
    async fn read(&self, agent_id: &str) -> Result<ReadHyperparametersResponse, PeerError>;

    /// Makes values live and holds the agent, once an operation id; the version that it made.
    async fn apply(&self, request: ApplyHyperparametersRequest) -> Result<u64, PeerError>;

    /// Lets go of an agent.
    async fn settle(&self, request: SettleHyperparametersRequest) -> Result<(), PeerError>;

    /// Holds an agent with whatever is live until a person has decided.
    async fn hold(&self, request: HoldAgentRequest) -> Result<(), PeerError>;
}

/// The services that HyperSync calls.
#[derive(Debug, Clone)]
pub struct Peers {
    pub(crate) for_caller: Arc<dyn ReadForCaller>,
    pub(crate) agents: Arc<dyn ChangeAgents>,
    pub(crate) trainer: Arc<dyn Trainer>,
}

impl Peers {
    /// Peers over the mesh. The first two clients forward the caller's credential, the others show
    /// this workload's alone.
    pub fn new(
        studies_for_caller: Studies,
        agents_for_caller: Agents,
        agents: Agents,
        training: Training,
    ) -> Self {
        Self {
            for_caller: Arc::new(ForCaller {
                studies: studies_for_caller,
                agents: agents_for_caller,
            }),
            agents: Arc::new(agents),
            trainer: Arc::new(training),
        }
    }
}

#[derive(Debug)]
struct ForCaller {
    studies: Studies,
    agents: Agents,
}

#[async_trait]
impl ReadForCaller for ForCaller {
    async fn study(&self, study_id: &str) -> Result<Option<Study>, PeerError> {
        let request = GetStudyRequest {
            study_id: study_id.to_owned(),
        };
        let answer = self.studies.clone().get_study(request).await?;
        Ok(answer.into_inner().study)
    }

    async fn agent(&self, agent_id: &str) -> Result<Option<Agent>, PeerError> {
        let request = GetAgentRequest {
            agent_id: agent_id.to_owned(),
        };
        let answer = self.agents.clone().get_agent(request).await?;
        Ok(answer.into_inner().agent)
    }
}

#[async_trait]
impl ChangeAgents for Agents {
    async fn read(&self, agent_id: &str) -> Result<ReadHyperparametersResponse, PeerError> {
        let request = ReadHyperparametersRequest {
            agent_id: agent_id.to_owned(),
        };
        let answer = self.clone().read_hyperparameters(request).await?;
        Ok(answer.into_inner())
    }

    async fn apply(&self, request: ApplyHyperparametersRequest) -> Result<u64, PeerError> {
        let answer = self.clone().apply_hyperparameters(request).await?;
        Ok(answer.into_inner().version)
    }

    async fn settle(&self, request: SettleHyperparametersRequest) -> Result<(), PeerError> {
        self.clone().settle_hyperparameters(request).await?;
        Ok(())
    }

    async fn hold(&self, request: HoldAgentRequest) -> Result<(), PeerError> {
        self.clone().hold_agent(request).await?;
        Ok(())
    }
}
