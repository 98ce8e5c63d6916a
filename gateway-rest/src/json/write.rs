//! Messages as JSON: names as in the protos, every field, map keys in order, and numbers that parse back to
//! the same value.
//!
//! A `google.protobuf.Struct` has doubles only. What was received as 7 is sent as 7 and not as 7.0, because
//! many parsers distinguish the two, and take the first for an integer.

use base64::{display::Base64Display, engine::general_purpose::STANDARD};
use prost_reflect::{
    DynamicMessage, EnumDescriptor, FieldDescriptor, Kind, MapKey, ReflectMessage,
    SerializeOptions, Value,
};
use serde::ser::{Error, Serialize, SerializeMap, Serializer};
use std::collections::BTreeMap;

/// Whole doubles up to this one are written as integers, which every parser takes for the same number.
const EXACT: f64 = 9_007_199_254_740_992.0;

pub(crate) fn write(message: &DynamicMessage) -> Result<Vec<u8>, serde_json::Error> {
    serde_json::to_vec(&Message(message))
}

struct Message<'a>(&'a DynamicMessage);

impl Serialize for Message<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0.descriptor().full_name() {
            "google.protobuf.Struct" | "google.protobuf.ListValue" => {
                let all = self.0.get_field_by_number(1);
                let all = all.ok_or_else(|| S::Error::custom("a well-known type has no field"))?;
                One(&all, None).serialize(serializer)
            }
            "google.protobuf.Value" => any(self.0, serializer),
            known if known.starts_with("google.protobuf.") => self
                .0
                .serialize_with_options(serializer, &SerializeOptions::new()),
            _ => fields(self.0, serializer),
        }
    }
}

/// Writes every field, except those with presence that are absent.
fn fields<S: Serializer>(message: &DynamicMessage, serializer: S) -> Result<S::Ok, S::Error> {
    let descriptor = message.descriptor();
    let shown = |f: &FieldDescriptor| !f.supports_presence() || message.has_field(f);
    let mut map = serializer.serialize_map(None)?;
    for field in descriptor.fields().filter(shown) {
        let value = message.get_field(&field);
        map.serialize_entry(field.name(), &One(&value, value_kind(&field).as_enum()))?;
    }
    map.end()
}

/// Returns the kind of a field's value, or of a map's values.
fn value_kind(field: &FieldDescriptor) -> Kind {
    match field.kind() {
        Kind::Message(entry) if entry.is_map_entry() => entry.map_entry_value_field().kind(),
        kind => kind,
    }
}

fn any<S: Serializer>(value: &DynamicMessage, serializer: S) -> Result<S::Ok, S::Error> {
    let descriptor = value.descriptor();
    let field = descriptor.fields().find(|f| value.has_field(f));
    let Some(field) = field else {
        return Err(S::Error::custom("a value has no kind"));
    };
    match &*value.get_field(&field) {
        Value::EnumNumber(_) => serializer.serialize_unit(),
        Value::F64(n) if !n.is_finite() => Err(S::Error::custom("a value is not finite")),
        Value::F64(n) => match as_integer(*n) {
            Some(n) => serializer.serialize_i64(n),
            None => serializer.serialize_f64(*n),
        },
        other => One(other, None).serialize(serializer),
    }
}

fn as_integer(n: f64) -> Option<i64> {
    let negative_zero = n == 0.0 && n.is_sign_negative();
    (n.fract() == 0.0 && n.abs() <= EXACT && !negative_zero).then_some(n as i64)
}

/// A value, or a list or map of values; with the enum whose names it uses.
struct One<'a>(&'a Value, Option<&'a EnumDescriptor>);

impl Serialize for One<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Value::Bool(b) => serializer.serialize_bool(*b),
            Value::I32(n) => serializer.serialize_i32(*n),
            Value::U32(n) => serializer.serialize_u32(*n),
            Value::I64(n) => serializer.collect_str(n),
            Value::U64(n) => serializer.collect_str(n),
            Value::F32(n) if n.is_finite() => serializer.serialize_f32(*n),
            Value::F64(n) if n.is_finite() => serializer.serialize_f64(*n),
            Value::F32(n) => serializer.serialize_str(special(f64::from(*n))),
            Value::F64(n) => serializer.serialize_str(special(*n)),
            Value::String(text) => serializer.serialize_str(text),
            Value::Bytes(bytes) => serializer.collect_str(&Base64Display::new(bytes, &STANDARD)),
            Value::EnumNumber(n) => enumeration(self.1, *n, serializer),
            Value::Message(message) => Message(message).serialize(serializer),
            Value::List(items) => serializer.collect_seq(items.iter().map(|v| One(v, self.1))),
            Value::Map(map) => {
                let sorted: BTreeMap<_, _> = map.iter().collect();
                let entries = sorted.into_iter().map(|(k, v)| (Key(k), One(v, self.1)));
                serializer.collect_map(entries)
            }
        }
    }
}

