//! Orchestration's gRPC handlers.

use crate::{
    Orchestration, OrchestrationError,
    agents::{Agent as Slot, Change},
    learners::{Event, Running},
    store::{RunRow, RunState},
    training::TrainingEvent,
};
use futures_util::{Stream, stream};
use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tars_games::Bimatrix;
use tars_interceptors::Call;
use tars_learn::{
    Outcome, Progress, Run,
    hyper::{Value, Values, Wrong},
};
use tars_proto::{
    Struct, fault,
    orchestration::v1::*,
    params::{self, Param},
    time::timestamp,
};
use tonic::{Code, Request, Response, Status, service::Routes};
use uuid::Uuid;

#[derive(Debug, Clone)]
pub(crate) struct Api(Arc<Orchestration>);

pub fn routes(service: Arc<Orchestration>, max_message: usize) -> Routes {
    let api = Api(service);
    let mut routes = Routes::builder();
    routes
        .add_service(
            orchestration_service_server::OrchestrationServiceServer::new(api.clone())
                .max_decoding_message_size(max_message),
        )
        .add_service(
            training_service_server::TrainingServiceServer::new(api)
                .max_decoding_message_size(max_message),
        );
    routes.routes()
}

fn unsigned(n: i64) -> u64 {
    u64::try_from(n).unwrap_or_default()
}

fn values(from: Option<Struct>) -> Result<Values, OrchestrationError> {
    let mut out = Values::new();
    for (name, param) in params::from_struct(from.unwrap_or_default())? {
        let value = match param {
            Param::Flag(b) => Value::Flag(b),
            Param::Number(n) => Value::Number(n),
            Param::Text(_) => {
                let problem = "must be a number or a boolean".to_owned();
                return Err(OrchestrationError::Hyperparameters(vec![Wrong {
                    name,
                    problem,
                }]));
            }
        };
        out.insert(name, value);
    }
    Ok(out)
}

fn to_struct(values: &Values) -> Struct {
    let params = values
        .iter()
        .map(|(name, value)| {
            let param = match value {
                Value::Flag(b) => Param::Flag(*b),
                Value::Number(n) => Param::Number(*n),
            };
            (name.clone(), param)
        })
        .collect();
    params::to_struct(&params)
}

fn agent(slot: &Slot) -> Agent {
    let live = slot.live();
    let names = |all: &[&str]| all.iter().map(|n| (*n).to_owned()).collect();
    Agent {
        agent_id: slot.definition.id.to_owned(),
        agent_type: slot.definition.algorithm.to_owned(),
        environment: slot.definition.environment.to_owned(),
        hyperparameters: Some(to_struct(&live.row.hyperparameters)),
        version: unsigned(live.row.version),
        weights_version: unsigned(live.row.weights_version),
        last_return: live.row.last_return,
        total_steps: unsigned(live.row.total_steps),
        total_episodes: unsigned(live.row.total_episodes),
        observation_names: names(slot.observation_names),
        action_names: names(slot.action_names),
        updated_at: Some(timestamp(live.row.updated_us)),
    }
}

#[tonic::async_trait]
impl orchestration_service_server::OrchestrationService for Api {
    async fn step(&self, request: Request<StepRequest>) -> Result<Response<StepResponse>, Status> {
        let asked = request.into_inner();
        let states = [
            ("policy", asked.policy_state),
            ("consensus", asked.consensus_state),
            ("ethical", asked.ethical_state),
            ("resource", asked.resource_state),
        ];
        let mut agent_actions = BTreeMap::new();
        for (id, state) in states {
            let Some(state) = state else { continue };
            let acted = self
                .0
                .agents
                .get(id)?
                .act(&state.agent_type, &state.state_vector)?;
            let action = AgentAction {
                action: u32::try_from(acted.action).unwrap_or(u32::MAX),
                action_name: acted.name.to_owned(),
                action_values: acted.values.into_iter().map(f64::from).collect(),
                weights_version: unsigned(acted.weights_version),
            };
            agent_actions.insert(id.to_owned(), action);
        }
        if agent_actions.is_empty() {
            return Err(fault::invalid_field(
                "policy_state",
                "at least one agent's state is required",
            ));
        }
        Ok(Response::new(StepResponse {
            step_id: Uuid::now_v7().to_string(),
            agent_actions,
            timestamp: Some(timestamp(self.0.clock.now_us())),
        }))
    }

