//! The gRPC client as a [`Trainer`].

use crate::{Evaluation, PeerError, Run, Trainer, Update, trainer::EVAL_EPISODES};
use futures_util::{Stream, TryStreamExt, stream};
use tars_interceptors::client::{Credentials, OutgoingService, finish, outgoing};
use tars_mesh::{Channel, MAX_RESPONSE};
use tars_proto::{
    orchestration::v1::{
        EvaluateHyperparametersRequest, EvaluateHyperparametersResponse, TrainingProgress,
        orchestration_service_client::OrchestrationServiceClient,
        training_service_client::TrainingServiceClient,
    },
    params,
};
use tonic::Streaming;

/// A client of Orchestration's agents with this workload's identity.
pub type Agents = OrchestrationServiceClient<OutgoingService<Channel>>;

/// A client of Orchestration's trainings with this workload's identity.
pub type Training = TrainingServiceClient<OutgoingService<Channel>>;

/// Clients of Orchestration with this workload's identity. Trainings are streams and use a connection
/// of their own.
pub fn orchestration(channel: Channel) -> (Agents, Training) {
    let training = TrainingServiceClient::new(outgoing(channel.separate(), Credentials::Own));
    let agents = OrchestrationServiceClient::new(outgoing(channel, Credentials::Own));
    (
        agents.max_decoding_message_size(MAX_RESPONSE),
        training.max_decoding_message_size(MAX_RESPONSE),
    )
}

impl Trainer for Training {
    fn evaluate(&self, evaluation: Evaluation) -> Run {
        let mut client = self.clone();
        let answer = async move {
            let answer = client.evaluate_hyperparameters(request(evaluation)).await?;
            Ok::<_, PeerError>(updates(answer.into_inner()))
        };
        Run::new(stream::once(answer).try_flatten())
    }
}

fn request(evaluation: Evaluation) -> EvaluateHyperparametersRequest {
    EvaluateHyperparametersRequest {
        agent_type: evaluation.agent_type,
        environment: evaluation.environment,
        hyperparameters: Some(params::to_struct(&evaluation.hyperparameters)),
        seed: evaluation.seed,
        steps: evaluation.steps,
        eval_episodes: Some(EVAL_EPISODES),
        reports: Some(evaluation.reports),
        after_sequence: 0,
        on_behalf_of: evaluation.on_behalf_of,
        verification: evaluation.verification,
        work_id: evaluation.work_id,
        fencing_token: evaluation.fencing_token,
        agent: evaluation.agent,
    }
}

/// The updates of a call up to the result. Dropping the stream cancels the call, and with it the
/// run.
fn updates(
    items: Streaming<EvaluateHyperparametersResponse>,
) -> impl Stream<Item = Result<Update, PeerError>> {
    stream::try_unfold(Some(items), |items| async move {
        let Some(mut items) = items else {
            return Ok(None);
        };
        while let Some(item) = items.message().await? {
            if let Some(result) = item.result {
                finish(items).await;
                return Ok(Some((Update::Ended(result.mean_return), None)));
            }
            if item.began {
                return Ok(Some((Update::Began, Some(items))));
            }
            if let Some(progress) = item.progress {
                let TrainingProgress { step, agents, .. } = progress;
                let mean_return = agents.first().and_then(|agent| agent.mean_return);
                return Ok(Some((Update::Progress { step, mean_return }, Some(items))));
            }
        }
        Ok(None)
    })
}
