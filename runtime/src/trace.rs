//! Trace context and spans.
//!
//! A call that is not sampled costs a few random bytes and one header: spans of the OpenTelemetry SDK are
//! created only for sampled calls. The current position in the trace travels with the task, so that SQL and
//! outgoing calls find their parent without its being passed along; the tracer travels with it, so that two
//! services in one process do not share a name or an exporter.
//!
//! Whether a trace is recorded is decided where it enters the mesh, and followed from there on. An
//! outsider's trace id is kept, but not its sampling decision. Calls that the mesh makes for itself (trust
//! reports, audit records, health checks) start no recorded trace unless the configuration asks for it,
//! because they would drown everything else.

mod context;
mod export;
mod state;

pub use context::{Parent, TRACE_ID, TraceContext, fresh_trace_id, id_header};
pub use export::{ExporterError, SpanMetrics};
pub use state::TraceState;

use crate::{
    config::Telemetry,
    scoped::{self, ScopedCell, ScopedFuture},
};
use context::{TRACEPARENT, TRACESTATE};
use http::{HeaderMap, HeaderValue};
use opentelemetry::{
    Context, KeyValue,
    trace::{Span as _, SpanContext, SpanKind, Status, TraceContextExt, Tracer as _},
};
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};
use std::{
    borrow::Cow,
    fmt,
    hash::{BuildHasher, RandomState},
    sync::Arc,
    time::Duration,
};

impl Parent {
    /// Parses a stored position: the origin of work that outlives its call.
    pub fn stored(traceparent: &str) -> Option<Self> {
        let context = TraceContext::parse(traceparent)?;
        let here = Scope::current().filter(|s| s.context.trace_id == context.trace_id);
        let state = here.map(|s| s.state).unwrap_or_default();
        Some(Self { context, state })
    }
}

/// How a call enters a service.
#[derive(Debug, Clone, Default)]
pub struct Entry {
    /// The parent in the call's headers.
    pub parent: Option<Parent>,
    /// Whether the caller's sampling decision is trusted.
    pub trusted: bool,
    /// Whether the mesh makes the call for itself.
    pub infrastructure: bool,
}

/// Starts spans and decides which traces are sampled.
#[derive(Clone)]
pub struct Tracer(Arc<Inner>);

struct Inner {
    ratio: f64,
    follow_parent: bool,
    infrastructure: bool,
    /// Decides about strangers' traces, consistently for each trace: nobody outside can choose an id
    /// that is recorded.
    strangers: RandomState,
    recorder: Option<Recorder>,
}

struct Recorder {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
}

impl fmt::Debug for Tracer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Tracer(ratio {}, exporting {})",
            self.0.ratio,
            self.0.recorder.is_some()
        )
    }
}

impl Tracer {
    /// Returns a tracer that creates contexts and exports nothing.
    pub fn disabled() -> Self {
        Self::with(None, &Telemetry::default())
    }

    fn recording(recorder: Recorder, settings: &Telemetry) -> Self {
        Self::with(Some(recorder), settings)
    }

    fn with(recorder: Option<Recorder>, settings: &Telemetry) -> Self {
        Self(Arc::new(Inner {
            ratio: settings.sample_ratio,
            follow_parent: settings.follow_parent,
            infrastructure: settings.sample_infrastructure,
            strangers: RandomState::new(),
            recorder,
        }))
    }

    /// Whether a fraction in 0..1 falls into the sampled part.
    fn samples(&self, share: impl FnOnce() -> f64) -> bool {
        self.0.recorder.is_some() && (self.0.ratio >= 1.0 || share() < self.0.ratio)
    }

    /// Starts the span of a call that enters this service.
    pub fn enter(&self, name: impl Into<Cow<'static, str>>, entry: Entry) -> Span {
        let begins = |this: &Self| !entry.infrastructure || this.0.infrastructure;
        match entry.parent {
            Some(parent) if entry.trusted => self.start(name, SpanKind::Server, Some(parent)),
            Some(mut parent) => {
                let share = || unit(self.0.strangers.hash_one(parent.context.trace_id));
                parent.context.sampled = begins(self) && self.samples(share);
                self.begin(
                    name.into(),
                    SpanKind::Server,
                    parent.context.sampled,
                    Some(parent),
                )
            }
            None => {
                let sampled = begins(self) && self.samples(rand::random::<f64>);
                self.begin(name.into(), SpanKind::Server, sampled, None)
            }
        }
    }

    /// Starts a span under a parent of our own, or the root of a new trace.
    pub fn start(
        &self,
        name: impl Into<Cow<'static, str>>,
        kind: SpanKind,
        parent: Option<Parent>,
    ) -> Span {
        let sampled = match &parent {
            Some(parent) if self.0.follow_parent => parent.context.sampled,
            // As other SDKs do, so that all of them record the same traces.
            Some(parent) => self.samples(|| unit(parent.context.trace_id as u64)),
            None => self.samples(rand::random::<f64>),
        };
        self.begin(name.into(), kind, sampled, parent)
    }

