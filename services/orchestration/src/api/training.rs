//! Training's gRPC handlers.

use super::{
    Api, Items,
    agents::values,
    environments::calibration,
    numbers::{signed, unsigned},
};
use crate::{
    Orchestration, OrchestrationError,
    learners::{Class, Event, Owner, Running},
    store::{self, AgentReport, MemberRow, Report, RunState, WorkToken},
    task::{self, Learning, Task},
    training::{RunView, Start, TrainingEvent, Watcher},
};
use futures_util::{Stream, StreamExt, stream};
use std::{collections::BTreeMap, sync::Arc};
use tars_certs::PeerClass;
use tars_interceptors::Call;
use tars_learn::training::{Outcome, Progress, Statistics};
use tars_proto::{
    fault,
    orchestration::v1::{evaluate_hyperparameters_response::Event as Evaluated, *},
    time::timestamp,
};
use tonic::{Request, Response, Status};
use uuid::Uuid;

const REPORTS: u32 = 10;
const EVAL_EPISODES: u32 = 20;

fn training_run(view: RunView) -> TrainingRun {
    let RunView {
        row,
        members,
        position,
    } = view;
    let state = match row.state {
        RunState::Queued => TrainingState::Queued,
        RunState::Running | RunState::Installing => TrainingState::Running,
        RunState::Pausing => TrainingState::Pausing,
        RunState::Paused => TrainingState::Paused,
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
        error_reason: row.error_reason,
        checkpoint_step: row.checkpoint_step.map(unsigned),
        started_at: row.running_us.map(timestamp),
        ended_at: row
            .ended_us
            .filter(|_| row.state.has_ended())
            .map(timestamp),
        queued_at: Some(timestamp(row.queued_us)),
        queue_position: position,
        members: members.into_iter().map(member).collect(),
        others: match row.others {
            store::Others::Rules => Others::Rules,
            store::Others::Live => Others::Live,
        }
        .into(),
        calibration: calibration(&row.environment),
        environment: row.environment,
        rate: row.rate,
    }
}

fn member(from: MemberRow) -> TrainingMember {
    TrainingMember {
        agent_id: from.agent,
        algorithm: from.algorithm,
        final_return: from.final_return,
        weights_version: from.weights_version.map(unsigned),
    }
}

fn others(from: i32) -> store::Others {
    match Others::try_from(from).unwrap_or_default() {
        Others::Unspecified | Others::Rules => store::Others::Rules,
        Others::Live => store::Others::Live,
    }
}

/// The progress of an evaluation, which follows no live version.
fn progress(from: Progress) -> TrainingProgress {
    let mut progress = report(Report::new(&from, &[("", 0)]));
    for agent in &mut progress.agents {
        agent.version = None;
    }
    progress
}

fn report(from: Report) -> TrainingProgress {
    TrainingProgress {
        step: from.step,
        episode: from.episode,
        agents: from.agents.into_iter().map(agent_progress).collect(),
        rate: None,
    }
}

fn agent_progress(from: AgentReport) -> AgentProgress {
    let update = from.update;
    AgentProgress {
        agent_id: from.agent,
        mean_return: from.mean_return,
        loss: update.loss.map(f64::from),
        exploration: from.exploration,
        version: Some(unsigned(from.version)),
        policy_loss: update.policy_loss.map(f64::from),
        value_loss: update.value_loss.map(f64::from),
        entropy: update.entropy.map(f64::from),
        kl: update.kl.map(f64::from),
        clip_fraction: update.clip_fraction.map(f64::from),
        explained_variance: update.explained_variance.map(f64::from),
        q: update.q.map(f64::from),
        gradient_norm: update.gradient_norm.map(f64::from),
        statistics: from.statistics.map(statistics),
    }
}

