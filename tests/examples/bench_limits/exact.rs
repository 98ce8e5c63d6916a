//! How many calls pass when all replicas are tried at once.

use crate::replica::{Replica, limit};
use serde_json::{Value, json};
use std::sync::Arc;
use tars_interceptors::limits::{Limit, LimitName};
use tars_runtime::clock::Clock;
use tars_tests::{eventually, redis::Redis};

const TRIES: usize = 2048;
const REPLICAS: usize = 4;
/// Long enough for all tries, which are in flight at once.
const BUDGET_MS: u64 = 1000;

/// Four replicas of each of two kinds of process, each with a connection of its own.
async fn processes(redis: &Redis) -> Arc<Vec<Replica>> {
    let mut all = Vec::new();
    for n in 0..2 * REPLICAS {
        let group = ["auth", "orchestration"][n % 2];
        all.push(Replica::connected(redis, group, BUDGET_MS).await);
    }
    eventually("the replicas know of each other", || async {
        let known = |r: &Replica| (r.limiter.replicas(), r.limiter.processes());
        all.iter().all(|r| known(r) == (4, 8))
    })
    .await;
    Arc::new(all)
}

/// How many of the tries pass, all of them in flight at once.
async fn admitted(processes: &Arc<Vec<Replica>>, limit: Limit) -> usize {
    let tries: Vec<_> = (0..TRIES)
        .map(|n| {
            let all = Arc::clone(processes);
            tokio::spawn(async move { all[n % all.len()].decide(limit, "ada").await.passed() })
        })
        .collect();
    let mut admitted = 0;
    for passed in tries {
        admitted += usize::from(passed.await.expect("a decision does not panic"));
    }
    admitted
}

pub(crate) async fn run(redis: &Redis) -> Value {
    let processes = processes(redis).await;
    let limit = limit(LimitName::Auth, 100, 3600);
    json!({
        "limit": limit.calls,
        "admitted": admitted(&processes, limit).await,
        "tries": TRIES,
        "replicas": REPLICAS,
        "budget_ms": BUDGET_MS,
        "connections": processes.len(),
    })
}

/// What passes of a smoothed limit: a quarter of it at once, what becomes free meanwhile, and what the replicas
/// hold at most.
pub(crate) async fn volume(redis: &Redis) -> Value {
    let (processes, clock) = (processes(redis).await, Clock::system());
    let limit = limit(LimitName::User, 4000, 3600);
    let start = clock.monotonic();
    let admitted = admitted(&processes, limit).await;
    let lasted = clock.monotonic().since(start).as_secs_f64();
    let freed = lasted * f64::from(limit.calls) / limit.window.as_secs_f64();
    let held = limit.calls / 20;
    json!({
        "limit": limit.calls,
        "at_once": limit.calls / 4,
        "admitted": admitted,
        "bound": f64::from(limit.calls / 4 + held) + freed,
        "tries": TRIES,
    })
}
