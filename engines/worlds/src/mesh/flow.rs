//! The flow of calls through one service in an interval, as a fluid: what arrives is served up to the
//! service's capacity, and the rest waits or, where the queue is full, is dropped. Calls that their callers
//! have given up are served nevertheless, which is what makes an overload feed itself through retries.

use super::{
    calibration::{MAX_TENANTS, Service, Tenant},
    controls::Controls,
    fair::{PerTenant, divide},
    latency::Latency,
    queue::Load,
};

/// The longest delay, in s, of a tenant that is not served at all.
const MAX_DELAY_S: f64 = 60.0;

/// A service in an interval.
pub(crate) struct Station<'a> {
    pub(crate) service: &'a Service,
    pub(crate) tenants: &'a [Tenant],
    pub(crate) servers: u32,
    /// The factor of its service rate.
    pub(crate) efficiency: f64,
    pub(crate) interval: f64,
}

/// What became of each tenant's calls, and how long they took.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Flow {
    pub(crate) served: PerTenant,
    pub(crate) dropped: PerTenant,
    /// The time at the service.
    pub(crate) latency: [Latency; MAX_TENANTS],
    /// Offered work over capacity.
    pub(crate) utilisation: f64,
}

impl Station<'_> {
    /// The time that one call of each tenant takes, in s.
    fn times(&self) -> PerTenant {
        let mut times = [self.service.service_time_s / self.efficiency; MAX_TENANTS];
        for (time, tenant) in times.iter_mut().zip(self.tenants) {
            *time *= tenant.work;
        }
        times
    }

    /// The arrivals as one stream of calls with the mean and the variation of the tenants' service times.
    fn load(&self, arrivals: &PerTenant, times: &PerTenant) -> Load {
        let calls: f64 = arrivals.iter().sum();
        let moment = |power: i32| -> f64 {
            let each = arrivals
                .iter()
                .zip(times)
                .map(|(n, time)| n * time.powi(power));
            each.sum::<f64>() / calls
        };
        let cv2 = self.service.service_cv2;
        let (service_time, service_cv2) = match calls > 0.0 {
            true => {
                let mean = moment(1);
                (
                    mean,
                    (moment(2) * (cv2 + 1.0) / (mean * mean) - 1.0).max(0.0),
                )
            }
            false => (times[0], cv2),
        };
        Load {
            servers: self.servers,
            rate: calls / self.interval,
            service_time,
            service_cv2,
            arrival_cv2: self.service.arrival_cv2,
        }
    }

    /// Serves an interval's arrivals. Queues and the mean wait are those of the service.
    pub(crate) fn serve(
        &self,
        arrivals: &PerTenant,
        queues: &mut PerTenant,
        wait: &mut f64,
        controls: &Controls,
    ) -> Flow {
        let times = self.times();
        let capacity = f64::from(self.servers) * self.interval;
        let before = *queues;
        let wanted: PerTenant = std::array::from_fn(|at| before[at] + arrivals[at]);
        let served = divide(capacity, &wanted, &times, &controls.weights, controls.alpha);
        *queues = std::array::from_fn(|at| (wanted[at] - served[at]).max(0.0));
        let dropped = self.drop_excess(queues, &times);
        let load = self.load(arrivals, &times);
        let random = load.wait(*wait, self.interval);
        *wait = random.mean;
        let shifts = self.shifts(&before, queues, &served, &times, arrivals);
        let latency = std::array::from_fn(|at| Latency {
            shift: shifts[at],
            mean: random.mean + times[at],
            variance: random.variance + self.service.service_cv2 * times[at] * times[at],
        });
        Flow {
            served,
            dropped,
            latency,
            utilisation: work(arrivals, &times) / capacity,
        }
    }

    /// Cuts the queues down to what the service holds.
    fn drop_excess(&self, queues: &mut PerTenant, times: &PerTenant) -> PerTenant {
        let queued = work(queues, times);
        let most = self.service.queue_s * f64::from(self.servers);
        if queued <= most {
            return PerTenant::default();
        }
        let dropped = queues.map(|queue| queue * (1.0 - most / queued));
        *queues = std::array::from_fn(|at| queues[at] - dropped[at]);
        dropped
    }

    /// The delay by the queue for each tenant, at the start and at the end of the interval.
    fn shifts(
        &self,
        before: &PerTenant,
        after: &PerTenant,
        served: &PerTenant,
        times: &PerTenant,
        arrivals: &PerTenant,
    ) -> [[f64; 2]; MAX_TENANTS] {
        let (backlog, left) = (work(before, times), work(after, times));
        if backlog <= 0.0 && left <= 0.0 {
            return [[0.0; 2]; MAX_TENANTS];
        }
        let servers = f64::from(self.servers);
        if left <= 0.0 {
            // The queue is gone after a part of the interval.
            let spare = servers - work(arrivals, times) / self.interval;
            let part = (backlog / spare.max(f64::MIN_POSITIVE) / self.interval).min(1.0);
            return [[backlog / servers * part, 0.0]; MAX_TENANTS];
        }
        std::array::from_fn(|at| {
            let rate = served[at] / self.interval;
            [before[at], after[at]].map(|queue| delay(queue, rate))
        })
    }
}

