//! Counts and times calls by method and code. The labels are bounded by the contract. What a service serves
//! is also recorded by window and caller, for models of the mesh.

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
use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock},
    time::Duration,
};
use tars_proto::{
    fault,
    table::{Method, MethodTable},
};
use tars_runtime::metrics::{
    CALL_BUCKETS, Metrics,
    calls::{CallOutcome, CallRecorder, EndedCall},
};
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
    /// By service, as the contract names it.
    recorders: BTreeMap<&'static str, CallRecorder>,
    /// The same by method index; `None` for methods that are not recorded.
    recorded: Vec<Option<CallRecorder>>,
}

fn histogram() -> Histogram {
    Histogram::new(CALL_BUCKETS)
}

impl CallMetrics {
    /// Registers the metrics.
    pub fn new(metrics: &Metrics) -> Self {
        let seconds = Family::new_with_constructor(histogram as fn() -> Histogram);
        let methods = contract().map_or(0, MethodTable::len);
        let recorders = recorders();
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
            recorded: recorded(&recorders),
            recorders,
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

    /// The record of the calls that this process serves as `service`; an empty one of a service that the
    /// contract does not have.
    pub fn recorder(&self, service: &str) -> CallRecorder {
        self.0.recorders.get(service).cloned().unwrap_or_default()
    }
}

impl Inner {
    /// Records a call for the models. A stream is none: how long it lasts is no service time.
    fn record(&self, call: &Call, code: Code, took: Duration) {
        let Some(recorder) = &self.recorded[call.method.index] else {
            return;
        };
        recorder.record(&EndedCall {
            tenant: call.owner(),
            outcome: outcome(call.refusal().is_some(), code),
            took,
            is_retry: call.is_retry(),
        });
    }

    fn ended(&self, call: &Call, code: Code, took: Duration) {
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
        usual.1.observe(took.as_secs_f64());
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

/// A recorder for each service of the contract.
fn recorders() -> BTreeMap<&'static str, CallRecorder> {
    let methods = contract().into_iter().flat_map(MethodTable::iter);
    let services = methods.filter_map(recorded_as);
    services
        .map(|service| (service, CallRecorder::default()))
        .collect()
}

/// The recorder of each method.
fn recorded(recorders: &BTreeMap<&str, CallRecorder>) -> Vec<Option<CallRecorder>> {
    let methods = contract().into_iter().flat_map(MethodTable::iter);
    let recorder = |method| recorders.get(recorded_as(method)?).cloned();
    methods.map(recorder).collect()
}

/// The service under which calls of a method are recorded.
fn recorded_as(method: &Method) -> Option<&str> {
    method.workload().filter(|_| !method.server_streaming)
}

fn outcome(is_refused: bool, code: Code) -> CallOutcome {
    match code {
        Code::ResourceExhausted | Code::Unavailable if is_refused => CallOutcome::Rejected,
        _ if is_refused => CallOutcome::Refused,
        Code::Cancelled
        | Code::Unknown
        | Code::DeadlineExceeded
        | Code::ResourceExhausted
        | Code::Internal
        | Code::Unavailable
        | Code::DataLoss => CallOutcome::Failed,
        _ => CallOutcome::Completed,
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
        // One reading of the clock for both.
        let took = self.call.started.elapsed();
        let metrics = &self.metrics.0;
        metrics.record(&self.call, code, took);
        metrics.ended(&self.call, code, took);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract;

    #[test]
    fn a_call_is_served_rejected_for_want_of_room_or_refused_by_a_check() {
        for (is_refused, code, expected) in [
            (false, Code::Ok, CallOutcome::Completed),
            (false, Code::NotFound, CallOutcome::Completed),
            (false, Code::Internal, CallOutcome::Failed),
            (false, Code::Cancelled, CallOutcome::Failed),
            (false, Code::ResourceExhausted, CallOutcome::Failed),
            (true, Code::ResourceExhausted, CallOutcome::Rejected),
            (true, Code::Unavailable, CallOutcome::Rejected),
            (true, Code::Unauthenticated, CallOutcome::Refused),
            (true, Code::PermissionDenied, CallOutcome::Refused),
        ] {
            assert_eq!(outcome(is_refused, code), expected, "{is_refused} {code:?}");
        }
    }

    #[test]
    fn every_method_that_is_no_stream_is_recorded_with_its_service() {
        let metrics = CallMetrics::new(&Metrics::default());
        for method in contract().unwrap().iter() {
            let recorded = metrics.0.recorded[method.index].is_some();
            let expected = method.workload().is_some() && !method.server_streaming;
            assert_eq!(recorded, expected, "{}", method.path);
        }
        let services: Vec<_> = metrics.0.recorders.keys().copied().collect();
        assert_eq!(services, ["auth", "automl", "hypersync", "orchestration"]);
    }
}
