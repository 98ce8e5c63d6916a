//! Training's gRPC handlers.

use super::{Api, Items, unsigned, values};
use crate::{
    OrchestrationError,
    learners::{Class, Event, Owner, Running},
    store::RunState,
    training::{RunView, TrainingEvent},
};
use futures_util::{Stream, stream};
use tars_certs::PeerClass;
use tars_interceptors::Call;
use tars_learn::{Outcome, Progress, Run};
use tars_proto::{fault, orchestration::v1::*, reason, time::timestamp};
use tonic::{Code, Request, Response, Status};
use uuid::Uuid;

const REPORTS: u32 = 10;
const EVAL_EPISODES: u32 = 20;

fn training_run(view: RunView) -> TrainingRun {
    let RunView { row, position } = view;
    let state = match row.state {
        RunState::Queued => TrainingState::Queued,
        RunState::Running => TrainingState::Running,
        RunState::Cancelling => TrainingState::Cancelling,
        RunState::Completed => TrainingState::Completed,
        RunState::Cancelled => TrainingState::Cancelled,
        RunState::Failed => TrainingState::Failed,
        RunState::Interrupted => TrainingState::Interrupted,
    };
    TrainingRun {
        run_id: row.id.to_string(),
        agent_id: row.agent_id,
        state: state.into(),
        steps: unsigned(row.steps),
        steps_done: unsigned(row.steps_done),
        episodes_done: unsigned(row.episodes_done),
        seed: row.seed as u64,
        final_return: row.final_return,
        error: row.error,
        started_at: row.running_us.map(timestamp),
        ended_at: row.ended_us.map(timestamp),
        queued_at: Some(timestamp(row.queued_us)),
        queue_position: position,
    }
}

fn progress(from: Progress, version: Option<i64>) -> TrainingProgress {
    TrainingProgress {
        step: from.step,
        episode: from.episode,
        mean_return: from.mean_return,
        loss: from.loss,
        epsilon: from.epsilon,
        version: version.map(unsigned),
    }
}

fn id(text: &str) -> Result<Uuid, Status> {
    Uuid::try_parse(text).map_err(|_| fault::invalid_field("run_id", "must be a UUID"))
}

#[tonic::async_trait]
impl training_service_server::TrainingService for Api {
    async fn start_training(
        &self,
        request: Request<StartTrainingRequest>,
    ) -> Result<Response<StartTrainingResponse>, Status> {
        let call = Call::of(&request)?;
        let (by, owner) = (call.actor(), call.owner().to_owned());
        let StartTrainingRequest {
            agent_id,
            steps,
            seed,
        } = request.into_inner();
        let row = self
            .0
            .start_training(by, owner, &agent_id, steps, seed)
            .await?;
        Ok(Response::new(StartTrainingResponse {
            run: Some(training_run(row)),
        }))
    }

    async fn get_training(
        &self,
        request: Request<GetTrainingRequest>,
    ) -> Result<Response<GetTrainingResponse>, Status> {
        let row = self.0.training(id(&request.get_ref().run_id)?).await?;
        Ok(Response::new(GetTrainingResponse {
            run: Some(training_run(row)),
        }))
    }

    async fn list_trainings(
        &self,
        request: Request<ListTrainingsRequest>,
    ) -> Result<Response<ListTrainingsResponse>, Status> {
        let ListTrainingsRequest {
            page_size,
            page_token,
        } = request.into_inner();
        let (rows, next_page_token) = self.0.list_trainings(&page_token, page_size).await?;
        let runs = rows.into_iter().map(training_run).collect();
        Ok(Response::new(ListTrainingsResponse {
            runs,
            next_page_token,
        }))
    }

    async fn cancel_training(
        &self,
        request: Request<CancelTrainingRequest>,
    ) -> Result<Response<CancelTrainingResponse>, Status> {
        let row = self
            .0
            .cancel_training(id(&request.get_ref().run_id)?)
            .await?;
        Ok(Response::new(CancelTrainingResponse {
            run: Some(training_run(row)),
        }))
    }

    type WatchTrainingStream = Items<WatchTrainingResponse>;

