//! Environments' gRPC handlers.

use super::{Api, calibrations};
use crate::OrchestrationError;
use tars_interceptors::Call;
use tars_proto::orchestration::v1::{self as pb, *};
use tars_worlds::{ActionSpace, AgentSpace, Component, WorldSpec, calibration_of, world_names};
use tonic::{Request, Response, Status};

fn components(all: &[Component]) -> Vec<pb::Component> {
    all.iter().map(component).collect()
}

fn component(from: &Component) -> pb::Component {
    pb::Component {
        name: from.name.to_string(),
        unit: from.unit.to_string(),
        low: bound(from.low),
        high: bound(from.high),
        source: from.source.to_string(),
        scale: Some(f64::from(from.scale)),
    }
}

/// A bound, unless there is none.
fn bound(value: f32) -> Option<f64> {
    value.is_finite().then_some(f64::from(value))
}

fn spaces(from: &AgentSpace) -> AgentSpaces {
    let mut spaces = AgentSpaces {
        agent: from.name.to_string(),
        observation: components(&from.observation),
        ..AgentSpaces::default()
    };
    match &from.action {
        ActionSpace::Discrete(names) => {
            let actions = names.iter().map(ToString::to_string).collect();
            spaces.discrete = Some(DiscreteSpace { actions });
        }
        ActionSpace::Continuous(all) => {
            let components = components(all);
            spaces.continuous = Some(ContinuousSpace { components });
        }
    }
    spaces
}

/// The name of the calibration of an environment; empty for one without.
pub(super) fn calibration(environment: &str) -> String {
    calibration_of(environment).unwrap_or_default().to_owned()
}

fn environment(spec: &WorldSpec) -> Environment {
    Environment {
        name: spec.name.to_string(),
        agents: spec.agents.iter().map(spaces).collect(),
        max_steps: spec.max_steps,
        calibration: spec.calibration.as_deref().unwrap_or_default().to_owned(),
    }
}

#[tonic::async_trait]
impl environment_service_server::EnvironmentService for Api {
    async fn list_environments(
        &self,
        request: Request<ListEnvironmentsRequest>,
    ) -> Result<Response<ListEnvironmentsResponse>, Status> {
        let call = Call::of(&request)?;
        let built_in = world_names().map(str::to_owned);
        let lent = self.0.hosts.environments(call.owner());
        let environments = built_in.chain(lent).collect();
        Ok(Response::new(ListEnvironmentsResponse { environments }))
    }

    async fn describe_spaces(
        &self,
        request: Request<DescribeSpacesRequest>,
    ) -> Result<Response<DescribeSpacesResponse>, Status> {
        let call = Call::of(&request)?;
        let name = request.into_inner().environment;
        let spec = self.0.hosts.spec_for(call.owner(), &name);
        let spec = spec.ok_or(OrchestrationError::NotFound("environment", name))?;
        Ok(Response::new(DescribeSpacesResponse {
            environment: Some(environment(&spec)),
        }))
    }

    async fn get_calibration(
        &self,
        _: Request<GetCalibrationRequest>,
    ) -> Result<Response<GetCalibrationResponse>, Status> {
        let latest = self.0.calibrations.latest().await?;
        Ok(Response::new(GetCalibrationResponse {
            latest: latest.map(calibrations::measured),
            shipped: Some(calibrations::shipped()),
        }))
    }

    async fn list_calibrations(
        &self,
        request: Request<ListCalibrationsRequest>,
    ) -> Result<Response<ListCalibrationsResponse>, Status> {
        let ListCalibrationsRequest {
            page_size,
            page_token,
        } = request.into_inner();
        let (rows, next_page_token) = self.0.calibrations.list(&page_token, page_size).await?;
        Ok(Response::new(ListCalibrationsResponse {
            calibrations: rows.into_iter().map(calibrations::measured).collect(),
            next_page_token,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tars_worlds::{MeshEnv, World, make_world};

    #[test]
    fn every_environment_is_described_under_its_name() {
        for name in world_names() {
            let described = environment(make_world(name).unwrap().spec());
            assert_eq!(described.name, name);
            for agent in described.agents {
                assert!(!agent.observation.is_empty());
                for seen in agent.observation {
                    let texts = [&seen.name, &seen.unit, &seen.source];
                    assert!(
                        texts.iter().all(|text| !text.is_empty()),
                        "{name}: {seen:?}"
                    );
                    assert!(seen.scale.is_some_and(|s| s > 0.0), "{name}: {seen:?}");
                }
                assert!(agent.discrete.is_some() != agent.continuous.is_some());
            }
        }
    }

    #[test]
    fn a_normalised_component_says_by_how_much() {
        let mesh = MeshEnv::shipped();
        let environment = environment(mesh.spec());
        let seen = &environment.agents[0].observation;
        let latency = seen.iter().find(|c| c.name == "latency_p95").unwrap();
        let objective = f64::from(mesh.calibration().objective_s as f32);
        assert_eq!(
            (latency.unit.as_str(), latency.scale),
            ("s", Some(objective))
        );
    }

    #[test]
    fn a_component_without_a_bound_has_none() {
        let seen = component(&Component::unbounded("cart_position", "m"));
        assert_eq!((seen.low, seen.high, seen.unit.as_str()), (None, None, "m"));
        let seen = component(&Component::computed("share", "1", 0.0, 1.0));
        assert_eq!((seen.low, seen.high), (Some(0.0), Some(1.0)));
    }
}
