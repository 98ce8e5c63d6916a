//! JSON to messages and back, by the proto3 JSON mapping, parsed strictly.
//!
//! Two parsers of one body must not see two things. So a name that is given twice, in either spelling or as two
//! members of a oneof, is refused, as is every name that the message does not have, on every level and inside
//! of `google.protobuf.Struct`. Numbers are parsed from their own digits, never by way of a `double`: what the
//! field cannot hold exactly is refused, and nothing is rounded silently.
//!
//! `serde_json` splits the text one level at a time ([`raw`]) and leaves each value as it is written; what a
//! value means is decided here, by its field. A deserializer that is driven by the descriptors would process
//! each byte once instead of once per level, but would lose the digits of numbers and the position of errors.
//! Levels are few: the contract's messages nest four deep, and values in a `Struct` at most
//! [`MAX_STRUCT_DEPTH`].
//!
//! Errors name the field and what it accepts, never its value: that may be a password.

mod number;
mod raw;
mod scalar;
mod write;

use prost_reflect::{
    DynamicMessage, FieldDescriptor, Kind, MapKey, MessageDescriptor, ReflectMessage, Value,
};
use raw::{Json, Member};
use serde_json::value::RawValue;
use std::collections::{BTreeMap, BTreeSet, HashMap, btree_map::Entry};
use tars_proto::validate::{MAX_STRUCT_DEPTH, Path, Violations};

pub(crate) use scalar::{fits_text, from_text};
pub(crate) use write::write;

/// Parses a whole body; the error tells where it is not valid JSON.
pub(crate) fn parse(body: &[u8]) -> Result<&RawValue, String> {
    if body.starts_with(b"\xef\xbb\xbf") {
        return Err("it begins with a byte order mark".to_owned());
    }
    serde_json::from_slice(body).map_err(|e| e.to_string())
}

/// Where the value of a field came from, other than the body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    Path,
    Query,
}

/// Fills one message, and collects everything that is wrong.
#[derive(Debug, Default)]
pub(crate) struct Reader {
    out: Violations,
    /// The fields that were set before the body is parsed, by their path.
    given: BTreeMap<String, Source>,
}

impl Reader {
    pub(crate) fn finish(self) -> Option<tonic::Status> {
        self.out.into_status()
    }

    pub(crate) fn refuse(&mut self, at: &Path<'_>, problem: impl Into<String>) {
        self.out.add(at, problem);
    }

    /// Sets the field at the end of `fields` to a text from the path or the query.
    pub(crate) fn put(
        &mut self,
        message: &mut DynamicMessage,
        fields: &[FieldDescriptor],
        text: &str,
        source: Source,
    ) {
        let names: Vec<&str> = fields.iter().map(FieldDescriptor::name).collect();
        let name = names.join(".");
        let at = Path::ROOT.field(&name);
        let Some((field, outer)) = fields.split_last() else {
            return;
        };
        let value = match from_text(&field.kind(), text) {
            Ok(value) => value,
            Err(problem) => return self.out.add(&at, problem),
        };
        let inner = outer.iter().fold(message, |message, field| {
            let value = message.get_field_mut(field).as_message_mut();
            value.expect("only messages have fields")
        });
        let before = self.given.insert(name.clone(), source);
        match before {
            Some(Source::Query) if field.is_list() => {
                let list = inner.get_field_mut(field).as_list_mut();
                list.expect("a repeated field is a list").push(value);
            }
            Some(Source::Path) => {
                self.given.insert(name.clone(), Source::Path);
                self.agree(inner, field, &value, &at);
            }
            Some(Source::Query) => self.out.add(&at, "is given twice"),
            None if field.is_list() => self.set(inner, field, Value::List(vec![value]), &at),
            None => self.set(inner, field, value, &at),
        }
    }

    /// Parses an object into a message, some of whose fields may already be set.
    pub(crate) fn fill(&mut self, message: &mut DynamicMessage, json: &RawValue, at: &Path<'_>) {
        let Some(members) = self.members(json, at) else {
            return;
        };
        let descriptor = message.descriptor();
        let mut seen = BTreeSet::new();
        for (name, json) in members {
            match named(&descriptor, &name) {
                None => self
                    .out
                    .add(&at.field(&name), "is not a field of this message"),
                Some(field) if !seen.insert(field.number()) => {
                    self.out.add(&at.field(field.name()), "is given twice");
                }
                Some(field) => self.member(message, &field, json, &at.field(field.name())),
            }
        }
    }

