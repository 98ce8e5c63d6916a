//! What has ended, by outcome, and how long it took. Proposals, trials and training runs are
//! measured alike.

use super::Metrics;
use crate::clock::Clock;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, histogram::Histogram},
};
use std::time::Duration;

/// From a training run of a test to a proposal that waits for its decision over a holiday.
const BUCKETS: [f64; 13] = [
    0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 14_400.0, 86_400.0, 604_800.0,
];

/// The outcomes are the final states of a state machine, so that they are bounded.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

/// Names of the two metrics of [`Outcomes`], with their help.
#[derive(Debug, Clone, Copy)]
pub struct OutcomeNames {
    /// The counter, without `_total`.
    pub ended: &'static str,
    /// The help of the counter.
    pub ended_help: &'static str,
    /// The histogram, in seconds.
    pub seconds: &'static str,
    /// The help of the histogram.
    pub seconds_help: &'static str,
}

/// Counts and times what has ended. Clones share the metrics.
#[derive(Debug, Clone)]
pub struct Outcomes {
    ended: Family<Outcome, Counter>,
    seconds: Family<Outcome, Histogram, fn() -> Histogram>,
}

impl Outcomes {
    /// Registers the metrics.
    pub fn new(metrics: &Metrics, names: OutcomeNames) -> Self {
        let seconds = Family::new_with_constructor((|| Histogram::new(BUCKETS)) as fn() -> _);
        Self {
            ended: metrics.register(names.ended, names.ended_help, Family::default()),
            seconds: metrics.register(names.seconds, names.seconds_help, seconds),
        }
    }

    /// Records that something which began at `began_us` has just ended with this outcome.
    pub fn record(&self, outcome: &'static str, began_us: i64, clock: &Clock) {
        let us = u64::try_from(clock.now_us().saturating_sub(began_us)).unwrap_or_default();
        let label = Outcome { outcome };
        self.ended.get_or_create(&label).inc();
        let seconds = Duration::from_micros(us).as_secs_f64();
        self.seconds.get_or_create(&label).observe(seconds);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_outcome_is_counted_and_timed_by_itself() {
        let (metrics, clock) = (Metrics::default(), Clock::manual(Duration::from_secs(100)));
        let outcomes = Outcomes::new(
            &metrics,
            OutcomeNames {
                ended: "trials_ended",
                ended_help: "Trials",
                seconds: "trial_duration_seconds",
                seconds_help: "Time",
            },
        );
        let began_us = clock.now_us();
        clock.advance(Duration::from_secs(7));
        outcomes.record("complete", began_us, &clock);
        outcomes.record("complete", began_us, &clock);
        // The clock was set back meanwhile.
        outcomes.record("failed", i64::MAX, &clock);
        let text = metrics.open_metrics().unwrap();
        for line in [
            "trials_ended_total{outcome=\"complete\"} 2",
            "trials_ended_total{outcome=\"failed\"} 1",
            "trial_duration_seconds_sum{outcome=\"complete\"} 14.0",
            "trial_duration_seconds_bucket{le=\"5.0\",outcome=\"complete\"} 0",
            "trial_duration_seconds_bucket{le=\"10.0\",outcome=\"complete\"} 2",
            "trial_duration_seconds_sum{outcome=\"failed\"} 0.0",
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
    }
}
