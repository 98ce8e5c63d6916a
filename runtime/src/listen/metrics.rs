//! The metrics of a listener: open connections, refusals, and cuts.

use crate::metrics::Metrics;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Listener {
    listener: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Cause {
    listener: &'static str,
    reason: &'static str,
}

/// The metric families of all listeners of a process.
#[derive(Debug, Clone)]
pub struct ListenerMetrics {
    open: Family<Listener, Gauge>,
    refused: Family<Cause, Counter>,
    cut: Family<Cause, Counter>,
}

impl ListenerMetrics {
    /// Registers the metrics.
    pub fn new(metrics: &Metrics) -> Self {
        Self {
            open: metrics.register(
                "listener_connections",
                "Open connections by listener",
                Family::default(),
            ),
            refused: metrics.register(
                "listener_connections_refused",
                "Connections that were not let in, by listener and reason",
                Family::default(),
            ),
            cut: metrics.register(
                "listener_connections_cut",
                "Connections whose peer was too slow or silent, or that made way, by listener and reason",
                Family::default(),
            ),
        }
    }

    /// Returns the metrics of one listener.
    pub fn of(&self, listener: &'static str) -> PortMetrics {
        PortMetrics {
            families: self.clone(),
            listener,
        }
    }
}

/// The metrics of one listener. Every label value is a constant of this program.
#[derive(Debug, Clone)]
pub struct PortMetrics {
    families: ListenerMetrics,
    listener: &'static str,
}

impl PortMetrics {
    pub(super) fn listener(&self) -> &'static str {
        self.listener
    }

    /// Counts a connection that was not let in.
    pub fn refuse(&self, reason: &'static str) {
        let cause = self.cause(reason);
        self.families.refused.get_or_create(&cause).inc();
    }

    /// Counts a connection that was ended from this side.
    pub fn cut(&self, reason: &'static str) {
        self.cut_counter(reason).inc();
    }

    pub(super) fn cut_counter(&self, reason: &'static str) -> Counter {
        self.families.cut.get_or_create_owned(&self.cause(reason))
    }

    /// Counts an open connection until the guard is dropped.
    pub fn connected(&self) -> Connected {
        let listener = self.listener;
        let open = self
            .families
            .open
            .get_or_create_owned(&Listener { listener });
        open.inc();
        Connected(open)
    }

    fn cause(&self, reason: &'static str) -> Cause {
        Cause {
            listener: self.listener,
            reason,
        }
    }
}

/// An open connection, counted until it is dropped.
#[derive(Debug)]
pub struct Connected(Gauge);

impl Drop for Connected {
    fn drop(&mut self) {
        self.0.dec();
    }
}
