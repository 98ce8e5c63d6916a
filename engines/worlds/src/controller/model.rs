//! Model predictive control with one step: of each of its actions, an agent asks the model of the mesh what
//! the next intervals would bring if it took the action now and nothing afterwards, and takes the best. The
//! state of the model is what the agent's own observation shows; what it does not show is assumed to be as an
//! operator without controllers would have it.

use super::{Controller, Gauge, choose, set};
use crate::{
    mesh::{Alpha, Calibration, Forecast},
    space::{Action, ActionSpace, AgentSpace},
};

/// How far it looks at least, in intervals.
const INTERVALS: u32 = 12;
/// How far it looks in start-ups of the slowest replica: a new one has to pay off.
const START_UPS: f64 = 3.0;
/// By how much an action must be better than doing nothing.
const MARGIN: f64 = 1e-4;
/// The loads that Resource prepares for, relative to the present one: replicas take long to start.
const LOADS: [f64; 2] = [1.0, 1.7];
/// How many shares of replicas are tried.
const SHARES: u16 = 20;

/// What the observation says of one tenant or service, in the order of the calibration.
struct Rows(Vec<Vec<Gauge>>);

struct Planner {
    agent: Agent,
    calibration: Calibration,
    rows: Rows,
    /// What the observation says of the whole mesh, in the order of [`Agent::globals`].
    globals: Vec<Gauge>,
    candidates: Vec<Action>,
    intervals: u32,
}

/// The agents that plan with the model.
#[derive(Clone, Copy)]
enum Agent {
    Policy,
    Ethical,
    Resource,
}

impl Agent {
    fn of(name: &str) -> Option<Self> {
        match name {
            "policy" => Some(Self::Policy),
            "ethical" => Some(Self::Ethical),
            "resource" => Some(Self::Resource),
            _ => None,
        }
    }

    /// The position in the joint action.
    fn position(self) -> usize {
        match self {
            Self::Policy => 0,
            Self::Ethical => 2,
            Self::Resource => 3,
        }
    }

    /// What it looks at for each tenant, or service.
    fn columns(self) -> &'static [&'static str] {
        match self {
            Self::Policy => &["offered"],
            Self::Ethical => &["demand", "weight", "satisfaction", "latency"],
            Self::Resource => &["wait", "ready", "utilisation"],
        }
    }

    fn globals(self) -> &'static [&'static str] {
        match self {
            Self::Policy => &["limit", "strict", "retries", "utilisation", "queue_delay"],
            Self::Ethical => &["limit", "inverse_alpha", "utilisation"],
            Self::Resource => &["share", "service_rate", "slow"],
        }
    }
}

pub(super) fn make(space: &AgentSpace, calibration: &Calibration) -> Option<Box<dyn Controller>> {
    let agent = Agent::of(&space.name)?;
    let tenants = calibration.tenants.iter().map(|tenant| &tenant.name);
    let services = calibration.services.iter().map(|service| &service.name);
    let row = |name: &String| -> Option<Vec<Gauge>> {
        let gauge = |what: &&str| Gauge::find(space, &format!("{name}_{what}"));
        agent.columns().iter().map(gauge).collect()
    };
    let rows: Option<Vec<_>> = match agent {
        Agent::Resource => services.map(row).collect(),
        Agent::Policy | Agent::Ethical => tenants.map(row).collect(),
    };
    let globals = agent.globals().iter().map(|name| Gauge::find(space, name));
    Some(Box::new(Planner {
        agent,
        calibration: calibration.clone(),
        rows: Rows(rows?),
        globals: globals.collect::<Option<_>>()?,
        candidates: candidates(&space.action),
        intervals: intervals(calibration),
    }))
}

fn intervals(calibration: &Calibration) -> u32 {
    let start_ups = calibration
        .services
        .iter()
        .map(|service| service.start_up_s);
    let slowest = start_ups.fold(0.0, f64::max) / calibration.interval_s;
    INTERVALS.max((START_UPS * slowest).ceil() as u32)
}

fn candidates(space: &ActionSpace) -> Vec<Action> {
    match space {
        ActionSpace::Discrete(names) => (0..names.len()).map(Action::Discrete).collect(),
        ActionSpace::Continuous(_) => {
            let share = |n: u16| f32::from(n) / f32::from(SHARES);
            (0..=SHARES)
                .map(|n| Action::Continuous(vec![share(n)]))
                .collect()
        }
    }
}

impl Planner {
    fn global(&self, at: usize, observation: &[f32]) -> f64 {
        self.globals[at].read(observation)
    }

