//! The metrics of the process in two formats: OpenMetrics, and the older text format of Prometheus. A
//! scraper that names neither gets the older one, which all of them can parse.

mod text;

use parking_lot::Mutex;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric, text::encode},
    metrics::{MetricType, gauge::ConstGauge},
    registry::{Metric, Registry},
};
use std::{fmt, sync::Arc};

/// The metrics of one process. Clones share the registry.
#[derive(Clone)]
pub struct Metrics(Arc<Inner>);

struct Inner {
    registry: Mutex<Registry>,
    measured: Measured,
}

/// Measures a value at the moment of a scrape; `None` leaves it out.
type Measure = Arc<dyn Fn() -> Option<f64> + Send + Sync>;

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
        self.0.measured.add(name, help, (service, Arc::new(value)));
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

struct Gauges {
    name: &'static str,
    help: &'static str,
    services: Vec<(&'static str, Measure)>,
}

#[derive(Clone, Default)]
struct Measured(Arc<Mutex<Vec<Gauges>>>);

impl Measured {
    fn add(&self, name: &'static str, help: &'static str, service: (&'static str, Measure)) {
        let mut all = self.0.lock();
        match all.iter_mut().find(|g| g.name == name) {
            Some(gauges) => gauges.services.push(service),
            None => all.push(Gauges {
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
        for gauges in self.0.lock().iter() {
            let kind = MetricType::Gauge;
            let mut family = encoder.encode_descriptor(gauges.name, gauges.help, None, kind)?;
            for (service, measure) in &gauges.services {
                if let Some(value) = measure() {
                    let labels = [("service", *service)];
                    ConstGauge::new(value).encode(family.encode_family(&labels)?)?;
                }
            }
        }
        Ok(())
    }
}
