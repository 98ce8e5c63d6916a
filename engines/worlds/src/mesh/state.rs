//! The state of the mesh, and how it moves on by an interval.

use super::{
    calibration::{Calibration, MAX_SERVICES, MAX_TENANTS},
    changes::{ChangeState, Context},
    controls::Controls,
    fair::{PerTenant, divide},
    flow::{Flow, Station},
    interval::{Interval, Path, share, sum},
    latency::{Latency, Mixture},
    replicas::Replicas,
    traffic::Load,
};
use crate::{space::Action, world::Generator};
use rand::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};

/// Everything that the next interval depends on.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct State {
    pub(crate) step: u32,
    pub(crate) controls: Controls,
    pub(crate) load: Load,
    /// What callers will try again in the next interval.
    retries: PerTenant,
    /// What is left in the token bucket, in calls of mean work.
    pub(crate) tokens: f64,
    pub(crate) fleet: [Replicas; MAX_SERVICES],
    /// By service: what waits.
    queues: [PerTenant; MAX_SERVICES],
    waits: [f64; MAX_SERVICES],
    pub(crate) changes: ChangeState,
    pub(crate) last: Interval,
    /// What was offered in the interval before the last one.
    pub(crate) offered_before: f64,
}

impl State {
    /// The start of an episode, at a random time of day.
    pub(crate) fn start(calibration: &Calibration, rng: &mut Generator) -> Self {
        let controls = Controls::start(calibration, rng);
        let mut state = Self {
            step: 0,
            controls,
            load: Load::start(&calibration.traffic, rng),
            retries: PerTenant::default(),
            tokens: controls.limit * calibration.bucket_s,
            fleet: [Replicas::default(); MAX_SERVICES],
            queues: [PerTenant::default(); MAX_SERVICES],
            waits: [0.0; MAX_SERVICES],
            changes: ChangeState::start(&calibration.changes, rng),
            last: Interval::default(),
            offered_before: 0.0,
        };
        for at in 0..calibration.services.len() {
            state.fleet[at] = Replicas::ready(state.wanted(calibration, at));
        }
        state.last = state.expected(calibration);
        state.offered_before = sum(&state.last.offered);
        state
    }

    /// What an interval without any trouble would look like: the observation before the first step.
    fn expected(&self, calibration: &Calibration) -> Interval {
        let demand = self
            .load
            .rates(calibration)
            .map(|rate| rate * calibration.interval_s);
        let times = calibration
            .services
            .iter()
            .map(|service| service.service_time_s);
        let latency = times.clone().take(1).sum::<f64>() + times.skip(1).fold(0.0, f64::max);
        Interval {
            demand,
            offered: demand,
            admitted: demand,
            done: demand,
            satisfaction: [1.0; MAX_TENANTS],
            latency: [latency; MAX_TENANTS],
            quantiles: [latency; 3],
            ..Interval::default()
        }
    }

    /// How many replicas of a service Resource wants.
    pub(crate) fn wanted(&self, calibration: &Calibration, service: usize) -> u32 {
        let service = &calibration.services[service];
        let (least, most) = (service.min_replicas, service.max_replicas);
        least + (self.controls.share * f64::from(most - least)).round() as u32
    }

    /// Applies the agents' actions and moves on by an interval. It takes one number of the caller's
    /// generator, so that two states that get the same numbers meet the same load and the same proposals
    /// whatever the agents do.
    pub(crate) fn advance(
        &mut self,
        calibration: &Calibration,
        actions: &[Action],
        rng: &mut Generator,
    ) {
        let mut draws = Generator::seed_from_u64(rng.next_u64());
        self.controls.apply(actions, calibration, &self.last);
        self.offered_before = sum(&self.last.offered);
        let demand = self.load.advance(calibration, &mut draws);
        self.scale(calibration);
        self.last = self.run(calibration, demand);
        self.retries = self.will_retry(calibration);
        let context = Context {
            changes: &calibration.changes,
            controls: &self.controls,
            interval: calibration.interval_s,
            angle: self.load.angle(),
        };
        self.changes.advance(&context, &mut draws);
        self.step += 1;
    }

    /// Moves on by an interval in which tenants want what is given, and nothing is drawn.
    pub(crate) fn expect(
        &mut self,
        calibration: &Calibration,
        actions: &[Action],
        demand: PerTenant,
    ) {
        self.controls.apply(actions, calibration, &self.last);
        self.offered_before = sum(&self.last.offered);
        self.scale(calibration);
        self.last = self.run(calibration, demand);
        self.retries = self.will_retry(calibration);
        self.step += 1;
    }

