//! Trace context and spans.
//!
//! A call that is not sampled costs a few random bytes and one header: spans of the OpenTelemetry
//! SDK are made only for sampled calls. The current position in the trace is task-local, so that
//! SQL and outgoing calls find their parent without its being passed by hand; the tracer travels
//! with it, so that two meshes in one process do not share an exporter.

use opentelemetry::{
    Context, KeyValue, SpanId, TraceFlags, TraceId,
    trace::{
        Span as _, SpanContext, SpanKind, Status, TraceContextExt, TraceState, Tracer as _,
        TracerProvider as _,
    },
};
use opentelemetry_otlp::{SpanExporter, WithExportConfig};
use opentelemetry_sdk::{
    Resource,
    trace::{Sampler, SdkTracer, SdkTracerProvider},
};
use std::{borrow::Cow, fmt, sync::Arc, time::Duration};

/// A position in a trace, as W3C `traceparent` carries it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceContext {
    pub trace_id: u128,
    pub span_id: u64,
    pub sampled: bool,
}

impl TraceContext {
    /// Reads a `traceparent` of any version that this one can read; `None` when it is malformed.
    pub fn parse(header: &str) -> Option<Self> {
        let mut parts = header.split('-');
        let (version, trace, span, flags) =
            (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let lower_hex = |s: &str, n: usize| {
            s.len() == n && s.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        };
        let shape = lower_hex(version, 2)
            && lower_hex(trace, 32)
            && lower_hex(span, 16)
            && lower_hex(flags, 2);
        if !shape || version == "ff" || (version == "00" && parts.next().is_some()) {
            return None;
        }
        let context = Self {
            trace_id: u128::from_str_radix(trace, 16).ok()?,
            span_id: u64::from_str_radix(span, 16).ok()?,
            sampled: u8::from_str_radix(flags, 16).ok()? & 1 == 1,
        };
        (context.trace_id != 0 && context.span_id != 0).then_some(context)
    }

    pub fn to_header(&self) -> String {
        format!(
            "00-{:032x}-{:016x}-{:02x}",
            self.trace_id,
            self.span_id,
            u8::from(self.sampled)
        )
    }

    pub fn trace_id_hex(&self) -> String {
        format!("{:032x}", self.trace_id)
    }

    fn otel(&self) -> SpanContext {
        SpanContext::new(
            TraceId::from(self.trace_id),
            SpanId::from(self.span_id),
            TraceFlags::new(u8::from(self.sampled)),
            true,
            TraceState::NONE,
        )
    }
}

/// Starts spans and decides which traces are sampled.
#[derive(Clone)]
pub struct Tracer(Arc<Inner>);

struct Inner {
    ratio: f64,
    sdk: Option<(SdkTracerProvider, SdkTracer)>,
}

impl fmt::Debug for Tracer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Tracer(ratio {}, exporting {})",
            self.0.ratio,
            self.0.sdk.is_some()
        )
    }
}

#[derive(Debug, thiserror::Error)]
#[error("cannot export traces to {endpoint}: {source}")]
pub struct ExporterError {
    endpoint: String,
    source: opentelemetry_otlp::ExporterBuildError,
}

impl Tracer {
    /// Contexts only: nothing is exported.
    pub fn disabled() -> Self {
        Self(Arc::new(Inner {
            ratio: 0.0,
            sdk: None,
        }))
    }

    /// Exports to an OTLP collector over gRPC. Export failures are logged by the SDK and never
    /// reach a call.
    pub fn exporting(service: &str, endpoint: &str, ratio: f64) -> Result<Self, ExporterError> {
        let exporter = SpanExporter::builder()
            .with_tonic()
            .with_endpoint(endpoint)
            .with_timeout(Duration::from_secs(5))
            .build()
            .map_err(|source| ExporterError {
                endpoint: endpoint.to_owned(),
                source,
            })?;
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_sampler(Sampler::AlwaysOn)
            .with_resource(
                Resource::builder()
                    .with_service_name(service.to_owned())
                    .build(),
            )
            .build();
        let tracer = provider.tracer("tars");
        Ok(Self(Arc::new(Inner {
            ratio,
            sdk: Some((provider, tracer)),
        })))
    }

    fn samples(&self) -> bool {
        self.0.sdk.is_some() && (self.0.ratio >= 1.0 || rand::random::<f64>() < self.0.ratio)
    }

    /// A stranger's position in a trace: its id is kept, whether it is sampled is decided here.
    pub fn adopt(&self, stranger: TraceContext) -> TraceContext {
        TraceContext {
            sampled: self.samples(),
            ..stranger
        }
    }

    /// Starts a span under `parent`, or the root of a new trace.
    pub fn start(
        &self,
        name: impl Into<Cow<'static, str>>,
        kind: SpanKind,
        parent: Option<TraceContext>,
    ) -> Span {
        let sampled = parent.map_or_else(|| self.samples(), |p| p.sampled);
        match &self.0.sdk {
            Some((_, tracer)) if sampled => self.record(tracer, name.into(), kind, parent),
            _ => Span {
                tracer: self.clone(),
                context: TraceContext {
                    trace_id: parent.map_or_else(random_u128, |p| p.trace_id),
                    span_id: random_u64(),
                    sampled,
                },
                recording: None,
            },
        }
    }

