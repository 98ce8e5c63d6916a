//! Rate limits: one limiter of a process, which all of its services share.
//!
//! A call is charged once, where it enters the mesh: hops between workloads are charged to the INTERNAL
//! class only. It is charged to its class and, where its method names one, to a further budget, together
//! or not at all. What guards secrets and what strangers may call is counted exactly; volume is smoothed.

mod bounded;
mod breaker;
mod debts;
mod headers;
mod layer;
mod lease;
mod link;
mod local;
mod log;
mod logs;
mod plan;
mod present;
mod script;
mod shared;

pub(crate) use layer::RateLimitLayer;
pub use layer::{LimitFuture, RateLimit};
pub(crate) use local::Gcra;
pub use plan::{
    Charge, Charges, Each, FileError, Kind, Limit, LimitName, OverrideError, Plan, SizeError,
    Subject,
};

use crate::Call;
use arc_swap::ArcSwap;
use futures_util::future::BoxFuture;
use link::Replica;
use local::Local;
use present::Present;
use prometheus_client::metrics::counter::Counter;
use shared::Shared;
use std::{fmt, sync::Arc, time::Duration};
use tars_proto::fault;
use tars_runtime::{
    bus::Server,
    clock::{Clock, Monotonic},
    config::Limits,
    health::Condition,
    metrics::Metrics,
    seeds::Seeds,
};
use tonic::Status;

/// What a limit has left, in calls that may come at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decision {
    /// How many more calls may come at once now.
    pub remaining: u32,
    /// Time until as many are left as after a period without any.
    pub reset: Duration,
    /// Time until another call may pass; zero when this one passed.
    pub retry: Duration,
}

impl Decision {
    /// Returns whether the call may pass.
    pub fn passed(&self) -> bool {
        self.retry.is_zero()
    }
}

/// The decision about a call, with the limits that made it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// The limit of its class.
    pub class: (Limit, Decision),
    /// The further budget, where it was charged to one.
    pub budget: Option<(Limit, Decision)>,
}

impl Outcome {
    /// What is left is never more than the limit, whoever counts it: the whole, or the share of a process that decides
    /// by itself.
    fn of(limit: Limit, decision: Decision) -> Self {
        let remaining = decision.remaining.min(limit.at_once().0);
        Self {
            class: (
                limit,
                Decision {
                    remaining,
                    ..decision
                },
            ),
            budget: None,
        }
    }

    /// The call that another limit refuses is not charged to its class.
    fn give_back_class(&mut self) {
        let (limit, decision) = &mut self.class;
        decision.remaining = (decision.remaining + 1).min(limit.at_once().0);
    }

    /// Returns whether the call may pass.
    pub fn passed(&self) -> bool {
        self.refusal().is_none()
    }

    /// Adds what the site of an address has left: the address is told of the one that leaves less.
    fn with_site(mut self, site: Option<(Limit, Decision)>) -> Self {
        if let Some((limit, decision)) = site
            && self.class.1.passed()
            && (!decision.passed() || decision.remaining < self.class.1.remaining)
        {
            self.class = (limit, decision);
        }
        self
    }

    fn all(&self) -> impl Iterator<Item = &(Limit, Decision)> {
        std::iter::once(&self.class).chain(&self.budget)
    }

    /// The limit that refused the call.
    fn refusal(&self) -> Option<&(Limit, Decision)> {
        self.all().find(|(_, decision)| !decision.passed())
    }

    fn status(&self) -> Result<(), Status> {
        let Some((limit, decision)) = self.refusal() else {
            return Ok(());
        };
        let allowance = limit.to_string();
        let name = limit.name.as_str();
        Err(fault::rate_limited(name, &allowance, decision.retry))
    }
}

/// The decision about a call. What this process decides by itself is ready, and nothing is allocated
/// for it.
pub enum Charging {
    /// Decided.
    Ready(Outcome),
    /// To be decided elsewhere, within a bounded time.
    Remote(BoxFuture<'static, Outcome>),
}

impl Charging {
    /// Waits for the decision.
    pub async fn outcome(self) -> Outcome {
        match self {
            Self::Ready(outcome) => outcome,
            Self::Remote(outcome) => outcome.await,
        }
    }
}

impl fmt::Debug for Charging {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ready(outcome) => f.debug_tuple("Ready").field(outcome).finish(),
            Self::Remote(_) => f.write_str("Remote"),
        }
    }
}

