//! Fitting a calibration to what a mesh measures, and finding out how far it can be trusted.
//!
//! Every window of measurements adds to sums that forget: an older window counts less. A prior counts as much
//! as a few observations, so that a parameter of which little was seen stays near it (Bayesian shrinkage with
//! conjugate pseudo-counts). A calibration is judged by what it was not fitted to: it predicts the throughput
//! and the latencies of each following window, and the relative errors decide.
//!
//! Of a mesh with one service, the latencies of the windows also say how the times of calls are spread.

mod measure;
mod predict;
#[cfg(test)]
mod tests;

pub use measure::{Approvals, BadWindow, Histogram, ServiceWindow, TenantWindow, Window};
pub use predict::{Prediction, predict};

use super::{
    calibration::{Calibration, Changes, Service, Tenant},
    spread::{QUANTILES, Spread},
};
use serde::{Deserialize, Serialize};

/// By what an older window counts less than the one after it.
const FORGETTING: f64 = 0.8;
/// How many calls, answers or failures the prior counts as.
const PRIOR: f64 = 50.0;
/// How many seconds of arrivals the prior counts as.
const PRIOR_S: f64 = 5.0;
/// How many start-ups of replicas the prior counts as.
const PRIOR_START_UPS: f64 = 2.0;
/// How many calls a verdict needs.
pub const MIN_CALLS: f64 = 1_000.0;
/// What half of the errors may be at most.
pub const MAX_MEDIAN_ERROR: f64 = 0.15;
/// What 95 % of the errors may be at most.
pub const MAX_TAIL_ERROR: f64 = 0.25;

/// How far predictions were from one following window, as shares of what was measured.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Errors {
    /// Of completed calls per second.
    pub throughput: f64,
    /// Of the median latency.
    pub p50: f64,
    /// Of the 95th percentile of latency.
    pub p95: f64,
    /// Of the 99th percentile of latency.
    pub p99: f64,
}

/// Whether a calibration can be trusted.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// Its predictions were close enough.
    Calibrated {
        /// For each window after the first: the errors of the calibration that was fitted before it.
        errors: Vec<Errors>,
        /// How many calls it was fitted to.
        calls: f64,
    },
    /// It must not be used for a live mesh.
    Uncalibrated {
        /// Why.
        reason: Reason,
    },
}

/// Why a calibration cannot be trusted.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum Reason {
    /// There is no following window to predict, or too few calls.
    #[error("{calls:.0} calls in {windows} windows; {MIN_CALLS:.0} in at least 2 are needed")]
    TooLittleData {
        /// The calls there are.
        calls: f64,
        /// The windows there are.
        windows: usize,
    },
    /// Half of the errors are larger than they may be.
    #[error(
        "the median error of the predictions of all windows is {:.1} %; it may be {:.0} %",
        .0 * 100.0,
        MAX_MEDIAN_ERROR * 100.0
    )]
    MedianError(f64),
    /// More than 5 % of the errors are larger than they may be.
    #[error(
        "the 95th percentile of the errors of the predictions of all windows is {:.1} %; it may be {:.0} %",
        .0 * 100.0,
        MAX_TAIL_ERROR * 100.0
    )]
    TailError(f64),
}

/// Fits a calibration to windows of measurements, the oldest first, and judges it by its predictions of all
/// but the first.
///
/// # Errors
///
/// When a window does not fit the prior's tenants and services, or holds what nothing can measure.
pub fn calibrate(
    prior: &Calibration,
    windows: &[Window],
) -> Result<(Calibration, Verdict), BadWindow> {
    let mut sums = Sums::new(prior);
    let mut errors = Vec::new();
    let mut calls = 0.0;
    for (at, window) in windows.iter().enumerate() {
        window.check(prior)?;
        if at > 0 {
            errors.push(Errors::of(&predict(&sums.fit(prior), window), window));
        }
        sums.add(window);
        calls += window.latencies.total();
    }
    Ok((sums.fit(prior), judge(errors, calls)))
}

