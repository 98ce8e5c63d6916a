//! The services that AutoML calls, as traits over messages, and the gRPC clients that implement them.
//!
//! Only this module knows about channels; the rest of the service is tested without a socket.

use std::{fmt::Debug, sync::Arc};
use tars_mesh::Channel;
use tars_peers::{Agents, PeerError, Trainer};
use tars_proto::{
    orchestration::v1::ReadHyperparametersRequest,
    params::{self, Params},
};
use tonic::async_trait;

/// An agent's type and environment.
#[derive(Debug, Clone)]
pub(crate) struct AgentKind {
    pub(crate) agent_type: String,
    pub(crate) environment: String,
}

/// Where trials are to learn that do not learn where their agent lives.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Elsewhere {
    /// Empty where the agent lives.
    pub(crate) environment: String,
    /// Whose environments are meant, apart from those that are built in.
    pub(crate) owner: String,
}

/// The most that a trial may ask of a learner: its steps, and the largest value of each parameter.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Most {
    pub(crate) steps: u64,
    pub(crate) values: Params,
}

/// Descriptions of agents.
#[async_trait]
pub(crate) trait DescribeAgents: Debug + Send + Sync {
    /// An agent's type and environment; fails where its algorithm cannot learn in the other environment.
    async fn kind(&self, agent_id: &str, elsewhere: Elsewhere) -> Result<AgentKind, PeerError>;

    /// Fails where what the largest of an agent's trials learns could not be stored.
    async fn ensure_storable(
        &self,
        agent_id: &str,
        elsewhere: Elsewhere,
        most: Most,
    ) -> Result<(), PeerError>;
}

/// Calls to Orchestration as this workload.
#[derive(Debug, Clone)]
pub(crate) struct Peers {
    pub(crate) agents: Arc<dyn DescribeAgents>,
    pub(crate) trainer: Arc<dyn Trainer>,
}

impl Peers {
    /// Peers over the mesh, by a channel to Orchestration.
    pub(crate) fn over(orchestration: Channel) -> Self {
        let (agents, training) = tars_peers::orchestration(orchestration);
        Self {
            agents: Arc::new(agents),
            trainer: Arc::new(training),
        }
    }
}

#[async_trait]
impl DescribeAgents for Agents {
    async fn kind(&self, agent_id: &str, elsewhere: Elsewhere) -> Result<AgentKind, PeerError> {
        let request = ReadHyperparametersRequest {
            agent_id: agent_id.to_owned(),
            environment: elsewhere.environment,
            on_behalf_of: elsewhere.owner,
            ..ReadHyperparametersRequest::default()
        };
        let answer = self.clone().read_hyperparameters(request).await?;
        let answer = answer.into_inner();
        Ok(AgentKind {
            agent_type: answer.agent_type,
            environment: answer.environment,
        })
    }

    async fn ensure_storable(
        &self,
        agent_id: &str,
        elsewhere: Elsewhere,
        most: Most,
    ) -> Result<(), PeerError> {
        let request = ReadHyperparametersRequest {
            agent_id: agent_id.to_owned(),
            environment: elsewhere.environment,
            on_behalf_of: elsewhere.owner,
            steps: Some(most.steps),
            largest: Some(params::to_struct(&most.values)),
        };
        self.clone().read_hyperparameters(request).await?;
        Ok(())
    }
}