/// The rate limiter of a process. Clones share its budgets.
#[derive(Debug, Clone)]
pub struct RateLimiter(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    plan: ArcSwap<Plan>,
    local: Arc<Local>,
    /// What is counted together with other replicas.
    shared: Option<Arc<Shared>>,
    clock: Clock,
}

/// What a limiter needs that counts together with those of other replicas.
#[derive(Debug)]
pub struct Over<'a> {
    /// The limits of the configuration.
    pub limits: &'a Limits,
    /// The clock of the process.
    pub clock: Clock,
    /// The Redis server that they share.
    pub server: Server,
    /// The services of this process: replicas are the processes that have the same.
    pub group: String,
    /// How many such groups a mesh has at most, as long as Redis has not told how many processes there are.
    pub groups: u32,
    /// What is wrong with the server.
    pub condition: Condition,
    /// The metrics of the process.
    pub metrics: &'a Metrics,
    /// The jitter between two attempts to connect.
    pub seeds: Seeds,
}

impl RateLimiter {
    /// Creates a limiter with full budgets, which counts by itself.
    pub fn new(limits: &Limits, clock: Clock) -> Self {
        Self(Arc::new(Inner {
            plan: ArcSwap::from_pointee(Plan::new(limits)),
            local: Arc::new(Local::new()),
            shared: None,
            clock,
        }))
    }

    /// Creates a limiter that counts together with others, and the work that keeps it connected, which the
    /// caller runs for the lifetime of the process. Until it is connected it counts by itself.
    pub fn over(over: Over<'_>) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let Over {
            limits,
            clock,
            server,
            group,
            groups,
            condition,
            metrics,
            seeds,
        } = over;
        let local = Arc::new(Local::new());
        let alone = metrics.register(
            "rate_limit_alone",
            "Decisions about limits that a replica made by itself, as Redis was late or out of reach",
            Counter::default(),
        );
        let present = Present::new(limits.replicas, groups);
        let budget = Duration::from_millis(limits.redis_budget_ms);
        let shared = Shared::new(
            server,
            Arc::clone(&local),
            clock.clone(),
            present,
            budget,
            alone,
        );
        let shared = Arc::new(shared);
        let name = uuid::Uuid::now_v7().to_string();
        let work = link::run(
            Arc::clone(&shared),
            Replica { group, name },
            condition,
            seeds,
        );
        let inner = Inner {
            plan: ArcSwap::from_pointee(Plan::new(limits)),
            local,
            shared: Some(shared),
            clock,
        };
        (Self(Arc::new(inner)), work)
    }

    /// How many replicas of this process there are, as far as is known; 1 for a limiter that counts by itself.
    pub fn replicas(&self) -> u32 {
        let shared = self.0.shared.as_ref();
        shared.map_or(1, |shared| shared.present.replicas())
    }

    /// The same of all processes that count together.
    pub fn processes(&self) -> u32 {
        let shared = self.0.shared.as_ref();
        shared.map_or(1, |shared| shared.present.processes())
    }

    /// Puts other limits in force. What was counted before is kept.
    pub fn replace(&self, plan: Plan) {
        self.0.plan.store(Arc::new(plan));
    }

    /// The limits in force.
    pub fn plan(&self) -> Arc<Plan> {
        self.0.plan.load_full()
    }

    fn clock(&self) -> &Clock {
        &self.0.clock
    }

    fn charge_call(&self, call: &Call) -> Charging {
        let plan = self.0.plan.load();
        self.charge(&plan.charges(call), call.arrived)
    }

    /// Charges a call that arrives at `now` to all of its limits, or to none.
    pub fn charge(&self, charges: &Charges<'_>, now: Monotonic) -> Charging {
        match &self.0.shared {
            None => Charging::Ready(self.0.local.charge(charges, now)),
            Some(shared) => shared.charge(charges, now),
        }
    }
}

#[cfg(test)]
mod tests;