    /// Moves on by an interval in which tenants want what is given and as many replicas serve as is given.
    pub(crate) fn steady(
        &mut self,
        calibration: &Calibration,
        demand: PerTenant,
        replicas: &[u32],
    ) {
        for (fleet, ready) in self.fleet.iter_mut().zip(replicas) {
            *fleet = Replicas::ready((*ready).max(1));
        }
        self.last = self.run(calibration, demand);
        self.retries = self.will_retry(calibration);
    }

    /// Sets what a tenant tries again in the next interval.
    pub(crate) fn retry(&mut self, tenant: usize, calls: f64) {
        self.retries[tenant] = calls;
    }

    /// Multiplies what all tenants try again in the next interval.
    pub(crate) fn scale_retries(&mut self, factor: f64) {
        self.retries = self.retries.map(|calls| calls * factor);
    }

    /// Sets what waits at a service.
    pub(crate) fn set_queue(&mut self, service: usize, queues: PerTenant) {
        self.queues[service] = queues;
    }

    /// Starts and stops replicas.
    fn scale(&mut self, calibration: &Calibration) {
        for (at, service) in calibration.services.iter().enumerate() {
            let start_up = (service.start_up_s / calibration.interval_s).ceil() as usize;
            let wanted = self.wanted(calibration, at);
            self.fleet[at].advance(wanted, start_up);
        }
    }

    /// Lets an interval's calls through the mesh.
    fn run(&mut self, calibration: &Calibration, demand: PerTenant) -> Interval {
        let offered: PerTenant = std::array::from_fn(|at| demand[at] + self.retries[at]);
        let admitted = self.admit(calibration, &offered);
        let mut interval = Interval {
            demand,
            offered,
            admitted,
            shed: std::array::from_fn(|at| offered[at] - admitted[at]),
            ..Interval::default()
        };
        let entry = self.serve(calibration, 0, &admitted, &mut interval);
        match calibration.services.len() {
            1 => arrive(
                &mut interval,
                0,
                &entry.served,
                &[Latency::default(); MAX_TENANTS],
                &entry,
            ),
            services => {
                for at in 1..services {
                    let share = |tenant: usize| match calibration.tenants.get(tenant) {
                        Some(tenant) => tenant.mix[at - 1],
                        None => 0.0,
                    };
                    let arrivals =
                        std::array::from_fn(|tenant| entry.served[tenant] * share(tenant));
                    let flow = self.serve(calibration, at, &arrivals, &mut interval);
                    arrive(&mut interval, at, &flow.served, &entry.latency, &flow);
                }
            }
        }
        self.conclude(calibration, &mut interval);
        interval
    }

    /// Divides the tokens of the bucket among the tenants, as Ethical has set it. A call takes as many
    /// tokens as its work.
    fn admit(&mut self, calibration: &Calibration, offered: &PerTenant) -> PerTenant {
        let Controls {
            limit,
            weights,
            alpha,
            ..
        } = &self.controls;
        let work = work(calibration);
        let tokens = self.tokens + limit * calibration.interval_s;
        let admitted = divide(tokens, offered, &work, weights, *alpha);
        let taken: f64 = admitted
            .iter()
            .zip(&work)
            .map(|(calls, work)| calls * work)
            .sum();
        self.tokens = (tokens - taken).clamp(0.0, limit * calibration.bucket_s);
        admitted
    }

    fn serve(
        &mut self,
        calibration: &Calibration,
        at: usize,
        arrivals: &PerTenant,
        interval: &mut Interval,
    ) -> Flow {
        let station = Station {
            service: &calibration.services[at],
            tenants: &calibration.tenants,
            servers: self.fleet[at].ready,
            efficiency: self.changes.efficiency(&calibration.changes),
            interval: calibration.interval_s,
        };
        let (queues, wait) = (&mut self.queues[at], &mut self.waits[at]);
        let flow = station.serve(arrivals, queues, wait, &self.controls);
        interval.utilisation[at] = flow.utilisation;
        interval.waits[at] = *wait + mean_shift(&flow);
        for tenant in 0..MAX_TENANTS {
            interval.dropped[tenant] += flow.dropped[tenant];
            interval.queued[tenant] += self.queues[at][tenant];
        }
        flow
    }

