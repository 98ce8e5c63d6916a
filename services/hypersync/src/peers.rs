//! The services that HyperSync calls, as traits over messages, and the gRPC clients that implement
//! them.
//!
//! Only this module knows about channels; the rest of the service is tested without a socket.

mod ladder;

pub(crate) use ladder::Ladder;

use ladder::Promotions;
use std::{fmt::Debug, sync::Arc};
use tars_interceptors::client::{Credentials, OutgoingService, outgoing};
use tars_mesh::Channel;
use tars_peers::{Agents, PeerError, Trainer};
use tars_proto::{
    MAX_RESPONSE,
    automl::v1::{GetStudyRequest, Study, study_service_client::StudyServiceClient},
    orchestration::v1::{
        Agent, ApplyHyperparametersRequest, GetAgentRequest, HoldAgentRequest,
        ReadHyperparametersRequest, ReadHyperparametersResponse, RecordDecisionsRequest,
        SettleHyperparametersRequest, orchestration_service_client::OrchestrationServiceClient,
    },
};
use tonic::async_trait;

type Studies = StudyServiceClient<OutgoingService<Channel>>;

/// Reads on behalf of a caller, with the caller's credential.
#[async_trait]
pub(crate) trait ReadForCaller: Debug + Send + Sync {
    async fn study(&self, study_id: &str) -> Result<Option<Study>, PeerError>;
    async fn agent(&self, agent_id: &str) -> Result<Option<Agent>, PeerError>;
}

/// Changes of agents, with this workload's identity.
#[async_trait]
pub(crate) trait ChangeAgents: Debug + Send + Sync {
    /// The live hyperparameters of an agent and their version.
    async fn read(&self, agent_id: &str) -> Result<ReadHyperparametersResponse, PeerError>;

    /// Makes values live and holds the agent; idempotent by its operation id. Returns the version that
    /// it made.
    async fn apply(&self, request: ApplyHyperparametersRequest) -> Result<u64, PeerError>;

    /// Releases the hold on an agent, and optionally approves what is live.
    async fn settle(&self, request: SettleHyperparametersRequest) -> Result<(), PeerError>;

    /// Holds an agent with whatever is live until a person decides.
    async fn hold(&self, request: HoldAgentRequest) -> Result<(), PeerError>;

    /// Records what came of proposals; the same may be recorded again.
    async fn record(&self, request: RecordDecisionsRequest) -> Result<(), PeerError>;
}

/// The services that HyperSync calls.
#[derive(Debug, Clone)]
pub(crate) struct Peers {
    pub(crate) for_caller: Arc<dyn ReadForCaller>,
    pub(crate) agents: Arc<dyn ChangeAgents>,
    pub(crate) trainer: Arc<dyn Trainer>,
    pub(crate) ladder: Arc<dyn Ladder>,
}

impl Peers {
    /// gRPC clients. Reads for a caller use channels of their own, which forward its credential.
    pub(crate) fn over(channels: Channels) -> Self {
        let forward = |channel| outgoing(channel, Credentials::Forward);
        let studies = StudyServiceClient::new(forward(channels.automl_for_caller));
        let agents = OrchestrationServiceClient::new(forward(channels.orchestration_for_caller));
        let for_caller = ForCaller {
            studies: studies.max_decoding_message_size(MAX_RESPONSE),
            agents: agents.max_decoding_message_size(MAX_RESPONSE),
        };
        let own = outgoing(channels.orchestration.clone(), Credentials::Own);
        let ladder = Promotions::new(own).max_decoding_message_size(MAX_RESPONSE);
        let (agents, training) = tars_peers::orchestration(channels.orchestration);
        Self {
            for_caller: Arc::new(for_caller),
            agents: Arc::new(agents),
            trainer: Arc::new(training),
            ladder: Arc::new(ladder),
        }
    }
}

/// The channels that [`Peers`] needs.
pub(crate) struct Channels {
    pub(crate) automl_for_caller: Channel,
    pub(crate) orchestration_for_caller: Channel,
    pub(crate) orchestration: Channel,
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
            ..ReadHyperparametersRequest::default()
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

    async fn record(&self, request: RecordDecisionsRequest) -> Result<(), PeerError> {
        self.clone().record_decisions(request).await?;
        Ok(())
    }
}