    /// The mesh as the observation shows it.
    fn imagine(&self, observation: &[f32]) -> Forecast<'_> {
        let mut forecast = Forecast::new(&self.calibration);
        match self.agent {
            Agent::Policy => self.imagine_policy(observation, &mut forecast),
            Agent::Ethical => self.imagine_ethical(observation, &mut forecast),
            Agent::Resource => self.imagine_resource(observation, &mut forecast),
        }
        forecast
    }

    fn imagine_policy(&self, observation: &[f32], forecast: &mut Forecast<'_>) {
        let [limit, strict, retries, utilisation, delay] =
            std::array::from_fn(|at| self.global(at, observation));
        forecast.controls().limit = limit;
        forecast.controls().strict = strict > 0.5;
        for (tenant, row) in self.rows.0.iter().enumerate() {
            let offered = row[0].read(observation);
            forecast.set_demand(tenant, offered / (1.0 + retries), retries);
        }
        forecast.set_utilisation(utilisation);
        forecast.set_delay(None, delay);
    }

    fn imagine_ethical(&self, observation: &[f32], forecast: &mut Forecast<'_>) {
        let [limit, inverse_alpha, utilisation] =
            std::array::from_fn(|at| self.global(at, observation));
        forecast.controls().limit = limit;
        forecast.controls().alpha = Alpha::nearest(inverse_alpha);
        let mut slowest: f64 = 0.0;
        for (tenant, row) in self.rows.0.iter().enumerate() {
            let [demand, weight, satisfaction, latency] =
                std::array::from_fn(|at| row[at].read(observation));
            let entitlement = self.calibration.tenants[tenant].entitlement;
            forecast.controls().weights[tenant] = weight * entitlement;
            forecast.set_demand(tenant, demand, 0.0);
            forecast.set_satisfaction(tenant, satisfaction);
            slowest = slowest.max(latency);
        }
        forecast.set_utilisation(utilisation);
        if utilisation > 1.0 {
            forecast.set_delay(None, slowest);
        }
    }

    fn imagine_resource(&self, observation: &[f32], forecast: &mut Forecast<'_>) {
        let [share, service_rate, slow] = std::array::from_fn(|at| self.global(at, observation));
        // A part of the load are retries of what was too slow; they go when the mesh is fast again.
        let retries = slow * self.calibration.clients.patient.retries;
        forecast.controls().share = share;
        forecast.set_service_rate(service_rate);
        for (tenant, parameters) in self.calibration.tenants.iter().enumerate() {
            forecast.set_demand(tenant, parameters.rate, retries);
        }
        let mut demand: f64 = 0.0;
        for (service, row) in self.rows.0.iter().enumerate() {
            let most = f64::from(self.calibration.services[service].max_replicas);
            let [wait, ready, utilisation] = std::array::from_fn(|at| row[at].read(observation));
            let ready = (ready * most).round();
            forecast.set_ready(service, ready as u32);
            if wait > self.calibration.objective_s {
                forecast.set_delay(Some(service), wait);
            }
            let busy = utilisation * ready * service_rate;
            demand = demand.max(busy / forecast.work(service) / (1.0 + retries));
        }
        *forecast = forecast.scaled(demand);
    }

    /// What holding is: the first discrete action, or the share as it is.
    fn hold(&self, observation: &[f32]) -> Action {
        match self.agent {
            Agent::Policy | Agent::Ethical => Action::Discrete(0),
            Agent::Resource => Action::Continuous(vec![self.global(0, observation) as f32]),
        }
    }
}

impl Planner {
    /// The expected reward of an action, over the loads that the agent prepares for.
    fn value(&self, forecasts: &[Forecast<'_>], action: &Action) -> f64 {
        let agent = self.agent.position();
        let values = forecasts
            .iter()
            .map(|one| one.value(agent, action, self.intervals));
        values.sum::<f64>() / forecasts.len() as f64
    }
}

impl Controller for Planner {
    fn act(&mut self, observation: &[f32], action: &mut Action) {
        let now = self.imagine(observation);
        let forecasts = match self.agent {
            Agent::Policy | Agent::Ethical => vec![now],
            Agent::Resource => LOADS.map(|load| now.scaled(load)).to_vec(),
        };
        let hold = self.hold(observation);
        let (mut best, mut most) = (&hold, self.value(&forecasts, &hold) + MARGIN);
        for candidate in &self.candidates {
            let value = self.value(&forecasts, candidate);
            if value > most {
                (best, most) = (candidate, value);
            }
        }
        match best {
            Action::Discrete(at) => choose(action, *at),
            Action::Continuous(numbers) => set(action, f64::from(numbers[0])),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        MeshEnv, World,
        testing::{Episode, mesh_hold},
    };

    /// What the planner of an agent does after ten intervals of holding with a share of replicas.
    fn plan(at: usize, share: f32, prepare: impl Fn(&mut Calibration)) -> Action {
        let mut calibration = Calibration::shipped();
        calibration.disorder = 0.0;
        calibration.traffic.diurnal = 0.0;
        calibration.traffic.burst_factor = 1.0;
        prepare(&mut calibration);
        let mut mesh = Episode::start(MeshEnv::new(calibration).unwrap(), 2);
        let mut joint = mesh_hold(share);
        for _ in 0..10 {
            mesh.step(&joint);
        }
        let space = &mesh.world.spec().agents[at];
        let mut planner = make(space, mesh.world.calibration()).unwrap();
        planner.act(mesh.seen.of(at), &mut joint[at]);
        joint[at].clone()
    }

    #[test]
    fn resource_adds_replicas_under_overload_and_gives_up_those_that_idle() {
        assert!(plan(3, 0.1, |_| {}).number() > 0.3);
        assert!(plan(3, 1.0, |_| {}).number() < 0.8);
    }

    /// An agent's mean reward over some episodes in which the others hold.
    fn earns(at: usize, mut controller: Option<Box<dyn Controller>>) -> f32 {
        let mut sum = 0.0;
        for seed in 0..8 {
            let mut mesh = Episode::start(MeshEnv::shipped(), seed);
            let mut joint = mesh_hold(mesh.world.controls().share as f32);
            for _ in 0..100 {
                if let Some(controller) = &mut controller {
                    controller.act(mesh.seen.of(at), &mut joint[at]);
                }
                sum += mesh.step(&joint)[at].reward / 800.0;
            }
        }
        sum
    }

    /// Resource is left out: alone it cannot end an overload that retries keep alive.
    #[test]
    fn planning_earns_more_than_holding() {
        let mesh = MeshEnv::shipped();
        for at in [0, 2] {
            let agent = &mesh.spec().agents[at];
            let planned = earns(at, make(agent, mesh.calibration()));
            let held = earns(at, None);
            assert!(
                planned > held + 0.002,
                "{}: {planned} against {held}",
                agent.name
            );
        }
    }
}
