//! AutoML's gRPC handlers.

mod wire;

use crate::{
    Automl, AutomlError, hyper,
    peers::{Elsewhere, Most},
    store::{StudyState as State, TrialState as Ended},
    studies::{DEFAULT_STEPS, NewStudy, TrialEnd},
    views::StudyView,
    watch::{StudyEvent, Watcher},
};
use futures_util::{Stream, stream};
use std::{pin::Pin, sync::Arc};
use tars_interceptors::Call;
use tars_learn::algorithm;
use tars_proto::{MAX_RESPONSE, automl::v1::*, fault};
use tonic::{Request, Response, Status, service::Routes};
use uuid::Uuid;
use wire::{check_against, invalid, own_space, space, study, trial};

const DEFAULT_AGENT: &str = "policy";

#[derive(Debug, Clone)]
pub(crate) struct Api {
    automl: Arc<Automl>,
}

pub(crate) fn routes(automl: Arc<Automl>, max_message: usize) -> Routes {
    let server = study_service_server::StudyServiceServer::new(Api { automl });
    let server = server.max_decoding_message_size(max_message);
    Routes::new(server.max_encoding_message_size(MAX_RESPONSE))
}

fn id(text: &str) -> Result<Uuid, Status> {
    Uuid::try_parse(text).map_err(|_| fault::invalid_field("study_id", "must be a UUID"))
}

impl Api {
    /// A study whose trials the caller runs and that has not ended.
    async fn own_study(&self, study_id: &str) -> Result<crate::store::StudyRow, Status> {
        let row = self.automl.store.study(id(study_id)?).await?;
        if row.server_run {
            return Err(AutomlError::ServerRun.into());
        }
        if row.state != State::Running {
            return Err(AutomlError::StudyEnded(row.state.as_str()).into());
        }
        Ok(row)
    }
}

type Items = Pin<Box<dyn Stream<Item = Result<WatchStudyResponse, Status>> + Send>>;

#[tonic::async_trait]
impl study_service_server::StudyService for Api {
    async fn optimize(
        &self,
        request: Request<OptimizeRequest>,
    ) -> Result<Response<OptimizeResponse>, Status> {
        let call = Call::of(&request)?;
        let (owner, owner_id) = (call.actor(), call.owner().to_owned());
        let asked = request.into_inner();
        if !self.automl.has_room() {
            return Err(AutomlError::Busy.into());
        }
        let agent_id = asked.agent_id.unwrap_or_else(|| DEFAULT_AGENT.to_owned());
        let elsewhere = Elsewhere {
            environment: asked.environment,
            owner: owner_id.clone(),
        };
        let kind = self.automl.agent_kind(&agent_id, elsewhere.clone()).await?;
        if asked.agent_type.is_some_and(|t| t != kind.agent_type) {
            let problem = format!("the agent {agent_id} is of type {}", kind.agent_type);
            return Err(invalid("agent_type", problem).into());
        }
        let known = algorithm::find(&kind.agent_type);
        let spec = known
            .ok_or_else(|| invalid("agent_type", "has no search space"))?
            .spec;
        let space = if asked.search_space.is_empty() {
            own_space(&spec)?
        } else {
            space(asked.search_space)?
        };
        check_against(&space, &spec)?;
        let most = Most {
            steps: asked.steps.unwrap_or(DEFAULT_STEPS),
            values: hyper::largest(&space),
        };
        let automl = &self.automl;
        automl.ensure_storable(&agent_id, elsewhere, most).await?;
        let new = NewStudy {
            agent_id,
            agent_type: kind.agent_type,
            environment: kind.environment,
            server_run: true,
            sampler: asked.sampler_type,
            pruner: asked.pruner_type,
            n_trials: asked.n_trials,
            space,
            seed: asked.seed,
            steps: asked.steps,
            owner,
            owner_id,
            allowance: self.automl.usage.allowance_of(&call),
        };
        let row = self.automl.start_study(new).await?;
        let optimization_id = row.id.to_string();
        let message = format!("{} trials of {} steps", row.n_trials, row.steps);
        Ok(Response::new(OptimizeResponse {
            optimization_id,
            status: StudyState::Running.into(),
            message,
        }))
    }

    async fn create_study(
        &self,
        request: Request<CreateStudyRequest>,
    ) -> Result<Response<CreateStudyResponse>, Status> {
        let call = Call::of(&request)?;
        let (owner, owner_id) = (call.actor(), call.owner().to_owned());
        let asked = request.into_inner();
        let new = NewStudy {
            agent_id: String::new(),
            agent_type: String::new(),
            environment: String::new(),
            server_run: false,
            sampler: asked.sampler_type,
            pruner: asked.pruner_type,
            n_trials: asked.n_trials,
            space: space(asked.search_space)?,
            seed: asked.seed,
            steps: None,
            owner,
            owner_id,
            allowance: self.automl.usage.allowance_of(&call),
        };
        let row = self.automl.create_study(new).await?;
        Ok(Response::new(CreateStudyResponse {
            study: Some(study(StudyView::new(row))),
        }))
    }

    async fn get_study(
        &self,
        request: Request<GetStudyRequest>,
    ) -> Result<Response<GetStudyResponse>, Status> {
        let view = self
            .automl
            .study_view(id(&request.get_ref().study_id)?)
            .await?;
        Ok(Response::new(GetStudyResponse {
            study: Some(study(view)),
        }))
    }

