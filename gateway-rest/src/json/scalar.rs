//! Fields whose value is a single number, string, name or time.

use super::{number, raw::Json};
use base64::{
    Engine,
    engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD},
};
use prost_reflect::{
    DynamicMessage, EnumDescriptor, FieldDescriptor, Kind, MessageDescriptor, Value,
};
use std::borrow::Cow;

type Read<T> = Result<T, Problem>;

/// Why a value is not one of its field. It becomes a text only where it is told: a body can have a million.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Problem {
    Text(Cow<'static, str>),
    /// It names no value of this enumeration.
    NotNamed(EnumDescriptor),
}

impl From<&'static str> for Problem {
    fn from(text: &'static str) -> Self {
        Self::Text(text.into())
    }
}

impl From<Cow<'static, str>> for Problem {
    fn from(text: Cow<'static, str>) -> Self {
        Self::Text(text)
    }
}

impl From<String> for Problem {
    fn from(text: String) -> Self {
        Self::Text(text.into())
    }
}

impl From<Problem> for String {
    fn from(problem: Problem) -> Self {
        match problem {
            Problem::Text(text) => text.into_owned(),
            Problem::NotNamed(values) => not_named(&values),
        }
    }
}

/// Messages for which the mapping defines a form of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WellKnown {
    Timestamp,
    Duration,
    FieldMask,
    /// `Struct`, `Value` and `ListValue`.
    Any,
}

pub(super) fn well_known(message: &MessageDescriptor) -> Option<WellKnown> {
    match message.full_name() {
        "google.protobuf.Timestamp" => Some(WellKnown::Timestamp),
        "google.protobuf.Duration" => Some(WellKnown::Duration),
        "google.protobuf.FieldMask" => Some(WellKnown::FieldMask),
        "google.protobuf.Struct" | "google.protobuf.Value" | "google.protobuf.ListValue" => {
            Some(WellKnown::Any)
        }
        _ => None,
    }
}

/// Whether a path or a query can set the field: scalars, enums, and messages that are written as a string.
pub(crate) fn fits_text(field: &FieldDescriptor) -> bool {
    match field.kind() {
        Kind::Message(message) => {
            !field.is_map() && well_known(&message).is_some_and(|known| known != WellKnown::Any)
        }
        _ => true,
    }
}

/// Parses a value from a path or a query.
pub(crate) fn from_text(kind: &Kind, text: &str) -> Read<Value> {
    match kind {
        Kind::Bool => match text {
            "true" => Ok(Value::Bool(true)),
            "false" => Ok(Value::Bool(false)),
            _ => Err("must be true or false".into()),
        },
        Kind::Message(message) => message_from_text(message, text).map(Value::Message),
        Kind::String => Ok(Value::String(text.to_owned())),
        Kind::Bytes => base64(text),
        Kind::Enum(values) => enumeration(values, text),
        _ => numeric(kind, text),
    }
}

/// Parses a value from JSON.
pub(super) fn from_json(kind: &Kind, json: &Json<'_>) -> Read<Value> {
    match (kind, json) {
        (Kind::Bool, Json::Bool(b)) => Ok(Value::Bool(*b)),
        (Kind::Bool, _) => Err("must be true or false".into()),
        (Kind::String | Kind::Bytes, Json::Text(text)) => from_text(kind, text),
        (Kind::String, _) => Err("must be a string".into()),
        (Kind::Bytes, _) => Err("must be a string in base64".into()),
        (Kind::Double | Kind::Float, Json::Text(text)) => match special(text) {
            Some(value) => Ok(value_of(kind, value)),
            None => from_text(kind, text),
        },
        (_, Json::Number(text)) => from_text(kind, text),
        (_, Json::Text(text)) => from_text(kind, text),
        (Kind::Enum(values), _) => Err(Problem::NotNamed(values.clone())),
        (Kind::Double | Kind::Float, _) => Err(number::NOT_A_NUMBER.into()),
        _ => Err("must be a whole number".into()),
    }
}

pub(super) fn message_from_json(
    message: &MessageDescriptor,
    json: &Json<'_>,
) -> Read<DynamicMessage> {
    match json {
        Json::Text(text) => message_from_text(message, text),
        _ => Err("must be a string".into()),
    }
}

fn special(text: &str) -> Option<f64> {
    match text {
        "NaN" => Some(f64::NAN),
        "Infinity" => Some(f64::INFINITY),
        "-Infinity" => Some(f64::NEG_INFINITY),
        _ => None,
    }
}

fn value_of(kind: &Kind, value: f64) -> Value {
    match kind {
        Kind::Float => Value::F32(value as f32),
        _ => Value::F64(value),
    }
}

fn numeric(kind: &Kind, text: &str) -> Read<Value> {
    let range = |low: i128, high: i128| format!("must be between {low} and {high}");
    let n = || number::integer(text);
    match kind {
        Kind::Double => Ok(Value::F64(number::double(text)?)),
        Kind::Float => Ok(Value::F32(number::float(text)?)),
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => i32::try_from(n()?)
            .map(Value::I32)
            .map_err(|_| range(i32::MIN.into(), i32::MAX.into()).into()),
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => i64::try_from(n()?)
            .map(Value::I64)
            .map_err(|_| range(i64::MIN.into(), i64::MAX.into()).into()),
        Kind::Uint32 | Kind::Fixed32 => u32::try_from(n()?)
            .map(Value::U32)
            .map_err(|_| range(0, u32::MAX.into()).into()),
        _ => u64::try_from(n()?)
            .map(Value::U64)
            .map_err(|_| range(0, u64::MAX.into()).into()),
    }
}

