//! What the mesh counts about connections.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
};
use tars_runtime::metrics::Metrics;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Reason {
    pub reason: &'static str,
}

#[derive(Debug, Clone)]
pub struct MeshMetrics {
    pub connections: Gauge,
    pub accepted: Counter,
    pub refused: Family<Reason, Counter>,
}

impl MeshMetrics {
    pub fn new(metrics: &Metrics) -> Self {
        Self {
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
        }
    }

    pub fn refuse(&self, reason: &'static str) {
        self.refused.get_or_create(&Reason { reason }).inc();
    }
}