    async fn watch_training(
        &self,
        request: Request<WatchTrainingRequest>,
    ) -> Result<Response<Items<WatchTrainingResponse>>, Status> {
        let asked = request.into_inner();
        let run_id = id(&asked.run_id)?;
        let Some(training) = self.0.trainings.get(run_id) else {
            // Its log was evicted, but its end is stored.
            let ended = training_run(self.0.training(run_id).await?);
            let item = WatchTrainingResponse {
                sequence: fault::sequence_after(asked.after_sequence)?,
                progress: None,
                ended: Some(ended),
            };
            return Ok(Response::new(Box::pin(stream::iter([Ok(item)]))));
        };
        let trimmed = |e: tars_runtime::events::Trimmed| {
            fault::status(Code::OutOfRange, reason::TRIMMED, &e.to_string())
        };
        let reader = training.log.read(asked.after_sequence).map_err(trimmed)?;
        let items = stream::try_unfold(reader, move |mut reader| async move {
            let Some((sequence, event)) = reader.next().await.map_err(trimmed)? else {
                return Ok(None);
            };
            let (progress, ended) = match event {
                TrainingEvent::Progress {
                    progress: p,
                    version,
                } => (Some(progress(p, Some(version))), None),
                TrainingEvent::Ended(row) => (None, Some(training_run(*row))),
            };
            Ok(Some((
                WatchTrainingResponse {
                    sequence,
                    progress,
                    ended,
                },
                reader,
            )))
        });
        Ok(Response::new(Box::pin(items)))
    }

    type EvaluateHyperparametersStream = Items<EvaluateHyperparametersResponse>;

    async fn evaluate_hyperparameters(
        &self,
        request: Request<EvaluateHyperparametersRequest>,
    ) -> Result<Response<Items<EvaluateHyperparametersResponse>>, Status> {
        let class = Call::of(&request)?.peer_class();
        let asked = request.into_inner();
        let verifies = asked.verification && class == Some(PeerClass::Hypersync);
        let owner = Owner {
            class: if verifies {
                Class::Verification
            } else {
                Class::Search
            },
            caller: asked.on_behalf_of,
        };
        let run = Run {
            algorithm: asked.agent_type,
            environment: asked.environment,
            values: values(asked.hyperparameters)?,
            seed: asked.seed,
            steps: asked.steps,
            reports: u64::from(asked.reports.unwrap_or(REPORTS)),
            eval_episodes: asked.eval_episodes.unwrap_or(EVAL_EPISODES),
            start: None,
        };
        let running = self.0.evaluate(owner, run)?;
        Ok(Response::new(Box::pin(evaluation(
            running,
            asked.after_sequence,
        ))))
    }
}

/// A run's reports as a stream. The run is deterministic, so resuming repeats it and skips what was
/// already sent. Dropping the stream drops the run.
fn evaluation(
    running: Running,
    after: u64,
) -> impl Stream<Item = Result<EvaluateHyperparametersResponse, Status>> {
    stream::try_unfold(
        (Some(running), 0u64),
        move |(running, mut sequence)| async move {
            let Some(mut running) = running else {
                return Ok(None);
            };
            loop {
                sequence += 1;
                let item = match running.next().await {
                    Some(Event::Progress(p)) if sequence > after => {
                        let progress = Some(progress(p, None));
                        let item = EvaluateHyperparametersResponse {
                            sequence,
                            progress,
                            result: None,
                        };
                        return Ok(Some((item, (Some(running), sequence))));
                    }
                    Some(Event::Progress(_)) => continue,
                    Some(Event::Began) => {
                        sequence -= 1;
                        continue;
                    }
                    Some(Event::Ended(Ok(Some(outcome)))) => EvaluateHyperparametersResponse {
                        sequence,
                        progress: None,
                        result: Some(result(outcome)),
                    },
                    Some(Event::Ended(Ok(None))) => {
                        return Err(Status::cancelled("the run was stopped"));
                    }
                    Some(Event::Ended(Err(e))) => return Err(OrchestrationError::from(e).into()),
                    None => {
                        return Err(OrchestrationError::Worker("the learner thread died").into());
                    }
                };
                return Ok(Some((item, (None, sequence))));
            }
        },
    )
}

fn result(outcome: Outcome) -> EvaluationResult {
    EvaluationResult {
        mean_return: outcome.evaluation.mean(),
        std_return: outcome.evaluation.std(),
        returns: outcome.evaluation.returns,
        steps: outcome.steps,
        episodes: outcome.episodes,
    }
}
