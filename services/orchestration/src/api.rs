//! Orchestration's gRPC handlers.

mod agents;
mod calibrations;
mod comparisons;
mod environments;
mod games;
mod hosts;
mod metrics;
mod numbers;
mod promotions;
mod sessions;
mod training;
mod wire;

use crate::{
    Orchestration, OrchestrationError,
    agents::Asker,
    changes::{ApplyOperation, Governed, Release, Reload, Settle},
    stage::MIN_SEEDS,
    steps::{Observed, StepOutcome},
    store::Met,
    versions::{Promotion, Target},
};
use agents::{
    agent, agent_as, hold, pending, stage, target, to_struct, values, version, version_of,
};
use futures_util::Stream;
use numbers::{given, signed, unsigned};
use std::{pin::Pin, sync::Arc};
use tars_credentials::Permissions;
use tars_interceptors::Call;
use tars_proto::{MAX_RESPONSE, orchestration::v1::*, time::timestamp};
use tonic::{Request, Response, Status, service::Routes};

type Items<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[derive(Debug, Clone)]
pub(crate) struct Api(Arc<Orchestration>);

pub(crate) fn routes(service: Arc<Orchestration>, max_message: usize) -> Routes {
    let hosts = hosts::HostApi {
        hosts: service.hosts.clone(),
        max_message,
    };
    let api = Api(service);
    let mut routes = Routes::builder();
    routes
        .add_service(
            orchestration_service_server::OrchestrationServiceServer::new(api.clone())
                .max_decoding_message_size(max_message)
                .max_encoding_message_size(MAX_RESPONSE),
        )
        .add_service(
            game_service_server::GameServiceServer::new(api.clone())
                .max_decoding_message_size(max_message)
                .max_encoding_message_size(MAX_RESPONSE),
        )
        .add_service(
            environment_service_server::EnvironmentServiceServer::new(api.clone())
                .max_decoding_message_size(max_message)
                .max_encoding_message_size(MAX_RESPONSE),
        )
        .add_service(
            session_service_server::SessionServiceServer::new(api.clone())
                .max_decoding_message_size(max_message)
                .max_encoding_message_size(MAX_RESPONSE),
        )
        .add_service(
            environment_host_service_server::EnvironmentHostServiceServer::new(hosts)
                .max_decoding_message_size(max_message)
                .max_encoding_message_size(MAX_RESPONSE),
        )
        .add_service(
            promotion_service_server::PromotionServiceServer::new(api.clone())
                .max_decoding_message_size(max_message)
                .max_encoding_message_size(MAX_RESPONSE),
        )
        .add_service(
            training_metrics_service_server::TrainingMetricsServiceServer::new(api.clone())
                .max_decoding_message_size(max_message)
                .max_encoding_message_size(MAX_RESPONSE),
        )
        .add_service(
            training_service_server::TrainingServiceServer::new(api)
                .max_decoding_message_size(max_message)
                .max_encoding_message_size(MAX_RESPONSE),
        );
    routes.routes()
}

fn step_response(stepped: StepOutcome) -> StepResponse {
    let StepOutcome {
        step_id,
        at_us,
        raw,
        resolved,
        dispute,
        resolution,
    } = stepped;
    let actions = |all: Vec<crate::agents::Action>| {
        all.into_iter()
            .map(|acted| (acted.agent.to_owned(), wire::action(acted)))
            .collect()
    };
    let resolution = wire::resolution(&dispute, resolution);
    StepResponse {
        step_id,
        timestamp: Some(timestamp(at_us)),
        agent_actions: actions(raw),
        resolved_actions: actions(resolved),
        conflicts_detected: resolution.conflicts.clone(),
        resolution_method: resolution.method.clone(),
        nash_equilibrium_reached: resolution.nash_equilibrium_reached,
        resolution: Some(resolution),
        ..StepResponse::default()
    }
}

