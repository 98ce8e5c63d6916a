//! The layers in their order, as one service.

use crate::{
    audit::Audit,
    authenticate::{Authenticate, Failures},
    authorise::Authorise,
    check::{CheckLayer, Checked},
    deadline::{Deadline, DeadlineLayer},
    drain::{Drain, StreamEnds},
    flood::FloodGuard,
    metrics::CallMetrics,
    observe::{ObserveLayer, Observed},
    panic::{CatchPanic, PanicLayer},
    peer_policy::PeerPolicy,
    policy::PolicyHandle,
    rate_limit::{RateLimit, RateLimitLayer, RateLimits},
    shed::Shed,
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
    pub config: &'a Config,
    pub view: View,
    pub clock: Clock,
    pub tracer: Tracer,
    pub call_metrics: CallMetrics,
    pub failures: Failures,
    pub audit: mpsc::Sender<Record>,
    pub policy: PolicyHandle,
    pub stop: CancellationToken,
}

/// Everything around a service's handlers.
#[derive(Debug, Clone)]
pub struct Stack {
    trace: Trace,
    metrics: CallMetrics,
    audit: Audit,
    shed: Shed,
    peers: PeerPolicy,
    flood: FloodGuard,
    authenticate: Authenticate,
    limits: RateLimits,
    drain: Arc<StreamEnds>,
}

type Checks<S> = Checked<
    Checked<Checked<Checked<RateLimit<S>, Authorise>, Authenticate>, FloodGuard>,
    PeerPolicy,
>;

pub type Stacked<S> = Observed<
    Observed<Observed<Observed<CatchPanic<Deadline<Drain<Checks<S>>>>, Shed>, Audit>, CallMetrics>,
    Trace,
>;

impl Stack {
    pub fn new(options: StackOptions<'_>) -> Self {
        let StackOptions {
            service,
            config,
            view,
            clock,
            tracer,
            call_metrics,
            failures,
            audit,
            policy,
            stop,
        } = options;
        let stale = Duration::from_secs(config.credentials.stale_after_seconds);
        let drain_view = view.clone();
        Self {
            trace: Trace { tracer },
            metrics: call_metrics.clone(),
            audit: Audit::new(service, clock.clone(), audit, call_metrics.unrecorded()),
            shed: Shed::new(config.connections.max_in_flight),
            peers: PeerPolicy(policy.clone()),
            flood: FloodGuard::new(config.limits.flood_per_second, clock.clone()),
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
        let checks = CheckLayer(Authorise).layer(checks);
        let checks = CheckLayer(self.authenticate.clone()).layer(checks);
        let checks = CheckLayer(self.flood.clone()).layer(checks);
        let checks = CheckLayer(self.peers.clone()).layer(checks);
        let core =
            PanicLayer.layer(DeadlineLayer.layer(Drain::new(checks, Arc::clone(&self.drain))));
        let observed = ObserveLayer(self.shed.clone()).layer(core);
        let observed = ObserveLayer(self.audit.clone()).layer(observed);
        let observed = ObserveLayer(self.metrics.clone()).layer(observed);
        ObserveLayer(self.trace.clone()).layer(observed)
    }
}