    async fn compute_nash(
        &self,
        request: Request<ComputeNashRequest>,
    ) -> Result<Response<ComputeNashResponse>, Status> {
        let call = Call::of(&request)?;
        let deadline = call.deadline().map(|at| at - Duration::from_millis(50));
        let players = request.into_inner().players;
        let (names, game) = two_player(players)?;
        let permit = Arc::clone(&self.0.solvers).try_acquire_owned();
        let permit = permit.map_err(|_| OrchestrationError::SolversBusy)?;
        let gone = Arc::new(AtomicBool::new(false));
        let _guard = SetOnDrop(Arc::clone(&gone));
        let solving = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            game.solve(&|| {
                gone.load(Ordering::Relaxed)
                    || deadline.is_some_and(|at| tokio::time::Instant::now() >= at)
            })
        });
        let solution = solving
            .await
            .map_err(|_| OrchestrationError::Worker("the solver stopped"))?;
        let by_name = |values: [f64; 2]| {
            names
                .iter()
                .cloned()
                .zip(values)
                .collect::<BTreeMap<_, _>>()
        };
        Ok(Response::new(ComputeNashResponse {
            converged: solution.converged(),
            expected_payoffs: by_name(solution.payoffs),
            regret: by_name(solution.regret),
            nash_conv: solution.nash_conv(),
            tolerance: solution.tolerance,
            iterations: solution.iterations,
            method: solution.method.as_str().to_owned(),
            is_pure: solution.is_pure(),
            strategy_profile: names
                .iter()
                .cloned()
                .zip(
                    solution
                        .profile
                        .map(|probabilities| Strategy { probabilities }),
                )
                .collect(),
        }))
    }

    async fn list_agents(
        &self,
        _: Request<ListAgentsRequest>,
    ) -> Result<Response<ListAgentsResponse>, Status> {
        Ok(Response::new(ListAgentsResponse {
            agents: self.0.agents.iter().map(|a| agent(a)).collect(),
        }))
    }

    async fn get_agent(
        &self,
        request: Request<GetAgentRequest>,
    ) -> Result<Response<GetAgentResponse>, Status> {
        let slot = self.0.agents.get(&request.get_ref().agent_id)?;
        Ok(Response::new(GetAgentResponse {
            agent: Some(agent(slot)),
        }))
    }

    async fn reload_agent(
        &self,
        request: Request<ReloadAgentRequest>,
    ) -> Result<Response<ReloadAgentResponse>, Status> {
        let by = Call::of(&request)?.actor();
        let asked = request.into_inner();
        let slot = self.0.agents.get(&asked.agent_id)?;
        let change = Change {
            by: &by,
            reason: &asked.reason,
            expected_version: i64::try_from(asked.expected_version).unwrap_or(i64::MAX),
            operation: None,
        };
        let live = self
            .0
            .agents
            .reload(&self.0.store, slot, &change, values(asked.hyperparameters)?)
            .await?;
        Ok(Response::new(ReloadAgentResponse {
            status: "success".to_owned(),
            agent_id: asked.agent_id,
            updated_config: Some(to_struct(&live.row.hyperparameters)),
            version: unsigned(live.row.version),
            timestamp: Some(timestamp(live.row.updated_us)),
        }))
    }

    async fn apply_hyperparameters(
        &self,
        request: Request<ApplyHyperparametersRequest>,
    ) -> Result<Response<ApplyHyperparametersResponse>, Status> {
        let peer = Call::of(&request)?.actor();
        let asked = request.into_inner();
        let slot = self.0.agents.get(&asked.agent_id)?;
        let by = format!("{peer} for {}", asked.on_behalf_of);
        let change = Change {
            by: &by,
            reason: &asked.operation_id,
            expected_version: i64::try_from(asked.expected_version).unwrap_or(i64::MAX),
            operation: Some(&asked.operation_id),
        };
        let live = self
            .0
            .agents
            .reload(&self.0.store, slot, &change, values(asked.hyperparameters)?)
            .await?;
        Ok(Response::new(ApplyHyperparametersResponse {
            version: unsigned(live.row.version),
        }))
    }

    async fn read_hyperparameters(
        &self,
        request: Request<ReadHyperparametersRequest>,
    ) -> Result<Response<ReadHyperparametersResponse>, Status> {
        let slot = self.0.agents.get(&request.get_ref().agent_id)?;
        let live = slot.live();
        Ok(Response::new(ReadHyperparametersResponse {
            agent_type: slot.definition.algorithm.to_owned(),
            environment: slot.definition.environment.to_owned(),
            hyperparameters: Some(to_struct(&live.row.hyperparameters)),
            version: unsigned(live.row.version),
        }))
    }
}