impl Api {
    /// Returns the agent with the live weights, and the replicas that may not serve them yet.
    async fn promote(
        &self,
        agent_id: &str,
        promotion: Promotion,
    ) -> Result<(Agent, Vec<String>), OrchestrationError> {
        let slot = self.0.agents.get(agent_id)?;
        let (live, rollout) = self.0.promote(Arc::clone(slot), promotion).await?;
        Ok((agent_as(slot, &live), pending(rollout)))
    }
}

#[tonic::async_trait]
impl orchestration_service_server::OrchestrationService for Api {
    async fn step(&self, request: Request<StepRequest>) -> Result<Response<StepResponse>, Status> {
        let call = Call::of(&request)?;
        let asked = request.into_inner();
        if !asked.session_id.is_empty() {
            let allowance = self.0.usage.allowance_of(&call);
            let step = sessions::step_call(&call, allowance, asked)?;
            let stepped = self.0.step_session(step);
            return Ok(Response::new(sessions::stepped(stepped.await?)));
        }
        sessions::refuse_without_session(&asked)?;
        let states = [
            ("policy", asked.policy_state),
            ("consensus", asked.consensus_state),
            ("ethical", asked.ethical_state),
            ("resource", asked.resource_state),
        ];
        let observed = states.into_iter().filter_map(|(agent, state)| {
            let Observation {
                agent_type,
                state_vector,
            } = state?;
            Some(Observed {
                agent,
                agent_type,
                observation: state_vector.into_iter().map(|v| v as f32).collect(),
            })
        });
        let constraints = asked.constraints.into_iter().map(wire::constraint);
        let actor = call.actor();
        let caller = call.require_caller()?;
        let asker = Asker {
            name: &actor,
            owner: call.owner(),
            counts: caller.permissions.includes(Permissions::RELOAD_AGENTS),
        };
        let stepped = self
            .0
            .step(
                asker,
                observed.collect(),
                constraints.collect::<Result<_, _>>()?,
                wire::rule(asked.rule),
            )
            .await?;
        Ok(Response::new(step_response(stepped)))
    }

    async fn compute_nash(
        &self,
        request: Request<ComputeNashRequest>,
    ) -> Result<Response<ComputeNashResponse>, Status> {
        Ok(Response::new(self.nash(request).await?))
    }

    async fn list_conflicts(
        &self,
        request: Request<ListConflictsRequest>,
    ) -> Result<Response<ListConflictsResponse>, Status> {
        let call = Call::of(&request)?;
        let met = match request.get_ref().own {
            true => Met::By(call.owner()),
            false => Met::ByAll,
        };
        let (records, total) = self.0.conflicts(met).await?;
        Ok(Response::new(ListConflictsResponse {
            conflicts: records.into_iter().map(wire::record).collect(),
            total: unsigned(total),
        }))
    }

    async fn list_agents(
        &self,
        _: Request<ListAgentsRequest>,
    ) -> Result<Response<ListAgentsResponse>, Status> {
        let tenure = self.0.tenure()?;
        let agents = self.0.agents.iter().map(|a| agent(a)).collect();
        Orchestration::confirm(&tenure)?;
        Ok(Response::new(ListAgentsResponse { agents }))
    }

    async fn get_agent(
        &self,
        request: Request<GetAgentRequest>,
    ) -> Result<Response<GetAgentResponse>, Status> {
        let slot = self.0.agents.get(&request.get_ref().agent_id)?;
        let tenure = self.0.tenure()?;
        slot.current()?;
        let agent = Some(agent(slot));
        Orchestration::confirm(&tenure)?;
        Ok(Response::new(GetAgentResponse { agent }))
    }

    async fn reload_agent(
        &self,
        request: Request<ReloadAgentRequest>,
    ) -> Result<Response<ReloadAgentResponse>, Status> {
        let by = Call::of(&request)?.actor();
        let asked = request.into_inner();
        let slot = self.0.agents.get(&asked.agent_id)?;
        let reload = Reload {
            by,
            reason: asked.reason,
            expected_version: given("expected_version", asked.expected_version)?,
            values: values(asked.hyperparameters)?,
        };
        let (live, rollout) = self.0.reload(Arc::clone(slot), reload).await?;
        Ok(Response::new(ReloadAgentResponse {
            status: "success".to_owned(),
            agent_id: asked.agent_id,
            updated_config: Some(to_struct(&live.row.hyperparameters)),
            version: unsigned(live.row.version),
            timestamp: Some(timestamp(live.row.updated_us)),
            pending_replicas: pending(rollout),
        }))
    }

