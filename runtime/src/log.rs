//! Logs: one line per event, as text or as JSON, each with the trace it belongs to.

use crate::{clock::Clock, config::LogFormat, trace};
use std::fmt::{self, Write as _};
use tracing::{Event, Subscriber, field::Field};
use tracing_subscriber::{
    EnvFilter,
    fmt::{FmtContext, FormatEvent, FormatFields, format::Writer},
    registry::LookupSpan,
};

/// The log level in the configuration does not parse.
#[derive(Debug, thiserror::Error)]
#[error("log level {level:?}: {source}")]
pub struct LevelError {
    level: String,
    source: tracing_subscriber::filter::ParseError,
}

/// Writes logs to standard error, each line with the number of this replica where it is one of several. A
/// second call in one process has no effect.
///
/// # Errors
///
/// When `level` is not a filter.
pub fn init(format: LogFormat, level: &str, replica: Option<u32>) -> Result<(), LevelError> {
    let filter = EnvFilter::builder()
        .parse(level)
        .map_err(|source| LevelError {
            level: level.to_owned(),
            source,
        })?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .event_format(Line { format, replica });
    // Only a test that starts several meshes in one process gets here twice.
    builder.try_init().ok();
    Ok(())
}

struct Line {
    format: LogFormat,
    replica: Option<u32>,
}

impl<S, N> FormatEvent<S, N> for Line
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut fields = Fields::default();
        event.record(&mut fields);
        if let Some(replica) = self.replica {
            fields.rest.insert("replica".to_owned(), replica.into());
        }
        match self.format {
            LogFormat::Json => json(writer, event, fields),
            LogFormat::Human => human(writer, event, &fields),
        }
    }
}

#[derive(Default)]
struct Fields {
    message: String,
    rest: serde_json::Map<String, serde_json::Value>,
}

impl Fields {
    fn put(&mut self, field: &Field, value: serde_json::Value) {
        self.rest.insert(field.name().to_owned(), value);
    }
}

impl tracing::field::Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let text = format!("{value:?}");
        if field.name() == "message" {
            self.message = text;
        } else {
            self.put(field, text.into());
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            self.message = value.to_owned();
        } else {
            self.put(field, value.into());
        }
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value.into());
    }
}

fn timestamp() -> String {
    let at = time::OffsetDateTime::UNIX_EPOCH + Clock::system().now();
    at.format(&time::format_description::well_known::Rfc3339)
        .unwrap_or_default()
}

fn json(mut writer: Writer<'_>, event: &Event<'_>, fields: Fields) -> fmt::Result {
    let mut line = fields.rest;
    line.insert("timestamp".into(), timestamp().into());
    line.insert("level".into(), event.metadata().level().as_str().into());
    line.insert("target".into(), event.metadata().target().into());
    line.insert("message".into(), fields.message.into());
    if let Some(context) = trace::current() {
        line.insert("trace_id".into(), context.trace_id_hex().into());
        line.insert("span_id".into(), format!("{:016x}", context.span_id).into());
    }
    writeln!(writer, "{}", serde_json::Value::Object(line))
}

fn human(mut writer: Writer<'_>, event: &Event<'_>, fields: &Fields) -> fmt::Result {
    let mut line = format!(
        "{} {:>5} {}",
        timestamp(),
        event.metadata().level(),
        escape(&fields.message)
    );
    for (name, value) in &fields.rest {
        match value.as_str() {
            Some(text) => write!(line, " {name}={}", escape(text))?,
            None => write!(line, " {name}={value}")?,
        }
    }
    if let Some(context) = trace::current() {
        write!(line, " trace_id={}", context.trace_id_hex())?;
    }
    writeln!(writer, "{line}")
}

/// Escapes control characters: what strangers send must not forge lines or colours.
fn escape(text: &str) -> String {
    text.chars()
        .flat_map(|c| {
            if c.is_control() {
                c.escape_default().collect::<Vec<_>>()
            } else {
                vec![c]
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn control_characters_cannot_forge_a_line() {
        assert_eq!(super::escape("a\nb\x1b[31m"), "a\\nb\\u{1b}[31m");
    }
}
