//! The position of a span in its trace, and the W3C headers that carry it.

use super::state::TraceState;
use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::{SpanId, TraceFlags, TraceId, trace::SpanContext};

/// The header with the id of the trace that a response belongs to.
pub const TRACE_ID: &str = "x-trace-id";

pub(super) const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
pub(super) const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// A position in a trace, as W3C `traceparent` carries it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceContext {
    /// The id of the trace; never zero.
    pub trace_id: u128,
    /// The id of the span; never zero.
    pub span_id: u64,
    /// Whether the trace is recorded.
    pub sampled: bool,
}

impl TraceContext {
    /// Parses a `traceparent` of any version whose beginning is that of version 00; `None` when it is
    /// malformed.
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

    /// Formats the position as `traceparent`.
    pub fn to_header(&self) -> String {
        format!(
            "00-{:032x}-{:016x}-{:02x}",
            self.trace_id,
            self.span_id,
            u8::from(self.sampled)
        )
    }

    /// Formats the trace id as 32 hexadecimal digits.
    pub fn trace_id_hex(&self) -> String {
        format!("{:032x}", self.trace_id)
    }
}

/// Formats a trace id as a header without the formatting machinery, because every response has one.
pub fn id_header(id: u128) -> HeaderValue {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = [0; 32];
    for (at, digit) in text.iter_mut().enumerate() {
        *digit = DIGITS[(id >> (124 - 4 * at)) as usize & 0xf];
    }
    let mut value = HeaderValue::from_bytes(&text).expect("hexadecimal digits");
    // Never the same twice: HPACK must not add it to its table.
    value.set_sensitive(true);
    value
}

/// The parent of a span: its position, and what other systems want passed on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parent {
    /// The position in the trace.
    pub context: TraceContext,
    /// The `tracestate` of other systems.
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
    /// Reads the headers of a message. Two positions count as none, and then nothing is passed on.
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

    pub(super) fn otel(&self) -> SpanContext {
        SpanContext::new(
            TraceId::from(self.context.trace_id),
            SpanId::from(self.context.span_id),
            TraceFlags::new(u8::from(self.context.sampled)),
            true,
            self.state.otel(),
        )
    }
}

/// Returns the id of a new trace.
pub fn fresh_trace_id() -> u128 {
    rand::random::<u128>().max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_survives_the_round_trip() {
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
}