fn special(n: f64) -> &'static str {
    match n {
        f64::INFINITY => "Infinity",
        f64::NEG_INFINITY => "-Infinity",
        _ => "NaN",
    }
}

/// Writes the name of the value, or its number when this process does not know the name.
fn enumeration<S: Serializer>(
    values: Option<&EnumDescriptor>,
    number: i32,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match values.and_then(|v| v.get_value(number)) {
        Some(value) => serializer.serialize_str(value.name()),
        None => serializer.serialize_i32(number),
    }
}

struct Key<'a>(&'a MapKey);

impl Serialize for Key<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            MapKey::Bool(b) => serializer.collect_str(b),
            MapKey::I32(n) => serializer.collect_str(n),
            MapKey::I64(n) => serializer.collect_str(n),
            MapKey::U32(n) => serializer.collect_str(n),
            MapKey::U64(n) => serializer.collect_str(n),
            MapKey::String(text) => serializer.serialize_str(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost_types::value::Kind as ValueKind;
    use tars_proto::table::pool;

    fn text(value: f64) -> String {
        let descriptor = pool().get_message_by_name("google.protobuf.Value").unwrap();
        let mut message = DynamicMessage::new(descriptor);
        let value = prost_types::Value {
            kind: Some(ValueKind::NumberValue(value)),
        };
        message.transcode_from(&value).unwrap();
        String::from_utf8(write(&message).unwrap()).unwrap()
    }

    #[test]
    fn whole_numbers_of_a_struct_have_no_fraction() {
        for (value, written) in [
            (7.0, "7"),
            (-3.0, "-3"),
            (0.0, "0"),
            (EXACT, "9007199254740992"),
            (-0.0, "-0.0"),
            (0.5, "0.5"),
            (0.980_324_641_712_226_9, "0.9803246417122269"),
        ] {
            assert_eq!(text(value), written);
        }
        for value in [
            EXACT * 2.0,
            1e300,
            -1e23,
            f64::MAX,
            f64::MIN_POSITIVE,
            5e-324,
        ] {
            let back: f64 = text(value).parse().unwrap();
            assert_eq!(back.to_bits(), value.to_bits());
        }
    }

    /// The mapping's own serializer agrees, except for the numbers of a `Struct`, which are not compared.
    #[test]
    fn messages_are_written_as_the_mapping_writes_them() {
        let options = SerializeOptions::new()
            .use_proto_field_name(true)
            .skip_default_fields(false);
        for descriptor in pool()
            .all_messages()
            .filter(|m| m.package_name().starts_with("tars."))
        {
            if descriptor.is_map_entry() {
                continue;
            }
            let mut message = DynamicMessage::new(descriptor.clone());
            for round in 0..2 {
                let ours: serde_json::Value =
                    serde_json::from_slice(&write(&message).unwrap()).unwrap();
                let theirs = message
                    .serialize_with_options(serde_json::value::Serializer, &options)
                    .unwrap();
                assert_eq!(ours, theirs, "{} {round}", descriptor.full_name());
                for field in descriptor.fields() {
                    sample(&mut message, &field);
                }
            }
        }
    }

    /// One level of something in every field.
    fn sample(message: &mut DynamicMessage, field: &FieldDescriptor) {
        let value = match value_kind(field) {
            Kind::Bool => Value::Bool(true),
            Kind::Double => Value::F64(f64::INFINITY),
            Kind::Float => Value::F32(1.5),
            Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => Value::I32(-7),
            Kind::Uint32 | Kind::Fixed32 => Value::U32(7),
            Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => Value::I64(i64::MIN),
            Kind::Uint64 | Kind::Fixed64 => Value::U64(u64::MAX),
            Kind::String => Value::String("a\"\n\u{1F600}".into()),
            Kind::Bytes => Value::Bytes(vec![0xfb, 0xff].into()),
            Kind::Enum(_) => Value::EnumNumber(99),
            Kind::Message(m) if m.full_name() == "google.protobuf.Value" => return,
            Kind::Message(m) => Value::Message(DynamicMessage::new(m)),
        };
        if field.is_map() {
            let map = [(MapKey::String("k".into()), value)].into_iter().collect();
            message.set_field(field, Value::Map(map));
        } else if field.is_list() {
            message.set_field(field, Value::List(vec![value]));
        } else {
            message.set_field(field, value);
        }
    }
}