    fn begin(
        &self,
        name: Cow<'static, str>,
        kind: SpanKind,
        sampled: bool,
        parent: Option<Parent>,
    ) -> Span {
        let recorder = self.0.recorder.as_ref().filter(|_| sampled);
        let recording = recorder.map(|r| Box::new(r.start(name, kind, parent.as_ref())));
        let context = match (&recording, &parent) {
            (Some(span), _) => position(span.span_context()),
            (None, parent) => TraceContext {
                trace_id: parent
                    .as_ref()
                    .map_or_else(fresh_trace_id, |p| p.context.trace_id),
                span_id: random_u64(),
                sampled,
            },
        };
        Span {
            tracer: self.clone(),
            context,
            state: parent.map(|p| p.state).unwrap_or_default(),
            recording,
        }
    }

    /// Exports what is still queued. Blocks for up to five seconds.
    pub fn shutdown(&self) {
        if let Some(recorder) = &self.0.recorder
            && let Err(e) = recorder
                .provider
                .shutdown_with_timeout(Duration::from_secs(5))
        {
            tracing::warn!(error = %e, "traces were lost at shutdown");
        }
    }
}

impl Recorder {
    fn start(
        &self,
        name: Cow<'static, str>,
        kind: SpanKind,
        parent: Option<&Parent>,
    ) -> opentelemetry_sdk::trace::Span {
        let context = parent.map_or_else(Context::new, |p| {
            Context::new().with_remote_span_context(p.otel())
        });
        let builder = self.tracer.span_builder(name).with_kind(kind);
        self.tracer.build_with_context(builder, &context)
    }
}

fn position(id: &SpanContext) -> TraceContext {
    TraceContext {
        trace_id: u128::from_be_bytes(id.trace_id().to_bytes()),
        span_id: u64::from_be_bytes(id.span_id().to_bytes()),
        sampled: true,
    }
}