    async fn list_studies(
        &self,
        request: Request<ListStudiesRequest>,
    ) -> Result<Response<ListStudiesResponse>, Status> {
        let ListStudiesRequest {
            page_size,
            page_token,
        } = request.into_inner();
        let (views, next_page_token) = self.automl.list_studies(&page_token, page_size).await?;
        Ok(Response::new(ListStudiesResponse {
            studies: views.into_iter().map(study).collect(),
            next_page_token,
        }))
    }

    async fn list_trials(
        &self,
        request: Request<ListTrialsRequest>,
    ) -> Result<Response<ListTrialsResponse>, Status> {
        let asked = request.into_inner();
        let study_id = id(&asked.study_id)?;
        let (rows, next_page_token) = self
            .automl
            .list_trials(study_id, &asked.page_token, asked.page_size)
            .await?;
        Ok(Response::new(ListTrialsResponse {
            trials: rows.into_iter().map(trial).collect(),
            next_page_token,
        }))
    }

    async fn ask_trial(
        &self,
        request: Request<AskTrialRequest>,
    ) -> Result<Response<AskTrialResponse>, Status> {
        let row = self.own_study(&request.get_ref().study_id).await?;
        let asked = self.automl.ask(&row, None).await?;
        Ok(Response::new(AskTrialResponse {
            trial: Some(trial(asked)),
        }))
    }

    async fn report_trial(
        &self,
        request: Request<ReportTrialRequest>,
    ) -> Result<Response<ReportTrialResponse>, Status> {
        let asked = request.into_inner();
        let row = self.own_study(&asked.study_id).await?;
        let should_prune = self
            .automl
            .report(&row, asked.number, asked.step, asked.value, None)
            .await?;
        Ok(Response::new(ReportTrialResponse { should_prune }))
    }

    async fn tell_trial(
        &self,
        request: Request<TellTrialRequest>,
    ) -> Result<Response<TellTrialResponse>, Status> {
        let asked = request.into_inner();
        let row = self.automl.store.study(id(&asked.study_id)?).await?;
        if row.server_run {
            return Err(AutomlError::ServerRun.into());
        }
        let (ended, score) = match (asked.state(), asked.score) {
            (TrialState::Complete, Some(score)) => (Ended::Complete, Some(score)),
            (TrialState::Complete, None) => {
                return Err(fault::invalid_field("score", "is required when complete"));
            }
            (TrialState::Pruned, None) => (Ended::Pruned, None),
            (TrialState::Failed, None) => (Ended::Failed, None),
            (TrialState::Pruned | TrialState::Failed, Some(_)) => {
                return Err(fault::invalid_field("score", "is for complete trials"));
            }
            _ => {
                return Err(fault::invalid_field(
                    "state",
                    "must be complete, pruned or failed",
                ));
            }
        };
        let end = TrialEnd::of(ended, score, &asked.error);
        let told = self.automl.tell(&row, asked.number, end, None).await?;
        Ok(Response::new(TellTrialResponse {
            trial: Some(trial(told)),
        }))
    }

    async fn cancel_study(
        &self,
        request: Request<CancelStudyRequest>,
    ) -> Result<Response<CancelStudyResponse>, Status> {
        let by = Call::of(&request)?.actor();
        let view = self
            .automl
            .cancel(id(&request.get_ref().study_id)?, &by)
            .await?;
        Ok(Response::new(CancelStudyResponse {
            study: Some(study(view)),
        }))
    }

    type WatchStudyStream = Items;

    async fn watch_study(
        &self,
        request: Request<WatchStudyRequest>,
    ) -> Result<Response<Items>, Status> {
        let asked = request.into_inner();
        let study_id = id(&asked.study_id)?;
        let watcher = self
            .automl
            .watch_study(study_id, asked.after_sequence)
            .await?;
        Ok(Response::new(Box::pin(events(watcher))))
    }
}

/// The changes of a study as a stream.
fn events(watcher: Watcher) -> impl Stream<Item = Result<WatchStudyResponse, Status>> {
    stream::try_unfold(watcher, |mut watcher| async move {
        let Some((sequence, event)) = watcher.next().await? else {
            return Ok(None);
        };
        let (trial, ended) = match event {
            StudyEvent::Trial(row) => (Some(trial(*row)), None),
            StudyEvent::Ended(view) => (None, Some(study(*view))),
        };
        let item = WatchStudyResponse {
            sequence,
            trial,
            ended,
        };
        Ok(Some((item, watcher)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::{Rig, seeded};
    use study_service_client::StudyServiceClient;
    use tars_search::{Parameter, Range, Space, Value};
    use tonic::Code;

    #[tokio::test]
    async fn an_answer_that_no_client_takes_is_not_sent() {
        let rig = Rig::start().await;
        let mut codes = Vec::new();
        // A hundred thousand bytes each.
        let parameter = |at: usize| Parameter {
            name: format!("p{at}"),
            range: Range::Categorical {
                values: (0..100)
                    .map(|n| Value::Text(format!("{n:01000}")))
                    .collect(),
            },
        };
        for parameters in [10, 170] {
            let new = NewStudy {
                server_run: false,
                space: Space::new((0..parameters).map(parameter).collect()).unwrap(),
                ..seeded(1)
            };
            let study_id = rig.automl.create_study(new).await.unwrap().id.to_string();
            let own = routes(Arc::clone(&rig.automl), 1 << 20);
            let mut client = StudyServiceClient::new(own).max_decoding_message_size(usize::MAX);
            let answer = client.get_study(GetStudyRequest { study_id }).await;
            codes.push(answer.err().map(|refused| refused.code()));
        }
        assert_eq!(codes, [None, Some(Code::OutOfRange)]);
    }
}
