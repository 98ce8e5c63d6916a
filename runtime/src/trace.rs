//! Trace context and spans.
//!
//! A call that is not sampled costs a few random bytes and one header: spans of the OpenTelemetry
//! SDK are made only for sampled calls. The current position in the trace goes with the task, so that
//! SQL and outgoing calls find their parent without its being passed by hand; the tracer travels
//! with it, so that two services in one process do not share a name or an exporter.
//!
//! Whether a trace is recorded is decided where it enters the mesh, and followed from there on. An
//! outsider's trace id is kept, but not its word on that. What the mesh does for itself (reports of
//! trust, audit records, health) begins no recorded trace unless it is asked for: it would drown
//! everything else.

mod export;
mod state;

pub use export::{ExporterError, SpanMetrics};
pub use state::TraceState;

use crate::{
    config::Telemetry,
    lent::{self, Lending, Lent},
};
use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::{
    Context, KeyValue, SpanId, TraceFlags, TraceId,
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

/// The trace that an answer belongs to.
pub const TRACE_ID: &str = "x-trace-id";

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

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
}

/// A trace's id as a header, made without the machinery of formatting: every answer has one.
pub fn id_header(id: u128) -> HeaderValue {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = [0; 32];
    for (at, digit) in text.iter_mut().enumerate() {
        *digit = DIGITS[(id >> (124 - 4 * at)) as usize & 0xf];
    }
    let mut value = HeaderValue::from_bytes(&text).expect("hexadecimal digits");
    // Never the same twice: HPACK must not put it into its table.
    value.set_sensitive(true);
    value
}

/// What a span goes under: a position, and what other systems want passed on with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parent {
    pub context: TraceContext,
    pub state: TraceState,
}

impl From<TraceContext> for Parent {
    fn from(context: TraceContext) -> Self {
        Self {
            context,
            state: TraceState::default(),
        }
    }
}

impl Parent {
    /// What a message's headers say. Two positions are none, and then there is nothing to pass on.
    pub fn read(headers: &HeaderMap) -> Option<Self> {
        let mut positions = headers.get_all(TRACEPARENT).iter();
        let (Some(position), None) = (positions.next(), positions.next()) else {
            return None;
        };
        Some(Self {
            context: TraceContext::parse(position.to_str().ok()?)?,
            state: TraceState::read(headers.get_all(TRACESTATE)),
        })
    }

    /// A position that was kept as text: where work came from that outlives its call.
    pub fn kept(traceparent: &str) -> Option<Self> {
        let context = TraceContext::parse(traceparent)?;
        let here = Scope::current().filter(|s| s.context.trace_id == context.trace_id);
        let state = here.map(|s| s.state).unwrap_or_default();
        Some(Self { context, state })
    }

    fn otel(&self) -> SpanContext {
        SpanContext::new(
            TraceId::from(self.context.trace_id),
            SpanId::from(self.context.span_id),
            TraceFlags::new(u8::from(self.context.sampled)),
            true,
            self.state.otel(),
        )
    }
}

/// How a call enters a service.
#[derive(Debug, Clone, Default)]
pub struct Entry {
    pub parent: Option<Parent>,
    /// Whether the word of whoever calls is taken on what is recorded.
    pub trusted: bool,
    /// Something that the mesh does for itself.
    pub infrastructure: bool,
}

/// Starts spans and decides which traces are sampled.
#[derive(Clone)]
pub struct Tracer(Arc<Inner>);

struct Inner {
    ratio: f64,
    follow_parent: bool,
    infrastructure: bool,
    /// Decides on strangers' traces, always the same for one: nobody outside can choose an id that
    /// is recorded.
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
    /// Contexts only: nothing is exported.
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

    /// Whether a share of 0..1 falls to what is recorded.
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
            // As other SDKs do it, so that all of them record the same traces.
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

    /// Sends what is still queued; blocks, so call it off the async threads.
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

/// The upper 53 bits as a number of 0..1.
fn unit(bits: u64) -> f64 {
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

/// The id of a new trace.
pub fn fresh_trace_id() -> u128 {
    rand::random::<u128>().max(1)
}

fn random_u64() -> u64 {
    rand::random::<u64>().max(1)
}

/// A span; it ends when dropped.
pub struct Span {
    tracer: Tracer,
    context: TraceContext,
    state: TraceState,
    recording: Option<Box<opentelemetry_sdk::trace::Span>>,
}

impl Span {
    pub fn context(&self) -> TraceContext {
        self.context
    }

    pub fn scope(&self) -> Scope {
        Scope {
            context: self.context,
            state: self.state.clone(),
            tracer: self.tracer.clone(),
        }
    }

    /// Tells the next process where this one is in the trace.
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
    state: TraceState,
    tracer: Tracer,
}

thread_local! {
    static CURRENT: Lent<Scope> = const { Lent::empty() };
}

impl Scope {
    pub fn current() -> Option<Self> {
        lent::with(&CURRENT, Self::clone)
    }

    /// Runs a future inside this scope.
    pub fn run<F: Future>(self, future: F) -> Lending<Self, F> {
        Lending::new(&CURRENT, self, future)
    }

    /// Runs something now inside the scope, which is back in its place afterwards.
    pub fn enter<T>(scope: &mut Option<Self>, work: impl FnOnce() -> T) -> T {
        lent::lend(&CURRENT, scope, work)
    }

    pub fn child(&self, name: impl Into<Cow<'static, str>>, kind: SpanKind) -> Span {
        let parent = Parent {
            context: self.context,
            state: self.state.clone(),
        };
        let sampled = self.context.sampled;
        self.tracer.begin(name.into(), kind, sampled, Some(parent))
    }
}

/// The trace context of the running task.
pub fn current() -> Option<TraceContext> {
    lent::with(&CURRENT, |s| s.context)
}

/// A child of the running task's span; `None` outside a trace.
pub fn child(name: impl Into<Cow<'static, str>>, kind: SpanKind) -> Option<Span> {
    lent::with(&CURRENT, |s| s.context.sampled.then(|| s.child(name, kind))).flatten()
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

    const SAMPLED: TraceContext = TraceContext {
        trace_id: 7,
        span_id: 8,
        sampled: true,
    };

    /// Records, and exports nothing.
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
    fn what_the_mesh_does_for_itself_begins_no_recorded_trace() {
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
    fn what_others_want_passed_on_is_passed_on() {
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
