//! Exports finished spans to a collector.
//!
//! A call never waits for the collector: a bounded queue takes finished spans, and those that do not fit, or
//! that the collector refuses, are dropped and counted. An unreachable collector is a [`Condition`] of the
//! process.

use super::{Recorder, Tracer};
use crate::{config::Telemetry, health::Condition, metrics::Metrics};
use opentelemetry::{Context, KeyValue, trace::TracerProvider as _};
use opentelemetry_otlp::{SpanExporter as OtlpExporter, WithExportConfig};
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    resource::TelemetryResourceDetector,
    trace::{
        BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracerProvider, Span, SpanData,
        SpanExporter, SpanProcessor,
    },
};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

/// Maximum number of finished spans that are queued or being exported.
const QUEUE: usize = 4096;
const TIMEOUT: Duration = Duration::from_secs(5);

/// The exporter could not be built, most often because of its endpoint.
#[derive(Debug, thiserror::Error)]
#[error("cannot export traces to {endpoint}: {source}")]
pub struct ExporterError {
    endpoint: String,
    source: opentelemetry_otlp::ExporterBuildError,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Exported {
    service: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Dropped {
    service: String,
    reason: &'static str,
}

/// The fate of finished spans; one per process.
#[derive(Debug, Clone)]
pub struct SpanMetrics {
    exported: Family<Exported, Counter>,
    dropped: Family<Dropped, Counter>,
}

impl SpanMetrics {
    /// Registers the metrics.
    pub fn new(metrics: &Metrics) -> Self {
        Self {
            exported: metrics.register(
                "trace_spans_exported",
                "Finished spans that the collector took",
                Family::default(),
            ),
            dropped: metrics.register(
                "trace_spans_dropped",
                "Finished spans that were lost, by reason",
                Family::default(),
            ),
        }
    }

    fn queue(&self, service: &str, collector: Condition) -> Queue {
        let dropped = |reason| {
            let service = service.to_owned();
            let counter = self.dropped.get_or_create(&Dropped { service, reason });
            counter.clone()
        };
        let service = service.to_owned();
        Queue {
            waiting: AtomicUsize::new(0),
            exported: self.exported.get_or_create(&Exported { service }).clone(),
            full: dropped("queue_full"),
            refused: dropped("export_failed"),
            collector,
        }
    }
}

/// The state of the spans between calls and the collector.
#[derive(Debug)]
struct Queue {
    waiting: AtomicUsize,
    exported: Counter,
    full: Counter,
    refused: Counter,
    collector: Condition,
}

impl Queue {
    fn has_room(&self) -> bool {
        let room = self
            .waiting
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| {
                (n < QUEUE).then_some(n + 1)
            })
            .is_ok();
        if !room {
            self.full.inc();
        }
        room
    }

    fn left(&self, spans: usize, result: &OTelSdkResult) {
        self.waiting.fetch_sub(spans, Ordering::Relaxed);
        let count = u64::try_from(spans).unwrap_or(u64::MAX);
        match result {
            Ok(()) => {
                self.exported.inc_by(count);
                self.collector.record_success();
            }
            Err(e) => {
                self.refused.inc_by(count);
                self.collector.record_failure(e);
            }
        }
    }
}

/// Passes spans for which the queue has room.
#[derive(Debug)]
struct Bounded {
    inner: BatchSpanProcessor,
    queue: Arc<Queue>,
}

impl SpanProcessor for Bounded {
    fn on_start(&self, span: &mut Span, cx: &Context) {
        self.inner.on_start(span, cx);
    }

    fn on_end(&self, span: SpanData) {
        if self.queue.has_room() {
            self.inner.on_end(span);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.inner.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.inner.set_resource(resource);
    }
}

/// An exporter that records its results.
#[derive(Debug)]
struct Watched<E> {
    inner: E,
    queue: Arc<Queue>,
}

impl<E: SpanExporter> SpanExporter for Watched<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len();
        let result = self.inner.export(batch).await;
        self.queue.left(spans, &result);
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.inner.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.inner.set_resource(resource);
    }
}

impl Tracer {
    /// Creates a tracer that exports to an OTLP collector over gRPC, as one service of the process.
    ///
    /// # Errors
    ///
    /// When `endpoint` is not a URI.
    pub fn exporting(
        service: &str,
        endpoint: &str,
        settings: &Telemetry,
        metrics: &SpanMetrics,
        collector: Condition,
    ) -> Result<Self, ExporterError> {
        let exporter = OtlpExporter::builder()
            .with_tonic()
            .with_endpoint(endpoint)
            .with_timeout(TIMEOUT)
            .build()
            .map_err(|source| ExporterError {
                endpoint: endpoint.to_owned(),
                source,
            })?;
        let queue = Arc::new(metrics.queue(service, collector));
        let provider = provider(exporter, queue, resource(service, settings));
        let tracer = provider.tracer("tars");
        Ok(Self::recording(Recorder { provider, tracer }, settings))
    }
}