    /// Parses the value of one field. `null` means absence, except where it is a value of its own.
    pub(crate) fn member(
        &mut self,
        message: &mut DynamicMessage,
        field: &FieldDescriptor,
        json: &RawValue,
        at: &Path<'_>,
    ) {
        if json.get() == "null" && !takes_null(&field.kind()) {
            return;
        }
        if let (Kind::Message(inner), false) = (field.kind(), field.is_list() || field.is_map())
            && scalar::well_known(&inner).is_none()
        {
            if self.one_of(message, field, at) {
                let inner = message.get_field_mut(field).as_message_mut();
                self.fill(inner.expect("the field is a message"), json, at);
            }
            return;
        }
        let value = if field.is_map() {
            self.map(field, json, at)
        } else if field.is_list() {
            self.list(&field.kind(), json, at)
        } else {
            self.value(&field.kind(), json, at)
        };
        let Some(value) = value else { return };
        match self.source(at) {
            Some(Source::Path) => self.agree(message, field, &value, at),
            Some(Source::Query) => self.out.add(at, "is given twice"),
            None => self.set(message, field, value, at),
        }
    }

    /// The path of a field inside of a list or a map is never one that a path or a query names.
    fn source(&self, at: &Path<'_>) -> Option<Source> {
        if self.given.is_empty() {
            return None;
        }
        self.given.get(&at.to_string()).copied()
    }

    /// Checks that the body or the query repeats what the path gives.
    fn agree(
        &mut self,
        message: &DynamicMessage,
        field: &FieldDescriptor,
        value: &Value,
        at: &Path<'_>,
    ) {
        if *message.get_field(field) != *value {
            self.out.add(at, "differs from the path");
        }
    }

    fn set(
        &mut self,
        message: &mut DynamicMessage,
        field: &FieldDescriptor,
        value: Value,
        at: &Path<'_>,
    ) {
        if self.one_of(message, field, at) {
            message.set_field(field, value);
        }
    }

    /// Whether no other member of the field's oneof has a value.
    fn one_of(&mut self, message: &DynamicMessage, field: &FieldDescriptor, at: &Path<'_>) -> bool {
        let oneof = field.containing_oneof();
        let mut others = oneof.iter().flat_map(|o| o.fields());
        let taken = others.find(|f| f.number() != field.number() && message.has_field(f));
        if let Some(other) = &taken {
            self.out.add(
                at,
                format!("cannot be given together with {}", other.name()),
            );
        }
        taken.is_none()
    }

    fn split<'a>(&mut self, json: &'a RawValue, at: &Path<'_>) -> Option<Json<'a>> {
        let split = Json::of(json);
        split
            .map_err(|_| self.out.add(at, "is not Unicode text"))
            .ok()
    }

    fn members<'a>(&mut self, json: &'a RawValue, at: &Path<'_>) -> Option<Vec<Member<'a>>> {
        match self.split(json, at)? {
            Json::Object(members) => Some(members),
            _ => self.wrong(at, "must be an object"),
        }
    }

    fn items<'a>(&mut self, json: &'a RawValue, at: &Path<'_>) -> Option<Vec<&'a RawValue>> {
        match self.split(json, at)? {
            Json::List(items) => Some(items),
            _ => self.wrong(at, "must be a list"),
        }
    }

    fn wrong<T>(&mut self, at: &Path<'_>, problem: impl Into<String>) -> Option<T> {
        self.out.add(at, problem);
        None
    }

    fn value(&mut self, kind: &Kind, json: &RawValue, at: &Path<'_>) -> Option<Value> {
        if let Kind::Message(descriptor) = kind {
            return self.message(descriptor, json, at).map(Value::Message);
        }
        let json = self.split(json, at)?;
        scalar::from_json(kind, &json)
            .map_err(|problem| self.out.add(at, problem))
            .ok()
    }

    fn message(
        &mut self,
        descriptor: &MessageDescriptor,
        json: &RawValue,
        at: &Path<'_>,
    ) -> Option<DynamicMessage> {
        match descriptor.full_name() {
            "google.protobuf.Struct" => {
                self.object(json, at, 0).and_then(|v| known(descriptor, &v))
            }
            "google.protobuf.Value" => self.any(json, at, 0).and_then(|v| known(descriptor, &v)),
            "google.protobuf.ListValue" => {
                self.array(json, at, 0).and_then(|v| known(descriptor, &v))
            }
            _ if scalar::well_known(descriptor).is_some() => {
                let json = self.split(json, at)?;
                let read = scalar::message_from_json(descriptor, &json);
                read.map_err(|problem| self.out.add(at, problem)).ok()
            }
            _ => {
                let mut message = DynamicMessage::new(descriptor.clone());
                self.fill(&mut message, json, at);
                Some(message)
            }
        }
    }

    fn list(&mut self, kind: &Kind, json: &RawValue, at: &Path<'_>) -> Option<Value> {
        let items = self.items(json, at)?;
        let items = items.into_iter().enumerate().filter_map(|(i, json)| {
            let at = at.index(i);
            self.element(kind, json, &at)
        });
        Some(Value::List(items.collect()))
    }

