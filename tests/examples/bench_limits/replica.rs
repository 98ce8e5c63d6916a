//! A limiter over the server, and its work.

use tars_interceptors::limits::{
    Charge, Charges, Limit, LimitName, Outcome, Over, RateLimiter, Subject,
};
use tars_runtime::{
    bus::Server, clock::Clock, config::Limits, health::Condition, metrics::Metrics, seeds::Seeds,
};
use tars_tests::{eventually, redis::Redis};
use tokio_util::task::AbortOnDropHandle;

pub(crate) struct Replica {
    pub(crate) limiter: RateLimiter,
    pub(crate) clock: Clock,
    pub(crate) condition: Condition,
    _work: AbortOnDropHandle<()>,
}

pub(crate) fn server(redis: &Redis) -> Server {
    let server = Server::of(&redis.settings(), None).expect("settings of a test server");
    server.expect("the settings name a server")
}

impl Replica {
    /// A limiter that is connected, of the replicas that are called `group`. A decision is late after so many
    /// milliseconds.
    pub(crate) async fn connected(redis: &Redis, group: &str, budget_ms: u64) -> Self {
        let clock = Clock::system();
        let condition = Condition::new(clock.clone());
        condition.record_failure("not yet connected");
        let (limiter, work) = RateLimiter::over(Over {
            limits: &Limits {
                redis_budget_ms: budget_ms,
                ..Limits::default()
            },
            clock: clock.clone(),
            server: server(redis),
            group: group.to_owned(),
            groups: 1,
            condition: condition.clone(),
            metrics: &Metrics::default(),
            seeds: Seeds::system(),
        });
        let replica = Self {
            limiter,
            clock,
            condition,
            _work: AbortOnDropHandle::new(tokio::spawn(work)),
        };
        eventually("the limiter is connected", || async {
            replica.condition.outage().is_none()
        })
        .await;
        replica
    }

    pub(crate) async fn decide(&self, limit: Limit, who: &str) -> Outcome {
        let charging = self
            .limiter
            .charge(&charges(limit, who), self.clock.monotonic());
        charging.outcome().await
    }
}

pub(crate) fn charges(limit: Limit, who: &str) -> Charges<'_> {
    let subject = Subject::Name(who);
    Charges {
        class: Charge { limit, subject },
        site: None,
        budget: None,
    }
}

pub(crate) const fn limit(name: LimitName, calls: u32, seconds: u64) -> Limit {
    Limit::new(name, calls, std::time::Duration::from_secs(seconds))
}