fn judge(errors: Vec<Errors>, calls: f64) -> Verdict {
    let uncalibrated = |reason| Verdict::Uncalibrated { reason };
    if errors.is_empty() || calls < MIN_CALLS {
        let windows = errors.len() + 1;
        return uncalibrated(Reason::TooLittleData { calls, windows });
    }
    let mut all: Vec<f64> = errors.iter().flat_map(Errors::all).collect();
    all.sort_unstable_by(f64::total_cmp);
    let at = |share: f64| all[((all.len() as f64 * share).ceil() as usize).clamp(1, all.len()) - 1];
    let (median, tail) = (at(0.5), at(0.95));
    // An error that is not a number is above every limit.
    if median.is_nan() || median > MAX_MEDIAN_ERROR {
        return uncalibrated(Reason::MedianError(median));
    }
    if tail.is_nan() || tail > MAX_TAIL_ERROR {
        return uncalibrated(Reason::TailError(tail));
    }
    Verdict::Calibrated { errors, calls }
}

impl Errors {
    /// The errors of the prediction of a window. They are not numbers where the window has no calls.
    pub fn of(prediction: &Prediction, window: &Window) -> Self {
        let relative = |ours: f64, theirs: f64| (ours - theirs).abs() / theirs;
        let latency = |q| {
            relative(
                prediction.latencies.quantile(q),
                window.latencies.quantile(q),
            )
        };
        let measured = window.latencies.total() / window.seconds;
        Self {
            throughput: relative(prediction.throughput, measured),
            p50: latency(0.5),
            p95: latency(0.95),
            p99: latency(0.99),
        }
    }

    /// All four.
    pub fn all(&self) -> [f64; 4] {
        [self.throughput, self.p50, self.p95, self.p99]
    }
}

/// Sums of measurements that forget.
struct Sums {
    seconds: f64,
    tenants: Vec<TenantWindow>,
    services: Vec<ServiceWindow>,
    approvals: Approvals,
    /// None before the first window.
    latencies: Option<Histogram>,
}

/// A mean of which the prior counts as some observations.
fn shrink(prior: f64, weight: f64, sum: f64, count: f64) -> f64 {
    (weight * prior + sum) / (weight + count)
}

impl Sums {
    fn new(prior: &Calibration) -> Self {
        let backends = prior.services.len() - 1;
        let tenant = TenantWindow {
            calls: vec![0.0; backends],
            ..TenantWindow::default()
        };
        Self {
            seconds: 0.0,
            tenants: vec![tenant; prior.tenants.len()],
            services: vec![ServiceWindow::default(); prior.services.len()],
            approvals: Approvals::default(),
            latencies: None,
        }
    }

    fn add(&mut self, window: &Window) {
        self.seconds = FORGETTING * self.seconds + window.seconds;
        for (sum, new) in self.tenants.iter_mut().zip(&window.tenants) {
            sum.add(new, FORGETTING);
        }
        for (sum, new) in self.services.iter_mut().zip(&window.services) {
            sum.add(new, FORGETTING);
        }
        self.approvals.add(&window.approvals, FORGETTING);
        match &mut self.latencies {
            Some(latencies) if latencies.bounds() == window.latencies.bounds() => {
                latencies.add(&window.latencies, FORGETTING);
            }
            latencies => *latencies = Some(window.latencies.clone()),
        }
    }

    fn fit(&self, prior: &Calibration) -> Calibration {
        let mut fitted = prior.clone();
        fitted.name = "fitted".into();
        for (at, tenant) in fitted.tenants.iter_mut().enumerate() {
            self.fit_tenant(at, tenant);
        }
        for at in 0..fitted.services.len() {
            let work = self.mean_work(at, &fitted.tenants);
            self.fit_service(at, &mut fitted.services[at], work);
        }
        if self.services.len() == 1 {
            let work = self.mean_work(0, &fitted.tenants);
            let spread = self.spread(&fitted.services[0], work);
            fitted.spread = spread.or(fitted.spread);
        }
        self.fit_retries(&mut fitted);
        fitted.changes = self.fit_changes(&prior.changes);
        fitted
    }

    fn fit_tenant(&self, at: usize, tenant: &mut Tenant) {
        let sums = &self.tenants[at];
        tenant.rate = shrink(tenant.rate, PRIOR_S, sums.attempts, self.seconds);
        let passed: f64 = sums.calls.iter().sum();
        for (share, calls) in tenant.mix.iter_mut().zip(&sums.calls) {
            *share = shrink(*share, PRIOR, *calls, passed);
        }
        // What its calls would have taken if they were like everybody's.
        let mean = |service: usize| self.services[service].mean();
        let backends = sums.calls.iter().enumerate();
        let usual: f64 = backends
            .map(|(at, calls)| calls * mean(at + 1))
            .sum::<f64>()
            + sums.admitted * mean(0);
        let per_call = usual / sums.admitted.max(1.0);
        let weight = PRIOR * per_call;
        if usual > 0.0 {
            tenant.work = shrink(tenant.work, weight, sums.service_time_s, usual);
        }
    }

