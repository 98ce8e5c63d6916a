//! What a mesh measures in a window: counts, and sums from which means and variances follow.

use crate::mesh::Calibration;

/// The measurements of some minutes. Tenants and services are in the order of the calibration.
#[derive(Debug, Clone, PartialEq)]
pub struct Window {
    /// How long it lasts, in s.
    pub seconds: f64,
    /// By tenant.
    pub tenants: Vec<TenantWindow>,
    /// By service.
    pub services: Vec<ServiceWindow>,
    /// The latencies of completed calls, as their callers see them.
    pub latencies: Histogram,
    /// What happened to proposals.
    pub approvals: Approvals,
}

/// What one tenant did.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TenantWindow {
    /// First attempts.
    pub attempts: f64,
    /// Calls that the rate limit let in.
    pub admitted: f64,
    /// Calls that failed.
    pub failures: f64,
    /// Calls that were tried again after a failure.
    pub retries: f64,
    /// Calls by service, without the first one.
    pub calls: Vec<f64>,
    /// The time that all services worked for it, in s.
    pub service_time_s: f64,
}

/// What one service did.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct ServiceWindow {
    /// Calls that it served.
    pub calls: f64,
    /// The sum of their service times in s, without waiting.
    pub time_s: f64,
    /// The sum of the squares of their service times in s².
    pub time_squared: f64,
    /// The replicas that served, on average.
    pub replicas: f64,
    /// Replicas that were started.
    pub start_ups: f64,
    /// The sum of the times that they took until they served, in s.
    pub start_up_s: f64,
}

/// What happened to proposals. Whether one was bad is known once it was rolled back or has proved itself.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Approvals {
    /// Proposals.
    pub proposals: f64,
    /// Proposals that were bad.
    pub bad: f64,
    /// How often an approver was asked.
    pub asked: f64,
    /// Answers on good proposals.
    pub good_answers: f64,
    /// Approvals of good proposals.
    pub good_approvals: f64,
    /// Answers on bad proposals.
    pub bad_answers: f64,
    /// Approvals of bad proposals.
    pub bad_approvals: f64,
    /// The sum of the logarithms of the times of all answers in s.
    pub log_time: f64,
    /// The sum of the squares of these logarithms.
    pub log_time_squared: f64,
}

/// How many latencies were at most each of some bounds, but above the one before.
#[derive(Debug, Clone, PartialEq)]
pub struct Histogram {
    bounds: Vec<f64>,
    /// One more than bounds: the last counts what is above all of them.
    counts: Vec<f64>,
}

/// A window that cannot be fitted to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadWindow {
    /// It has other tenants or services than the calibration.
    #[error("the window's tenants and services are not those of the calibration")]
    Shape,
    /// A number is negative, infinite or not a number.
    #[error("the window has a measurement that is negative or not finite")]
    Number,
    /// The bounds of the histogram are none, or do not rise.
    #[error("the bounds of the histogram do not rise")]
    Bounds,
}

impl Histogram {
    /// A histogram of given counts, of which there is one more than bounds.
    ///
    /// # Errors
    ///
    /// When the bounds do not rise or the counts are not counts.
    pub fn new(bounds: Vec<f64>, counts: Vec<f64>) -> Result<Self, BadWindow> {
        let rise = bounds.windows(2).all(|pair| pair[0] < pair[1]);
        let finite = bounds.iter().all(|bound| bound.is_finite() && *bound > 0.0);
        if bounds.is_empty() || !rise || !finite {
            return Err(BadWindow::Bounds);
        }
        if counts.len() != bounds.len() + 1 {
            return Err(BadWindow::Shape);
        }
        numbers(counts.iter().copied())?;
        Ok(Self { bounds, counts })
    }

    /// The bounds in s.
    pub fn bounds(&self) -> &[f64] {
        &self.bounds
    }

    /// Adds a newer histogram with the same bounds; what was there counts less.
    pub(super) fn add(&mut self, new: &Self, forget: f64) {
        for (sum, new) in self.counts.iter_mut().zip(&new.counts) {
            *sum = forget * *sum + new;
        }
    }

    /// How many latencies there are.
    pub fn total(&self) -> f64 {
        self.counts.iter().sum()
    }

