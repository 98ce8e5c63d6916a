//! Counts and times calls by method and code. Labels are bounded: a method is one of the contract.

use crate::{
    Call,
    observe::{Observe, Watch},
};
use http::Request;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
};
use std::sync::Arc;
use tars_proto::fault;
use tars_runtime::metrics::Metrics;
use tonic::{Code, Status};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    method: &'static str,
    code: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct MethodLabel {
    method: &'static str,
}

#[derive(Debug, Clone)]
pub struct CallMetrics {
    handled: Family<Labels, Counter>,
    seconds: Family<MethodLabel, Histogram>,
    in_flight: Gauge,
}

/// The buckets of the RPC semantic conventions.
const BUCKETS: [f64; 14] = [
    0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
];

fn histogram() -> Histogram {
    Histogram::new(BUCKETS)
}

impl CallMetrics {
    pub fn new(metrics: &Metrics) -> Self {
        let seconds = Family::new_with_constructor(histogram as fn() -> Histogram);
        Self {
            handled: metrics.register(
                "rpc_server_calls",
                "Calls that have ended",
                Family::default(),
            ),
            seconds: metrics.register(
                "rpc_server_call_duration_seconds",
                "How long calls took",
                seconds,
            ),
            in_flight: metrics.register(
                "rpc_server_calls_in_flight",
                "Calls going on",
                Gauge::default(),
            ),
        }
    }
}

impl Observe for CallMetrics {
    type Watch = MetricsWatch;

    fn begin<B>(&self, request: &mut Request<B>) -> Result<MetricsWatch, Status> {
        let call = Call::in_extensions(request.extensions());
        let call = call.ok_or_else(|| Status::internal("the call has no record"))?;
        self.in_flight.inc();
        Ok(MetricsWatch {
            metrics: self.clone(),
            call: Arc::clone(call),
        })
    }
}

#[derive(Debug)]
pub struct MetricsWatch {
    metrics: CallMetrics,
    call: Arc<Call>,
}

impl Watch for MetricsWatch {
    fn end(self, code: Code) {
        let method = &self.call.method.path[1..];
        self.metrics.in_flight.dec();
        self.metrics
            .handled
            .get_or_create(&Labels {
                method,
                code: fault::code_name(code),
            })
            .inc();
        let seconds = self.call.started.elapsed().as_secs_f64();
        self.metrics
            .seconds
            .get_or_create(&MethodLabel { method })
            .observe(seconds);
    }
}