    async fn list_agent_versions(
        &self,
        request: Request<ListAgentVersionsRequest>,
    ) -> Result<Response<ListAgentVersionsResponse>, Status> {
        let asked = request.into_inner();
        let slot = self.0.agents.get(&asked.agent_id)?;
        let page = self.0.versions(slot, &asked.page_token, asked.page_size);
        let (rows, next_page_token) = page.await?;
        Ok(Response::new(ListAgentVersionsResponse {
            versions: rows.into_iter().map(version).collect(),
            next_page_token,
        }))
    }

    async fn promote_agent(
        &self,
        request: Request<PromoteAgentRequest>,
    ) -> Result<Response<PromoteAgentResponse>, Status> {
        let by = Call::of(&request)?.actor();
        let asked = request.into_inner();
        let promotion = Promotion {
            by,
            reason: asked.reason,
            target: target(asked.version, asked.rule)?,
            stage: stage(asked.stage)?,
            expected: given("expected_weights_version", asked.expected_weights_version)?,
        };
        let (agent, pending_replicas) = self.promote(&asked.agent_id, promotion).await?;
        Ok(Response::new(PromoteAgentResponse {
            agent: Some(agent),
            pending_replicas,
        }))
    }

    async fn rollback_agent(
        &self,
        request: Request<RollbackAgentRequest>,
    ) -> Result<Response<RollbackAgentResponse>, Status> {
        let by = Call::of(&request)?.actor();
        let asked = request.into_inner();
        let promotion = Promotion {
            by,
            reason: asked.reason,
            target: Target::Before,
            stage: None,
            expected: given("expected_weights_version", asked.expected_weights_version)?,
        };
        let (agent, pending_replicas) = self.promote(&asked.agent_id, promotion).await?;
        Ok(Response::new(RollbackAgentResponse {
            agent: Some(agent),
            pending_replicas,
        }))
    }

    async fn compare_agent(
        &self,
        request: Request<CompareAgentRequest>,
    ) -> Result<Response<CompareAgentResponse>, Status> {
        let caller = Call::of(&request)?.owner().to_owned();
        let asked = request.into_inner();
        let slot = self.0.agents.get(&asked.agent_id)?;
        let version = version_of(slot, asked.version)?;
        let seeds = asked.seeds.unwrap_or(MIN_SEEDS);
        let (this, slot) = (&self.0, Arc::clone(slot));
        let id = slot.id();
        let found = this.compare_to_the_end(slot, caller, version, seeds);
        let comparison = comparisons::comparison(id, version, found.await?);
        Ok(Response::new(CompareAgentResponse {
            comparison: Some(comparison),
        }))
    }

    async fn get_comparison(
        &self,
        request: Request<GetComparisonRequest>,
    ) -> Result<Response<GetComparisonResponse>, Status> {
        let asked = request.into_inner();
        let slot = self.0.agents.get(&asked.agent_id)?;
        let version = version_of(slot, asked.version)?;
        let found = self.0.comparison(slot, version).await?;
        Ok(Response::new(GetComparisonResponse {
            comparison: Some(comparisons::comparison(slot.id(), version, found)),
        }))
    }

    async fn apply_hyperparameters(
        &self,
        request: Request<ApplyHyperparametersRequest>,
    ) -> Result<Response<ApplyHyperparametersResponse>, Status> {
        let by = Call::of(&request)?.actor();
        let asked = request.into_inner();
        let slot = self.0.agents.get(&asked.agent_id)?;
        let step = ApplyOperation {
            change: Governed {
                by,
                on_behalf_of: asked.on_behalf_of,
                change_id: asked.change_id,
                token: signed("fencing_token", asked.fencing_token)?,
            },
            operation_id: asked.operation_id,
            expected_version: signed("expected_version", asked.expected_version)?,
            values: values(asked.hyperparameters)?,
        };
        let version = self.0.apply(Arc::clone(slot), step).await?;
        Ok(Response::new(ApplyHyperparametersResponse {
            version: unsigned(version),
        }))
    }

