//! The metrics of channels: calls by peer, method and code, retries, connections, and ejected addresses. A
//! peer is the identity that a channel expects of its server, so that the configuration bounds how many there
//! are; methods are those of the contract, and what is not in it counts as one.

use super::breaker::Phase;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
};
use std::sync::{Arc, OnceLock};
use tars_proto::{
    fault,
    table::{Outline, outlined},
};
use tars_runtime::metrics::{CALL_BUCKETS, Metrics};
use tokio::time::Instant;
use tonic::Code;

/// The method of calls that are not in the contract.
const OTHER: &str = "other";

/// The SPIFFE id that is expected of the server.
type Peer = Arc<str>;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PeerLabel {
    peer: Peer,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct MethodLabels {
    peer: Peer,
    method: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CallLabels {
    peer: Peer,
    method: &'static str,
    code: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    peer: Peer,
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StepLabels {
    peer: Peer,
    from: &'static str,
    to: &'static str,
}

fn histogram() -> Histogram {
    Histogram::new(CALL_BUCKETS)
}

/// The metrics of the channels of one process. Clones share them; those that are not registered are counted
/// for nobody.
#[derive(Debug, Clone, Default)]
pub struct ChannelMetrics(Arc<Families>);

#[derive(Debug)]
struct Families {
    calls: Family<CallLabels, Counter>,
    seconds: Family<MethodLabels, Histogram>,
    retries: Family<PeerLabel, Counter>,
    transparent_retries: Family<PeerLabel, Counter>,
    retries_refused: Family<ReasonLabels, Counter>,
    connections: Family<PeerLabel, Gauge>,
    opened: Family<PeerLabel, Counter>,
    failed: Family<ReasonLabels, Counter>,
    ejected: Family<PeerLabel, Gauge>,
    steps: Family<StepLabels, Counter>,
}

impl Default for Families {
    fn default() -> Self {
        Self {
            calls: Family::default(),
            seconds: Family::new_with_constructor(histogram as fn() -> Histogram),
            retries: Family::default(),
            transparent_retries: Family::default(),
            retries_refused: Family::default(),
            connections: Family::default(),
            opened: Family::default(),
            failed: Family::default(),
            ejected: Family::default(),
            steps: Family::default(),
        }
    }
}

impl ChannelMetrics {
    /// Registers the metrics.
    pub fn new(metrics: &Metrics) -> Self {
        let all = Families::default();
        all.register_calls(metrics);
        all.register_connections(metrics);
        Self(Arc::new(all))
    }

    /// Returns the metrics of a channel that expects `peer`.
    pub(super) fn of(&self, peer: &str) -> Arc<PeerMetrics> {
        let (all, peer) = (&self.0, Peer::from(peer));
        let label = PeerLabel {
            peer: Arc::clone(&peer),
        };
        Arc::new(PeerMetrics {
            retries: all.retries.get_or_create_owned(&label),
            transparent_retries: all.transparent_retries.get_or_create_owned(&label),
            connections: all.connections.get_or_create_owned(&label),
            opened: all.opened.get_or_create_owned(&label),
            ejected: all.ejected.get_or_create_owned(&label),
            methods: (0..=outlined()).map(|_| OnceLock::new()).collect(),
            families: self.clone(),
            peer,
        })
    }
}

impl Families {
    fn register_calls(&self, metrics: &Metrics) {
        metrics.register(
            "rpc_client_calls",
            "Calls to other services that have ended, by the identity of the server",
            self.calls.clone(),
        );
        metrics.register(
            "rpc_client_call_duration_seconds",
            "How long calls to other services took, retries included",
            self.seconds.clone(),
        );
        metrics.register(
            "rpc_client_retries",
            "How often a call that had failed was sent again",
            self.retries.clone(),
        );
        metrics.register(
            "rpc_client_transparent_retries",
            "How often a call that no server had processed was sent again",
            self.transparent_retries.clone(),
        );
        metrics.register(
            "rpc_client_retries_refused",
            "Failed calls that may be repeated and were not sent again, by reason",
            self.retries_refused.clone(),
        );
    }

    fn register_connections(&self, metrics: &Metrics) {
        metrics.register(
            "mesh_client_connections",
            "Open connections to other services, by the identity of the server",
            self.connections.clone(),
        );
        metrics.register(
            "mesh_client_connections_opened",
            "Connections to other services that were opened",
            self.opened.clone(),
        );
        metrics.register(
            "mesh_client_connections_failed",
            "Attempts to connect to another service that failed, by reason",
            self.failed.clone(),
        );
        metrics.register(
            "mesh_client_addresses_ejected",
            "Addresses of other services that get no calls because they fail",
            self.ejected.clone(),
        );
        metrics.register(
            "mesh_client_breaker_transitions",
            "Changes between closed, open and half-open of the breakers of addresses",
            self.steps.clone(),
        );
    }
}

/// The metrics of the channels to one peer. What a call needs is looked up by labels once.
#[derive(Debug)]
pub(super) struct PeerMetrics {
    peer: Peer,
    families: ChannelMetrics,
    pub(super) retries: Counter,
    pub(super) transparent_retries: Counter,
    connections: Gauge,
    pub(super) opened: Counter,
    pub(super) ejected: Gauge,
    /// By the position of the method's outline, with one more for methods without any: the metrics of
    /// successful calls.
    methods: Vec<OnceLock<(Counter, Histogram)>>,
}

impl PeerMetrics {
    /// Counts a call that may be repeated and is not.
    pub(super) fn refuse_retry(&self, reason: &'static str) {
        let labels = self.reason(reason);
        self.families.0.retries_refused.get_or_create(&labels).inc();
    }

    /// Counts an attempt to connect that failed.
    pub(super) fn fail(&self, reason: &'static str) {
        let labels = self.reason(reason);
        self.families.0.failed.get_or_create(&labels).inc();
    }

    /// Counts a change of a breaker.
    pub(super) fn step(&self, from: Phase, to: Phase) {
        let labels = StepLabels {
            peer: Arc::clone(&self.peer),
            from: from.label(),
            to: to.label(),
        };
        self.families.0.steps.get_or_create(&labels).inc();
    }

    /// Counts a connection until it is dropped.
    pub(super) fn open(&self) -> Open {
        self.connections.inc();
        Open(self.connections.clone())
    }

    fn reason(&self, reason: &'static str) -> ReasonLabels {
        let peer = Arc::clone(&self.peer);
        ReasonLabels { peer, reason }
    }

    fn record(&self, method: Option<&'static Outline>, code: Code, took: f64) {
        let at = method.map_or(self.methods.len() - 1, |method| method.index);
        let name = method.map_or(OTHER, |method| &method.path[1..]);
        let (ok, seconds) = self.methods[at].get_or_init(|| self.usual(name));
        seconds.observe(took);
        match code {
            Code::Ok => ok.inc(),
            _ => self
                .families
                .0
                .calls
                .get_or_create(&self.call(name, code))
                .inc(),
        };
    }

    fn usual(&self, method: &'static str) -> (Counter, Histogram) {
        let all = &self.families.0;
        let peer = Arc::clone(&self.peer);
        (
            all.calls.get_or_create_owned(&self.call(method, Code::Ok)),
            all.seconds
                .get_or_create_owned(&MethodLabels { peer, method }),
        )
    }

    fn call(&self, method: &'static str, code: Code) -> CallLabels {
        CallLabels {
            peer: Arc::clone(&self.peer),
            method,
            code: fault::code_name(code),
        }
    }
}

/// An open connection, counted until it is dropped.
#[derive(Debug)]
pub(super) struct Open(Gauge);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// A call that is counted when it ends. When it is dropped before, its caller has given it up.
#[derive(Debug)]
pub(super) struct Counted {
    metrics: Arc<PeerMetrics>,
    method: Option<&'static Outline>,
    began: Instant,
    ended: bool,
}

impl Counted {
    pub(super) fn new(
        metrics: &Arc<PeerMetrics>,
        method: Option<&'static Outline>,
        began: Instant,
    ) -> Self {
        Self {
            metrics: Arc::clone(metrics),
            method,
            began,
            ended: false,
        }
    }

    /// Counts the call, the first time.
    pub(super) fn end(&mut self, code: Code) {
        if !std::mem::replace(&mut self.ended, true) {
            let took = self.began.elapsed().as_secs_f64();
            self.metrics.record(self.method, code, took);
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.end(Code::Cancelled);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tars_proto::table::outline;

    fn counted() -> (Metrics, Arc<PeerMetrics>) {
        let registry = Metrics::default();
        let metrics = ChannelMetrics::new(&registry).of("spiffe://tars.local/auth");
        (registry, metrics)
    }

    fn value(registry: &Metrics, line: &str) -> Option<f64> {
        let text = registry.open_metrics().unwrap();
        let found = text.lines().find_map(|l| l.strip_prefix(line));
        found.map(|value| value.trim().parse().unwrap())
    }

    #[test]
    fn a_call_is_counted_once_with_the_code_that_it_ended_with_first() {
        let (registry, metrics) = counted();
        let method = outline("/tars.auth.v1.AuthService/GetMe");
        let begin = |method| Counted::new(&metrics, method, Instant::now());
        for code in [Code::Ok, Code::Ok, Code::NotFound] {
            let mut call = begin(method);
            call.end(code);
            call.end(Code::Internal);
        }
        drop(begin(method));
        begin(None).end(Code::Ok);
        let of = "peer=\"spiffe://tars.local/auth\",method=\"tars.auth.v1.AuthService/GetMe\"";
        for (code, times) in [("OK", 2.0), ("NOT_FOUND", 1.0), ("CANCELLED", 1.0)] {
            let line = format!("rpc_client_calls_total{{{of},code=\"{code}\"}}");
            assert_eq!(value(&registry, &line), Some(times), "{code}");
        }
        let line = format!("rpc_client_calls_total{{{of},code=\"INTERNAL\"}}");
        assert_eq!(value(&registry, &line), None);
        let line = format!("rpc_client_call_duration_seconds_count{{{of}}}");
        assert_eq!(value(&registry, &line), Some(4.0));
        let other = "peer=\"spiffe://tars.local/auth\",method=\"other\",code=\"OK\"";
        let line = format!("rpc_client_calls_total{{{other}}}");
        assert_eq!(value(&registry, &line), Some(1.0));
    }

    #[test]
    fn a_connection_is_counted_while_it_is_open() {
        let (registry, metrics) = counted();
        let line = "mesh_client_connections{peer=\"spiffe://tars.local/auth\"}";
        let open = [metrics.open(), metrics.open()];
        assert_eq!(value(&registry, line), Some(2.0));
        drop(open);
        assert_eq!(value(&registry, line), Some(0.0));
    }
}
