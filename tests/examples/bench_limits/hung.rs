//! What a decision costs while the server hangs (SIGSTOP).

use crate::{
    Sizes,
    replica::{Replica, limit},
};
use serde_json::{Value, json};
use tars_interceptors::limits::LimitName;
use tars_search::quantile;
use tars_tests::{eventually, redis::Redis};

/// The default.
const BUDGET_MS: u64 = 5;

/// The milliseconds of each of so many decisions, which arrive one after another.
async fn decisions(replica: &Replica, count: u32) -> Vec<f64> {
    let limit = limit(LimitName::Auth, 100, 3600);
    let mut all = Vec::new();
    for n in 0..count {
        let who = (n / 8).to_string();
        let start = replica.clock.monotonic();
        replica.decide(limit, &who).await;
        let lasted = replica.clock.monotonic().since(start);
        all.push(lasted.as_secs_f64() * 1e3);
    }
    all
}

fn p99(sample: &[f64]) -> Option<f64> {
    let mut sorted = sample.to_vec();
    sorted.sort_by(f64::total_cmp);
    quantile::quantile(&sorted, 0.99)
}

pub(crate) async fn run(redis: &Redis, sizes: Sizes) -> Value {
    let replica = Replica::connected(redis, "hung", BUDGET_MS).await;
    let before = decisions(&replica, sizes.trips).await;
    redis.freeze();
    let late = decisions(&replica, 5).await;
    let after = decisions(&replica, sizes.trips).await;
    redis.thaw();
    eventually("the server is asked again", || async {
        replica.condition.outage().is_none()
    })
    .await;
    let again = decisions(&replica, sizes.trips).await;
    json!({
        "budget_ms": BUDGET_MS,
        "p99_ms_before": p99(&before),
        "most_ms_of_the_first_five": late.iter().copied().fold(0.0, f64::max),
        "p99_ms_after_these": p99(&after),
        "p99_ms_when_it_is_back": p99(&again),
    })
}
