//! Orchestration's gRPC handlers.

mod calibrations;
mod comparisons;
mod environments;
mod games;
mod hosts;
mod metrics;
mod promotions;
mod sessions;
mod training;
mod wire;

use crate::{
    Orchestration, OrchestrationError,
    agents::{Agent as Slot, Asker, LiveAgent},
    changes::{ApplyOperation, AwaitDecision, ParameterDrift, Release, Reload, Settle},
    serving::Rollout,
    stage::{MIN_SEEDS, Stage},
    steps::{Observed, StepOutcome},
    store::{HoldRow, ListedVersion},
    versions::{Promotion, Target},
};
use futures_util::Stream;
use std::{pin::Pin, sync::Arc};
use tars_credentials::Permissions;
use tars_interceptors::Call;
use tars_learn::hyper::{ParamViolation, Value, Values};
use tars_proto::{
    Struct,
    orchestration::v1::*,
    params::{self, Param},
    time::timestamp,
};
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
                .max_decoding_message_size(max_message),
        )
        .add_service(
            game_service_server::GameServiceServer::new(api.clone())
                .max_decoding_message_size(max_message),
        )
        .add_service(
            environment_service_server::EnvironmentServiceServer::new(api.clone())
                .max_decoding_message_size(max_message),
        )
        .add_service(
            session_service_server::SessionServiceServer::new(api.clone())
                .max_decoding_message_size(max_message),
        )
        .add_service(
            environment_host_service_server::EnvironmentHostServiceServer::new(hosts)
                .max_decoding_message_size(max_message),
        )
        .add_service(
            promotion_service_server::PromotionServiceServer::new(api.clone())
                .max_decoding_message_size(max_message),
        )
        .add_service(
            training_metrics_service_server::TrainingMetricsServiceServer::new(api.clone())
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
                return Err(OrchestrationError::Hyperparameters(vec![ParamViolation {
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
        .map(|(name, value)| (name.clone(), param(*value)))
        .collect();
    params::to_struct(&params)
}

fn signed(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

fn param(value: Value) -> Param {
    match value {
        Value::Flag(b) => Param::Flag(b),
        Value::Number(n) => Param::Number(n),
    }
}

fn hold(row: &HoldRow) -> Hold {
    Hold {
        change_id: row.change_id.clone(),
        on_behalf_of: row.on_behalf_of.clone(),
        since: Some(timestamp(row.since_us)),
        awaits_person: row.awaits_person,
    }
}

fn drift(from: Vec<ParameterDrift>) -> Option<Drift> {
    let parameter = |d: ParameterDrift| DriftedParameter {
        name: d.name,
        approved: d.approved.map(|v| param(v).into()),
        live: d.live.map(|v| param(v).into()),
    };
    let parameters: Vec<DriftedParameter> = from.into_iter().map(parameter).collect();
    (!parameters.is_empty()).then_some(Drift { parameters })
}

fn agent(slot: &Slot) -> Agent {
    agent_as(slot, &slot.live())
}

/// An agent with the live state that a change has left.
fn agent_as(slot: &Slot, live: &LiveAgent) -> Agent {
    let observed = slot.definition.space.observation.iter();
    Agent {
        agent_id: slot.definition.id.to_owned(),
        agent_type: slot.definition.algorithm.name.to_owned(),
        environment: slot.definition.environment.clone(),
        hyperparameters: Some(to_struct(&live.row.hyperparameters)),
        version: unsigned(live.row.version),
        weights_version: unsigned(live.row.weights_version),
        last_return: live.row.last_return,
        total_steps: unsigned(live.row.total_steps),
        total_episodes: unsigned(live.row.total_episodes),
        observation_names: observed
            .map(|component| component.name.to_string())
            .collect(),
        action_names: slot.action_names(),
        updated_at: Some(timestamp(live.row.updated_us)),
        approved_version: unsigned(live.approved.version),
        drift: drift(live.drift()),
        hold: live.hold.as_ref().map(hold),
        rule: live.row.rule.clone().unwrap_or_default(),
        bound: slot.is_bound(),
        shadow_version: live.row.shadow.map(unsigned),
        canary_version: live.row.canary.map(unsigned),
        rules: slot
            .definition
            .rules
            .iter()
            .map(ToString::to_string)
            .collect(),
    }
}

fn version(listed: ListedVersion) -> AgentVersion {
    let stage = stage_as(Stage::of(&listed.row, listed.places()));
    let ListedVersion {
        row, live, counts, ..
    } = listed;
    AgentVersion {
        stage: stage.into(),
        version: unsigned(row.version),
        live_since: row.served.then(|| timestamp(row.at_us)),
        live: row.version == live,
        agent_type: row.algorithm,
        run_id: row.run_id.map(|id| id.to_string()).unwrap_or_default(),
        mean_return: row.mean_return,
        restored_from: row.restored_from.map(unsigned),
        rule: row.rule.unwrap_or_default(),
        digest: row.blob.unwrap_or_default(),
        shadow_steps: counts.shadow_steps,
        agreed: counts.agreed,
        canary_steps: counts.canary_steps,
        blocked: counts.blocked,
    }
}

/// The version that is meant; without one, the live one.
fn version_of(slot: &Slot, version: Option<u64>) -> Result<i64, OrchestrationError> {
    match version.map_or_else(|| slot.live().row.weights_version, signed) {
        0 => Err(OrchestrationError::Untrained),
        version => Ok(version),
    }
}

fn stage_as(stage: Stage) -> AgentStage {
    match stage {
        Stage::Sim => AgentStage::Sim,
        Stage::Shadow => AgentStage::Shadow,
        Stage::Canary => AgentStage::Canary,
        Stage::Active => AgentStage::Active,
        Stage::Retired => AgentStage::Retired,
    }
}

/// The stage that a promotion asks for, if it names one.
fn stage(from: i32) -> Result<Option<Stage>, OrchestrationError> {
    let named = AgentStage::try_from(from).map_err(|_| OrchestrationError::UnknownStage)?;
    Ok(match named {
        AgentStage::Unspecified => None,
        AgentStage::Sim => Some(Stage::Sim),
        AgentStage::Shadow => Some(Stage::Shadow),
        AgentStage::Canary => Some(Stage::Canary),
        AgentStage::Active => Some(Stage::Active),
        AgentStage::Retired => Some(Stage::Retired),
    })
}

/// What a promotion asks for: a version or a rule.
fn target(version: u64, rule: String) -> Result<Target, OrchestrationError> {
    match (version, rule.is_empty()) {
        (0, false) => Ok(Target::Rule(rule)),
        (version, true) if version > 0 => Ok(Target::Version(signed(version))),
        _ => Err(OrchestrationError::OneTarget),
    }
}

fn pending(rollout: Rollout) -> Vec<String> {
    match rollout {
        Rollout::Everywhere => Vec::new(),
        Rollout::Pending(replicas) => replicas,
    }
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
            let stepped = self.0.step_session(sessions::step_call(&call, asked)?);
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
        _: Request<ListConflictsRequest>,
    ) -> Result<Response<ListConflictsResponse>, Status> {
        let (records, total) = self.0.conflicts().await?;
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
            expected_version: asked.expected_version.map(signed),
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
            expected: asked.expected_weights_version.map(signed),
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
            expected: asked.expected_weights_version.map(signed),
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
        let found = self.0.compare(Arc::clone(slot), caller, version, seeds);
        let comparison = comparisons::comparison(slot.id(), version, found.await?);
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
        let peer = Call::of(&request)?.actor();
        let asked = request.into_inner();
        let slot = self.0.agents.get(&asked.agent_id)?;
        let step = ApplyOperation {
            by: peer,
            on_behalf_of: asked.on_behalf_of,
            change_id: asked.change_id,
            operation_id: asked.operation_id,
            expected_version: signed(asked.expected_version),
            values: values(asked.hyperparameters)?,
            token: signed(asked.fencing_token),
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
        let waiting = AwaitDecision {
            by,
            on_behalf_of: asked.on_behalf_of,
            change_id: asked.change_id,
            token: signed(asked.fencing_token),
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
            approved_version: asked.approved_version.map(signed),
            token: asked.fencing_token.map(signed),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{stage::Counts, store::VersionRow};

    #[test]
    fn a_version_that_never_answered_is_not_live_since_anything() {
        let listed = |served| ListedVersion {
            row: VersionRow {
                version: 2,
                at_us: 7,
                served,
                ..VersionRow::of_rule("hold")
            },
            live: 3,
            shadow: None,
            canary: None,
            counts: Counts::default(),
            fell: None,
        };
        assert_eq!(version(listed(false)).live_since, None);
        assert_eq!(version(listed(true)).live_since, Some(timestamp(7)));
    }
}