fn enumeration(values: &EnumDescriptor, text: &str) -> Read<Value> {
    if let Some(value) = values.get_value_by_name(text) {
        return Ok(Value::EnumNumber(value.number()));
    }
    let number = number::integer(text)
        .ok()
        .and_then(|n| i32::try_from(n).ok());
    // A number that the enum does not have is refused by the validation.
    number
        .map(Value::EnumNumber)
        .ok_or_else(|| Problem::NotNamed(values.clone()))
}

/// Says what the values of an enumeration are called.
fn not_named(values: &EnumDescriptor) -> String {
    // The first one stands for a field that was left out.
    let names: Vec<String> = values
        .values()
        .skip(1)
        .map(|value| value.name().to_owned())
        .collect();
    format!("must be one of {}", names.join(", "))
}

/// Decodes either alphabet, with or without padding.
fn base64(text: &str) -> Read<Value> {
    let engine = match (text.contains(['-', '_']), text.ends_with('=')) {
        (false, false) => &STANDARD_NO_PAD,
        (false, true) => &STANDARD,
        (true, false) => &URL_SAFE_NO_PAD,
        (true, true) => &URL_SAFE,
    };
    let bytes = engine.decode(text);
    bytes
        .map(|b| Value::Bytes(b.into()))
        .map_err(|_| "must be a string in base64".into())
}

fn message_from_text(message: &MessageDescriptor, text: &str) -> Read<DynamicMessage> {
    let (shape, problem) = match well_known(message) {
        Some(WellKnown::Timestamp) => (
            is_timestamp(text),
            "must be a time as in RFC 3339, with at most nine decimals",
        ),
        Some(WellKnown::Duration) => (
            is_duration(text),
            "must be a number of seconds with the suffix s, with at most nine decimals",
        ),
        _ => (true, "must be a list of field names"),
    };
    let json = serde_json::Value::String(text.to_owned());
    let read = shape.then(|| DynamicMessage::deserialize(message.clone(), json).ok());
    read.flatten().ok_or_else(|| problem.into())
}

/// The parser behind this accepts more than RFC 3339, and truncates decimals.
fn is_timestamp(text: &str) -> bool {
    let shape = |text: &str, shape: &str| {
        text.len() == shape.len()
            && text.bytes().zip(shape.bytes()).all(|(b, s)| match s {
                b'0' => b.is_ascii_digit(),
                b'T' => matches!(b, b'T' | b't'),
                b'+' => matches!(b, b'+' | b'-'),
                _ => b == s,
            })
    };
    let Some((date, rest)) = text.split_at_checked(19) else {
        return false;
    };
    let zone = rest
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(rest.len());
    let (fraction, zone) = rest.split_at(zone);
    shape(date, "0000-00-00T00:00:00")
        && (fraction.is_empty() || is_fraction(fraction))
        && (zone.eq_ignore_ascii_case("Z") || shape(zone, "+00:00"))
}

fn is_fraction(text: &str) -> bool {
    let digits = text.strip_prefix('.').unwrap_or_default();
    (1..=9).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit())
}

fn is_duration(text: &str) -> bool {
    let text = text.strip_prefix('-').unwrap_or(text);
    let Some(text) = text.strip_suffix('s') else {
        return false;
    };
    let (whole, fraction) = text.split_at(text.find('.').unwrap_or(text.len()));
    let digits = (1..=12).contains(&whole.len()) && whole.bytes().all(|b| b.is_ascii_digit());
    digits && (fraction.is_empty() || is_fraction(fraction))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_follow_rfc_3339() {
        for good in [
            "2026-01-02T03:04:05Z",
            "2026-01-02t03:04:05.123456789z",
            "2026-01-02T03:04:05.1+01:30",
        ] {
            assert!(is_timestamp(good), "{good}");
        }
        for bad in [
            "",
            "2026-01-02",
            "2026-01-02T03:04:05",
            "2026-01-02 03:04:05Z",
            "2026-01-02T03:04:05.Z",
            "2026-01-02T03:04:05.1234567890Z",
            "2026-01-02T03:04:05+01",
            "2026-01-02T03:04:05 Z",
            "+12026-01-02T03:04:05Z",
            "2026-01-02T03:04:05ZZ",
            "20２6-01-02T03:04:05Z",
        ] {
            assert!(!is_timestamp(bad), "{bad}");
        }
    }

    #[test]
    fn durations_are_seconds() {
        for good in ["0s", "1.5s", "-3.000000001s", "315576000000s"] {
            assert!(is_duration(good), "{good}");
        }
        for bad in [
            "",
            "s",
            "1",
            "1m",
            "1.s",
            ".5s",
            "+1s",
            "--1s",
            "1.0000000001s",
            "1e3s",
            "1 s",
        ] {
            assert!(!is_duration(bad), "{bad}");
        }
    }

    #[test]
    fn base64_has_one_reading() {
        for (text, bytes) in [
            ("", &b""[..]),
            ("AQI=", b"\x01\x02"),
            ("AQI", b"\x01\x02"),
            ("-_8=", b"\xfb\xff"),
            ("+/8", b"\xfb\xff"),
        ] {
            assert_eq!(
                base64(text),
                Ok(Value::Bytes(bytes.to_vec().into())),
                "{text}"
            );
        }
        for bad in ["A", "AQJ=", "AQ I", "+_8=", "AQI==", "A===", "AQI=\n"] {
            assert!(base64(bad).is_err(), "{bad}");
        }
    }
}