    /// Tells the calls that were in time from the others, and sums up.
    fn conclude(&self, calibration: &Calibration, interval: &mut Interval) {
        let patience = self.controls.patience(calibration);
        let objective = calibration.objective_s.min(patience.timeout_s);
        let (mut slow, mut all, mut mixture) = (
            sum(&interval.dropped),
            sum(&interval.dropped),
            Mixture::default(),
        );
        for tenant in 0..calibration.tenants.len() {
            let (mut completed, mut late, mut own) = (0.0, 0.0, Mixture::default());
            for paths in &interval.paths[..calibration.services.len()] {
                let Path { calls, latency } = paths[tenant];
                if calls > 0.0 {
                    completed += calls;
                    late += calls * latency.exceeds(patience.timeout_s);
                    slow += calls * latency.exceeds(objective);
                    own.add(calls, &latency);
                }
            }
            all += completed;
            mixture.merge(&own);
            interval.timed_out[tenant] = late;
            interval.failed[tenant] = (completed - late) * calibration.clients.transient;
            interval.done[tenant] = completed - late - interval.failed[tenant];
            interval.latency[tenant] = own.latency().map_or(0.0, |latency| latency.mean);
            interval.satisfaction[tenant] = satisfaction(calibration, tenant, interval);
        }
        if let Some(latency) = mixture.latency() {
            interval.quantiles = latency.quantiles();
            if let Some(spread) = &calibration.spread {
                let spreading = spread.of(&latency);
                interval.quantiles = spreading.quantiles();
                slow = sum(&interval.dropped) + interval.completed() * spreading.exceeds(objective);
            }
            interval.in_flight = interval.completed() / calibration.interval_s * latency.mean;
        }
        interval.slow = share(slow, all, 0.0);
    }

    fn will_retry(&self, calibration: &Calibration) -> PerTenant {
        let patience = self.controls.patience(calibration);
        let Interval {
            demand,
            shed,
            dropped,
            timed_out,
            failed,
            ..
        } = &self.last;
        std::array::from_fn(|at| {
            let refused = calibration.clients.shed_retries * (shed[at] + dropped[at]);
            let wanted = patience.retries * (timed_out[at] + failed[at]) + refused;
            wanted.min(patience.budget * demand[at])
        })
    }

    /// Whether a state that was read can be that of this mesh: whether no setting or count is one that
    /// the next step cannot work with.
    pub(crate) fn is_sound(&self, calibration: &Calibration) -> bool {
        let fleet = calibration.services.iter().zip(&self.fleet);
        let numbers = [&self.retries, &self.waits];
        let queues = self.queues.iter().chain(numbers).flatten();
        self.controls.is_sound(calibration)
            && fleet
                .into_iter()
                .all(|(service, replicas)| replicas.is_sound(service))
            && queues
                .into_iter()
                .all(|number| number.is_finite() && *number >= 0.0)
            && self.changes.is_sound()
            && self.tokens.is_finite()
            && self.tokens >= 0.0
            && self.load.time.is_finite()
    }

    /// How many calls are retried in the next interval.
    pub(crate) fn retrying(&self) -> f64 {
        sum(&self.retries)
    }
}

/// Records the calls that end at a service: how long they took there and before.
fn arrive(
    interval: &mut Interval,
    at: usize,
    served: &PerTenant,
    before: &[Latency; MAX_TENANTS],
    flow: &Flow,
) {
    interval.paths[at] = std::array::from_fn(|tenant| Path {
        calls: served[tenant],
        latency: before[tenant].plus(&flow.latency[tenant]),
    });
}

/// The work of a call of each tenant, relative to the mean.
fn work(calibration: &Calibration) -> PerTenant {
    let mut work = [1.0; MAX_TENANTS];
    for (work, tenant) in work.iter_mut().zip(&calibration.tenants) {
        *work = tenant.work;
    }
    work
}

fn mean_shift(flow: &Flow) -> f64 {
    let calls = sum(&flow.served);
    let each = flow.served.iter().zip(&flow.latency);
    let shifts = each.map(|(served, latency)| served * (latency.shift[0] + latency.shift[1]) / 2.0);
    if calls > 0.0 {
        shifts.sum::<f64>() / calls
    } else {
        0.0
    }
}

/// What a tenant got of what it wanted, but of no more than it is entitled to.
fn satisfaction(calibration: &Calibration, tenant: usize, interval: &Interval) -> f64 {
    let entitled = calibration.tenants[tenant].entitlement * calibration.nominal_rate();
    let claim = interval.demand[tenant].min(entitled * calibration.interval_s);
    share(interval.done[tenant], claim, 1.0)
}