struct SetOnDrop(Arc<AtomicBool>);

impl Drop for SetOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn two_player(players: Vec<Player>) -> Result<([String; 2], Bimatrix), OrchestrationError> {
    let count = players.len();
    let [row, column] =
        <[Player; 2]>::try_from(players).map_err(|_| OrchestrationError::Players(count))?;
    if row.name == column.name {
        return Err(OrchestrationError::PlayerNames);
    }
    let game = Bimatrix::new(
        row.actions.len(),
        column.actions.len(),
        row.payoffs,
        column.payoffs,
    )?;
    Ok(([row.name, column.name], game))
}

fn training_run(row: RunRow) -> TrainingRun {
    let state = match row.state {
        RunState::Running => TrainingState::Running,
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
        started_at: Some(timestamp(row.started_us)),
        ended_at: row.ended_us.map(timestamp),
    }
}

fn progress(from: Progress, version: i64) -> TrainingProgress {
    TrainingProgress {
        step: from.step,
        episode: from.episode,
        mean_return: from.mean_return,
        loss: from.loss,
        epsilon: from.epsilon,
        version: unsigned(version),
    }
}

fn id(text: &str) -> Result<Uuid, Status> {
    Uuid::try_parse(text).map_err(|_| fault::invalid_field("run_id", "must be a UUID"))
}

type Items<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl training_service_server::TrainingService for Api {
    async fn start_training(
        &self,
        request: Request<StartTrainingRequest>,
    ) -> Result<Response<StartTrainingResponse>, Status> {
        let by = Call::of(&request)?.actor();
        let StartTrainingRequest {
            agent_id,
            steps,
            seed,
        } = request.into_inner();
        let row = self.0.start_training(&by, &agent_id, steps, seed).await?;
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
            // Its log is gone; how it ended is not.
            let ended = training_run(self.0.training(run_id).await?);
            let item = WatchTrainingResponse {
                sequence: asked.after_sequence + 1,
                progress: None,
                ended: Some(ended),
            };
            return Ok(Response::new(Box::pin(stream::iter([Ok(item)]))));
        };
        let trimmed = |e: tars_runtime::events::Trimmed| {
            fault::status(Code::OutOfRange, "TRIMMED", &e.to_string())
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
                } => (Some(progress(p, version)), None),
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
        let asked = request.into_inner();
        let run = Run {
            algorithm: asked.agent_type,
            environment: asked.environment,
            values: values(asked.hyperparameters)?,
            seed: asked.seed,
            steps: asked.steps,
            reports: if asked.reports == 0 {
                10
            } else {
                u64::from(asked.reports)
            },
            eval_episodes: if asked.eval_episodes == 0 {
                20
            } else {
                asked.eval_episodes
            },
            start: None,
        };
        let running = self.0.evaluate(run)?;
        Ok(Response::new(Box::pin(evaluation(
            running,
            asked.after_sequence,
        ))))
    }
}

/// A run's reports as a stream. The run is the same every time, so that resuming is running it
/// again without what was sent. Dropping the stream drops the run.
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
                        let progress = Some(progress(p, 0));
                        let item = EvaluateHyperparametersResponse {
                            sequence,
                            progress,
                            result: None,
                        };
                        return Ok(Some((item, (Some(running), sequence))));
                    }
                    Some(Event::Progress(_)) => continue,
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