fn work(calls: &PerTenant, times: &PerTenant) -> f64 {
    calls
        .iter()
        .zip(times)
        .map(|(calls, time)| calls * time)
        .sum()
}

fn delay(queue: f64, rate: f64) -> f64 {
    if queue <= 0.0 {
        return 0.0;
    }
    (queue / rate.max(f64::MIN_POSITIVE)).min(MAX_DELAY_S)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mesh::Calibration;

    /// One interval of 5 s at the service of a constant calibration: 10 replicas, 0.1 s a call.
    fn serve(arrivals: f64, queue: f64, queue_s: f64) -> (Flow, f64) {
        let mut calibration = Calibration::constant(50.0, 0.1, 10);
        calibration.services[0].queue_s = queue_s;
        let controls = Controls::initial(&calibration);
        let station = Station {
            service: &calibration.services[0],
            tenants: &calibration.tenants,
            servers: 10,
            efficiency: 1.0,
            interval: 5.0,
        };
        let (mut queues, mut wait) = ([queue, 0.0, 0.0, 0.0], 0.0);
        let flow = station.serve(
            &[arrivals, 0.0, 0.0, 0.0],
            &mut queues,
            &mut wait,
            &controls,
        );
        (flow, queues[0])
    }

    #[test]
    fn below_capacity_everything_is_served() {
        let (flow, queue) = serve(300.0, 0.0, 100.0);
        assert_eq!((flow.served[0], queue, flow.utilisation), (300.0, 0.0, 0.6));
        assert_eq!(flow.latency[0].shift, [0.0; 2]);
    }

    #[test]
    fn above_capacity_the_rest_waits_and_is_late() {
        let (flow, queue) = serve(700.0, 100.0, 100.0);
        assert_eq!((flow.served[0], queue), (500.0, 300.0));
        assert_eq!(flow.latency[0].shift, [1.0, 3.0]);
    }

    #[test]
    fn what_a_full_queue_cannot_hold_is_dropped() {
        let (flow, queue) = serve(700.0, 0.0, 1.0);
        assert!((queue - 100.0).abs() < 1e-9 && (flow.dropped[0] - 100.0).abs() < 1e-9);
    }

    #[test]
    fn a_backlog_that_is_worked_off_delays_a_part_of_the_interval() {
        let (flow, queue) = serve(250.0, 100.0, 100.0);
        // 10 s of work at 5 spare servers take 2 s of the 5 s.
        assert_eq!((flow.served[0], queue), (350.0, 0.0));
        assert!((flow.latency[0].shift[0] - 0.4).abs() < 1e-9);
    }
}
