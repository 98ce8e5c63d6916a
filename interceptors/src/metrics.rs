//! Counts and times calls by method and code. The labels are bounded by the contract.

use crate::{
    Call, contract,
    observe::{Observe, Watch},
    places::PlaceMetrics,
};
use http::Request;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
};
use std::sync::{Arc, OnceLock};
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

/// The reasons are those of the layers, so that they are bounded.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Refusal {
    reason: String,
}

/// The observer that measures calls; one per process. Clones share it.
#[derive(Debug, Clone)]
pub struct CallMetrics(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    handled: Family<Labels, Counter>,
    refused: Family<Refusal, Counter>,
    seconds: Family<MethodLabel, Histogram>,
    in_flight: Gauge,
    unrecorded: Counter,
    places: PlaceMetrics,
    /// By method index: the metrics of successful calls, without a lookup by labels.
    usual: Vec<OnceLock<(Counter, Histogram)>>,
}

/// The buckets of the RPC semantic conventions.
const BUCKETS: [f64; 14] = [
    0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
];

fn histogram() -> Histogram {
    Histogram::new(BUCKETS)
}

impl CallMetrics {
    /// Registers the metrics.
    pub fn new(metrics: &Metrics) -> Self {
        let seconds = Family::new_with_constructor(histogram as fn() -> Histogram);
        let methods = contract().map_or(0, tars_proto::table::MethodTable::len);
        Self(Arc::new(Inner {
            handled: metrics.register(
                "rpc_server_calls",
                "Calls that have ended",
                Family::default(),
            ),
            refused: metrics.register(
                "rpc_server_calls_refused",
                "Calls that were refused before their handler, by reason",
                Family::default(),
            ),
            seconds: metrics.register(
                "rpc_server_call_duration_seconds",
                "How long calls took",
                seconds,
            ),
            in_flight: metrics.register(
                "rpc_server_calls_in_flight",
                "Calls in flight",
                Gauge::default(),
            ),
            unrecorded: metrics.register(
                "audit_records_dropped",
                "Audit records of a low level for which the queue had no room",
                Counter::default(),
            ),
            places: PlaceMetrics::new(metrics),
            usual: (0..methods).map(|_| OnceLock::new()).collect(),
        }))
    }
}

impl CallMetrics {
    /// The counter of records that the audit layer could not queue.
    pub(crate) fn unrecorded(&self) -> Counter {
        self.0.unrecorded.clone()
    }

    pub(crate) fn places(&self) -> &PlaceMetrics {
        &self.0.places
    }
}

impl Inner {
    fn ended(&self, call: &Call, code: Code) {
        let method = &call.method.path[1..];
        let usual = self.usual[call.method.index].get_or_init(|| {
            let ok = Labels {
                method,
                code: fault::code_name(Code::Ok),
            };
            (
                self.handled.get_or_create(&ok).clone(),
                self.seconds.get_or_create(&MethodLabel { method }).clone(),
            )
        });
        if let Some(reason) = call.refusal() {
            let reason = reason.to_owned();
            self.refused.get_or_create(&Refusal { reason }).inc();
        }
        self.in_flight.dec();
        usual.1.observe(call.started.elapsed().as_secs_f64());
        if code == Code::Ok {
            usual.0.inc();
        } else {
            self.handled
                .get_or_create(&Labels {
                    method,
                    code: fault::code_name(code),
                })
                .inc();
        }
    }
}

impl Observe for CallMetrics {
    type Watch = MetricsWatch;

    fn begin<B>(&self, request: &mut Request<B>) -> Result<MetricsWatch, Status> {
        let call = Call::in_extensions(request.extensions());
        let call = call.ok_or_else(|| Status::internal("the call has no record"))?;
        self.0.in_flight.inc();
        Ok(MetricsWatch {
            metrics: self.clone(),
            call: Arc::clone(call),
        })
    }
}

/// Measures one call when it ends.
#[derive(Debug)]
pub struct MetricsWatch {
    metrics: CallMetrics,
    call: Arc<Call>,
}

impl Watch for MetricsWatch {
    fn end(self, code: Code) {
        self.metrics.0.ended(&self.call, code);
    }
}