/// Returns the upper 53 bits as a number in 0..1.
fn unit(bits: u64) -> f64 {
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

fn random_u64() -> u64 {
    rand::random::<u64>().max(1)
}

/// A span, which ends when it is dropped.
pub struct Span {
    tracer: Tracer,
    context: TraceContext,
    state: TraceState,
    recording: Option<Box<opentelemetry_sdk::trace::Span>>,
}

impl Span {
    /// Returns the position of the span.
    pub fn context(&self) -> TraceContext {
        self.context
    }

    /// Returns the scope of work inside the span.
    pub fn scope(&self) -> Scope {
        Scope {
            context: self.context,
            state: self.state.clone(),
            tracer: self.tracer.clone(),
        }
    }

    /// Writes the position into the headers of an outgoing message.
    pub fn inject(&self, headers: &mut HeaderMap) {
        headers.remove(TRACESTATE);
        if let Ok(value) = HeaderValue::try_from(self.context.to_header()) {
            headers.insert(TRACEPARENT, value);
        }
        let state = self.state.as_str().map(HeaderValue::try_from);
        if let Some(Ok(value)) = state {
            headers.insert(TRACESTATE, value);
        }
    }

    /// Sets an attribute, if the span is recorded.
    pub fn set(&mut self, key: &'static str, value: impl Into<opentelemetry::Value>) {
        if let Some(span) = &mut self.recording {
            span.set_attribute(KeyValue::new(key, value));
        }
    }

    /// Returns whether the span is recorded.
    pub fn is_recording(&self) -> bool {
        self.recording.is_some()
    }

    /// Sets the status to an error, if the span is recorded.
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

/// The position of a task in its trace.
#[derive(Debug, Clone)]
pub struct Scope {
    /// The position of the current span.
    pub context: TraceContext,
    state: TraceState,
    tracer: Tracer,
}

thread_local! {
    static CURRENT: ScopedCell<Scope> = const { ScopedCell::empty() };
}

impl Scope {
    /// Returns the scope of the running task.
    pub fn current() -> Option<Self> {
        scoped::with(&CURRENT, Self::clone)
    }

    /// Runs a future inside this scope.
    pub fn run<F: Future>(self, future: F) -> ScopedFuture<Self, F> {
        ScopedFuture::new(&CURRENT, self, future)
    }

    /// Runs `work` inside the scope, which is back in its place afterwards.
    pub fn enter<T>(scope: &mut Option<Self>, work: impl FnOnce() -> T) -> T {
        scoped::set(&CURRENT, scope, work)
    }

    /// Starts a span inside this scope.
    pub fn child(&self, name: impl Into<Cow<'static, str>>, kind: SpanKind) -> Span {
        let parent = Parent {
            context: self.context,
            state: self.state.clone(),
        };
        let sampled = self.context.sampled;
        self.tracer.begin(name.into(), kind, sampled, Some(parent))
    }
}

/// Returns the trace context of the running task.
pub fn current() -> Option<TraceContext> {
    scoped::with(&CURRENT, |s| s.context)
}

/// Starts a child of the running task's span; `None` outside of a recorded trace.
pub fn child(name: impl Into<Cow<'static, str>>, kind: SpanKind) -> Option<Span> {
    scoped::with(&CURRENT, |s| s.context.sampled.then(|| s.child(name, kind))).flatten()
}

pub use opentelemetry::trace::SpanKind as Kind;

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLED: TraceContext = TraceContext {
        trace_id: 7,
        span_id: 8,
        sampled: true,
    };

    /// Records spans, and exports nothing.
    fn tracer(settings: &Telemetry) -> Tracer {
        let provider = SdkTracerProvider::builder().build();
        let tracer = opentelemetry::trace::TracerProvider::tracer(&provider, "test");
        Tracer::recording(Recorder { provider, tracer }, settings)
    }

    fn entry(context: TraceContext, trusted: bool, infrastructure: bool) -> Entry {
        Entry {
            parent: Some(context.into()),
            trusted,
            infrastructure,
        }
    }

    #[test]
    fn a_stranger_does_not_decide_what_is_recorded() {
        let none = Telemetry {
            sample_ratio: 0.0,
            ..Telemetry::default()
        };
        for tracer in [Tracer::disabled(), tracer(&none)] {
            let span = tracer.enter("a", entry(SAMPLED, false, false));
            assert_eq!((span.context.trace_id, span.context.sampled), (7, false));
            let span = tracer.enter("a", entry(SAMPLED, true, false));
            assert!(span.context.sampled, "a workload does");
        }
        let unsampled = TraceContext {
            sampled: false,
            ..SAMPLED
        };
        let span = tracer(&Telemetry::default()).enter("a", entry(unsampled, false, false));
        assert!(span.is_recording(), "nor what is not");
    }

    #[test]
    fn a_strangers_trace_is_recorded_whole_or_not_at_all() {
        let half = tracer(&Telemetry {
            sample_ratio: 0.5,
            ..Telemetry::default()
        });
        let mut recorded = 0;
        for trace_id in 1..1000 {
            let stranger = TraceContext {
                trace_id,
                ..SAMPLED
            };
            let calls = [(); 3].map(|()| half.enter("a", entry(stranger, false, false)));
            let sampled = calls.iter().filter(|s| s.is_recording()).count();
            assert!(sampled == 0 || sampled == 3);
            recorded += sampled / 3;
        }
        assert!((300..700).contains(&recorded), "{recorded}");
    }

    #[test]
    fn calls_of_the_mesh_itself_start_no_recorded_trace() {
        let usual = tracer(&Telemetry::default());
        let root = Entry {
            infrastructure: true,
            ..Entry::default()
        };
        assert!(!usual.enter("a", root.clone()).is_recording());
        assert!(!usual.enter("a", entry(SAMPLED, false, true)).is_recording());
        let part = usual.enter("a", entry(SAMPLED, true, true));
        assert!(part.is_recording(), "a part of a recorded trace");
        let asked = tracer(&Telemetry {
            sample_infrastructure: true,
            ..Telemetry::default()
        });
        assert!(asked.enter("a", root).is_recording());
    }

    #[test]
    fn a_parent_is_followed_unless_the_settings_say_otherwise() {
        let settings = |ratio| Telemetry {
            sample_ratio: ratio,
            follow_parent: false,
            ..Telemetry::default()
        };
        let start = |t: Tracer| t.start("a", SpanKind::Server, Some(SAMPLED.into()));
        assert!(!start(tracer(&settings(0.0))).is_recording());
        assert!(start(tracer(&settings(1.0))).is_recording());
        assert!(start(tracer(&settings(0.5))).is_recording(), "a small id");
    }

    #[test]
    fn trace_state_is_passed_on() {
        let mut headers = HeaderMap::new();
        let parent = TraceContext::parse("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
        headers.insert(TRACEPARENT, parent.unwrap().to_header().parse().unwrap());
        headers.append(TRACESTATE, HeaderValue::from_static("a=1"));
        headers.append(TRACESTATE, HeaderValue::from_static("b=2"));
        for tracer in [Tracer::disabled(), tracer(&Telemetry::default())] {
            let read = Parent::read(&headers);
            let server = tracer.start("a", SpanKind::Server, read);
            let client = server.scope().child("b", SpanKind::Client);
            let mut sent = HeaderMap::new();
            sent.insert(TRACESTATE, HeaderValue::from_static("old=1"));
            client.inject(&mut sent);
            assert_eq!(sent[TRACESTATE], "a=1,b=2");
            let next = Parent::read(&sent).unwrap().context;
            assert_eq!(next.trace_id, parent.unwrap().trace_id);
            assert_eq!(next.span_id, client.context().span_id);
        }
        headers.append(TRACEPARENT, HeaderValue::from_static("00-x"));
        assert_eq!(Parent::read(&headers), None, "two positions are none");
        headers.remove(TRACEPARENT);
        assert_eq!(Parent::read(&headers), None, "nothing to pass on");
    }

    #[test]
    fn an_unsampled_child_stays_in_its_trace() {
        let tracer = Tracer::disabled();
        let root = tracer.start("a", SpanKind::Server, None);
        let child = tracer.start("b", SpanKind::Client, Some(root.context().into()));
        assert_eq!(child.context().trace_id, root.context().trace_id);
        assert_ne!(child.context().span_id, root.context().span_id);
        assert!(!child.is_recording());
    }
}