    fn element(&mut self, kind: &Kind, json: &RawValue, at: &Path<'_>) -> Option<Value> {
        if json.get() == "null" && !takes_null(kind) {
            return self.wrong(at, "must not be null");
        }
        self.value(kind, json, at)
    }

    fn map(&mut self, field: &FieldDescriptor, json: &RawValue, at: &Path<'_>) -> Option<Value> {
        let entry = field.kind().as_message()?.clone();
        let (key, value) = (
            entry.map_entry_key_field().kind(),
            entry.map_entry_value_field().kind(),
        );
        let members = self.members(json, at)?;
        let mut map = HashMap::with_capacity(members.len());
        for (name, json) in members {
            let at = at.key(&name);
            match map_key(&key, &name) {
                None => self.out.add(&at, "is not a key of this map"),
                Some(key) if map.contains_key(&key) => self.out.add(&at, "is given twice"),
                Some(key) => {
                    map.extend(self.element(&value, json, &at).map(|value| (key, value)));
                }
            }
        }
        Some(Value::Map(map))
    }

    fn object(
        &mut self,
        json: &RawValue,
        at: &Path<'_>,
        depth: usize,
    ) -> Option<prost_types::Struct> {
        let members = self.members(json, at)?;
        let mut fields = BTreeMap::new();
        for (name, json) in members {
            match fields.entry(name) {
                Entry::Occupied(entry) => self.out.add(&at.key(entry.key()), "is given twice"),
                Entry::Vacant(entry) => {
                    if let Some(value) = self.any(json, &at.key(entry.key()), depth + 1) {
                        entry.insert(value);
                    }
                }
            }
        }
        Some(prost_types::Struct { fields })
    }

    fn array(
        &mut self,
        json: &RawValue,
        at: &Path<'_>,
        depth: usize,
    ) -> Option<prost_types::ListValue> {
        let items = self.items(json, at)?;
        let items = items.into_iter().enumerate();
        let values = items.filter_map(|(i, json)| self.any(json, &at.index(i), depth + 1));
        Some(prost_types::ListValue {
            values: values.collect(),
        })
    }

    fn any(&mut self, json: &RawValue, at: &Path<'_>, depth: usize) -> Option<prost_types::Value> {
        use prost_types::value::Kind;
        if depth > MAX_STRUCT_DEPTH {
            return self.wrong(at, "is nested too deeply");
        }
        let kind = match json.get().as_bytes().first() {
            Some(b'{') => Kind::StructValue(self.object(json, at, depth)?),
            Some(b'[') => Kind::ListValue(self.array(json, at, depth)?),
            _ => match self.split(json, at)? {
                Json::Null => Kind::NullValue(0),
                Json::Bool(b) => Kind::BoolValue(b),
                Json::Text(text) => Kind::StringValue(text),
                Json::Number(digits) => match number::in_struct(digits) {
                    Ok(n) => Kind::NumberValue(n),
                    Err(problem) => return self.wrong(at, problem),
                },
                Json::Object(_) | Json::List(_) => return None,
            },
        };
        Some(prost_types::Value { kind: Some(kind) })
    }
}

/// Finds a field by either spelling of its name.
pub(crate) fn named(descriptor: &MessageDescriptor, name: &str) -> Option<FieldDescriptor> {
    descriptor
        .get_field_by_name(name)
        .or_else(|| descriptor.get_field_by_json_name(name))
}

fn takes_null(kind: &Kind) -> bool {
    match kind {
        Kind::Message(message) => message.full_name() == "google.protobuf.Value",
        Kind::Enum(values) => values.full_name() == "google.protobuf.NullValue",
        _ => false,
    }
}

fn map_key(kind: &Kind, text: &str) -> Option<MapKey> {
    if let Kind::String = kind {
        return Some(MapKey::String(text.to_owned()));
    }
    // A key has one spelling: the parsed value must format as it was written.
    let key = match from_text(kind, text).ok()? {
        Value::Bool(b) => MapKey::Bool(b),
        Value::I32(n) => MapKey::I32(n),
        Value::I64(n) => MapKey::I64(n),
        Value::U32(n) => MapKey::U32(n),
        Value::U64(n) => MapKey::U64(n),
        _ => return None,
    };
    let written = match &key {
        MapKey::Bool(b) => b.to_string(),
        MapKey::I32(n) => n.to_string(),
        MapKey::I64(n) => n.to_string(),
        MapKey::U32(n) => n.to_string(),
        MapKey::U64(n) => n.to_string(),
        MapKey::String(text) => text.clone(),
    };
    (written == text).then_some(key)
}

fn known<M: prost::Message>(descriptor: &MessageDescriptor, value: &M) -> Option<DynamicMessage> {
    let mut message = DynamicMessage::new(descriptor.clone());
    message.transcode_from(value).ok()?;
    Some(message)
}

#[cfg(test)]
mod tests;
