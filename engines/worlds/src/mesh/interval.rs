//! What happened in one interval.

use super::{
    calibration::{Calibration, MAX_SERVICES, MAX_TENANTS},
    fair::{PerTenant, jain},
    latency::{Latency, Mixture},
};
use serde::{Deserialize, Serialize};

/// What happened in one interval. Calls are counted by tenant; every attempt counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// First attempts.
    pub demand: PerTenant,
    /// First attempts and retries.
    pub offered: PerTenant,
    /// What the rate limit let in.
    pub admitted: PerTenant,
    /// What the rate limit refused.
    pub shed: PerTenant,
    /// What a full queue could not hold.
    pub dropped: PerTenant,
    /// What was completed before its caller gave up.
    pub done: PerTenant,
    /// What was completed after its caller had given up.
    pub timed_out: PerTenant,
    /// What failed for reasons that have nothing to do with load.
    pub failed: PerTenant,
    /// What waits at the end of the interval, at all services.
    pub queued: PerTenant,
    /// The mean latency of each tenant's calls in s.
    pub latency: PerTenant,
    /// What each tenant got of what it wanted and was entitled to, within 0 and 1.
    pub satisfaction: PerTenant,
    /// The offered work of each service over its capacity.
    pub utilisation: [f64; MAX_SERVICES],
    /// The mean wait at each service in s, with the delay by its queue.
    pub waits: [f64; MAX_SERVICES],
    /// The share of calls that passed the rate limit and then violated the latency objective, or failed by
    /// load.
    pub slow: f64,
    /// The median, the 95th and the 99th percentile of latency in s.
    pub quantiles: [f64; 3],
    /// The mean number of calls in the mesh.
    pub in_flight: f64,
    /// By service and tenant: how many calls ended there, and how long they took in all.
    pub(crate) paths: [[Path; MAX_TENANTS]; MAX_SERVICES],
}

/// The calls of one tenant that ended at one service.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Path {
    pub(crate) calls: f64,
    pub(crate) latency: Latency,
}

impl Interval {
    /// The share of the calls that were completed in time or late which took longer than some time in s;
    /// 0 when there were none.
    pub fn exceeds(&self, time: f64) -> f64 {
        let paths = self
            .paths
            .as_flattened()
            .iter()
            .filter(|path| path.calls > 0.0);
        let (mut late, mut all) = (0.0, 0.0);
        for path in paths {
            late += path.calls * path.latency.exceeds(time);
            all += path.calls;
        }
        if all > 0.0 { late / all } else { 0.0 }
    }

    /// The latency of all calls that ended at a service; `None` when there were none.
    pub(crate) fn pooled(&self) -> Option<Latency> {
        let mut mixture = Mixture::default();
        for path in self.paths.as_flattened() {
            if path.calls > 0.0 {
                mixture.add(path.calls, &path.latency);
            }
        }
        mixture.latency()
    }

    /// The calls of all tenants that ended at a service, in time or late.
    pub fn completed(&self) -> f64 {
        self.paths
            .as_flattened()
            .iter()
            .map(|path| path.calls)
            .sum()
    }

    /// The tenant that got least of what it wanted and was entitled to.
    pub(crate) fn worst(&self, tenants: usize) -> usize {
        let order = |a: &usize, b: &usize| self.satisfaction[*a].total_cmp(&self.satisfaction[*b]);
        (0..tenants).min_by(order).unwrap_or(0)
    }

    /// The tenant that got most for its entitlement.
    pub(crate) fn top(&self, calibration: &Calibration) -> usize {
        let got = |at: usize| self.done[at] / calibration.tenants[at].entitlement;
        let order = |a: &usize, b: &usize| got(*a).total_cmp(&got(*b));
        (0..calibration.tenants.len()).max_by(order).unwrap_or(0)
    }

    /// Jain's index of what the tenants got.
    pub(crate) fn fairness(&self, tenants: usize) -> f64 {
        jain(&self.satisfaction[..tenants])
    }

    /// The share of first attempts that were not completed, by now or by a retry.
    pub(crate) fn lost(&self) -> f64 {
        1.0 - share(sum(&self.done), sum(&self.demand), 1.0)
    }

    /// The share of attempts that were refused or violated the latency objective.
    pub(crate) fn violated(&self) -> f64 {
        1.0 - (1.0 - self.slow) * (1.0 - self.shed_share())
    }

    /// The share of attempts that the rate limit refused.
    pub(crate) fn shed_share(&self) -> f64 {
        share(sum(&self.shed), sum(&self.offered), 0.0)
    }

    /// The highest utilisation of a service.
    pub(crate) fn bottleneck(&self) -> f64 {
        self.utilisation.iter().fold(0.0, |most, one| one.max(most))
    }
}

pub(crate) fn sum(calls: &PerTenant) -> f64 {
    calls.iter().sum()
}

/// A part of a whole, at most 1; `none` where there is no whole.
pub(crate) fn share(part: f64, whole: f64, none: f64) -> f64 {
    if whole > 0.0 {
        (part / whole).min(1.0)
    } else {
        none
    }
}
