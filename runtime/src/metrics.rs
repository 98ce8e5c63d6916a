//! The metrics of the process in two formats: OpenMetrics, and the older text format of Prometheus. A
//! scraper that names neither gets the older one, which all of them can parse.

pub mod calls;
mod outcomes;
mod text;

pub use outcomes::{OutcomeNames, Outcomes};

use parking_lot::Mutex;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder, text::encode},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
    registry::{Metric, Registry},
};
use std::{fmt, sync::Arc};

/// The buckets of how long calls take, in seconds: those of the RPC semantic conventions.
pub const CALL_BUCKETS: [f64; 14] = [
    0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
];

/// The metrics of one process. Clones share the registry.
#[derive(Clone)]
pub struct Metrics(Arc<Inner>);

struct Inner {
    registry: Mutex<Registry>,
    measured: Measured,
}

/// Reads a value at the moment of a scrape.
enum Measure {
    /// `None` leaves it out.
    Gauge(Box<dyn Fn() -> Option<f64> + Send + Sync>),
    Counter(Box<dyn Fn() -> u64 + Send + Sync>),
}

impl Measure {
    fn kind(&self) -> MetricType {
        match self {
            Self::Gauge(_) => MetricType::Gauge,
            Self::Counter(_) => MetricType::Counter,
        }
    }

    fn encode(&self, encoder: MetricEncoder<'_>) -> Result<(), fmt::Error> {
        match self {
            Self::Gauge(value) => match value() {
                Some(value) => ConstGauge::new(value).encode(encoder),
                None => Ok(()),
            },
            Self::Counter(value) => ConstCounter::new(value()).encode(encoder),
        }
    }
}

impl Default for Metrics {
    fn default() -> Self {
        let measured = Measured::default();
        let mut registry = Registry::default();
        registry.register_collector(Box::new(measured.clone()));
        Self(Arc::new(Inner {
            registry: Mutex::new(registry),
            measured,
        }))
    }
}

impl Metrics {
    /// Registers a metric and returns it.
    pub fn register<M: Metric + Clone>(&self, name: &str, help: &str, metric: M) -> M {
        let mut registry = self.0.registry.lock();
        registry.register(name, help, metric.clone());
        metric
    }

    /// Registers a gauge of one service whose value is measured at each scrape.
    pub fn measure(
        &self,
        name: &'static str,
        help: &'static str,
        service: &'static str,
        value: impl Fn() -> Option<f64> + Send + Sync + 'static,
    ) {
        let measure = Measure::Gauge(Box::new(value));
        self.0.measured.add(name, help, (service, measure));
    }

    /// Registers a counter of one service whose value is read at each scrape. It never falls.
    pub fn count(
        &self,
        name: &'static str,
        help: &'static str,
        service: &'static str,
        value: impl Fn() -> u64 + Send + Sync + 'static,
    ) {
        let measure = Measure::Counter(Box::new(value));
        self.0.measured.add(name, help, (service, measure));
    }

    /// Renders the metrics in the format that an `Accept` header prefers; returns the content type and
    /// the body.
    pub fn render(&self, accept: &str) -> Result<(&'static str, String), fmt::Error> {
        let open = self.open_metrics()?;
        Ok(if text::wants_open_metrics(accept) {
            (text::OPEN_METRICS, open)
        } else {
            (text::PLAIN, text::plain(&open))
        })
    }

    /// Renders the metrics as OpenMetrics.
    pub fn open_metrics(&self) -> Result<String, fmt::Error> {
        let mut out = String::new();
        encode(&mut out, &self.0.registry.lock())?;
        Ok(out)
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}

/// A measure of each service under one name; all are of one kind.
struct Measures {
    name: &'static str,
    help: &'static str,
    services: Vec<(&'static str, Measure)>,
}

#[derive(Clone, Default)]
struct Measured(Arc<Mutex<Vec<Measures>>>);

impl Measured {
    fn add(&self, name: &'static str, help: &'static str, service: (&'static str, Measure)) {
        let mut all = self.0.lock();
        match all.iter_mut().find(|m| m.name == name) {
            Some(measures) => measures.services.push(service),
            None => all.push(Measures {
                name,
                help,
                services: vec![service],
            }),
        }
    }
}

impl fmt::Debug for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.0.lock().iter().map(|g| g.name))
            .finish()
    }
}

impl Collector for Measured {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        for measures in self.0.lock().iter() {
            let Some((_, first)) = measures.services.first() else {
                continue;
            };
            let (name, help) = (measures.name, measures.help);
            let mut family = encoder.encode_descriptor(name, help, None, first.kind())?;
            for (service, measure) in &measures.services {
                measure.encode(family.encode_family(&[("service", *service)])?)?;
            }
        }
        Ok(())
    }
}