    fn record(
        &self,
        tracer: &SdkTracer,
        name: Cow<'static, str>,
        kind: SpanKind,
        parent: Option<TraceContext>,
    ) -> Span {
        let context = parent.map_or_else(Context::new, |p| {
            Context::new().with_remote_span_context(p.otel())
        });
        let builder = tracer.span_builder(name).with_kind(kind);
        let span = tracer.build_with_context(builder, &context);
        let id = span.span_context();
        Span {
            tracer: self.clone(),
            context: TraceContext {
                trace_id: u128::from_be_bytes(id.trace_id().to_bytes()),
                span_id: u64::from_be_bytes(id.span_id().to_bytes()),
                sampled: true,
            },
            recording: Some(Box::new(span)),
        }
    }

    /// Sends what is still queued; blocks, so call it off the async threads.
    pub fn shutdown(&self) {
        if let Some((provider, _)) = &self.0.sdk
            && let Err(e) = provider.shutdown_with_timeout(Duration::from_secs(5))
        {
            tracing::warn!(error = %e, "traces were lost at shutdown");
        }
    }
}

fn random_u128() -> u128 {
    rand::random::<u128>().max(1)
}

fn random_u64() -> u64 {
    rand::random::<u64>().max(1)
}

/// A span; it ends when dropped.
pub struct Span {
    tracer: Tracer,
    context: TraceContext,
    recording: Option<Box<opentelemetry_sdk::trace::Span>>,
}

impl Span {
    pub fn context(&self) -> TraceContext {
        self.context
    }

    pub fn scope(&self) -> Scope {
        Scope {
            context: self.context,
            tracer: self.tracer.clone(),
        }
    }

    pub fn set(&mut self, key: &'static str, value: impl Into<opentelemetry::Value>) {
        if let Some(span) = &mut self.recording {
            span.set_attribute(KeyValue::new(key, value));
        }
    }

    pub fn is_recording(&self) -> bool {
        self.recording.is_some()
    }

    pub fn fail(&mut self, why: &str) {
        if let Some(span) = &mut self.recording {
            span.set_status(Status::error(why.to_owned()));
        }
    }
}

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Span({})", self.context.to_header())
    }
}

/// Where a task is in its trace.
#[derive(Debug, Clone)]
pub struct Scope {
    pub context: TraceContext,
    tracer: Tracer,
}

tokio::task_local! {
    static CURRENT: Scope;
}

impl Scope {
    pub fn current() -> Option<Self> {
        CURRENT.try_with(Clone::clone).ok()
    }

    /// Runs a future inside this scope.
    pub fn run<F: Future>(self, future: F) -> tokio::task::futures::TaskLocalFuture<Self, F> {
        CURRENT.scope(self, future)
    }

    /// Runs something now inside this scope.
    pub fn enter<T>(self, work: impl FnOnce() -> T) -> T {
        CURRENT.sync_scope(self, work)
    }

    pub fn child(&self, name: impl Into<Cow<'static, str>>, kind: SpanKind) -> Span {
        self.tracer.start(name, kind, Some(self.context))
    }
}

/// The trace context of the running task.
pub fn current() -> Option<TraceContext> {
    CURRENT.try_with(|s| s.context).ok()
}

/// A child of the running task's span; `None` outside a trace.
pub fn child(name: impl Into<Cow<'static, str>>, kind: SpanKind) -> Option<Span> {
    CURRENT
        .try_with(|s| s.context.sampled.then(|| s.child(name, kind)))
        .ok()
        .flatten()
}

pub use opentelemetry::trace::SpanKind as Kind;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_survives_the_round_trip() {
        let header = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let context = TraceContext::parse(header).unwrap();
        assert!(context.sampled);
        assert_eq!(context.to_header(), header);
    }

    #[test]
    fn malformed_headers_are_refused() {
        for bad in [
            "",
            "00",
            "00-0-0-0",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-x",
            "00-+bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        ] {
            assert_eq!(TraceContext::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_stranger_does_not_decide_what_is_recorded() {
        let stranger = TraceContext {
            trace_id: 7,
            span_id: 8,
            sampled: true,
        };
        let adopted = Tracer::disabled().adopt(stranger);
        assert_eq!((adopted.trace_id, adopted.sampled), (7, false));
    }

    #[test]
    fn an_unsampled_child_stays_in_its_trace() {
        let tracer = Tracer::disabled();
        let root = tracer.start("a", SpanKind::Server, None);
        let child = tracer.start("b", SpanKind::Client, Some(root.context()));
        assert_eq!(child.context().trace_id, root.context().trace_id);
        assert_ne!(child.context().span_id, root.context().span_id);
        assert!(!child.is_recording());
    }
}