pub(super) fn statistics(from: Statistics) -> LearningStatistics {
    LearningStatistics {
        update_count: from.gradient_steps,
        avg_reward_last_10: from.mean_return_10,
        avg_reward_last_100: from.mean_return_100,
        max_reward: from.max_return,
        avg_episode_length: from.mean_length_100,
        current_loss: from.loss,
        avg_loss_last_100: from.mean_loss_100,
        buffer_size: from.buffered,
    }
}

/// The events of a run as a stream.
fn events(watcher: Watcher) -> impl Stream<Item = Result<WatchTrainingResponse, Status>> {
    stream::try_unfold(watcher, |mut watcher| async move {
        let Some((sequence, event)) = watcher.next().await? else {
            return Ok(None);
        };
        let (progress, ended, run) = match event {
            TrainingEvent::Progress(from, rate) => {
                let progress = TrainingProgress {
                    rate,
                    ..report(from)
                };
                (Some(progress), None, None)
            }
            TrainingEvent::Ended(run) => (None, Some(training_run(*run)), None),
            TrainingEvent::State(run) => (None, None, Some(training_run(*run))),
        };
        let item = WatchTrainingResponse {
            sequence,
            progress,
            ended,
            run,
        };
        Ok(Some((item, watcher)))
    })
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
        let asked = request.into_inner();
        let start = Start {
            by,
            owner,
            allowance: self.0.usage.allowance_of(&call),
            agents: vec![asked.agent_id],
            environment: asked.environment,
            others: others(asked.others),
            steps: asked.steps,
            seed: asked.seed,
        };
        let run = self.0.start_training(start).await?;
        Ok(Response::new(StartTrainingResponse {
            run: Some(training_run(run)),
        }))
    }

    async fn start_joint_training(
        &self,
        request: Request<StartJointTrainingRequest>,
    ) -> Result<Response<StartJointTrainingResponse>, Status> {
        let call = Call::of(&request)?;
        let (by, owner) = (call.actor(), call.owner().to_owned());
        let asked = request.into_inner();
        let start = Start {
            by,
            owner,
            allowance: self.0.usage.allowance_of(&call),
            agents: asked.agents,
            environment: asked.environment,
            others: others(asked.others),
            steps: asked.steps,
            seed: asked.seed,
        };
        let run = self.0.start_training(start).await?;
        Ok(Response::new(StartJointTrainingResponse {
            run: Some(training_run(run)),
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
        let by = Call::of(&request)?.actor();
        let run = id(&request.get_ref().run_id)?;
        let run = self.0.cancel_training(by, run).await?;
        Ok(Response::new(CancelTrainingResponse {
            run: Some(training_run(run)),
        }))
    }

    async fn pause_training(
        &self,
        request: Request<PauseTrainingRequest>,
    ) -> Result<Response<PauseTrainingResponse>, Status> {
        let by = Call::of(&request)?.actor();
        let run = id(&request.get_ref().run_id)?;
        let run = self.0.pause_training(by, run).await?;
        Ok(Response::new(PauseTrainingResponse {
            run: Some(training_run(run)),
        }))
    }

    async fn resume_training(
        &self,
        request: Request<ResumeTrainingRequest>,
    ) -> Result<Response<ResumeTrainingResponse>, Status> {
        let by = Call::of(&request)?.actor();
        let run = id(&request.get_ref().run_id)?;
        let run = self.0.resume_training(by, run).await?;
        Ok(Response::new(ResumeTrainingResponse {
            run: Some(training_run(run)),
        }))
    }

    type WatchTrainingStream = Items<WatchTrainingResponse>;

    async fn watch_training(
        &self,
        request: Request<WatchTrainingRequest>,
    ) -> Result<Response<Items<WatchTrainingResponse>>, Status> {
        let asked = request.into_inner();
        let run_id = id(&asked.run_id)?;
        let watcher = self.0.watch_training(run_id, asked.after_sequence).await?;
        let watcher = match asked.with_state {
            true => watcher.with_states(),
            false => watcher,
        };
        Ok(Response::new(Box::pin(events(watcher))))
    }

    type EvaluateHyperparametersStream = Items<EvaluateHyperparametersResponse>;

    async fn evaluate_hyperparameters(
        &self,
        request: Request<EvaluateHyperparametersRequest>,
    ) -> Result<Response<Items<EvaluateHyperparametersResponse>>, Status> {
        let class = Call::of(&request)?.peer.class;
        let asked = request.into_inner();
        let verifies = asked.verification && class == Some(PeerClass::Hypersync);
        // Each service names its own work.
        let service = class.map_or("", PeerClass::as_str);
        let given = WorkToken {
            work: format!("{service}/{}", asked.work_id),
            token: signed("fencing_token", asked.fencing_token)?,
        };
        let owner = Owner {
            class: if verifies {
                Class::Verification
            } else {
                Class::Search
            },
            caller: asked.on_behalf_of,
        };
        let hosts = &self.0.hosts;
        let task = Task {
            external: hosts.external(&owner.caller, &asked.environment),
            environment: asked.environment,
            learners: vec![Learning {
                agent: asked.agent,
                algorithm: asked.agent_type,
                values: values(asked.hyperparameters)?,
                start: None,
            }],
            frozen: BTreeMap::new(),
            seed: asked.seed,
            steps: asked.steps,
            reports: u64::from(asked.reports.unwrap_or(REPORTS)),
            evaluation_episodes: asked.eval_episodes.unwrap_or(EVAL_EPISODES),
        };
        let running = self.0.evaluate(owner, task, given.clone()).await?;
        let items = evaluation(running, asked.after_sequence);
        let service = Arc::clone(&self.0);
        Ok(Response::new(Box::pin(until_superseded(
            items, service, given,
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
                    Some(Event::Progress(p, _)) if sequence > after => {
                        let item = evaluated(sequence, Evaluated::Progress(progress(p)));
                        return Ok(Some((item, (Some(running), sequence))));
                    }
                    Some(Event::Progress(..)) => continue,
                    Some(Event::Began) => {
                        sequence -= 1;
                        let item = evaluated(0, Evaluated::Began(true));
                        return Ok(Some((item, (Some(running), sequence))));
                    }
                    Some(Event::Checkpoint(..)) => {
                        sequence -= 1;
                        continue;
                    }
                    Some(Event::Ended(Ok(Some(outcome)))) => {
                        evaluated(sequence, Evaluated::Result(result(&outcome)?))
                    }
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

fn evaluated(sequence: u64, event: Evaluated) -> EvaluateHyperparametersResponse {
    EvaluateHyperparametersResponse {
        sequence,
        event: Some(event),
    }
}

/// The items of a run, until the work that it is a part of has been taken over.
fn until_superseded<T: Send + 'static>(
    items: impl Stream<Item = Result<T, Status>> + Send + 'static,
    service: Arc<Orchestration>,
    given: WorkToken,
) -> impl Stream<Item = Result<T, Status>> + Send {
    let superseded = async move { Status::from(service.superseded(&given).await) };
    let state = Some((Box::pin(items), Box::pin(superseded)));
    stream::unfold(state, |state| async move {
        let (mut items, mut superseded) = state?;
        tokio::select! {
            item = items.next() => Some((item?, Some((items, superseded)))),
            status = &mut superseded => Some((Err(status), None)),
        }
    })
}

fn result(outcome: &Outcome) -> Result<EvaluationResult, OrchestrationError> {
    let result = task::result(outcome);
    let (learned, evaluation) =
        result.ok_or(OrchestrationError::Worker("the learner has no result"))?;
    Ok(EvaluationResult {
        mean_return: evaluation.mean(learned.agent),
        std_return: evaluation.std(learned.agent),
        returns: evaluation.returns[learned.agent].clone(),
        steps: outcome.steps,
        episodes: outcome.episodes,
    })
}