fn provider<E>(exporter: E, queue: Arc<Queue>, resource: Resource) -> SdkTracerProvider
where
    E: SpanExporter + 'static,
{
    let watched = Watched {
        inner: exporter,
        queue: Arc::clone(&queue),
    };
    let config = BatchConfigBuilder::default().with_max_queue_size(QUEUE);
    let inner = BatchSpanProcessor::builder(watched)
        .with_batch_config(config.build())
        .build();
    SdkTracerProvider::builder()
        .with_span_processor(Bounded { inner, queue })
        .with_sampler(Sampler::AlwaysOn)
        .with_resource(resource)
        .build()
}

/// The identity of the service, which the settings override.
fn resource(service: &str, settings: &Telemetry) -> Resource {
    let instance = uuid::Uuid::now_v7().to_string();
    let ours = [
        ("service.name", format!("tars-{service}")),
        ("service.version", env!("CARGO_PKG_VERSION").to_owned()),
        ("service.instance.id", instance),
        ("tars.service", service.to_owned()),
    ];
    let given = &settings.resource_attributes;
    let name = settings.service_name.iter().filter(|n| !n.is_empty());
    Resource::builder_empty()
        .with_detector(Box::new(TelemetryResourceDetector))
        .with_attributes(ours.map(|(key, value)| KeyValue::new(key, value)))
        .with_attributes(
            given
                .iter()
                .map(|(k, v)| KeyValue::new(k.clone(), v.clone())),
        )
        .with_attributes(name.map(|name| KeyValue::new("service.name", name.clone())))
        .build()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{clock::Clock, trace::Kind};
    use opentelemetry_sdk::error::OTelSdkError;
    use parking_lot::Mutex;

    /// Accepts what it is given, or nothing.
    #[derive(Debug, Clone, Default)]
    struct Fake(Arc<Mutex<(bool, usize)>>);

    impl SpanExporter for Fake {
        async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
            let mut state = self.0.lock();
            if !state.0 {
                return Err(OTelSdkError::InternalFailure("away".to_owned()));
            }
            state.1 += batch.len();
            Ok(())
        }
    }

    fn value<'a>(resource: &'a Resource, key: &'static str) -> std::borrow::Cow<'a, str> {
        let found = resource.get_ref(&key.into());
        found.unwrap_or_else(|| panic!("{key}")).as_str()
    }

    #[test]
    fn a_service_names_itself_and_settings_override_it() {
        let ours = resource("auth", &Telemetry::default());
        assert_eq!(value(&ours, "service.name"), "tars-auth");
        assert_eq!(value(&ours, "service.version"), env!("CARGO_PKG_VERSION"));
        let other = resource("auth", &Telemetry::default());
        let instance = value(&ours, "service.instance.id");
        assert_ne!(instance, value(&other, "service.instance.id"));
        let attributes = [("service.name", "attribute"), ("team", "blue")];
        let mut settings = Telemetry {
            resource_attributes: attributes.map(|(k, v)| (k.into(), v.into())).into(),
            ..Telemetry::default()
        };
        let given = resource("auth", &settings);
        assert_eq!(value(&given, "service.name"), "attribute");
        assert_eq!(value(&given, "team"), "blue");
        settings.service_name = Some("name".to_owned());
        assert_eq!(value(&resource("auth", &settings), "service.name"), "name");
    }

    #[test]
    fn spans_that_a_collector_refuses_are_counted_and_reported() {
        let (fake, metrics) = (Fake::default(), Metrics::default());
        let collector = Condition::new(Clock::manual(Duration::ZERO));
        let queue = SpanMetrics::new(&metrics).queue("auth", collector.clone());
        let settings = Telemetry::default();
        let provider = provider(fake.clone(), Arc::new(queue), resource("auth", &settings));
        let tracer = provider.tracer("tars");
        let recorder = Recorder { provider, tracer };
        let provider = recorder.provider.clone();
        let tracer = Tracer::recording(recorder, &settings);
        let finish = |n: usize| {
            for _ in 0..n {
                drop(tracer.start("x", Kind::Internal, None));
            }
        };
        finish(3);
        assert!(provider.force_flush().is_err());
        assert!(
            collector
                .outage()
                .is_some_and(|t| t.detail.contains("away"))
        );
        fake.0.lock().0 = true;
        finish(2);
        provider.force_flush().unwrap();
        assert!(collector.outage().is_none());
        assert_eq!(fake.0.lock().1, 2);
        let text = metrics.open_metrics().unwrap();
        for line in [
            "trace_spans_dropped_total{service=\"auth\",reason=\"export_failed\"} 3",
            "trace_spans_exported_total{service=\"auth\"} 2",
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
    }

    #[test]
    fn a_full_queue_drops_and_counts_and_has_room_again() {
        let metrics = Metrics::default();
        let collector = Condition::new(Clock::manual(Duration::ZERO));
        let queue = SpanMetrics::new(&metrics).queue("auth", collector);
        let taken = (0..QUEUE + 10).filter(|_| queue.has_room()).count();
        assert_eq!((taken, queue.full.get()), (QUEUE, 10));
        queue.left(1, &Ok(()));
        assert!(queue.has_room());
    }
}
