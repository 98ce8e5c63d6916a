//! What the model expects of the next intervals when nothing unexpected happens: load stays as it is, no
//! proposal is decided, and all agents but one hold.

use super::{
    Calibration,
    calibration::{MAX_SERVICES, MAX_TENANTS},
    controls::Controls,
    fair::PerTenant,
    interval::Interval,
    replicas::Replicas,
    reward::rewards,
    state::State,
};
use crate::{space::Action, world::Generator};
use rand::SeedableRng;

/// A state of the mesh as somebody who observes it in part imagines it.
#[derive(Clone)]
pub(crate) struct Forecast<'a> {
    calibration: &'a Calibration,
    state: State,
    demand: PerTenant,
}

impl<'a> Forecast<'a> {
    /// A mesh without trouble, with the controls of an operator who has no controllers.
    pub(crate) fn new(calibration: &'a Calibration) -> Self {
        let mut state = State::start(calibration, &mut Generator::seed_from_u64(0));
        state.controls = Controls::initial(calibration);
        let demand = state.last.demand;
        Self {
            calibration,
            state,
            demand,
        }
    }

    /// What the agents have set.
    pub(crate) fn controls(&mut self) -> &mut Controls {
        &mut self.state.controls
    }

    /// What a tenant wants, in calls/s, and what it tries again in the next interval, as a share of that.
    pub(crate) fn set_demand(&mut self, tenant: usize, rate: f64, retries: f64) {
        self.demand[tenant] = rate * self.calibration.interval_s;
        self.state.retry(tenant, self.demand[tenant] * retries);
        self.state.last.demand[tenant] = self.demand[tenant];
        self.state.last.done[tenant] = self.demand[tenant];
    }

    /// By which factor the services are faster than the calibration says.
    pub(crate) fn set_service_rate(&mut self, factor: f64) {
        self.state.changes.gain = factor - 1.0;
    }

    /// The same with another load: what all tenants want, multiplied.
    pub(crate) fn scaled(&self, factor: f64) -> Self {
        let mut scaled = self.clone();
        scaled.demand = self.demand.map(|calls| calls * factor);
        scaled.state.scale_retries(factor);
        scaled
    }

    /// What a tenant got of its due.
    pub(crate) fn set_satisfaction(&mut self, tenant: usize, satisfaction: f64) {
        self.state.last.satisfaction[tenant] = satisfaction;
        self.state.last.done[tenant] = satisfaction * self.demand[tenant];
    }

    /// The replicas of a service that serve. What is missing to the share that is set is about to serve.
    pub(crate) fn set_ready(&mut self, service: usize, ready: u32) {
        let parameters = &self.calibration.services[service];
        let start_up = (parameters.start_up_s / self.calibration.interval_s).ceil() as usize;
        let mut replicas = Replicas::ready(ready.clamp(1, parameters.max_replicas));
        replicas.advance(
            self.state.wanted(self.calibration, service),
            start_up.div_ceil(2),
        );
        self.state.fleet[service] = replicas;
    }

    /// Sets the replicas of all services to the share at which the busiest service is as busy as observed.
    pub(crate) fn set_utilisation(&mut self, utilisation: f64) {
        let error = |share: &f64| (self.busiest(*share).1 - utilisation).abs();
        let shares = (0..=20).map(|n| f64::from(n) / 20.0);
        let best = shares.min_by(|a, b| error(a).total_cmp(&error(b)));
        self.state.controls.share = best.unwrap_or(self.state.controls.share);
        for service in 0..self.calibration.services.len() {
            let wanted = self.state.wanted(self.calibration, service);
            self.state.fleet[service] = Replicas::ready(wanted);
        }
    }

    /// The busiest service at a share of replicas, and the utilisation there.
    fn busiest(&self, share: f64) -> (usize, f64) {
        let utilisation = |at: usize| {
            let service = &self.calibration.services[at];
            let (least, most) = (
                f64::from(service.min_replicas),
                f64::from(service.max_replicas),
            );
            self.work(at) / (least + share * (most - least)).round()
        };
        let all = (0..self.calibration.services.len()).map(|at| (at, utilisation(at)));
        all.max_by(|a, b| a.1.total_cmp(&b.1)).unwrap_or_default()
    }

    /// The replicas that a service needs for what is wanted of it.
    pub(crate) fn work(&self, service: usize) -> f64 {
        let tenants = self.calibration.tenants.iter().zip(&self.demand);
        let each = tenants.map(|(tenant, calls)| {
            let share = if service == 0 {
                1.0
            } else {
                tenant.mix[service - 1]
            };
            calls * share * tenant.work
        });
        each.sum::<f64>() * self.calibration.services[service].service_time_s
            / self.calibration.interval_s
    }

    /// The delay by the queue of a service in s, or of the busiest one.
    pub(crate) fn set_delay(&mut self, service: Option<usize>, delay: f64) {
        let service = service.unwrap_or_else(|| self.busiest(self.state.controls.share).0);
        let all: f64 = self.demand.iter().sum();
        if service < MAX_SERVICES && all > 0.0 {
            let time = self.calibration.services[service].service_time_s;
            let queue = delay * f64::from(self.state.fleet[service].ready) / time;
            let queues: [f64; MAX_TENANTS] =
                std::array::from_fn(|at| queue * self.demand[at] / all);
            self.state.set_queue(service, queues);
        }
    }

    /// Moves on by an interval with given replicas, and returns what happens in it.
    pub(crate) fn run(&mut self, replicas: &[u32]) -> &Interval {
        self.state.steady(self.calibration, self.demand, replicas);
        &self.state.last
    }

    /// The mean reward of an agent over some intervals, the first of which begins with its action.
    pub(crate) fn value(&self, agent: usize, action: &Action, intervals: u32) -> f64 {
        let mut state = self.state;
        let mut joint = [0, 0, 0].map(Action::Discrete).to_vec();
        joint.push(Action::Continuous(vec![state.controls.share as f32]));
        let mut value = 0.0;
        joint[agent] = action.clone();
        for _ in 0..intervals {
            state.expect(self.calibration, &joint, self.demand);
            value += rewards(self.calibration, &state)[agent];
            if agent < 3 {
                joint[agent] = Action::Discrete(0);
            }
        }
        value / f64::from(intervals)
    }
}
