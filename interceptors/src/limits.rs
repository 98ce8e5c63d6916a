//! Rate limits by class: one limiter of a process, which all of its services share. A call is charged
//! once, where it enters the mesh: hops between workloads are charged to the INTERNAL class only.

mod layer;
mod local;

pub(crate) use layer::RateLimitLayer;
pub use layer::{LimitFuture, RateLimit};
pub(crate) use local::{Decision, Gcra};

use crate::Call;
use futures_util::future::BoxFuture;
use local::SlidingLog;
use std::{fmt, sync::Arc, time::Duration};
use tars_certs::PeerClass;
use tars_proto::table::RateClass;
use tars_runtime::{clock::Clock, config::Limits, network::bucket};

const MINUTE: Duration = Duration::from_secs(60);

/// The rate limiter of a process. Clones share its budgets.
#[derive(Debug, Clone)]
pub struct RateLimiter(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    auth: SlidingLog,
    public: Gcra,
    user: Gcra,
    internal: Gcra,
    clock: Clock,
}

/// The decision about a call. What this process decides by itself is ready, and nothing is allocated
/// for it.
pub(crate) enum Charge {
    /// Decided.
    Ready(Decision),
    /// To be decided elsewhere.
    #[expect(dead_code, reason = "every limit is counted in process so far")]
    Remote(BoxFuture<'static, Decision>),
}

impl fmt::Debug for Charge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ready(decision) => f.debug_tuple("Ready").field(decision).finish(),
            Self::Remote(_) => f.write_str("Remote"),
        }
    }
}

impl RateLimiter {
    /// Creates a limiter with full budgets.
    pub fn new(limits: &Limits, clock: Clock) -> Self {
        Self(Arc::new(Inner {
            auth: SlidingLog::new(limits.auth_per_minute, MINUTE),
            public: Gcra::new(limits.public_per_minute, MINUTE),
            user: Gcra::new(limits.user_per_minute, MINUTE),
            internal: Gcra::new(limits.internal_per_second, Duration::from_secs(1)),
            clock,
        }))
    }

    fn clock(&self) -> &Clock {
        &self.0.clock
    }

    fn charge(&self, call: &Call) -> Charge {
        Charge::Ready(self.decide(call))
    }

    fn decide(&self, call: &Call) -> Decision {
        let now = call.arrived;
        match class_of(call) {
            RateClass::Auth => self.0.auth.take(bucket(call.client), now),
            RateClass::Public => self.0.public.take(bucket(call.client), now),
            RateClass::User => self.0.user.take(call.owner(), now),
            RateClass::Internal => self.0.internal.take(call.peer.name(), now),
        }
    }
}

/// A workload that forwards a caller's call has already charged the caller.
fn class_of(call: &Call) -> RateClass {
    let hop = call
        .peer
        .class
        .is_some_and(|c| c.is_workload() && c != PeerClass::Gateway);
    if hop {
        RateClass::Internal
    } else {
        call.method.rule.rate
    }
}

fn class_name(class: RateClass) -> &'static str {
    match class {
        RateClass::Auth => "auth",
        RateClass::Public => "public",
        RateClass::User => "user",
        RateClass::Internal => "internal",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{ME, by_credential};

    #[test]
    fn keys_share_the_limit_of_their_owner() {
        let limits = Limits {
            user_per_minute: 8,
            ..Limits::default()
        };
        let limits = RateLimiter::new(&limits, Clock::manual(Duration::from_secs(1)));
        let passes = |user: &str, label: &str| {
            let call = by_credential(ME, "/gateway", user, label);
            limits.decide(&call).passed()
        };
        assert!(passes("ada", "key:1") && passes("ada", "key:2"));
        assert!(!passes("ada", "key:3") && !passes("ada", "user:ada"));
        assert!(passes("bob", "user:bob"));
    }
}
