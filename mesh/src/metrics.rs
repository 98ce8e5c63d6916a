//! The metrics of connections.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
};
use std::sync::Arc;
use tars_runtime::metrics::Metrics;

/// A metric label.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Reason {
    /// Why something was refused or cut.
    pub reason: &'static str,
}

/// A metric label.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct KeyExchange {
    /// The key exchange group of a handshake.
    pub group: &'static str,
}

/// The connection metrics of one process. Clones share them.
#[derive(Debug, Clone)]
pub struct MeshMetrics(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    connections: Gauge,
    accepted: Counter,
    refused: Family<Reason, Counter>,
    handshakes: Family<KeyExchange, Counter>,
    cut: Family<Reason, Counter>,
    not_grpc: Family<Reason, Counter>,
    streams_cut: Family<Reason, Counter>,
}

impl MeshMetrics {
    /// Registers the metrics.
    pub fn new(metrics: &Metrics) -> Self {
        Self(Arc::new(Inner {
            connections: metrics.register(
                "mesh_connections",
                "Open server connections",
                Gauge::default(),
            ),
            accepted: metrics.register(
                "mesh_connections_accepted",
                "Accepted connections",
                Counter::default(),
            ),
            refused: metrics.register(
                "mesh_handshakes_refused",
                "Refused handshakes by reason",
                Family::default(),
            ),
            handshakes: metrics.register(
                "mesh_handshakes",
                "Handshakes by key exchange group",
                Family::default(),
            ),
            cut: metrics.register(
                "mesh_connections_cut",
                "Connections that were ended while they were in use, by reason",
                Family::default(),
            ),
            not_grpc: metrics.register(
                "mesh_requests_refused",
                "Requests that are not gRPC calls, by what is wrong",
                Family::default(),
            ),
            streams_cut: metrics.register(
                "mesh_streams_cut",
                "Streams that were reset while their peer read nothing, by reason",
                Family::default(),
            ),
        }))
    }

    pub(crate) fn refuse(&self, reason: &'static str) {
        self.0.refused.get_or_create(&Reason { reason }).inc();
    }

    pub(crate) fn record_handshake(&self, group: &'static str) {
        self.0
            .handshakes
            .get_or_create(&KeyExchange { group })
            .inc();
    }

    pub(crate) fn cut(&self, reason: &'static str) {
        self.0.cut.get_or_create(&Reason { reason }).inc();
    }

    pub(crate) fn refuse_request(&self, reason: &'static str) {
        self.0.not_grpc.get_or_create(&Reason { reason }).inc();
    }

    pub(crate) fn cut_stream(&self, reason: &'static str) {
        self.0.streams_cut.get_or_create(&Reason { reason }).inc();
    }

    pub(crate) fn connected(&self) -> Connected {
        self.0.accepted.inc();
        self.0.connections.inc();
        Connected(self.0.connections.clone())
    }
}

/// An open connection, counted until it is dropped.
#[derive(Debug)]
pub(crate) struct Connected(Gauge);

impl Drop for Connected {
    fn drop(&mut self) {
        self.0.dec();
    }
}
