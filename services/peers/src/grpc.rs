//! The gRPC client as a [`Trainer`].

use crate::{Evaluation, PeerError, Run, Trainer, Update, trainer::EVAL_EPISODES};
use futures_util::{Stream, TryStreamExt, stream};
use tars_interceptors::client::{Credentials, OutgoingService, finish, outgoing};
use tars_mesh::Channel;
use tars_proto::{
    MAX_RESPONSE,
    orchestration::v1::{
        EvaluateHyperparametersRequest, EvaluateHyperparametersResponse, TrainingProgress,
        evaluate_hyperparameters_response::Event,
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
            let Some(update) = item.event.and_then(update) else {
                continue;
            };
            if let Update::Ended(_) = update {
                finish(items).await;
                return Ok(Some((update, None)));
            }
            return Ok(Some((update, Some(items))));
        }
        Ok(None)
    })
}

/// What an item says. A report of an earlier version names no agent: then it says nothing of returns.
fn update(event: Event) -> Option<Update> {
    Some(match event {
        Event::Began(began) => return began.then_some(Update::Began),
        Event::Progress(TrainingProgress { step, agents, .. }) => Update::Progress {
            step,
            mean_return: agents.first().and_then(|agent| agent.mean_return),
        },
        Event::Result(result) => Update::Ended(result.mean_return),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message;
    use tars_proto::orchestration::v1::AgentProgress;

    fn read(bytes: &[u8]) -> Option<Update> {
        let item = EvaluateHyperparametersResponse::decode(bytes).unwrap();
        item.event.and_then(update)
    }

    #[test]
    fn an_item_of_an_earlier_version_says_what_it_has_and_nothing_else() {
        // sequence 1, progress { step 10, mean_return 1.5 in the field of before }
        let of_before = [8, 1, 18, 11, 8, 10, 25, 0, 0, 0, 0, 0, 0, 0xf8, 0x3f];
        let step = 10;
        let mean_return = None;
        assert_eq!(
            read(&of_before),
            Some(Update::Progress { step, mean_return })
        );
        let began = [32, 1];
        assert_eq!(
            read(&began),
            Some(Update::Began),
            "as it was outside of the oneof"
        );
        assert_eq!(read(&[8, 7]), None, "an event of a later version");
        assert_eq!(read(&[32, 0]), None);
    }

    #[test]
    fn a_report_without_an_episode_has_no_return_and_one_of_zero_has() {
        for mean_return in [None, Some(0.0)] {
            let progress = TrainingProgress {
                step: 3,
                episode: 0,
                agents: vec![AgentProgress {
                    mean_return,
                    ..AgentProgress::default()
                }],
                rate: None,
            };
            let expected = Update::Progress {
                step: 3,
                mean_return,
            };
            assert_eq!(update(Event::Progress(progress)), Some(expected));
        }
    }
}