    /// The mean and the mean square of the work of the calls that a service serves.
    fn mean_work(&self, service: usize, tenants: &[Tenant]) -> [f64; 2] {
        let calls = |sums: &TenantWindow| match service {
            0 => sums.admitted,
            _ => sums.calls[service - 1],
        };
        let all: f64 = self.tenants.iter().map(calls).sum();
        if all <= 0.0 {
            return [1.0, 1.0];
        }
        [1, 2].map(|power| {
            let each = self.tenants.iter().zip(tenants);
            each.map(|(sums, tenant)| calls(sums) * tenant.work.powi(power))
                .sum::<f64>()
                / all
        })
    }

    fn fit_service(&self, at: usize, service: &mut Service, [work, work_squared]: [f64; 2]) {
        let sums = &self.services[at];
        let Service {
            service_time_s,
            service_cv2,
            start_up_s,
            ..
        } = *service;
        let time = shrink(service_time_s * work, PRIOR, sums.time_s, sums.calls);
        let square = work_squared * (1.0 + service_cv2) * service_time_s * service_time_s;
        let squares = shrink(square, PRIOR, sums.time_squared, sums.calls);
        service.service_time_s = time / work;
        // What the differences between tenants explain is not variation within them.
        let within = squares * work * work / (time * time * work_squared);
        service.service_cv2 = (within - 1.0).max(0.0);
        let start_up = shrink(start_up_s, PRIOR_START_UPS, sums.start_up_s, sums.start_ups);
        service.start_up_s = start_up;
    }

    /// How the times of the calls of the only service are spread, as parts of its fitted mean; `None` before
    /// there were calls.
    fn spread(&self, service: &Service, [work, work_squared]: [f64; 2]) -> Option<Spread> {
        let latencies = self.latencies.as_ref().filter(|all| all.total() > 0.0)?;
        let mean = service.service_time_s * work;
        let part = |at: usize| (at as f64 + 0.5) / QUANTILES as f64;
        let quantiles = (0..QUANTILES).map(|at| latencies.quantile(part(at)) / mean);
        Some(Spread {
            quantiles: quantiles.collect(),
            cv2: (work_squared * (1.0 + service.service_cv2) / (work * work) - 1.0).max(0.0),
        })
    }

    fn fit_retries(&self, fitted: &mut Calibration) {
        let sum = |of: fn(&TenantWindow) -> f64| self.tenants.iter().map(of).sum::<f64>();
        let (failures, retries) = (sum(|t| t.failures), sum(|t| t.retries));
        let patient = &mut fitted.clients.patient;
        patient.retries = shrink(patient.retries, PRIOR, retries, failures).clamp(0.0, 1.0);
    }

    fn fit_changes(&self, prior: &Changes) -> Changes {
        let Approvals {
            proposals,
            bad,
            asked,
            good_answers,
            good_approvals,
            bad_answers,
            bad_approvals,
            log_time,
            log_time_squared,
        } = self.approvals;
        let answers = good_answers + bad_answers;
        let share = |prior, part, whole| shrink(prior, PRIOR, part, whole).clamp(0.0, 1.0);
        let log = shrink(prior.answer_s.ln(), PRIOR, log_time, answers);
        let second = prior.answer_sigma.powi(2) + prior.answer_s.ln().powi(2);
        let squares = shrink(second, PRIOR, log_time_squared, answers);
        Changes {
            proposals: shrink(
                prior.proposals,
                PRIOR / prior.proposals.max(0.01),
                proposals,
                self.seconds,
            ),
            bad: share(prior.bad, bad, proposals),
            available: share(prior.available, answers, asked),
            false_alarms: share(
                prior.false_alarms,
                good_answers - good_approvals,
                good_answers,
            ),
            spots: share(prior.spots, bad_answers - bad_approvals, bad_answers),
            answer_s: log.exp(),
            answer_sigma: (squares - log * log).max(0.0).sqrt(),
            ..prior.clone()
        }
    }
}
