//! The layers in their order, as one service.

use crate::{
    audit::Audit,
    authenticate::{Authenticate, Failures},
    check::{CheckLayer, Checked},
    compress::{Compress, CompressLayer},
    deadline::{Deadline, DeadlineLayer},
    decide::{Admit, Authorise},
    flood::FloodGuard,
    limits::{RateLimit, RateLimitLayer, RateLimiter},
    metrics::CallMetrics,
    observe::{ObserveLayer, Observed},
    overload::Overload,
    panic::{CatchPanic, PanicLayer},
    places::Places,
    policy::PolicyHandle,
    served::Served,
    stream_guard::{StreamConditions, StreamGuard},
    trace::Trace,
    usage::{Counted, Usage, UsageLayer},
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
    /// The service's name, for audit records.
    pub service: &'a str,
    /// The name under which places are counted: a service may have two listeners.
    pub listener: &'a str,
    /// The effective configuration.
    pub config: &'a Config,
    /// The credentials that are currently valid.
    pub view: View,
    /// The clock of the process.
    pub clock: Clock,
    /// The tracer of the service.
    pub tracer: Tracer,
    /// The call metrics of the process.
    pub call_metrics: CallMetrics,
    /// The counter of refused credentials of the process.
    pub failures: Failures,
    /// The queue of audit records.
    pub audit: mpsc::Sender<Record>,
    /// The peer policy of the process.
    pub policy: PolicyHandle,
    /// The rate limiter of the process.
    pub limiter: RateLimiter,
    /// The limit on the calls in flight of the process.
    pub overload: Overload,
    /// What the callers of the service use.
    pub usage: Usage,
    /// The methods that the listener serves.
    pub served: Served,
    /// Cancelled when the service takes no more calls: the streams that workloads follow end.
    pub stop: CancellationToken,
    /// Cancelled some time later: all other streams end.
    pub end_streams: CancellationToken,
}

/// The layers around the handlers of one service.
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
    limiter: RateLimiter,
    usage: Usage,
    guard: Arc<StreamConditions>,
    open: Duration,
    compress: CompressLayer,
}

type Limited<S> = RateLimit<Counted<Compress<S>>>;
type Checks<S> = Checked<Limited<S>, (Admit, Served, Authenticate, Authorise, Places)>;
type Begun<S> = Checked<Deadline<StreamGuard<Checks<S>>>, FloodGuard>;

/// A service inside all layers.
pub type Stacked<S> =
    Observed<Observed<Observed<Observed<CatchPanic<Begun<S>>, Places>, Audit>, CallMetrics>, Trace>;

impl Stack {
    /// Creates the layers of one service.
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
            limiter,
            overload,
            usage,
            served,
            stop,
            end_streams,
        } = options;
        let stale = Duration::from_secs(config.credentials.stale_after_seconds);
        let guard_view = view.clone();
        Self {
            trace: Trace {
                tracer,
                clock: clock.clone(),
            },
            places: Places::new(listener, config, call_metrics.places(), overload),
            metrics: call_metrics.clone(),
            served,
            open: Duration::from_secs(config.connections.open_seconds),
            compress: CompressLayer {
                max: config.connections.max_message_bytes,
            },
            audit: Audit::new(service, clock.clone(), audit, call_metrics.unrecorded()),
            policy: policy.clone(),
            flood: FloodGuard::new(&config.limits),
            authenticate: Authenticate::new(view, clock.clone(), stale, failures),
            limiter,
            usage,
            guard: Arc::new(StreamConditions {
                stop,
                end_streams,
                policy,
                view: guard_view,
                clock,
            }),
        }
    }
}

impl<S> Layer<S> for Stack {
    type Service = Stacked<S>;

    fn layer(&self, inner: S) -> Stacked<S> {
        let inner = self.compress.layer(inner);
        let checks = UsageLayer(self.usage.clone()).layer(inner);
        let checks = RateLimitLayer(self.limiter.clone()).layer(checks);
        let in_order = (
            Admit(self.policy.clone()),
            self.served.clone(),
            self.authenticate.clone(),
            Authorise(self.policy.clone()),
            self.places.clone(),
        );
        let checks = CheckLayer(in_order).layer(checks);
        let guarded = StreamGuard::new(checks, Arc::clone(&self.guard));
        let timed = DeadlineLayer { open: self.open }.layer(guarded);
        // Before anything else that refuses, so that no refusal is free.
        let counted = CheckLayer(self.flood.clone()).layer(timed);
        let core = PanicLayer.layer(counted);
        let observed = ObserveLayer(self.places.clone()).layer(core);
        let observed = ObserveLayer(self.audit.clone()).layer(observed);
        let observed = ObserveLayer(self.metrics.clone()).layer(observed);
        ObserveLayer(self.trace.clone()).layer(observed)
    }
}