    /// The latency below which a share of all are, with those of a bucket spread evenly over it; the last
    /// bound for what is above. It is not a number when there are none.
    pub fn quantile(&self, share: f64) -> f64 {
        let (mut left, mut low) = (share * self.total(), 0.0);
        if self.total() <= 0.0 {
            return f64::NAN;
        }
        for (bound, count) in self.bounds.iter().zip(&self.counts) {
            if left <= *count {
                return low + (bound - low) * left / count.max(f64::MIN_POSITIVE);
            }
            (left, low) = (left - count, *bound);
        }
        low
    }
}

fn numbers(all: impl Iterator<Item = f64>) -> Result<(), BadWindow> {
    let mut all = all;
    let sound = all.all(|number| number.is_finite() && number >= 0.0);
    sound.then_some(()).ok_or(BadWindow::Number)
}

impl Window {
    /// Checks that the window is one of a mesh of this calibration.
    pub(super) fn check(&self, calibration: &Calibration) -> Result<(), BadWindow> {
        let backends = calibration.services.len() - 1;
        let shape = self.tenants.len() == calibration.tenants.len()
            && self.services.len() == calibration.services.len()
            && self
                .tenants
                .iter()
                .all(|tenant| tenant.calls.len() == backends);
        if !shape {
            return Err(BadWindow::Shape);
        }
        if !(self.seconds.is_finite() && self.seconds > 0.0) {
            return Err(BadWindow::Number);
        }
        let tenants = self.tenants.iter().flat_map(TenantWindow::numbers);
        numbers(tenants.chain(self.services.iter().flat_map(ServiceWindow::numbers)))?;
        self.approvals.check()
    }
}

impl TenantWindow {
    fn numbers(&self) -> impl Iterator<Item = f64> {
        let Self {
            attempts,
            admitted,
            failures,
            retries,
            service_time_s,
            ..
        } = *self;
        let own = [attempts, admitted, failures, retries, service_time_s];
        own.into_iter().chain(self.calls.iter().copied())
    }

    pub(super) fn add(&mut self, new: &Self, forget: f64) {
        for (sum, new) in [
            (&mut self.attempts, new.attempts),
            (&mut self.admitted, new.admitted),
            (&mut self.failures, new.failures),
            (&mut self.retries, new.retries),
            (&mut self.service_time_s, new.service_time_s),
        ] {
            *sum = forget * *sum + new;
        }
        for (sum, new) in self.calls.iter_mut().zip(&new.calls) {
            *sum = forget * *sum + new;
        }
    }
}

impl ServiceWindow {
    fn numbers(&self) -> [f64; 6] {
        let Self {
            calls,
            time_s,
            time_squared,
            replicas,
            start_ups,
            start_up_s,
        } = *self;
        [calls, time_s, time_squared, replicas, start_ups, start_up_s]
    }

    /// The mean service time in s; 0 when there were no calls.
    pub(super) fn mean(&self) -> f64 {
        if self.calls > 0.0 {
            self.time_s / self.calls
        } else {
            0.0
        }
    }

    pub(super) fn add(&mut self, new: &Self, forget: f64) {
        let mut sums = self.numbers();
        for (sum, new) in sums.iter_mut().zip(new.numbers()) {
            *sum = forget * *sum + new;
        }
        let [calls, time_s, time_squared, _, start_ups, start_up_s] = sums;
        let replicas = new.replicas;
        *self = Self {
            calls,
            time_s,
            time_squared,
            replicas,
            start_ups,
            start_up_s,
        };
    }
}

impl Approvals {
    /// The counts, and then the sums of logarithms, which may be negative.
    fn numbers(&self) -> [f64; 9] {
        [
            self.proposals,
            self.bad,
            self.asked,
            self.good_answers,
            self.good_approvals,
            self.bad_answers,
            self.bad_approvals,
            self.log_time,
            self.log_time_squared,
        ]
    }

    fn check(&self) -> Result<(), BadWindow> {
        numbers(self.numbers()[..7].iter().copied())?;
        let finite = self.log_time.is_finite() && self.log_time_squared.is_finite();
        finite.then_some(()).ok_or(BadWindow::Number)
    }

    pub(super) fn add(&mut self, new: &Self, forget: f64) {
        let mut sums = self.numbers();
        for (sum, new) in sums.iter_mut().zip(new.numbers()) {
            *sum = forget * *sum + new;
        }
        let [
            proposals,
            bad,
            asked,
            good_answers,
            good_approvals,
            bad_answers,
            bad_approvals,
            log_time,
            log_time_squared,
        ] = sums;
        *self = Self {
            proposals,
            bad,
            asked,
            good_answers,
            good_approvals,
            bad_answers,
            bad_approvals,
            log_time,
            log_time_squared,
        };
    }
}
