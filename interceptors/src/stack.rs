//! The layers in their order, as one service.

use crate::{
    audit::Audit,
    authenticate::{Authenticate, Failures},
    check::{CheckLayer, Checked},
    deadline::{Deadline, DeadlineLayer},
    decide::{Admit, Authorise},
    drain::{Drain, StreamEnds},
    flood::FloodGuard,
    metrics::CallMetrics,
    observe::{ObserveLayer, Observed},
    panic::{CatchPanic, PanicLayer},
    places::Places,
    policy::PolicyHandle,
    rate_limit::{RateLimit, RateLimitLayer, RateLimits},
    served::Served,
    trace::Trace,
};
use std::{sync::Arc, time::Duration};
use tars_credentials::View;
use tars_runtime::{audit::Record, clock::Clock, config::Config, trace::Tracer};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tower_layer::Layer;

/// What the layers of one service need.
#[derive(Debug)]
pub struct StackOptions<'a> {
    pub service: &'a str,
    /// Whose places it has: a service may listen twice.
    pub listener: &'a str,
    pub config: &'a Config,
    pub view: View,
    pub clock: Clock,
    pub tracer: Tracer,
    pub call_metrics: CallMetrics,
    pub failures: Failures,
    pub audit: mpsc::Sender<Record>,
    pub policy: PolicyHandle,
    /// What the listener serves of the contract.
    pub served: Served,
    pub stop: CancellationToken,
}

/// Everything around a service's handlers.
#[derive(Debug, Clone)]
pub struct Stack {
    trace: Trace,
    metrics: CallMetrics,
    audit: Audit,
    places: Places,
    served: Served,
    policy: PolicyHandle,
    flood: FloodGuard,
    authenticate: Authenticate,
    limits: RateLimits,
    drain: Arc<StreamEnds>,
    open: Duration,
}

type Known<S> = Checked<Checked<Checked<RateLimit<S>, Places>, Authorise>, Authenticate>;
type Checks<S> = Checked<Checked<Checked<Known<S>, FloodGuard>, Served>, Admit>;

pub type Stacked<S> = Observed<
    Observed<
        Observed<Observed<CatchPanic<Deadline<Drain<Checks<S>>>>, Places>, Audit>,
        CallMetrics,
    >,
    Trace,
>;

impl Stack {
    pub fn new(options: StackOptions<'_>) -> Self {
        let StackOptions {
            service,
            listener,
            config,
            view,
            clock,
            tracer,
            call_metrics,
            failures,
            audit,
            policy,
            served,
            stop,
        } = options;
        let stale = Duration::from_secs(config.credentials.stale_after_seconds);
        let drain_view = view.clone();
        Self {
            trace: Trace {
                tracer,
                clock: clock.clone(),
            },
            places: Places::new(listener, config, call_metrics.places()),
            metrics: call_metrics.clone(),
            served,
            open: Duration::from_secs(config.connections.open_seconds),
            audit: Audit::new(service, clock.clone(), audit, call_metrics.unrecorded()),
            policy: policy.clone(),
            flood: FloodGuard::new(config.limits.flood_per_second),
            authenticate: Authenticate::new(view, clock.clone(), stale, failures),
            limits: RateLimits::new(&config.limits, clock.clone()),
            drain: Arc::new(StreamEnds {
                stop,
                policy,
                view: drain_view,
                clock,
            }),
        }
    }
}

impl<S> Layer<S> for Stack {
    type Service = Stacked<S>;

    fn layer(&self, inner: S) -> Stacked<S> {
        let checks = RateLimitLayer(self.limits.clone()).layer(inner);
        let checks = CheckLayer(self.places.clone()).layer(checks);
        let checks = CheckLayer(Authorise(self.policy.clone())).layer(checks);
        let checks = CheckLayer(self.authenticate.clone()).layer(checks);
        let checks = CheckLayer(self.flood.clone()).layer(checks);
        let checks = CheckLayer(self.served.clone()).layer(checks);
        let checks = CheckLayer(Admit(self.policy.clone())).layer(checks);
        let deadline = DeadlineLayer { open: self.open };
        let core = PanicLayer.layer(deadline.layer(Drain::new(checks, Arc::clone(&self.drain))));
        let observed = ObserveLayer(self.places.clone()).layer(core);
        let observed = ObserveLayer(self.audit.clone()).layer(observed);
        let observed = ObserveLayer(self.metrics.clone()).layer(observed);
        ObserveLayer(self.trace.clone()).layer(observed)
    }
}