    async fn hold_agent(
        &self,
        request: Request<HoldAgentRequest>,
    ) -> Result<Response<HoldAgentResponse>, Status> {
        let by = Call::of(&request)?.actor();
        let asked = request.into_inner();
        let slot = self.0.agents.get(&asked.agent_id)?;
        let waiting = Governed {
            by,
            on_behalf_of: asked.on_behalf_of,
            change_id: asked.change_id,
            token: signed("fencing_token", asked.fencing_token)?,
        };
        let version = self.0.hold(Arc::clone(slot), waiting).await?;
        Ok(Response::new(HoldAgentResponse {
            version: unsigned(version),
        }))
    }

    async fn settle_hyperparameters(
        &self,
        request: Request<SettleHyperparametersRequest>,
    ) -> Result<Response<SettleHyperparametersResponse>, Status> {
        let by = Call::of(&request)?.actor();
        let asked = request.into_inner();
        let slot = self.0.agents.get(&asked.agent_id)?;
        let settle = Settle {
            by,
            on_behalf_of: asked.on_behalf_of,
            change_id: asked.change_id,
            approved_version: given("approved_version", asked.approved_version)?,
            void_operation: asked.void_operation_id,
            token: given("fencing_token", asked.fencing_token)?,
        };
        let version = self.0.settle(Arc::clone(slot), settle).await?;
        Ok(Response::new(SettleHyperparametersResponse {
            version: unsigned(version),
        }))
    }

    async fn release_agent(
        &self,
        request: Request<ReleaseAgentRequest>,
    ) -> Result<Response<ReleaseAgentResponse>, Status> {
        let by = Call::of(&request)?.actor();
        let asked = request.into_inner();
        let slot = self.0.agents.get(&asked.agent_id)?;
        let release = Release {
            by,
            change_id: asked.change_id,
            reason: asked.reason,
        };
        self.0.release(Arc::clone(slot), release).await?;
        Ok(Response::new(ReleaseAgentResponse {
            agent: Some(agent(slot)),
        }))
    }

    async fn record_decisions(
        &self,
        request: Request<RecordDecisionsRequest>,
    ) -> Result<Response<RecordDecisionsResponse>, Status> {
        let proposals = request.into_inner().proposals.into_iter();
        let decided = proposals.map(calibrations::decided);
        let decided = decided.collect::<Result<Vec<_>, _>>()?;
        self.0.calibrations.record(&decided).await?;
        Ok(Response::new(RecordDecisionsResponse {}))
    }

    async fn read_hyperparameters(
        &self,
        request: Request<ReadHyperparametersRequest>,
    ) -> Result<Response<ReadHyperparametersResponse>, Status> {
        let asked = request.into_inner();
        let slot = self.0.agents.get(&asked.agent_id)?;
        let environment = match asked.environment.as_str() {
            "" => slot.definition.environment.clone(),
            _ => self
                .0
                .searchable(slot, &asked.on_behalf_of, asked.environment)?,
        };
        if let Some(steps) = asked.steps {
            let place = (asked.on_behalf_of.as_str(), environment.as_str());
            let largest = values(asked.largest)?;
            self.0.ensure_storable(slot, place, largest, steps)?;
        }
        let tenure = self.0.tenure()?;
        let live = slot.current()?;
        Orchestration::confirm(&tenure)?;
        Ok(Response::new(ReadHyperparametersResponse {
            agent_type: slot.definition.algorithm.name.to_owned(),
            environment,
            hyperparameters: Some(to_struct(&live.row.hyperparameters)),
            version: unsigned(live.row.version),
            hold: live.hold.as_ref().map(hold),
        }))
    }
}
